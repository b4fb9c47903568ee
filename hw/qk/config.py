# SPDX-License-Identifier: MIT
"""Shape, widths and pipeline of the query-times-key array."""

from dataclasses import dataclass

from hw.config import ChipConfig
from hw.kv_buffer.config import (
    BANK_ELEMENTS,
    HEAD_DIMS,
    READ_LATENCY_CYCLES,
    KvBufferConfig,
    check_head_dim,
    largest_head_dim,
    lines_of_half,
    regions,
)

SCORE_BITS = 36
"""Width of a score on the output, bits, signed.

The next stage joins two passes to 16 (Q.K_msb) + Q.K_lsb. With 12-bit operands and 128 dimensions
|Q.K_msb| <= 128 * 2^11 * 2^11 = 2^29 and |Q.K_lsb| <= 128 * 2^11 * 15 < 2^22, so the joined score lies within
2^33 + 2^22 < 2^34 and needs 35 bits; one is spare.
"""

BANK_TREE_LEVELS = (BANK_ELEMENTS - 1).bit_length()
LEVELS_PER_CYCLE = 2
"""Adder levels between two registers."""
BANK_TREE_STAGES = -(-BANK_TREE_LEVELS // LEVELS_PER_CYCLE)

LATENCY_CYCLES = READ_LATENCY_CYCLES + 1 + BANK_TREE_STAGES + 1 + 1
"""Line read to its scores on the output: buffer, product, sums of 32, sums of D and selection, queue."""

OUTPUT_FIFO_BEATS = LATENCY_CYCLES + 1
"""Beats under way at full rate, so that the credits never slow a flowing output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QkConfig:
    """One built array; the head dimension is a run-time value up to ``max_head_dim``."""

    n_multipliers: int = 512
    """M; a power of two in 32..2,048."""
    max_head_dim: int = 128
    """Largest D; 32, 64 or 128."""
    element_bits: int = 12
    """Width of a signed operand, bits; 2..14."""
    n_lines: int = 128
    """Lines of one half of the key buffer; a power of two."""
    n_regions: int = 2
    """Regions of the key buffer, see :class:`hw.kv_buffer.config.KvBufferConfig`."""
    n_max: int = 1024
    """Most keys of one row; a power of two in 2..65,536."""

    def __post_init__(self) -> None:
        _ = self.buffer  # checks its own fields
        check_head_dim(self.max_head_dim, self.n_multipliers)
        if self.sum_bits > SCORE_BITS:
            raise ValueError(f"element_bits must be in 2..14, not {self.element_bits}")
        if not (2 <= self.n_max <= 65_536 and self.n_max & (self.n_max - 1) == 0):
            raise ValueError(f"n_max must be a power of two in 2..65536, not {self.n_max}")

    @property
    def buffer(self) -> KvBufferConfig:
        """The key buffer."""
        return KvBufferConfig(
            n_multipliers=self.n_multipliers,
            element_bits=self.element_bits,
            n_lines=self.n_lines,
            n_regions=self.n_regions,
        )

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head dimensions that the array can be set to."""
        return tuple(head_dim for head_dim in HEAD_DIMS if head_dim <= self.max_head_dim)

    @property
    def lanes(self) -> int:
        """Scores of one output beat at the smallest head dimension."""
        return self.n_multipliers // BANK_ELEMENTS

    @property
    def count_bits(self) -> int:
        """Width of a number of keys, bits."""
        return self.n_max.bit_length()

    @property
    def product_bits(self) -> int:
        """Width of one signed product, bits."""
        return 2 * self.element_bits

    @property
    def sum_bits(self) -> int:
        """Width of a sum over ``max_head_dim`` products, bits: one more for each level."""
        return self.product_bits + (self.max_head_dim - 1).bit_length()


def qk_config(chip: ChipConfig) -> QkConfig:
    """The array of a chip, for the largest head dimension that its multipliers allow."""
    head_dim = largest_head_dim(chip.n_multipliers)
    n_lines = lines_of_half(chip.kv_sram_bytes, chip.n_multipliers, chip.onchip_bits)
    return QkConfig(
        n_multipliers=chip.n_multipliers,
        max_head_dim=head_dim,
        element_bits=chip.onchip_bits,
        n_lines=n_lines,
        n_regions=regions(n_lines, chip.topk.lanes * head_dim // chip.n_multipliers),
        n_max=chip.topk.n_max,
    )
