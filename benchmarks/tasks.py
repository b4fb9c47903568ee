# SPDX-License-Identifier: MIT
"""The 30 benchmarks of SpAtten as data, each with the source of its length and of its pruning."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from sim.records import reject_negative
from sim.tables import count, number, read_table
from sim.workload import (
    GenerationSchedule,
    ModelShape,
    Pruning,
    ScheduleLayer,
    Workload,
    generation,
    scheduled_generation,
    summarisation,
)

FOLDER = Path(__file__).parent
PRUNING_COLUMNS = (
    "setting", "token_keep", "head_keep", "value_keep",
    "query_bits", "key_bits", "key_lsb_bits", "value_bits", "status", "source",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One task on one model."""

    benchmark: str
    model: ModelShape
    task: str
    n_tokens: int
    """Length of the sentence (BERT) or of the prompt (GPT-2)."""
    n_generated: int
    """Generated tokens; 0: the sentence is summarised at once."""
    length_status: str
    length_source: str
    setting: str
    """Row of pruning.csv."""
    setting_status: str
    """'released trace' or 'estimated'."""
    setting_source: str

    def __post_init__(self) -> None:
        reject_negative(self)

    @property
    def status(self) -> str:
        """How well the workload is known: as well as the weaker of its length and its pruning."""
        return (
            "estimated" if "estimated" in (self.length_status, self.setting_status) else self.setting_status
        )

    @property
    def source(self) -> str:
        return f"Length: {self.length_source}. Pruning: {self.setting_source}."

    @property
    def family(self) -> str:
        """'bert' or 'gpt2': the two groups that the paper reports apart."""
        return self.benchmark.partition("-")[0]

    def pruned(self) -> Workload:
        """The workload after pruning and quantisation."""
        schedules = gpt2_schedules()
        if self.setting in schedules:
            return scheduled_generation(
                self.benchmark, self.model, self.n_tokens, self.n_generated, schedules[self.setting]
            )
        return self._build(pruning_settings()[self.setting])

    def dense(self) -> Workload:
        """The same task with nothing pruned, at the on-chip width."""
        return self._build(Pruning())

    def _build(self, pruning: Pruning) -> Workload:
        if self.n_generated:
            return generation(self.benchmark, self.model, self.n_tokens, self.n_generated, pruning)
        return summarisation(self.benchmark, self.model, self.n_tokens, pruning)


@cache
def models() -> dict[str, ModelShape]:
    """Attention shapes of the four models."""
    path = FOLDER / "models.csv"
    rows = read_table(path, ("model", "label", "n_layers", "n_heads", "head_dim", "source"))
    return {
        row["model"]: ModelShape(
            name=row["model"],
            n_layers=count(row, "n_layers", path),
            n_heads=count(row, "n_heads", path),
            head_dim=count(row, "head_dim", path),
        )
        for row in rows
    }


@cache
def pruning_settings() -> dict[str, Pruning]:
    """Settings of pruning.csv by name."""
    path = FOLDER / "pruning.csv"
    return {
        row["setting"]: Pruning(
            token_keep=number(row, "token_keep", path),
            head_keep=number(row, "head_keep", path),
            value_keep=number(row, "value_keep", path),
            query_bits=count(row, "query_bits", path),
            key_bits=count(row, "key_bits", path),
            key_lsb_bits=count(row, "key_lsb_bits", path),
            value_bits=count(row, "value_bits", path),
        )
        for row in read_table(path, PRUNING_COLUMNS)
    }


@cache
def gpt2_schedules() -> dict[str, GenerationSchedule]:
    """The generation schedules recovered from the traces released with SpAtten."""
    path = FOLDER / "gpt2_schedules.csv"
    numeric = ("n_heads", "n_keys", "n_values", "token_topk")
    layers: dict[str, dict[str, list[ScheduleLayer]]] = {}
    for row in read_table(path, ("schedule", "tokens", "layer", *numeric)):
        part = layers.setdefault(row["schedule"], {"first": [], "later": []})[row["tokens"]]
        if count(row, "layer", path) != len(part):
            raise ValueError(f"{path.name}: layer must be {len(part)} here, not {row['layer']}")
        part.append(ScheduleLayer(**{name: count(row, name, path) for name in numeric}))
    refetched = _refetched_heads()
    return {
        name: GenerationSchedule(
            name=name,
            pruning=pruning_settings()[name],
            first=tuple(parts["first"]),
            later=tuple(parts["later"]),
            refetched_heads=refetched.get(name, {}),
        )
        for name, parts in layers.items()
    }


def _refetched_heads() -> dict[str, Mapping[tuple[int, int], int]]:
    path = FOLDER / "gpt2_refetch.csv"
    found: dict[str, dict[tuple[int, int], int]] = {}
    for row in read_table(path, ("schedule", "token", "layer", "n_heads_refetched")):
        place = (count(row, "token", path), count(row, "layer", path))
        found.setdefault(row["schedule"], {})[place] = count(row, "n_heads_refetched", path)
    return {**found}


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """All 30, in the order of the paper's Fig. 14."""
    path = FOLDER / "tasks.csv"
    text = (
        "benchmark",
        "task",
        "length_status",
        "length_source",
        "setting",
        "setting_status",
        "setting_source",
    )
    columns = (
        "benchmark", "model", "task", "n_tokens", "n_generated",
        "length_status", "length_source", "setting", "setting_status", "setting_source",
    )  # fmt: skip
    return tuple(
        Benchmark(
            model=models()[row["model"]],
            n_tokens=count(row, "n_tokens", path),
            n_generated=count(row, "n_generated", path),
            **{name: row[name] for name in text},
        )
        for row in read_table(path, columns)
    )


def select(pattern: str) -> tuple[Benchmark, ...]:
    """The benchmarks whose name matches a shell pattern; ValueError where none does."""
    chosen = tuple(item for item in benchmarks() if fnmatchcase(item.benchmark, pattern))
    if not chosen:
        examples = ", ".join(item.benchmark for item in benchmarks()[::8])
        raise ValueError(f"--only {pattern!r} matches none of the 30 benchmarks (such as {examples})")
    return chosen
