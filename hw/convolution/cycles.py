# SPDX-License-Identifier: MIT
"""Exact cycle model of the convolution core: all its queues, cycle by cycle, without the arithmetic.

At full rate, in a memory that answers each port a word a cycle after a fixed time. Units are looked at from
the last one to the first, to see what happens in a cycle; then all move on.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw.depthwise.cycles import Unit
from hw.epilogue.config import LATENCY_CYCLES as EPILOGUE_LATENCY_CYCLES
from hw.epilogue.config import MASK_READER, TABLE_BEATS
from hw.fir.config import Map
from hw.kv_buffer.cycles import LoadReplay
from hw.loss.cycles import Course as Loss
from hw.systolic.config import MIN_PASS_CYCLES, SystolicConfig
from hw.systolic.cycles import ready_cycles
from hw.systolic.descriptor import Work, tile_rows
from hw.training.cycles import Course as Kernels
from hw.transpose.cycles import Course as Transposer

from .commands import SideOf, Source, WeightsOf
from .config import ConvolutionConfig
from .dispatch import Kind
from .program import Program
from .traffic import addresses, lengths
from .walk import Walk
from .writer import N_OUTPUTS, Format


@dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """Cycles of transfers; that on ``i_start`` is cycle 1."""

    writes: np.ndarray
    """int64[n]: of each beat of ``o_write``."""
    done: int
    """Of ``o_done``."""


def replay(program: Program, config: ConvolutionConfig, *, latency_cycles: int) -> Timing:
    """The course of one list from reset."""
    return _Core(program, config, latency_cycles).run()


class _Fifo:
    """:class:`hw.stream.rtl.Fifo`: ``out`` is what it shows, None where nothing."""

    def __init__(self, depth: int) -> None:
        self.depth, self.memory = depth - 1, deque[Any]()
        self.out: Any = None

    @property
    def ready(self) -> bool:
        return len(self.memory) != self.depth

    def tick(self, pushed: Any, popped: bool) -> None:
        if popped:
            self.out = None
        if pushed is not None:
            self.memory.append(pushed)
        if self.out is None and self.memory:
            self.out = self.memory.popleft()


class _Reader:
    """:class:`hw.convolution.reader.Reader`; ``out`` is (tag, last) of an element."""

    def __init__(self, config: ConvolutionConfig, latency_cycles: int) -> None:
        self.bus_bytes, self.latency_cycles = config.bus_bytes, latency_cycles
        self.steps, self.words = _Fifo(config.read_words), _Fifo(config.read_words)
        self.walk = deque[tuple[bool, bool, int, bool]]()
        """Steps of the walk under way: fresh, ends, tag, last."""
        self.due = deque[int]()
        self.out: tuple[int, bool] | None = None

    def look(self) -> bool:
        """Whether a walk is taken in this cycle."""
        self.asks = bool(self.walk) and self.steps.ready
        return not self.walk or (self.asks and len(self.walk) == 1)

    def tick(self, cycle: int, walk: tuple[Walk, int] | None, taken: bool) -> None:
        step: Any = self.steps.out
        out = None if taken else self.out
        takes = (
            step is not None and (not step[0] or self.words.out is not None) and (not step[1] or out is None)
        )
        came = bool(self.due) and self.due[0] == cycle
        if came:
            self.due.popleft()
        asked = self.walk.popleft() if self.asks else None
        if asked and asked[0]:
            self.due.append(cycle + self.latency_cycles)
        self.out = (step[2], step[3]) if takes and step[1] else out
        self.words.tick(True if came else None, takes and step[0])
        self.steps.tick(asked, takes)
        if walk is not None:
            self.walk.extend(self._steps(*walk))

    def _steps(self, walk: Walk, tag: int) -> list[tuple[bool, bool, int, bool]]:
        made, before, last = [], -1, walk.n_elements - 1
        for number, (at, n) in enumerate(zip(addresses(walk), lengths(walk), strict=True)):
            end = -(-int(at + n) // self.bus_bytes)
            for word in range(int(at) // self.bus_bytes, end):
                made.append((word != before, word == end - 1, tag, number == last))
                before = word
        return made


class _Places(LoadReplay):
    """Instead of cycles: how many words must be there for a word to be read."""

    def __init__(self) -> None:
        super().__init__([])

    def readable_from(self, region: int, line: int) -> int:
        return line + 1


class _Array:
    """:class:`hw.systolic.rtl.Systolic`: loads, weights, vectors, and the queue of sums."""

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        self.n_left, self.half, self.written, self.free = 0, 0, [0, 0], [True, True]
        self.work: Work | None = None
        self.rows = deque[int]()
        """Rows of the tiles of the descriptor held, of the one that loads those still to come."""
        self.occupied = self.offered = False
        self.number = self.n_tiles = 0
        """Tile that is offered next, and how many the descriptor has."""
        self.passes = deque[Any]()
        """Of the tile under way: words that each vector needs, whether sums leave, first plane, words that
        free the half."""
        self.half_read = 0
        """Half that the tile under way reads."""
        self.pixel = self.resting = 0
        self.room = config.output_fifo_beats
        self.under_way = deque[int]()

    def look(self, cycle: int, row_offered: bool) -> None:
        self.issues = self.ends = self.switches = self.hands_free = False
        self.frees = self.leaves = False
        if self.passes:
            need, leaves, first_plane, release = self.passes[0]
            written = self.written[self.half_read]
            self.ends = self.pixel == len(need) - 1
            self.frees = bool(release and self.ends)
            self.issues = (
                self.resting == 0
                and need[self.pixel] <= written
                and (not self.frees or written >= release)
                and (not leaves or self.room > 0)
            )
            self.leaves = self.issues and leaves
            self.switches = self.issues and self.pixel == 0 and first_plane
            self.frees = self.frees and self.issues
        self.takes_tile = not self.passes or (self.issues and self.ends and len(self.passes) == 1)
        self.row_ready = self.work is not None and bool(self.rows) and (not self.occupied or self.switches)
        row = self.row_ready and row_offered
        self.completes = row and self.rows[0] == 1
        self.row = row
        shows = self.offered or self.completes
        self.hands = shows and self.takes_tile
        is_last = self.number + 1 == self.n_tiles if self.work is not None else False
        self.descriptor_ready = self.work is None or (self.hands and is_last)
        self.sum_valid = bool(self.under_way) and self.under_way[0] <= cycle
        self.word_ready = self.n_left != 0

    def load_ready(self, half: int, word_taken: bool) -> bool:
        return (self.n_left == 0 or (word_taken and self.n_left == 1)) and self.free[half]

    def tick(self, cycle: int, load, word: bool, work: Work | None, sum_taken: bool) -> None:
        """``load`` and ``work``: what is taken in this cycle; whether a word and a beat of sums are."""
        if self.row:
            self.rows[0] -= 1
            if not self.rows[0]:
                self.rows.popleft()
        self.occupied = self.completes or (self.occupied and not self.switches)
        self.offered = (self.offered or self.completes) and not self.hands
        freed = self.half_read if self.frees else None
        if self.resting:
            self.resting -= 1
        if self.issues:
            if self.leaves:
                self.under_way.append(cycle + self.config.latency_cycles)
            self.pixel += 1
            if self.ends:
                self.resting = max(0, MIN_PASS_CYCLES - self.pixel)
                self.pixel = 0
                self.passes.popleft()
        if self.hands:
            self.passes.extend(self._passes())
            self.number += 1
            if self.number == self.n_tiles:
                self.work = None
        self.room += sum_taken - self.leaves
        if sum_taken:
            self.under_way.popleft()
            if self.under_way:
                self.under_way[0] = max(self.under_way[0], cycle + 1)
        if work is not None:
            self.work, self.number = work, 0
            rows = tile_rows(work, self.config)
            self.rows, self.n_tiles = deque(rows), len(rows)
            self.needs = ready_cycles(work, _Places(), self.config)
        if word:
            self.written[self.half] += 1
            self.n_left -= 1
        if freed is not None:
            self.written[freed], self.free[freed] = 0, True
        if load is not None:
            self.half, self.n_left = load
            self.free[self.half] = False

    def _passes(self) -> list[Any]:
        assert self.work is not None
        d, per_sum = self.work.descriptor, len(self.needs)
        self.half_read = d.half
        tile, ends_sums = self.number % per_sum, (self.number + 1) % per_sum == 0
        made = []
        for plane in range(1 + d.wide):
            last = plane == d.wide
            release = d.release if last and self.number + 1 == self.n_tiles else 0
            made.append((self.needs[tile, plane].tolist(), last and ends_sums, plane == 0, release))
        return made


class _Fir:
    """:class:`hw.fir.rtl.Fir`, of maps of one beat a pixel."""

    def __init__(self) -> None:
        self.steps = deque[tuple[bool, bool]]()
        self.stages = [False, False]
        """Whether an emitting step stands before the vertical and before the horizontal axis."""
        self.out = False

    def look(self, offered: bool, taken: bool) -> None:
        self.flow = not self.out or taken
        step = self.steps[0] if self.steps else None
        self.moves = self.flow and step is not None and (offered or not step[0])
        self.takes = self.moves and step is not None and step[0]
        self.map_ready = step is None or (self.moves and len(self.steps) == 1)

    def tick(self, of: Map | None) -> None:
        if self.flow:
            self.out, self.stages[1] = self.stages[1], self.stages[0]
            self.stages[0] = self.moves and self.steps[0][1]
        if self.moves:
            self.steps.popleft()
        if of is not None:
            self.steps.extend(_fir_steps(of))


def _fir_steps(of: Map) -> list[tuple[bool, bool]]:
    """Whether each step takes a beat, and whether it completes one; see :class:`hw.fir.scan.Scan`."""
    rows, columns = (2 * of.height, 2 * of.width) if of.upsample else (of.height + 2, of.width)
    made = []
    for row in range(rows):
        for column in range(columns):
            if of.upsample:
                new = [at == 0 or (at % 2 == 1 and at != n - 1) for at, n in ((row, rows), (column, columns))]
                made.append((all(new), True))
            else:
                made.append((row < of.height, row >= 3 if column == 0 else row >= 2 and column >= 2))
    return made if of.upsample else made[: (of.height + 1) * of.width + 1]


class _Epilogue:
    """Feed and :class:`hw.epilogue.rtl.Epilogue`; ``stages[-1]`` is the reader of the beat it shows."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.n_table = self.n_beats = 0
        self.gives = self.rests = False
        """The job gives sums; it rests before that."""
        self.turns: list[int] = []
        """Whom the job's beats are for, and the place of the one whose turn it is."""
        self.turn = 0
        self.stages: list[int | None] = [None] * EPILOGUE_LATENCY_CYCLES

    def look(self, sum_offered: bool, side_offered: bool, taken: bool) -> None:
        """``sum_offered`` by the source of the job under way."""
        job = self.job
        self.flow = self.stages[-1] is None or taken
        running = job is not None and self.n_table == 0 and not self.rests
        side = job is not None and job["job"]["side"] != 0
        comes = self.gives or (sum_offered and (side_offered or not side))
        self.steps = self.flow and running and comes
        self.ends = self.steps and self.turn == len(self.turns) - 1
        self.takes = self.ends and not self.gives
        self.takes_side = self.takes and side
        self.job_ready = job is None or (self.ends and self.n_beats == 1)
        self.table_ready = self.n_table != 0

    def tick(self, job: dict[str, Any] | None, table: bool) -> None:
        if self.flow:
            self.stages = [self.turns[self.turn] if self.steps else None, *self.stages[:-1]]
            self.rests = False
        if self.steps:
            self.turn = 0 if self.ends else self.turn + 1
        if self.ends:
            self.n_beats -= 1
            if not self.n_beats:
                self.job = None
        self.n_table -= table
        if job is not None:
            of = job["job"]
            self.job, self.n_beats, self.n_table = job, of["n_beats"], TABLE_BEATS * of["n_tables"]
            self.gives = self.rests = bool(of["gives_sums"])
            self.turns = [0, *([1] if of["two"] else []), *([MASK_READER] if of["mask"] else [])]


