# SPDX-License-Identifier: MIT
"""From an image to the styles that make it: by optimisation, or by a trained encoder.

The loss is that of the full generator's image plus that of a randomly drawn sub-generator's, so that a cheap
preview shows what the full image will be. Anycost GAN describes it; its training of encoders was not
released. The encoder here is the discriminator's trunk instead of a ResNet-50.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algo.anycost.architecture import RATIOS, GeneratorConfig, SubGenerator
from algo.anycost.discriminator import Block
from algo.anycost.generator import Generator
from algo.anycost.layers import EqualConv, EqualLinear, lrelu
from algo.gan.data import ImageSet, as_floats
from algo.gan.loop import Losses, State, load_run
from algo.gan.training import Distance, Start, resized

N_MEAN_SAMPLES = 10_000
"""z behind the mean w that projection starts from and the encoder adds to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubTerm:
    """The share of sub-generators in the loss."""

    weight: float = 1.0
    """Alpha of the paper; 0 is off."""
    resolutions: tuple[int, ...] = ()
    """Those drawn from; by default the full one."""
    flexible: bool = False
    """Widths drawn for each layer, or one ratio for all."""
    ratios: tuple[float, ...] = RATIOS
    """Those drawn from, where one ratio holds for all."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, not {self.weight}")

    def draw(self, shape: GeneratorConfig, rng: torch.Generator) -> SubGenerator:
        """A random sub-generator."""
        draws = random.Random(int(torch.randint(2**31, (), generator=rng)))
        resolution = draws.choice(self.resolutions or (shape.resolution,))
        if self.flexible:
            return shape.flexible(draws, resolution)
        return shape.uniform(draws.choice(self.ratios), resolution)


def reconstruction(image: Tensor, target: Tensor, perceptual: Distance | None = None) -> Tensor:
    """Squared error at the image's resolution, plus ``perceptual``: float[N, 3, r, r], float[N, 3, R, R]."""
    wanted = resized(target, image.shape[-1])
    loss = F.mse_loss(image, wanted)
    return loss + perceptual(image.clamp(-1, 1), wanted) if perceptual else loss


def loss_with_sub(
    generator: Generator,
    styles: Tensor,
    target: Tensor,
    term: SubTerm,
    rng: torch.Generator,
    perceptual: Distance | None = None,
) -> Tensor:
    """L(G(styles), target) + weight L(G_sub(styles), target) with a fresh sub-generator; fixed noise."""
    loss = reconstruction(generator(styles), target, perceptual)
    if term.weight:
        sub = term.draw(generator.config, rng)
        loss = loss + term.weight * reconstruction(generator(styles, sub), target, perceptual)
    return loss


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectionConfig:
    """How to optimise the styles."""

    n_steps: int = 200
    learning_rate: float = 0.05
    """Adam's."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, not {self.n_steps}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, not {self.learning_rate}")


def project(
    generator: Generator,
    target: Tensor,
    config: ProjectionConfig = ProjectionConfig(),
    term: SubTerm = SubTerm(),
    *,
    start: Tensor | None = None,
    perceptual: Distance | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, n, loss: None,
) -> tuple[Tensor, list[float]]:
    """Styles float[N, n_styles, size] of images float[N, 3, R, R] (a style for each layer), and the losses.

    ``start`` styles, such as an encoder's; by default the mean w. The generator's weights take no gradient.
    """
    shape = generator.config
    if target.shape[1:] != (3, shape.resolution, shape.resolution):
        raise ValueError(
            f"target must be 3 x {shape.resolution} x {shape.resolution}, not {target.shape[1:]}"
        )
    rng = torch.Generator().manual_seed(config.seed)
    if start is None:
        start = generator.mean_w(N_MEAN_SAMPLES, rng).expand(len(target), shape.n_styles, -1)
    styles = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([styles], config.learning_rate)
    losses = []
    for step in range(1, config.n_steps + 1):
        loss = loss_with_sub(generator, styles, target, term, rng, perceptual)
        (styles.grad,) = torch.autograd.grad(loss, [styles])
        optimizer.step()
        losses.append(float(loss.detach()))
        on_step(step, config.n_steps, losses[-1])
    return styles.detach(), losses


class Encoder(nn.Module):
    """Image to styles: residual blocks down to 4 pixels, one linear layer, plus the mean w.

    Parameters: ``config`` of the generator, ``mean_w`` float[style_size].
    """

    def __init__(self, config: GeneratorConfig, mean_w: Tensor) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.from_rgb = EqualConv(3, c(config.resolution), 1)
        self.bias = nn.Parameter(torch.zeros(c(config.resolution)))
        levels = list(reversed(config.levels[1:]))
        self.blocks = nn.ModuleList(Block(c(r), c(r // 2), 0) for r in levels)
        self.out = EqualLinear(16 * c(4), config.n_styles * config.style_size)
        self.register_buffer("mean_w", mean_w.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """float[N, 3, R, R] -> float[N, n_styles, style_size]."""
        x = lrelu(self.from_rgb(images), self.bias)
        for block in self.blocks:
            x = block(x, None)
        offset = self.out(x.flatten(1)).reshape(-1, self.config.n_styles, self.config.style_size)
        return self.get_buffer("mean_w") + offset


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """How a step trains."""

    batch_size: int = 16
    learning_rate: float = 2e-3
    generated_share: float = 0.5
    """Of a batch: pictures of the generator itself, of which there is no end."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.generated_share <= 1:
            raise ValueError(f"generated_share must be in 0..1, not {self.generated_share}")


