# SPDX-License-Identifier: MIT
"""Bit-exact model of the probability-times-value array."""

import torch

from .config import PROBABILITY_BITS, SHIFTS, PvConfig


def weighted_sum(
    probability: torch.Tensor, values: torch.Tensor, shift: int, config: PvConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """o = sum_k p_k V_k, exact, then rounded and saturated once (SpAtten Alg. 1, after local value pruning).

        o_d = clamp(floor((sum_k p_k V_kd + 2^(shift - 1)) / 2^shift))     (half rounds up)

    to ``element_bits`` signed bits. With shift 12 the output has the scale of V, because p counts in 2^-12.
    Against sum_k (p_k / 4096) V_k in real numbers the output is off by at most 1/2 unless it saturates.

    Parameters
    ----------
    probability : int64[n_kept], 0..4,095, at most ``n_max``
    values : int64[n_kept, D], D one of ``config.head_dims``, each in ``element_bits`` signed bits
    shift : int, in SHIFTS

    Returns
    -------
    o : int64[D]
    magnitude : int64[], sum_d |o_d| (SpAtten Alg. 2, importance of the head)

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, D not built, a value out of range.
    """
    for name, value, n_axes in (("probability", probability, 1), ("values", values, 2)):
        if value.dtype != torch.int64 or value.ndim != n_axes:
            raise TypeError(f"{name} must be int64 of {n_axes} axes, not {value.dtype}{list(value.shape)}")
    if values.shape[1] not in config.head_dims:
        raise ValueError(f"head_dim must be one of {config.head_dims}, not {values.shape[1]}")
    if len(probability) != len(values) or len(values) > config.n_max:
        raise ValueError(
            f"n_kept must be the same for both and at most {config.n_max}, "
            f"not {len(probability)} and {len(values)}"
        )
    if shift not in SHIFTS:
        raise ValueError(f"shift must be in {SHIFTS[0]}..{SHIFTS[-1]}, not {shift}")
    bound = 1 << (config.element_bits - 1)
    for name, value, low, high in (
        ("probability", probability, 0, (1 << PROBABILITY_BITS) - 1),
        ("values", values, -bound, bound - 1),
    ):
        if value.numel() and not (low <= int(value.min()) and int(value.max()) <= high):
            raise ValueError(f"{name} must be in {low}..{high}")
    total = (probability[:, None] * values).sum(dim=0)
    rounded = (total + (1 << (shift - 1))) >> shift
    o = rounded.clamp(-bound, bound - 1)
    return o, o.abs().sum()
