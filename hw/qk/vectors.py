# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the query-times-key array, the same for every simulator."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.kv_buffer.config import HEAD_DIMS
from hw.kv_buffer.vectors import Plane, load_beats, n_lines, pack_loads, stride
from hw.stream.vectors import packed_beats

from .config import SCORE_BITS, QkConfig
from .cycles import RowShape, replay
from .golden import scores

LSB_BITS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """One beat of ``i_query`` and the keys that it finds."""

    elements: np.ndarray
    """int64[D]"""
    keys: np.ndarray
    """int64[n_keys, D]: what lies from ``base_line`` on; empty for a beat that computes nothing."""
    region: int
    base_line: int = 0
    release: int = 0
    """Lines of the region after which it becomes free."""
    last: bool = True


Head = tuple[list[Plane], list[Query]]
"""What is loaded, and the queries that meet it."""


def cases(config: QkConfig, *, seed: int, n_random: int) -> list[Case]:
    """Extreme operands, one-line rows, key counts around a line, rows over both regions; random heads."""
    rng = np.random.default_rng(seed)
    heads = {
        "extreme operands": list(_extremes(config)),
        "rows of one line": [head for d in config.head_dims for head in _short_rows(d, config, rng)],
        "around a line": list(_around_a_line(config, rng)),
        "loads outlast their rows": [_long_load(d, config, rng) for d in config.head_dims],
        "rows over several regions": [_long_row(d, config, rng) for d in config.head_dims],
        "random heads": [_random_head(config, rng) for _ in range(n_random)],
    }
    return [case(name, of_case, config, rng) for name, of_case in heads.items() if of_case]


def _extremes(config: QkConfig) -> Iterator[Head]:
    """The largest sums of either sign, and operands that cancel."""
    low, high = -(1 << (config.element_bits - 1)), (1 << (config.element_bits - 1)) - 1
    for head_dim in config.head_dims:
        n_keys = 2 * config.buffer.vectors_per_line(head_dim)
        for key in (low, high):
            keys = np.full((n_keys, head_dim), key)
            keys[1::2, ::2] = low + high - key
            queries = np.stack([np.full(head_dim, value) for value in (low, high, 0, 1, -1)])
            yield _head(keys, queries, config)


def _short_rows(head_dim: int, config: QkConfig, rng: np.random.Generator) -> Iterator[Head]:
    """Many queries on one line, then heads of one query on one line: nothing may cost a bubble."""
    vectors = config.buffer.vectors_per_line(head_dim)
    for n_queries in (20, 1, 1, 1, 1):
        yield _head(
            _random(vectors, head_dim, config, rng), _random(n_queries, head_dim, config, rng), config
        )


def _around_a_line(config: QkConfig, rng: np.random.Generator) -> Iterator[Head]:
    for head_dim in config.head_dims:
        vectors = config.buffer.vectors_per_line(head_dim)
        most = min(config.n_max, vectors * config.n_lines)
        for n_keys in sorted(
            {1, vectors - 1, vectors, vectors + 1, 2 * vectors + 1, most} & set(range(1, most + 1))
        ):
            yield _head(_random(n_keys, head_dim, config, rng), _random(2, head_dim, config, rng), config)


def _long_load(head_dim: int, config: QkConfig, rng: np.random.Generator) -> Head:
    """A row of one key, and the region that it releases still loading."""
    keys = _random(config.buffer.vectors_per_line(head_dim) * config.n_lines, head_dim, config, rng)
    query = Query(
        elements=_random(1, head_dim, config, rng)[0], keys=keys[:1], region=0, release=config.n_lines
    )
    return [Plane(region=0, vectors=keys)], [query]


