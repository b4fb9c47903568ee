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

PRESET_HELP = "Chip: paper, paper_eighth, plus, edge or tiny."


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
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
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


@app.command()
def rtl(
    blocks: Annotated[list[str] | None, typer.Argument(help="Blocks to write; all if none is named.")] = None,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    out: Annotated[Path, typer.Option(help="Folder; the files go to OUT/PRESET.")] = Path("rtl_out"),
) -> None:
    """Write Verilog, a FuseSoC core file for each block, and manifest.json; prints the Verilog files."""
    with user_input():
        from hw.config import preset as preset_named
        from hw.export import write_rtl
        from hw.registry import BLOCKS, block

        chip, chosen = preset_named(preset), [block(name) for name in blocks or BLOCKS]
        paths = write_rtl(chosen, chip, out)
    for path in paths:
        print(path)


@app.command()
def cosim(
    blocks: Annotated[list[str] | None, typer.Argument(help="Blocks to run; all if none is named.")] = None,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "tiny",
    sim: Annotated[
        str | None, typer.Option(help="verilator or icarus; default: all that are installed.")
    ] = None,
    waves: Annotated[
        bool, typer.Option(help="Keep waveforms in results/waves: FST from Icarus, VCD from Verilator.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of vectors and stalls.")] = 1,
    vectors: Annotated[int, typer.Option(min=0, help="Random vectors a case, beside the corners.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Run cocotb on the emitted Verilog against the golden models. Exit code 1 on a mismatch."""
    from benchmarks import cosimulation
    from benchmarks.console import print_cosim

    with user_input():
        from hw.config import preset as preset_named
        from hw.registry import BLOCKS, block

        chip, chosen = preset_named(preset), [block(name) for name in blocks or BLOCKS]
        simulators, left_out = cosimulation.simulators(sim)
    for reason in left_out:
        print(f"quartet: left out: {reason}", file=sys.stderr)
    rows: list[cosimulation.CosimRow] = []
    for name in simulators:
        for one in chosen:
            print(f"{one.name} in {name} ...", file=sys.stderr)
            kept = cosimulation.waves_file(one, name) if waves else None
            rows += cosimulation.run(one, chip, name, seed=seed, n_random=vectors, waves=kept)
            if kept:
                print(f"waveforms: {kept}", file=sys.stderr)
    print_cosim(rows, as_json=as_json)
    if cosimulation.n_mismatches(rows):
        raise typer.Exit(1)


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="minilm, or a folder with a Hugging Face BERT model.")],
    text: Annotated[str | None, typer.Option(help="The text to encode.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the text instead.")] = None,
    keep: Annotated[float, typer.Option(help="Mean share of tokens kept by the pruned layers, 0..1.")] = 0.5,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    rtl: Annotated[bool, typer.Option("--rtl", help="Select tokens in the simulated Verilog.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a real model whose tokens the top-k engine prunes layer by layer. Exit code 1 on a mismatch."""
    with user_input():
        from algo.attention.encoder import load_encoder
        from algo.attention.settings import CascadeSettings
        from benchmarks.console import print_run
        from benchmarks.pruned_run import engine_for, read_text, run_text
        from hw.config import preset as preset_named

        chip, settings = preset_named(preset), CascadeSettings(token_keep=keep)
        words = read_text(text, file)
        encoder = load_encoder(model)
        ids = encoder.token_ids(words)
        engine = engine_for(encoder, ids, chip.topk, rtl=rtl)
    result = run_text(encoder, ids, settings, engine)
    print_run(result, as_json=as_json)
    if result.mismatches:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
