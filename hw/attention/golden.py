# SPDX-License-Identifier: MIT
"""Bit-exact model of the attention core: one pass through all layers, of a sentence, a prompt or a new token.

It joins the golden models of the blocks, computing all rows of a layer together. One row on its way, with the
block that each step belongs to:

    scores         Q.K_msb, where asked for 16 (Q.K_msb) + Q.K_lsb             hw.qk, hw.confidence
    probabilities  softmax of the MSB scores; again with both planes where     hw.softmax, hw.confidence
                   its maximum is below the threshold
    importance     of every token: + its probability                           hw.importance
    values         the ``n_values`` most probable keys                         hw.select
    output         sum of p V over these, shifted, rounded, saturated          hw.pv
    importance     of the head: + sum of |o|                                   hw.importance

At the end of a layer the tokens and the heads of largest importance stay for the next one (hw.select). A
pass that generates is given its list of tokens, and their importance, from outside.
Symbols: N positions of the sequence, H heads of the model, D head dimension; n and h, those present in a
layer; r query rows of a head: n, or 1 in generation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from hw.confidence.config import LSB_BITS
from hw.confidence.golden import Check, combine, entries
from hw.importance.config import MAX_LAYERS
from hw.importance.golden import Importance
from hw.pv.config import SHIFTS
from hw.select.golden import local_values
from hw.softmax.config import PROBABILITY_BITS
from hw.softmax.golden import softmax

from .config import HALVES, AttentionConfig
from .layers import HeadInput, LayerInput, Rows


class FinishedRow(NamedTuple):
    """One row of output as it leaves the core."""

    head: int
    """Place among the heads present."""
    row: int
    """Place among the tokens present; 0 where a head has one row."""
    used_lsb: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Eviction:
    """The selection with which a given list of tokens begins a pass."""

    tokens: Tensor
    """int64[m], positions given."""
    importance: Tensor
    """int64[m]: what the selection compares but for a protected token, halved where asked for, shifted."""
    kept: Tensor
    """int64[k], positions that the first layer sees."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResult:
    """What one layer gives; heads and tokens by their place among the h and n present, ascending."""

    tokens: Tensor
    """int64[n], positions of the tokens present."""
    heads: Tensor
    """int64[h], numbers of the heads present."""
    order: list[FinishedRow]
    """All h r rows in the order in which they leave: heads ascending; otherwise the order of
    :func:`hw.confidence.golden.entries` over all rows of the layer. The last row of a head is flushed; where
    heads have one row, that of the layer, and of each group if keys are not streamed and the window is wider
    than the buffers' halves are many."""
    outputs: Tensor
    """int64[h, r, D], ``pv.element_bits`` signed; unit: that of V times 2^(out_shift - 12)."""
    used_lsb: Tensor
    """bool[h, r], rows computed again with the LSBs."""
    probabilities: Tensor
    """int64[h, r, n], query by key, 0..4,095, unit 2^-12, before local value pruning; 0 for keys not seen."""
    kept_values: Tensor
    """bool[h, r, n], keys whose values enter the sum."""
    magnitudes: Tensor
    """int64[h, r], sum of |o| over D."""
    token_importance: Tensor
    """int64[n] after this layer, cumulative over layers: what the selection compares but for a protected
    token, so shifted by ``token_shift`` and saturated."""
    head_importance: Tensor
    """int64[h], likewise; empty with rows "one", where heads are not selected."""
    next_tokens: Tensor
    """int64[k], positions kept for the next layer, ascending."""
    next_heads: Tensor
    """int64[k], heads kept, ascending."""
    sums: Tensor | None = None
    """int64[n] with rows "sum", where nothing else is computed: scores summed over the heads present."""