def _long_row(head_dim: int, config: QkConfig, rng: np.random.Generator) -> Head:
    """One query whose keys go through both regions, three loads in all; then a beat that frees the first."""
    per_region = min(config.n_max // 4, config.buffer.vectors_per_line(head_dim) * config.n_lines)
    query = _random(1, head_dim, config, rng)[0]
    parts = [_random(n, head_dim, config, rng) for n in (per_region, max(1, per_region - 1), 1)]
    planes = [Plane(region=place % 2, vectors=part) for place, part in enumerate(parts)]
    queries = [
        Query(
            elements=query,
            keys=part,
            region=place % 2,
            release=n_lines(part, config.buffer) if place < 2 else 0,
            last=place == 2,
        )
        for place, part in enumerate(parts)
    ]
    nothing = np.zeros((0, head_dim), dtype=np.int64)
    return planes, [*queries, Query(elements=query, keys=nothing, region=0, release=1, last=False)]


def _random_head(config: QkConfig, rng: np.random.Generator) -> Head:
    """Any number of keys and queries; every second head has an LSB plane behind the MSB plane."""
    head_dim = int(rng.choice(config.head_dims))
    vectors = config.buffer.vectors_per_line(head_dim)
    with_lsb = rng.random() < 0.5
    most = min(config.n_max, vectors * (config.n_lines // (1 + with_lsb)))
    n_keys = int(rng.integers(1, most + 1))
    msb = _random(n_keys, head_dim, config, rng) >> rng.choice([0, 2, 4, 6, 8])
    elements = _random(int(rng.integers(1, 5)), head_dim, config, rng)
    if not with_lsb:
        return _head(msb, elements, config)
    lsb = rng.integers(0, 1 << min(LSB_BITS, config.element_bits - 1), msb.shape)
    base_line = n_lines(msb, config.buffer)
    queries = []
    for query in elements:
        queries.append(Query(elements=query, keys=msb, region=0))
        if rng.random() < 0.5:
            queries.append(Query(elements=query, keys=lsb, region=0, base_line=base_line))
    queries[-1] = replace(queries[-1], release=2 * base_line)
    return [Plane(region=0, vectors=msb), Plane(region=0, vectors=lsb, append=True)], queries


def _head(keys: np.ndarray, queries: np.ndarray, config: QkConfig) -> Head:
    made = [Query(elements=query, keys=keys, region=0) for query in queries]
    return [Plane(region=0, vectors=keys)], [
        *made[:-1],
        replace(made[-1], release=n_lines(keys, config.buffer)),
    ]


def _random(n_vectors: int, head_dim: int, config: QkConfig, rng: np.random.Generator) -> np.ndarray:
    bound = 1 << (config.element_bits - 1)
    return rng.integers(-bound, bound, (n_vectors, head_dim))


def case(name: str, heads: Sequence[Head], config: QkConfig, rng: np.random.Generator) -> Case:
    """Heads back to back, the regions in turn; what a payload does not define carries noise."""
    planes, queries = _in_turn(heads, config)
    shapes = [
        RowShape(
            head_dim=len(q.elements),
            region=q.region,
            base_line=q.base_line,
            n_keys=len(q.keys),
            release=q.release,
        )
        for q in queries
    ]
    loads, lines = load_beats(planes, config.buffer, rng)
    stamps = np.array([cycle for row in replay(loads, shapes, config) for cycle in row], dtype=np.int64)
    return Case(
        name=name,
        inputs={
            "i_load": pack_loads(loads, config.buffer),
            "i_key": lines,
            "i_query": _query_beats(queries, config, rng),
        },
        expected={"o": _score_beats(queries, config)},
        expected_cycles={"o": stamps},
        max_cycles=int(stamps.max(initial=0)) + 100,
    )


def _in_turn(heads: Sequence[Head], config: QkConfig) -> tuple[list[Plane], list[Query]]:
    """All planes and queries, every head starting in the region behind that in which the one before ended."""
    planes, queries, first = [], [], 0
    step, n_regions = stride([of_head for of_head, _ in heads], config.buffer), config.n_regions
    for of_head, meeting in heads:
        planes += [replace(plane, region=(first + step * plane.region) % n_regions) for plane in of_head]
        queries += [replace(query, region=(first + step * query.region) % n_regions) for query in meeting]
        first = (planes[-1].region + step) % n_regions
    return planes, queries


def _query_beats(queries: Sequence[Query], config: QkConfig, rng: np.random.Generator) -> Beats:
    elements = rng.integers(0, 1 << config.element_bits, (len(queries), config.max_head_dim))
    for row, query in zip(elements, queries, strict=True):
        row[: len(query.elements)] = query.elements & ((1 << config.element_bits) - 1)
    rest = np.array([
        (HEAD_DIMS.index(len(q.elements)), q.region, q.base_line, len(q.keys), q.release, q.last)
        for q in queries
    ])  # fmt: skip
    line_bits = config.buffer.count_bits
    bits = (2, config.buffer.region_bits, line_bits, config.count_bits, line_bits, 1)
    return pack_fields([(elements, config.element_bits), *zip(rest.T, bits, strict=True)])


def _score_beats(queries: Sequence[Query], config: QkConfig) -> Beats:
    data, count, last = [], [], []
    for query in queries:
        lanes = config.buffer.vectors_per_line(len(query.elements))
        n_keys = len(query.keys)
        n_beats = -(-n_keys // lanes)
        padded = np.zeros(n_beats * lanes, dtype=np.int64)
        padded[:n_keys] = scores(
            torch.from_numpy(query.elements), torch.from_numpy(query.keys), config
        ).numpy()
        beats = np.zeros((n_beats, config.lanes), dtype=np.int64)
        beats[:, :lanes] = padded.reshape(n_beats, lanes)
        data.append(beats & ((1 << SCORE_BITS) - 1))
        count.append(np.minimum(lanes, n_keys - lanes * np.arange(n_beats)))
        last.append(query.last & (np.arange(n_beats) == n_beats - 1))
    return packed_beats(np.concatenate(data), np.concatenate(count), np.concatenate(last), SCORE_BITS)
