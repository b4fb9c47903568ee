# SPDX-License-Identifier: MIT
"""Layers, and the descriptors that compute them. Imports numpy only."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .config import OPERAND_BITS, SystolicConfig

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """One beat of ``i_descriptor``: a rectangle of output pixels with all output channels of a group.

    Output pixel (i, j) of the rectangle at tap (a, b) meets input pixel (origin_y + stride i + a,
    origin_x + stride j + b), zero outside of in_height x in_width, and belongs at (y + step i, x + step j).
    """

    half: int
    """Half of the buffer that holds the activations."""
    release: int
    """Words after which the half, which nobody needs any more, becomes free; 0: it stays."""
    address: int
    """Word of input pixel (origin_y, origin_x), which may lie outside, modulo the half's size."""
    row_words: int
    pixel_words: int
    plane_words: int
    """Words from a pixel to the one below it, to the one beside it, and to its plane of low bytes."""
    wide: bool
    in_height: int
    in_width: int
    origin_y: int
    origin_x: int
    stride: int
    kernel_height: int
    kernel_width: int
    n_in: int
    n_out: int
    out_height: int
    out_width: int
    y: int
    x: int
    step: int
    channel: int
    """Number of the first output channel."""

    @property
    def n_pixels(self) -> int:
        """Output pixels of one pass."""
        return self.out_height * self.out_width


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A descriptor, and which weights it meets."""

    descriptor: Descriptor
    phase: Phase
    group: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Input rows that lie in a half of the buffer together, and everything that is computed from them."""

    half: int
    first_row: int
    n_rows: int
    n_words: int
    works: tuple[Work, ...]
    """The last one frees the half."""


