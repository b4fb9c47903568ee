# SPDX-License-Identifier: MIT
"""From a block's record to the operations of a training step of its biases on the convolution core.

Forward, a unit is one operation that also writes the mask of its ReLU6. The distance to the target, a pass
with kernel 1, is the first gradient. Backward, a unit is one operation again: the frozen weights, transposed
or rotated, on gradients of 16 bits, then the mask of the unit before, whose bias's gradient is the sum over
what comes out. At the end the biases move, in the tables that the next step reads. So a step's list is the
same every time: only the input and the target change. A group norm adds passes; see :mod:`.group_norm`.

Between a gradient and its sums the step of each channel's weights has to be multiplied in. Since the sums run
over these channels, the map is written with it, as its reader's scale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from algo.tinytl.quantise import BlockRecord, UnitRecord
from hw.convolution.operations import Conv, Depthwise, Epilogue, Operation, Output, Reduce, lists_of
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation
from hw.systolic.layer import Layer
from hw.training.config import Image
from hw.training.operations import Update
from sim.driver import group_norm, lite
from sim.driver.formats import (
    MASTER_SHIFT,
    REDUCE_SHIFT,
    WIDE_SHIFT,
    distance_unit,
    gradient_unit,
    in_gradient_shift,
    in_gradient_step,
    master_unit,
    norm_format,
    out_gradient_step,
    out_step,
    side_shift,
    value_unit,
    weighted_step,
)
from sim.driver.passes import pass_over
from sim.driver.words import Floats, bias_of, multiplier_of, output_of, step_job

INPUT, WIDE_INPUT, TARGET, OUTPUT = "x", "x.wide", "minus target", "y"
"""Maps that are given (8, 16 and 16 bits; the target with its sign changed), and what the block makes."""
IN_GRADIENT, OUT_GRADIENT = f"{INPUT}.gradient", f"{OUTPUT}.gradient"
"""Maps of the gradients of the block's input and output."""
MAIN_OUTPUT, MAIN_IN_GRADIENT = f"{OUTPUT}.main", f"{IN_GRADIENT}.main"
"""Output and gradient of the input without the lite module's share."""
DISTANCE = "distance"
"""List of the sums over the distance to the target and over its squares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Gradient descent with momentum; ValueError where a number is out of range."""

    rate: float
    """Of biases."""
    momentum: float = 0.9
    """0..1 without 1."""
    weight_rate: float = 0.01
    """Of a lite module's weights and scales."""

    def __post_init__(self) -> None:
        for name in ("rate", "weight_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in 0..1 without 1, not {self.momentum}")

    @property
    def factor(self) -> int:
        """The momentum in units of 2^-16."""
        return min(round(self.momentum * (1 << 16)), (1 << 16) - 1)


def operations(record: BlockRecord, descent: Descent, *, input_gradient: bool = False) -> list[Operation]:
    """A step: forward, backward, update; with ``input_gradient`` also the map :data:`IN_GRADIENT`."""
    made: list[Operation] = []
    for i in range(len(record.units)):
        made += _forward(record, i)
    if record.lite is not None:
        made += lite.forward(record, record.lite, MAIN_OUTPUT, OUTPUT, WIDE_INPUT)
    made.append(_distance(record, input_gradient=input_gradient))
    for i in reversed(range(len(record.units))):
        made += _backward(record, i, further=i > 0 or input_gradient)
    made += [_update(record, unit, descent) for unit in record.units]
    if record.lite is not None:
        rates = descent.rate / _pixels(record), descent.weight_rate / _pixels(record)
        made += lite.backward(record, record.lite, OUT_GRADIENT)
        if input_gradient:
            made += lite.to_input(record, record.lite, MAIN_IN_GRADIENT, IN_GRADIENT)
        made += lite.updates(record.lite, rates, descent.factor, input_gradient=input_gradient)
    return made


