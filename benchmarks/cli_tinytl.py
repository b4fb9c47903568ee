# SPDX-License-Identifier: MIT
"""``quartet memory`` and ``transfer``: TinyTL from the command line."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli_common import Device, user_input

tinytl_app = typer.Typer()


@tinytl_app.command()
def memory(
    measure: Annotated[
        str | None, typer.Option(help="Also measure real steps of this method, such as lite+bias.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Of the measured steps, pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the measured steps, pictures.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """TinyTL's memory of a training step: published, counted on two bases, and measured."""
    from benchmarks.tinytl.console import print_memory
    from benchmarks.tinytl.memory import FLOWERS, measured_steps, memory_rows

    measured = []
    if measure:
        with user_input():
            from algo.tinytl.architecture import check_resolution
            from algo.tinytl.architecture import method as method_named

            check_resolution(FLOWERS, resolution)
            if method_named(measure).convolutions:
                raise ValueError("--measure must leave convolutions frozen, as all methods but full do")
        for step in measured_steps(measure, resolution, batch_size):
            print(f"{step.mode}: {step.live_mb:.1f} MB", file=sys.stderr)
            measured.append(step)
    print_memory(memory_rows(), measured, as_json=as_json)


@tinytl_app.command()
def transfer(
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="last, bias, lite, lite+bias, norm+last or full; repeatable. Default: four of them."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Repeatable; default 0, 1, 2.")] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/transfer"),
    report: Annotated[Path | None, typer.Option(help="Folder of table and plot; default OUT/report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """TinyTL's methods on Fashion-MNIST, several seeds: accuracy beside memory. About an hour on one core.

    Finished runs are reused, an interrupted one goes on.
    """
    with user_input():
        from benchmarks.quality.progress import progress_bar
        from benchmarks.tinytl.methods import Setup, run_methods
        from benchmarks.tinytl.methods_report import print_summary, write

        setup = Setup(device=device)
        if method:
            setup = replace(setup, methods=tuple(method))
        if seed:
            setup = replace(setup, seeds=tuple(seed))
    with progress_bar() as progress, user_input():
        run_methods(out, setup, threads, progress)
        written = write(out, report or out / "report")
    print_summary(out, written, as_json=as_json)


@tinytl_app.command()
def adapt(
    data: Annotated[
        str, typer.Option(help="fashion, emoji, or a folder with a folder of pictures for each class.")
    ] = "fashion",
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of the whole network's memory; repeatable. Default 0.5, 0.75."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 1500,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/adapt"),
    report: Annotated[Path | None, typer.Option(help="Folder of table and plot; default OUT/report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Choose blocks and lite modules of EfficientNet-Lite0 for a data set, within memory budgets.

    Trains all choices at once, searches, and trains what was found beside the whole network and random
    choices. Finished parts are reused, an interrupted one goes on.
    """
    with user_input():
        from benchmarks.quality.progress import progress_bar
        from benchmarks.tinytl.adaptation import Setup, print_summary, run_adaptation, write

        setup = Setup(data=data, n_steps=steps, n_super_steps=steps, device=device)
        if budget:
            setup = replace(setup, shares=tuple(budget))
    with progress_bar() as progress, user_input():
        run_adaptation(out, setup, threads, progress)
        written = write(out, report or out / "report")
    print_summary(out, written, as_json=as_json)


@tinytl_app.command()
def training(
    method: Annotated[
        list[str] | None,
        typer.Option(help="last, bias, lite, lite+bias, norm+last or full; repeatable. Default: all."),
    ] = None,
    resolution: Annotated[
        list[int] | None, typer.Option(min=32, help="Pixels of a side; repeatable. Default 160, 224, 320.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of a step.")] = 8,
    array: Annotated[str, typer.Option(help="Rows x columns of the systolic array.")] = "16x32",
    backbone: Annotated[
        str, typer.Option(help="proxylessnas-mobile or efficientnet-lite0.")
    ] = "proxylessnas-mobile",
    out: Annotated[Path, typer.Option(help="Folder of tables and plot.")] = Path("results/training"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Cycles, traffic and energy of TinyTL's training steps on the convolution core, estimated.

    layers.csv has every forward and backward operation of the last method and resolution named, by default
    of lite+bias at 224 pixels.
    """
    with user_input():
        from algo.tinytl.architecture import METHODS, check_resolution
        from algo.tinytl.architecture import method as method_named
        from benchmarks.tinytl.steps import (
            backbone_named,
            core_of_size,
            layer_rows,
            print_steps,
            step_rows,
            write_steps,
        )

        network, core = backbone_named(backbone), core_of_size(array)
        names, sizes = method or list(METHODS), resolution or [160, 224, 320]
        for name in names:
            method_named(name)
        for size in sizes:
            check_resolution(network, size)
        rows = step_rows(network, names, sizes, batch_size, core)
    layers = layer_rows(network, names[-1] if method else "lite+bias", sizes[-1] if resolution else 224, core)
    print_steps(rows, layers, write_steps(rows, layers, out), as_json=as_json)
