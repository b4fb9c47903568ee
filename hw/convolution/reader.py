# SPDX-License-Identifier: MIT
"""Elements of maps and lists from memory."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .config import ADDRESS_BITS
from .walk import Walker, job_layout

TAG_BITS = 3
TAG = data.StructLayout({"tag": TAG_BITS})
"""What a walk to read says of its elements: which unit they are for."""


def read_layout(max_bytes: int) -> data.StructLayout:
    """Payload of ``o``: an element from the lowest byte on, ``first`` and ``last`` of its walk."""
    return data.StructLayout({"data": 8 * max_bytes, "tag": TAG_BITS, "first": 1, "last": 1})


class Reader(wiring.Component):
    """Elements at the addresses of a walk, of any length up to ``max_bytes``, in order.

    An element is read in steps, one for each bus word that it lies in. A word is asked for once where steps
    that follow one another need it, but never for two walks: memory may have changed between them.
    Of the steps asked for, ``depth`` may wait, so every answer has a place and is taken as it comes.

    One step a cycle. Bytes above an element's length are whatever lies there.

    Parameters: ``bus_bytes``, a power of two; ``max_bytes`` of an element; ``unit_bytes``, a power of two of
    which every address is a multiple; ``depth``.

    Members
    -------
    i : stream of :func:`hw.convolution.walk.job_layout` of TAG
    o : stream of :func:`read_layout`
    o_request, i_response : numbers of bus words, and the words, in order
    """

    def __init__(self, *, bus_bytes: int, max_bytes: int, unit_bytes: int, depth: int) -> None:
        self.bus_bytes, self.max_bytes, self.unit_bytes, self.depth = bus_bytes, max_bytes, unit_bytes, depth
        self.word_bits = (bus_bytes - 1).bit_length()
        self.n_words = max(1, -(-(max_bytes + bus_bytes - min(unit_bytes, bus_bytes)) // bus_bytes))
        """Bus words that an element lies in at most."""
        super().__init__(
            {
                "i": In(stream.Signature(job_layout(TAG))),
                "o": Out(stream.Signature(read_layout(max_bytes))),
                "o_request": Out(stream.Signature(ADDRESS_BITS - self.word_bits)),
                "i_response": In(stream.Signature(8 * bus_bytes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.walker = walker = Walker(TAG)
        step = Signal(self._step_layout())
        width = step.shape().size
        m.submodules.steps = steps = Fifo(FifoConfig(width_bits=width, depth=self.depth))
        m.submodules.answers = words = Fifo(FifoConfig(width_bits=8 * self.bus_bytes, depth=self.depth))
        wiring.connect(m, wiring.flipped(self.i), walker.i)
        wiring.connect(m, wiring.flipped(self.i_response), words.i)
        self._ask(m, walker.o, step, steps.i)
        self._assemble(m, data.View(step.shape(), steps.o.payload), steps.o, words.o)
        return m

    def _step_layout(self) -> data.StructLayout:
        """One bus word of one element: its place among them, where the element begins in the first of them,
        whether it is asked for (``fresh``) or the same as before, and whether it ends the element."""
        return data.StructLayout(
            {
                "place": range(max(2, self.n_words)),
                "offset": range(max(2, self.bus_bytes // self.unit_bytes)),
                "fresh": 1,
                "ends": 1,
                "tag": TAG_BITS,
                "first": 1,
                "last": 1,
            }
        )

    def _ask(self, m: Module, element, step: data.View, steps) -> None:
        """From elements to steps and requests."""
        of = element.payload
        begins = of.address[: self.word_bits]
        word = Signal.like(self.o_request.payload)
        before = Signal.like(word)
        """The word that the step before needed."""
        goes = Signal()
        unit_bits = self.unit_bytes.bit_length() - 1
        m.d.comb += [
            word.eq(of.address[self.word_bits :] + step.place),
            step.offset.eq(begins[unit_bits:]),
            step.fresh.eq((of.first & (step.place == 0)) | (word != before)),
            step.ends.eq(
                (((step.place + 1) << self.word_bits) >= begins + of.n_bytes)
                | (step.place == self.n_words - 1)  # longer elements are cut, not waited for
            ),
            step.tag.eq(of.extra.tag),
            step.first.eq(of.first),
            step.last.eq(of.last),
            steps.payload.eq(Value.cast(step)),
            self.o_request.payload.eq(word),
            self.o_request.valid.eq(element.valid & step.fresh & steps.ready),
            steps.valid.eq(element.valid & (~step.fresh | self.o_request.ready)),
            goes.eq(steps.valid & steps.ready),
            element.ready.eq(goes & step.ends),
        ]
        with m.If(goes):
            m.d.sync += [before.eq(word), step.place.eq(Mux(step.ends, 0, step.place + 1))]

    def _assemble(self, m: Module, step: data.View, steps, words) -> None:
        """From steps and answers to elements: the words side by side, shifted down."""
        held = Signal(8 * self.bus_bytes, reset_less=True)
        earlier = [Signal.like(held, name=f"word{place}") for place in range(self.n_words - 1)]
        word = Signal.like(held)
        takes, has_room = Signal(), Signal()
        o = self.o.payload
        m.d.comb += [
            word.eq(Mux(step.fresh, words.payload, held)),
            has_room.eq(~step.ends | ~self.o.valid | self.o.ready),
            takes.eq(steps.valid & (~step.fresh | words.valid) & has_room),
            steps.ready.eq(takes),
            words.ready.eq(takes & step.fresh),
        ]
        window = Cat(Mux(step.place == place, word, other) for place, other in enumerate(earlier))
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(takes):
            m.d.sync += held.eq(word)
            m.d.sync += [
                other.eq(Mux(step.place == place, word, other)) for place, other in enumerate(earlier)
            ]
            with m.If(step.ends):
                m.d.sync += [
                    self.o.valid.eq(1),
                    o.data.eq(Cat(window, word) >> (step.offset * (8 * self.unit_bytes))),
                    o.tag.eq(step.tag),
                    o.first.eq(step.first),
                    o.last.eq(step.last),
                ]
