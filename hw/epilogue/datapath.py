# SPDX-License-Identifier: MIT
"""Arithmetic of the epilogue: a beat of channels for one reader every cycle."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed

from .config import (
    BIAS_LOW_BITS,
    IN_BITS,
    LATENCY_CYCLES,
    LIMIT_BITS,
    MAX_OUT_SHIFT,
    MAX_READERS,
    MAX_SHIFT,
    MAX_SIDE_SHIFT,
    MULTIPLIER_BITS,
    NARROW_BITS,
    OUT_BITS,
    SCALE_BITS,
    SIDE_BITS,
    SLOPE,
    SLOPE_SHIFT,
    TABLE_BEATS,
    TABLE_BITS,
    VALUE_BITS,
    Activation,
    EpilogueConfig,
    Side,
)
from .reduce import Sums, reduce_layout
from .rounding import saturated, shifted


def table_layout(config: EpilogueConfig) -> data.ArrayLayout:
    """Payload of ``i_table``: one part of an entry, see :meth:`hw.epilogue.config.Table.beats`."""
    return data.ArrayLayout(TABLE_BITS, config.lanes)


def side_layout(config: EpilogueConfig) -> data.ArrayLayout:
    """Payload of ``i_side``: a residual or a factor; noise in lane 0; a mask in as many of the lowest bits as
    there are lanes."""
    return data.ArrayLayout(signed(SIDE_BITS), config.lanes)


def sums_layout(config: EpilogueConfig) -> data.ArrayLayout:
    """Elements of an input beat."""
    return data.ArrayLayout(signed(IN_BITS), config.lanes)


def out_layout(config: EpilogueConfig) -> data.StructLayout:
    """Payload of ``o``: elements (8-bit ones sign-extended) or a part of the sums, mask of the activation,
    ``reader`` it is for, ``last`` of the job for that reader. Beats for MASK_READER have reader 0's elements.
    """
    return data.StructLayout(
        {
            "data": data.ArrayLayout(signed(OUT_BITS), config.lanes),
            "mask": config.lanes,
            "reader": range(MAX_READERS + 1),
            "last": 1,
        }
    )


def step_layout(config: EpilogueConfig) -> data.StructLayout:
    """One beat for one reader: what of the job it needs, ``reader`` and ``last`` as in :func:`out_layout`."""
    return data.StructLayout(
        {
            "shift": range(MAX_SHIFT + 1),
            "side": Side,
            "side_shift": range(MAX_SIDE_SHIFT + 1),
            "activation": Activation,
            "limit": LIMIT_BITS,
            "out_shift": range(MAX_OUT_SHIFT + 1),
            "wide": 1,
            "reader": range(MAX_READERS + 1),
            "last": 1,
            "sums": reduce_layout(config),
        }
    )


class Datapath(wiring.Component):
    """One step a cycle, ``o`` a fixed time later. It runs freely: who stops it wraps it in an EnableInserter.

    Widths, all exact: x m lies within +-2^31 x (2^16 - 1), 48 bits; bias + side within
    +-(2^23 + 2^30), with t added still within 2^31; u slope within 2^23 x 13107, 38 bits; v scale at most
    2^23 x 2^15 = 2^38, 40 bits.

    Members
    -------
    valid, adds, step, x, side, entry : a step, whether it adds to sums, its elements, its entry of the table
    o_valid, o : LATENCY_CYCLES - 1 later
    """

    def __init__(self, config: EpilogueConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "adds": In(1),
                "step": In(step_layout(config)),
                "x": In(sums_layout(config)),
                "side": In(side_layout(config)),
                "entry": In(data.ArrayLayout(table_layout(config), TABLE_BEATS)),
                "o_valid": Out(1),
                "o": Out(out_layout(config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        steps = [self.step]
        """Entry c: the step that came c cycles ago; u belongs to 4, v to 5."""
        for cycle in range(1, LATENCY_CYCLES - 1):
            held = delayed(m, Value.cast(steps[-1]), 1, f"step{cycle}")
            steps.append(data.View(step_layout(self.config), held))
        m.submodules.sums = sums = Sums(self.config)
        m.d.comb += [
            sums.adds.eq(delayed(m, self.adds, 5, "adds", is_valid=True)),
            sums.step.eq(steps[5].sums),
        ]
        m.d.sync += [
            self.o_valid.eq(delayed(m, self.valid, LATENCY_CYCLES - 2, "valid", is_valid=True)),
            self.o.reader.eq(steps[-1].reader),
            self.o.last.eq(steps[-1].last),
        ]
        for lane in range(self.config.lanes):
            v, scale = self._activated(m, lane, steps)
            m.d.comb += [
                sums.v[lane].eq(v),
                sums.side[lane].eq(delayed(m, self.side[lane], 5, f"factor{lane}")),
            ]
            element = self._scaled(m, lane, v, scale, steps)
            m.d.sync += self.o.data[lane].eq(Mux(steps[-1].sums.gives, sums.o[lane], element))
        return m

    def _activated(self, m: Module, lane: int, steps: list[data.View]) -> tuple[Signal, Value]:
        """Five cycles: v and the reader's scale of one channel. Drives the mask."""
        entry = [part[lane] for part in self.entry]
        multiplier, bias = entry[0], Cat(entry[1], entry[2][: VALUE_BITS - BIAS_LOW_BITS]).as_signed()
        side, scale = (
            Signal(signed(SIDE_BITS), name=f"side{lane}"),
            Signal(signed(SCALE_BITS), name=f"s{lane}"),
        )
        is_added, keeps = Signal(name=f"is_added{lane}"), Signal(name=f"keeps{lane}")
        kind = steps[0].side
        m.d.comb += [
            side.eq(Mux(kind == Side.NOISE, self.side[0], self.side[lane])),
            is_added.eq((kind == Side.NOISE) | (kind == Side.RESIDUAL)),
            keeps.eq((kind != Side.MASK) | Value.cast(self.side)[lane]),
            scale.eq(Mux(steps[0].reader == 1, entry[4], entry[3])),
        ]
        product = Signal(signed(IN_BITS + MULTIPLIER_BITS), name=f"xm{lane}", reset_less=True)
        added = Signal(signed(SIDE_BITS + MAX_SIDE_SHIFT + 1), name=f"added{lane}", reset_less=True)
        m.d.sync += [
            product.eq(self.x[lane] * multiplier),
            added.eq(bias + Mux(is_added, side << steps[0].side_shift, 0)),
        ]
        half_up = shifted(m, product, steps[1].shift, f"xm{lane}")
        t, u, v = (Signal(signed(VALUE_BITS), name=f"{name}{lane}", reset_less=True) for name in "tuv")
        total = Signal(signed(len(added)), name=f"total{lane}")
        m.d.comb += total.eq(t + delayed(m, added, 2, f"added{lane}"))
        m.d.sync += [t.eq(saturated(half_up, VALUE_BITS)), u.eq(saturated(total, VALUE_BITS))]

        do, sloped = steps[4].activation, Signal(signed(VALUE_BITS), name=f"sloped{lane}")
        over, mask = Signal(name=f"over{lane}"), Signal(name=f"mask{lane}", reset_less=True)
        m.d.comb += [
            sloped.eq((u * SLOPE + (1 << (SLOPE_SHIFT - 1))) >> SLOPE_SHIFT),
            over.eq((do == Activation.RELU6) & (u >= steps[4].limit)),
        ]
        kept = delayed(m, keeps, 4, f"keeps{lane}")
        m.d.sync += [v.eq(Mux(over, steps[4].limit, u)), mask.eq((u > 0) & ~over & kept)]
        with m.If(u < 0):
            with m.Switch(do):
                with m.Case(Activation.RELU, Activation.RELU6):
                    m.d.sync += v.eq(0)
                with m.Case(Activation.LEAKY):
                    m.d.sync += v.eq(sloped)
        with m.If(~kept):
            m.d.sync += v.eq(0)
        m.d.sync += self.o.mask[lane].eq(delayed(m, mask, 2, f"mask{lane}") & ~steps[-1].sums.gives)
        return v, delayed(m, scale, 5, f"scale{lane}")

    def _scaled(self, m: Module, lane: int, v: Signal, scale: Value, steps: list[data.View]) -> Value:
        """The element, after two cycles."""
        product = Signal(signed(VALUE_BITS + SCALE_BITS), name=f"vs{lane}", reset_less=True)
        m.d.sync += product.eq(v * scale)
        half_up = shifted(m, product, steps[6].out_shift, f"vs{lane}")
        narrow, wide = saturated(half_up, NARROW_BITS), saturated(half_up, OUT_BITS)
        return Mux(steps[-1].wide, wide, narrow)
