# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the epilogue."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import (
    BEAT_BITS,
    IN_BITS,
    LIMIT_BITS,
    MAX_OUT_SHIFT,
    MAX_READERS,
    MAX_SHIFT,
    MAX_SIDE_SHIFT,
    MULTIPLIER_BITS,
    OUT_BITS,
    SCALE_BITS,
    SIDE_BITS,
    TABLE_BITS,
    VALUE_BITS,
    Activation,
    EpilogueConfig,
    Job,
    Reader,
    Side,
    Table,
    signed_range,
)
from .cycles import FIRST_STEP_CYCLE, LATENCY_CYCLES, job_cycles, replay
from .golden import epilogue

SIDES = Side.NONE, Side.NOISE, Side.RESIDUAL


@dataclass(frozen=True)
class Task:
    """A job, the table it brings (None: none) and its beats."""

    job: Job
    table: Table | None
    x: np.ndarray
    """int64[n_beats, lanes], signed 32 bits."""
    tiles: np.ndarray
    """int64[n_beats]."""
    side: np.ndarray
    """int64[n_beats, lanes], signed 16 bits; noise in lane 0."""


def cases(config: EpilogueConfig, *, seed: int, n_random: int) -> list[Case]:
    """Every activation with every side and both numbers of readers; extremes of every number and shift; a
    full table, then some of it anew; then random jobs. Jobs of a case follow one another."""
    rng = np.random.default_rng(seed)
    makes = {
        "activations and sides": [
            _job(rng, config, side=side, activation=activation, n_readers=n_readers, n_beats=3)
            for side in SIDES
            for activation in Activation
            for n_readers in (1, 2)
        ],
        "extremes": [
            _job(rng, config, shift=shift, out_shift=out_shift, side_shift=side_shift, n_beats=6)
            for shift in (0, 1, 24, MAX_SHIFT)
            for out_shift, side_shift in ((0, 0), (1, MAX_SIDE_SHIFT), (31, 8), (MAX_OUT_SHIFT, 7))
        ],
        "single beats": [_job(rng, config, n_beats=1, n_tables=n) for n in (1, 0, 0, 2, 1, 0)],
        "full table": [_job(rng, config, n_tables=n, n_beats=9) for n in (config.max_tiles, 0, 1, 0)],
        "random jobs": [_job(rng, config, n_tables=max(0, 2 - i % 4)) for i in range(2 + n_random)],
    }
    return [
        case(name, _tasks(jobs, config, rng, at_ends=name == "extremes"), config)
        for name, jobs in makes.items()
    ]


def _job(
    rng: np.random.Generator,
    config: EpilogueConfig,
    *,
    n_beats: int = 0,
    n_tables: int = 1,
    side: Side | None = None,
    activation: Activation | None = None,
    n_readers: int = 0,
    shift: int | None = None,
    out_shift: int | None = None,
    side_shift: int | None = None,
) -> Job:
    """What is not given is random, shifts such that numbers neither vanish nor all saturate."""
    readers = tuple(
        Reader(
            shift=int(rng.integers(8, 28)) if out_shift is None else out_shift, wide=bool(rng.integers(0, 2))
        )
        for _ in range(n_readers or int(rng.integers(1, MAX_READERS + 1)))
    )
    return Job(
        n_beats=n_beats or int(rng.integers(1, 13)),
        n_tables=min(n_tables, config.max_tiles),
        shift=int(rng.integers(8, 36)) if shift is None else shift,
        side=SIDES[int(rng.integers(0, len(SIDES)))] if side is None else side,
        side_shift=int(rng.integers(0, 9)) if side_shift is None else side_shift,
        activation=Activation(int(rng.integers(0, len(Activation)))) if activation is None else activation,
        limit=int(rng.integers(0, 1 << rng.integers(1, LIMIT_BITS + 1))),
        readers=readers,
    )


def _tasks(
    jobs: Sequence[Job], config: EpilogueConfig, rng: np.random.Generator, *, at_ends: bool
) -> list[Task]:
    """Each job with numbers, its beats at any entry that it or an earlier one has loaded."""
    loaded = np.maximum.accumulate([job.n_tables for job in jobs])
    return [_task(job, int(n), config, rng, at_ends) for job, n in zip(jobs, loaded, strict=True)]


def _task(job: Job, n_loaded: int, config: EpilogueConfig, rng: np.random.Generator, at_ends: bool) -> Task:
    size = (job.n_beats, config.lanes)
    n_channels = job.n_tables * config.lanes
    table = Table(
        multiplier=_numbers(rng, (n_channels,), 0, (1 << MULTIPLIER_BITS) - 1, at_ends),
        bias=_numbers(rng, (n_channels,), *signed_range(VALUE_BITS), at_ends),
        scales=_numbers(rng, (MAX_READERS, n_channels), *signed_range(SCALE_BITS), at_ends),
    )
    return Task(
        job=job,
        table=table if job.n_tables else None,
        x=_numbers(rng, size, *signed_range(IN_BITS), at_ends),
        tiles=rng.integers(0, n_loaded, job.n_beats),
        side=_numbers(rng, size, *signed_range(SIDE_BITS), at_ends),
    )


