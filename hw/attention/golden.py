# SPDX-License-Identifier: MIT
"""Bit-exact model of the attention core: the encoder pass of one sentence, layer after layer.

It joins the golden models of the blocks, computing all rows of a layer together. One row on its way, with the
block that each step belongs to:

    scores         Q.K_msb, where asked for 16 (Q.K_msb) + Q.K_lsb             hw.qk, hw.confidence
    probabilities  softmax of the MSB scores; again with both planes where     hw.softmax, hw.confidence
                   its maximum is below the threshold
    importance     of every token: + its probability                           hw.importance
    values         the ``n_values`` most probable keys                         hw.select
    output         sum of p V over these, shifted, rounded, saturated          hw.pv
    importance     of the head: + sum of |o|                                   hw.importance

At the end of a layer the tokens and the heads of largest importance stay for the next one (hw.select).
Symbols: N tokens of the sentence, H heads of the model, D head dimension; n and h, those present in a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

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

from .config import AttentionConfig
from .layers import HeadInput, LayerInput


class FinishedRow(NamedTuple):
    """One row of output as it leaves the core."""

    head: int
    """Place among the heads present."""
    row: int
    """Place among the tokens present."""
    used_lsb: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerResult:
    """What one layer gives; heads and tokens by their place among the h and n present, ascending."""

    tokens: Tensor
    """int64[n], positions of the tokens present."""
    heads: Tensor
    """int64[h], numbers of the heads present."""
    order: list[FinishedRow]
    """All h n rows in the order in which they leave: heads ascending; in a head in the order of
    :func:`hw.confidence.golden.entries`, whose last row is flushed."""
    outputs: Tensor
    """int64[h, n, D], ``pv.element_bits`` signed; unit: that of V times 2^(out_shift - 12)."""
    used_lsb: Tensor
    """bool[h, n], rows computed again with the LSBs."""
    probabilities: Tensor
    """int64[h, n, n], query by key, 0..4,095, unit 2^-12, before local value pruning."""
    kept_values: Tensor
    """bool[h, n, n], keys whose values enter the sum."""
    magnitudes: Tensor
    """int64[h, n], sum of |o| over D."""
    token_importance: Tensor
    """int64[n] after this layer, cumulative over layers: what the selection compares, so shifted by
    ``token_shift`` and saturated."""
    head_importance: Tensor
    """int64[h], likewise."""
    next_tokens: Tensor
    """int64[k], positions kept for the next layer, ascending."""
    next_heads: Tensor
    """int64[k], heads kept, ascending."""


class AttentionGolden:
    """One sentence on its way through the layers; between them it knows who is left, and their importance."""

    def __init__(self, config: AttentionConfig, n_tokens: int, n_heads: int) -> None:
        """``n_tokens`` is N, ``n_heads`` H; ValueError where the core is not built for as many."""
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
        self._token_scores = Importance(config.token_importance)
        self._head_scores = Importance(config.head_importance)

    def layer(self, layer: LayerInput) -> LayerResult:
        """Compute one layer; advance to the next.

        Equal importances are decided for the earlier token or head, equal probabilities for the earlier key.

        Raises
        ------
        TypeError, ValueError
            A tensor of a wrong dtype or shape, a value outside the range that its field states, one layer
            more than the importance accumulators are built for.
        """
        layer = replace(layer, heads=[_in_torch(head) for head in layer.heads])
        self._check(layer)
        heads = [layer.heads[head] for head in self.heads.tolist()]
        q, k, v = (_stack(heads, name, self.tokens) for name in ("q", "k", "v"))
        _check_elements(q, k, v, layer.progressive, self.config)
        probabilities, used_lsb = _probabilities(q, k, heads, layer, self.config)
        kept_values = largest_of_rows(probabilities, layer.n_values)
        outputs = _weighted_sums(probabilities * kept_values, v, layer.out_shift, self.config.pv.element_bits)
        magnitudes = outputs.abs().sum(dim=-1)
        self._add_importance(probabilities, magnitudes)
        token_importance = self._token_scores.elements(layer.token_shift)
        head_importance = self._head_scores.elements(layer.head_shift)
        tokens, present_heads = self.tokens, self.heads
        self.tokens = self._selected(tokens, layer.n_tokens_next, token_importance, self._token_scores)
        self.heads = self._selected(present_heads, layer.n_heads_next, head_importance, self._head_scores)
        return LayerResult(
            tokens=tokens,
            heads=present_heads,
            order=_order(used_lsb, layer.progressive, self.config),
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

    def _check(self, layer: LayerInput) -> None:
        if self.n_layers == MAX_LAYERS:
            raise ValueError(f"a sentence must have at most {MAX_LAYERS} layers, as the importances are wide")
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
        head_dim = layer.heads[0].q.shape[-1]
        if head_dim not in self.config.qk.head_dims:
            raise ValueError(f"head_dim must be one of {self.config.qk.head_dims}, not {head_dim}")
        shape = (self.n_tokens, head_dim)
        for number, head in enumerate(layer.heads):
            for name in ("q", "k", "v"):
                value = getattr(head, name)
                if value.dtype != torch.int64 or value.shape != shape:
                    raise TypeError(
                        f"{name} of head {number} must be int64{list(shape)}, "
                        f"not {value.dtype}{list(value.shape)}"
                    )

    def _add_importance(self, probabilities: Tensor, magnitudes: Tensor) -> None:
        """Alg. 2: every row adds its probabilities to the tokens', the size of its output to its head's."""
        for row in probabilities.flatten(end_dim=1):
            self._token_scores.add(row)
        for place, rows in enumerate(magnitudes):
            for magnitude in rows:
                self._head_scores.add(magnitude[None], start=place)
        self.n_layers += 1

    def _selected(self, present: Tensor, n_next: int, elements: Tensor, scores: Importance) -> Tensor:
        """Of the tokens or heads ``present`` the ``n_next`` most important; their scores go on, packed."""
        kept, places = local_values(present, min(n_next, len(present)), self.config.selector, elements)
        scores.keep(places)
        return kept


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


def _stack(heads: Sequence[HeadInput], name: str, tokens: Tensor) -> Tensor:
    """int64[h, n, D]: the rows of the tokens present."""
    return torch.stack([getattr(head, name)[tokens] for head in heads])


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
    """Probabilities int64[h, n, n], and which rows used the LSBs, bool[h, n]."""

    def rows_of(scores: Tensor, scales: Sequence[tuple[int, int]], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax of the marked rows, [rows, n], and the maxima; head by head its scale."""
        scale = torch.tensor(scales)[:, None].expand(*rows.shape, 2)[rows]
        result = softmax(scores[rows], scale[:, 0], scale[:, 1], config.confidence.softmax)
        return result.probability, result.max_probability

    every = torch.ones(q.shape[:2], dtype=torch.bool)
    msb, lsb = (k >> LSB_BITS, k & ((1 << LSB_BITS) - 1)) if layer.progressive else (k, None)
    scores = _product(q, msb.mT)
    first, largest = rows_of(scores, [head.msb_scale for head in heads], every)
    probabilities = first.unflatten(0, every.shape)
    if lsb is None:
        return probabilities, ~every
    used_lsb = (largest < layer.threshold).unflatten(0, every.shape)
    if used_lsb.any():
        exact = combine(scores, _product(q, lsb.mT), config.confidence)
        probabilities[used_lsb], _ = rows_of(exact, [head.lsb_scale for head in heads], used_lsb)
    return probabilities, used_lsb


def _weighted_sums(weights: Tensor, v: Tensor, shift: int, bits: int) -> Tensor:
    """int64[h, n, D]: :func:`hw.pv.golden.weighted_sum` of all rows; half rounds up, then saturates."""
    bound = 1 << (bits - 1)
    return ((_product(weights, v) + (1 << (shift - 1))) >> shift).clamp(-bound, bound - 1)


def _order(used_lsb: Tensor, progressive: bool, config: AttentionConfig) -> list[FinishedRow]:
    """Rows in the order in which they leave: a maximum of 0 fails a threshold of 1, where LSBs were used."""
    order = []
    for head, rows in enumerate(used_lsb.tolist()):
        last = len(rows) - 1
        checks = [Check(threshold=1, progressive=progressive, flush=row == last) for row in range(len(rows))]
        for entry in entries(checks, [0 if used else 1 for used in rows], config.confidence):
            if not entry.dropped:
                order.append(FinishedRow(head, entry.row, entry.used_lsb))
    return order
