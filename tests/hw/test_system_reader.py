# SPDX-License-Identifier: MIT
"""The read master of a DRAM channel by itself: addresses, order, stops; broken on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.fetch.config import ATOM_BYTES
from hw.system.bench import Bench
from hw.system.config import SystemConfig
from hw.system.reader import DramReader
from hw.system.runs import Run
from tests.hw.mutants import mutated
from tests.hw.test_attention import SMALL

BASE = 0x1_2340_0000
MEMORY = np.random.default_rng(1).integers(0, 256, 300 * ATOM_BYTES, dtype=np.uint8)
SYSTEM = SystemConfig(core=SMALL, bus_bits=64)
N_WORDS = ATOM_BYTES // SYSTEM.bus_bytes
LATENCY_CYCLES = 20
MIXED = [*range(6), *range(126, 132), 7, 9, *range(9, 45), 44]
"""Atoms; the page of 4,096 bytes ends behind atom 127."""


@dataclass
class Play:
    """What one run of the master showed."""

    answers: list[tuple[int, int]] = field(default_factory=list)
    """Tag and data."""
    bursts: list[tuple[int, int]] = field(default_factory=list)
    """Byte in memory, words."""
    problems: list[str] = field(default_factory=list)
    n_cycles: int = 0
    n_failed: int = 0
    """Cycles in which ``failed`` was high."""


def play(
    atoms: Sequence[int],
    *,
    n_bursts: int = 256,
    p_stall: float = 0.0,
    faults: Sequence[int] = (),
    stop_cycle: int | None = None,
    component: Callable = DramReader,
) -> Play:
    """Asks for ``atoms``, a request a cycle where it can; to their end, or idle after ``stop_cycle``."""
    reader, seen = component(SMALL.fetch.crossbar, SYSTEM), Play()
    n_tags = 1 << SMALL.fetch.crossbar.tag_bits
    run = Run(
        name="reader",
        steps=(),
        base=BASE,
        memory=MEMORY,
        faults=faults,
        latency_cycles=LATENCY_CYCLES,
        n_bursts=n_bursts,
        p_stall=p_stall,
    )

    class Pins:
        """Of the channel; the bench's other ports lead nowhere."""

        def __init__(self, ctx) -> None:
            self.ctx = ctx

        def pin(self, name: str):
            return getattr(reader.axi, name.removeprefix("m_axi_dram0_"), None)

        def get(self, name: str) -> int:
            pin = self.pin(name)
            return 0 if pin is None else self.ctx.get(pin)

        def set(self, name: str, value: int) -> None:
            if (pin := self.pin(name)) is not None:
                self.ctx.set(pin, int(value))

    async def bench_side(ctx) -> None:
        bench, n_asked = Bench(Pins(ctx), run, ["m_axi_dram0"], SYSTEM.bus_bytes), 0
        ctx.set(reader.base, BASE)
        ctx.set(reader.o.ready, 1)
        for cycle in range(4000):
            runs = stop_cycle is None or cycle < stop_cycle
            ctx.set(reader.run, runs)
            ctx.set(reader.i.valid, runs and n_asked < len(atoms))
            if n_asked < len(atoms):
                ctx.set(reader.i.payload, {"address": atoms[n_asked], "tag": n_asked % n_tags})
            bench.drive()
            n_asked += ctx.get(reader.i.valid) and ctx.get(reader.i.ready)
            bench.sample()
            if ctx.get(reader.o.valid):
                answer = ctx.get(reader.o.payload)
                seen.answers.append((answer.tag, answer.data))
            seen.n_failed += ctx.get(reader.failed)
            if len(seen.answers) == len(atoms) or (not runs and ctx.get(reader.idle)):
                break
            await ctx.tick()
        else:
            seen.problems.append("timeout")
        seen.n_cycles = cycle
        seen.problems += bench.log.problems
        if bench.parts[0].n_open:
            seen.problems.append("idle with a burst under way")
        seen.bursts = [
            (address - BASE, words) for name, address, words in bench.log.bursts if name == "m_axi_dram0_ar"
        ]

    simulator = Simulator(reader)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench_side)
    simulator.run()
    return seen