class EncoderTraining:
    """For :func:`algo.gan.loop.run`: the generator is frozen, the encoder learns to invert it.

    Parameters: an unconditional ``generator``; ``perceptual`` as in :func:`project`, described by
    ``perceptual_name``; ``seed`` initialises the encoder and draws the mean w.
    """

    def __init__(
        self,
        generator: Generator,
        generator_name: str,
        data: ImageSet,
        config: EncoderConfig = EncoderConfig(),
        term: SubTerm = SubTerm(),
        *,
        perceptual: Distance | None = None,
        perceptual_name: str = "none",
        seed: int = 0,
    ) -> None:
        self.generator, self.generator_name, self.data = generator, generator_name, data
        self.config, self.term = config, term
        self.perceptual, self.perceptual_name = perceptual, perceptual_name
        generator.requires_grad_(False)
        mean_w = generator.mean_w(N_MEAN_SAMPLES, torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        self.encoder = Encoder(generator.config, mean_w).to(mean_w)
        optimizer = torch.optim.Adam(self.encoder.parameters(), config.learning_rate, (0.0, 0.99))
        self.state = State({"encoder": self.encoder}, {"encoder": optimizer})

    def describe(self) -> dict[str, Any]:
        """Generator, data and settings."""
        return {
            "task": "encoder",
            "start": self.generator_name,
            "generator": asdict(self.generator.config),
            "data": self.data.source,
            "sha256": self.data.sha256,
            "sub_term": asdict(self.term),
            "perceptual": self.perceptual_name,
            **asdict(self.config),
        }

    def step(self, step: int, rng: torch.Generator) -> Losses:
        """One step."""
        images = self._images(rng)
        loss = loss_with_sub(self.generator, self.encoder(images), images, self.term, rng, self.perceptual)
        optimizer = self.state.optimizers["encoder"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"reconstruction": float(loss.detach())}

    @torch.no_grad()
    def _images(self, rng: torch.Generator) -> Tensor:
        n = self.config.batch_size
        n_generated = math.floor(n * self.config.generated_share)
        chosen = torch.randint(len(self.data.images), (n - n_generated,), generator=rng)
        real = as_floats(self.data.images[chosen]).to(self.generator.constant)
        z = torch.randn(n_generated, self.generator.config.style_size, generator=rng).to(real)
        return torch.cat([real, self.generator(self.generator.styles(z)).clamp(-1, 1)])


def load_encoder(folder: Path, generator_folder: Path) -> Encoder:
    """The encoder of a finished :class:`EncoderTraining` of the generator in ``generator_folder``.

    ValueError where it is an encoder of another generator.
    """
    described, weights = load_run(folder)
    wanted = Start.read(generator_folder).name
    if described.get("start") != wanted:
        raise ValueError(f"{folder} holds an encoder of {described.get('start')}, not of {wanted}")
    config = GeneratorConfig(**described["generator"])
    encoder = Encoder(config, torch.zeros(config.style_size))
    encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in weights.items()})
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def mean_distance(
    generator: Generator,
    styles: Tensor,
    target: Tensor,
    subs: Sequence[SubGenerator],
    perceptual: Distance | None = None,
) -> float:
    """Mean :func:`reconstruction` over sub-generators, of the same styles."""
    losses = [float(reconstruction(generator(styles, sub), target, perceptual)) for sub in subs]
    return sum(losses) / len(losses)


def distance_to_full(
    generator: Generator, n: int, *, seed: int = 0, perceptual: Distance | None = None
) -> Callable[[SubGenerator], float]:
    """A fitness for :func:`~algo.anycost.search.evolve`: how far images are from the full generator's.

    Over ``n`` z with the fixed noise; the smaller image is enlarged (bilinear) to the full resolution.
    Unconditional generators only.
    """
    size = generator.config.style_size
    with torch.no_grad():
        z = torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).to(generator.constant)
        styles = generator.styles(z)
        full = generator(styles).clamp(-1, 1)

    @torch.no_grad()
    def distance(sub: SubGenerator) -> float:
        image = resized(generator(styles, sub).clamp(-1, 1), generator.config.resolution)
        return float(reconstruction(image, full, perceptual))

    return distance
