# SPDX-License-Identifier: MIT
"""Simulator side of :mod:`hw.system.cosim`: plays saved runs on the design with our own bench."""

import os
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from hw.system.bench import WRITE_MASTER, Bench
from hw.system.runs import Log, Run, load, save

CLOCK_NS = 2
RESET_CYCLES = 2


class DutPins:
    """Ports of the design, looked up once."""

    def __init__(self, dut) -> None:
        self.dut = dut
        self.handles: dict[str, Any] = {}

    def handle(self, name: str):
        if name not in self.handles:
            self.handles[name] = getattr(self.dut, name)
        return self.handles[name]

    def get(self, name: str) -> int:
        return int(self.handle(name).value)

    def set(self, name: str, value: int) -> None:
        self.handle(name).value = int(value)


def saved_runs(dut) -> list[Run]:
    """What is to be played; starts the clock."""
    Clock(dut.clk, CLOCK_NS, unit="ns").start()
    return [Run(**saved) for saved in load(Path(os.environ["QUARTET_RUNS"]))]


def save_logs(logs: list[Log]) -> None:
    save(Path(os.environ["QUARTET_LOG"]), logs)


def read_masters() -> list[str]:
    """Prefixes of the design's read masters."""
    return os.environ["QUARTET_READERS"].split(",")


async def reset(dut) -> None:
    """``rst`` up; afterwards the clock is low and ``rst`` may fall."""
    dut.rst.value = 1
    for _ in range(RESET_CYCLES):
        await FallingEdge(dut.clk)


@cocotb.test()
async def play(dut) -> None:
    """Every run from hardware reset, one after the other."""
    pins = DutPins(dut)
    logs = []
    for run in saved_runs(dut):
        await FallingEdge(dut.clk)
        bench = Bench(pins, run, read_masters(), bus_bytes=len(pins.handle(f"{WRITE_MASTER}_wstrb")))
        await reset(dut)
        dut.rst.value = 0
        while not bench.over:
            bench.drive()
            await ReadOnly()
            bench.sample()
            await FallingEdge(dut.clk)
        logs.append(bench.log)
    save_logs(logs)
