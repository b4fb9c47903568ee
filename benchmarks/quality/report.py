# SPDX-License-Identifier: MIT
"""Tables and plots of the quality experiments: a pure function of their saved results."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from algo.files import write_atomically
from benchmarks.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, style
from benchmarks.quality import language, sentiment
from benchmarks.quality.store import load_results
from benchmarks.runner import collect_provenance

COMMAND = "quartet quality"
STATUS = "simulated: the algorithm in float PyTorch on real weights"
CASE_LOOKS = {
    "float": ("float32", GREY, "o"),
    "6+4": ("progressive 6+4", VERMILION, "o"),
    "8+4": ("progressive 8+4", BLUE, "o"),
    "6": ("static 6", ORANGE, "s"),
    "8": ("static 8", GREEN, "s"),
    "10": ("static 10", PURPLE, "s"),
}
EXPERIMENTS = ("language", "probability", "sentiment")
"""Folders of results; the report itself may lie beside them."""
PROGRESSIVE = ("float", "6+4", "8+4")
"""The lines of the first plot."""


def _results(saved: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: file["result"] for name, file in saved.items()}


# ---- plots -------------------------------------------------------------------------------------------------


def plot_perplexity(rows: list[dict[str, Any]], ax: Axes) -> Axes:
    """Perplexity against token pruning, with 95 % intervals of the difference from dense; log scale."""
    dense = next(row["perplexity"] for row in rows if row["bits"] == "float" and row["token_ratio"] == 1)
    lines = [
        (*CASE_LOOKS[bits], [r for r in rows if r["bits"] == bits and _usual(r)]) for bits in PROGRESSIVE
    ]
    scored = [r for r in rows if r["score_prompt"]]
    if scored:
        lines.append(("float32, prompt scored", GREEN, "D", scored))
    for i, (label, colour, marker, chosen) in enumerate(lines):
        x = np.array([row["token_ratio"] for row in chosen]) + 0.06 * (i - 1)
        delta, half = (np.array([r[f"loss_delta{key}_nats"] for r in chosen]) for key in ("", "_half_95"))
        y = dense * np.exp(delta)
        error = [y - dense * np.exp(delta - half), dense * np.exp(delta + half) - y]
        ax.errorbar(
            x, y, error, color=colour, marker=marker, ms=5, lw=1.5, capsize=2.5, elinewidth=1, label=label
        )
    ax.axhline(dense, color="#57606A", linewidth=0.8)
    ax.set_yscale("log")
    ticks = [10, 20, 50, 100, 200, 500, 1000]
    ax.set_yticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xticks(sorted({row["token_ratio"] for row in rows}))
    ax.set_xlabel("token pruning (layers / sum of keep ratios), x")
    ax.set_ylabel("perplexity (log scale)")
    ax.set_title("No fine-tuning: perplexity against token pruning")
    ax.grid(axis="y")
    ax.legend(fontsize=8.5, loc="upper left")
    return ax


def _usual(row: dict[str, Any]) -> bool:
    """At the paper's threshold, with V at the width of K's MSBs and nothing known from the prompt."""
    same_v = row["v_bits"] is None or row["v_bits"] == language.parse_bits(row["bits"])["v_bits"]
    at_threshold = row["threshold"] in (None, language.Case().threshold)
    return same_v and at_threshold and not row["score_prompt"]


def plot_threshold(rows: list[dict[str, Any]], ax: Axes) -> Axes:
    """Share of rows that fetch LSBs against the confidence threshold, and the loss that remains."""
    chosen = [r for r in rows if r["bits"] == "6+4" and r["token_ratio"] == 1 and r["v_bits"] == 6]
    chosen.sort(key=lambda r: r["threshold"])
    x = np.arange(len(chosen))
    bars = ax.bar(x, [100 * row["lsb_fraction"] for row in chosen], 0.6, color="#C9DDF0", edgecolor=BLUE)
    ax.bar_label(bars, fmt="%.1f %%", fontsize=8.5, color=BLUE, padding=2)
    ax.set_xticks(x, [f"{row['threshold']:g}" for row in chosen])
    ax.set_xlabel("threshold on a row's largest probability")
    ax.set_ylabel("rows redone with LSBs, %", color=BLUE)
    ax.set_ylim(0, 118)
    ax.set_title("Progressive 6+4: LSB refetches and loss")
    right = ax.twinx()
    right.spines["right"].set_visible(True)
    y, half = ([row[key] for row in chosen] for key in ("loss_delta_nats", "loss_delta_half_95_nats"))
    right.errorbar(x, y, half, color=VERMILION, marker="o", ms=5, lw=1.5, capsize=2.5, elinewidth=1)
    right.set_ylabel("loss added over dense, nats per token", color=VERMILION)
    right.axhline(0, color=VERMILION, linewidth=0.7, linestyle=":")
    return ax


def plot_traffic(rows: list[dict[str, Any]], ax: Axes) -> Axes:
    """Loss against the bits of K fetched, V at 12 bits, no token pruning: progressive beside static."""
    chosen = [row for row in rows if row["token_ratio"] == 1 and row["v_bits"] == 12]
    looks = (("static", ORANGE, "s--"), ("4+4", PURPLE, "o-"), ("6+4", VERMILION, "o-"))
    for bits, colour, line_style in looks:
        line = [r for r in chosen if r["bits"] == bits or (bits == "static" and "+" not in r["bits"])]
        line.sort(key=lambda r: r["kv_bits"])
        label = (
            "static 4, 6, 8 and mixtures of two" if bits == "static" else f"progressive {bits}, by threshold"
        )
        x, y = [r["kv_bits"] - 12 for r in line], [r["loss_delta_nats"] for r in line]
        ax.plot(x, y, line_style, color=colour, ms=5, label=label)
        for row, x_at, y_at in zip(line, x, y, strict=True):
            if row["threshold"] is not None:
                at = (x_at, y_at)
                ax.annotate(
                    f"{row['threshold']:g}", at, (6, 3), textcoords="offset points", fontsize=8, color=colour
                )
    ax.axhline(0, color="#57606A", linewidth=0.8)
    ax.set_xlabel("K traffic, bits per element (V: 12 bits)")
    ax.set_ylabel("loss added over dense, nats per token")
    ax.set_title("The same K traffic, spent two ways")
    ax.grid(axis="y")
    ax.legend(fontsize=8.5)
    return ax


def plot_probability(result: dict[str, Any], label: str, ax: Axes) -> Axes:
    """Total |error| of a row's probabilities against its largest one; mean and quartiles per bin."""
    n_bins = len(result["n_rows"])
    centre = (np.arange(n_bins) + 0.5) / n_bins
    for bits, colour in zip(sorted(result["by_bits"], key=int), (VERMILION, ORANGE, BLUE), strict=False):
        data = result["by_bits"][bits]
        full = np.array([mean is not None for mean in data["mean"]])
        mean = np.array([m for m in data["mean"] if m is not None])
        low, high = np.array([q for q in data["quartiles"] if q is not None]).T
        ax.plot(centre[full], mean, "o-", color=colour, ms=4, lw=1.5, label=f"{bits} bits")
        ax.fill_between(centre[full], low, high, color=colour, alpha=0.15, linewidth=0)
    ax.set_yscale("log")
    ax.set_xlim(0, 1)
    ax.set_ylim(3e-4, 2)  # the quartile of rows near 1 falls out at the bottom
    ax.set_xlabel("largest probability of the row")
    ax.set_ylabel("total |error| of the row's probabilities")
    ax.set_title(label)
    ax.grid(axis="y")
    return ax


