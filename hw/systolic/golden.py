# SPDX-License-Identifier: MIT
"""Bit-exact model of the systolic array."""

import torch
from torch.nn import functional

from .config import ACCUMULATOR_BITS, OPERAND_BITS
from .descriptor import Layer


def convolution(activations: torch.Tensor, weights: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The sums of a layer, as PyTorch's ``conv2d`` or ``conv_transpose2d`` define them, modulo 2^32.

    Nothing is rounded. Sums of 8-bit activations never leave 32 bits (of T = kernel^2 n_in <= 131,071
    products, each at most 2^14); those of 16 bits may where T > 511, and then wrap around. The products are
    summed in float64, which is exact: 2^15 x 2^7 x 49 x 4,096 < 2^53.

    Parameters
    ----------
    activations : int64[height, width, stored], signed of 8 bits (16 if ``layer.wide``)
    weights : int64[n_out or more, n_in / groups or more, kernel, kernel], signed of 8 bits
        Of more channels than the layer's, the first ones of each group are used. A transposed layer has the
        same axes (PyTorch's own transposed layers have input channels first).

    Returns
    -------
    int64[out_height, out_width, n_out], each in 32 signed bits

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range.
    """
    wide = OPERAND_BITS * layer.n_planes
    _check("activations", activations, (layer.height, layer.width, layer.stored), wide)
    kernel = (layer.kernel, layer.kernel)
    _check("weights", weights, (*weights.shape[:2], *kernel), OPERAND_BITS)
    g = layer.groups
    n_in, n_out = layer.n_in // g, layer.n_out // g
    if weights.shape[0] % g or weights.shape[0] < layer.n_out or weights.shape[1] < n_in:
        raise ValueError(
            f"weights must be for at least {layer.n_out} outputs in {g} groups and {n_in} inputs, "
            f"not {list(weights.shape)}"
        )
    x = activations.reshape(layer.height, layer.width, g, -1)[..., :n_in].flatten(2)
    w = weights.reshape(g, -1, *weights.shape[1:])[:, :n_out, :n_in].flatten(0, 1)
    x = x.permute(2, 0, 1)[None].double()
    if layer.transposed:
        w = w.reshape(g, n_out, n_in, *kernel).transpose(1, 2).flatten(0, 1)
        sums = functional.conv_transpose2d(x, w.double(), stride=2, groups=g)
    else:
        sums = functional.conv2d(x, w.double(), stride=layer.stride, padding=layer.padding, groups=g)
    half = 1 << (ACCUMULATOR_BITS - 1)
    return (sums[0].permute(1, 2, 0).long() + half) % (2 * half) - half


def _check(name: str, value: torch.Tensor, shape: tuple[int, ...], bits: int) -> None:
    if value.dtype != torch.int64 or tuple(value.shape) != shape:
        raise TypeError(f"{name} must be int64{list(shape)}, not {value.dtype}{list(value.shape)}")
    bound = 1 << (bits - 1)
    if value.numel() and not (-bound <= int(value.min()) and int(value.max()) < bound):
        raise ValueError(f"{name} must be in {-bound}..{bound - 1}")
