# SPDX-License-Identifier: MIT
"""Cycle model of the epilogue: a beat for a reader or the mask every cycle, jobs back to back.

Imports numpy at most.
"""

from collections.abc import Sequence

import numpy as np

from .config import LATENCY_CYCLES, TABLE_BEATS, Job

FIRST_STEP_CYCLE = 2
"""The job is taken in cycle 1."""


def job_cycles(job: Job) -> int:
    """A job taken to the next one taken: its table, then each beat for each reader and the mask."""
    return _idle_cycles(job) + job.n_beats * (len(job.readers) + job.mask)


def _idle_cycles(job: Job) -> int:
    """Before the first beat: the table; sums rest for a cycle, until the last beat is among them."""
    return 1 if job.gives_sums else TABLE_BEATS * job.n_tables


def replay(jobs: Sequence[Job]) -> list[np.ndarray]:
    """Cycle of each output beat of each job at full rate, from reset; the first transfer is cycle 1."""
    stamps, start = [], FIRST_STEP_CYCLE
    for job in jobs:
        first = start + _idle_cycles(job) + LATENCY_CYCLES
        start += job_cycles(job)
        stamps.append(np.arange(first, start + LATENCY_CYCLES))
    return stamps
