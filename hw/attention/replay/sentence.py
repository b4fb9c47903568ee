# SPDX-License-Identifier: MIT
"""From what the data decided of a sentence to the heads, rows and selections that travel through the core."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.fetch.layout import Request
from hw.select.cycles import Row as SelectedRow
from hw.select.cycles import kept_mask

from ..config import AttentionConfig
from .cascade import Layer
from .rows import Head, Row, finish_order
from .selection import selections


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTrace:
    """What the cycles of one layer depend on: n tokens and h heads present, of H in the model."""

    is_first: bool
    """A new sentence begins."""
    n_sentence_tokens: int
    """Tokens of the sentence before any was pruned."""
    n_model_heads: int
    """H"""
    tokens: np.ndarray
    """int64[n], positions of the tokens present, ascending."""
    planes: Sequence[dict[str, Request]]
    """For each head present, where its ``q``, ``k``, ``v`` and, if progressive, ``lsb`` lie."""
    head_dim: int
    progressive: bool
    used_lsb: np.ndarray
    """bool[h, n], rows computed again."""
    n_values: int
    """Values kept for each row; above n counts as n."""
    probabilities: np.ndarray
    """int64[h, n, n], query by key, 0..4,095: what the selection of values compares."""
    token_importance: np.ndarray
    """int64[n]: what the selection of tokens compares."""
    head_importance: np.ndarray
    """int64[h]"""
    n_tokens_next: int
    """Tokens kept for the next layer; above n counts as n. Heads likewise."""
    n_heads_next: int

    def kept_values(self) -> np.ndarray:
        """bool[h, n, n]: of each row the most probable keys, of equal ones the earlier."""
        shape = self.probabilities.shape
        if self.n_values >= shape[-1]:
            return np.ones(shape, dtype=bool)
        largest = np.argsort(-self.probabilities, axis=-1, kind="stable")[..., : self.n_values]
        kept = np.zeros(shape, dtype=bool)
        np.put_along_axis(kept, largest, True, axis=-1)
        return kept

    def cascade_requests(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Importance and bool mask of what stays: of the heads, and after them of the tokens."""
        return [
            (importance, kept_mask(SelectedRow(deciding=importance, k=min(n_next, len(importance)))))
            for importance, n_next in (
                (self.head_importance, self.n_heads_next),
                (self.token_importance, self.n_tokens_next),
            )
        ]


def layers_of(traces: Sequence[LayerTrace], config: AttentionConfig) -> list[Layer]:
    """The layers of all sentences, one after the other."""
    heads = [_heads(trace, config) for trace in traces]
    _select_values(traces, heads, config)
    requests = [trace.cascade_requests() for trace in traces]
    chosen = iter(selections([pair for of_layer in requests for pair in of_layer], config.selector))
    return [
        Layer(
            is_first=trace.is_first,
            n_tokens=trace.n_sentence_tokens,
            n_model_heads=trace.n_model_heads,
            heads=present,
            head_selection=next(chosen),
            token_selection=next(chosen),
            kept_heads=np.flatnonzero(kept_heads).tolist(),
            kept_tokens=np.flatnonzero(kept_tokens).tolist(),
        )
        for trace, present, ((_, kept_heads), (_, kept_tokens)) in zip(traces, heads, requests, strict=True)
    ]


def _heads(trace: LayerTrace, config: AttentionConfig) -> list[Head]:
    n = len(trace.tokens)
    vectors = config.qk.buffer.vectors_per_line(trace.head_dim)
    heads = []
    for planes, used_lsb, kept in zip(trace.planes, trace.used_lsb, trace.kept_values(), strict=True):
        head = Head(tokens=trace.tokens, planes=planes, n_lines=-(-n // vectors))
        head.rows = [
            Row(
                head=head,
                number=number,
                progressive=trace.progressive,
                dropped=trace.progressive and bool(used_lsb[number]),
                flush=trace.progressive and number == n - 1,
                kept=np.flatnonzero(kept[number]).tolist(),
                vectors=vectors,
            )
            for number in range(n)
        ]
        heads.append(head)
    return heads


def _select_values(
    traces: Sequence[LayerTrace], heads: Sequence[Sequence[Head]], config: AttentionConfig
) -> None:
    """Finished rows take turns over the engines, whose pivots depend on all the requests before."""
    finished = [
        (row, probabilities[row.number])
        for trace, present in zip(traces, heads, strict=True)
        for head, probabilities in zip(present, trace.probabilities, strict=True)
        for row in finish_order(head.rows, config.confidence.window)
    ]
    n_engines = config.n_value_engines
    for engine in range(n_engines):
        of_engine = finished[engine::n_engines]
        requests = [(elements, _mask(row.kept, len(elements))) for row, elements in of_engine]
        for (row, _), selection in zip(of_engine, selections(requests, config.values), strict=True):
            row.selection = selection


def _mask(places: list[int], n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[places] = True
    return mask
