# SPDX-License-Identifier: MIT
"""Shape and widths of the augmentation unit, and what it does to an image. Imports numpy at most."""

import math
from dataclasses import dataclass, field

from hw.config import ChipConfig

CHANNELS = 3
OPERATIONS = ("color", "translation", "cutout")
GAIN_BITS = 15
"""Fraction bits of saturation and contrast, unsigned numbers of 16 bits below 2."""
ONE = 1 << GAIN_BITS
MEAN_BITS = 6
"""Fraction bits of the means over channels and over the image."""
RECIPROCAL_BITS = 24
"""Width of the reciprocal's mantissa, whose highest bit is set."""
THIRD_SHIFT = 18
THIRD = round((1 << (THIRD_SHIFT + MEAN_BITS)) / CHANNELS)
"""The mean over three channels is rnd(sum x THIRD, THIRD_SHIFT), with MEAN_BITS fraction bits."""

LFSR_BITS = 32
LFSR_TAPS = (31, 30, 29, 9)
"""x^32 + x^31 + x^30 + x^10 + 1, primitive: the period is 2^32 - 1 steps. High taps: few see bits of the
same leap, so it is shallow."""
DRAW_BITS = 16
"""Steps of the LFSR for a number, and its bits."""
N_DRAWS = 7
"""Brightness, saturation, contrast, shift and centre in rows and columns, in this order, a cycle each."""

PREPARE_CYCLES = 2 + N_DRAWS
"""A job taken to the same job with its parameters: draws, then products."""
MEAN_CYCLES = 4
"""Last pixel taken to the job of the output side: sum, product with the reciprocal, mean, offset."""
LATENCY_CYCLES = 5
"""Address to output beat: SRAM, operands, mean over channels, products, sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """One built unit; sizes and operations are run-time values of every image."""

    element_bits: int = 16
    """Width of a signed element of the input and of the output; 4..16."""
    max_pixels: int = 1024
    """Pixels that each half of the image buffer holds; a power of two in 4..65,536."""
    max_size: int = 256
    """Largest height and width; 2..1,024."""

    def __post_init__(self) -> None:
        for name, low, high in (("element_bits", 4, 16), ("max_size", 2, 1024)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")
        if not (4 <= self.max_pixels <= 65_536 and self.max_pixels & (self.max_pixels - 1) == 0):
            raise ValueError(f"max_pixels must be a power of two in 4..65536, not {self.max_pixels}")

    @property
    def size_bits(self) -> int:
        """Width of a height or width, bits."""
        return self.max_size.bit_length()

    @property
    def place_bits(self) -> int:
        """Width of a signed row or column, up to a shift outside of the image, bits."""
        return self.size_bits + 2

    @property
    def address_bits(self) -> int:
        """Width of a pixel's number, bits."""
        return (self.max_pixels - 1).bit_length()


def augment_config(chip: ChipConfig) -> AugmentConfig:
    """The unit of a chip: its two image buffers take at most the bytes of the key SRAM."""
    pixels = chip.kv_sram_bytes // (2 * CHANNELS * 2)
    return AugmentConfig(max_pixels=1 << (pixels.bit_length() - 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What happens to one image; of :mod:`algo.diffaugment`, in integers.

    Operations that the policy does not list ignore theirs.
    """

    brightness: int = 0
    """Added to every element, in its units; as many signed bits as an element."""
    saturation: int = ONE
    """times 2^15; 0..65,535."""
    contrast: int = ONE
    """times 2^15; 0..65,535."""
    shift_y: int = 0
    shift_x: int = 0
    """out[y, x] = x[y + shift_y, x + shift_x]; below the size of the image in absolute value."""
    centre_y: int = 0
    centre_x: int = 0
    """Of the rectangle, which begins half its sides, rounded down, before."""

    def __post_init__(self) -> None:
        for name in ("saturation", "contrast"):
            if not 0 <= getattr(self, name) < 2 * ONE:
                raise ValueError(f"{name} must be in 0..{2 * ONE - 1}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image: its size, the operations in their order, and where their parameters come from."""

    height: int
    width: int
    policy: tuple[str, ...] = OPERATIONS
    """Names of OPERATIONS in the order in which they are applied, each at most once."""
    adjoint: bool = False
    """The adjoint of the linear part instead: a gradient in the augmented image to one in the image."""
    draws: Draws = field(default_factory=Draws)
    draw: bool = False
    """The unit draws all parameters; ``draws`` is ignored."""
    one_bits: int = 7
    """log2 of the element that stands for 1.0, of which a drawn brightness is at most half; 0..15."""
    seed: int = 0
    """Sets the LFSR before the draws; 0: it runs on. 32 bits."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("height", 1, 1024),
            ("width", 1, 1024),
            ("one_bits", 0, 15),
            ("seed", 0, (1 << LFSR_BITS) - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")
        if not set(self.policy) <= set(OPERATIONS) or len(set(self.policy)) < len(self.policy):
            raise ValueError(
                f"policy must list some of {', '.join(OPERATIONS)}, each once, not {self.policy}"
            )
        for axis, size in (("y", self.height), ("x", self.width)):
            shift, centre = getattr(self.draws, f"shift_{axis}"), getattr(self.draws, f"centre_{axis}")
            if abs(shift) >= size:
                raise ValueError(f"shift_{axis} must be in {1 - size}..{size - 1}, not {shift}")
            if not 0 <= centre <= size:
                raise ValueError(f"centre_{axis} must be in 0..{size}, not {centre}")

    def check(self, config: AugmentConfig) -> None:
        """ValueError naming the field that the built unit cannot take."""
        for name in ("height", "width"):
            if getattr(self, name) > config.max_size:
                raise ValueError(f"{name} must be at most {config.max_size}, not {getattr(self, name)}")
        high = (1 << (config.element_bits - 1)) - 1
        if not -high - 1 <= self.draws.brightness <= high:
            raise ValueError(f"brightness must be in {-high - 1}..{high}, not {self.draws.brightness}")
        if self.one_bits >= config.element_bits:
            raise ValueError(f"one_bits must be below {config.element_bits}, not {self.one_bits}")
        if self.n_pixels > config.max_pixels:
            raise ValueError(f"an image must be at most {config.max_pixels} pixels, not {self.n_pixels}")

    @property
    def n_pixels(self) -> int:
        """Pixels of the image."""
        return self.height * self.width

    def before(self, first: str, second: str) -> bool:
        """Whether ``first`` is applied before ``second``; an operation that does nothing may be anywhere."""
        order = [*self.policy, *(name for name in OPERATIONS if name not in self.policy)]
        return order.index(first) < order.index(second)

    @property
    def reciprocal(self) -> tuple[int, int]:
        """1 / (3 height width) as (mantissa, exponent): mantissa x 2^-(23 + exponent), to the nearest."""
        n = CHANNELS * self.n_pixels
        exponent = (n - 1).bit_length()
        return round(math.ldexp(1, RECIPROCAL_BITS - 1 + exponent) / n), exponent


def largest_shift(size: int) -> int:
    """An eighth of the side, rounded half up."""
    return (size + 4) >> 3


def cut_size(size: int) -> int:
    """Half of the side, rounded half up."""
    return (size + 1) >> 1


def last_centre(size: int) -> int:
    """The side, or one less where the rectangle is odd."""
    return size - cut_size(size) % 2
