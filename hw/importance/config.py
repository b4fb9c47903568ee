# SPDX-License-Identifier: MIT
"""Shapes and widths of the importance accumulators."""

from dataclasses import dataclass

from hw.stream.config import RegroupConfig

PROBABILITY_BITS = 12

MAX_LAYERS = 32
MAX_HEADS = 64
MAX_QUERIES = 2048
"""Most query rows of one head and layer in one sentence: prompt rows and generated tokens together."""

ADD_LATENCY_CYCLES = 2
"""Beat taken to its sums written: memory read, addition; the sums can be read in the cycle after."""

START_CYCLES = 2
"""Command to read or to keep, taken, to its first line read: sums still under way are written meanwhile."""

READ_LATENCY_CYCLES = 3
"""Line read to its elements at the regrouping: memory, shift, saturation."""

KEEP_LATENCY_CYCLES = 2
"""Line read to its kept scores written: memory, zero eliminator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceConfig:
    """One built accumulator: cumulative scores of up to ``n_max`` tokens, or heads."""

    lanes: int = 8
    """L: scores that one beat adds to; a power of two in 1..kept_lanes."""
    n_max: int = 1024
    """Most scores held; a power of two in 2 kept_lanes..65,536."""
    kept_lanes: int = 16
    """P, lanes of the selection engine: scores of a beat of ``o``, positions of a beat of ``i_kept``; a power
    of two in 1..32."""
    value_bits: int = PROBABILITY_BITS
    """Width of an unsigned value added, bits; 1..24."""
    max_adds: int = MAX_LAYERS * MAX_HEADS * MAX_QUERIES
    """Most values added to one score between two clears; at least 1."""
    element_bits: int = 24
    """Width of a score on ``o``, bits; 8..40."""

    def __post_init__(self) -> None:
        if self.kept_lanes not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"kept_lanes must be a power of two in 1..32, not {self.kept_lanes}")
        if self.lanes < 1 or self.lanes & (self.lanes - 1) or self.lanes > self.kept_lanes:
            raise ValueError(
                f"lanes must be a power of two in 1..{self.kept_lanes} (kept_lanes), not {self.lanes}"
            )
        if not (2 * self.kept_lanes <= self.n_max <= 65_536 and self.n_max & (self.n_max - 1) == 0):
            raise ValueError(
                f"n_max must be a power of two in {2 * self.kept_lanes}..65536, not {self.n_max}"
            )
        if not 1 <= self.value_bits <= 24:
            raise ValueError(f"value_bits must be in 1..24, not {self.value_bits}")
        if self.max_adds < 1:
            raise ValueError(f"max_adds must be at least 1, not {self.max_adds}")
        if not 8 <= self.element_bits <= 40:
            raise ValueError(f"element_bits must be in 8..40, not {self.element_bits}")
        if self.score_bits > 48:
            raise ValueError(
                f"max_adds must be at most {((1 << 48) - 1) // ((1 << self.value_bits) - 1)} "
                f"at value_bits {self.value_bits}, not {self.max_adds}"
            )

    @property
    def score_bits(self) -> int:
        """Width of a score: the largest sum, max_adds (2^value_bits - 1), itself fits, so none overflows.

        A beat adds one value to a score, and nothing else makes it larger.
        """
        return (self.max_adds * ((1 << self.value_bits) - 1)).bit_length()

    @property
    def max_element(self) -> int:
        """Largest element on ``o``: the one above it is left for a token that is protected from selection."""
        return (1 << self.element_bits) - 2

    @property
    def max_shift(self) -> int:
        """Largest useful right shift on the way to ``o``."""
        return self.safe_shift(self.max_adds)

    @property
    def shift_bits(self) -> int:
        """Width of the shift, bits."""
        return max(1, self.max_shift.bit_length())

    def safe_shift(self, n_adds: int) -> int:
        """Smallest right shift after which ``n_adds`` values a score cannot saturate an element.

        0, so that the elements are the scores themselves, up to (2^element_bits - 2) / (2^value_bits - 1)
        additions: 4,096 rows of probabilities at 24 bits.
        """
        if not 0 <= n_adds <= self.max_adds:
            raise ValueError(f"n_adds must be in 0..{self.max_adds}, not {n_adds}")
        largest = n_adds * ((1 << self.value_bits) - 1)
        shift = 0
        while largest >> shift > self.max_element:
            shift += 1
        return shift

    @property
    def index_bits(self) -> int:
        """Width of a position, bits."""
        return (self.n_max - 1).bit_length()

    @property
    def count_bits(self) -> int:
        """Width of a number of scores, bits."""
        return self.n_max.bit_length()

    @property
    def lane_bits(self) -> int:
        """log2 of ``lanes``."""
        return (self.lanes - 1).bit_length()

    @property
    def max_lines(self) -> int:
        """Lines of ``lanes`` scores."""
        return self.n_max // self.lanes

    @property
    def rows_bits(self) -> int:
        """Width of the number of rows of one command, bits."""
        return MAX_QUERIES.bit_length()

    @property
    def regroup(self) -> RegroupConfig:
        """From lines to beats for the selection engine."""
        return RegroupConfig(element_bits=self.element_bits, lanes_in=self.lanes, lanes_out=self.kept_lanes)


def head_config(*, kept_lanes: int, magnitude_bits: int, element_bits: int) -> ImportanceConfig:
    """The accumulator of heads: one score a beat, sum |o| of a row added to the score of its head."""
    return ImportanceConfig(
        lanes=1,
        n_max=MAX_HEADS,
        kept_lanes=kept_lanes,
        value_bits=magnitude_bits,
        max_adds=MAX_LAYERS * MAX_QUERIES,
        element_bits=element_bits,
    )
