# SPDX-License-Identifier: MIT
"""A training step in integers: its gradients against exact ones, its descent against float; mutants."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from algo.tinytl.architecture import NORM_EPSILON, Backbone, Block
from algo.tinytl.network import Bottleneck
from algo.tinytl.quantise import Examples, loss_of, quantise, units_of
from hw.convolution.golden import run
from sim.driver import block, formats, group_norm, training, units
from sim.driver.descent import Descent
from sim.driver.formats import in_gradient_step, norm_format, out_step
from sim.driver.words import FILL, WIDE_LIMIT
from tests.hw.mutants import mutated

CASES = {
    "affine": {},
    "affine, stride 2": {"kernel": 5, "stride": 2, "c_out": 16},
    "affine, no expansion": {"expansion": 1, "kernel": 5},
    "group": {"norm": "group"},
    "group, stride 2": {"norm": "group", "kernel": 5, "stride": 2, "c_out": 16, "padding": "symmetric"},
}


def block_of(c=8, c_out=8, expansion=3, kernel=3, stride=1, norm="affine", padding="tensorflow", seed=0):
    """A random block; scales have either sign."""
    torch.manual_seed(seed)
    shape = Block(c, c_out, expansion, kernel, stride)
    backbone = Backbone(
        name="test", blocks=(Block(c, c, 1, 3, 1), shape), n_classes=2, norm=norm, padding=padding, lite=False
    )
    block = Bottleneck(backbone, 1)
    with torch.no_grad():
        for _, unit in units_of(block):
            scale = 2 if unit.act else 1
            unit.norm.weight.uniform_(0.5 * scale, 1.5 * scale)
            unit.norm.weight[::3] *= -1
            unit.norm.bias.normal_(0.5 * unit.act, 0.5)
    return block


def examples_of(block, n=4, size=9, seed=1):
    """Targets are what the block makes with other biases."""
    torch.manual_seed(seed)
    teacher = deepcopy(block)
    with torch.no_grad():
        for _, unit in units_of(teacher):
            unit.norm.bias += 0.4 * torch.randn_like(unit.norm.bias)
        inputs = torch.randn(n, block.block.c_in, size, size)
        return Examples(inputs=inputs, targets=teacher(inputs))


def maps_of(record, examples, i):
    one = (examples.inputs[i].double().numpy(), examples.targets[i].double().numpy())
    return {name: torch.from_numpy(values) for name, values in training.given(record, *one).items()}


def first_step(record, examples):
    step = training.operations(record, Descent(rate=0.1), input_gradient=True)
    return run(step, maps_of(record, examples, 0))


def chw(value):
    """A map's integers as float64[1, c, H, H]."""
    return value.permute(2, 0, 1)[None].double()


def distance_to_target(record, made):
    """The gradient of a block's output, float64[1, c, H, H]."""
    return chw(made["y"] + made["minus target"]) * out_step(record)


def exact_gradients(record, made, g):
    """Float64 gradients of all biases and of the input, through the integers of the forward pass, from that
    of the output; without a lite module."""
    biases, of_input = through(record.units, made, g)
    return biases, of_input + g if record.shortcut else of_input


