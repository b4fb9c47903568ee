# SPDX-License-Identifier: MIT
"""Cycle model of the top-k engine: an exact replay of its pivots, and the expected value over random inputs.

A request of n elements on P lanes, B(m) = max(1, ceil(m / P)) lines for m elements:

- load: one cycle for the request, then B(n) cycles; the first pass runs on the lines as they arrive,
  one cycle behind;
- each further pass over a list of m elements compares B(m) lines, after DECIDE_CYCLES = 1. A line can be
  compared PART_LATENCY_CYCLES = 3 after the line that filled it was; a list shorter than that waits for it;
- filter: one line a cycle, FILTER_LATENCY_CYCLES = 4 to the output. It ends with the line that brings the
  k-th element.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .config import (
    DECIDE_CYCLES,
    FILTER_LATENCY_CYCLES,
    LFSR_BITS,
    LFSR_TAPS,
    PART_LATENCY_CYCLES,
    TopKConfig,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKTiming:
    """Cycles of one request at full rate; numbered over a run whose first transfer is cycle 1."""

    request_cycle: int
    """The request is taken."""
    first_input_cycle: int
    decided_cycle: int
    """The threshold is known."""
    pass_lines: tuple[int, ...]
    """Lines compared in each pass, the first included."""
    selection_cycles: int
    """All passes, the first included: cycles from its first comparison to the decision."""
    output_cycles: tuple[int, ...]
    """Cycle of each output beat."""

    @property
    def first_to_last_cycles(self) -> int:
        """First input beat taken to last output beat delivered, both counted."""
        return self.output_cycles[-1] - self.first_input_cycle + 1


def replay(
    requests: Sequence[tuple[np.ndarray, int, int]], config: TopKConfig, source_lanes: int | None = None
) -> list[TopKTiming]:
    """Exact cycles of back-to-back requests at full rate, from reset.

    Parameters
    ----------
    requests : sequence of (elements, k, seed)
        ``elements`` unsigned integers [n]; ``seed`` 0 lets the LFSR run on.
    source_lanes : int, optional
        Elements that the source joins into lines per cycle, see :class:`Loads`; whole lines otherwise.
    """
    return _Replay(config, source_lanes).run(requests)


class Loads:
    """Cycles in which the lines of successive requests are taken.

    Lines come one a cycle, or from a packer that joins ``source_lanes`` elements a cycle into lines of
    ``lanes``: it waits with the beat that completes a line until the line is taken, and then goes on.
    """

    def __init__(self, lanes: int, source_lanes: int | None) -> None:
        self.lanes, self.source_lanes = lanes, source_lanes or lanes
        self.last_cycle = 0

    def take(self, n: int, from_cycle: int) -> np.ndarray:
        """int64[B(n)]: the next request of n elements, its first line not before ``from_cycle``."""
        counts = np.minimum(self.lanes, n - self.lanes * np.arange(max(1, -(-n // self.lanes))))
        beats = np.maximum(1, -(-counts // self.source_lanes))
        first = max(from_cycle, self.last_cycle + int(beats[0]))
        taken = first + np.cumsum(beats) - beats[0]
        self.last_cycle = int(taken[-1])
        return taken


def filter_cycle_of_line(decided_cycle: int, line: np.ndarray | int) -> np.ndarray:
    """Cycle in which the filter that starts at ``decided_cycle`` reads a line."""
    return np.asarray(decided_cycle + 1 + np.asarray(line))


def filter_replay(keep: np.ndarray, k: int, lanes: int, decided_cycle: int) -> tuple[list[int], int]:
    """Cycles of the filter's output beats, and the first cycle in which it can start again.

    Parameters
    ----------
    keep : bool[n], k of them True
    decided_cycle : int
        The filter starts.
    """
    found = np.cumsum(in_lines(keep, lanes).sum(axis=1))
    last_line = int(np.searchsorted(found, k))
    n_beats = max(1, -(-k // lanes))
    completing = np.searchsorted(found, np.minimum(lanes * (1 + np.arange(n_beats)), k))
    beats = filter_cycle_of_line(decided_cycle, completing) + FILTER_LATENCY_CYCLES
    # The rest of an overflowing last line leaves one cycle after its full beat.
    beats = np.arange(n_beats) + np.maximum.accumulate(beats - np.arange(n_beats))
    return beats.tolist(), int(filter_cycle_of_line(decided_cycle, last_line)) + 2


def expected_selection_cycles(n: np.ndarray | int, k: np.ndarray | int, config: TopKConfig) -> np.ndarray:
    """Mean cycles from the last loaded line to the decision, for distinct elements in random order.

    Every pivot is then uniform over its list, whatever its place was. With G(m, t) for the cycles still to
    come after a pass over m elements whose t-th largest is wanted, F = G + pass, and r elements above the
    pivot:

        G(m, t) = 1/m (sum over r in t+1..m-1 of F(r, t) + sum over r in 0..t-2 of F(m-1-r, t-1-r))
        pass(m) = B(m) + DECIDE_CYCLES, and PART_LATENCY_CYCLES in all where one line holds the list

    The first sum runs down a column of F, the second along a diagonal, so one row costs O(m). Lists of two
    lines sometimes wait a cycle more, which is left out: against the replay it is within 3 % at 16 lanes and
    5 % at 32.

    Parameters
    ----------
    n, k : int arrays, broadcast; 0 <= k <= n

    Returns
    -------
    float64, the broadcast shape
    """
    n, k = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(k, dtype=np.int64))
    if np.any(k < 0) or np.any(k > n):
        raise ValueError("k must be in 0..n")
    first = 1 + DECIDE_CYCLES  # the last line is compared one cycle after it was loaded
    size = 1 << int(n.max(initial=1)).bit_length()
    return first + _later_passes(size, config.lanes)[n, k]


@cache
def _later_passes(size: int, lanes: int) -> np.ndarray:
    """G(m, t) of :func:`expected_selection_cycles` for all m below ``size``; 0 where t is 0 or m."""
    g = np.zeros((size, size))
    columns, diagonals = np.zeros(size), np.zeros(size)
    for m in range(2, size):
        t = np.arange(1, m)
        g[m, t] = (columns[t] + diagonals[m - t]) / m
        pass_cycles = -(-m // lanes) + DECIDE_CYCLES if m > lanes else PART_LATENCY_CYCLES
        columns[t] += g[m, t] + pass_cycles
        diagonals[m - t] += g[m, t] + pass_cycles
    return g


def filter_cycles(n: np.ndarray | int, config: TopKConfig) -> np.ndarray:
    """Cycles from the decision to the last output beat when the k-th element lies in the last line.

    B(n) + FILTER_LATENCY_CYCLES; the upper bound of what :func:`replay` gives.
    """
    n = np.asarray(n, dtype=np.int64)
    return np.maximum(1, -(-n // config.lanes)) + FILTER_LATENCY_CYCLES


class _Replay:
    """State that outlives a request: the LFSR, and when the engine and its filter are free again."""

    def __init__(self, config: TopKConfig, source_lanes: int | None) -> None:
        self.config = config
        self.loads = Loads(config.lanes, source_lanes)
        self.draw = _lfsr_position()[1]
        self.request_cycle = 1
        self.filter_free_cycle = 0

    def run(self, requests: Sequence[tuple[np.ndarray, int, int]]) -> list[TopKTiming]:
        return [self._request(np.asarray(elements), k, seed) for elements, k, seed in requests]

    def _request(self, elements: np.ndarray, k: int, seed: int) -> TopKTiming:
        lanes, n = self.config.lanes, len(elements)
        if seed:
            self.draw = int(_lfsr_position()[seed])
        request_cycle = self.request_cycle
        # Loads follow the filter of the request before, which is always a line ahead.
        taken = self.loads.take(n, request_cycle + 1)
        first_input, n_lines = int(taken[0]), len(taken)
        compare = taken + 1
        pass_lines = [n_lines]

        rest, target, threshold, n_equal = elements, k, 0, n
        if k == 0:
            threshold, n_equal = 1 << self.config.element_bits, 0
        lane = self._start_lane(self.draw)
        pivot = elements[lane if lane < n else 0] if n else 0
        while True:
            draws = (self.draw + np.arange(n_lines)) % _LFSR_PERIOD
            self.draw = (self.draw + n_lines) % _LFSR_PERIOD
            decide = int(compare[-1]) + DECIDE_CYCLES
            if k in (0, n):
                break
            left, right = rest < pivot, rest > pivot
            n_left, n_right = int(left.sum()), int(right.sum())
            if n_right > target:
                members = right
            elif target + n_left > len(rest):
                members, target = left, target + n_left - len(rest)
            else:
                threshold, n_equal = pivot, target - n_right
                break
            pivot = self._next_pivot(rest, members, draws)
            compare = self._compare_cycles(compare, members)
            rest = rest[members]
            n_lines = len(compare)
            pass_lines.append(n_lines)

        decided = max(decide, self.filter_free_cycle)
        equal = elements == threshold
        keep = (elements > threshold) | (equal & (np.cumsum(equal) <= n_equal))
        outputs, self.filter_free_cycle = filter_replay(keep, k, lanes, decided)
        self.request_cycle = decided + 1
        return TopKTiming(
            request_cycle=request_cycle,
            first_input_cycle=first_input,
            decided_cycle=decide,
            pass_lines=tuple(pass_lines),
            selection_cycles=decide - first_input,
            output_cycles=tuple(outputs),
        )

    def _start_lane(self, draw: int) -> int:
        return int(_lfsr_states()[draw]) & (self.config.lanes - 1)

    def _next_pivot(self, rest: np.ndarray, members: np.ndarray, draws: np.ndarray) -> int:
        """The candidate that the reservoir holds when the pass over ``rest`` ends."""
        lanes = self.config.lanes
        by_line = in_lines(members, lanes)
        lines = np.flatnonzero(by_line.any(axis=1))
        states = _lfsr_states()[draws[lines]].astype(np.int64)
        earlier = np.arange(len(lines))
        smeared = (1 << np.array([int(b).bit_length() for b in earlier])) - 1
        taken = np.flatnonzero(((states >> self.config.lane_bits) & smeared) == 0)[-1]
        line = int(lines[taken])
        start = int(states[taken]) & (lanes - 1)
        marked = np.flatnonzero(by_line[line])
        lane = marked[marked >= start][0] if (marked >= start).any() else marked[0]
        return rest[line * lanes + lane]

    def _compare_cycles(self, compare: np.ndarray, members: np.ndarray) -> np.ndarray:
        """When each line of the list of ``members`` is compared in the next pass."""
        lanes = self.config.lanes
        filled = np.cumsum(in_lines(members, lanes).sum(axis=1))
        n_lines = -(-int(filled[-1]) // lanes)
        full = filled[-1] // lanes
        # Line j leaves the packer with the compared line that completes it; the rest leaves at the end,
        # one cycle later if that last line also completed a full one and had more.
        filler = np.searchsorted(filled, lanes * (1 + np.arange(full)))
        ready = compare[filler] + PART_LATENCY_CYCLES
        if n_lines > full:
            before = filled[-2] if len(filled) > 1 else 0
            overflow = before // lanes < full
            ready = np.append(ready, compare[-1] + PART_LATENCY_CYCLES + overflow)
        order = np.arange(n_lines)
        earliest = np.maximum(ready, compare[-1] + 1 + DECIDE_CYCLES + order)
        return order + np.maximum.accumulate(earliest - order)


def in_lines(values: np.ndarray, lanes: int) -> np.ndarray:
    """Rows of ``lanes`` elements, the last one filled up with False; one empty row for no elements."""
    n_lines = max(1, -(-len(values) // lanes))
    padded = np.zeros(n_lines * lanes, dtype=bool)
    padded[: len(values)] = values
    return padded.reshape(n_lines, lanes)


_LFSR_PERIOD = (1 << LFSR_BITS) - 1


@cache
def _lfsr_states() -> np.ndarray:
    """The states in the order of the draws, LFSR_BITS steps apart, from state 1."""
    state, states = 1, np.empty(_LFSR_PERIOD, dtype=np.uint16)
    for draw in range(_LFSR_PERIOD):
        states[draw] = state
        for _ in range(LFSR_BITS):
            feedback = 0
            for tap in LFSR_TAPS:
                feedback ^= state >> tap
            state = ((state << 1) | (feedback & 1)) & _LFSR_PERIOD
    return states


@cache
def _lfsr_position() -> np.ndarray:
    """Draw number of each state (index 0 is unused)."""
    position = np.zeros(_LFSR_PERIOD + 1, dtype=np.int64)
    position[_lfsr_states()] = np.arange(_LFSR_PERIOD)
    return position
