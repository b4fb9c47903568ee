# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the depthwise unit."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import MAX_KERNEL, SUM_BITS, DepthwiseConfig, Pass
from .cycles import LATENCY_CYCLES, pass_cycles, replay
from .golden import passed
from .layer import DepthwiseLayer, phases
from .scan import pass_layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A pass with its numbers."""

    of: Pass
    x: np.ndarray
    """int64[height, width, lanes]"""
    weights: np.ndarray
    """int64[lanes, kernel_height, kernel_width]"""


def cases(config: DepthwiseConfig, *, seed: int, n_random: int) -> list[Case]:
    """Extremes, smallest maps, all kernels at both strides and transposed, full rows, single lines; then
    random layers. Passes of a case follow one another."""
    rng = np.random.default_rng(seed)
    wide = min(config.row_pixels, config.max_size)
    groups: dict[str, Iterable[DepthwiseLayer]] = {
        "smallest maps": [_layer(1, 1, kernel, padding=kernel // 2) for kernel in range(1, MAX_KERNEL + 1)],
        "all kernels": _kernels(stride=1),
        "stride 2": _kernels(stride=2),
        "transposed": _kernels(stride=2, transposed=True),
        "full rows": [_layer(2, wide, 3, padding=1), _layer(3, wide, 2, stride=2, wide=True)],
        "single lines": [
            _layer(height, width, kernel, padding=kernel - 1, wide=kernel % 2 == 0, stride=stride)
            for height, width in ((1, 4), (4, 1))
            for kernel, stride in ((2, 1), (3, 2), (7, 1))
        ],
        "random layers": (_random(rng) for _ in range(n_random)),
    }
    made = [case("extremes", list(_extremes(config, rng)), config, rng)]
    for name, layers in groups.items():
        tasks = [task for layer in layers for task in _tasks(layer, config, rng)]
        if tasks:
            made.append(case(name, tasks, config, rng))
    return made


def _layer(height: int, width: int, kernel: int, **more) -> DepthwiseLayer:
    return DepthwiseLayer(height=height, width=width, channels=1, kernel=kernel, **more)


def _kernels(stride: int, transposed: bool = False) -> Iterator[DepthwiseLayer]:
    """Of 5 x 4 and 4 x 5 pixels, widths and borders in turn; rows of output that end with the input."""
    for kernel in range(1, MAX_KERNEL + 1):
        size = (5, 4) if kernel % 2 else (4, 5)
        out = tuple(2 * n if transposed else -(-n // stride) for n in size)
        yield _layer(
            *size,
            kernel,
            stride=stride,
            transposed=transposed,
            padding=(kernel - 1) // 2,
            wide=kernel % 2 == 0,
            replicate=kernel in (2, 3, 4),
            out_height=out[0],
            out_width=out[1],
        )


def _random(rng: np.random.Generator) -> DepthwiseLayer:
    while True:
        kernel, transposed = int(rng.integers(1, MAX_KERNEL + 1)), bool(rng.random() < 0.3)
        try:
            return _layer(
                int(rng.integers(1, 8)),
                int(rng.integers(1, 8)),
                kernel,
                stride=2 if transposed else int(rng.integers(1, 3)),
                padding=int(rng.integers(0, kernel)),
                transposed=transposed,
                wide=bool(rng.random() < 0.5),
                replicate=bool(rng.random() < 0.3),
                out_height=int(rng.integers(1, 9)),
                out_width=int(rng.integers(0, 9)),
            )
        except ValueError:
            continue


def _tasks(layer: DepthwiseLayer, config: DepthwiseConfig, rng: np.random.Generator) -> Iterator[Task]:
    bound = 1 << (15 if layer.wide else 7)
    for phase in phases(layer):
        of = phase.of
        of.check(config)
        weights = rng.integers(-128, 128, (config.lanes, layer.kernel, layer.kernel))
        x = rng.integers(-bound, bound, (of.height, of.width, config.lanes))
        yield Task(of=of, x=x, weights=phase.weights(weights))


def _extremes(config: DepthwiseConfig, rng: np.random.Generator) -> Iterator[Task]:
    """The lowest and the highest numbers against each other, 49 products in one sum."""
    for wide in (True, False):
        low, high = -(1 << (15 if wide else 7)), (1 << (15 if wide else 7)) - 1
        of = Pass(kernel_height=7, kernel_width=7, height=7, width=8, out_height=1, out_width=2, wide=wide)
        for x in (low, high):
            for weight in (-128, 127):
                yield Task(
                    of=of,
                    x=np.full((7, 8, config.lanes), x),
                    weights=np.full((config.lanes, 7, 7), weight),
                )
        mixed = rng.choice([low, high], (7, 8, config.lanes))
        yield Task(of=of, x=mixed, weights=rng.choice([-128, 127], (config.lanes, 7, 7)))


def case(name: str, tasks: Sequence[Task], config: DepthwiseConfig, rng: np.random.Generator) -> Case:
    """Passes back to back."""
    passes = [task.of for task in tasks]
    fields = np.array([list(of.fields.values()) for of in passes])
    widths = [field.width for _, field in pass_layout(config)]
    sums = [
        passed(torch.from_numpy(task.x), torch.from_numpy(task.weights), task.of)
        .numpy()
        .reshape(-1, config.lanes)
        for task in tasks
    ]
    lasts = [np.arange(len(beats)) == len(beats) - 1 for beats in sums]
    taps = [task.weights.reshape(config.lanes, -1).T for task in tasks]
    pixels = [pixel_bytes(task.x, task.of.wide, rng) for task in tasks]
    n_taps = sum(of.n_taps for of in passes)
    return Case(
        name=name,
        inputs={
            "i_pass": pack_fields([*zip(fields.T, widths, strict=True)]),
            "i_weight": pack_fields([(np.concatenate(taps) & 0xFF, 8)]),
            "i": pack_fields([(np.concatenate(pixels), 8)]),
        },
        expected={
            "o": pack_fields(
                [
                    (np.concatenate(sums) & ((1 << SUM_BITS) - 1), SUM_BITS),
                    (np.concatenate(lasts), 1),
                ]
            )
        },
        expected_cycles={"o": np.concatenate(replay(passes, config))},
        max_cycles=sum(pass_cycles(of, config) for of in passes) + n_taps + LATENCY_CYCLES + 100,
    )


def pixel_bytes(x: np.ndarray, wide: bool, rng: np.random.Generator) -> np.ndarray:
    """uint8[n_pixels, 2 lanes] as ``i`` takes them; narrow elements leave half of a beat to noise."""
    elements = x.reshape(-1, x.shape[-1])
    if wide:
        return elements.astype("<i2").view(np.uint8)
    return np.concatenate([elements & 0xFF, rng.integers(0, 256, elements.shape)], axis=1).astype(np.uint8)
