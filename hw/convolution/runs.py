# SPDX-License-Identifier: MIT
"""Operations to try the convolution core with, corners first. Imports numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation, Reduction
from hw.fir.config import Map
from hw.systolic.descriptor import bands_of
from hw.systolic.layer import Layer

from .config import ConvolutionConfig
from .operations import Conv, Depthwise, Epilogue, Fir, Operation, Output, PixelWeights, Reduce


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Operations with the maps that they begin with."""

    name: str
    operations: Sequence[Operation]
    maps: Mapping[str, np.ndarray]
    """int64[height, width, channels]; and lists that begin with other numbers than the operations'"""


def runs(config: ConvolutionConfig, *, seed: int, n_random: int) -> list[Run]:
    """Single pixels, channels around a tile, planes and groups, bands and rectangles, filters, a block of the
    generator, a training step, masks and sums of every kind, depthwise layers; then random operations."""
    rng = np.random.default_rng(seed)
    c = config.array.columns
    return [
        single_pixels(config, rng),
        around_a_tile(config, rng),
        planes(config, rng),
        bands(config, rng),
        filters(config, rng),
        block(rng, n_in=c, n_up=c, n_out=3),
        training(config, rng),
        masks(config, rng),
        by_channel(config, rng),
        *(random_run(config, rng, f"random {number}") for number in range(n_random)),
    ]