def problems(seen: Play, atoms: Sequence[int]) -> list[str]:
    """Unlike every atom once, in order, in a burst of its own."""
    n_tags = 1 << SMALL.fetch.crossbar.tag_bits
    raw = MEMORY.reshape(-1, ATOM_BYTES)
    want = [(n % n_tags, int.from_bytes(raw[atom].tobytes(), "little")) for n, atom in enumerate(atoms)]
    wrong = list(seen.problems)
    if seen.answers != want:
        wrong.append("answers")
    if seen.bursts != [(atom * ATOM_BYTES, N_WORDS) for atom in atoms]:
        wrong.append("bursts")
    return wrong


def test_a_word_a_cycle():
    seen = play(MIXED)
    assert problems(seen, MIXED) == []
    assert seen.n_cycles == 1 + LATENCY_CYCLES + N_WORDS * len(MIXED)


@pytest.mark.parametrize("n_bursts", [1, 2, 256])
def test_order_under_stalls(n_bursts):
    assert problems(play(MIXED, n_bursts=n_bursts, p_stall=0.4), MIXED) == []


@pytest.mark.parametrize("stop_cycle", [1, 2, 3, 9, 30, 55])
def test_a_stop_breaks_nothing_off(stop_cycle):
    """What was taken is asked for, and not answered."""
    seen = play(MIXED, n_bursts=1, stop_cycle=stop_cycle)
    assert seen.problems == []
    assert len(seen.answers) <= len(seen.bursts) < len(MIXED)


MUTANTS = {
    "burst a word short": ("arlen.eq(n_words - 1)", "arlen.eq(n_words - 2)"),
    "across 4,096 bytes": ("self.base + i.payload", "self.base + 16 + i.payload"),
    "wrong address": ("i.payload.address * ATOM_BYTES", "i.payload.address * 16"),
    "ready stuck": ("(~axi.arvalid | axi.arready) & self.run", "self.run"),
    "more under way than tags": ("i.ready.eq(room & tags.i.ready)", "i.ready.eq(room)"),
    "atom over a word early": ("is_last.eq(word == n_words - 1)", "is_last.eq(word == n_words - 2)"),
    "tags taken twice": ("tags.o.ready.eq(taken & is_last)", "tags.o.ready.eq(taken)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    component = mutated("hw.system.reader", *MUTANTS[name]).DramReader
    ways = ({}, {"n_bursts": 2, "p_stall": 0.4})
    assert any(problems(play(MIXED, **way, component=component), MIXED) for way in ways)


TAKES = "with m.If(i.valid & i.ready):"
STOP_MUTANTS = {
    "request withdrawn": (
        TAKES,
        f"with m.If(~self.run):\n            m.d.sync += axi.arvalid.eq(0)\n        {TAKES}",
    ),
    "idle before the last answer": ("~axi.arvalid & ~tags.o.valid", "~axi.arvalid"),
}


@pytest.mark.parametrize("name", STOP_MUTANTS)
def test_stop_mutant_is_caught(name):
    component = mutated("hw.system.reader", *STOP_MUTANTS[name]).DramReader
    assert any(play(MIXED, n_bursts=1, stop_cycle=n, component=component).problems for n in (2, 3, 9))


@pytest.mark.parametrize("failed", ["taken & axi.rresp[1]", "0"])
def test_an_error_is_told(failed):
    """Of one word of an atom; or not, with the mutant."""
    component = mutated(
        "hw.system.reader", "self.failed.eq(taken & axi.rresp[1])", f"self.failed.eq({failed})"
    )
    seen = play(MIXED, faults=[BASE + 3 * ATOM_BYTES + 8], component=component.DramReader)
    assert seen.n_failed == (failed != "0")
