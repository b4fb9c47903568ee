# SPDX-License-Identifier: MIT
"""The write master: each output stream to a region of its own."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.fetch.crossbar import round_robin

from .axi import ADDRESS_BITS, write_signature
from .config import SystemConfig
from .streams import OUTPUTS, n_words, stride_bytes

MAX_PENDING = 15
"""Bursts whose answer has not come."""


class OutputWriter(wiring.Component):
    """Writes beat after beat, each in a burst of its own; the streams take turns.

    Beat b of a stream lies at base + b x stride, its lowest bits first, whole words, zeros above. The stride
    is a power of two and the base a multiple of 4,096, so no burst crosses 4,096 bytes. A beat that would
    lie beyond its region is not taken. Where ``run`` falls, the beat under way is written to its end.

    Throughput: a word a cycle, and one cycle more for each beat.

    Members
    -------
    the core's outputs : streams of their payloads
    {name}_base, {name}_bytes, {name}_beats : region of an output; beats taken since ``start``
    start : forget the beats counted
    run, idle : see :class:`hw.system.reader.DramReader`
    failed : an answer of this cycle says SLVERR or DECERR
    full, full_output : the region of that output has no room for the beat that waits
    axi : AXI4 write master
    """

    def __init__(self, config: SystemConfig) -> None:
        self.config = config
        members = {}
        for name, layout in OUTPUTS.items():
            members[name] = In(stream.Signature(layout(config.core)))
            members[f"{name}_base"] = In(ADDRESS_BITS)
            members[f"{name}_bytes"] = In(32)
            members[f"{name}_beats"] = Out(32)
        super().__init__(
            {
                **members,
                "start": In(1),
                "run": In(1),
                "idle": Out(1),
                "failed": Out(1),
                "full": Out(1),
                "full_output": Out(range(max(len(OUTPUTS), 2))),
                "axi": Out(write_signature(config.bus_bits)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg, axi = self.config, self.axi
        layouts = {name: layout(cfg.core) for name, layout in OUTPUTS.items()}
        most_words = max(n_words(layout, cfg.bus_bits) for layout in layouts.values())
        words = Signal(most_words * cfg.bus_bits, reset_less=True)
        n_left, pending = Signal(range(most_words + 1)), Signal(range(MAX_PENDING + 1))
        free, begun, answered = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(self.run & ~axi.awvalid & (n_left == 0) & (pending != MAX_PENDING)),
            axi.wvalid.eq(n_left != 0),
            axi.wlast.eq(n_left == 1),
            axi.wdata.eq(words),
            axi.bready.eq(1),
            answered.eq(axi.bvalid & axi.bready),
            self.failed.eq(answered & axi.bresp[1]),
            self.idle.eq(~axi.awvalid & (n_left == 0) & (pending == 0)),
        ]
        m.d.sync += pending.eq(pending + begun - answered)
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [n_left.eq(n_left - 1), words.eq(words >> cfg.bus_bits)]

        granted = round_robin(m, "output", [getattr(self, name).valid for name in layouts], free)
        for place, (name, layout) in enumerate(layouts.items()):
            source, beats = getattr(self, name), getattr(self, f"{name}_beats")
            stride = stride_bytes(layout, cfg.bus_bits)
            offset, fits = Signal(33, name=f"{name}_offset"), Signal(name=f"{name}_fits")
            m.d.comb += [
                offset.eq(beats * stride),
                fits.eq(offset + stride <= getattr(self, f"{name}_bytes")),
                source.ready.eq(granted[place] & fits),
            ]
            with m.If(granted[place] & ~fits):
                m.d.comb += [self.full.eq(1), self.full_output.eq(place)]
            with m.If(source.ready):
                m.d.comb += begun.eq(1)
                m.d.sync += [
                    axi.awvalid.eq(1),
                    axi.awaddr.eq(getattr(self, f"{name}_base") + offset),
                    axi.awlen.eq(n_words(layout, cfg.bus_bits) - 1),
                    n_left.eq(n_words(layout, cfg.bus_bits)),
                    words.eq(Value.cast(source.payload)),
                ]
            m.d.sync += beats.eq(Mux(self.start, 0, beats + source.ready))
        return m
