# SPDX-License-Identifier: MIT
"""``quartet train``: fine-tune with pruning on, then say what it brought on text kept aside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from algo.attention.decoder import load_decoder
from algo.attention.encoder import load_encoder
from algo.attention.finetune import LanguageTask, SentimentTask, TrainConfig, restore_weights, train
from algo.attention.reviews import load_reviews, split
from algo.attention.settings import (
    HEAD_FREE_FRACTION,
    TOKEN_FREE_FRACTION,
    CascadeSettings,
    mean_keep,
    parse_bits,
)
from benchmarks.quality.progress import Progress
from benchmarks.quality.sentiment import ANNEAL, DISTILLATION, N_COPIES, lessons
from benchmarks.quality.text import load_text

HELD_OUT_SHARE = 0.1
"""Of a text, at its end."""


def pruning(
    n_layers: int,
    token_ratio: float,
    head_ratio: float,
    bits: str | None,
    token_free_fraction: float = TOKEN_FREE_FRACTION,
) -> CascadeSettings:
    """Settings from overall ratios (layers / sum of keep ratios) and bits such as 8 or 6+4.

    Bits of None or "float" quantise nothing; a ratio of 1 prunes nothing.

    ValueError where a ratio is below 1 or cannot be reached.
    """
    widths: dict[str, Any] = {} if bits in (None, "float") else parse_bits(bits)
    if widths and not widths["lsb_bits"]:
        widths["q_bits"] = widths["k_bits"]
    try:
        token_keep = mean_keep(token_ratio, n_layers, token_free_fraction)
    except ValueError as error:
        raise ValueError(f"token {error}") from None
    try:
        head_keep = mean_keep(head_ratio, n_layers, HEAD_FREE_FRACTION)
    except ValueError as error:
        raise ValueError(f"head {error}") from None
    more = widths | ({"token_free_fraction": token_free_fraction} if token_ratio > 1 else {})
    return CascadeSettings(token_keep=token_keep, head_keep=head_keep, **more)


@dataclass(frozen=True, kw_only=True)
class SentimentRun:
    """A prepared run; everything the user gave is checked."""

    task: SentimentTask
    validation: SentimentTask
    """To choose a recipe by."""
    test: SentimentTask
    config: TrainConfig
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish) and test; returns plain data."""
        losses = train(
            self.task, self.config, self.folder, lambda i, n, loss: progress(f"loss {loss:.3f}", i, n)
        )
        right = {}
        for name, kept_aside in (("validation", self.validation), ("test", self.test)):
            kept_aside.head.load_state_dict(self.task.head.state_dict())
            kept_aside.module.to(self.config.device)
            right[name] = kept_aside.correct().double()
        return {
            "n_train": len(self.task.ids),
            "n_validation": len(right["validation"]),
            "n_test": len(right["test"]),
            "n_steps": len(losses),
            "last_loss_nats": sum(losses[-20:]) / len(losses[-20:]),
            "validation_accuracy": float(right["validation"].mean()),
            "test_accuracy": float(right["test"].mean()),
            "weights": str(self.folder / "weights.safetensors"),
        }


def prepare_sentiment(
    model: str, data: str | None, settings_of: Any, start: Path | None, teacher: Path | None,
    config: TrainConfig, folder: Path,
) -> SentimentRun:  # fmt: skip
    """Load model and reviews; ``settings_of(n_layers)`` gives the settings, ``start`` a finished run.

    ``teacher`` is a finished dense run to distil from, on spliced sentences too; without ``start`` the new
    run also starts there.
    """
    encoder = load_encoder(model)
    settings = settings_of(encoder.shape.n_layers)
    parts = split(load_reviews(data))
    start = start or teacher
    source = f"from {start}" if start else "from the model"
    reviews, said = parts.training, None
    if teacher:
        reviews, said = lessons(teacher, encoder, reviews, N_COPIES, "reviews", config.device)
    task = SentimentTask(encoder, reviews, settings, source, said, DISTILLATION, True, ANNEAL)
    if start is not None:
        restore_weights(task.module, start)
    return SentimentRun(
        task=task,
        validation=SentimentTask(encoder, parts.validation, settings, "validation", early_exit=True),
        test=SentimentTask(encoder, parts.test, settings, "test", early_exit=True),
        config=config,
        folder=folder,
    )


@dataclass(frozen=True, kw_only=True)
class LanguageRun:
    """A prepared run; everything the user gave is checked."""

    task: LanguageTask
    test: LanguageTask
    config: TrainConfig
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish) and test; returns plain data."""
        before = self._test_loss()
        losses = train(
            self.task, self.config, self.folder, lambda i, n, loss: progress(f"loss {loss:.3f}", i, n)
        )
        return {
            "n_steps": len(losses),
            "test_loss_before_nats": before,
            "test_loss_nats": self._test_loss(),
            "weights": str(self.folder / "weights.safetensors"),
        }

    @torch.no_grad()
    def _test_loss(self) -> float:
        self.test.module.eval()
        batches = self.test.batches(torch.Generator().manual_seed(0), self.config.batch_size)
        total = sum(float(self.test.loss(batch)) * len(batch) for batch in batches)
        return total / sum(len(batch) for batch in batches)


def prepare_language(
    model: str, text: str | None, settings_of: Any, window: int, n_train: int | None,
    config: TrainConfig, folder: Path,
) -> LanguageRun:  # fmt: skip
    """Load model and text; trains on up to ``n_train`` tokens, the last tenth of the text is the test."""
    decoder = load_decoder(model)
    loaded = load_text(text)
    ids = decoder.tokenizer and decoder.tokenizer(loaded.content, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(f"model {model} has no tokenizer, which a text needs")
    limit = decoder.model.config.max_position_embeddings
    if not 2 <= window <= limit:
        raise ValueError(f"window must be in 2..{limit} tokens, not {window}")
    tokens = torch.tensor(ids)
    n_held_out = max(window + 1, int(HELD_OUT_SHARE * len(tokens)))
    settings = settings_of(decoder.shape.n_layers)
    task = LanguageTask(decoder, tokens[:-n_held_out][:n_train], settings, loaded.source, window)
    held_out = tokens[-n_held_out:][: 16 * window + 1]  # sixteen windows say enough
    test = LanguageTask(decoder, held_out, settings, loaded.source, window)
    return LanguageRun(task=task, test=test, config=config, folder=folder)
