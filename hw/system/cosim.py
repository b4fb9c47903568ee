# SPDX-License-Identifier: MIT
"""Runs software against the system: in Amaranth's simulator, or with cocotb in Verilator on emitted Verilog.

The Verilog is run without its start values: an ASIC has none, so every register and memory begins with random
bits, drawn anew from ``state_seed``, and only ``rst`` may make the design right.
"""

import fcntl
import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol

from amaranth.sim import Simulator

from hw.harness.build import OPTIMISATION, cache_folder, cached, digest, emit
from hw.harness.cosim import _simulator_environment
from hw.registry import TOPS, Block

from .bench import Bench
from .runs import Log, Run, load, save


class Config(Protocol):
    """What the ways of running must know of a build."""

    @property
    def bus_bytes(self) -> int:
        """Of a word of the masters."""

    @property
    def read_masters(self) -> Sequence[str]:
        """Prefixes of their ports."""


SYSTEM = TOPS["system"]
Models = Literal["cycles", "cocotbext-axi"]
_MODULES: dict[Models, str] = {"cycles": "hw.system.cocotb_bench", "cocotbext-axi": "hw.system.cocotb_axi"}
_BUILD_ARGS = ["--no-public-flat-rw", "--public-depth", "1", "-Wno-fatal", "-j", "2", "--x-assign", "unique",
               "--x-initial", "unique"]  # fmt: skip


def without_start_values(verilog: str) -> str:
    """Verilog of :func:`hw.verilog.emit_verilog` whose registers and memories start unknown."""
    text = re.sub(r"^(  reg (?!at_start)[^=;]*?) = [^;]*;", r"\1;", verilog, flags=re.MULTILINE)
    text = re.sub(r"^  initial (?!at_start)[^;\n]*;\n", "", text, flags=re.MULTILINE)
    memory = r"^  initial begin\n(?:    [^\n]*\[[^\n]*\] = [^\n]*;\n)*  end\n"
    return re.sub(memory, "", text, flags=re.MULTILINE)


def run_in_amaranth(config: Config, runs: Sequence[Run], *, top: Block = SYSTEM) -> list[Log]:
    """Every run from hardware reset in Amaranth's own simulator: slow, but soon begun."""
    system = top.component(config)

    class Pins:
        def __init__(self, ctx) -> None:
            self.ctx = ctx

        def get(self, name: str) -> int:
            return self.ctx.get(getattr(system, name))

        def set(self, name: str, value: int) -> None:
            self.ctx.set(getattr(system, name), int(value))

    logs: list[Log] = []

    async def play(ctx) -> None:
        bench = Bench(Pins(ctx), runs[len(logs)], config.read_masters, config.bus_bytes)
        while not bench.over:
            bench.drive()
            bench.sample()
            await ctx.tick()
        logs.append(bench.log)

    simulator = Simulator(system)
    simulator.add_clock(1e-9)
    simulator.add_testbench(play)
    for number in range(len(runs)):
        if number:
            simulator.reset()
        simulator.run()
    return logs


def run_in_verilator(
    config: Config,
    runs: Sequence[Run],
    *,
    state_seed: int,
    models: Models = "cycles",
    top: Block = SYSTEM,
) -> list[Log]:
    """Every run from hardware reset in one process, whose state at its very beginning is random.

    Parameters
    ----------
    models : of memory and software: ``cycles`` is :mod:`hw.system.bench`, ``cocotbext-axi`` that package's
    """
    from cocotb_tools.runner import get_runner

    build_folder = _build(top, config)
    with tempfile.TemporaryDirectory() as name, _simulator_environment():
        folder = Path(name)
        save(folder / "runs.npz", runs)
        get_runner("verilator").test(
            hdl_toplevel=top.name,
            hdl_toplevel_lang="verilog",
            test_module=_MODULES[models],
            build_dir=build_folder,
            test_dir=folder,
            results_xml=str(folder / "results.xml"),
            plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{state_seed}"],
            extra_env={
                "QUARTET_RUNS": str(folder / "runs.npz"),
                "QUARTET_LOG": str(folder / "log.npz"),
                "QUARTET_READERS": ",".join(config.read_masters),
                "COCOTB_REWRITE_ASSERTION_FILES": "cocotb_*.py",
                "COCOTB_LOG_LEVEL": "WARNING",
            },
            log_file=folder / "simulator.log",
        )
        if not (folder / "log.npz").exists():
            raise RuntimeError(f"verilator stopped early:\n{(folder / 'simulator.log').read_text()[-3000:]}")
        return [Log(**saved) for saved in load(folder / "log.npz")]


def _build(top: Block, config: Config) -> Path:
    """The simulator; of processes that need it at the same time one builds, and the others wait."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{top.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build_alone(top, config)


def _build_alone(top: Block, config: Config) -> Path:
    from cocotb_tools.runner import get_runner

    text = without_start_values(emit(top, config).text)

    def make(folder: Path) -> None:
        (folder / "top.v").write_text(text)
        with _simulator_environment():
            get_runner("verilator").build(
                sources=[folder / "top.v"],
                hdl_toplevel=top.name,
                build_dir=folder,
                build_args=_BUILD_ARGS,
                timescale=("1ns", "1ps"),
                log_file=folder / "build.log",
            )

    key = digest(text, version("verilator"), version("cocotb"), *_BUILD_ARGS, OPTIMISATION)
    return cached("cocotb-verilator", f"{top.name}-{key}", make)
