# SPDX-License-Identifier: MIT
"""Amaranth implementations of the stream parts. Valid never waits for ready; payload stays until taken."""

from amaranth import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import FifoConfig, PackerConfig, RegroupConfig, SkidConfig, WidthChangeConfig


class Fifo(wiring.Component):
    """Queue with a registered output: one word in and one out per cycle, latency 1 cycle.

    The memory has a synchronous read port whose data register is the output stage; a word that meets an
    empty memory goes past it, so an empty queue still has latency 1.

    Members
    -------
    i, o : stream of ``unsigned(width_bits)``
    """

    def __init__(self, config: FifoConfig) -> None:
        self.config = config
        shape = unsigned(config.width_bits)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = self.config.depth - 1  # the output register holds one more
        m.submodules.words = words = memory.Memory(
            shape=unsigned(self.config.width_bits), depth=depth, init=[]
        )
        write, read = words.write_port(), words.read_port()

        level = Signal(range(depth + 1))
        bypass = Signal(self.config.width_bits, reset_less=True)
        from_bypass = Signal()

        fetch, stored = Signal(), Signal()
        go_past = Signal()
        m.d.comb += [
            self.i.ready.eq(level != depth),
            fetch.eq((~self.o.valid | self.o.ready) & (level != 0)),
            go_past.eq((~self.o.valid | self.o.ready) & (level == 0)),
            stored.eq(self.i.valid & self.i.ready & ~go_past),
            write.data.eq(self.i.payload),
            write.en.eq(stored),
            read.en.eq(fetch),
            self.o.payload.eq(Mux(from_bypass, bypass, read.data)),
        ]
        m.d.sync += level.eq(level + stored - fetch)
        for enable, address in ((stored, write.addr), (fetch, read.addr)):
            with m.If(enable):
                m.d.sync += address.eq(Mux(address == depth - 1, 0, address + 1))
        with m.If(fetch):
            m.d.sync += [self.o.valid.eq(1), from_bypass.eq(0)]
        with m.Elif(go_past):
            m.d.sync += [self.o.valid.eq(self.i.valid), from_bypass.eq(1), bypass.eq(self.i.payload)]
        return m


class SkidBuffer(wiring.Component):
    """Register slice: every output, ``i.ready`` included, comes from a register. Latency 1, full rate.

    Members
    -------
    i, o : stream of ``unsigned(width_bits)``
    """

    def __init__(self, config: SkidConfig) -> None:
        self.config = config
        shape = unsigned(config.width_bits)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        m = Module()
        spare = Signal(self.config.width_bits, reset_less=True)
        spare_valid = Signal()
        m.d.comb += self.i.ready.eq(~spare_valid)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [
                self.o.valid.eq(spare_valid | self.i.valid),
                self.o.payload.eq(Mux(spare_valid, spare, self.i.payload)),
                spare_valid.eq(0),
            ]
        with m.Elif(self.i.valid & ~spare_valid):
            m.d.sync += [spare.eq(self.i.payload), spare_valid.eq(1)]
        return m


