# SPDX-License-Identifier: MIT
"""Backbones, their layers at any resolution, and what each method trains. Needs no torch.

A backbone is a stem, inverted bottlenecks (1x1 expansion, depthwise convolution, 1x1 projection), a 1x1 "mix"
convolution, mean pooling and a classifier. TinyTL adds a lite residual module beside every block but the
first (its section 3.2): 2x2 mean pooling, a convolution in two groups with the block's stride, normalisation,
ReLU, a 1x1 convolution, normalisation, bilinear enlargement to the size of the block's output.
"""

from collections.abc import Iterator
from dataclasses import dataclass

GROUP_CHANNELS = 8
"""Channels that share a mean and a variance in group normalisation."""
NORM_EPSILON = 1e-3
STANDARDISATION_EPSILON = 1e-5
LITE_GROUPS = 2


@dataclass(frozen=True, slots=True)
class Block:
    """One inverted bottleneck."""

    c_in: int
    c_out: int
    expansion: int
    """Expanded channels over ``c_in``; 1 has no expansion convolution."""
    kernel: int
    stride: int

    @property
    def c_expanded(self) -> int:
        """Channels of the depthwise convolution."""
        return self.c_in * self.expansion

    @property
    def has_shortcut(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.c_in == self.c_out


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A network; ``dataclasses.replace`` makes variants.

    ValueError where a number of channels is no multiple of 8, or a choice is unknown.
    """

    name: str
    blocks: tuple[Block, ...]
    n_classes: int
    c_mix: int = 1280
    norm: str = "group"
    """``group``: group normalisation, and convolution weights standardised; ``affine``: a frozen batch norm,
    that is y = weight x + bias for each channel."""
    padding: str = "symmetric"
    """``symmetric``: k // 2 zeros on all sides; ``tensorflow``: the fewest, the odd one after."""
    lite: bool = True
    """Whether the lite residual modules are there."""
    without_lite: frozenset[int] = frozenset()
    """Blocks that have none all the same; the first one never has."""

    def __post_init__(self) -> None:
        if self.norm not in ("group", "affine"):
            raise ValueError(f"norm must be group or affine, not {self.norm!r}")
        if self.padding not in ("symmetric", "tensorflow"):
            raise ValueError(f"padding must be symmetric or tensorflow, not {self.padding!r}")
        if self.n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, not {self.n_classes}")
        if not self.blocks or self.blocks[0].expansion != 1:
            raise ValueError("the first block must have expansion 1")
        for c in [self.c_mix, *(c for block in self.blocks for c in (block.c_in, block.c_out))]:
            if c % GROUP_CHANNELS:
                raise ValueError(f"channels must be multiples of {GROUP_CHANNELS}, not {c}")

    def has_lite(self, index: int) -> bool:
        """Whether block ``index`` has a lite module."""
        return self.lite and index > 0 and index not in self.without_lite

    def lite_kernel(self, index: int) -> int:
        """5, or 3 where the pooled map of block ``index`` is below 5 for pictures of 256 pixels."""
        size = 128
        for block in self.blocks[:index]:
            size //= block.stride
        return 3 if size // 2 < 5 else 5


def _blocks(c_stem: int, stages: list[tuple[int, int, list[tuple[int, int]]]]) -> tuple[Block, ...]:
    """Stages are (channels, stride of the first block, [(expansion, kernel), ...])."""
    blocks, c_in = [], c_stem
    for c_out, stride, shapes in stages:
        for i, (expansion, kernel) in enumerate(shapes):
            blocks.append(Block(c_in, c_out, expansion, kernel, 1 if i else stride))
            c_in = c_out
    return tuple(blocks)


PROXYLESS_MOBILE = Backbone(
    name="proxylessnas-mobile",
    n_classes=1000,
    blocks=_blocks(
        32,
        [
            (16, 1, [(1, 3)]),
            (32, 2, [(3, 5), (3, 3)]),
            (40, 2, [(3, 7), (3, 3), (3, 5), (3, 5)]),
            (80, 2, [(6, 7), (3, 5), (3, 5), (3, 5)]),
            (96, 1, [(6, 5), (3, 5), (3, 5), (3, 5)]),
            (192, 2, [(6, 7), (6, 7), (3, 7), (3, 7)]),
            (320, 1, [(6, 7)]),
        ],
    ),
)
"""ProxylessNAS-Mobile (Cai et al., ICLR 2019): TinyTL's backbone."""

EFFICIENTNET_LITE0 = Backbone(
    name="efficientnet-lite0",
    n_classes=1000,
    norm="affine",
    padding="tensorflow",
    lite=False,
    blocks=_blocks(
        32,
        [
            (16, 1, [(1, 3)]),
            (24, 2, [(6, 3)] * 2),
            (40, 2, [(6, 5)] * 2),
            (80, 2, [(6, 3)] * 3),
            (112, 1, [(6, 5)] * 3),
            (192, 2, [(6, 5)] * 4),
            (320, 1, [(6, 3)]),
        ],
    ),
)
"""Tan and Le (ICML 2019) without squeeze-and-excitation, with ReLU6; batch norm frozen."""

BACKBONES = {backbone.name: backbone for backbone in (PROXYLESS_MOBILE, EFFICIENTNET_LITE0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operation on one picture. Maps are square.

    ``kind`` is conv, norm, affine, act, avgpool2, bilinear_up or linear; ``part`` is main, lite or head.
    """

    name: str
    part: str
    kind: str
    block: int
    """Index of the block, -1 for the stem, the number of blocks for what follows them."""
    c_in: int
    c_out: int
    h_in: int
    h_out: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1

    @property
    def n_in(self) -> int:
        """Elements read."""
        return self.c_in * self.h_in**2

    @property
    def n_out(self) -> int:
        """Elements written."""
        return self.c_out * self.h_out**2

    @property
    def n_weights(self) -> int:
        """Weights without biases: of a norm, its scales."""
        if self.kind in ("conv", "linear"):
            return self.c_out * self.c_in // self.groups * self.kernel**2
        return self.c_out if self.kind in ("norm", "affine") else 0

    @property
    def n_biases(self) -> int:
        """Convolutions have none: the norm behind them has."""
        return self.c_out if self.kind in ("norm", "affine", "linear") else 0

    @property
    def n_macs(self) -> int:
        """Multiplications of the forward pass: products of convolutions, four a pixel enlarged bilinearly."""
        if self.kind in ("conv", "linear"):
            return self.n_weights * self.h_out**2
        return 4 * self.n_out if self.kind == "bilinear_up" else 0


def layers(backbone: Backbone, resolution: int) -> list[Layer]:
    """All layers in forward order, a block's lite module after its main branch.

    ``resolution``: side of the pictures in pixels, at least 64 with lite modules, else 32; ValueError below.
    Mean pooling before the classifier is no layer of its own.
    """
    check_resolution(backbone, resolution)
    found: list[Layer] = []
    h = resolution

    def unit(
        name: str, block: int, c_in: int, c_out: int, k: int, stride: int, groups: int, act: bool
    ) -> int:
        """Convolution, norm and, where asked for, ReLU6; returns the side of its output."""
        h_out = (h - 1) // stride + 1  # for both kinds of padding
        found.append(Layer(name=name, part="main", kind="conv", block=block, c_in=c_in, c_out=c_out,
                           h_in=h, h_out=h_out, kernel=k, stride=stride, groups=groups))  # fmt: skip
        found.append(_norm(backbone.norm, f"{name}.gn", "main", block, c_out, h_out))
        if act:
            found.append(_same("act", f"{name}.act", "main", block, c_out, h_out))
        return h_out

    h = unit("stem", -1, 3, backbone.blocks[0].c_in, 3, 2, 1, True)
    for i, block in enumerate(backbone.blocks):
        h_block, wide = h, block.c_expanded
        if block.expansion > 1:
            unit(f"b{i}.expand", i, block.c_in, wide, 1, 1, 1, True)
        h = unit(f"b{i}.dw", i, wide, wide, block.kernel, block.stride, wide, True)
        unit(f"b{i}.project", i, wide, block.c_out, 1, 1, 1, False)
        if backbone.has_lite(i):
            found += _lite_layers(f"b{i}.lite", i, block, backbone.lite_kernel(i), h_block, h)
    last = len(backbone.blocks)
    unit("mix", last, backbone.blocks[-1].c_out, backbone.c_mix, 1, 1, 1, True)
    found.append(Layer(name="classifier", part="head", kind="linear", block=last, c_in=backbone.c_mix,
                       c_out=backbone.n_classes, h_in=1, h_out=1, kernel=1))  # fmt: skip
    return found


def check_resolution(backbone: Backbone, resolution: int) -> None:
    """ValueError where a map would vanish."""
    least = 64 if backbone.lite else 32
    if resolution < least:
        raise ValueError(f"resolution must be at least {least} pixels, not {resolution}")


def _lite_layers(name: str, index: int, block: Block, kernel: int, h: int, h_out: int) -> list[Layer]:
    c, c_out, pooled = block.c_in, block.c_out, h // 2
    small = (pooled - 1) // block.stride + 1

    def layer(kind: str, what: str, c_in: int, c_out: int, h_in: int, h_out: int, **more: int) -> Layer:
        return Layer(name=f"{name}.{what}", part="lite", kind=kind, block=index, c_in=c_in, c_out=c_out,
                     h_in=h_in, h_out=h_out, **more)  # fmt: skip

    return [
        layer("avgpool2", "pool", c, c, h, pooled, kernel=2, stride=2, groups=c),
        layer("conv", "conv1", c, c, pooled, small, kernel=kernel, stride=block.stride, groups=LITE_GROUPS),
        _norm("group", f"{name}.gn1", "lite", index, c, small),
        _same("act", f"{name}.act", "lite", index, c, small),
        layer("conv", "conv2", c, c_out, small, small, kernel=1),
        _norm("group", f"{name}.gn2", "lite", index, c_out, small),
        layer("bilinear_up", "up", c_out, c_out, small, h_out, kernel=2, groups=c_out),
    ]


def _norm(kind: str, name: str, part: str, block: int, c: int, h: int) -> Layer:
    if kind == "group":
        return _same("norm", name, part, block, c, h, groups=c // GROUP_CHANNELS)
    return _same("affine", name, part, block, c, h, groups=c)


def _same(kind: str, name: str, part: str, block: int, c: int, h: int, groups: int = 1) -> Layer:
    return Layer(
        name=name, part=part, kind=kind, block=block, c_in=c, c_out=c, h_in=h, h_out=h, groups=groups
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """What is trained beside the classifier, which always is (TinyTL's Table 2)."""

    name: str
    main_biases: bool = False
    norms: bool = False
    """Scales and biases of all norms."""
    lite_weights: bool = False
    lite_biases: bool = False
    """Those of the first norm of a lite module."""
    last_lite_biases: bool = False
    """Those of its second norm, which the bias of the main branch makes redundant."""
    convolutions: bool = False

    def trains(self, layer: Layer) -> tuple[bool, bool]:
        """Whether the layer's weight and its bias are trained."""
        if layer.kind == "linear":
            return True, True
        if layer.kind == "conv":
            return (self.lite_weights if layer.part == "lite" else self.convolutions), False
        if layer.kind not in ("norm", "affine"):
            return False, False
        if layer.part == "main":
            return self.norms, self.norms or self.main_biases
        biases = self.last_lite_biases if layer.name.endswith("gn2") else self.lite_biases
        return self.norms or self.lite_weights, self.norms or biases


METHODS = {
    method.name: method
    for method in (
        Method(name="last"),
        Method(name="bias", main_biases=True, lite_biases=True, last_lite_biases=True),
        Method(name="lite", lite_weights=True, lite_biases=True, last_lite_biases=True),
        Method(name="lite+bias", main_biases=True, lite_weights=True, lite_biases=True),
        Method(name="norm+last", norms=True),
        Method(name="full", norms=True, lite_weights=True, convolutions=True),
    )
}
"""FT-Last, TinyTL-B, TinyTL-L, TinyTL-L+B, FT-Norm+Last and FT-Full."""


def method(name: str) -> Method:
    """By name; ValueError naming all of them."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return METHODS[name]


def n_parameters(backbone: Backbone) -> int:
    """Weights and biases of all layers."""
    return sum(layer.n_weights + layer.n_biases for layer in layers(backbone, 224))


def n_trained(backbone: Backbone, method: Method) -> int:
    """Parameters that ``method`` trains."""
    total = 0
    for layer in layers(backbone, 224):
        weight, bias = method.trains(layer)
        total += layer.n_weights * weight + layer.n_biases * bias
    return total


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over one layer of a training step: fwd, dgrad, wgrad or bgrad."""

    layer: Layer
    kind: str

    @property
    def n_macs(self) -> int:
        """Multiplications on one picture; of a norm's scales, one an element."""
        if self.kind == "bgrad":
            return 0
        if self.kind == "wgrad" and self.layer.kind in ("norm", "affine"):
            return self.layer.n_in
        return self.layer.n_macs


def passes(backbone: Backbone, method: Method, resolution: int) -> Iterator[Pass]:
    """All passes of a training step, layer by layer in forward order.

    A gradient of a layer's input is needed only where something before the layer is trained.
    """
    before = False  # anything trained before the current block or layer of the main branch?
    at_block: dict[int, bool] = {}
    inside = False
    for layer in layers(backbone, resolution):
        at_block.setdefault(layer.block, before)
        if layer.part == "lite":
            inside = at_block[layer.block] if layer.kind == "avgpool2" else inside
            upstream = inside
        else:
            upstream = before
        yield Pass(layer, "fwd")
        weight, bias = method.trains(layer)
        for needed, kind in ((upstream, "dgrad"), (weight, "wgrad"), (bias, "bgrad")):
            if needed:
                yield Pass(layer, kind)
        before = before or weight or bias
        inside = inside or weight or bias
