# SPDX-License-Identifier: MIT
"""What the convolution core runs: operations that read maps and write maps, one after the other.

Imports numpy only. :mod:`.golden` computes them, :mod:`.program` lowers them to commands.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Activation, Job, Reader, Side, Table
from hw.fir.config import Map
from hw.systolic.descriptor import Layer

MAX_OUTPUTS = 2
FIR_SOURCE_BITS, FIR_OUT_BITS = 16, 18
"""Element of a filtered map, and of the filter's sum: four times as large at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MapShape:
    """Size and width of a map of signed integers."""

    height: int
    width: int
    channels: int
    bits: int
    """8 or 16."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Epilogue:
    """What becomes of the sums x of an operation; see :mod:`hw.epilogue` for the equations.

    t = rnd(x multiplier[c], shift);  u = t + bias[c] + (side << side_shift);  v = activation(u)
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
    """Name of a map of 16 bits, as large as the output; not together with noise."""
    side_shift: int = 0
    """Of noise or residual; 0..15."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.outputs) <= MAX_OUTPUTS:
            raise ValueError(f"outputs must be 1..{MAX_OUTPUTS}, not {len(self.outputs)}")
        if len({output.name for output in self.outputs}) != len(self.outputs):
            raise ValueError(f"outputs must have names of their own, not {[o.name for o in self.outputs]}")
        if self.noise is not None and self.residual is not None:
            raise ValueError("noise and residual cannot both be given")
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
        side = Side.NOISE if self.noise is not None else Side.RESIDUAL if self.residual else Side.NONE
        return Job(
            shift=self.shift,
            side=side,
            side_shift=self.side_shift,
            activation=self.activation,
            limit=self.limit,
            readers=tuple(Reader(shift=o.shift, wide=o.bits == 16) for o in self.outputs),
        )

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv:
    """A convolution: ``source`` of 8 bits (16 if ``layer.wide``), ``layer.stored`` channels."""

    name: str
    layer: Layer
    source: str
    weights: NDArray[np.int8]
    """int8[n_out or more, n_in / groups or more, kernel, kernel]; the first of each group are used."""
    epilogue: Epilogue

    def __post_init__(self) -> None:
        layer = self.layer
        _check("weights", self.weights, np.int8, (*self.weights.shape[:2], layer.kernel, layer.kernel))
        n_out, n_in = len(self.weights), self.weights.shape[1] * layer.groups
        if n_out < layer.n_out or n_in < layer.n_in:
            raise ValueError(
                f"weights must be for {layer.n_out} outputs and {layer.n_in} inputs, not {n_out} and {n_in}"
            )
        _check_epilogue(self.epilogue, self.out_shape)

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


Operation = Conv | Fir | Depthwise


def output_shapes(operation: Operation) -> dict[str, MapShape]:
    """The maps that it writes."""
    height, width, channels = operation.out_shape
    return {
        output.name: MapShape(height=height, width=width, channels=channels, bits=output.bits)
        for output in operation.epilogue.outputs
    }


def read_shapes(operation: Operation) -> dict[str, MapShape]:
    """The maps that it reads: source, residual."""
    shapes = {operation.source: operation.source_shape}
    if (name := operation.epilogue.residual) is not None:
        height, width, channels = operation.out_shape
        shapes[name] = MapShape(height=height, width=width, channels=channels, bits=16)
    return shapes


def checked(operations: Sequence[Operation], given: Collection[str]) -> dict[str, MapShape]:
    """All maps, those ``given`` (as their first reader needs them) and those written, by name.

    ValueError naming operation and map where one is read before it is written, has another size or width
    than its reader needs, is written twice, or is read both as the source of a convolution and by filter or
    side stream, whose layouts in memory differ.
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
    return known


def _layouts_read(operation: Operation) -> Iterator[tuple[str, str]]:
    yield operation.source, "pixels" if isinstance(operation, Conv) else "planar"
    if operation.epilogue.residual is not None:
        yield operation.epilogue.residual, "planar"


def _check_epilogue(epilogue: Epilogue, out_shape: tuple[int, int, int]) -> None:
    if epilogue.channels != out_shape[2]:
        raise ValueError(f"multiplier must be for {out_shape[2]} channels, not {epilogue.channels}")
    if epilogue.noise is not None:
        _check("noise", epilogue.noise, np.int16, out_shape[:2])


def _check(name: str, value: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    if value.dtype != dtype or value.shape != shape:
        raise TypeError(
            f"{name} must be {np.dtype(dtype)}{list(shape)}, not {value.dtype}{list(value.shape)}"
        )
