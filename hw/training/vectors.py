# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the kernels over lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from amaranth import Shape

from hw.harness.job import Beats, Case, pack_fields

from .config import (
    FACTOR_BITS,
    GROUP,
    MAX_COUNT,
    WORD_BITS,
    Image,
    Job,
    Kernel,
    Norm,
    NormBack,
    NormGamma,
    TrainingConfig,
    Update,
)
from .cycles import Timed, job_cycles, replay
from .golden import norm, norm_back, norm_gamma, update
from .layouts import job_fields, job_layout, kernel_of
from .microcode import N_SLOTS, SLOT_BITS

WORD_MASK = (1 << WORD_BITS) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A job with the words that it takes and gives."""

    job: Job
    count: int
    halves: bool = False
    plain: bool = False
    sums: np.ndarray
    """int64[n], words for ``i_sums``."""
    masters: np.ndarray
    """int64[n, 2], beats for ``i_master``."""
    given: np.ndarray
    """int64[n, 3], beats of ``o``: low and high word, reader."""

    @property
    def timed(self) -> Timed:
        """What the cycle model needs."""
        kernel = kernel_of(self.job, plain=self.plain)
        image = self.job.image if isinstance(self.job, Update) else Image.NONE
        return Timed(kernel=kernel, count=self.count, halves=self.halves, image=image)


def cases(config: TrainingConfig, *, seed: int, n_random: int) -> list[Case]:
    """Extremes of every number, every image with both widths of gradients, each norm; then random jobs, each
    right after the one before."""
    rng = np.random.default_rng(seed)
    return [
        case("update, extremes", [extreme_update(job) for job in _updates_at_ends()], config),
        case("update, images", _images(rng), config),
        case("norm", [norm_task(rng, pixels=p) for p in (1, 49, MAX_COUNT // GROUP)], config),
        case("norm, extremes", [*_norms_at_ends()], config),
        case("norm backward", [back_task(rng, pixels=p) for p in (1, 196, MAX_COUNT // GROUP)], config),
        case("norm backward, extremes", [*_backs_at_ends()], config),
        case("gradient of gamma", [gamma_task(rng, n_groups=n) for n in (1, 3)], config),
        case("random jobs", [random_task(rng) for _ in range(2 + n_random)], config),
    ]


def case(name: str, tasks: Sequence[Task], config: TrainingConfig) -> Case:
    """Tasks one after the other."""
    low, high, reader = np.concatenate([task.given for task in tasks]).T
    timed = [task.timed for task in tasks]
    return Case(
        name=name,
        inputs={
            "i_job": np.concatenate([_job_beat(task, config) for task in tasks]),
            "i_sums": pack_fields([(np.concatenate([task.sums for task in tasks]) & WORD_MASK, WORD_BITS)]),
            "i_master": pack_fields(
                [(np.concatenate([task.masters for task in tasks]) & WORD_MASK, WORD_BITS)]
            ),
        },
        expected={
            "o": pack_fields([(low & WORD_MASK, WORD_BITS), (high & WORD_MASK, WORD_BITS), (reader, 1)])
        },
        expected_cycles={"o": replay(timed)},
        max_cycles=sum(job_cycles(one) for one in timed) + 200,
    )


def _job_beat(task: Task, config: TrainingConfig) -> Beats:
    fields = {"slots": N_SLOTS * [0]} | job_fields(
        task.job, count=task.count, halves=task.halves, plain=task.plain
    )
    columns = []
    for name, field in job_layout(config):
        values = np.array([fields.get(name, 0)], np.int64)
        columns.append((values, SLOT_BITS if name == "slots" else Shape.cast(field.shape).width))
    return pack_fields(columns)


# ---- update


def update_task(job: Update, master: np.ndarray, gradient: np.ndarray, *, halves: bool = False) -> Task:
    """The update of int64[n, 2] by int64[n]; with an image of whole words."""
    made, image = update(torch.from_numpy(master), torch.from_numpy(gradient), job)
    given = [(*words, 0) for words in made.tolist()]
    if image is not None:
        every, beats = job.image.per_beat, []
        for first in range(0, len(given), every):
            beats += given[first : first + every]
            beats += [(word, 0, 1) for word in _image_words(image[first : first + every].tolist(), job.image)]
        given = beats
    words = gradient
    if halves:
        pairs = gradient.reshape(-1, 2) & 0xFFFF
        words = pairs[:, 0] | pairs[:, 1] << 16
    return Task(
        job=job, count=len(master), halves=halves, sums=words, masters=master, given=np.array(given, np.int64)
    )


def _image_words(elements: list[int], image: Image) -> list[int]:
    if image == Image.BYTES:
        return [sum((e & 0xFF) << 8 * place for place, e in enumerate(elements))]
    low, high = ([e >> shift & 0xFFFF for e in elements] for shift in (0, 16))
    return [half[0] | half[1] << 16 for half in ((low,) if image == Image.HALVES else (low, high))]


def extreme_update(job: Update) -> Task:
    """Every combination of the least, the largest and small numbers."""
    ends = np.array([-(1 << 31), (1 << 31) - 1, 0, -1, 1, 3 << 14])
    w, m, g = (axis.ravel() for axis in np.meshgrid(ends, ends, ends))
    return update_task(job, np.stack([w, m], -1), g)


def _updates_at_ends() -> list[Update]:
    top = (1 << FACTOR_BITS) - 1
    return [
        Update(momentum=top, rate=top, rate_shift=0, image=Image.BYTES, image_shift=0),
        Update(momentum=0, rate=1, rate_shift=47, image=Image.BIAS, image_shift=8),
        Update(momentum=1 << 15, rate=top, rate_shift=17, image=Image.HALVES, image_shift=31),
        Update(momentum=3, rate=0, rate_shift=1),
    ]


def random_update(rng: np.random.Generator, *, image: Image, halves: bool, n: int) -> Task:
    """Numbers of all magnitudes."""
    bits = 16 if halves else 32
    master = _any(rng, 32, (n, 2))
    job = Update(
        momentum=int(rng.integers(0, 1 << FACTOR_BITS)),
        rate=int(rng.integers(0, 1 << FACTOR_BITS)),
        rate_shift=int(rng.integers(0, 25)),
        image=image,
        image_shift=int(rng.integers(0, 32 - max(8, image.bits) + 1)),
    )
    return update_task(job, master, _any(rng, bits, (n,)), halves=halves)


def _images(rng: np.random.Generator) -> list[Task]:
    return [
        random_update(rng, image=image, halves=halves, n=8) for image in Image for halves in (False, True)
    ]


def _any(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Signed numbers of any magnitude up to so many bits."""
    top = 1 << (bits - 1)
    return rng.integers(-top, top, shape) >> rng.integers(0, bits, shape)


