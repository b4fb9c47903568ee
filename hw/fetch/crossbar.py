# SPDX-License-Identifier: MIT
"""Ports to memory channels and back: queues, two crossbars, and the atoms of a port in order again."""

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .config import ATOM_BITS, CrossbarConfig
from .shapes import atom_address_layout, atom_layout, memory_request_layout, memory_response_layout


def round_robin(m: Module, name: str, wanted: list, enable) -> Signal:
    """Grants one of ``wanted`` where ``enable``: the first after the last granted, else the first of all."""
    n = len(wanted)
    asking, ahead = Signal(n, name=f"{name}_asking"), Signal(n, name=f"{name}_ahead")
    chosen, granted = Signal(n, name=f"{name}_chosen"), Signal(n, name=f"{name}_granted")
    turn = Signal(n, name=f"{name}_turn", init=(1 << n) - 1)
    """Ones from the next candidate up."""
    m.d.comb += [
        asking.eq(Cat(*wanted)),
        ahead.eq(asking & turn),
        chosen.eq(Mux(ahead.any(), ahead, asking)),
        granted.eq(Mux(enable, chosen & (~chosen + 1), 0)),  # the lowest one
    ]
    with m.If(granted.any()):
        # All ones above the granted bit; where it was the highest, none, and the next round starts afresh.
        m.d.sync += turn.eq(~((granted << 1) - 1))
    return granted


