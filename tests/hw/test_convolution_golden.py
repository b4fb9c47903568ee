# SPDX-License-Identifier: MIT
"""Operations of the convolution core and their golden model: values by hand, rejected lists."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from hw.convolution import golden
from hw.convolution.operations import (
    Conv,
    Epilogue,
    Fir,
    MapShape,
    Output,
    PixelWeights,
    Reduce,
    checked,
    lists_of,
)
from hw.epilogue.config import Activation, Reduction
from hw.fir.config import Map
from hw.systolic.descriptor import Layer
from tests.hw.mutants import mutated


def plain(n, *outputs, **more):
    """An epilogue that hands sums on; outputs of 8 bits over 2^16, the second output twice as large."""
    made = tuple(
        Output(name=name, bits=bits, scale=np.full(n, 1 + i, np.int16), shift=0 if bits == 16 else 16)
        for i, (name, bits) in enumerate(outputs)
    )
    settings = {"multiplier": np.ones(n, np.uint16), "shift": 0, "bias": np.zeros(n, np.int32)} | more
    return Epilogue(outputs=made, **settings)


def pyramid(seed=1):
    """Two levels of colours and one of activations: every kind of operation and side stream.

    x (4x4x5) -> conv up (9x9x6) -> blur (8x8x6) twice; x -> colours -> up -> + colours of the next level
    """
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return rng.integers(-128, 128, shape).astype(np.int8)

    up = Layer(height=4, width=4, n_in=5, n_out=6, stride=2, transposed=True)
    rgb_low = Layer(height=4, width=4, n_in=5, n_out=3, kernel=1)
    rgb = Layer(height=8, width=8, n_in=6, n_out=3, kernel=1)
    noise = rng.integers(-100, 100, (8, 8)).astype(np.int16)
    bias = rng.integers(-5000, 5000, 6).astype(np.int32)
    return [
        Conv(name="up", layer=up, source="x", weights=weights(8, 7, 3, 3), epilogue=plain(6, ("wide", 16))),
        Conv(
            name="rgb4", layer=rgb_low, source="x", weights=weights(3, 5, 1, 1),
            epilogue=plain(3, ("c4", 16)),
        ),
        Fir(
            name="blur", map=Map(upsample=False, height=9, width=9, channels=6), source="wide",
            epilogue=plain(
                6, ("a", 8), ("b", 16), activation=Activation.LEAKY, noise=noise, side_shift=3, bias=bias,
                shift=9, multiplier=rng.integers(0, 1 << 16, 6).astype(np.uint16),
            ),
        ),
        Fir(
            name="skip", map=Map(upsample=True, height=4, width=4, channels=3), source="c4",
            epilogue=plain(3, ("s", 16)),
        ),
        Conv(
            name="rgb8", layer=rgb, source="a", weights=weights(3, 6, 1, 1),
            epilogue=plain(3, ("c8", 16), residual="s", side_shift=1),
        ),
    ]  # fmt: skip


def x_map(seed=2):
    return torch.from_numpy(np.random.default_rng(seed).integers(-128, 128, (4, 4, 5)))


def by_hand(operations, x):
    """The same in float64, which holds all of these numbers, written out anew."""

    def nchw(m):
        return m.permute(2, 0, 1)[None].double()

    def hwc(m):
        return m[0].permute(1, 2, 0)

    def rounded(m, bits):
        return torch.floor(m + 0.5).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def filtered(m, **how):
        taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)
        kernel = (taps[:, None] * taps).expand(m.shape[1], 1, 4, 4)
        function = functional.conv_transpose2d if how else functional.conv2d
        return rounded(hwc(function(m, kernel, padding=1, groups=m.shape[1], **how)) / 16, 18)

    up, rgb4, blur, _, rgb8 = operations
    w = torch.from_numpy(up.weights).double()[:6, :5]
    wide = rounded(hwc(functional.conv_transpose2d(nchw(x), w.transpose(0, 1), stride=2)), 16)
    c4 = rounded(hwc(functional.conv2d(nchw(x), torch.from_numpy(rgb4.weights).double())), 16)
    e = blur.epilogue
    t = rounded(filtered(nchw(wide)) * torch.from_numpy(e.multiplier.astype(float)) / 2**9, 24)
    u = t + torch.from_numpy(e.bias) + 8 * torch.from_numpy(e.noise)[..., None]
    v = torch.where(u < 0, rounded(u * 13107 / 65536, 24), u)
    a, b = rounded(v / 65536, 8), rounded(2 * v, 16)
    s = filtered(nchw(c4), stride=2).clamp(-32768, 32767)
    c8 = hwc(functional.conv2d(nchw(a), torch.from_numpy(rgb8.weights).double()))
    c8 = rounded(c8 + 2 * s, 16)
    return {"wide": wide, "c4": c4, "a": a, "b": b, "s": s, "c8": c8}


def test_golden_is_what_the_operations_say():
    maps = golden.run(pyramid(), {"x": x_map()})
    for name, value in by_hand(pyramid(), x_map()).items():
        assert torch.equal(maps[name].double(), value), name
    assert maps["a"].unique().numel() > 10, "saturated almost everywhere"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("zip(e.outputs, made.maps, strict=True)", "zip(e.outputs, made.maps[::-1], strict=True)"),
        ("maps[of.side_map]", "maps[of.side_map].clamp(-9, 9)"),
        ("torch.from_numpy(of.noise).long()", "torch.from_numpy(of.noise).long().T"),
        ("known |= outputs(", "dict() | outputs("),
    ],
)
def test_mutant_is_caught(old, new):
    broken = mutated("hw.convolution.golden", old, new)
    try:
        maps = broken.run(pyramid(), {"x": x_map()})
        good = by_hand(pyramid(), x_map())
        same = all(torch.equal(maps[name].double(), value) for name, value in good.items())
    except (KeyError, ValueError, TypeError):
        same = False
    assert not same


def step(seed=3):
    """Forward through a ReLU6 that keeps its mask, back through it with the bias's gradient, and the gradient
    of the first weights."""
    rng = np.random.default_rng(seed)
    first = rng.integers(-128, 128, (6, 5, 1, 1)).astype(np.int8)
    second = rng.integers(-128, 128, (3, 6, 1, 1)).astype(np.int8)
    relu6 = {"activation": Activation.RELU6, "limit": 9000}
    size = {"height": 4, "width": 4, "kernel": 1}
    of_product = Reduce(name="dg", shift=1, kind=Reduction.PRODUCT)
    return [
        Conv(
            name="forward", layer=Layer(**size, n_in=5, n_out=6), source="x", weights=first,
            epilogue=plain(6, ("h", 8), mask="open", named_table="norm", **relu6), named_weights="first",
        ),
        Conv(
            name="back", layer=Layer(**size, n_in=3, n_out=6, wide=True), source="dy",
            weights=second.transpose(1, 0, 2, 3).copy(),
            epilogue=plain(6, ("g", 16), masked_by="open", reduce=Reduce(name="db", shift=8), shift=4),
        ),
        Conv(
            name="product", layer=Layer(**size, n_in=5, n_out=6), source="x", weights=first,
            epilogue=plain(6, ("z", 16), product="g", reduce=of_product),
        ),
        Conv(
            name="weights", layer=Layer(height=1, width=6, n_in=16, n_out=5, kernel=1, wide=True),
            source="gt", weights=PixelWeights(name="x", height=4, width=4),
            epilogue=plain(5, ("dw", 16), shift=9),
        ),
    ]  # fmt: skip


def step_maps():
    rng = np.random.default_rng(4)
    dy, gt = rng.integers(-900, 900, (4, 4, 3)), rng.integers(-3000, 3000, (1, 6, 16))
    return {"x": x_map(), "dy": torch.from_numpy(dy), "gt": torch.from_numpy(gt)}


def step_by_hand(operations, maps, first, bias):
    """The same in float64, gradients by autograd."""

    def nearest(m):
        return torch.floor(m + 0.5).clamp(-32768, 32767)

    x, dy, gt = (maps[name].double() for name in ("x", "dy", "gt"))
    second, third = (torch.from_numpy(of.weights[..., 0, 0]).double().T for of in operations[1:3])
    u = (x @ first[..., 0, 0].double().T + bias).requires_grad_()
    v = functional.hardtanh(u, 0, 9000)
    (opens,) = torch.autograd.grad(v.sum(), u, retain_graph=True)
    (passed,) = torch.autograd.grad(v @ second.T, u, dy)
    g, z = nearest(passed / 16), x @ third
    r, of_z = nearest(g / 256), nearest(z / 2)
    return {
        "h": nearest(v.detach() / 65536),
        "open": opens,
        "g": g,
        "db": torch.stack([r.sum((0, 1)), (r * r).sum((0, 1))], 1),
        "z": nearest(z),
        "dg": torch.stack([of_z.sum((0, 1)), (of_z * g).sum((0, 1))], 1),
        "dw": nearest(gt @ x.reshape(16, 5) / 512),
    }


@pytest.mark.parametrize("rewritten", [False, True])
def test_golden_steps_are_gradients(rewritten):
    """Masks, sums, a map as weights; tables and weights that somebody has rewritten."""
    operations, maps = step(), step_maps()
    first, bias = torch.from_numpy(operations[0].weights).long(), 0
    if rewritten:
        first, bias = -first.clamp(min=-127), -300
        words = plain(6, ("h", 8), bias=np.full(6, bias, np.int32)).table().words()
        maps |= {"norm": torch.from_numpy(words), "first": first}
    got, want = golden.run(operations, maps), step_by_hand(operations, maps, first, bias)
    for name, value in want.items():
        assert torch.equal(got[name].double(), value), name
    assert 0.1 < want["open"].mean() < 0.9 and want["g"].unique().numel() > 10
    assert (got["norm"][1] == bias % 65536).all() and torch.equal(got["first"], first)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("made.mask.long()", "1 - made.mask.long()"),
        ("written[e.reduce.name] = made.sums", "written[e.reduce.name] = made.sums.flip(1)"),
        ("flatten(end_dim=1).T[..., None, None]", "flatten(end_dim=1).flip(0).T[..., None, None]"),
        ("maps[operation.named_weights]", "torch.from_numpy(operation.weights).long()"),
        ("Table.of_words(maps[of.named_table].numpy())", "of.table()"),
    ],
)
def test_mutant_of_a_step_is_caught(old, new):
    broken, maps = mutated("hw.convolution.golden", old, new), step_maps()
    operations = step()
    first, bias = torch.from_numpy(operations[0].weights // 2).long(), -300
    words = plain(6, ("h", 8), bias=np.full(6, bias, np.int32)).table().words()
    got = broken.run(operations, maps | {"norm": torch.from_numpy(words), "first": first})
    want = step_by_hand(operations, maps, first, bias)
    assert any(not torch.equal(got[name].double(), value) for name, value in want.items())


def test_lists_that_disagree_are_rejected():
    forward, back, product, weights = step()
    lists = lists_of(step())
    assert {name: of.shape for name, of in lists.items()} == {
        "norm": (5, 6), "first": (6, 5, 1, 1), "db": (6, 2), "dg": (6, 2),
    }  # fmt: skip
    with pytest.raises(ValueError, match="list 'first' must begin with one content, not two"):
        lists_of([forward, replace(forward, weights=forward.weights // 2)])
    with pytest.raises(ValueError, match=r"list 'first' must be .*width=4.*, not .*width=5"):
        lists_of([forward, replace(product, named_weights="first", layer=replace(product.layer, width=5))])
    with pytest.raises(ValueError, match="maps and lists must have names of their own, not 'h'"):
        same = replace(back, epilogue=replace(back.epilogue, reduce=Reduce(name="h", shift=0)))
        golden.run([forward, same], step_maps())
    with pytest.raises(ValueError, match=r"list 'first' must be \[6, 5, 1, 1\], not \[6, 5\]"):
        golden.run([forward], step_maps() | {"first": torch.zeros(6, 5).long()})
    with pytest.raises(ValueError, match=r"list 'first' must be in -128\.\.127"):
        golden.run([forward], step_maps() | {"first": torch.full((6, 5, 1, 1), 128)})
    with pytest.raises(ValueError, match=r"map 'open' must be in 0\.\.1"):
        golden.run([back], step_maps() | {"open": torch.full((4, 4, 6), 2)})
    with pytest.raises(ValueError, match="weights must be of 16 pixels, not the 12 of map 'x'"):
        replace(weights, weights=PixelWeights(name="x", height=3, width=4))
    with pytest.raises(ValueError, match="weights from the map 'x' need a plain 1x1 layer"):
        replace(weights, layer=replace(weights.layer, groups=2, n_out=6), epilogue=plain(6, ("a", 8)))
    with pytest.raises(ValueError, match="named_weights must be None where weights are the map 'x'"):
        replace(weights, named_weights="w")


def test_shapes_of_all_maps():
    shapes = checked(pyramid(), {"x"})
    assert shapes["x"] == MapShape(height=4, width=4, channels=5, bits=8)
    assert shapes["wide"] == MapShape(height=9, width=9, channels=6, bits=16)
    assert shapes["b"] == MapShape(height=8, width=8, channels=6, bits=16)
    assert shapes.keys() == golden.run(pyramid(), {"x": x_map()}).keys()


def test_bad_lists_are_rejected():
    up, rgb4, blur, skip, rgb8 = pyramid()
    with pytest.raises(ValueError, match="blur: map 'wide' is read before it is written"):
        checked([blur, up], {"x"})
    with pytest.raises(ValueError, match="up: map 'wide' is written twice"):
        checked([up, up], {"x"})
    with pytest.raises(ValueError, match=r"rgb8: map 's' must be .*height=8.*, not .*height=9"):
        other = Fir(
            name="f", map=Map(upsample=False, height=10, width=9, channels=3), source="y",
            epilogue=plain(3, ("s", 16)),
        )  # fmt: skip
        checked([up, blur, other, rgb8], {"x", "y"})
    with pytest.raises(ValueError, match=r"map 'a' must be .*bits=16.*, not .*bits=8"):
        as_residual = Conv(
            name="r", layer=Layer(height=8, width=8, n_in=6, n_out=6, kernel=1), source="a",
            weights=np.zeros((6, 6, 1, 1), np.int8), epilogue=plain(6, ("z", 8), residual="a"),
        )  # fmt: skip
        checked([up, blur, as_residual], {"x"})
    with pytest.raises(ValueError, match="map 'c4' is read as planar and pixels"):
        wide = Layer(height=4, width=4, n_in=3, n_out=3, kernel=1, wide=True)
        again = Conv(
            name="again", layer=wide, source="c4", weights=np.zeros((3, 3, 1, 1), np.int8),
            epilogue=plain(3, ("z", 8)),
        )  # fmt: skip
        checked([rgb4, skip, again], {"x"})


def test_bad_operations_are_rejected():
    with pytest.raises(ValueError, match="noise and residual cannot both be given"):
        plain(3, ("a", 8), noise=np.zeros((2, 2), np.int16), residual="r")
    with pytest.raises(ValueError, match="names of their own"):
        plain(3, ("a", 8), ("a", 8))
    with pytest.raises(ValueError, match="names of their own"):
        plain(3, ("a", 8), mask="a")
    with pytest.raises(ValueError, match="side PRODUCT needs reduction PRODUCT"):
        plain(3, ("a", 8), product="b")
    with pytest.raises(ValueError, match="bits of a must be 8 or 16, not 12"):
        plain(3, ("a", 12))
    with pytest.raises(ValueError, match=r"outputs must be 1\.\.2, not 0"):
        plain(3)
    with pytest.raises(ValueError, match=r"bias must be in -8388608\.\.8388607"):
        plain(3, ("a", 8), bias=np.full(3, 1 << 23, np.int32))
    with pytest.raises(TypeError, match="multiplier must be uint16"):
        plain(3, ("a", 8), multiplier=np.ones(3, np.int64))
    layer = Layer(height=4, width=4, n_in=5, n_out=3, kernel=1)
    with pytest.raises(ValueError, match="weights must be for 3 outputs and 5 inputs, not 3 and 4"):
        Conv(
            name="c", layer=layer, source="x", weights=np.zeros((3, 4, 1, 1), np.int8),
            epilogue=plain(3, ("a", 8)),
        )  # fmt: skip
    with pytest.raises(ValueError, match="multiplier must be for 3 channels, not 2"):
        Conv(
            name="c", layer=layer, source="x", weights=np.zeros((3, 5, 1, 1), np.int8),
            epilogue=plain(2, ("a", 8)),
        )  # fmt: skip
    with pytest.raises(TypeError, match=r"noise must be int16\[4, 4\]"):
        Conv(
            name="c", layer=layer, source="x", weights=np.zeros((3, 5, 1, 1), np.int8),
            epilogue=plain(3, ("a", 8), noise=np.zeros((4, 5), np.int16)),
        )  # fmt: skip


def test_sums_hold_every_product():
    layer = Layer(height=512, width=256, n_in=1, n_out=1, kernel=1)
    with pytest.raises(ValueError, match="reduced maps must have at most 131071 pixels, not 131072"):
        Conv(
            name="c", layer=layer, source="x", weights=np.zeros((1, 1, 1, 1), np.int8),
            epilogue=plain(1, ("a", 8), reduce=Reduce(name="s", shift=0)),
        )  # fmt: skip


def test_given_maps_are_checked():
    with pytest.raises(TypeError, match=r"map 'x' must be int64\[4, 4, 5\]"):
        golden.run(pyramid(), {"x": x_map()[:3]})
    with pytest.raises(ValueError, match=r"map 'x' must be in -128\.\.127"):
        golden.run(pyramid(), {"x": x_map() + 100})
