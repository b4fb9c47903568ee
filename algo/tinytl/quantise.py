# SPDX-License-Identifier: MIT
"""A block of a network in integers, for training: 8-bit weights and activations, 16-bit gradients.

Frozen weights are rounded once, with the scale of a frozen norm multiplied in and a step for each output. The
steps of activations and gradients follow from ranges that are measured once, before training; a gradient's
range shrinks while the loss falls, so what was calibrated hardly saturates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from algo.tinytl.architecture import GROUP_CHANNELS, LITE_GROUPS, NORM_EPSILON
from algo.tinytl.functional import conv, padding_of, relu
from algo.tinytl.network import Bottleneck, Conv, Lite, Unit

Floats = NDArray[np.float64]

TOP = 6.0
"""Of ReLU6."""
WEIGHT_LIMIT = ACTIVATION_LIMIT = 127
HEADROOM = 1.25
"""Room above the largest activation seen: biases will move."""
WEIGHT_HEADROOM = 2.0
"""Room above the largest trained weight."""
LITE_SCALE = 1.0
"""Scale of a lite module's second norm that gradients are calibrated for: they grow with it."""
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
    top: float | None
    """Of what follows: 6 of ReLU6, infinity of ReLU; None: nothing."""
    in_step: float
    out_step: float
    """Value of one unit of the map read and of the map written, both of 8 bits; 0 if 16 are written."""
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
class LiteRecord:
    """A lite residual module: mean pooling, two convolutions with group norms, enlargement by two.

    All is trained but the second norm's bias. Its scale, which begins at 0, stands apart: the second unit's
    output is the normed map at scale 1, and ranges of gradients are those at a scale of :data:`LITE_SCALE`.
    """

    name: str
    units: tuple[UnitRecord, UnitRecord]
    """Weights dense: 0 from one group to the other. One step for all of a unit's weights, with room above."""
    scale: Floats
    """Of the second norm: float64[c_out]."""
    weight_gradient_peaks: tuple[float, float]
    enlarged_gradient_peak: float
    """Of the gradient of what is enlarged."""
    pooled_gradient_peak: float
    """Of that of the pooled input."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockRecord:
    """One inverted bottleneck: expansion or none, depthwise convolution, projection; see :func:`quantise`."""

    name: str = ""
    """What the names of its units, maps and lists begin with."""
    units: tuple[UnitRecord, ...]
    shortcut: bool
    out_peak: float
    """Of output, target and, with a shortcut, input, which are stored in equal steps of 16 bits."""
    in_gradient_peak: float
    """Of the gradient of the input."""
    lite: "LiteRecord | None"


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """What a block is to learn: loss = squared distance of output and target / 2, summed over channels,
    averaged over pixels."""

    inputs: Tensor
    """float[N, c_in, H, H]"""
    targets: Tensor
    """float[N, c_out, H', H']"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """Of one unit for all examples; gradients belong to the loss summed over examples and pixels."""

    x: Tensor
    z: Tensor
    """Sums of weights and inputs."""
    u: Tensor
    z_gradient: Tensor
    u_gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A block's values for all examples."""

    x: Tensor
    units: list[Values]
    out: Tensor
    in_gradient: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """A block's tensors in a forward pass, with their graph."""

    x: Tensor
    units: list[tuple[Tensor, Tensor, Tensor]]
    """Input, sums and output of each."""
    out: Tensor

    def wanted(self) -> list[Tensor]:
        """Those whose gradients :meth:`traced` takes, in order."""
        return [self.x, *(value for _, z, u in self.units for value in (z, u))]

    def traced(self, gradients: Sequence[Tensor]) -> Trace:
        """With the gradients of :meth:`wanted`."""
        of_x, *of_units = gradients
        pairs = zip(of_units[::2], of_units[1::2], strict=True)
        units = [values_of(unit, *pair) for unit, pair in zip(self.units, pairs, strict=True)]
        return Trace(x=self.x.detach(), units=units, out=self.out.detach(), in_gradient=of_x)


def values_of(unit: tuple[Tensor, Tensor, Tensor], of_z: Tensor, of_u: Tensor) -> Values:
    """Input, sums and output of a unit, and the gradients of the last two."""
    x, z, u = (value.detach() for value in unit)
    return Values(x=x, z=z, u=u, z_gradient=of_z, u_gradient=of_u)


def units_of(block: Bottleneck) -> list[tuple[str, Unit]]:
    """In forward order, by name."""
    found = [(name, getattr(block, name)) for name in ("expand", "dw", "project")]
    return [(name, unit) for name, unit in found if unit is not None]


def loss_of(out: Tensor, target: Tensor) -> Tensor:
    """The loss of each example, float[N]."""
    return (out - target).square().sum(1).mean((1, 2)) / 2


