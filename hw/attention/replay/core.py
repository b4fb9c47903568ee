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


class Core:
    """Mirrors :class:`hw.attention.rtl.Attention`."""

    def __init__(self, layers: Sequence[Layer], config: AttentionConfig, memory: MemoryTiming) -> None:
        self.layers = layers
        self.cascade = Cascade(config, layers)
        self.loader = Loader(config.lanes)
        self.fetch = Fetch(config.fetch, config.kept_regroup, memory)
        self.ring = Ring(config.ring_rows, config.lanes, config.confidence.window - 1)
        self.source, self.issue, self.reports = Source(), Issue(self.ring), Reports(ROW_QUEUE)
        self.qk = Qk(config.qk)
        self.scores = Regroup(config.scores_regroup)
        self.confidence, self.softmax = Confidence(config.confidence), Softmax(config.confidence.softmax)
        self.values = ValueSelect(config.values, config.n_value_engines)
        self.pv = Pv(config.pv)
        self.probability_fork, self.head_fork = Fork(2), Fork(2)
        self.output_stamps: list[int] = []
        self.beat_left = False
        """A beat of probabilities left the softmax in this cycle."""

    @property
    def n_stamps(self) -> int:
        """Beats that have left on any stream."""
        sides = (self.cascade.heads, self.cascade.tokens)
        return len(self.output_stamps) + sum(len(side.score_stamps) + len(side.kept_stamps) for side in sides)

    @property
    def is_done(self) -> bool:
        """The last layer has ended."""
        return len(self.cascade.summary_stamps) == len(self.layers)

    def step(self, cycle: int) -> None:
        ring_has_room = self.ring.has_room
        line, target = self.fetch.line, self.loader.targets.out
        line_for = target if line is not None else None

        output_taken, head_beat = self._outputs(cycle)
        self._second_array(cycle, line_for == "value", (output_taken, head_beat is not None))
        token_beat = self._select_values(cycle)
        reported = self._report()
        lsb_wanted = self._softmax(cycle)
        key_freed = self._first_array(cycle, line_for == "key", reported)
        self._register_lsb(key_freed, lsb_wanted)
        row_taken = self.confidence.begin(self.source.offered)
        self.source.step(row_taken, reported)

        line_taken, n_query_rows = self._line_taken(line, target)
        loader, cascade = self.loader, self.cascade
        request_taken, list_taken = self.fetch.step(
            cycle, line_taken, loader.offered_request(), cascade.token_list
        )
        if list_taken:
            cascade.tokens.list.out = None
        head, takers, source_takes = self._surviving_head()
        read_taken = cascade.step(cycle, loader.offered_read(), token_beat, head_beat)
        n_reserve = loader.step(
            request_taken, read_taken, ring_has_room, lsb_wanted, key_freed, self.pv.freed_half
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
        pv.step(cycle, weighted.out, self.values.out, loads.out, has_line, taken)
        if pv.row_taken:
            weighted.out = None
        if pv.beat_taken:
            self.values.take()
        if pv.load_taken:
            loads.out = None

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
        return self.reports.step(self.confidence.reports, self.source)

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
        return None if wanted is None or self.issue.has_lsb[wanted.half] else wanted.half

    def _first_array(self, cycle: int, has_line: bool, reported: Row | None) -> int | None:
        """Scores, and the queries that bring them; the half of the key buffer that was freed."""
        qk, issue, loads = self.qk, self.issue, self.loader.loads["key"]
        score = qk.scores.out
        score_taken = self.scores.step(score, self.confidence.move(self.scores.offered(score)))
        if score_taken:
            qk.scores.out = None
        query_taken = qk.step(cycle, issue.query, loads.out, has_line, score_taken)
        if qk.load_taken:
            loads.out = None
        released = reported if reported is not None and reported.releases else None
        return issue.step(self.confidence.begins, query_taken, released)

    def _register_lsb(self, key_freed: int | None, lsb_wanted: int | None) -> None:
        if key_freed is not None:
            self.issue.has_lsb[key_freed] = False
        if lsb_wanted is not None:
            self.issue.has_lsb[lsb_wanted] = True

    def _line_taken(self, line: Beat | None, target: str | None) -> tuple[bool, int]:
        """Whether the fetched line left; rows of it for the query ring."""
        if line is None or target is None:
            return False, 0
        if target == "query":
            taken = self.ring.line_ready
        else:
            taken = self.qk.line_taken if target == "key" else self.pv.line_taken
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
