# SPDX-License-Identifier: MIT
"""A lite residual module as operations: forward, backward, and the update of its weights.

Forward it pools the block's wide input, and what it makes is enlarged onto the main branch's output. Its
convolutions are dense; their weights from one group to the other are 0, and so are kept by a mask on their
gradient.

A weight's gradient is a sum over pixels. So the gradient of a convolution's sums is transposed: its pixels
become channels, over which the array sums, and the activations are the weights that it meets, a tap's at a
time. The result is transposed again, into the order in which the forward pass reads weights. Where the
backward pass needs them in the other order they are kept, and moved, twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.architecture import LITE_GROUPS
from algo.tinytl.quantise import ACTIVATION_LIMIT, WEIGHT_HEADROOM, BlockRecord, LiteRecord, UnitRecord
from hw.convolution.operations import (
    Conv,
    Depthwise,
    Epilogue,
    MapShape,
    Operation,
    Output,
    PixelWeights,
    Reduce,
    Transposed,
)
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation, Reduction
from hw.systolic.layer import Layer
from hw.training.config import Image
from hw.training.config import Update as Job
from hw.training.operations import Gradient, Update
from sim.driver import group_norm
from sim.driver.formats import (
    GAMMA_SHIFT,
    GAMMA_UNIT,
    MASTER_SHIFT,
    NORM_UNIT,
    REDUCE_SHIFT,
    SUM_LIMIT,
    WIDE_SHIFT,
    gradient_unit,
    in_gradient_step,
    norm_format,
    norm_of,
    out_gradient_step,
    out_step,
    weighted_step,
)
from sim.driver.words import FILL, VALUE_LIMIT, WIDE_LIMIT, Floats, multiplier_of, output_of, step_job

GROUPS = "lite.groups"
"""Given mask: where an output and an input channel of the first convolution belong to one group."""
POOLED, POOLED_ROWS, SMALL = "lite.in", "lite.in.rows", "lite.out"
"""Maps: the input pooled, as the array and as the depthwise unit read it; what is enlarged."""
SMALL_STEP_SHIFT = 5
"""Bits of a normed value below the unit of what is enlarged: up to 16 at a scale of 1."""
WEIGHT_SHIFT = 24
"""Bits that a trained weight's 32 have below its 8."""
BILINEAR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.int8)
"""Weights of the bilinear enlargement by two, times 16."""


def forward(record: BlockRecord, lite: LiteRecord, main: str, out: str, wide_input: str) -> list[Operation]:
    """From the wide input to the block's output ``out``, added to the map ``main``."""
    first, second = lite.units
    return [
        _pool(record, first, wide_input),
        _convolution(first, POOLED, group_norm.sums_epilogue(first)),
        *group_norm.forward(first, _bias(first), _activated(first)),
        _convolution(second, _out(first), group_norm.sums_epilogue(second)),
        *group_norm.forward(second, _bias(second), _scaled(lite), scaled=False),
        _enlarged(record, second, main, out),
    ]


def backward(record: BlockRecord, lite: LiteRecord, out_gradient: str) -> list[Operation]:
    """From the gradient of the block's output to the gradients of everything that is trained."""
    first, second = lite.units
    return [
        _reduced(record, lite, out_gradient),
        group_norm.scale_gradient(second, _scale_sums(second)),
        *group_norm.backward(second, further=True, growth=WEIGHT_HEADROOM, more=(_planar(second),)),
        _pixels_last(second),
        *_weight_gradient(lite, 1, 0, _rows(first)),
        _adjoint(second, first),
        *group_norm.backward(
            first, further=True, trained=True, growth=WEIGHT_HEADROOM, more=(_planar(first),)
        ),
        group_norm.scale_gradient(first, f"{first.name}.sums"),
        _pixels_last(first),
        *(
            operation
            for tap in range(first.kernel**2)
            for operation in (_shifted(first, tap), *_weight_gradient(lite, 0, tap, _tap(first, tap)))
        ),
    ]


def to_input(record: BlockRecord, lite: LiteRecord, main: str, out: str) -> list[Operation]:
    """From the gradient of the first sums to that of the block's input ``out``, added to the map ``main``.

    With stride 2 zeros are put between its pixels, since the array's transposed layers keep their weights in
    four parts, which no update writes.
    """
    first = lite.units[0]
    source, pooled = f"{first.name}.back", "lite.in.gradient"
    spread = [] if first.stride == 1 else [_spread(first, source, f"{source}.spread")]
    step = _pooled_gradient_step(lite) / (1 << WIDE_SHIFT)
    adjoint = Conv(
        name=f"{first.name}.adjoint",
        layer=Layer(
            height=first.in_size, width=first.in_size, n_in=first.n_out, n_out=first.n_in,
            kernel=first.kernel, padding=first.kernel - 1 - first.padding, wide=True,
        ),
        source=spread[0].name if spread else source,
        weights=_in_adjoint_order(first),
        named_weights=_adjoint_weights(first),
        epilogue=_epilogue(
            first.n_in, weighted_step(first, WEIGHT_HEADROOM) / step, outputs=(_whole(pooled, first.n_in),)
        ),
    )  # fmt: skip
    return [*spread, adjoint, _unpooled(record, lite, pooled, main, out)]


