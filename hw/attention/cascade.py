# SPDX-License-Identifier: MIT
"""Layer after layer: which tokens and heads there are, and which stay."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.importance.rtl import Importance, Op, command_layout
from hw.select.rtl import LocalValueSelect
from hw.stream.fork import connect, fork
from hw.stream.rtl import Regroup, packed_layout

from .config import HEAD_BITS, AttentionConfig
from .lists import KeptList, read_layout
from .shapes import (
    elements_layout,
    head_layout,
    ids_layout,
    layer_layout,
    numbered_head_layout,
    summary_layout,
)


class _Side:
    """Tokens or heads: the list of them, and the importance of what stands in it."""

    def __init__(self, m: Module, config: AttentionConfig, name: str) -> None:
        importance = config.token_importance if name == "token" else config.head_importance
        self.importance = Importance(importance)
        self.list = KeptList(n_max=importance.n_max, id_bits=importance.index_bits, lanes=config.lanes)
        m.submodules[f"{name}_importance"] = self.importance
        m.submodules[f"{name}_list"] = self.list
        self.command = stream.Signature(command_layout(importance)).create(path=(f"{name}_command",))
        connect(m, self.command, self.importance.i_command)


class Cascade(wiring.Component):
    """Takes the layers one by one; keeps the lists, adds up importance, selects (SpAtten Alg. 2).

    A layer: its description and one beat for each head of the model; each surviving head goes out with what
    ``i_head`` said of it; n rows of probabilities and n magnitudes come in for each of them; then heads, and
    after them tokens, are selected by the scores accumulated so far. Where everything stays, the selection
    keeps all: the lists leave for every layer.

    Members
    -------
    i_layer : stream of :func:`hw.attention.shapes.layer_layout`, taken when the layer before is over
    i_head : stream of :func:`hw.attention.shapes.head_layout`, for each layer all heads of the model in order
    layer : the layer at hand
    n_tokens : tokens that are still there
    i_list, o_list : reads of the list of tokens, see :class:`KeptList`
    o_head : stream of :func:`hw.attention.shapes.numbered_head_layout`
    i_probability : stream of packed 12-bit probabilities, dense rows
    i_magnitude : stream of sum |o|, one a row
    o_token_importance, o_head_importance : streams of :func:`hw.attention.shapes.elements_layout`: the scores
        by which the selection decides, in the order of the lists before it
    o_tokens, o_heads : streams of :func:`hw.attention.shapes.ids_layout`: the lists of the next layer
    summary, o_summary, ended : counters of the layer, sent at its end, which ``ended`` marks
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        token = config.token_importance
        elements = stream.Signature(elements_layout(config))
        ids = stream.Signature(ids_layout(config))
        super().__init__(
            {
                "i_layer": In(stream.Signature(layer_layout(config))),
                "i_head": In(stream.Signature(head_layout(config))),
                "layer": Out(layer_layout(config)),
                "n_tokens": Out(config.count_bits),
                "i_list": In(stream.Signature(read_layout(config.n_max, config.lanes))),
                "o_list": Out(ids),
                "o_head": Out(stream.Signature(numbered_head_layout(config))),
                "i_probability": In(stream.Signature(packed_layout(token.value_bits, token.lanes))),
                "i_magnitude": In(stream.Signature(config.pv.magnitude_bits)),
                "o_token_importance": Out(elements),
                "o_head_importance": Out(elements),
                "o_tokens": Out(ids),
                "o_heads": Out(ids),
                "summary": In(summary_layout()),
                "o_summary": Out(stream.Signature(summary_layout())),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        tokens, heads = _Side(m, cfg, "token"), _Side(m, cfg, "head")
        m.submodules.selector = selector = LocalValueSelect(cfg.selector)
        selecting, of_tokens = Signal(), Signal()
        m.d.comb += self.n_tokens.eq(tokens.list.n)
        connect(m, self.i_probability, tokens.importance.i)
        magnitude = heads.importance.i
        m.d.comb += [
            magnitude.payload.data[0].eq(self.i_magnitude.payload),
            magnitude.payload.count.eq(1),
            magnitude.payload.last.eq(1),
            magnitude.valid.eq(self.i_magnitude.valid),
            self.i_magnitude.ready.eq(magnitude.ready),
        ]
        self._lists(m, tokens, heads, selector, selecting, of_tokens)
        self._scores(m, tokens, heads, selector, of_tokens)
        selected = self._selected(m, tokens, heads, selector, of_tokens)
        table_write = self._surviving_heads(m, heads, selecting)
        self._control(m, tokens, heads, selector, selecting, of_tokens, selected, table_write)
        return m

    def _control(
        self, m: Module, tokens, heads, selector, selecting: Signal, of_tokens: Signal, selected, table_write
    ) -> None:
        layer = self.layer
        head = Signal(HEAD_BITS)
        """Head of the table, or place in the list, that is next."""
        done = Signal(4)
        has_ended, ended = Signal(2), Signal(2)
        """Of a selection: its result has gone; the list that it chose from has been read. In any order: what
        follows the last one kept is read to no purpose, but must not be left to the list's other user."""
        list_end = selector.i.valid & selector.i.ready & selector.i.payload.last
        m.d.comb += ended.eq(has_ended | Cat(selected, list_end))
        m.d.sync += has_ended.eq(ended)

        def send(*sinks) -> Value:
            """A beat to each of the sinks, once; 1 in the cycle in which the last one takes it."""
            settled = Signal(len(sinks), name="settled")
            m.d.comb += settled.eq(done | Cat(sink.ready for sink in sinks))
            m.d.comb += [sink.valid.eq(~done[place]) for place, sink in enumerate(sinks)]
            m.d.sync += done.eq(Mux(settled.all(), 0, settled))
            return settled.all()

        m.d.comb += [
            tokens.list.i_fill.payload.eq(layer.n_tokens),
            heads.list.i_fill.payload.eq(layer.n_heads),
            tokens.command.payload.n_rows.eq(tokens.list.n),
            heads.command.payload.n_rows.eq(tokens.list.n),
            heads.command.payload.line.eq(head),
            tokens.command.payload.shift.eq(layer.token_shift),
            heads.command.payload.shift.eq(layer.head_shift),
            selector.i_row.payload.n.eq(Mux(of_tokens, tokens.list.n, heads.list.n)),
            selector.i_row.payload.k.eq(Mux(of_tokens, layer.n_tokens_next, layer.n_heads_next)),
            self.o_summary.payload.eq(self.summary),
        ]
        both = (tokens, heads)

        def command(op) -> None:
            m.d.comb += [side.command.payload.op.eq(op) for side in both]

        with m.FSM():
            with m.State("LAYER"):
                m.d.comb += self.i_layer.ready.eq(1)
                m.d.sync += [layer.eq(self.i_layer.payload), head.eq(0), of_tokens.eq(0)]
                with m.If(self.i_layer.valid):
                    with m.If(self.i_layer.payload.first):
                        m.next = "ANEW"
                    with m.Else():
                        m.next = "TABLE"
            with m.State("ANEW"):
                command(Op.CLEAR)
                with m.If(send(*(side.list.i_fill for side in both), *(side.command for side in both))):
                    m.next = "TABLE"
            with m.State("TABLE"):
                m.d.comb += [
                    self.i_head.ready.eq(1),
                    table_write.en.eq(self.i_head.valid),
                    table_write.addr.eq(head),
                    table_write.data.eq(Value.cast(self.i_head.payload)),
                ]
                with m.If(self.i_head.valid):
                    m.d.sync += head.eq(head + 1)
                    with m.If(head == layer.n_heads - 1):
                        m.d.sync += head.eq(0)
                        m.next = "HEADS"
            with m.State("HEADS"):
                with m.If(send(heads.list.i_read)):
                    m.next = "ROWS"
            with m.State("ROWS"):
                command(Op.ADD)
                with m.If(send(*(side.command for side in both))):
                    m.d.sync += head.eq(head + 1)
                    with m.If(head == heads.list.n - 1):
                        m.next = "READ HEADS"
            # Taken when the last row has been added: then nothing of the layer is under way in the blocks.
            for side, name, after in ((heads, "HEADS", "READ TOKENS"), (tokens, "TOKENS", "SUMMARY")):
                with m.State(f"READ {name}"):
                    command(Op.READ)
                    with m.If(send(side.command)):
                        m.next = f"SELECT {name}"
                with m.State(f"SELECT {name}"):
                    command(Op.KEEP)
                    m.d.comb += selecting.eq(1)
                    with m.If(send(side.list.i_read, selector.i_row, side.command)):
                        m.next = f"WAIT {name}"
                with m.State(f"WAIT {name}"):
                    m.d.comb += selecting.eq(1)
                    with m.If(ended.all()):
                        m.d.sync += [has_ended.eq(0), of_tokens.eq(1)]
                        m.next = after
            with m.State("SUMMARY"):
                with m.If(send(self.o_summary)):
                    m.d.comb += self.ended.eq(1)
                    m.next = "LAYER"

    def _surviving_heads(self, m: Module, heads: _Side, selecting: Signal):
        """The list of heads, one by one, with the table's entries; returns the table's write port."""
        cfg = self.config
        m.submodules.head_regroup = regroup = Regroup(cfg.head_regroup)
        m.submodules.table = table = memory.Memory(
            shape=head_layout(cfg).size, depth=cfg.head_importance.n_max, init=[]
        )
        read = table.read_port()
        number, out = regroup.o, self.o_head
        flow = ~out.valid | out.ready
        m.d.comb += [
            Value.cast(regroup.i.payload).eq(Value.cast(heads.list.o.payload)),
            regroup.i.valid.eq(heads.list.o.valid & ~selecting),
            number.ready.eq(flow),
            read.en.eq(flow),
            read.addr.eq(number.payload.data[0]),
            Value.cast(out.payload.planes).eq(read.data),
        ]
        with m.If(flow):
            m.d.sync += [
                out.valid.eq(number.valid & (number.payload.count != 0)),
                out.payload.number.eq(number.payload.data[0]),
            ]
        with m.If(~selecting):
            m.d.comb += heads.list.o.ready.eq(regroup.i.ready)
        return table.write_port()

    def _lists(self, m: Module, tokens: _Side, heads: _Side, selector, selecting, of_tokens) -> None:
        """A list is read for the selection, or else by its users."""
        lines = tokens.list
        with m.If(~selecting):
            connect(m, self.i_list, lines.i_read)
            connect(m, lines.o, self.o_list)
        with m.Else():
            for which, side in enumerate((heads, tokens)):
                with m.If(of_tokens == which):
                    m.d.comb += [
                        selector.i.valid.eq(side.list.o.valid),
                        side.list.o.ready.eq(selector.i.ready),
                        selector.i.payload.count.eq(side.list.o.payload.count),
                        selector.i.payload.last.eq(side.list.o.payload.last),
                    ]
                    m.d.comb += [
                        selector.i.payload.data[lane].eq(side.list.o.payload.data[lane])
                        for lane in range(self.config.lanes)
                    ]

    def _scores(self, m: Module, tokens: _Side, heads: _Side, selector, of_tokens) -> None:
        """Scores to the selection, and out of the core."""
        for which, side, out in ((0, heads, self.o_head_importance), (1, tokens, self.o_token_importance)):
            score = stream.Signature(out.payload.shape()).create(path=(f"score{which}",))
            fork(m, side.importance.o, score, out, name=f"score{which}")
            m.d.comb += [s.payload.eq(side.importance.o.payload) for s in (score, out)]
            with m.If(of_tokens == which):
                connect(m, score, selector.i_score)

    def _selected(self, m: Module, tokens: _Side, heads: _Side, selector, of_tokens) -> Value:
        """What is kept: to the list, to its importance, out of the core. 1 with the last beat."""
        cfg = self.config
        kept = selector.o
        ids, indices, out = (
            stream.Signature(ids_layout(cfg)).create(path=(f"kept_{name}",))
            for name in ("ids", "indices", "out")
        )
        fork(m, kept, ids, indices, out, name="kept")
        for side in (ids, indices, out):
            m.d.comb += [side.payload.count.eq(kept.payload.count), side.payload.last.eq(kept.payload.last)]
        for lane, pair in enumerate(kept.payload.data):
            m.d.comb += [
                ids.payload.data[lane].eq(pair.probability),
                out.payload.data[lane].eq(pair.probability),
                indices.payload.data[lane].eq(pair.index),
            ]
        for which, side, port in ((0, heads, self.o_heads), (1, tokens, self.o_tokens)):
            with m.If(of_tokens == which):
                for source, sink in ((ids, side.list.i), (indices, side.importance.i_kept), (out, port)):
                    m.d.comb += [
                        sink.valid.eq(source.valid),
                        source.ready.eq(sink.ready),
                        sink.payload.count.eq(source.payload.count),
                        sink.payload.last.eq(source.payload.last),
                    ]
                    m.d.comb += [
                        sink.payload.data[lane].eq(source.payload.data[lane]) for lane in range(cfg.lanes)
                    ]
        return kept.valid & kept.ready & kept.payload.last
