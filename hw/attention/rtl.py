# SPDX-License-Identifier: MIT
"""The attention core: its blocks wired together."""

from amaranth import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.confidence.rtl import ConfidentSoftmax
from hw.fetch.rtl import Fetch
from hw.fetch.shapes import memory_request_layout, memory_response_layout
from hw.pv.rtl import Pv
from hw.qk.rtl import Qk
from hw.stream.config import FifoConfig
from hw.stream.fork import connect, fork, only_if
from hw.stream.rtl import Fifo, Regroup

from .cascade import Cascade
from .config import AttentionConfig
from .loader import Loader
from .query_ring import QueryRing
from .rows import QueryIssue, Reports, RowSource
from .shapes import (
    elements_layout,
    given_importance_layout,
    head_layout,
    ids_layout,
    layer_layout,
    output_layout,
    summary_layout,
    sums_layout,
    tag_layout,
)
from .sums import Sums
from .tiles import Gather, TileEnd, WeightedRows, lines_of
from .values import ValueSelect


class Attention(wiring.Component):
    """SpAtten's attention core for passes over whole sentences (SpAtten Fig. 8, Alg. 1 to 3).

    ::

        i_layer, i_head -> Cascade: lists, importance, selection <------ probabilities, magnitudes
                              | surviving heads                                 |
                              v                                                 |
           Loader -> Fetch -> QueryRing -> Qk -> ConfidentSoftmax -> LocalValueSelect -> Pv -> o
                        \\______________/  keys        | LSBs wanted       values /
                         \\____________________________|__________________________/

    Layer by layer, head by head, row by row; all stages work on successive rows, and the next head's keys and
    values load into the other halves of their buffers. A row whose largest probability is below the
    threshold has its head's LSB plane fetched, once a head, and is computed again. In a streamed layer each
    row reads its keys, tile by tile, and after the selection the values that it keeps. Which tokens and heads
    survive a layer is decided here and nowhere else: the host only says how many. With Rows.SUM the scores of
    all heads are added up, and nothing else is computed: a matrix times a vector.

    Members
    -------
    i_layer, i_head, i_tokens, i_token_importance, i_heads : see :class:`hw.attention.cascade.Cascade`
    o : stream of :func:`hw.attention.shapes.output_layout`; n rows for each surviving head, a head's rows in
        the order in which the confidence check finishes them
    o_token_importance, o_head_importance, o_tokens, o_heads, o_summary : see
        :class:`hw.attention.cascade.Cascade`
    o_sums : stream of :func:`hw.attention.shapes.sums_layout`, of a layer with Rows.SUM alone
    o_request{c}, i_response{c} : to and from DRAM channel c, see :class:`hw.fetch.crossbar.Crossbar`
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        fetch = config.fetch
        super().__init__(
            {
                "i_layer": In(stream.Signature(layer_layout(config))),
                "i_head": In(stream.Signature(head_layout(config))),
                "i_tokens": In(stream.Signature(ids_layout(config))),
                "i_token_importance": In(stream.Signature(given_importance_layout(config))),
                "i_heads": In(stream.Signature(ids_layout(config))),
                "o": Out(stream.Signature(output_layout(config))),
                "o_token_importance": Out(stream.Signature(elements_layout(config))),
                "o_head_importance": Out(stream.Signature(elements_layout(config))),
                "o_tokens": Out(stream.Signature(ids_layout(config))),
                "o_heads": Out(stream.Signature(ids_layout(config))),
                "o_summary": Out(stream.Signature(summary_layout())),
                "o_sums": Out(stream.Signature(sums_layout(config))),
                **{
                    f"o_request{c}": Out(stream.Signature(memory_request_layout(fetch.crossbar)))
                    for c in range(fetch.n_channels)
                },
                **{
                    f"i_response{c}": In(stream.Signature(memory_response_layout(fetch.crossbar)))
                    for c in range(fetch.n_channels)
                },
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.cascade = cascade = Cascade(cfg)
        m.submodules.loader = loader = Loader(cfg)
        m.submodules.fetch = fetch = Fetch(cfg.fetch)
        m.submodules.ring = ring = QueryRing(cfg)
        m.submodules.source = source = RowSource(cfg, ring)
        m.submodules.issue = issue = QueryIssue(cfg)
        m.submodules.reports = reports = Reports(cfg)
        m.submodules.qk = qk = Qk(cfg.qk)
        m.submodules.softmax = softmax = ConfidentSoftmax(cfg.confidence)
        m.submodules.values = values = ValueSelect(cfg)
        m.submodules.weighted = weighted = WeightedRows(cfg)
        m.submodules.sums = sums = Sums(cfg)
        m.submodules.gather = gather = Gather(cfg)
        m.submodules.pv = pv = Pv(cfg.pv)

        outside = (
            *("i_layer", "i_head", "i_tokens", "i_token_importance", "i_heads"),
            *("o_token_importance", "o_head_importance", "o_tokens", "o_heads", "o_summary"),
        )
        for name in outside:
            inner, outer = getattr(cascade, name), getattr(self, name)
            connect(m, *((outer, inner) if name.startswith("i_") else (inner, outer)))

        n_lines = Signal(cfg.qk.buffer.count_bits)
        self._layer(m, cascade, loader, ring, source, issue, reports, weighted, n_lines)
        fork(m, cascade.o_head, loader.i_head, source.i_head, name="head")
        m.d.comb += [sink.payload.eq(cascade.o_head.payload) for sink in (loader.i_head, source.i_head)]

        self._fetch(m, cascade, loader, fetch, gather)
        connect(m, loader.o_key_load, qk.i_load)
        connect(m, loader.o_key, qk.i_key)
        connect(m, loader.o_value_load, pv.i_load)
        connect(m, loader.o_value, pv.i_value)
        connect(m, loader.o_query, ring.i)

        self._begin(m, cascade, source, loader, issue, softmax)
        connect(m, issue.o_query, qk.i_query)
        for member in ("row", "is_new", "read"):
            m.d.comb += getattr(ring, member).eq(getattr(issue, member))
        m.d.comb += [issue.present.eq(ring.present), issue.query.eq(ring.query)]
        self._scores(m, cascade, qk, softmax, sums)
        self._releases(m, cascade, loader, issue, reports, source, softmax, qk, pv)

        connect(m, softmax.o_row, reports.i_report)
        connect(m, reports.o_selected, values.i_row)
        connect(m, reports.o_weighted, weighted.i)
        connect(m, weighted.o, pv.i_row)
        connect(m, reports.o_values, loader.i_value_job)
        self._probabilities(m, softmax, cascade, values)
        self._kept(m, cascade, values, gather, pv)
        connect(m, pv.o_magnitude, cascade.i_magnitude)
        self._output(m, pv, reports)
        self._summary(m, cascade, fetch, reports)
        return m

    def _layer(
        self, m: Module, cascade, loader, ring, source, issue, reports, weighted, n_lines: Signal
    ) -> None:
        """What all heads of a layer share."""
        cfg, layer = self.config, cascade.layer
        m.d.comb += [n_lines.eq(lines_of(cascade.n_tokens, layer.dim, cfg)), weighted.dim.eq(layer.dim)]
        for block in (loader, source, issue, reports, weighted):
            m.d.comb += block.streamed.eq(cascade.streamed)
        for block in (loader, issue, reports):
            m.d.comb += [block.dim.eq(layer.dim), block.n.eq(cascade.n_tokens), block.n_lines.eq(n_lines)]
        m.d.comb += [
            ring.dim.eq(layer.dim),
            source.n.eq(cascade.n_tokens),
            source.one.eq(cascade.one),
            source.sums.eq(cascade.sums),
            loader.one.eq(cascade.one),
            loader.sums.eq(cascade.sums),
            loader.n_heads.eq(cascade.n_heads),
            issue.causal.eq(cascade.causal),
            reports.causal.eq(cascade.causal),
            source.progressive.eq(layer.progressive),
            source.threshold.eq(layer.threshold),
            reports.n_values.eq(layer.n_values),
            reports.out_shift.eq(layer.out_shift),
            loader.q_bits.eq(layer.q_bits),
            loader.k_bits.eq(layer.k_bits),
            loader.v_bits.eq(layer.v_bits),
            loader.ring_has_room.eq(ring.has_room),
            ring.reserve.eq(loader.ring_reserve),
            ring.n_reserve.eq(loader.ring_n_reserve),
        ]

    def _begin(self, m: Module, cascade, source, loader, issue, softmax) -> None:
        """A row begins: a query, and of a streamed layer the keys that it needs.

        The confidence check says when, but where only sums are wanted: these go past it.
        """
        row, job = source.o_row, loader.i_key_job
        begin = softmax.o_begin.signature.create(path=("begin",))
        with m.If(cascade.sums):
            m.d.comb += [
                begin.payload.tag.eq(row.payload.tag),
                begin.valid.eq(row.valid),
                row.ready.eq(begin.ready),
            ]
        with m.Else():
            connect(m, row, softmax.i_row)
            connect(m, softmax.o_begin, begin)
        fork(m, begin, issue.i_begin, only_if(m, cascade.streamed, job, "key_job"), name="begin")
        m.d.comb += [
            issue.i_begin.payload.eq(begin.payload),
            job.payload.head.eq(data.View(tag_layout(self.config), begin.payload.tag).head),
            job.payload.lsb.eq(begin.payload.lsb),
            job.payload.n.eq(issue.n_keys),
        ]
        for name in ("key", "value"):
            m.d.comb += [
                getattr(cascade, f"{name}_head").eq(getattr(loader, f"{name}_head")),
                getattr(loader, f"{name}_entry").eq(getattr(cascade, f"{name}_entry")),
            ]

    def _fetch(self, m: Module, cascade, loader, fetch, gather) -> None:
        """Each request gets its tokens from the list, or those that a row keeps."""
        m.submodules.kept = kept = Regroup(self.config.kept_regroup)
        m.submodules.sources = sources = Fifo(FifoConfig(width_bits=1, depth=8))
        m.submodules.gathered = gathered = TileEnd(self.config)
        connect(m, loader.o_list, cascade.i_list)
        connect(m, loader.o_source, sources.i)
        for of_row, ids in enumerate((cascade.o_list, gather.o)):
            with m.If(sources.o.valid & (sources.o.payload == of_row)):
                m.d.comb += [
                    kept.i.valid.eq(ids.valid),
                    kept.i.payload.data.eq(ids.payload.data),
                    kept.i.payload.count.eq(ids.payload.count),
                    kept.i.payload.last.eq(ids.payload.last),
                    ids.ready.eq(kept.i.ready),
                ]
        with m.If(sources.o.payload & gathered.ends):
            m.d.comb += kept.i.payload.last.eq(1)
        ends = kept.i.valid & kept.i.ready & kept.i.payload.last
        m.d.comb += [
            sources.o.ready.eq(ends),
            gathered.dim.eq(cascade.layer.dim),
            gathered.taken.eq(gather.o.valid & gather.o.ready),
            gathered.last.eq(gather.o.payload.last),
            loader.ids_wait.eq(gather.o.valid),
            loader.ids_end.eq(ends & sources.o.payload),
            cascade.look.eq(gather.look),
            cascade.looks.eq(gather.looks),
            gather.looked.eq(cascade.looked),
        ]
        connect(m, kept.o, fetch.i_kept)
        connect(m, loader.o_request, fetch.i_request)
        connect(m, fetch.o, loader.i_line)
        for c in range(self.config.fetch.n_channels):
            connect(m, getattr(fetch, f"o_request{c}"), getattr(self, f"o_request{c}"))
            connect(m, getattr(self, f"i_response{c}"), getattr(fetch, f"i_response{c}"))

    def _scores(self, m: Module, cascade, qk, softmax, sums) -> None:
        """One array computes both planes, in the order that the confidence check gave; or parts of sums."""
        m.submodules.scores = scores = Regroup(self.config.scores_regroup)
        connect(m, qk.o, scores.i)
        planes = (softmax.i_msb, softmax.i_lsb)
        for plane in planes:  # only the one whose turn it is is ready
            m.d.comb += [
                Value.cast(plane.payload).eq(Value.cast(scores.o.payload)),
                plane.valid.eq(scores.o.valid),
            ]
        m.d.comb += [
            scores.o.ready.eq(Mux(cascade.sums, sums.i.ready, planes[0].ready | planes[1].ready)),
            sums.i.valid.eq(scores.o.valid & cascade.sums),
            Value.cast(sums.i.payload).eq(Value.cast(scores.o.payload)),
            sums.n_rows.eq(cascade.n_heads),
            cascade.summed.eq(sums.ended),
        ]
        connect(m, sums.o, self.o_sums)

    def _releases(self, m: Module, cascade, loader, issue, reports, source, softmax, qk, pv) -> None:
        """Who may load what: LSB planes on demand, halves whose heads are finished."""
        request = softmax.o_request
        wanted = Value.cast(request.payload)[-1]
        m.d.comb += request.ready.eq(1)
        may_ask = ~cascade.streamed & ~issue.has_lsb.bit_select(wanted, 1)
        with m.If(request.valid & may_ask):
            m.d.comb += loader.lsb_wanted.bit_select(wanted, 1).eq(1)
        has_lsb = Signal(2)
        freed = Cat(qk.freed[0], qk.freed[self.config.qk.n_regions // 2])
        m.d.sync += has_lsb.eq((has_lsb & ~freed) | loader.lsb_wanted)
        m.d.comb += [
            issue.has_lsb.eq(has_lsb),
            issue.release.eq(reports.released),
            source.reported.eq(reports.reported),
            reports.ends.eq(source.ends),
            loader.key_freed.eq(qk.freed),
            loader.value_freed.eq(pv.freed),
            cascade.releasing.eq(issue.releasing),
        ]

    def _probabilities(self, m: Module, softmax, cascade, values) -> None:
        """Every probability counts for importance; the largest go on to the values."""
        fork(m, softmax.o, cascade.i_probability, values.i, name="probability")
        for sink in (cascade.i_probability, values.i):
            m.d.comb += Value.cast(sink.payload).eq(Value.cast(softmax.o.payload))

    def _kept(self, m: Module, cascade, values, gather, pv) -> None:
        """What a row keeps waits for its values. Streamed ones lie in the order in which they are kept."""
        cfg, streamed = self.config, cascade.streamed
        kept = values.o
        pairs_bits = Value.cast(kept.payload).shape().width
        m.submodules.pairs = fifo = Fifo(FifoConfig(width_bits=pairs_bits, depth=cfg.pairs_beats))
        m.submodules.weighted_tile = tile = TileEnd(cfg)
        fork(m, kept, fifo.i, only_if(m, streamed, gather.i, "gather"), name="kept")
        m.d.comb += [fifo.i.payload.eq(Value.cast(kept.payload)), gather.i.payload.eq(kept.payload)]
        pairs = data.View(kept.payload.shape(), fifo.o.payload)
        m.d.comb += [
            pv.i.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(pv.i.ready),
            pv.i.payload.count.eq(pairs.count),
            pv.i.payload.last.eq(pairs.last | (streamed & tile.ends)),
            tile.dim.eq(cascade.layer.dim),
            tile.taken.eq(streamed & fifo.o.valid & fifo.o.ready),
            tile.last.eq(pairs.last),
        ]
        for lane, pair in enumerate(pv.i.payload.data):
            m.d.comb += [
                pair.probability.eq(pairs.data[lane].probability),
                pair.index.eq(Mux(streamed, tile.beat * cfg.lanes + lane, pairs.data[lane].index)),
            ]

    def _output(self, m: Module, pv, reports) -> None:
        finished, out = reports.o_finished, self.o
        m.d.comb += [
            out.valid.eq(pv.o.valid & finished.valid),
            pv.o.ready.eq(out.ready & finished.valid),
            finished.ready.eq(out.ready & pv.o.valid),
            Value.cast(out.payload.data).eq(Value.cast(pv.o.payload)),
        ]
        m.d.comb += [out.payload[name].eq(finished.payload[name]) for name in ("head", "row", "used_lsb")]

    def _summary(self, m: Module, cascade, fetch, reports) -> None:
        """Counters of a layer."""
        counted, report, summary = fetch.o_counters, reports.i_report, cascade.summary
        m.d.comb += counted.ready.eq(1)
        totals = Signal(summary_layout())
        m.d.comb += summary.eq(totals)
        with m.If(cascade.ended):
            m.d.sync += totals.eq(0)
        with m.Else():
            with m.If(counted.valid):
                m.d.sync += [
                    totals[name].eq(totals[name] + counted.payload[name])
                    for name in ("ideal_bytes", "moved_bytes")
                ]
            with m.If(report.valid & report.ready):
                m.d.sync += [
                    totals.n_rows.eq(totals.n_rows + 1),
                    totals.n_recomputed.eq(totals.n_recomputed + report.payload.used_lsb),
                ]
