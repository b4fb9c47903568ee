# SPDX-License-Identifier: MIT
"""Amaranth implementations of the radix engine and of the local value selection."""

from typing import ClassVar

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig, PackerConfig, SkidConfig
from hw.stream.rtl import Fifo, Packer, Regroup, SkidBuffer, packed_layout
from hw.topk.config import LFSR_BITS
from hw.topk.filter import Filter, Mark
from hw.topk.rtl import TopK
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.rtl import ZeroEliminator

from .config import DECIDE_CYCLES, LocalValueConfig, RadixConfig
from .digits import DigitPass


class RadixSelect(wiring.Component):
    """The k largest of n elements, in their original order, digit by digit from the top.

    The streams and results of :class:`hw.topk.rtl.TopK`, without chance: while a request loads, its top
    digits are counted; the bin that holds the k-th largest is found, and each further pass counts the next
    digit of the elements inside it. The second pass reads the stored lines; the elements that it finds inside
    go to a list, so that later passes read only these. Where a bin's boundary separates exactly k elements,
    the passes end. Then the filter that both engines share runs over the stored lines.

    The next request is taken while the previous one is filtered; a decision waits for the end of that filter,
    since passes and filter share the read port. Cycles: :mod:`hw.select.cycles`.

    Members
    -------
    i_request : stream of ``n`` (0..n_max), ``k`` (0..n; more counts as n), ``seed`` (ignored)
    i : stream of ``lanes`` unsigned elements; max(1, ceil(n / lanes)) beats a request, lanes past n ignored
    o : stream of ``data`` and ``index`` (lanes each), ``count`` and ``last``; max(1, ceil(k / lanes)) beats a
        request, zeros at and above ``count``
    """

    FINAL: ClassVar[type[Filter] | type[Mark]] = Filter

    def __init__(self, config: RadixConfig) -> None:
        self.config = config
        self.final = self.FINAL(config)
        line = data.ArrayLayout(unsigned(config.element_bits), config.lanes)
        super().__init__(
            {
                "i_request": In(
                    stream.Signature(
                        data.StructLayout({"n": config.count_bits, "k": config.count_bits, "seed": LFSR_BITS})
                    )
                ),
                "i": In(stream.Signature(line)),
                "o": Out(self.final.o.signature),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.lines = lines = memory.Memory(
            shape=unsigned(cfg.lanes * cfg.element_bits), depth=cfg.max_lines, init=[]
        )
        write, read = lines.write_port(), lines.read_port()
        m.submodules.final = final = self.final
        m.submodules.passes = passes = DigitPass(cfg)
        wiring.connect(m, wiring.flipped(self.o), final.o)

        n, k = Signal(cfg.count_bits), Signal(cfg.count_bits)
        remaining = Signal(cfg.count_bits)
        """Elements of the request still to load, or of the pass still to compare."""
        target = Signal(cfg.count_bits)
        """The wanted element is the target-th largest of those that the running pass counts."""
        n_in_bin = Signal(cfg.count_bits)
        """Elements that the running pass counts."""
        digit_number = Signal(range(cfg.n_digits))
        """The digit that the running pass counts."""
        bin_ = Signal(cfg.digit_bits)
        """The digit before, of the elements that the running pass counts."""
        prefix = Signal(cfg.padded_bits)
        """Decided digits of the threshold, zeros below."""
        load_line, pass_line = Signal(range(cfg.max_lines)), Signal(range(cfg.max_lines))
        first_line = Signal()
        wait = Signal(range(DECIDE_CYCLES + 1))
        """Cycles until the pass has an answer."""

        loaded = Signal(cfg.lanes * cfg.element_bits, reset_less=True)
        loaded_mask, loaded_first = Signal(cfg.lanes, reset_less=True), Signal(reset_less=True)
        loaded_valid = Signal()
        lane_mask, is_last_line = Signal(cfg.lanes), Signal()
        comparing, no_pass = Signal(), Signal()
        threshold = Signal(cfg.padded_bits)
        m.d.comb += [
            lane_mask.eq(Cat(lane < remaining for lane in range(cfg.lanes))),
            is_last_line.eq(remaining <= cfg.lanes),
            no_pass.eq((k == 0) | (k == n)),
            write.addr.eq(load_line),
            write.data.eq(Value.cast(self.i.payload)),
            # While the filter runs, the read port is its own.
            read.addr.eq(Mux(final.busy, final.line_number, pass_line)),
            read.en.eq(final.read | ~final.busy),
            final.line.eq(read.data),
        ]
        m.d.sync += loaded_valid.eq(0)

        with m.FSM():
            with m.State("REQUEST"):
                request = self.i_request.payload
                m.d.comb += self.i_request.ready.eq(1)
                with m.If(self.i_request.valid):
                    clamped = Mux(request.k > request.n, request.n, request.k)
                    m.d.sync += [
                        n.eq(request.n),
                        n_in_bin.eq(request.n),
                        remaining.eq(request.n),
                        k.eq(clamped),
                        target.eq(clamped),
                        digit_number.eq(0),
                        prefix.eq(0),
                        load_line.eq(0),
                        first_line.eq(1),
                    ]
                    m.next = "LOAD"
            with m.State("LOAD"):
                # A line may be overwritten once the filter of the previous request has read it.
                m.d.comb += [
                    self.i.ready.eq(~final.busy | (load_line < final.line_number)),
                    write.en.eq(self.i.valid & self.i.ready),
                ]
                with m.If(self.i.valid & self.i.ready):
                    m.d.sync += [
                        loaded.eq(Value.cast(self.i.payload)),
                        loaded_mask.eq(lane_mask),
                        loaded_first.eq(first_line),
                        loaded_valid.eq(1),
                        load_line.eq(load_line + 1),
                        first_line.eq(0),
                        remaining.eq(remaining - cfg.lanes),
                    ]
                    with m.If(is_last_line):
                        m.d.sync += wait.eq(DECIDE_CYCLES)
                        m.next = "WAIT"
                        with m.If(no_pass):
                            m.next = "DECIDE"
            with m.State("PASS"):
                m.d.comb += comparing.eq(1)
                m.d.sync += [
                    pass_line.eq(Mux(is_last_line, 0, pass_line + 1)),
                    first_line.eq(0),
                    remaining.eq(remaining - cfg.lanes),
                ]
                with m.If(is_last_line):
                    m.d.sync += wait.eq(DECIDE_CYCLES - 1)
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 1):
                    m.next = "DECIDE"
            with m.State("DECIDE"):
                decided = no_pass | (passes.excess == 0) | (digit_number == cfg.n_digits - 1)
                m.d.comb += threshold.eq(prefix)
                for number in range(cfg.n_digits):
                    with m.If(digit_number == number):
                        place = cfg.padded_bits - (number + 1) * cfg.digit_bits
                        m.d.comb += threshold[place : place + cfg.digit_bits].eq(passes.bin)
                with m.If(~final.busy):
                    with m.If(decided):
                        m.d.comb += final.start.eq(1)
                        m.next = "REQUEST"
                    with m.Else():
                        # The first stored line is read in this cycle, for the first one of the pass.
                        m.d.sync += [
                            prefix.eq(threshold),
                            bin_.eq(passes.bin),
                            target.eq(passes.rest),
                            n_in_bin.eq(passes.rest + passes.excess),
                            remaining.eq(n_in_bin),
                            digit_number.eq(digit_number + 1),
                            pass_line.eq(1),
                            first_line.eq(1),
                        ]
                        m.next = "PASS"

        m.d.comb += [
            passes.valid.eq(loaded_valid | comparing),
            passes.line.eq(Mux(loaded_valid, loaded, read.data)),
            passes.mask.eq(Mux(loaded_valid, loaded_mask, lane_mask)),
            passes.first.eq(Mux(loaded_valid, loaded_first, first_line)),
            passes.last.eq(is_last_line),
            passes.number.eq(digit_number),
            passes.digit_before.eq(bin_),
            passes.target.eq(target),
            passes.clear.eq(final.start),
        ]

        # k = 0 and k = n need no pass: nothing is above the largest element, everything is at least 0.
        highest = Const(-1, cfg.element_bits)
        padding = cfg.padded_bits - cfg.element_bits
        m.d.comb += [
            final.threshold.eq(Mux(k == 0, highest, Mux(k == n, 0, threshold[padding:]))),
            final.n_equal.eq(Mux(k == 0, 0, Mux(k == n, n, passes.rest))),
            final.n.eq(n),
            final.k.eq(k),
        ]
        return m


class RadixMarks(RadixSelect):
    """As :class:`RadixSelect`, but marks the kept lanes of each line instead of packing their elements."""

    FINAL = Mark


class TopKMarks(TopK):
    """As :class:`hw.topk.rtl.TopK`, but marks the kept lanes of each line."""

    FINAL = Mark


ENGINES: dict[tuple[str, bool], type[TopK] | type[RadixSelect]] = {
    ("quickselect", False): TopK,
    ("quickselect", True): TopKMarks,
    ("radix", False): RadixSelect,
    ("radix", True): RadixMarks,
}
"""By name, and whether lines are marked."""


def row_layout(config: LocalValueConfig) -> data.StructLayout:
    """Payload of ``i_row``: keys of the row, and how many of them stay."""
    return data.StructLayout({"n": config.selector.count_bits, "k": config.selector.count_bits})


def pairs_layout(config: LocalValueConfig) -> data.StructLayout:
    """Payload of ``o``: a packed beat of (probability, index) pairs."""
    pair = data.StructLayout({"probability": config.payload_bits, "index": config.selector.index_bits})
    return data.StructLayout(
        {"data": data.ArrayLayout(pair, config.lanes), "count": config.lanes.bit_length(), "last": 1}
    )


class LocalValueSelect(wiring.Component):
    """Keeps the probabilities of a row whose values are worth fetching (SpAtten Fig. 8, module 10).

    With semantics ``probability`` a selection engine works on the probabilities. With ``score`` it works on
    the scores, which are there earlier, and its marks wait in a queue for the probabilities of their lines.
    k = n passes a row through. Cycles: :func:`hw.select.cycles.local_value_replay`.

    With ``score`` any list can be selected from: identifiers of tokens take the place of the probabilities,
    their importance that of the scores.

    Members
    -------
    i_row : stream of :func:`row_layout`, one beat a row; n in 1..n_max, k above n counts as n
    i_score : stream of :func:`hw.stream.rtl.packed_layout` of scores (``score_is_signed``); dense rows; only
        with ``score``
    i : stream of :func:`hw.stream.rtl.packed_layout` of unsigned payloads, ``payload_bits`` wide; dense rows
    o : stream of :func:`pairs_layout`, indices ascending; max(1, ceil(k / lanes)) beats a row, zeros at and
        above ``count``
    """

    def __init__(self, config: LocalValueConfig) -> None:
        self.config = config
        ports = {
            "i_row": In(stream.Signature(row_layout(config))),
            "i": In(stream.Signature(packed_layout(config.payload_bits, config.in_lanes))),
            "o": Out(stream.Signature(pairs_layout(config))),
        }
        if config.semantics == "score":
            score = signed(config.score_bits) if config.score_is_signed else unsigned(config.score_bits)
            layout = {
                "data": data.ArrayLayout(score, config.in_lanes),
                "count": config.in_lanes.bit_length(),
                "last": 1,
            }
            ports["i_score"] = In(stream.Signature(data.StructLayout(layout)))
        super().__init__(ports)

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        by_score = cfg.semantics == "score"
        m.submodules.engine = engine = ENGINES[cfg.engine, by_score](cfg.selector)  # type: ignore[arg-type]
        m.d.comb += [
            engine.i_request.payload.n.eq(self.i_row.payload.n),
            engine.i_request.payload.k.eq(self.i_row.payload.k),
            engine.i_request.valid.eq(self.i_row.valid),
            self.i_row.ready.eq(engine.i_request.ready),
        ]
        m.submodules.probabilities = probabilities = Regroup(cfg.regroup(cfg.payload_bits))
        wiring.connect(m, wiring.flipped(self.i), probabilities.i)
        if by_score:
            m.submodules.scores = scores = Regroup(cfg.regroup(cfg.score_bits))
            self._connect_scores(m, scores)
            _connect_lines(m, scores, engine)
            self._join(m, probabilities, engine)
        else:
            _connect_lines(m, probabilities, engine)
            self._pair(m, engine)
        return m

    def _connect_scores(self, m: Module, scores: Regroup) -> None:
        """To unsigned in the same order: a signed score's sign bit inverted, in lanes that hold a score."""
        i = self.i_score
        m.d.comb += [
            scores.i.valid.eq(i.valid),
            i.ready.eq(scores.i.ready),
            scores.i.payload.count.eq(i.payload.count),
            scores.i.payload.last.eq(i.payload.last),
        ]
        inverted = -self.config.lowest_score
        m.d.comb += [
            scores.i.payload.data[lane].eq(
                Mux(lane < i.payload.count, Value.cast(i.payload.data[lane]).as_unsigned() ^ inverted, 0)
            )
            for lane in range(self.config.in_lanes)
        ]

    def _pair(self, m: Module, engine: TopK | RadixSelect) -> None:
        """The engine's values and indices, lane by lane."""
        o, kept = self.o.payload, engine.o.payload
        m.d.comb += [
            self.o.valid.eq(engine.o.valid),
            engine.o.ready.eq(self.o.ready),
            o.count.eq(kept.count),
            o.last.eq(kept.last),
        ]
        for lane in range(self.config.lanes):
            m.d.comb += [
                o.data[lane].probability.eq(kept.data[lane]),
                o.data[lane].index.eq(kept.index[lane]),
            ]

    def _join(self, m: Module, probabilities: Regroup, engine: TopK | RadixSelect) -> None:
        """Marks with the probabilities of their lines; lines after a row's last mark are dropped."""
        cfg, selector = self.config, self.config.selector
        pair_bits = cfg.payload_bits + selector.index_bits
        # Marks of two rows wait, so that the engine runs ahead while the softmax works.
        m.submodules.marks = marks = Fifo(
            FifoConfig(width_bits=cfg.lanes + 1, depth=2 * selector.max_lines + 2)
        )
        m.submodules.eliminator = eliminator = ZeroEliminator(
            ZeroEliminatorConfig(lanes=cfg.lanes, element_bits=pair_bits)
        )
        m.submodules.packer = packer = Packer(PackerConfig(lanes=cfg.lanes, element_bits=pair_bits))
        m.submodules.skid = skid = SkidBuffer(SkidConfig(width_bits=pairs_layout(cfg).size))

        line = probabilities.o
        line_number = Signal(range(selector.max_lines))
        found_all = Signal()
        """The row's k-th kept probability has been joined."""
        last_mark = marks.o.payload[cfg.lanes]
        m.d.comb += [
            marks.i.valid.eq(engine.o.valid),
            engine.o.ready.eq(marks.i.ready),
            marks.i.payload.eq(Cat(engine.o.payload.mask, engine.o.payload.last)),
            eliminator.i.valid.eq(line.valid & marks.o.valid & ~found_all),
            line.ready.eq(found_all | (marks.o.valid & eliminator.i.ready)),
            marks.o.ready.eq(line.valid & ~found_all & eliminator.i.ready),
            eliminator.i.payload.mask.eq(marks.o.payload[: cfg.lanes]),
            eliminator.i.payload.last.eq(last_mark),
        ]
        m.d.comb += [
            eliminator.i.payload.data[lane].eq(
                Cat(line.payload.data[lane], Const(lane, selector.lane_bits), line_number)[:pair_bits]
            )
            for lane in range(cfg.lanes)
        ]
        with m.If(line.valid & line.ready):
            m.d.sync += [
                line_number.eq(Mux(line.payload.last, 0, line_number + 1)),
                found_all.eq(~line.payload.last & (found_all | last_mark)),
            ]
        wiring.connect(m, eliminator.o, packer.i)
        m.d.comb += [
            skid.i.payload.eq(Value.cast(packer.o.payload)),
            skid.i.valid.eq(packer.o.valid),
            packer.o.ready.eq(skid.i.ready),
            Value.cast(self.o.payload).eq(skid.o.payload),
            self.o.valid.eq(skid.o.valid),
            skid.o.ready.eq(self.o.ready),
        ]


def _connect_lines(m: Module, regroup: Regroup, engine: TopK | RadixSelect) -> None:
    """Lines to the engine, which counts them itself."""
    m.d.comb += [
        Value.cast(engine.i.payload).eq(Value.cast(regroup.o.payload.data)),
        engine.i.valid.eq(regroup.o.valid),
        regroup.o.ready.eq(engine.i.ready),
    ]
