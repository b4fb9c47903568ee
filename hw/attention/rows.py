# SPDX-License-Identifier: MIT
"""The rows of a head: their order, their queries, and who must know that they are finished."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.confidence.rtl import check_layout, report_layout
from hw.pv.config import PROBABILITY_BITS
from hw.pv.config import SHIFT_BITS as OUT_SHIFT_BITS
from hw.qk.rtl import query_layout
from hw.select.rtl import row_layout as selected_row_layout
from hw.stream.config import FifoConfig
from hw.stream.fork import connect, fork, only_if
from hw.stream.rtl import Fifo

from .config import HALVES, HEAD_BITS, HEADS_AHEAD, ROW_QUEUE, AttentionConfig
from .query_ring import QueryRing
from .shapes import numbered_head_layout, region_of, tag_layout, value_job_layout, weighted_layout
from .tiles import Tiles


class RowSource(wiring.Component):
    """Sends the rows of one head after another to the confidence check.

    A group of heads takes the half of the buffers that the group before it did not take. It waits until all
    rows of the group that had this half are reported, so that the half's LSB plane stays true. A row with
    ``flush`` holds back the rows after it until it is settled:

    - where a head has many rows, the head's last row, so that magnitudes come head by head;
    - where it has one, the layer's last row, and the last row of each group if the window is wider than
      there are halves: row r is settled when row r + W - 1 has begun, which must not need the half of row r.

    Rows of a streamed layer need no half.

    Members
    -------
    i_head : stream of :func:`hw.attention.shapes.numbered_head_layout`
    o_row : stream of :func:`hw.confidence.rtl.check_layout`, n for each head, or one
    n, one, streamed, sums, progressive, threshold : of the layer; ``one``: each head has one row; ``sums``:
        rows are not reported
    reported : of each half, a pulse: a row of its group is finished
    ends : of each half: the next row reported is the last of its group
    """

    def __init__(self, config: AttentionConfig, ring: QueryRing) -> None:
        self.config, self.first_row = config, ring.first_row
        super().__init__(
            {
                "i_head": In(stream.Signature(numbered_head_layout(config))),
                "o_row": Out(stream.Signature(check_layout(config.confidence))),
                "n": In(config.count_bits),
                "one": In(1),
                "streamed": In(1),
                "sums": In(1),
                "progressive": In(1),
                "threshold": In(PROBABILITY_BITS),
                "reported": In(2),
                "ends": Out(2),
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
        place = Signal(cfg.ring_bits, init=self.first_row)
        is_last, ends_layer, taken = Signal(), Signal(), Signal()
        out = self.o_row.payload
        tag = data.View(tag_layout(cfg), out.tag)
        may_lock = ~self.streamed & (cfg.confidence.window > HALVES)
        m.d.comb += [
            self.o_row.valid.eq(started),
            is_last.eq(self.one | (row == self.n - 1)),
            ends_layer.eq(head.last | (head.last_of_group & may_lock)),
            taken.eq(self.o_row.valid & self.o_row.ready),
            tag.row.eq(row),
            tag.place.eq(place),
            tag.head.eq(head.number),
            tag.half.eq(half),
            out.threshold.eq(self.threshold),
            out.progressive.eq(self.progressive),
            out.flush.eq(self.progressive & is_last & (~self.one | ends_layer)),
            out.msb_multiplier.eq(head.planes.msb_multiplier),
            out.msb_shift.eq(head.planes.msb_shift),
            out.lsb_multiplier.eq(head.planes.lsb_multiplier),
            out.lsb_shift.eq(head.planes.lsb_shift),
            heads.o.ready.eq(taken & is_last),
        ]
        with m.If(~started):
            with m.If(heads.o.valid & ~(head.first_of_group & busy.bit_select(half, 1))):
                m.d.sync += started.eq(1)
        with m.Elif(taken):
            m.d.sync += [row.eq(Mux(is_last, 0, row + 1)), place.eq(place + 1)]
            with m.If(is_last):
                m.d.sync += [started.eq(0), half.eq(half ^ (head.last_of_group & ~self.streamed))]

        for which in range(len(busy)):
            n_open = Signal(cfg.count_bits + HEAD_BITS, name=f"n_open{which}")
            """Rows of the group sent and not reported."""
            complete = Signal(name=f"complete{which}")
            """The group's last row has been sent."""
            sent = taken & (half == which) & ~self.sums
            finished = self.reported[which] & self.ends[which]
            m.d.comb += self.ends[which].eq(complete & (n_open == 1))
            m.d.sync += n_open.eq(n_open + sent - self.reported[which])
            with m.If(sent & is_last & head.last_of_group):
                m.d.sync += complete.eq(1)
            with m.Elif(finished):
                m.d.sync += complete.eq(0)
            with m.If(finished):
                m.d.sync += busy[which].eq(0)
            with m.Elif(~started & heads.o.valid & (half == which) & ~self.streamed):
                m.d.sync += busy[which].eq(1)
        return m


