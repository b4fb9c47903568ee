# SPDX-License-Identifier: MIT
"""Cycle models of the radix engine (exact replay, closed worst case) and of the local value selection.

A request of n elements on P lanes, B(m) = max(1, ceil(m / P)) lines for m elements, D digits an element:

- load: one cycle for the request, then B(n) cycles; lines are counted one cycle after they are taken;
- a decision falls DECIDE_CYCLES = 5 after the last line of a pass was compared, and not before the filter of
  the request before has read its last line;
- the pass after it compares its first line in the next cycle: B(n) lines in the second pass, which reads the
  stored request, B(m) in each later one, m elements inside the bins decided before the last;
- k = 0 and k = n are decided one cycle after the load;
- filter: as in :mod:`hw.topk.cycles`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.stream.config import FifoConfig
from hw.topk.config import TopKConfig
from hw.topk.cycles import Loads, TopKTiming, filter_cycle_of_line, filter_replay, in_lines
from hw.topk.cycles import replay as quickselect_replay

from .config import DECIDE_CYCLES, LocalValueConfig, RadixConfig

MARK_LATENCY_CYCLES = 2
"""Line read by the filter to its marks: read, compare."""


def replay(
    requests: Sequence[tuple[np.ndarray, int, int]], config: RadixConfig, source_lanes: int | None = None
) -> list[TopKTiming]:
    """Exact cycles of back-to-back requests at full rate, from reset.

    Parameters
    ----------
    requests : sequence of (elements, k, seed)
        ``elements`` unsigned integers [n]; the seed has no effect.
    source_lanes : int, optional
        Elements that the source joins into lines per cycle, see :class:`hw.topk.cycles.Loads`.
    """
    loads = Loads(config.lanes, source_lanes)
    request_cycle, filter_free_cycle = 1, 0
    timings = []
    for elements, k, _ in requests:
        elements = np.asarray(elements, dtype=np.int64)
        taken = loads.take(len(elements), request_cycle + 1)
        first_decision = int(taken[-1]) + (1 if k in (0, len(elements)) else 1 + DECIDE_CYCLES)
        pass_lines, keep = _passes(elements, k, config)
        decided = max(first_decision, filter_free_cycle)
        decided += sum(lines + DECIDE_CYCLES for lines in pass_lines[1:])
        outputs, filter_free_cycle = filter_replay(keep, k, config.lanes, decided)
        timings.append(
            TopKTiming(
                request_cycle=request_cycle,
                first_input_cycle=int(taken[0]),
                decided_cycle=decided,
                pass_lines=pass_lines,
                selection_cycles=decided - int(taken[0]),
                output_cycles=tuple(outputs),
            )
        )
        request_cycle = decided + 1
    return timings


def _passes(elements: np.ndarray, k: int, config: RadixConfig) -> tuple[tuple[int, ...], np.ndarray]:
    """Lines of each pass, and the mask of what is kept."""
    n = len(elements)
    n_lines = max(1, -(-n // config.lanes))
    if k in (0, n):
        return (n_lines,), np.full(n, k > 0)
    padded = elements << (config.padded_bits - config.element_bits)
    inside = np.ones(n, dtype=bool)
    keep = np.zeros(n, dtype=bool)
    target, next_lines = k, n_lines
    pass_lines: list[int] = []
    for place in range(config.padded_bits - config.digit_bits, -1, -config.digit_bits):
        pass_lines.append(n_lines)
        n_lines = next_lines
        digits = (padded >> place) & ((1 << config.digit_bits) - 1)
        at_or_above = np.cumsum(np.bincount(digits[inside], minlength=1 << config.digit_bits)[::-1])[::-1]
        chosen = int(np.flatnonzero(at_or_above >= target)[-1])
        above = inside & (digits > chosen)
        keep |= above
        target -= int(above.sum())
        inside &= digits == chosen
        n_inside = int(inside.sum())
        next_lines = -(-n_inside // config.lanes)
        if n_inside == target:
            break
    keep |= inside & (np.cumsum(inside) <= target)
    return tuple(pass_lines), keep


def worst_selection_cycles(n: np.ndarray | int, config: RadixConfig) -> np.ndarray:
    """Most cycles from the first loaded line to the decision, for any elements and any k.

    Every pass compares all B(n) lines (all elements equal, 0 < k < n):

        B(n) - 1 + 1 + DECIDE_CYCLES + (D - 1) (B(n) + DECIDE_CYCLES) = D (B(n) + DECIDE_CYCLES)
    """
    n = np.asarray(n, dtype=np.int64)
    lines = np.maximum(1, -(-n // config.lanes))
    return config.n_digits * (lines + DECIDE_CYCLES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the local value selection."""

    deciding: np.ndarray
    """int64[n]: probabilities, or scores made unsigned."""
    k: int


