# SPDX-License-Identifier: MIT
"""``quartet training``: estimated cycles, traffic and energy of TinyTL's steps on the convolution core."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from algo.tinytl.architecture import BACKBONES, METHODS, Backbone, method
from benchmarks.output import as_json_bytes, as_png, write_files
from benchmarks.plots import BLACK, BLUE, ORANGE, SKY, VERMILION, style
from benchmarks.quality.report import as_csv
from benchmarks.tinytl.methods_report import LABELS
from hw.depthwise.layer import DepthwiseLayer
from hw.systolic.descriptor import Layer as Convolution
from sim.convolution import Core, Scores, Task, estimate
from sim.training import busy, step, training_core, works

CLOCK_HZ = 1e9
N_CLASSES = 102
"""Of Oxford Flowers, as in the paper's table of memory."""
STATUS = (
    "estimated: closed form over the blocks' exact cycle models; 1 GHz; energy without clock tree and leakage"
)
SHADES = (SKY, BLUE, BLACK, ORANGE, VERMILION)
"""Of resolutions."""


def backbone_named(name: str) -> Backbone:
    """With lite modules and the classes of the paper's memory table; ValueError naming all of them."""
    if name not in BACKBONES:
        raise ValueError(f"--backbone must be one of {', '.join(BACKBONES)}, not {name!r}")
    return replace(BACKBONES[name], lite=True, n_classes=N_CLASSES)


def core_of_size(size: str) -> Core:
    """Of "16x32", rows by columns; ValueError for anything else."""
    rows, _, columns = size.partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise ValueError(f"--array must be rows x columns such as 16x32, not {size!r}")
    return training_core(int(rows), int(columns))


def step_rows(
    backbone: Backbone, methods: Sequence[str], resolutions: Sequence[int], batch_size: int, core: Core
) -> list[dict[str, Any]]:
    """A row for each method and resolution: one step."""
    array, unit = core.array.rows * core.array.columns, core.array.columns * core.depthwise_multipliers
    rows = []
    for resolution in resolutions:
        for name in methods:
            one = step(backbone, method(name), resolution, batch_size, core)
            rows.append(
                {
                    "method": name,
                    "resolution": resolution,
                    "batch_size": batch_size,
                    "cycles": round(one.cycles),
                    "milliseconds": 1e3 * one.cycles / CLOCK_HZ,
                    "memory_mb": one.memory_bytes / 1e6,
                    "energy_mj": one.energy_pj / 1e9,
                    "array_macs": one.array_macs,
                    "depthwise_macs": one.depthwise_macs,
                    "array_cycles": round(one.array_cycles),
                    "depthwise_cycles": round(one.depthwise_cycles),
                    "array_busy": one.array_macs / (one.array_cycles * array),
                    "all_busy": (one.array_macs + one.depthwise_macs) / (one.cycles * (array + unit)),
                }
            )
    return rows


def layer_rows(backbone: Backbone, name: str, resolution: int, core: Core) -> list[dict[str, Any]]:
    """Every operation of a step on one picture: what it takes, what sets its pace, its unit's busy share."""
    rows = []
    for work in works(backbone, method(name), resolution):
        for task in work.tasks:
            one = estimate(task, core)
            rows.append(
                {
                    "layer": work.of.layer.name,
                    "pass": work.of.kind,
                    "operation": task.name,
                    "unit": _unit(task),
                    "kernel": work.of.layer.kernel,
                    "stride": work.of.layer.stride,
                    "height": task.out_shape[0],
                    "width": task.out_shape[1],
                    "channels": task.out_shape[2],
                    "cycles": round(one.cycles),
                    "limit": one.limit,
                    "memory_bytes": one.memory_bytes,
                    "busy": busy(task, core),
                }
            )
    return rows


def _unit(task: Task) -> str:
    if isinstance(task.of, DepthwiseLayer):
        return "pass" if task.of.kernel == 1 else "depthwise"
    if isinstance(task.of, Scores):
        return "loss"
    return "array" if isinstance(task.of, Convolution) else "transpose"


def plot_bars(rows: Sequence[dict[str, Any]], key: str, label: str, ax: Axes) -> Axes:
    """``key`` by method, a bar for each resolution."""
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    resolutions = list(dict.fromkeys(row["resolution"] for row in rows))
    width = 0.8 / len(resolutions)
    for number, resolution in enumerate(resolutions):
        values = {row["method"]: row[key] for row in rows if row["resolution"] == resolution}
        left = (number - (len(resolutions) - 1) / 2) * width
        ax.bar(
            [i + left for i in range(len(methods))], [values[name] for name in methods], width,
            color=SHADES[number % len(SHADES)], label=f"{resolution} px",
        )  # fmt: skip
    ax.set_xticks(range(len(methods)), [LABELS[name] for name in methods], rotation=20, ha="right")
    ax.set_ylabel(label)
    ax.grid(axis="y")
    return ax


def write_steps(rows: list[dict[str, Any]], layers: list[dict[str, Any]], out: Path) -> list[Path]:
    """``steps.json``, ``steps.csv``, ``layers.csv`` and ``steps.png``; returns the paths."""
    with style():
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        plot_bars(rows, "milliseconds", "ms of a step at 1 GHz (estimated)", left).legend(frameon=False)
        plot_bars(rows, "energy_mj", "mJ of a step (estimated)", right)
        picture = as_png(figure)
    files = {
        "steps.json": as_json_bytes({"status": STATUS, "rows": rows}),
        "steps.csv": as_csv(rows).encode(),
        "layers.csv": as_csv(layers).encode(),
        "steps.png": picture,
    }
    return write_files(out, files)


def print_steps(
    rows: list[dict[str, Any]], layers: list[dict[str, Any]], written: list[Path], *, as_json: bool
) -> None:
    """The table on stdout, the least busy depthwise layers, then the files written."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"Training steps, {STATUS}", title_justify="left")
    for head in ("method", "px", "batch", "M cycles", "ms", "MB moved", "mJ", "array busy", "all busy"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"], str(row["resolution"]), str(row["batch_size"]), f"{row['cycles'] / 1e6:.1f}",
            f"{row['milliseconds']:.1f}", f"{row['memory_mb']:.0f}", f"{row['energy_mj']:.1f}",
            f"{row['array_busy']:.2f}", f"{row['all_busy']:.2f}",
        )  # fmt: skip
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    depthwise = [row for row in layers if row["unit"] == "depthwise" and row["layer"].endswith(".dw")]
    if depthwise:
        least = min(depthwise, key=lambda row: row["busy"])
        console.print(
            f"Depthwise layers, forward and backward, keep at least {least['busy']:.2f} of their unit busy "
            f"({least['layer']}, {least['pass']})."
        )
    for path in written:
        console.print(str(path))
