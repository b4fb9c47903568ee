# SPDX-License-Identifier: MIT
"""Descent with momentum: an element of a master a cycle."""

from amaranth import Array, Cat, EnableInserter, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed
from hw.epilogue.rounding import saturated

from .config import BIAS_BITS, FACTOR_BITS, UPDATE_LATENCY_CYCLES, WORD_BITS, Image, TrainingConfig
from .layouts import job_layout, master_layout, out_layout


def _high(bias: Value) -> Value:
    """Its highest 8 bits, sign-extended to 16."""
    return Cat(bias[16:], bias[-1].replicate(8))


class Pipeline(wiring.Component):
    """An element a cycle, free-running: who stops it wraps it in an EnableInserter.

    Members
    -------
    job : what stays while elements are under way
    valid, gradient, master : an element
    o_valid, o_master, o_image : UPDATE_LATENCY_CYCLES later; the image is sign-extended to 24 bits
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(
            {
                "job": In(job_layout(config)),
                "valid": In(1),
                "gradient": In(signed(WORD_BITS)),
                "master": In(master_layout()),
                "o_valid": Out(1),
                "o_master": Out(master_layout()),
                "o_image": Out(signed(BIAS_BITS)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        job, wide = self.job, WORD_BITS + FACTOR_BITS + 1

        def register(name: str, value: Value, bits: int) -> Signal:
            held = Signal(signed(bits), name=name, reset_less=True)
            m.d.sync += held.eq(value)
            return held

        weight = delayed(m, self.master.weight.as_signed(), 4, "weight")
        kept = register("kept", self.master.momentum.as_signed() * job.momentum, wide)
        kept = register("kept_rounded", (kept + (1 << 15)) >> 16, WORD_BITS + 1)
        moved = register("moved", self.gradient * job.rate, wide)
        moved = register("moved_shifted", (moved << 1) >> job.rate_shift, wide + 1)
        step = register("step", saturated((moved + 1) >> 1, WORD_BITS), WORD_BITS)
        kept = register("kept_after", kept, WORD_BITS + 1)
        momentum = register("momentum", saturated(kept + step, WORD_BITS), WORD_BITS)
        lowered = register("lowered", saturated(weight - momentum, WORD_BITS), WORD_BITS)
        shifted = register("image_shifted", (lowered << 1) >> job.image_shift, WORD_BITS + 1)
        rounded = (shifted + 1) >> 1
        image = Array([0, *(saturated(rounded, of.bits) for of in list(Image)[1:])])[job.image]
        m.d.sync += [
            self.o_valid.eq(delayed(m, self.valid, UPDATE_LATENCY_CYCLES - 1, "valid", is_valid=True)),
            self.o_image.eq(image),
            self.o_master.weight.eq(delayed(m, lowered, 1, "lowered")),
            self.o_master.momentum.eq(delayed(m, momentum, 2, "momentum")),
        ]
        return m


class Update(wiring.Component):
    """Masters in, masters out, and their image in words: see :func:`hw.training.golden.update`.

    A job is taken when nothing of the one before is under way. Of each element the master leaves first; the
    image's word or words follow the last of the elements in it. A job has so many elements that its words of
    gradients and image are full.

    Members
    -------
    i_job : stream of :func:`hw.training.layouts.job_layout`
    i_gradient : stream of words, a gradient of 32 bits or two of 16
    i_master : stream of :func:`hw.training.layouts.master_layout`
    o : stream of :func:`hw.training.layouts.out_layout`
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i_gradient": In(stream.Signature(WORD_BITS)),
                "i_master": In(stream.Signature(master_layout())),
                "o": Out(stream.Signature(out_layout())),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        job = Signal(job_layout(self.config), reset_less=True)
        flow, active, upper = Signal(), Signal(), Signal()
        pipeline = Pipeline(self.config)
        m.submodules.pipeline = EnableInserter(flow)(pipeline)
        n_under_way = Signal(range(UPDATE_LATENCY_CYCLES + 1))
        goes, leaves, taken = Signal(), Signal(), Signal()
        word = self.i_gradient.payload
        halves = Array(half.as_signed() for half in (word[:16], word[16:]))
        m.d.comb += [
            self.i_job.ready.eq(~active & (n_under_way == 0)),
            taken.eq(self.i_job.valid & self.i_job.ready),
            goes.eq(active & flow & self.i_gradient.valid & self.i_master.valid),
            self.i_master.ready.eq(goes),
            self.i_gradient.ready.eq(goes & (~job.halves | upper)),
            pipeline.job.eq(job),
            pipeline.valid.eq(goes),
            pipeline.gradient.eq(Mux(job.halves, halves[upper], word.as_signed())),
            pipeline.master.eq(self.i_master.payload),
        ]
        m.d.sync += n_under_way.eq(n_under_way + goes - leaves)
        with m.If(goes):
            m.d.sync += [upper.eq(~upper), job.count.eq(job.count - 1), active.eq(job.count != 1)]
        with m.If(taken):
            m.d.sync += [job.eq(self.i_job.payload), active.eq(1), upper.eq(0)]
        self._give(m, job, pipeline, flow, leaves)
        return m

    def _give(self, m: Module, job: data.View, of: Pipeline, flow: Signal, leaves: Signal) -> None:
        """The words of the element at the pipeline's end; drives ``flow``, and ``leaves`` with the last."""
        earlier = [Signal(signed(BIAS_BITS), name=f"image_before{n}", reset_less=True) for n in (1, 2, 3)]
        place, word = Signal(2), Signal(2)
        """Of the element among those of a word of the image; of the word among those of the element."""
        pair = earlier[0], of.o_image
        per_beat = Array(kind.per_beat - 1 for kind in Image)[job.image]
        n_words = Signal(2)
        m.d.comb += [
            n_words.eq(Mux(place == per_beat, Array(kind.words for kind in Image)[job.image], 0)),
            self.o.valid.eq(of.o_valid),
            self.o.payload.reader.eq(word != 0),
            leaves.eq(of.o_valid & self.o.ready & (word == n_words)),
            flow.eq(~of.o_valid | leaves),
        ]
        with m.If(word == 0):
            m.d.comb += self.o.payload.data.eq(Value.cast(of.o_master))
        with m.Elif(word == 2):
            m.d.comb += self.o.payload.data.eq(Cat(_high(part) for part in pair))
        with m.Elif(job.image == Image.BYTES):
            m.d.comb += self.o.payload.data.eq(Cat(part[:8] for part in (*reversed(earlier), of.o_image)))
        with m.Else():
            m.d.comb += self.o.payload.data.eq(Cat(part[:16] for part in pair))
        with m.If(of.o_valid & self.o.ready):
            m.d.sync += word.eq(Mux(leaves, 0, word + 1))
        with m.If(leaves):
            m.d.sync += [earlier[0].eq(of.o_image), earlier[1].eq(earlier[0]), earlier[2].eq(earlier[1])]
            m.d.sync += place.eq(Mux(place == per_beat, 0, place + 1))
