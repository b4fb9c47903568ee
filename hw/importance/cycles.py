# SPDX-License-Identifier: MIT
"""Cycle model of the importance accumulators: exact, for commands, rows and positions that never wait.

With L lanes, P lanes of the selection engine, n scores held, a command taken in cycle c:

- ADD of rows that take N beats in all: beats in c + 1 .. c + N, the next command in c + N + 1;
- READ: line j of B = max(1, ceil(n / L)) is read in c + START_CYCLES + j, its elements are at the regrouping
  READ_LATENCY_CYCLES later; an output beat leaves with the line that completes it, the next command follows
  the last line;
- KEEP of k positions in max(1, ceil(k / P)) beats, the last on line a: S = a + beats steps (an empty list:
  1), the first in c + START_CYCLES; the next command follows KEEP_LATENCY_CYCLES + 1 after the last step,
  one more where the packer's last beat overflows;
- CLEAR: the next command in c + 1;
- LOAD of n elements: beats in c + 1 .. c + ceil(n / L), the next command one after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import KEEP_LATENCY_CYCLES, READ_LATENCY_CYCLES, START_CYCLES, ImportanceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Add:
    """Rows of values, each added from line ``line`` on."""

    rows: Sequence[np.ndarray]
    """int64[n] each, n at least 1."""
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """All scores to the selection engine."""

    shift: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Only these positions stay."""

    positions: np.ndarray
    """int64[k], ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clear:
    """A new sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """These scores in place of all others."""

    elements: np.ndarray
    """int64[n], n at least 1."""
    shift: int = 0
    halve: bool = False


Command = Add | Read | Keep | Clear | Load


def replay(commands: Sequence[Command], config: ImportanceConfig) -> tuple[list[int], list[int]]:
    """Cycle in which each command is taken, and cycle of each output beat; the first command's is 1."""
    cycle, n_held = 1, 0
    taken, outputs = [], []
    for command in commands:
        taken.append(cycle)
        match command:
            case Add():
                cycle += 1 + add_cycles([len(row) for row in command.rows], config)
                ends = [command.line * config.lanes + len(row) for row in command.rows]
                n_held = max([n_held, *ends])
            case Read():
                outputs += (cycle + read_output_cycles(n_held, config)).tolist()
                cycle = outputs[-1] + 1
            case Keep():
                cycle += 1 + keep_cycles(command.positions, config)
                n_held = len(command.positions)
            case Clear():
                cycle, n_held = cycle + 1, 0
            case Load():
                n_held = len(command.elements)
                cycle += 1 + add_cycles([n_held], config)
    return taken, outputs


def add_cycles(n: np.ndarray | Sequence[int], config: ImportanceConfig) -> int:
    """Cycles of rows of n values each: the sum of their ceil(n / L) beats."""
    return int((-(-np.asarray(n, dtype=np.int64) // config.lanes)).sum())


def read_output_cycles(n: int, config: ImportanceConfig) -> np.ndarray:
    """Cycle of each of the max(1, ceil(n / P)) beats of ``o``, counted from the command's own (0)."""
    n_lines = max(1, -(-n // config.lanes))
    lines_per_beat = config.kept_lanes // config.lanes
    beats = np.arange(-(-n_lines // lines_per_beat))
    completing = np.minimum((beats + 1) * lines_per_beat, n_lines) - 1
    return START_CYCLES + completing + READ_LATENCY_CYCLES


def keep_cycles(positions: np.ndarray, config: ImportanceConfig) -> int:
    """Cycles after the command until the next can be taken."""
    lanes, k = config.lanes, len(positions)
    overflows = False
    n_steps = 1
    if k:
        line, beat = positions // lanes, np.arange(k) // config.kept_lanes
        n_steps = int(line[-1] + beat[-1]) + 1
        n_last = int(((line == line[-1]) & (beat == beat[-1])).sum())  # found in the last step
        overflows = (k - n_last) % lanes + n_last > lanes
    return START_CYCLES - 1 + n_steps + KEEP_LATENCY_CYCLES + overflows
