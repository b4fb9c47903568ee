# SPDX-License-Identifier: MIT
"""Error of the fixed-point softmax against float64, measured: ``python -m benchmarks.softmax_accuracy``.

Draws ``docs/img/softmax_error.svg`` and prints its figures as a Markdown table.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, style
from hw.softmax.config import SoftmaxConfig, row_scale
from hw.softmax.golden import softmax

SEED = 7
N_ROWS = 400
N_KEYS = (2, 8, 64, 204, 1024)
UNIT = 2.0**-18
BOUND_UNITS = 11.5
"""Derived in docs/softmax.md."""
CONFIG = SoftmaxConfig()
OUTPUT = Path("docs/img/softmax_error.svg")

Scores = Callable[[np.random.Generator, int], np.ndarray]
"""A random generator and a number of keys to float64[N_ROWS, n], in units of log e."""


def _one_above(rng: np.random.Generator, n: int) -> np.ndarray:
    scores = np.zeros((N_ROWS, n))
    scores[:, 1:] = -(np.log(n - 1) + rng.uniform(-2, 2, N_ROWS))[:, None]
    return scores


def _pair(rng: np.random.Generator, n: int) -> np.ndarray:
    scores = np.full((N_ROWS, n), -40.0)
    scores[:, 0] = 0
    scores[:, n // 2] = rng.uniform(-2, 0, N_ROWS)
    return scores


KINDS: dict[str, tuple[Scores, str]] = {
    "normal, deviation 1": (lambda rng, n: rng.normal(0, 1, (N_ROWS, n)), BLUE),
    "normal, deviation 5": (lambda rng, n: rng.normal(0, 5, (N_ROWS, n)), GREEN),
    "one key holds about half": (_one_above, VERMILION),
    "two keys share the row": (_pair, ORANGE),
    "all equal": (lambda rng, n: np.zeros((N_ROWS, n)), PURPLE),
}


def errors(kind: Scores, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed error of each row's worst key before rounding, units of 2^-18, and after, units of 2^-12."""
    rng = np.random.default_rng(SEED)
    # Any step serves: the scores are integers, and the float softmax takes the same integers.
    step = 2.0**-20 * rng.uniform(0.5, 1, N_ROWS)
    scores = np.rint(kind(rng, n_keys) / step[:, None]).astype(np.int64)
    scale = torch.tensor([row_scale(float(one)) for one in step])
    rows = softmax(torch.from_numpy(scores), scale[:, 0], scale[:, 1], CONFIG)
    below = scores.max(axis=1, keepdims=True) - scores
    powers = np.exp(-below * step[:, None])
    exact = powers / powers.sum(axis=1, keepdims=True)
    return _worst(rows.unrounded.numpy() - exact) / UNIT, _worst(
        rows.probability.numpy() / 4096 - exact
    ) * 4096


def _worst(error: np.ndarray) -> np.ndarray:
    return np.take_along_axis(error, np.abs(error).argmax(axis=1)[:, None], axis=1)[:, 0]


def main() -> None:
    """Measure, draw, print."""
    print("| rows | keys | worst before rounding, 2^-18 | after, 2^-12 |")
    print("|---|---|---|---|")
    with style():
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        ax = figure.subplots()
        width = 0.8 / len(KINDS)
        rng = np.random.default_rng(SEED)
        for place, (name, (kind, colour)) in enumerate(KINDS.items()):
            for group, n_keys in enumerate(N_KEYS):
                before, after = errors(kind, n_keys)
                worst = np.abs(before).max()
                print(f"| {name} | {n_keys:,} | {worst:.2f} | {np.abs(after).max():.3f} |")
                middle = group + (place - (len(KINDS) - 1) / 2) * width
                x = middle + rng.uniform(-0.35, 0.35, N_ROWS) * width
                ax.scatter(x, before, s=3, color=colour, alpha=0.35, linewidths=0, rasterized=True)
                ax.plot([], [], "o", color=colour, ms=5, label=name if group == 0 else None)
        for bound, words in ((BOUND_UNITS, "derived bound, 11.5"), (16, "contract, 2$^{-14}$")):
            ax.axhline(bound, color=GREY, lw=1, ls="--")
            ax.axhline(-bound, color=GREY, lw=1, ls="--")
            ax.text(
                len(N_KEYS) - 0.45, bound + 0.3, words, ha="right", va="bottom", color="#57606A", fontsize=9
            )
        ax.axhline(0, color=GREY, lw=0.7)
        ax.set(
            xticks=range(len(N_KEYS)),
            xticklabels=[f"{n:,}" for n in N_KEYS],
            xlabel="keys of the row",
            ylabel="error of the worst key, 2$^{-18}$",
            xlim=(-0.5, len(N_KEYS) - 0.4),
            ylim=(-18, 19),
            title=f"Softmax before its last rounding, against float64 ({N_ROWS} rows each)",
        )
        ax.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        OUTPUT.parent.mkdir(exist_ok=True)
        figure.savefig(OUTPUT, metadata={"Date": None}, dpi=200)


if __name__ == "__main__":
    main()
