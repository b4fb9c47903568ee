# SPDX-License-Identifier: MIT
"""Both multiplier arrays and their buffers."""

from dataclasses import dataclass

from hw.pv.config import ROUTE_CYCLES, PvConfig
from hw.qk.config import LATENCY_CYCLES, OUTPUT_FIFO_BEATS, QkConfig

from .rows import Weighted
from .streams import Beat, Delay, Queue


@dataclass(slots=True)
class Load:
    """A beat of ``i_load``."""

    region: int
    append: bool
    n_lines: int


class Buffer:
    """Mirrors :class:`hw.kv_buffer.rtl.KvBuffer`."""

    def __init__(self, n_regions: int) -> None:
        self.region, self.n_left = 0, 0
        self.is_free = [True] * n_regions
        self.n_written = [0] * n_regions

    def step(self, load: Load | None, has_line: bool, forget: int | None, free: int | None) -> tuple:
        """One cycle; ``forget`` and ``free`` name a region. Whether the load, and the line, was taken."""
        written = has_line and self.n_left != 0
        region = self.region
        takes = (
            load is not None
            and (self.n_left == 0 or (written and self.n_left == 1))
            and (load.append or self.is_free[load.region])
        )
        self.n_left -= written
        if free is not None:
            self.is_free[free] = True
        if takes and load is not None:
            self.region, self.n_left = load.region, load.n_lines
            self.is_free[load.region] = False
        if written:
            self.n_written[region] += 1
        if forget is not None:
            self.n_written[forget] = 0
        return takes, written


@dataclass(slots=True)
class Query:
    """A beat of ``i_query``; ``n_keys`` 0 releases the region."""

    region: int
    base_line: int
    n_keys: int
    release: int
    vectors: int
    """M / D: keys of a line."""
    last: bool = True
    """It ends its row."""


class Qk:
    """Mirrors :class:`hw.qk.rtl.Qk`."""

    def __init__(self, config: QkConfig) -> None:
        self.buffer = Buffer(config.n_regions)
        self.query: Query | None = None
        self.line, self.n_left = 0, 0
        self.credits_left = OUTPUT_FIFO_BEATS
        self.sums = Delay(LATENCY_CYCLES - 1)
        self.scores = Queue(OUTPUT_FIFO_BEATS)
        self.load_taken = self.line_taken = False
        self.freed: int | None = None
        """Region whose lines no longer count after this cycle."""

    def step(
        self, cycle: int, query: Query | None, load: Load | None, has_line: bool, score_taken: bool
    ) -> bool:
        """One cycle; whether the query was taken."""
        n_written = self.buffer.n_written
        now = self.query
        reads = ends = False
        if now is not None:
            last_line = self.n_left <= now.vectors
            there = n_written[now.region]
            reads = self.credits_left != 0 and self.line < there
            reads &= not (last_line and there < now.release)
            ends = reads and last_line
        takes = (
            query is not None
            and (now is None or ends)
            and (query.n_keys != 0 or n_written[query.region] >= query.release)
        )
        if reads and now is not None:
            self.sums.enter(cycle, (min(self.n_left, now.vectors), ends and now.last))
            self.line += 1
            self.n_left -= now.vectors
            if ends:
                self.query = None
        forget = now.region if ends and now is not None and now.release else None
        if takes and query is not None:
            if query.n_keys:
                self.query, self.line, self.n_left = query, query.base_line, query.n_keys
            elif query.release:
                forget = query.region
        self.credits_left += score_taken - reads
        self.scores.put(self.sums.leaving(cycle))
        self.freed = forget
        self.load_taken, self.line_taken = self.buffer.step(load, has_line, forget, forget)
        return takes


class Pv:
    """Mirrors :class:`hw.pv.rtl.Pv`."""

    def __init__(self, config: PvConfig) -> None:
        self.config = config
        self.buffer = Buffer(config.n_regions)
        self.row: Weighted | None = None
        """The row whose beats are taken."""
        self.position = 0
        """Its kept vectors taken."""
        self.beat_row: Weighted | None = None
        """The row of the beat held."""
        self.pending: list[tuple[int, int]] = []
        """Line and slot of each lane that waits, in order."""
        self.ends_row = False
        self.places_left = [config.output_fifo_beats, config.magnitude_fifo_beats]
        self.freeing = Delay(ROUTE_CYCLES)
        self.sums, self.outputs = Delay(config.latency_cycles - 1), Queue(config.output_fifo_beats)
        self.adding = Delay(config.latency_cycles - 1 + config.magnitude_latency_cycles)
        self.magnitudes = Queue(config.magnitude_fifo_beats)
        self.load_taken = self.line_taken = self.row_taken = self.beat_taken = False
        self.freed: int | None = None
        """Region whose lines no longer count after this cycle."""

    def step(
        self,
        cycle: int,
        row: Weighted | None,
        beat: Beat | None,
        load: Load | None,
        has_line: bool,
        taken: tuple[bool, bool],
    ) -> None:
        """One cycle; ``taken``, whether an output, and a magnitude, left in it."""
        granted, done = self._grant()
        now = self.row
        self.beat_taken = beat is not None and now is not None and (self.beat_row is None or done)
        ends = self.beat_taken and beat is not None and beat[1]
        room = self.places_left[0] != 0 and self.places_left[1] != 0
        self.row_taken = row is not None and (now is None or ends) and room
        forget = None
        if done and self.beat_row is not None:
            if self.ends_row:
                if self.beat_row.last:
                    self.sums.enter(cycle, True)
                    self.adding.enter(cycle, True)
                if self.beat_row.release:
                    forget = self.beat_row.region
                    self.freeing.enter(cycle, forget)
            self.beat_row = None
        if granted:
            self.pending = [lane for lane in self.pending if lane not in granted]
        if self.beat_taken and now is not None and beat is not None:
            self._hold(now, beat)
        if ends:
            self.row = None
        self.freed = forget
        if self.row_taken and row is not None:
            self.row, self.position = row, 0
        for place in (0, 1):
            self.places_left[place] += taken[place] - (self.row_taken and row is not None and row.last)
        self.outputs.put(self.sums.leaving(cycle))
        self.magnitudes.put(self.adding.leaving(cycle))
        free = self.freeing.leaving(cycle)
        self.load_taken, self.line_taken = self.buffer.step(load, has_line, forget, free)

    def _grant(self) -> tuple[list[tuple[int, int]], bool]:
        """Lanes that read now, and whether the beat is done with them."""
        row = self.beat_row
        if row is None:
            return [], False
        n_written = self.buffer.n_written[row.region]
        granted, seen = [], set()
        for lane in self.pending:
            line, slot = lane
            if slot not in seen and line < n_written:
                granted.append(lane)
            seen.add(slot)
        waits = self.ends_row and n_written < row.release
        return granted, len(granted) == len(self.pending) and not waits

    def _hold(self, row: Weighted, beat: Beat) -> None:
        indices = row.kept[self.position : self.position + beat[0]]
        self.position += beat[0]
        self.beat_row, self.ends_row = row, beat[1]
        self.pending = [divmod(index, row.vectors) for index in indices]
