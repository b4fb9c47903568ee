# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the top-k engine, the same for every simulator."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import LFSR_BITS, TopKConfig
from .cycles import TopKTiming, replay
from .golden import top_k

Request = tuple[np.ndarray, int, int]
"""Elements int64[n], k, seed of the LFSR (0: runs on)."""

Replay = Callable[[Sequence[Request], TopKConfig], list[TopKTiming]]
"""An engine's cycle model."""

SIZES = (1, 2, 15, 16, 17, 100, 1024)


def cases(config: TopKConfig, *, seed: int, n_random: int, timing: Replay = replay) -> list[Case]:
    """One case for each size up to the built maximum: its corners, then ``n_random`` random requests.

    The last case mixes the sizes: a short request behind a long one is loaded while that is still filtered.
    """
    rng = np.random.default_rng(seed)
    sizes = [n for n in (0, *SIZES) if n <= config.n_max]
    made = [
        case(
            f"n = {n}",
            [*corner_requests(n, config), *random_requests(n, n_random, config, rng)],
            config,
            rng,
            timing,
        )
        for n in sizes
    ]
    mixed = [one for n in rng.choice(sizes, 2 * n_random) for one in random_requests(int(n), 1, config, rng)]
    return [*made, case("lengths mixed", mixed, config, rng, timing)]


def corner_requests(n: int, config: TopKConfig) -> list[Request]:
    """Every k that takes a path of its own, on orders and ties that break careless engines."""
    largest = (1 << config.element_bits) - 1
    ramp = np.arange(n) * (largest // max(n, 1))
    patterns = (
        ramp,
        ramp[::-1],
        np.full(n, largest),
        np.zeros(n, dtype=np.int64),
        np.arange(n) % 2 * largest,
        np.arange(n) // 2 % (largest + 1),
    )
    ks = sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))
    return [(pattern.astype(np.int64), k, 0) for pattern in patterns for k in ks]


def random_requests(n: int, count: int, config: TopKConfig, rng: np.random.Generator) -> Iterator[Request]:
    """Uniform elements over a random number of bits (few bits: many ties), any k, a new seed now and then."""
    for _ in range(count):
        bits = int(rng.integers(1, config.element_bits + 1))
        seed = int(rng.integers(1, 1 << LFSR_BITS)) if rng.random() < 0.3 else 0
        yield rng.integers(0, 1 << bits, n), int(rng.integers(0, n + 1)), seed


def case(
    name: str,
    requests: Sequence[Request],
    config: TopKConfig,
    rng: np.random.Generator,
    timing: Replay = replay,
) -> Case:
    """Requests back to back; lanes past n carry noise, which the engine must ignore."""
    lanes = config.lanes
    data, output = [], []
    for elements, n_kept, _ in requests:
        noisy = rng.integers(0, 1 << config.element_bits, (max(1, -(-len(elements) // lanes)), lanes))
        noisy.reshape(-1)[: len(elements)] = elements
        data.append(noisy)
        output.append(_expected_beats(elements, n_kept, config))
    n = np.array([len(elements) for elements, _, _ in requests])
    k = np.array([k for _, k, _ in requests])
    seeds = np.array([seed for _, _, seed in requests])
    on_time = np.concatenate([np.array(t.output_cycles) for t in timing(requests, config)])
    return Case(
        name=name,
        inputs={
            "i_request": pack_fields([(n, config.count_bits), (k, config.count_bits), (seeds, LFSR_BITS)]),
            "i": pack_fields([(np.concatenate(data), config.element_bits)]),
        },
        expected={"o": np.concatenate(output)},
        expected_cycles={"o": on_time},
        max_cycles=int(on_time[-1]) + 100,
    )


def _expected_beats(elements: np.ndarray, k: int, config: TopKConfig) -> np.ndarray:
    values, indices = top_k(torch.from_numpy(np.ascontiguousarray(elements)), k, config)
    n_beats = max(1, -(-k // config.lanes))
    rows = np.zeros((2, n_beats * config.lanes), dtype=np.int64)
    rows[:, :k] = values.numpy(), indices.numpy()
    last = np.arange(n_beats) == n_beats - 1
    count = np.where(last, k - (n_beats - 1) * config.lanes, config.lanes)
    return pack_fields(
        [
            (rows[0].reshape(n_beats, -1), config.element_bits),
            (rows[1].reshape(n_beats, -1), config.index_bits),
            (count, config.lanes.bit_length()),
            (last, 1),
        ]
    )
