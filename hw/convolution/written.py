# SPDX-License-Identifier: MIT
"""What is written, job by job."""

from dataclasses import dataclass

from .maps import Rectangle
from .operations import SumsOperation
from .walk import Walk


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """What one job of the epilogue writes: a rectangle of each of an operation's maps."""

    operation: SumsOperation
    rectangle: Rectangle


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenWords:
    """What a job of the kernels writes: to lists, for one reader or the other."""

    readers: tuple[int, ...]
    """Whom each word or element is for, in order."""
    outputs: tuple[tuple[int, Walk], ...]
    """Reader, walk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenSums:
    """The list that is written behind an operation's last job."""

    name: str
    walk: Walk
