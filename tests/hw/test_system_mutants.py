# SPDX-License-Identifier: MIT
"""The system broken on purpose: a small one in Amaranth's simulator, a job and then another one.

The masters of DRAM channels have a test of their own, ``test_system_reader.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest

import hw.system.cosim
import hw.system.rtl
from benchmarks.system_run import BASE, BUSY, DONE, ERROR, SOFT_RESET, START, Software
from hw.attention.layers import GivenTokens
from hw.attention.shapes import head_layout, layer_layout
from hw.attention.vectors import Options, Sentence, Shape, case, one_token, sentence
from hw.system.config import DescriptorError, ErrorCode, SystemConfig
from hw.system.cosim import run_in_amaranth
from hw.system.registers import system_format
from hw.system.runs import Log, Run, Step
from sim.driver.system import Image, image_of
from tests.hw.mutants import mutated
from tests.hw.test_attention import SMALL
from tests.hw.test_system import field as bits_of
from tests.hw.test_system import poked

SYSTEM = SystemConfig(core=SMALL, bus_bits=64, n_outstanding=4)
SOFTWARE = Software(system_format(SYSTEM))
ADDRESS, STRIDES = SOFTWARE.layout.addresses, SOFTWARE.layout.strides_bytes
N_RESULTS = len(SOFTWARE.results)
MAX_CYCLES = 3200
"""Little more than the longest scenario needs."""


@cache
def passes_of(name: str) -> tuple[Sentence, ...]:
    """``pruned``: tokens, heads and values go, rows are computed again; then a new token of given lists.

    ``little``: one layer. ``long``: more descriptors than are fetched ahead.
    """
    rng = np.random.default_rng(3)
    options = Options(k_bits=4, token_keep=0.6, head_keep=0.7, value_keep=0.5, threshold=2600)
    if name == "little":
        return (sentence(Shape(3, 2, 32, 1), options, SMALL, rng),)
    if name == "long":
        return (sentence(Shape(1, 8, 32, 4), Options(progressive=False), SMALL, rng),)
    given = GivenTokens(tokens=np.array([0, 1, 3, 4]), importance=rng.integers(0, 99, 4), n_keep=3)
    new = replace(options, rows="one", protect_last=True)
    return (
        sentence(Shape(3, 2, 32, 1), options, SMALL, rng),
        one_token(Shape(5, 2, 32, 1), new, given, SMALL, rng, {0: [1]}),
    )


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    return case(name, passes_of(name), SMALL).expected


@cache
def images(first: str) -> tuple[Image, Image]:
    """A job, and the little one behind it in memory."""
    one = image_of(passes_of(first), SMALL, SOFTWARE.layout, base=BASE)
    return one, image_of(passes_of("little"), SMALL, SOFTWARE.layout, base=BASE + len(one.memory))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A job with something wrong in it, or nothing; then the little job, which must come out right."""

    first: str = "pruned"
    writes: Mapping[str, int] = field(default_factory=dict)
    """Registers set otherwise for the first job."""
    poke: tuple[int, tuple[int, int], int] | None = None
    """Byte of its descriptors, bits from there (first, number), and what they are made to hold."""
    fault: tuple[str, int] | None = None
    """Region and byte that answer SLVERR."""
    status: int = DONE
    error: int = 0
    """Code and detail that the first job ends with."""
    reset_after_cycles: int | None = None
    """The first job is ended by a soft reset, and started again as soon as the system is idle."""
    seed: int = 1
    """Of the stalls."""

    def run(self) -> Run:
        image, good = images(self.first)
        bad = image if self.poke is None else poked(image, *self.poke)
        return Run(
            name="scenario",
            steps=[*self._first_job(image), *SOFTWARE.job(good), ("wait", 9), *RESULTS],
            base=BASE,
            memory=np.concatenate([bad.memory, good.memory]),
            faults=[] if self.fault is None else [image.regions[self.fault[0]].address + self.fault[1]],
            latency_cycles=3,
            jitter_cycles=9,
            p_stall=0.3,
            seed=self.seed,
            max_cycles=MAX_CYCLES,
        )

    def _first_job(self, image: Image) -> list[Step]:
        steps = SOFTWARE.job(image)
        start = steps.index(("irq",))
        steps[start - 2 : start - 2] = SOFTWARE.write(**self.writes)
        if self.reset_after_cycles is not None:
            ended = ("until", ADDRESS["STATUS"], BUSY, 0)
            stop = SOFTWARE.write(N_LAYERS=7, CONTROL=SOFT_RESET)
            again = SOFTWARE.write(CONTROL=START)
            start = steps.index(("irq",))
            steps[start:start] = [("wait", self.reset_after_cycles), *stop, ended, *again]
        return steps

    def problems(self, log: Log) -> list[str]:
        """Unlike what must come of it."""
        if log.problems:
            return log.problems
        image, good = images(self.first)
        firsts, seconds, held = (log.reads[i * N_RESULTS : (i + 1) * N_RESULTS] for i in range(3))
        first = dict(zip(SOFTWARE.results, firsts, strict=True))
        irq = {DONE: 1, ERROR: 2}[self.status]
        wrong = []
        if (first["STATUS"], first["IRQ_STATUS"], first["ERROR"]) != (self.status, irq, self.error):
            wrong.append(f"first {first}")
        elif self.status == DONE:
            wrong += SOFTWARE.mismatches(image, replace(log, reads=firsts), golden(self.first))
        wrong += SOFTWARE.mismatches(good, replace(log, reads=seconds), golden("little"))
        events = SOFTWARE.results.index("IRQ_STATUS")
        if held != [*seconds[:events], 0, *seconds[events + 1 :]]:
            wrong.append(f"afterwards {held}")
        if log.refused != [ADDRESS["N_LAYERS"]] * (self.reset_after_cycles is not None):
            wrong.append(f"refused {log.refused}")
        return wrong


