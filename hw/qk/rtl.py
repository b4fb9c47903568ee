# SPDX-License-Identifier: MIT
"""Amaranth implementation of the query-times-key array."""

from amaranth import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import add, delayed, select, tree
from hw.kv_buffer.config import BANK_ELEMENTS, READ_LATENCY_CYCLES
from hw.kv_buffer.rtl import KvBuffer, line_address, line_layout, load_layout
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo, packed_layout

from .config import (
    BANK_TREE_STAGES,
    LEVELS_PER_CYCLE,
    OUTPUT_FIFO_BEATS,
    SCORE_BITS,
    QkConfig,
)


def query_layout(config: QkConfig) -> data.StructLayout:
    """Payload of ``i_query``: a query and the keys that it meets.

    ``head_dim`` is a place in HEAD_DIMS; elements at and above it are ignored. Keys lie in ``region`` from
    line ``base_line`` on. ``release`` other than 0: this is the last row that needs the region, which becomes
    free once so many lines have been loaded to it in all. ``last``: the row ends here (0: the next beat goes
    on with further keys of the same row). ``n_keys`` 0 computes nothing, and must not be ``last``.
    """
    return data.StructLayout(
        {
            "data": data.ArrayLayout(signed(config.element_bits), config.max_head_dim),
            "head_dim": 2,
            "region": config.buffer.region_bits,
            "base_line": config.buffer.count_bits,
            "n_keys": config.count_bits,
            "release": config.buffer.count_bits,
            "last": 1,
        }
    )


