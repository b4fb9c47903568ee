# SPDX-License-Identifier: MIT
"""``quartet train diffaugment``, ``anycost``, ``encoder``: train small networks and say how good they are."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algo.anycost.architecture import RATIOS, GeneratorConfig, compute_macs
from algo.anycost.generator import Generator
from algo.anycost.projection import EncoderConfig, EncoderTraining, SubTerm
from algo.gan.data import ImageSet, as_floats, load_images
from algo.gan.loop import FINISHED, LoopConfig, Losses, load_run, run
from algo.gan.pictures import grid, write_png
from algo.gan.training import Elastic, GanConfig, GanTraining, Start, load_generator, resized, sample
from benchmarks.gan.features import NAME, Features
from benchmarks.gan.judge import MAX_REALS, Judge
from benchmarks.gan.metrics import quality
from benchmarks.quality.progress import Progress

MAX_CHANNELS, STYLE_SIZE, N_MAPPING_LAYERS = 64, 64, 4
"""Of the small generators; width 1024 / R at R pixels, as many multiplications at every level from 16 on."""
N_FAKES = 500
"""Pictures behind the reported distances."""
N_SHOWN = 64
"""Pictures of a sample grid."""
N_PREVIEW = 6
STAGES = ("full", "resolutions", "channels")
"""Of Anycost training: plain; elastic resolution; elastic channels as well."""
STAGE_SHARES = (0.4, 0.2, 0.4)
"""Of the steps."""
ENCODER = "encoder"
"""Folder inside a run's folder where its encoder is looked for."""


def small_shape(resolution: int, n_classes: int = 0) -> GeneratorConfig:
    """A generator that trains in minutes on a CPU."""
    if resolution not in (16, 32, 64, 128):
        raise ValueError(f"resolution must be 16, 32, 64 or 128, not {resolution}")
    return GeneratorConfig(
        resolution=resolution,
        channel_multiplier=1 / 16,
        max_channels=MAX_CHANNELS,
        style_size=STYLE_SIZE,
        n_mapping_layers=N_MAPPING_LAYERS,
        n_classes=n_classes,
    )


def describe_step(losses: Losses) -> str:
    """For the progress bar."""
    return f"D {losses['discriminator']:.2f} G {losses['generator']:.2f}"


