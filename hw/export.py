# SPDX-License-Identifier: MIT
"""Writes a block's Verilog for use elsewhere: the file, a manifest, and a FuseSoC core description."""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hw.config import ChipConfig
from hw.harness.build import ROOT, emit
from hw.registry import Block

_CORE = """CAPI=2:
name: quartet:{preset}:{name}:{version}
description: {summary}

filesets:
  rtl:
    files: [{name}.v]
    file_type: verilogSource

targets:
  default: &default
    filesets: [rtl]
    toplevel: {name}
  lint:
    <<: *default
    default_tool: verilator
    tools:
      verilator:
        mode: lint-only
"""


def write_rtl(blocks: Sequence[Block], chip: ChipConfig, out: Path) -> list[Path]:
    """Write ``out/<preset>/<block>.v`` and ``.core`` for each block, and one ``manifest.json``.

    A block with registers also has a C header, ``<block>.h``.

    Equal configurations, versions and commit give equal bytes: nothing carries a date. Files are replaced
    whole. A manifest that already describes other blocks of the same preset keeps their entries.

    Returns
    -------
    list of Path
        The Verilog files.
    """
    folder = out / chip.name
    folder.mkdir(parents=True, exist_ok=True)
    manifest_path = folder / "manifest.json"
    manifest = _read_manifest(manifest_path)
    written = []
    for block in blocks:
        config = block.config(chip)
        text = emit(block, config).text
        path = folder / f"{block.name}.v"
        write_atomically(path, text)
        core = _CORE.format(
            preset=chip.name, name=block.name, version=version("quartet"), summary=block.summary
        )
        write_atomically(folder / f"{block.name}.core", core)
        if (header := block.header(config)) is not None:
            write_atomically(folder / f"{block.name}.h", header)
        manifest["blocks"][block.name] = {
            "config": asdict(config),
            "config_type": type(config).__name__,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        written.append(path)
    manifest |= {
        "preset": chip.name,
        "commit": commit(),
        "versions": {name: version(name) for name in ("quartet", "amaranth", "pyosys")},
    }
    write_atomically(manifest_path, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return written


def _read_manifest(path: Path) -> dict:
    if not path.exists():
        return {"blocks": {}}
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest.get("blocks"), dict):
            raise ValueError("no blocks")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a manifest of this tool ({error}); remove it") from None
    return manifest


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step, so that a reader or a crash never meets half of it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)


def commit() -> str:
    """The checkout's commit, with ``+dirty`` where files differ from it; ``unknown`` outside git."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+dirty" if changed else head
