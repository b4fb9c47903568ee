# SPDX-License-Identifier: MIT
"""The mirrored units joined."""

from collections.abc import Sequence

from hw.fetch.cycles import MemoryTiming

from ..config import ROW_QUEUE, AttentionConfig
from .arrays import Pv, Qk
from .cascade import Cascade, Layer
from .loading import Fetch, Issue, Loader, Ring
from .rows import Head, Reports, Row, Source
from .selection import ValueSelect
from .softmax import Confidence, Softmax
from .streams import Beat, Fork, Queue, Regroup
from .sums import Sums
from .tiles import Gather, TileEnd, WeightedRows


class Core:
    """Mirrors :class:`hw.attention.rtl.Attention`."""

    def __init__(self, layers: Sequence[Layer], config: AttentionConfig, memory: MemoryTiming) -> None:
        self.layers = layers
        self.cascade = Cascade(config, layers)
        self.loader = Loader(config)
        self.fetch = Fetch(config.fetch, config.kept_regroup, memory)
        self.ring = Ring(config.ring_rows, config.lanes, config.confidence.window - 1)
        self.source, self.issue, self.reports = (
            Source(),
            Issue(self.ring, config.qk.n_regions),
            Reports(ROW_QUEUE),
        )
        self.qk = Qk(config.qk)
        self.scores = Regroup(config.scores_regroup)
        self.confidence, self.softmax = Confidence(config.confidence), Softmax(config.confidence.softmax)
        self.values = ValueSelect(config.values, config.n_value_engines)
        self.pv = Pv(config.pv)
        self.weighted = WeightedRows(config)
        self.gather, self.pairs = Gather(config.lanes), Queue(config.pairs_beats)
        self.sums = Sums()
        self.gathered, self.weighted_tile = TileEnd(), TileEnd()
        self.probability_fork, self.head_fork, self.begin_fork, self.kept_fork = (Fork(2) for _ in range(4))
        self.output_stamps: list[int] = []
        self.beat_left = False
        """A beat of probabilities left the softmax in this cycle."""
        self.row_begun = False
        """The row of the source, which went past the confidence check, began in this cycle."""

    @property
    def n_stamps(self) -> int:
        """Beats that have left on any stream."""
        sides = (self.cascade.heads, self.cascade.tokens)
        n_listed = sum(len(side.score_stamps) + len(side.kept_stamps) for side in sides)
        return len(self.output_stamps) + len(self.sums.stamps) + n_listed

    @property
    def only_sums(self) -> bool:
        """Of the layer at hand only sums over the heads are wanted."""
        return self.cascade.layer.token_choice is None

    @property
    def is_done(self) -> bool:
        """The last layer has ended."""
        return len(self.cascade.summary_stamps) == len(self.layers)

    def step(self, cycle: int) -> None:
        ring_has_room = self.ring.has_room
        line, target = self.fetch.line, self.loader.targets.out
        line_for = target if line is not None else None
        line_taken, n_query_rows = self._line_taken(line, target)
        ids_wait = self.gather.out is not None
        self.cascade.releasing = self.issue.releasing
        request_taken, ids_end = self._fetch(cycle, line_taken)

        output_taken, head_beat = self._outputs(cycle)
        self._second_array(cycle, line_for == "value", (output_taken, head_beat is not None))
        self._kept()
        token_beat = self._select_values(cycle)
        valued = self._value_job()
        reported = self._report()
        lsb_wanted = self._softmax(cycle)
        begun = self._first_array(cycle, line_for == "key", reported)
        key_freed = self.qk.freed
        self._register_lsb(key_freed, lsb_wanted)
        row_taken = self.confidence.begin(None if self.only_sums else self.source.offered)
        self.source.step(self.row_begun if self.only_sums else row_taken, reported)

        loader, cascade = self.loader, self.cascade
        head, takers, source_takes = self._surviving_head()
        read_taken = cascade.step(cycle, loader.offered_read(), token_beat, head_beat)
        n_reserve = loader.step(
            request_taken,
            read_taken,
            ring_has_room,
            lsb_wanted,
            key_freed,
            self.pv.freed,
            begun,
            valued,
            ids_wait,
            ids_end,
        )
        for queue in loader.heads.values():
            queue.put(head if queue in takers else None)
        self.source.heads.put(head if source_takes else None)
        self.ring.step(n_query_rows, n_reserve)

    def _outputs(self, cycle: int) -> tuple[bool, Beat | None]:
        """Whether a row of output left; the magnitude that the heads' importance took."""
        pv, finished = self.pv, self.reports.finished
        taken = pv.outputs.out is not None and finished.out is not None
        if taken:
            self.output_stamps.append(cycle)
            pv.outputs.out = finished.out = None
        if pv.magnitudes.out is None or not self.cascade.heads.importance.adds:
            return taken, None
        pv.magnitudes.out = None
        return taken, (1, True)

    def _second_array(self, cycle: int, has_line: bool, taken: tuple[bool, bool]) -> None:
        pv, weighted, loads = self.pv, self.reports.weighted, self.loader.loads["value"]
        beat, n_beats = self.pairs.out, self.n_tile_beats
        offered = self.weighted_tile.ended(beat, n_beats) if beat is not None and n_beats else beat
        pv.step(cycle, self.weighted.offered(weighted.out), offered, loads.out, has_line, taken)
        if pv.row_taken:
            self.weighted.take(weighted)
        if pv.beat_taken:
            self.pairs.out = None
            if beat is not None and n_beats:
                self.weighted_tile.step(beat, n_beats)
        if pv.load_taken:
            loads.out = None

    @property
    def n_tile_beats(self) -> int:
        """Beats of P that a tile has at most; 0 where the layer is not streamed."""
        head = self.cascade.layer.heads[0]
        return head.tile_keys // self.cascade.tokens.list.lanes if head.streamed else 0

    def _fetch(self, cycle: int, line_taken: bool) -> tuple[bool, bool]:
        """Whether the fetcher took a request, and the last token of a tile of values."""
        loader, cascade, gather = self.loader, self.cascade, self.gather
        of_row, ids = loader.sources.out, gather.out
        if of_row:
            beat = None if ids is None else self.gathered.ended(ids, self.n_tile_beats)
        else:
            beat = None if of_row is None else cascade.token_list
        request_taken, beat_taken = self.fetch.step(cycle, line_taken, loader.offered_request(), beat)
        if not beat_taken or beat is None:
            return request_taken, False
        if beat[1]:
            loader.sources.out = None
        if not of_row or ids is None:
            cascade.tokens.list.out = None
            return request_taken, False
        self.gathered.step(ids, self.n_tile_beats)
        gather.out = None
        return request_taken, beat[1]

    def _kept(self) -> None:
        """What a row keeps: to the second array, and where values are streamed to the gathering of tokens."""
        beat, streamed = self.values.out, bool(self.n_tile_beats)
        done = self.kept_fork.done
        gathered = self.gather.step(beat if streamed and not done[1] else None)
        has_room = self.pairs.has_room
        self.pairs.put(beat if has_room and not done[0] else None)
        if beat is not None and self.kept_fork.step([has_room, gathered or not streamed]):
            self.values.take()

    def _value_job(self) -> Row | None:
        """The row whose values the loader takes note of."""
        values = self.reports.values
        row = values.out if self.loader.value_job.rows.has_room else None
        if row is not None:
            values.out = None
        return row

    def _select_values(self, cycle: int) -> Beat | None:
        """Probabilities to the value selection; those that the tokens' importance took."""
        probabilities, selected = self.softmax.probabilities, self.reports.selected
        beat = probabilities.out
        done = self.probability_fork.done
        adds = self.cascade.tokens.importance.adds
        token_beat = beat if adds and not done[0] else None
        row = selected.out
        row_taken, beat_taken = self.values.step(
            cycle, None if row is None else row.selection, None if done[1] else beat
        )
        if row_taken:
            selected.out = None
        self.beat_left = beat is not None and self.probability_fork.step([adds, beat_taken])
        if self.beat_left:
            probabilities.out = None
        return token_beat

    def _report(self) -> Row | None:
        """The row that is reported in this cycle."""
        row = self.reports.step(self.confidence.reports, self.source)
        if row is not None and row.head.streamed:
            self.gather.rows.append(row)
        return row

    def _softmax(self, cycle: int) -> int | None:
        """Softmax and the decisions on its maxima; the half whose LSB plane is wanted for the first time."""
        check, softmax = self.confidence, self.softmax
        softmax.divide(cycle, check.decisions, self.beat_left)
        wanted, check.requests.out = check.requests.out, None
        maximum_taken = check.decide(softmax.reports)
        softmax.exponentials(cycle, maximum_taken)
        if softmax.collect(cycle, check.score):
            check.score = None
        scale = check.scales.out if softmax.rows.has_room else None
        if scale is not None:
            check.scales.out = None
        softmax.rows.put(scale)
        if wanted is None or wanted.head.streamed or self.issue.has_lsb[wanted.half]:
            return None
        return wanted.half

    def _first_array(self, cycle: int, has_line: bool, reported: Row | None) -> tuple[Row, bool] | None:
        """Scores, and the queries that bring them; the row whose keys the loader takes note of."""
        qk, issue, loads = self.qk, self.issue, self.loader.loads["key"]
        score = qk.scores.out
        offered, n_heads = self.scores.offered(score), self.cascade.heads.list.n
        summed = self.sums.step(cycle, offered if self.only_sums else None, n_heads)
        self.cascade.summed = self.sums.ended
        moved = self.confidence.move(None if self.only_sums else offered)
        score_taken = self.scores.step(score, summed or moved)
        if score_taken:
            qk.scores.out = None
        query_taken = qk.step(cycle, issue.query, loads.out, has_line, score_taken)
        if qk.load_taken:
            loads.out = None
        released = reported if reported is not None and reported.releases else None
        begins, done = self.confidence.begins, self.begin_fork.done
        begin, had_begun, row = begins.out, done[0], self.source.offered
        if self.only_sums:
            begin = None if row is None else (row, False)
        taken = issue.step(None if had_begun else begin, query_taken, released)
        if begin is None:
            self.row_begun = False
            return None
        streamed = begin[0].head.streamed
        job_ready = not streamed or self.loader.key_job.rows.has_room
        job = begin if streamed and job_ready and not done[1] else None
        self.row_begun = self.begin_fork.step([taken, job_ready])
        if self.row_begun and not self.only_sums:
            begins.out = None
        return job

    def _register_lsb(self, key_freed: int | None, lsb_wanted: int | None) -> None:
        if key_freed in (0, self.issue.half_regions):
            self.issue.has_lsb[key_freed != 0] = False
        if lsb_wanted is not None:
            self.issue.has_lsb[lsb_wanted] = True

    def _line_taken(self, line: Beat | None, target: str | None) -> tuple[bool, int]:
        """Whether the fetched line leaves; rows of it for the query ring."""
        if line is None or target is None:
            return False, 0
        if target == "query":
            taken = self.ring.line_ready
        else:
            array = self.qk if target == "key" else self.pv
            taken = array.buffer.n_left != 0
        if taken and line[1]:
            self.loader.targets.out = None
        return taken, line[0] if taken and target == "query" else 0

    def _surviving_head(self) -> tuple[Head | None, list[Queue], bool]:
        """The head, the loader's queues that take it in this cycle, and whether the rows' source does."""
        head = self.cascade.offered_head
        if head is None:
            return None, [], False
        loader = self.loader
        to_loader, to_source = (not done for done in self.head_fork.done)
        queues = list(loader.heads.values())
        ready = [queue.has_room for queue in queues]
        takers = [
            queue
            for queue, has_room, done in zip(queues, ready, loader.head_fork.done, strict=True)
            if to_loader and has_room and not done
        ]
        loader_ready = to_loader and loader.head_fork.step(ready)
        source_ready = self.source.heads.has_room
        if self.head_fork.step([loader_ready, source_ready]):
            self.cascade.out_head = None
        return head, takers, to_source and source_ready