def plot_sentiment(result: dict[str, Any], ax: Axes) -> Axes:
    """Test accuracy of dense, longer dense and pruned: a dot per seed, a line at the mean; differences."""
    kinds = [
        ("dense\n(start, teacher)", "dense_accuracy", GREY),
        ("longer dense\n(trained alike)", "longer_accuracy", GREEN),
        ("pruned,\nnot fine-tuned", "pruned_without_finetuning_accuracy", ORANGE),
        ("pruned,\nfine-tuned", "pruned_accuracy", BLUE),
    ]
    kinds = [kind for kind in kinds if kind[1] in result]
    for x, (_, key, colour) in enumerate(kinds):
        values = 100 * np.array(result[key])
        ax.hlines(values.mean(), x - 0.28, x + 0.28, color=colour, lw=2.5)
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(x + spread, values, "o", color=colour, ms=6, label=key)
        place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "color": colour}
        ax.annotate(f"{values.mean():.1f} %", (x, values.max()), (0, 9), **place)
    ax.set_xticks(range(len(kinds)), [label for label, _, _ in kinds])
    ax.set_xlim(-0.6, len(kinds) - 0.4)
    ax.margins(y=0.25)
    ax.set_ylabel("test accuracy, % (axis does not start at 0)")
    differences = [
        f"pruned - {label}: {100 * d['mean_difference']:+.2f} points [{_range(d)}], {_seeds(d)}"
        for label, d in (("dense", result["against_dense"]), ("longer dense", result["against_longer"]))
        if d
    ]
    note = [*differences, f"[95 % over {result['n_test']:,} test sentences]"] if differences else []
    ax.set_title("MiniLM, movie-review sentiment", loc="left", pad=10 + 12 * len(note))
    if note:
        ax.annotate(
            "\n".join(note), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=9
        )
    return ax


