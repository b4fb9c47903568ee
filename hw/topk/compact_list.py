# SPDX-License-Identifier: MIT
"""Queue of the marked elements of lines; both selection engines keep their lists in it."""

from amaranth import Module, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig, PackerConfig
from hw.stream.rtl import Fifo, Packer
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.rtl import ZeroEliminator

from .config import CompactListConfig


class CompactList(wiring.Component):
    """Zero eliminator, packer and FIFO. The FIFO holds a whole request, so it is never full.

    Members
    -------
    i : as of :class:`hw.zero_eliminator.rtl.ZeroEliminator`; ``last`` ends a list
    o : stream of lines of packed elements, the last line of a list filled up with zeros
    """

    def __init__(self, config: CompactListConfig) -> None:
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
