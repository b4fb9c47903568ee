# SPDX-License-Identifier: MIT
"""Write master of words."""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.convolution.writer import write_layout
from hw.system.axi import ADDRESS_BITS, write_signature

from .config import ConvolutionSystemConfig


class WordWriter(wiring.Component):
    """Writes words, those of their bytes that are to be written, each in a burst of its own, in order.

    Where ``run`` falls, a word taken is written to its end.

    Throughput: a word a cycle. A word is offered in the cycle after it is taken; an answer passes in its
    cycle.

    Members
    -------
    i, o : writes of :func:`hw.convolution.writer.write_layout`, and a beat for each that is answered
    base, n_words, run, idle, failed, beyond : see :class:`hw.system.convolution.reader.WordReader`
    moved : a word is taken in this cycle
    axi : AXI4 write master
    """

    def __init__(self, config: ConvolutionSystemConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(write_layout(config.bus_bytes))),
                "o": Out(stream.Signature(1)),
                "base": In(ADDRESS_BITS),
                "n_words": In(config.core.bus_address_bits + 1),
                "run": In(1),
                "idle": Out(1),
                "failed": Out(1),
                "beyond": Out(1),
                "moved": Out(1),
                "axi": Out(write_signature(8 * config.bus_bytes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        axi, write = self.axi, self.i.payload
        most = self.config.core.max_writes + 1
        pending, free, answered = Signal(range(most + 1)), Signal(), Signal()
        """Words whose answer has not come; the core leaves off before there are too many."""
        m.d.comb += [
            self.beyond.eq(self.run & self.i.valid & (write.address >= self.n_words)),
            free.eq((~axi.awvalid | axi.awready) & (~axi.wvalid | axi.wready) & (pending != most)),
            self.i.ready.eq(self.run & free & (write.address < self.n_words)),
            self.moved.eq(self.i.valid & self.i.ready),
            axi.wlast.eq(1),
            axi.bready.eq(self.o.ready | ~self.run),
            answered.eq(axi.bvalid & axi.bready),
            self.o.valid.eq(axi.bvalid & self.run),
            self.failed.eq(answered & axi.bresp[1]),
            self.idle.eq(~axi.awvalid & ~axi.wvalid & (pending == 0)),
        ]
        m.d.sync += pending.eq(pending + self.moved - answered)
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(self.moved):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(self.base + write.address * self.config.bus_bytes),
                axi.wvalid.eq(1),
                axi.wdata.eq(write.data),
                axi.wstrb.eq(write.strobe),
            ]
        return m
