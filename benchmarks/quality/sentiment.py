# SPDX-License-Identifier: MIT
"""Accuracy of an encoder on movie-review sentiment: pruned and quantised, fine-tuned, against dense.

``dense`` is trained once from the packaged weights. From there, for each seed: ``pruned``, with the dense
model as its teacher, and ``longer``, the dense model trained with the pruned run's epochs, learning rate and
batches. ``longer`` is the fair opponent of ``pruned``; ``dense`` is what it started from. A seed orders the
batches and draws the dropout of both. All are tested on the same sentences: differences are paired. Choices
were made on the validation part, seed 0 (docs/attention.md).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.attention.encoder import Encoder, load_encoder
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
    """Of the runs after the dense one, whose seed is 0."""
    dense_epochs: int = 6
    dense_learning_rate: float = 1e-4
    pruned_epochs: int = 4
    """Of the pruned run and the longer dense one, which start where the dense one ended."""
    pruned_learning_rate: float = 1e-4
    distillation: Distillation = DISTILLATION
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

    def dense_config(self) -> TrainConfig:
        """Of the dense run."""
        return TrainConfig(
            epochs=self.dense_epochs, learning_rate=self.dense_learning_rate, device=self.device
        )

    def pruned_config(self, seed: int) -> TrainConfig:
        """Of the pruned run, and of the longer dense one."""
        return TrainConfig(
            epochs=self.pruned_epochs, learning_rate=self.pruned_learning_rate, seed=seed, device=self.device
        )


def run(folder: Path, setup: Setup, data: str | None, progress: Progress) -> None:
    """Train and test what is not there yet, the longer dense runs last; interrupted trainings resume."""
    reviews = load_reviews(data)
    parts = split(reviews)
    mark = hashlib.sha256("\n".join(review.text for review in reviews).encode()).hexdigest()
    sizes = {f"n_{part}": len(getattr(parts, part)) for part in ("training", "validation", "test")}
    inputs = asdict(setup) | {"data_sha256": mark} | sizes
    del inputs["seeds"]
    cached(folder, "dense", inputs, partial(run_dense, folder, setup, parts, progress))
    for name, compute in (("pruned", run_pruned), ("longer", run_longer)):
        for seed in setup.seeds:
            task = partial(compute, folder, setup, seed, parts, progress)
            cached(folder, f"{name}-{seed}", inputs | {"seed": seed}, task)


def run_dense(folder: Path, setup: Setup, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model: which sentences it gets right as it is, and pruned without fine-tuning."""
    dense = train_dense(folder / "dense", None, setup.dense_config(), setup, parts, progress)
    settings = setup.settings(dense.encoder.shape.n_layers)
    cases = {"dense": OFF, "pruned_without_finetuning": settings}
    return {"settings": settings.to_dict(), **_tested_on_both(dense, parts, cases)}


def run_pruned(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model, pruned and fine-tuned."""
    pruned = train_pruned(folder / f"seed-{seed}" / "pruned", folder / "dense", setup, seed, parts, progress)
    return _tested_on_both(pruned, parts, {"pruned": pruned.settings})


def run_longer(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model, trained further with the pruned run's epochs and learning rate."""
    config = setup.pruned_config(seed)
    run_folder = folder / f"seed-{seed}" / "longer"
    longer = train_dense(run_folder, folder / "dense", config, setup, parts, progress)
    return _tested_on_both(longer, parts, {"longer": OFF})


def _tested_on_both(
    task: SentimentTask, parts: Split, cases: dict[str, CascadeSettings]
) -> dict[str, dict[str, str]]:
    """For both parts kept aside and each case, by name: one digit per sentence, 1 where right."""
    return {
        part: {name: tested(task, getattr(parts, part), settings) for name, settings in cases.items()}
        for part in ("validation", "test")
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
    progress(f"seed {seed} teacher", 0, 1)
    teacher = taught_by(dense, encoder, parts.training, SOURCE, setup.device)
    settings = setup.settings(encoder.shape.n_layers)
    task = SentimentTask(encoder, parts.training, settings, teacher.source, teacher, setup.distillation)
    restore_weights(task.module, dense)
    train(task, setup.pruned_config(seed), folder, lambda i, n, loss: progress(f"seed {seed} pruned", i, n))
    return task


def taught_by(dense: Path, encoder: Encoder, reviews: list[Review], source: str, device: str) -> Teacher:
    """What the finished dense run in the folder ``dense`` says about the reviews.

    Kept there as ``teacher.safetensors``; asked again where the weights or the sentences' lengths are others.
    Afterwards the encoder holds the dense run's weights. FileNotFoundError where no run is finished there,
    ValueError where its weights do not fit or it was pruned or quantised.
    """
    _check_dense(dense)
    taught = SentimentTask(encoder, reviews, OFF, f"{source}, from {_digest(dense)}")
    restore_weights(taught.module, dense)
    path = dense / "teacher.safetensors"
    if path.is_file():
        teacher = Teacher.load(path)
        if teacher.source == taught.source and teacher.fits(taught.ids):
            return teacher
    taught.module.to(device)
    teacher = taught.teach()
    teacher.save(path)
    return teacher


def _check_dense(folder: Path) -> None:
    """FileNotFoundError where no finished run is, ValueError where it was not dense."""
    if not (folder / "train.json").is_file():
        raise FileNotFoundError(f"teacher {folder} holds no finished training run: it has no train.json")
    try:
        saved = json.loads((folder / "train.json").read_text())["run"]["task"]["settings"]
        settings = CascadeSettings.from_dict(saved)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"teacher {folder} has a damaged train.json") from None
    if settings != OFF:
        raise ValueError(
            f"teacher {folder} must be a dense run (token and head ratio 1, bits float), not a pruned one"
        )


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

    ``against_dense`` is pruned - dense, the model it started from (one for all seeds); ``against_longer`` is
    pruned - longer, the dense model with as many epochs, over the seeds that have it. Each is None where
    nothing is there to compare. Two 95 % intervals: Student t over the seeds' mean differences (would other
    seeds of the fine-tuning agree? None for one seed), and a bootstrap over the test sentences, each averaged
    over seeds (would other sentences?).
    """
    dense = [results["dense"]]
    seeds, seeds_of_longer = _seeds(results, "pruned"), _seeds(results, "longer")
    found: dict[str, Any] = {
        "n_test": len(dense[0]["test"]["dense"]),
        "seeds": seeds,
        "seeds_of_longer": seeds_of_longer,
        **_accuracies(dense, ("dense", "pruned_without_finetuning")),
        "against_dense": None,
        "against_longer": None,
    }
    if seeds:
        runs = [results[f"pruned-{seed}"] for seed in seeds]
        found |= _accuracies(runs, ("pruned",))
        found["against_dense"] = _difference(_right(runs, "test", "pruned"), _right(dense, "test", "dense"))
    if seeds_of_longer:
        found |= _accuracies([results[f"longer-{seed}"] for seed in seeds_of_longer], ("longer",))
    both = [seed for seed in seeds if seed in seeds_of_longer]
    if both:
        pruned, longer = (
            _right([results[f"{name}-{seed}"] for seed in both], "test", name)
            for name in ("pruned", "longer")
        )
        found["against_longer"] = _difference(pruned, longer)
    return found


def _seeds(results: dict[str, dict[str, Any]], name: str) -> list[int]:
    return sorted(int(key.removeprefix(f"{name}-")) for key in results if key.startswith(f"{name}-"))
