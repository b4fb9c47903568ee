# SPDX-License-Identifier: MIT
"""Named lists of numbers in memory, beside maps: what operations share and rewrite."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.epilogue.config import SUMS, TABLE_BEATS, Table
from hw.systolic.layer import Layer


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryList:
    """Numbers of one type, one behind the other, the last axis fastest, low byte first."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    content: NDArray | None = None
    """What it begins with, int64 of ``shape``; None: zeros, unless another operation says more."""

    @property
    def kind(self) -> tuple:
        """What all who use the list must agree about."""
        return type(self).__name__, np.dtype(self.dtype).str, self.shape


@dataclass(frozen=True, kw_only=True, eq=False)
class TableList(MemoryList):
    """A table of the epilogue, uint16[5, n_channels] as :meth:`hw.epilogue.config.Table.words`.

    In memory tile by tile of channels, as its beats.
    """


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


def table_list(name: str, table: Table) -> TableList:
    """A table that begins with these numbers."""
    words = table.words()
    return TableList(name=name, dtype=np.dtype(np.uint16), shape=words.shape, content=words)


def weight_list(name: str, weights: NDArray[np.int8], layer: Layer) -> WeightList:
    """Weights that begin with these numbers."""
    return WeightList(
        name=name, dtype=np.dtype(np.int8), shape=weights.shape, content=weights.astype(np.int64), layer=layer
    )


def sums_list(name: str, channels: int) -> MemoryList:
    """int64[n_channels, 2]: each channel's sum of values and of products."""
    return MemoryList(name=name, dtype=np.dtype(np.int64), shape=(channels, SUMS))


def table_words(channels: int) -> tuple[int, int]:
    """Shape of a table's list."""
    return TABLE_BEATS, channels


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
