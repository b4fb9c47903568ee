# SPDX-License-Identifier: MIT
"""Exact gradients in little memory: nothing is saved but the inputs of blocks, and blocks run in slices.

TinyTL's published footprint leaves out the group norms' saved inputs, which exact gradients need. They need
not be kept, for three reasons:

1. A block can be computed again from its input when its turn comes in the backward pass. Only the small
   inputs are kept; those of large maps (the first four blocks) are computed again from the picture.
2. Between its 1x1 convolutions a block never mixes channels, and a group norm mixes 8. So the wide maps exist
   one slice of channels at a time: expanded, normalised, convolved depthwise, added into the projection; and
   backward likewise, each slice adding into the gradient of the block's input.
3. Group norm treats pictures singly, so the gradient of a batch is the sum over smaller batches.

The result is that of autograd up to the order of additions. Convolutions of the main branch must be frozen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algo.tinytl.architecture import GROUP_CHANNELS
from algo.tinytl.functional import (
    channel_products,
    conv,
    conv_input_gradient,
    normalise_,
    normalise_backward_,
    standardised_backward_,
)
from algo.tinytl.network import Bottleneck, Lite, Network, Norm, Unit

LossOf = Callable[[Tensor, Tensor], Tensor]
"""``loss(scores, labels)``, the sum over pictures."""


class RecomputedStep:
    """Gradients of one network, again and again.

    Parameters: ``slice_channels``, a multiple of 8, is how many wide channels live at once (more is faster);
    ``micro_batch``, how many pictures. ValueError where a convolution of the main branch is trained.
    """

    def __init__(self, network: Network, *, slice_channels: int = 8, micro_batch: int = 1) -> None:
        if slice_channels < 1 or slice_channels % GROUP_CHANNELS:
            raise ValueError(
                f"slice_channels must be a positive multiple of {GROUP_CHANNELS}, not {slice_channels}"
            )
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, not {micro_batch}")
        trained = [n for n, p in network.named_parameters() if p.requires_grad and "lite" not in n]
        if any(".conv." in name for name in trained):
            raise ValueError("method must leave the convolutions of the main branch frozen: full does not")
        self.network, self.micro_batch = network, micro_batch
        first, *others = (module for module in network.blocks if isinstance(module, Bottleneck))
        front = _Slices([network.stem, first.dw, first.project], slice_channels)
        self.stages = [_Stage(front, None, False)]
        for block in others:
            units = [unit for unit in (block.expand, block.dw, block.project) if unit]
            slices = _Slices(units, slice_channels)
            self.stages.append(_Stage(slices, block.lite, block.block.has_shortcut))
        self.tail = _Slices([network.mix], slice_channels)
        self.kept_from = _first_kept(network)

    def __call__(self, images: Tensor, labels: Tensor, loss: LossOf) -> Tensor:
        """Replace ``.grad`` of the trained parameters by that of the summed loss; returns the loss.

        images : float[B, 3, R, R]; labels : whatever ``loss`` takes, first axis B
        """
        total = torch.zeros((), dtype=images.dtype, device=images.device)
        for parameter in self.network.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad.zero_()
            elif parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        for some, of_some in zip(images.split(self.micro_batch), labels.split(self.micro_batch), strict=True):
            total += self._add(some, of_some, loss)
        for stage in self.stages:
            if stage.lite:
                stage.lite.finish()
        return total

    def _add(self, images: Tensor, labels: Tensor, loss: LossOf) -> Tensor:
        with torch.no_grad():
            inputs: dict[int, Tensor] = {0: images}
            x = images
            for i, stage in enumerate(self.stages):
                if i >= self.kept_from:
                    inputs[i] = x
                x = stage.forward(x)
            pooled = self._pooled(x)
        value, of_pooled = self._classify(pooled, labels, loss)
        if not _any_trained(self.network, but=self.network.classifier):
            return value
        with torch.no_grad():
            gradient = self._tail_backward(x, of_pooled)
            del x, of_pooled
            for i in reversed(range(len(self.stages))):
                gradient = self.stages[i].backward(self._input_of(i, inputs), gradient)
        return value

    def _input_of(self, i: int, inputs: dict[int, Tensor]) -> Tensor:
        """Hand out the input of a stage, computed again from the picture where it was not kept."""
        if i in inputs:
            return inputs.pop(i)
        x = inputs[0]
        for stage in self.stages[:i]:
            x = stage.forward(x)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        parts = [state.output.mean((2, 3)) for _, state in self.tail.run(x)]
        return torch.cat(parts, 1)

    def _classify(self, pooled: Tensor, labels: Tensor, loss: LossOf) -> tuple[Tensor, Tensor]:
        pooled = pooled.requires_grad_()
        with torch.enable_grad():
            value = loss(self.network.classifier(pooled), labels)
        parameters = [p for p in self.network.classifier.parameters() if p.requires_grad]
        of_pooled, *others = torch.autograd.grad(value, [pooled, *parameters])
        for parameter, gradient in zip(parameters, others, strict=True):
            _sum_of(parameter).add_(gradient)
        return value.detach(), of_pooled

    def _tail_backward(self, x: Tensor, of_pooled: Tensor) -> Tensor:
        of_x = torch.zeros_like(x)
        for channels, state in self.tail.run(x):
            gradient = of_pooled[:, channels, None, None] / x.shape[-1] ** 2
            self.tail.backward(x, channels, state, gradient.expand_as(state.output).contiguous(), of_x)
        return of_x


def _first_kept(network: Network) -> int:
    """The block after the second one with stride 2: maps there have 1/64 of the picture's places."""
    strided = [i for i, block in enumerate(network.backbone.blocks) if block.stride == 2]
    return strided[1] + 1 if len(strided) > 1 else 1


