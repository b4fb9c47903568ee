# SPDX-License-Identifier: MIT
"""A training step of a block with a lite residual module, in integers; mutants."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algo.tinytl.architecture import LITE_GROUPS, NORM_EPSILON, Backbone, Block
from algo.tinytl.network import Bottleneck, Lite
from algo.tinytl.quantise import Examples, dense, loss_of, quantise, released, units_of
from hw.convolution.golden import run
from sim.driver import block as blocks
from sim.driver import lite, training, units
from sim.driver.descent import Descent
from sim.driver.formats import in_gradient_step, norm_format
from tests.hw.mutants import mutated
from tests.sim.test_driver_training import chw, distance, distance_to_target, examples_of, maps_of

CASES = {
    "affine": {"norm": "affine"},
    "group": {"norm": "group"},
    "stride 2": {"norm": "group", "c": 16, "c_out": 8, "stride": 2, "kernel": 5},
}


def block_of(norm="group", c=8, c_out=8, stride=1, scale=0.5, kernel=3):
    """A random block; ``scale``: deviation of that of the lite module's second norm."""
    torch.manual_seed(0)
    blocks = Block(c, c, 1, 3, 1), Block(c, c_out, 2, 3, stride)
    block = Bottleneck(Backbone(name="test", blocks=blocks, n_classes=2, norm=norm), 1)
    block.lite = Lite(blocks[1], kernel)
    with torch.no_grad():
        for norm_ in [*(unit.norm for _, unit in units_of(block)), block.lite.norm1]:
            norm_.weight.uniform_(0.5, 1.5)
            norm_.bias.normal_(0.3, 0.4)
        block.lite.norm2.weight.normal_(0, scale)
    return released(block)


@pytest.fixture(scope="module")
def prepared():
    made = {}
    for name, case in CASES.items():
        block = block_of(**case)
        examples = examples_of(block, size=8)
        made[name] = block, examples, quantise(block, examples)
    return made


def first_step(record, examples):
    step = training.operations(record, Descent(rate=0.1), input_gradient=True)
    return run(step, maps_of(record, examples, 0))


