# SPDX-License-Identifier: MIT
"""Selection engines: of the values of each row, and of tokens and heads."""

from collections.abc import Sequence

import numpy as np

from hw.select.config import DECIDE_CYCLES, LocalValueConfig, RadixConfig
from hw.select.cycles import engine_replay
from hw.stream.config import RegroupConfig
from hw.topk.config import TopKConfig
from hw.topk.cycles import TopKTiming, in_lines

from .rows import Selection
from .streams import Beat, Queue, Regroup, Skid


def selections(
    requests: Sequence[tuple[np.ndarray, np.ndarray]], config: LocalValueConfig
) -> list[Selection]:
    """The requests that one engine gets from reset on, each with its elements and bool mask of those kept.

    The waits do not depend on when lines come: what a pass leaves of any line but the last is at hand when
    the next pass can begin.
    """
    selector = config.selector
    timings = engine_replay(
        [(elements, int(keep.sum()), 0) for elements, keep in requests], selector, config.lanes
    )
    return [_selection(keep, timing, selector) for (_, keep), timing in zip(requests, timings, strict=True)]


def _selection(keep: np.ndarray, timing: TopKTiming, selector: TopKConfig) -> Selection:
    kept_by_line = in_lines(keep, selector.lanes).sum(axis=1)
    k = int(keep.sum())
    if isinstance(selector, RadixConfig):
        first = 1 if k in (0, len(keep)) else 1 + DECIDE_CYCLES
        later = sum(lines + DECIDE_CYCLES for lines in timing.pass_lines[1:])
    else:
        last_taken = timing.first_input_cycle + timing.pass_lines[0] - 1
        first, later = timing.decided_cycle - last_taken, 0
    return Selection(
        first_wait_cycles=first,
        later_wait_cycles=later,
        kept_by_line=kept_by_line.tolist(),
        last_line=int(np.searchsorted(np.cumsum(kept_by_line), k)),
    )


class _Mark:
    """Mirrors :class:`hw.topk.filter.Mark`."""

    def __init__(self) -> None:
        self.selection: Selection | None = None
        """Of the run; None while not busy."""
        self.line_number, self.line_valid, self.n_marked = 0, False, 0
        self.out: Beat | None = None
        """Kept elements of a line, and whether it is the last."""

    def step(self, start: Selection | None) -> None:
        """After the sink took ``out``."""
        busy = self.selection is not None
        kept_ready = self.out is None
        if not self.line_valid or kept_ready:
            found_all = False
            if kept_ready and self.line_valid and self.selection is not None:
                found_all = self.n_marked == self.selection.last_line
                self.out = self.selection.kept_by_line[self.n_marked], found_all
                self.n_marked += 1
            self.line_valid = busy
            self.line_number += busy
            if found_all:
                self.selection, self.line_valid = None, False
        if start is not None:
            self.selection, self.line_number, self.n_marked = start, 0, 0


