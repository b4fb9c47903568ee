# SPDX-License-Identifier: MIT
"""DiffAugment (Zhao et al., NeurIPS 2020): differentiable augmentation of everything a discriminator sees.

Images are float[N, C, H, W], about -1..1, never clamped. Every image gets its own draws, every listed
operation is always applied, in the order listed:

===========  ==============================================================================================
color        brightness x + b, b in U[-0.5, 0.5); saturation (x - m) s + m, m the mean over channels, s in
             U[0, 2); contrast (x - M) k + M, M the mean over channels and pixels, k in U[0.5, 1.5)
translation  out[h, w] = x[h + t_h, w + t_w], zeros from outside; t uniform integer in -S..S of each axis, S
             an eighth of the side, rounded half up
cutout       zeros in a rectangle of half the sides (rounded half up), about a uniform centre 0..side, or one
             less where the rectangle is odd; what lies outside is cut off
===========  ==============================================================================================

:func:`diff_augment` draws and applies. :func:`draw`, :func:`apply` and :func:`adjoint` are its parts: the
same draws can serve paired images, and the adjoint is what a backward pass computes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Color:
    """Draws of the colour operations, each float[N]."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor

    @classmethod
    def draw(cls, shape: Sequence[int], rng: torch.Generator | None) -> "Color":
        """Three uniform numbers an image, in this order."""
        u = [_uniform(shape[0], rng) for _ in range(3)]
        return cls(u[0] - 0.5, u[1] * 2, u[2] + 0.5)

    def apply(self, x: Tensor) -> Tensor:
        """Brightness, saturation, contrast, in this order."""
        x = x + _per_image(self.brightness, x)
        return self.linear(x)

    def linear(self, x: Tensor) -> Tensor:
        """The linear part: without brightness, which only adds b to every element at the end too."""
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * _per_image(self.saturation, x) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * _per_image(self.contrast, x) + mean

    adjoint = linear
    """Means and differences from means are orthogonal projections, so the linear part is its own adjoint."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Draws of the translation."""

    shift: Tensor
    """int64[N, 2], rows and columns."""

    @classmethod
    def draw(cls, shape: Sequence[int], rng: torch.Generator | None) -> "Translation":
        """Rows of all images, then columns."""
        most = [int(side / 8 + 0.5) for side in shape[2:]]
        return cls(torch.stack([_integers(-s, s, shape[0], rng) for s in most], 1))

    def apply(self, x: Tensor) -> Tensor:
        """Content moves up by t_h and left by t_w."""
        return _shifted(x, self.shift)

    linear = apply

    def adjoint(self, y: Tensor) -> Tensor:
        """The opposite shift, zeros from outside."""
        return _shifted(y, -self.shift)


@dataclass(frozen=True, slots=True)
class Cutout:
    """Draws of the cutout."""

    centre: Tensor
    """int64[N, 2], rows and columns; the rectangle starts half its sides (rounded down) before."""

    @classmethod
    def draw(cls, shape: Sequence[int], rng: torch.Generator | None) -> "Cutout":
        """Rows of all images, then columns."""
        highest = [side - _cut(side) % 2 for side in shape[2:]]
        return cls(torch.stack([_integers(0, top, shape[0], rng) for top in highest], 1))

    def mask(self, x: Tensor) -> Tensor:
        """False in the rectangle: bool[N, 1, H, W]."""
        inside = []
        for axis, side in enumerate(x.shape[2:]):
            position = torch.arange(side, device=x.device)
            start = self.centre[:, axis, None].to(x.device) - _cut(side) // 2
            inside.append((position >= start) & (position < start + _cut(side)))  # [N, side]
        return ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])

    def apply(self, x: Tensor) -> Tensor:
        """Zeros in the rectangle, in all channels."""
        return x * self.mask(x)

    linear = adjoint = apply
    """A mask is its own adjoint."""


Operation = Color | Translation | Cutout
OPERATIONS: dict[str, type[Operation]] = {"color": Color, "translation": Translation, "cutout": Cutout}


def parse_policy(policy: str) -> tuple[str, ...]:
    """Names of a list such as "color,translation,cutout"; "" is none. ValueError for an unknown one."""
    names = tuple(name.strip() for name in policy.split(",") if name.strip())
    for name in names:
        if name not in OPERATIONS:
            raise ValueError(f"policy must list some of {', '.join(OPERATIONS)}, not {name!r}")
    return names


def draw(policy: str, shape: Sequence[int], rng: torch.Generator | None = None) -> list[Operation]:
    """What happens to each image of a batch of ``shape`` (N, C, H, W); on the CPU, global RNG if None."""
    if len(shape) != 4:
        raise ValueError(f"images must have four dimensions, not {len(shape)}")
    return [OPERATIONS[name].draw(shape, rng) for name in parse_policy(policy)]


def apply(x: Tensor, operations: Sequence[Operation]) -> Tensor:
    """The augmented images; differentiable in ``x``."""
    for operation in operations:
        x = operation.apply(x)
    return x


def adjoint(y: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Adjoint of the linear part: the gradient in the images, given that in the augmented images."""
    for operation in reversed(operations):
        y = operation.adjoint(y)
    return y


def diff_augment(x: Tensor, policy: str, rng: torch.Generator | None = None) -> Tensor:
    """Augment with fresh draws: call it anew for reals, for fakes, and for the generator's step."""
    return apply(x, draw(policy, x.shape, rng))


def augmenter(policy: str, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
    """:func:`diff_augment` with its policy and source of draws fixed."""
    parse_policy(policy)
    return lambda x: diff_augment(x, policy, rng)


def _uniform(n: int, rng: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=rng)


def _integers(low: int, high: int, n: int, rng: torch.Generator | None) -> Tensor:
    """Uniform, both ends included."""
    return torch.randint(low, high + 1, (n,), generator=rng)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x)[:, None, None, None]


def _cut(side: int) -> int:
    return int(side / 2 + 0.5)


def _shifted(x: Tensor, shift: Tensor) -> Tensor:
    """out[n, c, h, w] = x[n, c, h + shift[n, 0], w + shift[n, 1]], or 0 outside."""
    n, _, height, width = x.shape
    rows = torch.arange(height) + shift[:, :1]
    columns = torch.arange(width) + shift[:, 1:]
    # One pixel of zeros all around catches everything from outside.
    rows = (rows + 1).clamp(0, height + 1).to(x.device)
    columns = (columns + 1).clamp(0, width + 1).to(x.device)
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
