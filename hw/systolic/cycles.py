# SPDX-License-Identifier: MIT
"""Cycle model of the systolic array: one vector a cycle, passes back to back.

Imports numpy at most.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np

from hw.kv_buffer.cycles import Load, LoadReplay

from .config import MIN_PASS_CYCLES, QUAD_BYTES, SystolicConfig
from .descriptor import Work, bands_of, tile_quads, tile_rows
from .layer import Layer, Phase, phases

NO_CYCLES = np.zeros(0, dtype=np.int64)


def work_cycles(work: Work, config: SystolicConfig, following: Work | None = None) -> int:
    """Cycles from this descriptor's first vector to the following one's, words and its first weights there.

    A tile of weights stays for ``planes`` passes of max(pixels, MIN_PASS_CYCLES) cycles, or until the rows of
    the tile after it have come, one a cycle: max(passes, rows of the next tile).
    """
    d = work.descriptor
    passes = (1 + d.wide) * max(d.n_pixels, MIN_PASS_CYCLES)
    after_last = tile_rows(following, config)[0] if following else 0
    return int(np.maximum(passes, [*tile_rows(work, config)[1:], after_last]).sum())


@cache
def layer_cycles(layer: Layer, config: SystolicConfig) -> int:
    """First vector of a layer to the next layer's, whose weights are there; loads hide behind computing."""
    works = [work for band in bands_of(layer, config) for work in band.works]
    alike: Counter[tuple[Phase, int, Phase | None]] = Counter()
    pairs = {}
    for work, following in zip(works, [*works[1:], None], strict=True):
        kind = work.phase, work.descriptor.n_pixels, following.phase if following else None
        pairs[kind] = work, following
        alike[kind] += 1
    return sum(n * work_cycles(pairs[kind][0], config, pairs[kind][1]) for kind, n in alike.items())


def latency_cycles(layer: Layer, config: SystolicConfig) -> int:
    """First vector of a lone layer to its last sums, both counted."""
    return layer_cycles(layer, config) + config.latency_cycles


