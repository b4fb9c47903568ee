# SPDX-License-Identifier: MIT
"""Accuracy of an encoder on movie-review sentiment: pruned and quantised, fine-tuned, against dense.

``dense`` is trained once from the packaged weights. From there, for each seed: ``pruned``, with the dense
model as its teacher, and ``longer``, which differs in nothing but that pruning and quantisation are off: the
fair opponent of ``pruned``. A seed orders the batches and draws the dropout of both. All are tested on the
same sentences: differences are paired. Choices were made on the validation part, seed 0 (docs/attention.md).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
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
    matmul_precision,
    restore_weights,
    train,
)
from algo.attention.reviews import Review, Split, load_reviews, spliced, split
from algo.attention.settings import (
    HEAD_FREE_FRACTION,
    CascadeSettings,
    mean_keep,
)
from benchmarks.quality.progress import Progress
from benchmarks.quality.statistics import bootstrap_interval, mean_and_half_interval
from benchmarks.quality.store import cached

OFF = CascadeSettings()
SOURCE = "movie reviews"
DISTILLATION = Distillation(importance=3.0)
TOKEN_FREE_FRACTION = 0.30
"""Tokens start to go after as many layers as heads do (paper: 0.15)."""
N_COPIES = 1
"""Spliced sentences for each one of the training part, labelled by the teacher."""
ANNEAL = 0.4
"""Share of the fine-tuning in which token pruning sets in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The experiment; the defaults are its published form."""

    model: str = "minilm"
    token_ratio: float = 1.9
    """Layers / sum of keep ratios (paper: token and value pruning 1.9x on average)."""
    token_free_fraction: float = TOKEN_FREE_FRACTION
    head_ratio: float = 1.1
    bits: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs after the dense one, whose seed is 0."""
    dense_epochs: int = 6
    dense_learning_rate: float = 1e-4
    n_copies: int = N_COPIES
    anneal: float = ANNEAL
    pruned_epochs: int = 2
    """Of the pruned run and the longer dense one, over the sentences and the spliced ones. Both start where
    the dense one ended."""
    pruned_learning_rate: float = 1e-4
    distillation: Distillation = DISTILLATION
    device: str = "cpu"

    def settings(self, n_layers: int) -> CascadeSettings:
        """The pruned case on a model of ``n_layers``."""
        return CascadeSettings(
            token_keep=mean_keep(self.token_ratio, n_layers, self.token_free_fraction),
            token_free_fraction=self.token_free_fraction,
            head_keep=mean_keep(self.head_ratio, n_layers, HEAD_FREE_FRACTION),
            q_bits=self.bits,
            k_bits=self.bits,
            v_bits=self.bits,
        )

    def dense_config(self) -> TrainConfig:
        """Of the dense run."""
        return self._config(self.dense_epochs, self.dense_learning_rate, seed=0)

    def pruned_config(self, seed: int) -> TrainConfig:
        """Of the pruned run, and of the longer dense one."""
        return self._config(self.pruned_epochs, self.pruned_learning_rate, seed)

    def _config(self, epochs: int, learning_rate: float, seed: int) -> TrainConfig:
        return TrainConfig(
            epochs=epochs, learning_rate=learning_rate, seed=seed, device=self.device, bfloat16_products=True
        )


def run(folder: Path, setup: Setup, data: str | None, progress: Progress) -> None:
    """Train and test what is not there yet, seed by seed; interrupted trainings resume."""
    reviews = load_reviews(data)
    parts = split(reviews)
    mark = hashlib.sha256("\n".join(review.text for review in reviews).encode()).hexdigest()
    sizes = {f"n_{part}": len(getattr(parts, part)) for part in ("training", "validation", "test")}
    inputs = asdict(setup) | {"data_sha256": mark} | sizes
    del inputs["seeds"]
    cached(folder, "dense", inputs, partial(run_dense, folder, setup, parts, progress))
    for seed in setup.seeds:
        for name, compute in (("pruned", run_pruned), ("longer", run_longer)):
            task = partial(compute, folder, setup, seed, parts, progress)
            cached(folder, f"{name}-{seed}", inputs | {"seed": seed}, task)


def run_dense(folder: Path, setup: Setup, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model: which sentences it gets right as it is, and pruned without fine-tuning."""
    dense = train_dense(folder / "dense", setup, parts, progress)
    settings = setup.settings(dense.encoder.shape.n_layers)
    cases = {"dense": OFF, "pruned_without_finetuning": settings}
    return {"settings": settings.to_dict(), **_tested_on_both(dense, parts, cases)}


def run_pruned(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model, pruned and fine-tuned."""
    pruned = train_further(folder, "pruned", setup, seed, parts, progress)
    return _tested_on_both(pruned, parts, {"pruned": pruned.settings})


def run_longer(folder: Path, setup: Setup, seed: int, parts: Split, progress: Progress) -> dict[str, Any]:
    """The dense model, trained further in the same way, but with everything off."""
    longer = train_further(folder, "longer", setup, seed, parts, progress)
    return _tested_on_both(longer, parts, {"longer": OFF})


def _tested_on_both(
    task: SentimentTask, parts: Split, cases: dict[str, CascadeSettings]
) -> dict[str, dict[str, str]]:
    """For both parts kept aside and each case, by name: one digit per sentence, 1 where right."""
    return {
        part: {name: tested(task, getattr(parts, part), settings) for name, settings in cases.items()}
        for part in ("validation", "test")
    }


def train_dense(folder: Path, setup: Setup, parts: Split, progress: Progress) -> SentimentTask:
    """From the packaged weights."""
    task = SentimentTask(load_encoder(setup.model), parts.training, OFF, SOURCE)
    train(task, setup.dense_config(), folder, lambda i, n, loss: progress("dense", i, n))
    return task


def train_further(
    folder: Path, name: str, setup: Setup, seed: int, parts: Split, progress: Progress
) -> SentimentTask:
    """The run "pruned" or "longer", from the finished run ``folder / "dense"``, which also teaches."""
    encoder, dense = load_encoder(setup.model), folder / "dense"
    progress(f"seed {seed} teacher", 0, 1)
    reviews, teacher = lessons(dense, encoder, parts.training, setup.n_copies, SOURCE, setup.device)
    settings = setup.settings(encoder.shape.n_layers) if name == "pruned" else OFF
    task = SentimentTask(
        encoder, reviews, settings, teacher.source, teacher, setup.distillation, True, setup.anneal
    )
    restore_weights(task.module, dense)
    run_folder, config = folder / f"seed-{seed}" / name, setup.pruned_config(seed)
    train(task, config, run_folder, lambda i, n, loss: progress(f"seed {seed} {name}", i, n))
    return task


def lessons(
    dense: Path, encoder: Encoder, reviews: list[Review], n_copies: int, source: str, device: str
) -> tuple[list[Review], Teacher]:
    """The reviews with ``n_copies`` spliced ones for each, and all that :func:`taught_by` says about them.

    A spliced one is positive where the teacher says so.
    """
    unjudged = [Review(text, positive=False) for text in spliced(reviews, n_copies)]
    teacher = taught_by(dense, encoder, reviews + unjudged, source, device)
    verdicts = teacher.logits.argmax(1).bool().tolist()[len(reviews) :]
    judged = [replace(review, positive=verdict) for review, verdict in zip(unjudged, verdicts, strict=True)]
    return reviews + judged, teacher


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
    with matmul_precision(bfloat16_products=True):
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
    task = SentimentTask(trained.encoder, reviews, settings, "test", early_exit=True)
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
