# SPDX-License-Identifier: MIT
"""Amaranth implementation of the top-k engine."""

from typing import ClassVar

from amaranth import Array, Cat, Const, Module, Mux, ResetInserter, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import leap

from .compact_list import CompactList
from .config import LFSR_BITS, LFSR_TAPS, CompactListConfig, TopKConfig
from .filter import Filter, Mark, popcount


class TopK(wiring.Component):
    """The k largest of n elements, in their original order (SpAtten Alg. 3, Figs. 9 and 10).

    Quick-select. While a request streams in, each line of P elements is stored for the final filter and
    compared with a first pivot out of the first line; smaller elements go to FIFO_L, larger ones to FIFO_R,
    each through a comparator array, a zero eliminator and a packer. Every further pass reads the FIFO that
    holds the k-th largest and parts it by a pivot drawn from it. Once the threshold is known, the stored
    lines pass a filter that keeps what is above it and the first ``num_eq`` of what equals it. Where the
    paper's Alg. 3 prints <=, < is used: it stops as soon as the set is known.

    The next request is taken while the previous one is filtered: the bubble between requests is the
    selection itself. Cycle counts: :mod:`hw.topk.cycles`. Back-pressure on ``o`` stalls the filter, and
    through it the load of the next request; nothing is lost.

    Pivots come from a 16-bit LFSR that draws once per compared line, whatever the stalls, so a run is
    reproducible from its seed.

    Members
    -------
    i_request : stream of ``n`` (0..n_max), ``k`` (0..n; more counts as n), ``seed`` (0: go on from where the
        LFSR stands)
    i : stream of ``lanes`` unsigned elements; max(1, ceil(n / lanes)) beats a request, lanes past n ignored
    o : stream of ``data`` and ``index`` (lanes each), ``count`` and ``last``; max(1, ceil(k / lanes)) beats a
        request, zeros at and above ``count``
    """

    FINAL: ClassVar[type[Filter] | type[Mark]] = Filter

    def __init__(self, config: TopKConfig) -> None:
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
        write = lines.write_port()
        read = lines.read_port()
        m.submodules.final = final = self.final
        m.d.comb += [read.addr.eq(final.line_number), read.en.eq(final.read), final.line.eq(read.data)]
        m.submodules.parts = parts = _Partition(cfg)
        wiring.connect(m, wiring.flipped(self.o), final.o)

        k = Signal(cfg.count_bits)
        n = Signal(cfg.count_bits)
        remaining = Signal(cfg.count_bits)
        """Elements of the request still to load, or of the pass still to compare."""
        n_list = Signal(cfg.count_bits)
        """Elements of the list that the running pass parts."""
        target = Signal(cfg.count_bits)
        """The wanted element is the target-th largest of that list."""
        pivot = Signal(cfg.element_bits)
        selected_r = Signal()
        line_number = Signal(range(cfg.max_lines))
        first_line = Signal()

        loaded = Signal(cfg.lanes * cfg.element_bits)
        loaded_valid = Signal()
        lane_mask, loaded_mask = Signal(cfg.lanes), Signal(cfg.lanes)
        is_last_line = Signal()
        m.d.comb += [
            lane_mask.eq(Cat(lane < remaining for lane in range(cfg.lanes))),
            is_last_line.eq(remaining <= cfg.lanes),
        ]
        m.d.sync += loaded_valid.eq(0)

        def count_line() -> None:
            """One line of the request or the pass has been taken."""
            m.d.sync += remaining.eq(Mux(is_last_line, 0, remaining - cfg.lanes))

        head_l, head_r = parts.o_left, parts.o_right
        m.d.comb += [
            parts.pivot.eq(pivot),
            write.addr.eq(line_number),
            write.data.eq(Value.cast(self.i.payload)),
        ]
        with m.FSM():
            with m.State("REQUEST"):
                request = self.i_request.payload
                m.d.comb += [self.i_request.ready.eq(1), parts.restart.eq(1)]
                with m.If(self.i_request.valid):
                    clamped = Mux(request.k > request.n, request.n, request.k)
                    m.d.comb += parts.seed.eq(request.seed)
                    m.d.sync += [
                        n.eq(request.n),
                        n_list.eq(request.n),
                        remaining.eq(request.n),
                        k.eq(clamped),
                        target.eq(clamped),
                        line_number.eq(0),
                        first_line.eq(1),
                    ]
                    m.next = "LOAD"
            with m.State("LOAD"):
                # A line may be overwritten once the filter of the previous request has read it.
                m.d.comb += [
                    self.i.ready.eq(~final.busy | (line_number < final.line_number)),
                    write.en.eq(self.i.valid & self.i.ready),
                ]
                with m.If(self.i.valid & self.i.ready):
                    lane = Signal(len(parts.start_lane))
                    m.d.comb += lane.eq(Mux(parts.start_lane < remaining, parts.start_lane, 0))
                    with m.If(first_line):
                        m.d.sync += pivot.eq(Array(self.i.payload[i] for i in range(cfg.lanes))[lane])
                    m.d.sync += [
                        loaded.eq(Value.cast(self.i.payload)),
                        loaded_mask.eq(lane_mask),
                        loaded_valid.eq(1),
                        line_number.eq(line_number + 1),
                        first_line.eq(0),
                    ]
                    count_line()
                    with m.If(is_last_line):
                        m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.comb += parts.last.eq(1)
                m.next = "DECIDE"
            with m.State("DECIDE"):
                go_right, go_left, decided = Signal(), Signal(), Signal()
                m.d.comb += [
                    decided.eq((k == 0) | (k == n)),
                    go_right.eq(~decided & (parts.n_right > target)),
                    go_left.eq(~decided & (target + parts.n_left > n_list)),
                    parts.clear_left.eq(~go_left),
                    parts.clear_right.eq(~go_right),
                ]
                with m.If(go_right | go_left):
                    m.d.comb += parts.restart.eq(1)
                    m.d.sync += [
                        selected_r.eq(go_right),
                        n_list.eq(Mux(go_right, parts.n_right, parts.n_left)),
                        remaining.eq(Mux(go_right, parts.n_right, parts.n_left)),
                        target.eq(Mux(go_right, target, target + parts.n_left - n_list)),
                        pivot.eq(Mux(go_right, parts.pivot_right, parts.pivot_left)),
                    ]
                    m.next = "PASS"
                with m.Else():
                    m.d.comb += final.start.eq(1)
                    with m.If(~final.busy):
                        m.next = "REQUEST"
            with m.State("PASS"):
                with m.If(Mux(selected_r, head_r.valid, head_l.valid)):
                    m.d.comb += [
                        parts.valid.eq(1),
                        parts.last.eq(is_last_line),
                        head_l.ready.eq(~selected_r),
                        head_r.ready.eq(selected_r),
                    ]
                    count_line()
                    with m.If(is_last_line):
                        m.next = "DECIDE"

        with m.If(loaded_valid):
            m.d.comb += [parts.valid.eq(1), parts.line.eq(loaded), parts.mask.eq(loaded_mask)]
        with m.Else():
            m.d.comb += [
                parts.line.eq(Mux(selected_r, head_r.payload, head_l.payload)),
                parts.mask.eq(lane_mask),
            ]

        # k = 0 and k = n need no pass: nothing is above the largest element, everything is at least 0.
        highest = Const(-1, cfg.element_bits)
        m.d.comb += [
            final.threshold.eq(Mux(k == 0, highest, Mux(k == n, 0, pivot))),
            final.n_equal.eq(Mux(k == 0, 0, Mux(k == n, n, target - parts.n_right))),
            final.n.eq(n),
            final.k.eq(k),
        ]
        return m