class Crossbar(wiring.Component):
    """Reads the atoms that each port asks for and delivers them to the port in the order asked.

    Each port has a queue of addresses and a reorder buffer of atoms, ``depth`` deep. An address leaves its
    queue with a slot of the buffer reserved; its tag names port and slot. Each cycle every channel takes the
    address of one port (round robin over those whose next address is in that channel), and every port takes
    the answer of one channel (round robin). A channel answers in order; different channels need not, and the
    reorder buffer delivers slot after slot.

    Throughput: one atom per channel and cycle, and per port and cycle. An uncontended atom takes
    ``config.LATENCY_CYCLES`` plus the memory's latency from ``i`` to ``o``. Answers always find room;
    ``i_response{c}`` is held up only while another channel answers the same port.

    Members
    -------
    i{p} : stream of ``address`` (number of an atom; its lowest bits are its channel) and ``note``
    o{p} : stream of ``data`` (256 bits) and the ``note`` of its address
    o_request{c} : stream of ``address`` within the channel and ``tag``
    i_response{c} : stream of ``data`` and ``tag``
    """

    def __init__(self, config: CrossbarConfig) -> None:
        self.config = config
        wanted = stream.Signature(atom_address_layout(config.atom_address_bits, config.note_bits))
        atom = stream.Signature(atom_layout(config.note_bits))
        super().__init__(
            {
                **{f"i{port}": In(wanted) for port in range(config.n_ports)},
                **{f"o{port}": Out(atom) for port in range(config.n_ports)},
                **{
                    f"o_request{c}": Out(stream.Signature(memory_request_layout(config)))
                    for c in range(config.n_channels)
                },
                **{
                    f"i_response{c}": In(stream.Signature(memory_response_layout(config)))
                    for c in range(config.n_channels)
                },
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        buffers, heads = [], []
        for port in range(cfg.n_ports):
            head = self._queue(m, port)
            m.submodules[f"buffer{port}"] = buffer = ReorderBuffer(cfg)
            out = getattr(self, f"o{port}")
            m.d.comb += [
                out.valid.eq(buffer.o.valid),
                out.payload.eq(buffer.o.payload),
                buffer.o.ready.eq(out.ready),
            ]
            buffers.append(buffer)
            heads.append(head)
        self._cross_addresses(m, heads, buffers)
        self._cross_data(m, buffers)
        return m

    def _queue(self, m: Module, port: int):
        """Address queue of a port; returns its output stream, payload as a view."""
        cfg = self.config
        layout = atom_address_layout(cfg.atom_address_bits, cfg.note_bits)
        m.submodules[f"queue{port}"] = queue = Fifo(FifoConfig(width_bits=layout.size, depth=cfg.depth))
        source = getattr(self, f"i{port}")
        m.d.comb += [
            queue.i.valid.eq(source.valid),
            queue.i.payload.eq(Value.cast(source.payload)),
            source.ready.eq(queue.i.ready),
        ]
        return queue.o

    def _cross_addresses(self, m: Module, heads, buffers) -> None:
        cfg = self.config
        layout = atom_address_layout(cfg.atom_address_bits, cfg.note_bits)
        views = [layout(head.payload) for head in heads]
        grants: list[list[Signal]] = [[] for _ in heads]
        for c in range(cfg.n_channels):
            out = getattr(self, f"o_request{c}")
            room = ~out.valid | out.ready
            wanted = [
                head.valid & buffer.o_free & (view.address[: cfg.channel_bits] == c)
                for head, buffer, view in zip(heads, buffers, views, strict=True)
            ]
            granted = round_robin(m, f"channel{c}", wanted, room)
            with m.If(room):
                m.d.sync += out.valid.eq(granted.any())
            with m.Switch(granted):
                for port, (view, buffer) in enumerate(zip(views, buffers, strict=True)):
                    grants[port].append(granted[port])
                    with m.Case(1 << port):
                        m.d.sync += [
                            out.payload.address.eq(view.address[cfg.channel_bits :]),
                            out.payload.tag.eq(Cat(buffer.o_slot, Const(port, cfg.port_bits))),
                        ]
        for head, buffer, view, mine in zip(heads, buffers, views, grants, strict=True):
            m.d.comb += [
                head.ready.eq(Cat(*mine).any()),
                buffer.i_reserve.eq(head.ready),
                buffer.i_note.eq(view.note),
            ]

    def _cross_data(self, m: Module, buffers) -> None:
        cfg = self.config
        slot_bits = cfg.depth.bit_length() - 1
        answers = [getattr(self, f"i_response{c}") for c in range(cfg.n_channels)]
        taken: list[list[Signal]] = [[] for _ in answers]
        for port, buffer in enumerate(buffers):
            wanted = [a.valid & (a.payload.tag[slot_bits:] == port) for a in answers]
            granted = round_robin(m, f"port{port}", wanted, 1)
            m.d.sync += buffer.i_write.eq(granted.any())
            with m.Switch(granted):
                for c, answer in enumerate(answers):
                    taken[c].append(granted[c])
                    with m.Case(1 << c):
                        m.d.sync += [
                            buffer.i_atom.eq(answer.payload.data),
                            buffer.i_slot.eq(answer.payload.tag[:slot_bits]),
                        ]
        for answer, grants in zip(answers, taken, strict=True):
            m.d.comb += answer.ready.eq(Cat(*grants).any())


class ReorderBuffer(wiring.Component):
    """Slots reserved in order, filled in any order, delivered in order.

    A slot is free again when its atom moves to the output register.

    Members
    -------
    o_free, o_slot : there is a slot to reserve, and which comes next
    i_reserve, i_note : reserve it, with what is to travel along
    i_write, i_slot, i_atom : fill a slot
    o : stream of ``data`` and ``note``
    """

    def __init__(self, config: CrossbarConfig) -> None:
        self.config = config
        slot_bits = config.depth.bit_length() - 1
        super().__init__(
            {
                "o_free": Out(1),
                "o_slot": Out(slot_bits),
                "i_reserve": In(1),
                "i_note": In(config.note_bits),
                "i_write": In(1),
                "i_slot": In(slot_bits),
                "i_atom": In(ATOM_BITS),
                "o": Out(stream.Signature(atom_layout(config.note_bits))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.atoms = atoms = memory.Memory(shape=unsigned(ATOM_BITS), depth=cfg.depth, init=[])
        m.submodules.notes = notes = memory.Memory(shape=unsigned(cfg.note_bits), depth=cfg.depth, init=[])
        put_atom, put_note = atoms.write_port(), notes.write_port()
        get_atom, get_note = atoms.read_port(), notes.read_port()

        head, used = Signal.like(self.o_slot), Signal(range(cfg.depth + 1))
        filled, fill, empty = Signal(cfg.depth), Signal(cfg.depth), Signal(cfg.depth)
        fetch = Signal()
        m.d.comb += [
            self.o_free.eq(used != cfg.depth),
            fetch.eq((~self.o.valid | self.o.ready) & filled.bit_select(head, 1)),
            put_atom.en.eq(self.i_write),
            put_atom.addr.eq(self.i_slot),
            put_atom.data.eq(self.i_atom),
            put_note.en.eq(self.i_reserve),
            put_note.addr.eq(self.o_slot),
            put_note.data.eq(self.i_note),
            self.o.payload.data.eq(get_atom.data),
            self.o.payload.note.eq(get_note.data),
            fill.eq(Mux(self.i_write, 1 << self.i_slot, 0)),
            empty.eq(Mux(fetch, 1 << head, 0)),
        ]
        for get in (get_atom, get_note):
            m.d.comb += [get.en.eq(fetch), get.addr.eq(head)]
        m.d.sync += [filled.eq((filled | fill) & ~empty), used.eq(used + self.i_reserve - fetch)]
        with m.If(self.i_reserve):
            m.d.sync += self.o_slot.eq(self.o_slot + 1)
        with m.If(fetch):
            m.d.sync += [head.eq(head + 1), self.o.valid.eq(1)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        return m
