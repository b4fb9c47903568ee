# SPDX-License-Identifier: MIT
"""Table and plot of TinyTL's methods with several seeds: a pure function of the saved results."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from algo.tinytl.architecture import METHODS
from benchmarks.gan.report import table
from benchmarks.output import as_json_bytes, as_png, print_markdown, write_files
from benchmarks.plots import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, style
from benchmarks.quality.report import as_csv
from benchmarks.quality.statistics import mean_and_half_interval
from benchmarks.quality.store import load_results
from benchmarks.runner import collect_provenance
from benchmarks.tinytl.methods import COMMAND

STATUS = "simulated: training in float32 PyTorch; memory estimated"
LABELS = {
    "last": "FT-Last", "bias": "TinyTL-B", "lite": "TinyTL-L", "lite+bias": "TinyTL-L+B",
    "norm+last": "FT-Norm+Last", "full": "FT-Full",
}  # fmt: skip
COLOURS = dict(zip(METHODS, (GREY, SKY, GREEN, BLUE, ORANGE, VERMILION), strict=True))
PAIRS = (("bias", "last"), ("lite+bias", "bias"), ("full", "lite+bias"))
"""Whose difference is told: the first less the second, seed by seed."""


def rows_of(files: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each run, by method and seed. Accuracies in percent, memory in MB of 10^6 bytes."""
    order = list(METHODS)
    rows = [
        {
            "method": file["inputs"]["method"],
            "seed": file["inputs"]["seed"],
            "accuracy": 100 * file["result"]["accuracy"],
            "last_loss": file["result"]["last_loss"],
            "n_trained": file["result"]["n_trained"],
            "memory_published_mb": file["result"]["memory_published_mb"],
            "memory_full_count_mb": file["result"]["memory_full_count_mb"],
            "cpu_seconds_here": file["result"]["cpu_seconds_here"],
        }
        for file in files.values()
    ]
    return sorted(rows, key=lambda row: (order.index(row["method"]), row["seed"]))


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each of PAIRS: points of accuracy with the same seed, their mean and half its 95 % interval."""
    accuracy = {(row["method"], row["seed"]): row["accuracy"] for row in rows}
    found = []
    for better, worse in PAIRS:
        points = {
            seed: value - accuracy[worse, seed]
            for (method, seed), value in accuracy.items()
            if method == better and (worse, seed) in accuracy
        }
        if points:
            mean, half = mean_and_half_interval(np.array(list(points.values())))
            found.append(
                {
                    "methods": (better, worse),
                    "points": points,
                    "mean": mean,
                    "half_95": None if np.isnan(half) else half,
                }
            )
    return found


def summarise(folder: Path) -> dict[str, Any]:
    """Everything saved in ``folder``; FileNotFoundError where nothing is."""
    files = load_results(folder.parent, (folder.name,), COMMAND)[folder.name]
    provenance = asdict(collect_provenance(COMMAND))
    provenance["versions"] |= {"torch": version("torch")}
    settings = next(iter(files.values()))["inputs"]
    own = ("method", "learning_rate", "seed")
    rows = rows_of(files)
    return {
        "status": STATUS,
        "provenance": provenance,
        "settings": {key: value for key, value in settings.items() if key not in own},
        "rates": {file["inputs"]["method"]: file["inputs"]["learning_rate"] for file in files.values()},
        "rows": rows,
        "differences": differences(rows),
    }


def markdown(summary: dict[str, Any]) -> str:
    """Methods, then differences."""
    seeds = sorted({row["seed"] for row in summary["rows"]})
    lines = []
    for method in METHODS:
        runs = {row["seed"]: row for row in summary["rows"] if row["method"] == method}
        if not runs:
            continue
        one = next(iter(runs.values()))
        mean = np.mean([row["accuracy"] for row in runs.values()])
        lines.append(
            [
                f"`{method}`", f"{summary['rates'][method]:g}", f"{one['n_trained']:,}",
                f"{one['memory_published_mb']:.1f}", f"{one['memory_full_count_mb']:.1f}",
                *(f"{runs[seed]['accuracy']:.2f}" if seed in runs else "" for seed in seeds), f"{mean:.2f}",
            ]
        )  # fmt: skip
    heads = ["method", "rate", "trained", "MB, paper's basis", "MB, full count"]
    text = table([*heads, *(f"seed {seed}, %" for seed in seeds), "mean, %"], lines)
    if summary["differences"]:
        lines = [
            [
                "`{}` - `{}`".format(*found["methods"]),
                *(f"{found['points'][seed]:+.2f}" if seed in found["points"] else "" for seed in seeds),
                f"{found['mean']:+.2f}",
                "one seed" if found["half_95"] is None else f"±{found['half_95']:.2f}",
            ]
            for found in summary["differences"]
        ]
        text += "\n" + table(["points", *(f"seed {seed}" for seed in seeds), "mean", "95 %"], lines)
    return text


def plot_accuracy(summary: dict[str, Any], ax: Axes) -> Axes:
    """Accuracy by method, the runs of a seed joined."""
    rows = summary["rows"]
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    for seed in sorted({row["seed"] for row in rows}):
        runs = [row for row in rows if row["seed"] == seed]
        ax.plot([methods.index(r["method"]) for r in runs], [r["accuracy"] for r in runs], color=GREY, lw=1)
    for row in rows:
        ax.plot(methods.index(row["method"]), row["accuracy"], "o", color=COLOURS[row["method"]], ms=7)
    ax.set_xticks(range(len(methods)), [LABELS[method] for method in methods])
    ax.set_xlim(-0.5, len(methods) - 0.5)
    ax.set_ylabel("test accuracy, %")
    ax.set_title("Each seed, joined")
    ax.grid(axis="y")
    return ax


def plot_memory(summary: dict[str, Any], ax: Axes) -> Axes:
    """Mean accuracy against memory of a step, on both bases."""
    for method in METHODS:
        runs = [row for row in summary["rows"] if row["method"] == method]
        if not runs:
            continue
        mean, colour = np.mean([row["accuracy"] for row in runs]), COLOURS[method]
        paper, full = (runs[0][f"memory_{basis}_mb"] for basis in ("published", "full_count"))
        ax.plot([paper, full], [mean, mean], "-", color=colour, lw=1)
        ax.plot(paper, mean, "o", color=colour, ms=7, mfc="white")
        ax.plot(full, mean, "o", color=colour, ms=7)
        ax.annotate(LABELS[method], (full, mean), xytext=(7, -3), textcoords="offset points", fontsize=9)
    ax.set_xscale("log")
    ax.set_xlabel("MB of a step: the paper's basis (open), full count (filled)")
    ax.set_ylabel("test accuracy, mean of the seeds, %")
    ax.set_title("What it costs")
    ax.margins(x=0.25)
    ax.grid()
    return ax


def figure(summary: dict[str, Any]) -> Figure:
    """Both plots."""
    made = Figure(figsize=(11.2, 4.4), layout="constrained")
    left, right = made.subplots(1, 2)
    plot_accuracy(summary, left)
    plot_memory(summary, right)
    return made


def write(folder: Path, out: Path) -> list[Path]:
    """``summary.json``, ``transfer.md``, ``.csv`` and ``.png``; returns the paths."""
    summary = summarise(folder)
    with style():
        picture = as_png(figure(summary))
    files = {
        "summary.json": as_json_bytes(summary),
        "transfer.md": markdown(summary).encode(),
        "transfer.csv": as_csv(summary["rows"]).encode(),
        "transfer.png": picture,
    }
    return write_files(out, files)


def print_summary(folder: Path, written: list[Path], *, as_json: bool) -> None:
    """The tables on stdout, then the files written; or everything as JSON."""
    summary = summarise(folder)
    print_markdown(summary, markdown(summary), written, as_json=as_json)