def _numbers(
    rng: np.random.Generator, size: tuple[int, ...], low: int, high: int, at_ends: bool
) -> np.ndarray:
    """Of every magnitude, so that the small ones meet every rounding; or the ends, 0 and +-1."""
    if at_ends:
        return rng.choice(np.array([low, high, low, high, max(low, -1), 0, 1]), size)
    return rng.integers(low, high + 1, size) >> rng.integers(0, high.bit_length(), size)


def case(name: str, tasks: Sequence[Task], config: EpilogueConfig) -> Case:
    """Tasks back to back, their tables in the order of loading; lanes that noise does not use carry some."""
    jobs = [task.job for task in tasks]
    lanes = config.lanes
    x, tiles = np.concatenate([task.x for task in tasks]), np.concatenate([task.tiles for task in tasks])
    sides = [np.zeros((0, lanes), np.int64), *(t.side for t in tasks if t.job.side != Side.NONE)]
    tables = [np.zeros((0, lanes), np.int64), *(t.table.beats(lanes) for t in tasks if t.table is not None)]
    return Case(
        name=name,
        inputs={
            "i_job": _job_beats(jobs, config),
            "i_table": pack_fields([(np.concatenate(tables), TABLE_BITS)]),
            "i": pack_fields(
                [(_unsigned(x, IN_BITS), IN_BITS), (tiles, (config.max_tiles - 1).bit_length())]
            ),
            "i_side": pack_fields([(_unsigned(np.concatenate(sides), SIDE_BITS), SIDE_BITS)]),
        },
        expected={"o": _expected(tasks, lanes)},
        expected_cycles={"o": np.concatenate(replay(jobs))},
        max_cycles=FIRST_STEP_CYCLE + LATENCY_CYCLES + sum(job_cycles(job) for job in jobs) + 100,
    )


def _job_beats(jobs: Sequence[Job], config: EpilogueConfig) -> np.ndarray:
    readers = [(*job.readers, Reader())[:MAX_READERS] for job in jobs]
    shift_bits, out_bits = MAX_SHIFT.bit_length(), MAX_OUT_SHIFT.bit_length()
    fields = [
        ([job.n_beats for job in jobs], BEAT_BITS),
        ([job.n_tables for job in jobs], config.max_tiles.bit_length()),
        ([job.shift for job in jobs], shift_bits),
        ([job.side for job in jobs], 3),
        ([job.side_shift for job in jobs], MAX_SIDE_SHIFT.bit_length()),
        ([job.activation for job in jobs], 2),
        ([job.limit for job in jobs], LIMIT_BITS),
        ([len(job.readers) - 1 for job in jobs], 1),
    ]
    for number in range(MAX_READERS):
        fields += [([r[number].shift for r in readers], out_bits), ([r[number].wide for r in readers], 1)]
    return pack_fields([(np.array(values), bits) for values, bits in fields])


def _expected(tasks: Sequence[Task], lanes: int) -> np.ndarray:
    """Golden's beats: of each input beat one a reader, with the entries as the tables so far leave them."""
    entries: dict[int, Table] = {}
    data, masks, readers, lasts = [], [], [], []
    for task in tasks:
        if task.table is not None:
            entries |= enumerate(_entries(task.table, lanes))
        n_readers = len(task.job.readers)
        maps = np.zeros((task.job.n_beats, n_readers, lanes), np.int64)
        mask = np.zeros_like(maps)
        for tile in np.unique(task.tiles):
            there = task.tiles == tile
            outputs = epilogue(
                torch.from_numpy(task.x[there]),
                task.job,
                entries[int(tile)],
                _side_of(task.job, torch.from_numpy(task.side[there])),
            )
            maps[there] = torch.stack(outputs.maps, dim=1).numpy()
            mask[there] = outputs.mask[:, None].numpy()
        data.append(maps.reshape(-1, lanes))
        masks.append(mask.reshape(-1, lanes))
        readers.append(np.tile(np.arange(n_readers), task.job.n_beats))
        lasts.append(np.repeat(np.arange(task.job.n_beats) == task.job.n_beats - 1, n_readers))
    return pack_fields(
        [
            (_unsigned(np.concatenate(data), OUT_BITS), OUT_BITS),
            (np.concatenate(masks), 1),
            (np.concatenate(readers), 1),
            (np.concatenate(lasts), 1),
        ]
    )


def _entries(table: Table, lanes: int) -> list[Table]:
    """A table of whole tiles, tile by tile."""
    parts = [slice(start, start + lanes) for start in range(0, len(table.multiplier), lanes)]
    return [
        Table(multiplier=table.multiplier[p], bias=table.bias[p], scales=table.scales[:, p]) for p in parts
    ]


def _side_of(job: Job, side: torch.Tensor) -> torch.Tensor | None:
    match job.side:
        case Side.NOISE:
            return side[:, :1]
        case Side.RESIDUAL:
            return side
    return None


def _unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    return values & ((1 << bits) - 1)
