# SPDX-License-Identifier: MIT
"""What is fetched when, and where it goes."""

import numpy as np

from hw.fetch.config import FetchConfig
from hw.fetch.cycles import AddressModel, ConverterModel, CrossbarModel, LinesModel, MemoryTiming
from hw.fetch.layout import Request
from hw.stream.config import RegroupConfig

from ..config import HEADS_AHEAD
from .arrays import Load, Query
from .cascade import WHOLE_LIST, ZERO
from .rows import Head, Row
from .streams import Beat, Fork, Queue, Regroup


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

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.to_release: list[Head | None] = [None, None]
        self.has_lsb = [False, False]
        self.held: Query | tuple[Head, int] | None = None
        """On ``o_query``: that of a row, or a head and the half to release."""

    @property
    def query(self) -> Query | None:
        if not isinstance(self.held, tuple):
            return self.held
        head, half = self.held
        release = head.n_lines << self.has_lsb[half]
        return Query(half=half, base_line=0, n_keys=0, release=release, vectors=1)

    def step(self, begins: Queue, taken: bool, released: Row | None) -> int | None:
        """One cycle; the half freed in it."""
        freed = None
        if taken and self.held is not None:
            if isinstance(self.held, tuple):
                freed = self.held[1]
            self.held = None
        releasing = 1 if self.to_release[1] is not None else 0
        head = self.to_release[releasing]
        if self.held is None and head is not None:
            self.held = head, releasing
            self.to_release[releasing] = None
        elif self.held is None and begins.out is not None:
            self._begin(begins)
        if released is not None:
            self.to_release[released.half] = released.head
        return freed

    def _begin(self, begins: Queue) -> None:
        row, is_lsb = begins.out
        if not is_lsb:
            if row.place == self.ring.n_present:
                return
            self.ring.begun = row.place
        base_line = row.head.n_lines if is_lsb else 0
        self.held = Query(row.half, base_line, row.n_keys, 0, row.vectors)
        begins.out = None


class Order:
    """A request that the loader has chosen."""

    __slots__ = ("append", "half", "n_lines", "read", "request", "target", "tokens")

    def __init__(self, head: Head, plane: str, target: str, half: int, read: int, tokens: np.ndarray) -> None:
        self.request, self.target, self.half = head.planes[plane], target, half
        self.append = plane == "lsb"
        self.n_lines = head.n_lines
        self.read, self.tokens = read, tokens


class Loader:
    """Mirrors :class:`hw.attention.loader.Loader`."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.heads = {name: Queue(HEADS_AHEAD) for name in ("query", "key", "value")}
        self.head_fork = Fork(3)
        self.order: Order | None = None
        self.order_fork = Fork(4)
        self.targets = Queue(8)
        self.loads = {name: Queue(4) for name in ("key", "value")}
        self.half = {"key": 0, "value": 0}
        self.is_free = {"key": [True, True], "value": [True, True]}
        self.lsb_pending = [False, False]
        self.lsb_heads: list[Head | None] = [None, None]
        self.chunk = 0

    def offered_request(self) -> tuple[Request, np.ndarray] | None:
        order = self.order
        return None if order is None or self.order_fork.done[0] else (order.request, order.tokens)

    def offered_read(self) -> int | None:
        order = self.order
        return None if order is None or self.order_fork.done[1] else order.read

    def step(
        self, request_taken: bool, read_taken: bool, ring_has_room: bool,
        lsb_wanted: int | None, key_freed: int | None, value_freed: int | None,
    ) -> int:  # fmt: skip
        """One cycle after the sinks took their part of the order; rows of queries asked for."""
        for name in ("key", "value"):
            if self.heads[name].out is not None and not self.heads[name].out.first_of_group:
                self.heads[name].out = None
        self._send(request_taken, read_taken)
        n_reserve = self._choose(ring_has_room) if self.order is None else 0
        if lsb_wanted is not None:
            self.lsb_pending[lsb_wanted] = True
        if key_freed is not None:
            self.is_free["key"][key_freed] = True
        if value_freed is not None:
            self.is_free["value"][value_freed] = True
        return n_reserve

    def _send(self, request_taken: bool, read_taken: bool) -> None:
        order = self.order
        target = word = None
        load_for = None
        if order is not None:
            done = self.order_fork.done
            load_ready = order.target == "query" or self.loads[order.target].has_room
            target_ready = self.targets.has_room
            if target_ready and not done[2]:
                target = order.target
            if load_ready and not done[3] and order.target != "query":
                load_for, word = order.target, Load(order.half, order.append, order.n_lines)
            if self.order_fork.step([request_taken, read_taken, target_ready, load_ready]):
                self.order = None
        self.targets.put(target)
        for name, queue in self.loads.items():
            queue.put(word if name == load_for else None)

    def _choose(self, ring_has_room: bool) -> int:
        heads = self.heads
        query = heads["query"].out
        if any(self.lsb_pending):
            half = int(self.lsb_pending[1])
            head = self.lsb_heads[half]
            assert head is not None
            self.order = Order(head, "lsb", "key", half, WHOLE_LIST, head.tokens)
            self.lsb_pending[half] = False
        elif query is not None and ring_has_room:
            chunk = self.chunk
            n_after = len(query.queries) - chunk * self.lanes
            queries = query.queries[chunk * self.lanes : (chunk + 1) * self.lanes]
            self.order = Order(query, "q", "query", 0, ZERO if query.is_one else chunk, queries)
            self.chunk += 1
            if n_after <= self.lanes:
                heads["query"].out, self.chunk = None, 0
            return min(n_after, self.lanes)
        else:
            for name in ("key", "value"):
                half, head = self.half[name], heads[name].out
                if head is not None and self.is_free[name][half]:
                    self.order = Order(head, name[0], name, half, WHOLE_LIST, head.tokens)
                    heads[name].out = None
                    self.half[name] = 1 - half
                    self.is_free[name][half] = False
                    if name == "key":
                        self.lsb_heads[half] = head
                    break
        return 0
