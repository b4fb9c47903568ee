# SPDX-License-Identifier: MIT
"""What is fetched when, and where it goes."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.fetch.config import LSB_BITS
from hw.fetch.shapes import line_layout as fetched_layout
from hw.fetch.shapes import request_layout
from hw.kv_buffer.rtl import line_layout, load_layout
from hw.stream.config import FifoConfig
from hw.stream.fork import connect, fork
from hw.stream.rtl import Fifo

from .config import HEADS_AHEAD, AttentionConfig
from .lists import read_layout
from .shapes import numbered_head_layout, plane_layout


class Target(enum.Enum, shape=2):  # type: ignore[call-arg]
    """Where fetched lines go."""

    QUERY = 0
    KEY = 1
    VALUE = 2


class Loader(wiring.Component):
    """Asks the fetcher for queries, keys, LSBs of keys, and values, and hands the lines on.

    One request at a time, in this order of urgency: the LSB plane that a row waits for; the next chunk of
    queries; the next group's keys; its values. Each is asked for only when its place is free, so that lines
    never wait in front of others that are needed first:

    - keys and their LSBs: the half has been released (``key_freed``); LSBs go behind the keys of the group;
    - values: the row that releases the half has been taken by the array (``value_freed``), which needs
      nothing more from memory to finish it;
    - queries: the ring has room for a chunk.

    Members
    -------
    i_head : stream of :func:`hw.attention.shapes.numbered_head_layout`, the surviving heads of each layer
    i_line, o_request : from and to the fetcher
    o_list : stream of reads of the list of kept tokens, one for each request
    o_key_load, o_key, o_value_load, o_value : to the buffers of the two arrays
    o_query : to the query ring
    dim, q_bits, k_bits, v_bits, n, n_lines, one : of the layer; lines that the rows of n tokens take; whether
        a head has one query, the row at position 0
    ring_has_room, ring_reserve, ring_n_reserve : see :class:`hw.attention.query_ring.QueryRing`
    lsb_wanted : of each half, a pulse: a row needs the LSB plane of the group in this half
    key_freed, value_freed : of each half, a pulse: it can be loaded anew
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        count = config.qk.buffer.count_bits
        buffer = config.qk.buffer
        super().__init__(
            {
                "i_head": In(stream.Signature(numbered_head_layout(config))),
                "o_request": Out(stream.Signature(request_layout(config.fetch.addresses))),
                "i_line": In(stream.Signature(fetched_layout(config.fetch.lines))),
                "o_list": Out(stream.Signature(read_layout(config.n_max, config.lanes))),
                "o_key_load": Out(stream.Signature(load_layout(buffer))),
                "o_key": Out(stream.Signature(line_layout(buffer))),
                "o_value_load": Out(stream.Signature(load_layout(buffer))),
                "o_value": Out(stream.Signature(line_layout(buffer))),
                "o_query": Out(stream.Signature(fetched_layout(config.fetch.lines))),
                "dim": In(2),
                "q_bits": In(4),
                "k_bits": In(4),
                "v_bits": In(4),
                "n": In(config.count_bits),
                "n_lines": In(count),
                "one": In(1),
                "ring_has_room": In(1),
                "ring_reserve": Out(1),
                "ring_n_reserve": Out(range(config.lanes + 1)),
                "lsb_wanted": In(2),
                "key_freed": In(2),
                "value_freed": In(2),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        heads = {}
        for name in ("query", "key", "value"):
            fifo = Fifo(FifoConfig(width_bits=self.i_head.payload.shape().size, depth=HEADS_AHEAD))
            m.submodules[f"{name}_heads"] = heads[name] = fifo
            m.d.comb += fifo.i.payload.eq(Value.cast(self.i_head.payload))
        fork(m, self.i_head, *(fifo.i for fifo in heads.values()), name="heads")
        self._send(m, self._choose(m, heads))
        return m

    def _order_layout(self) -> data.StructLayout:
        return data.StructLayout(
            {
                "plane": plane_layout(self.config),
                "bits": 4,
                "is_unsigned": 1,
                "line": range(self.config.n_max // self.config.lanes),
                "target": Target,
                "half": 1,
                "append": 1,
            }
        )

    def _choose(self, m: Module, heads: dict[str, Fifo]) -> stream.Interface:
        """The most urgent request that has a place to go, in a register."""
        cfg = self.config
        order = Signal(self._order_layout())
        valid, take = Signal(), Signal()
        source = stream.Signature(self._order_layout()).create()
        m.d.comb += [source.valid.eq(valid), source.payload.eq(order), take.eq(~valid | source.ready)]
        views, wanted = {}, {}
        for name, fifo in heads.items():
            head = data.View(numbered_head_layout(cfg), fifo.o.payload)
            views[name] = head.planes
            wanted[name] = fifo.o.valid
            if name != "query":
                wanted[name] &= head.first_of_group
                with m.If(~head.first_of_group):  # its keys and values are there already
                    m.d.comb += fifo.o.ready.eq(1)

        key_half, value_half = Signal(), Signal()
        key_free, value_free = Signal(2, init=0b11), Signal(2, init=0b11)
        lsb_pending = Signal(2)
        lsb_planes = [Signal(plane_layout(cfg), name=f"lsb_plane{half}") for half in range(2)]
        chunk = Signal(range(cfg.n_max // cfg.lanes))
        n_after = Signal.like(self.n)
        """Queries of the head in and after this chunk."""
        is_last_chunk = Signal()
        m.d.comb += [
            n_after.eq(self.n - chunk * cfg.lanes),
            is_last_chunk.eq(self.one | (n_after <= cfg.lanes)),
            self.ring_n_reserve.eq(Mux(self.one, 1, Mux(is_last_chunk, n_after, cfg.lanes))),
        ]
        m.d.sync += [
            key_free.eq(key_free | self.key_freed),
            value_free.eq(value_free | self.value_freed),
            lsb_pending.eq(lsb_pending | self.lsb_wanted),
        ]
        with m.If(take):
            m.d.sync += valid.eq(0)
            with m.If(lsb_pending.any()):
                half = lsb_pending[1]
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(Mux(half, Value.cast(lsb_planes[1]), Value.cast(lsb_planes[0]))),
                    order.bits.eq(LSB_BITS),
                    order.is_unsigned.eq(1),
                    order.target.eq(Target.KEY),
                    order.half.eq(half),
                    order.append.eq(1),
                    lsb_pending.bit_select(half, 1).eq(0),
                ]
            with m.Elif(wanted["query"] & self.ring_has_room):
                m.d.comb += [self.ring_reserve.eq(1), heads["query"].o.ready.eq(is_last_chunk)]
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(views["query"].q),
                    order.bits.eq(self.q_bits),
                    order.is_unsigned.eq(0),
                    order.line.eq(chunk),
                    order.target.eq(Target.QUERY),
                    chunk.eq(Mux(is_last_chunk, 0, chunk + 1)),
                ]
            with m.Elif(wanted["key"] & key_free.bit_select(key_half, 1)):
                m.d.comb += heads["key"].o.ready.eq(1)
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(views["key"].k),
                    order.bits.eq(self.k_bits),
                    order.is_unsigned.eq(0),
                    order.target.eq(Target.KEY),
                    order.half.eq(key_half),
                    order.append.eq(0),
                    key_half.eq(~key_half),
                    key_free.bit_select(key_half, 1).eq(0),
                ]
                for half, plane in enumerate(lsb_planes):
                    with m.If(key_half == half):
                        m.d.sync += plane.eq(views["key"].lsb)
            with m.Elif(wanted["value"] & value_free.bit_select(value_half, 1)):
                m.d.comb += heads["value"].o.ready.eq(1)
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(views["value"].v),
                    order.bits.eq(self.v_bits),
                    order.is_unsigned.eq(0),
                    order.target.eq(Target.VALUE),
                    order.half.eq(value_half),
                    order.append.eq(0),
                    value_half.eq(~value_half),
                    value_free.bit_select(value_half, 1).eq(0),
                ]
        return source

    def _send(self, m: Module, order: stream.Interface) -> None:
        """An order to the fetcher, the list, the buffer it is for; its lines to their target."""
        cfg = self.config
        what = order.payload
        m.submodules.targets = targets = Fifo(FifoConfig(width_bits=2, depth=8))
        loads = {}
        for name, sink in (("key", self.o_key_load), ("value", self.o_value_load)):
            fifo = Fifo(FifoConfig(width_bits=load_layout(cfg.qk.buffer).size, depth=4))
            m.submodules[f"{name}_loads"] = loads[name] = fifo
            connect(m, fifo.o, sink)
            m.d.comb += fifo.i.payload.eq(Cat(what.half, what.append, self.n_lines))
        # Only one of the two buffers takes part.
        load = stream.Signature(1).create()
        m.d.comb += [
            loads["key"].i.valid.eq(load.valid & (what.target == Target.KEY)),
            loads["value"].i.valid.eq(load.valid & (what.target == Target.VALUE)),
            load.ready.eq(
                (what.target == Target.QUERY)
                | ((what.target == Target.KEY) & loads["key"].i.ready)
                | ((what.target == Target.VALUE) & loads["value"].i.ready)
            ),
        ]
        request = self.o_request.payload
        m.d.comb += [
            request.base_atom.eq(what.plane.base_atom),
            request.bits.eq(what.bits),
            request.is_unsigned.eq(what.is_unsigned),
            request.dim.eq(self.dim),
            request.record_heads.eq(what.plane.record_heads),
            request.head.eq(what.plane.head),
            request.n_heads.eq(1),
            self.o_list.payload.line.eq(what.line),
            self.o_list.payload.is_chunk.eq(what.target == Target.QUERY),
            self.o_list.payload.is_zero.eq((what.target == Target.QUERY) & self.one),
            targets.i.payload.eq(what.target),
        ]
        fork(m, order, self.o_request, self.o_list, targets.i, load, name="order")

        line = self.i_line
        for kind, sink in (
            (Target.QUERY, self.o_query),
            (Target.KEY, self.o_key),
            (Target.VALUE, self.o_value),
        ):
            mine = targets.o.valid & (targets.o.payload == kind)
            m.d.comb += sink.valid.eq(line.valid & mine)
            with m.If(mine):
                m.d.comb += line.ready.eq(sink.ready)
        m.d.comb += [
            Value.cast(self.o_query.payload).eq(Value.cast(line.payload)),
            Value.cast(self.o_key.payload).eq(Value.cast(line.payload.data)),
            Value.cast(self.o_value.payload).eq(Value.cast(line.payload.data)),
            targets.o.ready.eq(line.valid & line.ready & line.payload.last),
        ]
