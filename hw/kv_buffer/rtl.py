# SPDX-License-Identifier: MIT
"""Amaranth implementation of the key or value buffer."""

from amaranth import Cat, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import BANK_ELEMENTS, KvBufferConfig


def load_layout(config: KvBufferConfig) -> data.StructLayout:
    """Payload of ``i_load``: where the next ``n_lines`` (at least 1) lines go.

    ``append`` 0: to the start of ``half``, once that half is free; 1: behind the lines already in it.
    """
    return data.StructLayout({"half": 1, "append": 1, "n_lines": config.count_bits})


def line_layout(config: KvBufferConfig) -> data.ArrayLayout:
    """Payload of a line of elements."""
    return data.ArrayLayout(signed(config.element_bits), config.n_multipliers)


class KvBuffer(wiring.Component):
    """Two halves, so that the next head's lines load while this head's are read; one line a cycle each way.

    A line written in one cycle counts in ``n_written``, and can be read, from the next cycle on.

    Members
    -------
    i_load : stream of :func:`load_layout`; taken at the latest with the last line of the load before it
    i_line : stream of :func:`line_layout`; more lines than fit in a half overwrite its first ones
    address : of each bank, half in the highest bit
    enable : of each bank's read port
    elements : of each bank's word, READ_LATENCY_CYCLES after its address
    n_written : lines that can be read of each half
    forget : of each half, in the cycle after which its lines no longer count
    free : of each half, in the cycle of the last read from it
    """

    def __init__(self, config: KvBufferConfig) -> None:
        self.config = config
        word = data.ArrayLayout(signed(config.element_bits), BANK_ELEMENTS)
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config))),
                "i_line": In(stream.Signature(line_layout(config))),
                "address": In(config.line_bits + 1).array(config.n_banks),
                "enable": In(1).array(config.n_banks),
                "elements": Out(word).array(config.n_banks),
                "n_written": Out(config.count_bits).array(2),
                "forget": In(2),
                "free": In(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        half = Signal()
        n_left = Signal(self.config.count_bits)
        """Lines of the load still to come."""
        is_free = Signal(2, init=0b11)

        load, line = self.i_load, self.i_line
        written = Signal()
        m.d.comb += [
            line.ready.eq(n_left != 0),
            written.eq(line.valid & line.ready),
            load.ready.eq(
                ((n_left == 0) | (written & (n_left == 1)))
                & (load.payload.append | is_free.bit_select(load.payload.half, 1))
            ),
        ]
        m.d.sync += [n_left.eq(n_left - written), is_free.eq(is_free | self.free)]
        with m.If(load.valid & load.ready):
            m.d.sync += [half.eq(load.payload.half), n_left.eq(load.payload.n_lines)]
            m.d.sync += is_free.bit_select(load.payload.half, 1).eq(0)
        for which, n_written in enumerate(self.n_written):
            with m.If(self.forget[which]):
                m.d.sync += n_written.eq(0)
            with m.Elif(written & (half == which)):
                m.d.sync += n_written.eq(n_written + 1)

        w_address = Signal(self.config.line_bits + 1)
        in_half = Signal(self.config.line_bits)
        with m.If(half):
            m.d.comb += in_half.eq(self.n_written[1])
        with m.Else():
            m.d.comb += in_half.eq(self.n_written[0])
        m.d.comb += w_address.eq(Cat(in_half, half))
        word_bits = BANK_ELEMENTS * self.config.element_bits
        for bank in range(self.config.n_banks):
            words = memory.Memory(shape=unsigned(word_bits), depth=2 * self.config.n_lines, init=[])
            m.submodules[f"bank{bank}"] = words
            write, read = words.write_port(), words.read_port()
            operands = Signal(word_bits, name=f"operands{bank}", reset_less=True)
            m.d.comb += [
                write.en.eq(written),
                write.addr.eq(w_address),
                write.data.eq(Value.cast(line.payload).word_select(bank, word_bits)),
                read.en.eq(self.enable[bank]),
                read.addr.eq(self.address[bank]),
                Value.cast(self.elements[bank]).eq(operands),
            ]
            m.d.sync += operands.eq(read.data)
        return m
