# SPDX-License-Identifier: MIT
"""Confidence check and softmax."""

from hw.confidence.config import BEGUN_ROWS, MAX_ENTRIES, ConfidenceConfig
from hw.softmax.config import DIVIDE_LATENCY_CYCLES, MAX_ROWS, OUTPUT_FIFO_BEATS, SoftmaxConfig

from .rows import Row
from .streams import Beat, Delay, Queue


class Softmax:
    """Mirrors :class:`hw.softmax.rtl.Softmax`. Each cycle: divide, exponentials, collect, in that order."""

    def __init__(self, config: SoftmaxConfig) -> None:
        self.lanes, self.depth = config.lanes, config.buffer_lines
        self.rows = Queue(MAX_ROWS + 2)
        # stage 1
        self.score_level, self.n_waiting = 0, 0
        self.n_keys = 0
        """Of the row being taken."""
        self.comparing = Delay(config.maximum_latency_cycles - 1)
        self.collected = Queue(MAX_ROWS)
        # stage 2
        self.n_exponentials, self.n_unreported = 0, 0
        self.power_level = 0
        self.shapes, self.inverses, self.reports = (Queue(MAX_ROWS) for _ in range(3))
        self.summing = Delay(config.row_latency_cycles - 1)
        # stage 3
        self.n_divided, self.last_count, self.n_in_flight = 0, 0, 0
        self.dividing = Delay(DIVIDE_LATENCY_CYCLES - 1)
        self.probabilities = Queue(OUTPUT_FIFO_BEATS)
        # between the stages, within a cycle
        self.powers_freed = self.scores_freed = 0
        self.begun = False

    def divide(self, cycle: int, decisions: Queue, beat_taken: bool) -> None:
        left = self.n_divided
        reads = left != 0 and self.n_in_flight != OUTPUT_FIFO_BEATS
        begins = (
            (left == 0 or (reads and left == 1))
            and self.inverses.out is not None
            and decisions.out is not None
        )
        self.powers_freed = int(reads)
        self.n_in_flight += reads - beat_taken
        if reads:
            beat = (self.last_count, True) if left == 1 else (self.lanes, False)
            self.dividing.enter(cycle, beat)
            self.n_divided -= 1
        if begins:
            n_lines, last_count = self.shapes.out
            if decisions.out:
                self.powers_freed += n_lines
            else:
                self.n_divided, self.last_count = n_lines, last_count
            self.shapes.out = self.inverses.out = decisions.out = None
        self.probabilities.put(self.dividing.leaving(cycle))

    def exponentials(self, cycle: int, report_taken: bool) -> None:
        left = self.n_exponentials
        reads = left != 0 and self.power_level != self.depth
        begins = (
            (left == 0 or (reads and left == 1))
            and self.collected.out is not None
            and self.rows.out is not None
            and self.shapes.has_room
            and self.n_unreported != MAX_ROWS
        )
        self.scores_freed = int(reads)
        self.power_level += reads - self.powers_freed
        self.n_unreported += begins - report_taken
        if reads:
            self.n_exponentials -= 1
            if left == 1:
                self.summing.enter(cycle, True)
        shape = None
        if begins:
            shape = self.collected.out
            self.n_exponentials = shape[0]
            self.collected.out = self.rows.out = None
        self.begun = begins
        self.shapes.put(shape)
        summed = self.summing.leaving(cycle)
        self.inverses.put(summed)
        self.reports.put(summed)

    def collect(self, cycle: int, beat: Beat | None) -> bool:
        """Whether the beat of scores was taken."""
        takes = beat is not None and self.score_level != self.depth and self.n_waiting != MAX_ROWS
        ends = False
        if takes and beat is not None:
            count, ends = beat
            self.n_keys += count
            if ends:
                self.comparing.enter(cycle, (-(-self.n_keys // self.lanes), count))
                self.n_keys = 0
        self.score_level += takes - self.scores_freed
        self.n_waiting += ends - self.begun
        self.collected.put(self.comparing.leaving(cycle))
        return takes


class Confidence:
    """Mirrors :class:`hw.confidence.rtl.Confidence`. Each cycle: decide, move, begin, in that order."""

    def __init__(self, config: ConfidenceConfig) -> None:
        self.window = config.window
        self.scales, self.begins = Queue(4), Queue(4)
        self.entries, self.moves = Queue(MAX_ENTRIES), Queue(BEGUN_ROWS)
        self.decisions, self.requests = Queue(MAX_ENTRIES), Queue(config.window + 1)
        self.reports = Queue(4)
        self.is_open, self.wanted = [False] * config.window, [False] * config.window
        self.rows: list[Row | None] = [None] * config.window
        self.slot, self.n_flush = 0, 0
        self.held: Beat | None = None
        self.score: Beat | None = None
        """On ``o_score``."""
        self.decided: tuple[int, bool] | None = None
        """Slot of a checked row decided in this cycle, and whether it is dropped."""

    def decide(self, maxima: Queue) -> bool:
        """One decision at most; whether the maximum was taken."""
        queues = (self.decisions, self.requests, self.reports)
        self.decided = None
        if maxima.out is None or self.entries.out is None or not all([queue.has_room for queue in queues]):
            for queue in queues:
                queue.put()
            return False
        slot, checked, row = self.entries.out
        decision = checked and row.dropped
        request, report = (row, None) if decision else (None, row)
        if checked:
            self.decided = slot, decision
        maxima.out = self.entries.out = None
        for queue, word in zip(queues, (decision, request, report), strict=True):
            queue.put(word)
        return True

    def move(self, beat: Beat | None) -> bool:
        """After the softmax took its score; whether ``beat`` was taken."""
        advance_out = self.score is None
        advance = self.held is None or advance_out
        takes = beat is not None and self.moves.out is not None and advance
        if takes and beat is not None and beat[1]:
            self.moves.out = None
        if advance_out:
            self.score = self.held
        if advance:
            self.held = beat if takes else None
        return takes

    def begin(self, row: Row | None) -> bool:
        """A row begins, again or for the first time; whether ``row`` was taken."""
        slot = self.slot
        is_open = self.is_open[slot]
        queues = (self.scales, self.entries, self.moves, self.begins)
        again = self.wanted[slot]
        settled = not is_open and self.n_flush != 0
        takes = row is not None and not is_open and self.n_flush == 0
        if (again or takes) and not all([queue.has_room for queue in queues]):
            again = takes = False
        begun = self.rows[slot] if again else row if takes else None
        if begun is None:
            for queue in queues:
                queue.put()
        else:
            checked = takes and begun.progressive
            words = (True, (slot, checked, begun), True, (begun, again))
            for queue, word in zip(queues, words, strict=True):
                queue.put(word)
        if again:
            self.wanted[slot] = self.is_open[slot] = False
        if takes and row is not None:
            self.is_open[slot], self.rows[slot] = row.progressive, row
            self.n_flush = self.window if row.flush else 0
        elif settled:
            self.n_flush -= 1
        if takes or settled:
            self.slot = (slot + 1) % self.window
        if self.decided is not None:
            place, dropped = self.decided
            (self.wanted if dropped else self.is_open)[place] = dropped
        return takes
