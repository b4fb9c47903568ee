# SPDX-License-Identifier: MIT
"""The convolution core behind AXI: operations through memory, every error, soft reset, registers, mutants."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import hw.system.convolution.rtl
from benchmarks.system_run import BASE, BUSY, DONE, ERROR, SOFT_RESET, START
from hw.config import PRESETS, preset
from hw.convolution.config import RECORD_BYTES, ConvolutionConfig
from hw.convolution.dispatch import KIND_BITS, Kind
from hw.convolution.golden import run as golden
from hw.convolution.program import Program, lowered
from hw.convolution.reader import TAG
from hw.convolution.rtl import READ_PORTS as core_ports
from hw.convolution.runs import Run as Todo
from hw.convolution.runs import block, runs
from hw.convolution.writer import PLACING
from hw.depthwise.config import DepthwiseConfig
from hw.epilogue.config import EpilogueConfig
from hw.export import write_rtl
from hw.fir.config import FirConfig
from hw.loss.config import LossConfig
from hw.registry import TOPS
from hw.registry import block as block_of
from hw.system.config import system_config
from hw.system.convolution.config import (
    READ_PORTS,
    ConvolutionSystemConfig,
    ErrorCode,
    convolution_system_config,
)
from hw.system.convolution.registers import addresses, c_header, markdown, registers
from hw.system.cosim import Models, run_in_amaranth, run_in_verilator
from hw.system.registers import c_header as attention_header
from hw.system.runs import Log, Run, Step
from hw.systolic.config import SystolicConfig
from sim.driver.convolution_system import register_writes
from tests.hw.mutants import mutated
from tests.hw.test_export import lint

ROOT = Path(__file__).resolve().parents[2]
TOP = TOPS["convolution_system"]
TINY = convolution_system_config(preset("tiny"))


def small(*, rows: int, columns: int, bus_bytes: int, **changes: int) -> ConvolutionSystemConfig:
    """A core that Amaranth's simulator runs in seconds."""
    array = SystolicConfig(
        rows=rows, columns=columns, n_words=64, n_accumulators=16, max_channels=16, max_size=32
    )
    return ConvolutionSystemConfig(
        core=ConvolutionConfig(
            array=array,
            fir=FirConfig(lanes=columns, row_beats=32, max_channels=columns, max_size=33),
            depthwise=DepthwiseConfig(lanes=columns, row_pixels=16, max_size=32),
            epilogue=EpilogueConfig(lanes=columns, max_tiles=4),
            loss=LossConfig(lanes=2, max_classes=16),
            bus_bytes=bus_bytes,
            **changes,
        )
    )


SMALL = small(rows=8, columns=4, bus_bytes=8, read_words=16)
WIDE = small(rows=16, columns=8, bus_bytes=32, read_words=4, max_writes=2)
ADDRESS = addresses(TINY)
QUICK = {"latency_cycles": 8, "jitter_cycles": 12, "p_stall": 0.2}
WORDS = {f"{port.upper()}_WORDS_LO": port for port in READ_PORTS}
RESULTS = ("STATUS", "ERROR", "ERROR_COMMAND", "IRQ_STATUS", "CYCLES_LO", *WORDS, "WRITTEN_WORDS_LO")
PAGE_BYTES = 4096
STALL_CYCLES = 500
MODELS = pytest.mark.parametrize("models", get_args(Models))


def write(**values: int) -> list[Step]:
    return [("write", ADDRESS[name], value) for name, value in values.items()]


def read(*names: str) -> list[Step]:
    return [("read", ADDRESS[name]) for name in names]


@dataclass(frozen=True, eq=False)
class Job:
    """Operations in memory at ``base``."""

    config: ConvolutionSystemConfig
    program: Program
    base: int
    expected: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def memory(self) -> np.ndarray:
        """Whole pages."""
        return np.pad(self.program.memory, (0, -len(self.program.memory) % PAGE_BYTES))

    def setup(self) -> list[Step]:
        """All registers but the last."""
        values = register_writes(self.program, ADDRESS, base=self.base)
        return [
            *(("write", address, value) for address, value in values),
            *write(STALL_CYCLES=STALL_CYCLES, IRQ_ENABLE=3),
        ]

    def steps(self, spoil: Sequence[Step] = ()) -> list[Step]:
        """Set up, run, wait for the interrupt, read what there is, clear the interrupt."""
        run = [*write(CONTROL=START), ("irq",), *read(*RESULTS), *write(IRQ_STATUS=3)]
        return [*self.setup(), *spoil, *run]

    def problems(self, log: Log) -> list[str]:
        """Of the last job of a run: status, counters, every map."""
        if log.problems:
            return log.problems
        got = dict(zip(RESULTS, log.reads[-len(RESULTS) :], strict=True))
        if (got["STATUS"], got["ERROR"], got["IRQ_STATUS"]) != (DONE, 0, 1):
            return [f"status {got}"]
        wrong = []
        n_bytes = got["COMMANDS_WORDS_LO"] * self.config.bus_bytes
        if got["ERROR_COMMAND"] or n_bytes != self.program.n_commands * RECORD_BYTES:
            wrong.append(f"commands {got}")
        if not all(got[name] for name in (*WORDS, "WRITTEN_WORDS_LO", "CYCLES_LO")):
            wrong.append(f"counters {got}")
        memory = log.memory[self.base - BASE :]
        for name, want in self.expected.items():
            if not np.array_equal(self.program.places[name].read(memory), want):
                wrong.append(f"map {name}")
        return wrong


