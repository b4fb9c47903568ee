# SPDX-License-Identifier: MIT
"""The command ``quartet``. Thin: parse, call one library function, print."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quartet: RTL, golden models and measurements of SpAtten and its companions.",
)


@contextmanager
def user_input() -> Iterator[None]:
    """Turn a rejected input (ValueError, OSError) into one line on stderr and exit code 2.

    Wrap only the code that reads what the user gave, so that an error of ours still shows its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("QUARTET_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        print(f"quartet: {message}", file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Shell pattern of benchmark names, such as 'gpt2-*'.")] = "*",
    preset: Annotated[str, typer.Option(help="Chip: paper, paper_eighth, plus, edge or tiny.")] = "paper",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that work at once.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Simulate SpAtten's 30 attention benchmarks and set them beside the paper's Fig. 14.

    Results that are still valid are reused. Exit code 1 if a benchmark failed.
    """
    from benchmarks.console import print_bench, progress
    from benchmarks.runner import command_line, open_results, run_benchmarks
    from benchmarks.tasks import select
    from hw.config import preset as preset_named

    with user_input():
        chip, chosen = preset_named(preset), select(only)
        saved = open_results(chosen, chip, out)
    with progress(len(chosen)) as on_done:
        outcomes = run_benchmarks(
            chosen, chip, out, saved, n_jobs=jobs, command=command_line(), on_done=on_done
        )
    print_bench([outcome.result for outcome in outcomes if outcome.result], as_json=as_json)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"quartet: {outcome.benchmark} failed: {outcome.error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder with the results of quartet bench.")] = Path(
        "results/bench"
    ),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Make a page, plots, CSV and Markdown from saved results; the last line is the path of the page."""
    from benchmarks.report import load_results, write_report

    with user_input():
        results = load_results(folder)
    page = write_report(results, folder / "report")
    print(page)
    if open_page:
        typer.launch(page.resolve().as_uri())


def main() -> None:
    """Entry point of the console script."""
    app()
