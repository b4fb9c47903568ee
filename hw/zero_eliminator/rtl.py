# SPDX-License-Identifier: MIT
"""Amaranth implementation of the zero eliminator."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.rtl import packed_layout

from .config import ZeroEliminatorConfig


class _Lane:
    """One lane between two shift stages: its element, whether it is one, and the zeros before it."""

    def __init__(self, width: int, n_stages: int, name: str) -> None:
        self.element = Signal(width, name=f"{name}_element", reset_less=True)
        self.present = Signal(name=f"{name}_present")
        self.zeros = Signal(max(n_stages, 1), name=f"{name}_zeros", reset_less=True)

    def pairs(self, other: "_Lane"):
        return ((self.element, other.element), (self.present, other.present), (self.zeros, other.zeros))


class ZeroEliminator(wiring.Component):
    """Packs the marked lanes of a beat to the front, order kept (SpAtten Fig. 10).

    A prefix sum counts the zeros before each lane; stage s then moves an element down by 2^s lanes if bit s
    of its count is set. Lower bits first never makes two elements meet: two neighbours' counts differ by
    less than their distance, and so do the counts cut to their lowest bits.

    Latency ``config.latency_cycles``, one beat per cycle. ``i.ready`` follows ``o.ready`` in the same cycle.

    Members
    -------
    i : stream of ``data`` (lanes elements), ``mask`` (1 = stays), ``last``
    o : stream of :func:`hw.stream.rtl.packed_layout`; lanes at and above ``count`` are 0
    """

    def __init__(self, config: ZeroEliminatorConfig) -> None:
        self.config = config
        marked = data.StructLayout(
            {
                "data": data.ArrayLayout(unsigned(config.element_bits), config.lanes),
                "mask": config.lanes,
                "last": 1,
            }
        )
        super().__init__(
            {
                "i": In(stream.Signature(marked)),
                "o": Out(stream.Signature(packed_layout(config.element_bits, config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        count = Signal(range(cfg.lanes + 1), name="count")
        lanes = self._count_zeros(m, count)
        valid, last = self.i.valid, self.i.payload.last
        ready = self.i.ready  # drives the stage before the register being built

        for first in range(0, max(cfg.n_shift_stages, 1), cfg.shift_stages_per_cycle):
            for stage in range(first, min(first + cfg.shift_stages_per_cycle, cfg.n_shift_stages)):
                lanes = self._shift(m, lanes, stage)
            lanes, count, valid, last, ready = self._register(m, first, lanes, count, valid, last, ready)

        m.d.comb += [
            ready.eq(self.o.ready),
            self.o.valid.eq(valid),
            self.o.payload.count.eq(count),
            self.o.payload.last.eq(last),
        ]
        m.d.comb += [self.o.payload.data[i].eq(lane.element) for i, lane in enumerate(lanes)]
        return m

    def _count_zeros(self, m: Module, count: Signal) -> list[_Lane]:
        """Parallel prefix sum (Kogge-Stone): lane i gets the number of unmarked lanes below it."""
        cfg = self.config
        mask = self.i.payload.mask
        sums = [Signal(range(cfg.lanes + 1), name=f"zeros_upto{i}_0") for i in range(cfg.lanes)]
        m.d.comb += [sums[i].eq(~mask[i]) for i in range(cfg.lanes)]
        for stage in range(cfg.n_shift_stages):
            below, sums = sums, []
            for i in range(cfg.lanes):
                total = Signal(range(cfg.lanes + 1), name=f"zeros_upto{i}_{stage + 1}")
                m.d.comb += total.eq(below[i] + below[i - (1 << stage)] if i >= 1 << stage else below[i])
                sums.append(total)
        lanes = []
        for i in range(cfg.lanes):
            lane = _Lane(cfg.element_bits, cfg.n_shift_stages, f"in{i}")
            m.d.comb += [
                lane.present.eq(mask[i]),
                lane.element.eq(Mux(mask[i], self.i.payload.data[i], 0)),
                lane.zeros.eq(sums[i - 1] if i else 0),
            ]
            lanes.append(lane)
        m.d.comb += count.eq(cfg.lanes - sums[-1])
        return lanes

    def _shift(self, m: Module, source: list[_Lane], stage: int) -> list[_Lane]:
        """Stage ``stage``: each lane takes its own element, the one 2^stage above, or nothing."""
        cfg = self.config
        lanes = []
        for i, own in enumerate(source):
            lane = _Lane(cfg.element_bits, cfg.n_shift_stages, f"shift{stage}_{i}")
            stays = own.present & ~own.zeros[stage]
            above = source[i + (1 << stage)] if i + (1 << stage) < cfg.lanes else None
            for target, kept in lane.pairs(own):
                m.d.comb += target.eq(Mux(stays, kept, 0))
            if above is not None:
                with m.If(above.present & above.zeros[stage]):
                    m.d.comb += [target.eq(moved) for target, moved in lane.pairs(above)]
            lanes.append(lane)
        return lanes

    def _register(self, m: Module, first, lanes, count, valid, last, ready):
        """One pipeline register with its handshake; returns its outputs and the ready still to be driven."""
        cfg = self.config
        held = [_Lane(cfg.element_bits, cfg.n_shift_stages, f"held{first}_{i}") for i in range(cfg.lanes)]
        held_count = Signal(range(cfg.lanes + 1), name=f"held{first}_count", reset_less=True)
        held_valid = Signal(name=f"held{first}_valid")
        held_last = Signal(name=f"held{first}_last", reset_less=True)
        next_ready = Signal(name=f"held{first}_ready")
        m.d.comb += ready.eq(~held_valid | next_ready)
        with m.If(ready):
            m.d.sync += [held_valid.eq(valid), held_count.eq(count), held_last.eq(last)]
            for to, source in zip(held, lanes, strict=True):
                m.d.sync += [target.eq(value) for target, value in to.pairs(source)]
        return held, held_count, held_valid, held_last, next_ready