def job_of(todo: Todo, config: ConvolutionSystemConfig, base: int = BASE) -> Job:
    maps = golden(todo.operations, {name: torch.from_numpy(values) for name, values in todo.maps.items()})
    expected = {name: values.numpy() for name, values in maps.items()}
    return Job(config, lowered(todo.operations, todo.maps, config.core), base, expected)


@cache
def jobs(config: ConvolutionSystemConfig) -> tuple[Job, Job]:
    """A level of the generator; behind it in memory single pixels, to see that all is well again."""
    columns = config.core.array.columns
    first = job_of(block(np.random.default_rng(1), n_in=columns, n_up=columns, n_out=3, size=2), config)
    little = runs(config.core, seed=2, n_random=0)[0]
    return first, job_of(little, config, BASE + len(first.memory))


def both(config: ConvolutionSystemConfig) -> np.ndarray:
    return np.concatenate([job.memory for job in jobs(config)])


@MODELS
def test_a_level_of_the_generator_in_verilator(models):
    """Random latency and back-pressure on every channel; any state before reset."""
    first, little = jobs(TINY)
    made = [
        Run(name="full rate", steps=first.steps(), base=BASE, memory=both(TINY), latency_cycles=1),
        Run(name="stalls", steps=first.steps(), base=BASE, memory=both(TINY), **QUICK),
        Run(name="again", steps=[*first.steps(), *little.steps()], base=BASE, memory=both(TINY), **QUICK),
    ]
    logs = run_in_verilator(TINY, made, state_seed=4, models=models, top=TOP)
    assert [first.problems(log) for log in logs[:2]] == [[], []]
    assert little.problems(logs[2]) == []


@pytest.mark.full
def test_what_memory_costs():
    """Cycles by the memory's latency and by how many bursts it takes ahead; with -s the table of the docs."""
    channels = {"n_in": 16, "n_up": 16, "n_out": 16}
    level = job_of(block(np.random.default_rng(1), **channels, size=8), TINY)
    memories = {
        "1 cycle": {"latency_cycles": 1},
        "20 cycles": {"latency_cycles": 20},
        "20 cycles, four bursts": {"latency_cycles": 20, "n_bursts": 4},
        "20 cycles, one burst": {"latency_cycles": 20, "n_bursts": 1},
        "stalls": QUICK,
    }
    steps = [*level.setup(), *write(STALL_CYCLES=0), *level.steps()[len(level.setup()) :]]
    made = [
        Run(name=name, steps=steps, base=BASE, memory=level.memory, **memory)
        for name, memory in memories.items()
    ]
    cycles = {}
    for run, log in zip(made, run_in_verilator(TINY, made, state_seed=1, top=TOP), strict=True):
        assert level.problems(log) == [], run.name
        cycles[run.name] = dict(zip(RESULTS, log.reads, strict=True))["CYCLES_LO"]
        if run.name == "20 cycles, four bursts":
            bursts = {
                name: [n for of, _, n in log.bursts if of == f"{name}_ar"] for name in TINY.read_masters
            }
    print(cycles, {name: (len(words), sum(words)) for name, words in bursts.items()})
    assert cycles["20 cycles, four bursts"] < 1.03 * cycles["1 cycle"]
    assert cycles["20 cycles, one burst"] < 1.5 * cycles["1 cycle"]
    assert np.mean(bursts["m_axi_input"]) > 7


# --- what goes wrong ------------------------------------------------------------------------------------


def place_of(job: Job, kind: Kind) -> int:
    """Byte of the memory at which the first command of a kind lies."""
    program = job.program
    kinds = program.memory[program.base :][: RECORD_BYTES * program.n_commands : RECORD_BYTES]
    return program.base + RECORD_BYTES * int(np.flatnonzero(kinds == kind)[0])


