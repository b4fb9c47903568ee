# SPDX-License-Identifier: MIT
"""From operations to commands and a memory image. Imports neither torch nor a simulator."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hw.depthwise.layer import phases
from hw.epilogue.config import MASK_READER, MAX_READERS, SUM_BYTES, SUMS, Job, Reader, Side
from hw.fir.config import Map
from hw.loss.config import LABEL_BITS
from hw.systolic.descriptor import Band, Work, bands_of, payload, weight_rows
from hw.systolic.layer import Layer, Phase
from hw.systolic.layout import ALIGN_BYTES
from hw.training.cycles import readers_of
from hw.training.operations import KernelOperation
from hw.transpose.config import Map as TransposedMap

from .commands import SideOf, Source, WeightsOf, bits_of, command_layouts, record
from .config import RECORD_BYTES, ConvolutionConfig
from .dispatch import Kind
from .kernels import tasks
from .lists import ListPlace, check_list, initial, label_list, placed
from .maps import Place, Rectangle, for_array, planar
from .operations import (
    Conv,
    Depthwise,
    Epilogue,
    Fir,
    LossGradient,
    MapShape,
    Operation,
    PixelWeights,
    SumsOperation,
    Transposed,
    checked,
    checked_lists,
)
from .walk import Walk
from .writer import Format
from .written import Written, WrittenSums, WrittenWords

MARGIN_BYTES = 256
"""Behind everything: an element's last words may be read beyond its list."""


Command = tuple[Kind, Any]
"""A command, and what the cycle model needs of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Operations, ready to run."""

    memory: np.ndarray
    """uint8[n]: commands, weights, tables, noise, lists, maps given, and room for those written."""
    base: int
    """Byte address of the first command."""
    commands: Sequence[Command]
    """In order; see :mod:`hw.convolution.cycles`."""
    places: Mapping[str, Place]
    """Where each map lies."""
    lists: Mapping[str, ListPlace]
    """Where each list that has a name lies."""
    written: Sequence[Written | WrittenSums | WrittenWords]
    """In order."""

    @property
    def n_commands(self) -> int:
        """Commands of the list."""
        return len(self.commands)

    @property
    def records(self) -> Walk:
        """Where they lie."""
        return _line(self.base, self.n_commands, RECORD_BYTES)


def lowered(
    operations: Sequence[Operation], maps: Mapping[str, np.ndarray], config: ConvolutionConfig
) -> Program:
    """Commands for all operations, each after the one before has written everything.

    Parameters
    ----------
    maps : int64[height, width, channels] of each map that is not written before it is read, and int64 of
        lists that begin with something else than the operations say

    Raises
    ------
    ValueError
        See :func:`hw.convolution.operations.checked` and ``checked_lists``; a given map or list of another
        size or range than its reader needs (one that nobody reads is left out); a layer, a filtered row, a
        table or a picture's classes larger than the core takes; a label that is no class; groups that do not
        fill whole tiles, nor masks of a map with noise or a residual.
    """
    return _Lowering(operations, maps, config).program()


