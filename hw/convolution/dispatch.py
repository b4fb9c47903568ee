# SPDX-License-Identifier: MIT
"""From records in memory to commands of the units."""

from collections.abc import Mapping
from enum import IntEnum

from amaranth import Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import RECORD_BYTES
from .reader import read_layout

KIND_BITS = 8


class Kind(IntEnum):
    """Which unit a command is for."""

    FENCE = 0
    """What follows waits until the writer has written everything."""
    INPUT = 1
    """Walk of activations, or of a map for one of the units beside the array."""
    LOAD = 2
    """Half of the array's buffer for activations."""
    WEIGHTS = 3
    """Walk of rows of weights."""
    CONV = 4
    """Descriptor of the array."""
    MAP = 5
    """Map to filter."""
    SIDE = 6
    """Walk of tables, noise or a residual."""
    EPILOGUE = 7
    """Job of the epilogue, and where its sums come from."""
    OUTPUT = 8
    """Walk of an output map."""
    PASS = 9
    """Pass of the depthwise unit."""
    TRANSPOSE = 10
    """Map to transpose."""
    KERNEL = 11
    """Job of the kernels of training."""
    LOSS = 12
    """Scores whose loss is differentiated."""


class Dispatch(wiring.Component):
    """Each record's payload to the unit of its kind; one a cycle, in order.

    A record of an unknown kind goes nowhere; ``o_done`` says so.

    Parameters: the payload of each kind, of at most 8 RECORD_BYTES - KIND_BITS bits.

    Members
    -------
    i : stream of records, ``last`` of the list: kind in the lowest byte, payload from the next one on
    o_{kind} : streams, named in lower case
    o_done : a beat when the last record has been taken: whether a kind was unknown
    """

    def __init__(self, layouts: Mapping[Kind, data.Layout]) -> None:
        self.layouts = layouts
        super().__init__(
            {
                "i": In(stream.Signature(read_layout(RECORD_BYTES))),
                "o_done": Out(stream.Signature(1)),
                **{
                    f"o_{kind.name.lower()}": Out(stream.Signature(layout))
                    for kind, layout in layouts.items()
                },
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        record, done = self.i.payload.data, self.o_done
        unknown = Signal()
        kind, goes = record[:KIND_BITS], Signal()
        m.d.comb += goes.eq(self.i.valid & self.i.ready)
        with m.If(~done.valid):
            with m.Switch(kind):
                for number, layout in self.layouts.items():
                    sink = getattr(self, f"o_{number.name.lower()}")
                    m.d.comb += Value.cast(sink.payload).eq(record[KIND_BITS : KIND_BITS + layout.size])
                    with m.Case(number):
                        m.d.comb += [sink.valid.eq(self.i.valid), self.i.ready.eq(sink.ready)]
                with m.Default():
                    m.d.comb += self.i.ready.eq(1)
                    with m.If(self.i.valid):
                        m.d.sync += unknown.eq(1)
        with m.If(done.ready):
            m.d.sync += done.valid.eq(0)
        with m.If(goes & self.i.payload.last):
            m.d.sync += [
                done.valid.eq(1),
                done.payload.eq(unknown | ~kind.matches(*self.layouts)),
                unknown.eq(0),
            ]
        return m
