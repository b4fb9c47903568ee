# SPDX-License-Identifier: MIT
"""Toy generators that several tests share."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator
from algo.gan.data import load_images
from algo.gan.loop import FINISHED, WEIGHTS, LoopConfig
from algo.gan.training import Elastic, GanConfig
from benchmarks.gan import training

RANDOM_SHAPE = GeneratorConfig(
    resolution=16, channel_multiplier=1 / 64, max_channels=16, style_size=8, n_mapping_layers=2
)


class Pixels:
    """Pixels of small copies instead of a network's features."""

    def __init__(self, path=None, device="cpu") -> None:
        pass

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

    def distance(self, a, b):
        return (a - b).abs().mean()


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Six pictures of 16 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 255 - 40 * i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def anycost_run(tmp_path_factory, pictures) -> Path:
    """Three stages of one step each: 16 and 8 pixels, uniform ratios, styles of 8."""
    folder = tmp_path_factory.mktemp("anycost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "STYLE_SIZE", 8)
        elastic = Elastic(resolutions=(16, 8), channels="uniform", conditioned=True)
        task = training.prepare_anycost(
            load_images(str(pictures), 16),
            GanConfig(batch_size=2),
            elastic,
            LoopConfig(n_steps=3),
            folder,
        )
        task.train(quiet)
    return folder


@pytest.fixture(scope="session")
def random_run(tmp_path_factory) -> Path:
    """A run as training leaves it, of random weights with noise."""
    torch.manual_seed(0)
    generator = Generator(RANDOM_SHAPE)
    for layer in generator.convs:
        torch.nn.init.constant_(layer.noise_strength, 0.05)
    folder = tmp_path_factory.mktemp("run")
    save_file({f"average.{name}": value for name, value in generator.state_dict().items()}, folder / WEIGHTS)
    (folder / FINISHED).write_text(json.dumps({"run": {"generator": asdict(RANDOM_SHAPE)}, "losses": []}))
    return folder
