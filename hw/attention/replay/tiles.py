# SPDX-License-Identifier: MIT
"""Streamed keys and values: tiles, and the tokens whose values a row keeps."""

from collections import deque

from ..config import AttentionConfig
from .rows import Row, Weighted
from .streams import Beat, Queue


class Tiles:
    """Mirrors :class:`hw.attention.tiles.Tiles`."""

    def __init__(self, n_regions: int) -> None:
        self.n_regions = n_regions
        self.region = self.first = 0

    def n_tile(self, n: int, most: int) -> int:
        """Vectors of the tile at hand, of a run of n."""
        return min(n - self.first, most)

    def is_last(self, n: int, most: int) -> bool:
        return n - self.first <= most

    def step(self, n: int, most: int) -> bool:
        """The tile is taken; whether it ended its run."""
        last = self.is_last(n, most)
        self.first = 0 if last else self.first + most
        self.region = (self.region + 1) % self.n_regions
        return last


class TileEnd:
    """Mirrors :class:`hw.attention.tiles.TileEnd`."""

    def __init__(self) -> None:
        self.beat = 0

    def ended(self, beat: Beat, n_beats: int) -> Beat:
        """The beat, the last one if its tile can have no more."""
        return beat[0], beat[1] or self.beat == n_beats - 1

    def step(self, beat: Beat, n_beats: int) -> None:
        """The beat is taken."""
        self.beat = 0 if beat[1] or self.beat == n_beats - 1 else self.beat + 1


class WeightedRows:
    """Mirrors :class:`hw.attention.tiles.WeightedRows`."""

    def __init__(self, config: AttentionConfig) -> None:
        self.tiles = Tiles(config.qk.n_regions)
        self.half_regions = config.qk.n_regions // 2

    def offered(self, row: Row | None) -> Weighted | None:
        """What stands on ``o`` while ``row`` stands on ``i``."""
        if row is None:
            return None
        if not row.head.streamed:
            return Weighted(row.half * self.half_regions, row.kept, row.vectors, row.releases, last=True)
        n, most = len(row.kept), row.head.tile_keys
        n_tile = self.tiles.n_tile(n, most)
        return Weighted(
            self.tiles.region,
            list(range(n_tile)),
            row.vectors,
            -(-n_tile // row.vectors),
            self.tiles.is_last(n, most),
        )

    def take(self, rows: Queue) -> None:
        """What was offered is taken."""
        row = rows.out
        if not row.head.streamed or self.tiles.step(len(row.kept), row.head.tile_keys):
            rows.out = None


class Gather:
    """Mirrors :class:`hw.attention.tiles.Gather`."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.rows: deque[Row] = deque()
        """Streamed rows whose kept tokens have not all come."""
        self.position = self.n_found = 0
        """Of the first row: kept tokens of the beats before; those of this beat that were looked up."""
        self.complete: Beat | None = None
        """The beat that the look-up under way completes."""
        self.out: Beat | None = None

    def step(self, beat: Beat | None) -> bool:
        """One cycle after ``out`` was taken; whether the beat was."""
        if self.out is not None:
            return False
        self.out, self.complete = self.complete, None
        if beat is None:
            return False
        kept = self.rows[0].kept[self.position : self.position + beat[0]]
        line = kept[self.n_found] // self.lanes
        while self.n_found < len(kept) and kept[self.n_found] // self.lanes == line:
            self.n_found += 1
        if self.n_found < len(kept):
            return False
        self.complete = beat
        self.n_found = 0
        self.position += beat[0]
        if beat[1]:
            self.rows.popleft()
            self.position = 0
        return True
