# SPDX-License-Identifier: MIT
"""A generator in integers: weights, steps, ranges, and what is rejected."""

import numpy as np
import pytest
import torch

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator
from algo.anycost.quantise import SUM_LIMIT, QuantConfig, quantise

CONFIG = GeneratorConfig(resolution=16, channel_multiplier=1 / 64, max_channels=12, style_size=16)


def made(seed=0, noise=0.1, config=CONFIG):
    """A random generator with biases and noise."""
    torch.manual_seed(seed)
    generator = Generator(config)
    with torch.no_grad():
        for layer in [*generator.convs, *generator.to_rgb]:
            layer.bias.normal_(0, 0.3)
        for layer in generator.convs:
            layer.noise_strength.fill_(noise)
    return generator.eval().requires_grad_(False)


def one_style(generator, seed=5):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.zeros(1, dtype=torch.int64) if generator.config.n_classes else None
    return generator.styles(torch.randn(1, generator.config.style_size, generator=rng), labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 1.0])
def test_weights_are_the_generators_within_half_a_step(smoothing):
    generator = made()
    quantised = quantise(generator, QuantConfig(n_images=2, smoothing=smoothing))
    layers = [*generator.convs, *generator.to_rgb]
    for layer, weights in zip(layers, [*quantised.convs, *quantised.to_rgb], strict=True):
        exact = layer.conv.weight.double().numpy() * layer.conv.scale * weights.gains[:, None, None]
        error = weights.integers * weights.steps[:, None, None, None] - exact
        assert weights.integers.dtype == np.int8
        assert np.all(np.abs(error) <= 0.5001 * weights.steps[:, None, None, None])
        assert np.all(np.abs(weights.integers.astype(int)).max((1, 2, 3)) == 127)


def test_smoothing_moves_the_spread_of_the_inputs_to_the_weights():
    """At 1 all channels of a map fill the same range; at 0 all inputs of the weights do."""
    generator = made()
    styles = one_style(generator)
    spread = {}
    for smoothing in (0.0, 1.0):
        quantised = quantise(generator, QuantConfig(n_images=4, smoothing=smoothing))
        peaks = quantised.ranges.channels[2].double().numpy() * np.abs(
            quantised.record(styles).to_rgb[1].source.factors
        )
        used = np.abs(quantised.to_rgb[1].integers * quantised.to_rgb[1].steps[:, None, None, None]).max(
            (0, 2, 3)
        )
        spread[smoothing] = peaks.max() / peaks.min(), used.max() / used.min()
    assert spread[0.0][1] < 1.05 < 2 < spread[1.0][1]
    assert spread[1.0][0] < spread[0.0][0]


def test_ranges_are_those_of_the_images_that_ran():
    """One image calibrated, the same image recorded: what the record expects is what the layers give."""
    generator = made()
    sub = generator.config.uniform(0.5)
    quantised = quantise(generator, QuantConfig(n_images=1, seed=3), [sub])
    rng = torch.Generator().manual_seed(3)
    styles = generator.styles(torch.randn(1, generator.config.style_size, generator=rng))
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda m, i, out, j=j: seen.__setitem__(j, out[0].abs().amax((1, 2))))
        for j, layer in enumerate(generator.convs)
    ]
    images = generator.pyramid(styles, sub)
    for hook in hooks:
        hook.remove()
    for j, peaks in seen.items():
        assert torch.allclose(quantised.ranges.channels[j][: len(peaks)], peaks, rtol=1e-4)
        assert not quantised.ranges.channels[j][len(peaks) :].any()
    assert quantised.ranges.image == pytest.approx(
        max(float(image.abs().max()) for image in images), rel=1e-4
    )
    record = quantised.record(styles, sub)
    reader = record.convs[1].source
    largest = (seen[0].double().numpy() * np.abs(reader.factors)).max() / reader.step
    assert largest == pytest.approx(127, rel=1e-4)


def test_a_record_names_who_reads_what():
    generator = made()
    record = quantise(generator, QuantConfig(n_images=1)).record(one_style(generator))
    assert [[reader.name for reader in conv.readers] for conv in record.convs] == [
        ["conv1.in", "rgb0.in"], ["conv2.in"], ["conv3.in", "rgb1.in"], ["conv4.in"], ["rgb2.in"],
    ]  # fmt: skip
    assert [conv.up for conv in record.convs] == [False, True, False, True, False]
    assert [conv.size for conv in record.convs] == [4, 4, 8, 8, 16]
    assert [rgb.size for rgb in record.to_rgb] == [4, 8, 16]
    assert np.array_equal(record.to_rgb[0].demodulation, np.ones(3))


def test_a_smaller_resolution_ends_earlier():
    generator = made()
    sub = generator.config.uniform(0.5, 8)
    record = quantise(generator, QuantConfig(n_images=1)).record(one_style(generator), sub)
    assert len(record.convs) == 3 and len(record.to_rgb) == 2 and record.resolution == 8
    assert [reader.name for reader in record.convs[-1].readers] == ["rgb1.in"]
    assert record.convs[1].demodulation.shape == (sub.widths[2],)


def test_no_noise_is_left_out():
    generator = made(noise=0.0)
    record = quantise(generator, QuantConfig(n_images=1)).record(one_style(generator))
    assert all(conv.noise is None for conv in record.convs)


def test_wide_maps_never_overflow_a_sum():
    generator = made()
    quantised = quantise(generator, QuantConfig(n_images=1, wide="all"))
    record = quantised.record(one_style(generator))
    for j, conv in enumerate(record.convs):
        used = np.abs(conv.weights.integers[:, : conv.n_in].astype(np.int64)).sum((1, 2, 3)).max()
        peaks = (
            quantised.ranges.channels[j - 1].numpy()
            if j
            else np.abs(generator.constant[0].numpy()).max((1, 2))
        )
        limit = round(float((np.abs(conv.source.factors) * peaks).max()) / conv.source.step)
        assert limit * used <= SUM_LIMIT and conv.source.bits == 16
    colours = quantise(generator, QuantConfig(n_images=1, wide="colours")).record(one_style(generator))
    assert {conv.source.bits for conv in colours.convs} == {8}
    assert {rgb.source.bits for rgb in colours.to_rgb} == {16}


def test_a_class_conditional_generator():
    config = GeneratorConfig(
        resolution=8, channel_multiplier=1 / 64, max_channels=8, style_size=8, n_classes=3
    )
    generator = made(config=config)
    assert quantise(generator, QuantConfig(n_images=2)).record(one_style(generator)).resolution == 8


def test_bad_input():
    for name, value, allowed in (
        ("n_images", 0, "n_images must be at least 1, not 0"),
        ("smoothing", 1.5, r"smoothing must be in 0\.\.1, not 1\.5"),
        ("wide", "some", "wide must be one of none, colours, all, not 'some'"),
    ):
        with pytest.raises(ValueError, match=allowed):
            QuantConfig(**{name: value})
    quantised = quantise(made(), QuantConfig(n_images=1))
    with pytest.raises(ValueError, match="a record is of one image, not 2"):
        quantised.record(one_style(quantised.generator).repeat(2, 1, 1))
    with pytest.raises(ValueError, match="resolution must be one of"):
        quantised.record(one_style(quantised.generator), CONFIG.uniform(1.0, 32))
