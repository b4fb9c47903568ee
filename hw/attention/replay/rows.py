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
    number: int
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

    @property
    def n_keys(self) -> int:
        return self.head.n_tokens


@dataclass(slots=True)
class Head:
    """One surviving head of one layer."""

    tokens: np.ndarray
    """int64[n], positions of the tokens present."""
    planes: dict[str, Request]
    """By ``q``, ``k``, ``v`` and, where there is one, ``lsb``."""
    n_lines: int
    """Lines that n rows take."""
    rows: list[Row] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


def finish_order(rows: Sequence[Row], window: int) -> list[Row]:
    """Rows of a head in the order in which the confidence check finishes them.

    A row to be computed again is finished when its place in the window comes round, or is flushed.
    """
    order: list[Row] = []
    waiting: list[Row | None] = [None] * window
    for number, row in enumerate([*rows, *[None] * window]):
        place = number % window
        before = waiting[place]
        if before is not None:
            order.append(before)
        waiting[place] = row if row is not None and row.dropped else None
        if row is not None and not row.dropped:
            order.append(row)
    return order


class Source:
    """Mirrors :class:`hw.attention.rows.RowSource`."""

    def __init__(self) -> None:
        self.heads = Queue(HEADS_AHEAD)
        self.half, self.started, self.row = 0, False, 0
        self.busy = [False, False]

    @property
    def offered(self) -> Row | None:
        return self.heads.out.rows[self.row] if self.started else None

    def step(self, taken: bool, reported: int | None) -> None:
        free = not self.busy[self.half]
        if reported is not None:
            self.busy[reported] = False
        if not self.started:
            head = self.heads.out
            if head is not None and free:
                self.started = self.busy[self.half] = True
                for row in head.rows:
                    row.half = self.half
        elif taken:
            self.row += 1
            if self.row == len(self.heads.out.rows):
                self.row, self.started, self.half = 0, False, 1 - self.half
                self.heads.out = None


class Reports:
    """Mirrors :class:`hw.attention.rows.Reports`."""

    def __init__(self, depth: int) -> None:
        self.selected, self.weighted, self.finished = (Queue(depth) for _ in range(3))
        self.fork = Fork(3)
        self.n_before = 0

    def step(self, source: Queue) -> int | None:
        """One cycle; the half whose last row is finished in it."""
        row: Row | None = source.out
        queues = (self.selected, self.weighted, self.finished)
        if row is None:
            for queue in queues:
                queue.put()
            return None
        is_last = self.n_before == row.n_keys - 1
        row.releases = row.head.n_lines if is_last else 0
        ready = [queue.has_room for queue in queues]
        for queue, has_room, done in zip(queues, ready, self.fork.done, strict=True):
            queue.put(row if has_room and not done else None)
        if not self.fork.step(ready):
            return None
        source.out = None
        self.n_before = 0 if is_last else self.n_before + 1
        return row.half if is_last else None
