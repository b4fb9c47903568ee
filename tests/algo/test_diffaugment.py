# SPDX-License-Identifier: MIT
"""DiffAugment against a pixel-by-pixel reading of its rules, its distribution, gradients and adjoints."""

import pytest
import torch

from algo.diffaugment import Color, Cutout, Translation, adjoint, apply, diff_augment, draw, parse_policy

POLICY = "color,translation,cutout"
SHAPES = [(3, 3, 16, 16), (2, 3, 9, 12), (4, 1, 7, 5)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=rng(seed), dtype=torch.float64) * 2 - 1


def by_hand(x: torch.Tensor, operation) -> torch.Tensor:
    """One operation, one pixel at a time."""
    n_images, channels, height, width = x.shape
    out = torch.zeros_like(x)
    for n in range(n_images):
        if isinstance(operation, Color):
            b, s, k = (float(v[n]) for v in (operation.brightness, operation.saturation, operation.contrast))
            bright = [[[float(v) + b for v in row] for row in channel] for channel in x[n]]
            mean = sum(sum(sum(row) for row in channel) for channel in bright) / (channels * height * width)
        for h in range(height):
            for w in range(width):
                for c in range(channels):
                    if isinstance(operation, Color):
                        grey = sum(bright[i][h][w] for i in range(channels)) / channels
                        saturated = (bright[c][h][w] - grey) * s + grey
                        out[n, c, h, w] = (saturated - mean) * k + mean
                    elif isinstance(operation, Translation):
                        i, j = h + int(operation.shift[n, 0]), w + int(operation.shift[n, 1])
                        if 0 <= i < height and 0 <= j < width:
                            out[n, c, h, w] = x[n, c, i, j]
                    else:
                        cut = [int(side / 2 + 0.5) for side in (height, width)]
                        start = [int(o) - size // 2 for o, size in zip(operation.centre[n], cut, strict=True)]
                        inside = all(0 <= p - a < s for p, a, s in zip((h, w), start, cut, strict=True))
                        out[n, c, h, w] = 0 if inside else x[n, c, h, w]
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["color", "translation", "cutout"])
def test_each_operation_by_hand(name, shape):
    x = images(shape)
    for seed in range(3):
        (operation,) = draw(name, shape, rng(seed))
        assert torch.allclose(apply(x, [operation]), by_hand(x, operation), atol=1e-12, rtol=0)


def test_draws_cover_exactly_the_published_ranges():
    n = 20_000
    color, translation, cutout = draw(POLICY, (n, 3, 12, 10), rng())
    for values, low, high in (
        (color.brightness, -0.5, 0.5), (color.saturation, 0, 2), (color.contrast, 0.5, 1.5),
    ):  # fmt: skip
        assert values.min() >= low and values.max() < high
        assert abs(float(values.mean()) - (low + high) / 2) < 0.02 * (high - low)
    counts = [torch.bincount(translation.shift[:, axis] + 2, minlength=5) for axis in (0, 1)]
    assert len(counts[0]) == 5 and counts[0].min() > n / 5 * 0.9  # 12 / 8 + 0.5 = 2
    assert translation.shift[:, 1].unique().tolist() == [-1, 0, 1]  # 10 / 8 + 0.5 = 1.75
    assert cutout.centre[:, 0].unique().tolist() == list(range(13))  # even cut of 6: 0..12
    assert cutout.centre[:, 1].unique().tolist() == list(range(10))  # odd cut of 5: 0..9


def test_every_image_and_every_call_draws_its_own():
    x = images((1, 3, 16, 16)).expand(4, -1, -1, -1)
    once, again = diff_augment(x, POLICY, rng(3)), diff_augment(x, POLICY, rng(3))
    assert torch.equal(once, again)
    source = rng(3)
    assert torch.equal(diff_augment(x, POLICY, source), once)
    assert not torch.equal(diff_augment(x, POLICY, source), once)
    assert len({tuple(image.flatten().tolist()) for image in once}) == 4


def test_order_is_that_of_the_policy():
    x = images((2, 3, 16, 16)) + 2
    cutout, color = draw("cutout,color", x.shape, rng())
    assert torch.equal(apply(x, [cutout, color]), color.apply(cutout.apply(x)))
    hole = ~cutout.mask(x).expand_as(x)
    assert (apply(x, [color, cutout])[hole] == 0).all() and (apply(x, [cutout, color])[hole] != 0).any()
    assert torch.equal(diff_augment(x, ""), x)


@pytest.mark.parametrize("name", ["color", "translation", "cutout", POLICY])
def test_gradients_first_and_second(name):
    x = images((2, 3, 6, 6)).requires_grad_()
    operations = draw(name, x.shape, rng(5))
    assert torch.autograd.gradcheck(lambda x: apply(x, operations), x)
    assert torch.autograd.gradgradcheck(lambda x: apply(x.square(), operations), x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["color", "translation", "cutout", POLICY])
def test_adjoint(name, shape):
    """<T x, y> = <x, T* y> for the linear part, and T* is what autograd computes."""
    x, y = images(shape).requires_grad_(), images(shape, seed=2)
    for seed in range(3):
        operations = draw(name, shape, rng(seed))
        out = apply(x, operations)
        linear = out - apply(torch.zeros_like(x), operations)
        assert torch.allclose((linear * y).sum(), (x * adjoint(y, operations)).sum(), atol=1e-12, rtol=1e-12)
        (gradient,) = torch.autograd.grad(out, x, y)
        assert torch.allclose(gradient, adjoint(y, operations), atol=1e-12, rtol=0)


def test_fused_color():
    """k s (x - m) + k (m - M) + M + b: one pass for the means, one affine pass."""
    x = images((4, 3, 8, 8))
    (color,) = draw("color", x.shape, rng())
    b, s, k = (v.double()[:, None, None, None] for v in (color.brightness, color.saturation, color.contrast))
    m, whole = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(color.apply(x), k * s * (x - m) + k * (m - whole) + whole + b, atol=1e-14, rtol=0)


def test_rejects_bad_input():
    with pytest.raises(ValueError, match="policy must list some of color, translation, cutout, not 'blur'"):
        parse_policy("color,blur")
    with pytest.raises(ValueError, match="images must have four dimensions, not 3"):
        diff_augment(torch.zeros(3, 8, 8), POLICY)


def test_cutout_may_leave_the_picture():
    x = torch.ones(1, 1, 8, 8)
    corner = Cutout(torch.tensor([[0, 8]]))  # rows -2..1, columns 6..9
    assert corner.apply(x).sum() == 64 - 2 * 2
    assert (corner.apply(x)[0, 0, :2, 6:] == 0).all()
