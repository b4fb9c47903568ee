# SPDX-License-Identifier: MIT
"""Amaranth implementation of the kernels over lists."""

from amaranth import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import WORD_BITS, Kernel, TrainingConfig
from .layouts import job_layout, master_layout, out_layout
from .processor import Processor
from .update import Update


class Training(wiring.Component):
    """The update, an element a cycle, and the norms, an instruction a cycle: one job after the other.

    Members
    -------
    i_job : stream of :func:`hw.training.layouts.job_layout`; taken when no word of the one before is to come
    i_sums : stream of words of 32 bits: gradients, or sums S and P of each channel, low words first
    i_master : stream of :func:`hw.training.layouts.master_layout`: masters, or single words of gamma and beta
        in turn, or of the state
    o : stream of :func:`hw.training.layouts.out_layout`
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i_sums": In(stream.Signature(WORD_BITS)),
                "i_master": In(stream.Signature(master_layout())),
                "o": Out(stream.Signature(out_layout())),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.update = update = Update(self.config)
        m.submodules.processor = processor = Processor(self.config)
        job, o = self.i_job, self.o
        is_update = job.payload.kernel == Kernel.UPDATE
        m.d.comb += [
            job.ready.eq(update.i_job.ready & processor.i_job.ready),
            update.i_job.valid.eq(job.valid & job.ready & is_update),
            processor.i_job.valid.eq(job.valid & job.ready & ~is_update),
            *(unit.i_job.payload.eq(job.payload) for unit in (update, processor)),
            # Only the unit whose job it is takes words.
            update.i_gradient.payload.eq(self.i_sums.payload),
            processor.i_sums.payload.eq(self.i_sums.payload),
            update.i_gradient.valid.eq(self.i_sums.valid),
            processor.i_sums.valid.eq(self.i_sums.valid),
            self.i_sums.ready.eq(update.i_gradient.ready | processor.i_sums.ready),
            update.i_master.payload.eq(self.i_master.payload),
            processor.i_words.payload.eq(self.i_master.payload.weight),
            update.i_master.valid.eq(self.i_master.valid),
            processor.i_words.valid.eq(self.i_master.valid),
            self.i_master.ready.eq(update.i_master.ready | processor.i_words.ready),
            o.valid.eq(update.o.valid | processor.o.valid),
            # The last word of a norm may still wait when an update begins.
            o.payload.eq(Mux(processor.o.valid, processor.o.payload.as_value(), update.o.payload.as_value())),
            processor.o.ready.eq(o.ready),
            update.o.ready.eq(o.ready & ~processor.o.valid),
        ]
        return m
