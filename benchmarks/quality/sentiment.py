# SPDX-License-Identifier: MIT
"""Accuracy of an encoder on movie-review sentiment: pruned and quantised, fine-tuned, against dense.

The paper's protocol: fine-tune dense, prune, fine-tune again. For each seed three runs in a row: ``base``
and ``dense`` (the same again), then ``pruned`` from there with the dense model as its teacher. What dense
training gains from as many epochs at the same learning rate is ``longer``, also from ``dense``: the fair
opponent of ``pruned``. All are tested on the same sentences: differences are paired. The recipes were chosen
on the validation part, seed 0 (docs/attention.md).
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.attention.encoder import load_encoder
from algo.attention.finetune import (
    Distillation,
    SentimentTask,
    Teacher,
    TrainConfig,
    restore_weights,
    train,
)
from algo.attention.reviews import Review, Split, load_reviews, split
from algo.attention.settings import (
    HEAD_FREE_FRACTION,
    TOKEN_FREE_FRACTION,
    CascadeSettings,
    mean_keep,
)
from benchmarks.quality.progress import Progress
from benchmarks.quality.statistics import bootstrap_interval, mean_and_half_interval
from benchmarks.quality.store import cached

OFF = CascadeSettings()
SOURCE = "movie reviews"
DISTILLATION = Distillation(importance=3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The experiment; the defaults are its published form."""

    model: str = "minilm"
    token_ratio: float = 1.9
    """Layers / sum of keep ratios (paper: token and value pruning 1.9x on average)."""
    token_keep_start: float | None = 0.55
    """r_start of the token schedule; None: steeper, min(1, 1.5 r_avg)."""
    head_ratio: float = 1.1
    bits: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    dense_epochs: int = 1
    """Of the base run, and again of the dense one."""
    dense_learning_rate: float = 5e-5
    pruned_epochs: int = 4
    """Of the pruned run, which starts where the dense one ended."""
    pruned_learning_rate: float = 1e-4
    distillation: Distillation = DISTILLATION
    n_train: int | None = 5000
    """Training sentences used; None: all, about 6,900."""
    device: str = "cpu"

    def settings(self, n_layers: int) -> CascadeSettings:
        """The pruned case on a model of ``n_layers``."""
        return CascadeSettings(
            token_keep=mean_keep(self.token_ratio, n_layers, TOKEN_FREE_FRACTION),
            token_keep_start=self.token_keep_start,
            head_keep=mean_keep(self.head_ratio, n_layers, HEAD_FREE_FRACTION),
            q_bits=self.bits,
            k_bits=self.bits,
            v_bits=self.bits,
        )

    def dense_config(self, seed: int) -> TrainConfig:
        """Of the base run and the dense one."""
        return TrainConfig(
            epochs=self.dense_epochs, learning_rate=self.dense_learning_rate, seed=seed, device=self.device
        )

    def pruned_config(self, seed: int) -> TrainConfig:
        """Of the pruned run, and of the longer dense one."""
        return TrainConfig(
            epochs=self.pruned_epochs, learning_rate=self.pruned_learning_rate, seed=seed, device=self.device
        )


def run(folder: Path, setup: Setup, data: str | None, progress: Progress) -> None:
    """Train and test every seed that is not there yet; interrupted trainings resume."""
    reviews = load_reviews(data)
    parts = split(reviews)
    parts = replace(parts, training=parts.training[: setup.n_train])
    mark = hashlib.sha256("\n".join(review.text for review in reviews).encode()).hexdigest()
    sizes = {f"n_{part}": len(getattr(parts, part)) for part in ("training", "validation", "test")}
    inputs = asdict(setup) | {"data_sha256": mark} | sizes
    shared = {key: value for key, value in inputs.items() if key not in ("seeds", "n_train")}
    for name, compute in (("seed", run_seed), ("longer", run_longer)):
        for seed in setup.seeds:
            task = partial(compute, folder / f"seed-{seed}", setup, seed, parts, progress)
            cached(folder, f"{name}-{seed}", shared | {"seed": seed}, task)


