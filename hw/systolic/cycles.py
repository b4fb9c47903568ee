# SPDX-License-Identifier: MIT
"""Cycle model of the systolic array: one vector a cycle, passes back to back.

Imports numpy at most.
"""

from collections.abc import Sequence

import numpy as np

from hw.kv_buffer.cycles import Load, LoadReplay

from .config import MIN_PASS_CYCLES, SystolicConfig
from .descriptor import Descriptor, Layer, Work, bands_of, tile_rows

FIRST_ISSUE_CYCLE = 3
"""Descriptor taken in cycle 1, its first pass in cycle 2."""


def work_cycles(work: Work, config: SystolicConfig) -> int:
    """Cycles from this descriptor's first vector to the next one's, its words loaded and weights at hand.

    A tile of weights stays for ``planes`` passes of max(pixels, MIN_PASS_CYCLES) cycles, or until the rows of
    the tile after it have come, one a cycle: max(passes, rows of the next tile). The next descriptor's first
    tile is taken to have come.
    """
    d = work.descriptor
    passes = (1 + d.wide) * max(d.n_pixels, MIN_PASS_CYCLES)
    rows = np.array(tile_rows(work, config))
    return int(np.maximum(passes, rows[1:]).sum()) + passes


def layer_cycles(layer: Layer, config: SystolicConfig) -> int:
    """First vector of a layer to the next layer's, as :func:`work_cycles`; loads hide behind computing."""
    return sum(work_cycles(work, config) for band in bands_of(layer, config) for work in band.works)


def latency_cycles(layer: Layer, config: SystolicConfig) -> int:
    """First vector of a lone layer to its last sums, both counted."""
    return layer_cycles(layer, config) + config.latency_cycles


def tiling_ceiling(layer: Layer, config: SystolicConfig) -> float:
    """Share of the multipliers that tiles of R x C keep busy at best: channels over whole tiles."""
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    rows, columns = -(-n_in // config.rows) * config.rows, -(-n_out // config.columns) * config.columns
    return n_in / rows * n_out / columns


def busy(layer: Layer, config: SystolicConfig) -> float:
    """Share of multiplier cycles that multiply two channels of the layer, zeros of padding included."""
    return layer.n_macs * layer.n_planes / (layer_cycles(layer, config) * config.rows * config.columns)


def replay(loads: Sequence[Load], works: Sequence[Work], config: SystolicConfig) -> list[np.ndarray]:
    """Cycle of each output beat of each descriptor at full rate, from reset; the first transfer is cycle 1.

    All inputs are offered from cycle 1 on. A vector is issued in the cycle after the one before it, or later:

    - in the cycle after its word was written;
    - a tile's first one in the cycle after the tile's last row was taken; rows are taken one a cycle, from
      the first vector of the tile before on;
    - MIN_PASS_CYCLES after the start of a shorter pass, all else aside;
    - the one that frees a half in the cycle after the half's last word was written.
    """
    loading = LoadReplay(loads)
    free, rows_until, switched = FIRST_ISSUE_CYCLE, 0, 1
    outputs = []
    for work in works:
        d = work.descriptor
        ready = _ready_cycles(d, loading, config)
        place = np.arange(d.n_pixels)
        leave = []
        for number, n_rows in enumerate(tile_rows(work, config)):
            rows_until = max(switched, rows_until + 1) + n_rows - 1
            first_pass = number * (1 + d.wide) % len(ready)
            for plane in range(1 + d.wide):
                of_pass = ready[first_pass + plane].copy()
                of_pass[0] = max(of_pass[0], free, 0 if plane else rows_until + 1)
                leaves = first_pass + plane == len(ready) - 1
                if leaves and d.release and number == len(tile_rows(work, config)) - 1:
                    of_pass[-1] = max(of_pass[-1], loading.readable_from(d.half, d.release - 1))
                issued = np.maximum.accumulate(of_pass - place) + place
                switched = switched if plane else int(issued[0])
                free = int(issued[-1]) + 1 + max(0, MIN_PASS_CYCLES - d.n_pixels)
                if leaves:
                    leave.append(issued + config.latency_cycles)
        if d.release:
            loading.free(d.half, int(issued[-1]) + 1)
        outputs.append(np.concatenate(leave))
    return outputs


def _ready_cycles(d: Descriptor, loading: LoadReplay, config: SystolicConfig) -> np.ndarray:
    """First cycle in which each vector of the passes of one tile of outputs can be read; 0 outside.

    int64[n_passes, n_pixels]
    """
    tile = np.arange(-(-d.n_in // config.rows))
    plane = np.arange(1 + d.wide)
    taps_y, taps_x = np.arange(d.kernel_height), np.arange(d.kernel_width)
    down, right = d.stride * np.arange(d.out_height), d.stride * np.arange(d.out_width)
    from_origin_y, from_origin_x, tile, plane, down, right = np.ix_(taps_y, taps_x, tile, plane, down, right)
    y, x = from_origin_y + down, from_origin_x + right
    words = (d.address + y * d.row_words + x * d.pixel_words + tile + plane * d.plane_words) % config.n_words
    y, x = y + d.origin_y, x + d.origin_x
    inside = (y >= 0) & (y < d.in_height) & (x >= 0) & (x < d.in_width)
    words = np.where(inside, words, -1)
    cycle_of = np.array([*(loading.readable_from(d.half, w) for w in range(int(words.max()) + 1)), 0])
    return cycle_of[words].reshape(-1, d.n_pixels)
