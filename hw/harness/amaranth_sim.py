# SPDX-License-Identifier: MIT
"""Runs cases in Amaranth's own simulator: no build, for small runs and for mutants."""

import random

import numpy as np
from amaranth import Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from .job import QUIET_CYCLES, Beats, Case, Log, StreamPort
from .ports import stream_ports


def run_case(component: wiring.Component, case: Case, vcd_path: str | None = None) -> Log:
    """Simulate one case from reset. A run over its budget returns what it has; :func:`job.judge` tells."""
    ports = stream_ports(component)
    beats: dict[str, list[int]] = {port.name: [] for port in ports if not port.is_input}
    stamps: dict[str, list[int]] = {port.name: [] for port in ports}
    n_cycles = 0

    def finished() -> bool:
        return all(len(beats[name]) >= len(want) for name, want in case.expected.items())

    async def clocked(ctx) -> None:
        """One process plays every source and sink, so that a run is reproducible from its seed."""
        nonlocal n_cycles
        ends: list[_Source | _Sink] = [
            (_Source if port.is_input else _Sink)(port, case, component) for port in ports
        ]
        quiet = 0
        while n_cycles < case.max_cycles and quiet < QUIET_CYCLES:
            for end in ends:
                end.drive(ctx)
            fired = [end for end in ends if ctx.get(end.stream.valid) and ctx.get(end.stream.ready)]
            for end in fired:
                stamps[end.port.name].append(n_cycles)
                if isinstance(end, _Sink):
                    beats[end.port.name].append(ctx.get(Value.cast(end.stream.payload)))
                end.taken()
            await ctx.tick()
            n_cycles += 1
            quiet = quiet + 1 if finished() else 0

    simulator = Simulator(component)
    simulator.add_clock(1e-9)
    simulator.add_testbench(clocked)
    if vcd_path is None:
        simulator.run()
    else:
        with simulator.write_vcd(vcd_path):
            simulator.run()
    words = {port.name: port.n_words for port in ports}
    return Log(
        beats={name: _to_words(values, words[name]) for name, values in beats.items()},
        cycles={name: np.array(values, dtype=np.int64) for name, values in stamps.items()},
        n_cycles=n_cycles,
    )


class _Source:
    """Offers the beats of one input stream; once valid, a beat stays until taken."""

    def __init__(self, port: StreamPort, case: Case, component: wiring.Component) -> None:
        self.port, self.stream = port, getattr(component, port.name)
        self.waiting = [
            int.from_bytes(row.astype("<u4").tobytes(), "little") for row in case.inputs[port.name]
        ]
        self.rng, self.p_stall = random.Random(f"{case.seed} {port.name}"), case.p_stall
        self.position, self.offering = 0, False

    def drive(self, ctx) -> None:
        if not self.offering and self.position < len(self.waiting) and self.rng.random() >= self.p_stall:
            self.offering = True
            ctx.set(Value.cast(self.stream.payload), self.waiting[self.position])
        ctx.set(self.stream.valid, self.offering)

    def taken(self) -> None:
        self.position += 1
        self.offering = False


class _Sink:
    def __init__(self, port: StreamPort, case: Case, component: wiring.Component) -> None:
        self.port, self.stream = port, getattr(component, port.name)
        self.rng, self.p_stall = random.Random(f"{case.seed} {port.name}"), case.p_stall

    def drive(self, ctx) -> None:
        ctx.set(self.stream.ready, self.rng.random() >= self.p_stall)

    def taken(self) -> None:
        pass


def _to_words(values: list[int], n_words: int) -> Beats:
    raw = b"".join(value.to_bytes(4 * n_words, "little") for value in values)
    return np.frombuffer(raw, dtype="<u4").reshape(len(values), n_words).astype(np.uint32)
