# SPDX-License-Identifier: MIT
"""Sums over all beats of a tile: of values, and of their squares or of products with the side input."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed

from .config import (
    MAX_REDUCE_SHIFT,
    OUT_BITS,
    PARTS,
    REDUCED_BITS,
    SIDE_BITS,
    SUM_BITS,
    SUM_BYTES,
    SUMS,
    VALUE_BITS,
    EpilogueConfig,
)
from .rounding import saturated, shifted


def reduce_layout(config: EpilogueConfig) -> data.StructLayout:
    """What a step says of sums: how it adds to those of ``tile``, or that it gives a ``part`` of them."""
    return data.StructLayout(
        {
            "shift": range(MAX_REDUCE_SHIFT + 1),
            "squares": 1,
            "tile": range(config.max_tiles),
            "gives": 1,
            "part": range(PARTS),
            "clears": 1,
        }
    )


class Sums(wiring.Component):
    """Adds r = sat16(rnd(v, shift)) and r r, or r side, to the sums of the step's tile, each of 48 bits.

    A step a cycle, whatever its tile: its sums are read in the cycle before they are written, past the port
    if the step before writes them. A step that gives a part of them must not follow one that adds: there is
    a cycle between. Runs freely, as :class:`hw.epilogue.datapath.Datapath`.

    Members
    -------
    adds, step, v, side : a step, its values and its side input
    o : two cycles later 16 bits a lane of a tile's sums: of each lane sum of values, sum of products, of
        8 bytes each, low byte first; a tile that nothing was added to since ``clears`` has zeros
    """

    def __init__(self, config: EpilogueConfig) -> None:
        self.config = config
        lanes = config.lanes
        super().__init__(
            {
                "adds": In(1),
                "step": In(reduce_layout(config)),
                "v": In(data.ArrayLayout(signed(VALUE_BITS), lanes)),
                "side": In(data.ArrayLayout(signed(SIDE_BITS), lanes)),
                "o": Out(data.ArrayLayout(signed(OUT_BITS), lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        steps = [self.step]
        for cycle in (1, 2):
            held = delayed(m, Value.cast(steps[-1]), 1, f"step{cycle}")
            steps.append(data.View(reduce_layout(self.config), held))
        adds = delayed(m, self.adds, 3, "adds", is_valid=True)
        read, write = self._memory(m)
        tile, touched = Signal.like(read.addr), Signal(self.config.max_tiles)
        """Tile of the sums that are read; whether each has any."""
        m.d.comb += [
            read.addr.eq(Mux(steps[1].gives, steps[1].tile, steps[2].tile)),
            write.addr.eq(tile),
            write.en.eq(adds),
        ]
        m.d.sync += tile.eq(read.addr)
        with m.If(adds):
            m.d.sync += touched.bit_select(tile, 1).eq(1)
        with m.If(steps[2].gives & steps[2].clears):
            m.d.sync += touched.eq(0)
        so_far = Signal.like(read.data)
        m.d.comb += Value.cast(so_far).eq(Mux(touched.bit_select(tile, 1), Value.cast(read.data), 0))
        for lane in range(self.config.lanes):
            for place, term in enumerate(self._terms(m, lane, steps)):
                m.d.comb += write.data[lane][place].eq(so_far[lane][place] + term)
        padding = 8 * SUM_BYTES - SUM_BITS
        words = Cat(Cat(total, total[-1].replicate(padding)) for lane in so_far for total in lane)
        m.d.comb += Value.cast(self.o).eq(words.word_select(steps[2].part, OUT_BITS * self.config.lanes))
        return m

    def _memory(self, m: Module) -> tuple[memory.ReadPort, memory.WritePort]:
        sums = data.ArrayLayout(data.ArrayLayout(signed(SUM_BITS), SUMS), self.config.lanes)
        m.submodules.totals = made = memory.Memory(shape=sums, depth=self.config.max_tiles, init=[])
        write = made.write_port()
        return made.read_port(transparent_for=(write,)), write

    def _terms(self, m: Module, lane: int, steps: list[data.View]) -> tuple[Value, Value]:
        """Three cycles after v: r, and its product."""
        r = Signal(signed(REDUCED_BITS), name=f"r{lane}", reset_less=True)
        product = Signal(signed(2 * REDUCED_BITS), name=f"rr{lane}", reset_less=True)
        half_up = shifted(m, self.v[lane], steps[0].shift, f"r{lane}")
        side = delayed(m, self.side[lane], 2, f"side{lane}")
        m.d.sync += [
            r.eq(saturated(half_up, REDUCED_BITS)),
            product.eq(r * Mux(steps[2].squares, r, side)),
        ]
        return delayed(m, r, 1, f"r{lane}"), product
