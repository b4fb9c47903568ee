# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the epilogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import (
    BEAT_BITS,
    IN_BITS,
    LIMIT_BITS,
    MASK_READER,
    MAX_OUT_SHIFT,
    MAX_READERS,
    MAX_REDUCE_SHIFT,
    MAX_SHIFT,
    MAX_SIDE_SHIFT,
    MULTIPLIER_BITS,
    OUT_BITS,
    PARTS,
    SCALE_BITS,
    SIDE_BITS,
    SUMS,
    TABLE_BITS,
    VALUE_BITS,
    Activation,
    EpilogueConfig,
    Job,
    Reader,
    Reduction,
    Side,
    Table,
    signed_range,
)
from .cycles import FIRST_STEP_CYCLE, LATENCY_CYCLES, job_cycles, replay
from .golden import epilogue


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
    """int64[n_beats, lanes], signed 16 bits; noise in lane 0; a mask's bits in all of them."""


def cases(config: EpilogueConfig, *, seed: int, n_random: int) -> list[Case]:
    """Every activation with every side and both numbers of readers; extremes of every number and shift; a
    full table, then some of it anew; masks; sums of beats that follow one another in one tile and in several,
    taken at once; then random jobs. Jobs of a case follow one another."""
    rng = np.random.default_rng(seed)
    makes = {
        "activations and sides": [
            _job(rng, config, side=side, activation=activation, n_readers=n_readers, n_beats=3)
            for side in Side
            for activation in Activation
            for n_readers in (1, 2)
        ],
        "extremes": [
            _job(rng, config, shift=shift, out_shift=out_shift, side_shift=side_shift, n_beats=6)
            for shift in (0, 1, 24, MAX_SHIFT)
            for out_shift, side_shift in ((0, 0), (1, MAX_SIDE_SHIFT), (31, 8), (MAX_OUT_SHIFT, 7))
        ],
        "masks": [
            _job(rng, config, side=side, n_readers=n_readers, mask=True, n_beats=4)
            for side in (Side.NONE, Side.MASK)
            for n_readers in (1, 2)
        ],
        "sums": _reductions(rng, config),
        "extreme sums": [
            *(
                _job(
                    rng,
                    config,
                    side=side,
                    shift=0,
                    reduce_shift=shift,
                    n_beats=8,
                    reduces=True,
                    activation=Activation.NONE,
                )
                for side in (Side.PRODUCT, Side.MASK)
                for shift in (0, 8, MAX_REDUCE_SHIFT)
            ),
            _sums(config),
        ],
        "single beats": [_job(rng, config, n_beats=1, n_tables=n) for n in (1, 0, 0, 2, 1, 0)],
        "full table": [_job(rng, config, n_tables=n, n_beats=9) for n in (config.max_tiles, 0, 1, 0)],
        "random jobs": [_job(rng, config, n_tables=max(0, 2 - i % 4)) for i in range(2 + n_random)],
    }
    return [
        case(name, _tasks(jobs, config, rng, at_ends="extreme" in name), config)
        for name, jobs in makes.items()
    ]


def _reductions(rng: np.random.Generator, config: EpilogueConfig) -> list[Job]:
    """Jobs that add, of one beat and of some, masked, with factors and with several readers; and jobs that do
    not; sums of all tiles and of some, at once and of nothing."""
    made: list[Job] = [_job(rng, config, n_tables=config.max_tiles, n_beats=1, reduces=True), _sums(config)]
    for side in Side:
        made += [
            _job(rng, config, n_tables=0, side=side, reduces=True, n_beats=7, reduce_shift=4),
            _job(rng, config, n_tables=0, reduces=False),
            _job(rng, config, n_tables=0, side=Side.NONE, reduces=True, mask=True, n_readers=2),
            _job(rng, config, n_tables=0, reduces=True, n_beats=1),
            Job(n_beats=int(rng.integers(1, config.max_tiles * PARTS + 1)), gives_sums=True),
        ]
    return [*made, _sums(config)]


def _sums(config: EpilogueConfig) -> Job:
    """Those of all tiles."""
    return Job(n_beats=config.max_tiles * PARTS, gives_sums=True)


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
    mask: bool | None = None,
    reduces: bool | None = None,
    reduce_shift: int | None = None,
) -> Job:
    """What is not given is random, shifts such that numbers neither vanish nor all saturate."""
    readers = tuple(
        Reader(
            shift=int(rng.integers(8, 28)) if out_shift is None else out_shift, wide=bool(rng.integers(0, 2))
        )
        for _ in range(n_readers or int(rng.integers(1, MAX_READERS + 1)))
    )
    if side is None:
        side = Side(int(rng.choice([s for s in Side if reduces in (None, True) or s != Side.PRODUCT])))
    reduces = bool(rng.integers(0, 2)) if reduces is None else reduces
    return Job(
        n_beats=n_beats or int(rng.integers(1, 13)),
        n_tables=min(n_tables, config.max_tiles),
        shift=int(rng.integers(8, 36)) if shift is None else shift,
        side=side,
        side_shift=int(rng.integers(0, 9)) if side_shift is None else side_shift,
        activation=Activation(int(rng.integers(0, len(Activation)))) if activation is None else activation,
        limit=int(rng.integers(0, 1 << rng.integers(1, LIMIT_BITS + 1))),
        readers=readers,
        mask=bool(rng.random() < 0.3) if mask is None else mask,
        reduction=_reduction(side, reduces),
        reduce_shift=int(rng.integers(0, 12)) if reduce_shift is None else reduce_shift,
    )


