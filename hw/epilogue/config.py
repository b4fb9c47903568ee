# SPDX-License-Identifier: MIT
"""Shape and widths of the epilogue, its jobs and its tables.

Imports numpy at most.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from hw.config import ChipConfig
from hw.systolic.config import ACCUMULATOR_BITS, systolic_config

IN_BITS = ACCUMULATOR_BITS
"""Width of a signed input element."""
MULTIPLIER_BITS = 16
"""Width of a channel's unsigned multiplier."""
VALUE_BITS = 24
"""Width of a bias, and of everything between the two products; signed."""
SIDE_BITS = 16
"""Width of a signed element of noise or of a residual."""
SCALE_BITS = 16
"""Width of a reader's signed scale of a channel."""
LIMIT_BITS = VALUE_BITS - 1
"""Width of the unsigned limit of ReLU6."""
MAX_SHIFT, MAX_SIDE_SHIFT, MAX_OUT_SHIFT = 47, 15, 39
"""Right shift of the first product, left shift of the side input, right shift of the second product."""
OUT_BITS = 16
"""Width of a signed output element; of narrow maps 8 of them, sign-extended."""
NARROW_BITS = 8
SLOPE, SLOPE_SHIFT = 13_107, 16
"""The leaky ReLU's slope below zero, 13107 / 2^16 = 0.2 - 3.1e-6."""
TABLE_BEATS = 5
"""Beats of one entry of the table: multiplier, bias in two parts, a scale for each of two readers."""
TABLE_BITS, BIAS_LOW_BITS = 16, 16
"""Width of one number of a table's beat, and of the bias's lower part."""
MAX_READERS = 2
"""Output maps of one job."""
MASK_READER = MAX_READERS
"""Number that stands for the mask where those of readers do."""
BEAT_BITS = 32
"""Width of a job's number of beats."""
REDUCED_BITS, SUM_BITS = 16, 48
"""Width of a signed value that is reduced, and of the exact sums of values and of products."""
MAX_REDUCE_SHIFT = VALUE_BITS - 1
"""Right shift of a value before it is reduced."""
SUMS, SUM_BYTES = 2, 8
"""A channel's sums, of values and of products, and the bytes that one of them has in memory."""
PARTS = SUMS * SUM_BYTES // (OUT_BITS // 8)
"""Beats that bring the sums of a tile, each of 16 bits a lane."""
LATENCY_CYCLES = 9
"""An input beat taken, for its last reader, to that reader's output beat."""


def signed_range(bits: int) -> tuple[int, int]:
    """Lowest and highest signed number of so many bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")


def _check_elements(name: str, values: np.ndarray, low: int, high: int) -> None:
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{name} must be in {low}..{high}, not {values.min()}..{values.max()}")


class Side(IntEnum):
    """What comes beside the sums."""

    NONE = 0
    NOISE = 1
    """One number a beat, added to all channels."""
    RESIDUAL = 2
    """One number a channel, added."""
    MASK = 3
    """One bit a channel: where it is 0, the activation's value becomes 0."""
    PRODUCT = 4
    """One number a channel, which only the reduction sees."""


class Activation(IntEnum):
    """The function that follows."""

    NONE = 0
    RELU = 1
    RELU6 = 2
    """Between 0 and the job's limit."""
    LEAKY = 3
    """Slope 0.2 below zero. StyleGAN2's gain of sqrt 2 belongs to the scales that follow."""