class _Engine:
    """Mirrors the control of :class:`hw.topk.rtl.TopK` and of :class:`hw.select.rtl.RadixSelect`."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.mark = _Mark()
        self.selection: Selection | None = None
        """Of the request that loads or is decided; None when the next one can come."""
        self.load_line = 0
        self.decided_cycle: int | None = None
        """None while loading."""
        self.is_final = False

    @property
    def line_ready(self) -> bool:
        mark = self.mark
        return (
            self.selection is not None
            and self.decided_cycle is None
            and (mark.selection is None or self.load_line < mark.line_number)
        )

    @property
    def request_ready(self) -> bool:
        return self.selection is None

    @property
    def is_idle(self) -> bool:
        """Neither engine nor filter holds anything."""
        return self.selection is None and self.mark.selection is None and self.mark.out is None

    def step(self, cycle: int, request: Selection | None, has_line: bool) -> None:
        """``has_line`` and ``request`` only where they are taken; after the sink took the mark."""
        start = None
        now = self.selection
        if now is None:
            if request is not None:
                self.selection, self.load_line, self.is_final = request, 0, False
        elif self.decided_cycle is None:
            if has_line:
                self.load_line += 1
                if self.load_line == len(now.kept_by_line):
                    self.decided_cycle = cycle + now.first_wait_cycles
        elif cycle >= self.decided_cycle and self.mark.selection is None:
            if self.is_final or not now.later_wait_cycles:
                start = now
                self.selection = self.decided_cycle = None
            else:
                self.decided_cycle, self.is_final = cycle + now.later_wait_cycles, True
        self.mark.step(start)


class _Packed:
    """Zero eliminator, packer and skid buffer behind a stream of marked lines."""

    def __init__(self, lanes: int) -> None:
        self.packer = Regroup(RegroupConfig(element_bits=1, lanes_in=lanes, lanes_out=lanes))
        self.eliminated: Beat | None = None
        self.skid = Skid()

    @property
    def is_empty(self) -> bool:
        """Nothing comes to ``skid.out`` until another marked line comes."""
        return self.eliminated is None and self.packer.is_empty and self.skid.has_room

    def step(self) -> bool:
        """After the sink took ``skid.out``; whether a marked line is taken by :meth:`put`."""
        packed = self.packer.offered(self.eliminated)
        leaves = packed is not None and self.skid.has_room
        if self.packer.step(self.eliminated, leaves):
            self.eliminated = None
        self.skid.put(packed if leaves else None)
        return self.eliminated is None

    def put(self, beat: Beat | None) -> None:
        self.eliminated = beat


class _ValueEngine:
    """Mirrors :class:`hw.select.rtl.LocalValueSelect` with semantics ``probability``."""

    def __init__(self, config: LocalValueConfig) -> None:
        self.engine, self.packed = _Engine(config.lanes), _Packed(config.lanes)
        self.regroup = Regroup(config.regroup(config.payload_bits))
        self.is_idle = True
        """Nothing moves until a request or a beat comes."""

    def step(self, cycle: int, request: Selection | None, beat: Beat | None) -> tuple[bool, bool]:
        """Whether the request, and the beat of probabilities, was taken."""
        if self.is_idle and request is None and beat is None:
            return False, False
        engine, mark = self.engine, self.engine.mark
        if self.packed.step() and mark.out is not None:
            self.packed.put(mark.out)
            mark.out = None
        line = self.regroup.offered(beat)
        has_line = line is not None and engine.line_ready
        beat_taken = self.regroup.step(beat, has_line)
        request_taken = request is not None and engine.request_ready
        engine.step(cycle, request if request_taken else None, has_line)
        self.is_idle = engine.is_idle and self.packed.is_empty and self.regroup.is_empty
        return request_taken, beat_taken


class ValueSelect:
    """Mirrors :class:`hw.attention.values.ValueSelect`."""

    def __init__(self, config: LocalValueConfig, n_engines: int) -> None:
        self.engines = [_ValueEngine(config) for _ in range(n_engines)]
        self.row_turn, self.beat_turn, self.output_turn = 0, 0, 0

    @property
    def out(self) -> Beat | None:
        return self.engines[self.output_turn].packed.skid.out

    def take(self) -> None:
        """``out`` leaves."""
        skid = self.engines[self.output_turn].packed.skid
        if skid.out[1]:
            self.output_turn = (self.output_turn + 1) % len(self.engines)
        skid.out = None

    def step(self, cycle: int, request: Selection | None, beat: Beat | None) -> tuple[bool, bool]:
        """After the sink took ``out``; whether the row, and the beat, was taken."""
        request_taken = beat_taken = False
        for place, engine in enumerate(self.engines):
            took = engine.step(
                cycle,
                request if place == self.row_turn else None,
                beat if place == self.beat_turn else None,
            )
            request_taken |= took[0]
            beat_taken |= took[1]
        if request_taken:
            self.row_turn = (self.row_turn + 1) % len(self.engines)
        if beat_taken and beat is not None and beat[1]:
            self.beat_turn = (self.beat_turn + 1) % len(self.engines)
        return request_taken, beat_taken


class Selector:
    """Mirrors :class:`hw.select.rtl.LocalValueSelect` with semantics ``score``; dense lines of P come in."""

    def __init__(self, config: LocalValueConfig) -> None:
        self.engine, self.packed = _Engine(config.lanes), _Packed(config.lanes)
        self.marks = Queue(2 * config.selector.max_lines + 2)
        self.found_all = False

    @property
    def skid(self) -> Skid:
        return self.packed.skid

    def step(
        self, cycle: int, request: Selection | None, line: Beat | None, has_score: bool
    ) -> tuple[bool, bool, bool]:
        """Whether the request, the line of identifiers, and the line of scores was taken."""
        engine, mark, marks = self.engine, self.engine.mark, self.marks
        ready = self.packed.step()
        line_taken = line is not None and (self.found_all or (marks.out is not None and ready))
        if line_taken and line is not None:
            if not self.found_all:
                self.packed.put(marks.out)
                self.found_all = marks.out[1]
                marks.out = None
            self.found_all = self.found_all and not line[1]
        marked = mark.out if marks.has_room else None
        if marked is not None:
            mark.out = None
        marks.put(marked)
        score_taken = has_score and engine.line_ready
        request_taken = request is not None and engine.request_ready
        engine.step(cycle, request if request_taken else None, score_taken)
        return request_taken, line_taken, score_taken
