# SPDX-License-Identifier: MIT
"""The list of the tokens, or heads, that are still there."""

from amaranth import Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.rtl import packed_layout


def read_layout(n_max: int, lanes: int) -> data.StructLayout:
    """Payload of a read of a list: ``n`` numbers (at least 1) from ``line`` on.

    ``counts``: from a list 0, 1, 2 .. in its place.
    """
    return data.StructLayout({"line": range(n_max // lanes), "n": n_max.bit_length(), "counts": 1})


class KeptList(wiring.Component):
    """Numbers in ascending order, P to a line.

    A list is either filled with 0..n-1 or replaced by what comes on ``i``. It may be replaced while it is
    being read, by numbers chosen from it: a line is written only after as many lines were read.

    One line a cycle each way; read command to first line: 2 cycles.

    Members
    -------
    i_fill : stream of n, 1..n_max
    i : stream of :func:`hw.stream.rtl.packed_layout`; the new list, dense, of at least one number
    i_read : stream of :func:`read_layout`; n is counted then: what is read may be replaced behind it
    look, looks, looked : a line's number, whether it is read, and from the next cycle on its numbers
    o : stream of :func:`hw.stream.rtl.packed_layout`; dense, zeros at and above ``count``
    n : numbers in the list
    """

    def __init__(self, *, n_max: int, id_bits: int, lanes: int) -> None:
        self.n_max, self.id_bits, self.lanes = n_max, id_bits, lanes
        self.max_lines = n_max // lanes
        beats = stream.Signature(packed_layout(id_bits, lanes))
        super().__init__(
            {
                "i_fill": In(stream.Signature(unsigned(n_max.bit_length()))),
                "i": In(beats),
                "i_read": In(stream.Signature(read_layout(n_max, lanes))),
                "o": Out(beats),
                "look": In(range(self.max_lines)),
                "looks": In(1),
                "looked": Out(data.ArrayLayout(unsigned(id_bits), lanes)),
                "n": Out(n_max.bit_length()),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.lines = lines = memory.Memory(
            shape=unsigned(self.lanes * self.id_bits), depth=self.max_lines, init=[]
        )
        self._write(m, lines.write_port())
        self._read(m, lines.read_port())
        look = lines.read_port()
        m.d.comb += [look.addr.eq(self.look), look.en.eq(self.looks), Value.cast(self.looked).eq(look.data)]
        return m

    def _write(self, m: Module, port) -> None:
        filling = Signal()
        n_written = Signal.like(self.n)
        line = Signal(range(self.max_lines))
        take = self.i.valid & self.i.ready
        m.d.comb += [
            self.i_fill.ready.eq(~filling),
            self.i.ready.eq(~filling),
            port.addr.eq(line),
            port.en.eq(filling | take),
        ]
        for lane in range(self.lanes):
            m.d.comb += port.data.word_select(lane, self.id_bits).eq(
                Mux(filling, line * self.lanes + lane, self.i.payload.data[lane])
            )
        with m.If(filling):
            m.d.sync += line.eq(line + 1)
            with m.If((line + 1) * self.lanes >= self.n):
                m.d.sync += [filling.eq(0), line.eq(0)]
        with m.Elif(self.i_fill.valid):
            m.d.sync += [filling.eq(1), self.n.eq(self.i_fill.payload)]
        with m.Elif(take):
            m.d.sync += [line.eq(line + 1), n_written.eq(n_written + self.i.payload.count)]
            with m.If(self.i.payload.last):
                m.d.sync += [self.n.eq(n_written + self.i.payload.count), n_written.eq(0), line.eq(0)]

    def _read(self, m: Module, port) -> None:
        active, counts = Signal(), Signal()
        line = Signal(range(self.max_lines))
        left = Signal.like(self.n)
        """Numbers still to be read."""
        ends, flow, step = Signal(), Signal(), Signal()
        m.d.comb += [
            ends.eq(left <= self.lanes),
            flow.eq(~self.o.valid | self.o.ready),
            step.eq(active & flow),
            self.i_read.ready.eq(~active | (step & ends)),
            port.addr.eq(line),
            port.en.eq(step),
        ]
        with m.If(step):
            m.d.sync += [line.eq(line + 1), left.eq(left - self.lanes)]
        with m.If(self.i_read.ready):
            request = self.i_read.payload
            m.d.sync += [
                active.eq(self.i_read.valid),
                counts.eq(request.counts),
                line.eq(request.line),
                left.eq(request.n),
            ]
        count = Signal(range(self.lanes + 1))
        counted, counted_line = Signal(), Signal.like(line)
        with m.If(flow):
            m.d.sync += [
                self.o.valid.eq(active),
                self.o.payload.last.eq(ends),
                count.eq(Mux(left < self.lanes, left, self.lanes)),
                counted.eq(counts),
                counted_line.eq(line),
            ]
        m.d.comb += self.o.payload.count.eq(count)
        for lane in range(self.lanes):
            number = Mux(counted, counted_line * self.lanes + lane, port.data.word_select(lane, self.id_bits))
            m.d.comb += self.o.payload.data[lane].eq(Mux(lane < count, number, 0))