class Reduction(IntEnum):
    """What is summed over all beats of a tile, for each channel, of r, the value in 16 bits."""

    NONE = 0
    SQUARE = 1
    """r and r^2."""
    PRODUCT = 2
    """r and r times the side input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpilogueConfig:
    """One built epilogue; everything else is a run-time value."""

    lanes: int = 8
    """Channels of a beat; 1..64."""
    max_tiles: int = 64
    """Entries of the table, each of ``lanes`` channels; 2..4,096."""

    def __post_init__(self) -> None:
        for name, low, high in (("lanes", 1, 64), ("max_tiles", 2, 4096)):
            _check_range(name, getattr(self, name), low, high)


@dataclass(frozen=True, slots=True)
class Reader:
    """How one output map is written for who reads it."""

    shift: int = 0
    """Right shift of the product with the reader's scale; 0..39."""
    wide: bool = False
    """Elements of 16 bits; otherwise 8."""

    def __post_init__(self) -> None:
        _check_range("shift", self.shift, 0, MAX_OUT_SHIFT)

    @property
    def bits(self) -> int:
        """Width of an element."""
        return OUT_BITS if self.wide else NARROW_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is done to beats that follow one another; ValueError where a field is out of range."""

    n_beats: int = 1
    """Input beats; 1..2^32 - 1."""
    n_tables: int = 0
    """Entries of the table that are loaded before the first beat, from entry 0 on; 0: those there stay."""
    shift: int = 0
    """Right shift of the product with the multiplier; 0..47."""
    side: Side = Side.NONE
    side_shift: int = 0
    """Left shift of the side input; 0..15."""
    activation: Activation = Activation.NONE
    limit: int = 0
    """Of ReLU6; 0..2^23 - 1."""
    readers: tuple[Reader, ...] = (Reader(),)
    """One or two: each gets every beat, in this order."""
    mask: bool = False
    """The activation's mask is written as well: a beat for it after those for the readers."""
    reduction: Reduction = Reduction.NONE
    reduce_shift: int = 0
    """Right shift of the value before it is reduced; 0..23."""
    gives_sums: bool = False
    """The job takes nothing, but gives ``n_beats`` of the sums so far, from tile 0 on. They begin anew."""

    def __post_init__(self) -> None:
        _check_range("n_beats", self.n_beats, 1, (1 << BEAT_BITS) - 1)
        _check_range("n_tables", self.n_tables, 0, 4096)
        _check_range("shift", self.shift, 0, MAX_SHIFT)
        _check_range("side_shift", self.side_shift, 0, MAX_SIDE_SHIFT)
        _check_range("limit", self.limit, 0, (1 << LIMIT_BITS) - 1)
        _check_range("number of readers", len(self.readers), 1, MAX_READERS)
        _check_range("reduce_shift", self.reduce_shift, 0, MAX_REDUCE_SHIFT)
        takes = self.n_tables or self.side or self.mask or self.reduction or len(self.readers) > 1
        if self.gives_sums and takes:
            raise ValueError("a job that gives sums must have one reader, no table, side, mask or reduction")
        if (self.side == Side.PRODUCT) != (self.reduction == Reduction.PRODUCT):
            raise ValueError(
                f"side PRODUCT needs reduction PRODUCT and the other way round, not {self.side.name} and "
                f"{self.reduction.name}"
            )

    def check(self, config: EpilogueConfig) -> None:
        """ValueError where the built epilogue cannot hold the job's tables or sums."""
        if self.n_tables > config.max_tiles:
            raise ValueError(f"n_tables must be at most {config.max_tiles}, not {self.n_tables}")
        most = config.max_tiles * PARTS
        if self.gives_sums and self.n_beats > most:
            raise ValueError(f"n_beats of sums must be at most {most}, not {self.n_beats}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """The numbers of each channel, int64 arrays; ValueError where one is out of range or misshapen."""

    multiplier: np.ndarray
    """[n_channels], 0..65,535."""
    bias: np.ndarray
    """[n_channels], signed 24 bits."""
    scales: np.ndarray
    """[1 or 2, n_channels], one row a reader, signed 16 bits."""

    def __post_init__(self) -> None:
        n = self.multiplier.shape[-1] if self.multiplier.ndim else 0
        for name, shapes in (
            ("multiplier", [(n,)]),
            ("bias", [(n,)]),
            ("scales", [(rows, n) for rows in range(1, MAX_READERS + 1)]),
        ):
            if getattr(self, name).shape not in shapes:
                allowed = " or ".join(str(list(shape)) for shape in shapes)
                raise ValueError(f"{name} must be of shape {allowed}, not {list(getattr(self, name).shape)}")
        _check_elements("multiplier", self.multiplier, 0, (1 << MULTIPLIER_BITS) - 1)
        _check_elements("bias", self.bias, *signed_range(VALUE_BITS))
        _check_elements("scales", self.scales, *signed_range(SCALE_BITS))

    def words(self) -> np.ndarray:
        """int64[5, n_channels], each in 0..65,535.

        Multiplier, low 16 and high 8 bits of the bias (the latter sign-extended), scale of reader 0 and of
        reader 1. What is not there is 0.
        """
        parts = np.zeros((TABLE_BEATS, len(self.multiplier)), dtype=np.int64)
        parts[:3] = self.multiplier, self.bias, self.bias >> BIAS_LOW_BITS
        parts[3 : 3 + len(self.scales)] = self.scales
        return parts & ((1 << TABLE_BITS) - 1)

    @staticmethod
    def of_words(words: np.ndarray) -> "Table":
        """The table whose :meth:`words` these are; above the bias's 24 bits anything may stand."""
        multiplier, low, high, *scales = words
        return Table(
            multiplier=multiplier,
            bias=_signed(low + (high << BIAS_LOW_BITS), VALUE_BITS),
            scales=_signed(np.stack(scales), SCALE_BITS),
        )

    def beats(self, lanes: int) -> np.ndarray:
        """int64[5 ceil(n_channels / lanes), lanes] as ``i_table`` takes them: :meth:`words` tile by tile."""
        n_tiles = -(-len(self.multiplier) // lanes)
        words = np.pad(self.words(), ((0, 0), (0, n_tiles * lanes - len(self.multiplier))))
        return words.reshape(TABLE_BEATS, n_tiles, lanes).swapaxes(0, 1).reshape(-1, lanes)


def _signed(values: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits as a signed number."""
    half = 1 << (bits - 1)
    return ((values + half) & (2 * half - 1)) - half


def epilogue_config(chip: ChipConfig) -> EpilogueConfig:
    """The epilogue behind the chip's systolic array: a lane a column, an entry for each of its tiles."""
    array = systolic_config(chip)
    return EpilogueConfig(lanes=array.columns, max_tiles=max(2, -(-array.max_channels // array.columns)))
