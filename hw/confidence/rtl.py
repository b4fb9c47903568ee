# SPDX-License-Identifier: MIT
"""Amaranth implementation of the confidence check, and of the check joined with its softmax."""

from amaranth import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.softmax.config import MULTIPLIER_BITS, PROBABILITY_BITS, SHIFT_BITS
from hw.softmax.rtl import Softmax, row_layout
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo, packed_layout

from .config import BEGUN_ROWS, COUNTER_BITS, LSB_BITS, MAX_ENTRIES, ConfidenceConfig


def check_layout(config: ConfidenceConfig) -> data.StructLayout:
    """Payload of ``i_row``."""
    return data.StructLayout(
        {
            "tag": config.tag_bits,
            "threshold": PROBABILITY_BITS,
            "progressive": 1,
            "flush": 1,
            "msb_multiplier": MULTIPLIER_BITS,
            "msb_shift": SHIFT_BITS,
            "lsb_multiplier": MULTIPLIER_BITS,
            "lsb_shift": SHIFT_BITS,
        }
    )


def report_layout(config: ConfidenceConfig) -> data.StructLayout:
    """Payload of ``o_row``: a finished row, and the totals since reset up to and including it (mod 2^32)."""
    return data.StructLayout(
        {"tag": config.tag_bits, "used_lsb": 1, "n_rows": COUNTER_BITS, "n_recomputed": COUNTER_BITS}
    )


