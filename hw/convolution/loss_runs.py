# SPDX-License-Identifier: MIT
"""Pictures to try the convolution core's loss with, corners first. Imports numpy only."""

from dataclasses import replace
from typing import Any

import numpy as np

from hw.loss.config import GRADIENT_BITS, Job, smoothed
from hw.loss.vectors import HIGHEST, LOWEST
from hw.systolic.layer import Layer

from .config import ConvolutionConfig
from .operations import LossGradient, Reduce
from .runs import Run, conv, random_epilogue

FRACTION_BITS = 8


def loss_runs(config: ConvolutionConfig, *, seed: int) -> list[Run]:
    """Pictures of every size; a classifier's step."""
    rng = np.random.default_rng(seed)
    return [pictures(config, rng), classifier(config, rng)]


def pictures(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Of 2 classes, around a tile, as many as there may be; of the first class, the last and some other; all
    scores equal, one huge, a ramp; one reader and two, a mask, sums."""
    c, most = config.array.columns, config.max_classes
    operations, maps = [], {}
    for name, n, label, job, scores, outputs, more in (
        ("two", 2, 1, Job(fraction_bits=FRACTION_BITS), "normal", {"a": 16}, {}),
        ("huge", 2, 0, None, "huge", {"b": 8}, {}),
        ("three", 3, 1, None, "equal", {"c": 16, "c8": 8}, {}),
        ("less", c - 1, c - 2, None, "huge", {"d": 16}, {"reduce": Reduce(name="d sums", shift=0)}),
        ("tile", c, 0, Job(), "ramp", {"e": 8, "e16": 16}, {"mask": "e open"}),
        ("more", c + 1, c, None, "normal", {"f": 16}, {"masked_by": "f open"}),
        ("most", most, most // 2, None, "normal", {"g": 16, "g8": 8}, {}),
    ):
        made = picture(name, n, rng, outputs, **more)
        operations.append(made if job is None else replace(made, job=job))
        maps[f"{name}'s scores"] = _scores(scores, n, rng)
        maps[f"{name}'s label"] = np.array([[label]])
    maps["f open"] = rng.integers(0, 2, (1, 1, c + 1))
    return Run(name="losses", operations=operations, maps=maps)


def picture(
    name: str, n_classes: int, rng: np.random.Generator, outputs: dict[str, int], **epilogue: Any
) -> LossGradient:
    """A smoothed loss; ``outputs``: bits of each map written."""
    return LossGradient(
        name=name, source=f"{name}'s scores", label=f"{name}'s label",
        job=smoothed(0.1, n_classes, fraction_bits=FRACTION_BITS),
        epilogue=random_epilogue(rng, (1, 1, n_classes), outputs, GRADIENT_BITS, **epilogue),
    )  # fmt: skip


def _scores(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """int64[1, 1, n]"""
    huge = np.full(n, LOWEST)
    huge[n // 2] = HIGHEST
    made = {
        "normal": np.rint(rng.normal(0, 2 << FRACTION_BITS, n)).astype(np.int64),
        "equal": np.full(n, -1),
        "huge": huge,
        "ramp": np.linspace(LOWEST, HIGHEST, n).astype(np.int64),
    }
    return made[kind][None, None]


def classifier(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Scores from a convolution; their loss, the bias's gradient with it; back through the convolution."""
    n_in, n_out = config.array.columns + 1, config.array.columns + 2
    layer, back = (
        Layer(height=1, width=1, n_in=a, n_out=b, kernel=1, wide=wide)
        for a, b, wide in ((n_in, n_out, False), (n_out, n_in, True))
    )
    loss = picture("loss", n_out, rng, {"dy": 16, "dy16": 16}, reduce=Reduce(name="of bias", shift=2))
    return Run(
        name="classifier",
        operations=[
            conv("forward", layer, "x", rng, {"loss's scores": 16}, named_table="of forward"),
            loss,
            conv("back", back, "dy", rng, {"dx": 16}),
        ],
        maps={"x": rng.integers(-128, 128, (1, 1, n_in)), "loss's label": np.array([[n_out - 1]])},
    )
