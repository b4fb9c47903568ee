# SPDX-License-Identifier: MIT
"""From what the data decided of a sentence to the heads, rows and selections that travel through the core."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.fetch.layout import Request as PlaneRequest
from hw.select.cycles import Row as SelectedRow
from hw.select.cycles import kept_mask

from ..config import HALVES, AttentionConfig
from ..layers import Rows
from .cascade import Choice, Layer, Source
from .rows import Head, Row, finish_order
from .selection import selections

Request = tuple[np.ndarray, np.ndarray]
"""What a selection compares, and a bool mask of what stays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTrace:
    """What the cycles of one layer depend on: n tokens and h heads present, of H in the model."""

    tokens_from: Source
    """Where the list of tokens comes from."""
    heads_from: Source
    n_listed: int
    """Tokens of a list that is filled or given."""
    given_importance: np.ndarray | None
    """int64[n_listed] of a given list: what the eviction compares."""
    n_model_heads: int
    """H"""
    tokens: np.ndarray
    """int64[n], positions of the tokens present, ascending."""
    planes: Sequence[dict[str, PlaneRequest]]
    """For each head present, where its ``q``, ``k``, ``v`` and, if progressive, ``lsb`` lie."""
    groups: Sequence[int]
    """Of each head present, which K and V it reads."""
    rows: Rows
    streamed: bool
    head_dim: int
    progressive: bool
    used_lsb: np.ndarray
    """bool[h, r], rows computed again: r is n, or 1."""
    n_values: int
    """Values kept for each row; above n counts as n."""
    probabilities: np.ndarray
    """int64[h, r, n], query by key, 0..4,095: what the selection of values compares."""
    token_importance: np.ndarray
    """int64[n]: what the selection of tokens compares."""
    head_importance: np.ndarray
    """int64[h], unused with rows "one"."""
    protect_last: bool
    """The last token stays whatever its importance."""
    n_tokens_next: int
    """Tokens kept for the next layer; above n counts as n. Heads likewise."""
    n_heads_next: int

    def n_keys(self, row: int) -> int:
        """Keys that the row sees."""
        return row + 1 if self.rows == "causal" else len(self.tokens)

    def kept_values(self, head: int, row: int) -> np.ndarray:
        """Keys, ascending, whose values the row reads: the most probable, of equal ones the earlier."""
        probabilities = self.probabilities[head, row, : self.n_keys(row)]
        return np.sort(np.argsort(-probabilities, kind="stable")[: self.n_values])

    def requests(self, largest: int) -> "tuple[Request | None, Request | None, Request | None]":
        """From a given list, of heads, of tokens; ``largest`` is the element of a token that is protected."""

        def of_tokens(importance: np.ndarray, k: int) -> Request:
            deciding = importance.copy()
            if self.protect_last:
                deciding[-1] = largest
            return deciding, _most_important(deciding, k)

        given, heads = self.given_importance, self.head_importance
        evicting = None if given is None else of_tokens(given, len(self.tokens))
        if self.rows == "sum":
            return evicting, None, None
        return (
            evicting,
            None if self.rows == "one" else (heads, _most_important(heads, self.n_heads_next)),
            of_tokens(self.token_importance, self.n_tokens_next),
        )


def _most_important(importance: np.ndarray, k: int) -> np.ndarray:
    return kept_mask(SelectedRow(deciding=importance, k=min(k, len(importance))))


def layers_of(traces: Sequence[LayerTrace], config: AttentionConfig) -> list[Layer]:
    """The layers of all sentences, one after the other."""
    place = config.confidence.window - 1
    heads = []
    for trace in traces:
        heads.append(_heads(trace, config, place))
        place += sum(len(head.rows) for head in heads[-1])
    _select_values(traces, heads, config)
    largest = (1 << config.token_importance.element_bits) - 1
    requests = [trace.requests(largest) for trace in traces]
    in_order = [request for of_layer in requests for request in of_layer if request is not None]
    chosen = iter(selections(in_order, config.selector))

    def choice(request: Request | None) -> Choice | None:
        return None if request is None else Choice(next(chosen), np.flatnonzero(request[1]).tolist())

    layers = []
    for trace, present, of_layer in zip(traces, heads, requests, strict=True):
        eviction, head_choice, token_choice = map(choice, of_layer)
        layers.append(
            Layer(
                tokens=trace.tokens_from,
                heads_from=trace.heads_from,
                n_tokens=trace.n_listed,
                n_model_heads=trace.n_model_heads,
                heads=present,
                eviction=eviction,
                head_choice=head_choice,
                token_choice=token_choice,
            )
        )
    return layers


def _heads(trace: LayerTrace, config: AttentionConfig, place: int) -> list[Head]:
    """``place``: of the layer's first row in the query ring."""
    n = len(trace.tokens)
    vectors = config.qk.buffer.vectors_per_line(trace.head_dim)
    locks = config.confidence.window > HALVES and not trace.streamed
    ends = [group != after for group, after in zip(trace.groups, [*trace.groups[1:], None], strict=True)]
    heads = []
    for number, (planes, used_lsb) in enumerate(zip(trace.planes, trace.used_lsb, strict=True)):
        is_last = number == len(ends) - 1
        head = Head(
            tokens=trace.tokens,
            planes=planes,
            n_lines=-(-n // vectors),
            is_one=trace.rows in ("one", "sum"),
            n_summed=len(ends) if trace.rows == "sum" else 0,
            streamed=trace.streamed,
            tile_keys=config.tile_keys(trace.head_dim),
            first_of_group=number == 0 or ends[number - 1],
            last_of_group=ends[number],
            last=is_last,
        )
        flushes = not head.is_one or is_last or (locks and ends[number])
        for row, dropped in enumerate([False] if trace.rows == "sum" else used_lsb.tolist()):
            head.rows.append(
                Row(
                    head=head,
                    n_keys=trace.n_keys(row),
                    place=place,
                    progressive=trace.progressive,
                    dropped=trace.progressive and dropped,
                    flush=trace.progressive and flushes and row == len(used_lsb) - 1,
                    kept=[] if trace.rows == "sum" else trace.kept_values(number, row).tolist(),
                    vectors=vectors,
                )
            )
            place += 1
        heads.append(head)
    return heads


def _select_values(
    traces: Sequence[LayerTrace], heads: Sequence[Sequence[Head]], config: AttentionConfig
) -> None:
    """Finished rows take turns over the engines, whose pivots depend on all the requests before."""
    finished: list[tuple[Row, np.ndarray]] = []
    for trace, present in zip(traces, heads, strict=True):
        rows = [row for head in present if not head.only_sums for row in head.rows]
        by_row = trace.probabilities.reshape(len(rows), len(trace.tokens))
        elements = {id(row): of_row[: row.n_keys] for row, of_row in zip(rows, by_row, strict=True)}
        finished += [(row, elements[id(row)]) for row in finish_order(rows, config.confidence.window)]
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