class AttentionGolden:
    """One pass on its way through the layers; between them it knows who is left, and their importance."""

    def __init__(self, config: AttentionConfig, n_tokens: int, n_heads: int) -> None:
        """All of ``n_tokens`` N and ``n_heads`` H; ValueError where the core is not built for as many."""
        for name, value, most in (
            ("n_tokens", n_tokens, config.qk.n_max),
            ("n_heads", n_heads, config.head_importance.n_max),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be in 1..{most}, not {value}")
        self.config, self.n_tokens, self.n_heads = config, n_tokens, n_heads
        self.tokens = torch.arange(n_tokens)
        """int64[n], positions of the tokens present in the next layer."""
        self.heads = torch.arange(n_heads)
        """int64[h], numbers of the heads present in it."""
        self.n_layers = 0
        """Layers computed."""
        self.eviction: Eviction | None = None
        """Where the pass began with a given list."""
        self._given_with: tuple[int, bool] | None = None
        """Shift and protection of that selection, which are those of the first layer."""
        self._token_scores = Importance(config.token_importance)
        self._head_scores = Importance(config.head_importance)

    @classmethod
    def given(
        cls,
        config: AttentionConfig,
        tokens: Tensor,
        importance: Tensor,
        n_keep: int,
        n_positions: int,
        n_heads: int,
        token_shift: int = 0,
        halve: bool = False,
        protect_last: bool = False,
    ) -> "AttentionGolden":
        """A pass that begins with a list from outside, of which the ``n_keep`` most important stay.

        Parameters
        ----------
        tokens, importance, n_keep, halve : see :class:`hw.attention.layers.GivenTokens`
        n_positions : N, above every position
        token_shift, protect_last : those of the first layer

        Raises
        ------
        ValueError
            A list that is not ascending in 0..N - 1, importance out of range or of another length.
        """
        tokens, importance = torch.as_tensor(tokens), torch.as_tensor(importance)
        core = cls(config, n_positions, n_heads)
        _check_ids("tokens", tokens, n_positions)
        if len(importance) != len(tokens):
            raise ValueError(f"importance must have {len(tokens)} numbers, not {len(importance)}")
        if n_keep < 1:
            raise ValueError(f"n_keep must be at least 1, not {n_keep}")
        most = config.token_importance.max_element
        if int(importance.max()) > most:
            raise ValueError(f"importance must be in 0..{most}, not {int(importance.max())}")
        core._token_scores.load(importance, token_shift, halve=halve)
        elements = core._token_scores.elements(token_shift)
        core.tokens = core._selected(tokens, n_keep, elements, core._token_scores, protect_last)
        core.eviction = Eviction(tokens=tokens, importance=elements, kept=core.tokens)
        core._given_with = token_shift, protect_last
        return core

    def layer(self, layer: LayerInput, heads: Sequence[int] | None = None) -> LayerResult:
        """Compute one layer; advance to the next.

        Equal importances are decided for the earlier token or head, equal probabilities for the earlier key.

        Parameters
        ----------
        heads : where given, the heads present, ascending; their importance begins anew

        Raises
        ------
        TypeError, ValueError
            A tensor of a wrong dtype or shape, a value outside the range that its field states, K or V that
            differ within a group, one layer more than the importance accumulators are built for.
        """
        layer = replace(layer, heads=[_in_torch(head) for head in layer.heads])
        self._check(layer)
        if heads is not None:
            self.heads = torch.as_tensor(heads)
            _check_ids("heads", self.heads, self.n_heads)
            self._head_scores.clear()
        present = [layer.heads[head] for head in self.heads.tolist()]
        query_rows = torch.zeros(1, dtype=torch.int64) if layer.rows in ("one", "sum") else self.tokens
        if layer.rows == "sum":
            return self._sums(present)
        q, k, v = (
            torch.stack([getattr(head, name)[rows] for head in present])
            for name, rows in (("q", query_rows), ("k", self.tokens), ("v", self.tokens))
        )
        _check_elements(q, k, v, layer.progressive, self.config)
        probabilities, used_lsb = _probabilities(q, k, present, layer, self.config)
        kept_values = largest_of_rows(probabilities, layer.n_values)
        if layer.rows == "causal":  # what a query does not see comes after, so it wins no tie
            kept_values = kept_values.tril()
        outputs = _weighted_sums(probabilities * kept_values, v, layer.out_shift, self.config.pv.element_bits)
        magnitudes = outputs.abs().sum(dim=-1)
        self._add_importance(probabilities, magnitudes)
        before = self.tokens, self.heads
        token_importance = self._token_scores.elements(layer.token_shift)
        head_importance = self._select_heads(layer)
        self.tokens = self._selected(
            self.tokens, layer.n_tokens_next, token_importance, self._token_scores, layer.protect_last
        )
        return LayerResult(
            tokens=before[0],
            heads=before[1],
            order=_order(used_lsb, layer, before[1], self.config),
            outputs=outputs,
            used_lsb=used_lsb,
            probabilities=probabilities,
            kept_values=kept_values,
            magnitudes=magnitudes,
            token_importance=token_importance,
            head_importance=head_importance,
            next_tokens=self.tokens,
            next_heads=self.heads,
        )

    def _sums(self, heads: Sequence[HeadInput]) -> LayerResult:
        """Scores over all heads together, exact: ``AttentionConfig.sum_bits`` holds them."""
        q, k = (torch.stack([getattr(head, name) for head in heads]) for name in ("q", "k"))
        q, k = q[:, :1], k[:, self.tokens]
        _check_elements(q, k, k, progressive=False, config=self.config)
        self.n_layers += 1
        n_heads, n = len(heads), len(self.tokens)
        none = torch.zeros(n_heads, 0, dtype=torch.int64)
        return LayerResult(
            tokens=self.tokens,
            heads=self.heads,
            order=[],
            outputs=none[..., None],
            used_lsb=none.bool(),
            probabilities=none[..., None].expand(n_heads, 0, n),
            kept_values=none[..., None].expand(n_heads, 0, n).bool(),
            magnitudes=none,
            token_importance=none[0],
            head_importance=none[0],
            next_tokens=self.tokens,
            next_heads=self.heads,
            sums=_product(q, k.mT).sum(dim=0)[0],
        )

    def _check(self, layer: LayerInput) -> None:
        if self.n_layers == MAX_LAYERS:
            raise ValueError(f"a pass must have at most {MAX_LAYERS} layers, as the importances are wide")
        if len(layer.heads) != self.n_heads:
            raise ValueError(f"heads must be {self.n_heads}, not {len(layer.heads)}")
        largest_threshold = (1 << PROBABILITY_BITS) - 1
        if not 0 <= layer.threshold <= largest_threshold:
            raise ValueError(f"threshold must be in 0..{largest_threshold}, not {layer.threshold}")
        for name in ("n_values", "n_tokens_next", "n_heads_next"):
            if getattr(layer, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(layer, name)}")
        if layer.out_shift not in SHIFTS:
            raise ValueError(f"out_shift must be in {SHIFTS[0]}..{SHIFTS[-1]}, not {layer.out_shift}")
        if layer.rows not in get_args(Rows):
            raise ValueError(f"rows must be one of {', '.join(get_args(Rows))}, not {layer.rows!r}")
        now = layer.token_shift, layer.protect_last
        if self.n_layers == 0 and self._given_with not in (None, now):
            raise ValueError(
                f"token_shift and protect_last of the first layer must be those of the given list, "
                f"{self._given_with}, not {now}"
            )
        head_dim = layer.heads[0].q.shape[-1]
        if head_dim not in self.config.qk.head_dims:
            raise ValueError(f"head_dim must be one of {self.config.qk.head_dims}, not {head_dim}")
        n_rows = {"q": 1 if layer.rows in ("one", "sum") else self.n_tokens, "k": self.n_tokens}
        if layer.rows != "sum":
            n_rows["v"] = self.n_tokens
        for number, head in enumerate(layer.heads):
            for name, n in n_rows.items():
                value = getattr(head, name)
                if value.dtype != torch.int64 or value.shape != (n, head_dim):
                    raise TypeError(
                        f"{name} of head {number} must be int64{[n, head_dim]}, "
                        f"not {value.dtype}{list(value.shape)}"
                    )
        check_shared(layer)

    def _add_importance(self, probabilities: Tensor, magnitudes: Tensor) -> None:
        """Alg. 2: every row adds its probabilities to the tokens', the size of its output to its head's."""
        for row in probabilities.flatten(end_dim=1):
            self._token_scores.add(row)
        if int(self._token_scores.scores.max()) >> self.config.token_importance.score_bits:
            raise ValueError("importance given must leave room for the rows of the pass: it overflows")
        for place, rows in enumerate(magnitudes):
            for magnitude in rows:
                self._head_scores.add(magnitude[None], start=place)
        self.n_layers += 1

    def _select_heads(self, layer: LayerInput) -> Tensor:
        """What the selection of heads compared; nothing where heads have one row: they stay."""
        if layer.rows == "one":
            self._head_scores.clear()
            return self.heads[:0]
        importance = self._head_scores.elements(layer.head_shift)
        self.heads = self._selected(self.heads, layer.n_heads_next, importance, self._head_scores)
        return importance

    def _selected(
        self, present: Tensor, n_next: int, elements: Tensor, scores: Importance, protect_last: bool = False
    ) -> Tensor:
        """Of the tokens or heads ``present`` the ``n_next`` most important; their scores go on, packed."""
        if protect_last:
            protected = torch.tensor([(1 << scores.config.element_bits) - 1])
            elements = torch.cat([elements[:-1], protected])
        kept, places = local_values(present, min(n_next, len(present)), self.config.selector, elements)
        scores.keep(places)
        return kept


def check_shared(layer: LayerInput) -> None:
    """ValueError unless heads of one group have equal K and V, and ``groups`` is a list of groups."""
    groups = layer.head_groups
    for number in range(1, len(groups)):
        if groups[number] != groups[number - 1]:
            continue
        for name in ("k",) if layer.rows == "sum" else ("k", "v"):
            mine, before = (getattr(layer.heads[place], name) for place in (number, number - 1))
            if mine is not before and not bool((mine == before).all()):
                raise ValueError(f"{name} of heads {number - 1} and {number} must be equal: they share it")


def _check_ids(name: str, ids: Tensor, n: int) -> None:
    """ValueError unless int64[m], m >= 1, ascending in 0..n - 1."""
    ascending = len(ids) and bool((ids[1:] > ids[:-1]).all()) and int(ids[0]) >= 0 and int(ids[-1]) < n
    if not ascending:
        raise ValueError(f"{name} must be ascending numbers in 0..{n - 1}, at least one, not {ids.tolist()}")


def largest_of_rows(probabilities: Tensor, k: int) -> Tensor:
    """Mask of the ``k`` largest of each row of int64[..., n], ties to the earlier; all of them if n <= k.

    As :func:`hw.select.golden.local_values` keeps them with semantics ``probability``: all rows together, by
    keys that no two elements of a row share.
    """
    n = probabilities.shape[-1]
    different = probabilities * n + torch.arange(n - 1, -1, -1)
    kept = different.topk(min(k, n), dim=-1).indices
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, kept, True)


