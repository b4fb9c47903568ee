# SPDX-License-Identifier: MIT
"""Elements of maps to memory."""

from enum import IntEnum

from amaranth import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.epilogue.config import MAX_READERS, NARROW_BITS, OUT_BITS

from .config import ADDRESS_BITS, MAP_UNIT_BYTES, UNIT_BYTES
from .walk import Walker, job_layout

N_OUTPUTS = MAX_READERS + 1
"""Maps that are written side by side: of each reader, and the mask."""


class Format(IntEnum):
    """How the lanes of 16 bits become bytes."""

    BYTES = 0
    """The low byte of each."""
    HALVES = 1
    """Both bytes of each, low byte first."""
    PLANES = 2
    """The high bytes, and the low ones ``plane_stride`` further on."""
    BITS = 3
    """The mask instead, a bit each."""


PLACING = data.StructLayout({"format": 2, "plane_stride": ADDRESS_BITS})
"""What a walk to write says of its elements, see :class:`Format`."""


def output_layout() -> data.StructLayout:
    """Payload of ``i_output``: where the elements of one reader's map, or of the mask, go."""
    return data.StructLayout({"reader": range(N_OUTPUTS), "job": job_layout(PLACING)})


def lanes_layout(columns: int) -> data.StructLayout:
    """Payload of ``i``: the lanes of one element, and of which reader's map, or the mask."""
    lanes = data.ArrayLayout(signed(OUT_BITS), columns)
    return data.StructLayout({"data": lanes, "mask": columns, "reader": range(N_OUTPUTS)})


def write_layout(bus_bytes: int) -> data.StructLayout:
    """Payload of ``o_write``: number of a bus word, its bytes, and which of them are written."""
    bits = ADDRESS_BITS - (bus_bytes - 1).bit_length()
    return data.StructLayout({"address": bits, "data": 8 * bus_bytes, "strobe": bus_bytes})


