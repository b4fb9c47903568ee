# SPDX-License-Identifier: MIT
"""Losses of a training by the core's integers beside float, step by step, and its files."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from algo.files import write_atomically
from benchmarks.output import as_json_bytes
from benchmarks.plots import BLACK, BLUE, VERMILION, style


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step on one picture."""

    picture: int
    integer_loss: float
    float_loss: float


def losses(steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Of integers and of float."""
    integer, exact = np.array([(step.integer_loss, step.float_loss) for step in steps]).T
    return integer, exact


def stored(
    path: Path,
    result: dict[str, Any],
    steps: Sequence[Step],
    picture: bytes,
    in_verilog: Callable[[], dict[str, Any]] | None,
) -> dict[str, Any]:
    """``steps.csv`` and ``loss.png`` beside ``path``, which takes ``result`` as JSON, and once more with what
    ``in_verilog`` adds: a training is kept even if that fails. Returns all of it."""
    write_atomically(path.parent / "steps.csv", as_csv(steps))
    write_atomically(path.parent / "loss.png", picture)
    write_atomically(path, as_json_bytes(result))
    if in_verilog is not None:
        result = result | in_verilog()
        write_atomically(path, as_json_bytes(result))
    return result


def as_csv(steps: Sequence[Step]) -> bytes:
    """A row for each step."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["step", "picture", "integer_loss", "float_loss"])
    for number, step in enumerate(steps):
        writer.writerow([number, step.picture, f"{step.integer_loss:.6g}", f"{step.float_loss:.6g}"])
    return file.getvalue().encode()


def as_png(title: str, steps: Sequence[Step], n_mean: int, what: str, scale: str = "log") -> bytes:
    """Loss of each step, and the mean over each ``n_mean`` steps, which ``what`` names; ``scale`` of losses
    as matplotlib has it."""
    file = io.BytesIO()
    integer, exact = losses(steps)
    with style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        ax = figure.subplots()
        for values, label, colour, line in (
            (exact, "float", VERMILION, "-"),
            (integer, "integers of the core", BLUE, "--"),
        ):
            ax.plot(values, color=colour, linewidth=0.5, alpha=0.35)
            means = values[: len(values) // n_mean * n_mean].reshape(-1, n_mean).mean(1)
            at = (np.arange(len(means)) + 0.5) * n_mean
            ax.plot(at, means, line, color=colour, linewidth=1.8, label=f"{label}, mean over {what}")
        ax.set_title(title, fontsize=9)
        ax.set(xlabel="step, a picture each", ylabel="loss", yscale=scale)
        figure.legend(labelcolor=BLACK, loc="outside lower center", ncols=2)
        ax.grid(axis="y", which="both")
        figure.savefig(file, format="png", dpi=150)
    return file.getvalue()
