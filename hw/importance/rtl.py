# SPDX-License-Identifier: MIT
"""Amaranth implementation of the importance accumulators."""

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import PackerConfig
from hw.stream.rtl import Packer, Regroup, packed_layout
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.rtl import ZeroEliminator

from .config import ImportanceConfig


class Op(enum.Enum, shape=3):  # type: ignore[call-arg]
    """What a command asks for."""

    ADD = 0
    """Add the next ``n_rows`` rows of ``i``, each from line ``line`` on."""
    READ = 1
    """Send all scores to ``o``, shifted right by ``shift``."""
    KEEP = 2
    """Take the next list of ``i_kept``; only those positions stay."""
    CLEAR = 3
    """Forget all scores: a new sentence."""
    LOAD = 4
    """Take the scores on ``i_load`` in place of all others, shifted left by ``shift``; with ``halve`` half of
    each, rounded down."""


def command_layout(config: ImportanceConfig) -> data.StructLayout:
    """Payload of ``i_command``; fields that an operation does not name are ignored."""
    return data.StructLayout(
        {
            "op": Op,
            "line": range(config.max_lines),
            "n_rows": config.rows_bits,
            "shift": config.shift_bits,
            "halve": 1,
        }
    )


class Importance(wiring.Component):
    """Cumulative importance of the kept tokens, or heads, by their position in the list of those kept.

    Tokens: L lanes, a row of probabilities is a dense row from line 0 on. Heads: one lane, a row is one beat
    with sum |o|, added to the line of its head. A command is carried out whole before the next is taken.

    - ADD: one beat a cycle, also where successive rows meet in one line: a sum that is still on its way to
      the memory is taken from there. A score counts as 0 until it is first added to: there is nothing to
      initialise, and CLEAR takes one cycle. ``line`` is at most the number of lines in use.
    - READ: L scores a cycle, ceil(n / L) lines.
    - KEEP: the memory is packed in place, one step a cycle: each step goes on to the next line or to the
      next beat of positions. Writing never overtakes reading, since a line is full only after as many lines
      have been read.
    - LOAD: one beat a cycle.

    Cycles: :mod:`hw.importance.cycles`.

    Members
    -------
    i_command : stream of :func:`command_layout`
    i : stream of :func:`hw.stream.rtl.packed_layout` of unsigned values, ``last`` at the end of a row; lanes
        at and above ``count`` must be 0
    i_kept : stream of :func:`hw.stream.rtl.packed_layout` of positions, ascending, below the number of
        scores; ``last`` at the end of a list, whose final beat is empty only if the list is
    i_load : stream of :func:`hw.stream.rtl.packed_layout` of elements, one dense row for each LOAD, of at
        least one element, each below 2^(score_bits - shift); lanes at and above ``count`` are ignored
    o : stream of :func:`hw.stream.rtl.packed_layout` of min(score >> shift, ``config.max_element``); dense
    """

    def __init__(self, config: ImportanceConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_command": In(stream.Signature(command_layout(config))),
                "i": In(stream.Signature(packed_layout(config.value_bits, config.lanes))),
                "i_kept": In(stream.Signature(packed_layout(config.index_bits, config.kept_lanes))),
                "i_load": In(stream.Signature(packed_layout(config.element_bits, config.lanes))),
                "o": Out(stream.Signature(packed_layout(config.element_bits, config.kept_lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.scores = scores = memory.Memory(
            shape=unsigned(cfg.lanes * cfg.score_bits), depth=cfg.max_lines, init=[]
        )
        write, read = scores.write_port(), scores.read_port()
        m.submodules.reader = reader = _Reader(cfg)
        m.submodules.packing = packing = _Packing(cfg)
        wiring.connect(m, reader.o, wiring.flipped(self.o))

        n_held = Signal(cfg.count_bits)
        """Positions with a score; the memory's content beyond them means nothing."""
        line, first_line = Signal(range(cfg.max_lines)), Signal(range(cfg.max_lines))
        n_rows = Signal(cfg.rows_bits)
        adding, loading = Signal(), Signal()
        to_state = Signal()
        """Which of READ and KEEP starts."""
        halve = Signal()
        command = self.i_command.payload
        m.d.comb += [
            reader.scores.eq(read.data),
            packing.scores.eq(read.data),
            read.addr.eq(line),
            read.en.eq(reader.flow),
        ]
        remaining = Signal(cfg.count_bits)
        """Scores still to read."""
        is_last_line = remaining <= cfg.lanes
        take, last = self.i.valid & self.i.ready, self.i.payload.last

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i_command.ready.eq(1)
                with m.If(self.i_command.valid):
                    m.d.sync += [
                        line.eq(0),
                        first_line.eq(command.line),
                        n_rows.eq(command.n_rows),
                        remaining.eq(n_held),
                        reader.shift.eq(command.shift),
                        to_state.eq(command.op == Op.KEEP),
                        halve.eq(command.halve),
                    ]
                    with m.Switch(command.op):
                        with m.Case(Op.ADD):
                            m.d.sync += line.eq(command.line)
                            with m.If(command.n_rows != 0):
                                m.next = "ADD"
                        with m.Case(Op.CLEAR):
                            m.d.sync += n_held.eq(0)
                        with m.Case(Op.LOAD):
                            m.next = "LOAD"
                        with m.Default():
                            m.next = "START"
            with m.State("ADD"):
                m.d.comb += [self.i.ready.eq(1), adding.eq(self.i.valid)]
                with m.If(take):
                    end = Signal(cfg.count_bits + 1)
                    m.d.comb += end.eq((line << cfg.lane_bits) + self.i.payload.count)
                    with m.If(end > n_held):
                        m.d.sync += n_held.eq(end)
                    m.d.sync += line.eq(Mux(last, first_line, line + 1))
                    with m.If(last):
                        m.d.sync += n_rows.eq(n_rows - 1)
                        with m.If(n_rows == 1):
                            m.next = "IDLE"
            with m.State("LOAD"):
                m.d.comb += [self.i_load.ready.eq(1), loading.eq(self.i_load.valid)]
                with m.If(loading):
                    m.d.sync += line.eq(line + 1)
                    with m.If(self.i_load.payload.last):
                        m.d.sync += n_held.eq((line << cfg.lane_bits) + self.i_load.payload.count)
                        m.next = "IDLE"
            with m.State("START"):
                # The last sums of an ADD are written meanwhile.
                m.next = "READ"
                with m.If(to_state):
                    m.next = "KEEP"
            with m.State("READ"):
                m.d.comb += [
                    reader.valid.eq(1),
                    reader.line_count.eq(Mux(is_last_line, remaining, cfg.lanes)),
                    reader.last.eq(is_last_line),
                ]
                with m.If(reader.flow):
                    m.d.sync += [line.eq(line + 1), remaining.eq(remaining - cfg.lanes)]
                    with m.If(is_last_line):
                        m.next = "READ_OUT"
            with m.State("READ_OUT"):
                with m.If(reader.done):
                    m.next = "IDLE"
            with m.State("KEEP"):
                kept = self.i_kept.payload
                n_packed = Signal(cfg.count_bits)
                m.d.comb += [
                    packing.valid.eq(self.i_kept.valid),
                    packing.last.eq(packing.exhausted & kept.last),
                    self.i_kept.ready.eq(packing.exhausted),
                ]
                with m.If(self.i_kept.valid):
                    with m.If(packing.exhausted):
                        m.d.sync += n_packed.eq(Mux(kept.last, 0, n_packed + kept.count))
                        with m.If(kept.last):
                            m.d.sync += n_held.eq(n_packed + kept.count)
                            m.next = "KEEP_OUT"
                    with m.Else():
                        m.d.sync += line.eq(line + 1)
            with m.State("KEEP_OUT"):
                with m.If(packing.done):
                    m.next = "IDLE"

        m.d.comb += [packing.kept.eq(self.i_kept.payload), packing.line.eq(line)]
        write_add = self._add(m, adding, line, n_held, read.data)
        loaded = self._load(m, loading, line, reader.shift, halve)
        m.d.comb += [
            write.en.eq(write_add.valid | packing.write | loaded.valid),
            write.addr.eq(write_add.line),
            write.data.eq(Cat(write_add.sums)),
        ]
        with m.If(packing.write):
            m.d.comb += [write.addr.eq(packing.write_line), write.data.eq(packing.packed)]
        with m.Elif(loaded.valid):
            m.d.comb += [write.addr.eq(loaded.line), write.data.eq(Cat(loaded.sums))]
        return m

    def _load(self, m: Module, loading: Value, line: Value, shift: Value, halve: Value) -> "_Sums":
        """The beat taken, as scores, a cycle later."""
        cfg = self.config
        loaded = _Sums(cfg, "loaded")
        m.d.sync += [loaded.valid.eq(loading), loaded.line.eq(line)]
        for lane, score in enumerate(loaded.sums):
            shifted = Signal(cfg.score_bits, name=f"load{lane}")
            m.d.comb += shifted.eq(self.i_load.payload.data[lane] << shift)
            m.d.sync += score.eq(Mux(halve, shifted[1:], shifted))
        return loaded

    def _add(self, m: Module, adding: Value, line: Value, n_held: Value, stored: Value) -> "_Sums":
        """Memory read, then addition; sums of the two beats before are not in the memory's answer yet."""
        cfg = self.config
        second, third = (_Sums(cfg, name) for name in ("add", "written"))
        read_valid, read_line = Signal(), Signal(range(cfg.max_lines), reset_less=True)
        values = [Signal(cfg.value_bits, name=f"value{lane}", reset_less=True) for lane in range(cfg.lanes)]
        inside = Signal(cfg.lanes, reset_less=True)
        m.d.sync += [
            read_valid.eq(adding),
            read_line.eq(line),
            second.valid.eq(read_valid),
            second.line.eq(read_line),
            third.valid.eq(second.valid),
            third.line.eq(second.line),
        ]
        repeats = Signal(2)
        """The line of the beat one, or two, before."""
        m.d.comb += repeats.eq(Cat(s.valid & (s.line == read_line) for s in (second, third)))
        for lane in range(cfg.lanes):
            position = Signal(cfg.index_bits, name=f"position{lane}")
            m.d.comb += position.eq((line << cfg.lane_bits) + lane)
            base = Signal(cfg.score_bits, name=f"base{lane}", reset_less=True)
            value = Signal(cfg.value_bits, name=f"add_value{lane}", reset_less=True)
            before = Signal(cfg.score_bits, name=f"before{lane}")
            m.d.comb += [
                before.eq(
                    Mux(
                        repeats[0],
                        second.sums[lane],
                        Mux(repeats[1], third.sums[lane], stored.word_select(lane, cfg.score_bits)),
                    )
                ),
                second.sums[lane].eq(base + value),
            ]
            m.d.sync += [
                values[lane].eq(self.i.payload.data[lane]),
                inside[lane].eq(position < n_held),
                base.eq(Mux(inside[lane], before, 0)),
                value.eq(values[lane]),
                third.sums[lane].eq(second.sums[lane]),
            ]
        return second


class _Sums:
    """One line on its way through the additions."""

    def __init__(self, config: ImportanceConfig, name: str) -> None:
        self.valid = Signal(name=f"{name}_valid")
        self.line = Signal(range(config.max_lines), name=f"{name}_line", reset_less=True)
        self.sums = [
            Signal(config.score_bits, name=f"{name}_sum{lane}", reset_less=True)
            for lane in range(config.lanes)
        ]


class _Reader(wiring.Component):
    """Lines of scores to elements: shift, saturation, regrouping. All stages move together, with ``flow``."""

    def __init__(self, config: ImportanceConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),  # a line is read in this cycle, if flow
                "line_count": In(range(config.lanes + 1)),
                "last": In(1),
                "shift": In(config.shift_bits),
                "scores": In(config.lanes * config.score_bits),  # a cycle after
                "flow": Out(1),
                "done": Out(1),
                "o": Out(stream.Signature(packed_layout(config.element_bits, config.kept_lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.regroup = regroup = Regroup(cfg.regroup)
        wiring.connect(m, regroup.o, wiring.flipped(self.o))
        end = regroup.i
        m.d.comb += [
            self.flow.eq(~end.valid | end.ready),
            self.done.eq(end.valid & end.ready & end.payload.last),
        ]

        # One bit a stage; the last stage is the regrouping's input.
        valid, last = Signal(2), Signal(2, reset_less=True)
        counts = [Signal(range(cfg.lanes + 1), name=f"count{stage}", reset_less=True) for stage in range(2)]
        with m.If(self.flow):
            m.d.sync += [
                Cat(valid, end.valid).eq(Cat(self.valid, valid)),
                Cat(last, end.payload.last).eq(Cat(self.last, last)),
                counts[0].eq(self.line_count),
                counts[1].eq(counts[0]),
                end.payload.count.eq(counts[1]),
            ]
        largest = cfg.max_element
        for lane in range(cfg.lanes):
            score = self.scores.word_select(lane, cfg.score_bits)
            shifted = Signal(cfg.score_bits, name=f"shifted{lane}", reset_less=True)
            with m.If(self.flow):
                m.d.sync += [
                    shifted.eq(Mux(lane < counts[0], score >> self.shift, 0)),
                    end.payload.data[lane].eq(Mux(shifted > largest, largest, shifted)),
                ]
        return m


class _Packing(wiring.Component):
    """Kept positions against one line a step; the scores found are packed to lines and written in order."""

    def __init__(self, config: ImportanceConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),  # one step: the line is read in this cycle
                "last": In(1),
                "line": In(range(config.max_lines)),
                "kept": In(packed_layout(config.index_bits, config.kept_lanes)),
                "exhausted": Out(1),  # no position of the beat lies beyond the line
                "scores": In(config.lanes * config.score_bits),  # a cycle after
                "write": Out(1),
                "write_line": Out(range(config.max_lines)),
                "packed": Out(config.lanes * config.score_bits),
                "done": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        here, beyond = Signal(cfg.kept_lanes), Signal(cfg.kept_lanes)
        hits = Signal(cfg.lanes)
        positions = [self.kept.data[place] for place in range(cfg.kept_lanes)]
        for place, position in enumerate(positions):
            inside = place < self.kept.count
            m.d.comb += [
                here[place].eq(inside & (position[cfg.lane_bits :] == self.line)),
                beyond[place].eq(inside & (position[cfg.lane_bits :] > self.line)),
            ]
        for lane in range(cfg.lanes):
            on_lane = [
                here[place] & (position[: cfg.lane_bits] == lane) for place, position in enumerate(positions)
            ]
            m.d.comb += hits[lane].eq(Cat(on_lane).any())
        m.d.comb += self.exhausted.eq(~beyond.any())

        valid, last, mask = Signal(), Signal(reset_less=True), Signal(cfg.lanes, reset_less=True)
        m.d.sync += [valid.eq(self.valid), last.eq(self.last), mask.eq(hits)]
        if cfg.lanes == 1:
            m.d.sync += [
                self.write.eq(valid & mask),
                self.packed.eq(self.scores),
                self.done.eq(valid & last),
            ]
        else:
            self._pack(m, valid, mask, last)
        with m.If(self.done):
            m.d.sync += self.write_line.eq(0)
        with m.Elif(self.write):
            m.d.sync += self.write_line.eq(self.write_line + 1)
        return m

    def _pack(self, m: Module, valid: Value, mask: Value, last: Value) -> None:
        """Zero eliminator and packer. Both always move: nothing waits behind the one beat that overflows."""
        cfg = self.config
        m.submodules.eliminator = eliminator = ZeroEliminator(
            ZeroEliminatorConfig(lanes=cfg.lanes, element_bits=cfg.score_bits)
        )
        m.submodules.packer = packer = Packer(PackerConfig(lanes=cfg.lanes, element_bits=cfg.score_bits))
        wiring.connect(m, eliminator.o, packer.i)
        m.d.comb += [
            eliminator.i.valid.eq(valid),
            eliminator.i.payload.mask.eq(mask),
            eliminator.i.payload.last.eq(last),
            Value.cast(eliminator.i.payload.data).eq(self.scores),
            packer.o.ready.eq(1),
            self.write.eq(packer.o.valid),
            self.packed.eq(Value.cast(packer.o.payload.data)),
            self.done.eq(packer.o.valid & packer.o.payload.last),
        ]
