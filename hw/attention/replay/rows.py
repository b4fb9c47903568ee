# SPDX-License-Identifier: MIT
"""The rows and heads that travel through the core, and the units that order them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hw.fetch.layout import Request

from ..config import HEADS_AHEAD
from .streams import Fork, Queue


@dataclass(frozen=True, slots=True)
class Selection:
    """What decides how long an engine works on one request."""

    first_wait_cycles: int
    """Last line taken to the first decision."""
    later_wait_cycles: int
    """First decision, which may wait for the filter of the request before, to the final one."""
    kept_by_line: list[int]
    """Elements kept of each line."""
    last_line: int
    """The line that holds the last one kept."""


@dataclass(slots=True)
class Row:
    """One row of one head."""

    head: "Head"
    n_keys: int
    """Keys that it sees."""
    place: int
    """In the query ring, rows counted without end."""
    progressive: bool
    dropped: bool
    """Not confident with the MSBs alone."""
    flush: bool
    kept: list[int]
    """Keys whose values are fetched, ascending."""
    vectors: int
    """M / D: values of a line."""
    selection: Selection | None = None
    half: int = 0
    releases: int = 0
    """Lines of the half that this row releases in the second array, 0 for none."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A row, or a tile of one, as the second array is given it."""

    region: int
    kept: list[int]
    """Places in the region."""
    vectors: int
    release: int
    last: bool


@dataclass(slots=True)
class Head:
    """One surviving head of one layer."""

    tokens: np.ndarray
    """int64[n], positions of the tokens present."""
    planes: dict[str, Request]
    """By ``q``, ``k``, ``v`` and, where there is one, ``lsb``."""
    n_lines: int
    """Lines that n rows take."""
    is_one: bool
    """Its only query is the row at position 0."""
    n_summed: int
    """Heads over which scores are added up, and nothing else is wanted; 0 where there is no such sum."""
    streamed: bool
    tile_keys: int
    """Keys, or values, that are streamed together."""
    first_of_group: bool
    last_of_group: bool
    last: bool
    """Of the layer."""
    rows: list[Row] = field(default_factory=list)

    @property
    def queries(self) -> np.ndarray:
        """Positions of its queries in their plane."""
        return np.arange(self.n_summed or 1) if self.is_one else self.tokens

    @property
    def only_sums(self) -> bool:
        return self.n_summed > 0


def finish_order(rows: Sequence[Row], window: int) -> list[Row]:
    """Rows in the order in which the confidence check finishes them.

    A row to be computed again is finished when its place in the window comes round, or a row is flushed: the
    last one is.
    """
    order: list[Row] = []
    waiting: list[Row | None] = [None] * window
    number = 0
    for row in rows:
        padded: list[Row | None] = [row, *[None] * (window * row.flush)]
        for now in padded:
            place = number % window
            number += 1
            before = waiting[place]
            if before is not None:
                order.append(before)
            waiting[place] = now if now is not None and now.dropped else None
            if now is not None and not now.dropped:
                order.append(now)
    return order


class Source:
    """Mirrors :class:`hw.attention.rows.RowSource`."""

    def __init__(self) -> None:
        self.heads = Queue(HEADS_AHEAD)
        self.half, self.started, self.row = 0, False, 0
        self.busy = [False, False]
        self.n_open = [0, 0]
        self.complete = [False, False]

    @property
    def offered(self) -> Row | None:
        return self.heads.out.rows[self.row] if self.started else None

    @property
    def ends(self) -> list[bool]:
        """Of each half: the next row reported is the last of its group."""
        return [complete and n == 1 for complete, n in zip(self.complete, self.n_open, strict=True)]

    def step(self, taken: bool, reported: Row | None) -> None:
        half = self.half
        free = not self.busy[half]
        if reported is not None:
            if self.ends[reported.half]:
                self.busy[reported.half] = self.complete[reported.half] = False
            self.n_open[reported.half] -= 1
        head: Head | None = self.heads.out
        if not self.started:
            if head is not None and (free or not head.first_of_group):
                self.started, self.busy[half] = True, not head.streamed
                for row in head.rows:
                    row.half = half
        elif taken and head is not None:
            self.row += 1
            self.n_open[half] += not head.only_sums
            if self.row == len(head.rows):
                self.row, self.started, self.heads.out = 0, False, None
                if head.last_of_group and not head.only_sums:
                    self.complete[half] = True
                    self.half ^= not head.streamed


class Reports:
    """Mirrors :class:`hw.attention.rows.Reports`."""

    def __init__(self, depth: int) -> None:
        self.selected, self.weighted, self.values, self.finished = (Queue(depth) for _ in range(4))
        self.fork = Fork(4)

    def step(self, reports: Queue, source: Source) -> Row | None:
        """One cycle; the row that is reported in it."""
        row: Row | None = reports.out
        queues = (self.selected, self.weighted, self.values, self.finished)
        if row is None:
            for queue in queues:
                queue.put()
            return None
        streamed = row.head.streamed
        row.releases = row.head.n_lines if source.ends[row.half] and not streamed else 0
        ready = [queue.has_room for queue in queues]
        for queue, has_room, done in zip(queues, ready, self.fork.done, strict=True):
            wanted = streamed or queue is not self.values
            queue.put(row if has_room and wanted and not done else None)
        ready[2] |= not streamed
        if not self.fork.step(ready):
            return None
        reports.out = None
        return row
