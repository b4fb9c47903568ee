# SPDX-License-Identifier: MIT
"""A real text through a real encoder, its cascade decided by the top-k engine, for ``quartet run``."""

from dataclasses import dataclass
from pathlib import Path

import torch

from algo.attention.encoder import Encoder
from algo.attention.settings import CascadeSettings
from benchmarks.selection import Selection, run_request
from hw.topk.config import TopKConfig


class TopKEngine:
    """Selects for the cascade as the chip does: importance in fixed point, ties to the earlier position.

    Importance is a sum of probabilities: at most n_layers * n_heads * n_tokens, which fixes the binary point
    once for a text. It is rounded to nearest (half to even).
    """

    def __init__(self, config: TopKConfig, importance_bound: int, *, rtl: bool) -> None:
        self.config, self.rtl = config, rtl
        self.fraction_bits = config.element_bits - importance_bound.bit_length()
        self.selections: list[Selection] = []

    def quantise(self, scores: torch.Tensor) -> torch.Tensor:
        """int64[n] in units of 2**-fraction_bits."""
        return torch.round(scores.double() * 2.0**self.fraction_bits).to(torch.int64)

    def select(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        """Positions of the k largest scores, ascending; from the simulated Verilog where ``rtl``."""
        elements, seed = self.quantise(scores).tolist(), len(self.selections) + 1
        self.selections.append(run_request(elements, k, self.config, seed=seed, rtl=self.rtl))
        return torch.tensor(self.selections[-1].indices, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of a pruned run."""

    layer: int
    positions: tuple[int, ...]
    """Tokens in the layer."""
    words: tuple[str, ...]
    selection_cycles: int | None
    """Top-k engine for the tokens of this layer, first score in to last index out; None if it did not run."""


@dataclass(frozen=True, kw_only=True)
class PrunedRun:
    """A text's pruned run beside its full one."""

    model: str
    tokens: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    cosine_similarity: float
    """Of the mean-pooled embeddings, pruned and full."""
    fraction_bits: int
    engine_cycles: int
    """Sum over the selections."""
    engine: str
    mismatches: tuple[str, ...]

    @property
    def mean_token_keep(self) -> float:
        """Tokens over all layers, as a share of the unpruned ones."""
        return sum(len(row.positions) for row in self.layers) / (len(self.tokens) * len(self.layers))


def engine_for(encoder: Encoder, ids: torch.Tensor, config: TopKConfig, *, rtl: bool) -> TopKEngine:
    """The engine that selects for a text; ValueError where the text is longer than it can take or score."""
    n, shape = len(ids), encoder.shape
    if n > config.n_max:
        raise ValueError(f"text must have at most {config.n_max} tokens for this top-k engine, not {n}")
    engine = TopKEngine(config, shape.n_layers * shape.n_heads * n, rtl=rtl)
    if engine.fraction_bits < 1:
        raise ValueError(
            f"element_bits must be above {config.element_bits - engine.fraction_bits} to score {n} tokens "
            f"of this model, not {config.element_bits}: choose another preset"
        )
    return engine


def run_text(encoder: Encoder, ids: torch.Tensor, settings: CascadeSettings, engine: TopKEngine) -> PrunedRun:
    """Run the token ids of a text full and pruned, with ``engine`` fresh from :func:`engine_for`."""
    full = encoder.run(ids)
    pruned = encoder.run(ids, settings, select=engine.select)
    return PrunedRun(
        model=encoder.name,
        tokens=tuple(_words(encoder, ids)),
        layers=_layers(encoder, ids, pruned.kept_tokens, engine.selections),
        cosine_similarity=float(torch.cosine_similarity(full.embedding, pruned.embedding, dim=0)),
        fraction_bits=engine.fraction_bits,
        engine_cycles=sum(timing.first_to_last_cycles for timing in engine.selections),
        engine="Verilog, simulated" if engine.rtl else "golden model, replayed cycles",
        mismatches=tuple(
            f"selection {number}: {mismatch}"
            for number, selection in enumerate(engine.selections)
            for mismatch in selection.mismatches
        ),
    )


def _layers(encoder: Encoder, ids: torch.Tensor, kept, selections: list[Selection]) -> tuple[LayerRow, ...]:
    """The selections in order belong to the layers that hold fewer tokens than the one before."""
    left = iter(selections)
    rows, before = [], len(ids)
    for layer, positions in enumerate(kept):
        selected = len(positions) < before
        rows.append(
            LayerRow(
                layer=layer,
                positions=tuple(positions.tolist()),
                words=tuple(_words(encoder, ids[positions])),
                selection_cycles=next(left).first_to_last_cycles if selected else None,
            )
        )
        before = len(positions)
    return tuple(rows)


def _words(encoder: Encoder, ids: torch.Tensor) -> list[str]:
    if encoder.tokenizer is None:
        return [str(token) for token in ids.tolist()]
    return list(encoder.tokenizer.convert_ids_to_tokens(ids.tolist()))


def read_text(text: str | None, file: Path | None) -> str:
    """The text given directly or in a file; ValueError unless exactly one is given."""
    if (text is None) == (file is None):
        raise ValueError("give either --text or --file")
    return text if text is not None else Path(file or "").read_text()
