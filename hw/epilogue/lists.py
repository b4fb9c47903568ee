# SPDX-License-Identifier: MIT
"""Lists of numbers in memory that have a name, and those that the epilogue reads and writes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import SUMS, Table


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


def table_list(name: str, table: Table) -> TableList:
    """A table that begins with these numbers."""
    words = table.words()
    return TableList(name=name, dtype=np.dtype(np.uint16), shape=words.shape, content=words)


def sums_list(name: str, channels: int) -> MemoryList:
    """int64[n_channels, 2]: each channel's sum of values and of products."""
    return MemoryList(name=name, dtype=np.dtype(np.int64), shape=(channels, SUMS))
