# SPDX-License-Identifier: MIT
"""Descriptors, and their split into passes over the output pixels."""

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import SystolicConfig


def descriptor_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``i_descriptor``; see :class:`hw.systolic.descriptor.Descriptor` for the fields.

    Word numbers are modulo 2^word_bits. ``stride`` and ``step`` are 0 for 1 and 1 for 2.
    """
    words, size = config.word_bits, config.size_bits
    return data.StructLayout(
        {
            "half": 1,
            "release": config.count_bits,
            "address": words,
            "row_words": words,
            "pixel_words": words,
            "plane_words": words,
            "wide": 1,
            "in_height": size,
            "in_width": size,
            "origin_y": signed(size + 1),
            "origin_x": signed(size + 1),
            "stride": 1,
            "kernel_height": 3,
            "kernel_width": 3,
            "n_in": config.channel_bits,
            "n_out": config.channel_bits,
            "out_height": size,
            "out_width": size,
            "y": size,
            "x": size,
            "step": 1,
            "channel": config.channel_bits + 1,
        }
    )


def pass_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of one pass: all output pixels meet R input channels at one tap of the kernel.

    ``address``, ``y`` and ``x`` belong to the first output pixel; ``n_in`` rows and ``n_out`` columns are
    used. ``weights``: the pass starts a tile of weights; ``first`` and ``last`` of the sums it adds to;
    ``high``: sums count 256 fold; ``low``: activations are unsigned; ``ends``: the descriptor's last pass.
    """
    size = config.size_bits
    return data.StructLayout(
        {
            "descriptor": descriptor_layout(config),
            "address": config.word_bits,
            "y": signed(size + 1),
            "x": signed(size + 1),
            "n_in": range(config.rows + 1),
            "n_out": range(config.columns + 1),
            "channel": config.channel_bits + 1,
            "weights": 1,
            "first": 1,
            "last": 1,
            "high": 1,
            "low": 1,
            "ends": 1,
        }
    )


class PassGenerator(wiring.Component):
    """Loops, outermost first: output channels by C, kernel rows, kernel columns, input channels by R, planes.

    One pass a cycle, descriptors back to back; the first pass shows in the cycle after its descriptor.
    Addresses are only added to: no multiplier.

    Members
    -------
    i : stream of :func:`descriptor_layout`
    o : stream of :func:`pass_layout`
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(descriptor_layout(config))),
                "o": Out(stream.Signature(pass_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg, o = self.config, self.o.payload
        held = Signal(descriptor_layout(cfg), reset_less=True)
        plane = Signal()
        kernel_y, kernel_x = Signal(3), Signal(3)
        in_left, out_left = Signal(cfg.channel_bits), Signal(cfg.channel_bits)
        channel = Signal(cfg.channel_bits + 1)
        of_row, of_tap, address = (Signal(cfg.word_bits, name=n) for n in ("of_row", "of_tap", "address"))
        """Word of the kernel row's first tap, of the tap's first channels, of these channels."""
        last_plane, last_in, last_x, last_y, last_out = (
            Signal(name=f"last_{loop}") for loop in ("plane", "in", "x", "y", "out")
        )
        m.d.comb += [
            last_plane.eq(~held.wide | plane),
            last_in.eq(in_left <= cfg.rows),
            last_x.eq(kernel_x == held.kernel_width - 1),
            last_y.eq(kernel_y == held.kernel_height - 1),
            last_out.eq(out_left <= cfg.columns),
            Value.cast(o.descriptor).eq(held),
            o.address.eq(address + Mux(plane, held.plane_words, 0)),
            o.y.eq(held.origin_y + kernel_y),
            o.x.eq(held.origin_x + kernel_x),
            o.n_in.eq(Mux(last_in, in_left, cfg.rows)),
            o.n_out.eq(Mux(last_out, out_left, cfg.columns)),
            o.channel.eq(channel),
            o.weights.eq(~plane),
            o.first.eq(~plane & (in_left == held.n_in) & (kernel_x == 0) & (kernel_y == 0)),
            o.last.eq(last_plane & last_in & last_x & last_y),
            o.high.eq(held.wide & ~plane),
            o.low.eq(plane),
            o.ends.eq(o.last & last_out),
            self.i.ready.eq(~self.o.valid | (self.o.ready & o.ends)),
        ]
        next_tap, next_row = Signal(cfg.word_bits), Signal(cfg.word_bits)
        m.d.comb += [next_tap.eq(of_tap + held.pixel_words), next_row.eq(of_row + held.row_words)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [plane.eq(~last_plane), self.o.valid.eq(~o.ends)]
            with m.If(last_plane & ~last_in):
                m.d.sync += [in_left.eq(in_left - cfg.rows), address.eq(address + 1)]
            with m.Elif(last_plane):
                m.d.sync += in_left.eq(held.n_in)
                with m.If(~last_x):
                    m.d.sync += [kernel_x.eq(kernel_x + 1), of_tap.eq(next_tap), address.eq(next_tap)]
                with m.Else():
                    m.d.sync += [
                        kernel_x.eq(0),
                        kernel_y.eq(Mux(last_y, 0, kernel_y + 1)),
                        [word.eq(Mux(last_y, held.address, next_row)) for word in (of_row, of_tap, address)],
                    ]
                    with m.If(last_y):
                        m.d.sync += [out_left.eq(out_left - cfg.columns), channel.eq(channel + cfg.columns)]
        taken = self.i.payload
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                held.eq(taken),
                self.o.valid.eq(1),
                plane.eq(0),
                kernel_y.eq(0),
                kernel_x.eq(0),
                in_left.eq(taken.n_in),
                out_left.eq(taken.n_out),
                channel.eq(taken.channel),
                [word.eq(taken.address) for word in (of_row, of_tap, address)],
            ]
        return m