class _Partition(wiring.Component):
    """Both comparator arrays, the FIFOs behind them, their counts, and the draw of the next pivots."""

    def __init__(self, config: TopKConfig) -> None:
        self.config = config
        line = unsigned(config.lanes * config.element_bits)
        super().__init__(
            {
                "restart": In(1),  # forget counts and pivots: a pass begins
                "seed": In(LFSR_BITS),
                "valid": In(1),  # a line is compared in this cycle
                "line": In(line),
                "mask": In(config.lanes),
                "last": In(1),
                "pivot": In(config.element_bits),
                "clear_left": In(1),
                "clear_right": In(1),
                "start_lane": Out(max(config.lane_bits, 1)),
                "n_left": Out(config.count_bits),
                "n_right": Out(config.count_bits),
                "pivot_left": Out(config.element_bits),
                "pivot_right": Out(config.element_bits),
                "o_left": Out(stream.Signature(line)),
                "o_right": Out(stream.Signature(line)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        elements = [self.line.word_select(lane, cfg.element_bits) for lane in range(cfg.lanes)]

        lfsr = Signal(LFSR_BITS, init=1)
        m.d.comb += self.start_lane.eq(lfsr[: cfg.lane_bits])
        with m.If(self.seed != 0):
            m.d.sync += lfsr.eq(self.seed)
        with m.Elif(self.valid):
            m.d.sync += lfsr.eq(leap(lfsr, LFSR_TAPS, LFSR_BITS))

        held_line = Signal(len(self.line), reset_less=True)
        held_last, held_valid = Signal(), Signal()
        m.d.sync += [held_line.eq(self.line), held_last.eq(self.last), held_valid.eq(self.valid)]

        for name, is_member, count, pivot, clear, out in (
            ("left", lambda e: e < self.pivot, self.n_left, self.pivot_left, self.clear_left, self.o_left),
            (
                "right",
                lambda e: e > self.pivot,
                self.n_right,
                self.pivot_right,
                self.clear_right,
                self.o_right,
            ),
        ):
            members = Signal(cfg.lanes, name=f"{name}_members")
            m.d.comb += members.eq(Cat(is_member(e) for e in elements) & self.mask)

            drawn = Signal(cfg.element_bits, name=f"{name}_drawn")
            m.d.comb += drawn.eq(_pick(m, name, members, elements, self.start_lane))
            n_lines = Signal(range(cfg.max_lines + 1), name=f"{name}_lines")
            """Lines of this pass that had a member."""
            take = Signal(name=f"{name}_take")
            # Reservoir sampling over lines: line b replaces the candidate with chance 2^-ceil(log2 b).
            luck = lfsr[cfg.lane_bits :][: len(n_lines)]
            m.d.comb += take.eq((luck & _smear(n_lines)) == 0)
            with m.If(self.restart):
                m.d.sync += [count.eq(0), n_lines.eq(0)]
            with m.Elif(self.valid & (members != 0)):
                m.d.sync += [count.eq(count + popcount(members)), n_lines.eq(n_lines + 1)]
                with m.If(take):
                    m.d.sync += pivot.eq(drawn)

            held_members = Signal(cfg.lanes, name=f"{name}_held")
            m.d.sync += held_members.eq(members)
            side = CompactList(
                CompactListConfig(lanes=cfg.lanes, element_bits=cfg.element_bits, max_lines=cfg.max_lines)
            )
            m.submodules[name] = ResetInserter(clear)(side)
            m.d.comb += [
                side.i.valid.eq(held_valid),
                Value.cast(side.i.payload.data).eq(held_line),
                side.i.payload.mask.eq(held_members),
                side.i.payload.last.eq(held_last),
            ]
            wiring.connect(m, wiring.flipped(out), side.o)
        return m


def _smear(value: Value) -> Value:
    """Ones up to the highest one of ``value``."""
    return Cat(value[i:].any() for i in range(len(value)))


def _pick(m: Module, name: str, mask: Value, elements: list[Value], start_lane: Value) -> Value:
    """The first marked element at or above ``start_lane``, cyclically."""
    n = len(elements)
    at_or_above = Signal(n, name=f"{name}_from_start")
    m.d.comb += at_or_above.eq(mask & Cat(start_lane <= lane for lane in range(n)))
    candidates = Signal(n, name=f"{name}_candidates")
    m.d.comb += candidates.eq(Mux(at_or_above.any(), at_or_above, mask))
    one_hot = candidates & (~candidates + 1)
    picked = Const(0, len(elements[0]))
    for lane, element in enumerate(elements):
        picked = picked | Mux(one_hot[lane], element, 0)
    return picked
