# SPDX-License-Identifier: MIT
"""From a generator to operations: every map is the float one within its rounding, and the image is near."""

import math

import numpy as np
import pytest
import torch

from algo.anycost.architecture import GeneratorConfig, SubGenerator
from algo.anycost.generator import Generator
from algo.anycost.quantise import QuantConfig, quantise
from hw.convolution import golden
from hw.convolution.operations import checked
from sim.driver import generator as driver
from sim.driver.words import fixed
from tests.hw.mutants import mutated

CONFIG = GeneratorConfig(resolution=16, channel_multiplier=1 / 64, max_channels=12, style_size=16)
FLEXIBLE = SubGenerator(16, (8, 4, 12, 8, 8, 8))


def made(seed=0):
    """A random generator with biases and noise, and styles that differ by channel."""
    torch.manual_seed(seed)
    generator = Generator(CONFIG)
    with torch.no_grad():
        for layer in [*generator.convs, *generator.to_rgb]:
            layer.bias.normal_(0, 0.3)
        for j, layer in enumerate(generator.convs):
            layer.noise_strength.fill_(0.1 * (j - 2))
    return generator.eval().requires_grad_(False)


def style(generator, seed=5):
    z = torch.randn(1, generator.config.style_size, generator=torch.Generator().manual_seed(seed))
    return generator.styles(z)


def all_maps(record, of=driver):
    return golden.run(of.operations(record), {of.constant_name(record): torch.from_numpy(record.constant)})


def image(record, of=driver):
    return all_maps(record, of)[of.image_name(record)].double() * of.image_step(record)


def psnr(record, exact, of=driver):
    """Decibels, the peak being the range of the float image."""
    mse = float((image(record, of) - exact[0].permute(1, 2, 0)).square().mean())
    return 10 * math.log10(float(exact.max() - exact.min()) ** 2 / mse)


@pytest.fixture(scope="module")
def quantised():
    return {wide: quantise(made(), QuantConfig(n_images=4, wide=wide)) for wide in ("none", "colours", "all")}


@pytest.mark.parametrize("wide", ["none", "all"])
@pytest.mark.parametrize("sub", [None, FLEXIBLE])
def test_each_map_is_the_float_one_within_its_rounding(quantised, wide, sub):
    """On the same integer inputs. Half a unit is the map's own rounding. The rest: factors of 16 bits, and
    values of 24 bits of which calibrated ones fill half.

    A multiplier is off by at most 2^-16 of the largest, a scale by 2^-15, a value by half of 2^-22.
    """
    record = quantised[wide].record(style(made()), sub)
    operations = {operation.name: operation for operation in driver.operations(record)}
    maps = all_maps(record)
    for conv in record.convs:
        operation = operations[conv.name]
        steps = conv.source.step * conv.weights.steps[: conv.n_out] * conv.demodulation
        sums = golden.sums(operation, maps).double().numpy()
        if conv.up:
            between = operation.epilogue.outputs[0].name
            step = conv.between / (driver.FILL * driver.WIDE_LIMIT)
            assert np.abs(sums * steps / step - maps[between].numpy()).max() < 2
            operation, steps = operations[f"{conv.name}.blur"], step
            sums = golden.sums(operation, maps).double().numpy()
        value = sums * steps + conv.bias + (0 if conv.noise is None else conv.noise[..., None])
        value = np.where(value < 0, 0.2 * value, value) * math.sqrt(2)
        for reader in conv.readers:
            limit = 2 ** (reader.bits - 1)
            exact = (value * reader.factors / reader.step).clip(-limit, limit - 1)
            assert np.abs(exact - maps[reader.name].numpy()).max() < (0.52 if reader.bits == 8 else 3)


@pytest.mark.parametrize("sub", [None, FLEXIBLE, CONFIG.uniform(0.5, 8), CONFIG.uniform(0.25, 4)])
def test_the_image_is_near(quantised, sub):
    """On a z that was not calibrated, by sub-generators that were not; more bits bring it nearer."""
    generator = made()
    exact = generator(style(generator), sub).double()
    found = {wide: psnr(q.record(style(generator), sub), exact) for wide, q in quantised.items()}
    assert found["none"] > 35
    assert found["none"] < found["colours"] <= found["all"]
    assert found["all"] > found["none"] + (5 if sub is None or sub.resolution == 16 else 0)


def test_nothing_that_was_calibrated_saturates():
    """The image of the only calibrated z: no map beyond its range, those of 16 bits at most half full."""
    generator = made()
    quantised = quantise(generator, QuantConfig(n_images=1, seed=5), [generator.full])
    record = quantised.record(style(generator))
    maps = all_maps(record)
    largest = {name: int(value.abs().max()) for name, value in maps.items()}
    for conv in record.convs:
        for reader in conv.readers:
            assert 100 <= largest[reader.name] <= 127
    for name in ("conv1.wide", "conv3.wide"):
        assert 14_000 < largest[name] < 17_500
    assert 14_000 < max(largest[f"image{n}"] for n in range(3)) < 17_500


def test_operations_can_run_and_end_with_the_image(quantised):
    record = quantised["none"].record(style(made()))
    operations = driver.operations(record)
    shapes = checked(operations, {driver.constant_name(record)})
    assert [operation.name for operation in operations] == [
        "conv0", "rgb0", "conv1", "conv1.blur", "conv2", "skip1", "rgb1",
        "conv3", "conv3.blur", "conv4", "skip2", "rgb2",
    ]  # fmt: skip
    last = shapes[driver.image_name(record)]
    assert (last.height, last.width, last.channels, last.bits) == (16, 16, 3, 16)
    assert max(len(operation.epilogue.outputs) for operation in operations) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LRELU_GAIN = math.sqrt(2)", "LRELU_GAIN = 1.4"),
        ("[: conv.n_out] * conv.demodulation", "[: conv.n_out] * conv.demodulation.mean()"),
        ("side_shift=COLOUR_SHIFT if n else 0", "side_shift=0"),
        ("bias=bias_of(conv.bias, unit)", "bias=bias_of(0 * conv.bias, unit)"),
        ("np.rint(values / (1 << shift)).clip", "np.rint(values / (2 << shift)).clip"),
        ("Activation.LEAKY", "Activation.NONE"),
    ],
)  # fmt: skip
def test_mutant_is_caught(quantised, old, new):
    record = quantised["all"].record(style(made()))
    exact = made()(style(made())).double()
    assert psnr(record, exact, mutated("sim.driver.generator", old, new)) < psnr(record, exact) - 3


def test_fixed():
    """As large as the word takes; the last bit counts."""
    assert fixed(np.array([1.0, 0.5]), 65_535, 47)[1] == 15
    assert fixed(np.array([65_535.0]), 65_535, 47)[0] == 65_535
    integers, shift = fixed(np.array([0.3, -0.7]), 32_767, 39)
    assert shift == 15 and integers.tolist() == [round(0.3 * 2**15), -round(0.7 * 2**15)]
    assert fixed(np.array([1e-12]), 65_535, 47) == (np.array([141]), 47)
    assert fixed(np.zeros(2), 65_535, 47)[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="a factor must be at most 65535, not 65535"):
        fixed(np.array([65_535.4]), 65_535, 47)
