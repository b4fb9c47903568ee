# SPDX-License-Identifier: MIT
"""Runs cases with cocotb on the emitted Verilog, in Verilator or Icarus."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hw.registry import Block

from .build import OPTIMISATION, cached, digest, emit, verilator_environment
from .job import QUIET_CYCLES, Case, Log, StreamPort
from .memory import image_number, images_of

SIMULATORS = ("verilator", "icarus")
_BUILD_ARGS = {
    # cocotb makes every signal public, which slows Verilator several times; only the ports are needed.
    "verilator": ["--no-public-flat-rw", "--public-depth", "1", "-Wno-fatal", "-j", "2"],
    "icarus": [],
}


def missing_simulator(simulator: str) -> str | None:
    """Why ``simulator`` cannot run here and what brings it, or None where it can."""
    if simulator == "icarus" and shutil.which("iverilog") is None:
        return "Icarus Verilog is not installed (Debian: apt-get install iverilog)"
    return None


def run_cases(
    block: Block,
    config: Any,
    cases: Sequence[Case],
    simulator: str = "verilator",
    waves: Path | None = None,
) -> list[Log]:
    """Every case from reset in one simulator process; with ``waves``, that file receives the waveforms."""
    if simulator not in SIMULATORS:
        raise ValueError(f"sim must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if reason := missing_simulator(simulator):
        raise FileNotFoundError(reason)
    from cocotb_tools.runner import get_runner

    ports = emit(block, config).ports
    build_folder = _build(block, config, simulator, waves is not None)
    with tempfile.TemporaryDirectory() as name, _simulator_environment():
        folder = Path(name)
        _save_jobs(folder / "jobs.npz", cases, ports)
        runner = get_runner(simulator)
        runner.test(
            hdl_toplevel=block.name,
            hdl_toplevel_lang="verilog",
            test_module="hw.harness.cocotb_streams",
            build_dir=build_folder,
            test_dir=folder,
            results_xml=str(folder / "results.xml"),
            waves=waves is not None,
            extra_env={
                "QUARTET_JOBS": str(folder / "jobs.npz"),
                "QUARTET_LOG": str(folder / "log.npz"),
                "COCOTB_REWRITE_ASSERTION_FILES": "cocotb_*.py",
                "COCOTB_LOG_LEVEL": "WARNING",
            },
            log_file=folder / "simulator.log",
        )
        if not (folder / "log.npz").exists():
            raise RuntimeError(
                f"{simulator} stopped early:\n{(folder / 'simulator.log').read_text()[-3000:]}"
            )
        if waves is not None:
            _keep_waves(folder, build_folder, waves)
        return _load_logs(folder / "log.npz", len(cases), ports)


def _build(block: Block, config: Any, simulator: str, waves: bool) -> Path:
    from cocotb_tools.runner import get_runner

    text = emit(block, config).text

    def make(folder: Path) -> None:
        (folder / "top.v").write_text(text)
        with _simulator_environment():
            get_runner(simulator).build(
                sources=[folder / "top.v"],
                hdl_toplevel=block.name,
                build_dir=folder,
                build_args=_BUILD_ARGS[simulator],
                timescale=("1ns", "1ps"),
                waves=waves,
                log_file=folder / "build.log",
            )

    key = digest(
        text, version("verilator"), version("cocotb"), *_BUILD_ARGS[simulator], OPTIMISATION, str(waves)
    )
    return cached(f"cocotb-{simulator}", f"{block.name}-{key}", make)


@contextmanager
def _simulator_environment() -> Iterator[None]:
    """cocotb's runner looks for simulators on this process's PATH."""
    saved = dict(os.environ)
    os.environ.update(verilator_environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _save_jobs(path: Path, cases: Sequence[Case], ports: Sequence[StreamPort]) -> None:
    arrays: dict[str, Any] = {
        "n_cases": len(cases),
        "ports": [port.name for port in ports],
        "ways": [port.is_input for port in ports],
    }
    for index, case in enumerate(cases):
        arrays[f"{index} numbers"] = [case.max_cycles, QUIET_CYCLES, case.seed]
        arrays[f"{index} p_stall"] = case.p_stall
        for port in ports:
            arrays[f"{index} {port.name}"] = (
                case.inputs.get(port.name, np.zeros((0, port.n_words), np.uint32))
                if port.is_input
                else len(case.expected.get(port.name, ()))
            )
        arrays[f"{index} memories"] = np.array(
            [(request, memory.response) for request, memory in case.memories.items()]
        ).reshape(-1, 2)
        images = images_of(case.memories)
        arrays[f"{index} n_images"] = len(images)
        arrays |= {f"{index} image {number}": words for number, words in enumerate(images)}
        for number, memory in enumerate(case.memories.values()):
            arrays[f"{index} memory {number} numbers"] = [image_number(memory, images), *memory.numbers]
    np.savez(path, **arrays)


def _load_logs(path: Path, n_cases: int, ports: Sequence[StreamPort]) -> list[Log]:
    saved = np.load(path)
    return [
        Log(
            beats={
                port.name: saved[f"{i} {port.name} beats"].reshape(-1, port.n_words)
                for port in ports
                if not port.is_input
            },
            cycles={port.name: saved[f"{i} {port.name} cycles"] for port in ports},
            n_cycles=int(saved[f"{i} n_cycles"]),
        )
        for i in range(n_cases)
    ]


def _keep_waves(folder: Path, build_folder: Path, target: Path) -> None:
    found = [
        path
        for place in (folder, build_folder)
        for path in place.glob("*")
        if path.suffix in (".fst", ".vcd")
    ]
    if not found:
        raise RuntimeError("the simulator left no waveform file")
    shutil.move(found[0], target)
