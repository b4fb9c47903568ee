# SPDX-License-Identifier: MIT
"""Bit-exact model of the filter: the definition, with zeros inserted and borders stored."""

import torch
from torch.nn import functional

from .config import SHIFT, FirConfig, Map


def filtered(x: torch.Tensor, of: Map, config: FirConfig) -> torch.Tensor:
    """floor(sum / 16 + 1/2), saturated to ``out_bits``; sum of [1, 3, 3, 1] along both axes, exact.

    To upsample, a zero follows every pixel of a row and every row, and the border is two zeros in front and
    one behind; to blur, one zero on every side. Sums stay below 64 x 2^(element_bits - 1) <= 2^37.

    Parameters
    ----------
    x : int64[height, width, channels], each in ``element_bits`` signed bits

    Returns
    -------
    int64[2 height, 2 width, channels] or int64[height - 1, width - 1, channels]

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range, a map that the built filter cannot take.
    """
    shape, bound = (of.height, of.width, of.channels), 1 << (config.element_bits - 1)
    if x.dtype != torch.int64 or tuple(x.shape) != shape:
        raise TypeError(f"x must be int64{list(shape)}, not {x.dtype}{list(x.shape)}")
    if not (-bound <= int(x.min()) and int(x.max()) < bound):
        raise ValueError(f"x must be in {-bound}..{bound - 1}")
    of.check(config)
    for axis in (0, 1):
        x = _along(x.transpose(0, axis), of.upsample).transpose(0, axis)
    high = 1 << (config.out_bits - 1)
    return ((x + (1 << (SHIFT - 1))) >> SHIFT).clamp(-high, high - 1)


def _along(x: torch.Tensor, upsample: bool) -> torch.Tensor:
    """Sums along axis 0."""
    if upsample:
        x = torch.stack([x, torch.zeros_like(x)], dim=1).flatten(0, 1)
    x = functional.pad(x, (0, 0, 0, 0, 1 + upsample, 1))
    n = len(x) - 3
    return x[:n] + 3 * x[1 : n + 1] + 3 * x[2 : n + 2] + x[3:]
