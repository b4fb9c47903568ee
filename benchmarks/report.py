# SPDX-License-Identifier: MIT
"""The report: a pure function of saved results; the same results give the same bytes.

Writes ``index.html`` (self-contained), ``report.md``, ``results.csv`` and ``plots/*.png`` + ``*.svg``.
"""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from benchmarks import plots, summary
from benchmarks.paper import PAPER_EAGER, fig14
from benchmarks.runner import read_result, write_atomically
from benchmarks.tasks import PRUNING_COLUMNS, benchmarks
from sim.baselines import ROOFLINE, platforms
from sim.energy import actions, energy_table
from sim.records import digest
from sim.result import BenchmarkResult
from sim.tables import read_table

FOLDER = Path(__file__).parent
PNG_DPI = 160
HBM2_CHANNEL_BYTES_PER_S = 32e9
"""What the DRAM rows of the energy table describe (SpAtten Table I)."""


def load_results(folder: Path) -> list[BenchmarkResult]:
    """All results in ``folder``, in the order of the paper's Fig. 14.

    Raises FileNotFoundError where there is none; ValueError naming the file that is corrupt or of no known
    benchmark, or the chips where there are several.
    """
    results = {path: read_result(path) for path in sorted(folder.glob("*.json"))}
    if not results:
        raise FileNotFoundError(f"no results in {folder}: run quartet bench --out {folder} first")
    order = [item.benchmark for item in benchmarks()]
    for path, result in results.items():
        if result.benchmark not in order:
            raise ValueError(f"{path}: benchmark must be one of the 30, not {result.benchmark!r}")
    chips = sorted({result.pruned.chip for result in results.values()})
    if len(chips) > 1:
        raise ValueError(f"{folder} mixes results of {', '.join(chips)}: use one folder per preset")
    return sorted(results.values(), key=lambda result: order.index(result.benchmark))


def write_report(results: Sequence[BenchmarkResult], out: Path) -> Path:
    """Write the report of ``results`` into ``out`` and return the path of its page."""
    (out / "plots").mkdir(parents=True, exist_ok=True)
    images = {}
    with plots.style():
        for name, draw in plots.FIGURES.items():
            figure = draw(results)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, for both formats
            write_atomically(out / "plots" / f"{name}.png", render(figure, "png"))
            svg = render(figure, "svg")
            write_atomically(out / "plots" / f"{name}.svg", svg)
            images[name] = "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
    write_atomically(out / "results.csv", to_csv([summary.row(result) for result in results]))
    context = report_context(results) | {"images": images}
    write_atomically(out / "report.md", _render_template("report.md.j2", context))
    page = out / "index.html"
    write_atomically(page, _render_template("report.html.j2", context))
    return page


def render(figure: Figure, format: str) -> bytes:
    """A figure as PNG or SVG bytes, without a date in them."""
    buffer = io.BytesIO()
    no_date = {"Software": None} if format == "png" else {"Date": None}
    figure.savefig(buffer, format=format, dpi=PNG_DPI, metadata=no_date)
    return buffer.getvalue()


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; None as an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def report_context(results: Sequence[BenchmarkResult]) -> dict[str, Any]:
    """Everything that the templates show."""
    chip = results[0].config["chip"]
    channel_bytes_per_s = chip["dram_bytes_per_cycle"] * chip["clock_hz"]
    headline, speedups = summary.headline_comparisons(results), summary.speedup_comparisons(results)
    return {
        "chip": chip,
        "timing": results[0].config["timing"],
        "n_results": len(results),
        "n_benchmarks": len(benchmarks()),
        "workload_kinds": summary.workload_kinds(results),
        "headline": headline,
        "cards": [row for row in [*headline, speedups[0]] if row.paper],
        "speedups": speedups,
        "energies": summary.energy_comparisons(results),
        "powers": summary.power_comparisons(results),
        "results": results,
        "fig14": fig14(),
        "platforms": platforms(),
        "roofline": ROOFLINE,
        "eager": PAPER_EAGER,
        "energy_rows": used_energy_rows(results),
        "stand_in_dram": channel_bytes_per_s != HBM2_CHANNEL_BYTES_PER_S,
        "pruning_rows": used_pruning_rows(results),
        "caveats": read_table(FOLDER / "paper_caveats.csv", ("topic", "fact", "effect")),
        "provenances": _distinct([result.provenance for result in results]),
        "config_digest": digest([result.config_hash for result in results]),
    }


def used_energy_rows(results: Sequence[BenchmarkResult]) -> list[Any]:
    """Rows of the energy table that at least one of the results used."""
    used = {
        row
        for result in results
        for part in actions(result.pruned.run.counts).values()
        for row, number_of in part.items()
        if number_of > 0
    }
    return [row for row in energy_table() if (row.component, row.action) in used]


def used_pruning_rows(results: Sequence[BenchmarkResult]) -> list[dict[str, str]]:
    """Rows of pruning.csv that the results were made with."""
    used = {result.config["benchmark"]["setting"] for result in results}
    return [row for row in read_table(FOLDER / "pruning.csv", PRUNING_COLUMNS) if row["setting"] in used]


def _distinct(items: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _render_template(name: str, context: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sig"] = summary.significant
    return environment.get_template(name).render(context)
