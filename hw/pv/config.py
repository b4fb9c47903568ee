# SPDX-License-Identifier: MIT
"""Shape, widths and pipeline of the probability-times-value array."""

from dataclasses import dataclass

from hw.config import ChipConfig
from hw.kv_buffer.config import (
    HEAD_DIMS,
    READ_LATENCY_CYCLES,
    KvBufferConfig,
    check_head_dim,
    largest_head_dim,
    lines_of_half,
    regions,
)

PROBABILITY_BITS = 12
"""A probability is unsigned, in units of 2^-12; 1.0 is 4,095."""

SHIFT_BITS = 3
SHIFTS = range(8, 8 + (1 << SHIFT_BITS))
"""Right shifts of a sum. 12 keeps the values' own scale, less keeps more bits of a small output."""

LEVELS_PER_CYCLE = 2
"""Adder levels between two registers."""

ROUTE_CYCLES = 2
"""Lane granted to its bank's address: register, crossbar register."""

FREE_LATENCY_CYCLES = ROUTE_CYCLES + 1
"""Last lane of a half granted to the first cycle in which a load can start the half anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PvConfig:
    """One built array; the head dimension is a run-time value up to ``max_head_dim``."""

    n_multipliers: int = 512
    """M; a power of two in 32..2,048."""
    max_head_dim: int = 128
    """Largest D; 32, 64 or 128."""
    element_bits: int = 12
    """Width of a signed value and of a signed output, bits; 2..16."""
    n_lines: int = 128
    """Lines of one half of the value buffer; a power of two."""
    n_regions: int = 2
    """Regions of the value buffer, see :class:`hw.kv_buffer.config.KvBufferConfig`."""
    lanes: int = 16
    """P: kept probabilities of one input beat; a power of two in 1..32."""
    n_max: int = 1024
    """Most kept probabilities of one row; a power of two in 2..65,536."""

    def __post_init__(self) -> None:
        _ = self.buffer  # checks its own fields
        check_head_dim(self.max_head_dim, self.n_multipliers)
        if self.lanes not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"lanes must be a power of two in 1..32, not {self.lanes}")
        if not (2 <= self.n_max <= 65_536 and self.n_max & (self.n_max - 1) == 0):
            raise ValueError(f"n_max must be a power of two in 2..65536, not {self.n_max}")

    @property
    def buffer(self) -> KvBufferConfig:
        """The value buffer."""
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
    def index_bits(self) -> int:
        """Width of a vector's place in its half, bits, at the smallest head dimension."""
        return self.buffer.line_bits + (self.buffer.n_banks - 1).bit_length()

    @property
    def product_bits(self) -> int:
        """Width of unsigned probability times signed value, bits."""
        return PROBABILITY_BITS + self.element_bits

    @property
    def sum_bits(self) -> int:
        """Width of the exact sum of a row, bits.

        |sum| <= n_max (2^12 - 1) 2^(element_bits - 1) < 2^(12 + element_bits - 1 + log2 n_max), and a sign.
        """
        return self.product_bits + (self.n_max - 1).bit_length()

    @property
    def magnitude_bits(self) -> int:
        """Width of sum |o|, bits: at most max_head_dim 2^(element_bits - 1), itself included."""
        return self.element_bits + (self.max_head_dim - 1).bit_length()

    @property
    def step_sum_bits(self) -> int:
        """Width of the sum of one cycle's products for one output, bits: M / 32 of them at most."""
        return self.product_bits + (self.buffer.n_banks - 1).bit_length()

    @property
    def tree_stages(self) -> int:
        """Registers of the tree over the M / max_head_dim products of one output."""
        levels = (self.n_multipliers // self.max_head_dim - 1).bit_length()
        return -(-levels // LEVELS_PER_CYCLE)

    @property
    def latency_cycles(self) -> int:
        """Last lane of a row granted to its output on ``o``.

        Route, value buffer, product, adder tree at the largest head dimension, sums joined for a smaller one,
        accumulator, shift, rounding, queue.
        """
        return ROUTE_CYCLES + READ_LATENCY_CYCLES + 1 + self.tree_stages + 1 + 1 + 2 + 1

    @property
    def magnitude_latency_cycles(self) -> int:
        """From ``o`` to ``o_magnitude``: absolute value, adder tree."""
        return 1 + -(-(self.max_head_dim - 1).bit_length() // LEVELS_PER_CYCLE)

    @property
    def output_fifo_beats(self) -> int:
        """Rows under way when each takes one cycle: row and beat taken, then the latency, then the credit."""
        return 2 + self.latency_cycles + 1

    @property
    def magnitude_fifo_beats(self) -> int:
        """As :attr:`output_fifo_beats`, for ``o_magnitude``."""
        return self.output_fifo_beats + self.magnitude_latency_cycles


def pv_config(chip: ChipConfig) -> PvConfig:
    """The array of a chip, for the largest head dimension that its multipliers allow."""
    head_dim = largest_head_dim(chip.n_multipliers)
    n_lines = lines_of_half(chip.kv_sram_bytes, chip.n_multipliers, chip.onchip_bits)
    return PvConfig(
        n_multipliers=chip.n_multipliers,
        max_head_dim=head_dim,
        element_bits=chip.onchip_bits,
        n_lines=n_lines,
        n_regions=regions(n_lines, chip.topk.lanes * head_dim // chip.n_multipliers),
        lanes=chip.topk.lanes,
        n_max=chip.topk.n_max,
    )
