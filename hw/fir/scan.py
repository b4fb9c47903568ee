# SPDX-License-Identifier: MIT
"""From a map's size to one step after another."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .axis import operation_layout
from .config import FirConfig


def map_layout(config: FirConfig) -> data.StructLayout:
    """Payload of ``i_map``, see :class:`hw.fir.config.Map`."""
    size = config.size_bits
    return data.StructLayout({"upsample": 1, "height": size, "width": size, "channels": config.channel_bits})


def step_layout(config: FirConfig) -> data.StructLayout:
    """One step: a beat of a pixel.

    ``position``, ``beat`` : number of the beat in its input row, and in its pixel
    ``vertical``, ``horizontal`` : of :func:`hw.fir.axis.operation_layout`
    ``n_left`` : channels of the pixel from this beat on
    ``emits`` : completes an output beat; ``last`` : of the map
    """
    return data.StructLayout(
        {
            "position": range(config.row_beats),
            "beat": range(config.max_pixel_beats),
            "vertical": operation_layout(),
            "horizontal": operation_layout(),
            "n_left": config.channel_bits,
            "emits": 1,
            "last": 1,
        }
    )


class Scan(wiring.Component):
    """Steps of one map after another, row by row, pixel by pixel, beat by beat.

    To blur, over the input (H x W), a row of zeros and one pixel more. To upsample, over the output
    (2H x 2W): rows and columns 0, 1, 3, .., 2n - 3 need a new element, 2n - 1 needs a zero, the even ones
    need nothing. A step takes an input beat where ``vertical.fresh`` is set.

    The next map is taken with the last step of the one before: no step is lost between them.

    Members
    -------
    i : stream of :func:`map_layout`
    o : stream of :func:`step_layout`
    """

    def __init__(self, config: FirConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(map_layout(config))),
                "o": Out(stream.Signature(step_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        of = Signal(map_layout(cfg), reset_less=True)
        row, column = Signal(cfg.size_bits + 1), Signal(cfg.size_bits + 1)
        last_row, last_column = Signal(cfg.size_bits + 1), Signal(cfg.size_bits + 1)
        step, moves, pixel_ends, row_ends = self.o.payload, Signal(), Signal(), Signal()
        new_row, new_column = Signal(), Signal()
        m.d.comb += [
            last_row.eq(Mux(of.upsample, (of.height << 1) - 1, of.height + 1)),
            last_column.eq(Mux(of.upsample, (of.width << 1) - 1, of.width - 1)),
            new_row.eq(Mux(of.upsample, (row == 0) | (row[0] & (row != last_row)), row < of.height)),
            new_column.eq((column == 0) | ~of.upsample | (column[0] & (column != last_column))),
            pixel_ends.eq(step.n_left <= cfg.lanes),
            row_ends.eq(pixel_ends & (column == last_column)),
            step.vertical.upsample.eq(of.upsample),
            step.vertical.first.eq(row == 0),
            step.vertical.odd.eq(row[0]),
            step.vertical.fresh.eq(new_row & new_column),
            step.horizontal.upsample.eq(of.upsample),
            step.horizontal.first.eq(column == 0),
            step.horizontal.odd.eq(column[0]),
            step.horizontal.fresh.eq(new_column),
            step.emits.eq(of.upsample | Mux(column == 0, row >= 3, (row >= 2) & (column >= 2))),
            step.last.eq(pixel_ends & (row == last_row) & ((column == last_column) | ~of.upsample)),
            moves.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(~self.o.valid | (moves & step.last)),
        ]
        with m.If(moves):
            m.d.sync += [step.beat.eq(step.beat + 1), step.n_left.eq(step.n_left - cfg.lanes)]
            with m.If(new_column):
                m.d.sync += step.position.eq(step.position + 1)
            with m.If(pixel_ends):
                m.d.sync += [step.beat.eq(0), step.n_left.eq(of.channels), column.eq(column + 1)]
            with m.If(row_ends):
                m.d.sync += [step.position.eq(0), column.eq(0), row.eq(row + 1)]
            with m.If(step.last):
                m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            start = self.i.payload
            m.d.sync += [
                self.o.valid.eq(1),
                of.eq(start),
                row.eq(0),
                column.eq(0),
                step.position.eq(0),
                step.beat.eq(0),
                step.n_left.eq(start.channels),
            ]
        return m
