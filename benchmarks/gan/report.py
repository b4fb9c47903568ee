# SPDX-License-Identifier: MIT
"""Tables and plots of the GAN experiments: a pure function of their saved results."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.gan.elastic import MAIN, VARIANTS
from benchmarks.gan.experiments import NAMES
from benchmarks.gan.features import NAME
from benchmarks.gan.few_shot import COMMAND, REALS, SETUPS
from benchmarks.gan.plots import (
    LOOKS,
    VARIANT_LABELS,
    Plot,
    figure_of,
    plot_consistency,
    plot_costs,
    plot_curves,
    plot_fractions,
    plot_gain,
    plot_search,
    plot_seeds,
    preview_figure,
    samples_figure,
)
from benchmarks.output import as_json_bytes, as_png, print_markdown, write_files
from benchmarks.plots import style
from benchmarks.quality.report import as_csv
from benchmarks.quality.statistics import mean_and_half_interval
from benchmarks.quality.store import load_results
from benchmarks.runner import collect_provenance

TITLES = {
    "emoji": "100 emoji faces",
    "emoji-no-r1": "100 emoji faces, without R1",
    "emoji-animals": "100 emoji animals",
    "fashion": "Fashion-MNIST, class-conditional",
    "anycost": "Anycost GAN",
}
STATUS = f"simulated: training in float32 PyTorch; distances on features of {NAME}, not FID"


# ---- from saved results to numbers -----------------------------------------------------------------------


def few_shot_rows(files: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each run: its case, its last distances, its best ones on the way."""
    rows = []
    for name, file in files.items():
        if name == REALS:
            continue
        case, result = file["inputs"]["case"], file["result"]
        rows.append(
            {
                "run": name,
                "fraction": case["fraction"],
                "n_pictures": result["n_pictures"],
                "loss": case["loss"],
                "augmented": bool(case["augment"]),
                "seed": case["seed"],
                **{key: value for key, value in result["quality"].items() if key != "step"},
                "best_kid": min(check["kid"] for check in result["checks"]),
                "n_steps": result["quality"]["step"],
            }
        )
    return sorted(rows, key=lambda row: (row["loss"], -row["fraction"], row["seed"], not row["augmented"]))


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """KID without DiffAugment minus KID with it, for each loss and fraction: paired by seed.

    ``half_95`` is half the 95 % interval over seeds (Student t), None for one seed.
    """
    table = []
    for loss, fraction in dict.fromkeys((row["loss"], row["fraction"]) for row in rows):
        by_seed: dict[int, dict[bool, float]] = {}
        for row in rows:
            if (row["loss"], row["fraction"]) == (loss, fraction):
                by_seed.setdefault(row["seed"], {})[row["augmented"]] = row["kid"]
        pairs = [kids for kids in by_seed.values() if len(kids) == 2]
        if pairs:
            mean, half = mean_and_half_interval(np.array([kids[False] - kids[True] for kids in pairs]))
            table.append(
                {
                    "loss": loss,
                    "fraction": fraction,
                    "n_seeds": len(pairs),
                    "kid_gain": mean,
                    "half_95": None if np.isnan(half) else half,
                }
            )
    return table


