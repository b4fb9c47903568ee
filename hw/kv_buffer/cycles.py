# SPDX-License-Identifier: MIT
"""When each line can be read, at full rate."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One beat of ``i_load``."""

    region: int
    n_lines: int
    append: bool = False


class LoadReplay:
    """Replays loads, which are offered from cycle 1 on, and their lines, without stalls.

    A load is taken in the cycle of the last line before it, or in the cycle after its region became free; its
    lines follow, one a cycle, none before the cycle in which it is ``offered``. A region becomes free in the
    cycle given to :meth:`free`.
    """

    def __init__(self, loads: Sequence[Load], offered: Sequence[int] | np.ndarray = ()) -> None:
        self._waiting = list(loads)
        self._offered = np.asarray(offered, dtype=np.int64)
        """First cycle in which each line still to come is offered; empty: at once."""
        self._written: dict[int, list[int]] = defaultdict(list)
        """Cycle in which each line of each region was written."""
        self._free_from: dict[int, int | None] = defaultdict(lambda: 1)
        """First cycle in which a load can start each region anew; None while it holds lines."""
        self._last_line = 1
        self._advance()

    def readable_from(self, region: int, line: int) -> int:
        """First cycle in which the line can be read.

        ValueError where the loads never bring it: the block would wait for ever.
        """
        if line >= len(self._written[region]):
            raise ValueError(
                f"line {line} of region {region} is read, but loads bring {len(self._written[region])}"
            )
        return self._written[region][line] + 1

    def free(self, region: int, cycle: int) -> None:
        """The region can be loaded anew from ``cycle`` on."""
        self._written[region] = []
        self._free_from[region] = cycle
        self._advance()

    def _advance(self) -> None:
        while self._waiting:
            load = self._waiting[0]
            free_from = self._free_from[load.region]
            if not load.append and free_from is None:
                return
            taken = self._last_line if load.append else max(self._last_line, free_from or 1)
            self._free_from[load.region] = None
            self._written[load.region] += self._lines(taken + 1, load.n_lines)
            self._last_line = self._written[load.region][-1]
            self._waiting.pop(0)

    def _lines(self, first: int, n_lines: int) -> list[int]:
        """Cycles of a load's lines, none before ``first``."""
        place = np.arange(n_lines)
        if not self._offered.size:
            return (place + first).tolist()
        offered, self._offered = self._offered[:n_lines], self._offered[n_lines:]
        return (np.maximum(np.maximum.accumulate(offered - place), first) + place).tolist()