class _Writer:
    """:class:`hw.convolution.writer.Writer`."""

    def __init__(self, config: ConvolutionConfig, latency_cycles: int) -> None:
        self.config, self.latency_cycles = config, latency_cycles
        self.walks: list[deque[tuple[int, bool, bool]]] = [deque() for _ in range(N_OUTPUTS)]
        """Of each reader and the mask, steps: bus word, last of its element, last of its walk."""
        self.waiting: list[tuple[int, bool] | None] = [None] * N_OUTPUTS
        self.due = deque[int]()
        self.pending = 0
        self.sent: list[int] = []

    def look(self, reader: int | None) -> None:
        """``reader`` of the element that is offered."""
        self.room = self.pending != self.config.max_writes
        self.flushes = [word is not None and word[1] for word in self.waiting]
        self.step = self.walks[reader][0] if reader is not None and self.walks[reader] else None
        self.goes, self.sends = False, self.room and any(self.flushes)
        if self.step is not None and reader is not None and not any(self.flushes):
            word = self.waiting[reader]
            fits = word is None or word[0] == self.step[0]
            self.goes, self.sends = fits or self.room, self.room and not fits
        self.takes = self.goes and self.step is not None and self.step[1]
        self.walk_ready = [
            not walk or (self.goes and reader == number and len(walk) == 1)
            for number, walk in enumerate(self.walks)
        ]

    def quiet(self, output_waits: bool) -> bool:
        is_idle = not any(self.walks) and self.waiting == [None] * N_OUTPUTS and self.pending == 0
        return is_idle and not output_waits

    def tick(self, cycle: int, reader: int | None, output) -> None:
        came = bool(self.due) and self.due[0] == cycle
        if came:
            self.due.popleft()
        if self.room:
            self.waiting = [None if f else w for f, w in zip(self.flushes, self.waiting, strict=True)]
        if self.sends:
            self.sent.append(cycle + 1)
            self.due.append(cycle + 1 + self.latency_cycles)
        if self.goes and self.step is not None and reader is not None:
            self.waiting[reader] = (self.step[0], self.step[2])
            self.walks[reader].popleft()
        self.pending += self.sends - came
        if output is not None:
            which, format_, plane_stride, walk = output
            self.walks[which].extend(self._steps(format_, plane_stride, walk))

    def _steps(self, format_: Format, plane_stride: int, walk: Walk) -> list[tuple[int, bool, bool]]:
        made, bus = [], self.config.bus_bytes
        planes = (0, plane_stride) if format_ == Format.PLANES else (0,)
        for at, n in zip(addresses(walk).tolist(), lengths(walk).tolist(), strict=True):
            for plane in planes:
                first, end = (at + plane) // bus, -(-(at + plane + n) // bus)
                made += [(w, plane == planes[-1] and w == end - 1, False) for w in range(first, end)]
        made[-1] = (*made[-1][:2], True)
        return made


