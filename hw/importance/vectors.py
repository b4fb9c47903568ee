# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the importance accumulators: programs of commands."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.stream.rows import dense_beats

from .config import MAX_QUERIES, ImportanceConfig
from .cycles import Add, Clear, Command, Keep, Load, Read, replay
from .golden import Importance

OPS = {Add: 0, Read: 1, Keep: 2, Clear: 3, Load: 4}


def cases(config: ImportanceConfig, *, seed: int, n_random: int) -> list[Case]:
    """Corners one by one, then random sentences of ``n_random`` layers."""
    rng = np.random.default_rng(seed)
    largest_adds = min(config.max_adds, 40)
    return [
        case("nothing held", [Read(), Keep(positions=np.arange(0)), Read(), Clear(), Read()], config),
        case("largest sums", list(_largest(largest_adds, config)), config),
        case("rows of one line", list(_short_rows(config, rng)), config),
        case("a line again after others", list(_lines_apart(config, rng)), config),
        case("what is kept", list(_kept(config, rng)), config),
        case("scores from outside", list(_loaded(config, rng)), config),
        case("sentences", list(_sentences(n_random, config, rng)), config),
    ]


def _largest(n_adds: int, config: ImportanceConfig) -> Iterator[Command]:
    """A score can hold ``max_adds`` of the largest values; every shift, saturating ones included."""
    row = np.full(config.lanes, (1 << config.value_bits) - 1)
    yield Add(rows=[row] * n_adds)
    for shift in range(config.max_shift + 1):
        yield Read(shift=shift)


def _short_rows(config: ImportanceConfig, rng: np.random.Generator) -> Iterator[Command]:
    """Sums on their way meet the next row, in the same command and in the next."""
    yield Clear()
    for n_rows in (1, 1, 2, 3, 5):
        yield Add(rows=[_values(int(rng.integers(1, config.lanes + 1)), config, rng) for _ in range(n_rows)])
    yield Read()
    yield Add(rows=[_values(config.lanes, config, rng)])
    yield Keep(positions=np.arange(0, config.lanes, 2))
    yield Read()


def _lines_apart(config: ImportanceConfig, rng: np.random.Generator) -> Iterator[Command]:
    """Successive rows meet a line again after one, two, three beats; rows shorter and longer than before."""
    for n_lines in (1, 2, 3, 4, 3, 2, 1):
        n = min(config.n_max, n_lines * config.lanes - int(rng.integers(0, config.lanes)))
        yield Add(rows=[_values(n, config, rng) for _ in range(3)])
        yield Read()
    # A clear forgets what lies in the memory, also behind a shorter row.
    yield Clear()
    yield Add(rows=[_values(1, config, rng)])
    yield Add(rows=[_values(min(config.n_max, 2 * config.lanes + 1), config, rng)])
    yield Read(shift=config.max_shift)


