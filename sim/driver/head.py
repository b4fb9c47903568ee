# SPDX-License-Identifier: MIT
"""A network's head in a training step: the 1x1 convolution "mix", mean pooling, the classifier, the loss.

Pooling is a depthwise layer as large as the map, and so is its adjoint, of a map of one pixel. The gradient
of the classifier's weights is the product of two vectors, by the operations that any trained weights have.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.quantise import ACTIVATION_LIMIT, UnitRecord
from algo.tinytl.quantise_tail import HeadRecord
from hw.convolution.operations import Depthwise, Epilogue, LossGradient, Operation, Reduce
from hw.depthwise.layer import DepthwiseLayer
from hw.loss.config import GRADIENT_FRACTION_BITS, smoothed
from hw.training.operations import Update
from sim.driver import units, weights
from sim.driver.descent import Descent
from sim.driver.formats import WIDE_SHIFT, MapFormat, gradient_unit, value_unit
from sim.driver.passes import scaled, whole
from sim.driver.units import Sums
from sim.driver.weights import Weights
from sim.driver.words import FILL, VALUE_LIMIT, WIDE_LIMIT, bias_of, multiplier_of, output_of

INPUT, FEATURES, FEATURE_ROWS, SCORES = "mix.x", "features", "features.rows", "scores"
"""Maps: input; pooled features, as the array reads activations and weights; scores of all classes."""
LABEL, CLASSES = "label", "classifier.classes"
"""Given list of the class, int64[1, 1]; given mask of those classes that there are."""
SCORE_FRACTION_BITS = 10
"""Scores of -32..32."""
SCORE_UNIT = 2.0 ** -(SCORE_FRACTION_BITS + WIDE_SHIFT)
"""Of a score, in 24 bits."""
GRADIENT_STEP = 2.0**-GRADIENT_FRACTION_BITS
"""Of the gradient of the scores."""


def input_format(head: HeadRecord) -> MapFormat:
    """What the last block's output is read as."""
    return MapFormat(name=INPUT, bits=8, step=head.mix.in_step)


def forward(head: HeadRecord) -> list[Operation]:
    """From the last block's output to scores."""
    step, of = value_unit(head.mix), head.classifier
    multiplier, shift = multiplier_of(of.in_step * of.steps / SCORE_UNIT)
    epilogue = Epilogue(
        multiplier=multiplier, shift=shift, bias=bias_of(of.bias, SCORE_UNIT),
        outputs=(whole(SCORES, of.n_out),), named_table=units.table(of),
    )  # fmt: skip
    return [
        *units.forward(head.mix, INPUT, step, units.activated(head.mix, step)),
        _pool(head),
        weights.convolution(of, FEATURES, epilogue),
    ]


def loss(head: HeadRecord, *, further: bool) -> LossGradient:
    """Gradient of the scores, summed for the biases; ``further``: also for mix and the blocks."""
    of, job = head.classifier, smoothed(head.smoothing, head.n_classes, fraction_bits=SCORE_FRACTION_BITS)
    readers = [weights.rows_gradient(of), *([f"{of.name}.gradient"] if further else [])]
    epilogue = scaled(
        of.n_out, 1 << WIDE_SHIFT, outputs=tuple(whole(name, of.n_out) for name in readers),
        reduce=Reduce(name=f"{of.name}.sums", shift=WIDE_SHIFT),
        masked_by=CLASSES if of.n_out > head.n_classes else None,
    )  # fmt: skip
    return LossGradient(name="loss", source=SCORES, label=LABEL, job=job, epilogue=epilogue)


def constants(head: HeadRecord) -> dict[str, NDArray[np.int64]]:
    """Maps that are given to every step."""
    n_out = head.classifier.n_out
    if n_out == head.n_classes:
        return {}
    return {CLASSES: (np.arange(n_out) < head.n_classes).astype(np.int64)[None, None]}


