# SPDX-License-Identifier: MIT
"""What a command of each kind carries, and its record in memory."""

from collections.abc import Mapping
from enum import IntEnum

from amaranth import Value
from amaranth.lib import data

from hw.depthwise.scan import pass_layout
from hw.epilogue.rtl import job_layout as epilogue_job_layout
from hw.fir.scan import map_layout
from hw.loss.maps import map_layout as loss_layout
from hw.systolic.buffer import load_layout
from hw.systolic.tiles import descriptor_layout
from hw.training.layouts import job_layout as kernel_layout
from hw.transpose.rtl import map_layout as transpose_layout

from .config import RECORD_BYTES, ConvolutionConfig
from .dispatch import KIND_BITS, Kind
from .reader import TAG
from .walk import job_layout
from .writer import output_layout

TILE_BEATS_BITS = 24


class Source(IntEnum):
    """What a job's sums come from; also the tag of a walk to read that unit's input."""

    ARRAY = 0
    FILTER = 1
    DEPTHWISE = 2
    TRANSPOSE = 3
    LOSS = 4


class WeightsOf(IntEnum):
    """Tag of a walk over rows of weights, over sums for a kernel, or to a label."""

    ARRAY = 0
    DEPTHWISE = 1
    KERNEL = 2
    LABEL = 3


class SideOf(IntEnum):
    """Tag of a walk at the side port: over tables, side maps, or a kernel's parameters."""

    TABLE = 0
    MAP = 1
    KERNEL = 2


def epilogue_layout(config: ConvolutionConfig) -> data.StructLayout:
    """A job of the epilogue and its ``source``: ``tile_beats`` sums for entry ``first_tile`` of the table, as
    many for each one after it."""
    return data.StructLayout(
        {
            "source": Source,
            "first_tile": range(config.epilogue.max_tiles),
            "tile_beats": TILE_BEATS_BITS,
            "job": epilogue_job_layout(config.epilogue),
        }
    )


def command_layouts(config: ConvolutionConfig) -> dict[Kind, data.Layout]:
    """The payload of each kind. ValueError where one does not fit a record."""
    layouts: dict[Kind, data.Layout] = {
        Kind.FENCE: data.StructLayout({"nothing": 1}),
        Kind.INPUT: job_layout(TAG),
        Kind.LOAD: load_layout(config.array),
        Kind.WEIGHTS: job_layout(TAG),
        Kind.CONV: descriptor_layout(config.array),
        Kind.MAP: map_layout(config.fir),
        Kind.SIDE: job_layout(TAG),
        Kind.EPILOGUE: epilogue_layout(config),
        Kind.OUTPUT: output_layout(),
        Kind.PASS: pass_layout(config.depthwise),
        Kind.TRANSPOSE: transpose_layout(),
        Kind.KERNEL: kernel_layout(config.training),
        Kind.LOSS: loss_layout(config.loss),
    }
    most = 8 * RECORD_BYTES - KIND_BITS
    for kind, layout in layouts.items():
        if layout.size > most:
            raise ValueError(f"a command must have at most {most} bits, not {layout.size} of {kind.name}")
    return layouts


def bits_of(layout: data.Layout, fields: Mapping) -> int:
    """Fields, nested as the layout is, as one number; what is left out is 0."""
    value = layout.const(fields).as_value()
    return Value.cast(value).value & ((1 << layout.size) - 1)


def record(kind: Kind, payload: int) -> bytes:
    """A command as it lies in memory: the kind in the first byte, the payload from the second one on."""
    return (payload << KIND_BITS | kind).to_bytes(RECORD_BYTES, "little")
