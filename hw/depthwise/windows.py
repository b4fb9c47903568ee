# SPDX-License-Identifier: MIT
"""From pixels to the windows of outputs."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import MAP_BITS, MAX_KERNEL, N_PAST, DepthwiseConfig
from .scan import Scan, loaded_layout, step_layout

NARROW_BITS = 8


def pixel_layout(config: DepthwiseConfig) -> data.ArrayLayout:
    """Payload of ``i``: a pixel of a tile; elements of 8 bits lie side by side in the lower half."""
    return data.ArrayLayout(signed(MAP_BITS), config.lanes)


def column_layout(config: DepthwiseConfig) -> data.ArrayLayout:
    """Pixels of a column of the window, that of the latest row first."""
    return data.ArrayLayout(pixel_layout(config), MAX_KERNEL)


def window_layout(config: DepthwiseConfig) -> data.StructLayout:
    """Columns of a window, the latest first; half of its pass's weights; ``last`` of its pass."""
    return data.StructLayout(
        {"columns": data.ArrayLayout(column_layout(config), MAX_KERNEL), "half": 1, "last": 1}
    )


class Windows(wiring.Component):
    """The window of each output of one pass after another.

    A step takes a pixel, meets those above it in the line memory, and shifts the column into the window. It
    does so while the window before is still being multiplied, of which somebody took a copy.

    A window shows two cycles after its last step. ``i.ready`` follows ``o.ready`` in the same cycle.

    Members
    -------
    i_pass : stream of :func:`hw.depthwise.scan.loaded_layout`
    i : stream of :func:`pixel_layout`, row by row
    o : stream of :func:`window_layout`
    """

    def __init__(self, config: DepthwiseConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_pass": In(stream.Signature(loaded_layout(config))),
                "i": In(stream.Signature(pixel_layout(config))),
                "o": Out(stream.Signature(window_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.scan = scan = Scan(self.config)
        wiring.connect(m, wiring.flipped(self.i_pass), scan.i)
        step = Signal(step_layout(self.config), reset_less=True)
        pixel = Signal(pixel_layout(self.config), reset_less=True)
        flow, fresh, is_there = Signal(), Signal(), Signal()
        coming, window = scan.o.payload, self.o.payload
        m.d.comb += [
            flow.eq(~self.o.valid | self.o.ready),
            fresh.eq(~coming.below & ~coming.right),
            scan.o.ready.eq(flow & (self.i.valid | ~fresh)),
            self.i.ready.eq(flow & scan.o.valid & fresh),
        ]
        column = self._column(m, flow, coming.column, step, pixel, is_there)
        with m.If(flow):
            m.d.sync += [step.eq(coming), is_there.eq(scan.o.valid & scan.o.ready)]
            m.d.sync += [pixel.as_value().eq(self._widened(coming.wide))]
            m.d.sync += self.o.valid.eq(is_there & step.emits)
        with m.If(flow & is_there):
            m.d.sync += [window.half.eq(step.half), window.last.eq(step.last)]
            border = Mux(step.replicate, column, 0)
            m.d.sync += window.columns[0].as_value().eq(column)
            for at in range(1, MAX_KERNEL):
                before = window.columns[at - 1].as_value()
                m.d.sync += window.columns[at].as_value().eq(Mux(step.left, border, before))
        return m

    def _widened(self, wide: Value) -> Value:
        """The input's elements, of 16 bits each."""
        beat = self.i.payload.as_value()
        narrow = [beat.word_select(lane, NARROW_BITS).as_signed() for lane in range(self.config.lanes)]
        return Mux(wide, beat, Cat(Cat(x, x[-1].replicate(MAP_BITS - NARROW_BITS)) for x in narrow))

    def _column(
        self, m: Module, flow: Value, coming: Value, step: data.View, pixel: data.View, is_there: Value
    ) -> Signal:
        """The window's column that ``step`` brings. The line memory keeps it for the next row, and is asked
        for the column that is ``coming``."""
        cfg = self.config
        m.submodules.lines = lines = memory.Memory(
            shape=data.ArrayLayout(pixel_layout(cfg), N_PAST), depth=cfg.row_pixels, init=[]
        )
        write = lines.write_port()
        read = lines.read_port(transparent_for=(write,))  # a single column is read as it is written
        latest, above = Signal(len(pixel.as_value())), Signal(len(read.data.as_value()))
        beside, column = self.o.payload.columns[0].as_value(), Signal(len(latest) + len(above))
        stored, x = Cat(latest, above), pixel.as_value()
        border = Mux(step.replicate, x.replicate(N_PAST), 0)
        m.d.comb += [
            latest.eq(Mux(step.below, Mux(step.replicate, read.data[0].as_value(), 0), x)),
            above.eq(Mux(step.top, border, read.data.as_value())),
            column.eq(Mux(step.right, Mux(step.replicate, beside, 0), stored)),
            read.addr.eq(coming),
            read.en.eq(flow),
            write.addr.eq(step.column),
            write.data.as_value().eq(stored),
            write.en.eq(flow & is_there & ~step.right),
        ]
        return column
