# SPDX-License-Identifier: MIT
"""The loss unit between maps: scores as they lie in memory, gradients by tiles of channels."""

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import FRACTION_BITS_BITS, GRADIENT_BITS, LABEL_BITS, SCORE_BITS, TARGET_BITS, LossConfig
from .rtl import Loss


def map_layout(config: LossConfig) -> data.StructLayout:
    """Payload of ``i_map``: the map of one picture, and its job without the label."""
    return data.StructLayout(
        {
            "n_classes": config.count_bits,
            "fraction_bits": FRACTION_BITS_BITS,
            "label_target": TARGET_BITS,
            "other_target": TARGET_BITS,
        }
    )


class MapLoss(wiring.Component):
    """Gradients of one picture after another, L scores a cycle in, C gradients a beat out.

    A map is taken together with its label, when all scores of the map before it are. Cycles:
    :class:`hw.loss.cycles.Course`.

    Parameters: the unit; ``columns``, C, a multiple of its lanes.

    Members
    -------
    i_map : stream of :func:`map_layout`
    i_label : stream of labels, 0..n_classes - 1, of LABEL_BITS
    i : stream of L signed scores; whatever follows the last class in its beat
    o : stream of C signed gradients; whatever there was behind the last class
    """

    def __init__(self, config: LossConfig, *, columns: int) -> None:
        self.config, self.columns = config, columns
        scores = data.ArrayLayout(signed(SCORE_BITS), config.lanes)
        super().__init__(
            {
                "i_map": In(stream.Signature(map_layout(config))),
                "i_label": In(stream.Signature(LABEL_BITS)),
                "i": In(stream.Signature(scores)),
                "o": Out(stream.Signature(data.ArrayLayout(signed(GRADIENT_BITS), columns))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.loss = loss = Loss(self.config)
        self._scores(m, loss)
        self._tiles(m, loss)
        return m

    def _scores(self, m: Module, loss: Loss) -> None:
        """The job, then the scores, counted."""
        lanes, of, job = self.config.lanes, self.i_map, loss.i_job
        n_left, starts, takes = Signal(self.config.count_bits), Signal(), Signal()
        """Scores that have not come."""
        scores = loss.i.payload
        for name in ("fraction_bits", "label_target", "other_target"):
            m.d.comb += job.payload[name].eq(of.payload[name])
        m.d.comb += [
            job.valid.eq(of.valid & self.i_label.valid & (n_left == 0)),
            starts.eq(job.valid & job.ready),
            of.ready.eq(starts),
            self.i_label.ready.eq(starts),
            job.payload.label.eq(self.i_label.payload),
            loss.i.valid.eq(self.i.valid & (n_left != 0)),
            self.i.ready.eq(loss.i.ready & (n_left != 0)),
            takes.eq(self.i.valid & self.i.ready),
            # The softmax looks at no lane from count on.
            Value.cast(scores.data).eq(Value.cast(self.i.payload)),
            scores.last.eq(n_left <= lanes),
            scores.count.eq(Mux(scores.last, n_left, lanes)),
        ]
        with m.If(takes):
            m.d.sync += n_left.eq(Mux(scores.last, 0, n_left - lanes))
        with m.If(starts):
            m.d.sync += n_left.eq(of.payload.n_classes)

    def _tiles(self, m: Module, loss: Loss) -> None:
        """Gradients side by side until a tile is full or the picture ends."""
        n_parts = self.columns // self.config.lanes
        gradients, o = loss.o, self.o
        part, ends = Signal(range(max(2, n_parts))), Signal()
        m.d.comb += [
            gradients.ready.eq(~o.valid | o.ready),
            ends.eq(gradients.payload.last | (part == n_parts - 1)),
        ]
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        with m.If(gradients.valid & gradients.ready):
            m.d.sync += [o.valid.eq(ends), part.eq(Mux(ends, 0, part + 1))]
            made = Value.cast(gradients.payload.data)
            m.d.sync += Value.cast(o.payload).word_select(part, len(made)).eq(made)
