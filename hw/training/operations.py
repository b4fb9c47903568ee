# SPDX-License-Identifier: MIT
"""The kernels as operations between maps and lists that have names. Imports numpy only.

A **master** is a list int32[..., 2]: of each element the weight, then its momentum.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hw.epilogue.config import TABLE_BEATS
from hw.epilogue.lists import MemoryList, TableList, sums_list

from .config import GROUP, Image, Norm, NormBack
from .config import Update as UpdateJob


class Gradient(IntEnum):
    """Where an update finds its gradient."""

    SUMS = 0
    """The first sum of each channel of a list that an epilogue reduced; it must fit 32 bits."""
    LIST = 1
    """int32[n_channels], as :class:`NormaliseGamma` writes it."""
    MAP = 2
    """A map of 16 bits, or several, each of one column."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """Descent with momentum; ``image`` says what becomes of the weights for those who read them."""

    name: str
    master: str
    shape: tuple[int, ...]
    """(channels,), or (height, width, channels) of a map's gradient: the master has one axis more."""
    gradient: str | tuple[str, ...]
    """Several maps (width, 1, channels), as products of transposed maps are, stand for the rows of one."""
    gradient_from: Gradient = Gradient.SUMS
    job: UpdateJob
    image: str | None = None
    """A named table, whose bias (Image.BIAS) or scale of reader 0 (Image.HALVES) is written; or named weights
    int8[n_out, n_in, k, k] (Image.BYTES), of a master (k k, n_in, n_out)."""
    start: NDArray[np.integer] | None = None
    """Weights to begin with, of ``shape``; momentum begins with 0."""

    def __post_init__(self) -> None:
        if len(self.shape) != (3 if self.gradient_from == Gradient.MAP else 1):
            raise ValueError(
                f"{self.name}: shape must have 1 axis, or 3 where the gradient is a map, not {self.shape}"
            )
        if not isinstance(self.gradient, str):
            if self.gradient_from != Gradient.MAP:
                raise ValueError(f"{self.name}: gradient must be one list, not {self.gradient}")
            if len(self.gradient) != self.shape[0]:
                raise ValueError(
                    f"{self.name}: gradient must be {self.shape[0]} maps, not {len(self.gradient)}"
                )
        if (self.image is None) != (self.job.image == Image.NONE):
            raise ValueError(f"{self.name}: image must be named if there is one, and only then")
        if (self.job.image == Image.BYTES) != (self.gradient_from == Gradient.MAP and self.image is not None):
            raise ValueError(f"{self.name}: image must be bytes of a map's master, not {self.job.image.name}")
        unit = max(self.job.image.per_beat, 2 if self.gradient_from == Gradient.MAP else 1)
        if self.shape[-1] % unit:
            raise ValueError(f"{self.name}: channels must be a multiple of {unit}, not {self.shape[-1]}")

    @property
    def gradients(self) -> tuple[str, ...]:
        """Names of maps or of the list."""
        return (self.gradient,) if isinstance(self.gradient, str) else self.gradient

    @property
    def maps(self) -> tuple[str, ...]:
        """Those of the gradients that are maps."""
        return self.gradients if self.gradient_from == Gradient.MAP else ()

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of each of ``maps``."""
        height, width, channels = self.shape
        return (height, width, channels) if isinstance(self.gradient, str) else (width, 1, channels)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written; named weights are their layer's."""
        made = [master_list(self.master, self.shape, self.start)]
        if self.gradient_from == Gradient.SUMS:
            made.append(sums_list(self.gradients[0], self.shape[0]))
        elif self.gradient_from == Gradient.LIST:
            made.append(_words(self.gradients[0], self.shape))
        if self.image is not None and self.job.image != Image.BYTES:
            made.append(_table(self.image, self.shape[-1]))
        return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalise:
    """Group norm: from the sums of a map to the table of the pass that normalises it."""

    name: str
    channels: int
    sums: str
    """Of the map and of its squares."""
    table: str
    """Whose multiplier and bias are written."""
    state: str
    """int32[n_channels, 2], for the gradient."""
    beta: str
    """A master."""
    gamma: str | None = None
    """A master; None: 1."""
    job: Norm
    beta_start: NDArray[np.integer] | None = None
    gamma_start: NDArray[np.integer] | None = None
    """Weights that the masters begin with, where no update says so."""

    def __post_init__(self) -> None:
        _check_groups(self.name, self.channels)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        masters = ((self.gamma, self.gamma_start), (self.beta, self.beta_start))
        return [
            sums_list(self.sums, self.channels),
            _table(self.table, self.channels),
            _words(self.state, (self.channels, 2)),
            *(master_list(name, (self.channels,), start) for name, start in masters if name is not None),
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class NormaliseBackward:
    """Group norm's gradient: from sums of g and g z to the tables of the two passes that make it."""

    name: str
    channels: int
    sums: str
    """Of g and of g z."""
    state: str
    side_table: str
    """Of the pass over z, whose output is the second one's residual: its scale of reader 0 is written."""
    table: str
    """Of the pass over gamma g: its multiplier and bias are written."""
    job: NormBack

    def __post_init__(self) -> None:
        _check_groups(self.name, self.channels)
        if self.side_table == self.table:
            raise ValueError(f"{self.name}: tables must be two, not {self.table!r} twice")

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return [
            sums_list(self.sums, self.channels),
            _words(self.state, (self.channels, 2)),
            _table(self.side_table, self.channels),
            _table(self.table, self.channels),
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class NormaliseGamma:
    """Gradient of a group norm's gamma, int32[n_channels]."""

    name: str
    channels: int
    sums: str
    """Of g and of g z."""
    state: str
    gradient: str

    def __post_init__(self) -> None:
        _check_groups(self.name, self.channels)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return [
            sums_list(self.sums, self.channels),
            _words(self.state, (self.channels, 2)),
            _words(self.gradient, (self.channels,)),
        ]


KernelOperation = Update | Normalise | NormaliseBackward | NormaliseGamma


def master_list(name: str, shape: tuple[int, ...], start: NDArray[np.integer] | None = None) -> MemoryList:
    """Weights and momenta, int32[*shape, 2]."""
    content = None if start is None else np.stack([start, np.zeros_like(start)], -1).astype(np.int64)
    return MemoryList(name=name, dtype=np.dtype(np.int32), shape=(*shape, 2), content=content)


def _words(name: str, shape: tuple[int, ...]) -> MemoryList:
    return MemoryList(name=name, dtype=np.dtype(np.int32), shape=shape)


def _table(name: str, channels: int) -> TableList:
    return TableList(name=name, dtype=np.dtype(np.uint16), shape=(TABLE_BEATS, channels))


def _check_groups(name: str, channels: int) -> None:
    if channels < GROUP or channels % GROUP:
        raise ValueError(f"{name}: channels must be a multiple of {GROUP}, not {channels}")
