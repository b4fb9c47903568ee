# SPDX-License-Identifier: MIT
"""Shape and widths of the filter, and the maps it takes."""

from dataclasses import dataclass

from hw.config import ChipConfig
from hw.systolic.config import systolic_config

MAP_BITS = 16
"""Width of an element of the maps between a convolution and its filter, as the chips' filters take it."""
N_PAST = 3
"""Earlier elements of a row or column that a filter of four taps needs."""
AXIS_GAIN_BITS = 3
"""log2 of 1 + 3 + 3 + 1: what the sum along one axis is wider than its elements, bits."""
SHIFT = 4
"""Right shift of the sum along both axes: gain 4 (for inserted zeros) over (1 + 3 + 3 + 1)^2 is 2^-4."""
LATENCY_CYCLES = 3
"""An input beat taken to the output beat that it completes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirConfig:
    """One built filter; mode and sizes of a map are run-time values up to the maxima."""

    lanes: int = 8
    """Channels of a beat; 1..64."""
    element_bits: int = MAP_BITS
    """Width of a signed input element; 2..32."""
    out_bits: int = MAP_BITS + 2
    """Width of a signed output element; 2..``element_bits`` + 2, with which nothing ever saturates."""
    row_beats: int = 256
    """Beats of one row of the input that the line buffers hold; 2..65,536."""
    max_channels: int = 512
    """Most channels; 1..4,096."""
    max_size: int = 1025
    """Largest height and width of the input; 2..8,193."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lanes", 1, 64),
            ("element_bits", 2, 32),
            ("out_bits", 2, self.element_bits + 2),
            ("row_beats", 2, 65_536),
            ("max_channels", 1, 4096),
            ("max_size", 2, 8193),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")

    @property
    def max_pixel_beats(self) -> int:
        """Beats of one pixel that the pixel buffers hold; 2 where one would do, for an address of one bit."""
        return max(2, -(-self.max_channels // self.lanes))

    @property
    def size_bits(self) -> int:
        """Width of a height or width of the input, bits."""
        return self.max_size.bit_length()

    @property
    def channel_bits(self) -> int:
        """Width of a number of channels, bits."""
        return self.max_channels.bit_length()


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """One map to be filtered."""

    upsample: bool
    """Twice the size; otherwise a blur with a border of one zero, which makes each side one shorter."""
    height: int
    """Of the input; at least 1 to upsample, 2 to blur."""
    width: int
    channels: int

    def __post_init__(self) -> None:
        for name, low in (("height", 2 - self.upsample), ("width", 2 - self.upsample), ("channels", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, not {getattr(self, name)}")

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        if self.upsample:
            return 2 * self.height, 2 * self.width
        return self.height - 1, self.width - 1

    def pixel_beats(self, config: FirConfig) -> int:
        """Beats of one pixel: ceil(channels / lanes)."""
        return -(-self.channels // config.lanes)

    def check(self, config: FirConfig) -> None:
        """ValueError naming the field that the built filter cannot take."""
        for name, high in (
            ("height", config.max_size),
            ("width", config.max_size),
            ("channels", config.max_channels),
        ):
            if getattr(self, name) > high:
                raise ValueError(f"{name} must be at most {high}, not {getattr(self, name)}")
        if (beats := self.width * self.pixel_beats(config)) > config.row_beats:
            raise ValueError(f"a row must be at most {config.row_beats} beats, not {beats}")


def fir_config(chip: ChipConfig) -> FirConfig:
    """The filter behind the chip's systolic array: a lane a column, maps of 16 bits, nothing saturates.

    The line buffers take at most the bytes of the chip's key SRAM.
    """
    lanes = systolic_config(chip).columns
    return FirConfig(lanes=lanes, row_beats=chip.kv_sram_bytes * 8 // (N_PAST * lanes * MAP_BITS))
