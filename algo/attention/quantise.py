# SPDX-License-Identifier: MIT
"""Linear symmetric quantisation, and its split into a signed MSB plane and an unsigned LSB plane."""

import torch
from torch import Tensor


def scale_of(x: Tensor, bits: int, dims: tuple[int, ...]) -> Tensor:
    """Step size with which the largest magnitude over ``dims`` maps to 2^(bits-1) - 1.

    x : float[...]; returns float of x's shape with ``dims`` reduced to 1. An all-zero slice gets step 1.
    """
    largest = x.detach().abs().amax(dims, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    return torch.where(step > 0, step, torch.ones_like(step))


def quantise(x: Tensor, bits: int, scale: Tensor) -> Tensor:
    """Integers of ``bits`` bits, kept in x's float dtype: clamp(round(x / scale)), halves to even.

    Saturates symmetrically at +-(2^(bits-1) - 1). The gradient passes straight through: that of x / scale.
    """
    limit = 2 ** (bits - 1) - 1
    ratio = x / scale
    return ratio + (ratio.round().clamp(-limit, limit) - ratio).detach()


def msb_plane(x_int: Tensor, lsb_bits: int) -> Tensor:
    """Value of the MSB plane alone, on the scale of ``x_int``: floor(x / 2^lsb) * 2^lsb.

    The dropped LSBs are in 0..2^lsb - 1, so every key loses the same amount on average; softmax ignores an
    offset common to all keys, which is why the planes need no correction.
    """
    step = 2**lsb_bits
    return x_int + ((x_int / step).floor() * step - x_int).detach()
