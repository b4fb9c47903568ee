# SPDX-License-Identifier: MIT
"""Amaranth implementation of the loss unit: the softmax, less the targets."""

from amaranth import Const, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.softmax.rtl import Softmax
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo, packed_layout

from .config import (
    FRACTION_BITS_BITS,
    GRADIENT_BITS,
    GRADIENT_FRACTION_BITS,
    MAX_PICTURES,
    MULTIPLIER,
    SCORE_BITS,
    SHIFT,
    TARGET_BITS,
    TARGET_FRACTION_BITS,
    LossConfig,
)

CUT_BITS = TARGET_FRACTION_BITS - GRADIENT_FRACTION_BITS


def job_layout(config: LossConfig) -> data.StructLayout:
    """Payload of ``i_job``: one picture."""
    return data.StructLayout(
        {
            "fraction_bits": FRACTION_BITS_BITS,
            "label": config.label_bits,
            "label_target": TARGET_BITS,
            "other_target": TARGET_BITS,
        }
    )


def _waiting_layout(config: LossConfig) -> data.StructLayout:
    """A picture that waits for its probabilities: what is added to them, which rounds as well."""
    addend = signed(TARGET_BITS)
    return data.StructLayout({"label": config.label_bits, "label_addend": addend, "other_addend": addend})


class Loss(wiring.Component):
    """Gradient of cross entropy in the scores of one picture after another; :mod:`hw.loss.golden`.

    The softmax makes the probabilities, a beat a cycle; each beat then has its targets subtracted, the
    label's where the label is. Cycles: :mod:`hw.loss.cycles`.

    Members
    -------
    i_job : stream of :func:`job_layout`, one a picture
    i : stream of :func:`hw.stream.rtl.packed_layout` of signed scores; dense rows, 2..max_classes of them
    o : stream of :func:`hw.stream.rtl.packed_layout` of signed gradients; dense rows
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i": In(stream.Signature(packed_layout(SCORE_BITS, config.lanes))),
                "o": Out(stream.Signature(packed_layout(GRADIENT_BITS, config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        waiting = _waiting_layout(cfg)
        m.submodules.softmax = softmax = Softmax(cfg.softmax)
        m.submodules.pictures = pictures = Fifo(FifoConfig(width_bits=waiting.size, depth=MAX_PICTURES))
        wiring.connect(m, wiring.flipped(self.i), softmax.i)

        job = self.i_job
        entry = Signal(waiting)
        half = 1 << CUT_BITS >> 1
        m.d.comb += [
            # Both take the job, or none.
            job.ready.eq(softmax.i_row.ready & pictures.i.ready),
            softmax.i_row.valid.eq(job.valid & pictures.i.ready),
            pictures.i.valid.eq(job.valid & softmax.i_row.ready),
            softmax.i_row.payload.multiplier.eq(MULTIPLIER),
            softmax.i_row.payload.shift.eq(SHIFT + job.payload.fraction_bits),
            entry.label.eq(job.payload.label),
            entry.label_addend.eq(half - job.payload.label_target),
            entry.other_addend.eq(half - job.payload.other_target),
            pictures.i.payload.eq(entry.as_value()),
            softmax.i_decision.valid.eq(1),
            softmax.o_row.ready.eq(1),
        ]

        # Always there: it entered with the row, which is in the softmax for longer than in the queue.
        picture = data.View(waiting, pictures.o.payload)
        n_before = Signal(cfg.softmax.line_count_bits)
        """Beats of the picture that have gone."""
        probabilities, o = softmax.o, self.o
        take = Signal()
        m.d.comb += [
            probabilities.ready.eq(~o.valid | o.ready),
            take.eq(probabilities.valid & probabilities.ready),
            pictures.o.ready.eq(take & probabilities.payload.last),
        ]
        with m.If(probabilities.ready):
            m.d.sync += o.valid.eq(probabilities.valid)
        with m.If(take):
            m.d.sync += [
                n_before.eq(Mux(probabilities.payload.last, 0, n_before + 1)),
                o.payload.count.eq(probabilities.payload.count),
                o.payload.last.eq(probabilities.payload.last),
            ]
            for lane in range(cfg.lanes):
                is_label = picture.label == (n_before << cfg.softmax.tree_levels) + lane
                addend = Mux(is_label, picture.label_addend, picture.other_addend)
                inside = lane < probabilities.payload.count
                gradient = _gradient(m, probabilities.payload.data[lane], addend, f"gradient{lane}")
                m.d.sync += o.payload.data[lane].eq(Mux(inside, gradient, 0))
        return m


def _gradient(m: Module, probability: Value, addend: Value, name: str) -> Value:
    """Their sum in units of a gradient; 1.0 becomes one unit less."""
    total = Signal(signed(TARGET_BITS + 1), name=name)
    m.d.comb += total.eq(probability + addend)
    units = total >> CUT_BITS
    largest = Const((1 << (GRADIENT_BITS - 1)) - 1, Shape.cast(units.shape()))
    return Mux(units > largest, largest, units)
