# SPDX-License-Identifier: MIT
"""Units of the integers in a training step: of maps, of values between an epilogue's products, of masters.

A map of 16 bits is written from values of 24 bits with :data:`WIDE_SHIFT` bits more. A pass over such a map
takes it to these values by a shift, exactly, and its sums are those of the map's own integers.
"""

import math
from dataclasses import dataclass

import numpy as np

from algo.tinytl.architecture import NORM_EPSILON
from algo.tinytl.quantise import BlockRecord, NormRecord, UnitRecord
from hw.convolution.operations import Output
from hw.epilogue.config import MAX_SHIFT, MAX_SIDE_SHIFT, MULTIPLIER_BITS, VALUE_BITS
from hw.systolic.config import ACCUMULATOR_BITS
from hw.training.config import GAMMA_BITS, GAMMA_FRACTION_BITS, NORM_FRACTION_BITS, Norm, NormBack
from sim.driver.words import FILL, VALUE_LIMIT, WIDE_LIMIT, output_of

WIDE_SHIFT = VALUE_BITS - 17
"""Bits of a value below the unit of a map of 16 bits: one less than there is room for, as maps are added."""
REDUCE_SHIFT = 8
"""From a gradient of 24 bits to the 16 bits that are summed."""
MASTER_SHIFT = 8
"""Bits that a bias's 32 have below those that the epilogue reads."""
GAMMA_SHIFT = 12
"""Bits that a norm's scale has in 32 below those that the kernel reads."""
SUM_LIMIT = (1 << (ACCUMULATOR_BITS - 1)) - 1
NORM_UNIT = 2.0**-NORM_FRACTION_BITS
"""Of a normalised value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapFormat:
    """A map that is written for one reader: its name, bits, and the value of its unit."""

    name: str
    bits: int
    step: float

    def output(self, channels: int, unit: float) -> Output:
        """From values in units of ``unit``."""
        return output_of(self.name, self.bits, np.full(channels, unit / self.step))


def out_step(record: BlockRecord) -> float:
    """Value of one unit of output and target, and of the wide input."""
    step, last = record.out_peak / (FILL * WIDE_LIMIT), record.units[-1]
    if last.norm is None:
        return step
    return norm_unit(last) * (1 << side_shift(step / norm_unit(last)))


def side_shift(ratio: float) -> int:
    """The smallest left shift with 2^shift >= ``ratio``; ValueError where there is none."""
    shift = max(0, math.ceil(math.log2(ratio)))
    if shift > MAX_SIDE_SHIFT:
        raise ValueError(f"a map's unit must be at most {1 << MAX_SIDE_SHIFT} values, not {ratio:g}")
    return shift


def scale_exponent(unit: UnitRecord) -> int:
    """Of two, by which a norm's scale is divided to fit its 16 bits, and its values with it."""
    most = (1 << (GAMMA_BITS - 1)) - 1
    largest = float(np.abs(norm_of(unit).scale).max()) * (1 << GAMMA_FRACTION_BITS)
    return max(0, math.ceil(math.log2(max(largest, 1) / most)))


def norm_unit(unit: UnitRecord) -> float:
    """Of a normed value, in 24 bits."""
    return NORM_UNIT * (1 << scale_exponent(unit))


def scale_unit(unit: UnitRecord) -> float:
    """Of a norm's scale in 32 bits."""
    return GAMMA_UNIT * (1 << scale_exponent(unit))


def value_unit(unit: UnitRecord) -> float:
    """Of u and the bias, in 24 bits; but see :func:`out_unit`."""
    if unit.norm is None:
        return unit.peak / (FILL * VALUE_LIMIT)
    limit = norm_unit(unit) * VALUE_LIMIT
    if unit.peak > limit:
        raise ValueError(f"values of {unit.name} must be below {limit:g}, not {unit.peak:g}")
    return norm_unit(unit)


def out_unit(record: BlockRecord) -> float:
    """Of u and the bias of a block's last unit, in 24 bits."""
    last = record.units[-1]
    return out_step(record) / (1 << WIDE_SHIFT) if last.norm is None else value_unit(last)


def gradient_unit(unit: UnitRecord) -> float:
    """Of the gradient of u, in 24 bits."""
    return float(unit.gradient_peaks.max()) / (FILL * VALUE_LIMIT)


def out_gradient_step(record: BlockRecord) -> float:
    """Of the map of the gradient of the output."""
    return float(record.units[-1].gradient_peaks.max()) / (FILL * WIDE_LIMIT)


def in_gradient_shift(record: BlockRecord) -> int:
    """From that map to values of the gradient of the input."""
    room = FILL * VALUE_LIMIT * out_gradient_step(record) / record.in_gradient_peak
    return _within(_bits(room), MAX_SIDE_SHIFT)


