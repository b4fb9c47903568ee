# SPDX-License-Identifier: MIT
"""Cycles of the fetcher at full rate: an exact replay, register by register, and its lower bound.

Every unit below mirrors the registers of its component and none of its data. One call of ``step`` is one
cycle; units step from the output to the input, so that a register emptied in a cycle refills in it, and each
reads only what the unit before it held when the cycle began. Numbered from 1, the first cycle in which
anything is taken.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .config import ROW_UNIT_BITS, AddressConfig, ConverterConfig, CrossbarConfig, FetchConfig, LinesConfig
from .layout import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTiming:
    """A channel that answers in order, a fixed time after each request."""

    latency_cycles: int = 1
    interval_cycles: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """How the rows of one record lie in its atoms, and how many atoms it has."""

    request: Request
    last: bool
    """The last record of its request."""


@dataclass(slots=True)
class Atom:
    """One atom under way: its number, and the record that it belongs to."""

    address: int
    cut: Cut | None = None


def fetch_bound_cycles(request: Request, n_kept: np.ndarray | int, config: FetchConfig) -> np.ndarray:
    """Cycles that the busiest resource needs for a request; broadcasts over ``n_kept``.

    max( ceil(n_kept n_atoms / n_channels),              memory: one atom a channel and cycle
         ceil(n_kept / kept_lanes),                      kept list: one beat a cycle
         ceil(n_kept / n_ports) n_atoms,                 address cursors: one atom a port and cycle
         ceil(n_kept / n_ports) n_heads D / e )          converters: one beat of e elements a port and cycle

    Latencies, and the unevenness of kept tokens over channels, come on top: :func:`replay` has them.
    """
    n_kept = np.asarray(n_kept)
    per_port = -(-n_kept // config.n_ports)
    beats = request.n_heads * request.head_dim // config.elements_per_beat
    return np.max(
        np.broadcast_arrays(
            -(-n_kept * request.n_atoms // config.n_channels),
            -(-n_kept // config.kept_lanes),
            per_port * request.n_atoms,
            per_port * beats,
        ),
        axis=0,
    )


@dataclass(frozen=True, kw_only=True)
class Replay:
    """When everything left."""

    lines: np.ndarray
    """int64[n_lines]: cycle of each output line."""
    counters: np.ndarray
    """int64[n_requests]: cycle of each beat of counters."""


def replay(
    requests: Sequence[tuple[Request, np.ndarray]], config: FetchConfig, memory: MemoryTiming
) -> Replay:
    """The whole fetcher: requests with their kept tokens, offered as early as they are taken."""
    addresses = AddressModel(config.addresses, requests)
    crossbar = CrossbarModel(config.crossbar, memory)
    converters = [ConverterModel(config.converter) for _ in range(config.n_ports)]
    rows = LinesModel(config.lines)
    n_lines = sum(
        request.n_heads * -(-len(kept) * request.head_dim // config.lines.line_elements)
        for request, kept in requests
    )
    cycle = 0
    while len(rows.stamps) < n_lines or len(addresses.counter_stamps) < len(requests):
        cycle += 1
        ready = rows.step(cycle)
        for port, converter in enumerate(converters):
            rows.put(port, converter.step(crossbar.delivered[port], ready[port]))
        room = crossbar.step(cycle)
        for port, atom in enumerate(addresses.step(cycle, room)):
            crossbar.queues[port].put(atom)
    return Replay(lines=np.array(rows.stamps), counters=np.array(addresses.counter_stamps))


class AddressModel:
    """Mirrors :class:`hw.fetch.addresses.AddressGenerator`."""

    def __init__(self, config: AddressConfig, requests: Sequence[tuple[Request, np.ndarray]]) -> None:
        self.config = config
        self.requests = deque(requests)
        self.plans: list[tuple | None] = [None, None, None]  # length, bounds, planned
        self.beats: list[tuple | None] = [None, None]  # product, start
        self.totals: list[bool] = [False, False]  # total, counters' register
        self.counter_stamps: list[int] = []
        self.position, self.turn = 0, 0
        self.cursors: list[deque[Atom]] = [deque() for _ in range(config.n_ports)]
        self.kept_offered, self.kept_taken = True, False
        """Whether the next beat of the kept list stands on ``i_kept``, and whether the last step took it."""

    def step(self, cycle: int, room: Sequence[bool]) -> list[Atom | None]:
        """Atom that each port gives where it has ``room``."""
        given = [
            cursor.popleft() if cursor and free else None
            for cursor, free in zip(self.cursors, room, strict=True)
        ]
        if self.totals[1]:
            self.counter_stamps.append(cycle)
        self.totals = [False, self.totals[0]]
        self._deal()
        if self.beats[1] is None:
            self.beats = [None, self.beats[0]]
        self._take_kept()
        for stage in (2, 1):
            if self.plans[stage] is None:
                self.plans[stage], self.plans[stage - 1] = self.plans[stage - 1], None
        if self.plans[0] is None and self.requests:
            self.plans[0] = self.requests.popleft()
        return given

    def _deal(self) -> None:
        if self.beats[1] is None:
            return
        lanes = self.config.kept_lanes
        first = self.turn * lanes
        if any(self.cursors[first : first + lanes]):
            return
        request, tokens, last = self.beats[1]
        for k, token in enumerate(tokens):
            start = int(request.first_atom(int(token)))
            cut = Cut(request, last and k == len(tokens) - 1)
            self.cursors[first + k].extend(Atom(start + i, cut) for i in range(request.n_atoms))
        self.turn = 0 if last else (self.turn + 1) % (self.config.n_ports // lanes)
        self.totals[0] = last
        self.beats[1] = None

    def _take_kept(self) -> None:
        self.kept_taken = self.kept_offered and self.plans[2] is not None and self.beats[0] is None
        if not self.kept_taken or self.plans[2] is None:
            return
        request, kept = self.plans[2]
        tokens = kept[self.position : self.position + self.config.kept_lanes]
        self.position += self.config.kept_lanes
        last = self.position >= len(kept)
        self.beats[0] = (request, tokens, last)
        if last:
            self.position, self.plans[2] = 0, None


@dataclass(slots=True)
class _Queue:
    """Mirrors :class:`hw.stream.rtl.Fifo`: a memory and an output register."""

    depth: int
    stored: deque[Atom] = field(default_factory=deque)
    out: Atom | None = None

    @property
    def has_room(self) -> bool:
        return len(self.stored) < self.depth - 1

    def put(self, atom: Atom | None) -> None:
        """End of the cycle: the output register refills, and ``atom``, if any, comes in."""
        if self.out is None and self.stored:
            self.out = self.stored.popleft()
        elif self.out is None:
            self.out, atom = atom, None
        if atom is not None:
            self.stored.append(atom)


def _next_in_turn(wanted: Sequence[int], turn: int) -> int:
    """Round robin: the first of the ascending ``wanted`` at or after ``turn``, else the first."""
    return next((x for x in wanted if x >= turn), wanted[0])


class CrossbarModel:
    """Mirrors :class:`hw.fetch.crossbar.Crossbar` and the memory behind it."""

    def __init__(self, config: CrossbarConfig, memory: MemoryTiming) -> None:
        self.config, self.memory = config, memory
        ports, channels = config.n_ports, config.n_channels
        self.queues = [_Queue(config.depth) for _ in range(ports)]
        self.delivered: list[deque[Atom]] = [deque() for _ in range(ports)]
        """Output register of each port: at most one atom."""
        self.slots: list[deque[list]] = [deque() for _ in range(ports)]  # reserved, [atom, is filled]
        self.arriving: list[list | None] = [None] * ports  # register before the buffer: the slot
        self.asked: list[tuple[int, list] | None] = [None] * channels  # register: port, slot
        self.answers: list[deque[tuple[int, int, list]]] = [deque() for _ in range(channels)]
        self.busy_until = [0] * channels
        self.channel_turn, self.port_turn = [0] * channels, [0] * ports

    def step(self, cycle: int) -> list[bool]:
        """One cycle, after the converters took what was delivered; which address queues had room in it."""
        room = [queue.has_room for queue in self.queues]
        free = [len(slots) < self.config.depth for slots in self.slots]
        for port, slots in enumerate(self.slots):
            if not self.delivered[port] and slots and slots[0][1]:
                self.delivered[port].append(slots.popleft()[0])
            if (arrived := self.arriving[port]) is not None:
                arrived[1] = True
        self._take_answers(cycle)
        self._ask(cycle, free)
        return room

    def _take_answers(self, cycle: int) -> None:
        due: dict[int, list[int]] = {}
        for channel, answers in enumerate(self.answers):
            if answers and answers[0][0] <= cycle:
                due.setdefault(answers[0][1], []).append(channel)
        self.arriving = [None] * self.config.n_ports
        for port, channels in due.items():
            channel = _next_in_turn(channels, self.port_turn[port])
            self.port_turn[port] = channel + 1
            self.arriving[port] = self.answers[channel].popleft()[2]

    def _ask(self, cycle: int, free: Sequence[bool]) -> None:
        for channel, asked in enumerate(self.asked):
            if asked is not None:
                due = max(cycle + self.memory.latency_cycles, self.busy_until[channel])
                self.busy_until[channel] = due + self.memory.interval_cycles
                self.answers[channel].append((due, *asked))
                self.asked[channel] = None
        wanted: dict[int, list[int]] = {}
        for port, queue in enumerate(self.queues):
            if queue.out is not None and free[port]:
                wanted.setdefault(queue.out.address % self.config.n_channels, []).append(port)
        for channel, ports in wanted.items():
            port = _next_in_turn(ports, self.channel_turn[channel])
            self.channel_turn[channel] = port + 1
            slot = [self.queues[port].out, False]
            self.queues[port].out = None
            self.slots[port].append(slot)
            self.asked[channel] = (port, slot)


@dataclass(frozen=True, slots=True)
class RowPart:
    """Part of a row, as a converter gives it."""

    row_end: bool
    cut: Cut


class ConverterModel:
    """Mirrors :class:`hw.fetch.converter.Converter`."""

    def __init__(self, config: ConverterConfig) -> None:
        self.config = config
        self.held: Atom | None = None
        self.position, self.part, self.head = 0, 0, 0

    def step(self, coming: deque[Atom], ready: bool) -> RowPart | None:
        """One cycle; takes from ``coming``, the register before it. The part given, if any."""
        n_words = self.config.atom_words
        given = None
        takes = self.held is None
        done = crosses = False
        if self.held is not None and self.held.cut is not None:
            request = self.held.cut.request
            end = self.position + request.bits // 2
            crosses = end > n_words
            if ready and (not crosses or coming):
                row_end = self.part == request.head_dim // self.config.elements_per_beat - 1
                final = self.head == request.n_heads - 1
                given = RowPart(row_end, self.held.cut)
                done = row_end and final
                takes = done or end >= n_words
                self.position = end % n_words
                self.part = 0 if row_end else self.part + 1
                self.head = (0 if final else self.head + 1) if row_end else self.head
        if takes:
            fresh = self.held is None or done
            new = coming.popleft() if coming else None
            self.held = None if done and crosses else new
            if fresh and new is not None and new.cut is not None:
                skip_units = new.cut.request.first_bit // ROW_UNIT_BITS % 4
                self.position = skip_units * ROW_UNIT_BITS // self.config.word_bits
        return given


class LinesModel:
    """Mirrors :class:`hw.fetch.lines.Lines`."""

    def __init__(self, config: LinesConfig) -> None:
        self.config = config
        self.rows: list[RowPart | None] = [None] * config.n_ports
        self.first = 0
        self.leaving: tuple[int, bool] | None = None
        """Rows of the line on the output, and whether it is the request's last."""
        self.stamps: list[int] = []

    def step(self, cycle: int, taken: bool = True) -> list[bool]:
        """A complete line leaves, if it is ``taken``; which ports are then ready for a part."""
        if self.leaving is not None and taken:
            self.stamps.append(cycle)
            self.leaving = None
        leader = self.rows[self.first]
        if leader is not None and self.leaving is None:
            self._gather(leader)
        return [row is None for row in self.rows]

    def _gather(self, leader: RowPart) -> None:
        n_rows = self.config.line_elements // leader.cut.request.head_dim
        ports = []
        for port in range(self.first, self.first + n_rows):
            row = self.rows[port]
            if row is None:
                return
            ports.append(port)
            if row.cut.last:
                break
        ends = self.rows[ports[-1]].cut.last  # type: ignore[union-attr]
        for port in ports:
            self.rows[port] = None
        self.leaving = len(ports), ends
        self.first = 0 if ends else (self.first + n_rows) % self.config.n_ports

    def put(self, port: int, part: RowPart | None) -> None:
        """A part came in; the last one makes the row."""
        if part is not None and part.row_end:
            self.rows[port] = part
