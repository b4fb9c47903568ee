# SPDX-License-Identifier: MIT
"""Amaranth implementation of the key or value buffer."""

from amaranth import Cat, Const, Module, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import select

from .config import BANK_ELEMENTS, KvBufferConfig


def load_layout(config: KvBufferConfig) -> data.StructLayout:
    """Payload of ``i_load``: where the next ``n_lines`` (at least 1) lines go.

    ``append`` 0: to the start of ``region``, once that region is free; 1: behind the lines already in it.
    """
    return data.StructLayout({"region": config.region_bits, "append": 1, "n_lines": config.count_bits})


def line_layout(config: KvBufferConfig) -> data.ArrayLayout:
    """Payload of a line of elements."""
    return data.ArrayLayout(signed(config.element_bits), config.n_multipliers)


def line_address(config: KvBufferConfig, region: Value, line: Value) -> Value:
    """Where line ``line`` of a region lies. A long load starts at a half, so nothing is carried."""
    start = Cat(Const(0, config.address_bits - config.region_bits), region)
    return start | line[: config.line_bits]


class KvBuffer(wiring.Component):
    """Regions, so that the next lines load while others are read; one line a cycle each way.

    A line written in one cycle counts in ``n_written``, and can be read, from the next cycle on.

    Members
    -------
    i_load : stream of :func:`load_layout`; taken at the latest with the last line of the load before it
    i_line : stream of :func:`line_layout`; more than ``n_lines`` to a region overwrite its first ones
    address : of each bank, see :func:`line_address`
    enable : of each bank's read port
    elements : of each bank's word, READ_LATENCY_CYCLES after its address
    n_written : lines that can be read of each region
    forget : of each region, in the cycle after which its lines no longer count
    free : of each region, in the cycle of the last read from it
    """

    def __init__(self, config: KvBufferConfig) -> None:
        self.config = config
        word = data.ArrayLayout(signed(config.element_bits), BANK_ELEMENTS)
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config))),
                "i_line": In(stream.Signature(line_layout(config))),
                "address": In(config.address_bits).array(config.n_banks),
                "enable": In(1).array(config.n_banks),
                "elements": Out(word).array(config.n_banks),
                "n_written": Out(config.count_bits).array(config.n_regions),
                "forget": In(config.n_regions),
                "free": In(config.n_regions),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        n_regions = self.config.n_regions
        region = Signal(self.config.region_bits)
        n_left = Signal(self.config.count_bits)
        """Lines of the load still to come."""
        is_free = Signal(n_regions, init=(1 << n_regions) - 1)

        load, line = self.i_load, self.i_line
        written = Signal()
        m.d.comb += [
            line.ready.eq(n_left != 0),
            written.eq(line.valid & line.ready),
            load.ready.eq(
                ((n_left == 0) | (written & (n_left == 1)))
                & (load.payload.append | is_free.bit_select(load.payload.region, 1))
            ),
        ]
        m.d.sync += [n_left.eq(n_left - written), is_free.eq(is_free | self.free)]
        with m.If(load.valid & load.ready):
            m.d.sync += [region.eq(load.payload.region), n_left.eq(load.payload.n_lines)]
            m.d.sync += is_free.bit_select(load.payload.region, 1).eq(0)
        for which, n_written in enumerate(self.n_written):
            with m.If(self.forget[which]):
                m.d.sync += n_written.eq(0)
            with m.Elif(written & (region == which)):
                m.d.sync += n_written.eq(n_written + 1)

        w_address = Signal(self.config.address_bits)
        m.d.comb += w_address.eq(line_address(self.config, region, select(region, list(self.n_written))))
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
