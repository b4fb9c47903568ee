# SPDX-License-Identifier: MIT
"""What a test bench puts around the system: memory behind AXI4, and software that speaks AXI4-Lite.

Cycle by cycle and without a simulator's name in it: Amaranth's simulator and cocotb both drive it. Imports
numpy only. It also holds the design to the rules of AXI: what is offered stays until taken, and no burst
crosses 4,096 bytes.
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .runs import Log, Run, Step

OKAY, SLVERR, DECERR = 0b00, 0b10, 0b11
WRITE_MASTER = "m_axi_out"
"""Prefix of a design's write master."""
QUIET_CYCLES = 16
"""Cycles watched after the last step."""


class Pins(Protocol):
    """The design's ports."""

    def get(self, name: str) -> int:
        """Value of an output."""

    def set(self, name: str, value: int) -> None:
        """Drive an input."""


class Sink:
    """Takes what the design offers on one channel."""

    def __init__(self, bench: "Bench", prefix: str, channel: str, fields: Sequence[str]) -> None:
        self.bench, self.name = bench, f"{prefix}_{channel}"
        self.fields = [f"{self.name}{name}" for name in fields]
        self.rng = random.Random(f"{bench.run.seed} {self.name}")
        self.is_ready = False
        self.offered: tuple[int, ...] | None = None

    def drive(self, is_open: bool = True) -> None:
        self.is_ready = is_open and self.rng.random() >= self.bench.run.p_stall
        self.bench.pins.set(f"{self.name}ready", self.is_ready)

    def sample(self) -> tuple[int, ...] | None:
        """The fields, where they are taken in this cycle."""
        pins = self.bench.pins
        if not pins.get(f"{self.name}valid"):
            if self.offered is not None:
                self.bench.problem(f"{self.name}valid fell before it was taken")
            self.offered = None
            return None
        values = tuple(pins.get(name) for name in self.fields)
        if self.offered not in (None, values):
            self.bench.problem(f"{self.name} changed before it was taken")
        self.offered = None if self.is_ready else values
        return values if self.is_ready else None


class Source:
    """Offers to the design on one channel, in order, each from its cycle on."""

    def __init__(self, bench: "Bench", prefix: str, channel: str, fields: Sequence[str]) -> None:
        self.bench, self.name = bench, f"{prefix}_{channel}"
        self.fields = [f"{self.name}{name}" for name in fields]
        self.rng = random.Random(f"{bench.run.seed} {self.name}")
        self.waiting: deque[tuple[int, tuple[int, ...]]] = deque()
        self.is_offering = False
        bench.pins.set(f"{self.name}valid", 0)

    def put(self, due_cycle: int, *values: int) -> None:
        self.waiting.append((due_cycle, values))

    def drive(self) -> None:
        if self.is_offering or not self.waiting or self.waiting[0][0] > self.bench.cycle:
            return
        if self.rng.random() >= self.bench.run.p_stall:
            for name, value in zip(self.fields, self.waiting[0][1], strict=True):
                self.bench.pins.set(name, value)
            self.bench.pins.set(f"{self.name}valid", 1)
            self.is_offering = True

    def sample(self) -> bool:
        """Whether it is taken in this cycle; drives ``valid`` low for the next."""
        if not (self.is_offering and self.bench.pins.get(f"{self.name}ready")):
            return False
        self.waiting.popleft()
        self.is_offering = False
        return True

    def after_edge(self) -> None:
        if not self.is_offering:
            self.bench.pins.set(f"{self.name}valid", 0)


