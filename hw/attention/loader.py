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
from hw.stream.fork import connect, fork, only_if
from hw.stream.rtl import Fifo

from .config import HEAD_BITS, HEADS_AHEAD, JOBS_AHEAD, AttentionConfig
from .lists import read_layout
from .shapes import (
    head_layout,
    key_job_layout,
    numbered_head_layout,
    plane_layout,
    region_of,
    value_job_layout,
)
from .tiles import Tiles


class Target(enum.Enum, shape=2):  # type: ignore[call-arg]
    """Where fetched lines go."""

    QUERY = 0
    KEY = 1
    VALUE = 2


class _Job:
    """The streamed keys or values of a row, tile by tile; wanted when the head's entry has been looked up."""

    def __init__(self, m: Module, name: str, source: stream.Interface, config: AttentionConfig) -> None:
        layout = source.payload.shape()
        m.submodules[f"{name}_jobs"] = fifo = Fifo(FifoConfig(width_bits=layout.size, depth=JOBS_AHEAD))
        m.submodules[f"{name}_tiles"] = self.tiles = Tiles(config)
        connect(m, source, fifo.i)
        self.job = data.View(layout, fifo.o.payload)
        self.wanted, self.taken = Signal(name=f"{name}_wanted"), Signal(name=f"{name}_taken")
        m.d.sync += self.wanted.eq(fifo.o.valid & ~fifo.o.ready)
        m.d.comb += [
            self.tiles.n.eq(self.job.n),
            self.tiles.step.eq(self.taken),
            fifo.o.ready.eq(self.taken & self.tiles.last),
        ]

    def order(self, order: data.View) -> list:
        """What the tile says of its request."""
        tiles = self.tiles
        return [order.n.eq(tiles.n_tile), order.n_lines.eq(tiles.n_lines), order.region.eq(tiles.region)]


