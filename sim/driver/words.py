# SPDX-License-Identifier: MIT
"""Real numbers to the words of epilogues and updates.

Each number is a real one over a power of two that all channels of a table share, as large as the word takes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hw.convolution.operations import Output
from hw.epilogue.config import MAX_OUT_SHIFT, MAX_SHIFT, MULTIPLIER_BITS, SCALE_BITS, VALUE_BITS
from hw.training.config import FACTOR_BITS, Image
from hw.training.config import Update as Job

Floats = NDArray[np.float64]

FILL = 0.5
"""Share of a range that the largest calibrated value fills: of 24 bits, and of 16 bits of a private map."""
WIDE_LIMIT, VALUE_LIMIT = (1 << 15) - 1, (1 << (VALUE_BITS - 1)) - 1


def multiplier_of(values: Floats) -> tuple[NDArray[np.uint16], int]:
    """uint16 and a right shift, error at most 2^-17 of the largest; ValueError above 65,535."""
    integers, shift = fixed(values, (1 << MULTIPLIER_BITS) - 1, MAX_SHIFT)
    return integers.astype(np.uint16), shift


def output_of(name: str, bits: int, values: Floats) -> Output:
    """int16 scales and a right shift, error at most 2^-16 of the largest."""
    integers, shift = fixed(values, (1 << (SCALE_BITS - 1)) - 1, MAX_OUT_SHIFT)
    return Output(name=name, bits=bits, scale=integers.astype(np.int16), shift=shift)


def step_job(name: str, ratio: float, momentum: int, image: Image = Image.NONE, image_shift: int = 0) -> Job:
    """The update of ``name`` by ``ratio`` of its units for each unit of its gradient.

    ValueError where the rate behind it is too large or too small for a factor of 16 bits and a shift.
    """
    most = (1 << FACTOR_BITS) - 1
    if not 2.0**-MAX_SHIFT <= ratio <= most:
        raise ValueError(f"rate must move {name} by 2^-{MAX_SHIFT}..{most} of its units, not {ratio:g}")
    rate, shift = fixed(np.array([ratio]), most, MAX_SHIFT)
    return Job(momentum=momentum, rate=int(rate[0]), rate_shift=shift, image=image, image_shift=image_shift)


def bias_of(values: Floats, unit: float) -> NDArray[np.int32]:
    """In so large units, of 24 bits."""
    return np.rint(values / unit).clip(-VALUE_LIMIT - 1, VALUE_LIMIT).astype(np.int32)


def fixed(values: Floats, limit: int, max_shift: int) -> tuple[NDArray[np.int64], int]:
    """Integers of at most ``limit`` and the largest shift with values = integers / 2^shift, rounded.

    ValueError where a value alone exceeds ``limit``.
    """
    largest = float(np.abs(values).max())
    if largest > limit:
        raise ValueError(f"a factor must be at most {limit}, not {largest:g}")
    shift = max_shift if largest == 0 else min(max_shift, math.floor(math.log2(limit / largest)))
    return np.rint(values * 2.0**shift).astype(np.int64), shift
