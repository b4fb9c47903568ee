# SPDX-License-Identifier: MIT
"""A training step of a network's last blocks and its head: a chain of blocks, pooling, classifier, loss.

Each block's output is written as the next one reads it, in 8 bits and, for shortcut and lite module, in 16;
the gradient of each block's input is written as that of the output before. A picture is a step.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from algo.tinytl.quantise import BlockRecord, UnitRecord
from algo.tinytl.quantise_tail import TailRecord
from hw.convolution.operations import Operation
from sim.driver import block, head, lite, training, units, weights
from sim.driver.descent import Descent
from sim.driver.formats import MapFormat, gradient_unit, in_gradient_unit
from sim.driver.units import Sums
from sim.driver.words import Floats


def forward(record: TailRecord) -> list[Operation]:
    """From the first block's input to scores."""
    made: list[Operation] = []
    readers = [*map(_block_formats, record.blocks[1:]), [head.input_format(record.head)]]
    for one, outputs in zip(record.blocks, readers, strict=True):
        made += block.forward(one, outputs)
    return made + head.forward(record.head)


def operations(record: TailRecord, descent: Descent, *, classifier_only: bool = False) -> list[Operation]:
    """A step: forward, loss, backward, update; of the classifier alone, or of all that is trained."""
    further = not classifier_only
    made = [*forward(record), head.loss(record.head, further=further), *head.weight_gradient(record.head)]
    if further:
        made += _backward(record)
    made += head.updates(record.head, descent, further=further)
    for i, one in enumerate(record.blocks if further else []):
        made += block.updates(one, descent, _out_sums(record, i), further=i > 0)
    return made


def _block_formats(of: BlockRecord) -> list[MapFormat]:
    """What the output before a block is written as."""
    return [one for one in (block.input_format(of), block.wide_format(of)) if one is not None]


def _backward(record: TailRecord) -> Iterator[Operation]:
    last = len(record.blocks) - 1
    step = _out_gradient_unit(record, last)
    yield from head.backward(record.head, step, _arriving(record, last)(step))
    for i in range(last, -1, -1):
        yield from block.backward(record.blocks[i], _arriving(record, i - 1) if i else None)


def _arriving(record: TailRecord, i: int) -> Callable[[float], dict[str, Any]]:
    """What becomes of the gradient of the output of block ``i``, given its unit."""
    return lambda step: block.arriving(record.blocks[i], step, further=i > 0)


def _out_gradient_unit(record: TailRecord, i: int) -> float:
    """Of the gradient of the output of block ``i``, in 24 bits, where it is made."""
    if i + 1 < len(record.blocks):
        return in_gradient_unit(record.blocks[i + 1])
    return gradient_unit(record.blocks[i].units[-1])


def _out_sums(record: TailRecord, i: int) -> Sums:
    return units.sums(record.blocks[i].units[-1], _out_gradient_unit(record, i))


def inputs(record: TailRecord, x: Floats) -> dict[str, NDArray[np.int64]]:
    """What :func:`forward` reads: the first block's input, float[c, H, H], and constants, as maps."""
    made = training.inputs(record.blocks[0], x)
    for one in record.blocks[1:]:
        made |= training.constants(one)
    return made


def given(record: TailRecord, x: Floats, label: int) -> dict[str, NDArray[np.int64]]:
    """What a step on one picture reads."""
    return inputs(record, x) | head.constants(record.head) | {head.LABEL: np.full((1, 1), label)}


# ---- what a step has made ----------------------------------------------------------------------------------


def scores(record: TailRecord, made: Mapping[str, Any]) -> Floats:
    """Of the classes: float64[n_classes]."""
    integers = np.asarray(made[head.SCORES][0, 0, : record.head.n_classes], np.float64)
    return integers * 2.0**-head.SCORE_FRACTION_BITS


def loss(record: TailRecord, made: Mapping[str, Any]) -> float:
    """Label-smoothed cross entropy of the scores, nats."""
    label = torch.as_tensor(made[head.LABEL])[0]
    found = torch.from_numpy(scores(record, made))[None]
    return float(F.cross_entropy(found, label, label_smoothing=record.head.smoothing))


def gradients(
    record: TailRecord, made: Mapping[str, Any], *, classifier_only: bool = False
) -> dict[str, Floats]:
    """Of all that is trained, by name: of a unit's bias the unit's, of a block's lite module those that it
    has there, ``classifier.bias`` and ``classifier.weight``, float64[n_classes, c]."""
    of, n = record.head, record.head.n_classes
    found = {
        "classifier.weight": weights.gradient_of(head.trained(of), made)[:n, :, 0, 0],
        "classifier.bias": units.bias_gradient(head.classifier_bias(of)[2], made)[:n],
    }
    if classifier_only:
        return found
    for unit, _, sums in _biases(record):
        found[unit.name] = units.bias_gradient(sums, made)
    for one in record.blocks:
        if one.lite is not None:
            of_lite = lite.gradients(one.lite, made)
            found |= {f"{one.lite.name}.{name}": gradient for name, gradient in of_lite.items()}
    return found


def values(
    record: TailRecord, made: Mapping[str, Any], *, classifier_only: bool = False
) -> dict[str, Floats]:
    """The biases of mix and blocks after the step, named as in :func:`gradients`, and the classifier's 8-bit
    weights as they are read."""
    of = record.head.classifier
    weight = np.asarray(made[weights.forward_weights(of)][: record.head.n_classes, :, 0, 0]) * of.steps[0]
    biases = [] if classifier_only else _biases(record)
    return {
        "classifier.weight": weight,
        **{unit.name: units.bias(unit, step, made) for unit, step, _ in biases},
    }


def _biases(record: TailRecord) -> Iterator[tuple[UnitRecord, float, Sums]]:
    yield head.mix_bias(record.head)
    for i, one in enumerate(record.blocks):
        yield from block.biases(one, _out_sums(record, i))