class Loader(wiring.Component):
    """Asks the fetcher for queries, keys, LSBs of keys, and values, and hands the lines on.

    One request at a time, in this order of urgency: the LSB plane that a row waits for; the next chunk of
    queries; of a streamed layer the next tile of values, the next tile of keys; of another one the next
    group's keys; its values. Each is asked for only when its place is free, so that lines
    never wait in front of others that are needed first:

    - keys and their LSBs: the half has been released (``key_freed``); LSBs go behind the keys of the group;
    - values: the row that releases the half has been computed (``value_freed``);
    - queries: the ring has room for a chunk;
    - tiles: their region is free, in the order in which the arrays use them. A tile of values also waits
      until the first of its tokens is known: then the rest follows without anything from memory.

    Members
    -------
    i_head : stream of :func:`hw.attention.shapes.numbered_head_layout`, the surviving heads of each layer
    i_key_job, i_value_job : streams of :func:`hw.attention.shapes.key_job_layout` and
        :func:`hw.attention.shapes.value_job_layout`: what the rows of a streamed layer need
    key_head, key_entry, value_head, value_entry : see :class:`hw.attention.cascade.Cascade`
    i_line, o_request : from and to the fetcher
    o_source : stream of a bit, one for each request: whether its tokens are those that a row keeps
    o_list : stream of reads of the list of kept tokens, one for each other request
    o_key_load, o_key, o_value_load, o_value : to the buffers of the two arrays
    o_query : to the query ring
    dim, q_bits, k_bits, v_bits, n, n_lines, one, streamed, sums, n_heads : of the layer; lines that the rows
        of n tokens take; whether a head has one query, the row at position 0, or that of the head's place
        where sums are wanted
    ids_wait, ids_end : a row's kept tokens are on offer; the last of a tile's has been taken
    ring_has_room, ring_reserve, ring_n_reserve : see :class:`hw.attention.query_ring.QueryRing`
    lsb_wanted : of each half, a pulse: a row needs the LSB plane of the group in this half
    key_freed, value_freed : of each region, a pulse: it can be loaded anew
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        count = config.qk.buffer.count_bits
        buffer = config.qk.buffer
        super().__init__(
            {
                "i_head": In(stream.Signature(numbered_head_layout(config))),
                "i_key_job": In(stream.Signature(key_job_layout(config))),
                "i_value_job": In(stream.Signature(value_job_layout(config))),
                "key_head": Out(HEAD_BITS),
                "key_entry": In(head_layout(config)),
                "value_head": Out(HEAD_BITS),
                "value_entry": In(head_layout(config)),
                "o_request": Out(stream.Signature(request_layout(config.fetch.addresses))),
                "o_source": Out(stream.Signature(1)),
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
                "streamed": In(1),
                "sums": In(1),
                "n_heads": In(HEAD_BITS + 1),
                "ids_wait": In(1),
                "ids_end": In(1),
                "ring_has_room": In(1),
                "ring_reserve": Out(1),
                "ring_n_reserve": Out(range(config.lanes + 1)),
                "lsb_wanted": In(2),
                "key_freed": In(buffer.n_regions),
                "value_freed": In(buffer.n_regions),
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
                "n": self.config.count_bits,
                "of_row": 1,
                "target": Target,
                "region": self.config.qk.buffer.region_bits,
                "append": 1,
                "n_lines": self.config.qk.buffer.count_bits,
            }
        )

    def _tiles(self, m: Module) -> tuple[_Job, _Job]:
        """Of keys, of values."""
        keys = _Job(m, "key", self.i_key_job, self.config)
        values = _Job(m, "value", self.i_value_job, self.config)
        m.d.comb += [
            keys.tiles.dim.eq(self.dim),
            values.tiles.dim.eq(self.dim),
            self.key_head.eq(keys.job.head),
            self.value_head.eq(values.job.head),
        ]
        return keys, values

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
                wanted[name] &= head.first_of_group & ~self.streamed
                # Its keys and values are there already, or come row by row.
                with m.If(~head.first_of_group | self.streamed):
                    m.d.comb += fifo.o.ready.eq(1)

        key_half, value_half = Signal(), Signal()
        n_regions = cfg.qk.n_regions
        key_free, value_free = (
            Signal(n_regions, init=(1 << n_regions) - 1, name=f"{n}_free") for n in ("key", "value")
        )
        key_region, value_region = (region_of(half, cfg) for half in (key_half, value_half))
        key_tile, value_tile = self._tiles(m)
        lines_pass = cfg.lanes.bit_length() - 1
        lsb_pending = Signal(2)
        lsb_planes = [Signal(plane_layout(cfg), name=f"lsb_plane{half}") for half in range(2)]
        chunk = Signal(range(cfg.n_max // cfg.lanes))
        n_after = Signal.like(self.n)
        """Queries of the head in and after this chunk."""
        is_last_chunk = Signal()
        m.d.comb += [
            n_after.eq(Mux(self.sums, self.n_heads, Mux(self.one, 1, self.n)) - chunk * cfg.lanes),
            is_last_chunk.eq(n_after <= cfg.lanes),
            self.ring_n_reserve.eq(Mux(is_last_chunk, n_after, cfg.lanes)),
        ]
        n_covered = Signal(range(max(cfg.lanes, 2)))
        """Heads to come whose queries came with those of a head before: those of sums lie in one plane."""
        with m.If((n_covered != 0) & heads["query"].o.valid):
            m.d.comb += heads["query"].o.ready.eq(1)
            m.d.sync += n_covered.eq(n_covered - 1)
        m.d.sync += [
            key_free.eq(key_free | self.key_freed),
            value_free.eq(value_free | self.value_freed),
            lsb_pending.eq(lsb_pending | self.lsb_wanted),
        ]
        gathering, may_gather = Signal(), Signal()
        """Tokens of a tile of values are still to come."""
        m.d.comb += may_gather.eq(self.ids_wait & ~gathering)
        with m.If(self.ids_end):
            m.d.sync += gathering.eq(0)
        with m.If(take):
            m.d.sync += [
                valid.eq(0),
                order.line.eq(0),
                order.n.eq(self.n),
                order.of_row.eq(0),
                order.is_unsigned.eq(0),
                order.append.eq(0),
                order.n_lines.eq(self.n_lines),
            ]
            with m.If(lsb_pending.any()):
                half = lsb_pending[1]
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(Mux(half, Value.cast(lsb_planes[1]), Value.cast(lsb_planes[0]))),
                    order.bits.eq(LSB_BITS),
                    order.is_unsigned.eq(1),
                    order.target.eq(Target.KEY),
                    order.region.eq(region_of(half, cfg)),
                    order.append.eq(1),
                    lsb_pending.bit_select(half, 1).eq(0),
                ]
            with m.Elif(wanted["query"] & self.ring_has_room & (n_covered == 0)):
                m.d.comb += [self.ring_reserve.eq(1), heads["query"].o.ready.eq(is_last_chunk | self.sums)]
                m.d.sync += [
                    n_covered.eq(Mux(self.sums, self.ring_n_reserve - 1, 0)),
                    valid.eq(1),
                    order.plane.eq(views["query"].q),
                    order.bits.eq(self.q_bits),
                    order.line.eq(chunk),
                    order.n.eq(self.ring_n_reserve),
                    order.target.eq(Target.QUERY),
                    chunk.eq(Mux(is_last_chunk, 0, chunk + 1)),
                ]
            with m.Elif(value_tile.wanted & value_free.bit_select(value_tile.tiles.region, 1) & may_gather):
                m.d.comb += value_tile.taken.eq(1)
                m.d.sync += [
                    *value_tile.order(order),
                    valid.eq(1),
                    order.plane.eq(self.value_entry.v),
                    order.bits.eq(self.v_bits),
                    order.of_row.eq(1),
                    order.target.eq(Target.VALUE),
                    gathering.eq(1),
                    value_free.bit_select(value_tile.tiles.region, 1).eq(0),
                ]
            with m.Elif(key_tile.wanted & key_free.bit_select(key_tile.tiles.region, 1)):
                is_lsb = key_tile.job.lsb
                m.d.comb += key_tile.taken.eq(1)
                m.d.sync += [
                    *key_tile.order(order),
                    valid.eq(1),
                    order.plane.eq(Mux(is_lsb, Value.cast(self.key_entry.lsb), Value.cast(self.key_entry.k))),
                    order.bits.eq(Mux(is_lsb, LSB_BITS, self.k_bits)),
                    order.is_unsigned.eq(is_lsb),
                    order.line.eq(key_tile.tiles.first >> lines_pass),
                    order.target.eq(Target.KEY),
                    key_free.bit_select(key_tile.tiles.region, 1).eq(0),
                ]
            with m.Elif(wanted["key"] & key_free.bit_select(key_region, 1)):
                m.d.comb += heads["key"].o.ready.eq(1)
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(views["key"].k),
                    order.bits.eq(self.k_bits),
                    order.target.eq(Target.KEY),
                    order.region.eq(key_region),
                    key_half.eq(~key_half),
                    key_free.bit_select(key_region, 1).eq(0),
                ]
                for half, plane in enumerate(lsb_planes):
                    with m.If(key_half == half):
                        m.d.sync += plane.eq(views["key"].lsb)
            with m.Elif(wanted["value"] & value_free.bit_select(value_region, 1)):
                m.d.comb += heads["value"].o.ready.eq(1)
                m.d.sync += [
                    valid.eq(1),
                    order.plane.eq(views["value"].v),
                    order.bits.eq(self.v_bits),
                    order.target.eq(Target.VALUE),
                    order.region.eq(value_region),
                    value_half.eq(~value_half),
                    value_free.bit_select(value_region, 1).eq(0),
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
            m.d.comb += fifo.i.payload.eq(Cat(what.region, what.append, what.n_lines))
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
            self.o_source.payload.eq(what.of_row),
            self.o_list.payload.line.eq(what.line),
            self.o_list.payload.n.eq(what.n),
            self.o_list.payload.counts.eq((what.target == Target.QUERY) & self.one),
            targets.i.payload.eq(what.target),
        ]
        from_list = only_if(m, ~what.of_row, self.o_list, "list")
        fork(m, order, self.o_request, from_list, self.o_source, targets.i, load, name="order")

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