def gradients(lite: LiteRecord, made: Mapping[str, Any]) -> dict[str, Floats]:
    """Of the loss summed over pixels, by the parameter's name in a block; weights dense."""
    first, second = lite.units
    found = {
        "norm1.bias": (made[f"{first.name}.sums"][:, 0], norm_format(first).gradient_step),
        "norm1.weight": (made[f"{first.name}.scale.gradient"], norm_format(first).gradient_step),
        "norm2.weight": (made[f"{second.name}.scale.gradient"], _scale_sums_unit(lite)),
    }
    for which, unit in enumerate(lite.units):
        taps = np.stack([made[_of_tap(unit, tap)][:, 0] for tap in range(unit.kernel**2)])
        weights = taps.transpose(2, 1, 0).reshape(unit.weights.shape)
        found[f"conv{which + 1}.weight"] = weights, _weight_gradient_step(lite, which)
    return {name: np.asarray(integers, np.float64) * unit for name, (integers, unit) in found.items()}


def groups(unit: UnitRecord) -> NDArray[np.int64]:
    """The map :data:`GROUPS`: int64[n_out, 1, n_in]."""
    of_out = np.arange(unit.n_out) * LITE_GROUPS // unit.n_out
    of_in = np.arange(unit.n_in) * LITE_GROUPS // unit.n_in
    return (of_out[:, None, None] == of_in).astype(np.int64)


# ---- forward -----------------------------------------------------------------------------------------------


def _pool(record: BlockRecord, unit: UnitRecord, source: str) -> Depthwise:
    size, channels = 2 * unit.in_size, unit.n_in
    unit_of_value = unit.in_step * ACTIVATION_LIMIT / (FILL * VALUE_LIMIT)
    to_bytes = np.full(channels, unit_of_value / unit.in_step)
    return Depthwise(
        name="lite.pool",
        layer=DepthwiseLayer(height=size, width=size, channels=channels, kernel=2, stride=2, wide=True),
        source=source,
        weights=np.ones((channels, 2, 2), np.int8),
        epilogue=_epilogue(
            channels, out_step(record) / 4 / unit_of_value,
            outputs=(output_of(POOLED, 8, to_bytes), output_of(POOLED_ROWS, 8, to_bytes)),
        ),
    )  # fmt: skip


def _convolution(unit: UnitRecord, source: str, epilogue: Epilogue) -> Conv:
    layer = Layer(
        height=unit.in_size, width=unit.in_size, n_in=unit.n_in, n_out=unit.n_out, kernel=unit.kernel,
        stride=unit.stride, padding=unit.padding,
    )  # fmt: skip
    return Conv(
        name=unit.name, layer=layer, source=source, weights=unit.weights, epilogue=epilogue,
        named_weights=_weights(unit),
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
        "outputs": (group_norm.scale_output(SMALL, lite.scale, SMALL_STEP_SHIFT),),
        "named_table": f"{lite.units[1].name}.table",
    }


def _enlarged(record: BlockRecord, unit: UnitRecord, main: str, out: str) -> Depthwise:
    size, channels = unit.out_size, unit.n_out
    small_step = NORM_UNIT * (1 << SMALL_STEP_SHIFT)
    return Depthwise(
        name="lite.enlarged",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=4, stride=2, padding=1, transposed=True,
            out_height=2 * size, out_width=2 * size, wide=True, replicate=True,
        ),
        source=SMALL,
        weights=np.repeat(BILINEAR[None], channels, axis=0),
        epilogue=_epilogue(
            channels, small_step / 16 / (out_step(record) / (1 << WIDE_SHIFT)), residual=main,
            side_shift=WIDE_SHIFT, outputs=(_whole(out, channels),),
        ),
    )  # fmt: skip


# ---- backward ----------------------------------------------------------------------------------------------


