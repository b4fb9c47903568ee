# SPDX-License-Identifier: MIT
"""Runs the benchmarks: resumable, in parallel, one JSON file per benchmark, failures reported one by one."""

import hashlib
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from benchmarks.paper import PAPER_EAGER, eager_latency_s, eager_power_w
from benchmarks.tasks import Benchmark
from hw.config import ChipConfig
from sim.attention import CoreTiming
from sim.baselines import ROOFLINE, platforms, roofline_s
from sim.records import digest
from sim.result import Baseline, BenchmarkResult, Provenance, dense_traffic, on_core, simulate
from sim.workload import Workload

ROOT = Path(__file__).parent.parent
MODEL_FILES = (
    "sim/*.py",
    "sim/*.csv",
    "benchmarks/tasks.py",
    "benchmarks/paper.py",
    "benchmarks/*.csv",
    "hw/config.py",
    "hw/topk/config.py",
    "hw/topk/cycles.py",
)
"""What a result depends on: a change in any of them makes saved results stale."""
CORE_FILES = (
    "sim/core.py",
    "sim/driver/layers.py",
    "hw/config.py",
    "hw/*/config.py",
    "hw/*/cycles.py",
    "hw/fetch/layout.py",
    "hw/attention/layers.py",
    "hw/attention/replay/*.py",
)
"""What the cycles of a replayed layer depend on, beside its workload and its chip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one benchmark."""

    benchmark: str
    result: BenchmarkResult | None
    reused: bool = False
    error: str = ""
    """Empty where there is a result."""


def open_results(
    chosen: Sequence[Benchmark], chip: ChipConfig, out: Path, *, exact: bool = False
) -> dict[str, BenchmarkResult]:
    """Make the folder ``out`` and read the results in it that are still valid, by benchmark.

    ``exact``: those with cycles of the core's cycle model. Raises ValueError naming a file that cannot be
    read as a result, OSError where ``out`` cannot be a folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    saved = {item.benchmark: _reusable(item, chip, out, exact) for item in chosen}
    return {name: result for name, result in saved.items() if result}


def run_benchmarks(
    chosen: Sequence[Benchmark],
    chip: ChipConfig,
    out: Path,
    saved: Mapping[str, BenchmarkResult],
    *,
    core_cycles: Mapping[str, int] | None = None,
    n_jobs: int = 1,
    command: str = "",
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run those of ``chosen`` that are not in ``saved``, one file ``out/<benchmark>.json`` each.

    A file is written whole or not at all. ``on_done`` is called as each one ends; the list is in the order
    of ``chosen``. A benchmark that fails is an Outcome with an error, and the others go on. With
    ``core_cycles`` by benchmark, of :func:`benchmarks.exact.replay_benchmarks`, results have those cycles.
    """
    outcomes = {name: Outcome(benchmark=name, result=result, reused=True) for name, result in saved.items()}
    for outcome in outcomes.values():
        on_done(outcome)
    todo = [item for item in chosen if item.benchmark not in saved]
    provenance = collect_provenance(command)
    parallel = Parallel(n_jobs=min(n_jobs, max(1, len(todo))), return_as="generator_unordered")
    known = core_cycles or {}
    for outcome in parallel(
        delayed(_attempt)(item, chip, out, provenance, known.get(item.benchmark)) for item in todo
    ):
        outcomes[outcome.benchmark] = outcome
        on_done(outcome)
    return [outcomes[item.benchmark] for item in chosen]


def _attempt(
    item: Benchmark, chip: ChipConfig, out: Path, provenance: Provenance, core_cycles: int | None
) -> Outcome:
    try:
        result = run_one(item, chip, provenance, core_cycles)
        write_atomically(out / f"{item.benchmark}.json", result.to_json())
    except Exception as error:  # one failure must not take the others with it
        if os.environ.get("QUARTET_TRACEBACK"):
            traceback.print_exc()
        return Outcome(benchmark=item.benchmark, result=None, error=f"{type(error).__name__}: {error}")
    return Outcome(benchmark=item.benchmark, result=result)


def run_one(
    item: Benchmark, chip: ChipConfig, provenance: Provenance, core_cycles: int | None = None
) -> BenchmarkResult:
    """Simulate one benchmark, pruned and dense, and set the baselines beside it.

    ``core_cycles`` of the pruned one take the place of the closed form's; the dense one has the latter.
    """
    pruned, dense = item.pruned(), item.dense()
    config = resolved_config(item, chip, exact=core_cycles is not None)
    simulated = simulate(pruned, chip)
    return BenchmarkResult(
        benchmark=item.benchmark,
        model=item.model.name,
        task=item.task,
        workload_status=item.status,
        workload_source=item.source,
        config=config,
        config_hash=digest(config),
        pruned=simulated if core_cycles is None else on_core(simulated, core_cycles),
        dense=simulate(dense, chip),
        dense_traffic=dense_traffic(dense),
        baselines=_baselines(item.benchmark, dense),
        provenance=provenance,
    )


def _baselines(benchmark: str, dense: Workload) -> tuple[Baseline, ...]:
    """Rooflines everywhere; the paper's own timing where it gives an absolute one."""
    found = []
    for name, machine in platforms().items():
        found.append(
            Baseline(
                platform=name,
                kind=ROOFLINE,
                latency_s=roofline_s(dense, machine),
                dynamic_power_w=machine.dynamic_power_w,
            )
        )
        timed_s = eager_latency_s(benchmark, name)
        if timed_s is not None:
            power_w = eager_power_w(benchmark, name)
            found.append(
                Baseline(platform=name, kind=PAPER_EAGER, latency_s=timed_s, dynamic_power_w=power_w)
            )
    return tuple(found)


def resolved_config(item: Benchmark, chip: ChipConfig, *, exact: bool = False) -> dict[str, Any]:
    """Everything that a result depends on, as plain data; its hash is the result's identity."""
    config = {
        "benchmark": asdict(item),
        "chip": asdict(chip),
        "timing": asdict(CoreTiming()),
        "model_sha256": model_digest(),
    }
    return config | {"core_sha256": core_digest()} if exact else config


def model_digest() -> str:
    """SHA-256 (first 16 digits) of the files a result depends on."""
    return _digest_of_files(MODEL_FILES)


def core_digest() -> str:
    """Of those that the cycles of the core's cycle model depend on."""
    return _digest_of_files(CORE_FILES)


@cache
def _digest_of_files(patterns: tuple[str, ...]) -> str:
    sha = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        sha.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def _reusable(item: Benchmark, chip: ChipConfig, out: Path, exact: bool) -> BenchmarkResult | None:
    """The saved result, if its configuration is today's; None if it is stale or there is none."""
    path = out / f"{item.benchmark}.json"
    if not path.exists():
        return None
    saved = read_result(path)
    return saved if saved.config_hash == digest(resolved_config(item, chip, exact=exact)) else None


def read_result(path: Path) -> BenchmarkResult:
    """A saved result; ValueError naming the file and what is wrong with it."""
    try:
        return BenchmarkResult.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside ``path``, then rename over it: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    temporary.write_bytes(data)
    os.replace(temporary, path)


def collect_provenance(command: str) -> Provenance:
    """Commit, versions and time of now. Nothing in the model is random, so there is no seed."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return Provenance(
        command=command,
        commit=commit,
        dirty=bool(changed),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **_package_versions("quartet", "numpy", "joblib")},
        seed=None,
    )


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _package_versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def command_line() -> str:
    """The command as typed, without the folder of the program."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
