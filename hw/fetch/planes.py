# SPDX-License-Identifier: MIT
"""Splits values into bit planes and joins them: K = 16 K_msb + K_lsb."""

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import LSB_BITS, JoinConfig, SplitConfig
from .shapes import lsb_layout, msb_layout, value_layout


class PlaneSplit(wiring.Component):
    """Cuts each signed value of b + 4 bits (b up to 12) into its b upper bits and its 4 lower ones.

    Latency ``LATENCY_CYCLES``, one beat a cycle. A beat is taken when both outputs have room; they may be
    taken at different times.

    Members
    -------
    i : stream of ``lanes`` signed 16-bit values, ``last``
    o_msb : stream of signed 12-bit values floor(i / 16), ``last``
    o_lsb : stream of unsigned 4-bit values i mod 16, ``last``
    """

    def __init__(self, config: SplitConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(value_layout(config.lanes))),
                "o_msb": Out(stream.Signature(msb_layout(config.lanes))),
                "o_lsb": Out(stream.Signature(lsb_layout(config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        load = Signal()
        rooms = [~out.valid | out.ready for out in (self.o_msb, self.o_lsb)]
        m.d.comb += [self.i.ready.eq(rooms[0] & rooms[1]), load.eq(self.i.valid & self.i.ready)]
        for out, low, high in ((self.o_msb, LSB_BITS, None), (self.o_lsb, 0, LSB_BITS)):
            with m.If(out.ready):
                m.d.sync += out.valid.eq(0)
            with m.If(load):
                m.d.sync += [out.valid.eq(1), out.payload.last.eq(self.i.payload.last)]
                for lane in range(self.config.lanes):
                    value = self.i.payload.data[lane]
                    m.d.sync += out.payload.data[lane].eq(value[low:high])
        return m


class PlaneJoin(wiring.Component):
    """Undoes :class:`PlaneSplit`: 16 msb + lsb, which is the bits side by side.

    Latency ``LATENCY_CYCLES``, one beat a cycle. Beats are taken in pairs; ``last`` is the MSB plane's.

    Members
    -------
    i_msb, i_lsb : streams as :class:`PlaneSplit` gives them
    o : stream of ``lanes`` signed 16-bit values, ``last``
    """

    def __init__(self, config: JoinConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_msb": In(stream.Signature(msb_layout(config.lanes))),
                "i_lsb": In(stream.Signature(lsb_layout(config.lanes))),
                "o": Out(stream.Signature(value_layout(config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        load = Signal()
        room = ~self.o.valid | self.o.ready
        m.d.comb += [
            self.i_msb.ready.eq(room & self.i_lsb.valid),
            self.i_lsb.ready.eq(room & self.i_msb.valid),
            load.eq(room & self.i_msb.valid & self.i_lsb.valid),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(load):
            m.d.sync += [self.o.valid.eq(1), self.o.payload.last.eq(self.i_msb.payload.last)]
            for lane in range(self.config.lanes):
                msb, lsb = self.i_msb.payload.data[lane], self.i_lsb.payload.data[lane]
                m.d.sync += self.o.payload.data[lane].eq(Cat(lsb, msb))
        return m
