# SPDX-License-Identifier: MIT
"""Depthwise layers, and the passes through the unit that compute one tile of their channels.

Imports numpy at most.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .config import MAX_KERNEL, Pass


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseLayer:
    """Every channel by itself; ValueError naming the field that is out of range.

    Output pixel i of an axis is the sum over taps a of weight a times

    - input pixel stride i + a - padding;
    - ``transposed``: input pixel (i + padding - a) / 2, of those a where this is whole. It is the adjoint of
      the layer of stride 2 with the same padding and weights, sizes exchanged.
    """

    height: int
    width: int
    channels: int
    kernel: int = 3
    """1..7; 1 hands a map on as it is, times a weight."""
    stride: int = 1
    """1 or 2; 2 if ``transposed``."""
    padding: int = 0
    """Above the input and left of it, 0..kernel - 1; below and right of it, what the output's size needs."""
    transposed: bool = False
    out_height: int = 0
    out_width: int = 0
    """0: as if the padding was the same on all sides. No output lies wholly beyond the input."""
    wide: bool = False
    """Elements of 16 bits; otherwise 8."""
    replicate: bool = False
    """Outside of the input lies its nearest pixel; otherwise zeros."""

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 <= self.kernel <= MAX_KERNEL:
            raise ValueError(f"kernel must be in 1..{MAX_KERNEL}, not {self.kernel}")
        if self.stride not in ((2,) if self.transposed else (1, 2)):
            allowed = "2 if transposed" if self.transposed else "1 or 2"
            raise ValueError(f"stride must be {allowed}, not {self.stride}")
        if not 0 <= self.padding < self.kernel:
            raise ValueError(f"padding must be in 0..{self.kernel - 1}, not {self.padding}")
        for name, size in (("out_height", self.height), ("out_width", self.width)):
            most = self._most(size)
            if not getattr(self, name):
                object.__setattr__(self, name, self._usual(size))
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in 1..{most}, not {getattr(self, name)}")

    def _usual(self, size: int) -> int:
        if self.transposed:
            return 2 * (size - 1) + self.kernel - 2 * self.padding
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def _most(self, size: int) -> int:
        """Outputs up to the last one that meets the input; transposed, one more for an even size."""
        if self.transposed:
            return 2 * (size - 1) + self.kernel - self.padding + 1
        return (size - 1 + self.padding) // self.stride + 1

    @property
    def n_macs(self) -> int:
        """Multiplications with something other than an inserted zero; products with padding count."""
        return self.channels * sum(p.of.out_height * p.of.out_width * p.n_taps for p in phases(self))


class _Axis(NamedTuple):
    """Outputs of one axis that meet the same taps."""

    taps: tuple[int, ...]
    """Tap met by each successive input pixel; empty: none, and the sums are 0."""
    padding: int
    skipped: int
    """Input pixels before the first one that is met."""
    size: int
    """Input pixels that are met."""
    first: int
    n_out: int
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A pass, what of the input it takes, and where its outputs belong."""

    of: Pass
    taps_y: tuple[int, ...]
    taps_x: tuple[int, ...]
    """Tap of the layer's kernel behind each row and column of the pass's; empty: zeros."""
    row: int
    column: int
    """First input pixel."""
    y: int
    x: int
    """First output pixel."""
    step: int
    """Output pixels from one of the pass to the next."""

    @property
    def n_taps(self) -> int:
        """Taps of one output pixel."""
        return len(self.taps_y) * len(self.taps_x)

    def weights(self, of_layer: np.ndarray) -> np.ndarray:
        """[channels, kernel_height, kernel_width] of [channels, kernel, kernel]."""
        if not self.n_taps:
            return np.zeros((len(of_layer), self.of.kernel_height, self.of.kernel_width), of_layer.dtype)
        return of_layer[:, self.taps_y][:, :, self.taps_x]


def phases(layer: DepthwiseLayer) -> list[Phase]:
    """One pass; of a transposed layer four, of 4, 2, 2 and 1 taps for a kernel of 3.

    Each is a correlation of stride 1 in which no inserted zero is multiplied. Outputs that meet no tap (of a
    kernel of 1) are a pass with one weight 0.
    """
    return [
        Phase(
            of=Pass(
                kernel_height=max(1, len(down.taps)),
                kernel_width=max(1, len(across.taps)),
                stride=1 if layer.transposed else layer.stride,
                padding_y=down.padding,
                padding_x=across.padding,
                height=down.size,
                width=across.size,
                out_height=down.n_out,
                out_width=across.n_out,
                wide=layer.wide,
                replicate=layer.replicate,
            ),
            taps_y=down.taps,
            taps_x=across.taps,
            row=down.skipped,
            column=across.skipped,
            y=down.first,
            x=across.first,
            step=down.step,
        )
        for down in _axes(layer, layer.height, layer.out_height)
        for across in _axes(layer, layer.width, layer.out_width)
    ]


def _axes(layer: DepthwiseLayer, size: int, n_out: int) -> list[_Axis]:
    kernel, padding = layer.kernel, layer.padding
    if not layer.transposed:
        return [_cut(layer, size, tuple(range(kernel)), padding, 0, n_out, layer.stride, 1)]
    made = []
    for first in range(min(2, n_out)):
        parity = (first + padding) % 2
        taps = tuple(range(parity, kernel, 2))[::-1]
        before = max(1, len(taps)) - 1 - (first + padding - parity) // 2
        made.append(_cut(layer, size, taps, before, first, (n_out - first + 1) // 2, 1, 2))
    return made


def _cut(
    layer: DepthwiseLayer,
    size: int,
    taps: tuple[int, ...],
    padding: int,
    first: int,
    n_out: int,
    stride: int,
    step: int,
) -> _Axis:
    """Without the input pixels that no output meets, of which one stays where none would."""
    if -padding >= size and not layer.replicate:
        taps = ()
    skipped = min(max(0, -padding), size - 1)
    padding = max(0, padding)
    met = (n_out - 1) * stride + max(1, len(taps)) - padding
    return _Axis(
        taps=taps,
        padding=padding,
        skipped=skipped,
        size=min(size - skipped, met),
        first=first,
        n_out=n_out,
        step=step,
    )
