# SPDX-License-Identifier: MIT
"""Cycle model of the probability-times-value array: up to M/D kept vectors a cycle, exact with conflicts.

Imports numpy at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.kv_buffer.cycles import Load, LoadReplay

from .config import FREE_LATENCY_CYCLES, PvConfig


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowShape:
    """What the cycles of one beat of ``i_row`` and its kept probabilities depend on."""

    head_dim: int
    region: int
    indices: np.ndarray
    """int64[n_kept]: place of each kept vector in the region."""
    release: int = 0
    """Lines after whose load the region becomes free; 0: it stays."""
    last: bool = True


def dense_row_cycles(n_kept: np.ndarray | int, head_dim: np.ndarray | int, config: PvConfig) -> np.ndarray:
    """Cycles of a row whose kept vectors lie one after the other from a whole line on, values loaded.

    min(P, M/D) vectors a cycle; successive rows leave no bubble: max(1, ceil(n_kept / min(P, M/D))).

    Parameters
    ----------
    n_kept, head_dim : int arrays, broadcast
    """
    together = np.minimum(config.lanes, config.n_multipliers // np.asarray(head_dim))
    return np.maximum(1, -(-np.asarray(n_kept, dtype=np.int64) // together))


def row_cycles(indices: np.ndarray, head_dim: int, config: PvConfig) -> int:
    """Cycles of a row with these kept vectors, values loaded: a beat of P takes as many as its fullest slot.

        cycles = sum over beats of max(1, max over slots s of |{k in beat: index_k mod (M/D) = s}|)

    Parameters
    ----------
    indices : int64[n_kept], in the order of the beats
    """
    slots = np.asarray(indices, dtype=np.int64) % (config.n_multipliers // head_dim)
    return sum(int(np.bincount(beat, minlength=1).max(initial=1)) for beat in _beats(slots, config.lanes))


def row_latency_cycles(n_kept: int, head_dim: int, config: PvConfig) -> int:
    """A lone dense row with loaded values: ``i_row`` taken to its output on ``o``, both counted."""
    return 2 + int(dense_row_cycles(n_kept, head_dim, config)) + config.latency_cycles


def replay(loads: Sequence[Load], rows: Sequence[RowShape], config: PvConfig) -> tuple[list[int], list[int]]:
    """Cycles of the output beats at full rate, from reset; the first transfer is cycle 1.

    A row is taken with the last beat of the row before, a beat with the last grants of the beat before. In
    each cycle every slot grants the earliest lane of the beat that waits for it, if its line is loaded. The
    last grants of a row that releases its region wait for the last of the region's lines.

    Returns
    -------
    cycle of each beat of ``o``, and of each beat of ``o_magnitude``
    """
    loading = LoadReplay(loads)
    row_cycle, granted = 1, 0
    outputs = []
    for row in rows:
        vectors = config.n_multipliers // row.head_dim
        beat_cycle = row_cycle
        beats = _beats(row.indices, config.lanes)
        for place, beat in enumerate(beats):
            beat_cycle = max(beat_cycle + 1, granted)
            granted = beat_cycle + 1
            free_from: dict[int, int] = {}
            for index in beat.tolist():
                line, slot = divmod(index, vectors)
                at = max(free_from.get(slot, beat_cycle + 1), loading.readable_from(row.region, line))
                free_from[slot] = at + 1
                granted = max(granted, at)
            if row.release and place == len(beats) - 1:
                granted = max(granted, loading.readable_from(row.region, row.release - 1))
        row_cycle = beat_cycle
        if row.release:
            loading.free(row.region, granted + FREE_LATENCY_CYCLES)
        if row.last:
            outputs.append(granted + config.latency_cycles)
    return outputs, [cycle + config.magnitude_latency_cycles for cycle in outputs]


def _beats(values: np.ndarray, lanes: int) -> list[np.ndarray]:
    """P a beat; one empty beat for none."""
    return [values[start : start + lanes] for start in range(0, max(1, len(values)), lanes)]
