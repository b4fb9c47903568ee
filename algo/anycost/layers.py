# SPDX-License-Identifier: MIT
"""Layers of StyleGAN2 (Karras et al., CVPR 2020), any of which can run on its first channels only."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-8
FILTER = (1.0, 3.0, 3.0, 1.0)
"""The blur of one axis; its gain 1/8 (2/8 where zeros were inserted) is a shift."""


def lrelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """sqrt(2) leaky_relu(x + bias, 0.2); ``bias`` float[C] on axis 1."""
    if bias is not None:
        x = x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean over axis 1 of x^2 + 1e-8)."""
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def blur(x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
    """[1, 3, 3, 1] / 8 along both axes of float[N, C, H, W], times ``gain``; ``pad`` zeros on every side.

    A side of H pixels becomes H + 2 pad - 3.
    """
    return F.conv2d(x, _filter(x, gain), padding=pad, groups=x.shape[1])


def upsample(x: Tensor) -> Tensor:
    """Twice the size: zeros inserted, then the blur of gain 4. float[N, C, H, W] -> float[N, C, 2H, 2W]."""
    return F.conv_transpose2d(x, _filter(x, gain=4), stride=2, padding=1, groups=x.shape[1])


def _filter(x: Tensor, gain: float) -> Tensor:
    """The same 4x4 filter for every channel of ``x``: float[C, 1, 4, 4], of sum ``gain``.

    Both axes at once: a second pass over memory costs a CPU more than twice the products.
    """
    taps = x.new_tensor(FILTER)
    return (taps[:, None] * taps * (gain / 64)).expand(x.shape[1], 1, 4, 4)


class EqualLinear(nn.Module):
    """y = x (W lr_mul / sqrt(n_in))^T + b lr_mul; W starts as N(0, 1) / lr_mul."""

    def __init__(self, n_in: int, n_out: int, bias: float = 0.0, lr_mul: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), float(bias)))
        self.scale, self.lr_mul = lr_mul / math.sqrt(n_in), lr_mul

    def forward(self, x: Tensor, n_out: int | None = None) -> Tensor:
        """float[N, n_in] -> float[N, n_out], the first outputs only where ``n_out`` says so."""
        return F.linear(x, self.weight[:n_out] * self.scale, self.bias[:n_out] * self.lr_mul)


class EqualConv(nn.Module):
    """Convolution with W ~ N(0, 1) scaled by 1 / sqrt(fan-in) as it runs; no bias."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.scale = 1 / math.sqrt(c_in * kernel * kernel)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """float[N, c_in, H, W]."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class ModulatedConv(nn.Module):
    """Convolution whose weights are scaled by a style and normalised again (demodulation).

    Computed without weights of each image's own: the input channels are scaled by s_i, one convolution with
    the shared weights follows, and the output channels are scaled by d_o = (sum_i s_i^2 Q_oi + 1e-8)^(-1/2)
    with Q_oi = sum_k (scale W_oik)^2. The sum runs over the channels in use, ``scale`` is
    1 / sqrt(``fan_in``) of the full generator whatever is in use.

    Parameters: ``fan_in`` is k^2 times the input channels of the *full* generator; ``up`` doubles the size
    (transposed convolution of stride 2 to 2H + 1, then blur).
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, style_size: int, fan_in: int,
        demodulate: bool = True, up: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, kernel, kernel))
        self.modulation = EqualLinear(style_size, c_in, bias=1.0)
        self.scale = 1 / math.sqrt(fan_in)
        self.demodulate, self.up, self.padding = demodulate, up, kernel // 2

    def forward(self, x: Tensor, style: Tensor, c_out: int | None = None) -> Tensor:
        """x : float[N, C, H, W] with the first C channels, style : float[N, style_size]."""
        c_in = x.shape[1]
        # A copy of the slice has the memory layout of a generator of that width, and so its bits.
        weight = (self.weight[:c_out, :c_in] * self.scale).contiguous()
        s = self.modulation(style, c_in)  # [N, C]
        x = x * s[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1).contiguous(), stride=2)
            x = blur(x, 1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            d = (s.square() @ weight.square().sum((2, 3)).T + EPSILON).rsqrt()  # [N, c_out]
            x = x * d[:, :, None, None]
        return x


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise of learned strength, bias, leaky ReLU; in this order."""

    def __init__(self, c_in: int, c_out: int, style_size: int, fan_in: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(c_in, c_out, 3, style_size, fan_in, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor, c_out: int) -> Tensor:
        """noise : float[1 or N, 1, H, W] of the output."""
        x = self.conv(x, style, c_out) + self.noise_strength * noise
        return lrelu(x, self.bias[:c_out])


class ToRgb(nn.Module):
    """Modulated 1x1 convolution to three colours, without demodulation."""

    def __init__(self, c_in: int, style_size: int, fan_in: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(c_in, 3, 1, style_size, fan_in, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """float[N, C, H, W] -> float[N, 3, H, W]."""
        return self.conv(x, style) + self.bias[:, None, None]
