# SPDX-License-Identifier: MIT
"""A generator in integers: 8-bit weights for all sub-generators, steps of every map for each image.

Weights and channel gains belong to the generator, styles and steps to an image. A map x is stored as
x s_c / (g_c step), s_c the reader's style and g_c a gain that is fixed and multiplied into the reader's
weights: it moves part of the spread between channels from activations to weights, which have a step for each
output (SmoothQuant, Xiao et al., ICML 2023). Since demodulation normalises every layer, the range of a
channel hardly depends on the image; its style does, and is known before. So the steps of an image follow from
ranges seen once and the image's styles, for any sub-generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from algo.anycost.architecture import RATIOS, SubGenerator
from algo.anycost.generator import Generator
from algo.anycost.layers import EPSILON, ModulatedConv, StyledConv, ToRgb, blur, lrelu, upsample
from algo.anycost.record import ConvRecord, Floats, GeneratorRecord, Reader, Weights

WEIGHT_LIMIT = 127
WIDE = ("none", "colours", "all")
"""Which maps have 16 bits instead of 8: those that the toRGB read, or those of all convolutions."""
SUM_LIMIT = 2**31 - 1
"""Of the hardware's sums: a map of 16 bits uses so few of them that within the calibrated range none exceeds
this."""

TINY = 1e-12
"""Stands for the range of a channel that is always 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """How ranges are measured and steps chosen."""

    n_images: int = 16
    """z that every calibrated sub-generator makes an image of."""
    seed: int = 0
    smoothing: float = 0.5
    """Exponent of the spread between channels that goes to the weights; 0..1."""
    wide: str = "none"

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise ValueError(f"n_images must be at least 1, not {self.n_images}")
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be in 0..1, not {self.smoothing}")
        if self.wide not in WIDE:
            raise ValueError(f"wide must be one of {', '.join(WIDE)}, not {self.wide!r}")