def single_pixels(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """One pixel, one channel; then a map of a few pixels, larger than the input, for both readers."""
    c = config.array.columns
    layers = {
        "one": Layer(height=1, width=1, n_in=1, n_out=1, kernel=1),
        "padded": Layer(height=1, width=1, n_in=1, n_out=c + 1, kernel=3, padding=1),
        "grown": Layer(height=1, width=1, n_in=c + 1, n_out=2, kernel=3, stride=2, transposed=True),
    }
    return Run(
        name="single pixels",
        operations=[
            conv("one", layers["one"], "x", rng, {"a": 8}, activation=Activation.RELU),
            conv("padded", layers["padded"], "a", rng, {"b": 8, "b16": 16}, noise=True),
            conv("grown", layers["grown"], "b", rng, {"c": 16, "c8": 8}, residual="r"),
        ],
        maps={"x": _signed(rng, 8, 1, 1, 1), "r": _signed(rng, 16, 3, 3, 2)},
    )


def around_a_tile(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Channels one less and one more than a tile, as many, and two tiles, of which a reader takes some."""
    c, layer = config.array.columns, partial(Layer, height=3, width=4)
    return Run(
        name="around a tile",
        operations=[
            conv("less", layer(n_in=c, n_out=c - 1, padding=1), "x", rng, {"a": 8, "a16": 16}),
            conv(
                "one", layer(n_in=c - 1, n_out=c, padding=1), "a", rng, {"b": 8, "b16": 16},
                noise=True, activation=Activation.LEAKY,
            ),
            conv(
                "more", layer(n_in=c - 1, n_out=c + 1, kernel=1, n_stored=c), "b", rng, {"d": 8},
                activation=Activation.RELU6,
            ),
            conv(
                "two", layer(n_in=c + 1, n_out=2 * c, padding=1), "d", rng, {"e": 16, "f": 8},
                residual="r", activation=Activation.RELU,
            ),
        ],
        maps={"x": _signed(rng, 8, 3, 4, c), "r": _signed(rng, 16, 3, 4, 2 * c)},
    )  # fmt: skip


def planes(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """16 bits for the array, from memory and from the epilogue; two groups; stride 2."""
    c, layer = config.array.columns, partial(Layer, height=5, width=6)
    wide = layer(n_in=c + 2, n_out=c + 4, padding=1, wide=True)
    again = layer(n_in=c + 4, n_out=2 * c, kernel=1, wide=True)
    grouped = layer(n_in=2 * c, n_out=2 * c, kernel=3, padding=1, stride=2, groups=2)
    return Run(
        name="planes and groups",
        operations=[
            conv("wide", wide, "x", rng, {"a": 16}),
            conv("again", again, "a", rng, {"b": 8}, noise=True),
            conv("grouped", grouped, "b", rng, {"c": 8, "d": 16}, activation=Activation.RELU6),
        ],
        maps={"x": _signed(rng, 16, 5, 6, c + 2)},
    )


def bands(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """More input than a half holds, more pixels than accumulators, in rows that do not end with a word."""
    array = config.array
    half_bytes = array.n_words * array.rows
    width = max(7, half_bytes // 800 | 1)
    plain = Layer(height=half_bytes // (8 * width) + 3, width=width, n_in=7, n_out=3, padding=1)
    assert len(bands_of(plain, array)) > 1, "the map must be larger than a half"
    return Run(
        name="bands",
        operations=[conv("plain", plain, "x", rng, {"a": 8, "b": 16}, noise=True)],
        maps={"x": _signed(rng, 8, plain.height, width, 7)},
    )


def filters(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Both modes, tiles that are full and that are not, sides, two readers."""
    c = config.array.columns
    blur = Map(upsample=False, height=4, width=5, channels=c + 1)
    up = Map(upsample=True, height=3, width=4, channels=2 * c)
    small = Map(upsample=True, height=1, width=1, channels=1)
    return Run(
        name="filters",
        operations=[
            fir("blur", blur, "x", rng, {"a": 8, "a16": 16}, noise=True, activation=Activation.LEAKY),
            fir("up", up, "y", rng, {"b": 16}, residual="r"),
            fir("small", small, "z", rng, {"c": 8}),
        ],
        maps={
            "x": _signed(rng, 16, 4, 5, c + 1),
            "y": _signed(rng, 16, 3, 4, 2 * c),
            "r": _signed(rng, 16, 6, 8, 2 * c),
            "z": _signed(rng, 16, 1, 1, 1),
        },
    )


def block(rng: np.random.Generator, *, n_in: int, n_up: int, n_out: int, size: int = 4) -> Run:
    """A level of the generator: up-convolution, blur, convolution, toRGB with the colours from below."""
    grown = Layer(height=size, width=size, n_in=n_in, n_out=n_up, stride=2, transposed=True)
    layer = partial(Layer, height=2 * size, width=2 * size)
    blur = Map(upsample=False, height=grown.out_height, width=grown.out_width, channels=n_up)
    skip = Map(upsample=True, height=size, width=size, channels=3)
    leaky = Activation.LEAKY
    return Run(
        name=f"block of {n_in}, {n_up}, {n_out} channels",
        operations=[
            conv("up", grown, "x", rng, {"grown": 16}),
            fir("blur", blur, "grown", rng, {"blurred": 8}, noise=True, activation=leaky),
            conv(
                "conv", layer(n_in=n_up, n_out=n_out, padding=1), "blurred", rng,
                {"styled": 8, "coloured": 8}, noise=True, activation=leaky,
            ),
            fir("skip", skip, "colours", rng, {"below": 16}),
            conv(
                "rgb", layer(n_in=n_out, n_out=3, kernel=1), "coloured", rng, {"image": 16},
                residual="below",
            ),
        ],
        maps={"x": _signed(rng, 8, size, size, n_in), "colours": _signed(rng, 16, size, size, 3)},
    )  # fmt: skip


def training(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Forward through a ReLU6 that keeps its mask, back through transposed weights with the bias's gradient,
    sums of products with what came forward, and the gradient of weights from pixels as weights."""
    c, layer = config.array.columns, partial(Layer, height=3, width=4, kernel=1)
    forward = conv(
        "forward", layer(n_in=c, n_out=c + 3), "x", rng, {"h": 8}, mask="open",
        activation=Activation.RELU6, named_table="norm",
    )  # fmt: skip
    backward = conv(
        "backward", layer(n_in=3, n_out=c + 3, wide=True), "dy", rng, {"g": 16, "g8": 8},
        masked_by="open", reduce=Reduce(name="of bias", shift=4),
    )  # fmt: skip
    scale = conv(
        "scale", layer(n_in=c, n_out=c + 3), "x", rng, {"z": 16}, product="g",
        reduce=Reduce(name="of scale", shift=2, kind=Reduction.PRODUCT),
    )  # fmt: skip
    weights = conv(
        "weights", Layer(height=1, width=c + 3, n_in=12, n_out=c, kernel=1, wide=True), "gt", rng, {"dw": 16}
    )
    return Run(
        name="training",
        operations=[
            replace(forward, named_weights="w"),
            backward,
            scale,
            replace(weights, weights=PixelWeights(name="x", height=3, width=4)),
        ],
        maps={
            "x": _signed(rng, 8, 3, 4, c),
            "dy": _signed(rng, 16, 3, 4, 3),
            "gt": _signed(rng, 16, 1, c + 3, 12),
            "w": _signed(rng, 8, c + 3, c, 1, 1),
        },
    )


def masks(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Beside two readers, of one channel, of phases, of a filter's tiles, and beside a residual; sums of many
    jobs; weights in groups and in phases that have a name."""
    c = config.array.columns
    one = Layer(height=5, width=7, n_in=2, n_out=1, padding=1)
    grown = Layer(height=2, width=3, n_in=2, n_out=c + 1, stride=2, transposed=True)
    blur = Map(upsample=False, height=5, width=7, channels=c + 1)
    grouped = Layer(height=5, width=7, n_in=8, n_out=2 * c, kernel=1, groups=2)
    table = {"named_table": "table", "activation": Activation.RELU}
    return Run(
        name="masks",
        operations=[
            conv("one", one, "x", rng, {"a": 8, "a16": 16}, mask="m1", reduce=Reduce(name="s1", shift=0)),
            replace(
                conv("grown", grown, "y", rng, {"b": 16}, mask="m2", reduce=Reduce(name="s2", shift=6)),
                named_weights="grown.w",
            ),
            fir("blur", blur, "b", rng, {"d": 8, "d16": 16}, masked_by="m0", mask="m3",
                reduce=Reduce(name="s3", shift=3)),
            replace(
                conv("grouped", grouped, "z", rng, {"e": 8}, residual="r", mask="m4", **table,
                     reduce=Reduce(name="s3b", shift=9)),
                named_weights="grouped.w",
            ),
        ],
        maps={
            "x": _signed(rng, 8, 5, 7, 2),
            "y": _signed(rng, 8, 2, 3, 2),
            "z": _signed(rng, 8, 5, 7, 8),
            "r": _signed(rng, 16, 5, 7, 2 * c),
            "m0": rng.integers(0, 2, (4, 6, c + 1)),
        },
    )  # fmt: skip


def by_channel(config: ConvolutionConfig, rng: np.random.Generator) -> Run:
    """Depthwise layers between convolutions, of narrow and wide maps that are planar, whose last tile is not
    full; strides, uneven padding, four phases with a residual and sums; nearest pixels; a single pixel."""
    n = config.array.columns + 1
    layer = partial(DepthwiseLayer, height=4, width=5, channels=n)
    up = layer(kernel=4, padding=1, wide=True, replicate=True, stride=2, transposed=True, channels=2)
    halved: dict[str, Any] = {"stride": 2, "out_height": 2, "out_width": 3}
    back: dict[str, Any] = {
        "height": 2, "width": 3, "out_height": 4, "out_width": 5, "stride": 2, "transposed": True,
    }  # fmt: skip
    one = DepthwiseLayer(height=1, width=1, channels=1, kernel=5, padding=2)
    return Run(
        name="depthwise layers",
        operations=[
            conv("expand", Layer(height=4, width=5, n_in=3, n_out=n, kernel=1), "x", rng, {"a": 8}),
            depthwise("same", layer(padding=1), "a", rng, {"b": 8, "b16": 16}, noise=True,
                      activation=Activation.RELU6),
            depthwise("half", layer(kernel=5, padding=1, **halved), "b", rng, {"d": 16}),
            depthwise("back", layer(kernel=3, padding=1, wide=True, **back), "d", rng, {"e": 8},
                      residual="b16", reduce=Reduce(name="s", shift=4)),
            conv("project", Layer(height=4, width=5, n_in=n, n_out=2, kernel=1), "e", rng, {"f": 16}),
            depthwise("larger", up, "f", rng, {"g": 8}),
            depthwise("one", one, "y", rng, {"h": 8}),
        ],
        maps={"x": _signed(rng, 8, 4, 5, 3), "y": _signed(rng, 8, 1, 1, 1)},
    )  # fmt: skip


def random_run(config: ConvolutionConfig, rng: np.random.Generator, name: str) -> Run:
    """A convolution, one that reads its output, filter and depthwise layer of the other one."""
    first = _random_layer(config, rng)
    bits = 16 if rng.random() < 0.3 else 8
    second = _random_layer(config, rng, after=first, wide=bits == 16)
    noise, out = bool(rng.random() < 0.5), (first.out_height, first.out_width, first.n_out)
    operations: list[Operation] = [
        conv("first", first, "x", rng, {"a": bits, "b": 16}, noise=noise, activation=_any(rng)),
        conv("second", second, "a", rng, {"c": 8}, residual="r", activation=_any(rng)),
    ]
    of_r = second.out_height, second.out_width, second.n_out
    maps = {
        "x": _signed(rng, 8 * first.n_planes, first.height, first.width, first.stored),
        "r": _signed(rng, 16, *of_r),
    }
    if min(out[:2]) > 1 and out[1] <= config.fir.row_beats:
        of = Map(upsample=bool(rng.random() < 0.5), height=out[0], width=out[1], channels=out[2])
        operations.append(fir("filtered", of, "b", rng, {"d": 8, "e": 16}, activation=_any(rng)))
    if out[1] <= config.depthwise.row_pixels:
        by_channel = _random_depthwise(rng, out)
        operations.append(depthwise("by channel", by_channel, "b", rng, {"f": 8}, activation=_any(rng)))
    return Run(name=name, operations=operations, maps=maps)


def _random_layer(
    config: ConvolutionConfig, rng: np.random.Generator, after: Layer | None = None, wide: bool = False
) -> Layer:
    """Any small layer that the core takes; ``after`` another one, on its output."""
    c, n_in = config.array.columns, after.n_out if after else 0
    while True:
        transposed, kernel = after is None and bool(rng.random() < 0.3), int(rng.choice([1, 3, 5]))
        stored = n_in or int(rng.integers(1, 2 * c + 2))
        try:
            layer = Layer(
                height=after.out_height if after else int(rng.integers(1, 8)),
                width=after.out_width if after else int(rng.integers(1, 8)),
                n_in=int(rng.integers(1, stored + 1)),
                n_out=int(rng.integers(1, 2 * c + 2)),
                kernel=kernel,
                stride=2 if transposed else int(rng.integers(1, 3)),
                padding=0 if transposed else kernel // 2,
                transposed=transposed,
                wide=wide if after else bool(rng.random() < 0.3),
                n_stored=stored,
            )
            bands_of(layer, config.array)
        except ValueError:
            continue
        return layer


def _random_depthwise(rng: np.random.Generator, size: tuple[int, int, int]) -> DepthwiseLayer:
    """Any layer that reads a map of 16 bits."""
    while True:
        kernel, transposed = int(rng.integers(1, 8)), bool(rng.random() < 0.3)
        try:
            return DepthwiseLayer(
                height=size[0],
                width=size[1],
                channels=size[2],
                kernel=kernel,
                stride=2 if transposed else int(rng.integers(1, 3)),
                padding=int(rng.integers(0, kernel)),
                transposed=transposed,
                wide=True,
                replicate=bool(rng.random() < 0.3),
            )
        except ValueError:
            continue


def _any(rng: np.random.Generator) -> Activation:
    return Activation(int(rng.integers(0, len(Activation))))


def _signed(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)


def conv(
    name: str, layer: Layer, source: str, rng: np.random.Generator, outputs: Mapping[str, int], **epilogue
) -> Conv:
    """A convolution with random weights; ``outputs``: bits of each map written."""
    shape = (layer.n_out, layer.n_in // layer.groups, layer.kernel, layer.kernel)
    n_products = shape[1] * layer.kernel**2
    return Conv(
        name=name,
        layer=layer,
        source=source,
        weights=rng.integers(-128, 128, shape).astype(np.int8),
        epilogue=random_epilogue(
            rng,
            (layer.out_height, layer.out_width, layer.n_out),
            outputs,
            8 * layer.n_planes + 4 + n_products.bit_length() // 2,
            **epilogue,
        ),
    )


def fir(
    name: str, of: Map, source: str, rng: np.random.Generator, outputs: Mapping[str, int], **epilogue
) -> Fir:
    """A filtered map; ``outputs``: bits of each map written."""
    shape = (*of.out_size, of.channels)
    return Fir(
        name=name, map=of, source=source, epilogue=random_epilogue(rng, shape, outputs, 15, **epilogue)
    )


def depthwise(
    name: str,
    layer: DepthwiseLayer,
    source: str,
    rng: np.random.Generator,
    outputs: Mapping[str, int],
    **epilogue,
) -> Depthwise:
    """A depthwise layer with random weights; ``outputs``: bits of each map written."""
    sum_bits = (16 if layer.wide else 8) + 4 + (layer.kernel**2).bit_length() // 2
    shape = (layer.out_height, layer.out_width, layer.channels)
    return Depthwise(
        name=name,
        layer=layer,
        source=source,
        weights=rng.integers(-128, 128, (layer.channels, layer.kernel, layer.kernel)).astype(np.int8),
        epilogue=random_epilogue(rng, shape, outputs, sum_bits, **epilogue),
    )


def random_epilogue(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    outputs: Mapping[str, int],
    sum_bits: int,
    *,
    noise: bool = False,
    residual: str | None = None,
    activation: Activation = Activation.NONE,
    **more: Any,
) -> Epilogue:
    """Numbers that neither vanish nor often saturate: 2^sum_bits becomes 2^18, half of a range."""
    n = shape[2]
    return Epilogue(
        multiplier=rng.integers(1 << 14, 1 << 16, n).astype(np.uint16),
        shift=sum_bits + 15 - 18,
        bias=rng.integers(-(1 << 17), 1 << 17, n).astype(np.int32),
        activation=activation,
        limit=1 << 18,
        noise=rng.integers(-(1 << 15), 1 << 15, shape[:2]).astype(np.int16) if noise else None,
        residual=residual,
        side_shift=2 if noise or residual else 0,
        **more,
        outputs=tuple(
            Output(
                name=name,
                bits=bits,
                scale=rng.integers(-(1 << 15), 1 << 15, n).astype(np.int16),
                shift=18 + 14 - (bits - 2),
            )
            for name, bits in outputs.items()
        ),
    )
