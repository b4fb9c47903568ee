# SPDX-License-Identifier: MIT
"""Amaranth implementation of the depthwise unit."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import select

from .config import MAP_BITS, SUM_BITS, WEIGHT_BITS, DepthwiseConfig
from .scan import pass_layout
from .weights import Weights, weight_layout
from .windows import Windows, column_layout, pixel_layout, window_layout


def out_layout(config: DepthwiseConfig) -> data.StructLayout:
    """Payload of ``o``: sums of a pixel; ``last`` of its pass."""
    return data.StructLayout({"data": data.ArrayLayout(signed(SUM_BITS), config.lanes), "last": 1})


class Depthwise(wiring.Component):
    """Correlations of each lane's channel with a kernel of its own, of up to 7 x 7.

    While the window of an output is multiplied, n_multipliers taps a cycle, pixels towards the next one are
    taken. So an output takes ceil(taps / n_multipliers) cycles or, if these are more, a cycle for each step
    (:class:`hw.depthwise.scan.Scan`) since the output before. Sums are exact.

    LATENCY_CYCLES and ceil(taps / n_multipliers) from the last pixel of a window to its sums.

    Members
    -------
    i_pass : stream of :func:`hw.depthwise.scan.pass_layout`, taken while the one before still runs
    i_weight : stream of :func:`hw.depthwise.weights.weight_layout`, by kernel row, then column
    i : stream of :func:`hw.depthwise.windows.pixel_layout`, row by row; any lane may be noise of its own
    o : stream of :func:`out_layout`, row by row
    """

    def __init__(self, config: DepthwiseConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_pass": In(stream.Signature(pass_layout(config))),
                "i_weight": In(stream.Signature(weight_layout(config))),
                "i": In(stream.Signature(pixel_layout(config))),
                "o": Out(stream.Signature(out_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.weights = weights = Weights(self.config)
        m.submodules.windows = windows = Windows(self.config)
        wiring.connect(m, wiring.flipped(self.i_pass), weights.i)
        wiring.connect(m, wiring.flipped(self.i_weight), weights.i_weight)
        wiring.connect(m, weights.o, windows.i_pass)
        wiring.connect(m, wiring.flipped(self.i), windows.i)

        window = Signal(window_layout(self.config), reset_less=True)
        busy, flow, ends, takes = Signal(), Signal(), Signal(), Signal()
        summed = Signal()
        """A sum is complete. It moves to the output, so that the next one is made while it waits there."""
        word = Signal.like(weights.word)
        """Which the multipliers are at."""
        m.d.comb += [
            flow.eq(~summed | ~self.o.valid | self.o.ready),
            ends.eq(word == weights.last_word[window.half]),
            windows.o.ready.eq(~busy | (flow & ends)),
            takes.eq(windows.o.valid & windows.o.ready),
            weights.half.eq(Mux(takes, windows.o.payload.half, window.half)),
            weights.word.eq(Mux(takes, 0, Mux(flow, word + 1, word))),
            weights.frees.eq(busy & flow & ends & window.last),
            weights.freed_half.eq(window.half),
        ]
        m.d.sync += word.eq(weights.word)
        with m.If(flow & ends):
            m.d.sync += busy.eq(0)
        with m.If(takes):
            m.d.sync += [busy.eq(1), window.eq(windows.o.payload)]
        flags = {"valid": busy, "first": word == 0, "ends": ends, "last": window.last}
        self._sum(m, flow, summed, window, weights, flags)
        return m

    def _sum(
        self, m: Module, flow: Signal, summed: Signal, window: data.View, weights: Weights, flags: dict
    ) -> None:
        """Operands, products, their sum, the sum of the groups, and the output: a cycle each."""
        last, moves = Signal(), Signal()
        m.d.comb += moves.eq(~self.o.valid | self.o.ready)
        pixels = [self._chosen(m, window, tap, f"of_{n}") for n, tap in enumerate(weights.taps)]
        stages = []
        for name in ("operands", "products", "group"):
            held = {flag: Signal(name=f"{name}_{flag}") for flag in flags}
            with m.If(flow):
                m.d.sync += [held[flag].eq(value) for flag, value in flags.items()]
            stages.append(held)
            flags = held
        for lane in range(self.config.lanes):
            products = []
            for n, (pixel, tap) in enumerate(zip(pixels, weights.taps, strict=True)):
                x = Signal(signed(MAP_BITS), name=f"x{lane}_{n}", reset_less=True)
                w = Signal(signed(WEIGHT_BITS), name=f"w{lane}_{n}", reset_less=True)
                xw = Signal(signed(MAP_BITS + WEIGHT_BITS), name=f"xw{lane}_{n}", reset_less=True)
                with m.If(flow):
                    m.d.sync += [
                        x.eq(pixel[lane]),
                        w.eq(tap.weights[lane]),
                        xw.eq(x * w),
                    ]
                products.append(xw)
            group = Signal(signed(SUM_BITS), name=f"group{lane}", reset_less=True)
            total = Signal(signed(SUM_BITS), name=f"total{lane}", reset_less=True)
            with m.If(flow):
                m.d.sync += [
                    group.eq(sum(products[1:], products[0])),
                    total.eq(Mux(flags["first"], 0, total) + group),
                ]
            with m.If(moves):
                m.d.sync += self.o.payload.data[lane].eq(total)
        with m.If(flow):
            m.d.sync += [summed.eq(flags["valid"] & flags["ends"]), last.eq(flags["last"])]
        with m.If(moves):
            m.d.sync += [self.o.valid.eq(summed), self.o.payload.last.eq(last)]

    def _chosen(self, m: Module, window: data.View, tap: data.View, name: str) -> data.View:
        """The pixel at a tap's place."""
        column = Signal(column_layout(self.config), name=f"column_{name}")
        pixel = Signal(pixel_layout(self.config), name=f"pixel_{name}")
        m.d.comb += [
            column.as_value().eq(select(tap.x, [column.as_value() for column in window.columns])),
            pixel.as_value().eq(select(tap.y, [pixel.as_value() for pixel in column])),
        ]
        return pixel
