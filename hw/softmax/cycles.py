# SPDX-License-Identifier: MIT
"""Cycle model of the softmax: an exact replay, and the steady rate and latency of a row in closed form.

Three stages work on successive rows, one line (beat of L keys) a cycle each: collect (buffer the scores, find
the maximum), exponentials (read the scores, sum, reciprocal), divide (read the exponentials, multiply). They
are joined by two buffers of ``config.buffer_lines`` lines and by queues of MAX_ROWS rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import DIVIDE_LATENCY_CYCLES, MAX_ROWS, SoftmaxConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxTiming:
    """Cycles of one row at full rate; the first transfer of the run is cycle 1."""

    row_cycle: int
    """Its beat on ``o_row``."""
    output_cycles: tuple[int, ...]
    """Its beats on ``o``; none where the row was dropped."""


def replay(rows: Sequence[tuple[int, bool]], config: SoftmaxConfig) -> list[SoftmaxTiming]:
    """Exact cycles of back-to-back rows at full rate, from reset.

    Parameters
    ----------
    rows : sequence of (n_keys, drop)
    """
    model = Replay(config)
    timing = []
    for n_keys, drop in rows:
        for _ in range(-(-n_keys // config.lanes)):
            model.accept(model.ready_cycle())
        row_cycle = model.end_row()
        outputs = model.decide(row_cycle, drop)
        timing.append(SoftmaxTiming(row_cycle=row_cycle, output_cycles=tuple(outputs)))
    return timing


def row_interval_cycles(n_keys: np.ndarray | int, config: SoftmaxConfig) -> np.ndarray:
    """Cycles between successive rows of equal length once the pipeline flows: ceil(n_keys / L).

    Exact where both buffers are longer than the latency of a stage, as with n_max = 1,024 and L <= 16.
    """
    return -(-np.asarray(n_keys, dtype=np.int64) // config.lanes)


def row_latency_cycles(n_keys: np.ndarray | int, config: SoftmaxConfig) -> np.ndarray:
    """First score of a lone row taken to its last probability delivered, both counted, decided at once.

    3 B + maximum_latency_cycles + row_latency_cycles + DIVIDE_LATENCY_CYCLES, with B = ceil(n_keys / L)
    """
    fixed = config.maximum_latency_cycles + config.row_latency_cycles + DIVIDE_LATENCY_CYCLES
    return 3 * row_interval_cycles(n_keys, config) + fixed


class Replay:
    """The softmax row by row: offer its lines with :meth:`accept`, then :meth:`end_row`, then :meth:`decide`.

    A counter changed in one cycle is seen in the next, so what waits for a place waits for the cycle after it
    became free.
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config
        self._accepted: list[int] = []
        """Cycle in which each line of scores was taken."""
        self._read: list[int] = []
        """... was read for its exponentials."""
        self._freed: list[int] = []
        """... left the second buffer, read for the division or dropped."""
        self._begun: list[int] = []
        """Cycle in which the exponential stage took each row."""
        self._reported: list[int] = []
        """Cycle of each row on ``o_row``."""
        self._decided: list[int] = []
        """Cycle in which the divide stage took each row."""
        self._divided = 0
        """Last cycle in which the divide stage read a line."""

    def ready_cycle(self) -> int:
        """First cycle in which the next line can be taken."""
        return 1 + max(
            _back(self._accepted, 1),
            _back(self._read, self.config.buffer_lines - (len(self._accepted) - len(self._read))),
            _back(self._begun, MAX_ROWS),
        )

    def accept(self, cycle: int) -> None:
        """The next line of scores is taken."""
        self._accepted.append(cycle)

    def end_row(self) -> int:
        """The row's last line has been taken; returns its cycle on ``o_row``."""
        begun = max(
            self._accepted[-1] + self.config.maximum_latency_cycles,
            _back(self._read, 1),
            1 + _back(self._reported, MAX_ROWS),
            1 + _back(self._decided, MAX_ROWS),
        )
        self._begun.append(begun)
        first = len(self._read)
        for line in range(first, len(self._accepted)):
            place = line - self.config.buffer_lines
            freed = self._freed[place] if place >= 0 else 0
            before = self._read[-1] if line > first else begun
            self._read.append(1 + max(before, freed))
        self._reported.append(self._read[-1] + self.config.row_latency_cycles)
        return self._reported[-1]

    def decide(self, offered: int, drop: bool) -> list[int]:
        """The row's decision is on ``i_decision`` from cycle ``offered``; returns its cycles on ``o``."""
        taken = max(offered, self._reported[-1], self._divided)
        taken = max(taken, 1 + _back(self._decided, 1))
        self._decided.append(taken)
        n_lines = len(self._read) - len(self._freed)
        if drop:
            self._freed += [taken] * n_lines
            return []
        reads = [taken + 1 + line for line in range(n_lines)]
        self._freed += reads
        self._divided = reads[-1]
        return [cycle + DIVIDE_LATENCY_CYCLES for cycle in reads]


def _back(cycles: list[int], distance: int) -> int:
    """The value ``distance`` places before the end of the list to come; 0 where there is none."""
    return cycles[-distance] if 0 < distance <= len(cycles) else 0
