# SPDX-License-Identifier: MIT
"""How a layer's input lies in memory and in the buffer, and which taps of the kernel share a pass."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from .config import OPERAND_BITS, QUAD_BYTES, SystolicConfig
from .layer import Layer, phases

ALIGN_BYTES = 64
"""Planes, and what is loaded of them, begin at multiples of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputLayout:
    """A map as its reader wants it: plane, row, column, group, channel, in **quads** of four channels.

    Channel c of group g is byte c % 4 of a pixel's quad g x group_quads + c // 4. What fills a group's last
    quad, a row beyond its pixels and a plane beyond its rows may have any value.
    """

    group_quads: int
    pixel_quads: int
    row_quads: int
    """From a pixel to the one below it; at least width x pixel_quads."""
    n_rows: int

    @property
    def row_bytes(self) -> int:
        """From a row to the next one."""
        return self.row_quads * QUAD_BYTES

    @property
    def plane_bytes(self) -> int:
        """From the plane of high bytes to that of low bytes; of one plane its size."""
        return -(-self.n_rows * self.row_bytes // ALIGN_BYTES) * ALIGN_BYTES


@cache
def input_layout(layer: Layer, config: SystolicConfig) -> InputLayout:
    """The layout in which a layer needs the fewest passes; of several the smallest.

    Only the length of a row is free, by up to R - 4 bytes: it decides which taps of two kernel rows lie in
    one bank.
    """
    group_quads = -(-layer.stored // layer.groups // QUAD_BYTES)
    pixel_quads = layer.groups * group_quads
    used_quads = -(-layer.n_in // layer.groups // QUAD_BYTES)
    shortest = layer.width * pixel_quads

    def vectors(row_quads: int) -> int:
        return sum(
            len(tile_ends((len(p.taps_y), len(p.taps_x), used_quads), (row_quads, pixel_quads), config))
            * (p.height * p.width)
            for p in phases(layer)
        )

    row_quads = min(range(shortest, shortest + config.n_banks), key=vectors)
    return InputLayout(
        group_quads=group_quads, pixel_quads=pixel_quads, row_quads=row_quads, n_rows=layer.height
    )


def tile_ends(shape: tuple[int, int, int], quads: tuple[int, int], config: SystolicConfig) -> tuple[int, ...]:
    """Where the tiles of a kernel end, counted in quads: each has as many as lie in banks of their own.

    The quads of an output pixel follow one another by kernel row, kernel column, channel; a tile takes them
    until one meets a bank that the tile already reads.

    Parameters
    ----------
    shape : kernel rows, kernel columns, quads of a tap
    quads : from a kernel row and from a kernel column to the next
    """
    row_quads, pixel_quads = (n % config.n_banks for n in quads)
    return _tile_ends(shape, (row_quads, pixel_quads), config.n_banks)


@cache
def _tile_ends(shape: tuple[int, int, int], quads: tuple[int, int], n_banks: int) -> tuple[int, ...]:
    y, x, channel = np.ix_(*map(np.arange, shape))
    banks = (y * quads[0] + x * quads[1] + channel) % n_banks
    ends, taken = [], 0
    for place, bank in enumerate(banks.ravel().tolist()):
        if taken >> bank & 1:
            ends.append(place)
            taken = 0
        taken |= 1 << bank
    return (*ends, banks.size)


def image_bytes(activations: np.ndarray, layer: Layer, config: SystolicConfig) -> np.ndarray:
    """A layer's input as it lies in memory, what may have any value 0.

    Parameters
    ----------
    activations : int64[height, width, stored], signed of 8 bits (16 if wide)

    Returns
    -------
    uint8[n_planes x plane_bytes], the plane of high bytes first
    """
    layout = input_layout(layer, config)
    by_group = activations.reshape(layer.height, layer.width, layer.groups, -1)
    padded = np.zeros((*by_group.shape[:3], layout.group_quads * QUAD_BYTES), dtype=np.int64)
    padded[..., : by_group.shape[3]] = by_group
    rows = padded.reshape(layer.height, -1)
    planes = np.zeros((layer.n_planes, layout.plane_bytes), dtype=np.uint8)
    of_rows = planes[:, : layer.height * layout.row_bytes].reshape(layer.n_planes, layer.height, -1)
    for plane, low_bits in enumerate(range(OPERAND_BITS * (layer.n_planes - 1), -1, -OPERAND_BITS)):
        of_rows[plane, :, : rows.shape[1]] = rows >> low_bits & 0xFF
    return planes.ravel()
