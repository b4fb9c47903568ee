# SPDX-License-Identifier: MIT
"""The StyleGAN2 discriminator, with an entry for every resolution and told, if wanted, who made the image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.layers import EqualConv, EqualLinear, blur, lrelu

STDDEV_GROUP = 4
"""Images that share one standard deviation, or fewer where the batch does not divide."""


class ConditionedConv(nn.Module):
    """Convolution, then x (W_m g + b_m + 1) + (W_b g + b_b) by the code g of the generator, if it is told."""

    def __init__(self, c_in: int, c_out: int, kernel: int, arch_size: int, down: bool = False) -> None:
        super().__init__()
        padding = 0 if down else kernel // 2
        self.conv = EqualConv(c_in, c_out, kernel, stride=2 if down else 1, padding=padding)
        self.pad = kernel // 2 + 1 if down else None
        self.gain = nn.Linear(arch_size, c_out) if arch_size else None
        self.shift = nn.Linear(arch_size, c_out) if arch_size else None

    def forward(self, x: Tensor, arch: Tensor | None) -> Tensor:
        """x : float[N, c_in, H, W], arch : float[arch_size]."""
        x = self.conv(blur(x, self.pad) if self.pad else x)
        if self.gain is None or self.shift is None:
            return x
        if arch is None:
            raise ValueError("a conditioned discriminator needs the code of the generator")
        return x * (self.gain(arch) + 1)[:, None, None] + self.shift(arch)[:, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions, the second to half the size, plus a 1x1 shortcut; over sqrt(2)."""

    def __init__(self, c_in: int, c_out: int, arch_size: int) -> None:
        super().__init__()
        self.conv1 = ConditionedConv(c_in, c_in, 3, arch_size)
        self.bias1 = nn.Parameter(torch.zeros(c_in))
        self.conv2 = ConditionedConv(c_in, c_out, 3, arch_size, down=True)
        self.bias2 = nn.Parameter(torch.zeros(c_out))
        self.skip = ConditionedConv(c_in, c_out, 1, arch_size, down=True)

    def forward(self, x: Tensor, arch: Tensor | None) -> Tensor:
        """float[N, c_in, H, W] -> float[N, c_out, H / 2, W / 2]."""
        main = lrelu(self.conv1(x, arch), self.bias1)
        main = lrelu(self.conv2(main, arch), self.bias2)
        return (main + self.skip(x, arch)) / math.sqrt(2)


def minibatch_stddev(x: Tensor) -> Tensor:
    """Append one channel: the standard deviation within a group of images, mean over features.

    Image i belongs to group i mod (N / group size).
    """
    n = len(x)
    group = next(size for size in range(min(STDDEV_GROUP, n), 0, -1) if n % size == 0)
    grouped = x.reshape(group, n // group, *x.shape[1:])
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)


class Discriminator(nn.Module):
    """Image to one number: large for real.

    Parameters: ``config`` of the generator it faces (widths, classes); ``resolutions`` it can be shown, each
    with its 1x1 fromRGB into the trunk; ``conditioned`` on the generator's code
    (:meth:`~algo.anycost.architecture.GeneratorConfig.arch_code`) in the last two blocks. With classes, the
    inner product of features and a class vector is added (Miyato and Koyama, ICLR 2018).
    """

    def __init__(
        self, config: GeneratorConfig, resolutions: Sequence[int] | None = None, *, conditioned: bool = False
    ) -> None:
        super().__init__()
        self.config, self.conditioned = config, conditioned
        self.resolutions = tuple(resolutions or (config.resolution,))
        wrong = [r for r in self.resolutions if r not in config.levels[1:]]
        if wrong:
            raise ValueError(f"resolutions must be among {config.levels[1:]}, not {wrong[0]}")
        c = config.channels
        self.from_rgb = nn.ModuleDict({str(r): EqualConv(3, c(r), 1) for r in self.resolutions})
        self.rgb_bias = nn.ParameterDict({str(r): torch.zeros(c(r)) for r in self.resolutions})
        levels = [r for r in reversed(config.levels[1:]) if r <= max(self.resolutions)]
        self.blocks = nn.ModuleDict(
            {
                str(r): Block(c(r), c(r // 2), config.arch_size if conditioned and r <= 16 else 0)
                for r in levels
            }
        )
        self.conv = EqualConv(c(4) + 1, c(4), 3, padding=1)
        self.bias = nn.Parameter(torch.zeros(c(4)))
        self.linear = EqualLinear(16 * c(4), c(4))
        self.out = EqualLinear(c(4), 1)
        self.classes = nn.Embedding(config.n_classes, c(4)) if config.n_classes else None

    def forward(self, image: Tensor, arch: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits float[N] of float[N, 3, R, R], R one of ``resolutions``; labels int64[N] with classes."""
        resolution = str(image.shape[-1])
        if resolution not in self.from_rgb:
            raise ValueError(f"image must have {self.resolutions} pixels a side, not {resolution}")
        if (labels is None) != (self.classes is None):
            raise ValueError(f"labels must be given exactly where n_classes > 0: {self.config.n_classes}")
        x = lrelu(self.from_rgb[resolution](image), self.rgb_bias[resolution])
        for name, block in self.blocks.items():
            if int(name) <= int(resolution):
                x = block(x, arch)
        x = lrelu(self.conv(minibatch_stddev(x)), self.bias)
        features = lrelu(self.linear(x.flatten(1)))
        logits = self.out(features)[:, 0]
        if self.classes is not None:
            logits = logits + (features * self.classes(labels)).mean(1)
        return logits