def through(units, made, g):
    """The same of some units in forward order."""
    biases = []
    for i in reversed(range(len(units))):
        unit = units[i]
        biases.append(g.sum((0, 2, 3)).numpy())
        if unit.norm is not None:
            z = (chw(made[f"{unit.name}.z"]) * norm_format(unit).sum_step).requires_grad_()
            scale = torch.from_numpy(unit.norm.scale)
            normed = F.group_norm(z, unit.n_out // 8, scale, torch.zeros_like(scale), NORM_EPSILON)
            (g,) = torch.autograd.grad(normed, z, g)
        x = torch.zeros(1, unit.n_in, unit.in_size, unit.in_size, dtype=torch.float64, requires_grad=True)
        weights = torch.from_numpy(unit.weights * unit.steps[:, None, None, None])
        behind = (unit.out_size - 1) * unit.stride + unit.kernel - unit.in_size - unit.padding
        padded = F.pad(x, (unit.padding, behind, unit.padding, behind))
        sums = F.conv2d(padded, weights, stride=unit.stride, groups=unit.n_out if unit.depthwise else 1)
        (g,) = torch.autograd.grad(sums, x, g)
        if i:
            g = g * chw(made[f"{units[i - 1].name}.mask"])
    return biases[::-1], g


def distance(found, exact):
    """Of two arrays, over the length of the exact one."""
    return float(np.linalg.norm(np.asarray(found) - np.asarray(exact)) / np.linalg.norm(exact))


def distances_to_exact(record, made):
    """Of all biases' gradients and of the input's."""
    pixels = record.units[-1].out_size ** 2
    exact, of_input = exact_gradients(record, made, distance_to_target(record, made))
    found = [training.bias_gradient(record, unit, made) * pixels for unit in record.units]
    in_gradient = made["x.gradient"].permute(2, 0, 1) * in_gradient_step(record)
    return [*map(distance, found, exact), distance(in_gradient, of_input[0])]


@pytest.fixture(scope="module")
def prepared():
    made = {}
    for name, case in CASES.items():
        block = block_of(**case)
        examples = examples_of(block)
        made[name] = block, examples, quantise(block, examples)
    return made


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_exact_but_for_the_rounding_of_their_own_maps(prepared, case):
    """Against float64 through the same weights, masks and normed sums."""
    _, examples, record = prepared[case]
    found = distances_to_exact(record, first_step(record, examples))
    assert max(found) < 1e-3
    if record.units[-1].norm is None:  # the distance to the target is summed as it is
        assert found[-2] < 1e-15


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_near_autograd_s(prepared, case):
    """Of the float block: what differs is 8-bit activations and weights, and masks that they flip."""
    block, examples, record = prepared[case]
    made = first_step(record, examples)
    loss = loss_of(block(examples.inputs[:1]), examples.targets[:1])[0]
    exact = torch.autograd.grad(loss, [unit.norm.bias for _, unit in units_of(block)])
    assert training.loss(record, made) == pytest.approx(float(loss.detach()), rel=0.05)
    for unit, gradient in zip(record.units, exact, strict=True):
        assert distance(training.bias_gradient(record, unit, made), gradient.numpy()) < 0.1


@pytest.mark.parametrize("case", ["affine", "group"])
def test_steps_descend_like_float(prepared, case):
    """The same pictures in turn; the loss comes down to what 8-bit activations leave."""
    block, examples, record = prepared[case]
    block, descent = deepcopy(block), Descent(rate=0.1)
    biases = [unit.norm.bias for _, unit in units_of(block)]
    optimiser = torch.optim.SGD(biases, descent.rate, descent.momentum)
    step, lists, losses = training.operations(record, descent), {}, []
    for number in range(40):
        i = number % len(examples.inputs)
        made = run(step, maps_of(record, examples, i) | lists)
        lists = training.carried(step, made)
        loss = loss_of(block(examples.inputs[i : i + 1]), examples.targets[i : i + 1])[0]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append((training.loss(record, made), float(loss.detach())))
    integer, exact = np.array(losses).T
    assert np.abs(integer - exact).max() < 0.04 * exact[0]
    assert integer[-4:].mean() < 0.15 * integer[:4].mean()
    for unit, bias in zip(record.units, biases, strict=True):
        moved = bias.detach().numpy() - unit.bias
        assert distance(training.bias(record, unit, made) - unit.bias, moved) < 0.15


def test_momentum_and_rate_are_those_of_the_float_descent(prepared):
    """Two steps on one gradient: the first moves by rate x gradient, the second by 1.75 of it."""
    _, examples, record = prepared["affine, no expansion"]
    unit, descent = record.units[-1], Descent(rate=1e-3, momentum=0.75)
    step, maps = training.operations(record, descent), maps_of(record, examples, 0)
    first = run(step, maps)
    gradient = training.bias_gradient(record, unit, first)
    moved = training.bias(record, unit, first) - unit.bias
    assert distance(moved, -descent.rate * gradient) < 1e-4
    still = {"distance": first["distance"]}
    update = step[-1:]
    second = run(update, training.carried(update, first) | still)
    again = training.bias(record, unit, second) - training.bias(record, unit, first)
    assert distance(again, 1.75 * moved) < 1e-4


def test_what_was_calibrated_does_not_saturate(prepared):
    """The largest map of each kind is about half full, and none is at its limit."""
    for case, (_, examples, record) in prepared.items():
        step = training.operations(record, Descent(rate=0.1), input_gradient=True)
        largest = {}
        for i in range(len(examples.inputs)):
            for name, value in run(step, maps_of(record, examples, i)).items():
                if value.dim() == 3:
                    largest[name] = max(largest.get(name, 0), int(value.abs().max()))
        gradients = [largest[name] for name in largest if name.endswith((".gradient", ".back"))]
        assert gradients and max(gradients) < 25_000, case
        assert sum(peak > 12_000 for peak in gradients) >= len(gradients) - 1, (case, largest)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ((2, 4, 9, 9), (2, 8, 9, 9), r"inputs must be float\[N, 8, H, H\], not \[2, 4, 9, 9\]"),
        ((2, 8, 9, 8), (2, 8, 9, 9), r"inputs must be float\[N, 8, H, H\], not \[2, 8, 9, 8\]"),
        ((2, 8, 9, 9), (2, 8, 9), r"targets must be float\[N, 8, H, H\], not \[2, 8, 9\]"),
        (
            (2, 8, 9, 9),
            (2, 8, 5, 5),
            r"targets must be as large as outputs, \[2, 8, 9, 9\], not \[2, 8, 5, 5\]",
        ),
    ],
)
def test_examples_of_another_shape_are_rejected(prepared, inputs, targets, message):
    block = prepared["affine"][0]
    with pytest.raises(ValueError, match=message):
        quantise(block, Examples(inputs=torch.ones(inputs), targets=torch.ones(targets)))


