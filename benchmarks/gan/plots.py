# SPDX-License-Identifier: MIT
"""Plots of the GAN experiments' summaries; each draws on the axes it is given and returns them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from algo.anycost.architecture import RATIOS
from benchmarks.gan.elastic import MAIN, VARIANTS
from benchmarks.plots import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION

Plot = Callable[[dict[str, Any], Axes], Axes]
LOOKS = {True: ("with DiffAugment", BLUE, "o"), False: ("without", VERMILION, "s")}
VARIANT_LABELS = {
    "both": "as published",
    "no-conditioning": "no conditioned D",
    "no-distillation": "no distillation",
    "neither": "neither",
}
COLOURS = (BLUE, GREEN, ORANGE)
"""Of resolutions, largest first."""


def plot_curves(summary: dict[str, Any], ax: Axes) -> Axes:
    """KID against pictures seen, a line for each run."""
    batch = summary["settings"]["batch_size"]
    for curve in summary["curves"]:
        label, colour, marker = LOOKS[curve["augmented"]]
        x = [check["step"] * batch / 1000 for check in curve["checks"]]
        y = [check["kid"] for check in curve["checks"]]
        ax.plot(x, y, marker + "-", color=colour, ms=4, lw=1.3, label=label)
    _floor(summary, ax)
    ax.set_xlabel("pictures seen, thousands")
    ax.set_ylabel("KID (lower is better)")
    ax.set_ylim(bottom=0)
    _legend_once(ax)
    ax.grid(axis="y")
    return ax


def plot_seeds(summary: dict[str, Any], ax: Axes) -> Axes:
    """Last KID with and without, the runs of a seed joined."""
    rows = summary["rows"]
    for seed in sorted({row["seed"] for row in rows}):
        pair = sorted((row for row in rows if row["seed"] == seed), key=lambda row: not row["augmented"])
        x = [0 if row["augmented"] else 1 for row in pair]
        ax.plot(x, [row["kid"] for row in pair], "-", color=GREY, lw=1)
        for at, row in zip(x, pair, strict=True):
            _, colour, marker = LOOKS[row["augmented"]]
            ax.plot(at, row["kid"], marker, color=colour, ms=7)
    _floor(summary, ax)
    ax.set_xticks([0, 1], [LOOKS[True][0], LOOKS[False][0]])
    ax.set_xlim(-0.5, 1.5)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("KID at the end")
    ax.grid(axis="y")
    return ax


def plot_fractions(summary: dict[str, Any], ax: Axes) -> Axes:
    """KID at the end against the share of the data, hinge loss."""
    rows = [row for row in summary["rows"] if row["loss"] == "hinge"]
    for augmented, (label, colour, marker) in LOOKS.items():
        line = sorted((r for r in rows if r["augmented"] == augmented), key=lambda r: r["fraction"])
        ax.plot(
            [100 * r["fraction"] for r in line],
            [r["kid"] for r in line],
            marker + "-",
            color=colour,
            label=label,
        )
    _floor(summary, ax)
    _fraction_axis(rows, ax)
    ax.set_ylabel("KID to the test part (lower is better)")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8.5)
    return ax


def plot_gain(summary: dict[str, Any], ax: Axes) -> Axes:
    """What DiffAugment brings against the share of the data; above 0 it helps."""
    for loss, colour, marker in (("hinge", BLUE, "o"), ("nonsaturating", ORANGE, "D")):
        line = sorted((g for g in summary["gains"] if g["loss"] == loss), key=lambda g: g["fraction"])
        if line:
            x, y = [100 * g["fraction"] for g in line], [g["kid_gain"] for g in line]
            ax.plot(x, y, marker + "-", color=colour, label=loss)
    ax.axhline(0, color="#57606A", linewidth=0.8)
    _fraction_axis(summary["rows"], ax)
    ax.set_ylabel("KID without minus with DiffAugment")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=8.5)
    return ax


def plot_costs(summary: dict[str, Any], ax: Axes) -> Axes:
    """KID of every sub-generator against its work, beside generators trained alone."""
    rows = summary["variants"][MAIN]
    resolutions = sorted({row["resolution"] for row in rows}, reverse=True)
    for resolution, colour in zip(resolutions, COLOURS, strict=False):
        line = [row for row in rows if row["resolution"] == resolution]
        ax.plot(
            [r["macs"] / 1e6 for r in line],
            [r["kid"] for r in line],
            "o-",
            color=colour,
            label=f"{resolution} px",
        )
        alone = [row for row in summary["separate"] if row["resolution"] == resolution]
        ax.plot(
            [r["macs"] / 1e6 for r in alone],
            [r["kid"] for r in alone],
            "*",
            color=colour,
            ms=13,
            mec=BLACK,
            mew=0.7,
        )
    if summary["separate"]:
        ax.plot([], [], "*", color="white", ms=12, mec=BLACK, label="trained alone, as many steps")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_xlabel("useful multiply-accumulates of an image, millions")
    ax.set_ylabel("KID at its own resolution")
    ax.set_ylim(bottom=0)
    ax.set_title("Sub-generators: distance to the pictures")
    ax.grid()
    ax.legend(fontsize=8.5)
    return ax


def plot_consistency(summary: dict[str, Any], ax: Axes) -> Axes:
    """Mean squared difference of sub-generator and full image by channel ratio, a line for each variant."""
    looks = zip(VARIANTS, (BLUE, ORANGE, GREEN, VERMILION), "osD^", strict=True)
    for variant, colour, marker in looks:
        if variant not in summary["variants"]:
            continue
        rows = summary["variants"][variant]
        top = max(row["resolution"] for row in rows)
        line = [row for row in rows if row["resolution"] == top and row["ratio"] < 1]
        x, y = [row["ratio"] for row in line], [row["mse_to_full"] for row in line]
        ax.plot(x, y, marker + "-", color=colour, ms=5, label=VARIANT_LABELS[variant])
    ax.set_xticks([ratio for ratio in RATIOS if ratio < 1])
    ax.set_xlabel("channel ratio, full resolution")
    ax.set_ylabel("mean squared difference from the full image")
    ax.set_ylim(bottom=0)
    ax.set_title("Consistency: the preview is the picture")
    ax.grid(axis="y")
    ax.legend(fontsize=8.5)
    return ax


def plot_search(summary: dict[str, Any], ax: Axes) -> Axes:
    """Uniform and found sub-generators of the same budget, on fresh z."""
    rows = summary["search"]
    x = np.arange(len(rows))
    for shift, key, label, colour in (
        (-0.2, "uniform", "uniform", GREY),
        (0.2, "found", "found by search", BLUE),
    ):
        bars = ax.bar(x + shift, [row[f"{key}_mse"] for row in rows], 0.38, color=colour, label=label)
    ax.bar_label(bars, [f"{round(-100 * row['gain']):+d} %" for row in rows], fontsize=8)
    ax.set_xticks(x, [f"{row['ratio']:g}\n{row['uniform_macs'] / 1e6:.1f} M" for row in rows])
    ax.set_xlabel("budget: cost of the uniform ratio")
    ax.set_ylabel("mean squared difference from the full image")
    ax.set_title("Search at equal cost")
    ax.legend(fontsize=8.5)
    return ax


def _floor(summary: dict[str, Any], ax: Axes) -> None:
    if summary["reals"]:
        ax.axhline(
            summary["reals"]["kid"], color=BLACK, lw=0.9, ls=":", label="real pictures among themselves"
        )


def _fraction_axis(rows: list[dict[str, Any]], ax: Axes) -> None:
    ax.set_xscale("log")
    ticks = sorted({100 * row["fraction"] for row in rows})
    ax.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel("share of the training pictures")
    ax.grid(axis="y")


def _legend_once(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(unique.values(), unique.keys(), fontsize=8.5)


def figure_of(plots: Sequence[Plot], summary: dict[str, Any], title: str = "") -> Figure:
    """Side by side."""
    figure = Figure(figsize=(5.6 * len(plots), 4.4), layout="constrained")
    for plot, ax in zip(plots, np.atleast_1d(figure.subplots(1, len(plots))), strict=True):
        plot(summary, ax)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=BLACK)
    return figure


def preview_figure(summary: dict[str, Any], sheet: Path) -> Figure:
    """The saved sheet of previews with what each row costs."""
    from PIL import Image

    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    rows = summary["variants"][MAIN]
    figure = Figure(figsize=(6.2, 9.2), layout="constrained")
    ax = figure.subplots()
    ax.imshow(pixels, interpolation="nearest")
    height = pixels.shape[0] / len(rows)
    labels = [f"{row['resolution']} px x {row['ratio']:g}\n{row['macs'] / 1e6:.2f} MMACs" for row in rows]
    ax.set_yticks(height * (np.arange(len(rows)) + 0.5), labels, fontsize=8.5)
    ax.set_xticks([])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title("The same six z from every sub-generator", fontsize=10.5)
    return figure


def samples_figure(folder: Path, names: dict[str, str]) -> Figure | None:
    """Saved grids of samples side by side, by title; None where one is missing."""
    from PIL import Image

    paths = {title: folder / f"{name}.png" for title, name in names.items()}
    if not all(path.is_file() for path in paths.values()):
        return None
    figure = Figure(figsize=(5.2 * len(paths), 5.5), layout="constrained")
    for (title, path), ax in zip(paths.items(), figure.subplots(1, len(paths)), strict=True):
        with Image.open(path) as picture:
            ax.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
        ax.set_title(title)
        ax.axis("off")
    return figure
