# SPDX-License-Identifier: MIT
"""Cycles of the stream parts at full rate, from the first beat taken to the last delivered, both counted."""

from .config import FifoConfig, SkidConfig, WidthChangeConfig


def passing_cycles(n_beats: int, config: FifoConfig | SkidConfig) -> int:
    """n_beats + LATENCY_CYCLES: one beat a cycle through a FIFO or a skid buffer."""
    return n_beats + config.LATENCY_CYCLES if n_beats else 0


def width_change_cycles(n_beats_in: int, config: WidthChangeConfig) -> int:
    """Joining: one input beat a cycle; splitting: lanes_in / lanes_out output beats each, none lost between.

    cycles = n_beats_in * max(1, lanes_in / lanes_out) + LATENCY_CYCLES
    """
    if not n_beats_in:
        return 0
    return n_beats_in * max(1, config.lanes_in // config.lanes_out) + config.LATENCY_CYCLES
