# SPDX-License-Identifier: MIT
"""When each line can be read, at full rate."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One beat of ``i_load``."""

    half: int
    n_lines: int
    append: bool = False


class LoadReplay:
    """Replays loads and lines that are offered from cycle 1 on, without stalls.

    A load is taken in the cycle of the last line before it, or in the cycle after its half became free; its
    lines follow, one a cycle. A half becomes free in the cycle given to :meth:`free`.
    """

    def __init__(self, loads: Sequence[Load]) -> None:
        self._waiting = list(loads)
        self._written: list[list[int]] = [[], []]
        """Cycle in which each line of each half was written."""
        self._free_from: list[int | None] = [1, 1]
        """First cycle in which a load can start each half anew; None while it holds lines."""
        self._last_line = 1
        self._advance()

    def readable_from(self, half: int, line: int) -> int:
        """First cycle in which the line can be read.

        ValueError where the loads never bring it: the block would wait for ever.
        """
        if line >= len(self._written[half]):
            raise ValueError(
                f"line {line} of half {half} is read, but loads bring {len(self._written[half])}"
            )
        return self._written[half][line] + 1

    def free(self, half: int, cycle: int) -> None:
        """The half can be loaded anew from ``cycle`` on."""
        self._written[half] = []
        self._free_from[half] = cycle
        self._advance()

    def _advance(self) -> None:
        while self._waiting:
            load = self._waiting[0]
            free_from = self._free_from[load.half]
            if not load.append and free_from is None:
                return
            taken = self._last_line if load.append else max(self._last_line, free_from or 1)
            self._free_from[load.half] = None
            self._written[load.half] += range(taken + 1, taken + 1 + load.n_lines)
            self._last_line = taken + load.n_lines
            self._waiting.pop(0)
