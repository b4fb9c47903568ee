# SPDX-License-Identifier: MIT
"""From a pass to one column of a window after another."""

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import MAX_KERNEL, DepthwiseConfig


def pass_layout(config: DepthwiseConfig) -> data.StructLayout:
    """Payload of ``i_pass``, see :attr:`hw.depthwise.config.Pass.fields`."""
    size = config.size_bits
    tap = range(MAX_KERNEL)
    return data.StructLayout(
        {
            "last_tap_y": tap,
            "last_tap_x": tap,
            "lead_y": tap,
            "lead_x": tap,
            "by_two": 1,
            "height": size,
            "width": size,
            "last_row": size,
            "last_column": size,
            "wide": 1,
            "replicate": 1,
        }
    )


def loaded_layout(config: DepthwiseConfig) -> data.StructLayout:
    """A pass whose weights lie in ``half`` of their memory."""
    return data.StructLayout({"of": pass_layout(config), "half": 1})


def step_layout(config: DepthwiseConfig) -> data.StructLayout:
    """One step: a column of the window, whose lowest element is a pixel of the input or lies beside it.

    ``column`` : of the line memory
    ``top``, ``left`` : nothing came before in this column, in this row
    ``below``, ``right`` : no input pixel; beyond its last row, its last column
    ``emits`` : completes the window of an output; ``last`` : of the pass
    ``half``, ``wide``, ``replicate`` : of the pass
    """
    flags = ("top", "left", "below", "right", "emits", "last", "half", "wide", "replicate")
    return data.StructLayout({"column": range(config.row_pixels)} | dict.fromkeys(flags, 1))


class Scan(wiring.Component):
    """Steps of one pass after another, row by row.

    From the input's first pixel on, to the right only as far as outputs need it and down to the last row that
    an output needs: what lies above and left of the input takes no step. A row without an output ends with
    the input. A step takes an input beat unless it is ``below`` or ``right``.

    The next pass is taken with the last step of the one before: no step is lost between them.

    Members
    -------
    i : stream of :func:`loaded_layout`
    o : stream of :func:`step_layout`
    """

    def __init__(self, config: DepthwiseConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(loaded_layout(config))),
                "o": Out(stream.Signature(step_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        held = Signal(loaded_layout(self.config), reset_less=True)
        of, step = held.of, self.o.payload
        row, column = Signal(self.config.size_bits), Signal(self.config.size_bits)
        row_emits, row_ends, moves = Signal(), Signal(), Signal()

        def completes(at, lead):
            """Whether a row or column, counted from the input's first one, completes outputs."""
            return (at >= lead) & ~(of.by_two & (at[0] ^ lead[0]))

        m.d.comb += [
            row_emits.eq(completes(row, of.lead_y)),
            row_ends.eq(column == Mux(row_emits, of.last_column, of.width - 1)),
            step.column.eq(column),
            step.top.eq(row == 0),
            step.left.eq(column == 0),
            step.below.eq(row >= of.height),
            step.right.eq(column >= of.width),
            step.emits.eq(row_emits & completes(column, of.lead_x)),
            step.last.eq((row == of.last_row) & row_ends),
            step.half.eq(held.half),
            step.wide.eq(of.wide),
            step.replicate.eq(of.replicate),
            moves.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(~self.o.valid | (moves & step.last)),
        ]
        with m.If(moves):
            m.d.sync += column.eq(column + 1)
            with m.If(row_ends):
                m.d.sync += [column.eq(0), row.eq(row + 1)]
            with m.If(step.last):
                m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [self.o.valid.eq(1), held.eq(self.i.payload), row.eq(0), column.eq(0)]
        return m
