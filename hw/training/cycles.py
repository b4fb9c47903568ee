# SPDX-License-Identifier: MIT
"""Exact cycle model of the kernels: what each cycle takes and gives, without the arithmetic.

Imports numpy at most.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import UPDATE_LATENCY_CYCLES, Image, Kernel
from .microcode import Give, Instruction, program


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """What of a job decides its time."""

    kernel: Kernel
    count: int
    """Elements, or groups."""
    halves: bool = False
    image: Image = Image.NONE


class _Update:
    """:class:`hw.training.update.Update`."""

    def __init__(self) -> None:
        self.job: Timed | None = None
        self.n_left = 0
        self.upper = False
        self.stages: list[int | None] = [None] * UPDATE_LATENCY_CYCLES
        """Of each element under way, the words that follow its master."""
        self.place = self.word = 0

    @property
    def idle(self) -> bool:
        return not self.n_left and not any(stage is not None for stage in self.stages)

    @property
    def shown(self) -> int | None:
        """Reader of the beat on the output."""
        return None if self.stages[-1] is None else int(self.word != 0)

    def look(self, sums: bool, words: bool, taken: bool) -> None:
        self.leaves = self.stages[-1] is not None and taken and self.word == self.stages[-1]
        self.given = self.stages[-1] is not None and taken
        self.flow = self.stages[-1] is None or self.leaves
        self.goes = bool(self.n_left) and self.flow and sums and words
        self.takes_word = self.goes
        self.takes_sum = self.goes and self.job is not None and (self.upper or not self.job.halves)

    def tick(self, job: Timed | None) -> None:
        if self.given:
            self.word = 0 if self.leaves else self.word + 1
        if self.flow:
            self.stages = [self._words() if self.goes else None, *self.stages[:-1]]
        if self.goes:
            self.upper, self.n_left = not self.upper, self.n_left - 1
        if job is not None:
            self.job, self.n_left, self.upper = job, job.count, False

    def _words(self) -> int:
        assert self.job is not None
        image = self.job.image
        self.place = (self.place + 1) % image.per_beat
        return image.words if self.place == 0 else 0


class _Processor:
    """:class:`hw.training.processor.Processor`."""

    def __init__(self) -> None:
        self.steps = deque[Instruction]()
        """Instructions that are not read yet, the first of them being read."""
        self.stages: list[Instruction | None] = [None] * 3
        self.shown: int | None = None

    @property
    def idle(self) -> bool:
        return not self.steps and self.stages == [None] * 3

    def look(self, sums: bool, words: bool, taken: bool) -> None:
        passing = self.stages[0]
        self.flow, self.takes_sum, self.takes_word, self.gives = True, False, False, False
        self.taken = taken
        if passing is None:
            return
        self.gives = passing.give != Give.NOTHING
        self.flow = (
            (sums or not passing.takes_sum)
            and (words or not passing.sees_word)
            and (not self.gives or self.shown is None or taken)
        )
        self.takes_sum = self.flow and passing.takes_sum
        self.takes_word = self.flow and passing.takes_word

    def tick(self, job: Timed | None) -> None:
        if self.taken:
            self.shown = None
        if self.flow:
            if self.gives and self.stages[0] is not None:
                self.shown = int(self.stages[0].second)
            self.stages = [self.steps.popleft() if self.steps else None, *self.stages[:-1]]
        if job is not None:
            self.steps.extend(program(job.kernel) * job.count)


class Course:
    """:class:`hw.training.rtl.Training`, cycle by cycle: ``look``, then ``tick``."""

    def __init__(self) -> None:
        self.update, self.processor = _Update(), _Processor()

    @property
    def shown(self) -> int | None:
        """Reader of the beat on ``o``, if there is one."""
        return self.update.shown if self.processor.shown is None else self.processor.shown

    def look(self, sums: bool, words: bool, taken: bool) -> None:
        """``sums`` and ``words``: whether a word of each is offered; ``taken``: whether ``o`` is ready."""
        self.update.look(sums, words, taken and self.processor.shown is None)
        self.processor.look(sums, words, taken)
        self.takes_sum = self.update.takes_sum or self.processor.takes_sum
        self.takes_word = self.update.takes_word or self.processor.takes_word
        self.job_ready = self.update.idle and self.processor.idle

    def tick(self, job: Timed | None) -> None:
        """``job``: what is taken in this cycle."""
        is_update = job is not None and job.kernel == Kernel.UPDATE
        self.update.tick(job if is_update else None)
        self.processor.tick(None if is_update else job)


def readers_of(job: Timed) -> tuple[int, ...]:
    """Whom each beat that a job gives is for, in order."""
    if job.kernel != Kernel.UPDATE:
        return tuple(int(one.second) for one in program(job.kernel) if one.give != Give.NOTHING) * job.count
    every, image = job.image.per_beat, job.image
    return (every * (0,) + image.words * (1,)) * (job.count // every)


def replay(jobs: Sequence[Timed]) -> np.ndarray:
    """Cycle of each beat on ``o`` at full rate, from reset; the first job is taken in cycle 1."""
    course, waiting, stamps, cycle = Course(), deque(jobs), list[int](), 0
    while waiting or not (course.update.idle and course.processor.idle and course.shown is None):
        cycle += 1
        if course.shown is not None:
            stamps.append(cycle)
        course.look(True, True, True)
        course.tick(waiting.popleft() if waiting and course.job_ready else None)
    return np.array(stamps, dtype=np.int64)


def job_cycles(job: Timed) -> int:
    """A job taken to the first cycle in which the next one can be, at full rate.

    Update: each element and each word of its image takes a cycle, and 1 + UPDATE_LATENCY_CYCLES pass at its
    beginning and end. Norms: an instruction a cycle, and 4 pass.
    """
    if job.kernel == Kernel.UPDATE:
        images = job.count // job.image.per_beat * job.image.words
        return job.count + images + UPDATE_LATENCY_CYCLES + 1
    return job.count * len(program(job.kernel)) + 4