def _any_trained(network: nn.Module, but: nn.Module) -> bool:
    others = {id(parameter) for parameter in but.parameters()}
    return any(p.requires_grad and id(p) not in others for p in network.parameters())


def _sum_of(parameter: Tensor) -> Tensor:
    """Where its gradient is added up."""
    assert parameter.grad is not None
    return parameter.grad


@dataclass(slots=True)
class _NormState:
    """What the backward pass of a norm and its activation needs."""

    normalised: Tensor
    inverse: Tensor | None
    """None for an affine norm."""
    inside: Tensor | None
    """bool, where ReLU6 passes gradients; None without activation."""


def _norm_forward_(x: Tensor, unit: Unit, channels: slice) -> Tensor:
    """Norm and activation in place, nothing kept."""
    if unit.norm.kind == "group":
        normalise_(x)
    x *= unit.norm.weight[channels, None, None]
    x += unit.norm.bias[channels, None, None]
    return x.clamp_(0, 6) if unit.act else x


def _norm_forward(x: Tensor, norm: Norm, channels: slice, act: bool) -> tuple[Tensor, _NormState]:
    """Overwrites x with its normalised value; the output is a new map."""
    inverse = normalise_(x) if norm.kind == "group" else None
    y = x * norm.weight[channels, None, None]
    y += norm.bias[channels, None, None]
    inside = None
    if act:
        inside = y > 0
        inside &= y < 6
        y.clamp_(0, 6)
    return y, _NormState(x, inverse, inside)


def _norm_backward_(gradient: Tensor, state: _NormState, norm: Norm, channels: slice) -> None:
    """From the gradient of the output to that of the norm's input, in place; adds those of its parameters."""
    if state.inside is not None:
        gradient *= state.inside
    if norm.bias.requires_grad:
        _sum_of(norm.bias)[channels] += gradient.sum((0, 2, 3))
    if norm.weight.requires_grad:
        _sum_of(norm.weight)[channels] += channel_products(gradient, state.normalised).sum(0)
    gradient *= norm.weight[channels, None, None]
    if state.inverse is not None:
        normalise_backward_(gradient, state.normalised, state.inverse)


@dataclass(slots=True)
class _SliceState:
    """A slice of channels: the states of its norms, and what goes into the projection."""

    norms: list[_NormState]
    output: Tensor
    sizes: list[int]
    """Sides of the inputs of the convolutions."""


