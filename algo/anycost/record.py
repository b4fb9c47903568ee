# SPDX-License-Identifier: MIT
"""One image of a generator as the hardware needs it: integers, their steps, and the floats of its epilogues.

Imports numpy only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Of one convolution, for every image and sub-generator."""

    integers: NDArray[np.int8]
    """int8[n_out, n_in, k, k]"""
    steps: Floats
    """Value of one unit, by output: float64[n_out]."""
    gains: Floats
    """By which inputs are divided beforehand: float64[n_in]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """How a map is stored for one reader: integer = value x factors[c] / step."""

    name: str
    """Of the map."""
    factors: Floats
    """Style over gain, float64[channels]."""
    step: float
    bits: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ConvRecord:
    """One convolution of one image. Values are those of the float generator.

    value = demodulation[o] x (sum of weights x inputs), blurred if ``up``, + noise + bias[o]; then
    leaky ReLU and sqrt 2 if ``activated``. toRGB has neither demodulation (1), noise nor activation.
    """

    name: str
    size: int
    """Pixels of a side of the input."""
    n_in: int
    n_out: int
    kernel: int
    up: bool
    activated: bool
    source: Reader
    weights: Weights
    demodulation: Floats
    """float64[n_out]"""
    bias: Floats
    """float64[n_out]"""
    noise: Floats | None
    """float64[H, W], times its strength; None where that is 0."""
    peak: float
    """Largest magnitude before the activation that was seen."""
    between: float
    """The same of the map between transposed convolution and blur; 0 if not ``up``."""
    readers: tuple[Reader, ...]
    """Empty for toRGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorRecord:
    """One image: what the hardware computes, with every number that it needs."""

    resolution: int
    constant: NDArray[np.int64]
    """The first map as it is stored, int64[4, 4, C]."""
    convs: tuple[ConvRecord, ...]
    to_rgb: tuple[ConvRecord, ...]
    """One a level."""
    image_peak: float
    """Largest magnitude of any level's image that was seen."""
