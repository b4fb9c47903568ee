# SPDX-License-Identifier: MIT
"""Plots of saved results. Each ``plot_*`` draws on the axes it is given and returns them; no global state."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.paper import PAPER_EAGER, fig14, geomean, headline
from benchmarks.summary import FAMILIES, family, of_family
from benchmarks.tasks import models
from sim.attention import CAUSES
from sim.baselines import ROOFLINE, Platform, platforms
from sim.energy import PARTS
from sim.result import BenchmarkResult

# Okabe-Ito, told apart by the colour-blind.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW, GREY, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#9AA0A6", "#1F2328"
FAMILY_COLOURS = {"bert": BLUE, "gpt2": VERMILION}

CAUSE_LABELS = {
    "dram": ("DRAM bandwidth", BLUE),
    "qk": ("Q x K, or all arrays in step", GREEN),
    "softmax": ("softmax", YELLOW),
    "select": ("local value select", ORANGE),
    "value_fetch": ("value fetch", VERMILION),
    "pv": ("prob x V", SKY),
    "fill_and_drain": ("fill and drain", GREY),
    "token_selection": ("token select", PURPLE),
    "head_selection": ("head select", BLACK),
}
PART_LABELS = {
    "dram": ("DRAM", BLUE),
    "key_sram": ("K SRAM", GREEN),
    "value_sram": ("V SRAM", SKY),
    "qk_array": ("Q x K array", ORANGE),
    "pv_array": ("prob x V array", YELLOW),
    "softmax": ("softmax", VERMILION),
    "topk": ("top-k", PURPLE),
    "fetcher": ("fetcher FIFOs", GREY),
    "importance": ("importance", BLACK),
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#57606A",
    "axes.labelcolor": BLACK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": "#D8DEE4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "svg.hashsalt": "quartet",
}

Ratio = Callable[[BenchmarkResult, str, str], float | None]


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; draw and save inside it."""
    with matplotlib.rc_context(STYLE):
        yield


def plot_ratios(
    results: Sequence[BenchmarkResult], machine: Platform, ax: Axes, ours: Ratio, paper: str
) -> Axes:
    """Our ratio over one platform per benchmark beside Fig. 14's; log scale, geometric mean last.

    ``paper`` is the field of the Fig. 14 row: 'speedup' or 'energy'.
    """
    name = machine.platform
    quoted = [getattr(fig14()[r.benchmark], paper)[name] for r in results]
    roofline = [ours(r, name, ROOFLINE) or np.nan for r in results]
    eager = [ours(r, name, PAPER_EAGER) or np.nan for r in results]
    x = np.append(np.arange(len(results)), len(results) + 0.6)

    def with_mean(values: list[float]) -> np.ndarray:
        return np.array([*values, geomean(values)])

    ax.vlines(x, with_mean(roofline), with_mean(quoted), color="#D0D7DE", linewidth=1.2, zorder=1)
    ax.plot(
        x, with_mean(quoted), "o", mfc="white", mec=BLACK, ms=6, label="paper, over eager PyTorch (quoted)"
    )
    # The anchor exists for GPT-2-Medium only, so this basis has no mean over the benchmarks.
    ax.plot(
        x[:-1], eager, "D", color=VERMILION, ms=5, label="ours, over the same eager PyTorch (GPT-2-Medium)"
    )
    ax.plot(x, with_mean(roofline), "o", color=BLUE, ms=5.5, label="ours, over the roofline")
    ax.axvline(len(results) - 0.2, color="#57606A", linewidth=0.8, linestyle=":")
    ax.axhline(1, color="#57606A", linewidth=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(_times))
    ax.set_xlim(-0.8, len(results) + 1.3)
    ax.set_title(machine.label)
    ax.grid(axis="y")
    ax.set_xticks(x, [*(r.benchmark for r in results), "geometric mean"], rotation=90, fontsize=8.5)
    ax.tick_params(axis="x", length=0)
    return ax


def _times(value: float, _position: int) -> str:
    return f"{value:g}x"


