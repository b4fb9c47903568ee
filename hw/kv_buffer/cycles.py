# SPDX-License-Identifier: MIT
"""When each line can be read, at full rate."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One beat of ``i_load``."""

    region: int
    n_lines: int
    append: bool = False


class LoadReplay:
    """Replays loads and lines that are offered from cycle 1 on, without stalls.

    A load is taken in the cycle of the last line before it, or in the cycle after its region became free; its
    lines follow, one a cycle. A region becomes free in the cycle given to :meth:`free`.
    """

    def __init__(self, loads: Sequence[Load]) -> None:
        self._waiting = list(loads)
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
            self._written[load.region] += range(taken + 1, taken + 1 + load.n_lines)
            self._last_line = taken + load.n_lines
            self._waiting.pop(0)
