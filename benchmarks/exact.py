# SPDX-License-Identifier: MIT
"""Cycles of the benchmarks by the core's exact cycle model, for ``quartet bench --exact``: resumable.

Layers are replayed in parallel, each once for all benchmarks that have it. Their cycles are saved as they
come, in one file beside the results.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from joblib import Parallel, delayed

from benchmarks.runner import core_digest, write_atomically
from benchmarks.tasks import Benchmark
from hw.config import ChipConfig
from sim.core import Replay, replays
from sim.records import digest

CYCLES_FILE = Path("core") / "cycles.json"
"""Below the folder of the results: cycles of each replayed layer, by the hash of all that they depend on."""


def replay_benchmarks(
    chosen: Sequence[Benchmark],
    chip: ChipConfig,
    out: Path,
    *,
    n_jobs: int = 1,
    on_done: Callable[[int, int], None] = lambda n_done, n_all: None,
) -> dict[str, int]:
    """Cycles of each benchmark, pruned, by its name. ``on_done`` is told how many layers of all are done.

    Raises ValueError where a benchmark does not fit the core, or the saved cycles cannot be read.
    """
    weights = {item.benchmark: replays(item.pruned(), chip) for item in chosen}
    path = out / CYCLES_FILE
    saved = _read(path)
    names = {one: _name(one, chip) for of_item in weights.values() for one in of_item}
    todo = [one for one, name in names.items() if name not in saved]
    todo.sort(key=lambda one: -one.shape.n_heads * one.shape.n_queries * one.shape.n_keys)  # longest first
    on_done(len(names) - len(todo), len(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    for n_left, (one, cycles) in enumerate(_replayed(todo, chip, n_jobs), 1):
        saved[names[one]] = cycles
        write_atomically(path, json.dumps(saved, indent=0, sort_keys=True) + "\n")
        on_done(len(names) - len(todo) + n_left, len(names))
    return {
        benchmark: round(sum(n * saved[names[one]] for one, n in of_item.items()))
        for benchmark, of_item in weights.items()
    }


def _replayed(todo: Sequence[Replay], chip: ChipConfig, n_jobs: int) -> Iterator[tuple[Replay, int]]:
    parallel = Parallel(n_jobs=min(n_jobs, max(1, len(todo))), return_as="generator_unordered")
    return parallel(delayed(_replay)(one, chip) for one in todo)


def _replay(one: Replay, chip: ChipConfig) -> tuple[Replay, int]:
    return one, one.cycles(chip)


def _name(one: Replay, chip: ChipConfig) -> str:
    return digest({"layer": digest(one), "chip": digest(chip), "model": core_digest()})


def _read(path: Path) -> dict[str, int]:
    """ValueError naming the file where it does not hold cycles by hash."""
    if not path.exists():
        return {}
    try:
        saved: Mapping[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(cycles) for name, cycles in saved.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not cycles by hash: {error}") from None
