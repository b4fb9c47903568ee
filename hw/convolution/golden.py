# SPDX-License-Identifier: MIT
"""Bit-exact model of the convolution core: operations on maps, composed of its blocks' models."""

from collections.abc import Mapping, Sequence

import torch

from hw.depthwise.golden import depthwise
from hw.epilogue.golden import epilogue
from hw.fir.config import FirConfig
from hw.fir.golden import filtered
from hw.systolic.golden import convolution

from .operations import FIR_OUT_BITS, FIR_SOURCE_BITS, Conv, Depthwise, MapShape, Operation, checked

ANY_MAP = FirConfig(
    lanes=64, element_bits=FIR_SOURCE_BITS, out_bits=FIR_OUT_BITS, row_beats=65_536, max_channels=4096,
    max_size=8193,
)  # fmt: skip
"""Tiles and strips do not change the values of a filtered map."""

Maps = Mapping[str, torch.Tensor]


def run(operations: Sequence[Operation], maps: Maps) -> dict[str, torch.Tensor]:
    """All maps, those given and those that ``operations`` write, in order.

    Parameters
    ----------
    maps : int64[height, width, channels] by name

    Raises
    ------
    TypeError, ValueError
        See :func:`.operations.checked`; a given map of another dtype or size, an element out of range.
    """
    shapes = checked(operations, maps)
    known = dict(maps)
    for name in maps.keys() & shapes.keys():
        check_map(name, known[name], shapes[name])
    for operation in operations:
        known |= outputs(operation, sums(operation, known[operation.source]), known)
    return known


def check_map(name: str, value: torch.Tensor, shape: MapShape) -> None:
    """TypeError or ValueError where the map is not what its reader needs."""
    size, bound = [shape.height, shape.width, shape.channels], 1 << (shape.bits - 1)
    if value.dtype != torch.int64 or list(value.shape) != size:
        raise TypeError(f"map {name!r} must be int64{size}, not {value.dtype}{list(value.shape)}")
    if not (-bound <= int(value.min()) and int(value.max()) < bound):
        raise ValueError(f"map {name!r} must be in {-bound}..{bound - 1}")


def sums(operation: Operation, source: torch.Tensor) -> torch.Tensor:
    """What array, filter or depthwise unit send to the epilogue: int64[height, width, channels], at most 32
    signed bits."""
    if isinstance(operation, Conv):
        return convolution(source, torch.from_numpy(operation.weights).long(), operation.layer)
    if isinstance(operation, Depthwise):
        return depthwise(source, torch.from_numpy(operation.weights).long(), operation.layer)
    return filtered(source, operation.map, ANY_MAP)


def outputs(operation: Operation, x: torch.Tensor, maps: Maps) -> dict[str, torch.Tensor]:
    """The maps that the epilogue writes from the sums ``x``."""
    e = operation.epilogue
    side = None
    if e.noise is not None:
        side = torch.from_numpy(e.noise).long()[..., None]
    elif e.residual is not None:
        side = maps[e.residual]
    made = epilogue(x, e.job(), e.table(), side)
    return {output.name: value for output, value in zip(e.outputs, made.maps, strict=True)}
