# SPDX-License-Identifier: MIT
"""Projection and encoder: they invert a generator, and their sub-generator term does what it is for."""

import pytest
import torch

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator
from algo.anycost.projection import (
    EncoderConfig,
    EncoderTraining,
    ProjectionConfig,
    SubTerm,
    distance_to_full,
    loss_with_sub,
    mean_distance,
    project,
    reconstruction,
)
from algo.gan.data import ImageSet
from algo.gan.loop import LoopConfig, load_run, run

SHAPE = GeneratorConfig(
    resolution=16, channel_multiplier=1 / 64, max_channels=16, style_size=8, n_mapping_layers=2
)
OFF = SubTerm(weight=0)
NARROW = [SHAPE.uniform(0.25), SHAPE.uniform(0.5), SHAPE.uniform(0.5, 8)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SHAPE).requires_grad_(False)


def target(generator: Generator, n: int = 2) -> torch.Tensor:
    """Images of other styles in every layer."""
    return generator(generator.mean_w(100, rng()) + torch.randn(n, SHAPE.n_styles, 8, generator=rng(1)))


def quiet(step: int, n_steps: int, losses) -> None:
    """No progress."""


def test_reconstruction_by_hand():
    image, wanted = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 8, 8), 0.5)
    assert float(reconstruction(image, wanted)) == pytest.approx(0.25)
    assert float(reconstruction(image, wanted, lambda a, b: (a - b).abs().mean())) == pytest.approx(0.75)


def test_the_term_adds_a_weighted_sub_generator(generator):
    styles, images = generator.styles(torch.randn(2, 8, generator=rng(2))), target(generator)
    term = SubTerm(weight=3.0, resolutions=(8,))
    drawn = term.draw(SHAPE, rng(5))
    assert drawn.resolution == 8
    full, sub = reconstruction(generator(styles), images), reconstruction(generator(styles, drawn), images)
    assert float(loss_with_sub(generator, styles, images, term, rng(5))) == pytest.approx(
        float(full + 3 * sub)
    )
    assert float(loss_with_sub(generator, styles, images, OFF, rng(5))) == pytest.approx(float(full))
    uniform = {SubTerm().draw(SHAPE, rng(i)) for i in range(40)}
    assert uniform == {SHAPE.uniform(r) for r in (0.25, 0.5, 0.75, 1.0)}
    assert len({SubTerm(flexible=True).draw(SHAPE, rng(i)) for i in range(40)}) > 20


def test_projection_finds_an_image_of_the_generator(generator):
    images = target(generator)
    steps = []
    styles, losses = project(
        generator, images, ProjectionConfig(n_steps=100), OFF, on_step=lambda i, n, loss: steps.append(i)
    )
    assert styles.shape == (2, SHAPE.n_styles, 8) and steps == list(range(1, 101))
    assert losses[-1] < 0.1 * losses[0]
    assert float(reconstruction(generator(styles), images)) < 0.1 * losses[0]
    few = [project(generator, images, ProjectionConfig(n_steps=3))[1] for _ in range(2)]
    assert few[0] == few[1]
    _, further = project(generator, images, ProjectionConfig(n_steps=1), OFF, start=styles)
    assert further[0] < 1.2 * losses[-1]


def test_projection_with_sub_generators_serves_them_better(generator):
    images, config = target(generator), ProjectionConfig(n_steps=100)
    alone, _ = project(generator, images, config, OFF)
    shared, _ = project(generator, images, config, SubTerm(resolutions=(16, 8)))
    distances = [mean_distance(generator, styles, images, NARROW) for styles in (alone, shared)]
    assert distances[1] < 0.9 * distances[0]


def encoder_training(generator: Generator) -> EncoderTraining:
    images = ((target(generator, 12).clamp(-1, 1) + 1) * 127.5).round().byte()
    return EncoderTraining(
        generator,
        "random",
        ImageSet(images, None, "generated"),
        EncoderConfig(batch_size=6, learning_rate=0.01),
    )


def test_encoder_learns_and_resumes_to_the_same_bits(generator, tmp_path):
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    training, loop = encoder_training(generator), LoopConfig(n_steps=40, checkpoint_steps=15)
    losses = [row["reconstruction"] for row in run(training, loop, tmp_path / "whole", quiet)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())

    def stop(step, n_steps, losses):
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(encoder_training(generator), loop, tmp_path / "halves", stop)
    run(encoder_training(generator), loop, tmp_path / "halves", quiet)
    a, b = (load_run(tmp_path / part)[1] for part in ("whole", "halves"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_encoder_starts_at_the_mean(generator):
    encoder = encoder_training(generator).encoder
    with torch.no_grad():
        encoder.out.weight.zero_()
    styles = encoder(torch.zeros(3, 3, 16, 16))
    assert torch.equal(styles, encoder.mean_w.expand(3, SHAPE.n_styles, -1))


def test_distance_to_full(generator):
    distance = distance_to_full(generator, 8)
    assert distance(SHAPE.full) == 0
    assert 0 < distance(SHAPE.uniform(0.75)) < distance(SHAPE.uniform(0.25))
    assert distance(SHAPE.uniform(1.0, 8)) > 0
    with_more = distance_to_full(generator, 8, perceptual=lambda a, b: torch.ones(()))
    assert with_more(SHAPE.full) == 1


def test_rejects_bad_input(generator):
    with pytest.raises(ValueError, match="target must be 3 x 16 x 16"):
        project(generator, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="n_steps must be at least 1, not 0"):
        ProjectionConfig(n_steps=0)
    with pytest.raises(ValueError, match=r"weight must not be negative, not -1"):
        SubTerm(weight=-1)
    with pytest.raises(ValueError, match=r"generated_share must be in 0..1, not 2"):
        EncoderConfig(generated_share=2)
