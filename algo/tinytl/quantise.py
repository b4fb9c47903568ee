# SPDX-License-Identifier: MIT
"""A block of a network in integers, for training: 8-bit weights and activations, 16-bit gradients.

Frozen weights are rounded once, with the scale of a frozen norm multiplied in and a step for each output. The
steps of activations and gradients follow from ranges that are measured once, before training; a gradient's
range shrinks while the loss falls, so what was calibrated hardly saturates.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algo.tinytl.architecture import GROUP_CHANNELS, NORM_EPSILON
from algo.tinytl.functional import padding_of
from algo.tinytl.network import Bottleneck, Unit

Floats = NDArray[np.float64]

TOP = 6.0
"""Of ReLU6."""
WEIGHT_LIMIT = ACTIVATION_LIMIT = 127
HEADROOM = 1.25
"""Room above the largest activation seen: biases will move."""
TINY = 1e-12
"""Stands for the range of what is always 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NormRecord:
    """A group norm y = scale (z - mean) / deviation + bias, and ranges over all examples.

    The gradient of z is (scale g - A) / deviation - B (z - mean) / deviation^2, g being that of y, A the mean
    over a group of scale g, and B that of scale g (z - mean) / deviation.
    """

    scale: Floats
    """float64[n_out]"""
    sum_peak: float
    """Of z."""
    inverse_peak: float
    """Of 1 / deviation."""
    scaled_peak: float
    """Of scale g."""
    slope_peak: float
    """Of B / deviation^2."""
    part_peak: float
    """Of the two parts of the gradient that are added: scale g / deviation, and B z / deviation^2."""
    sum_gradient_peaks: Floats
    """Of the gradient of z, by channel: float64[n_out]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitRecord:
    """A convolution with its norm, whose output is u. Values are those of the float block."""

    name: str
    depthwise: bool
    in_size: int
    out_size: int
    """Pixels of a side."""
    kernel: int
    stride: int
    padding: int
    """Zeros before a row; behind it as many as ``out_size`` needs."""
    weights: NDArray[np.int8]
    """int8[n_out, n_in or 1, k, k]; with a frozen norm's scale."""
    steps: Floats
    """Value of one unit of the weights, by output: float64[n_out]."""
    bias: Floats
    """float64[n_out], where training begins."""
    clipped: bool
    """Whether ReLU6 follows."""
    in_step: float
    out_step: float
    """Value of one unit of the map read (8 bits) and written (8 bits if clipped, else 16)."""
    peak: float
    """Of u, of the bias and of what it is added to."""
    gradient_peaks: Floats
    """Of the gradient of u, by channel, beyond the mask: float64[n_out]."""
    norm: NormRecord | None
    """None: u = sum of weights x inputs + bias."""

    @property
    def n_out(self) -> int:
        """Channels of the output."""
        return len(self.weights)

    @property
    def n_in(self) -> int:
        """Channels of the input."""
        return self.n_out if self.depthwise else self.weights.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockRecord:
    """One inverted bottleneck: expansion or none, depthwise convolution, projection; see :func:`quantise`."""

    units: tuple[UnitRecord, ...]
    shortcut: bool
    out_peak: float
    """Of output, target and, with a shortcut, input, which are stored in equal steps of 16 bits."""
    in_gradient_peak: float
    """Of the gradient of the input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What a block is to learn: loss = squared distance of output and target / 2, summed over channels,
    averaged over pixels."""

    inputs: Tensor
    """float[N, c_in, H, H]"""
    targets: Tensor
    """float[N, c_out, H', H']"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Values:
    """Of one unit for all examples; gradients belong to the loss summed over pixels."""

    x: Tensor
    z: Tensor
    """Sums of weights and inputs."""
    u: Tensor
    z_gradient: Tensor
    u_gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trace:
    """A block's values for all examples."""

    units: list[_Values]
    out: Tensor
    in_gradient: Tensor


def units_of(block: Bottleneck) -> list[tuple[str, Unit]]:
    """In forward order, by name."""
    found = [(name, getattr(block, name)) for name in ("expand", "dw", "project")]
    return [(name, unit) for name, unit in found if unit is not None]


def loss_of(out: Tensor, target: Tensor) -> Tensor:
    """The loss of each example, float[N]."""
    return (out - target).square().sum(1).mean((1, 2)) / 2


def quantise(block: Bottleneck, examples: Examples) -> BlockRecord:
    """Weights in 8 bits, ranges over all examples.

    ValueError for a block with a lite module, for maps that are not square, or for examples of another shape
    than the block's.
    """
    _check(block, examples)
    trace = _traced(block, examples)
    shortcut = block.block.has_shortcut
    wide = [trace.out, examples.targets, *([examples.inputs] if shortcut else [])]
    in_steps = [_peak(examples.inputs) / ACTIVATION_LIMIT, *(_step(v.x) for v in trace.units[1:]), 0.0]
    units = zip(units_of(block), trace.units, in_steps, in_steps[1:], strict=False)
    return BlockRecord(
        units=tuple(_unit(*named, values, *steps) for named, values, *steps in units),
        shortcut=shortcut,
        out_peak=max(map(_peak, wide)),
        in_gradient_peak=_peak(trace.in_gradient),
    )