def run_seed(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The trainings of one seed, and which sentences each model gets right."""
    train_dense(folder / "base", None, setup.dense_config(seed), setup, parts, progress)
    dense = train_dense(folder / "dense", folder / "base", setup.dense_config(seed), setup, parts, progress)
    pruned = train_pruned(folder / "pruned", folder / "dense", setup, seed, parts, progress)
    result: dict[str, Any] = {"settings": pruned.settings.to_dict()}
    for part, reviews in (("validation", parts.validation), ("test", parts.test)):
        for name, task, settings in (
            ("dense", dense, OFF),
            ("pruned", pruned, pruned.settings),
            ("pruned_without_finetuning", dense, pruned.settings),
        ):
            result.setdefault(part, {})[name] = tested(task, reviews, settings)
    return result


def run_longer(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model, trained further with the pruned run's epochs and learning rate."""
    config = setup.pruned_config(seed)
    longer = train_dense(folder / "longer", folder / "dense", config, setup, parts, progress)
    return {
        "validation": {"longer": tested(longer, parts.validation, OFF)},
        "test": {"longer": tested(longer, parts.test, OFF)},
    }


def train_dense(
    folder: Path, start: Path | None, config: TrainConfig, setup: Setup, parts: Split, progress: Progress
) -> SentimentTask:
    """From the packaged weights, or from the finished run in the folder ``start``."""
    source = SOURCE + (f", from {_digest(start)}" if start else "")
    task = SentimentTask(load_encoder(setup.model), parts.training, OFF, source)
    if start:
        restore_weights(task.module, start)
    what = f"seed {config.seed} {folder.name}"
    train(task, config, folder, lambda i, n, loss: progress(what, i, n))
    return task


def train_pruned(
    folder: Path, dense: Path, setup: Setup, seed: int, parts: Split, progress: Progress
) -> SentimentTask:
    """From the finished run in the folder ``dense``, which also teaches."""
    encoder = load_encoder(setup.model)
    source = f"{SOURCE}, from {_digest(dense)}"
    taught = SentimentTask(encoder, parts.training, OFF, source)
    restore_weights(taught.module, dense)
    taught.module.to(setup.device)
    progress(f"seed {seed} teacher", 0, 1)
    teacher = _teacher(folder / "teacher.safetensors", taught)
    settings = setup.settings(encoder.shape.n_layers)
    task = SentimentTask(encoder, parts.training, settings, source, teacher, setup.distillation)
    task.head.load_state_dict(taught.head.state_dict())
    train(task, setup.pruned_config(seed), folder, lambda i, n, loss: progress(f"seed {seed} pruned", i, n))
    return task


def _teacher(path: Path, taught: SentimentTask) -> Teacher:
    """What the dense model says, from an earlier start of the run if it is there."""
    if path.is_file():
        teacher = Teacher.load(path)
        if teacher.source == taught.source:
            return teacher
    teacher = taught.teach()
    teacher.save(path)
    return teacher


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()[:12]


def tested(trained: SentimentTask, reviews: list[Review], settings: CascadeSettings) -> str:
    """One digit per sentence, 1 where right."""
    task = SentimentTask(trained.encoder, reviews, settings, "test")
    task.head.load_state_dict(trained.head.state_dict())
    task.module.to(next(trained.module.parameters()).device)
    return "".join(str(int(right)) for right in task.correct().tolist())


# ---- from saved results to numbers -----------------------------------------------------------------------


def _right(results: list[dict[str, Any]], part: str, name: str) -> NDArray[np.float64]:
    return np.array([[float(digit) for digit in result[part][name]] for result in results])


def _accuracies(results: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list[float]]:
    return {
        f"{name}{suffix}_accuracy": _right(results, part, name).mean(1).tolist()
        for part, suffix in (("test", ""), ("validation", "_validation"))
        for name in names
    }


def _difference(pruned: NDArray[np.float64], dense: NDArray[np.float64]) -> dict[str, Any]:
    per_seed = (pruned - dense).mean(1)
    mean, half = mean_and_half_interval(per_seed)
    return {
        "n_seeds": len(per_seed),
        "difference": per_seed.tolist(),
        "mean_difference": mean,
        "seed_interval_95": [mean - half, mean + half] if len(per_seed) > 1 else None,
        "sentence_interval_95": bootstrap_interval((pruned - dense).mean(0)),
    }


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Accuracies and paired differences on the test part, from the results by name.

    ``against_dense`` is pruned - dense, the model it started from; ``against_longer`` is pruned - longer, the
    dense model with as many epochs, over the seeds that have it (None where none has). Two 95 % intervals:
    Student t over the seeds' mean differences (would other seeds agree? None for one seed), and a bootstrap
    over the test sentences, each averaged over seeds (would other sentences?).
    """
    seeds = sorted(int(name.removeprefix("seed-")) for name in results if name.startswith("seed-"))
    both = [seed for seed in seeds if f"longer-{seed}" in results]
    runs = [results[f"seed-{seed}"] for seed in seeds]
    longer = [results[f"longer-{seed}"] for seed in both]
    pruned, dense = (_right(runs, "test", name) for name in ("pruned", "dense"))
    found = {
        "n_test": dense.shape[1],
        "seeds": seeds,
        "seeds_of_longer": both,
        **_accuracies(runs, ("dense", "pruned_without_finetuning", "pruned")),
        "against_dense": _difference(pruned, dense),
        "against_longer": None,
    }
    if both:
        found |= _accuracies(longer, ("longer",))
        opponent = _right(longer, "test", "longer")
        found["against_longer"] = _difference(pruned[[seeds.index(seed) for seed in both]], opponent)
    return found