@dataclass(frozen=True, kw_only=True)
class DiffAugmentRun:
    """A prepared run; everything the user gave is checked."""

    training: GanTraining
    loop: LoopConfig
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish) and measure; returns plain data."""
        average = self.training.average
        losses = train_and_show(self.training, self.loop, self.folder, progress)
        progress("measuring", 0, 1)
        judge = Judge(self.training.data)
        fakes = sample(average, N_FAKES)
        write_png(self.folder / "nearest.png", judge.nearest_pairs(fakes), scale=2)
        return {
            "data": self.training.data.source,
            "n_steps": len(losses),
            "features": NAME,
            **judge.quality(fakes).to_dict(),
            "samples": str(self.folder / f"samples-{len(losses):06d}.png"),
            "nearest": str(self.folder / "nearest.png"),
            "weights": str(self.folder / "weights.safetensors"),
        }


def train_and_show(
    training: GanTraining, loop: LoopConfig, folder: Path, progress: Progress, prefix: str = ""
) -> list[Losses]:
    """:func:`~algo.gan.loop.run` with a bar, and a grid of samples beside every checkpoint."""
    return run(
        training,
        loop,
        folder,
        lambda step, n, losses: progress(prefix + describe_step(losses), step, n),
        lambda step: write_samples(training.average, folder, step),
    )


def write_samples(generator: Generator, folder: Path, step: int) -> None:
    """A grid of the same 64 z after ``step`` steps."""
    write_png(folder / f"samples-{step:06d}.png", grid(sample(generator, N_SHOWN)), scale=2)


def prepare_diffaugment(
    data: ImageSet, config: GanConfig, loop: LoopConfig, folder: Path, start: Path | None = None
) -> DiffAugmentRun:
    """A small generator for ``data``, class-conditional where it has labels."""
    shape = small_shape(data.images.shape[-1], data.n_classes)
    training = GanTraining(shape, data, config, start=Start.read(start) if start else None, seed=loop.seed)
    return DiffAugmentRun(training=training, loop=loop, folder=folder)


@dataclass(frozen=True, kw_only=True)
class AnycostRun:
    """The three stages; each has a folder of its own and starts from the one before."""

    shape: GeneratorConfig
    data: ImageSet
    config: GanConfig
    elastic: Elastic
    """Of the last stage."""
    loop: LoopConfig
    """``n_steps`` of all stages together."""
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish) and measure the sub-generators; returns plain data."""
        average = self.train(progress)
        progress("measuring", 0, 1)
        rows = sub_generator_rows(average, self.data, self.elastic.resolutions)
        write_png(self.folder / "preview.png", preview(average, self.elastic.resolutions))
        return {
            "data": self.data.source,
            "features": NAME,
            "sub_generators": rows,
            "preview": str(self.folder / "preview.png"),
            "weights": str(self.folder / STAGES[-1] / "weights.safetensors"),
        }

    def train(self, progress: Progress) -> Generator:
        """All stages, or what is missing of them; the averaged generator of the last."""
        features = Features(device=self.config.device) if self.elastic.distillation else None
        start: Start | None = None
        for stage, n_steps in zip(STAGES, stage_steps(self.loop.n_steps), strict=True):
            folder = self.folder / stage
            training = self._training(stage, start, features)
            train_and_show(training, replace(self.loop, n_steps=n_steps), folder, progress, f"{stage}: ")
            start = Start.read(folder)
        return training.average

    def _training(self, stage: str, start: Start | None, features: Features | None) -> GanTraining:
        last = self.elastic
        elastic = {
            "full": None,
            "resolutions": replace(last, channels="full", conditioned=False),
            "channels": last,
        }[stage]
        return GanTraining(
            self.shape,
            self.data,
            self.config,
            elastic=elastic,
            start=start,
            perceptual=features.distance if features and elastic else None,
            perceptual_name=NAME if features and elastic else "none",
            seed=self.loop.seed,
        )


def stage_steps(n_steps: int) -> tuple[int, int, int]:
    """Shares of the steps, at least one each."""
    if n_steps < len(STAGES):
        raise ValueError(f"n_steps must be at least {len(STAGES)}, one a stage, not {n_steps}")
    first, second = (max(1, int(n_steps * share)) for share in STAGE_SHARES[:2])
    return first, second, n_steps - first - second