def quantise(block: Bottleneck, examples: Examples) -> BlockRecord:
    """Weights in 8 bits, ranges over all examples.

    ValueError for maps that are not square or for examples of another shape than the block's; for a lite
    module whose weights are standardised (see :func:`released`) or whose output is not half the block's.
    """
    _check(block, examples)
    of = passed(block, examples.inputs.detach().clone().requires_grad_())
    if of.out.shape != examples.targets.shape:
        sizes = [list(of.out.shape), list(examples.targets.shape)]
        raise ValueError(f"targets must be as large as outputs, {sizes[0]}, not {sizes[1]}")
    loss = (of.out - examples.targets).square().sum() / 2
    trace = of.traced(torch.autograd.grad(loss, of.wanted()))
    return block_record(block, trace, peak(trace.x) / ACTIVATION_LIMIT, out_peak=peak(examples.targets))


def passed(block: Bottleneck, x: Tensor) -> Passed:
    """Forward."""
    made, value = [], x
    for _, unit in units_of(block):
        made.append(passed_unit(unit, value))
        value = activated(unit, made[-1][2])
    out = value + x if block.block.has_shortcut else value
    if block.lite:
        out = out + block.lite(x, out.shape[-1])
    return Passed(x=x, units=made, out=out)


def passed_unit(unit: Unit, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input, sums and output before the activation."""
    z = unit.conv(x)
    return x, z, unit.norm(z)


def activated(unit: Unit, u: Tensor) -> Tensor:
    """What follows a unit's norm."""
    return u.clamp(0, TOP) if unit.act else u


def block_record(
    block: Bottleneck, trace: Trace, in_step: float, *, name: str = "", out_peak: float = 0.0
) -> BlockRecord:
    """``in_step``: of the 8-bit input; ``out_peak``: of what else is stored in the steps of the output."""
    shortcut, lite = block.block.has_shortcut, block.lite is not None
    wide = [trace.out, trace.units[-1].u, *([trace.x] if shortcut or lite else [])]
    in_steps = [in_step, *(step_of(v.x, TOP) for v in trace.units[1:]), 0.0]
    units = zip(units_of(block), trace.units, in_steps, in_steps[1:], strict=False)
    return BlockRecord(
        name=name,
        units=tuple(
            unit_record(f"{name}{of}", unit, values, before, after)
            for (of, unit), values, before, after in units
        ),
        shortcut=shortcut,
        out_peak=max(out_peak, *map(peak, wide)),
        in_gradient_peak=peak(trace.in_gradient),
        lite=_lite(f"{name}lite", block.lite, trace) if block.lite else None,
    )


@torch.no_grad()
def released(block: Bottleneck) -> Bottleneck:
    """The block, its lite module's weights standardised once, to be trained as they are."""
    for of in (block.lite.conv1, block.lite.conv2) if block.lite else ():
        of.weight.copy_(of.kernel())
        of.standardise = False
    return block


def _check(block: Bottleneck, examples: Examples) -> None:
    for name, maps, channels in (
        ("inputs", examples.inputs, block.block.c_in),
        ("targets", examples.targets, block.block.c_out),
    ):
        if maps.dim() != 4 or maps.shape[1] != channels or maps.shape[2] != maps.shape[3] or not len(maps):
            raise ValueError(f"{name} must be float[N, {channels}, H, H], not {list(maps.shape)}")
    if block.lite is None:
        return
    if block.lite.conv1.standardise or block.lite.conv2.standardise:
        raise ValueError("weights of a quantised lite module must not be standardised")
    size, multiple = examples.inputs.shape[-1], 2 * block.block.stride
    if size % multiple:
        raise ValueError(
            f"inputs must be a multiple of {multiple} pixels wide with a lite module, not {size}"
        )


def unit_record(name: str, unit: Unit, v: Values, in_step: float, out_step: float) -> UnitRecord:
    """A convolution with its norm; steps of the 8-bit maps read and written."""
    grouped, scale = unit.norm.kind == "group", unit.norm.weight.detach().double()
    weight = unit.conv.kernel().detach().double()
    weights, steps = _rounded(weight if grouped else weight * scale[:, None, None, None])
    return _record(
        name, unit.conv, v, weights=weights, steps=steps, bias=unit.norm.bias,
        top=TOP if unit.act else None, in_step=in_step, out_step=out_step,
        norm=_norm(v, scale) if grouped else None,
    )  # fmt: skip


def _record(name: str, of: Conv, v: Values, *, bias: Tensor, top: float | None, **more: Any) -> UnitRecord:
    bias, kernel, size = bias.detach().double(), of.weight.shape[-1], v.x.shape[-1]
    parts = v.u, bias, v.u - bias[:, None, None], torch.tensor(TOP if top == TOP else 0.0)
    return UnitRecord(
        name=name,
        depthwise=of.groups == len(of.weight),
        in_size=size,
        out_size=v.u.shape[-1],
        kernel=kernel,
        stride=of.stride,
        padding=padding_of(size, kernel, of.stride, of.padding)[0],
        bias=bias.numpy(),
        top=top,
        peak=max(map(peak, parts)),
        gradient_peaks=_peaks(v.u_gradient),
        **more,
    )


def _lite(name: str, lite: Lite, trace: Trace) -> LiteRecord:
    """Forward as it is; backward from the block's gradient with the second norm's scale at LITE_SCALE."""
    x = F.avg_pool2d(trace.x, 2).requires_grad_()
    weights = [of.weight.detach().clone().requires_grad_() for of in (lite.conv1, lite.conv2)]
    with torch.enable_grad():
        z1 = conv(x, weights[0], lite.conv1.stride, LITE_GROUPS, "symmetric")
        u1 = lite.norm1(z1)
        a1 = relu(u1)
        z2 = F.conv2d(a1, weights[1])
        u2 = F.group_norm(z2, z2.shape[1] // GROUP_CHANNELS, eps=NORM_EPSILON)
        enlarged = F.interpolate(u2, scale_factor=2, mode="bilinear", align_corners=False)
        gradient = LITE_SCALE * trace.units[-1].u_gradient
        maps = [x, z1, u1, z2, u2]
        of_x, *of_maps, of_u2 = torch.autograd.grad(enlarged, maps, gradient, retain_graph=True)
        of_weights = [
            torch.autograd.grad(enlarged, weights, gradient * here[:, None, None, None], retain_graph=True)
            for here in torch.eye(len(x))
        ]
    first = Values(x=x.detach(), z=z1.detach(), u=u1.detach(), z_gradient=of_maps[0], u_gradient=of_maps[1])
    second = Values(x=a1.detach(), z=z2.detach(), u=u2.detach(), z_gradient=of_maps[2], u_gradient=of_u2)
    ones, out_step = torch.ones(len(u2[0]), dtype=torch.float64), step_of(second.x, math.inf)
    integers = [
        rounded_together(dense(w.detach().double(), g))
        for w, g in zip(weights, (LITE_GROUPS, 1), strict=True)
    ]
    return LiteRecord(
        name=name,
        units=(
            _record(
                f"{name}.conv1", lite.conv1, first, weights=integers[0][0], steps=integers[0][1],
                bias=lite.norm1.bias, top=math.inf, in_step=peak(x) / ACTIVATION_LIMIT, out_step=out_step,
                norm=_norm(first, lite.norm1.weight.detach().double()),
            ),
            _record(
                f"{name}.conv2", lite.conv2, second, weights=integers[1][0], steps=integers[1][1],
                bias=0 * ones, top=None, in_step=out_step, out_step=0.0, norm=_norm(second, ones),
            ),
        ),
        scale=lite.norm2.weight.detach().double().numpy(),
        weight_gradient_peaks=(max(peak(g[0]) for g in of_weights), max(peak(g[1]) for g in of_weights)),
        enlarged_gradient_peak=peak(of_u2) / LITE_SCALE,
        pooled_gradient_peak=peak(of_x),
    )  # fmt: skip


def dense(weight: Tensor, groups: int) -> Tensor:
    """The weights [n_out, n_in, k, k] of one group that do the same as those of several."""
    return torch.cat(
        [
            F.pad(part, (0, 0, 0, 0, n * part.shape[1], (groups - 1 - n) * part.shape[1]))
            for n, part in enumerate(weight.chunk(groups))
        ]
    )


def _norm(v: Values, scale: Tensor) -> NormRecord:
    shape = len(v.z), -1, GROUP_CHANNELS * v.z.shape[2] * v.z.shape[3]
    z, scaled = (x.double().reshape(shape) for x in (v.z, v.u_gradient * scale[:, None, None]))
    inverse = (z.var(2, unbiased=False, keepdim=True) + NORM_EPSILON).rsqrt()
    slope = (scaled * (z - z.mean(2, keepdim=True)) * inverse).mean(2, keepdim=True) * inverse**2
    return NormRecord(
        scale=scale.numpy(),
        sum_peak=peak(z),
        inverse_peak=peak(inverse),
        scaled_peak=peak(scaled),
        slope_peak=peak(slope),
        part_peak=max(peak(scaled * inverse), peak(slope * z)),
        sum_gradient_peaks=_peaks(v.z_gradient),
    )


def _rounded(weight: Tensor) -> tuple[NDArray[np.int8], Floats]:
    """int8 and their steps, one for each output."""
    steps = weight.abs().amax((1, 2, 3)).clamp(min=TINY) / WEIGHT_LIMIT
    return (weight / steps[:, None, None, None]).round().to(torch.int8).numpy(), steps.numpy()


def rounded_together(weight: Tensor) -> tuple[NDArray[np.int8], Floats]:
    """int8 of one step, given for each output."""
    step = WEIGHT_HEADROOM * peak(weight) / WEIGHT_LIMIT
    return (weight / step).round().to(torch.int8).numpy(), np.full(len(weight), step)


def step_of(x: Tensor, top: float = math.inf) -> float:
    """Of a map of 8 bits; ``top``: of an activation before it."""
    return min(top, HEADROOM * peak(x)) / ACTIVATION_LIMIT


def _peaks(x: Tensor) -> Floats:
    """By channel."""
    return x.abs().amax((0, 2, 3)).double().clamp(min=TINY).numpy()


def peak(x: Tensor) -> float:
    """Largest absolute value, at least TINY."""
    return max(float(x.detach().abs().max()), TINY)
