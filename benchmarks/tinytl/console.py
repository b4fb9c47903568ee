# SPDX-License-Identifier: MIT
"""Tables of ``quartet memory`` and ``quartet run efficientnet-lite0`` on stdout."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.tinytl.memory import MeasuredStep, MemoryRow

if TYPE_CHECKING:  # needs torch
    from benchmarks.tinytl.classify import Classified

TABLE_WIDTH = 110


def print_memory(rows: Sequence[MemoryRow], measured: Sequence[MeasuredStep], *, as_json: bool) -> None:
    """The published numbers beside ours, then the measured steps."""
    if as_json:
        print(json.dumps({"counted": [asdict(r) for r in rows], "measured": [asdict(m) for m in measured]}))
        return
    console = _console()
    table = Table(title="Memory of a training step, MB (paper quoted, the rest estimated)", box=box.SIMPLE)
    for name in ("method", "px", "batch", "paper", "its basis", "with norm inputs", "full count"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        sizes = (row.paper_mb, row.published_basis_mb, row.with_norm_inputs_mb, row.full_count_mb)
        table.add_row(
            row.method, str(row.resolution), str(row.batch_size), *(f"{size:.1f}" for size in sizes)
        )
    console.print(table)
    if not measured:
        return
    table = Table(title="Real steps, measured (float32, this CPU)", box=box.SIMPLE)
    headings = ("method", "px", "batch", "mode", "live MB", "+ parameters MB", "seconds", "gradient error")
    for name in headings:
        table.add_column(name, justify="left" if name in ("method", "mode") else "right")
    for step in measured:
        table.add_row(
            step.method,
            str(step.resolution),
            str(step.batch_size),
            step.mode,
            f"{step.live_mb:.2f}",
            f"{step.with_parameters_mb:.2f}",
            f"{step.seconds:.2f}",
            f"{step.gradient_error:.1e}",
        )
    console.print(table)


def print_classified(found: "Classified", *, as_json: bool) -> None:
    """The classes, best first."""
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"{found.image}: EfficientNet-Lite0 in float, {found.n_macs / 1e6:.1f} million multiplications")
    table = Table(box=box.SIMPLE)
    table.add_column("class")
    table.add_column("index", justify="right")
    table.add_column("probability", justify="right")
    for name, index, probability in zip(found.classes, found.indices, found.probabilities, strict=True):
        table.add_row(name, str(index), f"{probability:.3f}")
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    return console