def ratio_figure(results: Sequence[BenchmarkResult], ours: Ratio, paper: str, label: str) -> Figure:
    """One panel per platform."""
    machines = list(platforms().values())
    figure = Figure(figsize=(11, 12.5), layout="constrained")
    panels = figure.subplots(len(machines), 1, sharex=True)
    for machine, ax in zip(machines, panels, strict=True):
        plot_ratios(results, machine, ax, ours, paper)
        ax.set_ylabel(f"{label} (log)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def speedup_figure(results: Sequence[BenchmarkResult]) -> Figure:
    """Speed-up per benchmark and platform, beside Fig. 14."""
    return ratio_figure(results, lambda r, p, k: r.speedup(p, k), "speedup", "speed-up")


def energy_ratio_figure(results: Sequence[BenchmarkResult]) -> Figure:
    """Energy ratio per benchmark and platform, beside Fig. 14."""
    return ratio_figure(results, lambda r, p, k: r.energy_ratio(p, k), "energy", "energy ratio")


def plot_roofline(results: Sequence[BenchmarkResult], ax: Axes) -> Axes:
    """Achieved throughput over operational intensity, under the roofs of the chip and of the TITAN Xp."""
    chip = results[0].pruned
    gpu = platforms()["titan_xp"]
    intensity = np.geomspace(0.3, 1000, 200)
    roof = np.minimum(chip.peak_flops, intensity * chip.peak_bytes_per_s) * 1e-12
    ax.plot(intensity, roof, color=BLACK, linewidth=2, label=f"roof of the chip ({chip.chip})")
    gpu_roof = np.minimum(gpu.peak_flops, intensity * gpu.bandwidth_bytes_per_s) * 1e-12
    ax.plot(
        intensity, gpu_roof, color=GREY, linewidth=1.5, linestyle="--", label=f"roof of {gpu.label}, fp32"
    )
    for name, label in FAMILIES.items():
        group = of_family(results, name)
        x = [r.pruned.flops_per_byte for r in group]
        y = [r.pruned.flops_per_s * 1e-12 for r in group]
        ax.plot(x, y, "o", color=FAMILY_COLOURS[name], ms=7, alpha=0.85, label=f"{label}, ours (simulated)")
        quoted = headline()
        ax.plot(
            quoted[f"{name}_flops_per_byte"].value,
            quoted[f"{name}_tflops"].value,
            "*",
            mfc="white",
            mec=FAMILY_COLOURS[name],
            mew=1.6,
            ms=16,
            label=f"{label}, paper Fig. 18 (quoted)",
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for result in _extremes(results):
        place = (result.pruned.flops_per_byte, result.pruned.flops_per_s * 1e-12)
        ax.annotate(result.benchmark, place, xytext=(9, -11), textcoords="offset points", fontsize=8.5)
    ax.set_yticks([0.2, 0.5, 1, 2, 5, 10])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0.15, 16)
    ax.set_xlabel("operational intensity, flop per DRAM byte (log)")
    ax.set_ylabel("throughput, TFLOPS (log)")
    ax.set_xlim(0.3, 1000)
    ax.grid()
    ax.legend(loc="lower right", fontsize=9)
    return ax


def _extremes(results: Sequence[BenchmarkResult]) -> list[BenchmarkResult]:
    """The results of lowest and highest intensity of each family, worth a name in the plot."""
    found = []
    for name in FAMILIES:
        group = sorted(of_family(results, name), key=lambda r: r.pruned.flops_per_byte)
        found += group[:1] + group[-1:] if len(group) > 1 else group
    return found


def roofline_figure(results: Sequence[BenchmarkResult]) -> Figure:
    figure = Figure(figsize=(8.5, 5.4), layout="constrained")
    plot_roofline(results, figure.subplots())
    return figure


def plot_shares(
    rows: Sequence[tuple[str, dict[str, float]]], labels: dict[str, tuple[str, str]], ax: Axes
) -> Axes:
    """Stacked horizontal bars of shares, percent; one bar per row, the first on top; empty parts left out."""
    y = np.arange(len(rows))
    left = np.zeros(len(rows))
    totals = np.array([sum(parts.values()) for _, parts in rows])
    for key, (label, colour) in labels.items():
        share = 100 * np.array([parts[key] for _, parts in rows]) / totals
        if not share.any():
            continue
        ax.barh(y, share, left=left, color=colour, label=label, height=0.78, edgecolor="white", linewidth=0.4)
        left += share
    ax.set_yticks(y, [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(0, 100)
    ax.tick_params(axis="y", length=0)
    return ax


def _shares_figure(
    rows: Sequence[tuple[str, dict[str, float]]], labels: dict[str, tuple[str, str]], xlabel: str
) -> Figure:
    figure = Figure(figsize=(10, 1.6 + 0.25 * len(rows)), layout="constrained")
    ax = plot_shares(rows, labels, figure.subplots())
    ax.set_xlabel(xlabel)
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=5, fontsize=9)
    return figure


def latency_figure(results: Sequence[BenchmarkResult]) -> Figure:
    """What the core was waiting for, per benchmark."""
    rows = [(f"{r.benchmark}  {_time(r.pruned.latency_s)}", r.pruned.run.cycles_by_cause) for r in results]
    return _shares_figure(rows, {key: CAUSE_LABELS[key] for key in CAUSES}, "share of the latency, %")


def energy_figure(results: Sequence[BenchmarkResult]) -> Figure:
    """Where the energy goes, per benchmark."""
    rows = [
        (f"{r.benchmark}  {_energy(r.pruned.total_energy_pj * 1e-12)}", r.pruned.energy_pj) for r in results
    ]
    return _shares_figure(rows, {key: PART_LABELS[key] for key in PARTS}, "share of the dynamic energy, %")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def _energy(joules: float) -> str:
    return f"{joules * 1e3:.2f} mJ" if joules >= 1e-3 else f"{joules * 1e6:.1f} uJ"


def plot_reductions(results: Sequence[BenchmarkResult], ax: Axes) -> Axes:
    """DRAM and computation reductions per model, bars from 0, beside the paper's averages."""
    series = (
        ("DRAM, against dense fp32 (the paper's basis)", BLUE, lambda r: r.dram_reduction_fp32),
        ("DRAM, against dense 12 bits", SKY, lambda r: r.dram_reduction_onchip),
        ("computation", ORANGE, lambda r: r.computation_reduction),
    )
    groups = [(name, [r for r in results if r.model == name]) for name in models()]
    groups = [(name, group) for name, group in groups if group] + [("all", list(results))]
    x = np.arange(len(groups))
    width = 0.26
    for number, (label, colour, value) in enumerate(series):
        heights = [geomean(value(r) for r in group) for _, group in groups]
        bars = ax.bar(x + (number - 1) * width, heights, width * 0.92, color=colour, label=label)
        ax.bar_label(bars, fmt="%.1fx", fontsize=8.5, padding=2)
    quoted = headline()
    for number, quantity in ((0, "dram_reduction"), (2, "computation_reduction")):
        place = x[-1] + (number - 1) * width
        ax.plot(
            [place - 0.16, place + 0.16],
            [quoted[quantity].value] * 2,
            color=BLACK,
            linewidth=2.2,
            label="paper, average of all 30 (quoted)" if number == 0 else None,
        )
    ax.set_xticks(x, [f"{name}\n({len(group)})" for name, group in groups])
    ax.set_ylabel("reduction, geometric mean, x")
    ax.grid(axis="y")
    ax.legend(loc="upper left", fontsize=9)
    return ax


def reductions_figure(results: Sequence[BenchmarkResult]) -> Figure:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    plot_reductions(results, figure.subplots())
    return figure


def plot_throughput(results: Sequence[BenchmarkResult], ax: Axes) -> Axes:
    """Throughput per benchmark, bars from 0, with the paper's mean of each family as a line."""
    x = np.arange(len(results))
    heights = [r.pruned.flops_per_s * 1e-12 for r in results]
    ax.bar(x, heights, color=[FAMILY_COLOURS[family(r)] for r in results], width=0.72)
    for name, label in FAMILIES.items():
        places = [i for i, r in enumerate(results) if family(r) == name]
        if places:
            quoted = headline()[f"{name}_tflops"].value
            mean = sum(heights[i] for i in places) / len(places)
            span = (min(places) - 0.45, max(places) + 0.45)
            ax.hlines(
                quoted, *span, color=BLACK, linewidth=2, label=f"{label}: paper's mean {quoted:g} (quoted)"
            )
            ax.hlines(
                mean, *span, color=ORANGE, linewidth=2, linestyle="--", label=f"{label}: our mean {mean:.2f}"
            )
    roof = results[0].pruned.peak_flops * 1e-12
    ax.axhline(roof, color="#57606A", linewidth=1.2, linestyle=":", label=f"roof of both arrays {roof:.3g}")
    ax.set_ylim(0, 1.08 * roof)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
    ax.set_xlim(-0.7, len(results) - 0.3)
    ax.set_ylabel("throughput, TFLOPS")
    ax.set_xticks(x, [r.benchmark for r in results], rotation=90, fontsize=8.5)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y")
    return ax


def throughput_figure(results: Sequence[BenchmarkResult]) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    plot_throughput(results, figure.subplots())
    return figure


FIGURES: dict[str, Callable[[Sequence[BenchmarkResult]], Figure]] = {
    "throughput": throughput_figure,
    "speedup": speedup_figure,
    "energy_ratio": energy_ratio_figure,
    "roofline": roofline_figure,
    "latency_breakdown": latency_figure,
    "energy_breakdown": energy_figure,
    "reductions": reductions_figure,
}
