# SPDX-License-Identifier: MIT
"""Distances between sets of pictures against definitions; the features' network at an eighth of its width."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from algo.gan.data import ImageSet, as_floats
from benchmarks.gan import judge
from benchmarks.gan.features import STRIDES, Features, _same
from benchmarks.gan.metrics import authentic_share, frechet_pca, kid, nearest, quality
from tests.benchmarks.gan.conftest import Pixels


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=rng(seed)).double() * scale + shift


def test_kid_by_definition():
    real, fake = normal(5, 3, 0), normal(4, 3, 1, shift=0.5)

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    reals = [k(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j]
    fakes = [k(x, y) for i, x in enumerate(fake) for j, y in enumerate(fake) if i != j]
    pairs = [k(x, y) for x in real for y in fake]
    expected = sum(reals) / 20 + sum(fakes) / 12 - 2 * sum(pairs) / 20
    assert kid(real, fake) == pytest.approx(expected)


def test_kid_is_unbiased_and_sees_a_shift():
    same = [kid(normal(40, 8, seed), normal(60, 8, seed + 100)) for seed in range(30)]
    assert min(same) < 0 < max(same) and abs(sum(same) / 30) < 0.05
    assert kid(normal(40, 8, 0), normal(60, 8, 1, shift=1.0)) > 5 * max(same)


def test_frechet_of_known_gaussians():
    """Axis-aligned: sum of squared differences of means and of standard deviations."""
    scales = torch.tensor([3.0, 2.0, 1.0]).double()
    real = normal(20_000, 3, 0) * scales
    fake = normal(20_000, 3, 1) * (scales + 1) + 0.5
    assert frechet_pca(real, fake, 3) == pytest.approx(3 * 1 + 3 * 0.25, rel=0.05)
    assert frechet_pca(real, real, 3) == pytest.approx(0, abs=1e-8)
    # Two components see only the two widest axes of the real pictures.
    assert frechet_pca(real, fake, 2) == pytest.approx(2 * 1 + 2 * 0.25, rel=0.05)


def test_copies_are_found():
    real = normal(30, 4, 0)
    assert authentic_share(real, real + 1e-6) == 0
    assert authentic_share(real, real + 100) == 1
    index, distance = nearest(real, real[[4, 2]] + 1e-6)
    assert index.tolist() == [4, 2] and distance.max() < 1e-5


def test_quality_does_not_depend_on_the_scale_of_a_feature():
    real, fake = normal(70, 66, 0), normal(80, 66, 1, shift=0.3)
    scale = torch.logspace(-2, 2, 66, dtype=torch.float64)
    found, scaled = quality(real, fake), quality(real * scale + 5, fake * scale + 5)
    assert scaled.kid == pytest.approx(found.kid) and found.kid > 0
    assert scaled.frechet_pca_64 == pytest.approx(found.frechet_pca_64)
    assert scaled.authentic_share == found.authentic_share


def test_quality_leaves_out_what_few_pictures_cannot_give():
    assert quality(normal(20, 4, 0), normal(70, 4, 1)).frechet_pca_64 is None
    found = quality(normal(70, 66, 0), normal(80, 66, 1))
    assert found.frechet_pca_64 is not None and (found.n_real, found.n_fake) == (70, 80)
    with pytest.raises(ValueError, match="kid needs at least 2 pictures of each kind, not 1 and 3"):
        kid(normal(1, 2, 0), normal(3, 2, 0))
    with pytest.raises(ValueError, match="frechet_pca needs more than 64 pictures of each kind"):
        frechet_pca(normal(10, 2, 0), normal(80, 2, 0))


def test_judge_finds_copies_and_mirrored_copies(monkeypatch):
    monkeypatch.setattr(judge, "Features", Pixels)
    pixels = torch.randint(256, (20, 3, 8, 8), generator=rng(), dtype=torch.uint8)
    training = ImageSet(pixels[:10], None, "seen")
    fakes = as_floats(pixels[8:])
    fakes[:1], fakes[1:2] = as_floats(pixels[3:4]), as_floats(pixels[7:8]).flip(3)
    unseen = judge.Judge(ImageSet(pixels[10:], None, "unseen"))
    for mirror, n_copies in ((True, 2), (False, 1)):
        found = judge.Judge(training, unseen, mirror=mirror)
        sheet = found.nearest_pairs(fakes)
        above, below = (_cells(sheet, row) for row in (0, 1))
        same = [torch.equal(a, b) for a, b in zip(above, below, strict=True)]
        assert same == [True] * n_copies + [False] * (6 - n_copies)  # the nearest come first
    assert found.quality(fakes).n_real == 10 and torch.equal(found.of_reference, unseen.of_training)


def _cells(sheet: torch.Tensor, row: int) -> list[torch.Tensor]:
    """Pictures of 8 pixels with gaps of 2."""
    top = 2 + 10 * row
    return [sheet[top : top + 8, 2 + 10 * i : 10 + 10 * i] for i in range(6)]


def test_copies_of_training_pictures_count_whatever_is_compared_with():
    reference, training = normal(70, 66, 0), normal(50, 66, 1)
    copies = training[:40] + 1e-6
    found = quality(reference, copies, training)
    assert found.authentic_share == 0 and quality(reference, copies).authentic_share > 0.5
    assert found.kid == quality(reference, copies).kid and found.n_real == 70


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Features:
    """Random weights with the names and the structure of EfficientNet-Lite0, at an eighth of its widths."""
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, norm: str, c_out: int, c_in: int, kernel: int, groups: int = 1) -> None:
        shape = (c_out, c_in // groups, kernel, kernel)
        fan_in = shape[1] * kernel * kernel
        weights[f"{name}.weight"] = torch.randn(shape, generator=rng(len(weights))) * (2 / fan_in) ** 0.5
        for part, value in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.05), ("running_var", 1.0)):
            weights[f"{norm}.{part}"] = torch.full((c_out,), value)

    conv("_conv_stem", "_bn0", 4, 3, 3)
    widths, c_in = [2, 3, 3, 5, 5, 10, 10, 10, 14, 14, 14, 24, 24, 24, 24, 40], 4
    for i, c_out in enumerate(widths):
        c_mid = c_in if i == 0 else 6 * c_in
        if i:
            conv(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", c_mid, c_in, 1)
        conv(
            f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", c_mid, c_mid, 5 if i in (3, 4) else 3, c_mid
        )
        conv(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", c_out, c_mid, 1)
        c_in = c_out
    path = tmp_path_factory.mktemp("weights") / "lite.safetensors"
    save_file(weights, path)
    return Features(path)


def test_features_are_of_each_picture_alone(features):
    images = torch.rand(3, 3, 32, 32, generator=rng()) * 2 - 1
    found = features(images, batch_size=2)
    assert found.shape == (3, 14) and not torch.allclose(found[0], found[1])
    assert torch.allclose(features(images[2:]), found[2:], atol=1e-5)


def test_shapes_along_the_network(features):
    outputs = features._run(torch.zeros(1, 3, 64, 64))
    assert [x.shape[-1] for x in outputs] == [32, 16, 16, 8, 8, 4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2]
    assert len(outputs) == len(STRIDES)


@pytest.mark.parametrize(
    "size, kernel, stride, before", [(8, 3, 1, 1), (8, 3, 2, 0), (7, 3, 2, 1), (8, 5, 2, 1)]
)
def test_same_padding_puts_the_odd_zero_after(size, kernel, stride, before):
    x, weight = (
        torch.randn(1, 2, size, size, generator=rng()),
        torch.randn(3, 2, kernel, kernel, generator=rng(1)),
    )
    out = _same(x, weight, torch.zeros(3), stride)
    wide = F.conv2d(F.pad(x, (before, 8, before, 8)), weight, stride=stride)
    n_out = -(-size // stride)
    assert out.shape[-1] == n_out and torch.allclose(out, wide[..., :n_out, :n_out], atol=1e-5)


def test_perceptual_distance(features):
    a = torch.rand(2, 3, 32, 32, generator=rng()) * 2 - 1
    noise = torch.randn(a.shape, generator=rng(1))
    near, far = (features.distance(a, a + size * noise) for size in (0.02, 0.5))
    assert features.distance(a, a) == 0 and 0 < near < far
    moved = (a + 0.1 * noise).requires_grad_()
    features.distance(moved, a).backward()
    assert moved.grad.abs().sum() > 0
