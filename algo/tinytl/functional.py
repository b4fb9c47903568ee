# SPDX-License-Identifier: MIT
"""The operations of a training step that are no plain convolution, forward and backward.

Maps are float[B, C, H, W]. ReLU and ReLU6 keep one bit an element for the backward pass, as the paper counts.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from algo.tinytl.architecture import GROUP_CHANNELS, NORM_EPSILON, STANDARDISATION_EPSILON


def standardised(weight: Tensor) -> Tensor:
    """Weight standardisation: (W - mean) / (std + 1e-5) of each output channel, the unbiased deviation."""
    flat = weight.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / (flat.std(1, keepdim=True) + STANDARDISATION_EPSILON)).reshape(weight.shape)


def standardised_backward_(gradient: Tensor, weight: Tensor) -> None:
    """Adjoint of :func:`standardised` in place: from the gradient of its result to that of ``weight``.

    With c = W - mean, s = std + 1e-5 and n weights: (g - mean g) / s - c sum(g c) / ((n - 1) std s^2).
    """
    g, c = gradient.view(len(weight), -1), weight.flatten(1)
    deviation = c.std(1, keepdim=True)
    c = c - c.mean(1, keepdim=True)
    wide = deviation + STANDARDISATION_EPSILON
    share = _mean_product(g.unsqueeze(1), c.unsqueeze(1))[:, 0] * c.shape[1] / (c.shape[1] - 1)
    share /= deviation.clamp(min=torch.finfo(c.dtype).tiny) * wide**2
    g -= g.mean(1, keepdim=True)
    g /= wide
    g.addcmul_(c, share, value=-1)


def padding_of(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after on each axis; see :class:`~algo.tinytl.architecture.Backbone`."""
    if padding == "symmetric":
        return kernel // 2, kernel // 2
    needed = max(0, ((size - 1) // stride) * stride + kernel - size)
    return needed // 2, needed - needed // 2


def conv(x: Tensor, weight: Tensor, stride: int, groups: int, padding: str) -> Tensor:
    """Convolution of square maps without bias; padded apart only where the two sides differ."""
    before, after = padding_of(x.shape[-1], weight.shape[-1], stride, padding)
    if before == after:
        return F.conv2d(x, weight, stride=stride, padding=before, groups=groups)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)


def conv_input_gradient(
    gradient: Tensor, weight: Tensor, size: int, stride: int, groups: int, padding: str
) -> Tensor:
    """Adjoint of :func:`conv` with respect to x, whose side is ``size``."""
    before, after = padding_of(size, weight.shape[-1], stride, padding)
    shape = (gradient.shape[0], weight.shape[1] * groups, size + before + after, size + before + after)
    if before == after:
        shape = (*shape[:2], size, size)
        return conv2d_input(shape, weight, gradient, stride, before, 1, groups)
    full = conv2d_input(shape, weight, gradient, stride, 0, 1, groups)
    return full[..., before : before + size, before : before + size].contiguous()


class _FrozenConv(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int, padding: str) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.more = x.shape[-1], (stride, groups, padding)
        return conv(x, weight, stride, groups, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        return conv_input_gradient(gradients[0], weight, ctx.size, *ctx.more), None, None, None, None


def frozen_conv(x: Tensor, weight: Tensor, stride: int, groups: int, padding: str) -> Tensor:
    """:func:`conv` that does not save x. PyTorch's own does, though a frozen weight has no use for it."""
    return _FrozenConv.apply(x, weight, stride, groups, padding)


def normalise_(x: Tensor) -> Tensor:
    """Group normalisation in place, before scale and bias; returns 1 / deviation, float[B, C / 8, 1].

    Mean and (biased) variance over 8 channels and all places of one picture; epsilon 1e-3.
    """
    grouped = x.view(x.shape[0], x.shape[1] // GROUP_CHANNELS, -1)
    grouped -= grouped.mean(2, keepdim=True)
    inverse = (_mean_product(grouped, grouped) + NORM_EPSILON).rsqrt()
    grouped *= inverse
    return inverse


def normalise_backward_(gradient: Tensor, normalised: Tensor, inverse: Tensor) -> None:
    """Adjoint of :func:`normalise_`, in place: inverse (g - mean g - x_hat mean(g x_hat))."""
    shape = (*inverse.shape[:2], -1)
    g, x_hat = gradient.view(shape), normalised.view(shape)
    product = _mean_product(g, x_hat)
    g -= g.mean(2, keepdim=True)
    g.addcmul_(x_hat, product, value=-1).mul_(inverse)


def channel_products(a: Tensor, b: Tensor) -> Tensor:
    """Sums of a b over places, float[B, C], without a map in between."""
    return (a.flatten(2).unsqueeze(2) @ b.flatten(2).unsqueeze(3)).flatten(1)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    """Mean of a b over the last axis, float[B, G, 1], without a map in between."""
    return (a.unsqueeze(2) @ b.unsqueeze(3)).squeeze(3) / a.shape[-1]


class _Clamped(Function):
    """max(0, min(x, top)) with the gradient 1 inside and 0 elsewhere; saves one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.shape = x.shape
        ctx.save_for_backward(packed((x > 0) & (x < top)))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * unpacked(ctx.saved_tensors[0], ctx.shape), None


def relu6(x: Tensor) -> Tensor:
    """The main branch's activation."""
    return _Clamped.apply(x, 6.0)


def relu(x: Tensor) -> Tensor:
    """The lite module's activation."""
    return _Clamped.apply(x, float("inf"))


def packed(mask: Tensor) -> Tensor:
    """bool[...] to uint8[ceil(n / 8)], the first element in the lowest bit."""
    if mask.device.type == "cpu":  # a tenth of the time
        return torch.from_numpy(np.packbits(mask.flatten().numpy(), bitorder="little"))
    return packed_by_torch(mask)


def unpacked(octets: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of :func:`packed`, bool[shape]."""
    if octets.device.type == "cpu":
        bits = np.unpackbits(octets.numpy(), count=shape.numel(), bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).view(shape)
    return unpacked_by_torch(octets, shape)


def packed_by_torch(mask: Tensor) -> Tensor:
    """:func:`packed` on any device."""
    bits = F.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    octets = torch.zeros(len(bits), dtype=torch.uint8, device=mask.device)
    for i in range(8):
        octets |= bits[:, i].to(torch.uint8) << i
    return octets


def unpacked_by_torch(octets: Tensor, shape: torch.Size) -> Tensor:
    """:func:`unpacked` on any device."""
    bits = torch.stack([(octets >> i) & 1 for i in range(8)], 1).bool()
    return bits.flatten()[: shape.numel()].view(shape)
