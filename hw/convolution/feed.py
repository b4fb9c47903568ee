# SPDX-License-Identifier: MIT
"""Sums of one unit or another into the epilogue, each with its entry of the table."""

from amaranth import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import select
from hw.depthwise.config import SUM_BITS
from hw.epilogue.config import IN_BITS
from hw.epilogue.rtl import in_layout
from hw.epilogue.rtl import job_layout as epilogue_job_layout
from hw.loss.config import GRADIENT_BITS
from hw.transpose.config import ELEMENT_BITS

from .commands import TILE_BEATS_BITS, epilogue_layout
from .config import ConvolutionConfig


class Feed(wiring.Component):
    """The beats of one job after another, each from the job's source: no cycle of delay, none between jobs.
    Those offered to a job that gives sums wait for the next one.

    Members
    -------
    i : stream of :func:`hw.convolution.commands.epilogue_layout`
    o_job : its jobs; one must be taken with the last beat of the one before, at the earliest
    i_array, i_filter, i_depthwise, i_transpose, i_loss : streams of C signed sums; those that are not a job's
        source wait
    o : stream of :func:`hw.epilogue.rtl.in_layout`
    """

    def __init__(self, config: ConvolutionConfig) -> None:
        self.config = config
        lanes = config.array.columns
        widths = {"array": IN_BITS, "filter": config.fir.out_bits, "depthwise": SUM_BITS,
                  "transpose": ELEMENT_BITS, "loss": GRADIENT_BITS}  # fmt: skip
        self.sources = [f"i_{name}" for name in widths]
        """By number, see :class:`hw.convolution.commands.Source`."""
        super().__init__(
            {
                "i": In(stream.Signature(epilogue_layout(config))),
                "o_job": Out(stream.Signature(epilogue_job_layout(config.epilogue))),
                **{
                    f"i_{name}": In(stream.Signature(data.ArrayLayout(signed(bits), lanes)))
                    for name, bits in widths.items()
                },
                "o": Out(stream.Signature(in_layout(config.epilogue))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        of = Signal(epilogue_layout(self.config), reset_less=True)
        tile_beat = Signal(TILE_BEATS_BITS)
        active, moves = Signal(), Signal()
        sources, o = [getattr(self, name) for name in self.sources], self.o
        lanes = zip(*(source.payload for source in sources), strict=True)
        which = of.source
        m.d.comb += [
            *(lane.eq(select(which, sums)) for lane, sums in zip(o.payload.data, lanes, strict=True)),
            o.payload.tile.eq(of.first_tile),
            o.valid.eq(active & select(which, [source.valid for source in sources])),
            *(source.ready.eq(active & (which == number) & o.ready) for number, source in enumerate(sources)),
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
