# SPDX-License-Identifier: MIT
"""The command ``quartet``. Thin: parse, call one library function, print."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Quartet: RTL, golden models and measurements of SpAtten and its companions.")


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


def main() -> None:
    """Entry point of the console script."""
    app()
