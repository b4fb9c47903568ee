# SPDX-License-Identifier: MIT
"""Addresses of elements that lie in regular distances: three nested counters."""

from dataclasses import dataclass

from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import ADDRESS_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """Elements by tile, row and column, the column fastest; strides in bytes, of columns also below 0; counts
    at least 1."""

    base: int
    n_columns: int
    column_stride: int
    n_rows: int = 1
    row_stride: int = 0
    n_tiles: int = 1
    tile_stride: int = 0
    n_bytes: int
    """Of an element."""
    last_bytes: int = 0
    """Of an element of the last tile; 0: as all others."""

    @property
    def fields(self) -> dict[str, int]:
        """As :func:`walk_layout` has them."""
        return {
            "base": self.base,
            "tile_stride": self.tile_stride,
            "row_stride": self.row_stride,
            "column_stride": self.column_stride % (1 << ADDRESS_BITS),
            "n_tiles": self.n_tiles,
            "n_rows": self.n_rows,
            "n_columns": self.n_columns,
            "n_bytes": self.n_bytes,
            "last_bytes": self.last_bytes or self.n_bytes,
        }

    @property
    def n_elements(self) -> int:
        """All of them."""
        return self.n_tiles * self.n_rows * self.n_columns


def walk_layout() -> data.StructLayout:
    """A :class:`Walk`; its sums wrap around at 2^ADDRESS_BITS."""
    strides = ("base", "tile_stride", "row_stride", "column_stride")
    counts = {"n_tiles": 16, "n_rows": 16, "n_columns": 24, "n_bytes": 8, "last_bytes": 8}
    return data.StructLayout(dict.fromkeys(strides, ADDRESS_BITS) | counts)


def job_layout(extra: data.StructLayout) -> data.StructLayout:
    """Payload of ``i``: a walk, and what belongs to all its elements."""
    return data.StructLayout({"extra": extra, "walk": walk_layout()})


def element_layout(extra: data.StructLayout) -> data.StructLayout:
    """Payload of ``o``: where an element lies, how long it is, whether its walk begins or ends with it."""
    return data.StructLayout({"address": ADDRESS_BITS, "n_bytes": 8, "first": 1, "last": 1, "extra": extra})


class Walker(wiring.Component):
    """One element a cycle, walks back to back; the first element shows in the cycle after its walk is taken.

    Members
    -------
    i : stream of :func:`job_layout`
    o : stream of :func:`element_layout`
    """

    def __init__(self, extra: data.StructLayout) -> None:
        super().__init__(
            {"i": In(stream.Signature(job_layout(extra))), "o": Out(stream.Signature(element_layout(extra)))}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        of = Signal(self.i.payload.shape(), reset_less=True)
        walk, start, o = of.walk, self.i.payload.walk, self.o.payload
        of_tile, of_row = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        """Addresses of the first elements of tile and row."""
        tile, row, column = Signal(16), Signal(16), Signal(24)
        last_tile, last_row, last_column, moves = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_tile.eq(tile == walk.n_tiles - 1),
            last_row.eq(row == walk.n_rows - 1),
            last_column.eq(column == walk.n_columns - 1),
            o.last.eq(last_tile & last_row & last_column),
            o.extra.eq(of.extra),
            moves.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(~self.o.valid | (moves & o.last)),
        ]
        with m.If(last_tile):
            m.d.comb += o.n_bytes.eq(walk.last_bytes)
        with m.Else():
            m.d.comb += o.n_bytes.eq(walk.n_bytes)
        next_row, next_tile = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        m.d.comb += [next_row.eq(of_row + walk.row_stride), next_tile.eq(of_tile + walk.tile_stride)]
        with m.If(moves):
            m.d.sync += [o.first.eq(0), self.o.valid.eq(~o.last)]
            m.d.sync += [column.eq(column + 1), o.address.eq(o.address + walk.column_stride)]
            with m.If(last_column):
                m.d.sync += [column.eq(0), row.eq(row + 1), of_row.eq(next_row), o.address.eq(next_row)]
                with m.If(last_row):
                    m.d.sync += [row.eq(0), tile.eq(tile + 1)]
                    m.d.sync += [base.eq(next_tile) for base in (of_tile, of_row, o.address)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [of.eq(self.i.payload), self.o.valid.eq(1), o.first.eq(1)]
            m.d.sync += [count.eq(0) for count in (tile, row, column)]
            m.d.sync += [base.eq(start.base) for base in (of_tile, of_row, o.address)]
        return m
