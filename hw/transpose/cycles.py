# SPDX-License-Identifier: MIT
"""Exact cycle model of the transposer. Imports numpy at most."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from .config import Map, TransposeConfig


class Course:
    """:class:`hw.transpose.rtl.Transpose`, cycle by cycle: ``look``, then ``tick``."""

    def __init__(self, config: TransposeConfig) -> None:
        self.lanes = config.lanes
        self.blocks = deque[tuple[int, int]]()
        """Beats in and out of each block of the map under way that is not entirely there."""
        self.beat = self.channel = 0
        self.full = deque[int]()
        """Beats that leave of each block that is entirely there; two at most."""
        self.out = False

    def look(self, offered: bool, taken: bool) -> None:
        self.flow = not self.out or taken
        self.takes = bool(self.blocks) and len(self.full) < 2 and offered
        self.fills = self.takes and self.beat == self.blocks[0][0] - 1
        self.reads = self.flow and bool(self.full)
        self.map_ready = not self.blocks or (self.fills and len(self.blocks) == 1)

    def tick(self, of: Map | None) -> None:
        """``of``: the map that is taken."""
        if self.flow:
            self.out = self.reads
        if self.reads:
            self.channel += 1
            if self.channel == self.full[0]:
                self.channel = 0
                self.full.popleft()
        if self.takes:
            self.beat += 1
        if self.fills:
            self.beat = 0
            self.full.append(self.blocks.popleft()[1])
        if of is not None:
            self.blocks.extend(of.blocks(self.lanes))

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self.blocks and not self.full and not self.out


def replay(maps: Sequence[Map], config: TransposeConfig) -> np.ndarray:
    """Cycle of each beat on ``o`` at full rate, from reset; the first map is taken in cycle 1."""
    course, waiting, stamps, cycle = Course(config), deque(maps), list[int](), 0
    while waiting or not course.idle:
        cycle += 1
        if course.out:
            stamps.append(cycle)
        course.look(True, True)
        course.tick(waiting.popleft() if waiting and course.map_ready else None)
    return np.array(stamps, dtype=np.int64)


def map_cycles(of: Map, config: TransposeConfig) -> int:
    """A map's cycles among equal ones, at full rate: each block's beats in or those out of the block before
    it, whichever are more."""
    blocks = of.blocks(config.lanes)
    return sum(max(n_in, n_out) for (n_in, _), (_, n_out) in zip(blocks, [blocks[-1], *blocks], strict=False))
