# SPDX-License-Identifier: MIT
"""Training a StyleGAN2, elastic or not, with DiffAugment or not.

A step trains the discriminator, then the generator, then moves the generator's running average (EMA), which
is what is used afterwards. Without :class:`Elastic` this is plain StyleGAN2 training; with it, the stages of
Anycost GAN.
"""

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algo.anycost.architecture import GeneratorConfig, SubGenerator
from algo.anycost.discriminator import Discriminator
from algo.anycost.generator import Generator, mix, sort_channels
from algo.diffaugment import diff_augment, parse_policy
from algo.gan.data import ImageSet, as_floats
from algo.gan.loop import WEIGHTS, Losses, State, load_run
from algo.gan.losses import LOSSES, path_lengths, r1_penalty

Distance = Callable[[Tensor, Tensor], Tensor]
"""Perceptual distance of two batches float[N, 3, R, R]: a scalar, differentiable."""
N_SORT_SAMPLES = 1000
"""z that the channel importance is averaged over."""
EMA_WARM_UP = 0.05
"""Largest half-life of the average, as a share of the images seen (Karras et al., NeurIPS 2020)."""
PATH_DECAY = 0.01
"""Of the running mean of the path lengths (Karras et al. 2020)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GanConfig:
    """How a step trains."""

    batch_size: int = 16
    learning_rate: float = 2e-3
    """Adam with betas (0, 0.99)."""
    loss: str = "nonsaturating"
    """nonsaturating or hinge."""
    augment: str = ""
    """DiffAugment policy, such as "color,translation,cutout"; empty is off."""
    r1_weight: float = 10.0
    """R1 penalty, gamma / 2 |gradient|^2; 0 is off."""
    r1_every: int = 16
    """Steps from one penalty to the next; each is weighted by this number."""
    r1_on: str = "raw"
    """Gradient with respect to the "raw" reals (through the augmentation) or the "augmented" ones."""
    path_weight: float = 0.0
    """Path-length penalty; 0 is off."""
    path_every: int = 8
    style_mixing: float = 0.9
    """Probability that a batch has two styles."""
    noise: bool = True
    """Let the generator add noise; off, the strengths stay 0. Short runs are less grainy without."""
    ema_images: float = 10_000
    """Half-life of the running average, images; never above a twentieth of the images seen."""
    discriminator_steps: int = 1
    """For each step of the generator."""
    mirror: bool = True
    """Flip half of the reals, as part of the data."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "learning_rate",
            "r1_every",
            "path_every",
            "ema_images",
            "discriminator_steps",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("r1_weight", "path_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.r1_on not in ("raw", "augmented"):
            raise ValueError(f"r1_on must be raw or augmented, not {self.r1_on!r}")
        if not 0 <= self.style_mixing <= 1:
            raise ValueError(f"style_mixing must be in 0..1, not {self.style_mixing}")
        parse_policy(self.augment)
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, not {self.device!r}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but this PyTorch sees no CUDA device")


@dataclass(frozen=True, kw_only=True, slots=True)
class Elastic:
    """What Anycost training adds to a step."""

    resolutions: tuple[int, ...]
    """Outputs that must be images of their own, full resolution first."""
    n_sampled: int = 2
    """Resolutions that the discriminator is shown in a step."""
    channels: str = "full"
    """full, uniform or flexible: the sandwich of sub-generators."""
    conditioned: bool = False
    """Tell the discriminator which sub-generator made the image."""
    distillation: float = 0.0
    """Weight of the distance to the teacher's images, over all resolutions."""

    def __post_init__(self) -> None:
        if self.channels not in ("full", "uniform", "flexible"):
            raise ValueError(f"channels must be full, uniform or flexible, not {self.channels!r}")
        if not 1 <= self.n_sampled <= len(self.resolutions):
            raise ValueError(f"n_sampled must be in 1..{len(self.resolutions)}, not {self.n_sampled}")
        if self.distillation < 0:
            raise ValueError(f"distillation must not be negative, not {self.distillation}")


@dataclass(frozen=True, slots=True)
class Start:
    """An earlier run to go on from."""

    name: str
    """Its folder, and twelve hex digits of its weights."""
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "Start":
        """A finished run; FileNotFoundError where there is none."""
        weights = load_run(folder)[1]
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:12]
        return cls(f"{folder.name} {digest}", weights)


