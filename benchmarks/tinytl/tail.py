# SPDX-License-Identifier: MIT
"""``quartet train tail``: a network's last blocks, head and loss, by the core's integers beside float.

The network is EfficientNet-Lite0. What lies before the tail stays as it is and is computed once, in float.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from algo.gan.data import ImageSet
from algo.tinytl.architecture import EFFICIENTNET_LITE0, LITE_GROUPS, METHODS, Method, check_resolution
from algo.tinytl.data import load_labelled
from algo.tinytl.network import Network
from algo.tinytl.quantise import TINY, WEIGHT_LIMIT, dense, released
from algo.tinytl.quantise_tail import MAX_POOLED, TailRecord, quantise_tail
from algo.tinytl.tail import TailExamples, block_of, inputs_of, numbers_of, scores_of, trained
from algo.tinytl.weights import as_input, pretrained
from benchmarks.quality.progress import Progress
from benchmarks.tinytl import block_rtl
from benchmarks.tinytl.curves import Step, as_png, losses, stored
from hw.config import ChipConfig
from hw.convolution.golden import run
from hw.convolution.operations import Operation, lists_of
from sim.driver import tail
from sim.driver.descent import Descent
from sim.driver.training import carried
from sim.driver.weights import forward_weights

NAMES = ("last", "bias", "lite+bias")
"""Methods whose steps the core has operations for."""
N_MEAN = 50
"""Steps of a mean loss; of a short training a quarter of it."""
N_COMPARED = 16
"""Pictures whose gradients are compared at the end."""
BATCH = 50
MAX_RESOLUTION = 32 * MAX_POOLED
"""Of pictures, whose last map is to be pooled."""

Lists = Mapping[str, Tensor]
"""That a step begins with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TailTraining:
    """Everything the user gave, checked."""

    name: str
    network: Network
    n_blocks: int
    method: Method
    training: TailExamples
    test: TailExamples
    record: TailRecord
    descent: Descent
    order: Tensor
    """int64[n_steps]: the picture of each step."""
    chip: ChipConfig
    n_rtl_steps: int
    """So many more steps run in Verilog."""
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Trains, writes ``steps.csv``, ``loss.png`` and ``tail.json``; returns the numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)  # fails before the training, not behind it
        steps, network, lists = [], deepcopy(self.network), dict[str, Tensor]()
        begun = _accuracies(self, network, lists)
        for step in descend(self, network, lists):
            steps.append(step)
            progress(f"loss {step.integer_loss:.3f}", len(steps), len(self.order))
        ended = _accuracies(self, network, lists)
        errors = gradient_errors(self, network, lists)
        integer, exact = losses(steps)
        n = min(N_MEAN, -(-len(steps) // 4))
        result = {
            "tail": self.name,
            "n_trained": sum(of.numel() for of in trained(network, self.n_blocks, self.method).values()),
            "n_operations": len(_operations(self)),
            "n_steps": len(steps),
            "first_loss": float(integer[:n].mean()),
            "first_loss_float": float(exact[:n].mean()),
            "last_loss": float(integer[-n:].mean()),
            "last_loss_float": float(exact[-n:].mean()),
            "largest_difference": float(np.abs(integer - exact).max()),
            "n_test": len(self.test.labels),
            "accuracy_before": begun[0],
            "accuracy_before_float": begun[1],
            "accuracy": ended[0],
            "accuracy_float": ended[1],
            **{f"gradient_error_{name}": error for name, error in errors.items()},
            "classifier_weights_at_limit": _share_at_limit(self, lists),
        }
        picture = as_png(self.name, steps, n, f"{n} steps", "linear")
        in_verilog = partial(_by_rtl, self, lists) if self.n_rtl_steps else None
        return stored(self.folder / "tail.json", result, steps, picture, in_verilog)


def prepare_tail(
    n_blocks: int,
    data: str,
    resolution: int,
    n_pictures: int,
    n_test: int,
    n_calibration: int,
    method: str,
    norm: str,
    smoothing: float,
    descent: Descent,
    n_steps: int,
    seed: int,
    chip: ChipConfig,
    n_rtl_steps: int,
    folder: Path,
) -> TailTraining:
    """The packaged network with a new classifier, pictures drawn with ``seed``, of which the first
    ``n_calibration`` give the ranges; ValueError for bad input."""
    if method not in NAMES:
        raise ValueError(f"method must be one of {', '.join(NAMES)}, not {method!r}")
    check_resolution(replace(EFFICIENTNET_LITE0, lite=METHODS[method].lite_weights), resolution)
    if resolution > MAX_RESOLUTION:
        raise ValueError(f"resolution must be at most {MAX_RESOLUTION} pixels, not {resolution}")
    labelled = load_labelled(data, resolution)
    network = pretrained(
        n_classes=len(labelled.classes), norm=norm, lite=METHODS[method].lite_weights, seed=seed
    )
    network.eval().requires_grad_(False)
    for number in numbers_of(network, n_blocks):
        released(block_of(network, number))
    training = _examples(network, n_blocks, labelled.training, n_pictures, seed)
    first = TailExamples(inputs=training.inputs[:n_calibration], labels=training.labels[:n_calibration])
    what = f"{network.backbone.name}, last {n_blocks} of its blocks, {method}, {norm} norms"
    made = TailTraining(
        name=f"{what}: {data}, {resolution} px",
        network=network,
        n_blocks=n_blocks,
        method=METHODS[method],
        training=training,
        test=_examples(network, n_blocks, labelled.test, n_test, seed),
        record=quantise_tail(network, n_blocks, first, smoothing=smoothing),
        descent=descent,
        order=_order(len(training.labels), n_steps, seed),
        chip=chip,
        n_rtl_steps=n_rtl_steps,
        folder=folder,
    )
    operations = _operations(made)
    if n_rtl_steps:
        block_rtl.check(operations, _maps(made, 0), chip)
    return made


def _examples(network: Network, n_blocks: int, pictures: ImageSet, n: int, seed: int) -> TailExamples:
    """What the tail reads of ``n`` pictures; 0: of all."""
    drawn = pictures.subset(n or len(pictures.images), seed)
    assert drawn.labels is not None
    inputs = [inputs_of(network, n_blocks, as_input(some)) for some in drawn.images.split(BATCH)]
    return TailExamples(inputs=torch.cat(inputs), labels=drawn.labels)


def _order(n_pictures: int, n_steps: int, seed: int) -> Tensor:
    """All pictures in turn, each turn in another order."""
    generator = torch.Generator().manual_seed(seed)
    turns = [torch.randperm(n_pictures, generator=generator) for _ in range(-(-n_steps // n_pictures))]
    return torch.cat(turns)[:n_steps]


def descend(of: TailTraining, network: Network, lists: dict[str, Tensor]) -> Iterator[Step]:
    """Integers and float, each with its own parameters: ``lists`` and ``network`` are trained."""
    operations = _operations(of)
    parameters = trained(network, of.n_blocks, of.method)
    optimiser = torch.optim.SGD(of.descent.groups(parameters), of.descent.rate, of.descent.momentum)
    for i in of.order.tolist():
        made = run(operations, lists | _maps(of, i))
        lists.update(carried(operations, made))
        with torch.enable_grad():
            loss = _loss(of, network, i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield Step(picture=i, integer_loss=tail.loss(of.record, made), float_loss=float(loss.detach()))


def gradient_errors(of: TailTraining, network: Network, lists: Lists) -> dict[str, float]:
    """Of integers and float as they now are, each with its own parameters: distance of the gradients of the
    first :data:`N_COMPARED` pictures, over their length."""
    parameters = trained(network, of.n_blocks, of.method)
    apart, length = dict.fromkeys(parameters, 0.0), dict.fromkeys(parameters, 0.0)
    operations = _operations(of)
    for i in of.order[:N_COMPARED].tolist():
        made = run(operations, {**lists, **_maps(of, i)})
        found = tail.gradients(of.record, made, classifier_only=of.method.name == "last")
        with torch.enable_grad():
            exact = torch.autograd.grad(_loss(of, network, i), list(parameters.values()))
        for name, gradient in zip(parameters, exact, strict=True):
            of_float = dense(gradient, LITE_GROUPS) if name.endswith("lite.conv1.weight") else gradient
            apart[name] += float(np.square(found[name] - of_float.double().numpy()).sum())
            length[name] += float(of_float.double().square().sum())
    return {name: (apart[name] / max(length[name], TINY)) ** 0.5 for name in parameters}


def _loss(of: TailTraining, network: Network, i: int) -> Tensor:
    scores = scores_of(network, of.n_blocks, of.training.inputs[i : i + 1])
    labels = of.training.labels[i : i + 1]
    return F.cross_entropy(scores, labels, label_smoothing=of.record.head.smoothing)


@torch.no_grad()
def _accuracies(of: TailTraining, network: Network, lists: Lists) -> tuple[float, float]:
    """Shares of the test pictures that integers and float classify rightly."""
    test, forward = of.test, tail.forward(of.record)
    known = {name: lists[name] for name in lists_of(forward) if name in lists}
    found = [
        tail.scores(of.record, run(forward, known | _tensors(tail.inputs(of.record, x.double().numpy()))))
        for x in test.inputs
    ]
    exact = torch.cat([scores_of(network, of.n_blocks, some) for some in test.inputs.split(BATCH)])
    integer = torch.from_numpy(np.stack(found))
    by_integers, by_float = ((scores.argmax(1) == test.labels).double().mean() for scores in (integer, exact))
    return float(by_integers), float(by_float)


def _share_at_limit(of: TailTraining, lists: Lists) -> float:
    """Of the classifier's 8-bit weights: more than a few, and its rate is too large for their unit."""
    weights = lists[forward_weights(of.record.head.classifier)]
    return float((weights.abs() >= WEIGHT_LIMIT).double().mean())


def _by_rtl(of: TailTraining, lists: Lists) -> dict[str, Any]:
    """More steps, from what has been learned: a new classifier gives no gradient to what is before it."""
    pictures = [int(of.order[i % len(of.order)]) for i in range(of.n_rtl_steps)]
    found = block_rtl.measured(_operations(of), [_maps(of, i) for i in pictures], of.chip, lists)
    return found.fields


def _operations(of: TailTraining) -> list[Operation]:
    return tail.operations(of.record, of.descent, classifier_only=of.method.name == "last")


def _maps(of: TailTraining, i: int) -> dict[str, Tensor]:
    x, label = of.training.inputs[i].double().numpy(), int(of.training.labels[i])
    return _tensors(tail.given(of.record, x, label))


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}