def in_gradient_step(record: BlockRecord) -> float:
    """Of the map of the gradient of the input."""
    return record.in_gradient_peak / (FILL * WIDE_LIMIT)


def in_gradient_unit(record: BlockRecord) -> float:
    """Of the gradient of the input, in 24 bits."""
    if record.lite is not None:
        return in_gradient_step(record) / (1 << WIDE_SHIFT)
    return out_gradient_step(record) / (1 << in_gradient_shift(record))


def weighted_step(unit: UnitRecord, growth: float = 1.0) -> float:
    """Of the map of the gradient of the sums, times the step of the weights.

    So few of 16 bits are used that within the calibrated range no sum of the array exceeds 32 bits, even if
    weights grow by ``growth``.
    """
    peaks = unit.gradient_peaks if unit.norm is None else unit.norm.sum_gradient_peaks
    limit = FILL * WIDE_LIMIT
    if not unit.depthwise:
        largest_sum = growth * int(np.abs(unit.weights.astype(np.int64)).sum((0, 2, 3)).max())
        limit = min(limit, SUM_LIMIT // max(1, largest_sum))
    return float((peaks * unit.steps).max()) / limit


def norm_of(unit: UnitRecord) -> NormRecord:
    """Of a unit that has one."""
    assert unit.norm is not None
    return unit.norm


@dataclass(frozen=True, kw_only=True, slots=True)
class NormFormat:
    """A group norm's units, and the jobs of its kernels."""

    sum_step: float
    """Of the map of the sums."""
    gradient_step: float
    """Of the map of the gradient of u, and of the bias's gradient."""
    scaled_step: float
    """Of the map of that times the scale."""
    sum_gradient_unit: float
    """Of the gradient of the sums, in 24 bits."""
    shift: int
    """Of the pass that normalises."""
    slope_shift: int
    """From z times the slope, as a value, to the side map."""
    side_shift: int
    """From the side map to the gradient of the sums."""
    back_shift: int
    """Of the pass over the scaled gradient."""
    forward: Norm
    backward: NormBack


def norm_format(unit: UnitRecord) -> NormFormat:
    """Of a unit with a group norm.

    The gradient of the sums is computed in units of gradient_step / sum_step, of which a value has
    ``bias_exponent`` bits more; what was calibrated fills half of every word.
    """
    norm = norm_of(unit)
    pixels = unit.out_size**2
    sum_step = norm.sum_peak / (FILL * WIDE_LIMIT)
    gradient_step = float(unit.gradient_peaks.max()) / (FILL * WIDE_LIMIT)
    up = math.ceil(math.log2(norm.scaled_peak / gradient_step / (FILL * WIDE_LIMIT)))
    inverse = norm.inverse_peak * sum_step
    half = FILL * (1 << MULTIPLIER_BITS)
    up_scale, largest = scale_exponent(unit), float(np.abs(norm.scale).max())
    shift = _within(_bits(half / (inverse * largest)) - NORM_FRACTION_BITS + up_scale, MAX_SHIFT)
    e2 = _within(_bits(half / inverse), MAX_SHIFT)
    part = norm.part_peak / gradient_step * sum_step
    e3 = _within(min(_bits(FILL * VALUE_LIMIT / part), e2 - up), MAX_SHIFT)
    slope = norm.slope_peak / gradient_step * sum_step**2
    e1 = _within(max(_bits(FILL * WIDE_LIMIT / slope), e3 - WIDE_SHIFT), 63)
    side = side_shift(part * 2.0**e3 / (FILL * WIDE_LIMIT))
    return NormFormat(
        sum_step=sum_step,
        gradient_step=gradient_step,
        scaled_step=gradient_step * 2.0**up,
        sum_gradient_unit=gradient_step / sum_step * 2.0**-e3,
        shift=shift,
        slope_shift=e1 + WIDE_SHIFT + side - e3,
        side_shift=side,
        back_shift=e2 - up - e3,
        forward=Norm(
            pixels=pixels, epsilon=max(1, round(NORM_EPSILON / sum_step**2)), shift=shift,
            gamma_shift=GAMMA_SHIFT, beta_shift=MASTER_SHIFT,
        ),
        backward=NormBack(
            pixels=pixels, scale_exponent=e1 + up_scale, multiplier_exponent=e2, bias_exponent=e3 + up_scale
        ),
    )  # fmt: skip


GAMMA_UNIT = 2.0 ** -(GAMMA_FRACTION_BITS + GAMMA_SHIFT)
"""Of a norm's scale in 32 bits."""


def _bits(ratio: float) -> int:
    """Largest power of two in it."""
    return math.floor(math.log2(ratio))


def _within(shift: int, most: int) -> int:
    return max(0, min(shift, most))
