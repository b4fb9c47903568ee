# SPDX-License-Identifier: MIT
"""Shapes and costs of StyleGAN2 generators and of the sub-generators inside them. Needs no torch.

A generator of resolution R has levels 4, 8, ... R. Its widths are numbered like the published ones:
[constant, convolution at 4, then (up-convolution, convolution) at 8 ... R], 18 of them at 1024.
"""

import csv
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RATIOS = (0.25, 0.5, 0.75, 1.0)
"""Channel ratios of Anycost GAN."""
EVOLVED = Path(__file__).with_name("evolved.csv")
"""Name, resolution, published MACs and widths of the 11 evolved sub-generators of config-f 1024."""


@dataclass(frozen=True, slots=True)
class SubGenerator:
    """Which part of a generator runs: the first ``widths[i]`` channels of layer i, up to ``resolution``."""

    resolution: int
    """Pixels of a side of the image."""
    widths: tuple[int, ...]
    """Channels of every layer of the whole generator; those beyond ``resolution`` do not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig:
    """Shape of a StyleGAN2 generator; the defaults are config-f at 1024 pixels."""

    resolution: int = 1024
    """Pixels of a side; a power of two from 4 on."""
    channel_multiplier: float = 2.0
    max_channels: int = 512
    style_size: int = 512
    """Length of z and w."""
    n_mapping_layers: int = 8
    n_classes: int = 0
    """0: unconditional."""

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution must be a power of two from 4 on, not {self.resolution}")
        for name in ("max_channels", "style_size", "n_mapping_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_classes < 0:
            raise ValueError(f"n_classes must not be negative, not {self.n_classes}")
        if self.channels(self.resolution, RATIOS[0]) < 1:
            raise ValueError(
                f"channel_multiplier {self.channel_multiplier} leaves no channel at {self.resolution} px and "
                f"ratio {RATIOS[0]}"
            )

    @property
    def levels(self) -> tuple[int, ...]:
        """4, 8, ... resolution."""
        return tuple(2**i for i in range(2, self.resolution.bit_length()))

    @property
    def n_styles(self) -> int:
        """Styles of one image, and widths of a sub-generator: two a level."""
        return 2 * len(self.levels)

    @property
    def arch_size(self) -> int:
        """Length of :meth:`arch_code`."""
        return self.n_styles * len(RATIOS)

    def channels(self, level: int, ratio: float = 1.0) -> int:
        """Uniform width of a level. The ratio scales before the limit, so half is not half everywhere."""
        return min(self.max_channels, int(16384 / level * self.channel_multiplier * ratio))

    def level_of(self, i: int) -> int:
        """Level of width i."""
        return self.levels[i // 2]

    @property
    def full(self) -> SubGenerator:
        """The whole generator."""
        return self.uniform(1.0)

    def uniform(self, ratio: float, resolution: int | None = None) -> SubGenerator:
        """The same ratio at every level."""
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, not {ratio}")
        widths = tuple(self.channels(self.level_of(i), ratio) for i in range(self.n_styles))
        return self.checked(SubGenerator(resolution or self.resolution, widths))

    def choices(self, i: int) -> tuple[int, ...]:
        """Widths that layer i may have in a flexible sub-generator, ascending.

        A ratio counts on the layer's own full width, where it does not fall below the uniform quarter; at
        least 8 channels, a multiple of 4 (as far as the layer has them).
        """
        level = self.level_of(i)
        full, least = self.channels(level), self.channels(level, RATIOS[0])
        widths = {min(full, -(-max(int(r * full), 8) // 4) * 4) for r in RATIOS if r * full >= least}
        return tuple(sorted(widths))

    def flexible(self, rng: random.Random, resolution: int | None = None) -> SubGenerator:
        """A random choice for every layer."""
        widths = tuple(rng.choice(self.choices(i)) for i in range(self.n_styles))
        return SubGenerator(resolution or self.resolution, widths)

    def sandwich(self, rng: random.Random, *, flexible: bool, resolution: int | None = None) -> SubGenerator:
        """What one training step runs: a quarter full, a quarter smallest, half random."""
        draw = rng.random()
        if draw < 0.25:
            return self.uniform(1.0, resolution)
        if draw < 0.5:
            return self.uniform(RATIOS[0], resolution)
        return self.flexible(rng, resolution) if flexible else self.uniform(rng.choice(RATIOS), resolution)

    def arch_code(self, sub: SubGenerator) -> list[int]:
        """One-hot quarter of its full width for each layer, 0/1 of length :attr:`arch_size`.

        A function of the widths alone: two ratios that the limit makes equal have one code.
        """
        code = []
        for i, width in enumerate(sub.widths):
            quarter = math.ceil(len(RATIOS) * width / self.channels(self.level_of(i)))
            code += [int(quarter == j + 1) for j in range(len(RATIOS))]
        return code

    def checked(self, sub: SubGenerator) -> SubGenerator:
        """``sub``, if it lies inside this generator; ValueError naming what does not."""
        if sub.resolution not in self.levels:
            raise ValueError(f"sub-generator resolution must be one of {self.levels}, not {sub.resolution}")
        if len(sub.widths) != self.n_styles:
            raise ValueError(f"a sub-generator needs {self.n_styles} widths, not {len(sub.widths)}")
        for i, width in enumerate(sub.widths):
            if not 1 <= width <= self.channels(self.level_of(i)):
                most = self.channels(self.level_of(i))
                raise ValueError(f"width {i} must be in 1..{most}, not {width}")
        return sub


# ---- costs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operation for one image."""

    name: str
    kind: str
    """linear, style_fc, modconv, modconv_up, weight_mod_demod, blur4x4_dw, torgb1x1 or upfirdn_up2."""
    c_in: int
    c_out: int
    h_in: int
    h_out: int
    kernel: int = 1
    n_macs: int
    """Useful ones: no product with an inserted zero."""
    n_macs_published: int
    """As torchprofile counts: a transposed convolution at the size of its output, (2H + 1)^2."""
    n_params: int = 0

    @property
    def in_elements(self) -> int:
        """Elements read, without weights."""
        return self.c_in * self.h_in * self.h_in

    @property
    def out_elements(self) -> int:
        """Elements written."""
        return self.c_out * self.h_out * self.h_out