# ---- norms


def norm_task(
    rng: np.random.Generator, *, pixels: int, n_groups: int = 2, plain: bool = False, **changes
) -> Task:
    """Sums of a map with a mean and a deviation; masters of all magnitudes."""
    n = GROUP * n_groups
    mean, deviation = rng.normal(0, 4000, n_groups).repeat(GROUP), rng.uniform(100, 6000, n)
    s = np.rint(pixels * rng.normal(mean, deviation / np.sqrt(pixels))).astype(np.int64)
    p = np.rint(pixels * (deviation**2 + mean**2)).astype(np.int64)
    gamma, beta = (_any(rng, 20, (n,)) for _ in range(2))
    job = Norm(
        **{
            "pixels": pixels,
            "epsilon": int(rng.integers(0, 1000)),
            "shift": int(rng.integers(4, 12)),
            "gamma_shift": int(rng.integers(0, 5)),
            "beta_shift": int(rng.integers(0, 3)),
            **changes,
        }
    )
    return as_norm(job, np.stack([s, p], -1), gamma, beta, plain=plain)


def as_norm(job: Norm, sums: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, plain: bool = False) -> Task:
    """A norm of int64[n, 2], with masters int64[n]; ``plain``: without gamma."""
    of_gamma = None if plain else torch.from_numpy(gamma)
    fields, state = norm(torch.from_numpy(sums), of_gamma, torch.from_numpy(beta), job)
    words = beta[:, None] if plain else np.stack([gamma, beta], -1)
    given = []
    for first in range(0, len(sums), GROUP):
        group = slice(first, first + GROUP)
        given += [(word, 0, 1) for word in state[group].flatten().tolist()]
        given += _fields(fields.multiplier[group].tolist(), fields.bias[group].tolist())
    return Task(
        job=job, count=len(sums) // GROUP, plain=plain, sums=_words(sums), masters=_single(words.ravel()),
        given=np.array(given, np.int64),
    )  # fmt: skip


