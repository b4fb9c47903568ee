# SPDX-License-Identifier: MIT
"""Shape and pipeline of the zero eliminator."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroEliminatorConfig:
    """One built zero eliminator."""

    lanes: int = 16
    """P: elements of a beat; a power of two in 1..64."""
    element_bits: int = 24
    shift_stages_per_cycle: int = 6
    """How many of the log2 P shift stages share a cycle; the prefix sum shares the first one."""

    def __post_init__(self) -> None:
        if not (1 <= self.lanes <= 64 and self.lanes & (self.lanes - 1) == 0):
            raise ValueError(f"lanes must be a power of two in 1..64, not {self.lanes}")
        if not 1 <= self.element_bits <= 64:
            raise ValueError(f"element_bits must be in 1..64, not {self.element_bits}")
        if self.shift_stages_per_cycle < 1:
            raise ValueError(f"shift_stages_per_cycle must be at least 1, not {self.shift_stages_per_cycle}")

    @property
    def n_shift_stages(self) -> int:
        """log2 P."""
        return (self.lanes - 1).bit_length()

    @property
    def latency_cycles(self) -> int:
        """Registers between input and output: max(1, ceil(log2 P / shift_stages_per_cycle))."""
        return max(1, -(-self.n_shift_stages // self.shift_stages_per_cycle))
