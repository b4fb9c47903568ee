# SPDX-License-Identifier: MIT
"""Bit-exact model of the convolution core: operations on maps, composed of its blocks' models."""

from collections.abc import Mapping, Sequence

import torch

from hw.depthwise.golden import depthwise
from hw.epilogue.config import Table
from hw.epilogue.golden import epilogue
from hw.fir.config import FirConfig
from hw.fir.golden import filtered
from hw.loss.config import LossConfig
from hw.loss.golden import loss_gradient
from hw.systolic.golden import convolution
from hw.training import golden as training
from hw.training.operations import KernelOperation

from .lists import check_list, initial
from .operations import (
    FIR_OUT_BITS,
    FIR_SOURCE_BITS,
    Conv,
    Depthwise,
    Epilogue,
    LossGradient,
    MapShape,
    Operation,
    PixelWeights,
    SumsOperation,
    Transposed,
    checked,
    checked_lists,
)

ANY_MAP = FirConfig(
    lanes=64, element_bits=FIR_SOURCE_BITS, out_bits=FIR_OUT_BITS, row_beats=65_536, max_channels=4096,
    max_size=8193,
)  # fmt: skip
"""Tiles and strips do not change the values of a filtered map."""

ANY_SCORES = LossConfig()
"""Nor do lanes those of a gradient."""

Maps = Mapping[str, torch.Tensor]


def run(operations: Sequence[Operation], maps: Maps) -> dict[str, torch.Tensor]:
    """All maps and lists, those given and those that ``operations`` write, in order.

    Parameters
    ----------
    maps : int64[height, width, channels] by name; and int64 of lists that begin with something else than the
        operations say

    Raises
    ------
    TypeError, ValueError
        See :func:`.operations.checked` and :func:`.operations.checked_lists`; a given map or list of another
        dtype or size, an element out of range.
    """
    shapes, lists = checked(operations, maps), checked_lists(operations, maps)
    known = {name: torch.from_numpy(initial(one)) for name, one in lists.items()} | dict(maps)
    for name in maps.keys() & shapes.keys():
        check_map(name, known[name], shapes[name])
    for name in maps.keys() & lists.keys():
        check_list(name, known[name].numpy(), lists[name])
    for operation in operations:
        if isinstance(operation, KernelOperation):
            known |= training.outputs(operation, known)
        else:
            known |= outputs(operation, sums(operation, known), known)
    return known


def check_map(name: str, value: torch.Tensor, shape: MapShape) -> None:
    """TypeError or ValueError where the map is not what its reader needs."""
    size, (low, high) = [shape.height, shape.width, shape.channels], shape.bounds
    if value.dtype != torch.int64 or list(value.shape) != size:
        raise TypeError(f"map {name!r} must be int64{size}, not {value.dtype}{list(value.shape)}")
    if not (low <= int(value.min()) and int(value.max()) <= high):
        raise ValueError(f"map {name!r} must be in {low}..{high}")


def sums(operation: SumsOperation, maps: Maps) -> torch.Tensor:
    """What array, filter, depthwise unit, transposer or loss unit send to the epilogue: int64[height, width,
    channels], at most 32 signed bits."""
    source = maps[operation.source]
    if isinstance(operation, Conv):
        return convolution(source, weights(operation, maps), operation.layer)
    if isinstance(operation, Depthwise):
        return depthwise(source, torch.from_numpy(operation.weights).long(), operation.layer)
    if isinstance(operation, Transposed):
        return source.flatten(end_dim=1).T[:, None]
    if isinstance(operation, LossGradient):
        return loss_gradient(source, maps[operation.label], operation.job, ANY_SCORES)
    return filtered(source, operation.map, ANY_MAP)


def weights(operation: Conv, maps: Maps) -> torch.Tensor:
    """int64[n_out, n_in / groups, kernel, kernel], wherever they come from."""
    if isinstance(of := operation.weights, PixelWeights):
        return maps[of.name].flatten(end_dim=1).T[..., None, None]
    if operation.named_weights is not None:
        return maps[operation.named_weights]
    return torch.from_numpy(of).long()


def outputs(operation: SumsOperation, x: torch.Tensor, maps: Maps) -> dict[str, torch.Tensor]:
    """The maps and sums that the epilogue writes from the sums ``x``."""
    e = operation.epilogue
    made = epilogue(x, e.job(), table(e, maps), side(e, maps))
    written = {output.name: value for output, value in zip(e.outputs, made.maps, strict=True)}
    if e.mask is not None:
        written[e.mask] = made.mask.long()
    if e.reduce is not None and made.sums is not None:
        written[e.reduce.name] = made.sums
    return written


def table(of: Epilogue, maps: Maps) -> Table:
    """Multiplier, bias and scales as they now are."""
    return of.table() if of.named_table is None else Table.of_words(maps[of.named_table].numpy())


def side(of: Epilogue, maps: Maps) -> torch.Tensor | None:
    """Noise, residual, mask or factor."""
    if of.noise is not None:
        return torch.from_numpy(of.noise).long()[..., None]
    return None if of.side_map is None else maps[of.side_map]
