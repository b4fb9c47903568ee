# SPDX-License-Identifier: MIT
"""Weights of a pass, in words of as many taps as a lane has multipliers."""

from amaranth import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import MAX_KERNEL, WEIGHT_BITS, DepthwiseConfig
from .scan import loaded_layout, pass_layout


def weight_layout(config: DepthwiseConfig) -> data.ArrayLayout:
    """Payload of ``i_weight``: one tap of each lane's channel."""
    return data.ArrayLayout(signed(WEIGHT_BITS), config.lanes)


def tap_layout(config: DepthwiseConfig) -> data.StructLayout:
    """What a multiplier of each lane does in a cycle: its weights, and the place of the other operand in the
    window, counted from the latest row and column."""
    return data.StructLayout(
        {"y": range(MAX_KERNEL), "x": range(MAX_KERNEL), "weights": weight_layout(config)}
    )


def word_layout(config: DepthwiseConfig) -> data.ArrayLayout:
    """What all multipliers do in a cycle."""
    return data.ArrayLayout(tap_layout(config), config.n_multipliers)


class Weights(wiring.Component):
    """Takes a pass, then its weights, and hands the pass on; two halves of a memory, so that the weights of
    the next pass come meanwhile.

    A word is filled tap by tap, and each write clears the taps behind it: where a pass's taps do not fill its
    last word, the multipliers left over multiply by 0.

    Members
    -------
    i : stream of :func:`hw.depthwise.scan.pass_layout`
    i_weight : stream of :func:`weight_layout`, by kernel row, then column; as many as the pass has taps
    o : stream of :func:`hw.depthwise.scan.loaded_layout`
    half, word : a word to read, which ``taps`` shows in the next cycle
    taps : of :func:`word_layout`
    last_word : of each half: number of the pass's last word
    frees, freed_half : nobody needs this half's pass any more
    """

    def __init__(self, config: DepthwiseConfig) -> None:
        self.config = config
        self.word_bits = max(1, (config.n_words - 1).bit_length())
        super().__init__(
            {
                "i": In(stream.Signature(pass_layout(config))),
                "i_weight": In(stream.Signature(weight_layout(config))),
                "o": Out(stream.Signature(loaded_layout(config))),
                "half": In(1),
                "word": In(self.word_bits),
                "taps": Out(word_layout(config)),
                "last_word": Out(data.ArrayLayout(self.word_bits, 2)),
                "frees": In(1),
                "freed_half": In(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        n = self.config.n_multipliers
        m.submodules.words = words = memory.Memory(
            shape=word_layout(self.config), depth=2 << self.word_bits, init=[]
        )
        write, read = words.write_port(granularity=1), words.read_port()
        y, x = Signal(range(MAX_KERNEL)), Signal(range(MAX_KERNEL))
        place, word = Signal(range(max(2, n))), Signal(self.word_bits)
        """Of the next weight, in its word; that word."""
        holds, filled, used = Signal(), Signal(), Array(Signal(name=f"used{half}") for half in range(2))
        of, half, weight = self.o.payload.of, self.o.payload.half, Signal()
        m.d.comb += [
            read.addr.eq(Cat(self.word, self.half)),
            self.taps.eq(read.data),
            write.addr.eq(Cat(word, half)),
            self.o.valid.eq(holds & filled),
            self.i.ready.eq(~holds | (self.o.valid & self.o.ready)),
            self.i_weight.ready.eq(holds & ~filled & ~used[half]),
            weight.eq(self.i_weight.valid & self.i_weight.ready),
        ]
        coming = self.i_weight.payload.as_value()
        for number, tap in enumerate(write.data):
            m.d.comb += [
                write.en[number].eq(weight & (place <= number)),
                tap.y.eq(y),
                tap.x.eq(x),
                tap.weights.as_value().eq(Mux(place == number, coming, 0)),
            ]
        with m.If(weight):
            m.d.sync += [x.eq(x - 1), place.eq(place + 1), self.last_word[half].eq(word)]
            with m.If(place == n - 1):
                m.d.sync += [place.eq(0), word.eq(word + 1)]
            with m.If(x == 0):
                m.d.sync += [x.eq(of.last_tap_x), y.eq(y - 1), filled.eq(y == 0)]
        with m.If(self.frees):
            m.d.sync += used[self.freed_half].eq(0)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += [used[half].eq(1), half.eq(~half), holds.eq(0)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [holds.eq(1), filled.eq(0), of.eq(self.i.payload), place.eq(0), word.eq(0)]
            m.d.sync += [y.eq(self.i.payload.last_tap_y), x.eq(self.i.payload.last_tap_x)]
        return m
