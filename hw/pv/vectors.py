# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the probability-times-value array, the same for every simulator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.kv_buffer.config import HEAD_DIMS
from hw.kv_buffer.vectors import Plane, load_beats, n_lines, pack_loads, stride
from hw.stream.vectors import packed_beats

from .config import PROBABILITY_BITS, SHIFT_BITS, SHIFTS, PvConfig
from .cycles import RowShape, replay
from .golden import weighted_sum

PROBABILITY_MAX = (1 << PROBABILITY_BITS) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One beat of ``i_row``, its kept probabilities, and the vectors that they find."""

    probability: np.ndarray
    """int64[n_kept]"""
    indices: np.ndarray
    """int64[n_kept], places in the region"""
    vectors: np.ndarray
    """int64[n, D]: what the region holds from index 0 on"""
    region: int = 0
    shift: int = 12
    release: int = 0
    last: bool = True


Head = tuple[list[Plane], list[Row]]
"""What is loaded, and the rows that use it."""


def cases(config: PvConfig, *, seed: int, n_random: int) -> list[Case]:
    """Extreme sums and shifts, dense rows, conflicts of every size, rows over both regions; random heads."""
    rng = np.random.default_rng(seed)
    heads = {
        "extreme sums": list(_extremes(config)),
        "dense rows": list(_dense(config, rng)),
        "conflicts": list(_conflicts(config, rng)),
        "rows of one vector": [_single_rows(config, rng)],
        "loads outlast their rows": [_long_load(d, config, rng) for d in config.head_dims],
        "rows over several regions": [_long_row(d, config, rng) for d in config.head_dims],
        "random heads": [_random_head(config, rng) for _ in range(n_random)],
    }
    return [case(name, of_case, config, rng) for name, of_case in heads.items() if of_case]


def _capacity(head_dim: int, config: PvConfig) -> int:
    """Vectors that a region holds, and that a row may keep."""
    return min(config.n_max, config.buffer.vectors_per_line(head_dim) * config.n_lines)


def _random(n_vectors: int, head_dim: int, config: PvConfig, rng: np.random.Generator) -> np.ndarray:
    bound = 1 << (config.element_bits - 1)
    return rng.integers(-bound, bound, (n_vectors, head_dim))


def _softmax_like(n: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities that sum to about 1."""
    weights = rng.exponential(size=n)
    return np.minimum(np.rint(weights / max(weights.sum(), 1e-9) * 4096), PROBABILITY_MAX).astype(np.int64)


def _head(vectors: np.ndarray, rows: Sequence[Row], config: PvConfig) -> Head:
    released = replace(rows[-1], release=n_lines(vectors, config.buffer))
    return [Plane(region=0, vectors=vectors)], [*rows[:-1], released]


def _extremes(config: PvConfig) -> Iterator[Head]:
    """Sums at the limits of the accumulator, halves that round, the edge of saturation, every shift."""
    low, high = -(1 << (config.element_bits - 1)), (1 << (config.element_bits - 1)) - 1
    for head_dim in config.head_dims:
        n = _capacity(head_dim, config)
        vectors = np.full((n, head_dim), low)
        vectors[:, 1::2] = high
        vectors[0, :4] = (high, low, 1, -1)
        rows = [
            Row(probability=np.full(n, PROBABILITY_MAX), indices=np.arange(n), vectors=vectors, shift=shift)
            for shift in SHIFTS
        ]
        for probability in (0, 1, 127, 128, 129, 2047, 2048, 2049, PROBABILITY_MAX):
            for shift in (SHIFTS[0], 12, SHIFTS[-1]):
                one = np.array([probability])
                rows.append(Row(probability=one, indices=np.array([0]), vectors=vectors, shift=shift))
        nothing = np.zeros(0, dtype=np.int64)
        rows.append(Row(probability=nothing, indices=nothing, vectors=vectors))
        yield _head(vectors, rows, config)


def _dense(config: PvConfig, rng: np.random.Generator) -> Iterator[Head]:
    """All kept, in order, around a line and a beat: nothing may cost a bubble."""
    for head_dim in config.head_dims:
        together = max(config.lanes, config.buffer.vectors_per_line(head_dim))
        most = _capacity(head_dim, config)
        vectors = _random(most, head_dim, config, rng)
        sizes = {1, 2, together - 1, together, together + 1, 2 * together, most} & set(range(1, most + 1))
        rows = [
            Row(probability=_softmax_like(n, rng), indices=np.arange(n), vectors=vectors)
            for n in sorted(sizes)
            for _ in range(3)
        ]
        yield _head(vectors, rows, config)


def _conflicts(config: PvConfig, rng: np.random.Generator) -> Iterator[Head]:
    """All lanes in one slot; the same vector many times; descending; random subsets."""
    for head_dim in config.head_dims:
        slots = config.buffer.vectors_per_line(head_dim)
        most = _capacity(head_dim, config)
        vectors = _random(most, head_dim, config, rng)
        orders = [
            np.arange(0, most, slots),
            np.full(min(most, 2 * config.lanes + 1), most - 1),
            np.arange(most)[::-1],
            *(np.flatnonzero(rng.random(most) < p) for p in (0.1, 0.2, 0.5, 0.9)),
        ]
        rows = [
            Row(probability=_softmax_like(len(order), rng), indices=order, vectors=vectors)
            for order in orders
        ]
        yield _head(vectors, rows, config)


def _single_rows(config: PvConfig, rng: np.random.Generator) -> Head:
    """Rows of one cycle each, more than the output queues hold."""
    vectors = _random(1, config.max_head_dim, config, rng)
    probability = rng.integers(0, PROBABILITY_MAX + 1, (50, 1))
    first = np.zeros(1, dtype=np.int64)
    return _head(vectors, [Row(probability=p, indices=first, vectors=vectors) for p in probability], config)


