# SPDX-License-Identifier: MIT
"""The last blocks of a network and its head in float, and what of them a method trains."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from algo.tinytl.architecture import Method
from algo.tinytl.network import Bottleneck, Network
from algo.tinytl.quantise import units_of


@dataclass(frozen=True, kw_only=True, eq=False)
class TailExamples:
    """What the tail learns from."""

    inputs: Tensor
    """float[N, c, H, H], of its first block."""
    labels: Tensor
    """int64[N]"""


def numbers_of(network: Network, n_blocks: int) -> range:
    """Of the last ``n_blocks``; ValueError where there are not so many."""
    n_all = len(network.blocks)
    if not 1 <= n_blocks <= n_all:
        raise ValueError(f"blocks must be in 1..{n_all}, not {n_blocks}")
    return range(n_all - n_blocks, n_all)


def block_of(network: Network, number: int) -> Bottleneck:
    """By its number, from 0."""
    block = network.blocks[number]
    assert isinstance(block, Bottleneck)
    return block


@torch.no_grad()
def inputs_of(network: Network, n_blocks: int, pictures: Tensor) -> Tensor:
    """What the first of the last ``n_blocks`` reads of float[B, 3, R, R]."""
    x = network.stem(pictures)
    for block in network.blocks[: numbers_of(network, n_blocks)[0]]:
        x = block(x)
    return x


def scores_of(network: Network, n_blocks: int, inputs: Tensor) -> Tensor:
    """Of :func:`inputs_of`: float[B, n_classes]."""
    x = inputs
    for number in numbers_of(network, n_blocks):
        x = network.blocks[number](x)
    return network.classifier(network.mix(x).mean((2, 3)))


def targets_of(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """Smoothed labels, float[N, n_classes]."""
    return F.one_hot(labels, n_classes) * (1 - smoothing) + smoothing / n_classes


def trained(network: Network, n_blocks: int, method: Method) -> dict[str, Tensor]:
    """What is trained of the tail, taking gradients: a unit's bias by the unit's name (``mix``,
    ``b15.expand``), the rest by its name in the network with ``bN`` for block N."""
    found = {f"classifier.{name}": parameter for name, parameter in network.classifier.named_parameters()}
    if method.main_biases:
        found["mix"] = network.mix.norm.bias
    for number in numbers_of(network, n_blocks):
        block = block_of(network, number)
        if method.main_biases:
            found |= {f"b{number}.{name}": unit.norm.bias for name, unit in units_of(block)}
        if method.lite_weights and block.lite is not None:
            of_lite = dict(block.lite.named_parameters())
            if not method.last_lite_biases:
                del of_lite["norm2.bias"]
            found |= {f"b{number}.lite.{name}": parameter for name, parameter in of_lite.items()}
    return {name: parameter.requires_grad_() for name, parameter in found.items()}
