# SPDX-License-Identifier: MIT
"""A unit, that is a convolution with its norm and ReLU6, in a training step: forward, backward, its bias.

Forward it is one operation that also writes the mask of its ReLU6; backward one again: the frozen weights,
transposed or rotated, on gradients of 16 bits. A group norm adds passes; see :mod:`.group_norm`.

Between a gradient and its sums the step of each channel's weights has to be multiplied in. Since the sums run
over these channels, the map is written with it, as its reader's scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from algo.tinytl.quantise import UnitRecord
from hw.convolution.operations import Conv, Depthwise, Epilogue, Operation, Output, Reduce
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation
from hw.systolic.layer import Layer
from hw.training.config import Image
from hw.training.operations import Update
from sim.driver import group_norm
from sim.driver.formats import MASTER_SHIFT, REDUCE_SHIFT, gradient_unit, norm_format, weighted_step
from sim.driver.words import Floats, bias_of, multiplier_of, output_of, step_job


@dataclass(frozen=True, slots=True)
class Sums:
    """Where the gradient of a bias is: the first sums of a list, and the value of their unit."""

    name: str
    unit: float


def forward(unit: UnitRecord, source: str, step: float, ended: Mapping[str, Any]) -> list[Operation]:
    """From the map ``source`` to u, in units of ``step``; ``ended``: what the epilogue does then."""
    ended = {**ended, "named_table": table(unit)}
    if unit.norm is None:
        multiplier, shift = multiplier_of(unit.in_step * unit.steps / step)
        whole = Epilogue(multiplier=multiplier, shift=shift, bias=bias_of(unit.bias, step), **ended)
        return [_convolution(unit, source, whole)]
    sums = group_norm.sums_epilogue(unit)
    return [_convolution(unit, source, sums), *group_norm.forward(unit, master(unit), ended)]


def activated(unit: UnitRecord, step: float) -> dict[str, Any]:
    """ReLU6 of u, in units of ``step``, its mask, and the map :func:`out`; fields of an epilogue."""
    assert unit.top is not None
    return {
        "activation": Activation.RELU6,
        "limit": round(unit.top / step),
        "outputs": (output_of(out(unit), 8, np.full(unit.n_out, step / unit.out_step)),),
        "mask": f"{unit.name}.mask",
    }


def _convolution(unit: UnitRecord, source: str, epilogue: Epilogue) -> Operation:
    if not unit.depthwise:
        dense = Layer(height=unit.in_size, width=unit.in_size, n_in=unit.n_in, n_out=unit.n_out, kernel=1)
        return Conv(name=unit.name, layer=dense, source=source, weights=unit.weights, epilogue=epilogue)
    layer = DepthwiseLayer(
        height=unit.in_size, width=unit.in_size, channels=unit.n_out, kernel=unit.kernel, stride=unit.stride,
        padding=unit.padding, out_height=unit.out_size, out_width=unit.out_size,
    )  # fmt: skip
    return Depthwise(
        name=unit.name, layer=layer, source=source, weights=unit.weights[:, 0], epilogue=epilogue
    )


# ---- backward ----------------------------------------------------------------------------------------------


def gradient_output(unit: UnitRecord, step: float) -> Output:
    """The gradient of u, in units of ``step``, for who reads it: the convolution's adjoint, or the norm."""
    name = f"{unit.name}.gradient"
    if unit.norm is not None:
        return output_of(name, 16, np.full(unit.n_out, step / norm_format(unit).gradient_step))
    return output_of(name, 16, unit.steps * step / weighted_step(unit))


def arriving(unit: UnitRecord, step: float, *more: Output) -> dict[str, Any]:
    """What becomes of the gradient of u, in units of ``step``, where it is made; fields of an epilogue."""
    reduce = Reduce(name=f"{unit.name}.sums", shift=REDUCE_SHIFT) if unit.norm is None else None
    return {"outputs": (gradient_output(unit, step), *more), "reduce": reduce}


def masked(unit: UnitRecord, step: float) -> dict[str, Any]:
    """The same of a unit with ReLU6."""
    return {"masked_by": f"{unit.name}.mask", **arriving(unit, step)}