@dataclass(kw_only=True, eq=False)
class _Ranges:
    """Largest magnitudes over everything that ran."""

    channels: list[Tensor]
    """Of each convolution's output, by channel."""
    before: list[float]
    between: list[float]
    image: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedGenerator:
    """A float generator with 8-bit weights and measured ranges; see :func:`quantise`."""

    generator: Generator
    config: QuantConfig
    convs: tuple[Weights, ...]
    to_rgb: tuple[Weights, ...]
    ranges: _Ranges = field(repr=False)

    @torch.no_grad()
    def record(
        self, styles: Tensor, sub: SubGenerator | None = None, noise: Sequence[Tensor] | None = None
    ) -> GeneratorRecord:
        """One image, float[1, n_styles, style_size], by any sub-generator, with the fixed or given noise."""
        g = self.generator
        sub = g.config.checked(sub or g.full)
        if len(styles) != 1:
            raise ValueError(f"a record is of one image, not {len(styles)}")
        noise = [getattr(g, f"noise_{j}") for j in range(len(g.convs))] if noise is None else noise
        levels = g.config.levels[: g.config.levels.index(sub.resolution) + 1]
        w, n_convs = styles[0].double(), 2 * len(levels) - 1
        inputs = [self._input(j, w[j], sub) for j in range(n_convs)]
        rgb_inputs = [self._rgb_input(n, w[2 * n + 1], sub) for n in range(len(levels))]
        return GeneratorRecord(
            resolution=sub.resolution,
            constant=self._constant(inputs[0]),
            convs=tuple(
                self._conv(
                    j, w[j], sub, noise[j], inputs[j],
                    (*inputs[j + 1 : j + 2], *([] if j % 2 else [rgb_inputs[j // 2]])),
                )
                for j in range(n_convs)
            ),
            to_rgb=tuple(self._rgb(n, sub, source) for n, source in enumerate(rgb_inputs)),
            image_peak=self.ranges.image,
        )  # fmt: skip

    def _input(self, j: int, w: Tensor, sub: SubGenerator) -> Reader:
        """What convolution ``j`` reads."""
        g = self.generator
        peaks = self.ranges.channels[j - 1] if j else g.constant[0].abs().amax((1, 2))
        wide = self.config.wide == "all"
        return _reader(f"conv{j}.in", _convs(g)[j].conv, self.convs[j], w, peaks[: sub.widths[j]], wide)

    def _rgb_input(self, n: int, w: Tensor, sub: SubGenerator) -> Reader:
        """What the toRGB of level ``n`` reads, the same values as the next convolution."""
        peaks = self.ranges.channels[2 * n][: sub.widths[2 * n + 1]]
        wide = self.config.wide != "none"
        return _reader(f"rgb{n}.in", _to_rgb(self.generator)[n].conv, self.to_rgb[n], w, peaks, wide)

    def _constant(self, reader: Reader) -> NDArray[np.int64]:
        value = self.generator.constant[0, : len(reader.factors)].double().permute(1, 2, 0).numpy()
        limit = 2 ** (reader.bits - 1) - 1
        return np.rint(value * reader.factors / reader.step).clip(-limit, limit).astype(np.int64)

    def _conv(
        self, j: int, w: Tensor, sub: SubGenerator, noise: Tensor, source: Reader, readers: tuple[Reader, ...]
    ) -> ConvRecord:
        layer, n_in, n_out = _convs(self.generator)[j], sub.widths[j], sub.widths[j + 1]
        strength = float(layer.noise_strength)
        return ConvRecord(
            name=f"conv{j}", size=self.generator.config.level_of(j), n_in=n_in, n_out=n_out, kernel=3,
            up=layer.conv.up, activated=True, source=source, weights=self.convs[j],
            demodulation=_demodulation(layer.conv, w, n_in, n_out),
            bias=layer.bias[:n_out].double().numpy(),
            noise=strength * noise[0, 0].double().numpy() if strength else None,
            peak=self.ranges.before[j], between=self.ranges.between[j], readers=readers,
        )  # fmt: skip

    def _rgb(self, n: int, sub: SubGenerator, source: Reader) -> ConvRecord:
        return ConvRecord(
            name=f"rgb{n}", size=self.generator.config.levels[n], n_in=sub.widths[2 * n + 1], n_out=3,
            kernel=1, up=False, activated=False, source=source, weights=self.to_rgb[n],
            demodulation=np.ones(3), bias=_to_rgb(self.generator)[n].bias.double().numpy(), noise=None,
            peak=self.ranges.image, between=0.0, readers=(),
        )  # fmt: skip


def _reader(name: str, conv: ModulatedConv, weights: Weights, w: Tensor, peaks: Tensor, wide: bool) -> Reader:
    """The map that ``conv`` reads; ``peaks`` float[channels in use] of its values before modulation."""
    n_in = len(peaks)
    factors = _styles(conv, w)[:n_in].numpy() / weights.gains[:n_in]
    limit = 2**7 - 1
    if wide:
        sums = np.abs(weights.integers[:, :n_in].astype(np.int64)).sum((1, 2, 3))
        limit = min(2**15 - 1, SUM_LIMIT // int(sums.max()))
    step = float(np.max(np.abs(factors) * peaks.double().numpy())) / limit
    return Reader(name=name, factors=factors, step=step or 1.0, bits=16 if wide else 8)


@torch.no_grad()
def quantise(
    generator: Generator, config: QuantConfig = QuantConfig(), subs: Sequence[SubGenerator] | None = None
) -> QuantisedGenerator:
    """Weights in 8 bits, ranges over ``config.n_images`` z by each of ``subs`` (the four uniform ratios)."""
    shape = generator.config
    if subs is None:
        subs = list(dict.fromkeys(shape.uniform(ratio) for ratio in RATIOS))
    rng = torch.Generator().manual_seed(config.seed)
    z = torch.randn(config.n_images, shape.style_size, generator=rng).to(generator.constant)
    labels = torch.randint(shape.n_classes, (len(z),), generator=rng) if shape.n_classes else None
    styles = generator.styles(z, labels)
    ranges = _measured(generator, styles, subs)
    constant = generator.constant[0].abs().amax((1, 2))
    w = styles.double()
    return QuantisedGenerator(
        generator=generator,
        config=config,
        convs=tuple(
            _weights(layer.conv, w[:, j], ranges.channels[j - 1] if j else constant, config.smoothing)
            for j, layer in enumerate(_convs(generator))
        ),
        to_rgb=tuple(
            _weights(layer.conv, w[:, 2 * n + 1], ranges.channels[2 * n], config.smoothing)
            for n, layer in enumerate(_to_rgb(generator))
        ),
        ranges=ranges,
    )


def _convs(generator: Generator) -> list[StyledConv]:
    return [layer for layer in generator.convs if isinstance(layer, StyledConv)]


def _to_rgb(generator: Generator) -> list[ToRgb]:
    return [layer for layer in generator.to_rgb if isinstance(layer, ToRgb)]


def _weights(conv: ModulatedConv, w: Tensor, peaks: Tensor, smoothing: float) -> Weights:
    """Gains by the spread of the inputs over that of the weights, each to its share.

    w : float64[N, style_size]; peaks : float[n_in], of the inputs before modulation.
    """
    weight = conv.weight.double() * conv.scale
    inputs = (_styles(conv, w).abs().amax(0) * peaks.double()).clamp(min=TINY)
    used = weight.abs().amax((0, 2, 3)).clamp(min=TINY)
    gains = inputs**smoothing / used ** (1 - smoothing)
    gains /= gains.log().mean().exp()
    scaled = weight * gains[:, None, None]
    steps = scaled.abs().amax((1, 2, 3)).clamp(min=TINY) / WEIGHT_LIMIT
    integers = (scaled / steps[:, None, None, None]).round()
    return Weights(integers=integers.to(torch.int8).numpy(), steps=steps.numpy(), gains=gains.numpy())


def _styles(conv: ModulatedConv, w: Tensor) -> Tensor:
    """Style of each input channel, in float64."""
    layer = conv.modulation
    return F.linear(w, layer.weight.double() * layer.scale, layer.bias.double() * layer.lr_mul)


def _demodulation(conv: ModulatedConv, w: Tensor, n_in: int, n_out: int) -> Floats:
    """d_o over the channels in use."""
    energy = (conv.weight[:n_out, :n_in].double() * conv.scale).square().sum((2, 3))
    return (energy @ _styles(conv, w)[:n_in].square() + EPSILON).rsqrt().numpy()


def _measured(generator: Generator, styles: Tensor, subs: Sequence[SubGenerator]) -> _Ranges:
    """Runs every sub-generator in float, with the fixed noise."""
    g, n_convs = generator, len(generator.convs)
    ranges = _Ranges(
        channels=[torch.zeros(width) for width in g.full.widths[1:]],
        before=[0.0] * n_convs,
        between=[0.0] * n_convs,
    )
    for sub in subs:
        x = g.constant[:, : sub.widths[0]].expand(len(styles), -1, -1, -1)
        image: Tensor | None = None
        for n in range(g.config.levels.index(sub.resolution) + 1):
            for j in range(max(0, 2 * n - 1), 2 * n + 1):
                x = _layer(g, j, x, styles[:, j], sub.widths[j + 1], ranges)
            rgb = _to_rgb(g)[n](x, styles[:, 2 * n + 1])
            image = rgb if image is None else rgb + upsample(image)
            ranges.image = max(ranges.image, float(image.abs().max()))
    return ranges


def _layer(g: Generator, j: int, x: Tensor, style: Tensor, n_out: int, ranges: _Ranges) -> Tensor:
    """Convolution ``j``, as :class:`StyledConv` computes it, its ranges noted."""
    layer = _convs(g)[j]
    conv = layer.conv
    if conv.up:
        d = torch.stack([torch.from_numpy(_demodulation(conv, w, x.shape[1], n_out)) for w in style.double()])
        s = _styles(conv, style.double())[:, : x.shape[1], None, None].to(x)
        weight = (conv.weight[:n_out, : x.shape[1]] * conv.scale).transpose(0, 1)
        sums = F.conv_transpose2d(x * s, weight, stride=2) * d[:, :, None, None].to(x)
        ranges.between[j] = max(ranges.between[j], float(sums.abs().max()))
        sums = blur(sums, 1, gain=4)
    else:
        sums = conv(x, style, n_out)
    sums = sums + layer.noise_strength * getattr(g, f"noise_{j}") + layer.bias[:n_out, None, None]
    ranges.before[j] = max(ranges.before[j], float(sums.abs().max()))
    x = lrelu(sums)
    ranges.channels[j][:n_out] = torch.maximum(ranges.channels[j][:n_out], x.abs().amax((0, 2, 3)))
    return x