def given(record: BlockRecord, x: Floats, target: Floats) -> dict[str, NDArray[np.int64]]:
    """The maps of one example, float[c, H, H] each, as a step reads them: int64[H, H, c]."""
    step = out_step(record)
    maps = {INPUT: (x, record.units[0].in_step, 8), TARGET: (-target, step, 16)}
    if record.shortcut or record.lite is not None:
        maps[WIDE_INPUT] = (x, step, 16)
    integers = {name: _integers(*one) for name, one in maps.items()}
    if record.lite is not None:
        integers[lite.GROUPS] = lite.groups(record.lite.units[0])
    return integers


def _integers(values: Floats, step: float, bits: int) -> NDArray[np.int64]:
    limit = 1 << (bits - 1)
    return np.rint(values.transpose(1, 2, 0) / step).clip(-limit, limit - 1).astype(np.int64)


def carried(operations: Sequence[Operation], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lists that the next step begins with, of all that a step has made."""
    return {name: made[name] for name in lists_of(operations)}


# ---- what a step has made ----------------------------------------------------------------------------------


def loss(record: BlockRecord, made: Mapping[str, Any]) -> float:
    """Half the squared distance to the target, summed over channels, averaged over pixels."""
    return float(made[DISTANCE][:, 1].sum()) * out_step(record) ** 2 / 2 / _pixels(record)


def bias_gradient(record: BlockRecord, unit: UnitRecord, made: Mapping[str, Any]) -> Floats:
    """Of the loss: float64[n_out]."""
    sums = np.asarray(made[_sums(record, unit)][:, 0], np.float64)
    return sums * _sums_unit(record, unit) / _pixels(record)


def bias(record: BlockRecord, unit: UnitRecord, made: Mapping[str, Any]) -> Floats:
    """Its value after the step: float64[n_out]."""
    return np.asarray(made[_master(unit)][:, 0], np.float64) * master_unit(record, unit)


def _pixels(record: BlockRecord) -> int:
    return record.units[-1].out_size ** 2


def _sums(record: BlockRecord, unit: UnitRecord) -> str:
    """List whose first sums are the gradient of the bias."""
    plain_last = unit is record.units[-1] and unit.norm is None
    return DISTANCE if plain_last else f"{unit.name}.sums"


def _sums_unit(record: BlockRecord, unit: UnitRecord) -> float:
    if unit.norm is not None:
        return norm_format(unit).gradient_step
    if unit is record.units[-1]:
        return out_step(record)
    return gradient_unit(unit) * (1 << REDUCE_SHIFT)


def _master(unit: UnitRecord) -> str:
    return f"{unit.name}.bias"


# ---- forward -----------------------------------------------------------------------------------------------


def _forward(record: BlockRecord, i: int) -> list[Operation]:
    unit = record.units[i]
    source = f"{record.units[i - 1].name}.out" if i else INPUT
    step = value_unit(record, unit)
    ended = _ended(record, unit)
    if unit.norm is None:
        multiplier, shift = multiplier_of(unit.in_step * unit.steps / step)
        whole = Epilogue(multiplier=multiplier, shift=shift, bias=bias_of(unit.bias, step), **ended)
        return [_convolution(unit, source, whole)]
    sums = group_norm.sums_epilogue(unit)
    return [_convolution(unit, source, sums), *group_norm.forward(unit, _master(unit), ended)]


def _ended(record: BlockRecord, unit: UnitRecord) -> dict[str, Any]:
    """What the epilogue does once the bias is added: ReLU6, or shortcut and output; fields of it."""
    step, table = value_unit(record, unit), f"{unit.name}.table"
    ones = np.ones(unit.n_out)
    if unit.top is not None:
        return {
            "activation": Activation.RELU6,
            "limit": round(unit.top / step),
            "outputs": (output_of(f"{unit.name}.out", 8, ones * step / unit.out_step),),
            "mask": f"{unit.name}.mask",
            "named_table": table,
        }
    of_map = out_step(record) / step
    return {
        "residual": WIDE_INPUT if record.shortcut else None,
        "side_shift": side_shift(of_map) if record.shortcut else 0,
        "outputs": (output_of(OUTPUT if record.lite is None else MAIN_OUTPUT, 16, ones / of_map),),
        "named_table": table,
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


def _distance(record: BlockRecord, *, input_gradient: bool) -> Operation:
    """Output less target; its sum of squares is the loss."""
    unit, step = record.units[-1], distance_unit(record)
    outputs = [_gradient_output(unit, step)]
    if record.lite is not None or (record.shortcut and input_gradient):
        outputs.append(output_of(OUT_GRADIENT, 16, np.full(unit.n_out, step / out_gradient_step(record))))
    return pass_over(
        OUTPUT, unit, name=DISTANCE, residual=TARGET, side_shift=WIDE_SHIFT, outputs=tuple(outputs),
        reduce=Reduce(name=DISTANCE, shift=WIDE_SHIFT),
    )  # fmt: skip


def _gradient_output(unit: UnitRecord, step: float) -> Output:
    """The gradient of u, in units of ``step``, for who reads it: the next convolution, or the group norm."""
    name = f"{unit.name}.gradient"
    if unit.norm is not None:
        return output_of(name, 16, np.full(unit.n_out, step / norm_format(unit).gradient_step))
    return output_of(name, 16, unit.steps * step / weighted_step(unit))


# ---- backward ----------------------------------------------------------------------------------------------


def _backward(record: BlockRecord, i: int, *, further: bool) -> list[Operation]:
    """From the gradient of unit ``i`` to that of the unit before, or of the block's input; without
    ``further`` only what its bias needs."""
    unit = record.units[i]
    made = [] if unit.norm is None else group_norm.backward(unit, further=further)
    if not further:
        return made
    epilogue = _to_unit(unit, record.units[i - 1]) if i else _to_input(record)
    return [*made, _adjoint(unit, f"{unit.name}.{'gradient' if unit.norm is None else 'back'}", epilogue)]


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


def _to_unit(unit: UnitRecord, before: UnitRecord) -> Epilogue:
    step = gradient_unit(before)
    reduce = Reduce(name=f"{before.name}.sums", shift=REDUCE_SHIFT) if before.norm is None else None
    return _scaled(
        unit, step, masked_by=f"{before.name}.mask", outputs=(_gradient_output(before, step),), reduce=reduce
    )


def _to_input(record: BlockRecord) -> Epilogue:
    unit = record.units[0]
    name = IN_GRADIENT if record.lite is None else MAIN_IN_GRADIENT
    shift = in_gradient_shift(record)
    step = out_gradient_step(record) / (1 << shift)
    return _scaled(
        unit,
        step,
        residual=OUT_GRADIENT if record.shortcut else None,
        side_shift=shift if record.shortcut else 0,
        outputs=(output_of(name, 16, np.full(unit.n_in, step / in_gradient_step(record))),),
    )


def _scaled(unit: UnitRecord, step: float, **more: Any) -> Epilogue:
    multiplier, shift = multiplier_of(np.full(unit.n_in, weighted_step(unit) / step))
    return Epilogue(multiplier=multiplier, shift=shift, bias=np.zeros(unit.n_in, np.int32), **more)


# ---- update ------------------------------------------------------------------------------------------------


def _update(record: BlockRecord, unit: UnitRecord, descent: Descent) -> Update:
    per_pixel = _sums_unit(record, unit) / _pixels(record)
    ratio = descent.rate * per_pixel / master_unit(record, unit)
    image = Image.BIAS if unit.norm is None else Image.NONE
    return Update(
        name=f"{unit.name}.update",
        master=_master(unit),
        shape=(unit.n_out,),
        gradient=_sums(record, unit),
        job=step_job(
            _master(unit), ratio, descent.factor, image, 0 if image == Image.NONE else MASTER_SHIFT
        ),
        image=None if image == Image.NONE else f"{unit.name}.table",
        start=np.rint(unit.bias / master_unit(record, unit)).astype(np.int64),
    )  # fmt: skip
