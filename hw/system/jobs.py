# SPDX-License-Identifier: MIT
"""From words of memory to the core's input streams: one job a layer, checked before the core sees it."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.attention.program import FILL, GIVEN, GO_ON, ROWS
from hw.fetch.config import MAX_RECORD_HEADS, PLANE_BITS

from .config import DescriptorError, SystemConfig
from .streams import INPUTS, header_layout, n_words

Problem = tuple[Value, DescriptorError]
PACKED = {"data", "count", "last"}
"""Fields of a beat of a list."""


class JobReader(wiring.Component):
    """Deals records to the core's inputs and refuses what would hang it or make it compute nonsense.

    A job is a header, which counts, then a beat of the first input and the counted beats of each other one;
    each of them whole bus words. Reset before a run.

    Members
    -------
    i : stream of bus words
    exhausted : no further word will come
    n_layers : jobs
    the core's inputs : streams of their payloads
    job : number of the job at hand
    all_read : every beat of every job has been taken
    failed, detail : the record at hand is refused, for this :class:`hw.system.config.DescriptorError`
    too_short, too_long : the words end within a job; there are more words than jobs
    """

    def __init__(self, config: SystemConfig) -> None:
        self.config = config
        self.layouts = {name: layout(config.core) for name, layout in INPUTS.items()}
        super().__init__(
            {
                "i": In(stream.Signature(config.bus_bits)),
                "exhausted": In(1),
                "n_layers": In(32),
                **{name: Out(stream.Signature(layout)) for name, layout in self.layouts.items()},
                "job": Out(32),
                "all_read": Out(1),
                "failed": Out(1),
                "detail": Out(8),
                "too_short": Out(1),
                "too_long": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        bus_bits = self.config.bus_bits
        records = [header_layout(), *self.layouts.values()]
        sizes = [n_words(layout, bus_bits) for layout in records]
        self.record = record = Signal(max(sizes) * bus_bits, reset_less=True)
        self.kind = kind = Signal(range(len(records)))
        """0: header; then the inputs in their order."""
        self.left = left = Signal(range(1 << 16))
        """Beats of the kind at hand that are not over."""
        self.counts = counts = Signal(header_layout(), reset_less=True)
        word, size, count = Signal(range(max(sizes) + 1)), Signal(range(max(sizes) + 1)), Signal.like(left)
        taken = Signal()
        with m.Switch(kind):
            for number, n in enumerate(sizes):
                with m.Case(number):
                    m.d.comb += size.eq(n)
        with m.Switch(kind):  # how many beats there are of the kind after this one
            for number, name in enumerate(list(self.layouts)[1:], start=1):
                with m.Case(number):
                    m.d.comb += count.eq(counts[name])
        for name, layout in self.layouts.items():
            m.d.comb += Value.cast(getattr(self, name).payload).eq(record[: layout.size])

        self._total(m)
        problems = self._problems(m)
        with m.FSM():
            with m.State("GATHER"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += [record.word_select(word, bus_bits).eq(self.i.payload), word.eq(word + 1)]
                    with m.If(word == size - 1):
                        m.d.sync += word.eq(0)
                        m.next = "CHECK"
                with m.Elif(self.exhausted):
                    m.d.comb += self.too_short.eq(1)
            with m.State("CHECK"):
                m.next = "OFFER"
                for condition, detail in reversed(problems):
                    with m.If(condition):
                        m.d.comb += [self.failed.eq(1), self.detail.eq(detail)]
                with m.If(self.failed):
                    m.next = "REFUSED"
                with m.Elif(kind == 0):
                    m.d.sync += [counts.eq(record[: counts.shape().size]), kind.eq(1), left.eq(1)]
                    m.next = "GATHER"
            with m.State("OFFER"):
                for number, name in enumerate(self.layouts, start=1):
                    port = getattr(self, name)
                    with m.If(kind == number):
                        m.d.comb += [port.valid.eq(1), taken.eq(port.ready)]
                with m.If(taken):
                    m.d.sync += left.eq(left - 1)
                    m.next = "GATHER"
                    with m.If(left == 1):
                        m.next = "NEXT"
            with m.State("NEXT"):
                with m.If(kind == len(records) - 1):
                    m.d.sync += [kind.eq(0), self.job.eq(self.job + 1)]
                    m.next = "GATHER"
                    with m.If(self.job == self.n_layers - 1):
                        m.next = "END"
                with m.Else():
                    m.d.sync += [kind.eq(kind + 1), left.eq(count)]
                    with m.If(count != 0):
                        m.next = "GATHER"
            with m.State("END"):
                m.d.comb += [self.all_read.eq(1), self.too_long.eq(~self.exhausted)]
            with m.State("REFUSED"):
                pass
        self.taken = taken
        self._remember(m, taken)
        return m

    def _is(self, name: str) -> Value:
        """The record at hand is a beat of that input."""
        return self.kind == list(self.layouts).index(name) + 1

    def _view(self, name: str):
        layout = self.layouts[name]
        return layout(self.record[: layout.size])

    def _problems(self, m: Module) -> list[Problem]:
        """What may be wrong with the record at hand; the first that holds is told."""
        found = self._layer_problems(m)
        planes = self._view("i_head")
        for name in ("q", "k", "v", "lsb"):
            plane = planes[name]
            bad = (plane.record_heads > MAX_RECORD_HEADS) | (plane.head >= plane.record_heads)
            needed = {"lsb": self.progressive, "v": ~self.sums}.get(name, Const(1))
            found.append((self._is("i_head") & needed & bad, DescriptorError.PLANE))
        for name, layout in self.layouts.items():
            if isinstance(layout, data.StructLayout) and set(layout.members) == PACKED:
                found.append((self._is(name) & self._list_problem(name), DescriptorError.LIST))
        return found

    def _layer_problems(self, m: Module) -> list[Problem]:
        core, layer, counts = self.config.core, self._view("i_layer"), self.counts
        self.present = Signal(core.count_bits)
        """Most tokens that the layer before can have left."""
        self.n_heads = Signal(layer.n_heads.shape())
        self.progressive, self.sums = Signal(), Signal()
        tokens, heads, rows = (Value.cast(field) for field in (layer.tokens, layer.heads, layer.rows))
        self.n_tokens = n_tokens = Signal(core.count_bits)
        fitting, is_dim = Signal(range(2 * core.qk.n_lines * core.qk.n_multipliers)), Signal()
        m.d.comb += n_tokens.eq(Mux(tokens == GO_ON, self.present, layer.n_tokens))
        with m.Switch(layer.dim):
            for code, head_dim in enumerate(core.qk.head_dims):
                per_line = core.qk.buffer.vectors_per_line(head_dim)
                whole, half = per_line * core.qk.n_lines, per_line * (core.qk.n_lines // 2)
                with m.Case(code):
                    m.d.comb += [is_dim.eq(1), fitting.eq(Mux(layer.progressive, half, whole))]

        def unlike(name: str, is_given: Value) -> Value:
            return (counts[name] != 0) != is_given

        is_first = self.job == 0
        bits = (layer.q_bits, layer.k_bits, layer.v_bits)
        changed = (heads == GO_ON) & ~is_first & (layer.n_heads != self.n_heads)
        found = [
            ((tokens > GIVEN) | ((tokens == GO_ON) & is_first), DescriptorError.TOKENS),
            ((heads > GIVEN) | ((heads == GO_ON) & is_first), DescriptorError.HEADS),
            ((n_tokens == 0) | (n_tokens > core.n_max), DescriptorError.N_TOKENS),
            (
                (layer.n_heads == 0) | (layer.n_heads > core.head_importance.n_max) | changed,
                DescriptorError.N_HEADS,
            ),
            (~is_dim, DescriptorError.DIM),
            (~Cat(_is_one_of(width, PLANE_BITS) for width in bits).all(), DescriptorError.BITS),
            (layer.n_values == 0, DescriptorError.N_VALUES),
            (layer.n_tokens_next == 0, DescriptorError.N_TOKENS_NEXT),
            ((layer.n_heads_next == 0) & (rows != ROWS["one"]), DescriptorError.N_HEADS_NEXT),
            (
                (rows == ROWS["sum"]) & ((heads != FILL) | (layer.n_heads > core.n_max)),
                DescriptorError.ROWS,
            ),
            ((n_tokens > fitting) & ~(layer.streamed | (rows == ROWS["sum"])), DescriptorError.KEYS),
            (counts["i_head"] != layer.n_heads, DescriptorError.COUNTS),
            (unlike("i_tokens", tokens == GIVEN), DescriptorError.COUNTS),
            (unlike("i_token_importance", tokens == GIVEN), DescriptorError.COUNTS),
            (unlike("i_heads", heads == GIVEN), DescriptorError.COUNTS),
        ]
        return [(self._is("i_layer") & condition, detail) for condition, detail in found]

    def _total(self, m: Module) -> None:
        self.total = Signal(range(2 * self.config.core.n_max + 1))
        """Elements of the list at hand, up to the beat at hand."""
        self.n_scores = Signal.like(self.total)

    def _list_problem(self, name: str) -> Value:
        core, beat = self.config.core, self._view(name)
        lanes = len(beat.data)
        n_after = self.total + beat.count
        ends = self.left == 1
        bad = (beat.count == 0) | (beat.count > lanes) | (beat.last != ends) | (~ends & (beat.count != lanes))
        if name == "i_heads":
            wrong = [(lane < beat.count) & (beat.data[lane] >= self.n_heads) for lane in range(lanes)]
            return bad | (n_after > self.n_heads) | Cat(wrong).any()
        bad |= n_after > core.n_max
        return bad | (ends & (n_after != self.n_scores)) if name == "i_tokens" else bad

    def _remember(self, m: Module, taken: Value) -> None:
        """What later records are checked by."""
        layer = self._view("i_layer")
        with m.If(taken & self._is("i_layer")):
            n_next, is_sum = layer.n_tokens_next, Value.cast(layer.rows) == ROWS["sum"]
            m.d.sync += [
                self.present.eq(Mux((self.n_tokens < n_next) | is_sum, self.n_tokens, n_next)),
                self.n_heads.eq(layer.n_heads),
                self.progressive.eq(layer.progressive),
                self.sums.eq(is_sum),
            ]
        for name, layout in self.layouts.items():
            if set(layout.members) == PACKED:
                with m.If(taken & self._is(name)):
                    count = self._view(name).count
                    m.d.sync += self.total.eq(Mux(self.left == 1, 0, self.total + count))
                    if name == "i_token_importance":
                        m.d.sync += self.n_scores.eq(self.total + count)


def _is_one_of(value: Value, numbers) -> Value:
    return Cat(value == number for number in numbers).any()