def sub_generator_rows(
    generator: Generator, data: ImageSet, resolutions: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Of every uniform sub-generator: cost, distance to the real pictures, and to its own full image.

    The real pictures are resized to the sub-generator's resolution first. The last number is the mean squared
    difference from the full generator's image, resized; values in -1..1.
    """
    features, shape = Features(), generator.config
    reals = as_floats(data.subset(min(MAX_REALS, len(data.images))).images)
    full = sample(generator, N_FAKES)
    rows = []
    for resolution in resolutions:
        target, wanted = resized(full, resolution), features(resized(reals, resolution))
        for ratio in reversed(RATIOS):
            sub = shape.uniform(ratio, resolution)
            fakes = sample(generator, N_FAKES, sub=sub)
            found = quality(wanted, features(fakes))
            difference = float((fakes - target).square().mean())
            rows.append(
                {
                    "resolution": resolution,
                    "ratio": ratio,
                    "macs": compute_macs(shape, sub),
                    **asdict(found),
                    "mse_to_full": difference,
                }
            )
    return rows


def preview(generator: Generator, resolutions: tuple[int, ...], n: int = N_PREVIEW) -> Tensor:
    """The same ``n`` faces from every uniform sub-generator, one row each, enlarged to one size."""
    largest, rows = max(resolutions), []
    for resolution in resolutions:
        for ratio in reversed(RATIOS):
            images = sample(generator, n, sub=generator.config.uniform(ratio, resolution))
            rows.append(torch.nn.functional.interpolate(images, (largest, largest), mode="nearest"))
    return grid(torch.cat(rows), n)


def prepare_anycost(
    data: ImageSet, config: GanConfig, elastic: Elastic, loop: LoopConfig, folder: Path
) -> AnycostRun:
    """Checks what the three stages need before the first begins."""
    shape = small_shape(data.images.shape[-1], data.n_classes)
    stage_steps(loop.n_steps)
    wrong = [r for r in elastic.resolutions if r not in shape.levels[1:]]
    if wrong:
        raise ValueError(f"resolutions must be among {shape.levels[1:]}, not {wrong[0]}")
    return AnycostRun(shape=shape, data=data, config=config, elastic=elastic, loop=loop, folder=folder)


def run_folder(checkpoint: Path) -> Path:
    """The finished run in ``checkpoint``, or in the last Anycost stage inside it."""
    last = checkpoint / STAGES[-1]
    return last if not (checkpoint / FINISHED).is_file() and (last / FINISHED).is_file() else checkpoint


def trained_elastic(folder: Path) -> Elastic | None:
    """How a finished run trained its sub-generators; None: only the full generator was trained."""
    saved = load_run(folder)[0].get("elastic")
    return Elastic(**(saved | {"resolutions": tuple(saved["resolutions"])})) if saved else None


def projection_term(elastic: Elastic | None) -> SubTerm:
    """The sub-generators that count in a projection: those that were trained, if any."""
    if elastic is None or (elastic.channels == "full" and len(elastic.resolutions) == 1):
        return SubTerm(weight=0.0)
    ratios = (1.0,) if elastic.channels == "full" else RATIOS
    return SubTerm(resolutions=elastic.resolutions, flexible=elastic.channels == "flexible", ratios=ratios)


@dataclass(frozen=True, kw_only=True)
class EncoderRun:
    """A prepared run; everything the user gave is checked."""

    training: EncoderTraining
    loop: LoopConfig
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish); returns plain data, with the mean over the last 20 steps."""
        losses = run(
            self.training,
            self.loop,
            self.folder,
            lambda step, n, now: progress(f"loss {now['reconstruction']:.4f}", step, n),
        )
        last = [row["reconstruction"] for row in losses[-20:]]
        return {
            "data": self.training.data.source,
            "n_steps": len(losses),
            "last_loss": sum(last) / len(last),
            "weights": str(self.folder / "weights.safetensors"),
        }


def prepare_encoder(
    checkpoint: Path, data: str, n_pictures: int | None, config: EncoderConfig, loop: LoopConfig,
    folder: Path | None,
) -> EncoderRun:  # fmt: skip
    """For the generator of a finished run, which stays as it is; ``folder`` defaults to one inside it."""
    source = run_folder(checkpoint)
    generator = load_generator(source)
    if generator.config.n_classes:
        raise ValueError(
            f"{source} holds a class-conditional generator; an encoder needs one without classes"
        )
    images = chosen_data(load_images(data, generator.config.resolution), n_pictures, conditional=False)
    training = EncoderTraining(
        generator, Start.read(source).name, images, config, projection_term(trained_elastic(source)),
        seed=loop.seed,
    )  # fmt: skip
    return EncoderRun(training=training, loop=loop, folder=folder or source / ENCODER)


def chosen_data(data: ImageSet, n_pictures: int | None, *, conditional: bool) -> ImageSet:
    """Part of a set, drawn with seed 0, with its classes or without."""
    if conditional and data.labels is None:
        raise ValueError(f"conditional needs data with classes: {data.source} has none")
    kept = data.subset(n_pictures) if n_pictures else data
    return kept if conditional else kept.without_labels()