def walk_base(job: Job, kind: Kind) -> tuple[int, int]:
    """First bit of the base of the walk of the first command of a kind, from its byte on, and the base."""
    bit = KIND_BITS + (1 + PLACING.size if kind == Kind.OUTPUT else TAG.size)
    at = place_of(job, kind)
    number = int.from_bytes(job.program.memory[at : at + RECORD_BYTES].tobytes(), "little")
    return bit, number >> bit & 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One thing that is wrong with a job, and the error that tells."""

    code: ErrorCode
    detail: int = 0
    registers: tuple[tuple[str, int], ...] = ()
    """Set otherwise."""
    kind: tuple[Kind, int] | None = None
    """The first command of a kind becomes one of another."""
    base: Kind | None = None
    """The walk of the first command of this kind begins far away."""
    fault: Kind | None = None
    """The word at which that walk begins answers SLVERR."""

    def run(self, name: str, config: ConvolutionSystemConfig, seed: int, **options) -> Run:
        """This job, then the one that must not be any the worse for it."""
        bad, good = jobs(config)
        memory = both(config)
        if self.kind is not None:
            memory[place_of(bad, self.kind[0])] = self.kind[1]
        if self.base is not None:
            at, (bit, _) = place_of(bad, self.base), walk_base(bad, self.base)
            window = memory[at : at + RECORD_BYTES]
            number = int.from_bytes(window.tobytes(), "little") | 0x7000_0000 << bit
            window[:] = np.frombuffer(number.to_bytes(RECORD_BYTES, "little"), np.uint8)
        return Run(
            name=name,
            steps=[*bad.steps(write(**dict(self.registers))), *good.steps()],
            base=BASE,
            memory=memory,
            faults=[] if self.fault is None else [BASE + walk_base(bad, self.fault)[1]],
            seed=seed,
            **(QUICK | options),
        )

    def problems(self, log: Log, config: ConvolutionSystemConfig) -> list[str]:
        """Unlike this error and a good job after it."""
        if log.problems:
            return log.problems
        got = dict(zip(RESULTS, log.reads, strict=False))
        if (got["STATUS"], got["IRQ_STATUS"], got["ERROR"]) != (ERROR, 2, self.code | self.detail << 8):
            return [f"first job {got}"]
        return jobs(config)[1].problems(log)


READS = {Kind.WEIGHTS: 1, Kind.INPUT: 2, Kind.SIDE: 3}
"""Commands that walk, and the read port."""
LOW = BASE & 0xFFFF_FFFF
WRONG = {
    "no commands": Wrong(code=ErrorCode.NO_COMMANDS, registers=(("N_COMMANDS", 0),)),
    "memory unaligned": Wrong(code=ErrorCode.UNALIGNED, registers=(("MEMORY_BASE_LO", LOW + 2048),)),
    "commands unaligned": Wrong(code=ErrorCode.UNALIGNED, detail=1, registers=(("COMMANDS", 32),)),
    "memory elsewhere": Wrong(code=ErrorCode.READ, registers=(("MEMORY_BASE_HI", 9),)),
    "memory too small": Wrong(code=ErrorCode.READ_RANGE, registers=(("MEMORY_BYTES", 64),)),
    "unknown kind": Wrong(code=ErrorCode.COMMAND, kind=(Kind.FENCE, 0x77)),
    "no weights": Wrong(code=ErrorCode.STALLED, kind=(Kind.WEIGHTS, Kind.FENCE)),
    **{
        f"{kind.name} far away": Wrong(code=ErrorCode.READ_RANGE, detail=n, base=kind)
        for kind, n in READS.items()
    },
    **{
        f"fault of {kind.name}": Wrong(code=ErrorCode.READ, detail=n, fault=kind) for kind, n in READS.items()
    },
    "OUTPUT far away": Wrong(code=ErrorCode.WRITE_RANGE, base=Kind.OUTPUT),
    "fault of OUTPUT": Wrong(code=ErrorCode.WRITE, fault=Kind.OUTPUT),
}


@MODELS
def test_errors_end_the_run_and_the_next_job_is_right(models):
    """Error code and detail, an interrupt, no transfer broken off; then a job as if from reset."""
    made = [wrong.run(name, TINY, seed) for seed, (name, wrong) in enumerate(WRONG.items())]
    logs = run_in_verilator(TINY, made, state_seed=5, models=models, top=TOP)
    found = {name: wrong.problems(log, TINY) for (name, wrong), log in zip(WRONG.items(), logs, strict=True)}
    assert found == {name: [] for name in WRONG}


@MODELS
def test_soft_reset_at_any_time(models):
    """No interrupt, no error, no transfer broken off; the next job is right. Also twice in a row."""
    first, good = jobs(TINY)
    made = []
    for seed, cycles in enumerate((1, 7, 40, 120, 250, 400, 600)):
        stop = write(CONTROL=SOFT_RESET) * (1 + seed % 2)
        steps = [
            *first.setup(), *write(CONTROL=START), ("wait", cycles), *read("STATUS"), *stop,
            ("until", ADDRESS["STATUS"], BUSY, 0), *read("STATUS", "ERROR", "IRQ_STATUS"), *good.steps(),
        ]  # fmt: skip
        made.append(Run(name=str(cycles), steps=steps, base=BASE, memory=both(TINY), seed=seed, **QUICK))
    for run, log in zip(
        made, run_in_verilator(TINY, made, state_seed=6, models=models, top=TOP), strict=True
    ):
        assert log.reads[:4] == [BUSY, 0, 0, 0], run.name
        assert good.problems(log) == [], run.name


def test_registers_hold_what_the_table_says():
    """Reset values, what can be written, what answers SLVERR, and that nothing can be changed while busy."""
    table = registers(TINY)
    names = [register.name for register in table]
    writable = [register for register in table if register.access == "rw"]
    first, _ = jobs(TINY)
    steps = [
        *read(*names),
        *write(**{register.name: 0xA5A5_5A5B for register in writable}),
        *read(*(register.name for register in writable)),
        *write(STATUS=1),
        ("write", 0xFFC, 1),
        ("read", 0xFF8),
        *first.setup(),
        *write(CONTROL=START, N_COMMANDS=7),
        *read("N_COMMANDS"),
        ("until", ADDRESS["STATUS"], DONE, DONE),
    ]
    run = Run(name="registers", steps=steps, base=BASE, memory=both(TINY), **QUICK)
    (log,) = run_in_verilator(TINY, [run], state_seed=7, top=TOP)
    assert log.problems == []
    n = len(names)
    assert dict(zip(names, log.reads[:n], strict=True)) == {one.name: one.reset for one in table}
    held = log.reads[n : n + len(writable)]
    assert held == [0xA5A5_5A5B & register.mask for register in writable]
    assert log.reads[n + len(writable) :] == [0, first.program.n_commands]
    assert log.refused == [ADDRESS["STATUS"], 0xFFC, 0xFF8, ADDRESS["N_COMMANDS"]]


# --- broken on purpose ----------------------------------------------------------------------------------

SCENARIOS = ("two jobs", "no commands", "memory unaligned", "unknown kind", "no weights", "WEIGHTS far away")
"""In Amaranth's simulator: a job with nothing wrong in it, or something; then the little job."""
MUTANTS = {
    "counters go on into the next run": (
        "with m.If(self.course.begins):\n                m.d", "with m.If(0):\n                m.d",
        "two jobs",
    ),
    "core not reset by an error": (
        "ResetInserter(~course.running)(core)", "ResetInserter(Signal())(core)", "WEIGHTS far away",
    ),
    "no stall is told": ("(file.stall_cycles != 0) &", "(file.stall_cycles == 0) &", "no weights"),
}  # fmt: skip
"""Text, what it becomes, and the scenario that notices."""
MORE_MUTANTS = {
    "list given again": ("with m.If(core.i_start.ready):", "with m.If(0):", "two jobs"),
    "stalls while words move": (
        "with m.If(moved | ~self.course.running):", "with m.If(~self.course.running):", "two jobs",
    ),
    "half of the alignment": ("% ALIGNMENT_BYTES", "% (ALIGNMENT_BYTES // 2)", "memory unaligned"),
    "wrong port": (
        "(reader.beyond, ErrorCode.READ_RANGE, number)", "(reader.beyond, ErrorCode.READ_RANGE, 0)",
        "WEIGHTS far away",
    ),
    "unknown kinds not told": ("core.o_done.valid & core.o_done.payload,", "0,", "unknown kind"),
    "no commands are a run": ("(file.n_commands == 0, ", "(0, ", "no commands"),
}  # fmt: skip


