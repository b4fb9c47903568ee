# SPDX-License-Identifier: MIT
"""The double-buffered SRAM of activations."""

from amaranth import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import OPERAND_BITS, SystolicConfig


def load_layout(config: SystolicConfig) -> data.StructLayout:
    """Payload of ``i_load``: the next ``n_words`` (at least 1) words go to ``half``, once it is free."""
    return data.StructLayout({"half": 1, "n_words": config.count_bits})


def word_layout(config: SystolicConfig) -> data.ArrayLayout:
    """Payload of ``i_word``: R bytes."""
    return data.ArrayLayout(signed(OPERAND_BITS), config.rows)


class ActivationBuffer(wiring.Component):
    """Two halves, so that the next activations load while these are read; one word a cycle each way.

    A word written in one cycle counts in ``n_written``, and can be read, from the next cycle on.

    Members
    -------
    i_load : stream of :func:`load_layout`; taken at the latest with the last word of the load before it
    i_word : stream of :func:`word_layout`
    address : half in the highest bit
    word : what lies there, a cycle after its address
    n_written : words that can be read of each half
    free : of each half, in the cycle of the last read from it; its words no longer count in the next one
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config))),
                "i_word": In(stream.Signature(word_layout(config))),
                "address": In(config.word_bits + 1),
                "word": Out(word_layout(config)),
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

        words = memory.Memory(shape=unsigned(cfg.rows * OPERAND_BITS), depth=2 * cfg.n_words, init=[])
        m.submodules.words = words
        write, read = words.write_port(), words.read_port()
        in_half = Signal(cfg.word_bits)
        with m.If(half):
            m.d.comb += in_half.eq(self.n_written[1])
        with m.Else():
            m.d.comb += in_half.eq(self.n_written[0])
        m.d.comb += [
            write.en.eq(written),
            write.addr.eq(Cat(in_half, half)),
            write.data.eq(self.i_word.payload),
            read.addr.eq(self.address),
            Value.cast(self.word).eq(read.data),
        ]
        return m
