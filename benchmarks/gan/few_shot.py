# SPDX-License-Identifier: MIT
"""DiffAugment on few pictures: 100 emoji faces, and fractions of Fashion-MNIST.

Each case is one training run. ``quality`` is measured several times on the way, because a generator whose
discriminator learns its pictures by heart gets worse again. Fashion-MNIST is compared with its test part,
which no run has seen; the emoji faces, of which there are no more, with themselves.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from algo.anycost.architecture import GeneratorConfig
from algo.gan.data import ImageSet, load_images
from algo.gan.loop import LoopConfig, Losses, run
from algo.gan.pictures import grid, write_png
from algo.gan.training import GanConfig, GanTraining, sample
from benchmarks.gan.features import NAME
from benchmarks.gan.judge import Judge
from benchmarks.gan.metrics import kid, standardised
from benchmarks.gan.training import N_SHOWN, describe_step
from benchmarks.quality.progress import Progress
from benchmarks.quality.store import cached, fingerprint, load_results

COMMAND = "quartet gan"
POLICY = "color,translation,cutout"
N_HALVES = 20
CHECKS = "checks"
"""Folder of the measurements inside that of a run."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    fraction: float
    """Of the pictures there are."""
    loss: str
    augment: str
    seed: int

    @property
    def name(self) -> str:
        """Also that of its files."""
        kind = "diffaugment" if self.augment else "plain"
        return f"{self.loss}-{100 * self.fraction:g}-{kind}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """An experiment."""

    cases: tuple[Case, ...]
    data: str
    n_pictures: int | None
    """Of which the fractions are taken; None: all."""
    conditional: bool
    mirror: bool
    n_steps: int
    n_checks: int
    """Measurements on the way, evenly spaced, the last at the end."""
    channel_multiplier: float
    max_channels: int = 32
    style_size: int = 64
    n_mapping_layers: int = 4
    resolution: int = 32
    batch_size: int = 16
    learning_rate: float = 2e-3
    r1_weight: float = 1.0
    n_fakes: int = 500
    device: str = "cpu"

    def shape(self, n_classes: int) -> GeneratorConfig:
        """Of the generator."""
        return GeneratorConfig(
            resolution=self.resolution, channel_multiplier=self.channel_multiplier,
            max_channels=self.max_channels, style_size=self.style_size,
            n_mapping_layers=self.n_mapping_layers, n_classes=n_classes,
        )  # fmt: skip


EMOJI = Setup(
    cases=tuple(Case(1.0, "nonsaturating", augment, seed) for seed in (0, 1, 2) for augment in (POLICY, "")),
    data="emoji-smileys",
    n_pictures=100,
    conditional=False,
    mirror=True,
    n_steps=4000,
    n_checks=4,
    channel_multiplier=1 / 16,
)
"""0.08 CPU seconds a step: six minutes a run with its measurements."""
EMOJI_NO_R1 = replace(EMOJI, r1_weight=0.0, n_checks=8)
"""Nothing but DiffAugment keeps the discriminator from learning the pictures by heart."""
EMOJI_ANIMALS = replace(EMOJI, data="emoji-animals", n_checks=8)
"""Pictures that have less in common than the faces."""
FASHION = Setup(
    cases=tuple(
        Case(fraction, "hinge", augment, 0) for fraction in (0.1, 1.0, 0.2) for augment in (POLICY, "")
    )
    + tuple(Case(0.1, "nonsaturating", augment, 0) for augment in (POLICY, "")),
    data="fashion",
    n_pictures=None,
    conditional=True,
    mirror=False,  # shoes point one way
    n_steps=3600,
    n_checks=2,
    channel_multiplier=1 / 32,
)
"""0.056 CPU seconds a step: four minutes a run with its measurements."""
SETUPS = {
    "emoji": EMOJI, "emoji-no-r1": EMOJI_NO_R1, "emoji-animals": EMOJI_ANIMALS, "fashion": FASHION
}  # fmt: skip
"""By experiment."""
REALS = "reals"
"""Result that says how far real pictures are from others of their kind: no generator gets nearer."""


def run_few_shot(folder: Path, setup: Setup, progress: Progress) -> None:
    """Train and measure what is not there yet; an interrupted run goes on."""
    pictures = load_images(setup.data, setup.resolution)
    if setup.n_pictures:
        pictures = pictures.subset(setup.n_pictures)
    if not setup.conditional:
        pictures = pictures.without_labels()
    has_test_part = setup.data == "fashion"

    @cache
    def unseen() -> Judge | None:
        return Judge(load_images(setup.data, setup.resolution, test=True)) if has_test_part else None

    @cache
    def judge(n: int) -> Judge:
        return Judge(pictures.subset(n), unseen(), mirror=setup.mirror)

    shared = {key: value for key, value in asdict(setup).items() if key not in ("cases", "device")}
    shared |= {"sha256": pictures.sha256, "features": NAME}
    cached(folder, REALS, shared, lambda: _reals(judge(len(pictures.images)), has_test_part))
    for case in setup.cases:
        inputs = shared | {"case": asdict(case)}
        n = round(case.fraction * len(pictures.images))
        compute = partial(
            _run_case,
            folder,
            setup,
            case,
            pictures.subset(n),
            partial(judge, n),
            fingerprint(inputs),
            progress,
        )
        cached(folder, case.name, inputs, compute)


def _reals(judge: Judge, has_test_part: bool) -> dict[str, Any]:
    """KID of training pictures to the test part; without one, of half of them to the rest, many halves."""
    real, other = standardised(judge.of_reference, judge.of_training)
    if has_test_part:
        return {"kid": kid(real, other), "n_real": len(real), "n_other": len(other)}
    rng, half, kids = torch.Generator().manual_seed(0), len(real) // 2, []
    for _ in range(N_HALVES):
        order = torch.randperm(len(real), generator=rng)
        kids.append(kid(real[order[:half]], real[order[half:]]))
    return {"kid": sum(kids) / N_HALVES, "n_real": half, "n_other": len(real) - half}


def _run_case(
    folder: Path, setup: Setup, case: Case, pictures: ImageSet, judge_of: Callable[[], Judge], mark: str,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    config = GanConfig(
        batch_size=setup.batch_size, learning_rate=setup.learning_rate, loss=case.loss, augment=case.augment,
        r1_weight=setup.r1_weight, mirror=setup.mirror, noise=False, device=setup.device,
    )  # fmt: skip
    training = GanTraining(setup.shape(pictures.n_classes), pictures, config, seed=case.seed)
    every = -(-setup.n_steps // setup.n_checks)
    loop = LoopConfig(n_steps=setup.n_steps, seed=case.seed, checkpoint_steps=every)
    runs, n_here = folder / "runs" / f"{case.name}-{mark}", 0

    def check(step: int) -> None:
        progress(f"{case.name}: measuring", step, setup.n_steps)
        fakes = sample(training.average, setup.n_fakes)
        cached(runs / CHECKS, f"{step:06d}", {}, lambda: judge_of().quality(fakes).to_dict())

    def on_step(step: int, n: int, losses: Losses) -> None:
        nonlocal n_here
        n_here += 1
        progress(f"{case.name}: {describe_step(losses)}", step, n)

    cpu_s = time.process_time()
    losses = run(training, loop, runs, on_step, check)
    cpu_s = time.process_time() - cpu_s
    saved = load_results(runs, (CHECKS,), COMMAND)[CHECKS]
    checks = [{"step": int(step), **found["result"]} for step, found in saved.items()]
    write_png(folder / f"{case.name}.png", grid(sample(training.average, N_SHOWN)), scale=2)
    fakes = sample(training.average, setup.n_fakes)
    write_png(folder / f"{case.name}-nearest.png", judge_of().nearest_pairs(fakes), scale=2)
    return {
        "n_pictures": len(pictures.images),
        "quality": checks[-1],
        "checks": checks,
        "last_losses": losses[-1],
        "cpu_seconds_here": cpu_s,
        "n_steps_here": n_here,
    }
