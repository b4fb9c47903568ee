# SPDX-License-Identifier: MIT
"""What the convolution core runs: operations that read maps and write maps, one after the other.

Imports numpy only. :mod:`.golden` computes them, :mod:`.program` lowers them to commands.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import SUM_BITS, Activation, Job, Reader, Reduction, Side, Table
from hw.epilogue.lists import MemoryList, sums_list, table_list
from hw.fir.config import Map
from hw.loss.config import MAX_CLASSES, MIN_CLASSES, SCORE_BITS
from hw.loss.config import Job as LossJob
from hw.systolic.descriptor import Layer
from hw.training.operations import (
    Gradient,
    KernelOperation,
    Normalise,
    NormaliseBackward,
    NormaliseGamma,
    Update,
)

from .lists import label_list, merged, weight_list

MAX_OUTPUTS = 2
MAX_REDUCED_PIXELS = (1 << (SUM_BITS - 1 - 30)) - 1
"""Pixels whose products, each of at most 2^30, a sum surely holds."""
MAX_UPDATE_PIXELS = (1 << 16) - 1
"""Pixels whose values of 16 bits surely have a sum of 32."""
FIR_SOURCE_BITS, FIR_OUT_BITS = 16, 18
"""Element of a filtered map, and of the filter's sum: four times as large at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapShape:
    """Size and width of a map of signed integers."""

    height: int
    width: int
    channels: int
    bits: int
    """8 or 16, or 1, of a mask: 0 or 1."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest element."""
        return (0, 1) if self.bits == 1 else (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """A map written for one reader: rnd(v scale[c], shift), saturated to ``bits``."""

    name: str
    bits: int
    """8 or 16."""
    scale: NDArray[np.int16]
    """int16[channels]"""
    shift: int
    """0..39"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduce:
    """For each channel sums over all pixels of r = rnd(v, shift), saturated to 16 bits: of r, and of r r, or
    of r times the map that the epilogue calls ``product``. A list int64[channels, 2]."""

    name: str
    shift: int
    """0..23"""
    kind: Reduction = Reduction.SQUARE


@dataclass(frozen=True, kw_only=True, eq=False)
class Epilogue:
    """What becomes of the sums x of an operation; see :mod:`hw.epilogue` for the equations.

    t = rnd(x multiplier[c], shift);  u = t + bias[c] + (side << side_shift);  v = activation(u)

    At most one of ``noise``, ``residual``, ``masked_by`` and ``product`` is given.
    """

    multiplier: NDArray[np.uint16]
    """uint16[channels]"""
    shift: int
    """0..47"""
    bias: NDArray[np.int32]
    """int32[channels], of 24 bits"""
    outputs: tuple[Output, ...]
    """One or two, of different names."""
    activation: Activation = Activation.NONE
    limit: int = 0
    """Upper bound of RELU6; 0..2^23 - 1."""
    noise: NDArray[np.int16] | None = None
    """int16[height, width], the same for every channel."""
    residual: str | None = None
    """Name of a map of 16 bits, as large as the output."""
    side_shift: int = 0
    """Of noise or residual; 0..15."""
    masked_by: str | None = None
    """Name of a mask as large as the output: v is 0 where it is 0."""
    product: str | None = None
    """Name of a map of 16 bits, as large as the output, which only ``reduce`` sees."""
    mask: str | None = None
    """Name of the mask that is written: where a gradient passes the activation."""
    reduce: Reduce | None = None
    named_table: str | None = None
    """Name of a list that holds multiplier, bias and scales, and begins with those given here; see
    :class:`.lists.TableList`. Others may rewrite it."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.outputs) <= MAX_OUTPUTS:
            raise ValueError(f"outputs must be 1..{MAX_OUTPUTS}, not {len(self.outputs)}")
        names = [*(output.name for output in self.outputs), *([self.mask] if self.mask else [])]
        if len(set(names)) != len(names):
            raise ValueError(f"outputs must have names of their own, not {names}")
        sides = {"noise", "residual", "masked_by", "product"}
        given = sorted(name for name in sides if getattr(self, name) is not None)
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both be given")
        shape = (len(self.multiplier),)
        _check("multiplier", self.multiplier, np.uint16, shape)
        _check("bias", self.bias, np.int32, shape)
        for output in self.outputs:
            if output.bits not in (8, 16):
                raise ValueError(f"bits of {output.name} must be 8 or 16, not {output.bits}")
            _check(f"scale of {output.name}", output.scale, np.int16, shape)
        self.job()  # rejects what is out of range
        self.table()

    def job(self) -> Job:
        """The settings, for a map of any number of beats."""
        return Job(
            shift=self.shift,
            side=self.side,
            side_shift=self.side_shift,
            activation=self.activation,
            limit=self.limit,
            readers=tuple(Reader(shift=o.shift, wide=o.bits == 16) for o in self.outputs),
            mask=self.mask is not None,
            reduction=self.reduce.kind if self.reduce else Reduction.NONE,
            reduce_shift=self.reduce.shift if self.reduce else 0,
        )

    @property
    def side(self) -> Side:
        """Which of them is given."""
        if self.noise is not None:
            return Side.NOISE
        if self.residual is not None:
            return Side.RESIDUAL
        if self.masked_by is not None:
            return Side.MASK
        return Side.NONE if self.product is None else Side.PRODUCT

    @property
    def side_map(self) -> str | None:
        """Name of the map on the side."""
        return self.residual or self.masked_by or self.product

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        made: list[MemoryList] = []
        if self.named_table is not None:
            made.append(table_list(self.named_table, self.table()))
        if self.reduce is not None:
            made.append(sums_list(self.reduce.name, self.channels))
        return made

    def table(self) -> Table:
        """What differs by channel."""
        return Table(
            multiplier=self.multiplier.astype(np.int64),
            bias=self.bias.astype(np.int64),
            scales=np.stack([o.scale for o in self.outputs]).astype(np.int64),
        )

    @property
    def channels(self) -> int:
        """Of sums and outputs."""
        return len(self.multiplier)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelWeights:
    """A map of 8 bits as weights of a 1x1 convolution: pixel number p, of channel c, times input channel p,
    is for output channel c."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv:
    """A convolution: ``source`` of 8 bits (16 if ``layer.wide``), ``layer.stored`` channels."""

    name: str
    layer: Layer
    source: str
    weights: NDArray[np.int8] | PixelWeights
    """int8[n_out or more, n_in / groups or more, kernel, kernel]; the first of each group are used."""
    epilogue: Epilogue
    named_weights: str | None = None
    """Name of a list that holds the weights, and begins with those given here; see
    :class:`.lists.WeightList`. Others may rewrite it."""

    def __post_init__(self) -> None:
        layer = self.layer
        _check_epilogue(self.epilogue, self.out_shape)
        if isinstance(self.weights, PixelWeights):
            self._check_pixels(self.weights)
            return
        shape = (layer.n_out, layer.n_in // layer.groups)
        if self.named_weights is not None and self.weights.shape[:2] != shape:
            raise ValueError(f"named weights must be for {list(shape)}, not {list(self.weights.shape[:2])}")
        _check("weights", self.weights, np.int8, (*self.weights.shape[:2], layer.kernel, layer.kernel))
        n_out, n_in = len(self.weights), self.weights.shape[1] * layer.groups
        if n_out < layer.n_out or n_in < layer.n_in:
            raise ValueError(
                f"weights must be for {layer.n_out} outputs and {layer.n_in} inputs, not {n_out} and {n_in}"
            )

    def _check_pixels(self, of: PixelWeights) -> None:
        layer = self.layer
        if self.named_weights is not None:
            raise ValueError(f"named_weights must be None where weights are the map {of.name!r}")
        if layer.kernel != 1 or layer.groups != 1 or layer.transposed:
            raise ValueError(f"weights from the map {of.name!r} need a plain 1x1 layer, not {layer}")
        if of.height * of.width != layer.n_in:
            raise ValueError(
                f"weights must be of {layer.n_in} pixels, not the {of.height * of.width} of map {of.name!r}"
            )

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        made = self.epilogue.lists()
        if self.named_weights is not None:
            assert isinstance(self.weights, np.ndarray)
            made.append(weight_list(self.named_weights, self.weights, self.layer))
        return made

    @property
    def source_shape(self) -> MapShape:
        """What the layer reads."""
        layer = self.layer
        return MapShape(
            height=layer.height, width=layer.width, channels=layer.stored, bits=16 if layer.wide else 8
        )

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of sums and outputs."""
        return self.layer.out_height, self.layer.out_width, self.layer.n_out


@dataclass(frozen=True, kw_only=True, eq=False)
class Fir:
    """Blur or upsampling of a map of 16 bits."""

    name: str
    map: Map
    source: str
    epilogue: Epilogue

    def __post_init__(self) -> None:
        _check_epilogue(self.epilogue, self.out_shape)

    @property
    def source_shape(self) -> MapShape:
        """What the filter reads."""
        of = self.map
        return MapShape(height=of.height, width=of.width, channels=of.channels, bits=FIR_SOURCE_BITS)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return self.epilogue.lists()

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of sums and outputs."""
        return (*self.map.out_size, self.map.channels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Depthwise:
    """Every channel by itself: ``source`` of 8 bits (16 if ``layer.wide``)."""

    name: str
    layer: DepthwiseLayer
    source: str
    weights: NDArray[np.int8]
    """int8[channels, kernel, kernel]"""
    epilogue: Epilogue

    def __post_init__(self) -> None:
        layer = self.layer
        _check("weights", self.weights, np.int8, (layer.channels, layer.kernel, layer.kernel))
        _check_epilogue(self.epilogue, self.out_shape)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return self.epilogue.lists()

    @property
    def source_shape(self) -> MapShape:
        """What the layer reads."""
        layer = self.layer
        return MapShape(
            height=layer.height, width=layer.width, channels=layer.channels, bits=16 if layer.wide else 8
        )

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of sums and outputs."""
        return self.layer.out_height, self.layer.out_width, self.layer.channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Transposed:
    """Pixels and channels of a planar map of 8 or 16 bits exchanged: channel c of pixel number p becomes
    channel p of pixel c, in a single column: rows of one pixel, of which a convolution can take some."""

    name: str
    shape: MapShape
    """Of the source."""
    source: str
    epilogue: Epilogue

    def __post_init__(self) -> None:
        if self.shape.bits not in (8, 16):
            raise ValueError(f"bits of {self.source} must be 8 or 16, not {self.shape.bits}")
        _check_epilogue(self.epilogue, self.out_shape)

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return self.epilogue.lists()

    @property
    def source_shape(self) -> MapShape:
        """What is read."""
        return self.shape

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of sums and outputs."""
        return self.shape.channels, 1, self.shape.height * self.shape.width


@dataclass(frozen=True, kw_only=True, eq=False)
class LossGradient:
    """Gradient of cross entropy in a picture's scores, K channels of one pixel: p - target, unit 2^-15; see
    :func:`hw.loss.golden.loss_gradient`. K, 2..1,024, is the number of the epilogue's channels."""

    name: str
    source: str
    """Scores of 16 bits, planar; unit 2^-job.fraction_bits."""
    label: str
    """Name of a list uint16[1, 1], which is given: the picture's class, 0..K - 1."""
    job: LossJob
    """Targets, such as :func:`hw.loss.config.smoothed` makes."""
    epilogue: Epilogue

    def __post_init__(self) -> None:
        _check_epilogue(self.epilogue, self.out_shape)
        if not MIN_CLASSES <= self.n_classes <= MAX_CLASSES:
            raise ValueError(
                f"{self.name}: classes must be in {MIN_CLASSES}..{MAX_CLASSES}, not {self.n_classes}"
            )

    def lists(self) -> list[MemoryList]:
        """Those that are read or written."""
        return [*self.epilogue.lists(), label_list(self.label)]

    @property
    def n_classes(self) -> int:
        """K."""
        return self.epilogue.channels

    @property
    def source_shape(self) -> MapShape:
        """What is read."""
        return MapShape(height=1, width=1, channels=self.n_classes, bits=SCORE_BITS)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of sums and outputs."""
        return 1, 1, self.n_classes


SumsOperation = Conv | Fir | Depthwise | Transposed | LossGradient
"""What has sums that go through the epilogue."""
Operation = SumsOperation | KernelOperation


def output_shapes(operation: Operation) -> dict[str, MapShape]:
    """The maps that it writes."""
    if isinstance(operation, KernelOperation):
        return {}
    height, width, channels = operation.out_shape
    epilogue = operation.epilogue
    bits = {output.name: output.bits for output in epilogue.outputs}
    if epilogue.mask is not None:
        bits[epilogue.mask] = 1
    return {name: MapShape(height=height, width=width, channels=channels, bits=n) for name, n in bits.items()}


def read_shapes(operation: Operation) -> dict[str, MapShape]:
    """The maps that it reads: source, side, weights, or a gradient."""
    if isinstance(operation, KernelOperation):
        return _gradient(operation)
    shapes = {operation.source: operation.source_shape}
    height, width, channels = operation.out_shape
    epilogue = operation.epilogue
    if (name := epilogue.side_map) is not None:
        bits = 1 if epilogue.side == Side.MASK else 16
        shapes[name] = MapShape(height=height, width=width, channels=channels, bits=bits)
    if isinstance(operation, Conv) and isinstance(of := operation.weights, PixelWeights):
        shapes[of.name] = MapShape(height=of.height, width=of.width, channels=channels, bits=8)
    return shapes


def _gradient(operation: KernelOperation) -> dict[str, MapShape]:
    if not isinstance(operation, Update) or operation.gradient_from != Gradient.MAP:
        return {}
    height, width, channels = operation.map_shape
    return {name: MapShape(height=height, width=width, channels=channels, bits=16) for name in operation.maps}


def lists_of(operations: Sequence[Operation]) -> dict[str, MemoryList]:
    """All lists that have a name; ValueError where two operations want one differently, see
    :func:`.lists.merged`, or one updates weights that no other one has."""
    known = merged(of for operation in operations for of in operation.lists())
    for operation in operations:
        if isinstance(operation, Update) and operation.image is not None and operation.image not in known:
            raise ValueError(
                f"{operation.name}: image {operation.image!r} must be a list of another operation"
            )
    return known


def checked_lists(operations: Sequence[Operation], given: Collection[str]) -> dict[str, MemoryList]:
    """As :func:`lists_of`; ValueError also where a list is read that nobody gives, writes or begins, or where
    an update takes sums that may exceed 32 bits."""
    lists = lists_of(operations)
    known = {name for name, of in lists.items() if of.content is not None} | set(given)
    pixels: dict[str, int] = {}
    for operation in operations:
        made = _lists_made(operation)
        if isinstance(operation, SumsOperation):
            pixels |= dict.fromkeys(made, operation.out_shape[0] * operation.out_shape[1])
        elif isinstance(operation, Update) and operation.gradient_from == Gradient.SUMS:
            _check_pixels(operation.name, pixels.get(operation.gradients[0], 0))
        for of in operation.lists():
            if of.name not in known | made:
                raise ValueError(f"{operation.name}: list {of.name!r} is read before it is written")
        known |= made
    return lists


def _check_pixels(name: str, n_pixels: int) -> None:
    if n_pixels > MAX_UPDATE_PIXELS:
        raise ValueError(f"{name}: sums must be over at most {MAX_UPDATE_PIXELS} pixels, not {n_pixels}")


def _lists_made(operation: Operation) -> set[str]:
    """Lists that are written as a whole."""
    match operation:
        case Normalise():
            return {operation.state}
        case NormaliseGamma():
            return {operation.gradient}
        case Update() | NormaliseBackward():
            return set()
    return set() if operation.epilogue.reduce is None else {operation.epilogue.reduce.name}


def checked(operations: Sequence[Operation], given: Collection[str]) -> dict[str, MapShape]:
    """All maps, those ``given`` (as their first reader needs them) and those written, by name.

    ValueError naming operation and map where one is read before it is written, has another size or width
    than its reader needs, is written twice, is read both as the source of a convolution and by filter or
    side stream, whose layouts in memory differ, or has the name of a list.
    """
    known: dict[str, MapShape] = {}
    layouts: dict[str, str] = {}
    for operation in operations:
        for name, shape in read_shapes(operation).items():
            if name not in known and name not in given:
                raise ValueError(f"{operation.name}: map {name!r} is read before it is written")
            if known.setdefault(name, shape) != shape:
                raise ValueError(f"{operation.name}: map {name!r} must be {shape}, not {known[name]}")
        for name, layout in _layouts_read(operation):
            if layouts.setdefault(name, layout) != layout:
                raise ValueError(f"{operation.name}: map {name!r} is read as {layouts[name]} and {layout}")
        for name, shape in output_shapes(operation).items():
            if name in known or name in given:
                raise ValueError(f"{operation.name}: map {name!r} is written twice")
            known[name] = shape
    if both := sorted(known.keys() & lists_of(operations).keys()):
        raise ValueError(f"maps and lists must have names of their own, not {both[0]!r}")
    return known


def _layouts_read(operation: Operation) -> Iterator[tuple[str, str]]:
    if isinstance(operation, KernelOperation):
        yield from ((name, "planar") for name in _gradient(operation))
        return
    yield operation.source, "pixels" if isinstance(operation, Conv) else "planar"
    if (name := operation.epilogue.side_map) is not None:
        yield name, "planar"


def _check_epilogue(epilogue: Epilogue, out_shape: tuple[int, int, int]) -> None:
    if epilogue.channels != out_shape[2]:
        raise ValueError(f"multiplier must be for {out_shape[2]} channels, not {epilogue.channels}")
    if epilogue.noise is not None:
        _check("noise", epilogue.noise, np.int16, out_shape[:2])
    n_pixels = out_shape[0] * out_shape[1]
    if epilogue.reduce is not None and n_pixels > MAX_REDUCED_PIXELS:
        raise ValueError(f"reduced maps must have at most {MAX_REDUCED_PIXELS} pixels, not {n_pixels}")


def _check(name: str, value: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if value.dtype != dtype or value.shape != shape:
        raise TypeError(
            f"{name} must be {np.dtype(dtype)}{list(shape)}, not {value.dtype}{list(value.shape)}"
        )
