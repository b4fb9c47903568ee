# SPDX-License-Identifier: MIT
"""Estimated cycles, traffic and energy of operations on the convolution core, in closed form. Needs no torch.

Operations follow one another, each waiting for the writes of the one before. Within one, all that moves at
once hides behind the slowest. What a block takes by itself is its own exact cycle model's; how they wait for
one another and for memory is estimated here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hw.config import ChipConfig
from hw.convolution.config import mask_bytes
from hw.convolution.operations import (
    Conv,
    Depthwise,
    Fir,
    LossGradient,
    MapShape,
    Operation,
    SumsOperation,
)
from hw.depthwise.config import MAP_BITS, N_PAST, DepthwiseConfig
from hw.depthwise.cycles import LATENCY_CYCLES as DEPTHWISE_LATENCY_CYCLES
from hw.depthwise.cycles import layer_cycles as depthwise_cycles
from hw.depthwise.layer import DepthwiseLayer, phases
from hw.epilogue.config import LATENCY_CYCLES as EPILOGUE_LATENCY_CYCLES
from hw.epilogue.config import TABLE_BEATS, Side
from hw.fir.config import LATENCY_CYCLES as FIR_LATENCY_CYCLES
from hw.fir.config import FirConfig, Map
from hw.fir.cycles import map_cycles
from hw.loss.config import MAX_CLASSES, MIN_CLASSES, LossConfig, loss_config
from hw.loss.cycles import latency_cycles as loss_latency_cycles
from hw.loss.cycles import picture_cycles
from hw.systolic.config import ACCUMULATOR_BITS, QUAD_BYTES, SystolicConfig, systolic_config
from hw.systolic.cycles import work_cycles
from hw.systolic.descriptor import Band, Layer, Work, bands_of, tile_rows
from sim.energy import CHIP_NODE_NM, PLAIN_BITS, price_pj
from sim.memory import ACHIEVABLE_BANDWIDTH, ROW_BYTES

WIDE_BYTES = 2
"""Of an element of 16 bits: noise, residuals, tables, maps on their way to the filter."""
SUM_BYTES = 8
"""Of a sum over a map."""
ANY_ROW_BEATS, ANY_ROW_PIXELS = 65_536, 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """What of a core and its memory sets the pace."""

    array: SystolicConfig
    bus_bytes: int = 32
    """What each of the ports for weights, input, side input and output moves in a cycle."""
    memory_bytes_per_cycle: float = 512 * ACHIEVABLE_BANDWIDTH
    """What all ports together get."""
    latency_cycles: int = 45
    """Of a read, and of a write until it is acknowledged."""
    depthwise_multipliers: int = 3
    """Of each lane of the depthwise unit, which has as many lanes as the array has columns."""
    loss_lanes: int = 8
    """Scores that the loss unit takes in a cycle."""

    @property
    def depthwise(self) -> DepthwiseConfig:
        """The unit for depthwise layers, with a line memory for any map."""
        return DepthwiseConfig(
            lanes=self.array.columns, n_multipliers=self.depthwise_multipliers, row_pixels=ANY_ROW_PIXELS,
            max_size=ANY_ROW_PIXELS,
        )  # fmt: skip


def core_of(chip: ChipConfig) -> Core:
    """The convolution core of a chip."""
    return Core(
        array=systolic_config(chip),
        bus_bytes=min(64, chip.dram_bytes_per_cycle),
        memory_bytes_per_cycle=chip.peak_bytes_per_cycle * ACHIEVABLE_BANDWIDTH,
        latency_cycles=chip.dram_latency_cycles,
        loss_lanes=loss_config(chip).lanes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of a picture, for its loss; ValueError for more classes than any loss unit has, or fewer."""

    n_classes: int

    def __post_init__(self) -> None:
        if not MIN_CLASSES <= self.n_classes <= MAX_CLASSES:
            raise ValueError(
                f"n_classes must be in {MIN_CLASSES}..{MAX_CLASSES} for a loss, not {self.n_classes}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """An operation without its numbers."""

    name: str
    of: Layer | Map | DepthwiseLayer | MapShape | Scores
    """A map's shape: it is transposed."""
    out_bits: tuple[int, ...]
    """Of each map written."""
    planar: bool = False
    """These are for the filter, the depthwise unit or a residual, see :func:`planar_bytes`."""
    side: Side = Side.NONE
    masks: bool = False
    """A mask is written as well, a bit an element."""
    sums: bool = False
    """Two sums of each channel are written as well."""

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        if isinstance(self.of, Layer):
            return self.of.out_height, self.of.out_width, self.of.n_out
        if isinstance(self.of, DepthwiseLayer):
            return self.of.out_height, self.of.out_width, self.of.channels
        if isinstance(self.of, MapShape):
            return self.of.channels, 1, self.of.height * self.of.width
        if isinstance(self.of, Scores):
            return 1, 1, self.of.n_classes
        return (*self.of.out_size, self.of.channels)


def planar_bytes(channels: int, lanes: int, bits: int = 16) -> int:
    """Of a pixel of a tile: words of 4 bytes, where there is one tile; else all lanes in each tile."""
    return min(lanes * bits // 8, -(-channels * bits // 32) * 4)


def mean_words(n_bytes: int, pitch: int, bus_bytes: int, offset: int = 0) -> float:
    """Words of the bus that an element of ``n_bytes`` touches, each a cycle, at every ``pitch`` bytes.

    The mean over the places in a word where elements begin: ``offset`` and all multiples of the greatest
    common divisor of pitch and bus from there.
    """
    places = range(0, bus_bytes, math.gcd(pitch, bus_bytes))
    return sum(-(-((offset + at) % bus_bytes + n_bytes) // bus_bytes) for at in places) / len(places)


def tasks_of(operations: Sequence[Operation]) -> list[Task]:
    """What of operations counts for their time; kernels over lists are left out."""
    planar = _planar_maps(operations)
    made = []
    for operation in operations:
        if not isinstance(operation, SumsOperation):
            continue
        e = operation.epilogue
        made.append(
            Task(
                name=operation.name,
                of=_of(operation),
                out_bits=tuple(output.bits for output in e.outputs),
                planar=all(output.name in planar for output in e.outputs),
                side=e.job().side,
                masks=e.mask is not None,
                sums=e.reduce is not None,
            )
        )
    return made


def _of(operation: SumsOperation) -> Layer | Map | DepthwiseLayer | MapShape | Scores:
    if isinstance(operation, Conv | Depthwise):
        return operation.layer
    if isinstance(operation, LossGradient):
        return Scores(n_classes=operation.n_classes)
    return operation.map if isinstance(operation, Fir) else operation.shape


def _planar_maps(operations: Sequence[Operation]) -> set[str]:
    """Those that the array does not read, and that have 16 bits or another reader."""
    works = [operation for operation in operations if isinstance(operation, SumsOperation)]
    of_array = {operation.source for operation in works if isinstance(operation, Conv)}
    of_others = {operation.source for operation in works if not isinstance(operation, Conv)}
    wide = {output.name for one in works for output in one.epilogue.outputs if output.bits == 16}
    return (wide | of_others) - of_array


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Of one operation, or of several (then ``limit`` is empty)."""

    cycles: float = 0
    limit: str = ""
    """What sets the pace: array, weights, input, side, output, memory, filter, depthwise, transpose or
    loss."""
    macs: int = 0
    """Products of the array, of 8 bits each."""
    vectors: int = 0
    """Cycles in which the array takes a vector."""
    weight_bytes: int = 0
    input_bytes: int = 0
    side_bytes: int = 0
    output_bytes: int = 0
    filter_beats: int = 0
    """Steps of the filter."""
    depthwise_macs: int = 0
    """Products of the depthwise unit, 16 by 8 bits."""
    depthwise_steps: int = 0
    """Pixels of a tile that it takes."""
    out_beats: int = 0
    """Of the epilogue, counted for each reader."""

    @property
    def memory_bytes(self) -> int:
        """Read and written."""
        return self.weight_bytes + self.input_bytes + self.side_bytes + self.output_bytes


SUMMED = tuple(name for name in Estimate.__dataclass_fields__ if name != "limit")


def total(estimates: Iterable[Estimate]) -> Estimate:
    """One after the other."""
    found = list(estimates)
    return Estimate(**{name: sum(getattr(one, name) for one in found) for name in SUMMED})


@lru_cache(maxsize=100_000)
def estimate(task: Task, core: Core) -> Estimate:
    """One operation, from the acknowledged writes of the one before to its own.

    ValueError where the built array cannot take a layer.
    """
    if isinstance(task.of, Layer):
        return _convolution(task, task.of, core)
    if isinstance(task.of, DepthwiseLayer):
        return _depthwise(task, task.of, core)
    if isinstance(task.of, MapShape):
        return _transposed(task, task.of, core)
    if isinstance(task.of, Scores):
        return _loss(task, task.of.n_classes, core)
    return _filter(task, task.of, core)


def _convolution(task: Task, layer: Layer, core: Core) -> Estimate:
    """Sums leave in the last pass over a pixel only, and stop the array while output takes them.

    array: cycles of each descriptor, or of its rows of weights through their port if those take longer.
    """
    array, of_output = core.array, _Output(task, core)
    row_cycles = mean_words(array.columns, array.columns, core.bus_bytes)
    times: Counter[tuple] = Counter()
    works: dict[tuple, Work] = {}
    input_words = 0
    bands = bands_of(layer, array)
    for band in bands:
        input_words += band.n_words
        for work in band.works:
            alike = work.phase, work.descriptor.n_pixels
            works[alike] = work
            times[alike] += 1
    computing = n_rows = vectors = 0
    waiting = 0.0
    for alike, n in times.items():
        rows = tile_rows(works[alike], array)
        computing += n * work_cycles(works[alike], array)
        waiting += n * max(work_cycles(works[alike], array), sum(rows) * row_cycles)
        n_rows += n * sum(rows)
        vectors += n * len(rows) * layer.n_planes * works[alike].descriptor.n_pixels
    stalls = of_output.n_pixel_tiles * (of_output.cycles_per_beat - 1)
    word_cycles = -(-array.rows // core.bus_bytes)
    paces = {
        "array": computing + stalls,
        "weights": waiting + stalls,
        "input": input_words * word_cycles,
        "side": of_output.side_cycles,
    }
    fill = array.rows * row_cycles + array.latency_cycles + _first_load(layer, bands[0]) * word_cycles
    return _made(
        core, paces, fill, of_output,
        macs=layer.n_macs * layer.n_planes, vectors=vectors, weight_bytes=n_rows * array.columns,
        input_bytes=input_words * array.rows,
    )  # fmt: skip


def _first_load(layer: Layer, band: Band) -> float:
    """Words of the first rectangle's input beyond its first pass, which meets every pixel: not hidden."""
    first = band.works[0]
    alike = [w.descriptor.n_pixels for w in band.works if (w.phase, w.group) == (first.phase, first.group)]
    n_pixels = first.descriptor.n_pixels
    return max(0.0, band.n_words * n_pixels / sum(alike) - layer.n_planes * n_pixels)


def _filter(task: Task, of: Map, core: Core) -> Estimate:
    """A tile of channels after the other, a beat a pixel."""
    lanes, of_output = core.array.columns, _Output(task, core)
    one_tile = Map(upsample=of.upsample, height=of.height, width=of.width, channels=min(lanes, of.channels))
    config = FirConfig(lanes=lanes, element_bits=16, out_bits=18, row_beats=ANY_ROW_BEATS, max_size=8193)
    n_tiles = -(-of.channels // lanes)
    steps = n_tiles * map_cycles(one_tile, config)
    pixel_bytes = planar_bytes(of.channels, lanes)
    n_elements = n_tiles * of.height * of.width
    paces = {
        "filter": steps,
        "output": of_output.n_pixel_tiles * of_output.cycles_per_beat,
        "input": n_elements * mean_words(pixel_bytes, pixel_bytes, core.bus_bytes),
        "side": of_output.side_cycles,
    }
    return _made(
        core, paces, FIR_LATENCY_CYCLES + 1, of_output, input_bytes=n_elements * pixel_bytes,
        filter_beats=steps,
    )  # fmt: skip


def _depthwise(task: Task, layer: DepthwiseLayer, core: Core) -> Estimate:
    """A tile of channels after the other, of a transposed layer four passes each."""
    lanes, of_output = core.array.columns, _Output(task, core)
    n_tiles, passes = -(-layer.channels // lanes), phases(layer)
    n_elements = n_tiles * sum(one.of.height * one.of.width for one in passes)
    n_rows = n_tiles * sum(one.of.n_taps for one in passes)
    row_cycles = mean_words(lanes, lanes, core.bus_bytes)
    pixel_bytes = planar_bytes(layer.channels, lanes, 16 if layer.wide else 8)
    paces = {
        "depthwise": depthwise_cycles(layer, core.depthwise),
        "weights": n_rows * row_cycles,
        "output": of_output.n_pixel_tiles * of_output.cycles_per_beat,
        "input": n_elements * mean_words(pixel_bytes, pixel_bytes, core.bus_bytes),
        "side": of_output.side_cycles,
    }
    fill = passes[0].of.n_taps * row_cycles + DEPTHWISE_LATENCY_CYCLES
    return _made(
        core, paces, fill, of_output, weight_bytes=n_rows * lanes, input_bytes=n_elements * pixel_bytes,
        depthwise_macs=layer.n_macs, depthwise_steps=n_elements,
    )  # fmt: skip


def _transposed(task: Task, of: MapShape, core: Core) -> Estimate:
    """Blocks of C pixels and C channels, a beat a cycle in and out; partial ones take as long."""
    lanes, of_output = core.array.columns, _Output(task, core)
    n_pixels, n_tiles = of.height * of.width, -(-of.channels // lanes)
    pixel_bytes = planar_bytes(of.channels, lanes, of.bits)
    paces = {
        "transpose": -(-n_pixels // lanes) * n_tiles * lanes,
        "output": of_output.n_pixel_tiles * of_output.cycles_per_beat,
        "input": n_pixels * n_tiles * mean_words(pixel_bytes, pixel_bytes, core.bus_bytes),
        "side": of_output.side_cycles,
    }
    return _made(core, paces, lanes, of_output, input_bytes=n_pixels * n_tiles * pixel_bytes)


def _loss(task: Task, n_classes: int, core: Core) -> Estimate:
    """A picture by itself, from its first score to its last gradient; the table comes beside that."""
    config, of_output = LossConfig(lanes=core.loss_lanes), _Output(task, core)
    beats, score_bytes = int(picture_cycles(n_classes, config)), WIDE_BYTES * core.loss_lanes
    paces = {
        "loss": int(loss_latency_cycles(n_classes, config)) + 1,
        "output": of_output.n_pixel_tiles * of_output.cycles_per_beat,
        "input": beats * mean_words(score_bytes, score_bytes, core.bus_bytes),
        "side": of_output.side_cycles,
    }
    return _made(core, paces, 0, of_output, input_bytes=WIDE_BYTES * n_classes)


class _Output:
    """What an epilogue writes and reads besides."""

    def __init__(self, task: Task, core: Core) -> None:
        height, width, channels = task.out_shape
        lanes = core.array.columns
        n_tiles, wide_map = -(-channels // lanes), planar_bytes(channels, lanes)
        planar = [planar_bytes(channels, lanes, bits) for bits in task.out_bits]
        self.n_pixel_tiles = height * width * n_tiles
        self.n_readers = len(task.out_bits) + task.masks
        self.cycles_per_beat = task.masks + sum(
            mean_words(n_bytes, n_bytes, core.bus_bytes) if task.planar
            else bits // 8 * _pixel_words(channels, lanes, core.bus_bytes)
            for bits, n_bytes in zip(task.out_bits, planar, strict=True)
        )  # fmt: skip
        """A write is at most a word of the bus; planes of high and low bytes are written apart."""
        pixel_bytes = n_tiles * sum(planar) if task.planar else channels * sum(task.out_bits) // 8
        pixel_bytes += task.masks * n_tiles * mask_bytes(lanes)
        self.output_bytes = height * width * pixel_bytes + task.sums * 2 * SUM_BYTES * channels
        wide = WIDE_BYTES * lanes
        n_bytes, words = {
            Side.NONE: (0, 0.0),
            Side.NOISE: (WIDE_BYTES, 1.0),
            Side.RESIDUAL: (wide_map, mean_words(wide_map, wide_map, core.bus_bytes)),
            Side.PRODUCT: (wide_map, mean_words(wide_map, wide_map, core.bus_bytes)),
            Side.MASK: (mask_bytes(lanes), 1.0),
        }[task.side]
        n_tables = TABLE_BEATS * n_tiles
        self.side_bytes = self.n_pixel_tiles * n_bytes + n_tables * wide
        self.side_cycles = self.n_pixel_tiles * words + n_tables * mean_words(wide, wide, core.bus_bytes)


def _pixel_words(channels: int, lanes: int, bus_bytes: int) -> float:
    """Words that a tile's bytes of a pixel touch, the mean over tiles and pixels; pixels are whole quads."""
    pitch = QUAD_BYTES * -(-channels // QUAD_BYTES)
    starts = range(0, channels, lanes)
    words = (mean_words(min(lanes, pitch - start), pitch, bus_bytes, start) for start in starts)
    return sum(words) / len(starts)


def _made(
    core: Core, paces: dict[str, float], fill_cycles: float, output: _Output, **counts: int
) -> Estimate:
    """The slowest of all, and what is not hidden: first read, last write, pipelines."""
    n_bytes = counts.get("weight_bytes", 0) + counts["input_bytes"] + output.side_bytes + output.output_bytes
    paces = paces | {"memory": n_bytes / core.memory_bytes_per_cycle}
    limit = max(paces, key=lambda name: paces[name])
    hidden_by_nothing = 2 * core.latency_cycles + fill_cycles + EPILOGUE_LATENCY_CYCLES
    return Estimate(
        cycles=paces[limit] + hidden_by_nothing, limit=limit, side_bytes=output.side_bytes,
        output_bytes=output.output_bytes, out_beats=output.n_pixel_tiles * output.n_readers, **counts,
    )  # fmt: skip


# ---- energy ------------------------------------------------------------------------------------------------

PRODUCT_8B = 8 * 8 / 12**2
"""A product of the array in products of 12 bits, the table's row: energy as the product of the widths."""
PRODUCT_16B = 16 * 8 / 12**2
"""Likewise one of the depthwise unit."""
EPILOGUE_PRODUCTS = (32 + 24) * 16 / 12**2
"""Likewise both products of the epilogue, sums by multiplier and values by scale."""
FILTER_ADDS = 6
"""Of a lane and step: two axes, each 3 p + q with p and q sums."""
EPILOGUE_ADDS = 3
"""Rounding aside: bias, side input, rounding of the output."""


def actions(e: Estimate, core: Core) -> dict[str, dict[tuple[str, str], float]]:
    """How often each row of the energy table is used, by part of the core; linear in the counts."""
    array, lanes = core.array, core.array.columns
    bits = e.memory_bytes * PLAIN_BITS
    sum_bytes = e.vectors * array.columns * ACCUMULATOR_BITS // 8
    return {
        "dram": {
            ("dram", "activate"): e.memory_bytes / ROW_BYTES,
            ("dram", "pre_gsa"): bits,
            ("dram", "post_gsa"): bits,
            ("dram", "io"): bits,
        },
        "activations": {
            ("sram", "read"): e.vectors * array.rows,
            ("sram", "write"): e.input_bytes if e.macs else 0,
        },
        "accumulators": {("sram", "read"): sum_bytes, ("sram", "write"): sum_bytes},
        "array": {("multiplier", "multiply_12b"): PRODUCT_8B * e.macs, ("adder", "add_32b"): e.macs},
        "depthwise": {
            ("multiplier", "multiply_12b"): PRODUCT_16B * e.depthwise_macs,
            ("adder", "add_32b"): e.depthwise_macs,
            # The line memory: a column of past rows out and in again for each pixel.
            ("sram", "read"): e.depthwise_steps * lanes * N_PAST * MAP_BITS // 8,
            ("sram", "write"): e.depthwise_steps * lanes * N_PAST * MAP_BITS // 8,
        },
        "filter": {("adder", "add_24b"): e.filter_beats * lanes * FILTER_ADDS},
        "epilogue": {
            ("multiplier", "multiply_12b"): EPILOGUE_PRODUCTS * e.out_beats * lanes,
            ("adder", "add_24b"): e.out_beats * lanes * EPILOGUE_ADDS,
        },
    }


def energy_pj(e: Estimate, core: Core, node_nm: int = CHIP_NODE_NM) -> dict[str, float]:
    """Dynamic energy by part, picojoules; clock tree, control and leakage are not in it."""
    return {
        part: sum(n * price_pj(*row, node_nm) for row, n in used.items())
        for part, used in actions(e, core).items()
    }
