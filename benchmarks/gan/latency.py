# SPDX-License-Identifier: MIT
"""``quartet anycost --latency``: sub-generators of config-f 1024 on the convolution core, estimated."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from algo.anycost.architecture import GeneratorConfig, compute_macs, evolved, uniform_sub_generators
from benchmarks.output import write_files
from benchmarks.plots import BLUE, GREY, ORANGE, VERMILION, style
from sim.anycost import square_core, tasks
from sim.convolution import Estimate, energy_pj, estimate, total

SIZES = (16, 32, 64)
"""Rows and columns of the arrays."""
CLOCK_HZ = 1e9
COLOURS = dict(zip(SIZES, (BLUE, ORANGE, VERMILION), strict=True))
STATUS = "estimated: closed form over the blocks' exact cycle models"


def latency_rows() -> list[dict[str, Any]]:
    """The 16 uniform and 11 evolved sub-generators on each array, one image each."""
    shape = GeneratorConfig()
    subs = uniform_sub_generators() | evolved()
    rows = []
    for size in SIZES:
        core = square_core(size)
        for name, sub in subs.items():
            each = [estimate(task, core) for task in tasks(shape, sub)]
            whole, macs = total(each), compute_macs(shape, sub)
            rows.append(
                {
                    "array": size,
                    "name": name,
                    "resolution": sub.resolution,
                    "useful_macs": macs,
                    "cycles": round(whole.cycles),
                    "milliseconds": 1e3 * whole.cycles / CLOCK_HZ,
                    "useful_share": macs / (whole.cycles * size**2),
                    "memory_bytes": whole.memory_bytes,
                    "energy_mj": sum(energy_pj(whole, core).values()) / 1e9,
                    **_shares(each),
                }
            )
    return rows


def _shares(each: list[Estimate]) -> dict[str, float]:
    """Of the cycles, by what sets the pace: array, weights, the ports, memory, or the filter."""
    cycles = sum(e.cycles for e in each)
    limits = ("array", "weights", "input", "side", "output", "filter", "memory")
    return {f"paced_by_{name}": sum(e.cycles for e in each if e.limit == name) / cycles for name in limits}


def plot_latency(rows: list[dict[str, Any]], ax: Axes) -> Axes:
    """Milliseconds over useful products; a line where every multiplier has a useful product every cycle."""
    products = sorted(row["useful_macs"] / 1e9 for row in rows)
    for size in SIZES:
        of_size = [row for row in rows if row["array"] == size]
        for marker, among, kind in (("o", " x ", "uniform"), ("+", "G", "evolved")):
            chosen = [row for row in of_size if among in row["name"]]
            ax.scatter(
                [row["useful_macs"] / 1e9 for row in chosen], [row["milliseconds"] for row in chosen],
                marker=marker, s=26, color=COLOURS[size], label=f"{size} x {size}, {kind}",
            )  # fmt: skip
        ends = (products[0], products[-1])
        ax.plot(ends, [1e12 * g / size**2 / CLOCK_HZ for g in ends], color=GREY, linewidth=0.8, zorder=0)
    for scale, axis in ((ax.set_xscale, ax.xaxis), (ax.set_yscale, ax.yaxis)):
        scale("log", base=2)
        axis.set_major_formatter(lambda value, position: f"{value:g}")
    ax.set_xlabel("useful multiply-accumulates of an image, G")
    ax.set_ylabel("ms at 1 GHz (estimated)")
    ax.set_title("Sub-generators of config-f 1024")
    ax.legend(fontsize=8)
    return ax


def write_latency(rows: list[dict[str, Any]], out: Path) -> list[Path]:
    """``latency.json``, ``latency.csv`` and the plot as PNG and SVG; returns the paths."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    )
    files = {
        "latency.json": (json.dumps({"status": STATUS, "rows": rows}, indent=1) + "\n").encode(),
        "latency.csv": text.getvalue().encode(),
    }
    with style():
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        plot_latency(rows, figure.subplots())
        for kind in ("png", "svg"):
            data = io.BytesIO()
            figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else {})
            files[f"latency.{kind}"] = data.getvalue()
    return write_files(out, files)


def print_latency(rows: list[dict[str, Any]], written: list[Path], *, as_json: bool) -> None:
    """The table on stdout, then the files written."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(box=box.SIMPLE_HEAD, title=f"One image, {STATUS}", title_justify="left")
    table.add_column("sub-generator", no_wrap=True)
    table.add_column("GMACs", justify="right")
    for size in SIZES:
        for head in (f"{size}x{size}: ms", "busy", "mJ"):
            table.add_column(head, justify="right")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        label = name if "x" in name else f"evolved {name}, {mine[0]['resolution']} px"
        cells = (
            cell
            for row in mine
            for cell in (
                f"{row['milliseconds']:.2f}",
                f"{row['useful_share']:.2f}",
                f"{row['energy_mj']:.1f}",
            )
        )
        table.add_row(label, f"{mine[0]['useful_macs'] / 1e9:.2f}", *cells)
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    for path in written:
        console.print(str(path))