def _long_load(head_dim: int, config: PvConfig, rng: np.random.Generator) -> Head:
    """A row of one vector, and the region that it releases still loading."""
    vectors = _random(config.buffer.vectors_per_line(head_dim) * config.n_lines, head_dim, config, rng)
    one = np.array([1])
    return _head(vectors, [Row(probability=one, indices=one - 1, vectors=vectors)], config)


def _long_row(head_dim: int, config: PvConfig, rng: np.random.Generator) -> Head:
    """One sum over three loads through both regions."""
    per_region = min(config.n_max // 4, _capacity(head_dim, config))
    planes, rows = [], []
    for place, n in enumerate((per_region, max(1, per_region - 1), 1)):
        vectors = _random(n, head_dim, config, rng)
        planes.append(Plane(region=place % 2, vectors=vectors))
        rows.append(
            Row(
                probability=_softmax_like(n, rng),
                indices=np.arange(n),
                vectors=vectors,
                region=place % 2,
                release=n_lines(vectors, config.buffer),
                last=place == 2,
            )
        )
    return planes, rows


def _random_head(config: PvConfig, rng: np.random.Generator) -> Head:
    """Some rows, each keeping its own share of the loaded vectors."""
    head_dim = int(rng.choice(config.head_dims))
    vectors = _random(int(rng.integers(1, _capacity(head_dim, config) + 1)), head_dim, config, rng)
    rows = []
    for _ in range(int(rng.integers(1, 6))):
        kept = np.flatnonzero(rng.random(len(vectors)) < rng.choice([0.0, 0.2, 0.5, 1.0]))
        rows.append(
            Row(
                probability=_softmax_like(len(kept), rng),
                indices=kept,
                vectors=vectors,
                shift=int(rng.choice(SHIFTS)),
            )
        )
    return _head(vectors, rows, config)


def case(name: str, heads: Sequence[Head], config: PvConfig, rng: np.random.Generator) -> Case:
    """Heads back to back, the regions in turn; what a payload does not define carries noise."""
    planes: list[Plane] = []
    rows: list[Row] = []
    step, n_regions = stride([of_head for of_head, _ in heads], config.buffer), config.n_regions
    for of_head, of_rows in heads:
        first = (planes[-1].region + step) % n_regions if planes else 0
        planes += [replace(plane, region=(first + step * plane.region) % n_regions) for plane in of_head]
        rows += [replace(row, region=(first + step * row.region) % n_regions) for row in of_rows]
    loads, lines = load_beats(planes, config.buffer, rng)
    shapes = [
        RowShape(
            head_dim=row.vectors.shape[1],
            region=row.region,
            indices=row.indices,
            release=row.release,
            last=row.last,
        )
        for row in rows
    ]
    output_cycles, magnitude_cycles = replay(loads, shapes, config)
    outputs, magnitudes = _expected(rows, config)
    return Case(
        name=name,
        inputs={
            "i_load": pack_loads(loads, config.buffer),
            "i_value": lines,
            "i_row": _row_beats(rows, config),
            "i": _kept_beats(rows, config, rng),
        },
        expected={
            "o": pack_fields([(outputs & ((1 << config.element_bits) - 1), config.element_bits)]),
            "o_magnitude": pack_fields([(magnitudes, config.magnitude_bits)]),
        },
        expected_cycles={"o": np.array(output_cycles), "o_magnitude": np.array(magnitude_cycles)},
        max_cycles=magnitude_cycles[-1] + 100,
    )


def _expected(rows: Sequence[Row], config: PvConfig) -> tuple[np.ndarray, np.ndarray]:
    """Golden outputs int64[n, max_head_dim] and magnitudes int64[n], a row of several parts joined."""
    outputs, magnitudes = [], []
    parts: list[Row] = []
    for row in rows:
        parts.append(row)
        if not row.last:
            continue
        values = np.concatenate([part.vectors[part.indices] for part in parts])
        probability = np.concatenate([part.probability for part in parts])
        o, magnitude = weighted_sum(
            torch.from_numpy(probability), torch.from_numpy(values), row.shift, config
        )
        padded = np.zeros(config.max_head_dim, dtype=np.int64)
        padded[: len(o)] = o.numpy()
        outputs.append(padded)
        magnitudes.append(int(magnitude))
        parts = []
    return np.array(outputs), np.array(magnitudes)


def _row_beats(rows: Sequence[Row], config: PvConfig) -> Beats:
    values = np.array([
        (HEAD_DIMS.index(row.vectors.shape[1]), row.region, row.shift - SHIFTS[0], row.release, row.last)
        for row in rows
    ])  # fmt: skip
    bits = (2, config.buffer.region_bits, SHIFT_BITS, config.buffer.count_bits, 1)
    return pack_fields(list(zip(values.T, bits, strict=True)))


def _kept_beats(rows: Sequence[Row], config: PvConfig, rng: np.random.Generator) -> Beats:
    pairs, count, last = [], [], []
    for row in rows:
        n_kept = len(row.indices)
        n_beats = max(1, -(-n_kept // config.lanes))
        noisy = rng.integers(0, 1 << (PROBABILITY_BITS + config.index_bits), n_beats * config.lanes)
        noisy[:n_kept] = row.probability + (row.indices << PROBABILITY_BITS)
        pairs.append(noisy.reshape(n_beats, config.lanes))
        ends = np.arange(n_beats) == n_beats - 1
        count.append(np.where(ends, n_kept - (n_beats - 1) * config.lanes, config.lanes))
        last.append(ends)
    return packed_beats(
        np.concatenate(pairs),
        np.concatenate(count),
        np.concatenate(last),
        PROBABILITY_BITS + config.index_bits,
    )
