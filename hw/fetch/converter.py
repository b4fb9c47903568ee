# SPDX-License-Identifier: MIT
"""Atoms to elements of 12 bits: unaligned rows of 4 to 12 bits an element."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import (
    CUT_BITS,
    HEAD_DIMS,
    MAX_RECORD_HEADS,
    ONCHIP_BITS,
    PLANE_BITS,
    ROW_UNIT_BITS,
    ConverterConfig,
)
from .shapes import atom_layout, cut_layout, row_layout


class Converter(wiring.Component):
    """Cuts the wanted rows out of the atoms of each record and extends their elements to 12 bits.

    Widths differ by two bits, so every beat of e elements is b / 2 words of 2 e bits, and rows and atoms are
    whole words: one multiplexer per word finds the beat in the current atom and the next one, five to one
    per element cuts it.

    Throughput: one beat of e elements a cycle while atoms come, so e b / 256 atoms a cycle; one cycle more
    for a record whose last beat crosses into a new atom. Latency ``LATENCY_CYCLES``. ``i.ready`` depends on
    ``o.ready`` in the same cycle.

    Members
    -------
    i : stream of ``data`` (256 bits) and ``note``, the same for all atoms of a record
    o : stream of :func:`hw.fetch.shapes.row_layout`
    """

    def __init__(self, config: ConverterConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(atom_layout(CUT_BITS))),
                "o": Out(stream.Signature(row_layout(config.elements_per_beat))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        n_words, width = cfg.atom_words, cfg.word_bits
        words = [Signal(width, name=f"word{k}", reset_less=True) for k in range(n_words)]
        coming = [self.i.payload.data[k * width : (k + 1) * width] for k in range(n_words)]
        held = Signal()
        cut, next_cut = Signal(cut_layout()), cut_layout()(self.i.payload.note)

        position, end = Signal(range(n_words)), Signal(range(2 * n_words))
        part, head = Signal(range(HEAD_DIMS[-1] // cfg.elements_per_beat)), Signal(range(MAX_RECORD_HEADS))
        row_end, final, done = Signal(), Signal(), Signal()
        crosses, fire = Signal(), Signal()
        last_part = Signal.like(part)
        with m.Switch(cut.dim):
            for code, dim in enumerate(HEAD_DIMS):
                with m.Case(code):
                    m.d.comb += last_part.eq(dim // cfg.elements_per_beat - 1)
        m.d.comb += [
            end.eq(position + (cut.bits >> 1)),
            crosses.eq(end > n_words),
            row_end.eq(part == last_part),
            final.eq(head == cut.n_heads - 1),
            self.o.valid.eq(held & (~crosses | self.i.valid)),
            fire.eq(self.o.valid & self.o.ready),
            done.eq(fire & row_end & final),
            self.i.ready.eq(~held | done | (fire & (end >= n_words))),
            self.o.payload.row_end.eq(row_end),
            self.o.payload.dim.eq(cut.dim),
            self.o.payload.head.eq(head),
            self.o.payload.last.eq(cut.last),
        ]
        with m.If(fire):
            m.d.sync += [
                position.eq(end),  # modulo the words of an atom
                part.eq(Mux(row_end, 0, part + 1)),
            ]
            with m.If(row_end):
                m.d.sync += head.eq(Mux(final, 0, head + 1))
        with m.If(self.i.ready):
            # Where a record's last beat took words of the coming atom, that atom is used up with it.
            m.d.sync += held.eq(self.i.valid & ~(done & crosses))
            m.d.sync += [word.eq(new) for word, new in zip(words, coming, strict=True)]
            with m.If(~held | done):
                m.d.sync += [cut.eq(next_cut), position.eq(next_cut.skip * (ROW_UNIT_BITS // width))]
        self._elements(m, self._window(m, [*words, *coming], position), cut)
        return m

    def _window(self, m: Module, words: list, position: Signal) -> list[Signal]:
        """The six words from ``position`` on: a shifter, one stage for each of its bits."""
        needed = ONCHIP_BITS // 2
        for stage in range(len(position)):
            n_left = needed + (1 << len(position)) - (2 << stage)
            source, words = words, []
            for k in range(n_left):
                word = Signal(self.config.word_bits, name=f"shift{stage}_{k}")
                m.d.comb += word.eq(Mux(position[stage], source[k + (1 << stage)], source[k]))
                words.append(word)
        return words

    def _elements(self, m: Module, window: list[Signal], cut) -> None:
        """Cuts the window into elements of ``cut.bits`` and extends them by their sign, or by zeros."""
        width = self.config.word_bits

        def bits_of(low: int, high: int) -> Value:
            """Bits low..high - 1 of the window, which may lie in two words."""
            first, last = low // width, (high - 1) // width
            if first == last:
                return window[first][low - first * width : high - first * width]
            return Cat(window[first][low - first * width :], window[last][: high - last * width])

        elements = []
        for k in range(self.config.elements_per_beat):
            element, sign = Signal(ONCHIP_BITS, name=f"element{k}"), Signal(name=f"sign{k}")
            with m.Switch(cut.bits):
                for bits in PLANE_BITS:
                    with m.Case(bits):
                        raw = bits_of(k * bits, (k + 1) * bits)
                        m.d.comb += [
                            sign.eq(raw[-1] & ~cut.is_unsigned),
                            element.eq(Cat(raw, sign.replicate(ONCHIP_BITS - bits))),
                        ]
            elements.append(element)
        m.d.comb += Value.cast(self.o.payload.data).eq(Cat(*elements))
