# SPDX-License-Identifier: MIT
"""The generator and discriminator against direct readings of StyleGAN2's formulas; slices bit for bit."""

import random

import pytest
import torch
from torch.nn import functional as F

from algo.anycost.architecture import GeneratorConfig, SubGenerator, n_parameters
from algo.anycost.discriminator import Discriminator, minibatch_stddev
from algo.anycost.generator import Generator, mix, sort_channels, truncate
from algo.anycost.layers import ModulatedConv, blur, upsample

CONFIG = GeneratorConfig(resolution=32, channel_multiplier=1 / 16, style_size=24, max_channels=64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generator(config: GeneratorConfig = CONFIG) -> Generator:
    """Random weights everywhere, zeros of the initialisation included."""
    torch.manual_seed(0)
    model = Generator(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def latents(n: int, config: GeneratorConfig = CONFIG) -> torch.Tensor:
    return torch.randn(n, config.style_size, generator=rng(1)).double()


def by_definition(model: ModulatedConv, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 3 of the StyleGAN2 paper: weights of each image's own."""
    out = []
    for image, w in zip(x, style, strict=True):
        weight = model.weight * model.scale * model.modulation(w[None])[0][None, :, None, None]
        if model.demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if model.up:
            y = F.conv_transpose2d(image[None], weight.transpose(0, 1), stride=2)
            out.append(blur(y, 1, gain=4))
        else:
            out.append(F.conv2d(image[None], weight, padding=model.padding))
    return torch.cat(out)


@pytest.mark.parametrize("kernel, demodulate, up", [(3, True, False), (3, True, True), (1, False, False)])
def test_modulated_convolution_by_definition(kernel, demodulate, up):
    torch.manual_seed(0)
    model = ModulatedConv(6, 5, kernel, 8, 6 * kernel**2, demodulate=demodulate, up=up).double()
    x, style = torch.randn(3, 6, 7, 7).double(), torch.randn(3, 8).double()
    assert torch.allclose(model(x, style), by_definition(model, x, style), atol=1e-13, rtol=0)


def test_filters_by_hand():
    """Zeros inserted, then the 4x4 filter; the blur keeps a constant inside and its sum everywhere."""
    x = torch.randn(2, 3, 5, 5, generator=rng()).double()
    taps = torch.tensor([1.0, 3, 3, 1]).double()
    inserted = torch.zeros(2, 3, 10, 10).double()
    inserted[:, :, ::2, ::2] = x
    kernel = (taps[:, None] * taps / 64).expand(3, 1, 4, 4)
    expected = 4 * F.conv2d(F.pad(inserted, (2, 1, 2, 1)), kernel, groups=3)
    assert torch.allclose(upsample(x), expected, atol=1e-14, rtol=0)
    assert torch.allclose(blur(x, 2), F.conv2d(F.pad(x, (2, 2, 2, 2)), kernel, groups=3), atol=1e-14)
    assert torch.allclose(blur(x, 3).sum((2, 3)), x.sum((2, 3)))


@pytest.mark.parametrize("n_classes", [0, 3])
def test_a_sub_generator_equals_the_standalone_one_bit_for_bit(n_classes):
    config = GeneratorConfig(
        resolution=32, channel_multiplier=1 / 16, style_size=24, max_channels=64, n_classes=n_classes
    )
    model, draws = generator(config), random.Random(0)
    labels = torch.tensor([2, 0]) if n_classes else None
    subs = [config.uniform(ratio, r) for ratio in (0.25, 0.75) for r in (8, 32)]
    for sub in subs + [config.flexible(draws, draws.choice((4, 16, 32))) for _ in range(4)]:
        alone = model.standalone(sub)
        held = sum(p.numel() for p in alone.parameters())
        assert held == n_parameters(config, sub) + bool(n_classes) * (
            config.style_size**2 + 3 * config.style_size
        )
        image = model(model.styles(latents(2, config), labels), sub)
        assert image.shape == (2, 3, sub.resolution, sub.resolution)
        assert torch.equal(image, alone(alone.styles(latents(2, config), labels)))


def test_elastic_resolution_stops_at_any_level():
    model = generator()
    styles = model.styles(latents(2))
    pyramid = model.pyramid(styles)
    assert [image.shape[-1] for image in pyramid] == [4, 8, 16, 32]
    for image in pyramid:
        assert torch.equal(model(styles, CONFIG.uniform(1.0, image.shape[-1])), image)


def test_each_style_reaches_its_layers_only():
    """Style j first shows at the level of convolution j; odd ones also in the colours one level below."""
    model = generator()
    styles = model.styles(latents(1))
    before = model.pyramid(styles)
    for j in range(CONFIG.n_styles):
        changed = styles.clone()
        changed[:, j] += 1
        differs = [not torch.equal(a, b) for a, b in zip(before, model.pyramid(changed), strict=True)]
        assert differs == [level >= j // 2 for level in range(4)]
    other = model.styles(latents(2)[1:])
    assert torch.equal(mix(styles, other, 3)[0, 2:4, :], torch.stack([styles[0, 2], other[0, 3]]))


def test_noise_is_given_or_fixed():
    model = generator()
    styles = model.styles(latents(2))
    drawn = model.draw_noise(2, rng(4))
    assert [tuple(n.shape) for n in drawn] == model.noise_shapes(2)
    assert torch.equal(model(styles), model(styles)) and not torch.equal(
        model(styles), model(styles, None, drawn)
    )


def test_truncation_moves_towards_the_mean():
    model = generator()
    mean, styles = model.mean_w(500, rng()), model.styles(latents(2))
    assert torch.allclose(truncate(styles, mean, 1.0), styles)
    assert torch.allclose(truncate(styles, mean, 0.0), mean.expand_as(styles))


def test_sorting_keeps_the_full_image_and_helps_the_narrow_one():
    model = generator()
    with torch.no_grad():  # some channels matter more: the last ones, which a slice would lose
        for conv in model.convs:
            gain = torch.linspace(0.1, 2, conv.bias.numel()).double()
            conv.bias.mul_(gain)
            conv.conv.weight.mul_(torch.linspace(0.1, 2, conv.conv.weight.shape[1])[None, :, None, None])
    styles, narrow = model.styles(latents(4)), CONFIG.uniform(0.25)
    full = model(styles)
    before = (model(styles, narrow) - full).square().mean()
    sort_channels(model, 200, rng())
    assert torch.allclose(model(styles), full, atol=1e-11, rtol=0)
    assert (model(styles, narrow) - full).square().mean() < 0.8 * before
    once = {name: value.clone() for name, value in model.state_dict().items()}
    sort_channels(model, 200, rng())
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


def test_rejects_what_does_not_fit():
    model = generator()
    with pytest.raises(ValueError, match="widths must not exceed"):
        model.standalone(CONFIG.uniform(0.25))(model.styles(latents(1)), CONFIG.full)
    with pytest.raises(ValueError, match=r"resolution must be one of .* not 64"):
        model(model.styles(latents(1)), SubGenerator(64, CONFIG.full.widths))
    with pytest.raises(ValueError, match="labels must be given exactly where n_classes > 0: 0"):
        model.w(latents(1), torch.tensor([0]))
    critic = Discriminator(CONFIG, (32, 16), conditioned=True)
    with pytest.raises(ValueError, match=r"image must have \(32, 16\) pixels a side, not 8"):
        critic(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="a conditioned discriminator needs the code of the generator"):
        critic(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"resolutions must be among .* not 64"):
        Discriminator(CONFIG, (64,))


def test_discriminator_sees_every_resolution_and_the_code():
    torch.manual_seed(0)
    critic = Discriminator(CONFIG, (32, 16, 8), conditioned=True).double()
    code = torch.tensor(CONFIG.arch_code(CONFIG.full)).double()
    other = torch.tensor(CONFIG.arch_code(CONFIG.uniform(0.25))).double()
    for resolution in (32, 16, 8):
        image = torch.randn(4, 3, resolution, resolution, generator=rng()).double()
        assert critic(image, code).shape == (4,)
        assert not torch.allclose(critic(image, code), critic(image, other))
    conditioned = [name for name, block in critic.blocks.items() if block.skip.gain is not None]
    assert conditioned == ["16", "8"]


def test_discriminator_with_classes():
    config = GeneratorConfig(resolution=8, channel_multiplier=1 / 32, style_size=8, n_classes=2)
    torch.manual_seed(0)
    critic = Discriminator(config)
    image = torch.randn(2, 3, 8, 8, generator=rng())
    a, b = (critic(image, labels=torch.full((2,), label)) for label in (0, 1))
    assert not torch.allclose(a, b)
    with pytest.raises(ValueError, match="labels must be given"):
        critic(image)


def test_minibatch_stddev_by_hand():
    x = torch.randn(6, 2, 3, 3, generator=rng()).double()  # 6 images: groups of 3, {0, 2, 4} and {1, 3, 5}
    out = minibatch_stddev(x)
    assert torch.equal(out[:, :2], x)
    for start in (0, 1):
        expected = (x[start::2].var(0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(out[start::2, 2], expected)
