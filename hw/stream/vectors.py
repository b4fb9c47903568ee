# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the stream parts."""

from functools import singledispatch
from typing import Any

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields

from .config import FifoConfig, PackerConfig, RegroupConfig, SkidConfig, WidthChangeConfig
from .cycles import packer_cycles, regroup_cycles
from .golden import change_width, pack, regroup


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


@_cases.register(PackerConfig)
@_cases.register(RegroupConfig)
def _packed(config: PackerConfig | RegroupConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    lanes, lanes_out = (
        (config.lanes, config.lanes)
        if isinstance(config, PackerConfig)
        else (config.lanes_in, config.lanes_out)
    )
    corners = [0, lanes, *([1] * (2 * lanes)), *([lanes - 1] * 5), *([lanes] * 3)]
    count = np.array([*corners, *rng.integers(0, lanes + 1, n_random)])
    last = rng.random(len(count)) < 0.3
    last[[0, len(corners) - 1, -1]] = True
    full = np.full(len(count), lanes)
    return [
        _packed_case("lists of every length", count, last, config, lanes_out, rng),
        _packed_case("full beats", full, last, config, lanes_out, rng),
        _packed_case("half-full beats", np.maximum(1, full // 2), last, config, lanes_out, rng),
    ]


def _packed_case(
    name: str,
    count: np.ndarray,
    last: np.ndarray,
    config: PackerConfig | RegroupConfig,
    lanes_out: int,
    rng: np.random.Generator,
) -> Case:
    lanes_in = config.lanes if isinstance(config, PackerConfig) else config.lanes_in
    data = rng.integers(0, 1 << config.element_bits, (len(count), lanes_in), dtype=np.int64)
    data[np.arange(lanes_in) >= count[:, None]] = 0
    sent = [torch.from_numpy(part.astype(np.int64)) for part in (data, count, last)]
    if isinstance(config, PackerConfig):
        out = pack(sent[0], sent[1], sent[2], config)
        on_time = packer_cycles(count.tolist(), last.tolist(), config)
    else:
        out = regroup(sent[0], sent[1], sent[2], config)
        on_time = regroup_cycles(count.tolist(), last.tolist(), config)
    return _case(
        name,
        packed_beats(data, count, last, config.element_bits),
        packed_beats(out[0].numpy(), out[1].numpy(), out[2].numpy(), config.element_bits),
        np.array(on_time),
    )


def packed_beats(data: np.ndarray, count: np.ndarray, last: np.ndarray, element_bits: int) -> Beats:
    """Beats of the packed layout: unsigned ``data`` [n_beats, lanes], ``count``, ``last``."""
    return pack_fields([(data, element_bits), (count, data.shape[1].bit_length()), (last, 1)])


def _case(name: str, sent: Beats, expected: Beats, on_time: np.ndarray) -> Case:
    return Case(
        name=name,
        inputs={"i": sent},
        expected={"o": expected},
        expected_cycles={"o": on_time},
        max_cycles=int(on_time[-1]) + 100,
    )
