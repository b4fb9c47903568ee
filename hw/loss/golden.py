# SPDX-License-Identifier: MIT
"""Bit-exact model of the loss unit: the golden softmax, less the targets, rounded."""

import torch

from hw.softmax.golden import softmax

from .config import (
    GRADIENT_BITS,
    GRADIENT_FRACTION_BITS,
    MULTIPLIER,
    SCORE_BITS,
    SHIFT,
    TARGET_FRACTION_BITS,
    Job,
    LossConfig,
)

CUT_BITS = TARGET_FRACTION_BITS - GRADIENT_FRACTION_BITS


def loss_gradient(scores: torch.Tensor, label: torch.Tensor, job: Job, config: LossConfig) -> torch.Tensor:
    """Gradient of the cross entropy in the scores of each picture, p - target.

        p = softmax of the scores s 2^-fraction_bits, unit 2^-17, see :func:`hw.softmax.golden.softmax`
        g = min((p - target + 2) >> 2, 2^15 - 1)

    Parameters
    ----------
    scores : int64[..., K], 2 <= K <= max_classes, each a signed number of 16 bits
    label : int64[...], 0..K - 1

    Returns
    -------
    int64[..., K], unit 2^-15, -2^15..2^15 - 1
        Half up; 1.0 becomes one unit less.

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; a value out of range.
    """
    _check(scores, label, config)
    multiplier = torch.full_like(label, MULTIPLIER)
    shift = torch.full_like(label, SHIFT + job.fraction_bits)
    probability = softmax(scores, multiplier, shift, config.softmax).probability
    target = torch.full_like(scores, job.other_target).scatter(-1, label[..., None], job.label_target)
    rounded = (probability - target + (1 << CUT_BITS >> 1)) >> CUT_BITS
    return rounded.clamp(max=(1 << (GRADIENT_BITS - 1)) - 1)


def _check(scores: torch.Tensor, label: torch.Tensor, config: LossConfig) -> None:
    if scores.dtype != torch.int64 or scores.ndim < 1:
        raise TypeError(f"scores must be int64[..., K], not {scores.dtype}{list(scores.shape)}")
    n_classes, bound = scores.shape[-1], 1 << (SCORE_BITS - 1)
    if not 2 <= n_classes <= config.max_classes:
        raise ValueError(f"classes must be 2..{config.max_classes}, not {n_classes}")
    if label.dtype != torch.int64 or label.shape != scores.shape[:-1]:
        raise TypeError(f"label must be int64{list(scores.shape[:-1])}, not {label.dtype}{list(label.shape)}")
    for name, values, low, high in (
        ("scores", scores, -bound, bound - 1),
        ("label", label, 0, n_classes - 1),
    ):
        if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
            raise ValueError(f"{name} must be in {low}..{high}, not {int(values.min())}..{int(values.max())}")