class GanTraining:
    """Generator, its running average, discriminator and their optimisers.

    Parameters: ``start`` takes the averaged generator and the discriminator of an earlier run (new parts of
    the discriminator start at random); its channels are sorted first where ``elastic`` has elastic channels,
    and it is the teacher of the distillation. ``opponent`` gives the discriminator the widths of another
    generator of the same resolution. ``perceptual`` is added to the squared error there;
    ``perceptual_name`` describes it. ``seed`` initialises the weights.
    """

    def __init__(
        self,
        shape: GeneratorConfig,
        data: ImageSet,
        config: GanConfig,
        *,
        elastic: Elastic | None = None,
        start: Start | None = None,
        opponent: GeneratorConfig | None = None,
        perceptual: Distance | None = None,
        perceptual_name: str = "none",
        seed: int = 0,
    ) -> None:
        if shape.n_classes != data.n_classes:
            raise ValueError(f"n_classes must be {data.n_classes} for {data.source}, not {shape.n_classes}")
        if data.images.shape[-1] != shape.resolution:
            raise ValueError(
                f"images must have {shape.resolution} pixels a side, not {data.images.shape[-1]}"
            )
        if elastic and elastic.distillation and start is None:
            raise ValueError("distillation needs an earlier run to start from")
        self.shape, self.data, self.config, self.elastic = shape, data, config, elastic
        self.perceptual, self.perceptual_name = perceptual, perceptual_name
        self.start_name = start.name if start else "random"
        self.resolutions = elastic.resolutions if elastic else (shape.resolution,)
        torch.manual_seed(seed)
        conditioned = bool(elastic and elastic.conditioned)
        self.generator = Generator(shape)
        self.opponent = opponent
        self.discriminator = Discriminator(opponent or shape, self.resolutions, conditioned=conditioned)
        self.teacher: Generator | None = None
        if start:
            self._take_over(start)
        for name, parameter in self.generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.requires_grad_(config.noise)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.path_mean = nn.Module()
        self.path_mean.register_buffer("value", torch.zeros(()))
        modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            "path_mean": self.path_mean,
        }
        for module in modules.values():
            module.to(config.device)
        self.state = State(
            modules,
            {
                name: torch.optim.Adam(modules[name].parameters(), config.learning_rate, (0.0, 0.99))
                for name in ("generator", "discriminator")
            },
        )

    def _take_over(self, start: Start) -> None:
        parts: dict[str, dict[str, Tensor]] = {"average": {}, "discriminator": {}}
        for name, value in start.weights.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        try:
            self.generator.load_state_dict(parts["average"])
            self.discriminator.load_state_dict(parts["discriminator"], strict=False)
        except RuntimeError:
            raise ValueError(f"run {start.name} does not fit a generator of {self.shape}") from None
        self.teacher = copy.deepcopy(self.generator).requires_grad_(False).to(self.config.device)
        if self.elastic and self.elastic.channels != "full":
            sort_channels(self.generator, N_SORT_SAMPLES, torch.Generator().manual_seed(0))

    def describe(self) -> dict[str, Any]:
        """Data, shapes and settings."""
        config = {key: value for key, value in asdict(self.config).items() if key != "device"}
        return {
            "task": "gan",
            "data": self.data.source,
            "sha256": self.data.sha256,
            "generator": asdict(self.shape),
            "opponent": asdict(self.opponent) if self.opponent else None,
            "start": self.start_name,
            "elastic": asdict(self.elastic) if self.elastic else None,
            "perceptual": self.perceptual_name,
            **config,
        }

    def step(self, step: int, rng: torch.Generator) -> Losses:
        """One step; ``r1`` and ``path`` only where they are due."""
        losses: Losses = {}
        for _ in range(self.config.discriminator_steps):
            losses |= self._discriminator_step(step, rng)
        losses |= self._generator_step(step, rng)
        self._move_average(step)
        return losses

    # ---- the two players ----

    def _discriminator_step(self, step: int, rng: torch.Generator) -> Losses:
        config, loss_of = self.config, LOSSES[self.config.loss].discriminator
        real, labels = self._reals(rng)
        sub, resolutions = self._draw_sub(rng), self._draw_resolutions(rng)
        with torch.no_grad():
            fakes = self._fakes(self._styles(labels, len(real), rng), sub, rng)
        fake_code, real_code = self._code(sub), self._code(self._draw_sub(rng))
        loss = real.new_zeros(())
        for resolution in resolutions:
            shown = self._augmented(resized(real, resolution), rng)
            fake = self._augmented(fakes[resolution], rng)
            loss = loss + loss_of(
                self.discriminator(shown, real_code, labels), self.discriminator(fake, fake_code, labels)
            ) / len(resolutions)
        losses = {"discriminator": float(loss.detach())}
        if config.r1_weight and step % config.r1_every == 0:
            penalty = self._r1(resized(real, resolutions[0]), labels, fake_code, rng)
            losses["r1"] = float(penalty.detach())
            loss = loss + config.r1_weight / 2 * config.r1_every * penalty
        self._descend("discriminator", loss)
        return losses

    def _r1(self, real: Tensor, labels: Tensor | None, code: Tensor | None, rng: torch.Generator) -> Tensor:
        if self.config.r1_on == "augmented":
            images = shown = self._augmented(real, rng).requires_grad_()
        else:
            images = real.requires_grad_()
            shown = self._augmented(images, rng)
        return r1_penalty(self.discriminator(shown, code, labels), images)

    def _generator_step(self, step: int, rng: torch.Generator) -> Losses:
        config, n = self.config, self.config.batch_size
        labels = self._draw_labels(n, rng)
        sub, resolutions = self._draw_sub(rng), self._draw_resolutions(rng)
        code = self._code(sub)
        z, crossover = self._draw_z(n, rng)
        noise = self.generator.draw_noise(n, rng)
        fakes = self._by_resolution(
            self.generator.pyramid(self._mixed(self.generator, z, labels, crossover), sub, noise)
        )
        self.discriminator.requires_grad_(False)
        loss = z.new_zeros(())
        for resolution in resolutions:
            logits = self.discriminator(self._augmented(fakes[resolution], rng), code, labels)
            loss = loss + LOSSES[config.loss].generator(logits) / len(resolutions)
        self.discriminator.requires_grad_(True)
        losses = {"generator": float(loss.detach())}
        if self.elastic and self.elastic.distillation and self.teacher:
            with torch.no_grad():
                target = self.teacher(self._mixed(self.teacher, z, labels, crossover), None, noise)
            distance = distillation(list(fakes.values()), target, self.perceptual)
            losses["distillation"] = float(distance.detach())
            loss = loss + self.elastic.distillation * distance
        if config.path_weight and step % config.path_every == 0:
            penalty = self._path_penalty(rng)
            losses["path"] = float(penalty.detach())
            loss = loss + config.path_weight * config.path_every * penalty
        self._descend("generator", loss)
        return losses

    def _path_penalty(self, rng: torch.Generator) -> Tensor:
        """On half a batch at full width: squared distance of the path lengths from their running mean."""
        n = max(1, self.config.batch_size // 2)
        styles = self._styles(self._draw_labels(n, rng), n, rng)
        lengths = path_lengths(self.generator(styles, None, self.generator.draw_noise(n, rng)), styles, rng)
        mean = self.path_mean.get_buffer("value")
        mean.add_(PATH_DECAY * (lengths.detach().mean() - mean))
        return (lengths - mean).square().mean()

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.state.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def _move_average(self, step: int) -> None:
        seen = step * self.config.batch_size
        half_life = min(self.config.ema_images, EMA_WARM_UP * seen)
        decay = 0.5 ** (self.config.batch_size / half_life)
        for average, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(now, 1 - decay)

    # ---- draws, all on the CPU ----

    def _reals(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        chosen = torch.randint(len(self.data.images), (self.config.batch_size,), generator=rng)
        flipped = torch.rand(len(chosen), generator=rng) < 0.5
        images = as_floats(self.data.images[chosen])
        if self.config.mirror:
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        labels = None if self.data.labels is None else self.data.labels[chosen].to(self.config.device)
        return images.to(self.config.device), labels

    def _draw_labels(self, n: int, rng: torch.Generator) -> Tensor | None:
        if not self.shape.n_classes:
            return None
        return torch.randint(self.shape.n_classes, (n,), generator=rng).to(self.config.device)

    def _draw_z(self, n: int, rng: torch.Generator) -> tuple[Tensor, int]:
        """Two z for each image, float[2, n, size], and the layer from which the second one counts."""
        z = torch.randn(2, n, self.shape.style_size, generator=rng).to(self.config.device)
        crossover = int(torch.randint(1, self.shape.n_styles, (), generator=rng))
        mixes = float(torch.rand((), generator=rng)) < self.config.style_mixing
        return z, crossover if mixes else self.shape.n_styles

    def _styles(self, labels: Tensor | None, n: int, rng: torch.Generator) -> Tensor:
        z, crossover = self._draw_z(n, rng)
        return self._mixed(self.generator, z, labels, crossover)

    @staticmethod
    def _mixed(generator: Generator, z: Tensor, labels: Tensor | None, crossover: int) -> Tensor:
        return mix(generator.styles(z[0], labels), generator.styles(z[1], labels), crossover)

    def _draw_sub(self, rng: torch.Generator) -> SubGenerator:
        if not self.elastic or self.elastic.channels == "full":
            return self.shape.full
        draws = random.Random(int(torch.randint(2**31, (), generator=rng)))
        return self.shape.sandwich(draws, flexible=self.elastic.channels == "flexible")

    def _draw_resolutions(self, rng: torch.Generator) -> list[int]:
        n = self.elastic.n_sampled if self.elastic else 1
        order = torch.randperm(len(self.resolutions), generator=rng)[:n]
        return [self.resolutions[i] for i in order.tolist()]

    def _code(self, sub: SubGenerator) -> Tensor | None:
        if not self.discriminator.conditioned:
            return None
        return torch.tensor(self.shape.arch_code(sub), dtype=torch.float32, device=self.config.device)

    # ---- images ----

    def _fakes(self, styles: Tensor, sub: SubGenerator, rng: torch.Generator) -> dict[int, Tensor]:
        noise = self.generator.draw_noise(len(styles), rng)
        return self._by_resolution(self.generator.pyramid(styles, sub, noise))

    def _by_resolution(self, pyramid: list[Tensor]) -> dict[int, Tensor]:
        """Those of the pyramid that must be images of their own."""
        return {image.shape[-1]: image for image in pyramid if image.shape[-1] in self.resolutions}

    def _augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return diff_augment(images, self.config.augment, rng)


def resized(images: Tensor, resolution: int) -> Tensor:
    """Bilinear, every pixel of the source counted where the image shrinks."""
    if images.shape[-1] == resolution:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True)


def distillation(images: list[Tensor], target: Tensor, perceptual: Distance | None = None) -> Tensor:
    """Sum over resolutions of the distance to the teacher's image: squared error plus ``perceptual``.

    images : float[N, 3, r, r] of each resolution, target : float[N, 3, R, R], resized to each. ``perceptual``
    sees values clamped to -1..1. Anycost GAN weighs the sum by 2.
    """
    total = target.new_zeros(())
    for image in images:
        wanted = resized(target, image.shape[-1])
        total = total + F.mse_loss(image, wanted)
        if perceptual:
            total = total + perceptual(image.clamp(-1, 1), wanted.clamp(-1, 1))
    return total


@torch.no_grad()
def sample(
    generator: Generator, n: int, *, seed: int = 0, sub: SubGenerator | None = None, batch_size: int = 64
) -> Tensor:
    """``n`` images float32[n, 3, R, R] on the CPU, clamped to -1..1; the seed gives z, labels and noise.

    The same seed gives the same z, labels and noise to every sub-generator. Labels of conditional generators
    run through the classes in turn.
    """
    rng = torch.Generator().manual_seed(seed)
    images = []
    for first in range(0, n, batch_size):
        size = min(batch_size, n - first)
        z = torch.randn(size, generator.config.style_size, generator=rng).to(generator.constant)
        noise, labels = generator.draw_noise(size, rng), None
        if generator.config.n_classes:
            labels = (torch.arange(first, first + size) % generator.config.n_classes).to(z.device)
        images.append(generator(generator.styles(z, labels), sub, noise).clamp(-1, 1).float().cpu())
    return torch.cat(images)


def load_generator(folder: Path) -> Generator:
    """The averaged generator of a finished run, ready to use; FileNotFoundError where there is none."""
    described, weights = load_run(folder)
    try:
        generator = Generator(GeneratorConfig(**described["generator"]))
        average = {
            name.removeprefix("average."): value
            for name, value in weights.items()
            if name.startswith("average.")
        }
        generator.load_state_dict(average)
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{folder} does not hold a generator of this version") from None
    return generator.eval().requires_grad_(False)
