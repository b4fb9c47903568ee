# SPDX-License-Identifier: MIT
"""Simulator side of :mod:`hw.system.cosim`: plays saved runs on the design and saves what it saw."""

import json
import os
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from hw.system.bench import Bench, Run

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


@cocotb.test()
async def play(dut) -> None:
    """Every run from hardware reset, one after the other."""
    saved = np.load(os.environ["QUARTET_RUNS"])
    pins = DutPins(dut)
    Clock(dut.clk, 2, unit="ns").start()
    logs: dict[str, Any] = {}
    for index in range(int(saved["n_runs"])):
        parameters = json.loads(str(saved[f"{index} parameters"]))
        run = Run(name=str(index), memory=saved[f"{index} memory"], **parameters)
        await FallingEdge(dut.clk)
        dut.rst.value = 1
        bench = Bench(pins, run, int(saved["n_channels"]), int(saved["bus_bytes"]))
        for _ in range(RESET_CYCLES):
            await FallingEdge(dut.clk)
        dut.rst.value = 0
        while not bench.over:
            bench.drive()
            await ReadOnly()
            bench.sample()
            await FallingEdge(dut.clk)
        log = bench.log
        logs[f"{index} memory"] = log.memory
        logs[f"{index} rest"] = json.dumps([log.reads, log.refused, log.problems, log.n_cycles])
    np.savez(os.environ["QUARTET_LOG"], **logs)
