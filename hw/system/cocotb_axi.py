# SPDX-License-Identifier: MIT
"""Simulator side of :mod:`hw.system.cosim`: plays saved runs with cocotbext-axi's memories and master.

They are AXI as others read it. They assert sizes, ``last``, and that no burst crosses 4,096 bytes; an
assertion that fails stops the simulator.
"""

import random
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, RisingEdge, SimTimeoutError, with_timeout
from cocotb.utils import get_sim_time
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiRamRead,
    AxiRamWrite,
    AxiReadBus,
    AxiResp,
    AxiWriteBus,
)

from hw.system.bench import QUIET_CYCLES, WRITE_MASTER
from hw.system.cocotb_bench import CLOCK_NS, read_masters, reset, save_logs, saved_runs
from hw.system.runs import Log, Run


class Shared:
    """Memory of a run behind one master, with pauses and words that come late.

    Each channel pauses, and a word is late, with chance ``p_stall``; late by up to ``latency_cycles`` and
    ``jitter_cycles`` together. Outside of the memory, and at a fault, the answer is SLVERR.
    """

    channels: tuple[str, ...]
    clock: Any

    def begin(self, run: Run, memory: bytearray) -> None:
        """Serve ``run`` from now on."""
        self.run, self.mem, self.size = run, memory, len(memory)
        channels = [getattr(self, f"{name}_channel") for name in self.channels]
        self.rng = random.Random(f"{run.seed} {channels[0].bus._name}")
        for channel in channels:
            pause(channel, run)

    async def place(self, address: int, n_bytes: int) -> int:
        """In ``mem``."""
        run = self.run
        if self.rng.random() < run.p_stall:
            await ClockCycles(self.clock, self.rng.randint(1, run.latency_cycles + run.jitter_cycles))
        if not run.base <= address <= run.base + self.size - n_bytes:
            raise LookupError(f"no memory at {address:#x}")
        if any(address <= fault < address + n_bytes for fault in run.faults):
            raise LookupError(f"fault at {address:#x}")
        return address - run.base


class SharedRead(Shared, AxiRamRead):
    channels = ("ar", "r")

    async def _read(self, address: int, length: int) -> bytes:
        return await super()._read(await self.place(address, length), length)


class SharedWrite(Shared, AxiRamWrite):
    channels = ("aw", "w", "b")

    async def _write(self, address: int, data: bytes) -> None:
        await super()._write(await self.place(address, len(data)), data)


def pause(channel: Any, run: Run) -> None:
    """Let a channel pause at random, by a seed of its own."""
    rng = random.Random(f"{run.seed} {type(channel).__name__} {channel.bus._name}")
    channel.set_pause_generator(iter(lambda: rng.random() < run.p_stall, None) if run.p_stall else None)


async def play_steps(dut, master: AxiLiteMaster, run: Run, log: Log) -> None:
    """The software's side of a run."""
    for what, *arguments in run.steps:
        if what == "write":
            address, value = arguments
            answer = await master.write(address, value.to_bytes(4, "little"))
            note(log, address, answer)
        elif what == "read":
            answer = await master.read(arguments[0], 4)
            log.reads.append(int.from_bytes(answer.data, "little"))
            note(log, arguments[0], answer)
        elif what == "until":
            address, mask, value = arguments
            while int.from_bytes((await master.read(address, 4)).data, "little") & mask != value:
                pass
        elif what == "wait":
            await ClockCycles(dut.clk, arguments[0])
        else:
            while not int(dut.irq.value):
                await RisingEdge(dut.clk)


def note(log: Log, address: int, answer: Any) -> None:
    if answer.resp != AxiResp.OKAY:
        log.refused.append(address)


@cocotb.test()
async def play(dut) -> None:
    """Every run from hardware reset, one after the other."""
    runs = saved_runs(dut)
    memories: list[Any] = [
        *(SharedRead(AxiReadBus.from_prefix(dut, name), dut.clk, dut.rst, size=1) for name in read_masters()),
        SharedWrite(AxiWriteBus.from_prefix(dut, WRITE_MASTER), dut.clk, dut.rst, size=1),
    ]
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
    write, read = master.write_if, master.read_if
    lite = [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
    logs = []
    for run in runs:
        await reset(dut)
        memory = bytearray(run.memory)
        for one in memories:
            one.begin(run, memory)
        for channel in lite:
            pause(channel, run)
        log = Log(memory=run.memory)
        dut.rst.value = 0
        start_ns = get_sim_time("ns")
        try:
            await with_timeout(play_steps(dut, master, run, log), run.max_cycles * CLOCK_NS, "ns")
        except SimTimeoutError:
            log.problems.append("timeout")
        log.n_cycles = round((get_sim_time("ns") - start_ns) / CLOCK_NS)
        await ClockCycles(dut.clk, QUIET_CYCLES)
        log.memory = np.frombuffer(memory, np.uint8)
        logs.append(log)
    save_logs(logs)
