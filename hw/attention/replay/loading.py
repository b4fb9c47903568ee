# SPDX-License-Identifier: MIT
"""What is fetched when, and where it goes."""

import numpy as np

from hw.fetch.config import FetchConfig
from hw.fetch.cycles import AddressModel, ConverterModel, CrossbarModel, LinesModel, MemoryTiming
from hw.fetch.layout import Request
from hw.stream.config import RegroupConfig

from ..config import HEADS_AHEAD, JOBS_AHEAD, AttentionConfig
from .arrays import Load, Query
from .rows import Head, Row
from .streams import Beat, Fork, Queue, Regroup
from .tiles import Tiles


class Fetch:
    """Mirrors :class:`hw.fetch.rtl.Fetch` and the memory behind it."""

    def __init__(self, config: FetchConfig, regroup: RegroupConfig, memory: MemoryTiming) -> None:
        self.addresses = AddressModel(config.addresses, [])
        self.crossbar = CrossbarModel(config.crossbar, memory)
        self.converters = [ConverterModel(config.converter) for _ in range(config.n_ports)]
        self.lines = LinesModel(config.lines)
        self.regroup = Regroup(regroup)
        self.n_lines_due = 0
        """Lines of the requests taken that have not left."""
        self.line_elements = config.lines.line_elements

    @property
    def line(self) -> Beat | None:
        """Rows of the line on ``o``, and whether it is the last of its request."""
        return self.lines.leaving

    def step(
        self, cycle: int, line_taken: bool, request: tuple[Request, np.ndarray] | None, beat: Beat | None
    ) -> tuple[bool, bool]:
        """Whether the request, and the beat of the list of tokens, was taken."""
        if not self.n_lines_due and request is None:
            return False, False
        self.n_lines_due -= line_taken
        lines, crossbar, addresses = self.lines, self.crossbar, self.addresses
        ready = lines.step(cycle, line_taken)
        for port, converter in enumerate(self.converters):
            coming = crossbar.delivered[port]
            if coming or converter.held is not None:
                lines.put(port, converter.step(coming, ready[port]))
        room = crossbar.step(cycle)
        kept = self.regroup.offered(beat)
        addresses.kept_offered = kept is not None
        if request is not None:
            addresses.requests.append(request)
        for queue, atom in zip(crossbar.queues, addresses.step(cycle, room), strict=True):
            queue.put(atom)
        request_taken = request is not None and not addresses.requests
        addresses.requests.clear()
        if request_taken and request is not None:
            self.n_lines_due += -(-len(request[1]) * request[0].head_dim // self.line_elements)
        return request_taken, self.regroup.step(beat, addresses.kept_taken)


class Ring:
    """Mirrors :class:`hw.attention.query_ring.QueryRing`; rows are counted without end."""

    def __init__(self, n_rows: int, lanes: int, first_row: int) -> None:
        self.most_held = n_rows - lanes
        self.first_row = first_row
        self.n_reserved = self.n_present = first_row
        self.n_freed = 0
        self.n_left = 0
        self.begun: int | None = None
        """Row begun for the first time in this cycle."""

    @property
    def has_room(self) -> bool:
        return self.n_reserved - self.n_freed <= self.most_held

    @property
    def line_ready(self) -> bool:
        return self.n_left <= 1

    def step(self, n_rows: int, n_reserve: int) -> None:
        """End of the cycle: a line of ``n_rows`` came, if any; so many rows have been asked for."""
        writes = self.n_left != 0
        self.n_present += writes
        self.n_left = n_rows or self.n_left - writes
        self.n_reserved += n_reserve
        if self.begun is not None:
            self.n_freed, self.begun = self.begun - self.first_row, None


class Issue:
    """Mirrors :class:`hw.attention.rows.QueryIssue`, and the register ``has_lsb`` beside it."""

    def __init__(self, ring: Ring, n_regions: int) -> None:
        self.ring = ring
        self.half_regions = n_regions // 2
        self.tiles = Tiles(n_regions)
        self.to_release: list[Head | None] = [None, None]
        self.has_lsb = [False, False]
        self.held: Query | Row | tuple[Head, int] | None = None
        """On ``o_query``: that of a row; a streamed row; or a head and the half to release."""

    @property
    def releasing(self) -> bool:
        """A half is still to be released."""
        return isinstance(self.held, tuple) or self.to_release != [None, None]

    @property
    def query(self) -> Query | None:
        held = self.held
        if held is None or isinstance(held, Query):
            return held
        if isinstance(held, tuple):
            head, half = held
            release = head.n_lines << self.has_lsb[half]
            return Query(half * self.half_regions, base_line=0, n_keys=0, release=release, vectors=1)
        most, tiles = held.head.tile_keys, self.tiles
        n_tile = tiles.n_tile(held.n_keys, most)
        n_lines = -(-n_tile // held.vectors)
        return Query(tiles.region, 0, n_tile, n_lines, held.vectors, tiles.is_last(held.n_keys, most))

    def step(self, begin: tuple[Row, bool] | None, taken: bool, released: Row | None) -> bool:
        """One cycle; whether the row that begins was taken."""
        held, begun = self.held, False
        if taken and (not isinstance(held, Row) or self.tiles.step(held.n_keys, held.head.tile_keys)):
            self.held = None
        releasing = 1 if self.to_release[1] is not None else 0
        head = self.to_release[releasing]
        if self.held is None and head is not None:
            self.held = head, releasing
            self.to_release[releasing] = None
        elif self.held is None and begin is not None:
            begun = self._begin(*begin)
        if released is not None:
            self.to_release[released.half] = released.head
        return begun

    def _begin(self, row: Row, is_lsb: bool) -> bool:
        if not is_lsb:
            if row.place == self.ring.n_present:
                return False
            self.ring.begun = row.place
        base_line = row.head.n_lines if is_lsb else 0
        whole = Query(row.half * self.half_regions, base_line, row.n_keys, 0, row.vectors)
        self.held = row if row.head.streamed else whole
        return True


class Order:
    """A request that the loader has chosen."""

    __slots__ = ("append", "n_lines", "of_row", "region", "request", "target", "tokens")

    def __init__(
        self,
        head: Head,
        plane: str,
        target: str,
        region: int,
        tokens: np.ndarray,
        n_lines: int = 0,
        *,
        append: bool = False,
        of_row: bool = False,
    ) -> None:
        self.request, self.target, self.region = head.planes[plane], target, region
        self.tokens, self.n_lines = tokens, n_lines
        self.append, self.of_row = append, of_row


class Job:
    """Mirrors the loader's tiles of keys, or of values; words are rows, and whether LSBs are meant."""

    def __init__(self, n_regions: int) -> None:
        self.rows = Queue(JOBS_AHEAD)
        self.tiles = Tiles(n_regions)
        self.wanted = False
        """The head's entry has been looked up."""

    def may_go(self, is_free: list[bool]) -> bool:
        """A tile is there, and its region is free."""
        return self.wanted and is_free[self.tiles.region]

    def take(self, n: int, most: int) -> tuple[int, slice]:
        """Region of the tile at hand, and what it is of its run."""
        tiles = self.tiles
        region, part = tiles.region, slice(tiles.first, tiles.first + tiles.n_tile(n, most))
        if tiles.step(n, most):
            self.rows.out = None
        return region, part

    def step(self, was_there: bool, row: tuple[Row, bool] | None) -> None:
        """End of the cycle; ``was_there``, a row was on offer when it began."""
        self.wanted = was_there and self.rows.out is not None
        self.rows.put(row)


class Loader:
    """Mirrors :class:`hw.attention.loader.Loader`."""

    def __init__(self, config: AttentionConfig) -> None:
        n_regions = config.qk.n_regions
        self.lanes = config.lanes
        self.half_regions = n_regions // 2
        self.key_job, self.value_job = Job(n_regions), Job(n_regions)
        self.gathering = False
        """Tokens of a tile of values are still to come."""
        self.heads = {name: Queue(HEADS_AHEAD) for name in ("query", "key", "value")}
        self.head_fork = Fork(3)
        self.order: Order | None = None
        self.order_fork = Fork(5)
        self.targets, self.sources = Queue(8), Queue(8)
        self.loads = {name: Queue(4) for name in ("key", "value")}
        self.half = {"key": 0, "value": 0}
        self.is_free = {name: [True] * n_regions for name in ("key", "value")}
        self.lsb_pending = [False, False]
        self.lsb_heads: list[Head | None] = [None, None]
        self.chunk = 0
        self.n_covered = 0
        """Heads to come whose queries came with those of a head before."""

    def offered_request(self) -> tuple[Request, np.ndarray] | None:
        order = self.order
        return None if order is None or self.order_fork.done[0] else (order.request, order.tokens)

    def offered_read(self) -> int | None:
        order = self.order
        return None if order is None or order.of_row or self.order_fork.done[1] else len(order.tokens)

    def step(
        self, request_taken: bool, read_taken: bool, ring_has_room: bool,
        lsb_wanted: int | None, key_freed: int | None, value_freed: int | None,
        begun: tuple[Row, bool] | None, valued: Row | None, ids_wait: bool, ids_end: bool,
    ) -> int:  # fmt: skip
        """One cycle after the sinks took their part of the order; rows of queries asked for.

        ``begun``, ``valued``: beats of ``i_key_job`` and ``i_value_job`` that are taken.
        """
        for name in ("key", "value"):
            head = self.heads[name].out
            if head is not None and (not head.first_of_group or head.streamed):
                self.heads[name].out = None
        is_covered = self.n_covered != 0 and self.heads["query"].out is not None
        there = [job.rows.out is not None for job in (self.key_job, self.value_job)]
        self._send(request_taken, read_taken)
        n_reserve = self._choose(ring_has_room, ids_wait) if self.order is None else 0
        if is_covered:
            self.heads["query"].out = None
            self.n_covered -= 1
        self.gathering &= not ids_end
        self.key_job.step(there[0], begun)
        self.value_job.step(there[1], None if valued is None else (valued, False))
        if lsb_wanted is not None:
            self.lsb_pending[lsb_wanted] = True
        if key_freed is not None:
            self.is_free["key"][key_freed] = True
        if value_freed is not None:
            self.is_free["value"][value_freed] = True
        return n_reserve

    def _send(self, request_taken: bool, read_taken: bool) -> None:
        order = self.order
        target = source = word = None
        load_for = None
        if order is not None:
            done = self.order_fork.done
            load_ready = order.target == "query" or self.loads[order.target].has_room
            target_ready, source_ready = self.targets.has_room, self.sources.has_room
            if source_ready and not done[2]:
                source = order.of_row
            if target_ready and not done[3]:
                target = order.target
            if load_ready and not done[4] and order.target != "query":
                load_for, word = order.target, Load(order.region, order.append, order.n_lines)
            read_taken |= order.of_row
            if self.order_fork.step([request_taken, read_taken, source_ready, target_ready, load_ready]):
                self.order = None
        self.targets.put(target)
        self.sources.put(source)
        for name, queue in self.loads.items():
            queue.put(word if name == load_for else None)

    def _choose(self, ring_has_room: bool, ids_wait: bool) -> int:
        heads = self.heads
        query = None if self.n_covered else heads["query"].out
        key_job, value_job = self.key_job, self.value_job
        if any(self.lsb_pending):
            half = int(self.lsb_pending[1])
            head = self.lsb_heads[half]
            assert head is not None
            region = half * self.half_regions
            self.order = Order(head, "lsb", "key", region, head.tokens, head.n_lines, append=True)
            self.lsb_pending[half] = False
        elif query is not None and ring_has_room:
            chunk = self.chunk
            n_after = len(query.queries) - chunk * self.lanes
            queries = query.queries[chunk * self.lanes : (chunk + 1) * self.lanes]
            self.order = Order(query, "q", "query", 0, queries)
            self.chunk += 1
            if n_after <= self.lanes:
                self.chunk = 0
            if n_after <= self.lanes or query.only_sums:
                heads["query"].out = None
            if query.only_sums:
                self.n_covered = len(queries) - 1
            return len(queries)
        elif value_job.may_go(self.is_free["value"]) and ids_wait and not self.gathering:
            row, _ = value_job.rows.out
            region, part = value_job.take(len(row.kept), row.head.tile_keys)
            tokens = row.head.tokens[row.kept[part]]
            self._stream(row, "v", "value", region, tokens, of_row=True)
            self.gathering = True
        elif key_job.may_go(self.is_free["key"]):
            row, is_lsb = key_job.rows.out
            region, part = key_job.take(row.n_keys, row.head.tile_keys)
            self._stream(row, "lsb" if is_lsb else "k", "key", region, row.head.tokens[part], of_row=False)
        else:
            for name in ("key", "value"):
                half, head = self.half[name], heads[name].out
                region = half * self.half_regions
                if head is not None and self.is_free[name][region]:
                    self.order = Order(head, name[0], name, region, head.tokens, head.n_lines)
                    heads[name].out = None
                    self.half[name] = 1 - half
                    self.is_free[name][region] = False
                    if name == "key":
                        self.lsb_heads[half] = head
                    break
        return 0

    def _stream(
        self, row: Row, plane: str, target: str, region: int, tokens: np.ndarray, *, of_row: bool
    ) -> None:
        n_lines = -(-len(tokens) // row.vectors)
        self.order = Order(row.head, plane, target, region, tokens, n_lines, of_row=of_row)
        self.is_free[target][region] = False
