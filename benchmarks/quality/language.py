# SPDX-License-Identifier: MIT
"""Perplexity of a decoder under token pruning and progressive quantisation, without fine-tuning.

Protocol of the released GPT-2 workloads: a dense prompt, then tokens one by one (here the text's own, so that
their likelihood is measured), each pass keeping the most important keys of each layer. Everything is paired:
each case sees the same tokens.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algo.attention.cascade import Cascade
from algo.attention.decoder import Decoder, load_decoder
from algo.attention.settings import TOKEN_FREE_FRACTION, CascadeSettings, mean_keep, parse_bits
from benchmarks.quality.progress import Progress
from benchmarks.quality.statistics import mean_and_half_interval
from benchmarks.quality.store import cached
from benchmarks.quality.text import Text, load_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What all cases share."""

    model: str = "smollm2"
    n_windows: int = 8
    n_prompt: int = 384
    n_scored: int = 128
    """Tokens per window whose likelihood is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the table."""

    ratio: float = 1.0
    """Token pruning, layers / sum of keep ratios, in the passes of generated tokens."""
    bits: str = "float"
    """"float", static "6" or progressive "6+4": K's MSB (+ LSB) width; V has the MSB width."""
    threshold: float = 0.1
    """Progressive only: redo a row whose largest probability is below."""
    v_bits: int | None = None
    """Width of V where it is not that of K's MSB plane."""
    score_prompt: bool = False
    """Whether importance starts with the prompt, so that the first generated token already prunes."""

    @property
    def name(self) -> str:
        """File name of the result."""
        at = f"-t{self.threshold:g}" if "+" in self.bits else ""
        v = f"-v{self.v_bits}" if self.v_bits else ""
        scored = "-scored" if self.score_prompt else ""
        return f"tokens-{self.ratio:g}x-{self.bits}{v}{at}{scored}"

    @property
    def inputs(self) -> dict[str, Any]:
        """What identifies the case."""
        return {key: value for key, value in asdict(self).items() if value is not None and value is not False}

    def settings(self, n_layers: int) -> CascadeSettings:
        """The case on a model of ``n_layers``."""
        bits: dict[str, Any] = {} if self.bits == "float" else parse_bits(self.bits)
        if bits.get("lsb_bits"):
            bits["lsb_threshold"] = self.threshold
        if self.v_bits:
            bits["v_bits"] = self.v_bits
        keep = mean_keep(self.ratio, n_layers, TOKEN_FREE_FRACTION)
        return CascadeSettings(token_keep=keep, prune_prompt=False, score_prompt=self.score_prompt, **bits)


DENSE = Case()
RATIOS = (1.0, 2.0, 3.0, 4.0)
BITS = ("float", "6+4", "8+4", "6", "8", "10")
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
CASES = [
    *[Case(ratio=ratio, bits=bits) for ratio in RATIOS for bits in BITS],
    *[Case(bits="6+4", threshold=t) for t in THRESHOLDS if t != Case().threshold],
    # K alone, V at the full 12 bits: what the LSBs of K are worth by themselves.
    *[Case(bits=bits, v_bits=12) for bits in ("4", "6", "8", "6+4")],
    *[Case(bits="4+4", v_bits=12, threshold=t) for t in (0.1, 0.2, 0.4)],
    *[Case(ratio=ratio, score_prompt=True) for ratio in RATIOS if ratio > 1],
]


def windows(decoder: Decoder, text: Text, setup: Setup) -> torch.Tensor:
    """Windows spread evenly over the text, int64[n_windows, n_prompt + n_scored]; ValueError if too short."""
    assert decoder.tokenizer is not None
    ids = torch.tensor(decoder.tokenizer(text.content, verbose=False)["input_ids"])
    length = setup.n_prompt + setup.n_scored
    if len(ids) < setup.n_windows * length:
        raise ValueError(f"text must have at least {setup.n_windows * length} tokens, not {len(ids)}")
    starts = torch.linspace(0, len(ids) - length, setup.n_windows).long().tolist()
    return torch.stack([ids[start : start + length] for start in starts])