class _Lowering:
    def __init__(
        self, operations: Sequence[Operation], maps: Mapping[str, np.ndarray], config: ConvolutionConfig
    ) -> None:
        self.operations, self.maps, self.config = operations, maps, config
        self.lanes = config.array.columns
        self.layouts = command_layouts(config)
        self.content: list[tuple[int, np.ndarray]] = []
        """Address and bytes of every list."""
        self.end = 0
        """First free byte."""
        self.records: list[bytes] = []
        self.commands: list[Command] = []
        self.written: list[Written | WrittenSums | WrittenWords] = []

    def program(self) -> Program:
        self.places, self.lists = self._places(), self._lists()
        for operation in self.operations:
            self._operation(operation)
            self._command(Kind.FENCE)
        base = self._list(np.frombuffer(b"".join(self.records), np.uint8))
        memory = np.zeros(self.end + MARGIN_BYTES, np.uint8)
        for address, content in self.content:
            memory[address : address + len(content)] = content
        for name, values in self.maps.items():
            if name in self.places:
                _check_map(name, values, self.places[name].shape)
                self.places[name].write(memory, values)
        for name, place in self.lists.items():
            content = self.maps.get(name, initial(place.of))
            check_list(name, content, place.of)
            place.write(memory, content)
        return Program(
            memory=memory,
            base=base,
            commands=self.commands,
            places=self.places,
            lists=self.lists,
            written=self.written,
        )

    # ---- memory

    def _room(self, n_bytes: int) -> int:
        address = self.end
        self.end += -(-n_bytes // ALIGN_BYTES) * ALIGN_BYTES
        return address

    def _list(self, content: np.ndarray) -> int:
        """Address of some bytes."""
        flat = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        address = self._room(len(flat))
        self.content.append((address, flat))
        return address

    def _places(self) -> dict[str, Place]:
        layers: dict[str, list[Layer]] = defaultdict(list)
        of_others = set()
        for operation in self.operations:
            if isinstance(operation, Conv):
                layers[operation.source].append(operation.layer)
            elif isinstance(operation, Depthwise | Transposed):
                of_others.add(operation.source)
        places = {}
        for name, shape in checked(self.operations, self.maps).items():
            if name in layers or (shape.bits == 8 and name not in of_others):
                place = for_array(self.end, shape, layers[name], self.config)
            else:
                place = planar(self.end, shape, self.config)
            self._room(place.n_bytes)
            places[name] = place
        return places

    def _lists(self) -> dict[str, ListPlace]:
        made = {}
        for name, of in checked_lists(self.operations, self.maps).items():
            made[name] = placed(of, self.end, self.config.array)
            self._room(made[name].n_bytes)
        return made

    # ---- commands

    def _command(self, kind: Kind, what: Any = None, **fields) -> None:
        self.commands.append((kind, what))
        self.records.append(record(kind, bits_of(self.layouts[kind], fields)))

    def _read(self, kind: Kind, walk: Walk, tag: int = 0) -> None:
        self._command(kind, (walk, tag), extra={"tag": tag}, walk=walk.fields)

    def _operation(self, operation: Operation) -> None:
        if not isinstance(operation, SumsOperation):
            self._kernel(operation)
            return
        epilogue = operation.epilogue
        self.noise = None if epilogue.noise is None else self._list(epilogue.noise.astype("<i2"))
        if isinstance(operation, LossGradient):
            self._check_picture(operation)
        beats = epilogue.table().beats(self.lanes)
        name = epilogue.named_table
        table = self._list(beats.astype("<u2")) if name is None else self.lists[name].address
        self._read(Kind.SIDE, _line(table, len(beats), 2 * self.lanes))
        self.n_tables = -(-epilogue.channels // self.lanes)
        """Entries that the next job loads."""
        Job(n_tables=self.n_tables).check(self.config.epilogue)
        if epilogue.mask and epilogue.side in (Side.NOISE, Side.RESIDUAL) and epilogue.channels % self.lanes:
            raise ValueError(
                f"{operation.name}: channels of a mask beside {epilogue.side.name} must be a multiple of "
                f"{self.lanes}, not {epilogue.channels}"
            )
        if isinstance(operation, Conv):
            self._conv(operation)
        elif isinstance(operation, Depthwise):
            self._depthwise(operation)
        elif isinstance(operation, Transposed):
            self._transposed(operation)
        elif isinstance(operation, LossGradient):
            self._loss(operation)
        else:
            self._fir(operation)
        if epilogue.reduce is not None:
            self._sums(epilogue.reduce.name, epilogue.channels)

    def _check_picture(self, operation: LossGradient) -> None:
        n_classes, most = operation.n_classes, self.config.max_classes
        if n_classes > most:
            raise ValueError(f"{operation.name}: classes must be at most {most}, not {n_classes}")
        labels = self.maps[operation.label]
        check_list(operation.label, labels, label_list(operation.label))
        label = int(labels[0, 0])
        if not 0 <= label < n_classes:
            raise ValueError(f"{operation.name}: label must be in 0..{n_classes - 1}, not {label}")

    def _kernel(self, operation: KernelOperation) -> None:
        for task in tasks(operation, self.places, self.lists, self.lanes):
            most = (1 << self.config.training.count_bits) - 1
            if task.timed.count > most:
                raise ValueError(f"{operation.name}: elements must be at most {most}, not {task.timed.count}")
            self._command(Kind.KERNEL, task.timed, **task.fields)
            self._read(Kind.WEIGHTS, task.sums, tag=WeightsOf.KERNEL)
            self._read(Kind.SIDE, task.words, tag=SideOf.KERNEL)
            for reader, walk in task.outputs:
                self._output(reader, Format.HALVES, 0, walk)
            self.written.append(WrittenWords(readers=readers_of(task.timed), outputs=task.outputs))

    def _conv(self, operation: Conv) -> None:
        """A band's words are asked for before the works of the band before it, which they run beside."""
        layer, array = operation.layer, self.config.array
        if layer.groups > 1 and layer.n_out // layer.groups % self.lanes:
            raise ValueError(
                f"{operation.name}: outputs of each group must be a multiple of {self.lanes}, not "
                f"{layer.n_out // layer.groups}"
            )
        bands = bands_of(layer, array)
        weights = self._weights(operation, bands[0])
        self._load(operation, bands[0])
        for number, band in enumerate(bands):
            if number + 1 < len(bands):
                self._load(operation, bands[number + 1])
            for work in band.works:
                self._read(Kind.WEIGHTS, weights[work.phase, work.group])
                self._command(Kind.CONV, work, **payload(work.descriptor, array))
                self._job(operation, _rectangle(work, self.lanes))

    def _weights(self, operation: Conv, band: Band) -> dict[tuple[Phase, int], Walk]:
        """Rows of each phase and group: of a list, of a map's pixels, or put into memory here."""
        layer, array, of = operation.layer, self.config.array, operation.weights
        works = {(work.phase, work.group): work for work in band.works}
        if isinstance(of, PixelWeights):
            tiles = -(-layer.n_out // self.lanes)
            pixels = Rectangle(
                y=0, x=0, step=1, n_rows=of.height, n_columns=of.width, first_tile=0, n_tiles=tiles
            )
            return dict.fromkeys(works, self.places[of.name].walk(pixels))
        if operation.named_weights is not None:
            place = self.lists[operation.named_weights]
            return {key: _line(place.address + at, n, self.lanes) for key, (at, n) in place.rows.items()}
        made = {}
        for key, work in works.items():
            rows = weight_rows(of.astype(np.int64), work, layer, array)
            made[key] = _line(self._list(rows.astype(np.int8)), len(rows), self.lanes)
        return made

    def _load(self, operation: Conv, band: Band) -> None:
        place, n_bytes = self.places[operation.source], self.config.array.rows
        self._command(Kind.LOAD, (band.half, band.n_words), half=band.half, n_words=band.n_words)
        walk = Walk(
            base=place.address + band.first_byte,
            n_tiles=operation.layer.n_planes,
            tile_stride=place.plane_bytes,
            n_columns=band.plane_words,
            column_stride=n_bytes,
            n_bytes=n_bytes,
        )
        self._read(Kind.INPUT, walk)

    def _fir(self, operation: Fir) -> None:
        """Tile by tile."""
        of, place = operation.map, self.places[operation.source]
        for tile in range(-(-of.channels // self.lanes)):
            channels = min(self.lanes, of.channels - tile * self.lanes)
            part = Map(upsample=of.upsample, height=of.height, width=of.width, channels=channels)
            part.check(self.config.fir)
            source, result = (
                Rectangle(y=0, x=0, step=1, n_rows=rows, n_columns=columns, first_tile=tile, n_tiles=1)
                for rows, columns in ((of.height, of.width), of.out_size)
            )
            self._command(Kind.MAP, part, **asdict(part))
            self._read(Kind.INPUT, place.walk(source), tag=Source.FILTER)
            self._job(operation, result)

    def _depthwise(self, operation: Depthwise) -> None:
        """Tile by tile, phase by phase."""
        layer, place = operation.layer, self.places[operation.source]
        n_tiles = -(-layer.channels // self.lanes)
        weights = np.zeros((n_tiles * self.lanes, layer.kernel, layer.kernel), np.int8)
        weights[: layer.channels] = operation.weights
        for tile, of_tile in enumerate(weights.reshape(n_tiles, self.lanes, layer.kernel, layer.kernel)):
            for phase in phases(layer):
                of, one = phase.of, {"first_tile": tile, "n_tiles": 1}
                try:
                    of.check(self.config.depthwise)
                except ValueError as error:
                    raise ValueError(f"{operation.name}: {error}") from None
                taps = self._list(phase.weights(of_tile).reshape(self.lanes, -1).T)
                source = Rectangle(
                    y=phase.row, x=phase.column, step=1, n_rows=of.height, n_columns=of.width, **one
                )
                result = Rectangle(
                    y=phase.y, x=phase.x, step=phase.step, n_rows=of.out_height, n_columns=of.out_width,
                    **one,
                )  # fmt: skip
                self._command(Kind.PASS, of, **of.fields)
                self._read(Kind.WEIGHTS, _line(taps, of.n_taps, self.lanes), tag=WeightsOf.DEPTHWISE)
                self._read(Kind.INPUT, place.walk(source), tag=Source.DEPTHWISE)
                self._job(operation, result)

    def _transposed(self, operation: Transposed) -> None:
        """Blocks of as many pixels as there are lanes, of each its tiles of channels."""
        shape, place = operation.shape, self.places[operation.source]
        n_pixels, lanes = shape.height * shape.width, self.lanes
        of = TransposedMap(n_pixels=n_pixels, n_channels=shape.channels, wide=shape.bits == 16)
        self._command(Kind.TRANSPOSE, of, **asdict(of))
        whole, rest = divmod(n_pixels, lanes)
        for first, n_blocks, n_beats in ((0, whole, lanes), (whole * lanes, 1, rest)):
            if n_blocks and n_beats:
                walk = Walk(
                    base=place.address + first * place.pixel_bytes,
                    n_tiles=n_blocks,
                    tile_stride=lanes * place.pixel_bytes,
                    n_rows=-(-shape.channels // lanes),
                    row_stride=place.tile_bytes,
                    n_columns=n_beats,
                    column_stride=place.pixel_bytes,
                    n_bytes=place.pixel_bytes,
                )
                self._read(Kind.INPUT, walk, tag=Source.TRANSPOSE)
        tiles = {"first_tile": 0, "n_tiles": -(-n_pixels // lanes)}
        self._job(operation, Rectangle(y=0, x=0, step=1, n_rows=shape.channels, n_columns=1, **tiles))

    def _loss(self, operation: LossGradient) -> None:
        """A label, then scores: as many at once as the unit takes, of whole tiles and of the last one."""
        place, n_classes, lanes = self.places[operation.source], operation.n_classes, self.lanes
        self._command(Kind.LOSS, n_classes, n_classes=n_classes, **asdict(operation.job))
        label = _line(self.lists[operation.label].address, 1, LABEL_BITS // 8)
        self._read(Kind.WEIGHTS, label, tag=WeightsOf.LABEL)
        n_bytes, (whole, rest) = self.config.score_bytes, divmod(n_classes, lanes)
        for first, n_tiles, n_scores in ((0, whole, lanes), (whole, 1, rest)):
            if n_tiles and n_scores:
                walk = Walk(
                    base=place.address + first * place.tile_bytes,
                    n_tiles=n_tiles,
                    tile_stride=place.tile_bytes,
                    n_columns=-(-n_scores // self.config.loss.lanes),
                    column_stride=n_bytes,
                    n_bytes=n_bytes,
                )
                self._read(Kind.INPUT, walk, tag=Source.LOSS)
        tiles = {"first_tile": 0, "n_tiles": -(-n_classes // lanes)}
        self._job(operation, Rectangle(y=0, x=0, step=1, n_rows=1, n_columns=1, **tiles))

    def _job(self, operation: SumsOperation, of: Rectangle) -> None:
        """The epilogue of a rectangle of sums, with what it reads and writes; the first one of an operation
        loads the table."""
        epilogue = operation.epilogue
        job = epilogue.job()
        readers = [*job.readers, Reader()][:MAX_READERS]
        fields = {
            "source": _source(operation),
            "first_tile": of.first_tile,
            "tile_beats": of.tile_beats,
            "job": {
                "n_beats": of.n_tiles * of.tile_beats,
                "n_tables": self.n_tables,
                "shift": job.shift,
                "side": job.side,
                "side_shift": job.side_shift,
                "activation": job.activation,
                "limit": job.limit,
                "two": len(job.readers) == 2,
                "readers": [{"shift": one.shift, "wide": one.wide} for one in readers],
                "mask": job.mask,
                "reduction": job.reduction,
                "reduce_shift": job.reduce_shift,
                "gives_sums": 0,
            },
        }
        self._command(Kind.EPILOGUE, fields, **fields)
        if self.noise is not None:
            self._read(Kind.SIDE, _noise_walk(self.noise, operation.out_shape[1], of), tag=1)
        elif epilogue.side_map is not None:
            self._read(Kind.SIDE, self.places[epilogue.side_map].walk(of), tag=1)
        for number, name in outputs_of(epilogue):
            place = self.places[name]
            self._output(number, place.format, place.plane_bytes, place.walk(of))
        self.written.append(Written(operation=operation, rectangle=of))
        self.n_tables = 0

    def _output(self, reader: int, format_: Format, plane_bytes: int, walk: Walk) -> None:
        placing = {"format": format_, "plane_stride": plane_bytes}
        what = reader, format_, plane_bytes, walk
        self._command(Kind.OUTPUT, what, reader=reader, job={"extra": placing, "walk": walk.fields})

    def _sums(self, name: str, channels: int) -> None:
        """A job that gives the sums of all jobs before it; those of channels that fill up a tile are left
        out."""
        n_bytes, element_bytes = channels * SUMS * SUM_BYTES, 2 * self.lanes
        n_beats = -(-n_bytes // element_bytes)
        Job(n_beats=n_beats, gives_sums=True).check(self.config.epilogue)
        fields = {"job": {"n_beats": n_beats, "n_tables": 0, "side": Side.NONE, "two": 0, "mask": 0,
                          "gives_sums": 1}}  # fmt: skip
        self._command(Kind.EPILOGUE, {"source": Source.ARRAY, **fields}, **fields)
        walk = Walk(
            base=self.lists[name].address,
            n_tiles=n_beats,
            tile_stride=element_bytes,
            n_columns=1,
            column_stride=0,
            n_bytes=element_bytes,
            last_bytes=n_bytes - (n_beats - 1) * element_bytes,
        )
        self._output(0, Format.HALVES, 0, walk)
        self.written.append(WrittenSums(name=name, walk=walk))


def outputs_of(epilogue: Epilogue) -> list[tuple[int, str]]:
    """The maps that each beat writes, in turn, with the numbers of those they are for."""
    made = [(number, output.name) for number, output in enumerate(epilogue.outputs)]
    return made if epilogue.mask is None else [*made, (MASK_READER, epilogue.mask)]


def _source(operation: SumsOperation) -> Source:
    """Who computes its sums."""
    return {
        Conv: Source.ARRAY,
        Fir: Source.FILTER,
        Depthwise: Source.DEPTHWISE,
        Transposed: Source.TRANSPOSE,
        LossGradient: Source.LOSS,
    }[type(operation)]


def _check_map(name: str, values: np.ndarray, shape: MapShape) -> None:
    size, (low, high) = (shape.height, shape.width, shape.channels), shape.bounds
    if values.shape != size:
        raise ValueError(f"map {name!r} must be {list(size)}, not {list(values.shape)}")
    if not (low <= int(values.min()) and int(values.max()) <= high):
        raise ValueError(f"map {name!r} must be in {low}..{high}, not {values.min()}..{values.max()}")


def _line(address: int, n: int, n_bytes: int) -> Walk:
    """Elements one behind the other."""
    return Walk(base=address, n_columns=n, column_stride=n_bytes, n_bytes=n_bytes)


def _noise_walk(address: int, width: int, of: Rectangle) -> Walk:
    """A number for each pixel, the same for all tiles."""
    return Walk(
        base=address + 2 * (of.y * width + of.x),
        n_tiles=of.n_tiles,
        n_rows=of.n_rows,
        row_stride=2 * of.step * width,
        n_columns=of.n_columns,
        column_stride=2 * of.step,
        n_bytes=2,
    )


def _rectangle(work: Work, lanes: int) -> Rectangle:
    """Where a work's sums belong."""
    d = work.descriptor
    return Rectangle(
        y=d.y,
        x=d.x,
        step=d.step,
        n_rows=d.out_height,
        n_columns=d.out_width,
        first_tile=d.channel // lanes,
        n_tiles=-(-d.n_out // lanes),
    )
