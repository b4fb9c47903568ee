# SPDX-License-Identifier: MIT
"""Cycle model of the augmentation unit: one image comes in while the one before goes out.

Imports numpy at most.
"""

from collections.abc import Sequence

import numpy as np

from .config import LATENCY_CYCLES, MEAN_CYCLES, PREPARE_CYCLES, Job


def image_cycles(job: Job) -> int:
    """From one of many images of a size to the next: its pixels and the pipeline, or the preparation."""
    return max(job.n_pixels + LATENCY_CYCLES, PREPARE_CYCLES + 1)


def replay(jobs: Sequence[Job]) -> dict[str, np.ndarray]:
    """Cycle of each beat of ``o_draws`` and ``o`` at full rate, from reset; the first transfer is cycle 1.

    A job is prepared in PREPARE_CYCLES and waits until the image before it is taken over by the output side;
    the next job is taken a cycle after it left. Its pixels come in the cycles after that, and MEAN_CYCLES
    behind the last one the output side may take the image over, once the image before has left its pipeline.
    """
    draws, pixels = [], []
    taken, over, free = 1, 0, 0
    for job in jobs:
        draws.append(taken + PREPARE_CYCLES)
        started = max(draws[-1], over + 1)
        over = max(started + job.n_pixels + MEAN_CYCLES, free)
        pixels.append(over + 1 + LATENCY_CYCLES + np.arange(job.n_pixels))
        free = over + job.n_pixels + LATENCY_CYCLES
        taken = started + 1
    return {"o_draws": np.array(draws), "o": np.concatenate(pixels)}
