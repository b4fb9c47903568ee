# SPDX-License-Identifier: MIT
"""``quartet anycost``: what the sub-generators of config-f 1024 cost, and how long they take on this CPU.

Random weights serve: time does not depend on them. Each sub-generator is measured as a generator of its own
(:meth:`~algo.anycost.generator.Generator.standalone`), mapping network included, one image at a time.
"""

import csv
import io
import json
import os
import platform
import statistics
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from algo.anycost.architecture import (
    GeneratorConfig,
    SubGenerator,
    compute_macs,
    evolved,
    n_parameters,
    published_macs,
    uniform_sub_generators,
)
from benchmarks.output import write_files
from benchmarks.plots import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, style
from benchmarks.quality.progress import Progress
from benchmarks.quality.store import cached
from benchmarks.runner import collect_provenance

CONFIG_F = GeneratorConfig()
N_ROUNDS = 3
PAPER_SPEED_UP = (6, 12)
"""Of the cheapest generators over the full one, on CPUs (Anycost GAN, abstract; quoted)."""
COLOURS = {1024: BLUE, 512: GREEN, 256: ORANGE, 128: VERMILION}


def cost_rows() -> list[dict[str, Any]]:
    """The 16 uniform and 11 evolved sub-generators on both counting bases."""
    shape = GeneratorConfig()
    full = compute_macs(shape, shape.full)
    return [
        {
            "name": name,
            "resolution": sub.resolution,
            "useful_macs": compute_macs(shape, sub),
            "published_basis_macs": published_macs(shape, sub),
            "n_parameters": n_parameters(shape, sub),
            "macs_saved_x": full / compute_macs(shape, sub),
        }
        for name, sub in (uniform_sub_generators() | evolved()).items()
    ]


def measure(folder: Path, n_threads: int, progress: Progress, shape: GeneratorConfig = CONFIG_F) -> None:
    """Time every uniform sub-generator in :data:`N_ROUNDS` rounds, one file each; finished ones are kept.

    A round visits all sub-generators, so that a change of the machine's load falls on all of them.
    """
    subs = uniform_sub_generators(shape)
    machine = _machine(n_threads)
    done = 0
    for number in range(1, N_ROUNDS + 1):
        for name, sub in subs.items():
            progress(f"round {number}: {name}", done, N_ROUNDS * len(subs))
            inputs = {"generator": asdict(shape), "sub": asdict(sub), "round": number, **machine}
            file = f"{name.replace(' ', '')}-round{number}"
            cached(folder, file, inputs, partial(_time, shape, sub, n_threads))
            done += 1


def _machine(n_threads: int) -> dict[str, Any]:
    from torch import __version__

    model = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "n_cores": os.cpu_count(), "n_threads": n_threads, "torch": str(__version__)}


def _time(shape: GeneratorConfig, sub: SubGenerator, n_threads: int) -> dict[str, Any]:
    """One image after one to warm up."""
    import torch

    from algo.anycost.generator import Generator

    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        generator = Generator(shape).standalone(sub)
        z = torch.randn(1, shape.style_size)
        generator(generator.styles(z))
        wall, cpu = time.perf_counter(), time.process_time()
        generator(generator.styles(z))
        return {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "load_average": os.getloadavg()[0],
        }


