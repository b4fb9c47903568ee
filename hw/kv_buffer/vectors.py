# SPDX-License-Identifier: MIT
"""Beats that load a buffer, for the arrays' stimulus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Beats, pack_fields

from .config import KvBufferConfig
from .cycles import Load
from .golden import to_lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """Vectors to load to the start of a region, or behind what it holds."""

    region: int
    """Regions after the one in which the head begins."""
    vectors: np.ndarray
    """int64[n, D]"""
    append: bool = False


def n_lines(vectors: np.ndarray, config: KvBufferConfig) -> int:
    """Lines that the vectors take."""
    return -(-vectors.size // config.n_multipliers)


def stride(heads: Sequence[Sequence[Plane]], config: KvBufferConfig) -> int:
    """Regions from one load to the next: 1, or half of all where one is longer than a region."""
    longest = max(
        sum(n_lines(plane.vectors, config) for plane in planes if plane.region == first)
        for planes in heads
        for first in {plane.region for plane in planes}
    )
    return 1 if longest <= config.region_lines else config.n_regions // 2


def load_beats(
    planes: Sequence[Plane], config: KvBufferConfig, rng: np.random.Generator
) -> tuple[list[Load], Beats]:
    """The loads of these planes and their lines; the unused rest of a last line is noise."""
    loads, lines = [], []
    mask = (1 << config.element_bits) - 1
    for plane in planes:
        n_elements = plane.vectors.size
        part = rng.integers(0, mask + 1, (n_lines(plane.vectors, config), config.n_multipliers))
        used = to_lines(torch.from_numpy(plane.vectors), config).numpy()
        part.reshape(-1)[:n_elements] = used.reshape(-1)[:n_elements] & mask
        lines.append(part)
        loads.append(Load(region=plane.region, n_lines=len(part), append=plane.append))
    return loads, pack_fields([(np.concatenate(lines), config.element_bits)])


def pack_loads(loads: Sequence[Load], config: KvBufferConfig) -> Beats:
    """Beats of ``i_load``."""
    values = np.array([(load.region, load.append, load.n_lines) for load in loads], dtype=np.int64)
    return pack_fields(list(zip(values.T, (config.region_bits, 1, config.count_bits), strict=True)))
