# SPDX-License-Identifier: MIT
"""Scores added up over the heads: the sums of a matrix-vector product."""

from amaranth import Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.qk.config import SCORE_BITS
from hw.stream.rtl import packed_layout

from .config import HEAD_BITS, AttentionConfig
from .shapes import sums_layout


class Sums(wiring.Component):
    """Adds rows of scores element by element, and sends the sums once all rows have come.

    One beat a cycle. A beat is added to the sums so far in the cycle after it was taken.

    Members
    -------
    i : stream of packed signed scores, dense rows of one length
    o : stream of :func:`hw.attention.shapes.sums_layout`
    n_rows : rows of a sum, at least 1
    ended : a pulse: the last beat of ``o`` is taken
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(packed_layout(SCORE_BITS, config.confidence.lanes))),
                "o": Out(stream.Signature(sums_layout(config))),
                "n_rows": In(HEAD_BITS + 1),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        bits, lanes = cfg.sum_bits, cfg.confidence.lanes
        m.submodules.sums = sums = memory.Memory(
            shape=unsigned(bits * lanes), depth=cfg.confidence.softmax.max_lines, init=[]
        )
        write = sums.write_port()
        read = sums.read_port(transparent_for=(write,))
        row, line = Signal(HEAD_BITS + 1), Signal(range(cfg.confidence.softmax.max_lines))
        held = Signal(data.StructLayout({"beat": self.i.payload.shape(), "first": 1, "final": 1}))
        held_valid, held_line, leaves, taken = Signal(), Signal.like(line), Signal(), Signal()
        is_final = Signal()
        m.d.comb += [
            leaves.eq(held_valid & (~held.final | ~self.o.valid | self.o.ready)),
            self.i.ready.eq(~held_valid | leaves),
            taken.eq(self.i.valid & self.i.ready),
            is_final.eq(row == self.n_rows - 1),
            read.addr.eq(line),
            read.en.eq(taken),
            write.addr.eq(held_line),
            write.en.eq(leaves),
            self.ended.eq(self.o.valid & self.o.ready & self.o.payload.last),
        ]
        with m.If(self.i.ready):
            m.d.sync += held_valid.eq(self.i.valid)
        with m.If(taken):
            m.d.sync += [
                held.beat.eq(self.i.payload),
                held.first.eq(row == 0),
                held.final.eq(is_final),
                held_line.eq(line),
                line.eq(Mux(self.i.payload.last, 0, line + 1)),
            ]
            with m.If(self.i.payload.last):
                m.d.sync += row.eq(Mux(is_final, 0, row + 1))
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(leaves & held.final):
            m.d.sync += [
                self.o.valid.eq(1),
                self.o.payload.count.eq(held.beat.count),
                self.o.payload.last.eq(held.beat.last),
            ]
        for lane in range(lanes):
            before, total = (Signal(signed(bits), name=f"{name}{lane}") for name in ("before", "total"))
            score = Value.cast(held.beat.data[lane]).as_signed()
            m.d.comb += [
                before.eq(Mux(held.first, 0, read.data.word_select(lane, bits))),
                total.eq(before + score),
                write.data.word_select(lane, bits).eq(total),
            ]
            with m.If(leaves & held.final):
                m.d.sync += self.o.payload.data[lane].eq(Mux(lane < held.beat.count, total, 0))
        return m
