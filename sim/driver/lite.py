# SPDX-License-Identifier: MIT
"""A lite residual module as operations: forward, backward, and the update of its weights.

Forward it pools the block's wide input, and what it makes is enlarged onto the main branch's output. Its
convolutions are dense; their weights from one group to the other are 0, and so are kept by a mask on their
gradient. Names begin with the module's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.architecture import LITE_GROUPS
from algo.tinytl.quantise import ACTIVATION_LIMIT, WEIGHT_HEADROOM, BlockRecord, LiteRecord, UnitRecord
from hw.convolution.operations import Conv, Depthwise, Operation, Output, Reduce
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation, Reduction
from hw.training.config import Image
from hw.training.operations import Gradient, Update
from sim.driver import group_norm, weights
from sim.driver.formats import (
    GAMMA_SHIFT,
    GAMMA_UNIT,
    MASTER_SHIFT,
    NORM_UNIT,
    REDUCE_SHIFT,
    SUM_LIMIT,
    WIDE_SHIFT,
    MapFormat,
    gradient_unit,
    in_gradient_unit,
    norm_format,
    norm_of,
    out_gradient_step,
    out_step,
    weighted_step,
)
from sim.driver.passes import scaled, whole
from sim.driver.weights import Weights
from sim.driver.words import FILL, VALUE_LIMIT, WIDE_LIMIT, Floats, output_of, step_job

GROUPS = ".groups"
"""Given mask: where an output and an input channel of the first convolution belong to one group."""
POOLED, POOLED_ROWS, SMALL = ".in", ".in.rows", ".out"
"""Maps: the input pooled, as the array and as the depthwise unit read it; what is enlarged."""
SMALL_STEP_SHIFT = 5
"""Bits of a normed value below the unit of what is enlarged: up to 16 at a scale of 1."""
BILINEAR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.int8)
"""Weights of the bilinear enlargement by two, times 16."""


def forward(
    record: BlockRecord, lite: LiteRecord, main: str, outputs: Sequence[MapFormat], wide_input: str
) -> list[Operation]:
    """From the wide input to the block's ``outputs``, added to the map ``main``."""
    first, second = lite.units
    return [
        _pool(record, lite, wide_input),
        weights.convolution(first, lite.name + POOLED, group_norm.sums_epilogue(first)),
        *group_norm.forward(first, _bias(first), _activated(first)),
        weights.convolution(second, _out(first), group_norm.sums_epilogue(second)),
        *group_norm.forward(second, _bias(second), _scaled(lite), scaled=False),
        _enlarged(record, lite, main, outputs),
    ]


def backward(record: BlockRecord, lite: LiteRecord, out_gradient: str) -> list[Operation]:
    """From the gradient of the block's output to the gradients of everything that is trained."""
    first, second = lite.units
    return [
        _reduced(record, lite, out_gradient),
        group_norm.scale_gradient(second, _scale_sums(second)),
        *group_norm.backward(second, further=True, growth=WEIGHT_HEADROOM, more=(_planar(second),)),
        weights.pixels_last(second),
        *weights.gradient(_trained(lite, 1), 0, _rows(first)),
        _to_first(second, first),
        *group_norm.backward(
            first, further=True, trained=True, growth=WEIGHT_HEADROOM, more=(_planar(first),)
        ),
        group_norm.scale_gradient(first, f"{first.name}.sums"),
        weights.pixels_last(first),
        *(
            operation
            for tap in range(first.kernel**2)
            for operation in (
                _shifted(lite, tap),
                *weights.gradient(_trained(lite, 0), tap, _tap(first, tap)),
            )
        ),
    ]


def to_input(record: BlockRecord, lite: LiteRecord, main: str, fields: Mapping[str, Any]) -> list[Operation]:
    """From the gradient of the first sums to that of the block's input, added to the map ``main``.

    ``fields``: what the epilogue makes of it, from values in units of :func:`.formats.in_gradient_unit`.

    With stride 2 zeros are put between its pixels, since the array's transposed layers keep their weights in
    four parts, which no update writes.
    """
    first = lite.units[0]
    source, pooled = f"{first.name}.back", f"{lite.name}.in.gradient"
    spread = [] if first.stride == 1 else [_spread(first, source, f"{source}.spread")]
    step = _pooled_gradient_step(lite) / (1 << WIDE_SHIFT)
    epilogue = scaled(
        first.n_in, weighted_step(first, WEIGHT_HEADROOM) / step, outputs=(whole(pooled, first.n_in),)
    )
    adjoint = weights.adjoint(first, spread[0].name if spread else source, epilogue)
    return [*spread, adjoint, _unpooled(record, lite, pooled, main, fields)]


