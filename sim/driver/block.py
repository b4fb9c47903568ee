# SPDX-License-Identifier: MIT
"""A block in a training step: forward, backward, its biases, and those of a lite residual module.

It reads its input in 8 bits and, for shortcut and lite module, in 16; what its output is written as depends
on who reads it. Backward it begins with the maps that :func:`arriving` describes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from algo.tinytl.quantise import BlockRecord, UnitRecord
from hw.convolution.operations import Operation
from hw.training.operations import Update
from sim.driver import lite, units
from sim.driver.descent import Descent
from sim.driver.formats import (
    MapFormat,
    gradient_unit,
    in_gradient_shift,
    in_gradient_step,
    in_gradient_unit,
    out_gradient_step,
    out_step,
    out_unit,
    side_shift,
    value_unit,
)
from sim.driver.units import Sums
from sim.driver.words import output_of

INPUT, WIDE_INPUT, OUTPUT = "x", "x.wide", "y"
"""Maps of a block, whose names begin with the block's: its input in 8 and 16 bits, its output."""
IN_GRADIENT, OUT_GRADIENT = f"{INPUT}.gradient", f"{OUTPUT}.gradient"
"""Maps of the gradients of the block's input and output."""
MAIN_OUTPUT, MAIN_IN_GRADIENT = f"{OUTPUT}.main", f"{IN_GRADIENT}.main"
"""Output and gradient of the input without the lite module's share."""

Fields = Mapping[str, Any]
"""Of an epilogue."""


def input_format(record: BlockRecord) -> MapFormat:
    """The 8-bit input."""
    return MapFormat(name=record.name + INPUT, bits=8, step=record.units[0].in_step)


def wide_format(record: BlockRecord) -> MapFormat | None:
    """The 16-bit input, where there is a reader."""
    if not record.shortcut and record.lite is None:
        return None
    return MapFormat(name=record.name + WIDE_INPUT, bits=16, step=out_step(record))


def forward(record: BlockRecord, outputs: Sequence[MapFormat]) -> list[Operation]:
    """From the input to ``outputs``, one or two."""
    made: list[Operation] = []
    source = record.name + INPUT
    for unit in record.units[:-1]:
        step = value_unit(unit)
        made += units.forward(unit, source, step, units.activated(unit, step))
        source = units.out(unit)
    made += units.forward(record.units[-1], source, out_unit(record), _ended(record, outputs))
    if record.lite is not None:
        main, wide = record.name + MAIN_OUTPUT, record.name + WIDE_INPUT
        made += lite.forward(record, record.lite, main, outputs, wide)
    return made


def _ended(record: BlockRecord, outputs: Sequence[MapFormat]) -> dict[str, Any]:
    """Shortcut and output of the last unit."""
    step = out_unit(record)
    if record.lite is not None:
        outputs = [MapFormat(name=record.name + MAIN_OUTPUT, bits=16, step=out_step(record))]
    return {
        "residual": record.name + WIDE_INPUT if record.shortcut else None,
        "side_shift": side_shift(out_step(record) / step) if record.shortcut else 0,
        "outputs": tuple(one.output(record.units[-1].n_out, step) for one in outputs),
    }


def arriving(record: BlockRecord, step: float, *, further: bool) -> dict[str, Any]:
    """What becomes of the gradient of the output, in units of ``step``, where it is made; fields of an
    epilogue. ``further``: the gradient of the input is needed, too."""
    unit = record.units[-1]
    whole = []
    if record.lite is not None or (record.shortcut and further):
        to_map = np.full(unit.n_out, step / out_gradient_step(record))
        whole.append(output_of(record.name + OUT_GRADIENT, 16, to_map))
    return units.arriving(unit, step, *whole)


def backward(record: BlockRecord, before: Callable[[float], Fields] | None) -> list[Operation]:
    """From the gradient of the output to those of biases and of a lite module, and to that of the input:
    ``before`` tells the fields of the epilogue that makes it, given its unit."""
    made: list[Operation] = []
    for unit, previous in zip(record.units[:0:-1], record.units[-2::-1], strict=True):
        step = gradient_unit(previous)
        made += units.backward(unit, step, units.masked(previous, step))
    made += _to_input(record, before)
    if record.lite is not None:
        made += lite.backward(record, record.lite, record.name + OUT_GRADIENT)
        if before is not None:
            main, fields = record.name + MAIN_IN_GRADIENT, before(in_gradient_unit(record))
            made += lite.to_input(record, record.lite, main, fields)
    return made


def _to_input(record: BlockRecord, before: Callable[[float], Fields] | None) -> list[Operation]:
    """Of the main branch."""
    unit, shift = record.units[0], in_gradient_shift(record)
    step = out_gradient_step(record) / (1 << shift)
    if before is None:
        return units.backward(unit, step, None)
    if record.lite is None:
        fields = dict(before(step))
    else:
        to_map = np.full(unit.n_in, step / in_gradient_step(record))
        fields = {"outputs": (output_of(record.name + MAIN_IN_GRADIENT, 16, to_map),)}
    if record.shortcut:
        fields |= {"residual": record.name + OUT_GRADIENT, "side_shift": shift}
    return units.backward(unit, step, fields)


def biases(record: BlockRecord, out_sums: Sums) -> Iterator[tuple[UnitRecord, float, Sums]]:
    """Each unit, the unit of its bias's values, and where the bias's gradient is: of the last one, without a
    norm, in ``out_sums``."""
    for unit in record.units[:-1]:
        yield unit, value_unit(unit), units.masked_sums(unit)
    last = record.units[-1]
    yield last, out_unit(record), out_sums if last.norm is None else units.masked_sums(last)


def updates(
    record: BlockRecord, descent: Descent, out_sums: Sums, *, further: bool, share: float = 1.0
) -> list[Update]:
    """Of all that is trained; ``share``: of the loss whose gradients the step has made."""
    rate, weight_rate = descent.rate * share, descent.weight_rate * share
    made = [units.update(*of, rate, descent.factor) for of in biases(record, out_sums)]
    if record.lite is not None:
        made += lite.updates(record.lite, (rate, weight_rate), descent.factor, input_gradient=further)
    return made