def pixel_words(layer: Layer, config: SystolicConfig) -> int:
    """Words of one pixel: each group's channels begin a word of their own."""
    return layer.groups * -(-layer.stored // layer.groups // config.rows)


def image_words(activations: np.ndarray, layer: Layer, config: SystolicConfig) -> np.ndarray:
    """A band of a layer's input as it lies in a half: plane, row, column, group, channels by R.

    Parameters
    ----------
    activations : int64[n_rows, width, stored], signed of 8 bits (16 if wide)

    Returns
    -------
    int64[n_words, R], bytes in 0..255; the high plane first, lanes without a channel 0
    """
    per_pixel = pixel_words(layer, config)
    by_group = activations.reshape(*activations.shape[:2], layer.groups, -1)
    padded = np.zeros((*by_group.shape[:3], per_pixel // layer.groups * config.rows), dtype=np.int64)
    padded[..., : by_group.shape[3]] = by_group
    planes = [padded >> OPERAND_BITS, padded] if layer.wide else [padded]
    mask = (1 << OPERAND_BITS) - 1
    return np.concatenate([plane.reshape(-1, config.rows) & mask for plane in planes])


def bands_of(layer: Layer, config: SystolicConfig, *, half: int = 0) -> list[Band]:
    """The bands of a layer, the first one in ``half``, the others in turn.

    Each has as many rows of output as the input of one half allows; rows that two bands need are loaded for
    both. In a band the output is cut to rectangles of at most ``n_accumulators`` pixels, full rows where they
    fit. ValueError where the layer is larger than the built array takes, or one row of output needs more
    input than a half holds.
    """
    for name, value, most in (
        ("height", layer.height, config.max_size),
        ("width", layer.width, config.max_size),
        ("n_in", layer.n_in // layer.groups, config.max_channels),
        ("n_out", layer.n_out // layer.groups, config.max_channels),
    ):
        if value > most:
            raise ValueError(f"{name} must be at most {most}, not {value}")
    made: list[Band] = []
    top, last = 0, max(phase.height for phase in phases(layer))
    while top < last:
        n_rows = _rows_that_fit(layer, top, last, config)
        made.append(_band(layer, top, top + n_rows, (half + len(made)) % 2, config))
        top += n_rows
    return made


def _rows_that_fit(layer: Layer, top: int, last: int, config: SystolicConfig) -> int:
    """Most rows of output, from ``top`` on, whose input fits in a half; by bisection."""
    words_of_row = pixel_words(layer, config) * layer.width * layer.n_planes
    fits = 0
    too_many = last - top + 1
    while too_many - fits > 1:
        n_rows = (fits + too_many) // 2
        first, end = _input_rows(layer, top, top + n_rows)
        if (end - first) * words_of_row <= config.n_words:
            fits = n_rows
        else:
            too_many = n_rows
    if not fits:
        first, end = _input_rows(layer, top, top + 1)
        raise ValueError(
            f"n_words must hold the input of one row of output, {(end - first) * words_of_row} words, "
            f"not {config.n_words}"
        )
    return fits


def _input_rows(layer: Layer, top: int, bottom: int) -> tuple[int, int]:
    """First input row, and the one after the last, that rows ``top``..``bottom`` - 1 of all phases meet."""
    first = min(top * phase.stride - phase.padding_y for phase in phases(layer))
    end = max((bottom - 1) * p.stride - p.padding_y + len(p.taps_y) for p in phases(layer))
    first = min(max(0, first), layer.height - 1)  # rows of nothing but padding still get one
    return first, max(first + 1, min(layer.height, end))


def _band(layer: Layer, top: int, bottom: int, half: int, config: SystolicConfig) -> Band:
    first, end = _input_rows(layer, top, bottom)
    n_words = (end - first) * layer.width * pixel_words(layer, config) * layer.n_planes
    band = Band(half=half, first_row=first, n_rows=end - first, n_words=n_words, works=())
    works = [
        Work(descriptor=_descriptor(layer, phase, group, rectangle, band, config), phase=phase, group=group)
        for group in range(layer.groups)
        for phase in phases(layer)
        for rectangle in _rectangles(phase, top, bottom, config.n_accumulators)
    ]
    works[-1] = replace(works[-1], descriptor=replace(works[-1].descriptor, release=n_words))
    return replace(band, works=tuple(works))


Rectangle = tuple[int, int, int, int]
"""Top, left, height, width, in pixels of a phase."""


def _rectangles(phase: Phase, top: int, bottom: int, most: int) -> Iterator[Rectangle]:
    bottom = min(bottom, phase.height)
    width = min(phase.width, most)
    height = min(bottom - top, most // width)
    for y in range(top, bottom, max(1, height)):
        for x in range(0, phase.width, width):
            yield y, x, min(height, bottom - y), min(width, phase.width - x)


def _descriptor(
    layer: Layer, phase: Phase, group: int, rectangle: Rectangle, band: Band, config: SystolicConfig
) -> Descriptor:
    top, left, height, width = rectangle
    per_pixel = pixel_words(layer, config)
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    origin_y = top * phase.stride - phase.padding_y - band.first_row
    origin_x = left * phase.stride - phase.padding_x
    first = (origin_y * layer.width + origin_x) * per_pixel + group * (per_pixel // layer.groups)
    return Descriptor(
        half=band.half,
        release=0,
        address=first % config.n_words,
        row_words=layer.width * per_pixel % config.n_words,
        pixel_words=per_pixel % config.n_words,
        plane_words=band.n_rows * layer.width * per_pixel % config.n_words,
        wide=layer.wide,
        in_height=band.n_rows,
        in_width=layer.width,
        origin_y=origin_y,
        origin_x=origin_x,
        stride=phase.stride,
        kernel_height=len(phase.taps_y),
        kernel_width=len(phase.taps_x),
        n_in=n_in,
        n_out=n_out,
        out_height=height,
        out_width=width,
        y=phase.y + phase.step * top,
        x=phase.x + phase.step * left,
        step=phase.step,
        channel=group * n_out,
    )


def tile_rows(work: Work, config: SystolicConfig) -> list[int]:
    """Rows of each tile of weights in the order of the passes: R, fewer of the last channels."""
    n_in = work.descriptor.n_in
    of_channels = [min(config.rows, n_in - start) for start in range(0, n_in, config.rows)]
    return of_channels * (work.phase.n_taps * -(-work.descriptor.n_out // config.columns))


def weight_rows(weights: np.ndarray, work: Work, layer: Layer, config: SystolicConfig) -> np.ndarray:
    """Rows of weights as the descriptor's passes need them.

    Parameters
    ----------
    weights : int64[n_out or more, n_in / groups or more, kernel, kernel]
        Of more channels the first of each group are taken. A transposed layer has the same axes.

    Returns
    -------
    int64[sum of :func:`tile_rows`, C], signed; columns without a channel 0
    """
    per_group = len(weights) // layer.groups
    n_in, n_out = work.descriptor.n_in, work.descriptor.n_out
    n_tiles = -(-n_out // config.columns)
    used = np.zeros(
        (n_tiles * config.columns, n_in, len(work.phase.taps_y), len(work.phase.taps_x)), np.int64
    )
    of_group = weights[work.group * per_group : work.group * per_group + n_out, :n_in]
    used[:n_out] = of_group[:, :, work.phase.taps_y][:, :, :, work.phase.taps_x]
    by_tile = used.reshape(n_tiles, config.columns, *used.shape[1:])
    return by_tile.transpose(0, 3, 4, 2, 1).reshape(-1, config.columns)
