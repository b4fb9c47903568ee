# SPDX-License-Identifier: MIT
"""Shape and widths of the depthwise unit, and the passes it takes.

Imports numpy at most.
"""

from dataclasses import dataclass

from hw.config import ChipConfig
from hw.systolic.config import OPERAND_BITS, systolic_config

MAP_BITS = 16
"""Width of a signed element of a map; narrow maps have 8, sign-extended."""
WEIGHT_BITS = OPERAND_BITS
MAX_KERNEL = 7
N_PAST = MAX_KERNEL - 1
"""Earlier elements of a column that a window needs."""
SUM_BITS = MAP_BITS + WEIGHT_BITS - 1 + (MAX_KERNEL**2 - 1).bit_length()
"""Width of a signed sum, which is at most 49 x 2^15 x 2^7 < 2^28 in absolute value: 29 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthwiseConfig:
    """One built unit; kernel, stride and sizes are run-time values up to the maxima."""

    lanes: int = 8
    """Channels of a beat; 1..64."""
    n_multipliers: int = 3
    """Of each lane, 16 x 8 bits; 1..49. A sum of T products takes ceil(T / n_multipliers) cycles."""
    row_pixels: int = 128
    """Pixels of one row of the input that the line memory holds; 2..8,192."""
    max_size: int = 1024
    """Largest height and width of input and output; 2..8,192."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lanes", 1, 64),
            ("n_multipliers", 1, MAX_KERNEL**2),
            ("row_pixels", 2, 8192),
            ("max_size", 2, 8192),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")

    @property
    def n_words(self) -> int:
        """Words of the weight memory, ``n_multipliers`` taps each, that the largest kernel needs."""
        return -(-(MAX_KERNEL**2) // self.n_multipliers)

    @property
    def size_bits(self) -> int:
        """Width of a row or column of the input and of what lies around it, bits."""
        return (2 * self.max_size + MAX_KERNEL).bit_length()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A tile of channels through the unit: a correlation, every input pixel taken once.

    Output pixel (i, j) is the sum over taps (a, b) of weight (a, b) times the input's pixel
    (stride i + a - padding_y, stride j + b - padding_x). Rows and columns that no output meets are not part
    of the input.
    """

    kernel_height: int
    kernel_width: int
    """1..7."""
    stride: int = 1
    """1 or 2."""
    padding_y: int = 0
    padding_x: int = 0
    """Rows above the input and columns left of it; less than the kernel."""
    height: int
    width: int
    out_height: int
    out_width: int
    wide: bool = False
    """Elements of 16 bits; otherwise 8."""
    replicate: bool = False
    """Outside of the input lies its nearest pixel; otherwise zeros."""

    def __post_init__(self) -> None:
        for axis, kernel, padding in (
            ("height", self.kernel_height, self.padding_y),
            ("width", self.kernel_width, self.padding_x),
        ):
            if not 1 <= kernel <= MAX_KERNEL:
                raise ValueError(f"kernel_{axis} must be in 1..{MAX_KERNEL}, not {kernel}")
            if not 0 <= padding < kernel:
                raise ValueError(f"padding must be in 0..{kernel - 1}, not {padding}")
        if self.stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, not {self.stride}")
        for name, met in (("height", self.last_row), ("width", self.last_column)):
            if getattr(self, f"out_{name}") < 1:
                raise ValueError(f"out_{name} must be at least 1, not {getattr(self, f'out_{name}')}")
            if not 1 <= getattr(self, name) <= met + 1:
                raise ValueError(
                    f"{name} must be in 1..{met + 1}, all that is met, not {getattr(self, name)}"
                )

    @property
    def n_taps(self) -> int:
        """Products of an output."""
        return self.kernel_height * self.kernel_width

    @property
    def lead_y(self) -> int:
        """Row of the input with which the first row of output is complete."""
        return self.kernel_height - 1 - self.padding_y

    @property
    def lead_x(self) -> int:
        """Column of the input with which the first output of a row is complete."""
        return self.kernel_width - 1 - self.padding_x

    @property
    def last_row(self) -> int:
        """Row, from the input's first one on, that completes the last row of output."""
        return self.lead_y + (self.out_height - 1) * self.stride

    @property
    def last_column(self) -> int:
        """Column that completes the last output of a row."""
        return self.lead_x + (self.out_width - 1) * self.stride

    @property
    def fields(self) -> dict[str, int]:
        """As :func:`hw.depthwise.scan.pass_layout` has them."""
        return {
            "last_tap_y": self.kernel_height - 1,
            "last_tap_x": self.kernel_width - 1,
            "lead_y": self.lead_y,
            "lead_x": self.lead_x,
            "by_two": self.stride == 2,
            "height": self.height,
            "width": self.width,
            "last_row": self.last_row,
            "last_column": self.last_column,
            "wide": self.wide,
            "replicate": self.replicate,
        }

    def group_cycles(self, config: DepthwiseConfig) -> int:
        """Cycles of one output: ceil(n_taps / n_multipliers)."""
        return -(-self.n_taps // config.n_multipliers)

    def check(self, config: DepthwiseConfig) -> None:
        """ValueError naming the field that the built unit cannot take."""
        for name, high in (
            ("height", config.max_size),
            ("width", min(config.max_size, config.row_pixels)),
            ("out_height", config.max_size),
            ("out_width", config.max_size),
        ):
            if getattr(self, name) > high:
                raise ValueError(f"{name} must be at most {high}, not {getattr(self, name)}")


def depthwise_config(chip: ChipConfig) -> DepthwiseConfig:
    """The unit beside the chip's systolic array: a lane a column.

    The line memory takes at most the bytes of the chip's key SRAM.
    """
    lanes = systolic_config(chip).columns
    return DepthwiseConfig(lanes=lanes, row_pixels=chip.kv_sram_bytes * 8 // (N_PAST * lanes * MAP_BITS))