def sums(unit: UnitRecord, step: float) -> Sums:
    """Of what :func:`arriving` has made."""
    name = f"{unit.name}.sums"
    if unit.norm is not None:
        return Sums(name, norm_format(unit).gradient_step)
    return Sums(name, step * (1 << REDUCE_SHIFT))


def masked_sums(unit: UnitRecord) -> Sums:
    """Of a unit whose gradient is made in its own unit."""
    return sums(unit, gradient_unit(unit))


def backward(unit: UnitRecord, step: float, fields: Mapping[str, Any] | None) -> list[Operation]:
    """From the gradient of u to that of the unit's input, in units of ``step``, of which an epilogue with
    ``fields`` makes something; without them only what the bias needs."""
    made = [] if unit.norm is None else group_norm.backward(unit, further=fields is not None)
    if fields is None:
        return made
    source = f"{unit.name}.{'gradient' if unit.norm is None else 'back'}"
    multiplier, shift = multiplier_of(np.full(unit.n_in, weighted_step(unit) / step))
    epilogue = Epilogue(multiplier=multiplier, shift=shift, bias=np.zeros(unit.n_in, np.int32), **fields)
    return [*made, _adjoint(unit, source, epilogue)]


def _adjoint(unit: UnitRecord, source: str, epilogue: Epilogue) -> Operation:
    """The convolution's, with respect to its input."""
    name = f"{unit.name}.adjoint"
    if not unit.depthwise:
        dense = Layer(
            height=unit.out_size, width=unit.out_size, n_in=unit.n_out, n_out=unit.n_in, kernel=1, wide=True
        )
        transposed = np.ascontiguousarray(unit.weights.swapaxes(0, 1))
        return Conv(name=name, layer=dense, source=source, weights=transposed, epilogue=epilogue)
    weights, padding = unit.weights[:, 0], unit.padding
    if unit.stride == 1:
        weights, padding = np.ascontiguousarray(weights[:, ::-1, ::-1]), unit.kernel - 1 - padding
    layer = DepthwiseLayer(
        height=unit.out_size, width=unit.out_size, channels=unit.n_out, kernel=unit.kernel,
        stride=unit.stride, transposed=unit.stride == 2, padding=padding, out_height=unit.in_size,
        out_width=unit.in_size, wide=True,
    )  # fmt: skip
    return Depthwise(name=name, layer=layer, source=source, weights=weights, epilogue=epilogue)


# ---- the bias ----------------------------------------------------------------------------------------------


def update(unit: UnitRecord, step: float, of: Sums, rate: float, momentum: int) -> Update:
    """Of the bias, whose values the epilogue reads in units of ``step``; ``momentum`` over 2^16."""
    unit_of_master = step / (1 << MASTER_SHIFT)
    image = Image.BIAS if unit.norm is None else Image.NONE
    return Update(
        name=f"{unit.name}.update",
        master=master(unit),
        shape=(unit.n_out,),
        gradient=of.name,
        job=step_job(
            master(unit), rate * of.unit / unit_of_master, momentum, image,
            0 if image == Image.NONE else MASTER_SHIFT,
        ),
        image=None if image == Image.NONE else table(unit),
        start=np.rint(unit.bias / unit_of_master).astype(np.int64),
    )  # fmt: skip


def bias_gradient(of: Sums, made: Mapping[str, Any]) -> Floats:
    """What a step has made of it: float64[n_out]."""
    return np.asarray(made[of.name][:, 0], np.float64) * of.unit


def bias(unit: UnitRecord, step: float, made: Mapping[str, Any]) -> Floats:
    """Its value after the step: float64[n_out]."""
    return np.asarray(made[master(unit)][:, 0], np.float64) * step / (1 << MASTER_SHIFT)


def out(unit: UnitRecord) -> str:
    """Map of 8 bits behind the activation."""
    return f"{unit.name}.out"


def master(unit: UnitRecord) -> str:
    """List of the bias in 32 bits."""
    return f"{unit.name}.bias"


def table(unit: UnitRecord) -> str:
    """Table of the epilogue that adds the bias."""
    return f"{unit.name}.table"
