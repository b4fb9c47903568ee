# SPDX-License-Identifier: MIT
"""Streamed keys and values: cut in tiles, and gathered by what a row keeps."""

from amaranth import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import select
from hw.pv.rtl import row_layout
from hw.select.rtl import pairs_layout

from .config import AttentionConfig
from .shapes import ids_layout, weighted_layout


class Tiles(wiring.Component):
    """Cuts runs of n vectors in tiles of at most one region, the regions in turn from run to run.

    Members
    -------
    dim : log2(D / 32)
    n : vectors of the run at hand, at least 1
    step : the tile at hand is taken
    region, n_tile, n_lines : of the tile: its place, its vectors, the lines that they take
    first : vectors of the run before it
    last : it ends its run
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        count = config.count_bits
        super().__init__(
            {
                "dim": In(2),
                "n": In(count),
                "step": In(1),
                "region": Out(config.qk.buffer.region_bits),
                "n_tile": Out(count),
                "n_lines": Out(config.qk.buffer.count_bits),
                "first": Out(count),
                "last": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        most, left = Signal.like(self.n), Signal.like(self.n)
        m.d.comb += [
            most.eq(select(self.dim, [cfg.tile_keys(head_dim) for head_dim in cfg.qk.head_dims])),
            left.eq(self.n - self.first),
            self.last.eq(left <= most),
            self.n_tile.eq(Mux(self.last, left, most)),
            self.n_lines.eq(lines_of(self.n_tile, self.dim, cfg)),
        ]
        with m.If(self.step):
            m.d.sync += [self.first.eq(Mux(self.last, 0, self.first + most)), self.region.eq(self.region + 1)]
        return m


def lines_of(n: Value, dim: Value, config: AttentionConfig) -> Value:
    """Lines that n vectors take."""
    sizes = [config.qk.buffer.vectors_per_line(head_dim) for head_dim in config.qk.head_dims]
    return select(dim, [(n + size - 1) >> (size.bit_length() - 1) for size in sizes])


class TileEnd(wiring.Component):
    """Counts the beats of P of a run, to tell where its tiles end: they hold a multiple of P.

    Members
    -------
    dim : log2(D / 32)
    taken, last : a beat is taken; it ends its run
    ends : the beat at hand is the last that its tile can have
    beat : its place in the tile
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.n_beats = [config.tile_keys(head_dim) // config.lanes for head_dim in config.qk.head_dims]
        super().__init__(
            {
                "dim": In(2),
                "taken": In(1),
                "last": In(1),
                "ends": Out(1),
                "beat": Out(range(max(max(self.n_beats), 2))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.comb += self.ends.eq(self.beat == select(self.dim, [n - 1 for n in self.n_beats]))
        with m.If(self.taken):
            m.d.sync += self.beat.eq(Mux(self.last | self.ends, 0, self.beat + 1))
        return m


class WeightedRows(wiring.Component):
    """Rows for the second array; those of a streamed layer tile by tile.

    Members
    -------
    i : stream of :func:`hw.attention.shapes.weighted_layout`
    o : stream of :func:`hw.pv.rtl.row_layout`
    streamed, dim : of the layer
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(weighted_layout(config))),
                "o": Out(stream.Signature(row_layout(config.pv))),
                "streamed": In(1),
                "dim": In(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.tiles = tiles = Tiles(self.config)
        out = self.o.payload
        m.d.comb += [
            tiles.dim.eq(self.dim),
            tiles.n.eq(self.i.payload.n),
            tiles.step.eq(self.streamed & self.o.valid & self.o.ready),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready & (tiles.last | ~self.streamed)),
            out.eq(self.i.payload.row),
        ]
        with m.If(self.streamed):
            m.d.comb += [out.region.eq(tiles.region), out.release.eq(tiles.n_lines), out.last.eq(tiles.last)]
        return m


class Gather(wiring.Component):
    """From places in the list of tokens to the tokens that stand there.

    Places ascend, so lines of the list are looked up one after the other, each with all places of the beat
    that lie in it: a beat takes as many cycles as the lines that it touches.

    Members
    -------
    i : stream of :func:`hw.select.rtl.pairs_layout`, of which the indices count; at least one a beat
    o : stream of :func:`hw.attention.shapes.ids_layout`
    look, looks, looked : a line of the list, whether it is read, and from the next cycle on the tokens in it
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        ids = ids_layout(config)
        super().__init__(
            {
                "i": In(stream.Signature(pairs_layout(config.values))),
                "o": Out(stream.Signature(ids)),
                "look": Out(range(config.n_max // config.lanes)),
                "looks": Out(1),
                "looked": In(ids.members["data"]),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.config.lanes
        lane_bits = (lanes - 1).bit_length()
        beat = self.i.payload
        # A line is looked up while nothing waits behind it; what was found is put in place a cycle later.
        found, pending = Signal(lanes), Signal(lanes)
        """Lanes of the beat at hand whose line has been looked up; the others."""
        hits, moving = Signal(lanes), Signal(lanes)
        line = Signal.like(self.look)
        flow, ends = Signal(), Signal()
        m.d.comb += [
            pending.eq(Cat((lane < beat.count) & ~found[lane] for lane in range(lanes))),
            flow.eq(~self.o.valid | self.o.ready),
            ends.eq(pending == hits),
            self.i.ready.eq(flow & ends),
            self.look.eq(line),
            self.looks.eq(flow),
        ]
        lines = [beat.data[lane].index[lane_bits:] for lane in range(lanes)]
        for lane in reversed(range(lanes)):
            with m.If(pending[lane]):
                m.d.comb += line.eq(lines[lane])
        m.d.comb += hits.eq(Cat(pending[lane] & (lines[lane] == line) for lane in range(lanes)))

        complete, last, count = Signal(), Signal(), Signal.like(beat.count)
        """Of the line under way: it completes its beat, which is the last, of so many."""
        with m.If(flow):
            m.d.sync += [
                moving.eq(Mux(self.i.valid, hits, 0)),
                complete.eq(self.i.valid & ends),
                last.eq(beat.last),
                count.eq(beat.count),
                found.eq(Mux(self.i.valid & ~ends, found | hits, 0)),
                self.o.valid.eq(complete),
                self.o.payload.last.eq(last),
                self.o.payload.count.eq(count),
            ]
        held = [Signal(self.config.id_bits, name=f"held{lane}", reset_less=True) for lane in range(lanes)]
        """What was found of the beat under way."""
        for lane in range(lanes):
            place = Signal(range(max(lanes, 2)), name=f"place{lane}", reset_less=True)
            word = Array(self.looked[number] for number in range(lanes))[place]
            now = Mux(moving[lane], word, held[lane])
            with m.If(flow):
                m.d.sync += [
                    place.eq(beat.data[lane].index[:lane_bits]),
                    held[lane].eq(now),
                    self.o.payload.data[lane].eq(Mux(lane < count, now, 0)),
                ]
        return m
