# SPDX-License-Identifier: MIT
"""Amaranth implementation of the filter."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .axis import Axis
from .config import AXIS_GAIN_BITS, SHIFT, FirConfig
from .scan import Scan, map_layout, step_layout


def in_layout(config: FirConfig) -> data.ArrayLayout:
    """Payload of ``i``: a beat of a pixel's channels."""
    return data.ArrayLayout(signed(config.element_bits), config.lanes)


def out_layout(config: FirConfig) -> data.StructLayout:
    """Payload of ``o``: a beat of a pixel's channels, 0 in lanes without one; ``last`` of its map."""
    return data.StructLayout({"data": data.ArrayLayout(signed(config.out_bits), config.lanes), "last": 1})


class Fir(wiring.Component):
    """[1, 3, 3, 1] along both axes of NHWC maps, gain 4, zeros beyond the borders.

    A map either is blurred (H x W to (H - 1) x (W - 1), as after a transposed convolution of stride 2) or
    upsampled (to 2H x 2W). Pixels come and leave in raster order, ceil(channels / lanes) beats each.

    One step a cycle (:class:`hw.fir.scan.Scan`), each of which takes at most one beat and gives at most one:
    to upsample always one. Columns first, rows of elements in the large memory; then rows. With n-bit
    elements a sum along one axis has n + 3 bits (:class:`hw.fir.axis.Axis`), along both n + 6: at most
    64 x 2^(n-1) in absolute value. It is rounded once, half up, by a shift of 4, to n + 2 bits, since
    (64 (2^(n-1) - 1) + 8) >> 4 = 4 (2^(n-1) - 1); then saturates to ``out_bits``.

    Latency LATENCY_CYCLES. ``i.ready`` follows ``o.ready`` in the same cycle.

    Members
    -------
    i_map : stream of :func:`hw.fir.scan.map_layout`; taken with the last step of the map before
    i : stream of :func:`in_layout`; lanes without a channel may hold anything
    o : stream of :func:`out_layout`
    """

    def __init__(self, config: FirConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_map": In(stream.Signature(map_layout(config))),
                "i": In(stream.Signature(in_layout(config))),
                "o": Out(stream.Signature(out_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.scan = scan = Scan(cfg)
        m.submodules.vertical = vertical = Axis(bits=cfg.element_bits, lanes=cfg.lanes, n_lines=cfg.row_beats)
        m.submodules.horizontal = horizontal = Axis(
            bits=cfg.element_bits + AXIS_GAIN_BITS, lanes=cfg.lanes, n_lines=cfg.max_pixel_beats
        )
        wiring.connect(m, wiring.flipped(self.i_map), scan.i)

        flow, takes, steps = Signal(), Signal(), Signal()
        m.d.comb += [
            flow.eq(~self.o.valid | self.o.ready),
            takes.eq(scan.o.payload.vertical.fresh),
            steps.eq(scan.o.valid & (self.i.valid | ~takes)),
            scan.o.ready.eq(flow & (self.i.valid | ~takes)),
            self.i.ready.eq(flow & scan.o.valid & takes),
            vertical.enable.eq(flow),
            vertical.address.eq(scan.o.payload.position),
        ]
        step, x, valid = self._after(m, flow, scan.o.payload, self.i.payload, steps, "vertical")
        m.d.comb += [
            vertical.valid.eq(valid),
            vertical.operation.eq(step.vertical),
            vertical.x.eq(x),
            horizontal.enable.eq(flow),
            horizontal.address.eq(step.beat),
        ]
        step, x, valid = self._after(m, flow, step, vertical.sum, valid, "horizontal")
        m.d.comb += [
            horizontal.valid.eq(valid),
            horizontal.operation.eq(step.horizontal),
            horizontal.x.eq(x),
        ]
        with m.If(flow):
            m.d.sync += [self.o.valid.eq(valid & step.emits), self.o.payload.last.eq(step.last)]
            for lane in range(cfg.lanes):
                rounded = self._rounded(m, horizontal.sum[lane], lane)
                m.d.sync += self.o.payload.data[lane].eq(Mux(lane < step.n_left, rounded, 0))
        return m

    def _after(self, m: Module, flow: Signal, step, x, valid: Signal, name: str):
        """The registers in front of an axis: step, elements and whether they are there."""
        held_step = Signal(step_layout(self.config), name=f"{name}_step", reset_less=True)
        held_x = Signal(x.shape(), name=f"{name}_x", reset_less=True)
        held_valid = Signal(name=f"{name}_valid")
        with m.If(flow):
            m.d.sync += [held_step.eq(step), held_x.eq(x), held_valid.eq(valid)]
        return held_step, held_x, held_valid

    def _rounded(self, m: Module, total, lane: int):
        """A sum along both axes by 2^-4, half up, saturated."""
        bits = self.config.element_bits + 2 * AXIS_GAIN_BITS
        rounded = Signal(signed(bits - SHIFT), name=f"rounded{lane}")
        m.d.comb += rounded.eq((total + (1 << (SHIFT - 1))) >> SHIFT)
        high = 1 << (self.config.out_bits - 1)
        if len(rounded) <= self.config.out_bits:
            return rounded
        return Mux(rounded < -high, -high, Mux(rounded >= high, high - 1, rounded))
