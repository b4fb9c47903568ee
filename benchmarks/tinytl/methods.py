# SPDX-License-Identifier: MIT
"""``quartet transfer``: what each of TinyTL's methods reaches on the same data, with several seeds.

A run's seed draws its pictures, crops and new lite modules. Runs that are there are reused, an interrupted
one goes on.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from algo.gan.loop import LoopConfig
from algo.tinytl.architecture import METHODS
from algo.tinytl.transfer import TransferConfig
from benchmarks.quality.progress import Progress
from benchmarks.quality.store import cached, fingerprint
from benchmarks.tinytl.training import prepare_transfer

COMMAND = "quartet transfer"
RUNS = "runs"
"""Folder of the trainings inside that of the results."""
RATES = {
    "last": 5e-3, "bias": 2e-3, "lite": 2e-3, "lite+bias": 2e-3, "norm+last": 1e-3, "full": 3e-4,
}  # fmt: skip
"""Of Adam, by method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """An experiment: every method with every seed."""

    data: str = "fashion"
    resolution: int = 64
    n_pictures: int | None = None
    """To train on; None: all there are."""
    n_test: int | None = None
    methods: tuple[str, ...] = ("last", "bias", "lite+bias", "full")
    seeds: tuple[int, ...] = (0, 1, 2)
    n_steps: int = 3000
    batch_size: int = 16
    min_crop: float = 1.0
    """No crops: in so few steps they cost all methods accuracy, those with few parameters most."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}")


def run_methods(folder: Path, setup: Setup, threads: int, progress: Progress) -> None:
    """Train and measure what is not there yet: a file ``METHOD-seedN.json`` for each run."""
    torch.set_num_threads(threads)
    shared = {key: value for key, value in asdict(setup).items() if key not in ("methods", "seeds", "device")}
    for seed in setup.seeds:
        for method in setup.methods:
            inputs = shared | {"method": method, "learning_rate": RATES[method], "seed": seed}
            name = f"{method}-seed{seed}"
            run = folder / RUNS / f"{name}-{fingerprint(inputs)}"
            cached(folder, name, inputs, partial(_run, run, setup, method, seed, _named(name, progress)))


def _named(name: str, progress: Progress) -> Progress:
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _run(folder: Path, setup: Setup, method: str, seed: int, progress: Progress) -> dict[str, Any]:
    config = TransferConfig(
        batch_size=setup.batch_size, learning_rate=RATES[method], min_crop=setup.min_crop, device=setup.device
    )
    loop = LoopConfig(n_steps=setup.n_steps, seed=seed, checkpoint_steps=200)
    task = prepare_transfer(
        setup.data, setup.resolution, method, config, loop, folder,
        n_pictures=setup.n_pictures, n_test=setup.n_test,
    )  # fmt: skip
    cpu_s = time.process_time()
    result = task(progress)
    return {**result, "cpu_seconds_here": time.process_time() - cpu_s, "weights": folder.name}
