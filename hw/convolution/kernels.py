# SPDX-License-Identifier: MIT
"""From kernels of training to their jobs: what each reads, writes, and in which order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hw.epilogue.config import SUM_BYTES, SUMS, TABLE_BEATS, TABLE_BITS
from hw.training.config import GROUP, Image, NormGamma
from hw.training.config import Job as KernelJob
from hw.training.cycles import Timed
from hw.training.layouts import job_fields
from hw.training.operations import (
    Gradient,
    KernelOperation,
    Normalise,
    NormaliseBackward,
    NormaliseGamma,
    Update,
)

from .lists import ListPlace, WeightList
from .maps import Place
from .walk import Walk

WORD_BYTES, MASTER_BYTES, FIELD_BYTES = 4, 8, TABLE_BITS // 8
BIAS_FIELD, SCALE_FIELD = 1, 3
"""Of a table's entry, see :meth:`hw.epilogue.config.Table.words`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One job of the training unit."""

    fields: dict[str, Any]
    """As :func:`hw.training.layouts.job_layout` has them."""
    timed: Timed
    sums: Walk
    words: Walk
    """What it reads from each of its two ports."""
    outputs: tuple[tuple[int, Walk], ...]
    """What it writes: reader, walk."""


def tasks(
    operation: KernelOperation, places: Mapping[str, Place], lists: Mapping[str, ListPlace], lanes: int
) -> Iterator[Task]:
    """The jobs of an operation, with maps and lists where they lie.

    ValueError where an image is for weights that are not rows of a plain layer, all of them used.
    """
    match operation:
        case Normalise():
            yield _norm(operation, lists, lanes)
        case NormaliseBackward():
            table, side = (_fields(lists[name], *of, lanes) for name, of in (
                (operation.table, (0, 3)), (operation.side_table, (SCALE_FIELD, 1)),
            ))  # fmt: skip
            # In turn, as each writer's next walk waits until the one before has ended.
            outputs = [
                (reader, walk) for both in zip(table, side, strict=True) for reader, walk in enumerate(both)
            ]
            yield _of_state(operation, operation.job, lists, outputs)
        case NormaliseGamma():
            made = _line(lists[operation.gradient].address, operation.channels, WORD_BYTES)
            yield _of_state(operation, NormGamma(), lists, [(0, made)])
        case _:
            yield from _updates(operation, places, lists, lanes)


def _task(
    job: KernelJob, count: int, sums: Walk, words: Walk, outputs: list[tuple[int, Walk]], **how: bool
) -> Task:
    fields = job_fields(job, count=count, **how)
    timed = Timed(
        kernel=fields["kernel"], count=count, halves=fields["halves"], image=fields.get("image", Image.NONE)
    )
    return Task(fields=fields, timed=timed, sums=sums, words=words, outputs=tuple(outputs))


# ---- norms


def _norm(of: Normalise, lists: Mapping[str, ListPlace], lanes: int) -> Task:
    """Words of gamma and beta in turn, from two lists as far apart as they are."""
    beta = lists[of.beta].address
    gamma = beta if of.gamma is None else lists[of.gamma].address
    words = Walk(
        base=gamma,
        n_rows=of.channels,
        row_stride=MASTER_BYTES,
        n_columns=1 if of.gamma is None else 2,
        column_stride=beta - gamma,
        n_bytes=WORD_BYTES,
    )
    state = _line(lists[of.state].address, 2 * of.channels, WORD_BYTES)
    first, *rest = [(0, walk) for walk in _fields(lists[of.table], 0, 3, lanes)]
    return _task(
        of.job, of.channels // GROUP, _pairs_of_sums(lists[of.sums]), words, [first, (1, state), *rest],
        plain=of.gamma is None,
    )  # fmt: skip