def test_large_scales_have_another_exponent(monkeypatch):
    """12 beside 1: without it 12 would be 8, and the gradient far off."""
    block = block_of(**CASES["group"])
    with torch.no_grad():
        for _, unit in units_of(block):
            unit.norm.weight[1::4] = 12.0
    examples = examples_of(block)
    record = quantise(block, examples)
    assert [formats.scale_exponent(unit) for unit in record.units] == [1, 1, 1]
    made = first_step(record, examples)
    assert max(distances_to_exact(record, made)) < 2e-3
    for unit in record.units:  # the normed map itself
        z = made[f"{unit.name}.z"].permute(2, 0, 1)[None].double() * norm_format(unit).sum_step
        scale, bias = torch.from_numpy(unit.norm.scale), torch.from_numpy(unit.bias)
        exact = F.group_norm(z, unit.n_out // 8, scale, bias, NORM_EPSILON)[0]
        if unit.top:
            found = made[f"{unit.name}.out"].permute(2, 0, 1) * unit.out_step
            assert (found - exact.clamp(0, unit.out_step * 127)).abs().max() < 0.51 * unit.out_step
    monkeypatch.setattr(formats, "scale_exponent", lambda unit: 0)
    assert max(distances_to_exact(record, first_step(record, examples))) > 0.05


def test_many_channels_of_a_depthwise_layer_lose_no_bits(prepared):
    """Its sums are of one channel each."""
    record = prepared["affine"][2]
    wide = replace(
        record.units[1], weights=np.full((1152, 1, 5, 5), 127, np.int8), steps=np.full(1152, 1.0),
        gradient_peaks=np.full(1152, 3.0),
    )  # fmt: skip
    assert formats.weighted_step(wide) == pytest.approx(3 / (FILL * WIDE_LIMIT))


def test_numbers_beyond_a_format_are_rejected(prepared):
    record = prepared["group"][2]
    large = replace(record.units[0], peak=130.0)
    with pytest.raises(ValueError, match="values of expand must be below 128, not 130"):
        training.operations(replace(record, units=(large, *record.units[1:])), Descent(rate=0.1))
    with pytest.raises(ValueError, match="a map's unit must be at most 32768 values, not 32769"):
        formats.side_shift(32769)
    with pytest.raises(ValueError, match="momentum must be in"):
        Descent(rate=0.1, momentum=1)
    assert Descent(rate=0.1, momentum=0.9999999).factor == 65535
    for rate, found in ((1e12, r"\d"), (1e-30, r"\d")):
        with pytest.raises(ValueError, match=rf"rate must move expand.bias by .*, not {found}"):
            training.operations(record, Descent(rate=rate))
    with pytest.raises(ValueError, match="trained scales of a must be below 8, not 9"):
        group_norm.scale_output("a", np.array([1.0, 9.0]), 0)


MUTANTS = [
    ("affine", "units", "16, unit.steps * step /", "16, (0 * unit.steps + unit.steps.mean()) * step /"),
    ("affine", "units", "[:, ::-1, ::-1]", "[:, :, :]"),
    ("affine", "units", '"masked_by": f"{unit.name}.mask", ', ""),
    ("affine", "block", 'fields |= {"residual"', 'fields |= {} and {"residual"'),
    ("affine, stride 2", "units", "if unit.stride == 1:", "if True:"),
    ("group", "group_norm", ", signs=signs", ""),
    ("group", "group_norm", "residual=slope.name", "residual=None"),
    ("group", "group_norm", "side_shift=of.side_shift", "side_shift=of.side_shift + 1"),
    ("group", "group_norm", "scaled = norm.scale", "scaled = norm.scale.mean() + 0 * norm.scale"),
    ("group", "group_norm", "rint(scale / unit", "rint((0 * scale + scale.mean()) / unit"),
    ("group", "formats", "FILL * VALUE_LIMIT / part), e2", "FILL * VALUE_LIMIT / part) - 12, e2"),
]  # fmt: skip
USERS = {
    "block": [training],
    "units": [block, training],
    "group_norm": [units],
}
"""Modules that have another one by its name."""


@pytest.mark.parametrize(("case", "module", "old", "new"), MUTANTS)
def test_mutant_is_caught(prepared, monkeypatch, case, module, old, new):
    _, examples, record = prepared[case]
    broken = mutated(f"sim.driver.{module}", old, new)
    for user in USERS.get(module, []):
        monkeypatch.setattr(user, module, broken)
    if module == "formats":
        for user in (group_norm, units):
            monkeypatch.setattr(user, "norm_format", broken.norm_format)
    assert max(distances_to_exact(record, first_step(record, examples))) > 1e-3
