# SPDX-License-Identifier: MIT
"""Feature-extractor adaptation: choices, networks that inherit, shared training, search."""

from dataclasses import replace
from itertools import product
from random import Random

import pytest
import torch

from algo.evolution import Evolution
from algo.gan.data import ImageSet
from algo.tinytl.adapt import SuperTransfer, adapted, inherited, mean_loss, memory_cost
from algo.tinytl.architecture import EFFICIENTNET_LITE0, METHODS, Block, layers
from algo.tinytl.choice import ChoiceSpace, Part, chosen, options, whole, within
from algo.tinytl.memory import full_count
from algo.tinytl.network import Network
from algo.tinytl.transfer import TransferConfig

ABSENT, MAIN, LITE = Part
BACKBONE = replace(
    EFFICIENTNET_LITE0, name="small", n_classes=2, c_mix=32, lite=True,
    blocks=(
        Block(16, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1), Block(16, 16, 2, 3, 1),
        Block(16, 24, 3, 3, 2),
    ),
)  # fmt: skip
CHOICE = (MAIN, LITE, ABSENT, MAIN, LITE)


def squares(n: int = 12) -> ImageSet:
    """Red and blue."""
    labels = torch.arange(n) % 2
    images = torch.where(labels[:, None] == 0, torch.tensor([200, 40, 30]), torch.tensor([30, 40, 200]))
    noise = torch.randint(-20, 21, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return ImageSet((images[:, :, None, None] + noise).to(torch.uint8), labels, "squares")


def random_network(seed: int = 0) -> Network:
    """Scales of lite modules that are not 0, a classifier that tells something."""
    network = Network(BACKBONE, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "classifier" in name:
                parameter.add_(torch.randn(parameter.shape, generator=rng))
    return network.double().eval()


def test_options():
    assert options(BACKBONE) == (
        (MAIN,), (MAIN, LITE), (ABSENT, MAIN, LITE), (ABSENT, MAIN, LITE), (MAIN, LITE)
    )  # fmt: skip
    assert whole(BACKBONE) == (MAIN, LITE, LITE, LITE, LITE)
    assert options(replace(BACKBONE, lite=False))[1] == (MAIN,)


def test_the_chosen_backbone_has_the_chosen_layers():
    names = {layer.name for layer in layers(chosen(BACKBONE, CHOICE), 64)}
    assert {"b1.lite.conv1", "b2.dw", "b3.lite.conv1"} <= names
    assert not names & {"b2.lite.conv1", "b4.dw"}  # the third block is the fourth of the whole one
    assert chosen(BACKBONE, CHOICE).name == "small:12012"
    same = chosen(BACKBONE, whole(BACKBONE))
    assert layers(same, 64) == layers(BACKBONE, 64)


@pytest.mark.parametrize("choice", [CHOICE, whole(BACKBONE), ChoiceSpace(BACKBONE).cheapest])
def test_an_inheriting_network_is_the_chosen_part(choice):
    network = random_network()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    sub = inherited(network, choice).double().eval()
    assert torch.equal(sub(x), network(x, choice))
    assert (choice == whole(BACKBONE)) == torch.equal(sub(x), network(x))


def test_drawn_changed_and_crossed_choices_are_possible():
    space, rng = ChoiceSpace(BACKBONE), Random(0)
    drawn = [space.drawn(rng) for _ in range(2000)]
    assert set(drawn) == set(product(*options(BACKBONE)))
    for a, b in zip(drawn[:50], drawn[50:], strict=False):
        for new in (space.mutant(a, rng), space.crossing(a, b, rng)):
            chosen(BACKBONE, new)
    changed = sum(x != y for a in drawn for x, y in zip(a, space.mutant(a, rng), strict=True))
    assert 0.5 < changed / len(drawn) < 1.5  # of two drawn anew some stay the same


def test_the_search_finds_what_an_exhaustive_one_finds():
    network, data = random_network().float(), squares(6)
    cost = memory_cost(network, METHODS["lite+bias"], 64, 4)
    everything = list(product(*options(BACKBONE)))
    budget = sorted(map(cost, everything))[len(everything) // 2]
    best = min(mean_loss(network, choice, data) for choice in everything if cost(choice) <= budget)
    found = adapted(network, data, cost, budget, Evolution(population=24, generations=12))
    assert found.fitness == best and found.cost <= budget
    assert found.cost == full_count(
        chosen(BACKBONE, found.candidate), METHODS["lite+bias"], 64, 4
    ).total_bytes  # fmt: skip


def test_shared_training_meets_parts_and_the_whole():
    network = Network(BACKBONE)
    config = TransferConfig(batch_size=4, learning_rate=3e-3)
    training = SuperTransfer(network, squares(), METHODS["lite+bias"], config, n_steps=40)
    met = []
    network.register_forward_pre_hook(lambda module, args: met.append(args[1] if len(args) > 1 else None))
    losses = [training.step(i, torch.Generator().manual_seed(i))["loss"] for i in range(1, 41)]
    assert None in met and len(set(met)) > 5
    assert losses[-1] < 0.6 * losses[0]
    assert training.describe()["task"] != "tinytl"


def test_within():
    space, sizes = ChoiceSpace(BACKBONE), Random(3)
    assert sum(within(space, sum, 4, 5, sizes, 1000)) in (4, 5)
    with pytest.raises(ValueError, match=r"no choice was found that costs 50\.\.60 in 10 tries"):
        within(space, sum, 50, 60, sizes, 10)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ((LITE, *CHOICE[1:]), "choice of block 0 must be 1, not 2"),
        ((MAIN, ABSENT, *CHOICE[2:]), "choice of block 1 must be 1 or 2, not 0"),
        (CHOICE[:4], "choice must be of 5 blocks, not 4"),
    ],
)
def test_impossible_choices(choice, message):
    with pytest.raises(ValueError, match=message):
        inherited(random_network(), choice)