class WidthChange(wiring.Component):
    """Splits wide beats or joins narrow ones; lane 0 is the earliest element. Latency 1.

    The wide side is kept full: elements per cycle = min(lanes_in, lanes_out). ``i.ready`` depends on
    ``o.ready`` in the same cycle.

    Members
    -------
    i : stream of ``ArrayLayout(element_bits, lanes_in)``
    o : stream of ``ArrayLayout(element_bits, lanes_out)``
    """

    def __init__(self, config: WidthChangeConfig) -> None:
        self.config = config
        element = unsigned(config.element_bits)
        super().__init__(
            {
                "i": In(stream.Signature(data.ArrayLayout(element, config.lanes_in))),
                "o": Out(stream.Signature(data.ArrayLayout(element, config.lanes_out))),
            }
        )

    def elaborate(self, platform) -> Module:
        return self._join() if self.config.lanes_in < self.config.lanes_out else self._split()

    def _join(self) -> Module:
        m = Module()
        ratio = self.config.lanes_out // self.config.lanes_in
        i, o = Value.cast(self.i.payload), Value.cast(self.o.payload)
        part = Signal(range(ratio))
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [o.eq(Cat(o, i)[len(i) :]), part.eq(Mux(part == ratio - 1, 0, part + 1))]
            with m.If(part == ratio - 1):
                m.d.sync += self.o.valid.eq(1)
        return m

    def _split(self) -> Module:
        m = Module()
        ratio = self.config.lanes_in // self.config.lanes_out
        i, o = Value.cast(self.i.payload), Value.cast(self.o.payload)
        word = Signal(len(i), reset_less=True)
        left = Signal(range(ratio + 1))
        """Parts of ``word`` not yet delivered."""
        m.d.comb += [
            o.eq(word),  # the lowest part; wider bits are cut off
            self.o.valid.eq(left != 0),
            self.i.ready.eq((left == 0) | ((left == 1) & self.o.ready)),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [word.eq(i), left.eq(ratio)]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += [word.eq(word >> len(o)), left.eq(left - 1)]
        return m


def packed_layout(element_bits: int, lanes: int) -> data.StructLayout:
    """Payload of a packed beat: ``count`` elements in the lowest lanes, zeros above, ``last`` of its list."""
    return data.StructLayout(
        {
            "data": data.ArrayLayout(unsigned(element_bits), lanes),
            "count": lanes.bit_length(),
            "last": 1,
        }
    )


class Packer(wiring.Component):
    """Joins packed beats of any count into full ones; a list ends with ``last`` and flushes the rest.

    A list of n elements leaves in ceil(n / lanes) beats, the last one marked; where the last input beat is
    empty and nothing is left to send, an empty marked beat follows.
    Combinational from ``i`` to ``o`` (latency 0). When the last beat overflows, the rest leaves in the cycle
    after, in which ``i.ready`` is low.

    Members
    -------
    i, o : stream of :func:`packed_layout`; lanes at and above ``count`` must be 0 on ``i`` and are on ``o``
    """

    def __init__(self, config: PackerConfig) -> None:
        self.config = config
        shape = packed_layout(config.element_bits, config.lanes)
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform) -> Module:
        m = Module()
        lanes, width = self.config.lanes, self.config.element_bits
        i, o = self.i.payload, self.o.payload

        rest = [Signal(width, name=f"rest{lane}", reset_less=True) for lane in range(lanes)]
        n_rest = Signal(range(max(lanes, 2)))
        flush = Signal()
        """The last beat overflowed: its rest is still to be delivered."""

        rotated = [i.data[lane] for lane in range(lanes)]
        for stage in range((lanes - 1).bit_length()):
            source, rotated = rotated, []
            for lane in range(lanes):
                moved = Signal(width, name=f"rotate{stage}_{lane}")
                m.d.comb += moved.eq(Mux(n_rest[stage], source[(lane - (1 << stage)) % lanes], source[lane]))
                rotated.append(moved)

        joined = [Signal(width, name=f"joined{lane}") for lane in range(lanes)]
        for lane in range(lanes):
            m.d.comb += joined[lane].eq(Mux(lane < n_rest, rest[lane], Mux(flush, 0, rotated[lane])))
            m.d.comb += o.data[lane].eq(joined[lane])

        total = Signal(range(2 * lanes))
        full, over, emit = Signal(), Signal(), Signal()
        m.d.comb += [
            total.eq(Mux(flush, n_rest, n_rest + i.count)),
            full.eq(total >= lanes),
            over.eq(total > lanes),
            emit.eq(full | i.last),
            o.count.eq(Mux(full, lanes, total)),
            o.last.eq(flush | (i.last & ~over)),
            self.o.valid.eq(flush | (self.i.valid & emit)),
            self.i.ready.eq(~flush & (self.o.ready | ~emit)),
        ]
        with m.If(flush):
            with m.If(self.o.ready):
                m.d.sync += [flush.eq(0), n_rest.eq(0)]
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += [
                n_rest.eq(Mux(emit, Mux(full, total - lanes, 0), total)),
                flush.eq(i.last & over),
            ]
            m.d.sync += [rest[lane].eq(Mux(emit, rotated[lane], joined[lane])) for lane in range(lanes)]
        return m


class Regroup(wiring.Component):
    """Rows of packed beats of any count, to full beats of another width; ``last`` on a row's last beat.

    A packer as wide as the wider side; where the output is narrower, its beats are then split, and parts that
    hold nothing are left out. min(lanes_out, lanes offered) elements a cycle, latency
    ``config.latency_cycles``. ``i.ready`` depends on ``o.ready`` in the same cycle.

    Members
    -------
    i : stream of :func:`packed_layout` of ``lanes_in``; lanes at and above ``count`` must be 0
    o : stream of :func:`packed_layout` of ``lanes_out``; lanes at and above ``count`` are 0
    """

    def __init__(self, config: RegroupConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i": In(stream.Signature(packed_layout(config.element_bits, config.lanes_in))),
                "o": Out(stream.Signature(packed_layout(config.element_bits, config.lanes_out))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.packer = packer = Packer(self.config.packer)
        m.d.comb += [
            Value.cast(packer.i.payload.data).eq(Value.cast(self.i.payload.data)),
            packer.i.payload.count.eq(self.i.payload.count),
            packer.i.payload.last.eq(self.i.payload.last),
            packer.i.valid.eq(self.i.valid),
            self.i.ready.eq(packer.i.ready),
        ]
        if self.config.n_parts == 1:
            wiring.connect(m, packer.o, wiring.flipped(self.o))
        else:
            self._split(m, packer)
        return m

    def _split(self, m: Module, packer: Packer) -> None:
        """One wide beat held, its lowest part on the output."""
        lanes_out = self.config.lanes_out
        o = self.o.payload
        rest = Signal(packer.o.payload.shape(), reset_less=True)
        """What is still to be delivered of the beat."""
        ends = Signal()
        m.d.comb += [
            ends.eq(rest.count <= lanes_out),
            Value.cast(o.data).eq(Value.cast(rest.data)),  # the lowest part; wider bits are cut off
            o.count.eq(Mux(ends, rest.count, lanes_out)),
            o.last.eq(rest.last & ends),
            packer.o.ready.eq(~self.o.valid | (self.o.ready & ends)),
        ]
        with m.If(packer.o.ready):
            m.d.sync += [self.o.valid.eq(packer.o.valid), rest.eq(packer.o.payload)]
        with m.Elif(self.o.ready):
            m.d.sync += [
                Value.cast(rest.data).eq(Value.cast(rest.data) >> len(Value.cast(o.data))),
                rest.count.eq(rest.count - lanes_out),
            ]