def _kept(config: ImportanceConfig, rng: np.random.Generator) -> Iterator[Command]:
    """All, none, first, last, around every border of lines and beats; scores go on from there."""
    n = min(config.n_max, 4 * config.kept_lanes)
    everything = np.arange(n)
    choices = [
        everything,
        everything[:0],
        everything[:1],
        everything[-1:],
        everything[1:],
        everything[::2],
        everything[: config.kept_lanes],
        everything[: config.kept_lanes + 1],
        everything[config.kept_lanes // 2 :],
        everything[:: config.lanes],
        np.delete(everything, everything[config.lanes - 1 :: 2 * config.lanes]),
    ]
    for positions in choices:
        yield Clear()
        yield Add(rows=_rows(n, config, rng))
        yield Keep(positions=positions)
        yield Read()
        yield Add(rows=_rows(min(config.n_max, len(positions) + 1), config, rng))
        yield Read(shift=config.max_shift // 2)


def _loaded(config: ImportanceConfig, rng: np.random.Generator) -> Iterator[Command]:
    """Odd and largest elements, every shift; what is added, read and kept goes on from there."""
    yield Add(rows=_rows(config.lanes + 1, config, rng))
    for shift in range(config.max_shift + 1):
        for n in (1, config.lanes, config.lanes + 1, config.kept_lanes + 1):
            halve = bool(rng.random() < 0.5)
            largest = (1 << min(config.element_bits, config.score_bits - shift)) - 1
            elements = rng.integers(0, largest + 1, n)
            elements[0] = largest
            yield Load(elements=elements, shift=shift, halve=halve)
            yield Read(shift=shift)
            yield Load(elements=elements >> 2, shift=shift, halve=True)
            yield Add(rows=_rows(n, config, rng))
            yield Keep(positions=np.arange(0, n, 2))
            yield Read()


def _rows(n: int, config: ImportanceConfig, rng: np.random.Generator) -> list[np.ndarray]:
    return [_values(n, config, rng)]


def _values(n: int, config: ImportanceConfig, rng: np.random.Generator) -> np.ndarray:
    """Small values mostly, as probabilities are; a few of the largest."""
    bits = rng.choice([1, config.value_bits // 2 + 1, config.value_bits], n)
    return rng.integers(0, 1 << bits.astype(np.int64))


def _sentences(n_layers: int, config: ImportanceConfig, rng: np.random.Generator) -> Iterator[Command]:
    """Layers of a few heads and queries, some of them with a selection at the end; new tokens; clears."""
    n, n_adds = 0, 0
    for _ in range(n_layers):
        if n == 0 or rng.random() < 0.1 or n_adds + 4 > config.max_adds:
            yield Clear()
            n, n_adds = int(rng.integers(1, config.n_max + 1)), 0
        n_rows = int(rng.integers(1, 4))
        if config.lanes == 1:
            # Heads: one score a beat, each head in turn.
            for head in range(n):
                yield Add(rows=[_values(1, config, rng) for _ in range(n_rows)], line=head)
        else:
            yield Add(rows=[_values(n, config, rng) for _ in range(n_rows)])
        n_adds += n_rows
        if rng.random() < 0.7:
            yield Read(shift=int(rng.integers(0, config.max_shift + 1)))
            k = int(rng.integers(0, n + 1))
            yield Keep(positions=np.sort(rng.choice(n, k, replace=False)))
            n = min(config.n_max, k + int(rng.integers(0, 2)))
    yield Read(shift=config.max_shift)


def case(name: str, commands: Sequence[Command], config: ImportanceConfig) -> Case:
    """Commands back to back, rows and positions offered as early as they are taken."""
    rows, kept, outputs = _played(commands, config)
    loaded = [command.elements for command in commands if isinstance(command, Load)]
    on_time = np.array(replay(commands, config)[1], dtype=np.int64)
    return Case(
        name=name,
        inputs={
            "i_command": _commands(commands, config),
            "i": dense_beats(rows, config.lanes, config.value_bits),
            "i_kept": dense_beats(kept, config.kept_lanes, config.index_bits),
            "i_load": dense_beats(loaded, config.lanes, config.element_bits),
        },
        expected={"o": dense_beats(outputs, config.kept_lanes, config.element_bits)},
        expected_cycles={"o": on_time},
        max_cycles=int(on_time[-1]) + 100,
    )


def _played(
    commands: Sequence[Command], config: ImportanceConfig
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Rows and lists that the commands take, and what the golden model puts out."""
    golden = Importance(config)
    rows: list[np.ndarray] = []
    kept, outputs = [], []
    for command in commands:
        match command:
            case Add():
                for row in command.rows:
                    golden.add(torch.from_numpy(row), command.line * config.lanes)
                rows += command.rows
            case Read():
                outputs.append(golden.elements(command.shift).numpy())
            case Keep():
                golden.keep(torch.from_numpy(command.positions))
                kept.append(command.positions)
            case Clear():
                golden.clear()
            case Load():
                elements = torch.from_numpy(command.elements)
                golden.load(elements, command.shift, halve=command.halve)
    return rows, kept, outputs


def _commands(commands: Sequence[Command], config: ImportanceConfig) -> Beats:
    n_rows = np.array([len(getattr(command, "rows", ())) for command in commands])
    if n_rows.max(initial=0) > MAX_QUERIES:
        raise ValueError(f"n_rows must be in 0..{MAX_QUERIES}, not {n_rows.max()}")
    return pack_fields(
        [
            (np.array([OPS[type(command)] for command in commands]), 3),
            (
                np.array([getattr(command, "line", 0) for command in commands]),
                (config.max_lines - 1).bit_length(),
            ),
            (n_rows, config.rows_bits),
            (np.array([getattr(command, "shift", 0) for command in commands]), config.shift_bits),
            (np.array([getattr(command, "halve", False) for command in commands], dtype=int), 1),
        ]
    )
