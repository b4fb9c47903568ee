# SPDX-License-Identifier: MIT
"""What ``quartet bench`` shows: a progress bar on stderr, tables or JSON on stdout."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks import summary
from benchmarks.paper import PAPER_EAGER, fig14
from benchmarks.runner import Outcome
from sim.baselines import ROOFLINE, platforms
from sim.result import BenchmarkResult

if TYPE_CHECKING:  # these need Amaranth or torch, which quartet bench does without
    from benchmarks.cosimulation import CosimRow
    from benchmarks.pruned_run import PrunedRun
    from benchmarks.selection import Selection
    from benchmarks.validate import ValidationRow

TABLE_WIDTH = 130
"""Columns that the tables need; used where stdout is no terminal, or a narrower one."""


@contextmanager
def _bar() -> Iterator[Progress]:
    """On stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield bar


@contextmanager
def layer_progress() -> Iterator[Callable[[int, int], None]]:
    """Yields the function to call when layers have been replayed: how many, of how many."""
    with _bar() as bar:
        task = bar.add_task("layers replayed", total=None)

        def on_done(n_done: int, n_all: int) -> None:
            bar.update(task, completed=n_done, total=n_all)

        yield on_done


@contextmanager
def progress(n_total: int) -> Iterator[Callable[[Outcome], None]]:
    """Yields the function to call when a benchmark ends."""
    with _bar() as bar:
        task = bar.add_task("benchmarks", total=n_total)

        def on_done(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=outcome.benchmark)

        yield on_done


def print_bench(results: Sequence[BenchmarkResult], *, as_json: bool) -> None:
    """The rows, and the means beside the paper's, on stdout."""
    if as_json:
        print(json.dumps([summary.row(result) for result in results], indent=1))
        return
    if not results:
        return
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(_run_table(results))
    console.print(_speedup_table(results))
    comparisons = summary.headline_comparisons(results) + summary.speedup_comparisons(results)
    console.print(_comparison_table([*comparisons, *summary.energy_comparisons(results)]))
    console.print(f"ours: {summary.status(results)}.")
    console.print(f"eager: {PAPER_EAGER}. Its absolute time is known for GPT-2-Medium only.")
    console.print("roofline: the least time the platform's peaks allow; not the paper's baseline.")


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in left:
        table.add_column(name, no_wrap=True, vertical="bottom")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    return table


def _run_table(results: Sequence[BenchmarkResult]) -> Table:
    exact = all(result.pruned.core_cycles is not None for result in results)
    source = "cycles by the core's cycle model, energy and traffic in closed form" if exact else "closed form"
    title = f"On the chip '{results[0].pruned.chip}' (simulated: {source})"
    names = (
        "cycles",
        "latency\nus",
        "TFLOPS",
        "of peak\n%",
        "energy\nuJ",
        "DRAM x\nfp32",
        "DRAM x\n12 bit",
        "ops x",
    )
    table = _table(title, ("benchmark", "workload"), names)
    for result in results:
        pruned = result.pruned
        table.add_row(
            result.benchmark,
            result.workload_status,
            f"{pruned.cycles:.0f}",
            f"{pruned.latency_s * 1e6:.2f}",
            f"{pruned.flops_per_s * 1e-12:.3f}",
            f"{pruned.utilisation * 100:.1f}",
            f"{pruned.total_energy_pj * 1e-6:.1f}",
            f"{result.dram_reduction_fp32:.1f}",
            f"{result.dram_reduction_onchip:.1f}",
            f"{result.computation_reduction:.1f}",
        )
    return table


def _speedup_table(results: Sequence[BenchmarkResult]) -> Table:
    names = [
        f"{machine.short}\n{column}"
        for machine in platforms().values()
        for column in ("paper\neager", "ours\neager", "ours\nroofline")
    ]
    table = _table("Speed-up by baseline, x (paper: quoted from Fig. 14)", ("benchmark",), names)
    for result in results:
        cells = []
        for name in platforms():
            quoted = fig14()[result.benchmark].speedup[name]
            ours = (result.speedup(name, PAPER_EAGER), result.speedup(name, ROOFLINE))
            cells += [f"{quoted:,.0f}", *map(summary.significant, ours)]
        table.add_row(result.benchmark, *cells)
    return table


def _comparison_table(rows: Sequence[summary.Comparison]) -> Table:
    table = _table("Means beside the paper's", ("quantity",), ("paper", "ours", "ours / paper", "unit"))
    for row in rows:
        numbers = (summary.significant(value) for value in (row.paper, row.ours, row.ratio))
        table.add_row(row.label, *numbers, row.unit)
    return table