def _reduced(record: BlockRecord, lite: LiteRecord, out_gradient: str) -> Depthwise:
    """The enlargement's adjoint; sums for the scale, and the gradient times the scale."""
    unit = lite.units[1]
    size, channels = 2 * unit.out_size, unit.n_out
    return Depthwise(
        name="lite.reduced",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=4, stride=2, padding=1, wide=True,
            replicate=True,
        ),
        source=out_gradient,
        weights=np.repeat(BILINEAR[None], channels, axis=0),
        epilogue=_epilogue(
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
    return output_of(f"{unit.name}.rows.gradient", 16, np.full(unit.n_out, ratio))


def _planar_step(unit: UnitRecord) -> float:
    """So large that the sums over all pixels stay in 32 bits."""
    limit = min(FILL * WIDE_LIMIT, SUM_LIMIT // (ACTIVATION_LIMIT * unit.out_size**2))
    return float(norm_of(unit).sum_gradient_peaks.max()) / limit


def _pixels_last(unit: UnitRecord) -> Transposed:
    return _transposed(
        f"{unit.name}.rows.gradient", unit.out_size, unit.out_size, unit.n_out, f"{unit.name}.pixels"
    )


def _shifted(unit: UnitRecord, tap: int) -> Depthwise:
    """What a tap meets at each output pixel."""
    y, x = divmod(tap, unit.kernel)
    weights = np.zeros((unit.n_in, unit.kernel, unit.kernel), np.int8)
    weights[:, y, x] = 1
    return Depthwise(
        name=_tap(unit, tap),
        layer=DepthwiseLayer(
            height=unit.in_size, width=unit.in_size, channels=unit.n_in, kernel=unit.kernel,
            stride=unit.stride, padding=unit.padding, out_height=unit.out_size, out_width=unit.out_size,
        ),
        source=POOLED_ROWS,
        weights=weights,
        epilogue=_epilogue(
            unit.n_in, 1 << WIDE_SHIFT, outputs=(_whole(_tap(unit, tap), unit.n_in, bits=8),)
        ),
    )  # fmt: skip


def _weight_gradient(lite: LiteRecord, which: int, tap: int, rows: str) -> list[Operation]:
    """Of a tap's weights: first [n_out, 1, n_in], then [n_in, 1, n_out]."""
    unit, pixels = lite.units[which], lite.units[which].out_size
    step = _weight_gradient_step(lite, which) / (1 << WIDE_SHIFT)
    columns = _columns(unit, tap)
    product = Conv(
        name=columns,
        layer=Layer(
            height=unit.n_out, width=1, n_in=pixels**2, n_out=unit.n_in, kernel=1, wide=True
        ),
        source=f"{unit.name}.pixels",
        weights=PixelWeights(name=rows, height=pixels, width=pixels),
        epilogue=_epilogue(
            unit.n_in, _planar_step(unit) * unit.in_step / step, masked_by=None if which else GROUPS,
            outputs=(_whole(columns, unit.n_in),),
        ),
    )  # fmt: skip
    return [product, _transposed(columns, unit.n_out, 1, unit.n_in, _of_tap(unit, tap))]


def _weight_gradient_step(lite: LiteRecord, which: int) -> float:
    return lite.weight_gradient_peaks[which] / (FILL * WIDE_LIMIT)


def _adjoint(unit: UnitRecord, before: UnitRecord) -> Conv:
    layer = Layer(
        height=unit.out_size, width=unit.out_size, n_in=unit.n_out, n_out=unit.n_in, kernel=1, wide=True
    )
    step = gradient_unit(before)
    to_map = np.full(before.n_out, step / norm_format(before).gradient_step)
    return Conv(
        name=f"{unit.name}.adjoint",
        layer=layer,
        source=f"{unit.name}.back",
        weights=_in_adjoint_order(unit),
        named_weights=_adjoint_weights(unit),
        epilogue=_epilogue(
            unit.n_in, weighted_step(unit, WEIGHT_HEADROOM) / step, masked_by=f"{before.name}.mask",
            outputs=(output_of(f"{before.name}.gradient", 16, to_map),),
        ),
    )  # fmt: skip


def _in_adjoint_order(unit: UnitRecord) -> NDArray[np.int8]:
    """Outputs and inputs exchanged, rotated."""
    return np.ascontiguousarray(unit.weights.swapaxes(0, 1)[..., ::-1, ::-1])


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
        epilogue=_epilogue(unit.n_out, 1 << WIDE_SHIFT, outputs=(_whole(name, unit.n_out),)),
    )  # fmt: skip


def _unpooled(record: BlockRecord, lite: LiteRecord, source: str, main: str, out: str) -> Depthwise:
    """The pooling's adjoint."""
    size, channels = lite.units[0].in_size, lite.units[0].n_in
    step = in_gradient_step(record) / (1 << WIDE_SHIFT)
    return Depthwise(
        name="lite.pool.adjoint",
        layer=DepthwiseLayer(
            height=size, width=size, channels=channels, kernel=2, stride=2, transposed=True, wide=True
        ),
        source=source,
        weights=np.ones((channels, 2, 2), np.int8),
        epilogue=_epilogue(
            channels, _pooled_gradient_step(lite) / 4 / step, residual=main, side_shift=WIDE_SHIFT,
            outputs=(_whole(out, channels),),
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
    forward_order = [_weight_update(lite, which, weight_rate, momentum) for which in (0, 1)]
    adjoint_order = [
        _adjoint_update(lite, which, weight_rate, momentum) for which in ((0, 1) if input_gradient else (1,))
    ]
    return [bias, *scales, *forward_order, *adjoint_order]


def _weight_update(lite: LiteRecord, which: int, rate: float, momentum: int) -> Update:
    unit = lite.units[which]
    taps = unit.kernel**2
    start = _rows_of(unit.weights)
    return Update(
        name=f"{_weights(unit)}.update", master=f"{_weights(unit)}.master", shape=start.shape,
        gradient_from=Gradient.MAP, gradient=tuple(_of_tap(unit, tap) for tap in range(taps)),
        job=_weight_job(lite, which, rate, momentum), image=_weights(unit), start=start << WEIGHT_SHIFT,
    )  # fmt: skip


def _adjoint_update(lite: LiteRecord, which: int, rate: float, momentum: int) -> Update:
    unit = lite.units[which]
    taps = range(unit.kernel**2)
    start = _rows_of(_in_adjoint_order(unit))
    return Update(
        name=f"{_adjoint_weights(unit)}.update", master=f"{_adjoint_weights(unit)}.master",
        shape=start.shape, gradient_from=Gradient.MAP,
        gradient=tuple(_columns(unit, tap) for tap in taps[::-1]),
        job=_weight_job(lite, which, rate, momentum), image=_adjoint_weights(unit),
        start=start << WEIGHT_SHIFT,
    )  # fmt: skip


def _rows_of(weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """[n_out, n_in, k, k] to [k k, n_in, n_out], the order of rows of weights."""
    n_out, n_in, kernel, _ = weights.shape
    return weights.astype(np.int64).transpose(2, 3, 1, 0).reshape(kernel**2, n_in, n_out)


def _weight_job(lite: LiteRecord, which: int, rate: float, momentum: int) -> Job:
    unit_of_master = lite.units[which].steps[0] / (1 << WEIGHT_SHIFT)
    ratio = rate * _weight_gradient_step(lite, which) / unit_of_master
    return step_job(_weights(lite.units[which]), ratio, momentum, Image.BYTES, WEIGHT_SHIFT)


# ---- names and words ---------------------------------------------------------------------------------------


def _out(unit: UnitRecord) -> str:
    return f"{unit.name}.out"


def _rows(unit: UnitRecord) -> str:
    """The 8-bit output once more, as weights of its own convolution's gradient."""
    return f"{unit.name}.out.rows"


def _bias(unit: UnitRecord) -> str:
    return f"{unit.name}.bias"


def _weights(unit: UnitRecord) -> str:
    return f"{unit.name}.weights"


def _adjoint_weights(unit: UnitRecord) -> str:
    return f"{unit.name}.adjoint.weights"


def _scale_sums(unit: UnitRecord) -> str:
    return f"{unit.name}.scale.sums"


def _tap(unit: UnitRecord, tap: int) -> str:
    return f"{unit.name}.{tap}.in"


def _columns(unit: UnitRecord, tap: int) -> str:
    """Gradient of a tap's weights, [n_out, 1, n_in]."""
    return f"{unit.name}.{tap}.columns"


def _of_tap(unit: UnitRecord, tap: int) -> str:
    return f"{unit.name}.{tap}.weights.gradient"


def _transposed(source: str, height: int, width: int, channels: int, name: str) -> Transposed:
    """Of a map of 16 bits, exactly."""
    return Transposed(
        name=name,
        shape=MapShape(height=height, width=width, channels=channels, bits=16),
        source=source,
        epilogue=_epilogue(height * width, 1 << WIDE_SHIFT, outputs=(_whole(name, height * width),)),
    )


def _whole(name: str, channels: int, bits: int = 16) -> Output:
    """Values less the bits below the map's unit."""
    return output_of(name, bits, np.full(channels, 1 / (1 << WIDE_SHIFT)))


def _epilogue(channels: int, factor: float, **more: Any) -> Epilogue:
    multiplier, shift = multiplier_of(np.full(channels, float(factor)))
    return Epilogue(multiplier=multiplier, shift=shift, bias=np.zeros(channels, np.int32), **more)