COMPUTE = ("modconv", "modconv_up", "torgb1x1")
"""Kinds behind "74.26 G": what a convolution engine multiplies."""


def layers(config: GeneratorConfig, sub: SubGenerator) -> list[Layer]:
    """Every operation of a sub-generator in order; its constant is a parameter, not one of them."""
    config.checked(sub)
    size = config.style_size
    rows = [_linear(f"map.fc{i}", "linear", size, size) for i in range(config.n_mapping_layers)]
    for index, level in enumerate(config.levels[: config.levels.index(sub.resolution) + 1]):
        before, wide, wide_too = (
            sub.widths[max(0, 2 * index - 1)],
            sub.widths[2 * index],
            sub.widths[2 * index + 1],
        )
        if level == 4:
            rows += _modconv("conv1", size, wide, wide_too, level)
            rows += _to_rgb("to_rgb1", size, wide_too, level)
            continue
        rows += _modconv(f"b{level}.conv_up", size, before, wide, level, up=True)
        rows += _modconv(f"b{level}.conv", size, wide, wide_too, level)
        rows += _to_rgb(f"b{level}.to_rgb", size, wide_too, level)
        n_out = 3 * level * level
        # Published: 16 taps an output, inserted zeros included, and 4 more that the authors' counts have.
        rows.append(
            Layer(
                name=f"b{level}.to_rgb.skip_up", kind="upfirdn_up2", c_in=3, c_out=3, h_in=level // 2,
                h_out=level, kernel=4, n_macs=4 * n_out, n_macs_published=20 * n_out,
            )
        )  # fmt: skip
    return rows


