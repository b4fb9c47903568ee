# SPDX-License-Identifier: MIT
"""Images of a generator as PNG files."""

import io
import math
from pathlib import Path

import torch
from torch import Tensor

from algo.files import write_atomically


def grid(images: Tensor, n_columns: int | None = None, gap: int = 2) -> Tensor:
    """float[N, 3, R, R], clamped to -1..1, side by side on white: uint8[height, width, 3].

    The default is a square of images, or a little wider than high.
    """
    n, _, height, width = images.shape
    n_columns = n_columns or math.ceil(math.sqrt(n))
    n_rows = -(-n // n_columns)
    sheet = torch.full((3, n_rows * (height + gap) + gap, n_columns * (width + gap) + gap), 255.0)
    for i, image in enumerate(images.detach().cpu().float().clamp(-1, 1)):
        top, left = gap + i // n_columns * (height + gap), gap + i % n_columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = (image + 1) * 127.5
    return sheet.round().byte().permute(1, 2, 0)


def write_png(path: Path, pixels: Tensor, scale: int = 1) -> None:
    """uint8[height, width, 3], each pixel ``scale`` x ``scale``; the file is written whole."""
    from PIL import Image

    picture = Image.fromarray(pixels.numpy())
    size = (picture.width * scale, picture.height * scale)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
