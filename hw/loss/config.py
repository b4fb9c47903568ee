# SPDX-License-Identifier: MIT
"""Formats of the loss unit, and the job of one picture. Imports nothing but other configurations."""

import math
from dataclasses import dataclass

from hw.config import ChipConfig
from hw.epilogue.config import epilogue_config
from hw.softmax.config import SoftmaxConfig, row_scale

SCORE_BITS = 16
"""Width of a score; signed."""
TARGET_FRACTION_BITS = 17
"""Unit of a target, and of a probability: 2^-17."""
TARGET_BITS = TARGET_FRACTION_BITS + 1
"""Width of a target: 0..1.0."""
LABEL_BITS = 16
"""Width of a label in memory."""
MIN_CLASSES, MAX_CLASSES = 2, 1024
"""Of any built unit."""
GRADIENT_FRACTION_BITS = 15
"""Unit of a gradient: 2^-15."""
GRADIENT_BITS = 16
"""Width of a gradient; signed."""
FRACTION_BITS_BITS = 5
"""Width of the number of a score's fraction bits."""
MULTIPLIER, SHIFT = row_scale(1.0)
"""Of a score without fraction bits; each fraction bit adds one to the shift."""

MAX_PICTURES = 64
"""Jobs taken whose gradients have not left: more than the softmax has begun, so no row waits for its job."""
LATENCY_CYCLES = 1
"""A beat of probabilities to its gradients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """One built unit; the number of classes is a run-time value of every picture."""

    lanes: int = 8
    """L: scores, and gradients, per cycle; a power of two in 1..16."""
    max_classes: int = 1024
    """Longest row of scores; a power of two in max(lanes, 2)..1,024."""

    def __post_init__(self) -> None:
        if self.lanes not in (1, 2, 4, 8, 16):
            raise ValueError(f"lanes must be a power of two in 1..16, not {self.lanes}")
        low = max(self.lanes, MIN_CLASSES)
        is_power_of_two = self.max_classes & (self.max_classes - 1) == 0
        if not (low <= self.max_classes <= MAX_CLASSES and is_power_of_two):
            raise ValueError(
                f"max_classes must be a power of two in {low}..{MAX_CLASSES}, not {self.max_classes}"
            )

    @property
    def softmax(self) -> SoftmaxConfig:
        """The softmax inside."""
        return SoftmaxConfig(
            lanes=self.lanes,
            n_max=self.max_classes,
            score_bits=SCORE_BITS,
            probability_bits=TARGET_FRACTION_BITS,
        )

    @property
    def count_bits(self) -> int:
        """Width of a number of classes."""
        return self.max_classes.bit_length()

    @property
    def label_bits(self) -> int:
        """Width of a label."""
        return (self.max_classes - 1).bit_length()


def loss_config(chip: ChipConfig) -> LossConfig:
    """As many lanes as the chip's softmax has, two at least, of which a tile of channels is a multiple; as
    many classes as the epilogue's table has channels, at most 1,024."""
    epilogue = epilogue_config(chip)
    channels = epilogue.max_tiles * epilogue.lanes
    return LossConfig(
        lanes=max(2, math.gcd(epilogue.lanes, chip.softmax_lanes)),
        max_classes=min(MAX_CLASSES, 1 << (channels.bit_length() - 1)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is the same for all pictures of a training: the step of the scores, and the targets."""

    fraction_bits: int = 0
    """A score s stands for s 2^-fraction_bits; 0..31."""
    label_target: int = 1 << TARGET_FRACTION_BITS
    """Of the label, unit 2^-17; 0..2^17."""
    other_target: int = 0
    """Of every other class, unit 2^-17; 0..2^17."""

    def __post_init__(self) -> None:
        for name, high in (
            ("fraction_bits", (1 << FRACTION_BITS_BITS) - 1),
            ("label_target", 1 << TARGET_FRACTION_BITS),
            ("other_target", 1 << TARGET_FRACTION_BITS),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in 0..{high}, not {getattr(self, name)}")


def smoothed(epsilon: float, n_classes: int, *, fraction_bits: int) -> Job:
    """Targets epsilon / K of every class and 1 - epsilon more of the label, as PyTorch's ``label_smoothing``.

    That of the others is rounded to the nearest, half to even; the label's is what is left to 1 exactly. So
    the targets are those of an epsilon at most K 2^-18 away.

    Raises
    ------
    ValueError
        ``epsilon`` outside of 0..0.99, which leaves the label a target; ``n_classes`` outside of 2..1,024.
    """
    if not 0 <= epsilon <= 0.99:
        raise ValueError(f"epsilon must be in 0..0.99, not {epsilon}")
    if not MIN_CLASSES <= n_classes <= MAX_CLASSES:
        raise ValueError(f"n_classes must be in {MIN_CLASSES}..{MAX_CLASSES}, not {n_classes}")
    one = 1 << TARGET_FRACTION_BITS
    other = round(epsilon / n_classes * one)
    return Job(fraction_bits=fraction_bits, label_target=one - (n_classes - 1) * other, other_target=other)
