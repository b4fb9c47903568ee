# SPDX-License-Identifier: MIT
"""The queries at hand: rows cut from fetched lines, kept until no recomputation can need them."""

from amaranth import Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.fetch.shapes import line_layout
from hw.kv_buffer.config import HEAD_DIMS

from .config import AttentionConfig


class QueryRing(wiring.Component):
    """A ring of query rows, in the order in which they are computed first.

    Rows are counted from W - 1 on, modulo twice the ring; beginning row G for the first time frees row G - W,
    because the confidence check settles a row before it begins the row W places later. Counting from W - 1
    makes that hold from the first row on.

    Members
    -------
    i : stream of :func:`hw.fetch.shapes.line_layout`: lines of M / D rows
    dim : log2(D / 32) of the lines that come
    reserve, n_reserve : so many rows have been asked for; only while ``has_room``
    has_room : one more chunk of P rows fits
    row, is_new, read : row to read, whether for the first time; its data stand on ``query`` from the cycle
        after ``read`` to the next
    present : ``row`` is there
    query : max_head_dim elements; those at and above D are noise
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        row_bits = config.qk.max_head_dim * config.qk.element_bits
        super().__init__(
            {
                "i": In(stream.Signature(line_layout(config.fetch.lines))),
                "dim": In(2),
                "reserve": In(1),
                "n_reserve": In(range(config.lanes + 1)),
                "has_room": Out(1),
                "row": In(config.ring_bits),
                "is_new": In(1),
                "read": In(1),
                "present": Out(1),
                "query": Out(row_bits),
            }
        )

    @property
    def first_row(self) -> int:
        """Number of the first row after reset."""
        return self.config.confidence.window - 1

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.rows = rows = memory.Memory(
            shape=unsigned(len(self.query)), depth=cfg.ring_rows, init=[]
        )
        write, read = rows.write_port(), rows.read_port()
        n_reserved = Signal(cfg.ring_bits, init=self.first_row)
        n_present = Signal(cfg.ring_bits, init=self.first_row)
        n_freed, n_held = Signal(cfg.ring_bits), Signal(cfg.ring_bits)
        m.d.comb += [
            n_held.eq(n_reserved - n_freed),
            self.has_room.eq(n_held <= cfg.ring_rows - cfg.lanes),
            self.present.eq(~self.is_new | (self.row != n_present)),
            read.addr.eq(self.row[:-1]),
            read.en.eq(self.read),
            self.query.eq(read.data),
        ]
        with m.If(self.reserve):
            m.d.sync += n_reserved.eq(n_reserved + self.n_reserve)
        with m.If(self.read & self.is_new):
            m.d.sync += n_freed.eq(self.row - self.first_row)

        # A line is held and gives its lowest row each cycle.
        line = Signal(len(Value.cast(self.i.payload.data)), reset_less=True)
        n_left = Signal(range(cfg.qk.lanes + 1))
        """Rows of the line still to be written."""
        m.d.comb += [
            self.i.ready.eq(n_left <= 1),
            write.en.eq(n_left != 0),
            write.addr.eq(n_present[:-1]),
            write.data.eq(line[: len(self.query)]),
        ]
        m.d.sync += n_present.eq(n_present + write.en)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += line.eq(Value.cast(self.i.payload.data))
        with m.Elif(write.en):
            with m.Switch(self.dim):
                for code, head_dim in enumerate(cfg.qk.head_dims):
                    with m.Case(code):
                        # A slice, not a shift, of whose every bit an output could depend on every input.
                        m.d.sync += line.eq(line[head_dim * cfg.qk.element_bits :])
        count = self.i.payload.count
        n_rows = Signal.like(n_left)
        with m.Switch(self.dim):
            for code, head_dim in enumerate(cfg.qk.head_dims):
                with m.Case(code):
                    m.d.comb += n_rows.eq(count >> HEAD_DIMS[0].bit_length() - 1 + code)
                    assert head_dim == HEAD_DIMS[0] << code
        m.d.sync += n_left.eq(Mux(self.i.valid & self.i.ready, n_rows, n_left - write.en))
        return m
