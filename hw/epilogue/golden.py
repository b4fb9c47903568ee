# SPDX-License-Identifier: MIT
"""Bit-exact model of the epilogue, in int64; no intermediate exceeds 2^48."""

from dataclasses import dataclass

import torch

from .config import (
    IN_BITS,
    REDUCED_BITS,
    SIDE_BITS,
    SLOPE,
    SLOPE_SHIFT,
    VALUE_BITS,
    Activation,
    Job,
    Reduction,
    Side,
    Table,
    signed_range,
)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the epilogue makes of an input of shape [..., n_channels]."""

    maps: tuple[torch.Tensor, ...]
    """int64, one for each reader."""
    mask: torch.Tensor
    """bool: u is above zero and, of ReLU6, below the limit: where a gradient passes. Not where a mask on the
    side is 0."""
    sums: torch.Tensor | None
    """int64[n_channels, 2]: of values and of products over all other axes; None without a reduction."""


def epilogue(x: torch.Tensor, job: Job, table: Table, side: torch.Tensor | None = None) -> Outputs:
    """Scale, add, activate, scale for each reader; rounded half up each time, saturated.

    ::

        t = sat24(rnd(x multiplier, shift))
        u = sat24(t + bias + (side << side_shift))
        v = activation(u)                           0 where a mask on the side is 0
        map = sat(rnd(v scale, reader.shift))       to 8 or 16 bits
        r = sat16(rnd(v, reduce_shift))             sums of r, and of r r or r side

    Parameters
    ----------
    x : int64[..., n_channels], signed 32 bits
    job : ``n_beats``, ``n_tables`` and ``gives_sums`` say nothing here
    table : of n_channels
    side : int64[..., 1] (noise) or int64[..., n_channels], signed 16 bits, of a mask 0 or 1; None without

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range, fewer scales than readers.
    """
    multiplier, bias, scales = (torch.from_numpy(a) for a in (table.multiplier, table.bias, table.scales))
    _check("x", x, (*x.shape[:-1], len(multiplier)), IN_BITS)
    if len(scales) < len(job.readers):
        raise ValueError(f"scales must have a row for each of {len(job.readers)} readers, not {len(scales)}")
    t = saturated(rounded(x * multiplier, job.shift), VALUE_BITS)
    beside = _side(side, x, job)
    added = beside << job.side_shift if job.side in (Side.NOISE, Side.RESIDUAL) else 0
    u = saturated(t + bias + added, VALUE_BITS)
    v, mask = _activated(u, job)
    if job.side == Side.MASK:
        v, mask = v * beside, mask & (beside == 1)
    maps = tuple(
        saturated(rounded(v * scale, reader.shift), reader.bits)
        for scale, reader in zip(scales, job.readers, strict=False)
    )
    return Outputs(maps, mask, _reduced(v, beside, job))


def rounded(x: torch.Tensor, shift: int) -> torch.Tensor:
    """x 2^-shift to the nearest integer, half up."""
    return (x + ((1 << shift) >> 1)) >> shift


def saturated(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the nearest number of so many signed bits."""
    return x.clamp(*signed_range(bits))


def _reduced(v: torch.Tensor, side: torch.Tensor, job: Job) -> torch.Tensor | None:
    if job.reduction == Reduction.NONE:
        return None
    r = saturated(rounded(v, job.reduce_shift), REDUCED_BITS)
    product = r * (r if job.reduction == Reduction.SQUARE else side)
    return torch.stack([r, product], dim=-1).reshape(-1, v.shape[-1], 2).sum(dim=0)


def _side(side: torch.Tensor | None, x: torch.Tensor, job: Job) -> torch.Tensor:
    """As given, 0 where there is none."""
    if (side is None) != (job.side == Side.NONE):
        raise ValueError(
            f"side must be {'left out' if side is not None else 'given'} if it is {job.side.name}"
        )
    if side is None:
        return torch.zeros(1, dtype=torch.int64)
    _check("side", side, (*x.shape[:-1], 1 if job.side == Side.NOISE else x.shape[-1]), SIDE_BITS)
    if job.side == Side.MASK and not bool(((side == 0) | (side == 1)).all()):
        raise ValueError("side must be in 0..1 if it is MASK")
    return side


def _activated(u: torch.Tensor, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    positive = u > 0
    match job.activation:
        case Activation.RELU:
            return u.clamp(min=0), positive
        case Activation.RELU6:
            return u.clamp(0, job.limit), positive & (u < job.limit)
        case Activation.LEAKY:
            return torch.where(u < 0, rounded(u * SLOPE, SLOPE_SHIFT), u), positive
    return u, positive


def _check(name: str, x: torch.Tensor, shape: tuple[int, ...], bits: int) -> None:
    low, high = signed_range(bits)
    if x.dtype != torch.int64 or tuple(x.shape) != shape:
        raise TypeError(f"{name} must be int64{list(shape)}, not {x.dtype}{list(x.shape)}")
    if x.numel() and not (low <= int(x.min()) and int(x.max()) <= high):
        raise ValueError(f"{name} must be in {low}..{high}")
