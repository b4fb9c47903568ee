# SPDX-License-Identifier: MIT
"""Cycle model of the query-times-key array: one line a cycle, rows back to back.

Imports numpy at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.kv_buffer.cycles import Load, LoadReplay

from .config import LATENCY_CYCLES, QkConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RowShape:
    """What the cycles of one beat of ``i_query`` depend on."""

    head_dim: int
    region: int
    base_line: int
    n_keys: int
    release: int = 0
    """Lines after whose load the region becomes free; 0: it stays."""


def row_cycles(n_keys: np.ndarray | int, head_dim: np.ndarray | int, config: QkConfig) -> np.ndarray:
    """Cycles between this row's first line and the next row's, once its lines are loaded: ceil(n_keys D / M).

    A row of no keys takes the one cycle of its query.

    Parameters
    ----------
    n_keys, head_dim : int arrays, broadcast
    """
    lines = -(-np.asarray(n_keys, dtype=np.int64) * np.asarray(head_dim) // config.n_multipliers)
    return np.maximum(1, lines)


def row_latency_cycles(n_keys: np.ndarray | int, head_dim: np.ndarray | int, config: QkConfig) -> np.ndarray:
    """Query of a lone row with loaded lines taken to its last score delivered, both counted."""
    return 1 + row_cycles(n_keys, head_dim, config) + LATENCY_CYCLES


def replay(loads: Sequence[Load], rows: Sequence[RowShape], config: QkConfig) -> list[list[int]]:
    """Cycle of each output beat of each row at full rate, from reset; the first transfer is cycle 1.

    A query is taken in the cycle in which the last line of the row before is read; line j of a row is read in
    the next cycle, or in the cycle after it was written, one a cycle. The last read of a row that releases
    its region also waits for the last of the region's lines.
    """
    loading = LoadReplay(loads)
    outputs = []
    query_cycle = 1
    for row in rows:
        n_lines = -(-row.n_keys * row.head_dim // config.n_multipliers)
        loaded = loading.readable_from(row.region, row.release - 1) if row.release else 0
        taken = query_cycle if n_lines else max(query_cycle, loaded)
        reads: list[int] = []
        for line in range(row.base_line, row.base_line + n_lines):
            before = reads[-1] if reads else taken
            reads.append(max(before + 1, loading.readable_from(row.region, line)))
        if reads:
            reads[-1] = max(reads[-1], loaded)
        if row.release:
            loading.free(row.region, (reads[-1] if reads else taken) + 1)
        query_cycle = reads[-1] if reads else taken + 1
        outputs.append([read + LATENCY_CYCLES for read in reads])
    return outputs
