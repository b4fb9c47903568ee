# SPDX-License-Identifier: MIT
"""Shape, formats and pipeline of the softmax; RTL, golden model and cycle model all read it."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

MULTIPLIER_BITS = 18
SHIFT_BITS = 6
EXPONENT_FRACTION_BITS = 16
EXPONENT_BITS = 22
"""t, the base-2 exponent of a key below the maximum: unsigned, 6 integer and 16 fraction bits."""
TABLE_BITS = 6
"""2^-f is interpolated between 2^TABLE_BITS + 1 points."""
MANTISSA_FRACTION_BITS = 18
SUM_FRACTION_BITS = 28
"""An exponential's fraction bits in the row sum."""
RECIPROCAL_TABLE_BITS = 8
RECIPROCAL_FRACTION_BITS = 18
PROBABILITY_BITS = 12
"""Of the attention core; other users may have more."""

MAX_ROWS = 32
"""Rows on their way between two stages; more than a stage's latency, so that rows of one beat flow."""
OUTPUT_FIFO_BEATS = 8
"""More than DIVIDE_LATENCY_CYCLES, so that the credits never slow a flowing output."""

DIVIDE_LATENCY_CYCLES = 5
"""Line of exponentials read to its probabilities on the output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxConfig:
    """One built softmax."""

    lanes: int = 8
    """L: exponentials, and divisions, per cycle; a power of two in 1..16."""
    n_max: int = 1024
    """Longest row, keys; a power of two in max(lanes, 2)..1,024."""
    score_bits: int = 36
    """Width of one signed score, bits; 8..40."""
    probability_bits: int = PROBABILITY_BITS
    """Width of a probability, unit 2^-probability_bits; 8..17."""

    def __post_init__(self) -> None:
        if self.lanes not in (1, 2, 4, 8, 16):
            raise ValueError(f"lanes must be a power of two in 1..16, not {self.lanes}")
        if not (max(self.lanes, 2) <= self.n_max <= 1024 and self.n_max & (self.n_max - 1) == 0):
            raise ValueError(f"n_max must be a power of two in {max(self.lanes, 2)}..1024, not {self.n_max}")
        if not 8 <= self.score_bits <= 40:
            raise ValueError(f"score_bits must be in 8..40, not {self.score_bits}")
        if not 8 <= self.probability_bits <= 17:
            raise ValueError(f"probability_bits must be in 8..17, not {self.probability_bits}")

    @property
    def max_lines(self) -> int:
        """Beats of the longest row."""
        return self.n_max // self.lanes

    @property
    def buffer_lines(self) -> int:
        """Beats that each of the two buffers holds: two rows of the longest kind, or many short ones."""
        return 2 * self.max_lines

    @property
    def line_count_bits(self) -> int:
        """Width of a number of beats of a row, bits."""
        return self.max_lines.bit_length()

    @property
    def tree_levels(self) -> int:
        """log2 L."""
        return (self.lanes - 1).bit_length()

    @property
    def sum_bits(self) -> int:
        """n_max exponentials of 1.0 must fit: SUM_FRACTION_BITS + log2(n_max) + 1."""
        return SUM_FRACTION_BITS + self.n_max.bit_length()

    @property
    def stored_fraction_bits(self) -> int:
        """An exponential's fraction bits in the buffer that waits for the division."""
        return max(16, self.probability_bits)

    @property
    def maximum_latency_cycles(self) -> int:
        """Last beat of a row taken to the row's maximum at the exponential stage."""
        return 2 + self.tree_levels

    @property
    def sum_stages(self) -> int:
        """Registers of the adder tree, two levels each."""
        return -(-self.tree_levels // 2)

    @property
    def row_latency_cycles(self) -> int:
        """Last line of scores read for its exponentials to the row's maximum probability on ``o_row``."""
        return 18 + self.sum_stages


def row_scale(step: float) -> tuple[int, int]:
    """Multiplier and shift that turn a score difference into a base-2 exponent.

    With x = step log2(e) = f 2^E, 0.5 <= f < 1: multiplier = round(f 2^18), shift = 6 - E, kept in 0..63. The
    multiplier's relative error is at most 2^-18. Steps outside the range of ``shift`` saturate harmlessly:
    x >= 64 makes every lower key's probability 0, x < 2^-58 makes all keys equal, as float softmax would to
    within 2^-20.

    Parameters
    ----------
    step : float
        Value of one unit of a score: scale_q scale_k / sqrt(D). Not negative.

    Returns
    -------
    multiplier, shift : int

    Raises
    ------
    ValueError
        ``step`` negative or not finite.
    """
    if not (math.isfinite(step) and step >= 0):
        raise ValueError(f"step must be finite and not negative, not {step}")
    fraction, exponent = math.frexp(step * math.log2(math.e))
    multiplier = round(fraction * (1 << MULTIPLIER_BITS))
    if multiplier == 1 << MULTIPLIER_BITS:
        multiplier, exponent = multiplier >> 1, exponent + 1
    shift = EXPONENT_BITS - EXPONENT_FRACTION_BITS - exponent
    if shift < 0:
        return (1 << MULTIPLIER_BITS) - 1, 0
    return multiplier, min(shift, (1 << SHIFT_BITS) - 1)


@cache
def exponential_table() -> np.ndarray:
    """round(2^18 2^(-k/64)), k = 0..64: int64[65], from 2^18 down to 2^17."""
    points = np.arange((1 << TABLE_BITS) + 1) / (1 << TABLE_BITS)
    return np.rint(np.exp2(MANTISSA_FRACTION_BITS - points)).astype(np.int64)


@cache
def reciprocal_table() -> np.ndarray:
    """round(2^18 / (1 + k/256)), k = 0..256: int64[257], from 2^18 down to 2^17."""
    points = 1 + np.arange((1 << RECIPROCAL_TABLE_BITS) + 1) / (1 << RECIPROCAL_TABLE_BITS)
    return np.rint((1 << RECIPROCAL_FRACTION_BITS) / points).astype(np.int64)
