# SPDX-License-Identifier: MIT
"""Cycles of the zero eliminator."""

from .config import ZeroEliminatorConfig


def zero_eliminator_cycles(n_beats: int, config: ZeroEliminatorConfig) -> int:
    """First beat taken to last beat delivered at full rate, both counted: n_beats + latency_cycles."""
    return n_beats + config.latency_cycles if n_beats else 0
