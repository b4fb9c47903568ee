# SPDX-License-Identifier: MIT
"""Layer after layer: which tokens and heads there are, and which stay."""

from amaranth import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.importance.rtl import Importance, Op, command_layout
from hw.select.rtl import LocalValueSelect
from hw.stream.fork import connect, fork
from hw.stream.rtl import Regroup, packed_layout

from .config import HEAD_BITS, AttentionConfig
from .lists import KeptList, read_layout
from .shapes import (
    Rows,
    Source,
    elements_layout,
    given_importance_layout,
    head_layout,
    ids_layout,
    layer_layout,
    numbered_head_layout,
    summary_layout,
)

ALL = Const(0b1111, 4)
"""Of the sinks of a beat."""


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
    keeps all: the lists leave for every layer. A list of tokens that is given goes through a selection first.
    Where heads have one row each (Rows.ONE), they are not selected and their importance is forgotten: their
    magnitudes come in another order, and generation keeps the heads that the prompt chose. Where sums are
    wanted (Rows.SUM), nothing is selected at the end of the layer.

    Members
    -------
    i_layer : stream of :func:`hw.attention.shapes.layer_layout`, taken when the layer before is over
    i_head : stream of :func:`hw.attention.shapes.head_layout`, for each layer all heads of the model in order
    i_tokens, i_heads : streams of :func:`hw.attention.shapes.ids_layout`: lists that are given
    i_token_importance : stream of :func:`hw.attention.shapes.given_importance_layout`: the scores of each
        list of ``i_tokens``, of the same length
    layer : the layer at hand
    n_tokens : tokens that are still there
    one, causal, sums, streamed : the kind of rows; ``sums``: nothing but sums over heads is wanted
    n_heads : heads that are still there
    summed : a pulse: all sums of the layer have left
    releasing : lines of the layer are still on their way: LSBs of keys that no row needed in the end. Tokens
        are not selected before they have come, since the list may still be read for them
    i_list, o_list, look, looks, looked : reads of the list of tokens, see :class:`KeptList`
    key_head, key_entry, value_head, value_entry : a head's number, and in the next cycle what ``i_head`` said
        of it; twice
    o_head : stream of :func:`hw.attention.shapes.numbered_head_layout`; heads of one group, those left of it,
        follow one another
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
                "i_tokens": In(ids),
                "i_token_importance": In(stream.Signature(given_importance_layout(config))),
                "i_heads": In(ids),
                "layer": Out(layer_layout(config)),
                "n_tokens": Out(config.count_bits),
                "one": Out(1),
                "causal": Out(1),
                "sums": Out(1),
                "streamed": Out(1),
                "n_heads": Out(HEAD_BITS + 1),
                "summed": In(1),
                "releasing": In(1),
                "i_list": In(stream.Signature(read_layout(config.n_max, config.lanes))),
                "o_list": Out(ids),
                "look": In(range(config.n_max // config.lanes)),
                "looks": In(1),
                "looked": Out(ids_layout(config).members["data"]),
                "key_head": In(HEAD_BITS),
                "key_entry": Out(head_layout(config)),
                "value_head": In(HEAD_BITS),
                "value_entry": Out(head_layout(config)),
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
        m.d.comb += [
            self.n_tokens.eq(tokens.list.n),
            self.one.eq((self.layer.rows == Rows.ONE) | self.sums),
            self.sums.eq(self.layer.rows == Rows.SUM),
            self.streamed.eq(self.layer.streamed | self.sums),
            self.n_heads.eq(heads.list.n),
            self.causal.eq(self.layer.rows == Rows.CAUSAL),
        ]
        connect(m, self.i_probability, tokens.importance.i)
        connect(m, self.i_token_importance, tokens.importance.i_load)
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
        self._surviving_heads(m, heads, selecting)
        self._control(m, tokens, heads, selector, selecting, of_tokens, selected)
        return m

    def _control(
        self, m: Module, tokens, heads, selector, selecting: Signal, of_tokens: Signal, selected
    ) -> None:
        layer = self.layer
        evicting = Signal()
        """The selection is that of a given list."""
        n_rows, n_stay = Signal.like(tokens.list.n), Signal.like(tokens.list.n)
        head = Signal(HEAD_BITS)
        """Head of the table, or place in the list, that is next."""
        done = Signal(4)
        has_ended, ended = Signal(2), Signal(2)
        """Of a selection: its result has gone; the list that it chose from has been read. In any order: what
        follows the last one kept is read to no purpose, but must not be left to the list's other user."""
        list_end = selector.i.valid & selector.i.ready & selector.i.payload.last
        m.d.comb += ended.eq(has_ended | Cat(selected, list_end))
        m.d.sync += has_ended.eq(ended)

        def send(*sinks, wanted: Value = ALL) -> Value:
            """A beat to each of the ``wanted`` sinks, once; 1 in the cycle in which the last one takes it."""
            settled = Signal(len(sinks), name="settled")
            m.d.comb += settled.eq(done | ~wanted | Cat(sink.ready for sink in sinks))
            m.d.comb += [sink.valid.eq(wanted[place] & ~done[place]) for place, sink in enumerate(sinks)]
            m.d.sync += done.eq(Mux(settled.all(), 0, settled))
            return settled.all()

        m.d.comb += [
            tokens.list.look.eq(self.look),
            tokens.list.looks.eq(self.looks),
            self.looked.eq(tokens.list.looked),
            tokens.list.i_fill.payload.eq(layer.n_tokens),
            heads.list.i_fill.payload.eq(layer.n_heads),
            n_rows.eq(Mux(self.one, 1, tokens.list.n)),
            n_stay.eq(Mux(evicting, layer.n_tokens, layer.n_tokens_next)),
            tokens.command.payload.n_rows.eq(n_rows),
            heads.command.payload.n_rows.eq(n_rows),
            heads.command.payload.line.eq(head),
            tokens.command.payload.shift.eq(layer.token_shift),
            heads.command.payload.shift.eq(layer.head_shift),
            tokens.command.payload.halve.eq(layer.halve),
            selector.i_row.payload.n.eq(Mux(of_tokens, tokens.list.n, heads.list.n)),
            selector.i_row.payload.k.eq(Mux(of_tokens, n_stay, layer.n_heads_next)),
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
                    go_on = [self.i_layer.payload[name] == Source.GO_ON for name in ("tokens", "heads")]
                    with m.If(go_on[0] & go_on[1]):
                        m.next = "TABLE"
                    with m.Else():
                        m.next = "ANEW"
            with m.State("ANEW"):
                command(Op.CLEAR)
                with m.If(layer.tokens == Source.GIVEN):
                    m.d.comb += tokens.command.payload.op.eq(Op.LOAD)
                fills = Cat(source == Source.FILL for source in (layer.tokens, layer.heads))
                anew = Cat(source != Source.GO_ON for source in (layer.tokens, layer.heads))
                sinks = (*(side.list.i_fill for side in both), *(side.command for side in both))
                with m.If(send(*sinks, wanted=Cat(fills, anew))):
                    m.next = "TABLE"
                    with m.If(layer.heads == Source.GIVEN):
                        m.next = "GIVEN HEADS"
                    with m.If(layer.tokens == Source.GIVEN):
                        m.next = "GIVEN TOKENS"
            with m.State("GIVEN TOKENS"):
                m.d.sync += [of_tokens.eq(1), evicting.eq(1)]
                with m.If(self._takes(m, self.i_tokens, tokens.list.i)):
                    m.next = "READ TOKENS"
            with m.State("GIVEN HEADS"):
                with m.If(self._takes(m, self.i_heads, heads.list.i)):
                    m.next = "TABLE"
            with m.State("TABLE"):
                m.d.comb += self.i_head.ready.eq(1)
                with m.If(self.i_head.valid):
                    m.d.sync += head.eq(head + 1)
                    with m.If(head == layer.n_heads - 1):
                        m.d.sync += head.eq(0)
                        m.next = "HEADS"
            with m.State("HEADS"):
                with m.If(send(heads.list.i_read)):
                    m.next = "ROWS"
                    with m.If(self.sums):
                        m.next = "SUMS"
            with m.State("SUMS"):
                with m.If(self.summed):
                    m.next = "SUMMARY"
            with m.State("ROWS"):
                command(Op.ADD)
                with m.If(send(*(side.command for side in both))):
                    m.d.sync += head.eq(head + 1)
                    with m.If(head == heads.list.n - 1):
                        m.next = "READ HEADS"
                        with m.If(self.one):
                            m.next = "FORGET HEADS"
            # Taken when the last row has been added: then nothing of the layer is under way in the blocks.
            with m.State("FORGET HEADS"):
                command(Op.CLEAR)
                with m.If(send(heads.command)):
                    m.d.sync += of_tokens.eq(1)
                    m.next = "READ TOKENS"
            for side, name, after in ((heads, "HEADS", "READ TOKENS"), (tokens, "TOKENS", "SUMMARY")):
                with m.State(f"READ {name}"):
                    command(Op.READ)
                    with m.If(send(side.command)):
                        m.next = f"SELECT {name}"
                with m.State(f"SELECT {name}"):
                    with m.If(~self.releasing | (side is heads)):
                        command(Op.KEEP)
                        m.d.comb += selecting.eq(1)
                        with m.If(send(side.list.i_read, selector.i_row, side.command)):
                            m.next = f"WAIT {name}"
                with m.State(f"WAIT {name}"):
                    m.d.comb += selecting.eq(1)
                    with m.If(ended.all()):
                        m.d.sync += [has_ended.eq(0), of_tokens.eq(~evicting), evicting.eq(0)]
                        m.next = after
                        with m.If(evicting):
                            m.next = "TABLE"
                            with m.If(layer.heads == Source.GIVEN):
                                m.next = "GIVEN HEADS"
            with m.State("SUMMARY"):
                with m.If(send(self.o_summary)):
                    m.d.comb += self.ended.eq(1)
                    m.next = "LAYER"

    def _pass_on(self, m: Module, source: stream.Interface, sink: stream.Interface) -> None:
        """Packed numbers, whose widths may differ."""
        m.d.comb += [
            sink.valid.eq(source.valid),
            source.ready.eq(sink.ready),
            sink.payload.count.eq(source.payload.count),
            sink.payload.last.eq(source.payload.last),
        ]
        m.d.comb += [
            sink.payload.data[lane].eq(source.payload.data[lane]) for lane in range(self.config.lanes)
        ]

    def _takes(self, m: Module, given: stream.Interface, sink: stream.Interface) -> Value:
        """A given list to where lists go; 1 with its last beat."""
        self._pass_on(m, given, sink)
        return given.valid & given.ready & given.payload.last

    def _surviving_heads(self, m: Module, heads: _Side, selecting: Signal) -> None:
        """The list of heads, one by one, with the table's entries.

        A head waits until the next one's number is there: that tells whether its group goes on.
        """
        cfg = self.config
        m.submodules.head_regroup = regroup = Regroup(cfg.head_regroup)
        m.submodules.table = table = memory.Memory(
            shape=head_layout(cfg).size, depth=cfg.head_importance.n_max, init=[]
        )
        m.submodules.groups = groups = memory.Memory(
            shape=unsigned(HEAD_BITS), depth=cfg.head_importance.n_max, init=[]
        )
        place = Signal(HEAD_BITS)
        """Of the next entry."""
        taken = self.i_head.valid & self.i_head.ready
        for table_write, entry in (
            (table.write_port(), self.i_head.payload),
            (groups.write_port(), self.i_head.payload.group),
        ):
            m.d.comb += [
                table_write.en.eq(taken),
                table_write.addr.eq(place),
                table_write.data.eq(Value.cast(entry)),
            ]
        with m.If(taken):
            m.d.sync += place.eq(Mux(place == self.layer.n_heads - 1, 0, place + 1))

        for address, entry in ((self.key_head, self.key_entry), (self.value_head, self.value_entry)):
            look = table.read_port()
            m.d.comb += [look.en.eq(1), look.addr.eq(address), Value.cast(entry).eq(look.data)]
        read, read_group = table.read_port(), groups.read_port(domain="comb")
        number, out = regroup.o, self.o_head
        held, starts_layer, group = Signal(), Signal(init=1), Signal(HEAD_BITS, reset_less=True)
        """Of the head held: whether it is there, whether another one comes first, its group."""
        is_other = group != read_group.data
        m.d.comb += [
            read_group.addr.eq(number.payload.data[0]),
            out.valid.eq(held & (out.payload.last | number.valid)),
            out.payload.last_of_group.eq(out.payload.last | is_other),
        ]
        flow = ~held | (out.valid & out.ready)
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
                held.eq(number.valid & (number.payload.count != 0)),
                out.payload.number.eq(number.payload.data[0]),
                out.payload.last.eq(number.payload.last),
                out.payload.first_of_group.eq(starts_layer | is_other),
                group.eq(read_group.data),
            ]
            with m.If(number.valid):
                m.d.sync += starts_layer.eq(number.payload.last)
        with m.If(~selecting):
            m.d.comb += heads.list.o.ready.eq(regroup.i.ready)

    def _lists(self, m: Module, tokens: _Side, heads: _Side, selector, selecting, of_tokens) -> None:
        """A list is read for the selection, or else by its users."""
        lines = tokens.list
        m.d.comb += [side.list.i_read.payload.n.eq(side.list.n) for side in (tokens, heads)]
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
            if which:
                self._protect(m, score.payload)
            with m.If(of_tokens == which):
                connect(m, score, selector.i_score)

    def _protect(self, m: Module, scores: data.View) -> None:
        """The last token outweighs every other, if asked for."""
        for lane in range(self.config.lanes):
            with m.If(self.layer.protect_last & scores.last & (scores.count == lane + 1)):
                m.d.comb += scores.data[lane].eq(-1)

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
                    self._pass_on(m, source, sink)
        return kept.valid & kept.ready & kept.payload.last