class Writer(wiring.Component):
    """Elements to the addresses of walks, one for each reader and one for the mask, in the order in which
    they come.

    An element goes in steps, one for each bus word that it lies in. Bytes of a map that meet in a word are
    written together where no other word of this map came between; the rest is written when a walk ends. So
    what is written, and in which order, does not depend on time. Bytes that are not written are 0.

    One step a cycle, and one cycle more at a walk's end.

    Members
    -------
    i_output : stream of :func:`output_layout`
    i : stream of :func:`lanes_layout`; elements wait for their walk
    o_write, i_written : writes of :func:`write_layout`, and an acknowledgement for each
    i_fence : a beat is taken once no walk is under way and all writes are acknowledged
    """

    def __init__(self, *, columns: int, bus_bytes: int, max_writes: int) -> None:
        self.columns, self.bus_bytes, self.max_writes = columns, bus_bytes, max_writes
        self.word_bits = (bus_bytes - 1).bit_length()
        self.n_words = max(1, -(-(columns * OUT_BITS // 8 + bus_bytes - MAP_UNIT_BYTES) // bus_bytes))
        """Bus words that an element lies in at most."""
        super().__init__(
            {
                "i_output": In(stream.Signature(output_layout())),
                "i": In(stream.Signature(lanes_layout(columns))),
                "o_write": Out(stream.Signature(write_layout(bus_bytes))),
                "i_written": In(stream.Signature(1)),
                "i_fence": In(stream.Signature(1)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        walkers = self._walkers(m)
        step = stream.Signature(self._step_layout()).create(path=("step",))
        self._steps(m, walkers, step)
        waiting = [Signal(self._waiting_layout(), name=f"waiting{r}") for r in range(N_OUTPUTS)]
        room, pending = Signal(), Signal(range(self.max_writes + 1))
        """Another word may go; writes without an acknowledgement."""
        sends = self._combine(m, step, waiting, room)
        m.d.comb += [
            self.i_written.ready.eq(1),
            room.eq((~self.o_write.valid | self.o_write.ready) & (pending != self.max_writes)),
            self.i_fence.ready.eq(
                ~self.i_output.valid
                & ~Cat(walker.o.valid for walker in walkers).any()
                & ~Cat(word.valid for word in waiting).any()
                & (pending == 0)
            ),
        ]
        m.d.sync += pending.eq(pending + sends - self.i_written.valid)
        return m

    def _walkers(self, m: Module) -> list[Walker]:
        walkers = [Walker(PLACING) for _ in range(N_OUTPUTS)]
        i = self.i_output
        for reader, walker in enumerate(walkers):
            m.submodules[f"walker{reader}"] = walker
            m.d.comb += [
                walker.i.payload.eq(i.payload.job),
                walker.i.valid.eq(i.valid & (i.payload.reader == reader)),
            ]
        m.d.comb += i.ready.eq(Array(walker.i.ready for walker in walkers)[i.payload.reader])
        return walkers

    def _step_layout(self) -> data.StructLayout:
        """What one element writes into one bus word; ``ends``: the last one of its walk."""
        return data.StructLayout(
            {"write": write_layout(self.bus_bytes), "reader": range(N_OUTPUTS), "ends": 1}
        )

    def _waiting_layout(self) -> data.StructLayout:
        """A word that may still grow, unless its walk ended."""
        return data.StructLayout({"write": write_layout(self.bus_bytes), "valid": 1, "ends": 1})

    def _steps(self, m: Module, walkers: list[Walker], step) -> None:
        """The element at hand, plane by plane, word by word."""
        reader, lanes = self.i.payload.reader, self.i.payload.data
        element = Signal(walkers[0].o.payload.shape())
        known, plane, place = Signal(), Signal(), Signal(range(max(2, self.n_words)))
        m.d.comb += [
            element.eq(Array(Value.cast(walker.o.payload) for walker in walkers)[reader]),
            known.eq(Array(walker.o.valid for walker in walkers)[reader]),
        ]
        format_, address = element.extra.format, Signal(ADDRESS_BITS)
        offset = Signal(range(max(2, self.bus_bytes // UNIT_BYTES)))
        m.d.comb += [
            address.eq(element.address + Mux(plane, element.extra.plane_stride, 0)),
            offset.eq(address[: self.word_bits] >> (UNIT_BYTES.bit_length() - 1)),
        ]
        low, high = (
            Cat(Value.cast(lane).word_select(byte, NARROW_BITS) for lane in lanes) for byte in (0, 1)
        )
        packed = Signal(OUT_BITS * self.columns)
        with m.Switch(format_):
            with m.Case(Format.BYTES):
                m.d.comb += packed.eq(low)
            with m.Case(Format.HALVES):
                m.d.comb += packed.eq(Value.cast(lanes))
            with m.Case(Format.BITS):
                m.d.comb += packed.eq(self.i.payload.mask)
            with m.Default():
                m.d.comb += packed.eq(Mux(plane, low, high))
        bytes_ = Signal(8 * self.bus_bytes * self.n_words)
        strobes = Signal(self.bus_bytes * self.n_words)
        is_written = Cat(
            UNIT_BYTES * unit < element.n_bytes for unit in range(len(packed) // 8 // UNIT_BYTES)
        )
        units = Signal(len(strobes) // UNIT_BYTES)
        m.d.comb += [
            bytes_.eq(packed << (offset * (8 * UNIT_BYTES))),
            units.eq(is_written << offset),
            strobes.eq(Cat(unit.replicate(UNIT_BYTES) for unit in units)),
        ]
        last_place, last_plane, goes = Signal(), Signal(), Signal()
        m.d.comb += [
            last_place.eq(
                (((place + 1) << self.word_bits) >= address[: self.word_bits] + element.n_bytes)
                | (place == self.n_words - 1)  # longer elements are cut, not waited for
            ),
            last_plane.eq((format_ != Format.PLANES) | plane),
            step.payload.write.address.eq(address[self.word_bits :] + place),
            step.payload.write.data.eq(bytes_.word_select(place, 8 * self.bus_bytes)),
            step.payload.write.strobe.eq(strobes.word_select(place, self.bus_bytes)),
            step.payload.reader.eq(reader),
            step.payload.ends.eq(element.last & last_place & last_plane),
            step.valid.eq(self.i.valid & known),
            goes.eq(step.valid & step.ready),
            self.i.ready.eq(goes & last_place & last_plane),
        ]
        for number, walker in enumerate(walkers):
            m.d.comb += walker.o.ready.eq(self.i.ready & (reader == number))
        with m.If(goes):
            m.d.sync += place.eq(Mux(last_place, 0, place + 1))
            with m.If(last_place):
                m.d.sync += plane.eq(~last_plane)

    def _combine(self, m: Module, step, waiting: list, room: Signal) -> Signal:
        """Steps into the word of their map that waits; another word sends it. Returns whether one is sent."""
        of = step.payload
        mine, sent = Signal(waiting[0].shape()), Signal(waiting[0].shape())
        fits, flushes, sends = Signal(), Signal(), Signal()
        m.d.comb += [
            mine.eq(Array(Value.cast(word) for word in waiting)[of.reader]),
            fits.eq(~mine.valid | (mine.write.address == of.write.address)),
            flushes.eq(Cat(word.valid & word.ends for word in waiting).any()),
            step.ready.eq(~flushes & (fits | room)),
            sends.eq(room & (flushes | (step.valid & ~fits))),
            sent.eq(mine),
        ]
        with m.If(self.o_write.ready):
            m.d.sync += self.o_write.valid.eq(0)
        with m.If(sends):
            m.d.sync += [self.o_write.valid.eq(1), self.o_write.payload.eq(sent.write)]
        for reader, word in enumerate(waiting):
            with m.If(word.valid & word.ends):  # one walk at a time can end
                m.d.comb += sent.eq(word)
                with m.If(room):
                    m.d.sync += word.valid.eq(0)
            with m.Elif(step.valid & step.ready & (of.reader == reader)):
                kept = Mux(word.valid & (word.write.address == of.write.address), word.write.strobe, 0)
                m.d.sync += [
                    word.valid.eq(1),
                    word.ends.eq(of.ends),
                    word.write.address.eq(of.write.address),
                    word.write.strobe.eq(kept | of.write.strobe),
                ]
                for byte in range(self.bus_bytes):
                    old, new = (of_.data.word_select(byte, 8) for of_ in (word.write, of.write))
                    m.d.sync += old.eq(Mux(of.write.strobe[byte], new, Mux(kept[byte], old, 0)))
        return sends
