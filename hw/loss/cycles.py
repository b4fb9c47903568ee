# SPDX-License-Identifier: MIT
"""Cycle model of the loss unit: its softmax, whose rows are all divided, and a register; then tiles."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from hw.softmax.config import DIVIDE_LATENCY_CYCLES, OUTPUT_FIFO_BEATS
from hw.softmax.cycles import Replay, row_interval_cycles
from hw.softmax.cycles import replay as softmax_replay
from hw.softmax.cycles import row_latency_cycles as softmax_latency_cycles

from .config import LATENCY_CYCLES, LossConfig


def picture_cycles(n_classes: np.ndarray | int, config: LossConfig) -> np.ndarray:
    """From one of many pictures to the next: a beat of L classes a cycle."""
    return row_interval_cycles(n_classes, config.softmax)


def latency_cycles(n_classes: np.ndarray | int, config: LossConfig) -> np.ndarray:
    """First scores of a lone picture taken to its last gradients, both counted."""
    return softmax_latency_cycles(n_classes, config.softmax) + LATENCY_CYCLES


def replay(n_classes: Sequence[int], config: LossConfig) -> np.ndarray:
    """Cycle of each beat of ``o`` at full rate, from reset; the first transfer is cycle 1."""
    rows = softmax_replay([(n, False) for n in n_classes], config.softmax)
    return np.array([cycle for row in rows for cycle in row.output_cycles]) + LATENCY_CYCLES


class Course:
    """:class:`hw.loss.maps.MapLoss`, cycle by cycle, of pictures that come when the one before has left:
    ``look``, then ``tick``."""

    def __init__(self, config: LossConfig, *, columns: int) -> None:
        self.config, self.n_parts = config, columns // config.lanes
        self.softmax = Replay(config.softmax)
        self.n_beats = 0
        """Of the picture's scores."""
        self.n_awaited = self.n_undivided = self.n_unjoined = 0
        """Those that have not come, have no probabilities yet, and are in no tile."""
        self.divides_from = 0
        """First cycle in which exponentials are read for their division."""
        self.probabilities = deque[int]()
        """From which cycle on each beat is there; some are still being divided."""
        self.gradients = self.out = False
        """Whether there is a beat of L gradients, and one of C."""
        self.part = 0

    def look(self, cycle: int, label: bool, scores: bool, taken: bool) -> None:
        """Whether a label and scores are offered, and a beat of C is taken."""
        self.map_ready = label and not self.n_awaited
        self.takes = scores and self.n_awaited > 0
        self.out_free = not self.out or taken
        self.joins = self.gradients and self.out_free
        is_there = bool(self.probabilities) and self.probabilities[0] <= cycle
        self.subtracts = is_there and (not self.gradients or self.joins)
        may_divide = self.n_undivided > 0 and cycle >= self.divides_from
        self.divides = may_divide and len(self.probabilities) < OUTPUT_FIFO_BEATS

    def tick(self, cycle: int, n_classes: int | None) -> None:
        """``n_classes``: of the map that is taken."""
        if self.out_free:
            self.out = False
        if self.joins:
            self.n_unjoined -= 1
            self.part += 1
            if not self.n_unjoined or self.part == self.n_parts:
                self.part, self.out = 0, True
        self.gradients = self.subtracts or (self.gradients and not self.joins)
        if self.subtracts:
            self.probabilities.popleft()
            if self.probabilities:
                self.probabilities[0] = max(self.probabilities[0], cycle + 1)
        if self.divides:
            self.n_undivided -= 1
            self.probabilities.append(cycle + DIVIDE_LATENCY_CYCLES)
        if self.takes:
            self.softmax.accept(cycle)
            self.n_awaited -= 1
            if not self.n_awaited:
                self.n_undivided, self.divides_from = self.n_beats, self.softmax.end_row() + 1
        if n_classes is not None:
            self.softmax = Replay(self.config.softmax)
            self.n_beats = self.n_awaited = self.n_unjoined = -(-n_classes // self.config.lanes)