def _fields(multiplier: list[int], bias: list[int]) -> list[tuple[int, int, int]]:
    made = []
    for at in range(0, len(bias), 2):
        for values, shift in ((multiplier, 0), (bias, 0), (bias, 16)):
            low, high = (values[at + k] >> shift & 0xFFFF for k in (0, 1))
            made.append((low | high << 16, 0, 0))
    return made


def _words(sums: np.ndarray) -> np.ndarray:
    """Low and high word of each sum."""
    return np.stack([sums & WORD_MASK, sums >> WORD_BITS], -1).ravel()


def _single(words: np.ndarray) -> np.ndarray:
    """A word a beat, above it something that nobody reads."""
    return np.stack([words, ~words], -1)


def _norms_at_ends() -> list[Task]:
    """No variance, as much as there can be, sums that saturate; gamma and beta at their ends."""
    top = (1 << 47) - 1
    ends = np.array([-(1 << 31), (1 << 31) - 1, 0, 1, -1, 1 << 12, -(1 << 12), 1 << 16])
    sums = {
        "nothing": np.zeros((GROUP, 2), np.int64),
        "all": np.full((GROUP, 2), [0, 1 << 30]),
        "no variance": np.full((GROUP, 2), [-(1 << 15), 1 << 30]),
        "most": np.array(4 * [[top, top], [-top - 1, top]]),
        "least": np.full((GROUP, 2), [top, -top - 1]),
    }
    return [
        as_norm(
            Norm(pixels=pixels, epsilon=epsilon, shift=shift, gamma_shift=shift % 3),
            of,
            ends,
            ends[::-1].copy(),
        )
        for of in sums.values()
        for pixels, epsilon, shift in ((1, 0, 0), (2, 1, 30), (16_384, (1 << 31) - 1, 47))
    ]


def state_of(rng: np.random.Generator, n_groups: int) -> np.ndarray:
    """int64[8 n_groups, 2], as a norm might have left it."""
    mean, j = (
        rng.integers(-(1 << 23), 1 << 23, n_groups).repeat(GROUP),
        rng.integers(0, 12, n_groups).repeat(GROUP),
    )
    short_root = rng.integers(0, 1 << 15, n_groups).repeat(GROUP)
    gamma = rng.integers(-(1 << 15), 1 << 15, GROUP * n_groups)
    return np.stack([mean * 256 + j, gamma * 65_536 + short_root], -1)


def gradient_sums(rng: np.random.Generator, pixels: int, n_groups: int) -> np.ndarray:
    """Sums of gradients of about 2^9, and of their products with a map of about 2^12."""
    n = GROUP * n_groups
    s = rng.normal(0, 512 * np.sqrt(pixels), n)
    p = rng.normal(0, 512 * 4096 * np.sqrt(pixels), n)
    return np.rint(np.stack([s, p], -1)).astype(np.int64)