class Bench:
    """Plays one run; call :meth:`drive` before and :meth:`sample` at each rising edge while not ``over``.

    ``readers`` are the prefixes of the design's read masters; its write master is WRITE_MASTER.
    """

    def __init__(self, pins: Pins, run: Run, readers: Sequence[str], bus_bytes: int) -> None:
        self.pins, self.run, self.bus_bytes = pins, run, bus_bytes
        self.cycle = 0
        self.log = Log(memory=run.memory.copy())
        self.faults = {address // bus_bytes for address in run.faults}
        self.parts: list[Any] = [Reader(self, prefix) for prefix in readers]
        self.software = Software(self)
        self.parts += [Writer(self, WRITE_MASTER), self.software]
        self.quiet = 0

    @property
    def over(self) -> bool:
        return self.quiet >= QUIET_CYCLES

    def drive(self) -> None:
        for part in self.parts:
            part.drive()

    def sample(self) -> None:
        for part in self.parts:
            part.sample()
        self.cycle += 1
        if self.software.is_done:
            self.quiet += 1
        elif self.cycle >= self.run.max_cycles:
            self.problem(f"timeout at step {self.software.n_done}")
            self.quiet = QUIET_CYCLES
        self.log.n_cycles = self.cycle

    def problem(self, text: str) -> None:
        self.log.problems.append(f"cycle {self.cycle}: {text}")

    def response(self, address: int) -> int:
        """Of the word at ``address``."""
        if not 0 <= address - self.run.base < len(self.log.memory):
            return DECERR
        return SLVERR if address // self.bus_bytes in self.faults else OKAY

    def burst(self, name: str, address: int, length: int, size: int, kind: int) -> list[int]:
        """Addresses of the words of a burst."""
        n_bytes = (length + 1) * self.bus_bytes
        if 1 << size != self.bus_bytes or kind != 1 or address % self.bus_bytes:
            self.problem(f"{name}: burst of size {size}, kind {kind} at {address:#x}")
        if address % 4096 + n_bytes > 4096:
            self.problem(f"{name}: burst of {n_bytes} bytes at {address:#x} crosses 4,096")
        return list(range(address, address + n_bytes, self.bus_bytes))


class Reader:
    """Memory behind a read master."""

    def __init__(self, bench: Bench, prefix: str) -> None:
        self.bench = bench
        self.addresses = Sink(bench, prefix, "ar", ("addr", "len", "size", "burst"))
        self.answers = Source(bench, prefix, "r", ("data", "resp", "last"))
        self.n_open = 0
        """Bursts whose last word has not been taken."""
        self.rng = random.Random(f"{bench.run.seed} {prefix} jitter")

    def drive(self) -> None:
        self.addresses.drive(self.n_open < self.bench.run.n_bursts)
        self.answers.after_edge()
        self.answers.drive()

    def sample(self) -> None:
        is_last = bool(self.answers.waiting) and self.answers.waiting[0][1][2]
        self.n_open -= self.answers.sample() and is_last
        taken = self.addresses.sample()
        if taken is None:
            return
        self.n_open += 1
        self.bench.log.bursts.append((self.addresses.name, taken[0], taken[1] + 1))
        bench, run = self.bench, self.bench.run
        due = bench.cycle + run.latency_cycles + self.rng.randint(0, run.jitter_cycles)
        words = bench.burst(self.addresses.name, *taken)
        for address in words:
            start = address - run.base
            response = bench.response(address)
            word = b"" if response else bench.log.memory[start : start + bench.bus_bytes].tobytes()
            self.answers.put(due, int.from_bytes(word, "little"), response, address == words[-1])


class Writer:
    """Memory behind a write master; bytes are there once their burst is answered, not before."""

    def __init__(self, bench: Bench, prefix: str) -> None:
        self.bench = bench
        self.addresses = Sink(bench, prefix, "aw", ("addr", "len", "size", "burst"))
        self.data = Sink(bench, prefix, "w", ("data", "strb", "last"))
        self.answers = Source(bench, prefix, "b", ("resp",))
        self.bursts: deque[list[int]] = deque()
        self.words: deque[tuple[int, ...]] = deque()
        self.worst = OKAY
        self.held: deque[list[tuple[int, int, int]]] = deque([[]])
        """Address, word and strobe of each word of the bursts without an answer: written when it is given."""

    def drive(self) -> None:
        self.addresses.drive()
        self.data.drive()
        self.answers.after_edge()
        was_offering = self.answers.is_offering
        self.answers.drive()
        if self.answers.is_offering and not was_offering:
            for word in self.held.popleft():
                self._keep(*word)

    def sample(self) -> None:
        self.answers.sample()
        if (taken := self.addresses.sample()) is not None:
            self.bursts.append(self.bench.burst(self.addresses.name, *taken))
        if (word := self.data.sample()) is not None:
            self.words.append(word)
        while self.bursts and self.words:
            self._write(self.bursts[0], *self.words.popleft())

    def _write(self, burst: list[int], word: int, strobe: int, is_last: int) -> None:
        bench = self.bench
        address = burst.pop(0)
        if is_last != (not burst):
            bench.problem(f"wlast {is_last} with {len(burst)} words to come")
        response = bench.response(address)
        self.worst = max(self.worst, response)
        if not response:
            self.held[-1].append((address, word, strobe))
        if not burst:
            self.bursts.popleft()
            self.held.append([])
            self.answers.put(bench.cycle + bench.run.latency_cycles, self.worst)
            self.worst = OKAY

    def _keep(self, address: int, word: int, strobe: int) -> None:
        bench = self.bench
        start = address - bench.run.base
        raw = np.frombuffer(word.to_bytes(bench.bus_bytes, "little"), np.uint8)
        written = np.array([strobe >> byte & 1 for byte in range(bench.bus_bytes)], dtype=bool)
        bench.log.memory[start : start + bench.bus_bytes][written] = raw[written]


class Software:
    """The steps, one after the other, through the AXI4-Lite port."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.steps = deque(tuple(step) for step in bench.run.steps)
        self.write_address = Source(bench, "s_axil", "aw", ("addr",))
        self.write_data = Source(bench, "s_axil", "w", ("data", "strb"))
        self.written = Sink(bench, "s_axil", "b", ("resp",))
        self.read_address = Source(bench, "s_axil", "ar", ("addr",))
        self.read_data = Sink(bench, "s_axil", "r", ("data", "resp"))
        self.is_waiting = False
        """For an answer to the step at hand."""
        self.n_done = 0
        self.wait_until = 0

    @property
    def is_done(self) -> bool:
        return not self.steps

    def drive(self) -> None:
        if self.steps and not self.is_waiting:
            self._begin(self.steps[0])
        for source in (self.write_address, self.write_data, self.read_address):
            source.after_edge()
            source.drive()
        self.written.drive()
        self.read_data.drive()

    def _begin(self, step: Step) -> None:
        self.is_waiting = True
        now = self.bench.cycle
        if step[0] == "write":
            self.write_address.put(now, step[1])
            self.write_data.put(now, step[2], 0b1111)
        elif step[0] in ("read", "until"):
            self.read_address.put(now, step[1])
        elif step[0] == "wait":
            self.wait_until = now + step[1]

    def sample(self) -> None:
        for source in (self.write_address, self.write_data, self.read_address):
            source.sample()
        written, read = self.written.sample(), self.read_data.sample()
        if not self.is_waiting:
            return
        step = self.steps[0]
        if step[0] == "write" and written is not None:
            self._end(step, written[0])
        elif step[0] in ("read", "until") and read is not None:
            self.is_waiting = False  # "until" asks again
            if step[0] == "read":
                self.bench.log.reads.append(read[0])
            if step[0] == "read" or read[0] & step[2] == step[3]:
                self._end(step, read[1])
        elif (step[0] == "irq" and self.bench.pins.get("irq")) or (
            step[0] == "wait" and self.bench.cycle >= self.wait_until
        ):
            self._end(step, OKAY)

    def _end(self, step: Step, response: int) -> None:
        self.steps.popleft()
        self.n_done += 1
        self.is_waiting = False
        if response != OKAY:
            self.bench.log.refused.append(step[1])
