# SPDX-License-Identifier: MIT
"""Shape, widths and pipeline of the systolic array."""

from dataclasses import dataclass

from hw.config import ChipConfig

OPERAND_BITS = 8
"""Width of a weight and of one plane of an activation, bits."""
ACCUMULATOR_BITS = 32

QUAD_BYTES = 4
"""Channels that a bank of the activation buffer gives at once."""

MIN_PASS_CYCLES = 3
"""A pass over fewer pixels waits: an accumulator is read, added to and written before it is read again."""

OPERAND_CYCLES = 3
"""Vector issued, or row of weights taken, to the array's edge: addresses of the banks, SRAM, operands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystolicConfig:
    """One built array; layers are run-time values up to the maxima."""

    rows: int = 8
    """R: products of one sum and pass; a multiple of 4 in 8..64."""
    columns: int = 8
    """C: output channels of one pass; 2..64."""
    n_words: int = 1024
    """Words of R bytes in one half of the activation buffer; a power of two in 4..65,536."""
    n_accumulators: int = 256
    """Output pixels whose sums are kept between passes; a power of two in 4..65,536."""
    max_channels: int = 512
    """Most input channels, and most output channels, of one group; 1..4,096."""
    max_size: int = 1024
    """Largest height and width of an input; 1..4,096. An output may be 2 ``max_size`` + 5 wide."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("rows", self.rows, 8, 64),
            ("columns", self.columns, 2, 64),
            ("max_channels", self.max_channels, 1, 4096),
            ("max_size", self.max_size, 1, 4096),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {value}")
        if self.rows % QUAD_BYTES:
            raise ValueError(f"rows must be a multiple of {QUAD_BYTES}, not {self.rows}")
        for name, value in (("n_words", self.n_words), ("n_accumulators", self.n_accumulators)):
            if not (4 <= value <= 65_536 and value & (value - 1) == 0):
                raise ValueError(f"{name} must be a power of two in 4..65536, not {value}")

    @property
    def n_banks(self) -> int:
        """Banks of the activation buffer, each as wide as a quad."""
        return self.rows // QUAD_BYTES

    @property
    def bank_bits(self) -> int:
        """Width of a bank's number, bits."""
        return (self.n_banks - 1).bit_length()

    @property
    def word_bits(self) -> int:
        """Width of a word's number within its half, bits."""
        return (self.n_words - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of a number of words, bits."""
        return self.n_words.bit_length()

    @property
    def channel_bits(self) -> int:
        """Width of a number of channels of one group, bits; twice as many may be numbered on the output."""
        return self.max_channels.bit_length()

    @property
    def size_bits(self) -> int:
        """Width of a height or width of an output, bits."""
        return (2 * self.max_size + 5).bit_length()  # of a transpose of kernel 7

    @property
    def sum_bits(self) -> int:
        """Width of a signed sum of R products, bits.

        A product of -128..255 (one plane) and -128..127 lies within -32,640..32,385: 16 bits.
        """
        return 2 * OPERAND_BITS + (self.rows - 1).bit_length()

    @property
    def latency_cycles(self) -> int:
        """Vector issued to its sums on ``o``: operand, skewed array, accumulator, queue."""
        return OPERAND_CYCLES + (self.rows + self.columns - 1) + 1 + 1

    @property
    def output_fifo_beats(self) -> int:
        """Beats under way at full rate, so that the credits never slow a flowing output."""
        return self.latency_cycles + 1


def systolic_config(chip: ChipConfig) -> SystolicConfig:
    """The array of a chip: its multipliers in a square, or twice as many columns as rows.

    The two halves of the activation buffer take the bytes of the chip's key SRAM, the accumulators at most
    those of its value SRAM.
    """
    rows = 1 << ((chip.n_multipliers.bit_length() - 1) // 2)
    columns = chip.n_multipliers // rows
    return SystolicConfig(
        rows=rows,
        columns=columns,
        n_words=_power_of_two(chip.kv_sram_bytes // (2 * rows)),
        n_accumulators=_power_of_two(chip.kv_sram_bytes * 8 // (columns * ACCUMULATOR_BITS)),
    )


def _power_of_two(at_most: int) -> int:
    return 1 << max(0, at_most.bit_length() - 1)