def scenario_run(name: str) -> Run:
    wrong = WRONG.get(name)
    options = {**QUICK, "max_cycles": 6000}
    if wrong is not None:
        return wrong.run(name, SMALL, 1, **options)
    steps = [step for job in jobs(SMALL) for step in job.steps()]
    return Run(name=name, steps=steps, base=BASE, memory=both(SMALL), **options)


def scenario_problems(name: str, log: Log) -> list[str]:
    wrong = WRONG.get(name)
    return jobs(SMALL)[1].problems(log) if wrong is None else wrong.problems(log, SMALL)


def test_the_small_system_survives():
    logs = run_in_amaranth(SMALL, [scenario_run(name) for name in SCENARIOS], top=TOP)
    outcomes = {name: scenario_problems(name, log) for name, log in zip(SCENARIOS, logs, strict=True)}
    assert outcomes == {name: [] for name in SCENARIOS}


def test_a_wide_bus_in_amaranth():
    """Elements smaller than a word, few words under way."""
    steps = [step for job in jobs(WIDE) for step in job.steps()]
    run = Run(name="wide", steps=steps, base=BASE, memory=both(WIDE), **QUICK)
    (log,) = run_in_amaranth(WIDE, [run], top=TOP)
    assert jobs(WIDE)[1].problems(log) == []


