# SPDX-License-Identifier: MIT
"""What software does with a system and what came of it, in memory and in the files between processes.

Imports numpy only, as a simulator's process does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

Step = tuple[Any, ...]
"""("write", address, value), ("read", address), ("irq",): wait for it, ("wait", cycles), or
("until", address, mask, value): read again and again until (value read & mask) == value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What software does from hardware reset on, and the memory that it finds."""

    name: str
    steps: Sequence[Step]
    base: int
    """Byte address of the memory; everything outside answers DECERR, or SLVERR where cocotbext-axi plays."""
    memory: np.ndarray
    """uint8[n_bytes]"""
    faults: Sequence[int] = ()
    """Byte addresses; the word that holds one answers SLVERR, read or written."""
    latency_cycles: int = 10
    n_bursts: int = 256
    """Bursts of a read master that memory takes before it has answered the first of them; with 1 each
    burst waits for the latency of its own. cocotbext-axi takes two."""
    jitter_cycles: int = 0
    """Of an answer's latency, drawn anew each time; answers of one port stay in order."""
    p_stall: float = 0.0
    """Chance, per cycle and channel, that the bench is not ready or waits."""
    seed: int = 1
    max_cycles: int = 100_000


@dataclass(kw_only=True, eq=False)
class Log:
    """What one run showed."""

    memory: np.ndarray
    """uint8[n_bytes], afterwards."""
    reads: list[int] = field(default_factory=list)
    """Values of the "read" steps."""
    refused: list[int] = field(default_factory=list)
    """Register addresses that answered with an error."""
    problems: list[str] = field(default_factory=list)
    """Rules of AXI that the design broke; "timeout" where the steps did not come to their end."""
    n_cycles: int = 0
    bursts: list[tuple[str, int, int]] = field(default_factory=list)
    """Read bursts in the order in which they were taken: channel, address, words. Not with cocotbext-axi."""


def save(path: Path, items: Sequence[Run | Log]) -> None:
    """Runs or logs: for each its memory, and the rest as JSON."""
    arrays: dict[str, Any] = {}
    for i, item in enumerate(items):
        rest = {one.name: getattr(item, one.name) for one in fields(item) if one.name != "memory"}
        arrays |= {f"{i} memory": item.memory, f"{i} rest": json.dumps(rest)}
    np.savez(path, **arrays)


def load(path: Path) -> list[dict[str, Any]]:
    """What :func:`save` wrote: for each item its fields."""
    saved = np.load(path)
    count = len(saved.files) // 2
    return [{"memory": saved[f"{i} memory"], **json.loads(str(saved[f"{i} rest"]))} for i in range(count)]