def weight_gradient(head: HeadRecord) -> list[Operation]:
    """Of the classifier."""
    return [
        weights.pixels_last(head.classifier),
        *weights.gradient(trained(head), 0, FEATURE_ROWS),
    ]


def backward(head: HeadRecord, step: float, fields: Mapping[str, Any]) -> list[Operation]:
    """From the gradient of the scores to that of the last block's output, in units of ``step``, of which an
    epilogue with ``fields`` makes something."""
    of, gradient = head.classifier, f"{FEATURES}.gradient"
    unit = _feature_gradient_step(head) / (1 << WIDE_SHIFT)
    to_features = scaled(of.n_in, GRADIENT_STEP * of.steps[0] / unit, outputs=(whole(gradient, of.n_in),))
    return [
        weights.adjoint(of, f"{of.name}.gradient", to_features),
        _spread(head, gradient),
        *units.backward(head.mix, step, fields),
    ]


def updates(head: HeadRecord, descent: Descent, *, further: bool) -> list[Update]:
    """Of the classifier; with ``further`` of its weights in both orders, and of mix's bias."""
    rate, momentum = descent.classifier_rate, descent.factor
    made = [
        units.update(*classifier_bias(head), rate, momentum),
        weights.update(trained(head), rate, momentum),
    ]
    if further:
        made += [
            weights.adjoint_update(trained(head), rate, momentum),
            units.update(*mix_bias(head), descent.rate, momentum),
        ]
    return made


def trained(head: HeadRecord) -> Weights:
    """The classifier's weights: no gradient exceeds 1 times the largest feature."""
    largest = ACTIVATION_LIMIT * head.classifier.in_step
    return Weights(unit=head.classifier, sum_gradient_step=GRADIENT_STEP, gradient_step=largest / WIDE_LIMIT)


def classifier_bias(head: HeadRecord) -> tuple[UnitRecord, float, Sums]:
    """The classifier, the unit of its bias's values, and where the bias's gradient is."""
    return head.classifier, SCORE_UNIT, Sums(f"{head.classifier.name}.sums", GRADIENT_STEP)


def mix_bias(head: HeadRecord) -> tuple[UnitRecord, float, Sums]:
    """The same of mix."""
    return head.mix, value_unit(head.mix), units.masked_sums(head.mix)


def _pool(head: HeadRecord) -> Depthwise:
    mix, of = head.mix, head.classifier
    unit = of.in_step * ACTIVATION_LIMIT / (FILL * VALUE_LIMIT)
    to_bytes = np.full(mix.n_out, unit / of.in_step)
    return Depthwise(
        name="pool",
        layer=DepthwiseLayer(
            height=mix.out_size, width=mix.out_size, channels=mix.n_out, kernel=mix.out_size
        ),
        source=units.out(mix),
        weights=_ones(mix),
        epilogue=scaled(
            mix.n_out, mix.out_step / mix.out_size**2 / unit,
            outputs=tuple(output_of(name, 8, to_bytes) for name in (FEATURES, FEATURE_ROWS)),
        ),
    )  # fmt: skip


def _spread(head: HeadRecord, source: str) -> Depthwise:
    """The pooling's adjoint: a pixel to all pixels."""
    mix, size = head.mix, head.mix.out_size
    unit = gradient_unit(mix)
    return Depthwise(
        name="pool.adjoint",
        layer=DepthwiseLayer(
            height=1, width=1, channels=mix.n_out, kernel=size, padding=size - 1, out_height=size,
            out_width=size, wide=True,
        ),
        source=source,
        weights=_ones(mix),
        epilogue=scaled(
            mix.n_out, _feature_gradient_step(head) / size**2 / unit, **units.masked(mix, unit)
        ),
    )  # fmt: skip


def _ones(mix: UnitRecord) -> NDArray[np.int8]:
    return np.ones((mix.n_out, mix.out_size, mix.out_size), np.int8)


def _feature_gradient_step(head: HeadRecord) -> float:
    return head.feature_gradient_peak / (FILL * WIDE_LIMIT)
