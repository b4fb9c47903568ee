# SPDX-License-Identifier: MIT
"""Bit-exact model of the depthwise unit: the definition, with borders and inserted zeros stored."""

import torch
from torch.nn import functional

from .config import MAP_BITS, WEIGHT_BITS, Pass
from .layer import DepthwiseLayer


def depthwise(x: torch.Tensor, weights: torch.Tensor, layer: DepthwiseLayer) -> torch.Tensor:
    """The sums of a layer, exact: below 2^28 in absolute value.

    Parameters
    ----------
    x : int64[height, width, channels], signed of 8 bits (16 if ``layer.wide``)
    weights : int64[channels, kernel, kernel], signed of 8 bits

    Returns
    -------
    int64[out_height, out_width, channels]

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range.
    """
    n, zoom = layer.kernel, 2 if layer.transposed else 1
    _check("x", x, (layer.height, layer.width, layer.channels), MAP_BITS if layer.wide else 8)
    _check("weights", weights, (layer.channels, n, n), WEIGHT_BITS)
    stride = 1 if layer.transposed else layer.stride
    before = n - 1 - layer.padding if layer.transposed else layer.padding
    for axis, n_out in ((0, layer.out_height), (1, layer.out_width)):
        x = _around(x, axis, before, (n_out - 1) * stride + n, zoom, layer.replicate)
    return _correlated(x, weights.flip(1, 2) if layer.transposed else weights, stride)


def passed(x: torch.Tensor, weights: torch.Tensor, of: Pass) -> torch.Tensor:
    """The sums of one pass: int64[out_height, out_width, channels] of int64[height, width, channels] and
    int64[channels, kernel_height, kernel_width]; errors as in :func:`depthwise`."""
    _check("x", x, (of.height, of.width, x.shape[-1]), MAP_BITS if of.wide else 8)
    _check("weights", weights, (x.shape[-1], of.kernel_height, of.kernel_width), WEIGHT_BITS)
    for axis, before, n in ((0, of.padding_y, of.kernel_height), (1, of.padding_x, of.kernel_width)):
        n_out = (of.out_height, of.out_width)[axis]
        x = _around(x, axis, before, (n_out - 1) * of.stride + n, 1, of.replicate)
    return _correlated(x, weights, of.stride)


def _around(x: torch.Tensor, axis: int, before: int, n: int, zoom: int, replicate: bool) -> torch.Tensor:
    """``n`` pixels along an axis from ``before`` in front of the first one on; with a ``zoom`` of 2 a zero
    follows every pixel, stored or not."""
    at = torch.arange(n) - before
    index = at.div(zoom, rounding_mode="floor")
    met = at % zoom == 0
    if not replicate:
        met &= (index >= 0) & (index < x.shape[axis])
    chosen = x.index_select(axis, index.clamp(0, x.shape[axis] - 1))
    return chosen * met.view([-1 if of == axis else 1 for of in range(3)])


def _correlated(x: torch.Tensor, weights: torch.Tensor, stride: int) -> torch.Tensor:
    """In float64, which holds all of these sums exactly."""
    sums = functional.conv2d(
        x.permute(2, 0, 1)[None].double(), weights[:, None].double(), stride=stride, groups=len(weights)
    )
    return sums[0].permute(1, 2, 0).long()


def _check(name: str, value: torch.Tensor, shape: tuple[int, ...], bits: int) -> None:
    if value.dtype != torch.int64 or tuple(value.shape) != shape:
        raise TypeError(f"{name} must be int64{list(shape)}, not {value.dtype}{list(value.shape)}")
    bound = 1 << (bits - 1)
    if not (-bound <= int(value.min()) and int(value.max()) < bound):
        raise ValueError(f"{name} must be in {-bound}..{bound - 1}")
