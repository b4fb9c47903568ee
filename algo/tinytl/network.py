# SPDX-License-Identifier: MIT
"""The networks of :mod:`algo.tinytl.architecture` in PyTorch. Pictures are float[B, 3, R, R], about -1..1."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algo.tinytl import saved8
from algo.tinytl.architecture import (
    GROUP_CHANNELS,
    LITE_GROUPS,
    NORM_EPSILON,
    Backbone,
    Block,
    Method,
    check_resolution,
    layers,
)
from algo.tinytl.choice import Choice, Part, whole
from algo.tinytl.functional import conv, frozen_conv, relu, relu6, standardised


class Conv(nn.Module):
    """Convolution without bias; weight float[c_out, c_in / groups, k, k]."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, groups: int, padding: str, standardise: bool
    ) -> None:
        super().__init__()
        self.stride, self.groups, self.padding, self.standardise = stride, groups, padding, standardise
        fan_out = c_out * kernel**2 / groups
        self.weight = nn.Parameter(
            torch.randn(c_out, c_in // groups, kernel, kernel) * math.sqrt(2 / fan_out)
        )

    def kernel(self) -> Tensor:
        """The weight as the convolution sees it."""
        return standardised(self.weight) if self.standardise else self.weight

    def forward(self, x: Tensor) -> Tensor:
        run = conv if self.weight.requires_grad else frozen_conv
        return run(x, self.kernel(), self.stride, self.groups, self.padding)


class Norm(nn.Module):
    """Group norm, 8 channels a group, or a frozen batch norm: y = weight x + bias (``affine``).

    ``eight_bits`` saves the normalised input of a group norm in 8 bits (:mod:`algo.tinytl.saved8`).
    """

    def __init__(self, channels: int, kind: str, weight: float = 1.0) -> None:
        super().__init__()
        self.kind, self.eight_bits = kind, False
        self.weight = nn.Parameter(torch.full((channels,), weight))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "affine":
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        if self.eight_bits:
            return saved8.group_norm(x, self.weight, self.bias)
        return F.group_norm(x, x.shape[1] // GROUP_CHANNELS, self.weight, self.bias, NORM_EPSILON)


class Unit(nn.Module):
    """Convolution and norm, then ReLU6 where ``act``."""

    def __init__(
        self, backbone: Backbone, c_in: int, c_out: int, kernel: int, stride: int, groups: int, act: bool
    ) -> None:
        super().__init__()
        grouped = backbone.norm == "group"
        self.conv = Conv(c_in, c_out, kernel, stride, groups, backbone.padding, grouped)
        self.norm, self.act = Norm(c_out, backbone.norm), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return relu6(x) if self.act else x


class Lite(nn.Module):
    """Lite residual module. The last scale starts at 0, so that a new one changes nothing at first."""

    def __init__(self, block: Block, kernel: int) -> None:
        super().__init__()
        c = block.c_in
        self.conv1 = Conv(c, c, kernel, block.stride, LITE_GROUPS, "symmetric", True)
        self.norm1 = Norm(c, "group")
        self.conv2 = Conv(c, block.c_out, 1, 1, 1, "symmetric", True)
        self.norm2 = Norm(block.c_out, "group", weight=0.0)

    def forward(self, x: Tensor, size: int, kernels: Sequence[Tensor] = ()) -> Tensor:
        """Output of side ``size``; ``kernels`` replace those of the two convolutions."""
        first, second = kernels or (self.conv1.kernel(), self.conv2.kernel())
        x = F.avg_pool2d(x, 2)
        x = relu(self.norm1(conv(x, first, self.conv1.stride, LITE_GROUPS, "symmetric")))
        x = self.norm2(F.conv2d(x, second))
        return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)


class Bottleneck(nn.Module):
    """One block with its lite module and shortcut."""

    def __init__(self, backbone: Backbone, index: int) -> None:
        super().__init__()
        self.block = block = backbone.blocks[index]
        wide = block.c_expanded
        self.expand = Unit(backbone, block.c_in, wide, 1, 1, 1, True) if block.expansion > 1 else None
        self.dw = Unit(backbone, wide, wide, block.kernel, block.stride, wide, True)
        self.project = Unit(backbone, wide, block.c_out, 1, 1, 1, False)
        self.lite = Lite(block, backbone.lite_kernel(index)) if backbone.has_lite(index) else None

    def forward(self, x: Tensor, part: Part = Part.LITE) -> Tensor:
        """``part`` LITE: all that there is."""
        if part == Part.ABSENT:
            return x
        y = self.project(self.dw(self.expand(x) if self.expand else x))
        if self.lite and part == Part.LITE:
            y = y + self.lite(x, y.shape[-1])
        return y + x if self.block.has_shortcut else y


class Network(nn.Module):
    """A backbone with random weights (He, fan-out) drawn with ``seed``; the classifier starts at 0."""

    def __init__(self, backbone: Backbone, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = Unit(backbone, 3, backbone.blocks[0].c_in, 3, 2, 1, True)
            self.blocks = nn.ModuleList(Bottleneck(backbone, i) for i in range(len(backbone.blocks)))
            self.mix = Unit(backbone, backbone.blocks[-1].c_out, backbone.c_mix, 1, 1, 1, True)
            self.classifier = nn.Linear(backbone.c_mix, backbone.n_classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def features(self, images: Tensor, choice: Choice | None = None) -> Tensor:
        """Pooled features float[B, c_mix]. ValueError for pictures that are too small or not square.

        ``choice``: without some blocks and lite modules.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be float[B, 3, R, R], not {list(images.shape)}")
        check_resolution(self.backbone, images.shape[-1])
        x = self.stem(images)
        for block, part in zip(self.blocks, choice or whole(self.backbone), strict=True):
            x = block(x, part)
        return self.mix(x).mean((2, 3))

    def forward(self, images: Tensor, choice: Choice | None = None) -> Tensor:
        """Scores float[B, n_classes]."""
        return self.classifier(self.features(images, choice))

    def save_in_eight_bits(self, on: bool = True) -> None:
        """Switch the 8-bit saved inputs of the main branch's group norms on or off."""
        for name, module in self.named_modules():
            if isinstance(module, Norm) and ".lite." not in name:
                module.eight_bits = on


def modules_by_layer(network: Network) -> dict[str, nn.Module]:
    """The module behind each layer of :func:`~algo.tinytl.architecture.layers` that has parameters."""
    found: dict[str, nn.Module] = {"classifier": network.classifier}

    def add(name: str, unit: Unit) -> None:
        found[name], found[f"{name}.gn"] = unit.conv, unit.norm

    add("stem", network.stem)
    add("mix", network.mix)
    for i, block in enumerate(network.blocks):
        assert isinstance(block, Bottleneck)
        for part in ("expand", "dw", "project"):
            unit = getattr(block, part)
            if unit is not None:
                add(f"b{i}.{part}", unit)
        if block.lite:
            lite = block.lite
            parts = {"conv1": lite.conv1, "gn1": lite.norm1, "conv2": lite.conv2, "gn2": lite.norm2}
            found |= {f"b{i}.lite.{part}": module for part, module in parts.items()}
    return found


def set_trained(network: Network, method: Method) -> list[nn.Parameter]:
    """Let only what ``method`` trains take gradients; returns those parameters in forward order."""
    found = modules_by_layer(network)
    trained = []
    for layer in layers(network.backbone, 224):
        if layer.name not in found:
            continue
        flags = dict(zip(("weight", "bias"), method.trains(layer), strict=True))
        for name, parameter in found[layer.name].named_parameters():
            parameter.requires_grad_(flags[name])
            if flags[name]:
                trained.append(parameter)
    return trained