def print_cosim(rows: Sequence["CosimRow"], *, as_json: bool) -> None:
    """One line a case, then how many agreed."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = _table(
        "Emitted Verilog against the golden models (measured in RTL)",
        ("block", "simulator", "case"),
        ("output\nbeats", "cycles", "cycle\nmodel", "mis-\nmatches"),
    )
    for row in rows:
        checked = "equal" if row.cycles_checked and not row.problems else "-"
        cells = (f"{row.n_beats}", f"{row.n_cycles}", checked, f"{len(row.problems)}")
        table.add_row(row.block, row.simulator, row.case, *cells)
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    for row in rows:
        for problem in row.problems:
            print(f"{row.block}, {row.simulator}, {row.case}: {problem}")
    n_wrong = sum(bool(row.problems) for row in rows)
    print(
        f"{len(rows)} cases, {sum(row.n_beats for row in rows)} output beats, {n_wrong} cases with a mismatch"
    )


def print_validation(rows: Sequence["ValidationRow"], *, as_json: bool) -> None:
    """A line for each workload of the core and for each other block, the worst last."""
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from benchmarks.validate import table_lines

    table = _table(
        "Cycle models against the emitted Verilog (measured in RTL, at full rate)",
        ("preset", "workload"),
        ("output\nbeats", "cycles,\nRTL", "cycles,\nmodel", "largest\ndifference"),
    )
    for line in table_lines(rows):
        difference = f"{line.difference_cycles:+d}" if line.difference_cycles else "0"
        cells = (f"{line.n_beats:,}", f"{line.rtl_cycles:,}", f"{line.model_cycles:,}")
        table.add_row(line.preset, line.workload, *cells, difference if line.is_equal else f"{difference} !")
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    for row in rows:
        for problem in row.problems:
            print(f"{row.preset}, {row.block}, {row.workload}: {problem}")
    n_beats, n_wrong = sum(row.n_beats for row in rows), sum(bool(row.problems) for row in rows)
    print(f"{len(rows)} runs, {n_beats:,} output beats, {n_wrong} runs in which a beat or its cycle differs")


def print_selection(selection: "Selection", *, as_json: bool) -> None:
    """One request to the top-k engine."""
    if as_json:
        print(json.dumps(asdict(selection), indent=1))
        return
    print("kept values   ", *selection.values)
    print("at positions  ", *selection.indices)
    print("lines a pass  ", *selection.pass_lines)
    print(f"cycles         {selection.selection_cycles} to select, {selection.first_to_last_cycles} in all")
    print(f"engine         {selection.engine}")
    for mismatch in selection.mismatches:
        print(f"mismatch: {mismatch}")


def print_run(run: "PrunedRun", *, as_json: bool) -> None:
    """The text layer by layer, a dot for each pruned token, and what pruning cost and saved."""
    if as_json:
        print(json.dumps({**asdict(run), "mean_token_keep": run.mean_token_keep}, indent=1))
        return
    what = "the last token generated" if run.outputs else "the text"
    table = _table(f"{run.model}: {what}, layer by layer", ("layer",), ("heads", "tokens", "engine\ncycles"))
    table.add_column("kept", overflow="fold")
    for column in table.columns:
        column.vertical = "top"
    shown = None
    for row in run.layers:
        if (row.positions, row.n_heads) == shown:
            continue  # as the layer before
        shown = (row.positions, row.n_heads)
        alive = set(row.positions)
        text = " ".join(word if i in alive else "\u00b7" for i, word in enumerate(run.tokens))
        cycles = "-" if row.selection_cycles is None else f"{row.selection_cycles}"
        table.add_row(f"{row.layer}", f"{row.n_heads}", f"{len(row.positions)}", cycles, Text(text))
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    for note in run.notes:
        print(f"note: {note}")
    for name, text in run.outputs.items():
        print(f"{name}: {' '.join(text.split())}")
    for name, value in run.quality.items():
        print(f"{name}: {value:.4g}")
    print(f"tokens kept over these {len(run.layers)} layers: {run.mean_token_keep * 100:.1f} %")
    saved = run.savings
    ratios = f"{saved.traffic_ratio_fp32:.2f}x less than fp32, {saved.traffic_ratio_onchip:.2f}x than 12 bit"
    print(f"K and V fetched: {saved.kv_bytes / 1e3:.1f} kB; {ratios}, both dense")
    print(f"multiplications: {saved.n_macs / 1e6:.2f} M, {saved.operations_ratio:.2f}x less than dense")
    closed_forms = {"pruned": run.chip, "dense, 12 bit": run.dense_chip}
    if run.core:
        del closed_forms["pruned"]
    for name, result in closed_forms.items():
        print(
            f"attention on chip '{result.chip}' (estimated, closed form), {name}: "
            f"{result.run.total_cycles:,.0f} cycles, {result.latency_s * 1e6:.2f} us, "
            f"{result.total_energy_pj * 1e-6:.2f} uJ"
        )
    if run.core:
        core = run.core
        print(
            f"attention core '{core.preset}': {core.cycles:,} cycles ({core.origin}), the first array alone "
            f"{core.first_array_cycles:,}"
        )
        print(
            f"  cycle model, equal to the RTL, {core.memory}: {core.model_cycles:,} cycles, "
            f"{run.chip.latency_s * 1e6:.2f} us, {run.chip.total_energy_pj * 1e-6:.2f} uJ (energy estimated)"
        )
        lsb = core.n_rows_with_lsb / core.n_rows
        confident = core.n_rows - core.n_rows_with_lsb
        print(
            f"  {core.n_rows:,} rows: {confident:,} confident on the MSBs, {core.n_rows_with_lsb:,} computed "
            f"again with LSBs ({lsb * 100:.1f} %)"
        )
        print(f"  Q, K, V: {core.ideal_bytes:,} bytes wanted, {core.moved_bytes:,} moved in 32-byte atoms")
        if core.axi_bytes:
            moved = ", ".join(f"{name} {n_bytes:,}" for name, n_bytes in core.axi_bytes.items())
            print(f"  bytes over AXI: {moved}; mismatches in memory and registers: {len(run.mismatches)}")
    else:
        print(
            f"top-k engine: {run.n_selections} selections, {run.engine_cycles} cycles in all ({run.engine})"
        )
    for mismatch in run.mismatches:
        print(f"mismatch: {mismatch}")
