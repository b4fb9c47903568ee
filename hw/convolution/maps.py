# SPDX-License-Identifier: MIT
"""How maps lie in memory: as the array reads them, or planar, for filter and side stream."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.systolic.config import QUAD_BYTES
from hw.systolic.layer import Layer
from hw.systolic.layout import ALIGN_BYTES, input_layout

from .config import MAP_UNIT_BYTES, ConvolutionConfig, mask_bytes
from .operations import MapShape
from .walk import Walk
from .writer import Format


@dataclass(frozen=True, kw_only=True, slots=True)
class Rectangle:
    """Pixels (y + step i, x + step j) of some tiles of channels."""

    y: int
    x: int
    step: int
    n_rows: int
    n_columns: int
    first_tile: int
    n_tiles: int

    @property
    def tile_beats(self) -> int:
        """Pixels of each tile."""
        return self.n_rows * self.n_columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A map in memory; a tile has as many channels as the array has columns."""

    address: int
    """Of its first byte, a multiple of ALIGN_BYTES."""
    shape: MapShape
    lanes: int
    """Channels of a tile."""
    format: Format
    is_planar: bool
    """Tile by tile; otherwise a pixel's channels lie together."""
    pixel_bytes: int
    row_bytes: int
    tile_bytes: int
    plane_bytes: int
    """Distances of pixels, rows, tiles and planes (of high and low bytes)."""
    n_bytes: int
    """Of the whole map."""

    def walk(self, of: Rectangle) -> Walk:
        """The elements of a rectangle: a tile's pixel where the map is planar, else the bytes of a pixel that
        belong to the tile, fewer of the last one."""
        n_bytes = last_bytes = self.pixel_bytes
        if not self.is_planar:
            last_tile = of.first_tile + of.n_tiles - 1
            n_bytes, last_bytes = self.lanes, min(self.lanes, self.pixel_bytes - last_tile * self.lanes)
        return Walk(
            base=self.address
            + of.first_tile * self.tile_bytes
            + of.y * self.row_bytes
            + of.x * self.pixel_bytes,
            n_tiles=of.n_tiles,
            tile_stride=self.tile_bytes,
            n_rows=of.n_rows,
            row_stride=of.step * self.row_bytes,
            n_columns=of.n_columns,
            column_stride=of.step * self.pixel_bytes,
            n_bytes=n_bytes,
            last_bytes=last_bytes,
        )

    def read(self, memory: np.ndarray) -> np.ndarray:
        """int64[height, width, channels] from memory, uint8[n]."""
        if self.format == Format.BITS:
            at, bit = self._bits()
            return memory[at].astype(np.int64) >> bit & 1
        planes = [memory[at].astype(np.int64) for at in self._addresses()]
        value = sum(plane << 8 * number for number, plane in enumerate(planes))
        half = 1 << (8 * len(planes) - 1)
        return (value + half) % (2 * half) - half

    def write(self, memory: np.ndarray, values: np.ndarray) -> None:
        """Puts int64[height, width, channels] into memory; what lies between channels stays."""
        if self.format == Format.BITS:
            at, bit = self._bits()
            np.bitwise_and.at(memory, at, ~(1 << bit) & 0xFF)
            np.bitwise_or.at(memory, at, values << bit)
            return
        for number, at in enumerate(self._addresses()):
            memory[at] = values >> 8 * number & 0xFF

    def _pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each element the first byte of its pixel and tile, and its channel in the tile."""
        y, x, c = np.ogrid[: self.shape.height, : self.shape.width, : self.shape.channels]
        tile, lane = c // self.lanes, c % self.lanes
        return self.address + tile * self.tile_bytes + y * self.row_bytes + x * self.pixel_bytes, lane

    def _bits(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each element of a mask its byte, and which bit of it."""
        at, lane = self._pixels()
        return at + lane // 8, np.broadcast_to(lane % 8, at.shape).astype(np.uint8)

    def _addresses(self) -> list[np.ndarray]:
        """Of each element's low byte, and of its high byte where there is one: int64[height, width, c]."""
        at, lane = self._pixels()
        match self.format:
            case Format.BYTES:
                return [at + lane]
            case Format.HALVES:
                return [at + 2 * lane, at + 2 * lane + 1]
        return [at + lane + self.plane_bytes, at + lane]


def planar(address: int, shape: MapShape, config: ConvolutionConfig) -> Place:
    """Tile, row, column, channel, 16 or 8 bits each, or, of masks, one: what all but the array read.

    Tiles are filled up to the columns of the array, a single one of numbers to a multiple of 4 bytes.
    """
    lanes, n_tiles = config.array.columns, -(-shape.channels // config.array.columns)
    formats = {1: Format.BITS, 8: Format.BYTES, 16: Format.HALVES}
    pixel_bytes = mask_bytes(lanes)
    if (n_bytes := shape.bits // 8) > 0:
        pixel_bytes = min(n_bytes * lanes, -(-shape.channels * n_bytes // MAP_UNIT_BYTES) * MAP_UNIT_BYTES)
    tile_bytes = _aligned(shape.height * shape.width * pixel_bytes)
    return Place(
        address=address,
        shape=shape,
        lanes=lanes,
        format=formats[shape.bits],
        is_planar=True,
        pixel_bytes=pixel_bytes,
        row_bytes=shape.width * pixel_bytes,
        tile_bytes=tile_bytes,
        plane_bytes=0,
        n_bytes=n_tiles * tile_bytes,
    )


def for_array(address: int, shape: MapShape, readers: Sequence[Layer], config: ConvolutionConfig) -> Place:
    """As all ``readers`` want it; without one of them, rows of pixels without gaps.

    ValueError where two of them want it differently, or one wants groups apart.
    """
    quads = -(-shape.channels // QUAD_BYTES)
    row_bytes = shape.width * quads * QUAD_BYTES
    if readers:
        layouts = {input_layout(layer, config.array) for layer in readers}
        if len(layouts) > 1:
            raise ValueError(f"layers that read one map must want one layout, not {len(layouts)}")
        layout = layouts.pop()
        if any(layer.groups > 1 and layer.stored // layer.groups % QUAD_BYTES for layer in readers):
            raise ValueError(
                f"channels of each group must be a multiple of {QUAD_BYTES}, not those of {shape}"
            )
        row_bytes = layout.row_bytes
    plane_bytes = _aligned(shape.height * row_bytes)
    return Place(
        address=address,
        shape=shape,
        lanes=config.array.columns,
        format=Format.PLANES if shape.bits == 16 else Format.BYTES,
        is_planar=False,
        pixel_bytes=quads * QUAD_BYTES,
        row_bytes=row_bytes,
        tile_bytes=config.array.columns,
        plane_bytes=plane_bytes,
        n_bytes=plane_bytes * (shape.bits // 8),
    )


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES
