# SPDX-License-Identifier: MIT
"""Kernels of a training step: golden models against float, RTL against both models, mutants."""

import math

import numpy as np
import pytest
import torch

from hw.training.config import GROUP, MAX_COUNT, Image, Norm, NormBack, Update, reciprocal, root_table
from hw.training.golden import inverse_root, norm, norm_back, norm_gamma, update

# --- golden against float ---------------------------------------------------------------------------------


def test_reciprocals_and_inverse_roots_are_as_exact_as_stated():
    for n in [*range(8, 4000, 8), MAX_COUNT - 8, MAX_COUNT]:
        mantissa, shift = reciprocal(n)
        assert 1 << 23 <= mantissa < 1 << 24 and abs(mantissa * n - (1 << shift)) * 2 <= n
    assert len(root_table()) == 385
    rng = np.random.default_rng(1)
    corners = [edge + d for bits in range(1, 47) for edge in [1 << bits] for d in (-1, 0, 1)]
    for value in [*corners, (1 << 47) - 1, *(2 ** (47 * rng.random(20_000))).astype(np.int64).tolist()]:
        r, j = inverse_root(value)
        assert 1 << 15 <= r < 1 << 16 and 0 <= j <= 23
        assert abs(math.ldexp(r, j - 39) * math.sqrt(value) - 1) < 2**-15


def maps_of(rng, pixels, channels, mean, deviation):
    """A map of 16 bits and a gradient that has to do with it: int64[pixels, channels]."""
    z = np.rint(rng.normal(mean, deviation, (pixels, channels))).clip(-32768, 32767).astype(np.int64)
    g = np.rint(rng.normal(20, 300, z.shape) + z / 40).astype(np.int64)
    return torch.from_numpy(z), torch.from_numpy(g)


def sums_of(a, b):
    return torch.stack([a.sum(0), (a * b).sum(0)], -1)


@pytest.mark.parametrize("pixels, mean, deviation", [(1, 0, 3000), (49, 300, 3000), (196, -9000, 1000)])
def test_group_norm_is_that_of_float(pixels, mean, deviation):
    """Forward, and by central differences' formula backward, gamma's gradient too."""
    rng, channels, epsilon = np.random.default_rng(2), 3 * GROUP, 100
    z, g = maps_of(rng, pixels, channels, mean, deviation)
    gamma = torch.from_numpy(rng.integers(1000, 5000, channels))
    beta = torch.from_numpy(rng.integers(-(1 << 18), 1 << 18, channels))
    job = Norm(pixels=pixels, epsilon=epsilon, shift=6)
    fields, state = norm(sums_of(z, z), gamma << 3, beta << 5, Norm(
        pixels=pixels, epsilon=epsilon, shift=6, gamma_shift=3, beta_shift=5))  # fmt: skip
    assert fields.multiplier.max() < 65_535
    y = (((z * fields.multiplier + 32) >> job.shift) + fields.bias) / 2**18

    x = z.double().requires_grad_()
    weight = (gamma.double() / 4096).requires_grad_()
    groups = x.T.reshape(1, channels, pixels)
    want = torch.nn.functional.group_norm(groups, channels // GROUP, weight, beta.double() / 2**18, epsilon)
    want = want.reshape(channels, pixels).T
    assert (y - want).abs().max() < 2e-4 * want.abs().max()

    want.backward(g.double())
    sums = sums_of(g, z)
    q = norm_gamma(sums, state)
    assert (q - weight.grad).abs().max() < 1 + 2e-4 * (g.double().abs().sum(0)).max()
    e = NormBack(pixels=pixels, scale_exponent=29, multiplier_exponent=24, bias_exponent=18)
    scale, back = norm_back(sums, state, e)
    assert scale.abs().max() < 32_767 and back.multiplier.max() < 65_535
    gg = g.double() * gamma / 4096
    dz = gg * back.multiplier * 2.0**-24 + z * scale * 2.0**-29 + back.bias * 2.0**-18
    rounding = 2**-18 + (z.double().abs().max() + abs(mean)) * 2**-30
    assert (dz - x.grad).abs().max() < rounding + 1e-4 * x.grad.abs().max()


def test_updates_are_those_of_float():
    rng, n = np.random.default_rng(3), 1000
    master = torch.from_numpy(rng.integers(-(1 << 28), 1 << 28, (n, 2)))
    gradient = torch.from_numpy(rng.integers(-(1 << 20), 1 << 20, n))
    job = Update(momentum=58_982, rate=40_000, rate_shift=10, image=Image.BYTES, image_shift=22)
    made, image = update(master, gradient, job)
    momentum = master[:, 1].double() * (58_982 / 65_536) + gradient.double() * (40_000 / 1024)
    assert (made[:, 1] - momentum).abs().max() <= 1
    assert (made[:, 0] - (master[:, 0].double() - momentum)).abs().max() <= 1
    assert image is not None
    assert (image - (made[:, 0].double() / 2**22).clamp(-128, 127)).abs().max() <= 0.5


def test_updates_saturate():
    top, bottom = (1 << 31) - 1, -(1 << 31)
    master = torch.tensor([[top, bottom], [bottom, top], [0, 0], [5, 7]])
    made, image = update(
        master, torch.tensor([bottom, top, bottom, 0]),
        Update(momentum=65_535, rate=65_535, image=Image.HALVES),
    )  # fmt: skip
    assert made.tolist() == [[top, bottom], [bottom, top], [top, bottom], [-2, 7]]
    assert image is not None and image.tolist() == [32_767, -32_768, 32_767, -2]
