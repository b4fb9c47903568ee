# SPDX-License-Identifier: MIT
"""Bit-exact model of the softmax: fixed point, base-2 exponential from a table, one reciprocal a row."""

from dataclasses import dataclass

import torch

from .config import (
    EXPONENT_BITS,
    EXPONENT_FRACTION_BITS,
    MANTISSA_FRACTION_BITS,
    MULTIPLIER_BITS,
    RECIPROCAL_FRACTION_BITS,
    RECIPROCAL_TABLE_BITS,
    SHIFT_BITS,
    SUM_FRACTION_BITS,
    TABLE_BITS,
    SoftmaxConfig,
    exponential_table,
    reciprocal_table,
)


@dataclass(frozen=True, kw_only=True)
class SoftmaxRows:
    """Rows of probabilities and what led to them; all tensors int64 unless stated."""

    probability: torch.Tensor
    """[..., n], 0..4095, unit 2^-12; or of as many bits as the configuration has."""
    max_probability: torch.Tensor
    """[...], the probability of the row's maximum as it stands in ``probability``."""
    unrounded: torch.Tensor
    """float64[..., n], the probability before the last rounding; exact, a product below 2^53."""


def softmax(
    scores: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor, config: SoftmaxConfig
) -> SoftmaxRows:
    """Softmax over the last axis, with d = max - score:

        t = multiplier min(floor(d 2^(22 - shift)), 2^22 - 1) >> 18            exponent, unit 2^-16
        2^-t = 2^-(t >> 16) g(t mod 2^16), g by linear interpolation of 65 points, floored to 2^-28
        S = sum of them; r = 2^k / S with 2^k <= S < 2^(k+1), by linear interpolation of 257 points
        p = 2^-t (cut to 2^-16) r 2^-k, rounded to 2^-12, half up; 1.0 becomes 4,095

    2^-12 is 2^-probability_bits; with more than 16 of them, 2^-t is cut to as many bits.

    The key with the largest score has t = 0 and 2^-t = 1 exactly. Larger scores never get smaller
    probabilities: every step is monotonic.

    Parameters
    ----------
    scores : int64[..., n], 1 <= n <= n_max, each a signed number of score_bits
    multiplier : int64[...], 0..2^18 - 1
    shift : int64[...], 0..63
        Both as :func:`hw.softmax.config.row_scale` gives them, one for each row.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; a value out of range.
    """
    _check(scores, multiplier, shift, config)
    exponential = exponentials(scores, multiplier, shift)
    total = exponential.sum(dim=-1)
    inverse, k = reciprocal(total)
    stored_bits = config.stored_fraction_bits
    stored = exponential >> (SUM_FRACTION_BITS - stored_bits)
    product = stored * inverse[..., None]
    one = (1 << stored_bits) * inverse
    scale = torch.exp2((-stored_bits - RECIPROCAL_FRACTION_BITS - k).to(torch.float64))
    return SoftmaxRows(
        probability=_round(product, k[..., None], config),
        max_probability=_round(one, k, config),
        unrounded=product.to(torch.float64) * scale[..., None],
    )


def exponentials(scores: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """2^-t of every key, unit 2^-28: int64[..., n], 0..2^28."""
    below = scores.amax(dim=-1, keepdim=True) - scores
    aligned = ((below << EXPONENT_BITS) >> shift[..., None]).clamp(max=(1 << EXPONENT_BITS) - 1)
    t = (aligned * multiplier[..., None]) >> MULTIPLIER_BITS
    whole, fraction = t >> EXPONENT_FRACTION_BITS, t & ((1 << EXPONENT_FRACTION_BITS) - 1)
    mantissa = _interpolate(exponential_table(), fraction, EXPONENT_FRACTION_BITS - TABLE_BITS)
    return (mantissa << (SUM_FRACTION_BITS - MANTISSA_FRACTION_BITS)) >> whole


def reciprocal(total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """r, unit 2^-18, and k with r 2^-k = 1 / S; ``total`` is S, unit 2^-28, at least 1.0."""
    # Below 2^53 float64 holds the integer, and with it the place of its highest one, exactly.
    k = torch.frexp(total.to(torch.float64)).exponent.to(torch.int64) - 1 - SUM_FRACTION_BITS
    cut = SUM_FRACTION_BITS - RECIPROCAL_FRACTION_BITS
    fraction = (total >> (k + cut)) & ((1 << RECIPROCAL_FRACTION_BITS) - 1)
    rest_bits = RECIPROCAL_FRACTION_BITS - RECIPROCAL_TABLE_BITS
    return _interpolate(reciprocal_table(), fraction, rest_bits), k


def _interpolate(table, position: torch.Tensor, rest_bits: int) -> torch.Tensor:
    """Falling line between two neighbouring points; the product is cut, so the result is never below it."""
    points = torch.from_numpy(table)
    index, rest = position >> rest_bits, position & ((1 << rest_bits) - 1)
    return points[index] - (((points[index] - points[index + 1]) * rest) >> rest_bits)


def _round(product: torch.Tensor, k: torch.Tensor, config: SoftmaxConfig) -> torch.Tensor:
    """Unit 2^-(34 + k) to 2^-12, half up; 4,095 at most; or of as many bits as the configuration has."""
    bits = config.probability_bits
    half_units = product >> (config.stored_fraction_bits + RECIPROCAL_FRACTION_BITS - bits - 1 + k)
    return ((half_units + 1) >> 1).clamp(max=(1 << bits) - 1)


def _check(
    scores: torch.Tensor, multiplier: torch.Tensor, shift: torch.Tensor, config: SoftmaxConfig
) -> None:
    if scores.dtype != torch.int64 or scores.ndim < 1:
        raise TypeError(f"scores must be int64[..., n], not {scores.dtype}{list(scores.shape)}")
    n, bound = scores.shape[-1], 1 << (config.score_bits - 1)
    if not 1 <= n <= config.n_max:
        raise ValueError(f"n must be in 1..{config.n_max}, not {n}")
    if scores.numel() and not -bound <= int(scores.min()) <= int(scores.max()) < bound:
        raise ValueError(
            f"scores must be in {-bound}..{bound - 1}, not {int(scores.min())}..{int(scores.max())}"
        )
    for name, values, bits in (("multiplier", multiplier, MULTIPLIER_BITS), ("shift", shift, SHIFT_BITS)):
        if values.dtype != torch.int64 or values.shape != scores.shape[:-1]:
            raise TypeError(
                f"{name} must be int64{list(scores.shape[:-1])}, not {values.dtype}{list(values.shape)}"
            )
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
            raise ValueError(f"{name} must be in 0..{(1 << bits) - 1}, not {values.tolist()}")
