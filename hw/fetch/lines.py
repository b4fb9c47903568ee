# SPDX-License-Identifier: MIT
"""Rows of all ports to lines of one head."""

from amaranth import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import HEAD_DIMS, ONCHIP_BITS, LinesConfig
from .shapes import line_layout, row_layout


class Lines(wiring.Component):
    """Gathers whole rows, in the order in which the kept tokens were dealt, into lines of M elements.

    A line holds the rows of M / D consecutive tokens of one head, and ends early at the request's last token.
    Where a request wants several heads, they take turns after each round over the ports: the first head's
    lines for n_ports tokens, the next head's for the same tokens, and so on. Each port has a register for one
    row, which refills while the other ports' lines leave.

    Throughput: one line a cycle; a port brings a row each D / e cycles, which is M elements a cycle in all.
    Latency: ``config.LATENCY_CYCLES`` from the last part of a row.

    Members
    -------
    i{p} : stream of :func:`hw.fetch.shapes.row_layout`; rows of tokens p, p + n_ports, ... of each request
    o : stream of ``data`` (M elements of 12 bits), ``count`` (elements), ``last`` (of this head in this
        request) and ``head`` (number within the request); elements at and above ``count`` are 0
    """

    def __init__(self, config: LinesConfig) -> None:
        self.config = config
        row = stream.Signature(row_layout(config.elements_per_beat))
        super().__init__(
            {
                **{f"i{port}": In(row) for port in range(config.n_ports)},
                "o": Out(stream.Signature(line_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        rows = [_Row(m, self.config, port, getattr(self, f"i{port}")) for port in range(self.config.n_ports)]
        self._gather(m, rows)
        return m

    def _gather(self, m: Module, rows: list["_Row"]) -> None:
        cfg = self.config
        first = Signal(range(max(cfg.n_ports, 2)))
        """Port of the line's first row."""
        complete, ends, emit, room = Signal(), Signal(), Signal(), Signal()
        count = Signal(range(cfg.line_elements + 1))
        rows_per_line = Signal(range(cfg.n_ports + 1))
        part_bits = cfg.elements_per_beat * ONCHIP_BITS
        parts = [Signal(part_bits, name=f"gathered{k}") for k in range(cfg.n_ports)]
        in_use = Signal(cfg.n_ports)
        """Parts of the line that belong to a row of it; the others are 0."""
        line = [Signal(part_bits, name=f"line{k}", reset_less=True) for k in range(cfg.n_ports)]
        taken = [row.taken for row in rows]
        dim, head = Signal.like(rows[0].dim, name="first_dim"), Signal.like(rows[0].head, name="first_head")
        m.d.comb += [
            dim.eq(Array(row.dim for row in rows)[first]),
            head.eq(Array(row.head for row in rows)[first]),
            room.eq(~self.o.valid | self.o.ready),
            emit.eq(complete & room),
            self.o.payload.data.eq(Cat(*line)),
        ]
        with m.Switch(dim):
            for code, head_dim in enumerate(cfg.head_dims):
                n_rows = cfg.line_elements // head_dim
                with m.Case(code):
                    m.d.comb += rows_per_line.eq(n_rows)
                    with m.Switch(first):
                        for start in range(0, cfg.n_ports, n_rows):
                            with m.Case(start):
                                group = rows[start : start + n_rows]
                                used = self._group(m, f"d{head_dim}_{start}", group, complete, ends)
                                m.d.comb += count.eq(sum(used[1:], used[0]) * head_dim)
                                m.d.comb += [taken[start + k].eq(emit & used[k]) for k in range(n_rows)]
                                self._select(m, parts, in_use, group, used)
        with m.If(room):
            m.d.sync += [
                self.o.valid.eq(complete),
                self.o.payload.count.eq(count),
                self.o.payload.last.eq(ends),
                self.o.payload.head.eq(head),
            ]
            m.d.sync += [line[k].eq(Mux(in_use[k], part, 0)) for k, part in enumerate(parts)]
        with m.If(emit):
            m.d.sync += first.eq(Mux(ends, 0, first + rows_per_line))  # modulo the ports

    def _group(self, m: Module, name: str, group: list["_Row"], complete, ends) -> list[Signal]:
        """Which rows belong to the line: those up to the request's last one. Complete when all are there."""
        used = [Signal(name=f"{name}_used{k}") for k in range(len(group))]
        ended, whole = 0, 1
        for row, use in zip(group, used, strict=True):
            m.d.comb += use.eq(~ended if isinstance(ended, Signal) else 1)
            whole = whole & (row.full | ~use)
            now = Signal(name=f"{use.name}_end")
            m.d.comb += now.eq((use & row.full & row.last) | ended)
            ended = now
        m.d.comb += [complete.eq(whole), ends.eq(ended)]
        return used

    def _select(self, m: Module, parts: list[Signal], in_use, group: list["_Row"], used: list) -> None:
        parts_per_row = len(parts) // len(group)
        m.d.comb += in_use.eq(Cat(*(use.replicate(parts_per_row) for use in used)))
        for k, part in enumerate(parts):
            m.d.comb += part.eq(group[k // parts_per_row].parts[k % parts_per_row])


class _Row:
    """Register of one row at a port: filled part by part, emptied at once."""

    def __init__(self, m: Module, config: LinesConfig, port: int, source) -> None:
        n_parts = config.max_head_dim // config.elements_per_beat
        width = config.elements_per_beat * ONCHIP_BITS
        self.parts = [Signal(width, name=f"row{port}_{k}", reset_less=True) for k in range(n_parts)]
        self.full, self.taken = Signal(name=f"row{port}_full"), Signal(name=f"row{port}_taken")
        self.dim = Signal(range(len(HEAD_DIMS)), name=f"row{port}_dim")
        self.head = Signal(2, name=f"row{port}_head")
        self.last = Signal(name=f"row{port}_last")
        at = Signal(range(n_parts), name=f"row{port}_at")
        m.d.comb += source.ready.eq(~self.full | self.taken)
        with m.If(self.taken):
            m.d.sync += self.full.eq(0)
        with m.If(source.valid & source.ready):
            beat = source.payload
            with m.Switch(at):
                for k, part in enumerate(self.parts):
                    with m.Case(k):
                        m.d.sync += part.eq(Value.cast(beat.data))
            m.d.sync += [
                at.eq(Mux(beat.row_end, 0, at + 1)),
                self.full.eq(beat.row_end),
                self.dim.eq(beat.dim),
                self.head.eq(beat.head),
                self.last.eq(beat.last),
            ]
