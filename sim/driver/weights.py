# SPDX-License-Identifier: MIT
"""Trained weights of a convolution: forward, adjoint, their gradient and update.

A weight's gradient is a sum over pixels. So the gradient of a convolution's sums is transposed: its pixels
become channels, over which the array sums, and the activations are the weights that it meets, a tap's at a
time. The result is transposed again, into the order in which the forward pass reads weights. Where the
backward pass needs them in the other order they are kept, and moved, twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.quantise import UnitRecord
from hw.convolution.operations import Conv, Epilogue, Operation, PixelWeights, Transposed
from hw.systolic.layer import Layer
from hw.training.config import Image
from hw.training.config import Update as Job
from hw.training.operations import Gradient, Update
from sim.driver.formats import WIDE_SHIFT
from sim.driver.passes import scaled, transposed, whole
from sim.driver.words import Floats, step_job

WEIGHT_SHIFT = 24
"""Bits that a trained weight's 32 have below its 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Of a unit, all in one step."""

    unit: UnitRecord
    sum_gradient_step: float
    """Of the planar map :func:`rows_gradient`."""
    gradient_step: float
    """Of the maps of the weights' gradient."""
    mask: str | None = None
    """Given mask [n_out, 1, n_in]: which weights of each tap there are."""


def convolution(unit: UnitRecord, source: str, epilogue: Epilogue) -> Conv:
    """Forward."""
    layer = Layer(
        height=unit.in_size, width=unit.in_size, n_in=unit.n_in, n_out=unit.n_out, kernel=unit.kernel,
        stride=unit.stride, padding=unit.padding,
    )  # fmt: skip
    return Conv(
        name=unit.name, layer=layer, source=source, weights=unit.weights, epilogue=epilogue,
        named_weights=forward_weights(unit),
    )  # fmt: skip


def adjoint(unit: UnitRecord, source: str, epilogue: Epilogue) -> Conv:
    """From the gradient of the sums (with stride 2: zeros between its pixels) to that of the input."""
    layer = Layer(
        height=unit.in_size, width=unit.in_size, n_in=unit.n_out, n_out=unit.n_in, kernel=unit.kernel,
        padding=unit.kernel - 1 - unit.padding, wide=True,
    )  # fmt: skip
    return Conv(
        name=f"{unit.name}.adjoint", layer=layer, source=source, weights=in_adjoint_order(unit),
        epilogue=epilogue, named_weights=adjoint_weights(unit),
    )  # fmt: skip


def in_adjoint_order(unit: UnitRecord) -> NDArray[np.int8]:
    """Outputs and inputs exchanged, rotated."""
    return np.ascontiguousarray(unit.weights.swapaxes(0, 1)[..., ::-1, ::-1])


def pixels_last(unit: UnitRecord) -> Transposed:
    """The gradient of the sums, its pixels as channels."""
    return transposed(rows_gradient(unit), unit.out_size, unit.out_size, unit.n_out, _pixels(unit))


def gradient(of: Weights, tap: int, rows: str) -> list[Operation]:
    """Of a tap's weights, that meet the planar map ``rows`` of 8 bits: first [n_out, 1, n_in], then
    [n_in, 1, n_out]."""
    unit, pixels = of.unit, of.unit.out_size
    step = of.gradient_step / (1 << WIDE_SHIFT)
    columns = _columns(unit, tap)
    product = Conv(
        name=columns,
        layer=Layer(height=unit.n_out, width=1, n_in=pixels**2, n_out=unit.n_in, kernel=1, wide=True),
        source=_pixels(unit),
        weights=PixelWeights(name=rows, height=pixels, width=pixels),
        epilogue=scaled(
            unit.n_in, of.sum_gradient_step * unit.in_step / step, masked_by=of.mask,
            outputs=(whole(columns, unit.n_in),),
        ),
    )  # fmt: skip
    return [product, transposed(columns, unit.n_out, 1, unit.n_in, _of_tap(unit, tap))]


def gradient_of(of: Weights, made: Mapping[str, Any]) -> Floats:
    """What a step has made of it: float64[n_out, n_in, k, k]."""
    unit = of.unit
    taps = np.stack([np.asarray(made[_of_tap(unit, tap)][:, 0]) for tap in range(unit.kernel**2)])
    return taps.transpose(2, 1, 0).reshape(unit.weights.shape) * of.gradient_step


def update(of: Weights, rate: float, momentum: int) -> Update:
    """Of the order in which the forward pass reads weights; ``momentum`` over 2^16."""
    unit = of.unit
    start = _rows_of(unit.weights)
    return Update(
        name=f"{forward_weights(unit)}.update", master=f"{forward_weights(unit)}.master", shape=start.shape,
        gradient_from=Gradient.MAP, gradient=tuple(_of_tap(unit, tap) for tap in range(unit.kernel**2)),
        job=_job(of, rate, momentum), image=forward_weights(unit), start=start << WEIGHT_SHIFT,
    )  # fmt: skip


def adjoint_update(of: Weights, rate: float, momentum: int) -> Update:
    """Of the order in which the adjoint reads them."""
    unit = of.unit
    start = _rows_of(in_adjoint_order(unit))
    return Update(
        name=f"{adjoint_weights(unit)}.update", master=f"{adjoint_weights(unit)}.master",
        shape=start.shape, gradient_from=Gradient.MAP,
        gradient=tuple(_columns(unit, tap) for tap in reversed(range(unit.kernel**2))),
        job=_job(of, rate, momentum), image=adjoint_weights(unit), start=start << WEIGHT_SHIFT,
    )  # fmt: skip


def _rows_of(weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """[n_out, n_in, k, k] to [k k, n_in, n_out], the order of rows of weights."""
    n_out, n_in, kernel, _ = weights.shape
    return weights.astype(np.int64).transpose(2, 3, 1, 0).reshape(kernel**2, n_in, n_out)


def _job(of: Weights, rate: float, momentum: int) -> Job:
    unit_of_master = of.unit.steps[0] / (1 << WEIGHT_SHIFT)
    ratio = rate * of.gradient_step / unit_of_master
    return step_job(forward_weights(of.unit), ratio, momentum, Image.BYTES, WEIGHT_SHIFT)


# ---- names -------------------------------------------------------------------------------------------------


def forward_weights(unit: UnitRecord) -> str:
    """List of the weights."""
    return f"{unit.name}.weights"


def adjoint_weights(unit: UnitRecord) -> str:
    """List of the weights in the order of the adjoint."""
    return f"{unit.name}.adjoint.weights"


def rows_gradient(unit: UnitRecord) -> str:
    """Map of the gradient of the sums, planar, to be transposed."""
    return f"{unit.name}.rows.gradient"


def _pixels(unit: UnitRecord) -> str:
    return f"{unit.name}.pixels"


def _columns(unit: UnitRecord, tap: int) -> str:
    """Gradient of a tap's weights, [n_out, 1, n_in]."""
    return f"{unit.name}.{tap}.columns"


def _of_tap(unit: UnitRecord, tap: int) -> str:
    return f"{unit.name}.{tap}.weights.gradient"
