# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the augmentation unit."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import (
    CHANNELS,
    LFSR_BITS,
    ONE,
    OPERATIONS,
    RECIPROCAL_BITS,
    AugmentConfig,
    Draws,
    Job,
)
from .cycles import replay
from .golden import augment, drawn

Task = tuple[Job, np.ndarray]
"""A job and its image int64[height, width, 3]."""

ORDERS = [order for n in range(len(OPERATIONS) + 1) for order in permutations(OPERATIONS, n)]
"""Every policy: 16, of which the empty one is the first."""


def cases(config: AugmentConfig, *, seed: int, n_random: int) -> list[Case]:
    """Smallest images, every order, longest lines, extremes, drawn parameters; then random jobs."""
    rng = np.random.default_rng(seed)
    most = min(config.max_size, config.max_pixels)
    sizes: dict[str, list[tuple[tuple[int, int], Sequence[str]]]] = {
        "smallest images": [(size, order) for size in ((1, 1), (1, 2), (2, 1)) for order in ORDERS[-2:]],
        "every order": [((3, 4) if config.max_pixels > 4 else (2, 2), order) for order in ORDERS],
        "longest lines": [((1, most), OPERATIONS), ((most, 1), OPERATIONS)],
        "random jobs": [(_size(config, rng), ORDERS[rng.integers(len(ORDERS))]) for _ in range(n_random)],
    }
    made = [
        case(name, [task(size, order, config, rng) for size, order in of_case], config)
        for name, of_case in sizes.items()
        if of_case
    ]
    made.append(case("extremes", _extremes((2, 2), config, rng), config))
    made.append(case("drawn", _drawn((2, 2), config, rng), config))
    return made


def _size(config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int]:
    height = int(rng.integers(1, min(config.max_size, 8, config.max_pixels) + 1))
    return height, int(rng.integers(1, min(config.max_size, 9, config.max_pixels // height) + 1))


def task(
    size: tuple[int, int], policy: Sequence[str], config: AugmentConfig, rng: np.random.Generator
) -> Task:
    """Noise, and parameters anywhere in their ranges; every second one on average an adjoint."""
    height, width = size
    bound = 1 << (config.element_bits - 1)
    draws = Draws(
        brightness=int(rng.integers(-bound, bound)),
        saturation=int(rng.integers(0, 2 * ONE)),
        contrast=int(rng.integers(0, 2 * ONE)),
        shift_y=int(rng.integers(1 - height, height)),
        shift_x=int(rng.integers(1 - width, width)),
        centre_y=int(rng.integers(0, height + 1)),
        centre_x=int(rng.integers(0, width + 1)),
    )
    job = Job(
        height=height, width=width, policy=tuple(policy), adjoint=bool(rng.integers(2)), draws=draws,
        one_bits=config.element_bits - 1,
    )  # fmt: skip
    return job, rng.integers(-bound, bound, (height, width, CHANNELS))


def _extremes(size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> list[Task]:
    """Images of the lowest and of the highest values under the smallest and the largest parameters."""
    low, high = -(1 << (config.element_bits - 1)), (1 << (config.element_bits - 1)) - 1
    shape = (*size, CHANNELS)
    images = [np.full(shape, low), np.full(shape, high), rng.choice([low, high], shape)]
    tasks = []
    for gain in (0, ONE, 2 * ONE - 1):
        for brightness in (low, high):
            draws = Draws(brightness=brightness, saturation=2 * ONE - 1 - gain, contrast=gain)
            job = Job(height=size[0], width=size[1], policy=("color",), draws=draws, one_bits=0)
            tasks += [(job, image) for image in images]
    return tasks


def _drawn(size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> list[Task]:
    """Parameters of the unit's own, from the LFSR as it stands after reset, then seeded, then going on."""
    tasks = []
    for seed in (0, 0, 1, (1 << LFSR_BITS) - 1, 0x5EED_1234, 0, 0):
        job, image = task(size, OPERATIONS, config, rng)
        tasks.append((replace(job, draw=True, seed=seed, draws=Draws()), image))
        tasks.append(task(size, ("cutout", "color"), config, rng))
    return tasks


def case(name: str, tasks: Sequence[Task], config: AugmentConfig) -> Case:
    """Images back to back."""
    jobs = [job for job, _ in tasks]
    with_draws = drawn(jobs)
    outputs = [
        augment(torch.from_numpy(x), job, config).numpy()
        for job, (_, x) in zip(with_draws, tasks, strict=True)
    ]
    lasts = np.concatenate([np.arange(job.n_pixels) == job.n_pixels - 1 for job in jobs])
    bits = config.element_bits
    cycles = replay(jobs)
    return Case(
        name=name,
        inputs={
            "i_job": pack_fields(
                [
                    *zip(np.array([_fields(job) for job in jobs]).T, _field_bits(config), strict=True),
                    *_draw_fields([job.draws for job in jobs], config),
                ]
            ),
            "i": pack_fields([(_elements([x for _, x in tasks], bits), bits)]),
        },
        expected={
            "o_draws": pack_fields(_draw_fields([job.draws for job in with_draws], config)),
            "o": pack_fields([(_elements(outputs, bits), bits), (lasts, 1)]),
        },
        expected_cycles=cycles,
        max_cycles=int(cycles["o"][-1]) + 100,
    )


def _elements(images: Sequence[np.ndarray], bits: int) -> np.ndarray:
    """uint64[n_pixels, 3] of all images."""
    return np.concatenate([x.reshape(-1, CHANNELS) for x in images]) & ((1 << bits) - 1)


def _fields(job: Job) -> tuple[int, ...]:
    return (
        job.height,
        job.width,
        *(name in job.policy for name in OPERATIONS),
        job.before("color", "translation"),
        job.before("color", "cutout"),
        job.before("translation", "cutout"),
        job.adjoint,
        job.draw,
        job.one_bits,
        job.seed,
        *job.reciprocal,
    )


def _field_bits(config: AugmentConfig) -> tuple[int, ...]:
    return (config.size_bits, config.size_bits, *[1] * 8, 4, LFSR_BITS, RECIPROCAL_BITS, 5)


def _draw_fields(draws: Sequence[Draws], config: AugmentConfig) -> list[tuple[np.ndarray, int]]:
    size = config.size_bits
    bits = (config.element_bits, 16, 16, size + 1, size + 1, size, size)
    names = Draws.__dataclass_fields__
    return [
        (np.array([getattr(d, name) for d in draws]) & ((1 << n) - 1), n)
        for name, n in zip(names, bits, strict=True)
    ]
