# SPDX-License-Identifier: MIT
"""The three experiments behind ``quartet quality``."""

from collections.abc import Sequence
from pathlib import Path

import torch

from algo.attention.finetune import TrainConfig
from benchmarks.quality import language, probability, sentiment
from benchmarks.quality.progress import Progress

NAMES = ("probability", "language", "sentiment")
"""The quickest first."""


def check_names(names: Sequence[str] | None) -> list[str]:
    """The experiments asked for, all if none is named; ValueError for an unknown one."""
    for name in names or []:
        if name not in NAMES:
            raise ValueError(f"experiment must be one of {', '.join(NAMES)}, not {name!r}")
    return [name for name in NAMES if not names or name in names]


def run_experiments(
    names: Sequence[str],
    out: Path,
    text: Path | None,
    data: Path | None,
    device: str,
    threads: int | None,
    progress: Progress,
) -> None:
    """Compute what is missing in ``out``, one folder for each experiment. ``device`` is for the training."""
    TrainConfig(device=device)  # rejects a device that is not there before any work
    if threads is not None:
        torch.set_num_threads(threads)
    text_path = str(text) if text else None
    if "probability" in names:
        probability.run(out / "probability", probability.Setup(), text_path, progress)
    if "language" in names:
        language.run(out / "language", language.Setup(), text_path, progress)
    if "sentiment" in names:
        setup = sentiment.Setup(device=device)
        sentiment.run(out / "sentiment", setup, str(data) if data else None, progress)
