# SPDX-License-Identifier: MIT
"""Operations of training to try the convolution core with: every kernel and image, transposed maps.

Imports numpy only.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hw.epilogue.config import TABLE_BEATS
from hw.systolic.layer import Layer
from hw.training.config import GROUP, Image, Norm, NormBack
from hw.training.config import Update as Job
from hw.training.operations import Gradient, Normalise, NormaliseBackward, NormaliseGamma, Update

from .config import ConvolutionConfig
from .operations import Conv, MapShape, PixelWeights, Reduce, Transposed
from .runs import Run, conv, random_epilogue

HEIGHT, WIDTH, N_IN, N_OUT = 2, 2, 2, 2 * GROUP
"""Of the map whose convolutions are summed, and of them."""


def training_runs(config: ConvolutionConfig, *, seed: int) -> list[Run]:
    """Norms and updates; transposed maps; a gradient of weights."""
    rng = np.random.default_rng(seed)
    return [norms(rng), updates(rng), transposes(config, rng), weight_gradient(config, rng)]


def norms(rng: np.random.Generator) -> Run:
    """Sums of one convolution, a norm's table for another one, gradients."""
    first, second = _layers(rng)
    back = NormBack(pixels=HEIGHT * WIDTH, scale_exponent=30, multiplier_exponent=26, bias_exponent=14)
    return Run(
        name="norms",
        operations=[
            first,
            _norm("norm", rng, table="of second", gamma="gamma"),
            second,
            _norm("plain norm", rng, table="of nobody"),
            NormaliseBackward(
                name="back", channels=N_OUT, sums="sums", state="norm's state", side_table="side",
                table="of g", job=back,
            ),
            NormaliseGamma(
                name="gamma", channels=N_OUT, sums="sums", state="norm's state", gradient="gamma's gradient"
            ),
        ],
        maps={
            "x": rng.integers(-128, 128, (HEIGHT, WIDTH, N_IN)),
            **{name: _table(rng) for name in ("of nobody", "side", "of g")},
        },
    )  # fmt: skip


def updates(rng: np.random.Generator) -> Run:
    """Of a bias, a scale and weights, with their images; of two taps, without."""
    layer, _ = _layers(rng)
    taps = {f"gradient of tap {tap}": _halves(rng, N_IN, 1, N_OUT) for tap in (0, 1)}
    return Run(
        name="updates",
        operations=[
            layer,
            *(
                Update(
                    name=f"update of {name}", master=f"master of {name}", shape=shape, gradient=gradient,
                    gradient_from=kind, image=of, start=rng.integers(-(1 << 25), 1 << 25, shape),
                    job=Job(momentum=60_000, rate=60_000, rate_shift=4, image=image, image_shift=shift),
                )
                for name, gradient, kind, shape, image, of, shift in (
                    ("bias", "sums", Gradient.SUMS, (N_OUT,), Image.BIAS, "of first", 8),
                    ("scale", "gamma's gradient", Gradient.LIST, (N_OUT,), Image.HALVES, "of g", 4),
                    ("weights", "gradient of w", Gradient.MAP, (9, N_IN, N_OUT), Image.BYTES, "w", 18),
                    ("taps", tuple(taps), Gradient.MAP, (2, N_IN, N_OUT), Image.NONE, None, 0),
                )
            ),
        ],
        maps={
            "x": rng.integers(-128, 128, (HEIGHT, WIDTH, N_IN)),
            "of g": _table(rng),
            "gamma's gradient": rng.integers(-(1 << 20), 1 << 20, N_OUT),
            "gradient of w": _halves(rng, 9, N_IN, N_OUT),
            **taps,
        },
    )  # fmt: skip


def _layers(rng: np.random.Generator) -> Iterator[Conv]:
    """One with named weights and sums, both with a named table."""
    layer = Layer(height=HEIGHT, width=WIDTH, n_in=N_IN, n_out=N_OUT, kernel=3, padding=1)
    for name, weights, reduce in (("first", "w", Reduce(name="sums", shift=6)), ("second", None, None)):
        made = conv(name, layer, "x", rng, {f"{name}'s": 8})
        epilogue = replace(made.epilogue, named_table=f"of {name}", reduce=reduce)
        yield replace(made, named_weights=weights, epilogue=epilogue)


def _norm(name: str, rng: np.random.Generator, *, table: str, gamma: str | None = None) -> Normalise:
    start = rng.integers(-(1 << 16), 1 << 16, (2, N_OUT))
    return Normalise(
        name=name, channels=N_OUT, sums="sums", table=table, state=f"{name}'s state",
        beta=f"{name}'s beta", gamma=gamma, beta_start=start[0], gamma_start=start[1],
        job=Norm(pixels=HEIGHT * WIDTH, shift=8, epsilon=3, gamma_shift=2, beta_shift=1),
    )  # fmt: skip


def transposes(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Bytes and halves; pixels and channels less than a block, of whole blocks, and more; a table for each
    tile of pixels."""
    c = config.array.columns
    operations, maps = [], {}
    for name, bits, height, width, channels in (
        ("few", 16, 1, 1, 3), ("whole", 16, 2, c, 2 * c),
        ("more", 8, 2, c - 1, c + 1), ("less", 8, 1, c - 1, c - 2),
    ):  # fmt: skip
        shape = MapShape(height=height, width=width, channels=channels, bits=bits)
        operations.append(transposed(name, shape, rng, {f"{name}'s": 16, f"{name}'s bytes": 8}))
        maps[f"{name} x"] = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (height, width, channels))
    return Run(name="transposed maps", operations=operations, maps=maps)


def weight_gradient(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Of a 1x1 convolution: sums over pixels of gradients, turned round, times activations as weights."""
    c = config.array.columns
    n_out, n_in, n_pixels = 8, c + 4, 6
    shape = MapShape(height=2, width=3, channels=n_out, bits=16)
    layer = Layer(height=n_out, width=1, n_in=n_pixels, n_out=n_in, kernel=1, wide=True)
    product = replace(
        conv("product", layer, "turned", rng, {"dw": 16}), weights=PixelWeights(name="x", height=2, width=3)
    )
    back = MapShape(height=n_out, width=1, channels=n_in, bits=16)
    update = Update(
        name="update", master="master", shape=(1, n_in, n_out), gradient=("by input",),
        gradient_from=Gradient.MAP, job=Job(rate=9), start=np.zeros((1, n_in, n_out), np.int64),
    )  # fmt: skip
    turn = transposed("turn", shape, rng, {"turned": 16})
    again = transposed("turn again", back, rng, {"by input": 16})
    return Run(
        name="gradient of weights",
        operations=[turn, product, replace(again, source="dw"), update],
        maps={"turn x": _halves(rng, 2, 3, n_out), "x": rng.integers(-128, 128, (2, 3, n_in))},
    )


def transposed(name: str, shape: MapShape, rng: np.random.Generator, outputs: dict[str, int]) -> Transposed:
    """A transposed map; ``outputs``: bits of each map written."""
    of = shape.channels, 1, shape.height * shape.width
    return Transposed(
        name=name, shape=shape, source=f"{name} x", epilogue=random_epilogue(rng, of, outputs, shape.bits)
    )


def _table(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 1 << 16, (TABLE_BEATS, N_OUT))


def _halves(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(1 << 15), 1 << 15, shape)
