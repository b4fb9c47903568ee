# SPDX-License-Identifier: MIT
"""Cycle model of the filter: one step a cycle, maps back to back.

Imports numpy at most.
"""

from collections.abc import Sequence

import numpy as np

from .config import LATENCY_CYCLES, FirConfig, Map

FIRST_STEP_CYCLE = 2
"""The map is taken in cycle 1."""


def map_cycles(of: Map, config: FirConfig) -> int:
    """First step of a map to the next map's: a beat each.

    To upsample, the output's pixels: 4 H W. To blur, the input's, a row of zeros, and one pixel more, which
    completes the last row: (H + 1) W + 1.
    """
    pixels = 4 * of.height * of.width if of.upsample else (of.height + 1) * of.width + 1
    return pixels * of.pixel_beats(config)


def replay(maps: Sequence[Map], config: FirConfig) -> list[np.ndarray]:
    """Cycle of each output beat of each map at full rate, from reset; the first transfer is cycle 1."""
    stamps, start = [], FIRST_STEP_CYCLE
    for of in maps:
        stamps.append(start + _emitting_steps(of, config) + LATENCY_CYCLES)
        start += map_cycles(of, config)
    return stamps


def _emitting_steps(of: Map, config: FirConfig) -> np.ndarray:
    """Numbers of the steps of a map that complete an output beat.

    To upsample, all do. To blur, pixel (y, x) of the output waits for the input's (y + 2, x + 2), where the
    column beyond the last one is the first of the row below.
    """
    beats = of.pixel_beats(config)
    if of.upsample:
        return np.arange(map_cycles(of, config))
    y, x, beat = np.ix_(*(np.arange(n) for n in (*of.out_size, beats)))
    return (((y + 2) * of.width + x + 2) * beats + beat).ravel()
