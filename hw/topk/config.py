# SPDX-License-Identifier: MIT
"""Shape and pipeline of the top-k engine; RTL, golden model and cycle model all read it."""

from dataclasses import dataclass
from typing import ClassVar

LFSR_BITS = 16
LFSR_TAPS = (15, 14, 12, 3)
"""Bits whose parity is shifted in: x^16 + x^15 + x^13 + x^4 + 1, period 65,535."""

FILTER_LATENCY_CYCLES = 4
"""Line read by the filter to its elements on the output: read, compare, zero eliminator, output register."""

PART_LATENCY_CYCLES = 3
"""Line compared to its elements at the head of FIFO_L or FIFO_R: compare, zero eliminator, FIFO."""

DECIDE_CYCLES = 1
"""Between the last line of a pass and the first of the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKConfig:
    """One built top-k engine; ``n`` and ``k`` are run-time values up to the built maximum."""

    MAX_ELEMENT_BITS: ClassVar[int] = 32

    lanes: int = 16
    """P: elements compared per cycle; a power of two in 1..32."""
    n_max: int = 1024
    """Largest request, elements; a power of two in 2 lanes..65,536."""
    element_bits: int = 24
    """Width of one unsigned element, bits; 8..32."""

    def __post_init__(self) -> None:
        if self.lanes not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"lanes must be a power of two in 1..32, not {self.lanes}")
        if not (2 * self.lanes <= self.n_max <= 65_536 and self.n_max & (self.n_max - 1) == 0):
            raise ValueError(f"n_max must be a power of two in {2 * self.lanes}..65536, not {self.n_max}")
        if not 8 <= self.element_bits <= self.MAX_ELEMENT_BITS:
            raise ValueError(f"element_bits must be in 8..{self.MAX_ELEMENT_BITS}, not {self.element_bits}")

    @property
    def index_bits(self) -> int:
        """Width of an element's position, bits."""
        return (self.n_max - 1).bit_length()

    @property
    def lane_bits(self) -> int:
        """log2 P."""
        return (self.lanes - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of ``n``, ``k`` and every count of elements, bits (n_max itself must fit)."""
        return self.n_max.bit_length()

    @property
    def max_lines(self) -> int:
        """Lines of ``lanes`` elements that the buffer and each FIFO hold."""
        return self.n_max // self.lanes


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactListConfig:
    """Queue of the marked elements of the lines of one request."""

    lanes: int
    element_bits: int
    max_lines: int
    """Lines of one request, and so of one list."""
