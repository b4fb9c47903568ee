# SPDX-License-Identifier: MIT
"""Shape of the transposer and of its maps. Imports nothing but other configurations."""

from dataclasses import dataclass

from hw.config import ChipConfig
from hw.systolic.config import systolic_config

ELEMENT_BITS, NARROW_BITS = 16, 8
"""Width of a signed element, and of those of narrow maps."""
PIXEL_BITS, CHANNEL_BITS = 24, 16
"""Width of a map's numbers of pixels and channels."""
LATENCY_CYCLES = 2
"""The last beat of a block taken to the first one of it on the output, when that is idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransposeConfig:
    """One built transposer."""

    lanes: int = 8
    """C: channels of a beat, and pixels of one that leaves; 2..64."""

    def __post_init__(self) -> None:
        if not 2 <= self.lanes <= 64:
            raise ValueError(f"lanes must be in 2..64, not {self.lanes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """What is transposed: tile by tile of C pixels, of each tile by tile of C channels."""

    n_pixels: int
    """1..2^24 - 1"""
    n_channels: int
    """1..2^16 - 1"""
    wide: bool
    """Elements of 16 bits; otherwise 8."""

    def __post_init__(self) -> None:
        for name, bits in (("n_pixels", PIXEL_BITS), ("n_channels", CHANNEL_BITS)):
            if not 1 <= getattr(self, name) < 1 << bits:
                raise ValueError(f"{name} must be in 1..{(1 << bits) - 1}, not {getattr(self, name)}")

    def blocks(self, lanes: int) -> list[tuple[int, int]]:
        """Beats that come in and beats that leave, of each block in order."""
        return [
            (min(lanes, self.n_pixels - pixel), min(lanes, self.n_channels - channel))
            for pixel in range(0, self.n_pixels, lanes)
            for channel in range(0, self.n_channels, lanes)
        ]


def transpose_config(chip: ChipConfig) -> TransposeConfig:
    """The transposer beside the chip's systolic array: a lane a column."""
    return TransposeConfig(lanes=systolic_config(chip).columns)