def exact_gradients(record, made, g):
    """In float64, from that of the block's output, through the integers of the forward pass."""
    first, second = record.lite.units

    def leaf(value):
        return value.clone().requires_grad_()

    def normed(z):
        return F.group_norm(z, z.shape[1] // 8, eps=NORM_EPSILON)

    z = [leaf(chw(made[f"{unit.name}.z"]) * norm_format(unit).sum_step) for unit in (first, second)]
    scales = [leaf(torch.from_numpy(values)) for values in (first.norm.scale, record.lite.scale)]
    bias = leaf(torch.from_numpy(first.bias))
    weights = [leaf(torch.from_numpy(unit.weights * unit.steps[0])) for unit in (first, second)]
    small = normed(z[1]) * scales[1][:, None, None]
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    of_z2, of_scale2 = torch.autograd.grad(large, [z[1], scales[1]], g)
    x2 = leaf(chw(made[f"{first.name}.out"]) * first.out_step)
    of_x2, of_weights2 = torch.autograd.grad(F.conv2d(x2, weights[1]), [x2, weights[1]], of_z2)
    u1 = normed(z[0]) * scales[0][:, None, None] + bias[:, None, None]
    of_u1 = of_x2 * chw(made[f"{first.name}.mask"])
    of_z1, of_scale1, of_bias1 = torch.autograd.grad(u1, [z[0], scales[0], bias], of_u1)
    x1 = leaf(chw(made[f"{record.lite.name}.in"]) * first.in_step)
    sums = F.conv2d(x1, weights[0], stride=first.stride, padding=first.padding)
    of_x1, of_weights1 = torch.autograd.grad(sums, [x1, weights[0]], of_z1)
    return {
        "input": F.interpolate(of_x1, scale_factor=2) / 4,
        "norm1.bias": of_bias1,
        "norm1.weight": of_scale1,
        "norm2.weight": of_scale2,
        "conv1.weight": of_weights1 * (dense(torch.ones(first.n_out, first.n_in // 2, 1, 1), 2) > 0),
        "conv2.weight": of_weights2,
    }


def errors(record, made, of=lite):
    exact = exact_gradients(record, made, distance_to_target(record, made))
    of_input = (made["x.gradient"] - made["x.gradient.main"]).permute(2, 0, 1)[None]
    found = {"input": of_input * in_gradient_step(record), **of.gradients(record.lite, made)}
    return {name: distance(gradient, exact[name]) for name, gradient in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_exact_but_for_the_rounding_of_their_own_maps(prepared, case):
    """Against float64 through the same weights, mask and normed sums."""
    _, examples, record = prepared[case]
    found = errors(record, first_step(record, examples))
    assert max(found.values()) < 1e-3, found


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_near_autograd_s(prepared, case):
    """Of the float block: what differs is 8-bit activations and weights, and masks that they flip."""
    block, examples, record = prepared[case]
    made = first_step(record, examples)
    pixels = record.units[-1].out_size ** 2
    loss = pixels * loss_of(block(examples.inputs[:1]), examples.targets[:1])[0]
    assert training.loss(record, made) * pixels == pytest.approx(float(loss.detach()), rel=0.05)
    for name, found in lite.gradients(record.lite, made).items():
        (exact,) = torch.autograd.grad(loss, block.lite.get_parameter(name), retain_graph=True)
        if name == "conv1.weight":
            exact = dense(exact, LITE_GROUPS)
        assert distance(found, exact) < 0.25, name


def test_steps_descend_like_float():
    """From a second scale of 0: weights, scales and biases all move as in float."""
    block, teacher = block_of(scale=0.0), block_of(scale=0.5)
    torch.manual_seed(2)
    inputs = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        teacher.lite.conv1.weight += 0.3 * torch.randn_like(teacher.lite.conv1.weight)
        examples = Examples(inputs=inputs, targets=teacher(inputs))
    record, descent = quantise(block, examples), Descent(rate=0.1, weight_rate=0.05)
    biases = [*(unit.norm.bias for _, unit in units_of(block)), block.lite.norm1.bias]
    trained = ["conv1.weight", "conv2.weight", "norm1.weight", "norm2.weight"]
    groups = [
        {"params": biases, "lr": descent.rate},
        {"params": [block.lite.get_parameter(name) for name in trained], "lr": descent.weight_rate},
    ]
    optimiser = torch.optim.SGD(groups, lr=descent.rate, momentum=descent.momentum)
    step, lists, losses = training.operations(record, descent, input_gradient=True), {}, []
    for number in range(24):
        i = number % 2
        made = run(step, maps_of(record, examples, i) | lists)
        lists = training.carried(step, made)
        loss = loss_of(block(inputs[i : i + 1]), examples.targets[i : i + 1])[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append((training.loss(record, made), float(loss.detach())))
    integer, exact = np.array(losses).T
    assert np.abs(integer - exact).max() < 0.05 * exact[0]
    assert integer[-2:].mean() < 0.2 * integer[:2].mean()
    moved = block.lite.norm2.weight.detach().numpy()
    assert distance(made["lite.conv2.scale"][:, 0].numpy() * 2.0**-24, moved) < 0.1
    for name, unit in (("conv1", record.lite.units[0]), ("conv2", record.lite.units[1])):
        now = made[f"lite.{name}.weights"].numpy() * unit.steps[:, None, None, None]
        weight = block.lite.get_parameter(f"{name}.weight").detach()
        assert distance(now, dense(weight, LITE_GROUPS if name == "conv1" else 1)) < 0.05
        assert not np.array_equal(made[f"lite.{name}.weights"].numpy(), unit.weights)
    for name in ("conv1", "conv2"):
        there, back = (made[f"lite.{name}.{which}"] for which in ("weights", "adjoint.weights"))
        assert torch.equal(there.transpose(0, 1).flip(2, 3), back)


def test_what_a_lite_module_cannot_be(prepared):
    block, examples, _ = prepared["group"]
    with pytest.raises(
        ValueError, match="inputs must be a multiple of 2 pixels wide with a lite module, not 7"
    ):
        quantise(block, Examples(inputs=torch.zeros(1, 8, 7, 7), targets=torch.zeros(1, 8, 7, 7)))
    other = deepcopy(block)
    other.lite.conv1.standardise = True
    with pytest.raises(ValueError, match="weights of a quantised lite module must not be standardised"):
        quantise(other, examples)


MUTANTS = [
    ("weights", "swapaxes(0, 1)[..., ::-1, ::-1]", "swapaxes(0, 1)"),
    ("lite", "mask=None if which else lite.name + GROUPS", "mask=None"),
    ("lite", "single[:, y, x] = 1", "single[:, x, y] = 1"),
    ("lite", 'product=f"{unit.name}.z"', 'product=f"{lite.units[0].name}.z"'),
    ("lite", "out_gradient_step(record) / 16 /", "out_gradient_step(record) / 8 /"),
    ("lite", "np.outer([1, 3, 3, 1], [1, 3, 3, 1])", "np.outer([1, 3, 3, 1], [2, 2, 2, 2])"),
    ("group_norm", "name, norm.scale, up", "name, 0 * norm.scale + 1, up"),
]
USERS = {"lite": [blocks, training], "weights": [lite], "group_norm": [units, lite]}
"""Modules that have another one by its name."""


@pytest.mark.parametrize(("module", "old", "new"), MUTANTS)
def test_mutant_is_caught(prepared, monkeypatch, module, old, new):
    _, examples, record = prepared["group"]
    broken = mutated(f"sim.driver.{module}", old, new)
    for of in USERS[module]:
        monkeypatch.setattr(of, module, broken)
    found = errors(record, first_step(record, examples))
    assert max(found.values()) > 1e-3