def summarise(folder: Path) -> dict[str, Any]:
    """Medians over the rounds; FileNotFoundError where nothing was measured, ValueError if damaged."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-round*.json")):
        try:
            saved = json.loads(path.read_text())
            sub = saved["inputs"]["sub"]
            key = json.dumps(sub)
            rounds.setdefault(key, []).append(saved["inputs"] | saved["result"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a result file: remove it to recompute") from None
    if not rounds:
        raise FileNotFoundError(f"{folder} holds no times: run quartet anycost --measure first")
    rows = []
    for key, runs in rounds.items():
        shape = GeneratorConfig(**runs[0]["generator"])
        sub = SubGenerator(json.loads(key)["resolution"], tuple(json.loads(key)["widths"]))
        rows.append(
            {
                "resolution": sub.resolution,
                "ratio": _ratio(shape, sub),
                "useful_macs": compute_macs(shape, sub),
                "n_rounds": len(runs),
                "wall_s": statistics.median(run["wall_s"] for run in runs),
                "wall_spread_s": max(run["wall_s"] for run in runs) - min(run["wall_s"] for run in runs),
                "cpu_s": statistics.median(run["cpu_s"] for run in runs),
            }
        )
    rows.sort(key=lambda row: (-row["resolution"], -row["ratio"]))
    full = rows[0]
    for row in rows:
        row["wall_speed_up_x"] = full["wall_s"] / row["wall_s"]
        row["cpu_speed_up_x"] = full["cpu_s"] / row["cpu_s"]
        row["macs_saved_x"] = full["useful_macs"] / row["useful_macs"]
        row["cpu_ns_per_mac"] = 1e9 * row["cpu_s"] / row["useful_macs"]
        row["ns_per_mac_over_full_x"] = row["macs_saved_x"] / row["cpu_speed_up_x"]
    everything = [run for runs in rounds.values() for run in runs]
    return {
        "status": "measured: PyTorch on this CPU, float32, batch 1, random weights",
        "machine": {key: everything[0][key] for key in ("cpu", "n_cores", "n_threads", "torch")},
        "load_average": sorted({round(run["load_average"], 1) for run in everything}),
        "paper_speed_up_x": PAPER_SPEED_UP,
        "provenance": asdict(collect_provenance("quartet anycost --measure")),
        "rows": rows,
    }


def _ratio(shape: GeneratorConfig, sub: SubGenerator) -> float:
    return sub.widths[-1] / shape.full.widths[-1]


# ---- what is shown -----------------------------------------------------------------------------------------


def plot_speed(summary: dict[str, Any], ax: Axes) -> Axes:
    """Speed-up in CPU time against multiply-accumulates saved; both logarithmic."""
    rows = summary["rows"]
    most = 1.25 * max(max(row["macs_saved_x"], row["cpu_speed_up_x"]) for row in rows)
    low, high = summary["paper_speed_up_x"]
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:g}x")
    ax.set_xlim(0.93, most)
    ax.set_ylim(0.93, most)
    ax.axhspan(low, high, color="#E8EDF2", zorder=0)
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": "#57606A"}
    claim = f"paper: {low}-{high}x on CPUs\n(quoted)"
    ax.annotate(claim, (most, high), (-6, -4), ha="right", va="top", **note)
    ax.plot([1, most], [1, most], color=GREY, linewidth=1, linestyle="--")
    along: dict[str, Any] = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
    ax.annotate("in step with the work", (most, most), (-6, -14), ha="right", **along, **note)
    for resolution, colour in COLOURS.items():
        line = [row for row in rows if row["resolution"] == resolution]
        x, y = ([row[key] for row in line] for key in ("macs_saved_x", "cpu_speed_up_x"))
        ax.plot(x, y, "o-", color=colour, ms=5, lw=1.5, label=f"{resolution} px")
        for row, at in zip(line, zip(x, y, strict=True), strict=True):
            left = resolution == min(COLOURS)  # the topmost line: nothing above it
            offset, side = ((-5, 4), "right") if left else ((6, -9), "left")
            text = f"{row['ratio']:g}"
            ax.annotate(text, at, offset, ha=side, textcoords="offset points", fontsize=8, color=colour)
    ax.set_xlabel("useful multiply-accumulates saved (numbers: channel ratio)")
    ax.set_ylabel("speed-up in CPU time")
    ax.set_title("Sub-generators of config-f 1024 in PyTorch", color=BLACK)
    ax.grid()
    ax.legend(loc="lower right", fontsize=8.5)
    return ax


def write_report(folder: Path, out: Path) -> list[Path]:
    """``speed.json``, ``speed.csv`` and the plot as PNG and SVG; returns the paths."""
    summary = summarise(folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, summary["rows"][0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in summary["rows"]
    )
    files = {
        "speed.json": (json.dumps(summary, indent=1) + "\n").encode(),
        "speed.csv": text.getvalue().encode(),
    }
    with style():
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        plot_speed(summary, figure.subplots())
        for kind in ("png", "svg"):
            data = io.BytesIO()
            figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else {})
            files[f"speed.{kind}"] = data.getvalue()
    return write_files(out, files)


def print_costs(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """The cost table on stdout."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = _table("Sub-generators of config-f 1024, one image (derived from layer shapes)")
    for head in ("useful GMACs", "published basis GMACs", "M parameters", "saved"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row["name"] if "x" in row["name"] else f"evolved {row['name']}, {row['resolution']} px",
            f"{row['useful_macs'] / 1e9:.2f}",
            f"{row['published_basis_macs'] / 1e9:.2f}",
            f"{row['n_parameters'] / 1e6:.2f}",
            f"{row['macs_saved_x']:.2f}x",
        )
    _console().print(table)


def print_speed(summary: dict[str, Any], written: list[Path], *, as_json: bool) -> None:
    """The times on stdout, then the files written."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    table = _table("Time of one image")
    heads = (
        "useful GMACs",
        "wall, s",
        "spread, s",
        "CPU, s",
        "speed-up (CPU)",
        "MACs saved",
        "ns/MAC over full",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for row in summary["rows"]:
        table.add_row(
            f"{row['resolution']} x {row['ratio']:g}",
            f"{row['useful_macs'] / 1e9:.2f}",
            f"{row['wall_s']:.2f}",
            f"{row['wall_spread_s']:.2f}",
            f"{row['cpu_s']:.2f}",
            f"{row['cpu_speed_up_x']:.2f}x",
            f"{row['macs_saved_x']:.2f}x",
            f"{row['ns_per_mac_over_full_x']:.2f}x",
        )
    console, machine = _console(), summary["machine"]
    console.print(table)
    console.print(f"{summary['status']}; {machine['cpu']}, {machine['n_threads']} thread(s).")
    console.print(
        f"load average while measuring: {min(summary['load_average'])}-{max(summary['load_average'])}."
    )
    console.print("paper: {}-{}x on CPUs (quoted).".format(*summary["paper_speed_up_x"]))
    for path in written:
        console.print(str(path))


def _table(title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("sub-generator", no_wrap=True)
    return table


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    return console
