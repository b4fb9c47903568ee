# SPDX-License-Identifier: MIT
"""Epilogues that scale all channels alike; passes over a map, for the sake of the epilogue."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.quantise import UnitRecord
from hw.convolution.operations import Depthwise, Epilogue, MapShape, Output, Transposed
from hw.depthwise.layer import DepthwiseLayer
from sim.driver.formats import WIDE_SHIFT
from sim.driver.words import multiplier_of, output_of


def pass_over(
    source: str, unit: UnitRecord, *, name: str, signs: NDArray[np.int8] | None = None, **more: Any
) -> Depthwise:
    """Over a map of 16 bits as large as the unit's output.

    Values are the map's integers times 2^WIDE_SHIFT, unless fields of the epilogue say otherwise; ``signs``
    are -1 for channels that change theirs.
    """
    ones = np.ones(unit.n_out, np.int8)
    multiplier, shift = multiplier_of(np.full(unit.n_out, float(1 << WIDE_SHIFT)))
    fields = {"multiplier": multiplier, "shift": shift, "bias": np.zeros(unit.n_out, np.int32), **more}
    return Depthwise(
        name=name,
        layer=DepthwiseLayer(
            height=unit.out_size, width=unit.out_size, channels=unit.n_out, kernel=1, wide=True
        ),
        source=source,
        weights=(ones if signs is None else signs)[:, None, None],
        epilogue=Epilogue(**fields),
    )


def transposed(source: str, height: int, width: int, channels: int, name: str) -> Transposed:
    """Of a map of 16 bits, exactly."""
    return Transposed(
        name=name,
        shape=MapShape(height=height, width=width, channels=channels, bits=16),
        source=source,
        epilogue=scaled(height * width, 1 << WIDE_SHIFT, outputs=(whole(name, height * width),)),
    )


def scaled(channels: int, factor: float, **more: Any) -> Epilogue:
    """Values are the sums times ``factor``; ``more`` fields of the epilogue."""
    multiplier, shift = multiplier_of(np.full(channels, float(factor)))
    return Epilogue(multiplier=multiplier, shift=shift, bias=np.zeros(channels, np.int32), **more)


def whole(name: str, channels: int, bits: int = 16) -> Output:
    """Values less the bits below the map's unit."""
    return output_of(name, bits, np.full(channels, 1 / (1 << WIDE_SHIFT)))