def local_value_replay(rows: Sequence[Row], config: LocalValueConfig) -> list[list[int]]:
    """Cycle of each output beat of back-to-back rows at full rate, from reset.

    With semantics ``probability`` the engine's replay, its lines joined from L lanes. With ``score`` the
    probabilities are there as early as the scores, and wait for the marks of their lines: mark read from the
    queue, zero eliminator, packer, output register.
    """
    selector = config.selector
    requests = [(row.deciding, row.k, 0) for row in rows]
    timings = engine_replay(requests, selector, config.in_lanes)
    if config.semantics == "probability":
        return [list(timing.output_cycles) for timing in timings]
    join = _Join(selector, config.in_lanes)
    return [join.row(row, timing) for row, timing in zip(rows, timings, strict=True)]


def engine_replay(
    requests: Sequence[tuple[np.ndarray, int, int]], config: TopKConfig, source_lanes: int | None = None
) -> list[TopKTiming]:
    """The replay of whichever engine ``config`` builds."""
    if isinstance(config, RadixConfig):
        return replay(requests, config, source_lanes)
    return quickselect_replay(requests, config, source_lanes)


class _Join:
    """Marks meet the probabilities of their lines; then the zero eliminator's register and the packer."""

    def __init__(self, config: TopKConfig, source_lanes: int) -> None:
        self.lanes, self.source_lanes = config.lanes, source_lanes
        self.line_cycle = 0  # the last line of probabilities left the regrouping
        self.mark_cycle = 0  # the last mark left its queue
        self.register_free_cycle = 0
        self.packer_free_cycle = 0

    def row(self, row: Row, timing: TopKTiming) -> list[int]:
        """Cycles of the row's output beats."""
        n, lanes = len(row.deciding), self.lanes
        n_kept = in_lines(kept_mask(row), lanes).sum(axis=1)
        last_marked = int(np.searchsorted(np.cumsum(n_kept), row.k))
        outputs, rest = [], 0
        for line in range(len(n_kept)):
            n_beats = -(-min(lanes, n - line * lanes) // self.source_lanes)
            taken = self.line_cycle + n_beats
            if line <= last_marked:
                marked = int(filter_cycle_of_line(timing.decided_cycle, line)) + MARK_LATENCY_CYCLES
                in_queue = max(marked + FifoConfig.LATENCY_CYCLES, self.mark_cycle + 1)
                taken = max(taken, in_queue, self.register_free_cycle)
                self.mark_cycle = taken
                packed = max(taken + 1, self.packer_free_cycle)
                self.register_free_cycle = packed
                total, last = rest + int(n_kept[line]), line == last_marked
                overflows = last and total > lanes
                if total >= lanes or last:
                    outputs.append(packed + 1)
                if overflows:
                    outputs.append(packed + 2)
                self.packer_free_cycle = packed + 1 + overflows
                rest = 0 if last else total % lanes
            self.line_cycle = taken
        return outputs


def kept_mask(row: Row) -> np.ndarray:
    """bool[n]: the k largest, of equal ones the earlier; by a stable sort."""
    keep = np.zeros(len(row.deciding), dtype=bool)
    keep[np.argsort(-row.deciding, kind="stable")[: row.k]] = True
    return keep
