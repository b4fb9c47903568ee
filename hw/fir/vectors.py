# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the filter."""

from collections.abc import Sequence

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import FirConfig, Map
from .cycles import FIRST_STEP_CYCLE, LATENCY_CYCLES, map_cycles, replay
from .golden import filtered


def cases(config: FirConfig, *, seed: int, n_random: int) -> list[Case]:
    """Smallest maps, lines of one pixel, channels around a beat, extremes, full rows; then random maps.

    Maps of a case follow one another, modes in turn.
    """
    rng = np.random.default_rng(seed)
    lanes = config.lanes
    sizes: dict[str, list[tuple[int, int, int]]] = {
        "smallest maps": [(1, 1, 1), (1, 1, lanes + 1), (2, 2, 1), (2, 2, 2 * lanes + 1)],
        "single lines": [
            (1, 5, 1),
            (5, 1, 1),
            (1, 3, lanes + 1),
            (3, 1, lanes + 1),
            (2, 6, 1),
            (6, 2, lanes),
        ],
        "around a beat": [(3, 3, n) for n in (lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes - 1)],
        "full rows": [(2, config.row_beats, lanes), (3, config.row_beats // 3, 3 * lanes)],
        "many channels": [(2, 2, config.max_channels)],
        "random maps": [
            (int(rng.integers(1, 8)), int(rng.integers(1, 9)), int(rng.integers(1, 3 * lanes + 1)))
            for _ in range(n_random)
        ],
    }
    made = [
        case(name, [(of, _noise(of, config, rng)) for of in _maps(triples, config)], config, rng)
        for name, triples in sizes.items()
        if _maps(triples, config)
    ]
    if extremes := _extremes(config, rng):
        made.append(case("extremes", extremes, config, rng))
    return made


def _maps(sizes: Sequence[tuple[int, int, int]], config: FirConfig) -> list[Map]:
    """Both modes of each (height, width, channels), where the built filter takes them."""
    maps = []
    for height, width, channels in sizes:
        for upsample in (False, True):
            try:
                of = Map(upsample=upsample, height=height, width=width, channels=channels)
                of.check(config)
            except ValueError:
                continue
            maps.append(of)
    return maps


def _noise(of: Map, config: FirConfig, rng: np.random.Generator) -> np.ndarray:
    bound = 1 << (config.element_bits - 1)
    return rng.integers(-bound, bound, (of.height, of.width, of.channels))


def _extremes(config: FirConfig, rng: np.random.Generator) -> list[tuple[Map, np.ndarray]]:
    """All elements at the lowest value, all at the highest, and each at one of the two."""
    low, high = -(1 << (config.element_bits - 1)), (1 << (config.element_bits - 1)) - 1
    tasks = []
    for of in _maps([(5, 4, 1), (4, 5, config.lanes + 1)], config):
        size = (of.height, of.width, of.channels)
        tasks += [(of, x) for x in (np.full(size, low), np.full(size, high), rng.choice([low, high], size))]
    return tasks


def case(
    name: str, tasks: Sequence[tuple[Map, np.ndarray]], config: FirConfig, rng: np.random.Generator
) -> Case:
    """Maps back to back; lanes without a channel carry noise."""
    maps = [of for of, _ in tasks]
    fields = np.array([(of.upsample, of.height, of.width, of.channels) for of in maps])
    x = np.concatenate([_beats(x, config.lanes, rng, 1 << config.element_bits) for _, x in tasks])
    outputs = [
        _beats(filtered(torch.from_numpy(x), of, config).numpy(), config.lanes, rng, 1) for of, x in tasks
    ]
    lasts = [np.arange(len(beats)) == len(beats) - 1 for beats in outputs]
    mask = (1 << config.out_bits) - 1
    return Case(
        name=name,
        inputs={
            "i_map": pack_fields(
                [*zip(fields.T, (1, config.size_bits, config.size_bits, config.channel_bits), strict=True)]
            ),
            "i": pack_fields([(x & ((1 << config.element_bits) - 1), config.element_bits)]),
        },
        expected={
            "o": pack_fields([(np.concatenate(outputs) & mask, config.out_bits), (np.concatenate(lasts), 1)])
        },
        expected_cycles={"o": np.concatenate(replay(maps, config))},
        max_cycles=FIRST_STEP_CYCLE + LATENCY_CYCLES + sum(map_cycles(of, config) for of in maps) + 100,
    )


def _beats(x: np.ndarray, lanes: int, rng: np.random.Generator, bound: int) -> np.ndarray:
    """int64[n_beats, lanes] of a map; lanes without a channel hold anything in 0..``bound`` - 1."""
    height, width, channels = x.shape
    padded = rng.integers(0, bound, (height, width, -(-channels // lanes) * lanes))
    padded[..., :channels] = x
    return padded.reshape(-1, lanes)
