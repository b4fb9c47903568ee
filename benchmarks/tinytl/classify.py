# SPDX-License-Identifier: MIT
"""``quartet run efficientnet-lite0``: one picture through the packaged network in float."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from algo.tinytl.architecture import layers
from algo.tinytl.network import Network
from algo.tinytl.weights import PIXELS, as_input, class_names, pretrained

CROP_SHARE = 0.875
"""Side of the middle square that is looked at, over the picture's shorter side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Classified:
    """Classes with the highest scores, best first; ties to the earlier class."""

    image: str
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    n_macs: int
    """Products of the convolutions and the classifier."""


def read_picture(path: Path) -> Tensor:
    """The middle of a picture, uint8[1, 3, 224, 224], bicubic; transparent parts become white.

    FileNotFoundError where there is none, ValueError where it is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except UnidentifiedImageError:
        raise ValueError(f"image {path} is not a picture") from None
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    side = min(picture.size) * CROP_SHARE
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    square = flat.convert("RGB").resize(
        (PIXELS, PIXELS), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].contiguous()


def load_classifier() -> tuple[Network, list[str]]:
    """The packaged network and the names of its classes; FileNotFoundError where pip cannot fetch them."""
    return pretrained().eval(), class_names()


@torch.no_grad()
def classify(network: Network, names: list[str], picture: Tensor, image: str, n_top: int) -> Classified:
    """``picture`` as of :func:`read_picture`; ValueError unless 1 <= ``n_top`` <= classes."""
    if not 1 <= n_top <= len(names):
        raise ValueError(f"--top must be in 1..{len(names)}, not {n_top}")
    probabilities = network(as_input(picture)).softmax(1)[0]
    order = probabilities.sort(descending=True, stable=True)
    indices = order.indices[:n_top].tolist()
    return Classified(
        image=image,
        classes=tuple(names[i] for i in indices),
        indices=tuple(indices),
        probabilities=tuple(order.values[:n_top].tolist()),
        n_macs=sum(layer.n_macs for layer in layers(network.backbone, picture.shape[-1])),
    )
