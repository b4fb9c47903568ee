# SPDX-License-Identifier: MIT
"""Amaranth implementation of the top-k engine."""

from amaranth import Array, Cat, Const, Module, Mux, ResetInserter, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig, PackerConfig, SkidConfig
from hw.stream.rtl import Fifo, Packer, SkidBuffer
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.rtl import ZeroEliminator

from .config import LFSR_BITS, LFSR_TAPS, TopKConfig


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

    def __init__(self, config: TopKConfig) -> None:
        self.config = config
        line = data.ArrayLayout(unsigned(config.element_bits), config.lanes)
        super().__init__(
            {
                "i_request": In(
                    stream.Signature(
                        data.StructLayout({"n": config.count_bits, "k": config.count_bits, "seed": LFSR_BITS})
                    )
                ),
                "i": In(stream.Signature(line)),
                "o": Out(stream.Signature(_output_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.lines = lines = memory.Memory(
            shape=unsigned(cfg.lanes * cfg.element_bits), depth=cfg.max_lines, init=[]
        )
        write = lines.write_port()
        m.submodules.final = final = _Filter(cfg, lines.read_port())
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
                    lane = Signal(range(cfg.lanes))
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
                "start_lane": Out(range(config.lanes)),
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
        m.d.comb += self.start_lane.eq(lfsr)
        with m.If(self.seed != 0):
            m.d.sync += lfsr.eq(self.seed)
        with m.Elif(self.valid):
            m.d.sync += lfsr.eq(_leap(lfsr))

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
                m.d.sync += [count.eq(count + _popcount(members)), n_lines.eq(n_lines + 1)]
                with m.If(take):
                    m.d.sync += pivot.eq(drawn)

            held_members = Signal(cfg.lanes, name=f"{name}_held")
            m.d.sync += held_members.eq(members)
            side = _Side(cfg)
            m.submodules[name] = ResetInserter(clear)(side)
            m.d.comb += [
                side.i.valid.eq(held_valid),
                Value.cast(side.i.payload.data).eq(held_line),
                side.i.payload.mask.eq(held_members),
                side.i.payload.last.eq(held_last),
            ]
            wiring.connect(m, wiring.flipped(out), side.o)
        return m


class _Side(wiring.Component):
    """Zero eliminator, packer and FIFO of one side. The FIFO holds a whole request, so it is never full."""

    def __init__(self, config: TopKConfig) -> None:
        self.config = config
        self.eliminator = ZeroEliminator(
            ZeroEliminatorConfig(lanes=config.lanes, element_bits=config.element_bits)
        )
        super().__init__(
            {
                "i": In(self.eliminator.i.signature.flip()),
                "o": Out(stream.Signature(unsigned(config.lanes * config.element_bits))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.eliminator = self.eliminator
        m.submodules.packer = packer = Packer(PackerConfig(lanes=cfg.lanes, element_bits=cfg.element_bits))
        m.submodules.fifo = fifo = Fifo(
            FifoConfig(width_bits=cfg.lanes * cfg.element_bits, depth=cfg.max_lines + 1)
        )
        wiring.connect(m, wiring.flipped(self.i), self.eliminator.i)
        wiring.connect(m, self.eliminator.o, packer.i)
        m.d.comb += [
            # A list that ended with a full line leaves an empty beat, which is no line of the FIFO.
            fifo.i.valid.eq(packer.o.valid & (packer.o.payload.count != 0)),
            fifo.i.payload.eq(Value.cast(packer.o.payload.data)),
            packer.o.ready.eq(fifo.i.ready),
        ]
        wiring.connect(m, fifo.o, wiring.flipped(self.o))
        return m


class _Filter(wiring.Component):
    """Reads the stored request, keeps its k largest, and packs values and indices.

    ``start`` with the threshold begins a run when not ``busy``; ``line_number`` is the next line to read.
    """

    def __init__(self, config: TopKConfig, lines: memory.ReadPort) -> None:
        self.config, self.lines = config, lines
        self.pair_bits = config.element_bits + config.index_bits
        super().__init__(
            {
                "start": In(1),
                "threshold": In(config.element_bits),
                "n_equal": In(config.count_bits),
                "n": In(config.count_bits),
                "k": In(config.count_bits),
                "busy": Out(1),
                "line_number": Out(range(config.max_lines + 1)),
                "o": Out(stream.Signature(_output_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        eliminator = ZeroEliminator(ZeroEliminatorConfig(lanes=cfg.lanes, element_bits=self.pair_bits))
        packer = Packer(PackerConfig(lanes=cfg.lanes, element_bits=self.pair_bits))
        skid = SkidBuffer(SkidConfig(width_bits=_output_layout(cfg).size))
        m.submodules.eliminator, m.submodules.packer, m.submodules.skid = eliminator, packer, skid

        threshold = Signal(cfg.element_bits)
        n_equal = Signal(cfg.count_bits)
        """Elements equal to the threshold that may still be kept."""
        n_missing = Signal(cfg.count_bits)
        """Elements of the k not yet found."""
        n_unread = Signal(cfg.count_bits)
        n_valid = Signal(cfg.count_bits)
        """Elements from the line in the read register to the end of the request."""
        read_number = Signal(range(cfg.max_lines))
        line_valid = Signal()

        kept_ready = Signal()
        advance = Signal()
        m.d.comb += [
            advance.eq(~line_valid | kept_ready),
            self.lines.addr.eq(self.line_number),
            self.lines.en.eq(advance),
        ]
        # The last line is never left by counting lines: the run ends when the k-th element is found.
        with m.If(advance):
            m.d.sync += [
                line_valid.eq(self.busy),
                read_number.eq(self.line_number),
                n_valid.eq(n_unread),
                self.line_number.eq(self.line_number + self.busy),
                n_unread.eq(Mux(n_unread > cfg.lanes, n_unread - cfg.lanes, 0)),
            ]

        elements = [self.lines.data.word_select(lane, cfg.element_bits) for lane in range(cfg.lanes)]
        equal, keep = Signal(cfg.lanes), Signal(cfg.lanes)
        inside = Cat(lane < n_valid for lane in range(cfg.lanes))
        m.d.comb += equal.eq(Cat(e == threshold for e in elements) & inside)
        n_before = Const(0, 1)
        for lane, element in enumerate(elements):
            m.d.comb += keep[lane].eq(
                inside[lane] & ((element > threshold) | (equal[lane] & (n_before < n_equal)))
            )
            total = Signal(range(lane + 2), name=f"equal_upto{lane}")
            m.d.comb += total.eq(n_before + equal[lane])
            n_before = total
        n_kept, found_all = Signal(range(cfg.lanes + 1)), Signal()
        m.d.comb += [n_kept.eq(_popcount(keep)), found_all.eq(n_kept == n_missing)]

        kept_valid, kept_last = Signal(), Signal()
        kept_mask = Signal(cfg.lanes)
        m.d.comb += kept_ready.eq(~kept_valid | eliminator.i.ready)
        with m.If(kept_ready):
            m.d.sync += [kept_valid.eq(line_valid), kept_mask.eq(keep), kept_last.eq(found_all)]
            m.d.sync += [
                eliminator.i.payload.data[lane].eq(
                    Cat(element, Const(lane, cfg.lane_bits), read_number)[: self.pair_bits]
                )
                for lane, element in enumerate(elements)
            ]
            with m.If(line_valid):
                m.d.sync += [
                    n_missing.eq(n_missing - n_kept),
                    n_equal.eq(Mux(n_before < n_equal, n_equal - n_before, 0)),
                ]
                with m.If(found_all):
                    m.d.sync += [self.busy.eq(0), line_valid.eq(0)]
        m.d.comb += [
            eliminator.i.valid.eq(kept_valid),
            eliminator.i.payload.mask.eq(kept_mask),
            eliminator.i.payload.last.eq(kept_last),
        ]
        with m.If(self.start & ~self.busy):
            m.d.sync += [
                self.busy.eq(1),
                self.line_number.eq(0),
                n_unread.eq(self.n),
                n_missing.eq(self.k),
                threshold.eq(self.threshold),
                n_equal.eq(self.n_equal),
            ]

        wiring.connect(m, eliminator.o, packer.i)
        o = Signal(_output_layout(cfg), name="packed")
        m.d.comb += [
            o[field][lane].eq(packer.o.payload.data[lane][part])
            for lane in range(cfg.lanes)
            for field, part in (
                ("data", slice(0, cfg.element_bits)),
                ("index", slice(cfg.element_bits, None)),
            )
        ]
        m.d.comb += [
            o.count.eq(packer.o.payload.count),
            o.last.eq(packer.o.payload.last),
            skid.i.payload.eq(Value.cast(o)),
            skid.i.valid.eq(packer.o.valid),
            packer.o.ready.eq(skid.i.ready),
            Value.cast(self.o.payload).eq(skid.o.payload),
            self.o.valid.eq(skid.o.valid),
            skid.o.ready.eq(self.o.ready),
        ]
        return m


def _output_layout(config: TopKConfig) -> data.StructLayout:
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(config.element_bits), config.lanes),
            "index": data.ArrayLayout(unsigned(config.index_bits), config.lanes),
            "count": config.lanes.bit_length(),
            "last": 1,
        }
    )


def _leap(state: Signal) -> Value:
    """LFSR_BITS steps of the LFSR at once: every draw is made of fresh bits."""
    bits = [state[i] for i in range(LFSR_BITS)]
    for _ in range(LFSR_BITS):
        feedback = bits[LFSR_TAPS[0]]
        for tap in LFSR_TAPS[1:]:
            feedback = feedback ^ bits[tap]
        bits = [feedback, *bits[:-1]]
    return Cat(bits)


def _popcount(mask: Value) -> Value:
    return sum((mask[i] for i in range(1, len(mask))), start=mask[0])


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
