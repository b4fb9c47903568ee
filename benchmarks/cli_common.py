# SPDX-License-Identifier: MIT
"""What the files of the command line share."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

PRESET_HELP = "Chip: paper, paper_eighth, plus, edge or tiny."
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the chip, such as topk.lanes=8; repeatable."),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


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


def print_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    """One line each on stdout, or all as JSON."""
    if as_json:
        print(json.dumps(fields, indent=1))
        return
    for name, value in fields.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
