# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the zero eliminator."""

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import ZeroEliminatorConfig
from .golden import eliminate_zeros


def cases(config: ZeroEliminatorConfig, *, seed: int, n_random: int) -> list[Case]:
    """Each single lane, all, none and alternating masks; every mask where there are few; random ones."""
    rng = np.random.default_rng(seed)
    lanes = config.lanes
    corners = np.concatenate([
        np.zeros((1, lanes)), np.ones((1, lanes)), np.eye(lanes), 1 - np.eye(lanes),
        [np.arange(lanes) % 2, 1 - np.arange(lanes) % 2],
    ])  # fmt: skip
    every = (np.arange(1 << min(lanes, 8))[:, None] >> np.arange(lanes)) & 1
    randoms = rng.random((n_random, lanes)) < rng.random((n_random, 1))
    return [
        _case(name, masks.astype(bool), config, rng)
        for name, masks in (("corners", corners), ("every low mask", every), ("random", randoms))
        if len(masks)
    ]


def _case(name: str, mask: np.ndarray, config: ZeroEliminatorConfig, rng: np.random.Generator) -> Case:
    data = rng.integers(0, 1 << config.element_bits, mask.shape, dtype=np.int64)
    last = rng.integers(0, 2, len(mask))
    packed, count = eliminate_zeros(torch.from_numpy(data), torch.from_numpy(mask))
    bits = config.element_bits
    return Case(
        name=name,
        inputs={"i": pack_fields([(data, bits), (mask, 1), (last, 1)])},
        expected={
            "o": pack_fields([(packed.numpy(), bits), (count.numpy(), config.lanes.bit_length()), (last, 1)])
        },
        expected_cycles={"o": 1 + config.latency_cycles + np.arange(len(mask))},
        max_cycles=len(mask) + 100,
    )
