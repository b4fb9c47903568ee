# SPDX-License-Identifier: MIT
"""Shape and latency of the key or value buffer."""

from dataclasses import dataclass

BANK_ELEMENTS = 32
"""Elements of one bank's word: the smallest head dimension."""

HEAD_DIMS = (32, 64, 128)
"""Head dimensions; a payload names one by its place in this tuple."""

MIN_REGION_LINES = 8
"""Each load is a request with a way of its own through the fetcher."""

READ_LATENCY_CYCLES = 2
"""Address given to elements in the operand registers: SRAM, register."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvBufferConfig:
    """Regions of lines; a line has ``n_multipliers`` elements in banks of BANK_ELEMENTS."""

    n_multipliers: int
    """M: elements of a line; a power of two in 32..2,048."""
    element_bits: int
    """Width of one signed element, bits; 2..16."""
    n_lines: int
    """Lines of half of the buffer, the most that one region is loaded with; a power of two in 2..65,536."""
    n_regions: int = 2
    """Regions side by side, equally far apart; a power of two in 2..16, at most ``n_lines``. What is longer
    than ``region_lines`` goes on over the regions behind its own, which are then not to be used."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("n_multipliers", self.n_multipliers, BANK_ELEMENTS, 2048),
            ("n_lines", self.n_lines, 2, 65_536),
        ):
            if not (low <= value <= high and value & (value - 1) == 0):
                raise ValueError(f"{name} must be a power of two in {low}..{high}, not {value}")
        if self.n_regions not in (2, 4, 8, 16) or self.n_regions > self.n_lines:
            raise ValueError(
                f"n_regions must be 2, 4, 8 or 16 and at most n_lines = {self.n_lines}, not {self.n_regions}"
            )
        if not 2 <= self.element_bits <= 16:
            raise ValueError(f"element_bits must be in 2..16, not {self.element_bits}")

    @property
    def n_banks(self) -> int:
        """Banks side by side, each with an address of its own."""
        return self.n_multipliers // BANK_ELEMENTS

    @property
    def region_lines(self) -> int:
        """Lines from the start of one region to that of the next."""
        return 2 * self.n_lines // self.n_regions

    @property
    def region_bits(self) -> int:
        """Width of a region's number, bits."""
        return (self.n_regions - 1).bit_length()

    @property
    def address_bits(self) -> int:
        """Width of a line's address in the whole buffer, bits."""
        return self.line_bits + 1

    @property
    def line_bits(self) -> int:
        """Width of a line's number within a region, bits."""
        return (self.n_lines - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of a number of lines, bits."""
        return self.n_lines.bit_length()

    def vectors_per_line(self, head_dim: int) -> int:
        """M / D: vectors side by side in one line."""
        return self.n_multipliers // head_dim


def check_head_dim(max_head_dim: int, n_multipliers: int) -> None:
    """ValueError unless an array of ``n_multipliers`` can be built for heads up to ``max_head_dim``."""
    if max_head_dim not in HEAD_DIMS:
        raise ValueError(f"max_head_dim must be one of {', '.join(map(str, HEAD_DIMS))}, not {max_head_dim}")
    if max_head_dim > n_multipliers:
        raise ValueError(f"max_head_dim must be at most n_multipliers = {n_multipliers}, not {max_head_dim}")


def largest_head_dim(n_multipliers: int) -> int:
    """The largest head dimension that an array of ``n_multipliers`` can be built for."""
    fitting = [head_dim for head_dim in HEAD_DIMS if head_dim <= n_multipliers]
    if not fitting:
        raise ValueError(f"n_multipliers must be at least {HEAD_DIMS[0]}, not {n_multipliers}")
    return fitting[-1]


def lines_of_half(sram_bytes: int, n_multipliers: int, element_bits: int) -> int:
    """Lines that one half of ``sram_bytes`` holds, rounded down to a power of two."""
    n_lines = sram_bytes * 8 // (2 * n_multipliers * element_bits)
    if n_lines < 2:
        raise ValueError(
            f"kv_sram_bytes must hold four lines of {n_multipliers} x {element_bits} bits, not {sram_bytes}"
        )
    return 1 << (n_lines.bit_length() - 1)


def regions(n_lines: int, least_lines: int) -> int:
    """Regions of a buffer of 2 ``n_lines`` lines: 2 to 8, each of ``least_lines`` and MIN_REGION_LINES."""
    return min(8, max(2, 2 * n_lines // max(MIN_REGION_LINES, least_lines)))
