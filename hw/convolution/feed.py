# SPDX-License-Identifier: MIT
"""Sums of array or filter into the epilogue, each with its entry of the table."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.epilogue.config import IN_BITS
from hw.epilogue.rtl import in_layout
from hw.epilogue.rtl import job_layout as epilogue_job_layout

from .commands import TILE_BEATS_BITS, epilogue_layout
from .config import ConvolutionConfig


class Feed(wiring.Component):
    """The beats of one job after another, each from the job's source: no cycle of delay, none between jobs.
    Those offered to a job that gives sums wait for the next one.

    Members
    -------
    i : stream of :func:`hw.convolution.commands.epilogue_layout`
    o_job : its jobs; one must be taken with the last beat of the one before, at the earliest
    i_array, i_filter : streams of C signed sums; one that is not a job's source waits
    o : stream of :func:`hw.epilogue.rtl.in_layout`
    """

    def __init__(self, config: ConvolutionConfig) -> None:
        self.config = config
        lanes = config.array.columns
        sums = data.ArrayLayout(signed(IN_BITS), lanes)
        filtered = data.ArrayLayout(signed(config.fir.out_bits), lanes)
        super().__init__(
            {
                "i": In(stream.Signature(epilogue_layout(config))),
                "o_job": Out(stream.Signature(epilogue_job_layout(config.epilogue))),
                "i_array": In(stream.Signature(sums)),
                "i_filter": In(stream.Signature(filtered)),
                "o": Out(stream.Signature(in_layout(config.epilogue))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        of = Signal(epilogue_layout(self.config), reset_less=True)
        tile_beat = Signal(TILE_BEATS_BITS)
        active, moves = Signal(), Signal()
        array, filtered, o = self.i_array, self.i_filter, self.o
        lanes = [Mux(of.filter, f, a) for f, a in zip(filtered.payload, array.payload, strict=True)]
        m.d.comb += [
            *(lane.eq(value) for lane, value in zip(o.payload.data, lanes, strict=True)),
            o.payload.tile.eq(of.first_tile),
            o.valid.eq(active & Mux(of.filter, filtered.valid, array.valid)),
            array.ready.eq(active & ~of.filter & o.ready),
            filtered.ready.eq(active & of.filter & o.ready),
            moves.eq(o.valid & o.ready),
            self.o_job.payload.eq(self.i.payload.job),
            self.o_job.valid.eq(self.i.valid),
            self.i.ready.eq(self.o_job.ready),
        ]
        with m.If(moves):
            m.d.sync += [of.job.n_beats.eq(of.job.n_beats - 1), tile_beat.eq(tile_beat + 1)]
            m.d.sync += active.eq(of.job.n_beats != 1)
            with m.If(tile_beat == of.tile_beats - 1):
                m.d.sync += [tile_beat.eq(0), of.first_tile.eq(of.first_tile + 1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [of.eq(self.i.payload), active.eq(1), tile_beat.eq(0)]
        return m