def _reduction(side: Side, reduces: bool) -> Reduction:
    if side == Side.PRODUCT:
        return Reduction.PRODUCT
    return Reduction.SQUARE if reduces else Reduction.NONE


def _tasks(
    jobs: Sequence[Job], config: EpilogueConfig, rng: np.random.Generator, *, at_ends: bool
) -> list[Task]:
    """Each job with numbers, its beats at any entry that it or an earlier one has loaded."""
    loaded = np.maximum.accumulate([job.n_tables for job in jobs])
    return [_task(job, int(n), config, rng, at_ends) for job, n in zip(jobs, loaded, strict=True)]


def _task(job: Job, n_loaded: int, config: EpilogueConfig, rng: np.random.Generator, at_ends: bool) -> Task:
    size = (0 if job.gives_sums else job.n_beats, config.lanes)
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
        tiles=np.sort(rng.integers(0, n_loaded, size[0])),
        side=rng.integers(0, 2, size)
        if job.side == Side.MASK
        else _numbers(rng, size, *signed_range(SIDE_BITS), at_ends),
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
    sides = [np.zeros((0, lanes), np.int64), *(_side_beats(t) for t in tasks if t.job.side != Side.NONE)]
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
    last = [
        ([job.mask for job in jobs], 1),
        ([job.reduction for job in jobs], 2),
        ([job.reduce_shift for job in jobs], MAX_REDUCE_SHIFT.bit_length()),
        ([job.gives_sums for job in jobs], 1),
    ]
    for number in range(MAX_READERS):
        fields += [([r[number].shift for r in readers], out_bits), ([r[number].wide for r in readers], 1)]
    return pack_fields([(np.array(values), bits) for values, bits in [*fields, *last]])


def _side_beats(task: Task) -> np.ndarray:
    """int64[n_beats, lanes]: of a mask its bits from lane 0's lowest bit on, and rubbish above them."""
    if task.job.side != Side.MASK:
        return task.side
    beats = np.full_like(task.side, -(1 << (SIDE_BITS - 1)))
    for lane, bits in enumerate(task.side.T):
        beats[:, lane // SIDE_BITS] += bits << lane % SIDE_BITS
    return beats


def _expected(tasks: Sequence[Task], lanes: int) -> np.ndarray:
    """Golden's beats: of each input beat one a reader, with the entries as the tables so far leave them."""
    entries: dict[int, Table] = {}
    sums: dict[int, np.ndarray] = {}
    made = []
    for task in tasks:
        if task.table is not None:
            entries |= enumerate(_entries(task.table, lanes))
        if task.job.gives_sums:
            made.append(_given(task.job, sums, lanes))
            sums = {}
        else:
            made.append(_computed(task, entries, sums, lanes))
    data, masks, readers, lasts = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return pack_fields([(_unsigned(data, OUT_BITS), OUT_BITS), (masks, 1), (readers, 2), (lasts, 1)])


Beats = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Data, mask, reader, last of a job's beats."""


def _computed(task: Task, entries: Mapping[int, Table], sums: dict[int, np.ndarray], lanes: int) -> Beats:
    """A job's beats; adds to ``sums``, int64[lanes, 2] of each tile."""
    job = task.job
    readers = [*range(len(job.readers)), *([MASK_READER] if job.mask else [])]
    maps = np.zeros((job.n_beats, len(readers), lanes), np.int64)
    mask = np.zeros_like(maps)
    for tile in np.unique(task.tiles):
        there = task.tiles == tile
        outputs = epilogue(
            torch.from_numpy(task.x[there]),
            job,
            entries[int(tile)],
            _side_of(job, torch.from_numpy(task.side[there])),
        )
        of_mask = outputs.maps[:1] if job.mask else ()
        maps[there] = torch.stack([*outputs.maps, *of_mask], dim=1).numpy()
        mask[there] = outputs.mask[:, None].numpy()
        if outputs.sums is not None:
            sums[int(tile)] = sums.get(int(tile), 0) + outputs.sums.numpy()
    is_last = np.arange(job.n_beats) == job.n_beats - 1
    return (
        maps.reshape(-1, lanes),
        mask.reshape(-1, lanes),
        np.tile(readers, job.n_beats),
        np.repeat(is_last, len(readers)),
    )


def _given(job: Job, sums: Mapping[int, np.ndarray], lanes: int) -> Beats:
    """Sums as they lie in memory, in beats of 16 bits a lane."""
    n = job.n_beats
    of_tiles = [sums.get(tile, np.zeros((lanes, SUMS), np.int64)) for tile in range(-(-n // PARTS))]
    words = np.stack(of_tiles).astype("<i8").view("<u2").reshape(-1, lanes)[:n].astype(np.int64)
    return words, np.zeros_like(words), np.zeros(n, np.int64), np.arange(n) == n - 1


def _entries(table: Table, lanes: int) -> list[Table]:
    """A table of whole tiles, tile by tile."""
    parts = [slice(start, start + lanes) for start in range(0, len(table.multiplier), lanes)]
    return [
        Table(multiplier=table.multiplier[p], bias=table.bias[p], scales=table.scales[:, p]) for p in parts
    ]


def _side_of(job: Job, side: torch.Tensor) -> torch.Tensor | None:
    if job.side == Side.NOISE:
        return side[:, :1]
    return None if job.side == Side.NONE else side


def _unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    return values & ((1 << bits) - 1)
