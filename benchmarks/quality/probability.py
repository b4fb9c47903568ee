# SPDX-License-Identifier: MIT
"""How far quantised scores move attention probabilities, against the row's largest one (paper, Fig. 7).

The paper's argument for progressive quantisation: a score error ds on the largest of a row moves the
probabilities by 2 ds p (1 - p) in total, so a row dominated by one token is safe on few bits.
Measured here on the attention of real models over real text, Q at 12 bits.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algo.attention.cascade import Cascade
from algo.attention.decoder import Decoder, load_decoder
from algo.attention.encoder import Encoder, load_encoder
from algo.attention.quantise import quantise, scale_of
from algo.attention.settings import CascadeSettings
from benchmarks.quality.progress import Progress
from benchmarks.quality.store import cached
from benchmarks.quality.text import Text, load_text

Q_BITS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What is measured."""

    models: tuple[str, ...] = ("minilm", "smollm2")
    n_windows: int = 8
    window: int = 256
    """Tokens."""
    k_bits: tuple[int, ...] = (4, 6, 8)
    n_bins: int = 20
    """Equal bins of the largest probability, 0..1."""


class Probe(Cascade):
    """A cascade with everything off that quantises on the side and keeps the errors of each row."""

    def __init__(self, setup: Setup, shape: Any) -> None:
        super().__init__(CascadeSettings(), shape)
        self.setup = setup
        self.largest: list[Tensor] = []
        self.total_error: dict[int, list[Tensor]] = {bits: [] for bits in setup.k_bits}
        self.square_score_error: dict[int, list[float]] = {bits: [] for bits in setup.k_bits}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """As the parent; first looks at the rows."""
        every = self.shape.n_heads // self.shape.n_kv_heads
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        if self.shape.causal:
            seen = seen.tril()
        scores = q @ k.repeat_interleave(every, 1).transpose(-1, -2) * scaling  # [1, H, n, m]
        exact = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        self.largest.append(exact.amax(-1).flatten())
        q_step = scale_of(q, Q_BITS, (2, 3))
        q_near = quantise(q, Q_BITS, q_step) * q_step
        for bits in self.setup.k_bits:
            step = scale_of(k, bits, (2, 3))
            k_near = (quantise(k, bits, step) * step).repeat_interleave(every, 1)
            near = q_near @ k_near.transpose(-1, -2) * scaling
            prob = near.masked_fill(~seen, -torch.inf).softmax(-1)
            self.total_error[bits].append((prob - exact).abs().sum(-1).flatten())
            self.square_score_error[bits].append(float((near - scores)[..., seen].square().mean()))
        return super().attend(layer, q, k, v, scaling, dropout)


@torch.no_grad()
def measure(model: str, text: Text, setup: Setup) -> dict[str, Any]:
    """Per width and bin of the largest probability: rows, mean and quartiles of the row's total |error|."""
    loaded: Encoder | Decoder = load_encoder(model) if model == "minilm" else load_decoder(model)
    assert loaded.tokenizer is not None
    ids = torch.tensor(loaded.tokenizer(text.content, verbose=False)["input_ids"])
    starts = torch.linspace(0, len(ids) - setup.window, setup.n_windows).long().tolist()
    probes = []
    for start in starts:
        probe = Probe(setup, loaded.shape)
        probe.begin(1, setup.window)
        loaded.model(input_ids=ids[None, start : start + setup.window], cascade=probe, use_cache=False)
        probes.append(probe)
    largest = np.concatenate([x.numpy() for probe in probes for x in probe.largest])
    bins = np.minimum((largest * setup.n_bins).astype(int), setup.n_bins - 1)
    result: dict[str, Any] = {"n_rows": [int((bins == b).sum()) for b in range(setup.n_bins)], "by_bits": {}}
    for bits in setup.k_bits:
        error = np.concatenate([x.numpy() for probe in probes for x in probe.total_error[bits]])
        squares = [x for probe in probes for x in probe.square_score_error[bits]]
        by_bin = [error[bins == b] for b in range(setup.n_bins)]
        result["by_bits"][str(bits)] = {
            "mean": [float(x.mean()) if len(x) else None for x in by_bin],
            "quartiles": [np.percentile(x, [25, 75]).tolist() if len(x) else None for x in by_bin],
            "overall_mean": float(error.mean()),
            "rms_score_error": float(np.sqrt(np.mean(squares))),
        }
    return result


def run(folder: Path, setup: Setup, text_path: str | None, progress: Progress) -> None:
    """Measure each model that is not there yet."""
    text = load_text(text_path)
    for i, model in enumerate(setup.models):
        progress(f"probability error of {model}", i, len(setup.models))
        inputs = asdict(setup) | {"models": model, "text": text.source, "text_sha256": text.sha256}
        cached(folder, model, inputs, partial(measure, model, text, setup))
    progress("probability error", len(setup.models), len(setup.models))