def error(code: ErrorCode, detail: int = 0) -> dict[str, int]:
    return {"status": ERROR, "error": code | detail << 8}


RESULTS = SOFTWARE.read(*SOFTWARE.results)
LAYER_AT = SOFTWARE.layout.header_bytes
HEAD_AT = LAYER_AT + SOFTWARE.layout.padded_bytes(-(-layer_layout(SMALL).size // 8))
N_BYTES = images("pruned")[0].regions["descriptors"].n_bytes
SCENARIOS = {
    "two jobs": Scenario(),
    "an address waits": Scenario(seed=3),
    "many descriptors": Scenario(first="long"),
    "planes fail": Scenario(fault=("dram0", 72), **error(ErrorCode.DRAM_READ)),
    "last answer fails": Scenario(fault=("o_summary", STRIDES["o_summary"]), **error(ErrorCode.WRITE)),
    "no room for a row": Scenario(
        writes={"OUT_ROW_BYTES": len(golden("pruned")["o"]) * STRIDES["o"] - 1},
        **error(ErrorCode.OUTPUT_FULL, 0),
    ),
    "base not aligned": Scenario(
        writes={"DRAM0_BASE_LO": (BASE & 0xFFFF_FFFF) + 2048}, **error(ErrorCode.UNALIGNED, 1)
    ),
    "a word too many": Scenario(
        writes={"DESCRIPTOR_BYTES": N_BYTES + 8}, **error(ErrorCode.DESCRIPTOR_LENGTH, 1)
    ),
    "a key too many": Scenario(
        poke=(LAYER_AT, bits_of(layer_layout(SMALL), "n_tokens"), 9),
        **error(ErrorCode.DESCRIPTOR, DescriptorError.KEYS),
    ),
    "place beyond the record": Scenario(
        poke=(HEAD_AT, bits_of(head_layout(SMALL), "k", "head"), 2),
        **error(ErrorCode.DESCRIPTOR, DescriptorError.PLANE),
    ),
    "soft reset": Scenario(first="little", reset_after_cycles=90),
}

MUTANTS = {
    "burst of descriptors a word long": ("reader", "arlen.eq(burst - 1)", "arlen.eq(burst)", "two jobs"),
    "last word early": ("writer", "wlast.eq(n_left == 1)", "wlast.eq(n_left == 2)", "two jobs"),
    "wrong stride": ("writer", "offset.eq(beats * stride)", "offset.eq(beats * 2 * stride)", "two jobs"),
    "beyond the region": ("writer", "offset + stride <=", "offset <", "no room for a row"),
    "idle before the last answer": (
        "writer", "(n_left == 0) & (pending == 0)", "(n_left == 0)", "last answer fails",
    ),
    "interrupt not cleared": ("lite", "(value & ~data) | getattr", "value | getattr", "two jobs"),
    "a key too many allowed": ("jobs", "n_tokens > fitting", "n_tokens > fitting + 1", "a key too many"),
    "counters go on into the next run": (
        "rtl", "with m.If(self.begins):\n            m.d.", "with m.If(0):\n            m.d.", "two jobs",
    ),
    "counters not held": ("rtl", '["cycles"] + self.running', '["cycles"] + 1', "two jobs"),
    "core not reset by an error": (
        "rtl", "ResetInserter(~self.running)(core)", "ResetInserter(Signal())(core)", "planes fail",
    ),
}  # fmt: skip
"""Module, text, what it becomes, and the scenario that notices."""
MORE_MUTANTS = {
    "next burst of descriptors a word too far": (
        "reader", "address + BURST_WORDS * self", "address + (BURST_WORDS + 1) * self", "two jobs",
    ),
    "descriptors without room": (
        "reader", "held <= DESCRIPTOR_WORDS - BURST_WORDS", "held <= DESCRIPTOR_WORDS", "many descriptors",
    ),
    "next address over one that waits": (
        "writer", "self.run & ~axi.awvalid & (", "self.run & (", "an address waits",
    ),
    "beats counted on": (
        "writer", "Mux(self.start, 0, beats + source.ready)", "beats + source.ready", "two jobs",
    ),
    "parameters change while busy": ("lite", "free = ~self.busy if", "free = 1 if", "soft reset"),
    "place may equal the record": (
        "jobs", "head >= plane.record_heads", "head > plane.record_heads", "place beyond the record",
    ),
    "words too many not told": ("jobs", "too_long.eq(~self.exhausted)", "too_long.eq(0)", "a word too many"),
    "half of the alignment": (
        "rtl", "low = ALIGNMENT_BYTES - 1", "low = ALIGNMENT_BYTES // 2 - 1", "base not aligned",
    ),
    "done before the outputs are written": (
        "rtl", "descriptors.exhausted & idle, idle", "descriptors.exhausted, idle", "last answer fails",
    ),
    "high half of an address lost": ("lite", '_hi") << 32', '_hi") << 0', "two jobs"),
}  # fmt: skip
COMPONENTS = {
    "reader": ("DescriptorReader",),
    "writer": ("OutputWriter",),
    "lite": ("RegisterFile",),
    "jobs": ("JobReader",),
}


def test_the_small_system_survives():
    """Every scenario, on the system as it is."""
    logs = run_in_amaranth(SYSTEM, [scenario.run() for scenario in SCENARIOS.values()])
    outcomes = {name: SCENARIOS[name].problems(log) for name, log in zip(SCENARIOS, logs, strict=True)}
    assert outcomes == {name: [] for name in SCENARIOS}


@pytest.mark.parametrize(
    "name", [*MUTANTS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_MUTANTS)]
)
def test_mutant_is_caught(name, monkeypatch):
    module, old, new, scenario = (MUTANTS | MORE_MUTANTS)[name]
    broken = mutated(f"hw.system.{module}", old, new)
    for component in COMPONENTS.get(module, ()):
        monkeypatch.setattr(hw.system.rtl, component, getattr(broken, component))
    if module == "rtl":
        monkeypatch.setattr(hw.system.rtl, "System", broken.System)
    (log,) = run_in_amaranth(SYSTEM, [SCENARIOS[scenario].run()])
    assert SCENARIOS[scenario].problems(log) != []
