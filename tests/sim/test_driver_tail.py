# SPDX-License-Identifier: MIT
"""A training step of blocks and head in integers: its gradients against exact ones, its descent; mutants."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algo.tinytl.architecture import LITE_GROUPS, METHODS, Backbone, Block
from algo.tinytl.network import Network, modules_by_layer
from algo.tinytl.quantise import dense, released
from algo.tinytl.quantise_tail import quantise_tail
from algo.tinytl.tail import TailExamples, scores_of, targets_of, trained
from hw.convolution.golden import run
from sim.driver import block as blocks
from sim.driver import head, lite, tail, training
from sim.driver.descent import Descent
from tests.hw.mutants import mutated
from tests.sim import test_driver_lite, test_driver_training
from tests.sim.test_driver_training import chw, distance, through

CASES = {
    "one block": {"n_blocks": 1},
    "stride 2, shortcut": {"n_blocks": 2},
    "lite": {"n_blocks": 2, "lite": True},
    "all": {"n_blocks": 3, "lite": True},
    "group": {"n_blocks": 2, "norm": "group", "lite": True, "n_classes": 4},
}
SMOOTHING = 0.1


def network_of(norm="affine", lite=False, n_classes=6):
    """A random network whose classifier is not 0."""
    backbone = Backbone(
        name="small", n_classes=n_classes, c_mix=24, norm=norm, padding="tensorflow", lite=lite,
        blocks=(Block(8, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 2, 3, 1)),
    )  # fmt: skip
    network = Network(backbone).requires_grad_(False)
    torch.manual_seed(0)
    for name, module in modules_by_layer(network).items():
        if ".gn" in name:
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.3, 0.4)
    network.classifier.weight.normal_(0, 0.3)
    network.classifier.bias.normal_(0, 0.3)
    for block in network.blocks:
        released(block)
        if block.lite:
            block.lite.norm2.weight.normal_(0, 0.5)
            block.lite.norm2.bias.zero_()
    return network


def examples_of(network, n_blocks, n=4):
    torch.manual_seed(1)
    size, c_in = 4 * n_blocks, network.backbone.blocks[-n_blocks].c_in
    labels = torch.arange(n) % network.backbone.n_classes
    return TailExamples(inputs=torch.randn(n, c_in, size, size), labels=labels)


def prepare(n_blocks=2, **case):
    network = network_of(**case)
    examples = examples_of(network, n_blocks)
    return network, examples, quantise_tail(network, n_blocks, examples, smoothing=SMOOTHING)


@pytest.fixture(scope="module")
def prepared():
    return {name: prepare(**case) for name, case in CASES.items()}


def maps_of(record, examples, i):
    given = tail.given(record, examples.inputs[i].double().numpy(), int(examples.labels[i]))
    return {name: torch.from_numpy(values) for name, values in given.items()}


def first_step(record, examples, i=0):
    return run(tail.operations(record, Descent(rate=0.1)), maps_of(record, examples, i))


def exact_gradients(record, made, label):
    """In float64, of all that is trained, through the integers of the forward pass."""
    of, n = record.head, record.head.n_classes
    scores = torch.from_numpy(tail.scores(record, made))
    g = scores.softmax(0) - targets_of(torch.tensor([label]), n, SMOOTHING)[0].double()
    features = chw(made["features"])[0, :, 0, 0] * of.classifier.in_step
    found = {"classifier.bias": g, "classifier.weight": g[:, None] * features}
    weights = torch.from_numpy(of.classifier.weights[:n, :, 0, 0] * of.classifier.steps[:n, None])
    g = (g @ weights)[None, :, None, None] / of.mix.out_size**2 * chw(made["mix.mask"])
    (found["mix"],), g = through([of.mix], made, g)
    for block in reversed(record.blocks):
        biases, of_input = test_driver_training.exact_gradients(block, made, g)
        found |= {unit.name: bias for unit, bias in zip(block.units, biases, strict=True)}
        if block.lite is not None:
            of_lite = test_driver_lite.exact_gradients(block, made, g)
            of_input = of_input + of_lite.pop("input")
            found |= {f"{block.lite.name}.{name}": gradient for name, gradient in of_lite.items()}
        g = of_input
    return found


def loss_of(network, examples, i, n_blocks):
    scores = scores_of(network, n_blocks, examples.inputs[i : i + 1])
    return F.cross_entropy(scores, examples.labels[i : i + 1], label_smoothing=SMOOTHING)


def method_of(record):
    return METHODS["bias" if record.blocks[-1].lite is None else "lite+bias"]


def errors(record, examples, i=0):
    """Of each gradient in the first step, against float64."""
    made = first_step(record, examples, i)
    found, exact = tail.gradients(record, made), exact_gradients(record, made, int(examples.labels[i]))
    assert found.keys() == exact.keys()
    more = float(made["classifier.sums"][record.head.n_classes :].abs().sum())
    return {name: distance(found[name], exact[name]) for name in exact} | {"classes there are not": more}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_exact_but_for_the_rounding_of_their_own_maps(prepared, case):
    """Against float64 through the same weights, masks and normed sums, from the same scores."""
    _, examples, record = prepared[case]
    found = errors(record, examples)
    assert max(found.values()) < {"all": 2e-3, "group": 3e-3}.get(case, 1e-3), found
    assert max(found["classifier.bias"], found["classifier.weight"]) < 1e-4


@pytest.mark.parametrize(("case", "limit"), [*zip(CASES, (0.1, 0.2, 0.4, 0.4, 0.6), strict=True)])
def test_gradients_are_near_autograd_s(prepared, case, limit):
    """Of the float network: what differs is 8-bit activations and weights, and masks that they flip."""
    network, examples, record = prepared[case]
    network, made, n_blocks = deepcopy(network), first_step(record, examples), len(record.blocks)
    parameters = trained(network, n_blocks, method_of(record))
    loss = loss_of(network, examples, 0, n_blocks)
    exact = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    assert tail.loss(record, made) == pytest.approx(float(loss.detach()), rel=0.03)
    found = tail.gradients(record, made)
    assert found.keys() == exact.keys()
    for name in found:
        of = dense(exact[name], LITE_GROUPS) if name.endswith("lite.conv1.weight") else exact[name]
        assert distance(found[name], of) < limit, name


def descended(network, examples, record, descent, n_steps, method):
    """Losses of integers and of float, step by step, the pictures in turn; what the last step has made."""
    classifier_only, n_blocks = method.name == "last", len(record.blocks)
    network = deepcopy(network)
    parameters = trained(network, n_blocks, method)
    optimiser = torch.optim.SGD(descent.groups(parameters), lr=descent.rate, momentum=descent.momentum)
    step = tail.operations(record, descent, classifier_only=classifier_only)
    lists, losses = {}, []
    for number in range(n_steps):
        i = number % len(examples.labels)
        made = run(step, lists | maps_of(record, examples, i))
        lists = training.carried(step, made)
        loss = loss_of(network, examples, i, n_blocks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append((tail.loss(record, made), float(loss.detach())))
    return np.array(losses).T, made, parameters


DESCENTS = [("one block", "last"), ("stride 2, shortcut", "bias"), ("lite", "lite+bias")]


@pytest.mark.parametrize(("case", "method"), DESCENTS)
def test_steps_descend_like_float(case, method):
    """From a classifier of 0: losses, and how far what is trained has moved."""
    case = dict(CASES[case])
    n_blocks = case.pop("n_blocks")
    network = network_of(**case)
    network.classifier.weight.zero_()
    network.classifier.bias.zero_()
    examples = examples_of(network, n_blocks)
    record = quantise_tail(network, n_blocks, examples, smoothing=SMOOTHING)
    descent = Descent(rate=0.003, weight_rate=0.003, classifier_rate=0.003)
    (integer, exact), made, parameters = descended(network, examples, record, descent, 32, METHODS[method])
    assert np.abs(integer - exact).max() < 0.025 * exact[0]
    assert integer[-4:].mean() < 0.86 * integer[:4].mean()
    units = [record.head.mix, *(unit for one in record.blocks for unit in one.units)]
    starts = {unit.name: unit.bias for unit in units}
    for name, value in tail.values(record, made, classifier_only=method == "last").items():
        start = starts.get(name, 0)
        assert distance(value - start, parameters[name].detach().numpy() - start) < 0.3, name


def test_classes_that_there_are_not_never_move(prepared):
    """Six are padded to eight: no probability, no gradient."""
    _, examples, record = prepared["one block"]
    step, lists = tail.operations(record, Descent(rate=0.1, classifier_rate=0.1)), {}
    for i in range(3):
        made = run(step, lists | maps_of(record, examples, i))
        lists = training.carried(step, made)
    assert made["scores"][0, 0, 6:].tolist() == 2 * [-(1 << 15)]
    for order in (made["classifier.weights"], made["classifier.adjoint.weights"].swapaxes(0, 1)):
        assert not order[6:].any() and order[:6].any(1).all()
    assert not made["classifier.sums"][6:].any() and made["classifier.sums"][:6, 0].all()


def test_what_a_tail_cannot_be():
    with_lite = network_of(lite=True)
    for n_blocks in (0, 4):
        with pytest.raises(ValueError, match=f"blocks must be in 1..3, not {n_blocks}"):
            quantise_tail(with_lite, n_blocks, examples_of(with_lite, 1), smoothing=SMOOTHING)
    for network, size, message in (
        (with_lite, 5, "input of block 2 must be a multiple of 2 pixels wide with a lite module, not 5"),
        (network_of(), 8, "the last map must be at most 7 pixels wide, not 8"),
    ):
        examples = TailExamples(inputs=torch.randn(2, 16, size, size), labels=torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=message):
            quantise_tail(network, 1, examples, smoothing=SMOOTHING)


TWO, LITE = "stride 2, shortcut", "lite"
MUTANTS = [
    (TWO, "head", "mix.out_step / mix.out_size**2", "mix.out_step / mix.out_size"),
    (TWO, "head", "GRADIENT_STEP * of.steps[0] / unit", "GRADIENT_STEP / unit"),
    (TWO, "head", "/ size**2 / unit", "/ size / unit"),
    (TWO, "head", "**units.masked(mix, unit)", "**units.arriving(mix, unit)"),
    (TWO, "head", "CLASSES if of.n_out > head.n_classes else None", "None"),
    (TWO, "tail", "record.blocks[i], step, further=i > 0", "record.blocks[i], step, further=False"),
    (TWO, "tail", "in_gradient_unit(record.blocks[i + 1])", "gradient_unit(record.blocks[i].units[-1])"),
    (TWO, "weights", "sum_gradient_step * unit.in_step / step", "sum_gradient_step / step"),
    (LITE, "block", "before(in_gradient_unit(record))", "before(in_gradient_step(record))"),
    (LITE, "lite", "one.output(channels, step) for", "one.output(channels, 2 * step) for"),
]
USERS = {"head": [tail], "weights": [head, lite, tail], "block": [tail, training], "lite": [blocks, tail]}
"""Modules that have another one by its name."""


@pytest.mark.parametrize(("case", "module", "old", "new"), MUTANTS)
def test_mutant_is_caught(prepared, monkeypatch, case, module, old, new):
    """By a gradient or a loss that is far off, or by a map that nobody makes."""
    network, examples, record = prepared[case]
    broken = mutated(f"sim.driver.{module}", old, new)
    for user in USERS.get(module, []):
        monkeypatch.setattr(user, module, broken)
    if module == "tail":
        monkeypatch.setattr(f"{__name__}.tail", broken)
    try:
        found = max(errors(record, examples).values())
        loss = tail.loss(record, first_step(record, examples))
    except ValueError as error:
        assert "is read before it is written" in str(error)
    else:
        exact = float(loss_of(network, examples, 0, 2))
        assert found > 1e-3 or abs(loss - exact) > 0.05 * exact
