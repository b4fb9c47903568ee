# SPDX-License-Identifier: MIT
"""Labelled pictures in two parts: Fashion-MNIST, emoji by kind, or a folder with one folder a class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from algo.gan.data import EMOJI, ImageSet, load_images

TEST_SHARE = 0.25
"""Of a set without a test part of its own."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pictures to train on and to judge by, both with labels, and the names of the classes."""

    training: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


def load_labelled(name: str, resolution: int) -> Labelled:
    """``fashion`` (ten garments), ``emoji`` (three kinds), or a folder of folders, one a class.

    The last two are split at random, the same way every time: a quarter is the test part. FileNotFoundError
    where there is nothing, ValueError where there are fewer than two classes or a class has one picture.
    """
    if name == "fashion":
        training, test = (load_images(name, resolution, test=test) for test in (False, True))
        return Labelled(training, test, tuple(str(i) for i in range(10)))
    if name == "emoji":
        return _split({kind: load_images(kind, resolution) for kind in EMOJI}, name)
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"data must be fashion, emoji or a folder with a folder a class, not {name}")
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if len(folders) < 2:
        raise ValueError(f"{folder} must hold a folder for each of at least two classes, not {len(folders)}")
    return _split({path.name: load_images(str(path), resolution) for path in folders}, folder.name)


def _split(sets: dict[str, ImageSet], source: str) -> Labelled:
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for kind, pictures in sets.items():
        n = len(pictures.images)
        if n < 2:
            raise ValueError(f"class {kind} must have at least 2 pictures, not {n}")
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        n_test = max(1, round(TEST_SHARE * n))
        parts[0].append(pictures.images[order[n_test:]])
        parts[1].append(pictures.images[order[:n_test]])
    found = []
    for part, images in zip(("training", "test"), parts, strict=True):
        labels = torch.cat([torch.full((len(some),), i) for i, some in enumerate(images)])
        found.append(ImageSet(torch.cat(images), labels, f"{source}, {part} part"))
    return Labelled(found[0], found[1], tuple(sets))