class Qk(wiring.Component):
    """M multipliers and a reconfigurable adder tree: the scores of one line of keys a cycle.

    A line holds M/D keys side by side and meets the query repeated M/D times; sums are taken from the tree at
    the level of D products (32, 64 or 128) and are exact. A row waits for lines not yet written, so that a
    head's first row may overlap its load.

    Latency LATENCY_CYCLES from the read of a line to its scores; one line a cycle, rows back to back. The
    pipeline runs freely: a line is read only while the output queue has room for it.

    Members
    -------
    i_load, i_key : load and lines of the key buffer, see :class:`hw.kv_buffer.rtl.KvBuffer`
    i_query : stream of :func:`query_layout`
    freed : no port, for who loads: of each region, a pulse: its lines no longer count
    o : stream of packed beats of ``config.lanes`` signed scores of SCORE_BITS bits; M/D of them, fewer in the
        last beat of a query's keys; ``last`` ends a row
    """

    def __init__(self, config: QkConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config.buffer))),
                "i_key": In(stream.Signature(line_layout(config.buffer))),
                "i_query": In(stream.Signature(query_layout(config))),
                "o": Out(stream.Signature(packed_layout(SCORE_BITS, config.lanes))),
            }
        )
        self.freed = Signal(config.buffer.n_regions)

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.keys = keys = KvBuffer(self.config.buffer)
        wiring.connect(m, wiring.flipped(self.i_load), keys.i_load)
        wiring.connect(m, wiring.flipped(self.i_key), keys.i_line)
        read, meta = self._control(m, keys)
        sums = self._sums(m, keys, self._query_operands(m))
        self._output(m, sums, read, meta)
        return m

    def _control(self, m: Module, keys: KvBuffer) -> tuple[Signal, dict[str, Signal]]:
        """Reads one line after another; returns the pulse of a read and what goes with its scores."""
        cfg = self.config
        query = self.i_query.payload
        active, last = Signal(), Signal()
        region = Signal(cfg.buffer.region_bits)
        release = Signal(cfg.buffer.count_bits)
        head_dim = Signal(2)
        line = Signal(cfg.buffer.count_bits)
        n_left = Signal(cfg.count_bits)
        """Keys of the row not yet read."""
        n_written, vectors = Signal(cfg.buffer.count_bits), Signal(range(cfg.lanes + 1))
        last_line, read, ends, taken = Signal(), Signal(), Signal(), Signal()
        loaded = Signal()
        """A beat of no keys may release its region."""
        credits_left = Signal(range(OUTPUT_FIFO_BEATS + 1), init=OUTPUT_FIFO_BEATS)
        m.d.comb += [
            n_written.eq(select(region, list(keys.n_written))),
            vectors.eq(select(head_dim, [cfg.n_multipliers // d for d in cfg.head_dims])),
            last_line.eq(n_left <= vectors),
            read.eq(active & (credits_left != 0) & (line < n_written) & ~(last_line & (n_written < release))),
            ends.eq(read & last_line),
            self.i_query.ready.eq((~active | ends) & ((query.n_keys != 0) | loaded)),
            taken.eq(self.i_query.valid & self.i_query.ready),
            loaded.eq(select(query.region, list(keys.n_written)) >= query.release),
            keys.free.eq(keys.forget),
            self.freed.eq(keys.forget),
        ]
        for bank in range(cfg.buffer.n_banks):
            m.d.comb += [
                keys.address[bank].eq(line_address(cfg.buffer, region, line)),
                keys.enable[bank].eq(read),
            ]
        with m.If(ends & (release != 0)):
            m.d.comb += keys.forget.bit_select(region, 1).eq(1)
        with m.If(taken & (query.n_keys == 0) & (query.release != 0)):
            m.d.comb += keys.forget.bit_select(query.region, 1).eq(1)

        m.d.sync += credits_left.eq(credits_left - read + (self.o.valid & self.o.ready))
        with m.If(taken):
            m.d.sync += [
                active.eq(query.n_keys != 0),
                region.eq(query.region),
                release.eq(query.release),
                last.eq(query.last),
                head_dim.eq(query.head_dim),
                line.eq(query.base_line),
                n_left.eq(query.n_keys),
            ]
        with m.Elif(read):
            m.d.sync += [active.eq(~ends), line.eq(line + 1), n_left.eq(n_left - vectors)]
        count = Signal(range(cfg.lanes + 1))
        m.d.comb += count.eq(Mux(n_left < vectors, n_left, vectors))
        return read, {"head_dim": head_dim, "count": count, "last": last & ends}

    def _query_operands(self, m: Module) -> list[Signal]:
        """The query repeated to ``max_head_dim`` elements, in step with the elements of the buffer."""
        cfg = self.config
        query = self.i_query.payload
        operands = []
        for e in range(cfg.max_head_dim):
            repeated = select(query.head_dim, [query.data[e % d] for d in cfg.head_dims])
            held = Signal(signed(cfg.element_bits), name=f"query{e}", reset_less=True)
            with m.If(self.i_query.valid & self.i_query.ready):
                m.d.sync += held.eq(repeated)
            operands.append(delayed(m, held, READ_LATENCY_CYCLES, f"query{e}"))
        return operands

    def _sums(self, m: Module, keys: KvBuffer, query: list[Signal]) -> list[Signal]:
        """Exact sums over the 32 products of each bank."""
        cfg = self.config
        sums = []
        for bank in range(cfg.lanes):
            terms = []
            for e in range(BANK_ELEMENTS):
                product = Signal(signed(cfg.product_bits), name=f"product{bank}_{e}", reset_less=True)
                m.d.sync += product.eq(
                    keys.elements[bank][e] * query[(bank * BANK_ELEMENTS + e) % cfg.max_head_dim]
                )
                terms.append(product)
            sums.append(tree(m, terms, f"sum{bank}", levels_per_cycle=LEVELS_PER_CYCLE))
        return sums

    def _output(self, m: Module, sums: list[Signal], read: Signal, meta: dict[str, Signal]) -> None:
        """Joins the sums of 32 as the head dimension asks, and queues them."""
        cfg = self.config
        until_sums = READ_LATENCY_CYCLES + 1 + BANK_TREE_STAGES
        valid = delayed(m, read, until_sums, "valid", is_valid=True)
        head_dim, count, last = (
            delayed(m, Value.cast(value), until_sums, name) for name, value in meta.items()
        )
        by_head_dim = [sums]
        for level in range(1, len(cfg.head_dims)):
            below = by_head_dim[-1]
            by_head_dim.append([
                add(m, pair, f"joined{level}_{i}", registered=False)
                for i, pair in enumerate(zip(below[::2], below[1::2], strict=True))
            ])  # fmt: skip

        beat = packed_layout(cfg.sum_bits, cfg.lanes)
        m.submodules.queue = queue = Fifo(FifoConfig(width_bits=beat.size, depth=OUTPUT_FIFO_BEATS))
        scores = []
        for lane in range(cfg.lanes):
            choices = [level[lane] if lane < len(level) else 0 for level in by_head_dim]
            score = Signal(signed(cfg.sum_bits), name=f"score{lane}", reset_less=True)
            m.d.sync += score.eq(Mux(lane < count, select(head_dim, choices), 0))
            scores.append(score)
        m.d.comb += [
            queue.i.valid.eq(delayed(m, valid, 1, "queued", is_valid=True)),
            queue.i.payload.eq(
                Cat(*scores, delayed(m, count, 1, "queued_count"), delayed(m, last, 1, "queued_last"))
            ),
            self.o.valid.eq(queue.o.valid),
            queue.o.ready.eq(self.o.ready),
        ]
        queued = data.View(beat, queue.o.payload)
        m.d.comb += [self.o.payload.count.eq(queued.count), self.o.payload.last.eq(queued.last)]
        for lane in range(cfg.lanes):
            m.d.comb += self.o.payload.data[lane].eq(queued.data[lane].as_signed())
