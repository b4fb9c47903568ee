# SPDX-License-Identifier: MIT
"""From a block's record to the operations of a training step of it alone on the convolution core.

The distance to the target, a pass with kernel 1, is the first gradient. A step's list is the same every time:
only the input and the target change; what is trained lives in lists that the step rewrites.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from algo.tinytl.quantise import BlockRecord, UnitRecord
from hw.convolution.operations import Operation, Reduce, lists_of
from sim.driver import block, lite, units
from sim.driver.block import IN_GRADIENT, OUTPUT
from sim.driver.descent import Descent
from sim.driver.formats import WIDE_SHIFT, MapFormat, in_gradient_step, out_step
from sim.driver.passes import pass_over
from sim.driver.units import Sums
from sim.driver.words import Floats

TARGET = "minus target"
"""Given map of 16 bits: the target with its sign changed."""
DISTANCE = "distance"
"""List of the sums over the distance to the target and over its squares."""


def operations(record: BlockRecord, descent: Descent, *, input_gradient: bool = False) -> list[Operation]:
    """A step: forward, backward, update; with ``input_gradient`` also the map :data:`IN_GRADIENT`."""
    before = MapFormat(name=record.name + IN_GRADIENT, bits=16, step=in_gradient_step(record))
    n_in = record.units[0].n_in
    return [
        *block.forward(record, [_output(record)]),
        _distance(record, input_gradient=input_gradient),
        *block.backward(
            record, (lambda step: {"outputs": (before.output(n_in, step),)}) if input_gradient else None
        ),
        *block.updates(
            record, descent, _distance_sums(record), further=input_gradient, share=1 / _pixels(record)
        ),
    ]


def given(record: BlockRecord, x: Floats, target: Floats) -> dict[str, NDArray[np.int64]]:
    """The maps of one example, float[c, H, H] each, as a step reads them: int64[H, H, c]."""
    minus_target = MapFormat(name=record.name + TARGET, bits=16, step=out_step(record))
    return {minus_target.name: integers(-target, minus_target), **inputs(record, x)}


def inputs(record: BlockRecord, x: Floats) -> dict[str, NDArray[np.int64]]:
    """The maps of a block's input, float[c, H, H], that a step reads, and constants."""
    formats = [block.input_format(record), block.wide_format(record)]
    return {one.name: integers(x, one) for one in formats if one is not None} | constants(record)


def constants(record: BlockRecord) -> dict[str, NDArray[np.int64]]:
    """Maps that are given to every step."""
    if record.lite is None:
        return {}
    return {record.lite.name + lite.GROUPS: lite.groups(record.lite.units[0])}


def integers(values: Floats, of: MapFormat) -> NDArray[np.int64]:
    """float[c, H, H] as a map, int64[H, H, c]."""
    limit = 1 << (of.bits - 1)
    return np.rint(values.transpose(1, 2, 0) / of.step).clip(-limit, limit - 1).astype(np.int64)


def carried(operations: Sequence[Operation], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Lists that the next step begins with, of all that a step has made."""
    return {name: made[name] for name in lists_of(operations)}


def _output(record: BlockRecord) -> MapFormat:
    return MapFormat(name=record.name + OUTPUT, bits=16, step=out_step(record))


def _distance(record: BlockRecord, *, input_gradient: bool) -> Operation:
    """Output less target; its sum of squares is the loss."""
    fields = block.arriving(record, out_step(record) / (1 << WIDE_SHIFT), further=input_gradient)
    sums = Reduce(name=record.name + DISTANCE, shift=WIDE_SHIFT)
    return pass_over(
        record.name + OUTPUT, record.units[-1], name=record.name + DISTANCE, residual=record.name + TARGET,
        side_shift=WIDE_SHIFT, **fields | {"reduce": sums},
    )  # fmt: skip


def _distance_sums(record: BlockRecord) -> Sums:
    return Sums(record.name + DISTANCE, out_step(record))


def _pixels(record: BlockRecord) -> int:
    return record.units[-1].out_size ** 2


# ---- what a step has made ----------------------------------------------------------------------------------


def loss(record: BlockRecord, made: Mapping[str, Any]) -> float:
    """Half the squared distance to the target, summed over channels, averaged over pixels."""
    squares = made[record.name + DISTANCE][:, 1]
    return float(squares.sum()) * out_step(record) ** 2 / 2 / _pixels(record)


def bias_gradient(record: BlockRecord, unit: UnitRecord, made: Mapping[str, Any]) -> Floats:
    """Of the loss: float64[n_out]."""
    of = {one.name: sums for one, _, sums in block.biases(record, _distance_sums(record))}
    return units.bias_gradient(of[unit.name], made) / _pixels(record)


def bias(record: BlockRecord, unit: UnitRecord, made: Mapping[str, Any]) -> Floats:
    """Its value after the step: float64[n_out]."""
    of = {one.name: step for one, step, _ in block.biases(record, _distance_sums(record))}
    return units.bias(unit, of[unit.name], made)