def _in_torch(head: HeadInput) -> HeadInput:
    """The same numbers, as tensors."""
    return replace(head, q=torch.as_tensor(head.q), k=torch.as_tensor(head.k), v=torch.as_tensor(head.v))


def _check_elements(q: Tensor, k: Tensor, v: Tensor, progressive: bool, config: AttentionConfig) -> None:
    key_bits = config.qk.element_bits + progressive * LSB_BITS
    for name, value, bits in (
        ("q", q, config.qk.element_bits),
        ("k", k, key_bits),
        ("v", v, config.pv.element_bits),
    ):
        bound = 1 << (bits - 1)
        low, high = int(value.min()), int(value.max())
        if low < -bound or high >= bound:
            raise ValueError(f"{name} must be in {-bound}..{bound - 1}, not {low}..{high}")


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Exact a b of int64 matrices: float64 holds every integer up to 2^53, and no sum gets there.

    ``QkConfig.sum_bits`` is at most 36, ``PvConfig.sum_bits`` at most 44.
    """
    return (a.double() @ b.double()).to(torch.int64)


def _probabilities(
    q: Tensor, k: Tensor, heads: Sequence[HeadInput], layer: LayerInput, config: AttentionConfig
) -> tuple[Tensor, Tensor]:
    """Probabilities int64[h, r, n], and which rows used the LSBs, bool[h, r]; q [h, r, D], k [h, n, D]."""
    msb, lsb = (k >> LSB_BITS, k & ((1 << LSB_BITS) - 1)) if layer.progressive else (k, None)
    scores = _product(q, msb.mT)
    lsb_scores = None if lsb is None else _product(q, lsb.mT)
    probabilities = torch.zeros_like(scores)
    used_lsb = torch.zeros(scores.shape[:2], dtype=torch.bool)
    n_rows, n_keys = scores.shape[1:]
    alike = [(slice(row, row + 1), row + 1) for row in range(n_rows)]
    """Rows that see as many keys, and how many."""
    if layer.rows != "causal":
        alike = [(slice(None), n_keys)]
    for rows, n in alike:
        seen = None if lsb_scores is None else lsb_scores[:, rows, :n]
        found = _confident(scores[:, rows, :n], seen, heads, layer.threshold, config)
        probabilities[:, rows, :n], used_lsb[:, rows] = found
    return probabilities, used_lsb


def _confident(
    msb: Tensor, lsb: Tensor | None, heads: Sequence[HeadInput], threshold: int, config: AttentionConfig
) -> tuple[Tensor, Tensor]:
    """As :func:`_probabilities`, of scores int64[h, r, n]: again with both planes where not confident."""

    def rows_of(scores: Tensor, scales: Sequence[tuple[int, int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the marked rows, [rows, n], and the maxima; head by head its scale."""
        scale = torch.tensor(scales)[:, None].expand(*rows.shape, 2)[rows]
        result = softmax(scores[rows], scale[:, 0], scale[:, 1], config.confidence.softmax)
        return result.probability, result.max_probability

    every = torch.ones(msb.shape[:2], dtype=torch.bool)
    first, largest = rows_of(msb, [head.msb_scale for head in heads], every)
    probabilities = first.unflatten(0, every.shape)
    if lsb is None:
        return probabilities, ~every
    used_lsb = (largest < threshold).unflatten(0, every.shape)
    if used_lsb.any():
        exact = combine(msb, lsb, config.confidence)
        probabilities[used_lsb], _ = rows_of(exact, [head.lsb_scale for head in heads], used_lsb)
    return probabilities, used_lsb


