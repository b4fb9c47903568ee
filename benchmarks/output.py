# SPDX-License-Identifier: MIT
"""What commands leave: files that are written whole, and a summary on stdout."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from algo.files import write_atomically


def write_files(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Contents by name into ``out``; returns the paths."""
    for name, content in files.items():
        write_atomically(out / name, content)
    return [out / name for name in files]


def as_png(figure: Figure) -> bytes:
    """At 130 dots an inch."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()


def as_json_bytes(value: Any) -> bytes:
    """Indented, with a newline at the end."""
    return (json.dumps(value, indent=1) + "\n").encode()


def print_markdown(summary: Any, text: str, written: list[Path], *, as_json: bool) -> None:
    """Tables in Markdown on stdout, then the files written; or the summary as JSON."""
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    print(text)
    for path in written:
        print(path)