class _Core:
    def __init__(self, program: Program, config: ConvolutionConfig, latency_cycles: int) -> None:
        self.commands = program.commands
        self.readers = {
            port: _Reader(config, latency_cycles) for port in ("commands", "weights", "input", "side")
        }
        self.array, self.fir, self.epilogue = _Array(config.array), _Fir(), _Epilogue()
        self.depthwise = Unit(config.depthwise)
        self.transposer, self.kernels = Transposer(config.transpose), Kernels()
        self.loss = Loss(config.loss, columns=config.array.columns)
        self.writer = _Writer(config, latency_cycles)
        self.queues = {kind: _Fifo(config.queued_commands) for kind in Kind if kind != Kind.FENCE}
        self.records = program.records

    def run(self) -> Timing:
        """Until the last command is taken."""
        cycle, number = 1, 0
        start: tuple[Walk, int] | None = (self.records, 0)
        while number < len(self.commands):
            number += self._cycle(cycle, start, *self.commands[number])
            start = None
            cycle += 1
        return Timing(writes=np.array(self.writer.sent, dtype=np.int64), done=cycle)

    def _cycle(self, cycle: int, start: tuple[Walk, int] | None, kind: Kind, payload: Any) -> bool:
        """One cycle of all units; whether it takes the command, the next one of the list."""
        readers, array, fir, depthwise, epilogue, writer = (
            self.readers, self.array, self.fir, self.depthwise, self.epilogue, self.writer
        )  # fmt: skip
        transposer, kernels, loss = self.transposer, self.kernels, self.loss
        of_epilogue = epilogue.stages[-1]
        shown = kernels.shown if of_epilogue is None else of_epilogue
        weights, inputs, side = (readers[name].out for name in ("weights", "input", "side"))
        source = Source.ARRAY if epilogue.job is None else epilogue.job["source"]
        writer.look(shown)
        array.look(cycle, _is_for(WeightsOf.ARRAY, weights))
        sum_offered = (array.sum_valid, fir.out, depthwise.out, transposer.out, loss.out)[source]
        epilogue.look(sum_offered, _is_for(SideOf.MAP, side), writer.takes)
        fir.look(_is_for(Source.FILTER, inputs), epilogue.takes and source == Source.FILTER)
        depthwise.look(
            _is_for(WeightsOf.DEPTHWISE, weights),
            _is_for(Source.DEPTHWISE, inputs),
            epilogue.takes and source == Source.DEPTHWISE,
        )
        transposer.look(_is_for(Source.TRANSPOSE, inputs), epilogue.takes and source == Source.TRANSPOSE)
        loss.look(
            cycle,
            _is_for(WeightsOf.LABEL, weights),
            _is_for(Source.LOSS, inputs),
            epilogue.takes and source == Source.LOSS,
        )
        kernels.look(
            _is_for(WeightsOf.KERNEL, weights),
            _is_for(SideOf.KERNEL, side),
            writer.takes and of_epilogue is None,
        )
        word = _is_for(Source.ARRAY, inputs) and array.word_ready
        table = _is_for(SideOf.TABLE, side) and epilogue.table_ready
        taken = self._taken_commands(word)
        readers["commands"].look()
        pushed = kind != Kind.FENCE and readers["commands"].out is not None and self.queues[kind].ready
        passed = kind == Kind.FENCE and readers["commands"].out is not None
        passed = passed and writer.quiet(self.queues[Kind.OUTPUT].out is not None)

        readers["commands"].tick(cycle, start, pushed or passed)
        row = array.row or depthwise.weight or kernels.takes_sum or taken[Kind.LOSS] is not None
        readers["weights"].tick(cycle, taken[Kind.WEIGHTS], row)
        element = word or fir.takes or depthwise.takes or transposer.takes or loss.takes
        readers["input"].tick(cycle, taken[Kind.INPUT], element)
        of_side = table or epilogue.takes_side or kernels.takes_word
        readers["side"].tick(cycle, taken[Kind.SIDE], of_side)
        writer.tick(cycle, shown, taken[Kind.OUTPUT])
        array.tick(cycle, taken[Kind.LOAD], word, taken[Kind.CONV], epilogue.takes and source == Source.ARRAY)
        fir.tick(taken[Kind.MAP])
        depthwise.tick(taken[Kind.PASS])
        transposer.tick(taken[Kind.TRANSPOSE])
        kernels.tick(taken[Kind.KERNEL])
        loss.tick(cycle, taken[Kind.LOSS])
        epilogue.tick(taken[Kind.EPILOGUE], table)
        for of, fifo in self.queues.items():
            fifo.tick(payload if pushed and of == kind else None, taken[of] is not None)
        return pushed or passed

    def _taken_commands(self, word: bool) -> dict[Kind, Any]:
        """What each unit takes from its queue, if anything; ``word``: the array's buffer takes one."""
        shown = {kind: fifo.out for kind, fifo in self.queues.items()}
        load, output = shown[Kind.LOAD], shown[Kind.OUTPUT]
        ready = {
            Kind.INPUT: self.readers["input"].look(),
            Kind.LOAD: load is not None and self.array.load_ready(load[0], word),
            Kind.WEIGHTS: self.readers["weights"].look(),
            Kind.CONV: self.array.descriptor_ready,
            Kind.MAP: self.fir.map_ready,
            Kind.SIDE: self.readers["side"].look(),
            Kind.EPILOGUE: self.epilogue.job_ready,
            Kind.OUTPUT: output is not None and self.writer.walk_ready[output[0]],
            Kind.PASS: self.depthwise.pass_ready,
            Kind.TRANSPOSE: self.transposer.map_ready,
            Kind.KERNEL: self.kernels.job_ready,
            Kind.LOSS: self.loss.map_ready,
        }
        return {kind: command if ready[kind] else None for kind, command in shown.items()}


def _is_for(tag: int, element: tuple[int, bool] | None) -> bool:
    """Whether a reader shows an element with this tag."""
    return element is not None and element[0] == tag
