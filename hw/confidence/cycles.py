# SPDX-License-Identifier: MIT
"""Cycle model of the confidence check, alone and with its softmax: exact replays, a row's mean interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.softmax import cycles as softmax_cycles

from .config import BEGUN_ROWS, MAX_ENTRIES, SCORE_LATENCY_CYCLES, ConfidenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRow:
    """What decides a row's time: its length, and the outcome of its check."""

    n_keys: int
    progressive: bool
    dropped: bool
    """Its MSB probabilities were not confident: it enters a second time."""
    flush: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryTiming:
    """Cycles of one entry into the softmax; the first transfer of the run is cycle 1."""

    row: int
    used_lsb: bool
    begin_cycle: int
    """``i_row`` taken, or the row begun again; ``o_begin`` and ``o_softmax_row`` are out one cycle later."""
    score_cycles: tuple[int, ...]
    """Beats on ``o_score``."""
    decision_cycle: int
    """The maximum probability is taken; decision, request and row report are out one cycle later."""
    output_cycles: tuple[int, ...]
    """The softmax's beats of probabilities; none without a softmax, or where the row is dropped."""


def replay(
    rows: Sequence[TimedRow], config: ConfidenceConfig, *, with_softmax: bool = False
) -> list[EntryTiming]:
    """Exact cycles at full rate from reset, one entry into the softmax after another.

    Without the softmax, maximum probabilities are on offer before they are wanted.
    """
    return _Replay(config, softmax_cycles.Replay(config.softmax) if with_softmax else None).run(rows)


def row_interval_cycles(
    n_keys: np.ndarray | int, config: ConfidenceConfig, *, progressive: bool
) -> np.ndarray:
    """Mean cycles between successive rows of equal length through check and softmax, none recomputed.

    B = ceil(n_keys / L) where no row waits for a decision. A progressive row holds one of W places from its
    beginning to its decision, 2 B + c cycles (:func:`place_cycles`): max(B, (2 B + c) / W).
    """
    beats = softmax_cycles.row_interval_cycles(n_keys, config.softmax)
    if not progressive:
        return beats.astype(np.float64)
    return np.maximum(beats, place_cycles(n_keys, config) / config.window)


def place_cycles(n_keys: np.ndarray | int, config: ConfidenceConfig) -> np.ndarray:
    """From the beginning of a progressive row to that which its decision allows, in an idle pipeline.

    2 B + c, with c = SCORE_LATENCY_CYCLES + maximum_latency_cycles + row_latency_cycles + 1
    """
    built = config.softmax
    fixed = SCORE_LATENCY_CYCLES + built.maximum_latency_cycles + built.row_latency_cycles + 1
    return 2 * softmax_cycles.row_interval_cycles(n_keys, built) + fixed


class _Replay:
    def __init__(self, config: ConfidenceConfig, softmax: softmax_cycles.Replay | None) -> None:
        self.config, self.softmax = config, softmax
        self.free_cycle = 1
        """First cycle in which the next row can begin."""
        self.moved: list[int] = []
        """Cycle in which the last score of each entry was taken."""
        self.sent: list[int] = []
        """Cycle of every beat on ``o_score``."""
        self.decided: list[int] = []
        self.entries: list[EntryTiming] = []
        self.open_rows: dict[int, tuple[int, TimedRow, int]] = {}
        """Slot -> row number, row, cycle of its decision."""
        self.slot = 0

    def run(self, rows: Sequence[TimedRow]) -> list[EntryTiming]:
        for number, row in enumerate(rows):
            decided = self._enter(number, row, used_lsb=False)
            if row.progressive:
                self.open_rows[self.slot] = number, row, decided
            self.slot = (self.slot + 1) % self.config.window
            for _ in range(row.flush * self.config.window):
                self._settle()
                self.free_cycle += 1
                self.slot = (self.slot + 1) % self.config.window
            self._settle()
        return self.entries

    def _settle(self) -> None:
        if self.slot not in self.open_rows:
            return
        number, row, decided = self.open_rows.pop(self.slot)
        self.free_cycle = max(self.free_cycle, decided + 1)
        if row.dropped:
            self._enter(number, row, used_lsb=True)

    def _enter(self, number: int, row: TimedRow, *, used_lsb: bool) -> int:
        """One row of scores through to its decision, whose cycle is returned."""
        undecided = self.decided[-MAX_ENTRIES] if len(self.decided) >= MAX_ENTRIES else 0
        unmoved = self.moved[-BEGUN_ROWS] if len(self.moved) >= BEGUN_ROWS else 0
        begun = max(self.free_cycle, undecided + 1, unmoved + 1)
        self.free_cycle = begun + 1
        taken, first_beat = max(begun, self.moved[-1] if self.moved else 0), len(self.sent)
        for _ in range(-(-row.n_keys // self.config.lanes)):
            taken = max(taken + 1, self.sent[-2] if len(self.sent) > 1 else 0)
            sent = max(taken + SCORE_LATENCY_CYCLES, self.sent[-1] + 1 if self.sent else 0)
            if self.softmax:
                sent = max(sent, self.softmax.ready_cycle())
                self.softmax.accept(sent)
            self.sent.append(sent)
        self.moved.append(taken)
        dropped = row.dropped and not used_lsb
        reported = self.softmax.end_row() if self.softmax else 0
        decided = max(reported, begun + 1, self.decided[-1] + 1 if self.decided else 0)
        self.decided.append(decided)
        self.entries.append(
            EntryTiming(
                row=number,
                used_lsb=used_lsb,
                begin_cycle=begun,
                score_cycles=tuple(self.sent[first_beat:]),
                decision_cycle=decided,
                output_cycles=tuple(self.softmax.decide(decided + 1, dropped)) if self.softmax else (),
            )
        )
        return decided