class QueryIssue(wiring.Component):
    """Begins rows at the first array in the order that the confidence check gives, and releases its halves.

    A row of a streamed layer is as many queries as its keys are tiles; each releases its region.

    Members
    -------
    i_begin : stream of ``tag`` and ``lsb``, from the confidence check
    o_query : stream of :func:`hw.qk.rtl.query_layout`
    row, is_new, read, present, query : see :class:`hw.attention.query_ring.QueryRing`
    n, n_lines, dim, causal, streamed : of the layer
    n_keys : keys that the row of ``i_begin`` sees
    release : of each half, a pulse: its group is finished
    has_lsb : of each half: the LSB plane of its group has been asked for
    releasing : a half is still to be released, once all its lines have come
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        begin = data.StructLayout({"tag": config.tag_bits, "lsb": 1})
        super().__init__(
            {
                "i_begin": In(stream.Signature(begin)),
                "o_query": Out(stream.Signature(query_layout(config.qk))),
                "row": Out(config.ring_bits),
                "is_new": Out(1),
                "read": Out(1),
                "present": In(1),
                "query": In(config.qk.max_head_dim * config.qk.element_bits),
                "n": In(config.count_bits),
                "n_lines": In(config.qk.buffer.count_bits),
                "dim": In(2),
                "causal": In(1),
                "streamed": In(1),
                "n_keys": Out(config.count_bits),
                "release": In(2),
                "has_lsb": In(2),
                "releasing": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        to_release, free = Signal(2), Signal()
        begin = self.i_begin.payload
        tag = data.View(tag_layout(self.config), begin.tag)
        m.submodules.tiles = tiles = Tiles(self.config)
        m.d.comb += [
            self.is_new.eq(~begin.lsb),
            self.row.eq(tag.place),
            self.n_keys.eq(Mux(self.causal, tag.row + 1, self.n)),
        ]

        half, is_lsb, is_release = Signal(), Signal(), Signal()
        n_keys = Signal.like(self.n)
        query = self.o_query.payload
        m.d.comb += [
            tiles.dim.eq(self.dim),
            tiles.n.eq(n_keys),
            tiles.step.eq(self.streamed & self.o_query.valid & self.o_query.ready),
            free.eq(~self.o_query.valid | (self.o_query.ready & (tiles.last | ~self.streamed))),
            self.read.eq(free & ~to_release.any() & self.i_begin.valid & self.present),
            self.i_begin.ready.eq(self.read),
            Value.cast(query.data).eq(self.query),
            query.head_dim.eq(self.dim),
            query.region.eq(region_of(half, self.config)),
            query.base_line.eq(Mux(is_lsb, self.n_lines, 0)),
            query.n_keys.eq(Mux(is_release, 0, n_keys)),
            query.release.eq(Mux(is_release, self.n_lines << self.has_lsb.bit_select(half, 1), 0)),
            query.last.eq(~is_release),
            self.releasing.eq(to_release.any() | (self.o_query.valid & is_release)),
        ]
        with m.If(self.streamed):
            m.d.comb += [
                query.region.eq(tiles.region),
                query.base_line.eq(0),
                query.n_keys.eq(tiles.n_tile),
                query.release.eq(tiles.n_lines),
                query.last.eq(tiles.last),
            ]
        m.d.sync += to_release.eq(to_release | self.release)
        with m.If(free):
            m.d.sync += [
                self.o_query.valid.eq(to_release.any() | self.read),
                is_release.eq(to_release.any()),
                half.eq(Mux(to_release.any(), to_release[1], tag.half)),
                is_lsb.eq(begin.lsb),
                n_keys.eq(self.n_keys),
            ]
            with m.If(to_release[1]):
                m.d.sync += to_release[1].eq(0)
            with m.Elif(to_release[0]):
                m.d.sync += to_release[0].eq(0)
        return m


class Reports(wiring.Component):
    """Tells the value selection, the second array and the output which row comes next.

    Members
    -------
    i_report : stream of :func:`hw.confidence.rtl.report_layout`
    o_selected : stream of rows for the value selection
    o_weighted : stream of :func:`hw.attention.shapes.weighted_layout`, rows for the second array; a group's
        last one releases its half
    o_values : stream of :func:`hw.attention.shapes.value_job_layout`, only of a streamed layer
    o_finished : stream of ``head``, ``row``, ``used_lsb``
    n, n_lines, dim, causal, streamed, n_values, out_shift : of the layer
    ends : of each half: its next row is the last of its group
    reported : of each half, a pulse: a row is finished
    released : of each half, a pulse: the last row of its group is finished
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        finished = data.StructLayout({"head": HEAD_BITS, "row": config.id_bits, "used_lsb": 1})
        super().__init__(
            {
                "i_report": In(stream.Signature(report_layout(config.confidence))),
                "o_selected": Out(stream.Signature(selected_row_layout(config.values))),
                "o_weighted": Out(stream.Signature(weighted_layout(config))),
                "o_values": Out(stream.Signature(value_job_layout(config))),
                "o_finished": Out(stream.Signature(finished)),
                "n": In(config.count_bits),
                "n_lines": In(config.qk.buffer.count_bits),
                "dim": In(2),
                "causal": In(1),
                "streamed": In(1),
                "n_values": In(config.count_bits),
                "out_shift": In(OUT_SHIFT_BITS),
                "ends": In(2),
                "reported": Out(2),
                "released": Out(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        report = self.i_report.payload
        tag = data.View(tag_layout(self.config), report.tag)
        is_last = Signal()
        m.d.comb += [
            is_last.eq(self.ends.bit_select(tag.half, 1)),
            self.released.eq(Mux(self.streamed, 0, self.reported & self.ends)),
        ]
        with m.If(self.i_report.valid & self.i_report.ready):
            m.d.comb += self.reported.bit_select(tag.half, 1).eq(1)

        fifos = []
        outs = (self.o_selected, self.o_weighted, self.o_values, self.o_finished)
        for name, out in zip(("selected", "weighted", "values", "finished"), outs, strict=True):
            fifo = Fifo(FifoConfig(width_bits=out.payload.shape().size, depth=ROW_QUEUE))
            m.submodules[name] = fifo
            connect(m, fifo.o, out)
            fifos.append(fifo)
        sinks = [fifo.i for fifo in fifos]
        sinks[2] = only_if(m, self.streamed, sinks[2], "values")
        fork(m, self.i_report, *sinks, name="report")
        selected, weighted, values, finished = (
            data.View(out.payload.shape(), fifo.i.payload) for fifo, out in zip(fifos, outs, strict=True)
        )
        n_keys, n_kept = Signal.like(self.n), Signal.like(self.n)
        m.d.comb += [
            n_keys.eq(Mux(self.causal, tag.row + 1, self.n)),
            n_kept.eq(Mux(self.n_values < n_keys, self.n_values, n_keys)),
            selected.n.eq(n_keys),
            selected.k.eq(self.n_values),
            weighted.n.eq(n_kept),
            weighted.row.head_dim.eq(self.dim),
            weighted.row.region.eq(region_of(tag.half, self.config)),
            weighted.row.shift.eq(self.out_shift),
            weighted.row.release.eq(Mux(is_last, self.n_lines, 0)),
            weighted.row.last.eq(1),
            values.head.eq(tag.head),
            values.n.eq(n_kept),
            finished.head.eq(tag.head),
            finished.row.eq(tag.row),
            finished.used_lsb.eq(report.used_lsb),
        ]
        return m
