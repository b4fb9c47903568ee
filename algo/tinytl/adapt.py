# SPDX-License-Identifier: MIT
"""Feature-extractor adaptation: the blocks and lite modules that suit a data set within a memory budget.

1. :class:`SuperTransfer` trains biases and lite modules on the data, each step with other blocks left out.
2. :func:`adapted` searches the choice of least validation loss with these shared weights, by evolution.
3. :func:`inherited` makes it a network of its own, from the original weights, to be trained as any other.
"""

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from algo.evolution import Evolution, Fittest, OnGeneration, fittest
from algo.gan.data import ImageSet
from algo.tinytl.architecture import Method
from algo.tinytl.choice import Choice, ChoiceSpace, Part, chosen, whole
from algo.tinytl.memory import full_count
from algo.tinytl.network import Network
from algo.tinytl.transfer import Transfer
from algo.tinytl.weights import as_input


class SuperTransfer(Transfer):
    """Transfer of all choices at once: a random one each step, every other time the whole network."""

    def describe(self) -> dict[str, Any]:
        """As of any transfer, with a task of its own."""
        return {**super().describe(), "task": "tinytl choices"}

    def scores(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Of a random choice."""
        seed = int(torch.randint(2**31, (), generator=rng))
        if seed % 2:
            return self.network(images)
        return self.network(images, ChoiceSpace(self.network.backbone).drawn(Random(seed)))


def inherited(network: Network, choice: Choice) -> Network:
    """A network of the chosen parts with copies of their weights. ValueError for an impossible choice."""
    sub = Network(chosen(network.backbone, choice))
    kept = [index for index, part in enumerate(choice) if part != Part.ABSENT]
    weights = network.state_dict()
    names = {
        name: ".".join(["blocks", str(kept[int(name.split(".")[1])]), *name.split(".")[2:]])
        for name in sub.state_dict()
        if name.startswith("blocks.")
    }
    sub.load_state_dict({name: weights[names.get(name, name)] for name in sub.state_dict()})
    return sub


@torch.no_grad()
def mean_loss(network: Network, choice: Choice, data: ImageSet, batch_size: int = 50) -> float:
    """Cross-entropy of the chosen parts, nats a picture."""
    assert data.labels is not None
    device, total = network.classifier.weight.device, 0.0
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        scores = network(as_input(images).to(device), choice)
        total += float(F.cross_entropy(scores, labels.to(device), reduction="sum"))
    return total / len(data.labels)


def memory_cost(
    network: Network, method: Method, resolution: int, batch_size: int
) -> Callable[[Choice], float]:
    """Bytes of a training step in full count, as a cost."""

    @cache
    def cost(choice: Choice) -> float:
        return full_count(chosen(network.backbone, choice), method, resolution, batch_size).total_bytes

    return cost


def adapted(
    network: Network,
    validation: ImageSet,
    cost: Callable[[Choice], float],
    budget: float,
    config: Evolution,
    on_generation: OnGeneration = lambda generation, n, best: None,
) -> Fittest[Choice]:
    """The choice within ``budget`` whose loss on ``validation`` is least; ValueError where none is."""
    network.eval()
    return fittest(
        ChoiceSpace(network.backbone), cost, budget, lambda choice: mean_loss(network, choice, validation),
        config, start=[whole(network.backbone)], on_generation=on_generation,
    )  # fmt: skip
