# SPDX-License-Identifier: MIT
"""Anycost GAN's claims on a generator that trains on a CPU: one result for each.

The last stage is trained four times from the same second stage, with and without the conditioned
discriminator and the distillation. Distillation is a squared error here; the perceptual distance would triple
the time of a step.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from algo.anycost.architecture import RATIOS, GeneratorConfig, SubGenerator, compute_macs
from algo.anycost.generator import Generator
from algo.anycost.projection import ProjectionConfig, SubTerm, distance_to_full, mean_distance, project
from algo.anycost.search import SearchConfig, evolve
from algo.gan.data import ImageSet, as_floats, load_images
from algo.gan.loop import LoopConfig
from algo.gan.pictures import write_png
from algo.gan.training import Elastic, GanConfig, GanTraining, Start, resized, sample
from benchmarks.gan.features import NAME
from benchmarks.gan.judge import Judge
from benchmarks.gan.training import N_FAKES, preview, sub_generator_rows, train_and_show
from benchmarks.quality.progress import Progress
from benchmarks.quality.statistics import mean_and_half_interval
from benchmarks.quality.store import cached, fingerprint

VARIANTS = {
    "both": (True, True),
    "no-conditioning": (False, True),
    "no-distillation": (True, False),
    "neither": (False, False),
}
"""Conditioned discriminator and distillation in the last stage; the first is the method as published."""
MAIN = "both"
PROJECTION, SEARCH = "projection", "search"
JUDGING = {
    PROJECTION: ("n_projected", "projection_steps"),
    SEARCH: ("search_ratios", "search", "n_search_z", "n_other_z", "n_other_draws"),
}
"""Settings that only this result depends on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The experiment."""

    data: str = "emoji-smileys"
    n_pictures: int = 100
    resolution: int = 32
    n_resolutions: int = 3
    channel_multiplier: float = 1 / 16
    max_channels: int = 64
    style_size: int = 64
    n_mapping_layers: int = 4
    batch_size: int = 16
    learning_rate: float = 2e-3
    r1_weight: float = 1.0
    augment: str = "color,translation,cutout"
    distillation: float = 2.0
    steps_full: int = 2500
    steps_resolutions: int = 800
    steps_channels: int = 2500
    separate: tuple[tuple[int, float], ...] = ((32, 0.25), (32, 0.5), (16, 0.25))
    """Resolution and ratio of generators trained alone, with the steps of all stages together."""
    n_projected: int = 16
    projection_steps: int = 200
    search_ratios: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    """A budget is the cost of the uniform sub-generator of this ratio at the full resolution."""
    search: SearchConfig = field(default_factory=lambda: SearchConfig(mutate_width=0.2, step_channels=4))
    n_search_z: int = 512
    n_other_z: int = 256
    n_other_draws: int = 8
    """Fresh z, so many times (at least twice), that found and uniform sub-generator are compared on."""
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.n_other_draws < 2:
            raise ValueError(f"n_other_draws must be at least 2, not {self.n_other_draws}")

    @property
    def shape(self) -> GeneratorConfig:
        """Of the generator."""
        return GeneratorConfig(
            resolution=self.resolution, channel_multiplier=self.channel_multiplier,
            max_channels=self.max_channels, style_size=self.style_size,
            n_mapping_layers=self.n_mapping_layers,
        )  # fmt: skip

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Outputs that are images of their own."""
        return tuple(self.resolution >> i for i in range(self.n_resolutions))

    @property
    def gan(self) -> GanConfig:
        """How a step trains."""
        return GanConfig(
            batch_size=self.batch_size, learning_rate=self.learning_rate, r1_weight=self.r1_weight,
            augment=self.augment, noise=False, device=self.device,
        )  # fmt: skip

    @property
    def n_steps(self) -> int:
        """Of all stages."""
        return self.steps_full + self.steps_resolutions + self.steps_channels