def gradients(lite: LiteRecord, made: Mapping[str, Any]) -> dict[str, Floats]:
    """Of the loss summed over pixels, by the parameter's name in a block; weights dense."""
    first, second = lite.units
    of_norms = {
        "norm1.bias": (made[f"{first.name}.sums"][:, 0], norm_format(first).gradient_step),
        "norm1.weight": (made[f"{first.name}.scale.gradient"], norm_format(first).gradient_step),
        "norm2.weight": (made[f"{second.name}.scale.gradient"], _scale_sums_unit(lite)),
    }
    found = {name: np.asarray(integers, np.float64) * unit for name, (integers, unit) in of_norms.items()}
    of_weights = {f"conv{n + 1}.weight": weights.gradient_of(_trained(lite, n), made) for n in (0, 1)}
    return found | of_weights


def groups(unit: UnitRecord) -> NDArray[np.int64]:
    """The map :data:`GROUPS`: int64[n_out, 1, n_in]."""
    of_out = np.arange(unit.n_out) * LITE_GROUPS // unit.n_out
    of_in = np.arange(unit.n_in) * LITE_GROUPS // unit.n_in
    return (of_out[:, None, None] == of_in).astype(np.int64)


# ---- forward -----------------------------------------------------------------------------------------------


def _pool(record: BlockRecord, lite: LiteRecord, source: str) -> Depthwise:
    unit = lite.units[0]
    size, channels = 2 * unit.in_size, unit.n_in
    unit_of_value = unit.in_step * ACTIVATION_LIMIT / (FILL * VALUE_LIMIT)
    to_bytes = np.full(channels, unit_of_value / unit.in_step)
    return Depthwise(
        name=f"{lite.name}.pool",
        layer=DepthwiseLayer(height=size, width=size, channels=channels, kernel=2, stride=2, wide=True),
        source=source,
        weights=np.ones((channels, 2, 2), np.int8),
        epilogue=scaled(
            channels, out_step(record) / 4 / unit_of_value,
            outputs=tuple(output_of(lite.name + name, 8, to_bytes) for name in (POOLED, POOLED_ROWS)),
        ),
    )  # fmt: skip


def _activated(unit: UnitRecord) -> dict[str, Any]:
    to_bytes = np.full(unit.n_out, NORM_UNIT / unit.out_step)
    return {
        "activation": Activation.RELU,
        "outputs": (output_of(_out(unit), 8, to_bytes), output_of(_rows(unit), 8, to_bytes)),
        "mask": f"{unit.name}.mask",
        "named_table": f"{unit.name}.table",
    }


def _scaled(lite: LiteRecord) -> dict[str, Any]:
    return {
        "outputs": (group_norm.scale_output(lite.name + SMALL, lite.scale, SMALL_STEP_SHIFT),),
        "named_table": f"{lite.units[1].name}.table",
    }


def _enlarged(record: BlockRecord, lite: LiteRecord, main: str, outputs: Sequence[MapFormat]) -> Depthwise:
    size, channels = lite.units[1].out_size, lite.units[1].n_out
    small_step, step = NORM_UNIT * (1 << SMALL_STEP_SHIFT), out_step(record) / (1 << WIDE_SHIFT)
    return Depthwise(
        name=f"{lite.name}.enlarged",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=4, stride=2, padding=1, transposed=True,
            out_height=2 * size, out_width=2 * size, wide=True, replicate=True,
        ),
        source=lite.name + SMALL,
        weights=np.repeat(BILINEAR[None], channels, axis=0),
        epilogue=scaled(
            channels, small_step / 16 / step, residual=main, side_shift=WIDE_SHIFT,
            outputs=tuple(one.output(channels, step) for one in outputs),
        ),
    )  # fmt: skip


