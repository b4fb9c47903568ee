# SPDX-License-Identifier: MIT
"""The experiments behind ``quartet gan``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from algo.gan.training import GanConfig
from benchmarks.gan import elastic, few_shot
from benchmarks.quality.progress import Progress

NAMES = (*few_shot.SETUPS, "anycost")


def check_names(names: Sequence[str] | None) -> list[str]:
    """The experiments asked for, all if none is named; ValueError for an unknown one."""
    for name in names or []:
        if name not in NAMES:
            raise ValueError(f"--only must be one of {', '.join(NAMES)}, not {name!r}")
    return [name for name in NAMES if not names or name in names]


def run_experiments(names: Sequence[str], out: Path, device: str, threads: int, progress: Progress) -> None:
    """Compute what is missing in ``out``, one folder for each experiment."""
    GanConfig(device=device)  # rejects a device that is not there before any work
    torch.set_num_threads(threads)
    for name in names:
        if name == "anycost":
            elastic.run_elastic(out / name, elastic.Setup(device=device), progress)
        else:
            setup = replace(few_shot.SETUPS[name], device=device)
            few_shot.run_few_shot(out / name, setup, progress)
