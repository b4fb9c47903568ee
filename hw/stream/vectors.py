# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the stream parts."""

from functools import singledispatch
from typing import Any

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields

from .config import FifoConfig, PackerConfig, SkidConfig, WidthChangeConfig
from .golden import change_width, pack


@singledispatch
def _cases(config: Any, rng: np.random.Generator, n_random: int) -> list[Case]:
    raise TypeError(f"no vectors for {type(config).__name__}")


def cases(config: Any, *, seed: int, n_random: int) -> list[Case]:
    """A single beat, then a stream of ``n_random`` + 2 built maxima of beats."""
    return _cases(config, np.random.default_rng(seed), n_random)


@_cases.register(FifoConfig)
@_cases.register(SkidConfig)
def _passing(config: FifoConfig | SkidConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    depth = config.depth if isinstance(config, FifoConfig) else 2
    return [_passing_case(n, config, rng) for n in (1, 2 * depth + n_random)]


def _passing_case(n_beats: int, config: FifoConfig | SkidConfig, rng: np.random.Generator) -> Case:
    beats = pack_fields([(rng.integers(0, 2, (n_beats, config.width_bits)), 1)])
    return _case(f"{n_beats} beats", beats, beats, 1 + config.LATENCY_CYCLES + np.arange(n_beats))


@_cases.register
def _width_change(config: WidthChangeConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    join = max(1, config.lanes_out // config.lanes_in)
    split = max(1, config.lanes_in // config.lanes_out)
    made = []
    for n_groups in (1, n_random + 2):
        data = rng.integers(0, 1 << config.element_bits, (n_groups * join, config.lanes_in), dtype=np.int64)
        out = change_width(torch.from_numpy(data), config).numpy()
        # Joining: each beat ends `join` input cycles after the one before; splitting: one a cycle.
        on_time = np.arange(len(out)) * join + join + config.LATENCY_CYCLES
        made.append(
            _case(
                f"{n_groups * join} beats",
                pack_fields([(data, config.element_bits)]),
                pack_fields([(out, config.element_bits)]),
                on_time if split == 1 else np.arange(len(out)) + 1 + config.LATENCY_CYCLES,
            )
        )
    return made


@_cases.register
def _packer(config: PackerConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    lanes = config.lanes
    corners = [0, lanes, *([1] * (2 * lanes)), *([lanes - 1] * 5), *([lanes] * 3)]
    count = np.array([*corners, *rng.integers(0, lanes + 1, n_random)])
    last = rng.random(len(count)) < 0.3
    last[[0, len(corners) - 1, -1]] = True
    data = rng.integers(0, 1 << config.element_bits, (len(count), lanes), dtype=np.int64)
    data[np.arange(lanes) >= count[:, None]] = 0
    sent = [torch.from_numpy(part.astype(np.int64)) for part in (data, count, last)]
    out = pack(sent[0], sent[1], sent[2], config)
    fields = [config.element_bits, lanes.bit_length(), 1]
    return [
        _case(
            "lists of every length",
            pack_fields(list(zip((data, count, last), fields, strict=True))),
            pack_fields([(part.numpy(), bits) for part, bits in zip(out, fields, strict=True)]),
            _packer_cycles(count, last, lanes),
        )
    ]


def _packer_cycles(count: np.ndarray, last: np.ndarray, lanes: int) -> np.ndarray:
    """Each beat with the input that completes it; an overflowing last beat costs one more cycle."""
    cycle, rest, stamps = 0, 0, []
    for n, ends in zip(count.tolist(), last.tolist(), strict=True):
        cycle += 1
        total = rest + n
        if total >= lanes or ends:
            stamps.append(cycle)
        if ends and total > lanes:
            cycle += 1
            stamps.append(cycle)
        rest = 0 if ends else total % lanes
    return np.array(stamps)


def _case(name: str, sent: Beats, expected: Beats, on_time: np.ndarray) -> Case:
    return Case(
        name=name,
        inputs={"i": sent},
        expected={"o": expected},
        expected_cycles={"o": on_time},
        max_cycles=int(on_time[-1]) + 100,
    )