class _Slices:
    """Units that can run a slice of channels at a time: [first convolution,] depthwise, projection.

    The first unit of several may mix its inputs (an expansion or the stem); the last projects, but
    where it is the only one.
    """

    def __init__(self, units: list[Unit], slice_channels: int) -> None:
        self.project = units[-1] if len(units) > 1 else None
        self.inner = units[:-1] if self.project else units
        self.kernels = [unit.conv.kernel().detach() for unit in self.inner]
        wide = len(self.kernels[0])
        self.parts = [slice(c, min(c + slice_channels, wide)) for c in range(0, wide, slice_channels)]
        if self.project:
            self.projection = self.project.conv.kernel().detach().flatten(1)

    def run(self, x: Tensor) -> Iterator[tuple[slice, _SliceState]]:
        """Forward, slice by slice; a state is released when the next is asked for."""
        for channels in self.parts:
            yield channels, self._run_slice(x, channels)

    def _run_slice(self, x: Tensor, channels: slice, *, keep: bool = True) -> _SliceState:
        norms: list[_NormState] = []
        sizes: list[int] = []
        for unit, kernel in zip(self.inner, self.kernels, strict=True):
            sizes.append(x.shape[-1])
            if _is_depthwise(unit):
                first = unit is self.inner[0]
                x = conv(x[:, channels] if first else x, kernel[channels], unit.conv.stride,
                         len(kernel[channels]), unit.conv.padding)  # fmt: skip
            else:
                x = conv(x, kernel[channels], unit.conv.stride, 1, unit.conv.padding)
            if keep:
                x, state = _norm_forward(x, unit.norm, channels, unit.act)
                norms.append(state)
            else:
                x = _norm_forward_(x, unit, channels)
        return _SliceState(norms, x, sizes)

    def projected(self, x: Tensor) -> Tensor:
        """The projection's sum over all slices, before its norm."""
        assert self.project
        total: Tensor | None = None
        for channels in self.parts:
            wide = self._run_slice(x, channels, keep=False).output
            if total is None:
                total = x.new_zeros(x.shape[0], len(self.projection), *wide.shape[2:])
            weight = self.projection[:, channels].expand(x.shape[0], -1, -1)
            total.flatten(2).baddbmm_(weight, wide.flatten(2))
        assert total is not None
        return total

    def project_backward(self, gradient: Tensor, channels: slice) -> Tensor:
        """Gradient of a slice from that of the projection."""
        weight = self.projection[:, channels].t().expand(gradient.shape[0], -1, -1)
        return torch.bmm(weight, gradient.flatten(2)).view(len(gradient), -1, *gradient.shape[2:])

    def backward(
        self, x: Tensor, channels: slice, state: _SliceState, gradient: Tensor, of_x: Tensor | None
    ) -> None:
        """Add a slice's part to the gradient of x; ``gradient`` is overwritten. None: x is the picture."""
        for i in reversed(range(len(self.inner))):
            unit, kernel = self.inner[i], self.kernels[i][channels]
            _norm_backward_(gradient, state.norms.pop(), unit.norm, channels)
            if _is_depthwise(unit):
                gradient = conv_input_gradient(
                    gradient, kernel, state.sizes[i], unit.conv.stride, len(kernel), unit.conv.padding
                )
                if i == 0 and of_x is not None:
                    of_x[:, channels] += gradient
            elif of_x is not None:  # a 1x1 convolution, straight into the sum
                weight = kernel.flatten(1).t().expand(x.shape[0], -1, -1)
                of_x.flatten(2).baddbmm_(weight, gradient.flatten(2))


def _is_depthwise(unit: Unit) -> bool:
    return unit.conv.groups > 1


class _LiteGradients:
    """A lite module; its convolutions collect gradients of their standardised kernels over the pictures."""

    def __init__(self, lite: Lite) -> None:
        self.lite = lite
        self.convolutions = lite.conv1, lite.conv2

    def finish(self) -> None:
        """From the kernels' gradients to the weights', once for all pictures."""
        for module in self.convolutions:
            if module.weight.requires_grad:
                standardised_backward_(_sum_of(module.weight), module.weight.detach())

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of x; adds those of kernels and norms."""
        leaf = x.detach().requires_grad_()
        kernels = [m.kernel().detach().requires_grad_(m.weight.requires_grad) for m in self.convolutions]
        with torch.enable_grad():
            y = self.lite(leaf, gradient.shape[-1], kernels)
        norms = [*self.lite.norm1.parameters(), *self.lite.norm2.parameters()]
        sources = [*kernels, *norms]
        targets = [m.weight for m in self.convolutions] + norms
        pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s.requires_grad]
        of_x, *others = torch.autograd.grad(y, [leaf, *(source for source, _ in pairs)], gradient)
        for (_, target), other in zip(pairs, others, strict=True):
            _sum_of(target).add_(other)
        return of_x


class _Stage:
    """A block (or the stem with the first): slices, lite module, shortcut."""

    def __init__(self, slices: _Slices, lite: Lite | None, shortcut: bool) -> None:
        self.slices, self.shortcut = slices, shortcut
        self.lite = _LiteGradients(lite) if lite else None
        assert slices.project
        self.norm = slices.project.norm

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block."""
        assert self.slices.project
        y = _norm_forward_(self.slices.projected(x), self.slices.project, slice(None))
        if self.lite:
            y += self.lite.lite(x, y.shape[-1])
        if self.shortcut:
            y += x
        return y

    def backward(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of x from that of the output, which is used up."""
        total = self.slices.projected(x)  # first, while little else is there
        of_x = self.lite.backward(x, gradient) if self.lite else None
        if of_x is None and x.shape[1] != 3:
            of_x = torch.zeros_like(x)
        if self.shortcut and of_x is not None:
            of_x += gradient
        inverse = normalise_(total) if self.norm.kind == "group" else None
        _norm_backward_(gradient, _NormState(total, inverse, None), self.norm, slice(None))
        del total
        for channels, state in self.slices.run(x):
            self.slices.backward(x, channels, state, self.slices.project_backward(gradient, channels), of_x)
            del state
        return of_x if of_x is not None else gradient
