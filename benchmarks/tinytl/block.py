# SPDX-License-Identifier: MIT
"""``quartet train block``: one block, by the core's integers beside float.

The pictures are darkened. Before the block the network is as it was; the block learns, by its biases and by a
lite residual module if it has one, to make of them what it made of the pictures as they were.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algo.gan.data import load_images
from algo.tinytl.architecture import LITE_GROUPS
from algo.tinytl.network import Bottleneck, Network
from algo.tinytl.quantise import BlockRecord, Examples, dense, loss_of, quantise, released, units_of
from algo.tinytl.weights import as_input, pretrained
from benchmarks.quality.progress import Progress
from benchmarks.tinytl import block_rtl
from benchmarks.tinytl.curves import Step, as_png, losses, stored
from hw.config import ChipConfig
from hw.convolution.golden import run
from hw.convolution.operations import Operation
from sim.driver import lite, training
from sim.driver.descent import Descent

DARK_CONTRAST, DARK_SHIFT = 0.35, -0.4
"""x -> 0.35 x - 0.4, of pictures in about -1..1."""


METHODS = ("bias", "lite+bias")


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTraining:
    """Everything the user gave, checked."""

    name: str
    block: Bottleneck
    examples: Examples
    record: BlockRecord
    descent: Descent
    n_steps: int
    chip: ChipConfig
    n_rtl_steps: int
    """So many steps run in Verilog as well."""
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Trains, writes ``steps.csv``, ``loss.png`` and ``block.json``; returns the numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)  # fails before the training, not behind it
        gradient_errors = first_gradient_errors(self)
        steps = []
        for step in descend(self):
            steps.append(step)
            progress(f"loss {step.integer_loss:.4g}", len(steps), self.n_steps)
        n = len(self.examples.inputs)
        integer, exact = losses(steps)
        result = {
            "block": self.name,
            "n_trained": sum(parameter.numel() for parameter in trained(self.block).values()),
            "n_operations": len(_operations(self)),
            "n_steps": self.n_steps,
            **{f"gradient_error_{name}": error for name, error in gradient_errors.items()},
            "first_loss": float(integer[:n].mean()),
            "last_loss": float(integer[-n:].mean()),
            "last_loss_float": float(exact[-n:].mean()),
            "largest_difference": float(np.abs(integer / exact - 1).max()),
        }
        picture = as_png(self.name, steps, n, "the pictures")
        in_verilog = partial(_by_rtl, self) if self.n_rtl_steps else None
        return stored(self.folder / "block.json", result, steps, picture, in_verilog)


def prepare_block(
    index: int,
    data: str,
    resolution: int,
    n_pictures: int,
    method: str,
    norm: str,
    descent: Descent,
    n_steps: int,
    seed: int,
    chip: ChipConfig,
    n_rtl_steps: int,
    folder: Path,
) -> BlockTraining:
    """A block of the packaged network, darkened pictures drawn with ``seed``; ValueError for bad input."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    network = pretrained(norm=norm, lite=method != "bias", seed=seed).eval().requires_grad_(False)
    if not 0 <= index < len(network.blocks):
        raise ValueError(f"block must be in 0..{len(network.blocks) - 1}, not {index}")
    images = load_images(data, resolution).subset(n_pictures, seed).images
    examples = darkened(network, index, as_input(images))
    block = deepcopy(network.blocks[index])
    assert isinstance(block, Bottleneck)
    if method != "bias" and block.lite is None:
        raise ValueError(f"block must have a lite module, which block {index} has not")
    released(block)
    made = BlockTraining(
        name=f"block {index} of {network.backbone.name}, {method}, {norm} norms, {resolution} px",
        block=block,
        examples=examples,
        record=quantise(block, examples),
        descent=descent,
        n_steps=n_steps,
        chip=chip,
        n_rtl_steps=n_rtl_steps,
        folder=folder,
    )
    if n_rtl_steps:
        block_rtl.check(_operations(made), _maps(made, 0), chip)
    return made


def _by_rtl(of: BlockTraining) -> dict[str, Any]:
    n = len(of.examples.inputs)
    found = block_rtl.measured(
        _operations(of), [_maps(of, number % n) for number in range(of.n_rtl_steps)], of.chip
    )
    return found.fields


@torch.no_grad()
def darkened(network: Network, index: int, pictures: Tensor) -> Examples:
    """What block ``index`` reads of darkened ``pictures``, and what it makes of the pictures as they are."""

    def before(x: Tensor) -> Tensor:
        x = network.stem(x)
        for block in network.blocks[:index]:
            x = block(x)
        return x

    return Examples(
        inputs=before(pictures * DARK_CONTRAST + DARK_SHIFT), targets=network.blocks[index](before(pictures))
    )


def first_gradient_errors(of: BlockTraining) -> dict[str, float]:
    """Distance of each gradient in the first step to that of autograd, over its length."""
    made = run(_operations(of), _maps(of, 0))
    parameters = trained(of.block)
    with torch.enable_grad():
        gradients = torch.autograd.grad(_loss(of.block, of.examples, 0), list(parameters.values()))
    exact = dict(zip(parameters, gradients, strict=True))
    found = {unit.name: training.bias_gradient(of.record, unit, made) for unit in of.record.units}
    if of.record.lite is not None:
        pixels = of.record.units[-1].out_size ** 2
        of_lite = lite.gradients(of.record.lite, made)
        found |= {f"lite.{name}": gradient / pixels for name, gradient in of_lite.items()}
        exact["lite.conv1.weight"] = dense(exact["lite.conv1.weight"], LITE_GROUPS)
    return {name: _distance(gradient, exact[name].double().numpy()) for name, gradient in found.items()}


def trained(block: Bottleneck) -> dict[str, Tensor]:
    """Biases of the main branch by unit; of a lite module all but its second norm's bias."""
    found = {name: unit.norm.bias for name, unit in units_of(block)}
    if block.lite is not None:
        found |= {
            f"lite.{name}": parameter
            for name, parameter in block.lite.named_parameters()
            if name != "norm2.bias"
        }
    return {name: parameter.requires_grad_() for name, parameter in found.items()}


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Over the length of ``exact``, 0 where both are 0."""
    return float(np.linalg.norm(found - exact)) / max(float(np.linalg.norm(exact)), 1e-30)


def descend(of: BlockTraining) -> Iterator[Step]:
    """The pictures in turn; integers and float, each with its own parameters."""
    operations = _operations(of)
    block = deepcopy(of.block)
    optimiser = torch.optim.SGD(of.descent.groups(trained(block)), of.descent.rate, of.descent.momentum)
    lists: dict[str, Tensor] = {}
    for number in range(of.n_steps):
        i = number % len(of.examples.inputs)
        made = run(operations, lists | _maps(of, i))
        lists = training.carried(operations, made)
        with torch.enable_grad():
            loss = _loss(block, of.examples, i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield Step(picture=i, integer_loss=training.loss(of.record, made), float_loss=float(loss.detach()))


def _operations(of: BlockTraining) -> list[Operation]:
    return training.operations(of.record, of.descent)


def _maps(of: BlockTraining, i: int) -> dict[str, Tensor]:
    one = (of.examples.inputs[i].double().numpy(), of.examples.targets[i].double().numpy())
    return {name: torch.from_numpy(values) for name, values in training.given(of.record, *one).items()}


def _loss(block: Bottleneck, examples: Examples, i: int) -> Tensor:
    return loss_of(block(examples.inputs[i : i + 1]), examples.targets[i : i + 1])[0]