def _weighted_sums(weights: Tensor, v: Tensor, shift: int, bits: int) -> Tensor:
    """int64[h, n, D]: :func:`hw.pv.golden.weighted_sum` of all rows; half rounds up, then saturates."""
    bound = 1 << (bits - 1)
    return ((_product(weights, v) + (1 << (shift - 1))) >> shift).clamp(-bound, bound - 1)


def _order(used_lsb: Tensor, layer: LayerInput, heads: Tensor, config: AttentionConfig) -> list[FinishedRow]:
    """Rows in the order in which they leave: a maximum of 0 fails a threshold of 1, where LSBs were used."""
    n_rows = used_lsb.shape[1]
    groups = [layer.head_groups[head] for head in heads.tolist()]
    ends_group = [group != after for group, after in zip(groups, [*groups[1:], None], strict=True)]
    locks = config.confidence.window > HALVES and not layer.streamed
    flushes = [
        layer.rows != "one" or place == len(groups) - 1 or (locks and ends)
        for place, ends in enumerate(ends_group)
    ]
    checks = [
        Check(threshold=1, progressive=layer.progressive, flush=flush and row == n_rows - 1)
        for flush in flushes
        for row in range(n_rows)
    ]
    largest = [0 if used else 1 for used in used_lsb.flatten().tolist()]
    return [
        FinishedRow(*divmod(entry.row, n_rows), entry.used_lsb)
        for entry in entries(checks, largest, config.confidence)
        if not entry.dropped
    ]
