# SPDX-License-Identifier: MIT
"""Amaranth implementation of the transposer."""

from amaranth import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.systolic.buffer import rotated

from .config import CHANNEL_BITS, ELEMENT_BITS, NARROW_BITS, PIXEL_BITS, TransposeConfig


def map_layout() -> data.StructLayout:
    """Payload of ``i_map``, see :class:`hw.transpose.config.Map`."""
    return data.StructLayout({"n_pixels": PIXEL_BITS, "n_channels": CHANNEL_BITS, "wide": 1})


def lanes_layout(config: TransposeConfig) -> data.ArrayLayout:
    """Payload of ``o``."""
    return data.ArrayLayout(signed(ELEMENT_BITS), config.lanes)


class Transpose(wiring.Component):
    """Blocks of C pixels of C channels in, C channels of C pixels out: a beat a cycle both ways.

    Lane k of beat p of a block goes to bank (k + p) mod C, so that what leaves together, of one k, lies in
    different banks, at places of their own. Two halves: one is written while the other one is read. At the
    edges of a map fewer beats come or leave; lanes without a pixel are 0.

    Members
    -------
    i_map : stream of :func:`map_layout`; taken with the last beat of the map before, at the earliest
    i : stream of C lanes of 16 bits, or (of maps that are not wide) of 8 bits in the lower half; what is not
        a channel has any value
    o : stream of :func:`lanes_layout`
    """

    def __init__(self, config: TransposeConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_map": In(stream.Signature(map_layout())),
                "i": In(stream.Signature(ELEMENT_BITS * config.lanes)),
                "o": Out(stream.Signature(lanes_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes = self.config.lanes
        full = Signal(2)
        """Of each half, from the cycle after its last beat came to the one in which its last one is read."""
        n_in, n_out = (
            [Signal(range(lanes + 1), name=f"{name}{h}") for h in range(2)] for name in ("in", "out")
        )
        """Beats of the block in each half."""
        banks = []
        for number in range(lanes):
            banks.append(memory.Memory(shape=unsigned(ELEMENT_BITS), depth=2 * lanes, init=[]))
            m.submodules[f"bank{number}"] = banks[-1]
        filled = self._write(m, banks, full, n_in, n_out)
        emptied = self._read(m, banks, full, n_in, n_out)
        m.d.sync += full.eq((full | filled) & ~emptied)
        return m

    def _write(self, m: Module, banks: list, full: Signal, n_in: list, n_out: list) -> Signal:
        """Beats of a map to a half; returns the half that is full with this one, as a bit."""
        lanes = self.config.lanes
        of = Signal(map_layout(), reset_less=True)
        """The map under way, its number of pixels being those left."""
        channels_left = Signal(CHANNEL_BITS)
        active, half, beat = Signal(), Signal(), Signal(range(lanes))
        takes, ends_block, ends_row, ends_map = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(active & ~full.bit_select(half, 1)),
            takes.eq(self.i.valid & self.i.ready),
            ends_block.eq((beat == lanes - 1) | (beat == of.n_pixels - 1)),
            ends_row.eq(ends_block & (channels_left <= lanes)),
            ends_map.eq(takes & ends_row & (of.n_pixels <= lanes)),
            self.i_map.ready.eq(~active | ends_map),
        ]
        filled = Signal(2)
        with m.If(takes):
            m.d.sync += beat.eq(beat + 1)
            with m.If(ends_block):
                m.d.comb += filled.bit_select(half, 1).eq(1)
                m.d.sync += [beat.eq(0), half.eq(~half), channels_left.eq(channels_left - lanes)]
                for which in range(2):
                    with m.If(half == which):
                        m.d.sync += [
                            n_in[which].eq(beat + 1),
                            n_out[which].eq(Mux(channels_left > lanes, lanes, channels_left)),
                        ]
            with m.If(ends_row):
                m.d.sync += [channels_left.eq(of.n_channels), of.n_pixels.eq(of.n_pixels - lanes)]
        with m.If(ends_map):
            m.d.sync += active.eq(0)
        with m.If(self.i_map.valid & self.i_map.ready):
            m.d.sync += [
                of.eq(self.i_map.payload),
                channels_left.eq(self.i_map.payload.n_channels),
                active.eq(1),
            ]

        elements = []
        for lane in range(lanes):
            element = Signal(signed(ELEMENT_BITS), name=f"element{lane}")
            narrow = self.i.payload.word_select(lane, NARROW_BITS).as_signed()
            wide = self.i.payload.word_select(lane, ELEMENT_BITS).as_signed()
            m.d.comb += element.eq(Mux(of.wide, wide, narrow))
            elements.append(element)
        turned = rotated(m, elements, beat, "turned_in", down=True)
        for bank, element in zip(banks, turned, strict=True):
            port = bank.write_port()
            m.d.comb += [port.en.eq(takes), port.addr.eq(half * lanes + beat), port.data.eq(element)]
        return filled

    def _read(self, m: Module, banks: list, full: Signal, n_in: list, n_out: list) -> Signal:
        """Channels of a full half; returns the half that is read with this one, as a bit."""
        lanes = self.config.lanes
        half, channel, turn = Signal(), Signal(range(lanes)), Signal(range(lanes), reset_less=True)
        n_pixels = Signal(range(lanes + 1), reset_less=True)
        flow, reads, ends = Signal(), Signal(), Signal()
        emptied = Signal(2)
        m.d.comb += [
            flow.eq(~self.o.valid | self.o.ready),
            reads.eq(flow & full.bit_select(half, 1)),
            ends.eq(channel == Mux(half, n_out[1], n_out[0]) - 1),
            emptied.bit_select(half, 1).eq(reads & ends),
        ]
        with m.If(flow):
            m.d.sync += self.o.valid.eq(reads)
        with m.If(reads):
            m.d.sync += [
                turn.eq(channel),
                n_pixels.eq(Mux(half, n_in[1], n_in[0])),
                channel.eq(Mux(ends, 0, channel + 1)),
                half.eq(half ^ ends),
            ]
        found = []
        for number, bank in enumerate(banks):
            port = bank.read_port()
            place = Mux(channel > number, number + lanes - channel, number - channel)
            m.d.comb += [port.en.eq(reads), port.addr.eq(half * lanes + place)]
            found.append(port.data)
        for lane, element in enumerate(rotated(m, found, turn, "turned_out")):
            m.d.comb += self.o.payload[lane].eq(Mux(lane < n_pixels, element, 0))
        return emptied
