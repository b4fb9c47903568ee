# SPDX-License-Identifier: MIT
"""Read master of words: requests that follow one another become bursts."""

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.system.axi import ADDRESS_BITS, read_signature

from .config import BURST_WORDS, MAX_WORDS_UNDER_WAY, ConvolutionSystemConfig


class WordReader(wiring.Component):
    """Reads the words that one port of the core asks for, in order.

    A request joins the burst being gathered where it is for the next word and does not begin another
    BURST_WORDS of memory, so no burst crosses 4,096 bytes. A burst that no request joins in a cycle is
    offered. Where ``run`` falls, a burst offered stays offered, one being gathered is forgotten, and answers
    still under way are taken and dropped: the bus sees no broken transfer, and ``idle`` tells when the last
    one is over.

    Throughput: a word a cycle, asked for and answered. A word that goes alone is offered two cycles after it
    was asked for; an answer passes in its cycle.

    Members
    -------
    i, o : numbers of words asked for, and the words
    base, n_words : byte address of word 0 (a multiple of 4,096), and how many words there are
    run, idle : see above
    failed : an answer of this cycle says SLVERR or DECERR
    beyond : the request that waits is for no word that there is; it stays
    moved : a word comes in this cycle
    axi : AXI4 read master
    """

    def __init__(self, config: ConvolutionSystemConfig) -> None:
        self.config = config
        address_bits = config.core.bus_address_bits
        super().__init__(
            {
                "i": In(stream.Signature(address_bits)),
                "o": Out(stream.Signature(8 * config.bus_bytes)),
                "base": In(ADDRESS_BITS),
                "n_words": In(address_bits + 1),
                "run": In(1),
                "idle": Out(1),
                "failed": Out(1),
                "beyond": Out(1),
                "moved": Out(1),
                "axi": Out(read_signature(8 * config.bus_bytes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        axi, i, word = self.axi, self.i, self.i.payload
        first, count = Signal.like(word, reset_less=True), Signal(range(BURST_WORDS + 1))
        """The burst being gathered: none where ``count`` is 0."""
        wanted, joins, free, offers, takes = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.beyond.eq(self.run & i.valid & (word >= self.n_words)),
            wanted.eq(self.run & i.valid & ~self.beyond),
            joins.eq(wanted & (count != 0) & (word == first + count) & (word % BURST_WORDS != 0)),
            free.eq(~axi.arvalid | axi.arready),
            offers.eq(self.run & (count != 0) & ~joins & free),
            takes.eq(wanted & (joins | (count == 0) | offers)),
            i.ready.eq(takes),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(offers):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(self.base + first * self.config.bus_bytes),
                axi.arlen.eq(count - 1),
                count.eq(0),
            ]
        with m.If(joins):
            m.d.sync += count.eq(count + 1)
        with m.Elif(takes):
            m.d.sync += [first.eq(word), count.eq(1)]
        with m.If(~self.run):
            m.d.sync += count.eq(0)

        under_way = Signal(range(MAX_WORDS_UNDER_WAY + 1))
        """Words of bursts offered that have not come."""
        m.d.sync += under_way.eq(under_way + Mux(offers, count, 0) - self.moved)
        m.d.comb += [
            axi.rready.eq((under_way != 0) & (self.o.ready | ~self.run)),
            self.moved.eq(axi.rvalid & axi.rready),
            self.o.valid.eq(axi.rvalid & (under_way != 0) & self.run),
            self.o.payload.eq(axi.rdata),
            self.failed.eq(self.moved & axi.rresp[1]),
            self.idle.eq(~axi.arvalid & (under_way == 0) & (count == 0)),
        ]
        return m
