# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the radix engine and the local value selection."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from hw.harness.job import Case, pack_fields
from hw.stream.rows import dense_beats
from hw.topk import vectors as topk_vectors

from .config import LocalValueConfig, RadixConfig
from .cycles import Row, local_value_replay, replay
from .golden import local_values, unsigned_scores

LocalRow = tuple[np.ndarray, np.ndarray, int]
"""Probabilities (or other payloads) int64[n], scores int64[n], k."""


@singledispatch
def _cases(config: Any, seed: int, n_random: int) -> list[Case]:
    raise TypeError(f"no vectors for {type(config).__name__}")


def cases(config: Any, *, seed: int, n_random: int) -> list[Case]:
    """One case for each size up to the built maximum: its corners, then ``n_random`` random ones."""
    return _cases(config, seed, n_random)


@_cases.register
def _radix(config: RadixConfig, seed: int, n_random: int) -> list[Case]:
    timing: Any = replay
    return topk_vectors.cases(config, seed=seed, n_random=n_random, timing=timing)


@_cases.register
def _local(config: LocalValueConfig, seed: int, n_random: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    sizes = [n for n in topk_vectors.SIZES if n <= config.n_max]
    made = [
        local_case(f"n = {n}", [*corner_rows(n, config), *random_rows(n, n_random, config, rng)], config)
        for n in sizes
    ]
    mixed = [row for n in rng.choice(sizes, n_random + 2) for row in random_rows(int(n), 1, config, rng)]
    return [*made, local_case("lengths mixed", mixed, config)]


def corner_rows(n: int, config: LocalValueConfig) -> list[LocalRow]:
    """Every k that takes a path of its own, on orders and ties that break careless engines."""
    largest, lowest, span = (1 << config.payload_bits) - 1, config.lowest_score, 1 << config.score_bits
    ramp = np.arange(n)
    patterns = (
        (ramp % (largest + 1), ramp * (span // max(n, 2)) + lowest),
        (np.full(n, largest), np.full(n, lowest + span - 1)),
        (np.zeros(n, dtype=np.int64), np.full(n, lowest)),
        (ramp % 2 * largest, ramp % 2 * (span - 1) + lowest),
        (ramp // 2 % (largest + 1), ramp // 2 + lowest + span // 2 - n // 4),
    )
    ks = sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))
    return [(probability.astype(np.int64), score.astype(np.int64), k) for probability, score in patterns
            for k in ks]  # fmt: skip


def random_rows(n: int, count: int, config: LocalValueConfig, rng: np.random.Generator) -> list[LocalRow]:
    """Probabilities over a random number of bits, scores likewise and independent, any k."""
    rows = []
    for _ in range(count):
        span = 1 << int(rng.integers(2, config.score_bits + 1))
        lowest = -(span // 2) if config.score_is_signed else 0
        rows.append(
            (
                rng.integers(0, 1 << int(rng.integers(1, config.payload_bits + 1)), n),
                rng.integers(lowest, lowest + span, n),
                int(rng.integers(0, n + 1)),
            )
        )
    return rows


def local_case(name: str, rows: Sequence[LocalRow], config: LocalValueConfig) -> Case:
    """Rows back to back."""
    by_score = config.semantics == "score"
    count_bits = config.selector.count_bits
    shapes = np.array([[len(probability), k] for probability, _, k in rows])
    inputs = {
        "i_row": pack_fields([(shapes[:, 0], count_bits), (shapes[:, 1], count_bits)]),
        "i": dense_beats([probability for probability, _, _ in rows], config.in_lanes, config.payload_bits),
    }
    if by_score:
        # Two's complement; lanes past the row stay 0.
        words = [score & ((1 << config.score_bits) - 1) for _, score, _ in rows]
        inputs["i_score"] = dense_beats(words, config.in_lanes, config.score_bits)
    deciding = [
        unsigned_scores(torch.from_numpy(score), config).numpy() if by_score else probability
        for probability, score, _ in rows
    ]
    on_time = local_value_replay(
        [Row(deciding=values, k=k) for values, (_, _, k) in zip(deciding, rows, strict=True)], config
    )
    cycles = np.concatenate([np.array(beats) for beats in on_time])
    return Case(
        name=name,
        inputs=inputs,
        expected={"o": np.concatenate([_pairs(row, config) for row in rows])},
        expected_cycles={"o": cycles},
        max_cycles=int(cycles[-1]) + 100,
    )


def _pairs(row: LocalRow, config: LocalValueConfig) -> np.ndarray:
    """The golden model's output beats of one row."""
    probability, score, k = row
    kept, index = local_values(torch.from_numpy(probability), k, config, torch.from_numpy(score))
    pairs = kept.numpy() | index.numpy() << config.payload_bits
    return dense_beats([pairs], config.lanes, config.payload_bits + config.selector.index_bits)
