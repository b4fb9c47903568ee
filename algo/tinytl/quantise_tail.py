# SPDX-License-Identifier: MIT
"""A network's last blocks and its head in integers, for training: as :mod:`.quantise`, along the whole chain.

A new classifier is 0, and so are all gradients behind it. Ranges of gradients are therefore measured with
another one: the step that the first gradient over all examples would be, so long that its largest score is
:data:`SCORE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from algo.tinytl.network import Network
from algo.tinytl.quantise import (
    TOP,
    WEIGHT_HEADROOM,
    WEIGHT_LIMIT,
    BlockRecord,
    UnitRecord,
    activated,
    block_record,
    passed,
    passed_unit,
    peak,
    step_of,
    unit_record,
    values_of,
)
from algo.tinytl.tail import TailExamples, block_of, numbers_of, targets_of

SCORE = 8.0
"""Score that the classifier's weights have room for, twice; gradients are calibrated for it."""
LOWEST_SCORE = -32.0
"""Bias of classes that there are only because rows of weights come by fours."""
CLASSES_UNIT = 4
MAX_SMOOTHING = 0.99
MAX_POOLED = 7
"""Pixels of a side that are pooled by one depthwise layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadRecord:
    """The 1x1 convolution "mix", mean pooling, the classifier, and label-smoothed cross entropy."""

    mix: UnitRecord
    classifier: UnitRecord
    """Of one pixel, all weights in one step; its input are the pooled features. Its classes are a multiple of
    four; those beyond ``n_classes`` have weights 0 and bias LOWEST_SCORE, which never move."""
    n_classes: int
    smoothing: float
    """Of labels; 0..MAX_SMOOTHING."""
    feature_gradient_peak: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TailRecord:
    """The last blocks in forward order, then the head."""

    blocks: tuple[BlockRecord, ...]
    head: HeadRecord


def quantise_tail(network: Network, n_blocks: int, examples: TailExamples, *, smoothing: float) -> TailRecord:
    """The last ``n_blocks`` and the head; ranges over all examples.

    ValueError where there are not so many blocks, for a lite module's maps of an odd size, for more than
    MAX_POOLED x MAX_POOLED pixels to pool, for ``smoothing`` outside of 0..MAX_SMOOTHING.
    """
    if not 0 <= smoothing <= MAX_SMOOTHING:
        raise ValueError(f"label_smoothing must be in 0..{MAX_SMOOTHING}, not {smoothing}")
    numbers = numbers_of(network, n_blocks)
    x, chain = examples.inputs.detach().clone().requires_grad_(), []
    for number in numbers:
        chain.append(passed(block_of(network, number), x))
        x = chain[-1].out
    mix = passed_unit(network.mix, x)
    pooled = activated(network.mix, mix[2])
    check_sizes(network, numbers, [of.x.shape[-1] for of in chain], pooled.shape[-1])
    features = pooled.mean((2, 3))
    scores_gradient = _scores_gradient(network, features.detach(), examples.labels, smoothing)
    weights = expected_classifier(features.detach(), scores_gradient)
    weights = weights + network.classifier.weight.detach()
    loss = (scores_gradient * (features @ weights.T)).sum()
    wanted = [tensor for of in chain for tensor in of.wanted()]
    gradients = torch.autograd.grad(loss, [features, *mix[1:], *wanted])
    of_features, of_z, of_u, *rest = gradients
    blocks = []
    for number, of in zip(numbers, chain, strict=True):
        n = len(of.wanted())
        trace, rest = of.traced(rest[:n]), rest[n:]
        blocks.append(block_record(block_of(network, number), trace, step_of(trace.x), name=f"b{number}."))
    mixed = values_of(mix, of_z, of_u)
    head = HeadRecord(
        mix=unit_record("mix", network.mix, mixed, step_of(mixed.x), step_of(pooled, TOP)),
        classifier=_classifier(network, peak(weights), step_of(features)),
        n_classes=network.backbone.n_classes,
        smoothing=smoothing,
        feature_gradient_peak=peak(of_features),
    )
    return TailRecord(blocks=tuple(blocks), head=head)


def check_sizes(network: Network, numbers: Sequence[int], sizes: Sequence[int], pooled: int) -> None:
    """ValueError where a block's map or the last one has a size that the core's operations are not for."""
    for number, size in zip(numbers, sizes, strict=True):
        block = block_of(network, number)
        multiple = 2 * block.block.stride
        if block.lite is not None and size % multiple:
            raise ValueError(
                f"input of block {number} must be a multiple of {multiple} pixels wide with a lite module, "
                f"not {size}"
            )
    if pooled > MAX_POOLED:
        raise ValueError(f"the last map must be at most {MAX_POOLED} pixels wide, not {pooled}")


def expected_classifier(features: Tensor, scores_gradient: Tensor) -> Tensor:
    """Weights float[n_classes, c] of about the size that training will reach."""
    direction = -scores_gradient.T @ features
    return direction * (SCORE / peak(features @ direction.T))


def _scores_gradient(network: Network, features: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    scores = network.classifier(features).detach()
    return scores.softmax(1) - targets_of(labels, network.backbone.n_classes, smoothing)


def _classifier(network: Network, largest: float, in_step: float) -> UnitRecord:
    weight, bias = (p.detach().double() for p in (network.classifier.weight, network.classifier.bias))
    n_more = -len(weight) % CLASSES_UNIT
    step = WEIGHT_HEADROOM * largest / WEIGHT_LIMIT
    integers = (weight / step).round().to(torch.int8)
    n_classes = len(weight) + n_more
    return UnitRecord(
        name="classifier",
        depthwise=False,
        in_size=1,
        out_size=1,
        kernel=1,
        stride=1,
        padding=0,
        weights=F.pad(integers, (0, 0, 0, n_more))[:, :, None, None].numpy(),
        steps=np.full(n_classes, step),
        bias=F.pad(bias, (0, n_more), value=LOWEST_SCORE).numpy(),
        top=None,
        in_step=in_step,
        out_step=0.0,
        peak=-LOWEST_SCORE,
        gradient_peaks=np.ones(n_classes),
        norm=None,
    )
