# SPDX-License-Identifier: MIT
"""What walks ask memory for, and what they write, in numpy."""

from collections.abc import Iterable, Iterator

import numpy as np

from .config import mask_bytes
from .walk import Walk
from .writer import Format


def addresses(walk: Walk) -> np.ndarray:
    """int64[n_elements]: byte address of each element."""
    grid = np.add.outer(np.arange(walk.n_tiles) * walk.tile_stride, np.arange(walk.n_rows) * walk.row_stride)
    return (walk.base + np.add.outer(grid, np.arange(walk.n_columns) * walk.column_stride)).ravel()


def lengths(walk: Walk) -> np.ndarray:
    """int64[n_elements]: bytes of each element."""
    of_tile = np.full(walk.n_tiles, walk.n_bytes)
    of_tile[-1] = walk.last_bytes or walk.n_bytes
    return np.repeat(of_tile, walk.n_rows * walk.n_columns)


def steps(walk: Walk, bus_bytes: int) -> np.ndarray:
    """int64[n_steps]: the bus word of each step of a walk to read or write, a step for each word of each
    element."""
    at = addresses(walk)
    first, end = at // bus_bytes, -(-(at + lengths(walk)) // bus_bytes)
    return np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])


def requests(walk: Walk, bus_bytes: int) -> np.ndarray:
    """int64[n]: bus words asked for, in order."""
    words = steps(walk, bus_bytes)
    return words[np.append(True, np.diff(words) != 0)]


Piece = tuple[int, bytes, bool]
"""Byte address, bytes, and whether they are the last of their walk."""


def pieces(walk: Walk, lanes: np.ndarray, format_: Format, plane_stride: int = 0) -> Iterator[list[Piece]]:
    """What each element of a walk writes: a piece, two of a format with planes.

    Parameters
    ----------
    lanes : int64[n_elements, C], each signed of 16 bits, of a mask 0 or 1
    """
    low, high = (lanes & 0xFF).astype(np.uint8), (lanes >> 8 & 0xFF).astype(np.uint8)
    halves = np.stack([low, high], axis=2).reshape(len(lanes), -1)
    bits = np.packbits(low & 1, axis=1, bitorder="little")
    bits = np.pad(bits, ((0, 0), (0, mask_bytes(lanes.shape[1]) - bits.shape[1])))
    planes = {
        Format.BYTES: [low],
        Format.HALVES: [halves],
        Format.PLANES: [high, low],
        Format.BITS: [bits],
    }[format_]
    last = walk.n_elements - 1
    for number, (at, n) in enumerate(zip(addresses(walk), lengths(walk), strict=True)):
        yield [
            (int(at) + p * plane_stride, plane[number, :n].tobytes(), number == last and p == len(planes) - 1)
            for p, plane in enumerate(planes)
        ]


Write = tuple[int, bytes, int]
"""Bus word, its bytes (0 where not written), and a bit for each byte that is."""


def writes(parts: Iterable[tuple[int, Piece]], bus_bytes: int) -> Iterator[Write]:
    """Bus writes of pieces, each with its reader, in order: see :class:`hw.convolution.writer.Writer`."""
    waiting: dict[int, tuple[int, np.ndarray, int]] = {}
    for reader, (address, content, ends) in parts:
        for word in range(address // bus_bytes, -(-(address + len(content)) // bus_bytes)):
            if reader in waiting and waiting[reader][0] != word:
                yield _write(waiting.pop(reader))
            _, data, strobe = waiting.get(reader, (word, np.zeros(bus_bytes, np.uint8), 0))
            for at in range(
                max(address, word * bus_bytes), min(address + len(content), (word + 1) * bus_bytes)
            ):
                data[at % bus_bytes] = content[at - address]
                strobe |= 1 << at % bus_bytes
            waiting[reader] = word, data, strobe
        if ends:
            yield _write(waiting.pop(reader))


def _write(waiting: tuple[int, np.ndarray, int]) -> Write:
    word, data, strobe = waiting
    return word, data.tobytes(), strobe