def few_shot_summary(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Rows, gains, curves and the distance between real pictures, where they are there."""
    rows = few_shot_rows(files)
    curves = [
        {"augmented": bool(file["inputs"]["case"]["augment"]), **file["inputs"]["case"], "checks": checks}
        for name, file in files.items()
        if name != REALS and (checks := file["result"]["checks"])
    ]
    settings = next(iter(files.values()))["inputs"]
    return {
        "settings": {key: value for key, value in settings.items() if key != "case"},
        "reals": files[REALS]["result"] if REALS in files else None,
        "rows": rows,
        "gains": gains(rows),
        "curves": curves,
    }


def anycost_summary(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is there of sub-generators by variant, separate generators, projection and search."""
    results = {name: file["result"] for name, file in files.items()}
    return {
        "settings": next(iter(files.values()))["inputs"],
        "variants": {v: results[f"channels-{v}"]["rows"] for v in VARIANTS if f"channels-{v}" in results},
        "separate": [result for name, result in results.items() if name.startswith("separate-")],
        "projection": results.get("projection"),
        "search": results["search"]["rows"] if "search" in results else None,
    }


def summarise(folder: Path) -> dict[str, Any]:
    """Everything that is saved in ``folder``, for ``--json``; FileNotFoundError where nothing is."""
    saved = load_results(folder, NAMES, COMMAND)
    provenance = asdict(collect_provenance(COMMAND))
    provenance["versions"] |= {"torch": version("torch")}
    summary: dict[str, Any] = {"status": STATUS, "provenance": provenance}
    for name in SETUPS:
        if name in saved:
            summary[name] = few_shot_summary(saved[name])
    if "anycost" in saved:
        summary["anycost"] = anycost_summary(saved["anycost"])
    return summary


# ---- Markdown ----------------------------------------------------------------------------------------------


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def few_shot_markdown(summary: dict[str, Any]) -> str:
    """Runs, then gains."""
    heads = [
        "pictures",
        "loss",
        "DiffAugment",
        "seed",
        "KID",
        "best KID",
        "Frechet PCA-64",
        "authentic share",
    ]
    rows = [
        [
            f"{row['n_pictures']:,}", row["loss"], "yes" if row["augmented"] else "no", f"{row['seed']}",
            f"{row['kid']:.1f}", f"{row['best_kid']:.1f}", _optional(row["frechet_pca_64"]),
            f"{row['authentic_share']:.3f}",
        ]
        for row in summary["rows"]
    ]  # fmt: skip
    text = table(heads, rows)
    if summary["gains"]:
        gain_rows = [
            [
                f"{100 * gain['fraction']:g} %", gain["loss"], f"{gain['kid_gain']:+.1f}",
                "one seed" if gain["half_95"] is None else f"±{gain['half_95']:.1f}", f"{gain['n_seeds']}",
            ]
            for gain in summary["gains"]
        ]  # fmt: skip
        text += "\n" + table(
            ["share of the data", "loss", "KID saved by DiffAugment", "95 %", "seeds"], gain_rows
        )
    if summary["reals"]:
        text += f"\nReal pictures among themselves: KID {summary['reals']['kid']:.1f}.\n"
    return text


def anycost_markdown(summary: dict[str, Any]) -> str:
    """Sub-generators, variants, projection, search: what is there."""
    parts = []
    alone = {(row["resolution"], row["ratio"]): row["kid"] for row in summary["separate"]}
    if MAIN in summary["variants"]:
        rows = [
            [
                f"{row['resolution']} px x {row['ratio']:g}", f"{row['macs'] / 1e6:.2f}", f"{row['kid']:.1f}",
                _optional(alone.get((row["resolution"], row["ratio"]))), f"{row['mse_to_full']:.4f}",
            ]
            for row in summary["variants"][MAIN]
        ]  # fmt: skip
        heads = ["sub-generator", "useful MMACs", "KID", "KID, trained alone", "squared error to full image"]
        parts.append(table(heads, rows))
    if len(summary["variants"]) > 1:
        rows = [
            [VARIANT_LABELS[name], *(f"{value:.4f}" for value in mean_consistency(rows_of).values()),
             f"{np.mean([row['kid'] for row in rows_of]):.1f}"]
            for name, rows_of in summary["variants"].items()
        ]  # fmt: skip
        parts.append(table(["last stage", "squared error, fewer channels", "fewer pixels", "mean KID"], rows))
    if summary["projection"]:
        rows = [
            [f"{name} sub-generators in the loss", f"{found['full_mse']:.4f}", f"{found['sub_mse']:.4f}"]
            for name, found in summary["projection"].items()
        ]
        parts.append(table(["projection", "squared error, full", "mean of the smaller ones"], rows))
    if summary["search"]:
        rows = [
            [f"{row['ratio']:g}", f"{row['uniform_macs'] / 1e6:.2f}", f"{row['found_macs'] / 1e6:.2f}",
             f"{row['uniform_mse']:.4f}", f"{row['found_mse']:.4f}",
             f"{100 * row['gain']:.1f} ± {100 * row['gain_half_95']:.1f}",
             " ".join(map(str, row["found_widths"]))]
            for row in summary["search"]
        ]  # fmt: skip
        heads = ["budget: uniform ratio", "its MMACs", "MMACs found", "uniform, error to full", "found",
                 "less, %", "widths found"]  # fmt: skip
        parts.append(table(heads, rows))
    return "\n".join(parts)


def mean_consistency(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean squared difference from the full image over ratios below 1, and over ratio 1 at fewer pixels."""
    top = max(row["resolution"] for row in rows)
    narrow = [row["mse_to_full"] for row in rows if row["ratio"] < 1]
    small = [row["mse_to_full"] for row in rows if row["ratio"] == 1 and row["resolution"] < top]
    return {"channels": float(np.mean(narrow)), "pixels": float(np.mean(small)) if small else 0.0}


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def markdown(summary: dict[str, Any]) -> str:
    """All tables."""
    parts = [f"Status: {summary['status']}.\n"]
    for name in NAMES:
        if name in summary:
            body = (anycost_markdown if name == "anycost" else few_shot_markdown)(summary[name])
            parts.append(f"## {TITLES[name]}\n\n{body}")
    return "\n".join(parts)


# ---- files -------------------------------------------------------------------------------------------------


def _figures(folder: Path, summary: dict[str, Any]) -> dict[str, Figure]:
    """By file name."""
    figures: dict[str, Figure | None] = {}
    for name in SETUPS:
        if name not in summary or not summary[name]["rows"]:
            continue
        if name == "fashion":
            figures[name] = figure_of([plot_fractions, plot_gain], summary[name], TITLES[name])
        else:
            figures[name] = figure_of([plot_curves, plot_seeds], summary[name], TITLES[name])
            figures[f"{name}_samples"] = samples_figure(folder / name, _emoji_samples(summary[name]))
    if "anycost" in summary:
        found = summary["anycost"]
        plots: list[Plot] = [plot_costs] if MAIN in found["variants"] else []
        plots += [plot_consistency] if found["variants"] else []
        plots += [plot_search] if found["search"] else []
        if plots:
            figures["anycost"] = figure_of(plots, found)
        if MAIN in found["variants"] and (folder / "anycost" / "preview.png").is_file():
            figures["anycost_preview"] = preview_figure(found, folder / "anycost" / "preview.png")
    return {name: figure for name, figure in figures.items() if figure}


def _emoji_samples(summary: dict[str, Any]) -> dict[str, str]:
    seed = min(row["seed"] for row in summary["rows"])
    return {
        f"{LOOKS[row['augmented']][0]}: KID {row['kid']:.0f}": row["run"]
        for row in summary["rows"]
        if row["seed"] == seed
    }


def write(folder: Path, out: Path) -> list[Path]:
    """``summary.json``, ``gan.md``, a CSV a table, plots as PNG, of what is there; returns the paths."""
    summary = summarise(folder)
    files = {
        "summary.json": as_json_bytes(summary),
        "gan.md": markdown(summary).encode(),
    }
    for name in SETUPS:
        if name in summary and summary[name]["rows"]:
            files[f"{name}.csv"] = as_csv(summary[name]["rows"]).encode()
    if "anycost" in summary and summary["anycost"]["variants"]:
        rows = [
            {"variant": variant, **row}
            for variant, rows in summary["anycost"]["variants"].items()
            for row in rows
        ]
        files["anycost.csv"] = as_csv(rows).encode()
    with style():
        for name, figure in _figures(folder, summary).items():
            files[f"{name}.png"] = as_png(figure)
    return write_files(out, files)


def print_summary(folder: Path, written: list[Path], *, as_json: bool) -> None:
    """The tables on stdout, then the files written; or everything as JSON."""
    summary = summarise(folder)
    print_markdown(summary, markdown(summary), written, as_json=as_json)
