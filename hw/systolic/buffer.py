# SPDX-License-Identifier: MIT
"""The double-buffered SRAM of activations, in banks that are read at addresses of their own."""

from amaranth import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import OPERAND_BITS, QUAD_BYTES, SystolicConfig


def load_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``i_load``: the next ``n_words`` (at least 1) words go to ``half``, once it is free."""
    return data.StructLayout({"half": 1, "n_words": config.count_bits})


def word_layout(config: SystolicConfig) -> data.ArrayLayout:
    """Payload of ``i_word``: R bytes, a quad for each bank."""
    return data.ArrayLayout(signed(OPERAND_BITS), config.rows)


def quad_layout(config: SystolicConfig) -> data.StructLayout:
    """Number of a quad within a half: words x banks + bank, modulo the half's size."""
    return data.StructLayout({"bank": range(config.n_banks), "word": config.word_bits})


def plus(m: Module, a: data.View, b: data.View, config: SystolicConfig, name: str) -> data.View:
    """The sum of two numbers of quads; banks need not be a power of two."""
    total = Signal(quad_layout(config), name=name)
    bank = Signal(range(2 * config.n_banks - 1), name=f"{name}_bank")
    carry = Signal(name=f"{name}_carry")
    m.d.comb += [
        bank.eq(a.bank + b.bank),
        carry.eq(bank >= config.n_banks),
        total.bank.eq(Mux(carry, bank - config.n_banks, bank)),
        total.word.eq(a.word + b.word + carry),
    ]
    return total


def rotated(m: Module, values: list[Value], by: Value, name: str, *, down: bool = False) -> list[Value]:
    """``values[(i + by) % n]`` for each i (``down``: i - by), in a barrel shifter of muxes."""
    n = len(values)
    for level, is_set in enumerate(by):
        step = -(1 << level) if down else 1 << level
        moved = [Signal.like(values[0], name=f"{name}_{level}_{i}") for i in range(n)]
        m.d.comb += [to.eq(Mux(is_set, values[(i + step) % n], values[i])) for i, to in enumerate(moved)]
        values = moved
    return values


class ActivationBuffer(wiring.Component):
    """Two halves, so that the next activations load while these are read; one word a cycle each way.

    Word w of a half is spread over all banks, a quad each. Every bank is read at a word of its own.
    A word written in one cycle counts in ``n_written``, and can be asked for, from the next cycle on.

    Members
    -------
    i_load : stream of :func:`load_layout`; taken at the latest with the last word of the load before it
    i_word : stream of :func:`word_layout`
    half, address : word of that half, for each bank
    quads : what lies there, two cycles after its address
    n_written : words that can be read of each half
    free : of each half, in the cycle of the last read from it; its words no longer count in the next one
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config))),
                "i_word": In(stream.Signature(word_layout(config))),
                "half": In(1),
                "address": In(config.word_bits).array(config.n_banks),
                "quads": Out(QUAD_BYTES * OPERAND_BITS).array(config.n_banks),
                "n_written": Out(config.count_bits).array(2),
                "free": In(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        half, written = Signal(), Signal()
        n_left = Signal(cfg.count_bits)
        """Words of the load still to come."""
        is_free = Signal(2, init=0b11)
        m.d.comb += [
            self.i_word.ready.eq(n_left != 0),
            written.eq(self.i_word.valid & self.i_word.ready),
            self.i_load.ready.eq(
                ((n_left == 0) | (written & (n_left == 1))) & is_free.bit_select(self.i_load.payload.half, 1)
            ),
        ]
        m.d.sync += [n_left.eq(n_left - written), is_free.eq(is_free | self.free)]
        with m.If(self.i_load.valid & self.i_load.ready):
            m.d.sync += [half.eq(self.i_load.payload.half), n_left.eq(self.i_load.payload.n_words)]
            m.d.sync += is_free.bit_select(self.i_load.payload.half, 1).eq(0)
        for which, n_written in enumerate(self.n_written):
            with m.If(self.free[which]):
                m.d.sync += n_written.eq(0)
            with m.Elif(written & (half == which)):
                m.d.sync += n_written.eq(n_written + 1)

        in_half = Signal(cfg.word_bits)
        m.d.comb += in_half.eq(Mux(half, self.n_written[1], self.n_written[0]))
        quad_bits = QUAD_BYTES * OPERAND_BITS
        for b in range(cfg.n_banks):
            bank = memory.Memory(shape=unsigned(quad_bits), depth=2 * cfg.n_words, init=[])
            m.submodules[f"bank{b}"] = bank
            write, read = bank.write_port(), bank.read_port()
            asked = Signal(cfg.word_bits + 1, name=f"asked{b}", reset_less=True)
            m.d.sync += asked.eq(Cat(self.address[b], self.half))
            m.d.comb += [
                write.en.eq(written),
                write.addr.eq(Cat(in_half, half)),
                write.data.eq(Value.cast(self.i_word.payload).word_select(b, quad_bits)),
                read.addr.eq(asked),
                self.quads[b].eq(read.data),
            ]
        return m