class Programme:
    """Trains what a result needs when it needs it; interrupted trainings go on."""

    def __init__(self, folder: Path, setup: Setup, progress: Progress) -> None:
        self.folder, self.setup, self.progress = folder, setup, progress
        pictures = load_images(setup.data, setup.resolution).subset(setup.n_pictures)
        self.data = pictures.without_labels()
        settings = asdict(setup)
        del settings["device"]
        own = {name: {key: settings.pop(key) for key in keys} for name, keys in JUDGING.items()}
        self.training_inputs: dict[str, Any] = settings | {"sha256": self.data.sha256, "features": NAME}
        self.inputs = {name: self.training_inputs | added for name, added in own.items()}
        self.mark = fingerprint(self.training_inputs)

    def run(self) -> None:
        """All results that are not there yet, the published method first."""
        jobs: dict[str, Callable[[], dict[str, Any]]] = {
            f"channels-{MAIN}": partial(self._sub_generators, MAIN),
            PROJECTION: self._projection,
            SEARCH: self._search,
        }
        for resolution, ratio in self.setup.separate:
            jobs[f"separate-{resolution}x{ratio:g}"] = partial(self._separate, resolution, ratio)
        jobs |= {f"channels-{name}": partial(self._sub_generators, name) for name in VARIANTS if name != MAIN}
        for name, compute in jobs.items():
            cached(self.folder, name, self.inputs.get(name, self.training_inputs), compute)

    # ---- training ----

    def _trained(
        self, name: str, n_steps: int, start: Path | None = None, elastic: Elastic | None = None,
        shape: GeneratorConfig | None = None, data: ImageSet | None = None,
    ) -> tuple[Path, Generator]:  # fmt: skip
        """Folder of a run, finished now, and its averaged generator."""
        setup = self.setup
        training = GanTraining(
            shape or setup.shape, data or self.data, setup.gan, elastic=elastic,
            start=Start.read(start) if start else None, seed=setup.seed,
            opponent=replace(setup.shape, resolution=shape.resolution) if shape else None,
        )  # fmt: skip
        folder = self.folder / "runs" / f"{name}-{self.mark}"
        loop = LoopConfig(n_steps=n_steps, seed=setup.seed, checkpoint_steps=500)
        train_and_show(training, loop, folder, self.progress, f"{name}: ")
        return folder, training.average

    def _stages(self, variant: str) -> Generator:
        setup = self.setup
        conditioned, distilled = VARIANTS[variant]
        several = Elastic(resolutions=setup.resolutions, n_sampled=min(2, setup.n_resolutions))
        last = replace(
            several,
            channels="flexible",
            conditioned=conditioned,
            distillation=setup.distillation if distilled else 0.0,
        )
        full, _ = self._trained("full", setup.steps_full)
        second, _ = self._trained("resolutions", setup.steps_resolutions, full, several)
        return self._trained(f"channels-{variant}", setup.steps_channels, second, last)[1]

    # ---- results ----

    def _sub_generators(self, variant: str) -> dict[str, Any]:
        """Of all uniform sub-generators: cost, distance to the pictures, distance to the full image."""
        generator = self._stages(variant)
        self.progress(f"{variant}: measuring", 0, 1)
        if variant == MAIN:
            write_png(self.folder / "preview.png", preview(generator, self.setup.resolutions), scale=2)
        return {"rows": sub_generator_rows(generator, self.data, self.setup.resolutions)}

    def _separate(self, resolution: int, ratio: float) -> dict[str, Any]:
        """A generator of a sub-generator's shape against the whole discriminator, trained alone."""
        setup = self.setup
        shape = replace(
            setup.shape, resolution=resolution, channel_multiplier=setup.channel_multiplier * ratio
        )
        data = _shrunk(self.data, resolution)
        _, generator = self._trained(
            f"separate-{resolution}x{ratio:g}", setup.n_steps, shape=shape, data=data
        )
        self.progress("measuring", 0, 1)
        quality = Judge(data).quality(sample(generator, N_FAKES))
        macs = compute_macs(shape, shape.full)
        return {"resolution": resolution, "ratio": ratio, "macs": macs, **quality.to_dict()}

    def _projection(self) -> dict[str, Any]:
        """Distance of projected pictures by full and sub-generators, with and without the latter's term."""
        setup, generator = self.setup, self._stages(MAIN)
        target = as_floats(self.data.subset(setup.n_projected, seed=1).images).to(generator.constant)
        term = SubTerm(resolutions=setup.resolutions, flexible=True)
        return {
            name: self._projected(name, generator, target, one)
            for name, one in (("with", term), ("without", replace(term, weight=0.0)))
        }

    def _projected(self, name: str, generator: Generator, target: Tensor, term: SubTerm) -> dict[str, Any]:
        config = ProjectionConfig(n_steps=self.setup.projection_steps)
        styles, _ = project(
            generator, target, config, term,
            on_step=lambda i, n, loss: self.progress(f"projection {name} sub-generators", i, n),
        )  # fmt: skip
        subs = {
            f"{resolution} x {ratio:g}": generator.config.uniform(ratio, resolution)
            for resolution in self.setup.resolutions
            for ratio in reversed(RATIOS)
        }
        smaller = [sub for sub in subs.values() if sub != generator.config.full]
        return {
            "full_mse": mean_distance(generator, styles, target, [generator.config.full]),
            "sub_mse": mean_distance(generator, styles, target, smaller),
            "by_sub": {name: mean_distance(generator, styles, target, [sub]) for name, sub in subs.items()},
        }

    def _search(self) -> dict[str, Any]:
        """What evolution finds for the cost of a uniform sub-generator, both judged on fresh z."""
        setup, generator = self.setup, self._stages(MAIN)
        shape = generator.config
        fitness = distance_to_full(generator, setup.n_search_z, seed=setup.seed)
        fresh = [
            distance_to_full(generator, setup.n_other_z, seed=setup.seed + 1 + draw)
            for draw in range(setup.n_other_draws)
        ]

        def cost(sub: SubGenerator) -> float:
            return compute_macs(shape, sub)

        rows = []
        for ratio in setup.search_ratios:
            uniform = shape.uniform(ratio)
            show = partial(self._show_generation, f"search at {ratio:g}")
            found = evolve(
                shape, cost, cost(uniform), fitness, setup.search, start=[uniform], on_generation=show
            )
            uniform_mse, found_mse = (np.array([one(sub) for one in fresh]) for sub in (uniform, found.sub))
            gain, half_95 = mean_and_half_interval(1 - found_mse / uniform_mse)
            rows.append(
                {
                    "ratio": ratio,
                    "uniform_macs": cost(uniform),
                    "found_macs": found.cost,
                    "uniform_mse": float(uniform_mse.mean()),
                    "found_mse": float(found_mse.mean()),
                    "gain": gain,
                    "gain_half_95": half_95,
                    "found_widths": found.sub.widths,
                    "n_evaluated": found.n_evaluated,
                }
            )
        return {"rows": rows}

    def _show_generation(self, what: str, i: int, n: int, best: float) -> None:
        self.progress(f"{what}: {best:.4f}", i, n)


def _shrunk(data: ImageSet, resolution: int) -> ImageSet:
    """The pictures that a sub-generator of this resolution is compared with."""
    if resolution == data.images.shape[-1]:
        return data
    small = ((resized(as_floats(data.images), resolution) + 1) * 127.5).round().byte()
    return ImageSet(small, None, f"{data.source}, {resolution} px")


def run_elastic(folder: Path, setup: Setup, progress: Progress) -> None:
    """Train and measure what is not there yet; an interrupted run goes on."""
    Programme(folder, setup, progress).run()
