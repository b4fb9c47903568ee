# SPDX-License-Identifier: MIT
"""Cycle model of the loss unit: its softmax, whose rows are all divided, and a register."""

from collections.abc import Sequence

import numpy as np

from hw.softmax.cycles import replay as softmax_replay
from hw.softmax.cycles import row_interval_cycles
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