class Confidence(wiring.Component):
    """Sends rows of MSB scores to the softmax; where its answer is not confident, recomputes with the LSBs.

    A progressive row's MSB scores are kept while they pass. The softmax reports the row's maximum probability
    before it divides. Below the threshold the row is dropped there, its LSB scores are requested, and
    16 msb + lsb enters as a new row, accepted whatever its maximum is (SpAtten module 9).

    Rows begin in an order that depends on the data only: row r + window begins when row r is settled (found
    confident, or begun again), and a row with ``flush`` is settled, with all before it, before a later one
    begins. ``o_begin`` tells that order, up to BEGUN_ROWS rows ahead of their scores; a source with one
    pipeline for both planes follows it. Finished rows leave in the order of their accepted entries. Cycles:
    :mod:`hw.confidence.cycles`.

    Members
    -------
    i_row : stream of :func:`check_layout`
    o_begin : stream of ``tag`` and ``lsb``: the scores of that row and plane are the next to be taken
    i_msb : stream of packed signed scores, dense rows; a progressive row's must fit in score_bits - 4 bits
    o_request : stream of ``tag``: the LSB scores of that row are wanted
    i_lsb : stream of packed signed scores, dense rows in the order of the requests, as long as their MSB rows
    o_softmax_row, o_score, i_probability, o_decision : to and from the softmax's i_row, i, o_row, i_decision
    o_row : stream of :func:`report_layout`, in the order in which the rows leave the softmax
    """

    def __init__(self, config: ConfidenceConfig) -> None:
        self.config = config
        scores = stream.Signature(packed_layout(config.score_bits, config.lanes))
        super().__init__(
            {
                "i_row": In(stream.Signature(check_layout(config))),
                "o_begin": Out(stream.Signature(data.StructLayout({"tag": config.tag_bits, "lsb": 1}))),
                "i_msb": In(scores),
                "o_request": Out(stream.Signature(data.StructLayout({"tag": config.tag_bits}))),
                "i_lsb": In(scores),
                "o_softmax_row": Out(stream.Signature(row_layout())),
                "o_score": Out(scores),
                "i_probability": In(
                    stream.Signature(data.StructLayout({"max_probability": PROBABILITY_BITS}))
                ),
                "o_decision": Out(stream.Signature(data.StructLayout({"drop": 1}))),
                "o_row": Out(stream.Signature(report_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        slot_bits = (cfg.window - 1).bit_length()
        entry = data.StructLayout(
            {
                "slot": slot_bits,
                "used_lsb": 1,
                "checked": 1,
                "threshold": PROBABILITY_BITS,
                "tag": cfg.tag_bits,
            }
        )
        m.submodules.scales = scales = Fifo(FifoConfig(width_bits=row_layout().size, depth=4))
        m.submodules.entries = entries = Fifo(FifoConfig(width_bits=entry.size, depth=MAX_ENTRIES))
        m.submodules.moves = moves = Fifo(FifoConfig(width_bits=slot_bits + 2, depth=BEGUN_ROWS))
        m.submodules.begins = begins = Fifo(FifoConfig(width_bits=cfg.tag_bits + 1, depth=4))
        new = Signal(entry, name="new_entry")
        _connect_out(m, scales, self.o_softmax_row)
        _connect_out(m, begins, self.o_begin)

        # State of each slot: the row in it may still need its LSBs; it does, and has not been sent again.
        is_open, wanted = Signal(cfg.window), Signal(cfg.window)
        kept = data.StructLayout({"tag": cfg.tag_bits, "multiplier": MULTIPLIER_BITS, "shift": SHIFT_BITS})
        rows = [Signal(kept, name=f"row{slot}", reset_less=True) for slot in range(cfg.window)]
        slot = Signal(slot_bits)
        """The slot of the next row."""
        n_flush = Signal(range(cfg.window + 1))
        """Slots still to be settled before the next row."""

        here_open, here_wanted, begin, begin_msb, begin_lsb, settled = (Signal(name=n) for n in (
            "here_open", "here_wanted", "begin", "begin_msb", "begin_lsb", "settled"))  # fmt: skip
        queues = (scales, entries, moves, begins)
        may_begin = Cat(queue.i.ready for queue in queues).all()
        request = self.i_row.payload
        again = Signal(kept, name="again")
        m.d.comb += [
            here_open.eq(is_open.bit_select(slot, 1)),
            here_wanted.eq(wanted.bit_select(slot, 1)),
            begin_lsb.eq(here_wanted & may_begin),
            settled.eq(~here_open & (n_flush != 0)),
            self.i_row.ready.eq(~here_open & (n_flush == 0) & may_begin),
            begin_msb.eq(self.i_row.valid & self.i_row.ready),
            begin.eq(begin_msb | begin_lsb),
            again.eq(_select(rows, slot)),
        ]
        m.d.comb += [queue.i.valid.eq(begin) for queue in queues]
        tag = Mux(begin_lsb, again.tag, request.tag)
        m.d.comb += [
            scales.i.payload.eq(
                Mux(
                    begin_lsb,
                    Cat(again.multiplier, again.shift),
                    Cat(request.msb_multiplier, request.msb_shift),
                )
            ),
            new.slot.eq(slot),
            new.used_lsb.eq(begin_lsb),
            new.checked.eq(~begin_lsb & request.progressive),
            new.threshold.eq(request.threshold),
            new.tag.eq(tag),
            entries.i.payload.eq(Value.cast(new)),
            moves.i.payload.eq(Cat(slot, begin_lsb, new.checked)),
            begins.i.payload.eq(Cat(tag, begin_lsb)),
        ]
        # A slot may be written again once its row has been sent again: the scores move in the same order.
        with m.If(begin_lsb):
            m.d.sync += [wanted.bit_select(slot, 1).eq(0), is_open.bit_select(slot, 1).eq(0)]
        with m.If(begin_msb):
            m.d.sync += [
                is_open.bit_select(slot, 1).eq(request.progressive),
                n_flush.eq(Mux(request.flush, cfg.window, 0)),
            ]
            for number, row in enumerate(rows):
                with m.If(slot == number):
                    m.d.sync += row.eq(Cat(request.tag, request.lsb_multiplier, request.lsb_shift))
        with m.Elif(settled):
            m.d.sync += n_flush.eq(n_flush - 1)
        if cfg.window > 1:
            with m.If(begin_msb | settled):
                m.d.sync += slot.eq(slot + 1)

        self._move_scores(m, moves)
        decided = data.View(entry, entries.o.payload)
        fire, drop = self._decide(m, entries, decided)
        with m.If(fire & decided.checked):
            with m.If(drop):
                m.d.sync += wanted.bit_select(decided.slot, 1).eq(1)
            with m.Else():
                m.d.sync += is_open.bit_select(decided.slot, 1).eq(0)
        return m

    def _move_scores(self, m: Module, moves: Fifo) -> None:
        """Two registers from ``i_msb`` or ``i_lsb`` to ``o_score``, row by row in the order of ``moves``."""
        cfg = self.config
        lines = memory.Memory(
            shape=unsigned(cfg.lanes * cfg.stored_bits), depth=cfg.window * cfg.softmax.max_lines, init=[]
        )
        m.submodules.lines = lines
        write, read = lines.write_port(), lines.read_port()
        line = Signal(range(cfg.softmax.max_lines))
        slot, is_lsb, stores = moves.o.payload[:-2], moves.o.payload[-2], moves.o.payload[-1]
        active = moves.o.valid

        held_valid = Signal()
        held = Signal(packed_layout(cfg.score_bits, cfg.lanes), reset_less=True)
        held_lsb = Signal(reset_less=True)
        advance, advance_out, take = Signal(), Signal(), Signal()
        chosen = Signal(packed_layout(cfg.score_bits, cfg.lanes), name="chosen")
        m.d.comb += [
            chosen.eq(Mux(is_lsb, Value.cast(self.i_lsb.payload), Value.cast(self.i_msb.payload))),
            advance_out.eq(~self.o_score.valid | self.o_score.ready),
            advance.eq(~held_valid | advance_out),
            moves.o.ready.eq(take & chosen.last),
            take.eq(active & advance & Mux(is_lsb, self.i_lsb.valid, self.i_msb.valid)),
            self.i_msb.ready.eq(active & ~is_lsb & advance),
            self.i_lsb.ready.eq(active & is_lsb & advance),
            write.addr.eq(Cat(line, slot)),
            write.data.eq(Cat(chosen.data[lane][: cfg.stored_bits] for lane in range(cfg.lanes))),
            write.en.eq(take & stores),
            read.addr.eq(Cat(line, slot)),
            read.en.eq(advance),
        ]
        with m.If(take):
            m.d.sync += line.eq(Mux(chosen.last, 0, line + 1))
        with m.If(advance):
            m.d.sync += [held_valid.eq(take), held.eq(chosen), held_lsb.eq(is_lsb)]
        with m.If(advance_out):
            out = self.o_score.payload
            m.d.sync += [
                self.o_score.valid.eq(held_valid),
                out.count.eq(held.count),
                out.last.eq(held.last),
            ]
            for lane in range(cfg.lanes):
                base = Signal(signed(cfg.score_bits), name=f"base{lane}")
                stored = read.data.word_select(lane, cfg.stored_bits)
                m.d.comb += base.eq(Mux(held_lsb, stored << LSB_BITS, 0))
                m.d.sync += out.data[lane].eq(base + held.data[lane])

    def _decide(self, m: Module, entries: Fifo, decided) -> tuple[Signal, Signal]:
        """Compares a reported maximum with its row's threshold and tells everyone."""
        cfg = self.config
        # Never full: the softmax has at most MAX_ROWS undecided rows, and each slot one open request.
        m.submodules.decisions = decisions = Fifo(FifoConfig(width_bits=1, depth=MAX_ENTRIES))
        m.submodules.requests = requests = Fifo(FifoConfig(width_bits=cfg.tag_bits, depth=cfg.window + 1))
        m.submodules.reports = reports = Fifo(FifoConfig(width_bits=report_layout(cfg).size, depth=4))
        for fifo, out in (
            (decisions, self.o_decision),
            (requests, self.o_request),
            (reports, self.o_row),
        ):
            _connect_out(m, fifo, out)
        n_rows, n_recomputed = Signal(COUNTER_BITS), Signal(COUNTER_BITS)
        fire, drop = Signal(), Signal()
        report = Signal(report_layout(cfg), name="report")
        all_ready = decisions.i.ready & requests.i.ready & reports.i.ready
        m.d.comb += [
            fire.eq(self.i_probability.valid & entries.o.valid & all_ready),
            drop.eq(decided.checked & (self.i_probability.payload.max_probability < decided.threshold)),
            self.i_probability.ready.eq(entries.o.valid & all_ready),
            entries.o.ready.eq(self.i_probability.valid & all_ready),
            decisions.i.valid.eq(fire),
            decisions.i.payload.eq(drop),
            requests.i.valid.eq(fire & drop),
            requests.i.payload.eq(decided.tag),
            reports.i.valid.eq(fire & ~drop),
            reports.i.payload.eq(Value.cast(report)),
            report.tag.eq(decided.tag),
            report.used_lsb.eq(decided.used_lsb),
            report.n_rows.eq(n_rows + 1),
            report.n_recomputed.eq(n_recomputed + decided.used_lsb),
        ]
        with m.If(fire & ~drop):
            m.d.sync += [n_rows.eq(report.n_rows), n_recomputed.eq(report.n_recomputed)]
        return fire, drop


class ConfidentSoftmax(wiring.Component):
    """Confidence check and softmax, joined.

    Members
    -------
    i_row, o_begin, i_msb, o_request, i_lsb, o_row : as :class:`Confidence` has them
    o : stream of :func:`hw.stream.rtl.packed_layout` of 12-bit probabilities, rows in the order of ``o_row``
    """

    def __init__(self, config: ConfidenceConfig) -> None:
        self.config = config
        self.confidence = Confidence(config)
        self.softmax = Softmax(config.softmax)
        own = ("i_row", "o_begin", "i_msb", "o_request", "i_lsb", "o_row")
        members = {name: self.confidence.signature.members[name] for name in own}
        super().__init__({**members, "o": self.softmax.signature.members["o"]})

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.confidence, m.submodules.softmax = check, softmax = self.confidence, self.softmax
        wiring.connect(m, check.o_softmax_row, softmax.i_row)
        wiring.connect(m, check.o_score, softmax.i)
        wiring.connect(m, softmax.o_row, check.i_probability)
        wiring.connect(m, check.o_decision, softmax.i_decision)
        for name in ("i_row", "i_msb", "i_lsb"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(check, name))
        for name in ("o_begin", "o_request", "o_row"):
            wiring.connect(m, getattr(check, name), wiring.flipped(getattr(self, name)))
        wiring.connect(m, softmax.o, wiring.flipped(self.o))
        return m


def _connect_out(m: Module, fifo: Fifo, out) -> None:
    m.d.comb += [
        Value.cast(out.payload).eq(fifo.o.payload),
        out.valid.eq(fifo.o.valid),
        fifo.o.ready.eq(out.ready),
    ]


def _select(rows: list, index: Signal) -> Value:
    """The row at ``index``."""
    chosen = Value.cast(rows[0])
    for number, row in enumerate(rows[1:], start=1):
        chosen = Mux(index == number, Value.cast(row), chosen)
    return chosen