def _seeds(difference: dict[str, Any]) -> str:
    n = difference["n_seeds"]
    return f"{n} seed{'s' * (n > 1)}"


def _range(difference: dict[str, Any], key: str = "sentence_interval_95") -> str:
    low, high = (100 * value for value in difference[key])
    return f"{low:+.2f} to {high:+.2f}"


def _figure(width: float, height: float, n: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, n)


def language_figure(rows: list[dict[str, Any]]) -> Figure:
    """Loss against pruning, threshold and traffic."""
    figure, axes = _figure(16.5, 4.6, 3)
    for plot, ax in zip((plot_perplexity, plot_threshold, plot_traffic), axes, strict=True):
        plot(rows, ax)
    return figure


def probability_figure(results: dict[str, dict[str, Any]]) -> Figure:
    """One panel per model."""
    figure, axes = _figure(5.4 * len(results), 4.2, len(results))
    for (model, result), ax in zip(results.items(), np.atleast_1d(axes), strict=True):
        rows = sum(result["n_rows"])
        plot_probability(result, f"{model}: {rows:,} attention rows", ax).legend(
            fontsize=8.5, loc="lower left"
        )
    return figure


def sentiment_figure(result: dict[str, Any]) -> Figure:
    """One panel."""
    figure, ax = _figure(6.6, 4.6)
    plot_sentiment(result, ax)
    return figure


# ---- files -------------------------------------------------------------------------------------------------


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    )
    return text.getvalue()


def summarise(folder: Path) -> dict[str, Any]:
    """All tables of the results in ``folder``, for ``--json``: what each experiment found, and its inputs."""
    saved = load_results(folder, EXPERIMENTS, COMMAND)
    provenance = asdict(collect_provenance(COMMAND))
    provenance["versions"] |= {name: version(name) for name in ("torch", "transformers")}
    summary: dict[str, Any] = {"status": STATUS, "provenance": provenance}
    if language.DENSE.name in saved.get("language", {}):
        files = saved["language"]
        inputs = files[language.DENSE.name]["inputs"]
        shared = {key: value for key, value in inputs.items() if key not in ("ratio", "bits", "threshold")}
        summary["language"] = {"inputs": shared, "rows": language.rows(_results(files))}
    if "probability" in saved:
        files = saved["probability"]
        inputs = {model: file["inputs"] for model, file in files.items()}
        summary["probability"] = {"inputs": inputs, "models": _results(files)}
    if "dense" in saved.get("sentiment", {}):
        files = saved["sentiment"]
        inputs, settings = files["dense"]["inputs"], files["dense"]["result"]["settings"]
        found = sentiment.summary(_results(files))
        summary["sentiment"] = {"inputs": inputs, "settings": settings, **found}
    return summary


def write(folder: Path, out: Path) -> list[Path]:
    """Write ``summary.json``, one CSV per table and PNG + SVG plots of what is there; returns the paths.

    What ``out`` says of experiments without results in ``folder`` stays, with the provenance it had.
    """
    summary = summarise(folder)
    path = out / "summary.json"
    whole = summary | {name: part for name, part in _earlier(path).items() if name not in summary}
    written = [_write(path, json.dumps(whole, indent=1) + "\n")]
    figures: dict[str, Callable[[], Figure]] = {}
    if "language" in summary:
        rows = summary["language"]["rows"]
        written.append(_write(out / "language.csv", as_csv(rows)))
        figures["language"] = lambda: language_figure(rows)
    if "probability" in summary:
        models = summary["probability"]["models"]
        written.append(_write(out / "probability.csv", as_csv(_probability_rows(models))))
        figures["probability"] = lambda: probability_figure(models)
    if "sentiment" in summary:
        result = summary["sentiment"]
        written.append(_write(out / "sentiment.csv", as_csv(_sentiment_rows(result))))
        figures["sentiment"] = lambda: sentiment_figure(result)
    with style():
        for name, draw in figures.items():
            figure = draw()
            for kind in ("png", "svg"):
                data = io.BytesIO()
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(data, format=kind, dpi=130, metadata=metadata)
                write_atomically(out / f"{name}.{kind}", data.getvalue())
                written.append(out / f"{name}.{kind}")
    return written


