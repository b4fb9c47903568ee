# SPDX-License-Identifier: MIT
"""``quartet matvec``: the attention core as a matrix-vector engine."""

from dataclasses import asdict
from typing import Annotated

import typer

from benchmarks.cli_common import PRESET_HELP, Changes, print_fields, user_input

core_app = typer.Typer()


@core_app.command()
def matvec(
    rows: Annotated[int, typer.Option(help="Outputs.")] = 768,
    columns: Annotated[int, typer.Option(help="Inputs.")] = 3072,
    bits: Annotated[int, typer.Option(help="Of a weight: 4, 6, 8, 10 or 12.")] = 8,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "paper",
    changes: Changes = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights and vector.")] = 1,
    rtl: Annotated[
        bool, typer.Option("--rtl", help="Run the simulated Verilog: paper takes minutes to build, once.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """A matrix times a vector on the attention core: cycles, and how near they are to the bound of DRAM."""
    with user_input():
        from benchmarks.matvec import run_matvec
        from hw.config import chip_of

        run = run_matvec(rows, columns, bits, chip_of(preset, changes or ()), seed=seed, rtl=rtl)
    print_fields({**asdict(run), "share_of_bound": run.share_of_bound}, as_json=as_json)
    if run.mismatches:
        raise typer.Exit(1)