def _of_state(
    of: NormaliseBackward | NormaliseGamma,
    job: KernelJob,
    lists: Mapping[str, ListPlace],
    outputs: list[tuple[int, Walk]],
) -> Task:
    state = _line(lists[of.state].address, 2 * of.channels, WORD_BYTES)
    return _task(job, of.channels // GROUP, _pairs_of_sums(lists[of.sums]), state, outputs)


def _pairs_of_sums(of: ListPlace) -> Walk:
    """Words of both sums of each channel."""
    return _line(of.address, of.of.shape[0] * SUMS * SUM_BYTES // WORD_BYTES, WORD_BYTES)


def _fields(of: ListPlace, first: int, n: int, lanes: int) -> list[Walk]:
    """Words of two channels, of ``n`` fields of a table from ``first`` on: whole tiles, then the rest."""
    channels = of.of.shape[1]
    field_bytes, whole = lanes * FIELD_BYTES, channels // lanes
    made = []
    for tile, n_tiles, n_lanes in ((0, whole, lanes), (whole, 1, channels - whole * lanes)):
        if n_tiles and n_lanes:
            made.append(
                Walk(
                    base=of.address + (tile * TABLE_BEATS + first) * field_bytes,
                    n_tiles=n_tiles,
                    tile_stride=TABLE_BEATS * field_bytes,
                    n_rows=n_lanes // 2,
                    row_stride=WORD_BYTES,
                    n_columns=n,
                    column_stride=field_bytes,
                    n_bytes=WORD_BYTES,
                )
            )
    return made


# ---- updates


def _updates(
    of: Update, places: Mapping[str, Place], lists: Mapping[str, ListPlace], lanes: int
) -> Iterator[Task]:
    master = lists[of.master].address
    if of.gradient_from == Gradient.MAP:
        yield from _of_maps(of, places, lists, lanes)
        return
    (channels,) = of.shape
    stride = SUMS * SUM_BYTES if of.gradient_from == Gradient.SUMS else WORD_BYTES
    gradient = _line(lists[of.gradients[0]].address, channels, stride, WORD_BYTES)
    masters = _line(master, channels, MASTER_BYTES)
    image: list[Walk] = []
    if of.image is not None:
        of_table = (BIAS_FIELD, 2) if of.job.image == Image.BIAS else (SCALE_FIELD, 1)
        image = _fields(lists[of.image], *of_table, lanes)
    yield _task(of.job, channels, gradient, masters, [(0, masters), *((1, walk) for walk in image)])


def _of_maps(
    of: Update, places: Mapping[str, Place], lists: Mapping[str, ListPlace], lanes: int
) -> Iterator[Task]:
    """A job for each row of each tile of channels; masters lie row by row, pixel by pixel."""
    height, width, channels = of.shape
    for row in range(height):
        name = of.gradients[row if len(of.gradients) > 1 else 0]
        place, y = places[name], row if len(of.gradients) == 1 else 0
        for first in range(0, channels, lanes):
            n_lanes = min(lanes, channels - first)
            gradient = Walk(
                base=place.address + first // lanes * place.tile_bytes + y * place.row_bytes,
                n_rows=width,
                row_stride=place.pixel_bytes,
                n_columns=n_lanes // 2,
                column_stride=WORD_BYTES,
                n_bytes=WORD_BYTES,
            )
            masters = Walk(
                base=lists[of.master].address + (row * width * channels + first) * MASTER_BYTES,
                n_rows=width,
                row_stride=channels * MASTER_BYTES,
                n_columns=n_lanes,
                column_stride=MASTER_BYTES,
                n_bytes=MASTER_BYTES,
            )
            outputs = [(0, masters)]
            if of.image is not None:
                outputs.append((1, _rows(of, lists[of.image], row, first, n_lanes)))
            yield _task(of.job, width * n_lanes, gradient, masters, outputs, halves=True)


def _rows(of: Update, place: ListPlace, tap: int, first: int, n_lanes: int) -> Walk:
    """Words of four outputs from ``first`` on, of one tap's rows of weights, input by input."""
    weights = place.of
    taps, n_in, n_out = of.shape
    if not isinstance(weights, WeightList) or weights.layer.groups > 1 or weights.layer.transposed:
        raise ValueError(f"{of.name}: image {weights.name!r} must be weights of a plain layer, of one group")
    layer = weights.layer
    if (taps, n_in, n_out) != (layer.kernel**2, layer.n_in, layer.n_out) or weights.shape[:2] != (
        n_out,
        n_in,
    ):
        raise ValueError(f"{of.name}: shape must be that of the layer's weights, not {list(of.shape)}")
    at = place.at[first, :, tap // layer.kernel, tap % layer.kernel]
    return Walk(
        base=place.address + int(at[0]),
        n_rows=n_in,
        row_stride=int(at[1] - at[0]) if n_in > 1 else 0,
        n_columns=n_lanes // 4,
        column_stride=WORD_BYTES,
        n_bytes=WORD_BYTES,
    )


def _line(address: int, n: int, stride: int, n_bytes: int = 0) -> Walk:
    """Elements in a row; they fill it unless ``n_bytes`` says how long they are."""
    return Walk(base=address, n_columns=n, column_stride=stride, n_bytes=n_bytes or stride)