def _earlier(path: Path) -> dict[str, Any]:
    """The experiments in a summary written before, each with its provenance; ValueError if damaged."""
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text())
        provenance = {"provenance": summary["provenance"]}
        return {name: provenance | summary[name] for name in EXPERIMENTS if name in summary}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{path} is not a summary of results: remove it to write another") from None


def _write(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path


def _probability_rows(models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for model, result in models.items():
        n_bins = len(result["n_rows"])
        for bits, data in result["by_bits"].items():
            for i in range(n_bins):
                low, high = data["quartiles"][i] or (None, None)
                table.append(
                    {
                        "model": model,
                        "k_bits": int(bits),
                        "largest_probability_from": i / n_bins,
                        "n_rows": result["n_rows"][i],
                        "mean_total_error": data["mean"][i],
                        "quartile_25": low,
                        "quartile_75": high,
                    }
                )
    return table


def _sentiment_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per trained model; the dense one was trained once, with seed 0."""
    seeds = {"dense": [0], "longer": result["seeds_of_longer"], "pruned": result["seeds"]}
    seeds["pruned_without_finetuning"] = seeds["dense"]
    return [
        {
            "model": kind,
            "seed": seed,
            "validation_accuracy": result[f"{kind}_validation_accuracy"][i],
            "test_accuracy": result[f"{kind}_accuracy"][i],
        }
        for kind in ("dense", "longer", "pruned_without_finetuning", "pruned")
        for i, seed in enumerate(seeds[kind])
    ]


# ---- terminal ----------------------------------------------------------------------------------------------


def print_summary(folder: Path, written: list[Path], *, as_json: bool) -> None:
    """The tables on stdout, then the files written; or the whole summary as JSON."""
    summary = summarise(folder)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    console = Console(highlight=False)
    console.width = max(console.width, 130)
    if "language" in summary:
        console.print(_language_table(summary["language"]["rows"]))
    if "probability" in summary:
        for model, result in summary["probability"]["models"].items():
            means = ", ".join(f"{b} bits {d['overall_mean']:.4f}" for b, d in result["by_bits"].items())
            console.print(f"probability error of {model}, mean over rows: {means}")
    if "sentiment" in summary:
        _print_sentiment(summary["sentiment"], console)
    console.print(f"{STATUS}.")
    for path in written:
        console.print(str(path))


def _language_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Perplexity of SmolLM2, no fine-tuning", title_justify="left")
    heads = (
        "tokens", "bits", "threshold", "perplexity", "nats over dense", "LSB rows", "K+V bits",
        "traffic cut", "same traffic, static",
    )  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        same, lsb, threshold = (
            row[key] for key in ("same_traffic_static_perplexity", "lsb_fraction", "threshold")
        )
        table.add_row(
            f"{row['token_ratio']:g}x",
            row["bits"] + (", V 12" if row["v_bits"] == 12 else "") + (", scored" * row["score_prompt"]),
            "" if threshold is None else f"{threshold:g}",
            f"{row['perplexity']:.2f}",
            f"{row['loss_delta_nats']:+.4f} ± {row['loss_delta_half_95_nats']:.4f}",
            "" if lsb is None else f"{100 * lsb:.1f} %",
            f"{row['kv_bits']:.2f}",
            f"{row['kv_traffic_reduction_vs_fp32']:.1f}x",
            "" if same is None else f"{same:.2f}",
        )
    return table


def _print_sentiment(result: dict[str, Any], console: Console) -> None:
    for kind in ("dense", "longer", "pruned"):
        if f"{kind}_accuracy" in result:
            accuracies = ", ".join(f"{100 * value:.2f}" for value in result[f"{kind}_accuracy"])
            console.print(f"sentiment accuracy {kind}, %, by seed: {accuracies}")
    for kind in ("dense", "longer"):
        difference = result[f"against_{kind}"]
        if difference is None:
            continue
        mean = 100 * difference["mean_difference"]
        console.print(f"pruned - {kind}: {mean:+.2f} points ({_seeds(difference)}), 95 % interval")
        for what, key in (("seeds", "seed_interval_95"), ("test sentences", "sentence_interval_95")):
            if difference[key]:
                console.print(f"  over {what}: {_range(difference, key)}")