def _linear(name: str, kind: str, c_in: int, c_out: int) -> Layer:
    n = c_in * c_out
    return Layer(
        name=name, kind=kind, c_in=c_in, c_out=c_out, h_in=1, h_out=1, n_macs=n, n_macs_published=n,
        n_params=n + c_out,
    )  # fmt: skip


def _modconv(name: str, style: int, c_in: int, c_out: int, level: int, up: bool = False) -> Iterator[Layer]:
    """Style, 3x3 convolution with bias and noise strength, weight modulation, blur after upsampling."""
    n_weights, h_in = 9 * c_in * c_out, level // 2 if up else level
    yield _linear(f"{name}.mod", "style_fc", style, c_in)
    yield Layer(
        name=name, kind="modconv_up" if up else "modconv", c_in=c_in, c_out=c_out, h_in=h_in, h_out=level,
        kernel=3, n_macs=n_weights * h_in * h_in, n_params=n_weights + c_out + 1,
        n_macs_published=n_weights * ((level + 1) ** 2 if up else level * level),
    )  # fmt: skip
    yield Layer(
        name=f"{name}.demod", kind="weight_mod_demod", c_in=c_in, c_out=c_out, h_in=1, h_out=1, kernel=3,
        n_macs=2 * n_weights, n_macs_published=0,
    )  # fmt: skip
    if up:
        n_macs = 16 * c_out * level * level
        yield Layer(
            name=f"{name}.blur", kind="blur4x4_dw", c_in=c_out, c_out=c_out, h_in=level + 1, h_out=level,
            kernel=4, n_macs=n_macs, n_macs_published=n_macs,
        )  # fmt: skip


def _to_rgb(name: str, style: int, c_in: int, level: int) -> Iterator[Layer]:
    n_macs = 3 * c_in * level * level
    yield _linear(f"{name}.mod", "style_fc", style, c_in)
    yield Layer(
        name=name, kind="torgb1x1", c_in=c_in, c_out=3, h_in=level, h_out=level, n_macs=n_macs,
        n_macs_published=n_macs, n_params=3 * c_in + 3,
    )  # fmt: skip


def compute_macs(config: GeneratorConfig, sub: SubGenerator) -> int:
    """Useful multiply-accumulates of the convolutions of one image: 74.26 G for config-f 1024."""
    return sum(layer.n_macs for layer in layers(config, sub) if layer.kind in COMPUTE)


def published_macs(config: GeneratorConfig, sub: SubGenerator) -> int:
    """Multiply-accumulates on the basis of the paper's figures: 144.15 G for config-f 1024."""
    return sum(layer.n_macs_published for layer in layers(config, sub))


def n_parameters(config: GeneratorConfig, sub: SubGenerator) -> int:
    """Parameters that a sub-generator uses, its slice of the constant included."""
    return sum(layer.n_params for layer in layers(config, sub)) + 16 * sub.widths[0]


def evolved(config: GeneratorConfig = GeneratorConfig()) -> dict[str, SubGenerator]:
    """The published results of the authors' search on config-f 1024, by name such as "15G"."""
    with EVOLVED.open() as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return {
            row["name"]: config.checked(
                SubGenerator(int(row["resolution"]), tuple(int(width) for width in row["widths"].split()))
            )
            for row in lines
        }


def uniform_sub_generators(config: GeneratorConfig = GeneratorConfig()) -> dict[str, SubGenerator]:
    """The four ratios at the last four levels, largest first, by name such as "1024 x 0.75".

    For config-f 1024 the 16 of the paper.
    """
    return {
        f"{resolution} x {ratio:g}": config.uniform(ratio, resolution)
        for resolution in reversed(config.levels[-4:])
        for ratio in reversed(RATIOS)
    }
