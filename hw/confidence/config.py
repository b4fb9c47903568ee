# SPDX-License-Identifier: MIT
"""Shape of the confidence check; RTL, golden model and cycle model all read it."""

from dataclasses import dataclass

from hw.softmax.config import MAX_ROWS, SoftmaxConfig

LSB_BITS = 4
"""Bits of the LSB plane: K = 2^LSB_BITS K_msb + K_lsb."""
MAX_ENTRIES = MAX_ROWS
"""Rows between their entry into the softmax and their decision."""
BEGUN_ROWS = 4
"""Rows begun ahead of their last score, so that the latency of the score array is hidden."""
SCORE_LATENCY_CYCLES = 2
"""Score taken to the same score, or its sum with the stored one, on ``o_score``."""
COUNTER_BITS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceConfig:
    """One built confidence check."""

    lanes: int = 8
    """L: scores per cycle; as the softmax has."""
    n_max: int = 1024
    """Longest row, keys."""
    score_bits: int = 36
    """Width of one signed score, bits."""
    window: int = 2
    """W: rows of MSB scores kept. Row r + W begins only when row r is settled. A power of two in 1..8;
    1 keeps the rows in order."""
    tag_bits: int = 16
    """Width of the name that a row carries from ``i_row`` to ``o_row`` and ``o_request``, bits; 1..32."""

    def __post_init__(self) -> None:
        self.softmax  # noqa: B018 - checks lanes, n_max and score_bits
        if self.window not in (1, 2, 4, 8):
            raise ValueError(f"window must be a power of two in 1..8, not {self.window}")
        if not 1 <= self.tag_bits <= 32:
            raise ValueError(f"tag_bits must be in 1..32, not {self.tag_bits}")

    @property
    def softmax(self) -> SoftmaxConfig:
        """The softmax that this block feeds."""
        return SoftmaxConfig(lanes=self.lanes, n_max=self.n_max, score_bits=self.score_bits)

    @property
    def stored_bits(self) -> int:
        """Width of a kept MSB score, bits: 16 times it is a score."""
        return self.score_bits - LSB_BITS

    @property
    def store_bytes(self) -> float:
        """Memory that keeps the MSB scores of ``window`` rows, bytes."""
        return self.window * self.n_max * self.stored_bits / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidentSoftmaxConfig(ConfidenceConfig):
    """A confidence check with its softmax; the same fields."""
