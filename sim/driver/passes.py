# SPDX-License-Identifier: MIT
"""Passes over a map: a depthwise layer with kernel 1, whose epilogue does the work."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.quantise import UnitRecord
from hw.convolution.operations import Depthwise, Epilogue
from hw.depthwise.layer import DepthwiseLayer
from sim.driver.formats import WIDE_SHIFT
from sim.driver.words import multiplier_of


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
