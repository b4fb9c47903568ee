# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the loss unit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.softmax.vectors import dense_beats

from .config import (
    FRACTION_BITS_BITS,
    GRADIENT_BITS,
    SCORE_BITS,
    TARGET_BITS,
    TARGET_FRACTION_BITS,
    Job,
    LossConfig,
    smoothed,
)
from .cycles import replay
from .golden import loss_gradient

LOWEST, HIGHEST = -(1 << (SCORE_BITS - 1)), (1 << (SCORE_BITS - 1)) - 1
ONE = 1 << TARGET_FRACTION_BITS
MANY_PICTURES = 80
"""More than wait anywhere."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One row of scores and its label."""

    scores: np.ndarray
    """int64[K]"""
    label: int
    job: Job


def cases(config: LossConfig, *, seed: int, n_random: int) -> list[Case]:
    """Corners; the fewest classes back to back; ``n_random`` random pictures of any number of classes."""
    rng = np.random.default_rng(seed)
    two = [random_picture(2, rng) for _ in range(MANY_PICTURES)]
    some = [random_picture(_n_classes(config, rng), rng) for _ in range(n_random)]
    made = [case("corners", list(corner_pictures(config)), config), case("two classes", two, config)]
    return made + ([case("random", some, config)] if some else [])


def corner_pictures(config: LossConfig) -> Iterator[Picture]:
    """All scores equal, one huge, extremes; 2 classes, around a beat, a full row; every lane's label."""
    most, lanes = config.max_classes, config.lanes
    for n in sorted({2, 3, lanes, lanes + 1, 2 * lanes - 1, most - 1, most} & set(range(2, most + 1))):
        smooth = smoothed(0.1, n, fraction_bits=8)
        huge = np.full(n, LOWEST)
        huge[n // 2] = HIGHEST
        ramp = np.linspace(LOWEST, HIGHEST, n).astype(np.int64)
        yield Picture(scores=np.full(n, -1), label=0, job=smooth)
        yield Picture(scores=huge, label=n // 2, job=smooth)
        yield Picture(scores=huge, label=n - 1, job=smooth)
        # p = 1 where the target is 0, and the other way round: both ends of the output.
        yield Picture(scores=huge, label=0, job=Job())
        yield Picture(scores=huge, label=n // 2, job=Job())
        yield Picture(scores=ramp, label=n - 1, job=smoothed(0.5, n, fraction_bits=13))
        yield Picture(scores=ramp, label=1, job=Job(fraction_bits=31, label_target=0, other_target=ONE))
    for label in range(min(2 * lanes + 1, most)):
        n = min(2 * lanes + 1, most)
        yield Picture(scores=np.arange(n), label=label, job=smoothed(0.1, n, fraction_bits=2))


def _n_classes(config: LossConfig, rng: np.random.Generator) -> int:
    return min(config.max_classes, int(np.exp2(rng.uniform(1, config.max_classes.bit_length() - 0.5))))


def random_picture(n_classes: int, rng: np.random.Generator) -> Picture:
    """Normal scores that the fraction bits spread over 2^-3..2^5, any label, epsilon up to 0.5."""
    deviation = 2.0 ** rng.uniform(1, 13)
    scores = np.clip(rng.normal(0, deviation, n_classes), LOWEST, HIGHEST).astype(np.int64)
    fraction_bits = max(0, round(np.log2(deviation) - rng.uniform(-3, 5)))
    job = smoothed(rng.uniform(0, 0.5), n_classes, fraction_bits=fraction_bits)
    return Picture(scores=scores, label=int(rng.integers(n_classes)), job=job)


def case(name: str, pictures: Sequence[Picture], config: LossConfig) -> Case:
    """Pictures back to back."""
    gradients = [
        loss_gradient(torch.from_numpy(p.scores), torch.tensor(p.label), p.job, config).numpy()
        for p in pictures
    ]
    cycles = replay([len(p.scores) for p in pictures], config)
    return Case(
        name=name,
        inputs={
            "i_job": job_beats(pictures, config),
            "i": dense_beats([p.scores for p in pictures], SCORE_BITS, config.lanes),
        },
        expected={"o": dense_beats(gradients, GRADIENT_BITS, config.lanes)},
        expected_cycles={"o": cycles},
        max_cycles=int(cycles[-1]) + 100,
    )


def job_beats(pictures: Sequence[Picture], config: LossConfig) -> Beats:
    """One beat of ``i_job`` for each picture."""
    return pack_fields(
        [
            (np.array([p.job.fraction_bits for p in pictures]), FRACTION_BITS_BITS),
            (np.array([p.label for p in pictures]), config.label_bits),
            (np.array([p.job.label_target for p in pictures]), TARGET_BITS),
            (np.array([p.job.other_target for p in pictures]), TARGET_BITS),
        ]
    )