def back_task(rng: np.random.Generator, *, pixels: int, n_groups: int = 2, **changes) -> Task:
    """Exponents such that numbers neither vanish nor all saturate."""
    job = NormBack(
        **{
            "pixels": pixels,
            "scale_exponent": int(rng.integers(16, 40)),
            "multiplier_exponent": int(rng.integers(16, 32)),
            "bias_exponent": int(rng.integers(4, 24)),
            **changes,
        }
    )
    return as_back(job, gradient_sums(rng, pixels, n_groups), state_of(rng, n_groups))


def as_back(job: NormBack, sums: np.ndarray, state: np.ndarray) -> Task:
    """A norm's gradient of int64[n, 2] and int64[n, 2]."""
    scale, fields = norm_back(torch.from_numpy(sums), torch.from_numpy(state), job)
    given = []
    for first in range(0, len(sums), GROUP):
        group = slice(first, first + GROUP)
        scales, beats = (
            scale[group].tolist(),
            _fields(fields.multiplier[group].tolist(), fields.bias[group].tolist()),
        )
        for pair in range(GROUP // 2):
            low, high = (value & 0xFFFF for value in scales[2 * pair : 2 * pair + 2])
            given += [(low | high << 16, 0, 1), *beats[3 * pair : 3 * pair + 3]]
    return Task(
        job=job, count=len(sums) // GROUP, sums=_words(sums), masters=_single(state.ravel()),
        given=np.array(given, np.int64),
    )  # fmt: skip


def _backs_at_ends() -> list[Task]:
    top = (1 << 47) - 1
    sums = np.array(2 * [[top, top], [-top - 1, top], [top, -top - 1], [0, 0]])
    sums_one_sign = np.full((GROUP, 2), [top, -top - 1])
    mean = np.array([-(1 << 23), (1 << 23) - 1])
    states = [
        np.stack([np.full(GROUP, m * 256 + j), np.full(GROUP, g * 65_536 + r)], -1)
        for m, j, g, r in (
            (mean[0], 0, 32_767, 32_767), (mean[1], 23, -32_768, 0), (0, 31, 4096, 12_345), (77, 5, -1, 1),
        )
    ]  # fmt: skip
    jobs = [
        NormBack(pixels=1, scale_exponent=63, multiplier_exponent=47, bias_exponent=47),
        NormBack(pixels=16_384, scale_exponent=0, multiplier_exponent=0, bias_exponent=8),
        NormBack(pixels=3, scale_exponent=40, multiplier_exponent=20, bias_exponent=0),
    ]
    return [as_back(job, of, state) for job in jobs for of in (sums, sums_one_sign) for state in states]


def gamma_task(rng: np.random.Generator, *, n_groups: int, pixels: int = 49) -> Task:
    """The gradient of gamma; of the first channels at the ends of a sum."""
    sums, state = gradient_sums(rng, pixels, n_groups), state_of(rng, n_groups)
    top = (1 << 47) - 1
    sums[:2] = [[top, -top - 1], [-top - 1, top]]
    made = norm_gamma(torch.from_numpy(sums), torch.from_numpy(state))
    given = np.array([(q, 0, 0) for q in made.tolist()], np.int64)
    return Task(
        job=NormGamma(), count=n_groups, sums=_words(sums), masters=_single(state.ravel()), given=given
    )


def random_task(rng: np.random.Generator) -> Task:
    """Any kernel."""
    n_groups, pixels = int(rng.integers(1, 4)), int(rng.integers(1, MAX_COUNT // GROUP + 1))
    match Kernel(int(rng.integers(0, len(Kernel)))):
        case Kernel.UPDATE:
            image = Image(int(rng.integers(0, len(Image))))
            return random_update(rng, image=image, halves=bool(rng.integers(0, 2)), n=4 * n_groups)
        case Kernel.NORM:
            return norm_task(rng, pixels=pixels, n_groups=n_groups)
        case Kernel.NORM_PLAIN:
            return norm_task(rng, pixels=pixels, n_groups=n_groups, plain=True)
        case Kernel.NORM_BACK:
            return back_task(rng, pixels=pixels, n_groups=n_groups)
    return gamma_task(rng, n_groups=n_groups, pixels=pixels)
