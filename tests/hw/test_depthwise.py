# SPDX-License-Identifier: MIT
"""Depthwise unit: golden against PyTorch's layers and their gradients, RTL against golden and cycle model,
mutants."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hw.depthwise.golden import depthwise, passed
from hw.depthwise.layer import DepthwiseLayer, phases


def noise(seed, bits, *shape):
    bound = 1 << (bits - 1)
    return torch.from_numpy(np.random.default_rng(seed).integers(-bound, bound, shape))


def nchw(x):
    return x.permute(2, 0, 1)[None].double()


def hwc(x):
    return x[0].permute(1, 2, 0).long()


@st.composite
def layers(draw):
    """Any small layer."""
    kernel, transposed = draw(st.integers(1, 7)), draw(st.booleans())
    size = {"height": draw(st.integers(1, 7)), "width": draw(st.integers(1, 7))}
    fields = {
        "channels": draw(st.integers(1, 3)),
        "kernel": kernel,
        "stride": 2 if transposed else draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, kernel - 1)),
        "transposed": transposed,
        "wide": draw(st.booleans()),
        "replicate": draw(st.booleans()),
    }
    try:
        return DepthwiseLayer(
            **size, **fields, out_height=draw(st.integers(1, 16)), out_width=draw(st.integers(0, 16))
        )
    except ValueError:
        assume(False)


def by_definition(x, w, layer):
    """Output by output, tap by tap."""
    sums = torch.zeros(layer.out_height, layer.out_width, layer.channels, dtype=torch.int64)

    def met(out, tap, size):
        if layer.transposed:
            at, odd = divmod(out + layer.padding - tap, 2)
            if odd:
                return None
        else:
            at = layer.stride * out + tap - layer.padding
        if layer.replicate:
            return min(max(at, 0), size - 1)
        return at if 0 <= at < size else None

    for i in range(layer.out_height):
        for j in range(layer.out_width):
            for a in range(layer.kernel):
                for b in range(layer.kernel):
                    y, x_ = met(i, a, layer.height), met(j, b, layer.width)
                    if y is not None and x_ is not None:
                        sums[i, j] += x[y, x_] * w[:, a, b]
    return sums


@given(layer=layers(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_golden_is_the_definition_and_phases_make_the_whole(layer, seed):
    x = noise(seed, 16 if layer.wide else 8, layer.height, layer.width, layer.channels)
    w = noise(seed + 1, 8, layer.channels, layer.kernel, layer.kernel)
    sums = depthwise(x, w, layer)
    assert torch.equal(sums, by_definition(x, w, layer))
    joined = torch.full_like(sums, 1 << 40)
    for phase in phases(layer):
        of = phase.of
        part = x[phase.row : phase.row + of.height, phase.column : phase.column + of.width]
        joined[phase.y :: phase.step, phase.x :: phase.step] = passed(
            part, torch.from_numpy(phase.weights(w.numpy())), of
        )
    assert torch.equal(joined, sums)


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [5, 6])
def test_gradients_of_a_layer_are_layers(kernel, stride, size):
    """Of stride 1 with rotated weights, of stride 2 transposed with the same ones; padding as on all sides,
    and TensorFlow's."""
    n, w = 2, noise(1, 8, 2, kernel, kernel)
    uneven = max(0, (-(-size // stride) - 1) * stride + kernel - size) // 2
    for padding, out in ((kernel // 2, 0), (uneven, -(-size // stride))):
        layer = DepthwiseLayer(
            height=size, width=size, channels=n, kernel=kernel, stride=stride, padding=padding,
            out_height=out, out_width=out,
        )  # fmt: skip
        x = noise(2, 8, size, size, n).double().requires_grad_()
        after = (layer.out_height - 1) * stride + kernel - size - padding
        padded = functional.pad(nchw(x), (padding, after, padding, after))
        y = functional.conv2d(padded, w[:, None].double(), stride=stride, groups=n)
        assert torch.equal(depthwise(x.detach().long(), w, layer), hwc(y))
        dy = noise(3, 16, *hwc(y).shape)
        (dx,) = torch.autograd.grad(y, x, nchw(dy))
        back = DepthwiseLayer(
            height=layer.out_height, width=layer.out_width, channels=n, kernel=kernel, wide=True,
            out_height=size, out_width=size,
            **(
                {"stride": 2, "transposed": True, "padding": padding}
                if stride == 2
                else {"padding": kernel - 1 - padding}
            ),
        )  # fmt: skip
        assert torch.equal(depthwise(dy, w if stride == 2 else w.flip(1, 2), back), dx.long())


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_bilinear_upsampling_and_its_gradient_are_layers(size):
    """Weights [1, 3, 3, 1] by themselves, over 16; the nearest pixel beyond the borders."""
    taps = torch.tensor([1, 3, 3, 1])
    w = (taps[:, None] * taps).expand(2, 4, 4)
    of = {"channels": 2, "kernel": 4, "stride": 2, "padding": 1, "wide": True, "replicate": True}
    up = DepthwiseLayer(height=size[0], width=size[1], transposed=True, **of)
    x = noise(5, 16, *size, 2).double().requires_grad_()
    y = functional.interpolate(nchw(x), scale_factor=2.0, mode="bilinear")
    assert torch.equal(depthwise(x.detach().long(), w, up), hwc(16 * y))
    dy = noise(6, 16, *hwc(y).shape)
    down = DepthwiseLayer(height=2 * size[0], width=2 * size[1], **of)
    (dx,) = torch.autograd.grad(y, x, nchw(dy))
    assert torch.equal(depthwise(dy, w, down), (16 * dx).long())


def test_phases_multiply_no_inserted_zero():
    layer = DepthwiseLayer(height=8, width=8, channels=1, padding=1, stride=2, transposed=True)
    assert sorted(phase.n_taps for phase in phases(layer)) == [1, 2, 2, 4]
    assert layer.n_macs < 9 * 8 * 8
    single = DepthwiseLayer(
        height=2, width=2, channels=1, kernel=1, stride=2, transposed=True, out_height=4, out_width=4
    )
    assert sorted(phase.n_taps for phase in phases(single)) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"kernel": 8}, "kernel must be in 1..7, not 8"),
        ({"stride": 3}, "stride must be 1 or 2, not 3"),
        ({"transposed": True}, "stride must be 2 if transposed, not 1"),
        ({"padding": 3}, "padding must be in 0..2, not 3"),
        ({"height": 2}, "out_height must be in 1..2, not 0"),
        ({"out_width": 8}, "out_width must be in 1..6, not 8"),
    ],
)
def test_rejects_bad_layers(changes, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseLayer(**({"height": 6, "width": 6, "channels": 4} | changes))


def test_golden_rejects_what_it_cannot_take():
    layer = DepthwiseLayer(height=4, width=4, channels=2)
    x, w = noise(1, 8, 4, 4, 2), noise(2, 8, 2, 3, 3)
    with pytest.raises(TypeError, match=r"x must be int64\[4, 4, 2\], not torch.int64\[4, 4, 1\]"):
        depthwise(x[..., :1], w, layer)
    with pytest.raises(ValueError, match=r"x must be in -128..127"):
        depthwise(x + 200, w, layer)
    with pytest.raises(ValueError, match=r"weights must be in -128..127"):
        depthwise(x, w + 200, layer)