def _check(block: Bottleneck, examples: Examples) -> None:
    if block.lite is not None:
        raise ValueError("a quantised block must be without lite module")
    for name, maps, channels in (
        ("inputs", examples.inputs, block.block.c_in),
        ("targets", examples.targets, block.block.c_out),
    ):
        if maps.dim() != 4 or maps.shape[1] != channels or maps.shape[2] != maps.shape[3] or not len(maps):
            raise ValueError(f"{name} must be float[N, {channels}, H, H], not {list(maps.shape)}")


def _traced(block: Bottleneck, examples: Examples) -> _Trace:
    x = examples.inputs.detach().clone().requires_grad_()
    made, value = [], x
    for _, unit in units_of(block):
        z = unit.conv(value)
        u = unit.norm(z)
        made.append((value, z, u))
        value = u.clamp(0, TOP) if unit.act else u
    out = value + x if block.block.has_shortcut else value
    loss = (out - examples.targets).square().sum() / 2
    wanted = [x, *(v for _, z, u in made for v in (z, u))]
    in_gradient, *gradients = torch.autograd.grad(loss, wanted)
    return _Trace(
        units=[
            _Values(x=x.detach(), z=z.detach(), u=u.detach(), z_gradient=of_z, u_gradient=of_u)
            for (x, z, u), of_z, of_u in zip(made, gradients[::2], gradients[1::2], strict=True)
        ],
        out=out.detach(),
        in_gradient=in_gradient,
    )


def _unit(name: str, unit: Unit, v: _Values, in_step: float, out_step: float) -> UnitRecord:
    kernel, grouped = unit.conv.weight.shape[-1], unit.norm.kind == "group"
    scale, bias = unit.norm.weight.detach().double(), unit.norm.bias.detach().double()
    weight = unit.conv.kernel().detach().double()
    weights, steps = _rounded(weight if grouped else weight * scale[:, None, None, None])
    parts = v.u, bias, v.u - bias[:, None, None], torch.tensor(TOP if unit.act else 0.0)
    return UnitRecord(
        name=name,
        depthwise=unit.conv.groups > 1,
        in_size=v.x.shape[-1],
        out_size=v.u.shape[-1],
        kernel=kernel,
        stride=unit.conv.stride,
        padding=padding_of(v.x.shape[-1], kernel, unit.conv.stride, unit.conv.padding)[0],
        weights=weights,
        steps=steps,
        bias=bias.numpy(),
        clipped=unit.act,
        in_step=in_step,
        out_step=out_step,
        peak=max(map(_peak, parts)),
        gradient_peaks=_peaks(v.u_gradient),
        norm=_norm(v, scale) if grouped else None,
    )


def _norm(v: _Values, scale: Tensor) -> NormRecord:
    shape = len(v.z), -1, GROUP_CHANNELS * v.z.shape[2] * v.z.shape[3]
    z, scaled = (x.double().reshape(shape) for x in (v.z, v.u_gradient * scale[:, None, None]))
    inverse = (z.var(2, unbiased=False, keepdim=True) + NORM_EPSILON).rsqrt()
    slope = (scaled * (z - z.mean(2, keepdim=True)) * inverse).mean(2, keepdim=True) * inverse**2
    return NormRecord(
        scale=scale.numpy(),
        sum_peak=_peak(z),
        inverse_peak=_peak(inverse),
        scaled_peak=_peak(scaled),
        slope_peak=_peak(slope),
        part_peak=max(_peak(scaled * inverse), _peak(slope * z)),
        sum_gradient_peaks=_peaks(v.z_gradient),
    )


def _rounded(weight: Tensor) -> tuple[NDArray[np.int8], Floats]:
    """int8 and their steps, one for each output."""
    steps = weight.abs().amax((1, 2, 3)).clamp(min=TINY) / WEIGHT_LIMIT
    return (weight / steps[:, None, None, None]).round().to(torch.int8).numpy(), steps.numpy()


def _step(x: Tensor) -> float:
    """Of a map behind ReLU6, 0..127."""
    return min(TOP, HEADROOM * _peak(x)) / ACTIVATION_LIMIT


def _peaks(x: Tensor) -> Floats:
    """By channel."""
    return x.abs().amax((0, 2, 3)).double().clamp(min=TINY).numpy()


def _peak(x: Tensor) -> float:
    return max(float(x.detach().abs().max()), TINY)
