# SPDX-License-Identifier: MIT
"""Runs cases in Amaranth's own simulator: no build, for small runs and for mutants."""

import random
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from amaranth import Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from .job import QUIET_CYCLES, Beats, Case, Log, StreamPort
from .memory import Responder, responders
from .ports import stream_ports


def run_case(component: wiring.Component, case: Case, vcd_path: str | None = None) -> Log:
    """Simulate one case from reset. A run over its budget returns what it has; :func:`job.judge` tells."""
    bench = _Bench(component)
    if vcd_path is None:
        return bench.run(case)
    with bench.simulator.write_vcd(vcd_path):
        return bench.run(case)


def run_cases(component: wiring.Component, cases: Iterable[Case]) -> Iterator[tuple[Case, Log]]:
    """As :func:`run_case`, one case after the other, each from reset, as its log is asked for.

    The simulator is built once, which takes longer than many a small case.
    """
    bench = _Bench(component)
    for number, case in enumerate(cases):
        if number:
            bench.simulator.reset()
        yield case, bench.run(case)


class _Bench:
    """A simulator whose one process plays every source and sink, so that a run is reproducible."""

    def __init__(self, component: wiring.Component) -> None:
        self.component, self.ports = component, stream_ports(component)
        self.simulator = Simulator(component)
        self.simulator.add_clock(1e-9)
        self.simulator.add_testbench(self._clocked)

    def run(self, case: Case) -> Log:
        """One case; the simulator must be new, or reset."""
        self.case = case
        self.beats: dict[str, list[int]] = {port.name: [] for port in self.ports if not port.is_input}
        self.stamps: dict[str, list[int]] = {port.name: [] for port in self.ports}
        self.n_cycles = 0
        self.simulator.run()
        words = {port.name: port.n_words for port in self.ports}
        return Log(
            beats={name: _to_words(values, words[name]) for name, values in self.beats.items()},
            cycles={name: np.array(values, dtype=np.int64) for name, values in self.stamps.items()},
            n_cycles=self.n_cycles,
        )

    def _finished(self) -> bool:
        return all(len(self.beats[name]) >= len(want) for name, want in self.case.expected.items())

    async def _clocked(self, ctx) -> None:
        case = self.case
        memories = responders(case.memories, case.seed)
        ends: list[_Source | _Sink] = [
            (_Source if port.is_input else _Sink)(port, case, self.component, memories) for port in self.ports
        ]
        quiet = 0
        while self.n_cycles < case.max_cycles and quiet < QUIET_CYCLES:
            for end in ends:
                end.drive(ctx, self.n_cycles)
            fired = [end for end in ends if ctx.get(end.stream.valid) and ctx.get(end.stream.ready)]
            for end in fired:
                self.stamps[end.port.name].append(self.n_cycles)
                if isinstance(end, _Sink):
                    beat = ctx.get(Value.cast(end.stream.payload))
                    self.beats[end.port.name].append(beat)
                    end.taken(beat, self.n_cycles)
                else:
                    end.offering = False
            await ctx.tick()
            self.n_cycles += 1
            quiet = quiet + 1 if self._finished() else 0


class _Source:
    """Offers the beats of one input stream; once valid, a beat stays until taken."""

    def __init__(
        self, port: StreamPort, case: Case, component: wiring.Component, memories: dict[str, Responder]
    ) -> None:
        self.port, self.stream = port, getattr(component, port.name)
        self.rng, self.p_stall = random.Random(f"{case.seed} {port.name}"), case.p_stall
        self.offering = False
        self.memory: Responder | None = memories.get(case.answering.get(port.name, ""))
        self.waiting: deque[int] = deque()
        if self.memory is None:
            rows = case.inputs[port.name].astype("<u4")
            self.waiting.extend(int.from_bytes(row.tobytes(), "little") for row in rows)

    def drive(self, ctx, cycle: int) -> None:
        if not self.offering and self.rng.random() >= self.p_stall:
            beat = self._next(cycle)
            if beat is not None:
                self.offering = True
                ctx.set(Value.cast(self.stream.payload), beat)
        ctx.set(self.stream.valid, self.offering)

    def _next(self, cycle: int) -> int | None:
        if self.memory is not None:
            return self.memory.answer(cycle)
        return self.waiting.popleft() if self.waiting else None


class _Sink:
    def __init__(
        self, port: StreamPort, case: Case, component: wiring.Component, memories: dict[str, Responder]
    ) -> None:
        self.port, self.stream = port, getattr(component, port.name)
        self.rng, self.p_stall = random.Random(f"{case.seed} {port.name}"), case.p_stall
        self.memory: Responder | None = memories.get(port.name)

    def drive(self, ctx, cycle: int) -> None:
        ctx.set(self.stream.ready, self.rng.random() >= self.p_stall)

    def taken(self, beat: int, cycle: int) -> None:
        if self.memory is not None:
            self.memory.ask(beat, cycle)


def _to_words(values: list[int], n_words: int) -> Beats:
    raw = b"".join(value.to_bytes(4 * n_words, "little") for value in values)
    return np.frombuffer(raw, dtype="<u4").reshape(len(values), n_words).astype(np.uint32)
