# SPDX-License-Identifier: MIT
"""Small sets of pictures that come in Debian packages, or any folder of pictures.

=================  ==================================================================  ===================
``emoji-smileys``  104 faces of Noto Color Emoji (package fonts-noto-color-emoji)      SIL Open Font 1.1
``emoji-animals``  111 animals of the same font
``emoji-foods``    94 foods of the same font
``fashion``        Fashion-MNIST, 60,000 garments, ten classes (dataset-fashion-mnist)  MIT
=================  ==================================================================  ===================

An installed package is used; else ``apt-get download`` fetches it once into the user's cache.
"""

import gzip
import hashlib
import io
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from algo.files import cache_folder

EMOJI = {
    "emoji-smileys": ((0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F97A)),
    "emoji-animals": ((0x1F400, 0x1F43F), (0x1F980, 0x1F9AE)),
    "emoji-foods": ((0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F)),
}
"""Ranges of Unicode code points."""
FONT_PACKAGE, FONT = "fonts-noto-color-emoji", "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
FASHION_PACKAGE, FASHION = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
N_FASHION_CLASSES = 10
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures of one size."""

    images: Tensor
    """uint8[N, 1 or 3, R, R]."""
    labels: Tensor | None
    """int64[N], or None without classes."""
    source: str

    @property
    def n_classes(self) -> int:
        """0 without classes."""
        return 0 if self.labels is None else N_FASHION_CLASSES

    @property
    def sha256(self) -> str:
        """Twelve hex digits of the pixels."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()[:12]

    def subset(self, n: int, seed: int = 0) -> "ImageSet":
        """``n`` of the pictures, drawn once for each seed; all where n is their number."""
        if not 1 <= n <= len(self.images):
            raise ValueError(f"n must be in 1..{len(self.images)} pictures, not {n}")
        kept = (
            torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:n].sort().values
        )
        labels = None if self.labels is None else self.labels[kept]
        return ImageSet(self.images[kept], labels, f"{self.source}, {n} of {len(self.images)}")

    def without_labels(self) -> "ImageSet":
        """The same pictures, for an unconditional network."""
        return ImageSet(self.images, None, self.source)


def as_floats(images: Tensor) -> Tensor:
    """uint8[N, 1 or 3, R, R], 0..255, to float32[N, 3, R, R], -1..1."""
    return (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)


def load_images(name: str, resolution: int, *, test: bool = False) -> ImageSet:
    """A packaged set by name, or the pictures of a folder (no classes) in alphabetical order.

    Pictures are centred on white (fashion: black) squares and resampled. ``test`` asks for the 10,000 test
    pictures of fashion. FileNotFoundError where there is nothing, ValueError for what cannot be read.
    """
    if test and name != "fashion":
        raise ValueError(f"data {name} has no test part; fashion has")
    if name in EMOJI:
        return _emoji(name, resolution)
    if name == "fashion":
        return _fashion(resolution, test)
    return _folder(Path(name), resolution)


def _emoji(name: str, resolution: int) -> ImageSet:
    """The font's bitmaps, 136 x 128 pixels with transparency."""
    from fontTools.ttLib import TTFont
    from PIL import Image

    with TTFont(_installed(FONT_PACKAGE, FONT)) as font:
        glyphs, bitmaps = font.getBestCmap(), font["CBDT"].strikeData[0]
        codes = [c for low, high in EMOJI[name] for c in range(low, high + 1) if glyphs.get(c) in bitmaps]
        pictures = [Image.open(io.BytesIO(bitmaps[glyphs[c]].imageData)) for c in codes]
        pixels = np.stack([_square(picture, resolution) for picture in pictures])
    return ImageSet(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), None, f"{name} of {FONT_PACKAGE}"
    )


def _fashion(resolution: int, test: bool) -> ImageSet:
    folder, part = _installed(FASHION_PACKAGE, FASHION), "t10k" if test else "train"
    content = {}
    for kind, n_header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz") as file:
            content[kind] = torch.frombuffer(bytearray(file.read()[n_header:]), dtype=torch.uint8)
    images = F.pad(content["images-idx3"].reshape(-1, 1, 28, 28), (2, 2, 2, 2))
    if resolution != 32:
        images = torch.cat([_resized(some, resolution) for some in images.split(1000)])
    source = f"Fashion-MNIST {'test' if test else 'training'} part of {FASHION_PACKAGE}"
    return ImageSet(images, content["labels-idx1"].long(), source)


def _resized(images: Tensor, resolution: int) -> Tensor:
    """uint8[N, 1, R, R]; on the way it takes several times the memory."""
    size = (resolution, resolution)
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True).round().byte()


def _folder(folder: Path, resolution: int) -> ImageSet:
    if not folder.is_dir():
        known = ", ".join([*EMOJI, "fashion"])
        raise FileNotFoundError(f"data must be one of {known} or a folder of pictures, not {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    images = torch.stack([read_picture(path.read_bytes(), str(path), resolution) for path in paths])
    return ImageSet(images, None, folder.name)


def read_picture(data: bytes, name: str, resolution: int) -> Tensor:
    """A picture file's content, centred on a white square and resampled: uint8[3, R, R].

    ValueError with ``name`` where it is no picture, or one of a size that only an attack would have.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = _square(picture, resolution)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
        raise ValueError(f"{name} is not a picture") from None
    except OSError:
        raise ValueError(f"{name} is a damaged picture") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _square(picture, resolution: int) -> np.ndarray:
    """On a white square, then resampled (Lanczos): uint8[R, R, 3]."""
    from PIL import Image

    picture = picture.convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.array(canvas.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS))


def _installed(package: str, inside: str) -> Path:
    """A file or folder of a Debian package: of the system, or of the user's cache."""
    if (system := Path("/") / inside).exists():
        return system
    kept = cache_folder() / "debian" / package
    if (kept / inside).exists():
        return kept / inside
    with tempfile.TemporaryDirectory() as scratch:
        # apt's own sandbox user may not write here, hence the option.
        commands = (["apt-get", "-o", "APT::Sandbox::User=root", "download", package], ["dpkg", "-x"])
        fetched = (
            shutil.which("apt-get")
            and not subprocess.run(commands[0], cwd=scratch, capture_output=True, check=False).returncode
        )
        archives = list(Path(scratch).glob("*.deb"))
        if not fetched or not archives:
            raise FileNotFoundError(
                f"package {package} is not installed and apt-get could not fetch it: install it, or give a "
                "folder of pictures"
            )
        unpacked = Path(scratch) / "unpacked"
        subprocess.run([*commands[1], archives[0], unpacked], check=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, kept)
    return kept / inside
