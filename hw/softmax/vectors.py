# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the softmax, the same for every simulator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields

from .config import MULTIPLIER_BITS, SHIFT_BITS, SoftmaxConfig, row_scale
from .cycles import replay
from .golden import softmax


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of scores, how to scale them, and whether its probabilities are dropped."""

    scores: np.ndarray
    """int64[n]"""
    multiplier: int
    shift: int
    drop: bool = False


def cases(config: SoftmaxConfig, *, seed: int, n_random: int) -> list[Case]:
    """Corners; short rows back to back; ``n_random`` random rows of any length, some of them dropped."""
    rng = np.random.default_rng(seed)
    short = [random_row(3 * config.lanes if config.n_max >= 3 * config.lanes else 1, rng, config)
             for _ in range(40)]  # fmt: skip
    return [
        case("corners", list(corner_rows(config)), config),
        case("rows of three beats", short, config),
        case("rows of one key", [random_row(1, rng, config) for _ in range(50)], config),
        case("random", [random_row(None, rng, config) for _ in range(n_random)], config),
    ]


def corner_rows(config: SoftmaxConfig) -> Iterator[Row]:
    """Lengths around a beat and a full row; equal, one-hot and extreme scores; extreme steps."""
    lowest, highest = -(1 << (config.score_bits - 1)), (1 << (config.score_bits - 1)) - 1
    medium = row_scale(16 / (highest - lowest))
    n_max, lanes = config.n_max, config.lanes
    for n in sorted({1, 2, lanes, lanes + 1, 2 * lanes - 1, n_max - 1, n_max} & set(range(1, n_max + 1))):
        ramp = np.linspace(lowest, highest, n).astype(np.int64)
        yield Row(scores=ramp, multiplier=medium[0], shift=medium[1])
        yield Row(scores=ramp[::-1].copy(), multiplier=medium[0], shift=medium[1], drop=n % 2 == 1)
    one_hot = np.full(n_max, lowest)
    one_hot[n_max // 3] = highest
    patterns = (
        one_hot,
        np.full(n_max, lowest),
        np.full(lanes, highest),
        np.array([highest, lowest]),
        np.array([lowest, highest]),
        -np.arange(min(n_max, 64)),
        np.where(np.arange(n_max) < n_max // 2, highest, highest - 1),
    )
    for scores in patterns:
        for step in (0.0, 1e-9, 0.25, 1.0, 100.0):
            multiplier, shift = row_scale(step)
            yield Row(scores=scores.astype(np.int64), multiplier=multiplier, shift=shift)
    yield Row(scores=np.arange(5), multiplier=0, shift=0)
    yield Row(scores=np.arange(5), multiplier=(1 << MULTIPLIER_BITS) - 1, shift=(1 << SHIFT_BITS) - 1)


def random_row(n_keys: int | None, rng: np.random.Generator, config: SoftmaxConfig) -> Row:
    """Normal scores of a random magnitude, a step that spreads them over 2^-4..2^5; any length for None.

    One row in five is dropped.
    """
    if n_keys is None:
        n_keys = min(config.n_max, int(np.exp2(rng.uniform(0, config.n_max.bit_length() - 0.5))))
    magnitude = 2.0 ** rng.uniform(0, config.score_bits - 5)
    bound = (1 << (config.score_bits - 1)) - 1
    scores = np.clip(rng.normal(0, magnitude, n_keys), -bound, bound).astype(np.int64)
    multiplier, shift = row_scale(2.0 ** rng.uniform(-4, 5) / magnitude)
    return Row(scores=scores, multiplier=multiplier, shift=shift, drop=bool(rng.random() < 0.2))


def case(name: str, rows: Sequence[Row], config: SoftmaxConfig) -> Case:
    """Rows back to back; lanes above ``count`` are 0, as dense rows have them."""
    results = [
        softmax(torch.from_numpy(r.scores), torch.tensor(r.multiplier), torch.tensor(r.shift), config)
        for r in rows
    ]
    kept = [result.probability.numpy() for r, result in zip(rows, results, strict=True) if not r.drop]
    timing = replay([(len(r.scores), r.drop) for r in rows], config)
    row_cycles = np.array([t.row_cycle for t in timing])
    output_cycles = np.array([cycle for t in timing for cycle in t.output_cycles])
    return Case(
        name=name,
        inputs={
            "i_row": scale_beats([(r.multiplier, r.shift) for r in rows]),
            "i": dense_beats([r.scores for r in rows], config.score_bits, config.lanes),
            "i_decision": pack_fields([(np.array([r.drop for r in rows]), 1)]),
        },
        expected={
            "o_row": pack_fields(
                [(np.array([int(r.max_probability) for r in results]), config.probability_bits)]
            ),
            "o": dense_beats(kept, config.probability_bits, config.lanes),
        },
        expected_cycles={"o_row": row_cycles, "o": output_cycles},
        max_cycles=int(row_cycles[-1]) + int(output_cycles.max(initial=0)) + 100,
    )


def scale_beats(scales: Sequence[tuple[int, int]]) -> Beats:
    """One beat of ``i_row`` for each (multiplier, shift)."""
    values = np.array(scales, dtype=np.int64).reshape(-1, 2)
    return pack_fields([(values[:, 0], MULTIPLIER_BITS), (values[:, 1], SHIFT_BITS)])


def dense_beats(rows: Sequence[np.ndarray], element_bits: int, lanes: int) -> Beats:
    """Packed beats of dense rows, signed elements in two's complement."""
    data, count, last = [], [], []
    for row in rows:
        n_beats = -(-len(row) // lanes)
        padded = np.zeros(n_beats * lanes, dtype=np.int64)
        padded[: len(row)] = row & ((1 << element_bits) - 1)
        data.append(padded.reshape(n_beats, lanes))
        counts = np.full(n_beats, lanes)
        counts[-1] = len(row) - (n_beats - 1) * lanes
        count.append(counts)
        last.append(np.arange(n_beats) == n_beats - 1)
    if not rows:
        data, count, last = [np.zeros((0, lanes), np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    return pack_fields(
        [
            (np.concatenate(data), element_bits),
            (np.concatenate(count), lanes.bit_length()),
            (np.concatenate(last), 1),
        ]
    )
