# SPDX-License-Identifier: MIT
"""The rows of a head: their order, their queries, and who must know that they are finished."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.confidence.rtl import check_layout, report_layout
from hw.pv.config import PROBABILITY_BITS
from hw.pv.config import SHIFT_BITS as OUT_SHIFT_BITS
from hw.pv.rtl import row_layout as weighted_row_layout
from hw.qk.rtl import query_layout
from hw.select.rtl import row_layout as selected_row_layout
from hw.stream.config import FifoConfig
from hw.stream.fork import connect, fork
from hw.stream.rtl import Fifo

from .config import HEAD_BITS, HEADS_AHEAD, ROW_QUEUE, AttentionConfig
from .query_ring import QueryRing
from .shapes import numbered_head_layout, tag_layout


class RowSource(wiring.Component):
    """Sends the rows of one head after another to the confidence check.

    A head takes the half of the buffers that the head before it did not take. It waits until all rows of the
    head that had this half are reported, so that ``numbers`` and the half's LSB plane stay true.

    Members
    -------
    i_head : stream of :func:`hw.attention.shapes.numbered_head_layout`
    o_row : stream of :func:`hw.confidence.rtl.check_layout`, n for each head; the last one has ``flush``
    n, progressive, threshold : of the layer
    reported : of each half, a pulse: the last row of its head is finished
    numbers : of each half, the number of its head
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_head": In(stream.Signature(numbered_head_layout(config))),
                "o_row": Out(stream.Signature(check_layout(config.confidence))),
                "n": In(config.count_bits),
                "progressive": In(1),
                "threshold": In(PROBABILITY_BITS),
                "reported": In(2),
                "numbers": Out(HEAD_BITS).array(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.heads = heads = Fifo(
            FifoConfig(width_bits=self.i_head.payload.shape().size, depth=HEADS_AHEAD)
        )
        connect(m, self.i_head, heads.i)
        head = data.View(numbered_head_layout(cfg), heads.o.payload)
        half, started = Signal(), Signal()
        busy = Signal(2)
        row = Signal(cfg.id_bits)
        is_last, taken = Signal(), Signal()
        out = self.o_row.payload
        tag = data.View(tag_layout(cfg), out.tag)
        m.d.comb += [
            self.o_row.valid.eq(started),
            is_last.eq(row == self.n - 1),
            taken.eq(self.o_row.valid & self.o_row.ready),
            tag.row.eq(row),
            tag.half.eq(half),
            out.threshold.eq(self.threshold),
            out.progressive.eq(self.progressive),
            out.flush.eq(self.progressive & is_last),
            out.msb_multiplier.eq(head.planes.msb_multiplier),
            out.msb_shift.eq(head.planes.msb_shift),
            out.lsb_multiplier.eq(head.planes.lsb_multiplier),
            out.lsb_shift.eq(head.planes.lsb_shift),
            heads.o.ready.eq(taken & is_last),
        ]
        m.d.sync += busy.eq(busy & ~self.reported)
        with m.If(~started):
            with m.If(heads.o.valid & ~busy.bit_select(half, 1)):
                m.d.sync += [started.eq(1), busy.bit_select(half, 1).eq(1)]
                for which, number in enumerate(self.numbers):
                    with m.If(half == which):
                        m.d.sync += number.eq(head.number)
        with m.Elif(taken):
            m.d.sync += row.eq(Mux(is_last, 0, row + 1))
            with m.If(is_last):
                m.d.sync += [started.eq(0), half.eq(~half)]
        return m


class QueryIssue(wiring.Component):
    """Begins rows at the first array in the order that the confidence check gives, and releases its halves.

    Members
    -------
    i_begin : stream of ``tag`` and ``lsb``, from the confidence check
    o_query : stream of :func:`hw.qk.rtl.query_layout`
    ring : to the query ring's ``row``, ``is_new``, ``read``, ``present``, ``query``
    n, n_lines, dim : of the layer
    release : of each half, a pulse: its head is finished
    has_lsb : of each half: the LSB plane of its head has been asked for
    freed : of each half, a pulse: its lines no longer count
    """

    def __init__(self, config: AttentionConfig, ring: QueryRing) -> None:
        self.config, self.first_row = config, ring.first_row
        begin = data.StructLayout({"tag": config.tag_bits, "lsb": 1})
        super().__init__(
            {
                "i_begin": In(stream.Signature(begin)),
                "o_query": Out(stream.Signature(query_layout(config.qk))),
                "row": Out(len(ring.row)),
                "is_new": Out(1),
                "read": Out(1),
                "present": In(1),
                "query": In(len(ring.query)),
                "n": In(config.count_bits),
                "n_lines": In(config.qk.buffer.count_bits),
                "dim": In(2),
                "release": In(2),
                "has_lsb": In(2),
                "freed": Out(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        to_release, free = Signal(2), Signal()
        begin = self.i_begin.payload
        tag = data.View(tag_layout(self.config), begin.tag)

        # Number of the head's first row in the ring.
        base, next_base = (Signal(len(self.row), init=self.first_row, name=n) for n in ("base", "next_base"))
        here, starts_head = Signal.like(base), Signal()
        m.d.comb += [
            self.is_new.eq(~begin.lsb),
            starts_head.eq(self.is_new & (tag.row == 0)),
            here.eq(Mux(starts_head, next_base, base)),
            self.row.eq(here + tag.row),
        ]

        half, is_lsb, is_release = Signal(), Signal(), Signal()
        query = self.o_query.payload
        m.d.comb += [
            free.eq(~self.o_query.valid | self.o_query.ready),
            self.read.eq(free & ~to_release.any() & self.i_begin.valid & self.present),
            self.i_begin.ready.eq(self.read),
            Value.cast(query.data).eq(self.query),
            query.head_dim.eq(self.dim),
            query.half.eq(half),
            query.base_line.eq(Mux(is_lsb, self.n_lines, 0)),
            query.n_keys.eq(Mux(is_release, 0, self.n)),
            query.release.eq(Mux(is_release, self.n_lines << self.has_lsb.bit_select(half, 1), 0)),
            query.last.eq(~is_release),
        ]
        m.d.sync += to_release.eq(to_release | self.release)
        with m.If(free):
            m.d.sync += [
                self.o_query.valid.eq(to_release.any() | self.read),
                is_release.eq(to_release.any()),
                half.eq(Mux(to_release.any(), to_release[1], tag.half)),
                is_lsb.eq(begin.lsb),
            ]
            with m.If(to_release[1]):
                m.d.sync += to_release[1].eq(0)
            with m.Elif(to_release[0]):
                m.d.sync += to_release[0].eq(0)
        with m.If(self.read & starts_head):
            m.d.sync += [base.eq(next_base), next_base.eq(next_base + self.n)]
        with m.If(self.o_query.valid & self.o_query.ready & is_release):
            m.d.comb += self.freed.bit_select(half, 1).eq(1)
        return m


class Reports(wiring.Component):
    """Tells the value selection, the second array and the output which row comes next.

    Members
    -------
    i_report : stream of :func:`hw.confidence.rtl.report_layout`
    o_selected : stream of rows for the value selection
    o_weighted : stream of rows for the second array; a head's last one releases its half
    o_finished : stream of ``head``, ``row``, ``used_lsb``
    n, n_lines, dim, n_values, out_shift : of the layer
    numbers : of each half, the number of its head
    reported : of each half, a pulse: the last row of its head is finished
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        finished = data.StructLayout({"head": HEAD_BITS, "row": config.id_bits, "used_lsb": 1})
        super().__init__(
            {
                "i_report": In(stream.Signature(report_layout(config.confidence))),
                "o_selected": Out(stream.Signature(selected_row_layout(config.values))),
                "o_weighted": Out(stream.Signature(weighted_row_layout(config.pv))),
                "o_finished": Out(stream.Signature(finished)),
                "n": In(config.count_bits),
                "n_lines": In(config.qk.buffer.count_bits),
                "dim": In(2),
                "n_values": In(config.count_bits),
                "out_shift": In(OUT_SHIFT_BITS),
                "numbers": In(HEAD_BITS).array(2),
                "reported": Out(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        report = self.i_report.payload
        tag = data.View(tag_layout(self.config), report.tag)
        n_before = Signal(self.config.id_bits)
        """Rows of the head reported before."""
        is_last, taken = Signal(), Signal()
        m.d.comb += [
            is_last.eq(n_before == self.n - 1),
            taken.eq(self.i_report.valid & self.i_report.ready),
        ]
        with m.If(taken):
            m.d.sync += n_before.eq(Mux(is_last, 0, n_before + 1))
            with m.If(is_last):
                m.d.comb += self.reported.bit_select(tag.half, 1).eq(1)

        fifos = []
        for name, out in (
            ("selected", self.o_selected),
            ("weighted", self.o_weighted),
            ("finished", self.o_finished),
        ):
            fifo = Fifo(FifoConfig(width_bits=out.payload.shape().size, depth=ROW_QUEUE))
            m.submodules[name] = fifo
            connect(m, fifo.o, out)
            fifos.append(fifo)
        fork(m, self.i_report, *(fifo.i for fifo in fifos), name="report")
        selected = data.View(self.o_selected.payload.shape(), fifos[0].i.payload)
        weighted = data.View(self.o_weighted.payload.shape(), fifos[1].i.payload)
        finished = data.View(self.o_finished.payload.shape(), fifos[2].i.payload)
        m.d.comb += [
            selected.n.eq(self.n),
            selected.k.eq(self.n_values),
            weighted.head_dim.eq(self.dim),
            weighted.half.eq(tag.half),
            weighted.shift.eq(self.out_shift),
            weighted.release.eq(Mux(is_last, self.n_lines, 0)),
            weighted.last.eq(1),
            finished.head.eq(Mux(tag.half, self.numbers[1], self.numbers[0])),
            finished.row.eq(tag.row),
            finished.used_lsb.eq(report.used_lsb),
        ]
        return m
