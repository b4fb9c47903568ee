# SPDX-License-Identifier: MIT
"""Convolutions, and their split into phases. Imports nothing."""

from dataclasses import dataclass

KERNELS = (1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One convolution without bias, or its transpose, in the terms of PyTorch.

    ``transposed`` is ``conv_transpose2d(stride=2, padding=0)``: an output of 2 (height - 1) + kernel pixels,
    in which pixel u gets input i times tap k where u = 2 i + k.
    """

    height: int
    width: int
    n_in: int
    """Input channels, all groups together; the first ones of those that are stored."""
    n_out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False
    wide: bool = False
    """Activations of 16 bits, in two passes."""
    n_stored: int = 0
    """Channels that each pixel has in memory, all groups together; 0: ``n_in``."""

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {KERNELS}, not {self.kernel}")
        if self.transposed and self.kernel == 1:
            raise ValueError("kernel must be at least 3 if transposed, not 1")
        if self.stride not in (1, 2) or (self.transposed and self.stride != 2):
            raise ValueError(f"stride must be 1, or 2 (always 2 if transposed), not {self.stride}")
        if not 0 <= self.padding < self.kernel or (self.transposed and self.padding):
            raise ValueError(f"padding must be in 0..{self.kernel - 1} (0 if transposed), not {self.padding}")
        if self.groups not in (1, 2):
            raise ValueError(f"groups must be 1 or 2, not {self.groups}")
        for name in ("height", "width", "n_in", "n_out"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name, n in (("n_in", self.n_in), ("n_out", self.n_out), ("n_stored", self.stored)):
            if n % self.groups:
                raise ValueError(f"{name} must be a multiple of groups = {self.groups}, not {n}")
        if self.stored < self.n_in:
            raise ValueError(f"n_stored must be at least n_in = {self.n_in}, not {self.n_stored}")
        if min(self.out_height, self.out_width) < 1:
            raise ValueError(
                f"height and width must hold the kernel of {self.kernel} with padding {self.padding}, "
                f"not {self.height} x {self.width}"
            )

    @property
    def stored(self) -> int:
        """Channels that each pixel has in memory."""
        return self.n_stored or self.n_in

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self._out_size(self.height)

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self._out_size(self.width)

    def _out_size(self, size: int) -> int:
        if self.transposed:
            return 2 * (size - 1) + self.kernel
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def n_macs(self) -> int:
        """Multiplications with something other than an inserted zero; products with padding count.

        A transposed layer's phases count over the same number of outputs as the hardware computes.
        """
        per_pixel = self.n_in * self.n_out // self.groups
        return per_pixel * sum(p.n_taps * p.height * p.width for p in phases(self))

    @property
    def n_planes(self) -> int:
        """8-bit planes of an activation."""
        return 2 if self.wide else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Output pixels that all meet the same taps: every pixel, or one in four of a transposed layer."""

    taps_y: tuple[int, ...]
    """Kernel row met by each successive input row."""
    taps_x: tuple[int, ...]
    height: int
    width: int
    padding_y: int
    padding_x: int
    y: int
    x: int
    """First output pixel."""
    step: int
    """Output pixels from one of the phase to the next."""
    stride: int
    """Input pixels between them."""

    @property
    def n_taps(self) -> int:
        """Taps of one output pixel."""
        return len(self.taps_y) * len(self.taps_x)


def phases(layer: Layer) -> list[Phase]:
    """One phase; of a transposed layer four, of 4, 2, 2 and 1 taps for a kernel of 3.

    Even output rows u = 2 p meet taps k = 0, 2, .. of input rows p - k / 2, odd ones the odd taps:
    convolutions of stride 1 whose taps run backwards, with as many rows of padding as taps, less one.
    """
    if not layer.transposed:
        taps, padding = tuple(range(layer.kernel)), layer.padding
        return [
            Phase(
                taps_y=taps, taps_x=taps, height=layer.out_height, width=layer.out_width,
                padding_y=padding, padding_x=padding, y=0, x=0, step=1, stride=layer.stride,
            )
        ]  # fmt: skip
    taps_of = [tuple(range(parity, layer.kernel, 2))[::-1] for parity in (0, 1)]
    return [
        Phase(
            taps_y=taps_of[y],
            taps_x=taps_of[x],
            height=(layer.out_height - y + 1) // 2,
            width=(layer.out_width - x + 1) // 2,
            padding_y=len(taps_of[y]) - 1,
            padding_x=len(taps_of[x]) - 1,
            y=y,
            x=x,
            step=2,
            stride=1,
        )
        for y in (0, 1)
        for x in (0, 1)
        if taps_of[y] and taps_of[x]
    ]
