# SPDX-License-Identifier: MIT
"""Bit-exact model of the augmentation unit: one operation after another, as the paper defines them."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .config import (
    CHANNELS,
    DRAW_BITS,
    GAIN_BITS,
    LFSR_BITS,
    LFSR_TAPS,
    MEAN_BITS,
    N_DRAWS,
    ONE,
    RECIPROCAL_BITS,
    THIRD,
    THIRD_SHIFT,
    AugmentConfig,
    Draws,
    Job,
    cut_size,
    largest_shift,
    last_centre,
)


def augment(x: torch.Tensor, job: Job, config: AugmentConfig) -> torch.Tensor:
    """The augmented image; of an adjoint job, the gradient in the image.

    The adjoint is the same operations in reverse, with the opposite shift and without brightness: the linear
    part of the colour operations is its own adjoint, and so is a mask.

    Parameters
    ----------
    x : int64[height, width, 3], each in ``element_bits`` signed bits
    job : with its parameters given (``draw`` is for :func:`drawn`)

    Returns
    -------
    int64[height, width, 3], saturated to ``element_bits``

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range, a job that the built unit cannot take.
    """
    shape, bound = (job.height, job.width, CHANNELS), 1 << (config.element_bits - 1)
    if x.dtype != torch.int64 or tuple(x.shape) != shape:
        raise TypeError(f"x must be int64{list(shape)}, not {x.dtype}{list(x.shape)}")
    if not (-bound <= int(x.min()) and int(x.max()) < bound):
        raise ValueError(f"x must be in {-bound}..{bound - 1}")
    job.check(config)
    if job.draw:
        raise ValueError("draw must be False where parameters are needed; see drawn")
    d = job.draws
    for name in reversed(job.policy) if job.adjoint else job.policy:
        if name == "color":
            x = color(x, replace(d, brightness=0) if job.adjoint else d, job, bound)
        elif name == "translation":
            sign = -1 if job.adjoint else 1
            x = _shifted(x, sign * d.shift_y, sign * d.shift_x)
        else:
            x = _cut(x, d)
    return x


def color(x: torch.Tensor, draws: Draws, job: Job, bound: int) -> torch.Tensor:
    """Brightness, saturation, contrast in one: a x + (k - a) m + (1 - k) M + b, a = k s, rounded once.

    m is the mean of a pixel's channels, M that of the image, both rounded half up to MEAN_BITS fraction bits;
    a is rounded half up to GAIN_BITS. The sum is exact (42 bits at most) and then rounded half up to
    -``bound``..``bound`` - 1.
    """
    k = draws.contrast
    a = (k * draws.saturation + (ONE >> 1)) >> GAIN_BITS
    mean = _rounded(x.sum(2, keepdim=True) * THIRD, THIRD_SHIFT)
    mantissa, exponent = job.reciprocal
    image_mean = _rounded(int(x.sum()) * mantissa, RECIPROCAL_BITS - 1 + exponent - MEAN_BITS)
    fraction_bits = GAIN_BITS + MEAN_BITS
    offset = (ONE - k) * image_mean + (draws.brightness << fraction_bits)
    y = _rounded(((a * x) << MEAN_BITS) + (k - a) * mean + offset, fraction_bits)
    return y.clamp(-bound, bound - 1)


def _rounded(value, shift: int):
    """value / 2^shift, half up."""
    return (value + (1 << (shift - 1))) >> shift


def _shifted(x: torch.Tensor, shift_y: int, shift_x: int) -> torch.Tensor:
    """out[y, x] = x[y + shift_y, x + shift_x], zeros from outside."""
    height, width = x.shape[:2]
    out = torch.zeros_like(x)
    rows, columns = (slice(max(0, -s), min(n, n - s)) for s, n in ((shift_y, height), (shift_x, width)))
    out[rows, columns] = x[
        rows.start + shift_y : rows.stop + shift_y, columns.start + shift_x : columns.stop + shift_x
    ]
    return out


def _cut(x: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Zeros in the rectangle."""
    out = x.clone()
    corners = []
    for centre, size in ((draws.centre_y, x.shape[0]), (draws.centre_x, x.shape[1])):
        start = centre - cut_size(size) // 2
        corners.append(slice(max(0, start), start + cut_size(size)))
    out[corners[0], corners[1]] = 0
    return out


def drawn(jobs: Sequence[Job], state: int = 1) -> list[Job]:
    """The jobs, parameters drawn where ``draw`` is set, one after another from an LFSR at ``state``.

    Of a number r of 16 bits: brightness floor((r - 2^15) 2^one_bits / 2^16), saturation r, contrast
    2^14 + floor(r / 2), a shift floor(r (2 S + 1) / 2^16) - S, a centre floor(r (top + 1) / 2^16). So shifts
    and centres are uniform up to 2^-16, and every value of [-0.5, 0.5), [0, 2), [0.5, 1.5) on the grid is
    equally likely up to the state 0, which the LFSR never has.
    """
    made = []
    for job in jobs:
        if not job.draw:
            made.append(job)
            continue
        state = job.seed or state
        numbers = []
        for _ in range(N_DRAWS):
            state = leap(state)
            numbers.append(state & ((1 << DRAW_BITS) - 1))
        b, s, k, *places = numbers
        sizes = (job.height, job.width)
        most = [largest_shift(n) for n in sizes]
        shifts = [(r * (2 * m + 1) >> 16) - m for r, m in zip(places[:2], most, strict=True)]
        centres = [r * (last_centre(n) + 1) >> 16 for r, n in zip(places[2:], sizes, strict=True)]
        draws = Draws(
            brightness=((b - (1 << 15)) << job.one_bits) >> 16,
            saturation=s,
            contrast=(ONE >> 1) + (k >> 1),
            shift_y=shifts[0],
            shift_x=shifts[1],
            centre_y=centres[0],
            centre_x=centres[1],
        )
        made.append(replace(job, draw=False, draws=draws))
    return made


def leap(state: int) -> int:
    """DRAW_BITS steps of the LFSR."""
    for _ in range(DRAW_BITS):
        feedback = sum(state >> tap for tap in LFSR_TAPS) & 1
        state = ((state << 1) | feedback) & ((1 << LFSR_BITS) - 1)
    return state
