# SPDX-License-Identifier: MIT
"""Bit-exact model of the confidence check, alone and with its softmax."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hw.softmax.golden import softmax

from .config import LSB_BITS, ConfidenceConfig


@dataclass(frozen=True, kw_only=True)
class Check:
    """What ``i_row`` says of a row's check."""

    threshold: int
    """0..4,095, unit 2^-12; a maximum below it is not confident."""
    progressive: bool
    """The row has an LSB plane to fall back on."""
    flush: bool = False
    """All rows up to this one are settled before a later one enters."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of scores as it enters the softmax."""

    row: int
    """Position of the row on ``i_row``."""
    used_lsb: bool
    """Scores 16 msb + lsb instead of msb."""
    dropped: bool
    """Its probabilities are discarded."""


def entries(
    checks: Sequence[Check], max_probabilities: Sequence[int], config: ConfidenceConfig
) -> list[Entry]:
    """Every entry into the softmax, in order; the finished rows leave in the order of those not dropped.

    Row r enters once row r - window is settled: its maximum probability found confident, or its recomputed
    scores sent. A row with ``flush`` settles all rows before it and itself first.

    Parameters
    ----------
    checks : one for each row
    max_probabilities : one for each row
        From its MSB scores, 0..4,095.
    """
    order: list[Entry] = []
    open_rows: dict[int, int] = {}
    """Slot -> the row in it that may still need its LSBs; slot = row mod window, plus flushed steps."""
    slot = 0

    def settle(slot: int) -> None:
        row = open_rows.pop(slot, None)
        if row is not None and max_probabilities[row] < checks[row].threshold:
            order.append(Entry(row=row, used_lsb=True, dropped=False))

    for row, check in enumerate(checks):
        dropped = check.progressive and max_probabilities[row] < check.threshold
        order.append(Entry(row=row, used_lsb=False, dropped=dropped))
        if check.progressive:
            open_rows[slot] = row
        for _ in range(1 + check.flush * config.window):
            slot = (slot + 1) % config.window
            settle(slot)
    return order


def combine(msb: torch.Tensor, lsb: torch.Tensor, config: ConfidenceConfig) -> torch.Tensor:
    """16 msb + lsb, the exact score of both planes: int64 in and out, any shape.

    With Q of 12 bits, K_msb of b <= 12 bits and 128 dimensions, |Q.K| <= 2^11 2^(b+3) 2^7 <= 2^33: 35 bits.
    """
    scores = (msb << LSB_BITS) + lsb
    bound = 1 << (config.score_bits - 1)
    if scores.numel() and not -bound <= int(scores.min()) <= int(scores.max()) < bound:
        raise ValueError(
            f"16 msb + lsb must be in {-bound}..{bound - 1}, not {int(scores.min())}..{int(scores.max())}"
        )
    return scores


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One row of both planes' scores and all that ``i_row`` says of it."""

    msb: torch.Tensor
    """int64[n]"""
    lsb: torch.Tensor
    """int64[n]"""
    msb_scale: tuple[int, int]
    """Multiplier and shift for ``msb``."""
    lsb_scale: tuple[int, int]
    """Multiplier and shift for 16 msb + lsb."""
    check: Check
    tag: int = 0


def confident_softmax(
    rows: Sequence[ScoreRow], config: ConfidenceConfig
) -> list[tuple[Entry, torch.Tensor, int]]:
    """Confidence check and softmax together.

    Returns
    -------
    list of (entry, probabilities int64[n], maximum probability), one for each entry into the softmax
    """

    def compute(scores: torch.Tensor, scale: tuple[int, int]) -> tuple[torch.Tensor, int]:
        multiplier, shift = (torch.tensor(value) for value in scale)
        result = softmax(scores, multiplier, shift, config.softmax)
        return result.probability, int(result.max_probability)

    first = [compute(row.msb, row.msb_scale) for row in rows]
    done = []
    for entry in entries([row.check for row in rows], [largest for _, largest in first], config):
        row = rows[entry.row]
        probability, largest = (
            compute(combine(row.msb, row.lsb, config), row.lsb_scale) if entry.used_lsb else first[entry.row]
        )
        done.append((entry, probability, largest))
    return done