# ---- backward ----------------------------------------------------------------------------------------------


def _reduced(record: BlockRecord, lite: LiteRecord, out_gradient: str) -> Depthwise:
    """The enlargement's adjoint; sums for the scale, and the gradient times the scale."""
    unit = lite.units[1]
    size, channels = 2 * unit.out_size, unit.n_out
    return Depthwise(
        name=f"{lite.name}.reduced",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=4, stride=2, padding=1, wide=True,
            replicate=True,
        ),
        source=out_gradient,
        weights=np.repeat(BILINEAR[None], channels, axis=0),
        epilogue=scaled(
            channels, out_gradient_step(record) / 16 / _reduced_unit(lite), product=f"{unit.name}.z",
            reduce=Reduce(name=_scale_sums(unit), shift=REDUCE_SHIFT, kind=Reduction.PRODUCT),
            outputs=(group_norm.scale_output(f"{unit.name}.gradient", lite.scale, _reduced_shift(lite)),),
            named_table=group_norm.scaled_table(unit),
        ),
    )  # fmt: skip


def _reduced_shift(lite: LiteRecord) -> int:
    """From values of the gradient of what is enlarged to the unit of the map of its product with scale."""
    step = norm_format(lite.units[1]).gradient_step
    return int(np.floor(np.log2(FILL * VALUE_LIMIT * step / lite.enlarged_gradient_peak)))


def _reduced_unit(lite: LiteRecord) -> float:
    return norm_format(lite.units[1]).gradient_step / (1 << _reduced_shift(lite))


def _scale_sums_unit(lite: LiteRecord) -> float:
    return _reduced_unit(lite) * (1 << REDUCE_SHIFT)


def _planar(unit: UnitRecord) -> Output:
    """The gradient of the sums once more, to be transposed."""
    ratio = norm_format(unit).sum_gradient_unit / _planar_step(unit)
    return output_of(weights.rows_gradient(unit), 16, np.full(unit.n_out, ratio))


def _planar_step(unit: UnitRecord) -> float:
    """So large that the sums over all pixels stay in 32 bits."""
    limit = min(FILL * WIDE_LIMIT, SUM_LIMIT // (ACTIVATION_LIMIT * unit.out_size**2))
    return float(norm_of(unit).sum_gradient_peaks.max()) / limit


def _shifted(lite: LiteRecord, tap: int) -> Depthwise:
    """What a tap meets at each output pixel."""
    unit = lite.units[0]
    y, x = divmod(tap, unit.kernel)
    single = np.zeros((unit.n_in, unit.kernel, unit.kernel), np.int8)
    single[:, y, x] = 1
    return Depthwise(
        name=_tap(unit, tap),
        layer=DepthwiseLayer(
            height=unit.in_size, width=unit.in_size, channels=unit.n_in, kernel=unit.kernel,
            stride=unit.stride, padding=unit.padding, out_height=unit.out_size, out_width=unit.out_size,
        ),
        source=lite.name + POOLED_ROWS,
        weights=single,
        epilogue=scaled(
            unit.n_in, 1 << WIDE_SHIFT, outputs=(whole(_tap(unit, tap), unit.n_in, bits=8),)
        ),
    )  # fmt: skip


def _trained(lite: LiteRecord, which: int) -> Weights:
    return Weights(
        unit=lite.units[which],
        sum_gradient_step=_planar_step(lite.units[which]),
        gradient_step=lite.weight_gradient_peaks[which] / (FILL * WIDE_LIMIT),
        mask=None if which else lite.name + GROUPS,
    )


def _to_first(unit: UnitRecord, before: UnitRecord) -> Conv:
    step = gradient_unit(before)
    to_map = np.full(before.n_out, step / norm_format(before).gradient_step)
    epilogue = scaled(
        unit.n_in, weighted_step(unit, WEIGHT_HEADROOM) / step, masked_by=f"{before.name}.mask",
        outputs=(output_of(f"{before.name}.gradient", 16, to_map),),
    )  # fmt: skip
    return weights.adjoint(unit, f"{unit.name}.back", epilogue)


def _pooled_gradient_step(lite: LiteRecord) -> float:
    return lite.pooled_gradient_peak / (FILL * WIDE_LIMIT)


def _spread(unit: UnitRecord, source: str, name: str) -> Depthwise:
    """A zero behind every pixel and a row of them behind every row."""
    return Depthwise(
        name=name,
        layer=DepthwiseLayer(
            height=unit.out_size, width=unit.out_size, channels=unit.n_out, kernel=1, stride=2,
            transposed=True, out_height=unit.in_size, out_width=unit.in_size, wide=True,
        ),
        source=source,
        weights=np.ones((unit.n_out, 1, 1), np.int8),
        epilogue=scaled(unit.n_out, 1 << WIDE_SHIFT, outputs=(whole(name, unit.n_out),)),
    )  # fmt: skip


def _unpooled(
    record: BlockRecord, lite: LiteRecord, source: str, main: str, fields: Mapping[str, Any]
) -> Depthwise:
    """The pooling's adjoint."""
    size, channels = lite.units[0].in_size, lite.units[0].n_in
    return Depthwise(
        name=f"{lite.name}.pool.adjoint",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=2, stride=2, transposed=True, wide=True
        ),
        source=source,
        weights=np.ones((channels, 2, 2), np.int8),
        epilogue=scaled(
            channels, _pooled_gradient_step(lite) / 4 / in_gradient_unit(record), residual=main,
            side_shift=WIDE_SHIFT, **fields,
        ),
    )  # fmt: skip


