# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the systolic array, the same for every simulator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from amaranth import Const

from hw.harness.job import Beats, Case, pack_fields
from hw.kv_buffer.cycles import Load

from .config import ACCUMULATOR_BITS, OPERAND_BITS, SystolicConfig
from .cycles import replay
from .descriptor import Band, Descriptor, Work, band_words, bands_of, payload, weight_rows
from .golden import convolution
from .layer import KERNELS, Layer
from .layout import image_bytes, input_layout
from .tiles import descriptor_layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A layer with its operands."""

    layer: Layer
    activations: np.ndarray
    """int64[height, width, stored]"""
    weights: np.ndarray
    """int64[n_out or more, n_in / groups or more, kernel, kernel]"""


def cases(config: SystolicConfig, *, seed: int, n_random: int) -> list[Case]:
    """Every kernel, stride, transpose, slice, group and width of operand; extremes; tiny maps; at random."""
    rng = np.random.default_rng(seed)
    r, c = config.rows, config.columns
    layers = {
        "extreme operands": [
            Layer(height=2, width=2, n_in=r, n_out=c, kernel=1),
            Layer(height=2, width=3, n_in=r + 1, n_out=c, kernel=3, padding=1, wide=True),
        ],
        "kernels and strides": [
            Layer(height=5, width=4, n_in=2, n_out=3, kernel=k, stride=s, padding=k // 2)
            for k in KERNELS
            for s in (1, 2)
        ],
        "channels around a tile": [
            Layer(height=3, width=4, n_in=n_in, n_out=n_out, kernel=1)
            for n_in in (1, r - 1, r, r + 1, 2 * r)
            for n_out in (1, c, c + 1)
        ],
        "few pixels": [
            Layer(height=1, width=w, n_in=2 * r + 1, n_out=c + 1, kernel=k, padding=k // 2, wide=wide)
            for w, k, wide in ((1, 1, False), (2, 1, True), (1, 3, False), (3, 1, False), (1, 1, True))
        ],
        "four phases": [
            Layer(height=h, width=w, n_in=n_in, n_out=c + 1, kernel=k, stride=2, transposed=True, wide=wide)
            for h, w, n_in, k, wide in ((3, 4, r + 1, 3, False), (2, 2, 2, 3, True), (2, 3, 2, 5, False))
        ],
        "first channels of more": [
            Layer(height=3, width=3, n_in=k, n_out=k + 1, padding=1, n_stored=2 * r + 1)
            for k in (1, r, r + 2)
        ],
        "loads outlast their layers": [
            Layer(height=4, width=4, n_in=1, n_out=1, kernel=1, stride=2, n_stored=2 * r + 1)
            for _ in range(4)
        ],
        "two groups": [
            Layer(height=2, width=4, n_in=2 * n_in, n_out=2 * c, kernel=k, padding=k // 2, groups=2)
            for n_in, k in ((r + 1, 3), (2, 5))
        ],
        "many rectangles": [
            Layer(height=1, width=config.n_accumulators + 3, n_in=1, n_out=1, kernel=3, padding=1),
            Layer(height=5, width=config.n_accumulators, n_in=2, n_out=2, kernel=3, stride=2, padding=1),
        ],
        "several bands": [
            Layer(height=9, width=config.n_words // 4, n_in=1, n_out=1, kernel=k, stride=s, padding=k // 2)
            for k, s in ((3, 1), (3, 2), (1, 2))
        ]
        + [
            Layer(height=8, width=config.n_words // 8, n_in=1, n_out=1, kernel=3, stride=2, transposed=True),
            Layer(height=6, width=config.n_words // 16, n_in=r + 1, n_out=1, padding=1, wide=True),
        ],
        "random layers": [_random_layer(config, rng) for _ in range(n_random)],
    }
    return [
        case(
            name,
            [
                _task(layer, rng, extreme=name == "extreme operands")
                for layer in of_case
                if _fits(layer, config)
            ],
            config,
            rng,
        )
        for name, of_case in layers.items()
        if any(_fits(layer, config) for layer in of_case)
    ]


def _fits(layer: Layer, config: SystolicConfig) -> bool:
    try:
        bands_of(layer, config)
    except ValueError:
        return False
    return True


def _random_layer(config: SystolicConfig, rng: np.random.Generator) -> Layer:
    """Any layer that the array takes in at most some thousand cycles."""
    while True:
        kernel = int(rng.choice(KERNELS))
        transposed = bool(rng.random() < 0.25)
        groups = int(rng.choice([1, 1, 2]))
        n_in = groups * int(rng.integers(1, 2 * config.rows + 2))
        try:
            layer = Layer(
                height=int(rng.integers(1, 10)),
                width=int(rng.integers(1, 10)),
                n_in=n_in,
                n_out=groups * int(rng.integers(1, 2 * config.columns + 2)),
                kernel=kernel,
                stride=2 if transposed else int(rng.integers(1, 3)),
                padding=0 if transposed else int(rng.integers(0, kernel)),
                groups=groups,
                transposed=transposed,
                wide=bool(rng.random() < 0.3),
                n_stored=n_in + groups * int(rng.integers(0, config.rows)),
            )
        except ValueError:
            continue
        if layer.n_macs * layer.n_planes <= 4000 * config.rows * config.columns and _fits(layer, config):
            return layer


def _task(layer: Layer, rng: np.random.Generator, *, extreme: bool) -> Task:
    """Random operands, of more weights than the layer takes; or extreme ones that never cancel."""
    bound, bound_w = 1 << (OPERAND_BITS * layer.n_planes - 1), 1 << (OPERAND_BITS - 1)
    more = 0 if extreme else layer.groups
    shape = (layer.height, layer.width, layer.stored)
    shape_w = (layer.n_out + more, layer.n_in // layer.groups + more, layer.kernel, layer.kernel)
    if extreme:
        weights = np.full(shape_w, -bound_w)
        weights[::2] = bound_w - 1
        return Task(layer=layer, activations=np.full(shape, -bound), weights=weights)
    return Task(
        layer=layer,
        activations=rng.integers(-bound, bound, shape),
        weights=rng.integers(-bound_w, bound_w, shape_w),
    )


def case(name: str, tasks: Sequence[Task], config: SystolicConfig, rng: np.random.Generator) -> Case:
    """Layers back to back, the halves in turn; what a payload does not define carries noise."""
    bands: list[tuple[Band, Task]] = []
    for task in tasks:
        bands += [(band, task) for band in bands_of(task.layer, config, half=len(bands) % 2)]
    works = [(work, task) for band, task in bands for work in band.works]
    loads = [Load(region=band.half, n_lines=band.n_words) for band, _ in bands]
    stamps = np.concatenate(replay(loads, [work for work, _ in works], config))
    values = np.array([(load.region, load.n_lines) for load in loads])
    words = np.concatenate([_words(band, task, config, rng) for band, task in bands])
    return Case(
        name=name,
        inputs={
            "i_load": pack_fields([(values[:, 0], 1), (values[:, 1], config.count_bits)]),
            "i_word": pack_fields([(words, OPERAND_BITS)]),
            "i_descriptor": descriptor_beats([work.descriptor for work, _ in works], config),
            "i_weight": np.concatenate([_weight_beats(work, task, config, rng) for work, task in works]),
        },
        expected={"o": _sum_beats(works, config)},
        expected_cycles={"o": stamps},
        max_cycles=int(stamps[-1]) + 100,
    )


def _words(band: Band, task: Task, config: SystolicConfig, rng: np.random.Generator) -> np.ndarray:
    """Words of a band; what may have any value carries noise."""
    layout = input_layout(task.layer, config)
    everywhere = image_bytes(np.full_like(task.activations, -1), task.layer, config)
    is_used = band_words(everywhere, band, layout, config) != 0
    words = band_words(image_bytes(task.activations, task.layer, config), band, layout, config)
    return np.where(is_used, words, rng.integers(0, 1 << OPERAND_BITS, words.shape))


def descriptor_beats(descriptors: Sequence[Descriptor], config: SystolicConfig) -> Beats:
    """Beats of ``i_descriptor``."""
    layout = descriptor_layout(config)
    n_bytes = 4 * -(-layout.size // 32)
    beats = [Const.cast(layout.const(payload(d, config))).value for d in descriptors]
    return np.array(
        [np.frombuffer(beat.to_bytes(n_bytes, "little"), dtype="<u4") for beat in beats], dtype=np.uint32
    )


def _weight_beats(work: Work, task: Task, config: SystolicConfig, rng: np.random.Generator) -> Beats:
    """Rows of weights; columns without a channel carry noise."""
    mask = (1 << OPERAND_BITS) - 1
    is_used = weight_rows(np.full_like(task.weights, -1), work, task.layer, config) != 0
    rows = weight_rows(task.weights, work, task.layer, config) & mask
    noise = rng.integers(0, mask + 1, rows.shape)
    return pack_fields([(np.where(is_used, rows, noise), OPERAND_BITS)])


def _sum_beats(works: Sequence[tuple[Work, Task]], config: SystolicConfig) -> Beats:
    sums = {
        id(task): convolution(
            torch.from_numpy(task.activations), torch.from_numpy(task.weights), task.layer
        ).numpy()
        for _, task in works
    }
    data, places = [], []
    for work, task in works:
        d = work.descriptor
        y, x = (grid.ravel() for grid in np.mgrid[: d.out_height, : d.out_width])
        y, x = d.y + d.step * y, d.x + d.step * x
        for start in range(d.channel, d.channel + d.n_out, config.columns):
            count = min(config.columns, d.channel + d.n_out - start)
            beats = np.zeros((d.n_pixels, config.columns), dtype=np.int64)
            beats[:, :count] = sums[id(task)][y, x, start : start + count]
            data.append(beats)
            last = (np.arange(d.n_pixels) == d.n_pixels - 1) & (start + count == d.channel + d.n_out)
            places.append(np.stack(np.broadcast_arrays(y, x, start, count, last), axis=1))
    bits = (config.size_bits, config.size_bits, config.channel_bits + 1, config.columns.bit_length(), 1)
    return pack_fields([
        (np.concatenate(data) & ((1 << ACCUMULATOR_BITS) - 1), ACCUMULATOR_BITS),
        *zip(np.concatenate(places).astype(np.int64).T, bits, strict=True),
    ])  # fmt: skip
