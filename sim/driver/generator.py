# SPDX-License-Identifier: MIT
"""From one image of an Anycost generator to the operations of the convolution core.

Real numbers become words as :mod:`.words` says. Between the two products of an epilogue stand values of 24
bits, whose unit is chosen so that the largest value that was seen fills a share :data:`~.words.FILL` of their
range. So nothing that was calibrated saturates before the map is written, and a map saturates only beyond the
range that its step was chosen for.
"""

import math

import numpy as np
from numpy.typing import NDArray

from algo.anycost.record import ConvRecord, Floats, GeneratorRecord
from hw.convolution.operations import Conv, Epilogue, Fir, Operation
from hw.epilogue.config import MAX_SIDE_SHIFT, SIDE_BITS, VALUE_BITS, Activation
from hw.fir.config import Map
from hw.systolic.descriptor import Layer
from sim.driver.words import FILL, VALUE_LIMIT, WIDE_LIMIT, bias_of, multiplier_of, output_of

COLOUR_SHIFT = 7
"""Bits below the unit of an image that a sum of colours keeps: 16 + 7 of the 24, one more for the sum."""
LRELU_GAIN = math.sqrt(2)


def operations(record: GeneratorRecord) -> list[Operation]:
    """All operations of an image; they read the map :data:`CONSTANT` and end with :func:`image_name`."""
    step = image_step(record)
    made: list[Operation] = []
    for n, rgb in enumerate(record.to_rgb):
        for conv in record.convs[max(0, 2 * n - 1) : 2 * n + 1]:
            made += _up(conv) if conv.up else [_styled(conv)]
        if n:
            made.append(_skip(n, record.to_rgb[n - 1].size))
        made.append(_colours(n, rgb, step))
    return made


def constant_name(record: GeneratorRecord) -> str:
    """The map that is given."""
    return record.convs[0].source.name


def image_name(record: GeneratorRecord) -> str:
    """The map that is the image, of 16 bits."""
    return f"image{len(record.to_rgb) - 1}"


def image_step(record: GeneratorRecord) -> float:
    """Value of one unit of the image, and of those of lower levels."""
    return record.image_peak / (FILL * WIDE_LIMIT)


def _layer(conv: ConvRecord) -> Layer:
    return Layer(
        height=conv.size, width=conv.size, n_in=conv.n_in, n_out=conv.n_out, kernel=conv.kernel,
        stride=2 if conv.up else 1, padding=0 if conv.up else conv.kernel // 2, transposed=conv.up,
        wide=conv.source.bits == 16,
    )  # fmt: skip


def _sum_steps(conv: ConvRecord) -> Floats:
    """Value of one unit of the sums, by channel, demodulated."""
    return conv.source.step * conv.weights.steps[: conv.n_out] * conv.demodulation


def _styled(conv: ConvRecord) -> Conv:
    """Everything in one operation."""
    return Conv(
        name=conv.name, layer=_layer(conv), source=conv.source.name, weights=conv.weights.integers,
        epilogue=_activated(conv, _sum_steps(conv)),
    )  # fmt: skip


def _up(conv: ConvRecord) -> list[Operation]:
    """The transposed convolution writes a map of 16 bits, the filter reads it."""
    step = conv.between / (FILL * WIDE_LIMIT)
    unit = step / (1 << (VALUE_BITS - 17))
    wide = output_of(f"{conv.name}.wide", 16, np.full(conv.n_out, unit / step))
    multiplier, shift = multiplier_of(_sum_steps(conv) / unit)
    scaled = Epilogue(
        multiplier=multiplier, shift=shift, bias=np.zeros(conv.n_out, np.int32), outputs=(wide,)
    )
    layer = _layer(conv)
    blurred = Map(upsample=False, height=layer.out_height, width=layer.out_width, channels=conv.n_out)
    return [
        Conv(
            name=conv.name, layer=layer, source=conv.source.name, weights=conv.weights.integers,
            epilogue=scaled,
        ),
        Fir(
            name=f"{conv.name}.blur", map=blurred, source=wide.name,
            epilogue=_activated(conv, np.full(conv.n_out, step)),
        ),
    ]  # fmt: skip


def _activated(conv: ConvRecord, steps: Floats) -> Epilogue:
    """Noise, bias, leaky ReLU and the readers' styles, from sums in units of ``steps``."""
    unit = conv.peak / (FILL * VALUE_LIMIT)
    multiplier, shift = multiplier_of(steps / unit)
    noise, side_shift = (None, 0) if conv.noise is None else _side(conv.noise / unit)
    return Epilogue(
        multiplier=multiplier,
        shift=shift,
        bias=bias_of(conv.bias, unit),
        activation=Activation.LEAKY,
        noise=noise,
        side_shift=side_shift,
        outputs=tuple(
            output_of(reader.name, reader.bits, LRELU_GAIN * reader.factors * unit / reader.step)
            for reader in conv.readers
        ),
    )


def _skip(n: int, size: int) -> Fir:
    """Colours of the level below, twice as large."""
    colours = np.full(3, 1.0)
    multiplier, shift = multiplier_of(colours * (1 << COLOUR_SHIFT))
    return Fir(
        name=f"skip{n}",
        map=Map(upsample=True, height=size, width=size, channels=3),
        source=f"image{n - 1}",
        epilogue=Epilogue(
            multiplier=multiplier, shift=shift, bias=np.zeros(3, np.int32),
            outputs=(output_of(f"skip{n}", 16, colours / (1 << COLOUR_SHIFT)),),
        ),
    )  # fmt: skip


def _colours(n: int, rgb: ConvRecord, step: float) -> Conv:
    """toRGB, added to what comes from below."""
    unit = step / (1 << COLOUR_SHIFT)
    multiplier, shift = multiplier_of(_sum_steps(rgb) / unit)
    return Conv(
        name=rgb.name, layer=_layer(rgb), source=rgb.source.name, weights=rgb.weights.integers,
        epilogue=Epilogue(
            multiplier=multiplier, shift=shift, bias=bias_of(rgb.bias, unit),
            residual=f"skip{n}" if n else None, side_shift=COLOUR_SHIFT if n else 0,
            outputs=(output_of(f"image{n}", 16, np.full(3, unit / step)),),
        ),
    )  # fmt: skip


def _side(values: Floats) -> tuple[NDArray[np.int16], int]:
    """int16 and the smallest left shift that holds them."""
    limit = (1 << (SIDE_BITS - 1)) - 1
    shift = max(0, math.ceil(math.log2(max(float(np.abs(values).max()), 1.0) / limit)))
    if shift > MAX_SIDE_SHIFT:
        raise ValueError(f"noise must be below {limit << MAX_SIDE_SHIFT} units, not {np.abs(values).max():g}")
    return np.rint(values / (1 << shift)).clip(-limit, limit).astype(np.int16), shift
