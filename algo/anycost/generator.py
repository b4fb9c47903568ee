# SPDX-License-Identifier: MIT
"""The StyleGAN2 generator with elastic channels and elastic resolution.

What runs is an argument (a :class:`~algo.anycost.architecture.SubGenerator`), not a state of the modules.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from algo.anycost.architecture import GeneratorConfig, SubGenerator
from algo.anycost.layers import EqualLinear, StyledConv, ToRgb, lrelu, pixel_norm, upsample

MAPPING_LR_MUL = 0.01


class Generator(nn.Module):
    """z -> w by the mapping network, w -> image by one convolution at 4 px and two at every further level.

    Convolution j (0 at 4 px) reads width j, writes width j + 1 and takes style j; the toRGB of level n takes
    style 2n + 1, which is also that of the next level's up-convolution. Each level's colours are added to
    the upsampled sum of those below, so that any level can be the last.

    Parameters: ``widths`` for a generator that holds fewer channels than ``config`` allows (see
    :meth:`standalone`); convolutions stay scaled by the config's full widths.
    """

    def __init__(self, config: GeneratorConfig, widths: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = config
        self.full = config.checked(SubGenerator(config.resolution, tuple(widths)) if widths else config.full)
        size, held = config.style_size, self.full.widths
        full = config.full.widths
        n_z = 2 * size if config.n_classes else size
        inputs = [n_z] + [size] * (config.n_mapping_layers - 1)
        self.mapping = nn.ModuleList(EqualLinear(n, size, lr_mul=MAPPING_LR_MUL) for n in inputs)
        self.classes = nn.Embedding(config.n_classes, size) if config.n_classes else None
        self.constant = nn.Parameter(torch.randn(1, held[0], 4, 4))
        self.convs = nn.ModuleList(
            StyledConv(held[j], held[j + 1], size, 9 * full[j], up=j % 2 == 1)
            for j in range(config.n_styles - 1)
        )
        self.to_rgb = nn.ModuleList(
            ToRgb(held[2 * n + 1], size, full[2 * n + 1]) for n in range(len(config.levels))
        )
        for j, shape in enumerate(self.noise_shapes()):
            self.register_buffer(f"noise_{j}", torch.randn(shape))

    def noise_shapes(self, n: int = 1) -> list[tuple[int, int, int, int]]:
        """Of the noise that each convolution adds, for ``n`` images."""
        levels = [self.config.level_of(j + 1) for j in range(self.config.n_styles - 1)]
        return [(n, 1, level, level) for level in levels]

    def draw_noise(self, n: int, rng: torch.Generator) -> list[Tensor]:
        """Fresh noise of ``n`` images, drawn on the CPU."""
        return [torch.randn(s, generator=rng).to(self.constant) for s in self.noise_shapes(n)]

    def w(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mapping network: z to w, both float[N, style_size]; ``labels`` int64[N] if conditional."""
        if (labels is None) != (self.classes is None):
            raise ValueError(f"labels must be given exactly where n_classes > 0: {self.config.n_classes}")
        x = pixel_norm(z)
        if self.classes is not None:
            x = torch.cat([x, pixel_norm(self.classes(labels))], 1)
        for layer in self.mapping:
            x = lrelu(layer(x))
        return x

    def styles(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same w for every layer: float[N, n_styles, style_size]."""
        return self.w(z, labels)[:, None].repeat(1, self.config.n_styles, 1)

    @torch.no_grad()
    def mean_w(self, n: int, rng: torch.Generator) -> Tensor:
        """Mean of w over ``n`` draws: float[style_size]. Unconditional generators only."""
        return self.w(torch.randn(n, self.config.style_size, generator=rng).to(self.constant)).mean(0)

    def forward(
        self, styles: Tensor, sub: SubGenerator | None = None, noise: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Image float[N, 3, R, R], about -1..1 and not clamped.

        styles : float[N, n_styles, style_size]; ``sub`` defaults to all that is held; ``noise`` one tensor
        for each convolution, by default the fixed buffers.
        """
        return self.pyramid(styles, sub, noise)[-1]

    def pyramid(
        self, styles: Tensor, sub: SubGenerator | None = None, noise: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """The images of all levels that run, 4 px first."""
        sub = sub or self.full
        if any(width > held for width, held in zip(sub.widths, self.full.widths, strict=True)):
            raise ValueError(f"widths must not exceed {self.full.widths}, not {sub.widths}")
        if sub.resolution not in self.config.levels:
            raise ValueError(f"resolution must be one of {self.config.levels}, not {sub.resolution}")
        if noise is None:
            noise = [getattr(self, f"noise_{j}") for j in range(len(self.convs))]
        x = self.constant[:, : sub.widths[0]].expand(len(styles), -1, -1, -1)
        images: list[Tensor] = []
        for n in range(self.config.levels.index(sub.resolution) + 1):
            for j in range(max(0, 2 * n - 1), 2 * n + 1):
                x = self.convs[j](x, styles[:, j], noise[j], sub.widths[j + 1])
            rgb = self.to_rgb[n](x, styles[:, 2 * n + 1])
            images.append(rgb + upsample(images[-1]) if images else rgb)
        return images

    def standalone(self, sub: SubGenerator) -> "Generator":
        """A generator that holds only ``sub``; it computes the same values from copies of the slices."""
        self.config.checked(sub)
        config = replace(self.config, resolution=sub.resolution)
        small = Generator(config, sub.widths[: config.n_styles]).to(self.constant)
        state = self.state_dict()
        small.load_state_dict(
            {
                name: state[name][tuple(slice(0, n) for n in value.shape)]
                for name, value in small.state_dict().items()
            }
        )
        return small


def mix(first: Tensor, second: Tensor, crossover: int) -> Tensor:
    """Styles of ``first`` up to layer ``crossover`` (exclusive), of ``second`` from there on."""
    return torch.cat([first[:, :crossover], second[:, crossover:]], 1)


def truncate(styles: Tensor, mean_w: Tensor, psi: float) -> Tensor:
    """psi w + (1 - psi) mean: less variety, cleaner images."""
    return mean_w + psi * (styles - mean_w)


@torch.no_grad()
def sort_channels(generator: Generator, n_samples: int, rng: torch.Generator) -> None:
    """Reorder the channels in place so that first means important; the full image does not change.

    The importance of a channel is the sum of the magnitudes of the weights that read it times the mean
    magnitude of its style over ``n_samples`` z. The reader is the next convolution, for the last one the last
    toRGB. Ties keep their order. From the last layer backwards, as each reorders its own inputs.
    """
    size = generator.config.style_size
    labels = None
    if generator.classes is not None:
        labels = torch.randint(generator.config.n_classes, (n_samples,), generator=rng)
    z = torch.randn(n_samples, size, generator=rng).to(generator.constant)
    w = generator.w(z, labels if labels is None else labels.to(z.device))
    convs = [conv for conv in generator.convs if isinstance(conv, StyledConv)]
    to_rgb = [layer for layer in generator.to_rgb if isinstance(layer, ToRgb)]
    for j in range(len(convs), -1, -1):  # the channels of width j
        level_rgb = to_rgb[j // 2].conv if j % 2 else None
        readers = [layer for layer in (convs[j].conv if j < len(convs) else None, level_rgb) if layer]
        first = readers[0]
        importance = first.weight.abs().sum((0, 2, 3)) * first.modulation(w).abs().mean(0)
        order = importance.argsort(descending=True, stable=True)
        for layer in readers:
            layer.weight.copy_(layer.weight[:, order])
            layer.modulation.weight.copy_(layer.modulation.weight[order])
            layer.modulation.bias.copy_(layer.modulation.bias[order])
        if j == 0:
            generator.constant.copy_(generator.constant[:, order])
        else:
            producer = convs[j - 1]
            producer.conv.weight.copy_(producer.conv.weight[order])
            producer.bias.copy_(producer.bias[order])