@pytest.mark.parametrize(
    "name", [*MUTANTS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_MUTANTS)]
)
def test_mutant_is_caught(name, monkeypatch):
    old, new, scenario = (MUTANTS | MORE_MUTANTS)[name]
    broken = mutated("hw.system.convolution.rtl", old, new)
    monkeypatch.setattr(hw.system.convolution.rtl, "ConvolutionSystem", broken.ConvolutionSystem)
    (log,) = run_in_amaranth(SMALL, [scenario_run(scenario)], top=TOP)
    assert scenario_problems(scenario, log) != []


def test_a_writer_that_acknowledges_too_early_is_caught(monkeypatch):
    """A fence then opens before the next operation's maps are in memory; its commands are there already."""
    ahead = small(rows=8, columns=4, bus_bytes=8, read_words=64)
    first, _ = jobs(ahead)
    slow = QUICK | {"latency_cycles": 120, "max_cycles": 20_000}
    run = Run(name="slow", steps=first.steps(), base=BASE, memory=both(ahead), **slow)
    (log,) = run_in_amaranth(ahead, [run], top=TOP)
    assert first.problems(log) == []
    broken = mutated(
        "hw.system.convolution.writer",
        "self.o.valid.eq(axi.bvalid & self.run)",
        "self.o.valid.eq(axi.wvalid & axi.wready & self.run)",
    )
    monkeypatch.setattr(hw.system.convolution.rtl, "WordWriter", broken.WordWriter)
    (log,) = run_in_amaranth(ahead, [run], top=TOP)
    assert first.problems(log) != []


# --- the table ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_registers_lie_side_by_side(name):
    table = registers(convolution_system_config(preset(name)))
    assert all(a.offset < b.offset for a, b in pairwise(table))
    assert all(register.offset % 4 == 0 and register.offset < 1 << 12 for register in table)
    assert len({register.name for register in table}) == len(table)
    assert all(register.reset & ~register.mask == 0 for register in table)


def test_page_is_that_of_the_table():
    """After a change: python -m hw.system.convolution.registers."""
    page = (ROOT / "docs" / "convolution_registers.md").read_text()
    assert page == markdown(convolution_system_config(preset("paper")))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_headers_of_both_systems_compile_together(tmp_path):
    lines = [
        f'_Static_assert(QUARTET_CONVOLUTION_{name} == {at}, "");' for name, at in addresses(TINY).items()
    ]
    (tmp_path / "convolution_system.h").write_text(c_header(TINY))
    (tmp_path / "system.h").write_text(attention_header(system_config(preset("tiny"))))
    includes = ['#include "system.h"', '#include "convolution_system.h"']
    (tmp_path / "check.c").write_text("\n".join([*includes, *lines, ""]))
    command = ["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", "check.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_tiny_system_lints(tmp_path):
    check_export("tiny", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"tiny"}))
def test_every_system_lints(name, tmp_path):
    check_export(name, tmp_path)


def check_export(name, folder):
    """``quartet rtl convolution_system``: Verilog that is clean under lint, with its header beside it."""
    lint(write_rtl([block_of("convolution_system", tops=True)], preset(name), folder))
    header = c_header(convolution_system_config(preset(name)))
    assert (folder / name / "convolution_system.h").read_text() == header


def test_ports_are_those_of_the_core():
    assert core_ports == READ_PORTS


def test_base_must_be_aligned():
    with pytest.raises(ValueError, match="base must be a multiple of 4096, not 0x40"):
        register_writes(jobs(SMALL)[0].program, ADDRESS, base=0x40)
