# SPDX-License-Identifier: MIT
"""Accuracy of an encoder on movie-review sentiment: pruned and quantised, fine-tuned, against dense.

The paper's protocol: fine-tune dense, prune, fine-tune again. For each seed three runs in a row: ``base`` and
``dense`` (the same again, to see whether dense training still gains), then ``pruned`` from there. All are
tested on the same sentences: differences are paired.
"""

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.attention.encoder import load_encoder
from algo.attention.finetune import SentimentTask, TrainConfig, restore_weights, train
from algo.attention.reviews import Review, load_reviews, split
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The experiment; the defaults are its published form."""

    model: str = "minilm"
    token_ratio: float = 1.9
    """Layers / sum of keep ratios (paper: token and value pruning 1.9x on average)."""
    head_ratio: float = 1.1
    bits: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 1
    """Of the base run, and again of the dense one."""
    pruned_epochs: int = 3
    """Of the pruned run, which starts where the dense one ended."""
    pruned_learning_rate: float = 1e-4
    """Twice that of the dense runs: the model has to move what it knew into fewer tokens."""
    n_train: int | None = 5000
    """Training sentences used; None: all, about 7,900."""
    device: str = "cpu"

    def settings(self, n_layers: int) -> CascadeSettings:
        """The pruned case on a model of ``n_layers``."""
        return CascadeSettings(
            token_keep=mean_keep(self.token_ratio, n_layers, TOKEN_FREE_FRACTION),
            head_keep=mean_keep(self.head_ratio, n_layers, HEAD_FREE_FRACTION),
            q_bits=self.bits,
            k_bits=self.bits,
            v_bits=self.bits,
        )


def run(folder: Path, setup: Setup, data: str | None, progress: Progress) -> None:
    """Train and test every seed that is not there yet; interrupted trainings resume."""
    reviews = load_reviews(data)
    training, test = split(reviews)
    training = training[: setup.n_train]
    mark = hashlib.sha256("\n".join(review.text for review in reviews).encode()).hexdigest()
    inputs = asdict(setup) | {"data_sha256": mark, "n_train": len(training), "n_test": len(test)}
    for seed in setup.seeds:
        name = f"seed-{seed}"
        shared = {key: value for key, value in inputs.items() if key != "seeds"} | {"seed": seed}
        compute = partial(_seed, folder / name, setup, seed, training, test, progress)
        cached(folder, name, shared, compute)


def _seed(
    folder: Path, setup: Setup, seed: int, training: list[Review], test: list[Review], progress: Progress
) -> dict[str, Any]:
    def trained(name: str, start: Path | None) -> SentimentTask:
        pruned = name == "pruned"
        encoder = load_encoder(setup.model)
        settings = setup.settings(encoder.shape.n_layers) if pruned else OFF
        source = "movie reviews" + (f", from {_digest(start)}" if start else "")
        task = SentimentTask(encoder, training, settings, source)
        if start:
            restore_weights(task.module, start)
        config = TrainConfig(epochs=setup.epochs, seed=seed, device=setup.device)
        if pruned:
            config = replace(config, epochs=setup.pruned_epochs, learning_rate=setup.pruned_learning_rate)
        train(task, config, folder / name, lambda i, n, loss: progress(f"seed {seed} {name}", i, n))
        return task

    base = trained("base", None)
    dense = trained("dense", folder / "base")
    pruned = trained("pruned", folder / "dense")
    return {
        "base_correct": _tested(base, test, OFF),
        "dense_correct": _tested(dense, test, OFF),
        "pruned_correct": _tested(pruned, test, pruned.settings),
        "pruned_without_finetuning_correct": _tested(dense, test, pruned.settings),
        "settings": pruned.settings.to_dict(),
    }


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()[:12]


def _tested(trained: SentimentTask, test: list[Review], settings: CascadeSettings) -> str:
    """One digit per test sentence, 1 where right."""
    task = SentimentTask(trained.encoder, test, settings, "test")
    task.head.load_state_dict(trained.head.state_dict())
    task.module.to(next(trained.module.parameters()).device)
    return "".join(str(int(right)) for right in task.correct().tolist())


# ---- from saved results to numbers -----------------------------------------------------------------------


def _bits(results: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([[float(digit) for digit in result[key]] for result in results])


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies and the paired difference pruned - dense, from the results of the seeds.

    Two 95 % intervals: Student t over the seeds' mean differences (would other seeds agree?), and a bootstrap
    over the test sentences, each averaged over seeds (would other sentences?).
    """
    dense, pruned = _bits(results, "dense_correct"), _bits(results, "pruned_correct")
    untuned = _bits(results, "pruned_without_finetuning_correct")
    per_seed = (pruned - dense).mean(1)
    mean, half = mean_and_half_interval(per_seed)
    return {
        "n_test": dense.shape[1],
        "n_seeds": len(per_seed),
        "base_accuracy": _bits(results, "base_correct").mean(1).tolist(),
        "dense_accuracy": dense.mean(1).tolist(),
        "pruned_accuracy": pruned.mean(1).tolist(),
        "pruned_without_finetuning_accuracy": untuned.mean(1).tolist(),
        "difference": per_seed.tolist(),
        "mean_difference": mean,
        "seed_interval_95": [mean - half, mean + half],
        "sentence_interval_95": bootstrap_interval((pruned - dense).mean(0)),
    }
