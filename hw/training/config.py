# SPDX-License-Identifier: MIT
"""Kernels over lists: their jobs, their formats, the table of the inverse square root.

Imports numpy at most.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np

from hw.config import ChipConfig

GROUP = 8
"""Channels that a group norm normalises together."""
SUM_BITS = 48
"""Width of a sum over pixels, and of everything between two products; signed."""
WORD_BITS = 32
"""Width of a word of a list: a master weight, its momentum, a gradient; signed."""
MULTIPLIER_BITS, SCALE_BITS, BIAS_BITS = 16, 16, 24
"""Fields of the epilogue's table: unsigned, signed, signed."""
FACTOR_BITS = 16
"""Width of momentum and rate; unsigned."""
UPDATE_LATENCY_CYCLES = 7
"""An element taken to its master on the output."""
MAX_COUNT = 1 << 17
"""Numbers that a group norm takes the mean of: 8 channels of at most 128 x 128 pixels."""

RECIPROCAL_BITS = 24
"""Width of the mantissa of 1/n; unsigned."""
MEAN_FRACTION_BITS, SQUARE_FRACTION_BITS = 8, 16
"""Fraction bits of a mean, and of a mean square."""
GAMMA_FRACTION_BITS, GAMMA_BITS = 12, 16
"""Format of a norm's scale; signed."""
NORM_FRACTION_BITS = 16
"""Fraction bits of a normalised map, before the scale of its reader: values of +-128."""
NORM_SHIFT = 16 + 31 + GAMMA_FRACTION_BITS - NORM_FRACTION_BITS
"""gamma_q r 2^16 2^-NORM_SHIFT 2^j is gamma / sqrt(variance) in units of a normalised map."""

INVERSE_BITS = 16
"""Width of the mantissa r of 1 / sqrt(V): 2^15..2^16 - 1."""
ROOT_TABLE_BITS, ROOT_REST_BITS, ROOT_POINT_BITS = 7, 10, 18
"""1 / sqrt(x) for x in 1..4 by lines between points 2^-7 apart, in units of 2^-18; bits of x below these."""
MAX_EXPONENT = SUM_BITS // 2 - 1
"""Of V 4^j in 2^46..2^48: the largest j."""


class Kernel(IntEnum):
    """What a job computes."""

    UPDATE = 0
    NORM = 1
    NORM_BACK = 2
    NORM_GAMMA = 3
    NORM_PLAIN = 4
    """NORM whose gamma is 1 everywhere."""


class Image(IntEnum):
    """What an update writes beside the masters: round(w 2^-shift), saturated."""

    NONE = 0
    BYTES = 1
    """8 bits, four elements a word."""
    HALVES = 2
    """16 bits, two elements a word."""
    BIAS = 3
    """24 bits, two elements in a word of low halves and one of high bytes, sign-extended."""

    @property
    def bits(self) -> int:
        """Width of an element."""
        return (0, 8, 16, 24)[self]

    @property
    def per_beat(self) -> int:
        """Elements that are written together."""
        return (1, 4, 2, 2)[self]

    @property
    def words(self) -> int:
        """Words that they are written in."""
        return (0, 1, 1, 2)[self]


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """m' = sat32(rnd(m momentum, 16) + sat32(rnd(g rate, rate_shift))), w' = sat32(w - m')."""

    momentum: int = 0
    """Unit 2^-16; 0..65,535."""
    rate: int = 1
    """0..65,535"""
    rate_shift: int = 0
    """0..47"""
    image: Image = Image.NONE
    image_shift: int = 0
    """0..31"""

    def __post_init__(self) -> None:
        _check_range("momentum", self.momentum, 0, (1 << FACTOR_BITS) - 1)
        _check_range("rate", self.rate, 0, (1 << FACTOR_BITS) - 1)
        _check_range("rate_shift", self.rate_shift, 0, 47)
        _check_range("image_shift", self.image_shift, 0, WORD_BITS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """From sums to the table of an epilogue that normalises: see :func:`hw.training.golden.norm`."""

    pixels: int
    """Of each channel; 1..16,384."""
    epsilon: int = 1
    """Added to the variance, in squared units of the map; 0..2^31 - 1."""
    shift: int
    """Of the epilogue that the table is for; 0..47."""
    gamma_shift: int = 0
    """From a master to gamma, unit 2^-12; 0..31."""
    beta_shift: int = 0
    """From a master to beta, unit 2^-16; 0..31."""

    def __post_init__(self) -> None:
        _check_range("pixels", self.pixels, 1, MAX_COUNT // GROUP)
        _check_range("epsilon", self.epsilon, 0, (1 << 31) - 1)
        _check_range("shift", self.shift, 0, 47)
        _check_range("gamma_shift", self.gamma_shift, 0, WORD_BITS - 1)
        _check_range("beta_shift", self.beta_shift, 0, WORD_BITS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormBack:
    """From sums of gradients to the tables of two passes: see :func:`hw.training.golden.norm_back`."""

    pixels: int
    """Of each channel; 1..16,384."""
    scale_exponent: int
    """e1: the side map's scale is in units of 2^-e1; 0..63."""
    multiplier_exponent: int
    """e2: the multiplier's unit is 2^-e2; 0..47."""
    bias_exponent: int
    """e3: the bias's unit is 2^-e3; 0..47, at most e1 + 8."""

    def __post_init__(self) -> None:
        _check_range("pixels", self.pixels, 1, MAX_COUNT // GROUP)
        _check_range("scale_exponent", self.scale_exponent, 0, 63)
        _check_range("multiplier_exponent", self.multiplier_exponent, 0, 47)
        _check_range("bias_exponent", self.bias_exponent, 0, min(47, self.scale_exponent + 8))


@dataclass(frozen=True, kw_only=True, slots=True)
class NormGamma:
    """From sums of gradients to the gradient of gamma."""


Job = Update | Norm | NormBack | NormGamma


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One built unit; what it computes is a run-time value."""

    count_bits: int = 20
    """Width of a job's number of elements or groups; 4..24."""

    def __post_init__(self) -> None:
        _check_range("count_bits", self.count_bits, 4, 24)


def training_config(chip: ChipConfig) -> TrainingConfig:
    """The same for every chip."""
    return TrainingConfig()


def reciprocal(n: int) -> tuple[int, int]:
    """Mantissa R of 24 bits and shift rs: 1/n = R 2^-rs (1 + d), abs(d) <= 2^-24."""
    shift = RECIPROCAL_BITS - 1 + (n - 1).bit_length()
    return ((2 << shift) + n) // (2 * n), shift


@cache
def root_table() -> np.ndarray:
    """round(2^18 / sqrt(1 + k / 128)), k = 0..384: int64[385], from 2^18 down to 2^17."""
    points = 1 + np.arange((3 << ROOT_TABLE_BITS) + 1) / (1 << ROOT_TABLE_BITS)
    return np.rint((1 << ROOT_POINT_BITS) / np.sqrt(points)).astype(np.int64)
