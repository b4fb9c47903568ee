# SPDX-License-Identifier: MIT
"""Read masters: one for each DRAM channel, one for descriptors."""

from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.fetch.config import ATOM_BITS, ATOM_BYTES, CrossbarConfig
from hw.fetch.shapes import memory_request_layout, memory_response_layout
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .axi import ADDRESS_BITS, read_signature
from .config import BURST_WORDS, DESCRIPTOR_WORDS, SystemConfig


class DramReader(wiring.Component):
    """Reads the atoms that one channel of the core asks for, one burst an atom, answers in order.

    An atom is aligned to its 32 bytes, so no burst crosses 4,096. Tags wait here, not in memory. Where
    ``run`` falls, a request offered to memory stays offered, and answers still under way are taken and
    dropped: the bus sees no broken transfer, and ``idle`` tells when the last one is over.

    Throughput: a word a cycle. A request is offered in the cycle after it is taken; an atom leaves in the
    cycle after its last word.

    Members
    -------
    i, o : the core's requests and answers
    base : byte address of atom 0
    run, idle : see above
    failed : an answer of this cycle says SLVERR or DECERR
    axi : AXI4 read master
    """

    def __init__(self, crossbar: CrossbarConfig, config: SystemConfig) -> None:
        self.crossbar, self.config = crossbar, config
        super().__init__(
            {
                "i": In(stream.Signature(memory_request_layout(crossbar))),
                "o": Out(stream.Signature(memory_response_layout(crossbar))),
                "base": In(ADDRESS_BITS),
                "run": In(1),
                "idle": Out(1),
                "failed": Out(1),
                "axi": Out(read_signature(config.bus_bits)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        axi, i, o = self.axi, self.i, self.o
        n_words = ATOM_BITS // self.config.bus_bits
        m.submodules.tags = tags = Fifo(
            FifoConfig(width_bits=self.crossbar.tag_bits, depth=self.config.n_outstanding)
        )
        room = Signal()
        m.d.comb += [
            axi.arlen.eq(n_words - 1),
            room.eq((~axi.arvalid | axi.arready) & self.run),
            i.ready.eq(room & tags.i.ready),
            tags.i.valid.eq(room & i.valid),
            tags.i.payload.eq(i.payload.tag),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(i.valid & i.ready):
            m.d.sync += [axi.arvalid.eq(1), axi.araddr.eq(self.base + i.payload.address * ATOM_BYTES)]

        word = Signal(range(max(n_words, 2)))
        taken, is_last = Signal(), Signal()
        m.d.comb += [
            axi.rready.eq(tags.o.valid & (~o.valid | o.ready | ~self.run)),
            taken.eq(axi.rvalid & axi.rready),
            is_last.eq(word == n_words - 1),
            tags.o.ready.eq(taken & is_last),
            self.failed.eq(taken & axi.rresp[1]),
            self.idle.eq(~axi.arvalid & ~tags.o.valid),
        ]
        with m.If(o.ready | ~self.run):
            m.d.sync += o.valid.eq(0)
        with m.If(taken):
            m.d.sync += [
                word.eq(Mux(is_last, 0, word + 1)),
                o.payload.data.eq(Cat(o.payload.data, axi.rdata)[self.config.bus_bits :]),
                o.payload.tag.eq(tags.o.payload),
                o.valid.eq(is_last & self.run),
            ]
        return m


class DescriptorReader(wiring.Component):
    """Reads a region from its beginning to its end, ahead of who takes the words.

    Bursts of ``BURST_WORDS`` words aligned to their size, so none crosses 4,096 bytes; a burst is asked for
    when all its words have a place.

    Members
    -------
    start, base, n_words : begin, at this byte address (a multiple of 4,096), so many words
    run, idle, failed : see :class:`DramReader`
    exhausted : every word has been taken from ``o``
    o : stream of words
    axi : AXI4 read master
    """

    def __init__(self, config: SystemConfig) -> None:
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "base": In(ADDRESS_BITS),
                "n_words": In(32),
                "run": In(1),
                "idle": Out(1),
                "failed": Out(1),
                "exhausted": Out(1),
                "o": Out(stream.Signature(config.bus_bits)),
                "axi": Out(read_signature(config.bus_bits)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        axi, width = self.axi, self.config.bus_bits
        m.submodules.queue = words = ResetInserter(~self.run)(
            Fifo(FifoConfig(width_bits=width, depth=DESCRIPTOR_WORDS))
        )
        left = Signal(32)
        """Words not yet asked for."""
        under_way, held = Signal(range(DESCRIPTOR_WORDS + 1)), Signal(range(DESCRIPTOR_WORDS + 1))
        """Words asked for and not yet here; words that have a place, here or not."""
        address = Signal(ADDRESS_BITS)
        burst = Signal(range(BURST_WORDS + 1))
        ask, come, go = Signal(), Signal(), Signal()
        m.d.comb += [
            burst.eq(Mux(left > BURST_WORDS, BURST_WORDS, left)),
            ask.eq(self.run & (left != 0) & ~axi.arvalid & (held <= DESCRIPTOR_WORDS - BURST_WORDS)),
            axi.rready.eq(under_way != 0),
            come.eq(axi.rvalid & axi.rready),
            go.eq(words.o.valid & words.o.ready),
            words.i.valid.eq(come & self.run),
            words.i.payload.eq(axi.rdata),
            self.o.valid.eq(words.o.valid),
            self.o.payload.eq(words.o.payload),
            words.o.ready.eq(self.o.ready),
            self.failed.eq(come & axi.rresp[1]),
            self.idle.eq(~axi.arvalid & (under_way == 0)),
            self.exhausted.eq((left == 0) & (held == 0)),
        ]
        m.d.sync += under_way.eq(under_way + Mux(ask, burst, 0) - come)
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(self.start):
            m.d.sync += [address.eq(self.base), left.eq(self.n_words), held.eq(0)]
        with m.Else():
            m.d.sync += held.eq(held + Mux(ask, burst, 0) - go)
        with m.If(ask):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(address),
                axi.arlen.eq(burst - 1),
                address.eq(address + BURST_WORDS * self.config.bus_bytes),
                left.eq(left - burst),
            ]
        return m