# ---- update ------------------------------------------------------------------------------------------------


def updates(
    lite: LiteRecord, rates: tuple[float, float], momentum: int, *, input_gradient: bool
) -> list[Update]:
    """``rates`` of the bias, and of weights and scales, over the number of pixels; ``momentum`` over 2^16.

    With ``input_gradient`` the first weights are kept in the order of the adjoint, too.
    """
    first, second = lite.units
    bias_rate, weight_rate = rates
    bias_unit = NORM_UNIT / (1 << MASTER_SHIFT)
    of_first, of_second = norm_format(first).gradient_step, _scale_sums_unit(lite)
    master_of = group_norm.scale_master
    tables = group_norm.scaled_table(first), f"{second.name}.table", group_norm.scaled_table(second)
    bias = Update(
        name=f"{_bias(first)}.update", master=_bias(first), shape=(first.n_out,),
        gradient=f"{first.name}.sums",
        job=step_job(_bias(first), bias_rate * of_first / bias_unit, momentum),
        start=np.rint(first.bias / bias_unit).astype(np.int64),
    )  # fmt: skip
    scales = [
        Update(
            name=f"{master}.update", master=master, shape=(unit.n_out,), gradient_from=Gradient.LIST,
            gradient=f"{unit.name}.scale.gradient",
            job=step_job(
                master, weight_rate * of_gradient / GAMMA_UNIT, momentum, Image.HALVES, GAMMA_SHIFT
            ),
            image=table, start=group_norm.scale_start(scale),
        )
        for unit, master, table, scale, of_gradient in (
            (first, master_of(first), tables[0], norm_of(first).scale, of_first),
            (second, master_of(second), tables[1], lite.scale, of_second),
            (second, f"{second.name}.scale.back", tables[2], lite.scale, of_second),
        )
    ]  # fmt: skip
    trained = [_trained(lite, which) for which in (0, 1)]
    with_adjoint = trained if input_gradient else trained[1:]
    return [
        bias,
        *scales,
        *(weights.update(of, weight_rate, momentum) for of in trained),
        *(weights.adjoint_update(of, weight_rate, momentum) for of in with_adjoint),
    ]


# ---- names -------------------------------------------------------------------------------------------------


def _out(unit: UnitRecord) -> str:
    return f"{unit.name}.out"


def _rows(unit: UnitRecord) -> str:
    """The 8-bit output once more, as weights of its own convolution's gradient."""
    return f"{unit.name}.out.rows"


def _bias(unit: UnitRecord) -> str:
    return f"{unit.name}.bias"


def _scale_sums(unit: UnitRecord) -> str:
    return f"{unit.name}.scale.sums"


def _tap(unit: UnitRecord, tap: int) -> str:
    return f"{unit.name}.{tap}.in"
