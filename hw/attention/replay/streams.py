# SPDX-License-Identifier: MIT
"""Queues, regrouping and forks between the mirrored blocks.

A stream's output register holds None when it is not valid. Within a cycle a consumer looks at what the
register held when the cycle began and clears it; after that its producer fills it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from hw.stream.config import RegroupConfig

Beat = tuple[int, bool]
"""Elements of a packed beat, and whether it is the last of its list."""


class Queue:
    """Mirrors :class:`hw.stream.rtl.Fifo`: a memory of ``depth - 1`` words and an output register."""

    __slots__ = ("capacity", "out", "stored")

    def __init__(self, depth: int) -> None:
        self.capacity = depth - 1
        self.stored: deque[Any] = deque()
        self.out: Any = None

    @property
    def has_room(self) -> bool:
        """``i.ready``; true until :meth:`put` of the same cycle."""
        return len(self.stored) < self.capacity

    def put(self, word: Any = None) -> None:
        """End of the cycle, once in each: the output register refills, and ``word``, if any, comes in."""
        if self.out is None:
            if self.stored:
                self.out = self.stored.popleft()
            else:
                self.out = word
                return
        if word is not None:
            self.stored.append(word)


class Delay:
    """A free-running pipeline: what enters in a cycle comes out a fixed number of cycles later."""

    __slots__ = ("cycles", "words")

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        self.words: deque[tuple[int, Any]] = deque()

    def enter(self, cycle: int, word: Any) -> None:
        self.words.append((cycle + self.cycles, word))

    def leaving(self, cycle: int) -> Any:
        """What comes out in this cycle, None for nothing."""
        if self.words and self.words[0][0] == cycle:
            return self.words.popleft()[1]
        return None


class Skid:
    """Mirrors :class:`hw.stream.rtl.SkidBuffer`."""

    __slots__ = ("out", "spare")

    def __init__(self) -> None:
        self.out: Any = None
        self.spare: Any = None

    @property
    def has_room(self) -> bool:
        return self.spare is None

    def put(self, word: Any) -> None:
        """End of the cycle; ``word`` only where there was room."""
        if self.out is None:
            self.out = word if self.spare is None else self.spare
            self.spare = None
        elif word is not None:
            self.spare = word


class Regroup:
    """Mirrors :class:`hw.stream.rtl.Regroup`; with equal widths its packer alone."""

    __slots__ = ("flush", "lanes", "lanes_out", "n_rest", "rest", "splits")

    def __init__(self, config: RegroupConfig) -> None:
        self.lanes, self.lanes_out = config.packer.lanes, config.lanes_out
        self.splits = config.n_parts > 1
        self.n_rest, self.flush = 0, False
        self.rest: Beat | None = None
        """The beat that is being split."""

    @property
    def is_empty(self) -> bool:
        """Nothing leaves until another beat comes."""
        return self.rest is None and not self.flush

    def offered(self, beat: Beat | None) -> Beat | None:
        """What stands on ``o`` while ``beat`` stands on ``i``."""
        if beat is None and self.is_empty:
            return None
        if not self.splits:
            return self._packed(beat)
        if self.rest is None:
            return None
        count, last = self.rest
        return (self.lanes_out, False) if count > self.lanes_out else (count, last)

    def step(self, beat: Beat | None, taken: bool) -> bool:
        """End of the cycle: ``taken``, what was offered left. Whether ``beat`` was taken."""
        if beat is None and self.is_empty:
            return False
        if not self.splits:
            return self._pack(beat, taken)
        ready = self.rest is None or (taken and self.rest[0] <= self.lanes_out)
        packed = self._packed(beat)
        took = self._pack(beat, ready)
        if ready:
            self.rest = packed
        elif taken and self.rest is not None:
            self.rest = (self.rest[0] - self.lanes_out, self.rest[1])
        return took

    def _packed(self, beat: Beat | None) -> Beat | None:
        if self.flush:
            return self.n_rest, True
        if beat is None:
            return None
        total, last = self.n_rest + beat[0], beat[1]
        if total >= self.lanes:
            return self.lanes, last and total == self.lanes
        return (total, True) if last else None

    def _pack(self, beat: Beat | None, ready: bool) -> bool:
        if self.flush:
            if ready:
                self.flush, self.n_rest = False, 0
            return False
        if beat is None:
            return False
        total, last = self.n_rest + beat[0], beat[1]
        full = total >= self.lanes
        if not (full or last):
            self.n_rest = total
            return True
        if not ready:
            return False
        self.n_rest = total - self.lanes if full else 0
        self.flush = last and total > self.lanes
        return True


class Fork:
    """Mirrors :func:`hw.stream.fork.fork`."""

    __slots__ = ("done",)

    def __init__(self, n_sinks: int) -> None:
        self.done = [False] * n_sinks

    def step(self, ready: Sequence[bool]) -> bool:
        """A cycle with a beat to give; whether every sink has it then."""
        done = self.done
        for place, is_ready in enumerate(ready):
            if is_ready:
                done[place] = True
        if not all(done):
            return False
        self.done = [False] * len(done)
        return True