def score_case(decoder: Decoder, ids: torch.Tensor, n_prompt: int, case: Case) -> dict[str, Any]:
    """Loss of every scored token, nats, and what the passes of generated tokens fetched."""
    settings = case.settings(decoder.shape.n_layers)
    kept, lsb = [], []

    def look(cascade: Cascade) -> None:
        kept.append([tokens.shape[1] / cascade.n_tokens for tokens in cascade.kept_tokens])
        lsb.append(cascade.layer_lsb_fraction)

    losses = decoder.score(ids, n_prompt, settings, look)
    kept_after_first = np.array(kept[1:])  # the first generated token sees all keys
    return {
        "losses_nats": [[round(x, 5) for x in row] for row in losses.tolist()],
        "kept_fraction_by_layer": kept_after_first.mean(0).tolist(),
        "lsb_fraction_by_layer": np.array(lsb).mean(0).tolist() if settings.progressive else None,
    }


def run(folder: Path, setup: Setup, text_path: str | None, progress: Progress) -> None:
    """Compute every case that is not there yet."""
    text = load_text(text_path)
    shared = asdict(setup) | {"text": text.source, "text_sha256": text.sha256}
    decoder: Decoder | None = None
    ids = torch.empty(0)

    def compute(case: Case) -> dict[str, Any]:
        nonlocal decoder, ids
        if decoder is None:
            decoder = load_decoder(setup.model)
            ids = windows(decoder, text, setup)
        return score_case(decoder, ids, setup.n_prompt, case)

    for i, case in enumerate(CASES):
        progress(case.name, i, len(CASES))
        cached(folder, case.name, shared | case.inputs, partial(compute, case))
    progress("language model", len(CASES), len(CASES))


# ---- from saved results to rows --------------------------------------------------------------------------


def kv_bits(case: Case, lsb_fraction: float) -> float:
    """Bits fetched per kept key and value element, together: MSBs of K, LSBs where redone, V."""
    if case.bits == "float":
        return 64.0
    bits = parse_bits(case.bits)
    return bits["k_bits"] + bits["lsb_bits"] * lsb_fraction + (case.v_bits or bits["v_bits"])


def rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per case that has a result, from ``results`` by case name; the dense case must be there.

    A progressive case also says what static widths give *for the same traffic*: the mixture of the two static
    neighbours (a share of the tokens at each width) whose mean bits equal the progressive case's. Its loss is
    their weighted mean, exactly so for tokens that do not influence one another.
    """
    dense = np.array(results[DENSE.name]["losses_nats"])
    table = []
    for case in CASES:
        result = results.get(case.name)
        if result is None:
            continue
        losses = np.array(result["losses_nats"])
        lsb = result["lsb_fraction_by_layer"]
        lsb_fraction = float(np.mean(lsb)) if lsb is not None else 0.0
        delta, half = mean_and_half_interval(
            (losses - dense).mean(1)
        )  # windows are independent, tokens are not
        kept = float(np.mean(result["kept_fraction_by_layer"]))
        bits = kv_bits(case, lsb_fraction)
        table.append(
            {
                "token_ratio": case.ratio,
                "measured_token_ratio": 1 / kept,
                "bits": case.bits,
                "v_bits": None if case.bits == "float" else case.v_bits or parse_bits(case.bits)["v_bits"],
                "threshold": case.threshold if "+" in case.bits else None,
                "score_prompt": case.score_prompt,
                "perplexity": math.exp(losses.mean()),
                "loss_delta_nats": delta,
                "loss_delta_half_95_nats": half,
                "lsb_fraction": lsb_fraction if lsb is not None else None,
                "kv_bits": bits,
                "kv_traffic_reduction_vs_fp32": 64 / (bits * kept),
                "same_traffic_static_perplexity": _same_traffic(case, bits, results),
            }
        )
    return table


def _same_traffic(case: Case, bits: float, results: dict[str, dict[str, Any]]) -> float | None:
    """Perplexity of the static mixture with the same K and V bits, or None where no two widths bracket it."""
    if "+" not in case.bits:
        return None
    static = [c for c in CASES if c.bits.isdigit() and (c.ratio, c.v_bits) == (case.ratio, case.v_bits)]
    static = sorted((c for c in static if c.name in results), key=lambda c: int(c.bits))
    for low, high in pairwise(static):
        low_bits, high_bits = kv_bits(low, 0.0), kv_bits(high, 0.0)
        if low_bits <= bits <= high_bits:
            share = (bits - low_bits) / (high_bits - low_bits)
            low_loss, high_loss = (float(np.mean(results[c.name]["losses_nats"])) for c in (low, high))
            return math.exp((1 - share) * low_loss + share * high_loss)
    return None