def serial_cycles(layer: Layer, config: SystolicConfig) -> int:
    """Of an array that loads, fills and drains for each tile, taps packed without gaps, phases one by one."""
    r, c = config.rows, config.columns
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    return layer.groups * sum(
        -(-phase.n_taps * n_in // r)
        * -(-n_out // c)
        * (layer.n_planes * phase.height * phase.width + 2 * r + c - 2)
        for phase in phases(layer)
    )


def tiling_ceiling(layer: Layer, config: SystolicConfig) -> float:
    """Share of the multipliers that tiles of R x C keep busy at best, taps packed without gaps."""
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    n_macs = n_tiled = 0
    for phase in phases(layer):
        products, n_pixels = phase.n_taps * n_in, phase.height * phase.width
        tiles = -(-products // config.rows) * -(-n_out // config.columns)
        n_macs += products * n_out * n_pixels
        n_tiled += tiles * config.rows * config.columns * n_pixels
    return n_macs / n_tiled


def busy(layer: Layer, config: SystolicConfig) -> float:
    """Share of multiplier cycles that multiply two channels of the layer, zeros of padding included."""
    return layer.n_macs * layer.n_planes / (layer_cycles(layer, config) * config.rows * config.columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """When the inputs are offered and the sums taken; by default everything at once, from cycle 1 on."""

    words_from: np.ndarray = field(default_factory=lambda: NO_CYCLES)
    """First cycle in which each word, of all loads, is offered; empty: cycle 1."""
    weights_from: np.ndarray = field(default_factory=lambda: NO_CYCLES)
    """The same of each row of weights, of all descriptors."""
    sums_from: np.ndarray = field(default_factory=lambda: NO_CYCLES)
    """First cycle in which each beat of sums can be taken."""
    sum_cycles: int = 1
    """From one beat taken to the next, at least."""


def replay(
    loads: Sequence[Load],
    works: Sequence[Work],
    config: SystolicConfig,
    around: Surroundings = Surroundings(),
) -> list[np.ndarray]:
    """Cycle of each output beat of each descriptor, from reset; the first transfer is cycle 1.

    Loads and descriptors are offered from cycle 1 on, words and weights as ``around`` says. A descriptor is
    taken in cycle 1, or with the hand-over of the last tile of the one before. Rows of its weights are taken
    one a cycle, after the descriptor and from the first vector of the tile before on. A tile is handed over
    with its last row, or with the last vector of the tile before if that is later. A vector is issued in the
    cycle after the one before it, or later:

    - in the cycle after its words were written;
    - a tile's first one in the cycle after its hand-over;
    - MIN_PASS_CYCLES after the start of a shorter pass, all else aside;
    - the one that frees a half in the cycle after the half's last word was written;
    - one whose sums leave once the queue has room.
    """
    loading = LoadReplay(loads, offered=around.words_from)
    queue = _Queue(config, around)
    n_rows = sum(sum(tile_rows(work, config)) for work in works)
    offered = around.weights_from if around.weights_from.size else np.ones(n_rows, dtype=np.int64)
    handed, rows_until, switched, last_issue, free = 1, 1, 1, 0, 0
    outputs = []
    for work in works:
        d = work.descriptor
        ready = ready_cycles(work, loading, config)
        leave = []
        rows_from = handed + 1
        tiles = tile_rows(work, config)
        for number, n_rows in enumerate(tiles):
            begins = max(rows_from, switched, rows_until + 1)
            rows_until, offered = int(_in_turn(offered[:n_rows], begins)[-1]), offered[n_rows:]
            handed = max(rows_until, last_issue)
            for plane in range(1 + d.wide):
                of_pass = ready[number % len(ready), plane].copy()
                of_pass[0] = max(of_pass[0], free, 0 if plane else handed + 1)
                last_plane = plane == d.wide
                if d.release and last_plane and number == len(tiles) - 1:
                    of_pass[-1] = max(of_pass[-1], loading.readable_from(d.half, d.release - 1))
                if last_plane and number % len(ready) == len(ready) - 1:
                    issued, left = queue.issue(of_pass)
                    leave.append(left)
                else:
                    issued = _in_turn(of_pass)
                switched = switched if plane else int(issued[0])
                last_issue = int(issued[-1])
                free = last_issue + 1 + max(0, MIN_PASS_CYCLES - d.n_pixels)
        if d.release:
            loading.free(d.half, last_issue + 1)
        outputs.append(np.concatenate(leave))
    return outputs


def _in_turn(earliest: np.ndarray, first: int = 0) -> np.ndarray:
    """Cycles of events one a cycle, none before its earliest one, nor before ``first``."""
    place = np.arange(len(earliest))
    return np.maximum(np.maximum.accumulate(earliest - place), first) + place


class _Queue:
    """Vectors whose sums leave: issued only while the output queue has room."""

    def __init__(self, config: SystolicConfig, around: Surroundings) -> None:
        self._config, self._around = config, around
        self._left: list[int] = []
        """Cycle in which each beat was taken."""

    def issue(self, earliest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cycles of the vectors of a pass, and of their sums' leaving; int64[n_pixels] each."""
        depth, around, left = self._config.output_fifo_beats, self._around, self._left
        start, issued = len(left), -1
        issues = []
        for cycle in earliest.tolist():
            beat = len(left)
            room = left[beat - depth] + 1 if beat >= depth else 0
            issued = max(cycle, issued + 1, room)
            issues.append(issued)
            after = left[-1] + around.sum_cycles if left else 0
            wanted = around.sums_from[beat] if around.sums_from.size else 0
            left.append(int(max(issued + self._config.latency_cycles, after, wanted)))
        return np.array(issues), np.array(left[start:])


def ready_cycles(work: Work, loading: LoadReplay, config: SystolicConfig) -> np.ndarray:
    """First cycle in which each vector of the tiles of C outputs can be read; 0 where nothing is.

    int64[n_tiles, n_planes, n_pixels]
    """
    d = work.descriptor
    shape = (d.kernel_height, d.kernel_width, -(-d.n_in // QUAD_BYTES))
    taps_y, taps_x, quads = (axis.ravel() for axis in np.indices(shape))
    row, column = (axis.ravel() for axis in np.indices((d.out_height, d.out_width)))
    y, x = d.stride * row[:, None] + taps_y, d.stride * column[:, None] + taps_x
    words = (d.address + y * d.row_quads + x * d.pixel_quads + quads) // config.n_banks
    y, x = y + d.origin_y, x + d.origin_x
    inside = (y >= 0) & (y < d.in_height) & (x >= 0) & (x < d.in_width)
    planes = [(words + plane * d.plane_words) % config.n_words for plane in range(1 + d.wide)]
    used = np.stack([np.where(inside, of_plane, -1) for of_plane in planes])
    cycle_of = np.array([*(loading.readable_from(d.half, w) for w in range(int(used.max()) + 1)), 0])
    ready = cycle_of[used]
    return np.array([
        ready[:, :, start:end].max(axis=2)
        for start, end in pairwise([0, *tile_quads(work, config)])
    ])  # fmt: skip
