# SPDX-License-Identifier: MIT
"""Named lists of numbers in memory, beside maps: what operations share and rewrite."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from hw.epilogue.config import TABLE_BEATS
from hw.epilogue.lists import MemoryList, TableList
from hw.systolic.config import SystolicConfig
from hw.systolic.descriptor import bands_of, weight_rows
from hw.systolic.layer import Layer, Phase
from hw.systolic.layout import ALIGN_BYTES


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightList(MemoryList):
    """Weights of a convolution, int8[n_out, n_in / groups, kernel, kernel].

    In memory rows of a tile of outputs, as :func:`hw.systolic.descriptor.weight_rows` of this layer.
    """

    layer: Layer

    @property
    def kind(self) -> tuple:
        """The rows differ by layer."""
        return "WeightList", np.dtype(self.dtype).str, self.shape, self.layer


def weight_list(name: str, weights: NDArray[np.int8], layer: Layer) -> WeightList:
    """Weights that begin with these numbers."""
    return WeightList(
        name=name, dtype=np.dtype(np.int8), shape=weights.shape, content=weights.astype(np.int64), layer=layer
    )


def label_list(name: str) -> MemoryList:
    """A picture's class, uint16[1, 1]."""
    return MemoryList(name=name, dtype=np.dtype(np.uint16), shape=(1, 1))


def merged(lists: Iterable[MemoryList]) -> dict[str, MemoryList]:
    """Lists by name, with the content that one of those who use it gives.

    ValueError where two of them differ in type, shape, layer or content.
    """
    made: dict[str, MemoryList] = {}
    for new in lists:
        old = made.setdefault(new.name, new)
        if old.kind != new.kind:
            raise ValueError(f"list {new.name!r} must be {old.kind}, not {new.kind}")
        if old.content is None:
            made[new.name] = new
        elif new.content is not None and not np.array_equal(old.content, new.content):
            raise ValueError(f"list {new.name!r} must begin with one content, not two")
    return made


def initial(of: MemoryList) -> NDArray[np.int64]:
    """What the list begins with."""
    return np.zeros(of.shape, np.int64) if of.content is None else of.content.astype(np.int64)


def check_list(name: str, value: np.ndarray, of: MemoryList) -> None:
    """ValueError where a given content is of another shape or range."""
    bounds = np.iinfo(of.dtype)
    if value.shape != of.shape:
        raise ValueError(f"list {name!r} must be {list(of.shape)}, not {list(value.shape)}")
    if not (bounds.min <= int(value.min()) and int(value.max()) <= bounds.max):
        raise ValueError(f"list {name!r} must be in {bounds.min}..{bounds.max}")


Rows = Mapping[tuple[Phase, int], tuple[int, int]]
"""Of each phase and group of a layer: where its rows of weights begin, and how many they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ListPlace:
    """A list in memory."""

    address: int
    """A multiple of ALIGN_BYTES."""
    of: MemoryList
    at: NDArray[np.int64]
    """Of the list's shape: distance of each number's first byte from ``address``."""
    n_bytes: int
    """Of the whole list, with what lies between its numbers."""
    rows: Rows = field(default_factory=dict)
    """Of weights; distances from ``address``."""

    def read(self, memory: np.ndarray) -> np.ndarray:
        """int64 of the list's shape from memory, uint8[n]."""
        raw = np.stack([memory[at] for at in self._addresses()], axis=-1)
        return raw.view(self.of.dtype.newbyteorder("<"))[..., 0].astype(np.int64)

    def write(self, memory: np.ndarray, values: np.ndarray) -> None:
        """Puts numbers of the list's shape into memory; bytes between them stay."""
        for byte, at in enumerate(self._addresses()):
            memory[at] = values >> 8 * byte & 0xFF

    def _addresses(self) -> list[NDArray[np.int64]]:
        """Of each byte of the numbers."""
        return [self.address + self.at + byte for byte in range(self.of.dtype.itemsize)]


def placed(of: MemoryList, address: int, array: SystolicConfig) -> ListPlace:
    """The list at an address, as a core with this array has it."""
    lanes = array.columns
    if isinstance(of, WeightList):
        at, n_bytes, rows = _weight_places(of, array)
        return ListPlace(address=address, of=of, at=at, n_bytes=n_bytes, rows=rows)
    if isinstance(of, TableList):
        part, channel = np.ogrid[:TABLE_BEATS, : of.shape[1]]
        tile, lane = channel // lanes, channel % lanes
        at = ((tile * TABLE_BEATS + part) * lanes + lane) * of.dtype.itemsize
        n_bytes = TABLE_BEATS * _whole(of.shape[1], lanes) * of.dtype.itemsize
        return ListPlace(address=address, of=of, at=at, n_bytes=n_bytes)
    at = np.arange(prod(of.shape)).reshape(of.shape) * of.dtype.itemsize
    return ListPlace(address=address, of=of, at=at, n_bytes=prod(of.shape) * of.dtype.itemsize)


def _weight_places(of: WeightList, array: SystolicConfig) -> tuple[NDArray[np.int64], int, Rows]:
    """Where each weight lies, from where the lowering puts its number."""
    numbers = 1 + np.arange(prod(of.shape)).reshape(of.shape)
    at = np.zeros(of.shape, np.int64)
    rows, end = {}, 0
    for work in bands_of(of.layer, array)[0].works:
        if (work.phase, work.group) not in rows:
            made = weight_rows(numbers, work, of.layer, array)
            places = end + np.arange(made.size).reshape(made.shape)
            at.reshape(-1)[made[made > 0] - 1] = places[made > 0]
            rows[work.phase, work.group] = end, len(made)
            end += _whole(made.size, ALIGN_BYTES)
    return at, end, rows


def _whole(n: int, unit: int) -> int:
    return -(-n // unit) * unit
