# SPDX-License-Identifier: MIT
"""The descriptors that compute a layer, and what they meet: bands of words, rows of weights."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .config import QUAD_BYTES, SystolicConfig
from .layer import Layer, Phase, phases
from .layout import ALIGN_BYTES, InputLayout, input_layout, tile_ends

__all__ = [
    "Band", "Descriptor", "Layer", "Work", "band_words", "bands_of", "payload", "tile_quads", "tile_rows",
    "weight_rows",
]  # fmt: skip


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
    """First quad of input pixel (origin_y, origin_x), which may lie outside, modulo the half's size."""
    row_quads: int
    pixel_quads: int
    """Quads from a pixel to the one below it and to the one beside it, modulo the half's size."""
    plane_words: int
    """Words from a pixel to its plane of low bytes."""
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


def payload(descriptor: Descriptor, config: SystolicConfig) -> dict[str, Any]:
    """The fields as :func:`hw.systolic.tiles.descriptor_layout` has them.

    Stride and step count from 0, numbers of quads are a bank and a word.
    """
    fields: dict[str, Any] = asdict(descriptor)
    for name in ("stride", "step"):
        fields[name] -= 1
    for name in ("address", "row_quads", "pixel_quads"):
        word, bank = divmod(fields[name], config.n_banks)
        fields[name] = {"bank": bank, "word": word}
    return fields


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
    first_byte: int
    """Of each plane's bytes the first one that is loaded; a multiple of ALIGN_BYTES."""
    plane_words: int
    """Words loaded of each plane, one plane after the other."""
    n_words: int
    works: tuple[Work, ...]
    """The last one frees the half."""


def band_words(image: np.ndarray, band: Band, layout: InputLayout, config: SystolicConfig) -> np.ndarray:
    """What a band's load brings: uint8[n_words, R] of an image as :func:`hw.systolic.layout.image_bytes`.

    Where R does not divide ALIGN_BYTES, the last word may reach beyond a plane: zeros.
    """
    n_bytes = band.plane_words * config.rows
    planes = image.reshape(-1, layout.plane_bytes)[:, band.first_byte : band.first_byte + n_bytes]
    return np.pad(planes, ((0, 0), (0, n_bytes - planes.shape[1]))).reshape(-1, config.rows)


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

    def n_words(n_rows: int) -> int:
        return layer.n_planes * _loaded(layer, _input_rows(layer, top, top + n_rows), config)[1]

    fits = 0
    too_many = last - top + 1
    while too_many - fits > 1:
        n_rows = (fits + too_many) // 2
        if n_words(n_rows) <= config.n_words:
            fits = n_rows
        else:
            too_many = n_rows
    if not fits:
        raise ValueError(
            f"n_words must hold the input of one row of output, {n_words(1)} words, not {config.n_words}"
        )
    return fits


def _loaded(layer: Layer, rows: tuple[int, int], config: SystolicConfig) -> tuple[int, int]:
    """First byte, and words, that are loaded of each plane for the sake of some rows."""
    row_bytes = input_layout(layer, config).row_bytes
    first_byte = rows[0] * row_bytes // ALIGN_BYTES * ALIGN_BYTES
    return first_byte, -(-(rows[1] * row_bytes - first_byte) // config.rows)


def _input_rows(layer: Layer, top: int, bottom: int) -> tuple[int, int]:
    """First input row, and the one after the last, that rows ``top``..``bottom`` - 1 of all phases meet."""
    first = min(top * phase.stride - phase.padding_y for phase in phases(layer))
    end = max((bottom - 1) * p.stride - p.padding_y + len(p.taps_y) for p in phases(layer))
    first = min(max(0, first), layer.height - 1)  # rows of nothing but padding still get one
    return first, max(first + 1, min(layer.height, end))


def _band(layer: Layer, top: int, bottom: int, half: int, config: SystolicConfig) -> Band:
    first, end = _input_rows(layer, top, bottom)
    first_byte, plane_words = _loaded(layer, (first, end), config)
    band = Band(
        half=half,
        first_row=first,
        n_rows=end - first,
        first_byte=first_byte,
        plane_words=plane_words,
        n_words=layer.n_planes * plane_words,
        works=(),
    )
    works = [
        Work(descriptor=_descriptor(layer, phase, group, rectangle, band, config), phase=phase, group=group)
        for group in range(layer.groups)
        for phase in phases(layer)
        for rectangle in _rectangles(phase, top, bottom, config.n_accumulators)
    ]
    works[-1] = replace(works[-1], descriptor=replace(works[-1].descriptor, release=band.n_words))
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
    layout = input_layout(layer, config)
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    origin_y = top * phase.stride - phase.padding_y - band.first_row
    origin_x = left * phase.stride - phase.padding_x
    of_origin = origin_y * layout.row_quads + origin_x * layout.pixel_quads + group * layout.group_quads
    of_band = (band.first_row * layout.row_bytes - band.first_byte) // QUAD_BYTES
    n_quads = config.n_words * config.n_banks
    return Descriptor(
        half=band.half,
        release=0,
        address=(of_band + of_origin) % n_quads,
        row_quads=layout.row_quads % n_quads,
        pixel_quads=layout.pixel_quads % n_quads,
        plane_words=band.plane_words % config.n_words,
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


def tile_quads(work: Work, config: SystolicConfig) -> list[int]:
    """Quads up to the end of each tile of weights; the same tiles serve every C output channels."""
    d = work.descriptor
    shape = (d.kernel_height, d.kernel_width, -(-d.n_in // QUAD_BYTES))
    return list(tile_ends(shape, (d.row_quads, d.pixel_quads), config))


def tile_rows(work: Work, config: SystolicConfig) -> list[int]:
    """Rows of each tile of weights in the order of the passes: at most R, only those that are used."""
    d = work.descriptor
    taps, rest = np.divmod([0, *tile_quads(work, config)], -(-d.n_in // QUAD_BYTES))
    until = taps * d.n_in + rest * QUAD_BYTES
    return np.diff(until).tolist() * -(-d.n_out // config.columns)


def weight_rows(weights: np.ndarray, work: Work, layer: Layer, config: SystolicConfig) -> np.ndarray:
    """Rows of weights as the descriptor's passes need them: by C outputs, kernel row, column, input channel.

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
