# SPDX-License-Identifier: MIT
"""Simulator side of :mod:`hw.harness.cosim`: plays saved cases on the design and saves what it saw.

Runs inside the simulator, so it imports numpy and cocotb only; golden results are made and compared outside.
"""

import os
import random
from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from hw.harness.memory import Memory, Responder, responders

RESET_CYCLES = 2


class Port:
    """One stream of the design with the beats of the current case."""

    def __init__(self, dut, name: str, is_input: bool) -> None:
        self.name, self.is_input = name, is_input
        self.payload = getattr(dut, f"{name}__payload")
        self.valid = getattr(dut, f"{name}__valid")
        self.ready = getattr(dut, f"{name}__ready")

    def begin(self, beats: np.ndarray, n_expected: int, p_stall: float, seed: int) -> None:
        self.waiting = deque(int.from_bytes(row.astype("<u4").tobytes(), "little") for row in beats)
        self.n_expected, self.p_stall = n_expected, p_stall
        self.rng = random.Random(f"{seed} {self.name}")
        self.cycles: list[int] = []
        self.seen: list[int] = []
        self.offering = False
        self.memory: Responder | None = None
        """Asked by the transfers of an output, or answering through an input."""

    def drive(self, cycle: int) -> None:
        """Set this side's handshake for the next rising edge; a beat once offered stays until taken."""
        stall = self.rng.random() < self.p_stall
        if not self.is_input:
            self.ready.value = not stall
            return
        if not self.offering and not stall:
            beat = self._next(cycle)
            if beat is not None:
                self.offering = True
                self.payload.value = beat
        self.valid.value = self.offering

    def _next(self, cycle: int) -> int | None:
        if self.memory is not None:
            return self.memory.answer(cycle)
        return self.waiting.popleft() if self.waiting else None

    def sample(self, cycle: int) -> None:
        """Note the transfer that the next rising edge will make, if any."""
        if self.valid.value == 1 and self.ready.value == 1:
            self.cycles.append(cycle)
            if self.is_input:
                self.offering = False
            else:
                if not self.payload.value.is_resolvable:
                    raise ValueError(f"{self.name} beat {len(self.seen)} is undefined: {self.payload.value}")
                self.seen.append(int(self.payload.value))
                if self.memory is not None:
                    self.memory.ask(self.seen[-1], cycle)


@cocotb.test()
async def play(dut) -> None:
    """Every case from reset, one after the other."""
    jobs = np.load(os.environ["QUARTET_JOBS"])
    ports = [Port(dut, str(name), bool(way)) for name, way in zip(jobs["ports"], jobs["ways"], strict=True)]
    log: dict[str, Any] = {}
    Clock(dut.clk, 2, unit="ns").start()
    for index in range(int(jobs["n_cases"])):
        max_cycles, quiet_cycles, seed = (int(x) for x in jobs[f"{index} numbers"])
        for port in ports:
            beats = jobs[f"{index} {port.name}"] if port.is_input else np.zeros((0, 1))
            n_expected = 0 if port.is_input else int(jobs[f"{index} {port.name}"])
            port.begin(beats, n_expected, float(jobs[f"{index} p_stall"]), seed)
        _attach_memories(ports, jobs, index, seed)
        n_cycles = await _run(dut, ports, max_cycles, quiet_cycles)
        log[f"{index} n_cycles"] = np.array(n_cycles)
        for port in ports:
            log[f"{index} {port.name} cycles"] = np.array(port.cycles, dtype=np.int64)
            n_bytes = -(-len(port.payload) // 32) * 4
            raw = b"".join(value.to_bytes(n_bytes, "little") for value in port.seen)
            log[f"{index} {port.name} beats"] = np.frombuffer(raw, "<u4").reshape(
                len(port.seen), -1 if raw else 0
            )
    np.savez(os.environ["QUARTET_LOG"], **log)


def _attach_memories(ports: list[Port], jobs, index: int, seed: int) -> None:
    """One responder for each pair of request and response stream of this case."""
    by_name = {port.name: port for port in ports}
    images = [jobs[f"{index} image {number}"] for number in range(int(jobs[f"{index} n_images"]))]
    memories = {}
    for number, (request, response) in enumerate(jobs[f"{index} memories"]):
        image, address_bits, latency, jitter, interval, writes = (
            int(x) for x in jobs[f"{index} memory {number} numbers"]
        )
        memories[str(request)] = Memory(
            response=str(response),
            words=images[image],
            address_bits=address_bits,
            latency_cycles=latency,
            jitter_cycles=jitter,
            interval_cycles=interval,
            writes=bool(writes),
        )
    for request, responder in responders(memories, seed).items():
        by_name[request].memory = by_name[responder.memory.response].memory = responder


async def _run(dut, ports: list[Port], max_cycles: int, quiet_cycles: int) -> int:
    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for port in ports:
        (port.valid if port.is_input else port.ready).value = 0
    for _ in range(RESET_CYCLES):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    cycle = quiet = 0
    while cycle < max_cycles and quiet < quiet_cycles:
        for port in ports:
            port.drive(cycle)
        await ReadOnly()
        for port in ports:
            port.sample(cycle)
        await FallingEdge(dut.clk)
        cycle += 1
        done = all(len(port.seen) >= port.n_expected for port in ports)
        quiet = quiet + 1 if done else 0
    return cycle
