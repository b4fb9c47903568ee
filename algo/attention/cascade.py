# SPDX-License-Identifier: MIT
"""SpAtten's algorithm: one attention layer (paper, Alg. 1 and 2), and what survives to the next layer.

Symbols: B sequences of equal length (no padding), H query heads, G key/value heads (G divides H), n rows
(hidden states, so queries) and m keys of the layer at hand, D head dimension. In an encoder and in the prompt
pass of a decoder n = m; in generation n = 1. Tokens are named by their position in the sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from algo.attention.quantise import msb_plane, quantise, scale_of
from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings

Select = Callable[[Tensor, int], Tensor]
"""``select(scores: float[n], k: int) -> int64[k]``: positions of the k kept, ascending, 1 <= k <= n."""
SelectRows = Callable[[Tensor, int], Tensor]
"""``select_rows(scores: float[..., m], k: int) -> bool[..., m]``: the k kept of each row."""


def top_k(scores: Tensor, k: int) -> Tensor:
    """Positions of the ``k`` largest of float[n], ascending; ties go to the earlier position."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


def top_k_rows(scores: Tensor, k: int) -> Tensor:
    """Mask of the ``k`` largest of each row of float[..., m]; ties go to the earlier position."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


@dataclass(slots=True)
class KVCache:
    """Keys and values of one layer: what the prompt pass kept, and every generated token."""

    k: Tensor  # [B, G, p, D], integers if quantised
    v: Tensor  # [B, G, p, D]
    positions: Tensor  # [B, p], ascending


@dataclass(frozen=True, slots=True)
class Scales:
    """Step sizes of one layer, set by its first pass and kept; later tokens saturate."""

    q: Tensor | None  # [B, H, 1, 1]
    k: Tensor | None  # [B, G, 1, 1]
    v: Tensor | None  # [B, G, 1, 1]


Capture = Literal["nothing", "decisions", "integers"]
"""What a run records: nothing, kept tokens, heads, values and LSB rows, or these and the integers Q, K, V."""


class Attention(Protocol):
    """What a model adapter talks to: :class:`Cascade`, or a replay of its record."""

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """Rows of x : float[B or 1, n', ...] still there at ``layer``."""
        ...

    def rotate(self, x: Tensor) -> Tensor:
        """Of x : float[1, n_all, D], one row for each row of the pass, those of the rows still there."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float) -> Tensor:
        """One attention layer on the rows still there."""
        ...

    def leave(self, x: Tensor) -> Tensor:
        """The last layer's rows, put back in place among all rows of the pass."""
        ...


class Cascade:
    """The state of one batch of sequences on its way through the layers, pass after pass.

    Hand it to a model of :mod:`algo.attention.models` as the keyword argument ``cascade``: the adapter calls
    :meth:`enter` before each layer and :meth:`attend` inside it. Importances are cumulative over heads,
    queries, layers and passes and take no gradient.
    """

    def __init__(
        self,
        settings: CascadeSettings,
        shape: ModelShape,
        select: Select = top_k,
        select_values: SelectRows = top_k_rows,
        capture: Capture = "nothing",
        early_exit: bool = False,
    ) -> None:
        """``early_exit``: a pruned token's row of the model's output is its last state, not zeros."""
        if capture == "integers" and None in (settings.q_bits, settings.k_bits, settings.v_bits):
            raise ValueError("a record of integers needs k_bits and v_bits (and q_bits) in the settings")
        self.settings, self.shape, self.capture = settings, shape, capture
        self.select, self.select_values = select, select_values
        self.early_exit = early_exit
        self.head_counts = settings.heads_per_layer(shape.n_layers, shape.n_heads)
        settings.token_ratios(shape.n_layers)  # rejects a schedule of the wrong length before any work
        self.n_passes = 0
        self.caches: list[KVCache | None] = [None] * shape.n_layers
        self.scales: list[Scales | None] = [None] * shape.n_layers
        self.layer_heads: list[Tensor] = []
        """Alive heads of each layer, bool[B, H]; set by the first pass, and kept: only they have K and V."""
        self.kept_tokens: list[Tensor] = []
        """Positions of the keys of each layer of the latest pass, int64[B, m]."""
        self.layer_token_importance: list[Tensor] = []
        """Importance of every token after each layer of the latest pass, float[B, n_tokens]."""
        self.layer_head_importance: list[Tensor] = []
        """Importance of every head after each layer of the latest pass, float[B, H]."""
        self.layer_lsb_fraction: list[float] = []
        """Share of (head, query) rows of each layer of the latest pass that fetched LSBs."""
        self.passes: list[list[LayerRecord]] = []
        """The record so far, unless ``capture`` is "nothing"; of the first sequence."""

    # ---- passes -------------------------------------------------------------------------------------------

    def begin(self, batch: int, n_tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """Start the first pass over ``n_tokens`` tokens; returns their positions, int64[B, n_tokens]."""
        if self.n_passes:
            raise RuntimeError("begin() was called before; a Cascade serves one batch of sequences")
        self.n_tokens = n_tokens
        self.rows = torch.arange(n_tokens, device=device).expand(batch, -1)
        self.keys = self.rows
        self.n_rows = self.n_prompt = n_tokens
        self.token_importance = torch.zeros(batch, n_tokens, dtype=torch.float64, device=device)
        self.head_importance = torch.zeros(batch, self.shape.n_heads, dtype=torch.float64, device=device)
        self.heads = torch.ones(batch, self.shape.n_heads, dtype=torch.bool, device=device)
        self._begin_pass()
        return self.rows

    def step(self) -> Tensor:
        """Start the pass of one more token; returns its position, int64[B, 1]."""
        if not self.shape.causal:
            raise ValueError("generation needs a decoder")
        if self.settings.prune_prompt and len(self.rows) > 1:
            raise ValueError("prune_prompt must be False to generate several sequences at once")
        self.rows = torch.full((len(self.rows), 1), self.n_tokens, device=self.keys.device)
        self.n_rows = 1
        self.n_tokens += 1
        self.token_importance = torch.nn.functional.pad(self.token_importance, (0, 1))
        self.keys = torch.cat([self.next_keys, self.rows], dim=1)
        self._begin_pass()
        return self.rows

    def _begin_pass(self) -> None:
        self.first_pass = self.n_passes == 0
        self.n_passes += 1
        n_layers, settings = self.shape.n_layers, self.settings
        self.token_counts = settings.token_counts(n_layers, self.n_tokens)
        dense_prompt = self.shape.causal and not settings.prune_prompt
        self.scores_tokens = settings.score_prompt or not (dense_prompt and self.first_pass)
        # Without scores from the prompt the first generated token has nothing to prune by.
        n_dense_passes = 0 if not dense_prompt else 1 if settings.score_prompt else 2
        self.prunes_tokens = self.n_passes > n_dense_passes
        self.value_counts = settings.value_counts(n_layers, self.n_tokens, self.prunes_tokens)
        self.prunes_values = settings.value_keep < 1 and not (dense_prompt and self.first_pass)
        self.passes.append([])
        self.pass_keys = self.keys
        self.survivors: Tensor | None = None
        self.last_states: Tensor | None = None
        """With ``early_exit``, every row's state before the latest selection, float[B, n, C]."""
        self.kept_tokens, self.layer_lsb_fraction = [], []
        self.layer_token_importance, self.layer_head_importance = [], []

    # ---- called by the model adapter ----------------------------------------------------------------------

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """The rows of x : float[B or 1, n', ...] that are still there at ``layer``: float[B, n, ...]."""
        if layer == 0 or self.survivors is None:
            return x
        x = x.expand(len(self.survivors), *x.shape[1:])
        if self.early_exit:
            self.last_states = self._placed(x, self.kept_tokens[-1])
        index = self.survivors.view(*self.survivors.shape, *[1] * (x.dim() - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def rotate(self, x: Tensor) -> Tensor:
        """Cosines or sines float[1, n_all, D] of the rows still there: tokens keep their positions."""
        return x if self.n_rows == 1 else x[0][self.rows]  # [B, n, D]

    def leave(self, x: Tensor) -> Tensor:
        """Rows x : float[B, n, C] back in place among all rows of the pass; a pruned token's row is zero, or
        with ``early_exit`` the state in which it left."""
        return x if x.shape[1] == self.n_rows else self._placed(x, self.rows)

    def _placed(self, x: Tensor, rows: Tensor) -> Tensor:
        """x : float[B, n, C] at ``rows`` int64[B, n]; elsewhere the last states known, or zeros."""
        known = x.new_zeros(len(x), self.n_rows, x.shape[2]) if self.last_states is None else self.last_states
        return known.scatter(1, rows[..., None].expand_as(x), x)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """One attention layer; advances the cascade to the next.

        q : float[B, H, n, D]; k, v : float[B, G, n, D], of the rows of this pass; ``scaling`` is 1/sqrt(D).
        Returns float[B, H, n, D]; a pruned head gives zeros. Pruned values count as 0 and the remaining
        probabilities are not renormalised (paper, local value pruning).
        """
        scales = self._scales(layer, q, k, v)
        if scales.q is not None:
            q = quantise(q, self.settings.q_bits or 0, scales.q)
        if scales.k is not None:
            k = quantise(k, (self.settings.k_bits or 0) + self.settings.lsb_bits, scales.k)
        if scales.v is not None:
            v = quantise(v, self.settings.v_bits or 0, scales.v)
        if self.first_pass:
            self.layer_heads.append(self.heads)
        else:
            self.heads = self.layer_heads[layer]
        self.kept_tokens.append(self.keys)
        rows = (q, k, v)
        k, v = self._cached(layer, k, v)  # [B, G, m, D]
        n_group = self.shape.n_heads // self.shape.n_kv_heads
        scores, prob, lsb_rows = self._probabilities(q, k.repeat_interleave(n_group, 1), scales, scaling)
        alive = self.heads[:, :, None, None]  # [B, H, 1, 1]
        if self.scores_tokens:  # Alg. 2: s_t[token] += column sums
            column_sums = (prob.detach() * alive).double().sum((1, 2))  # [B, m]
            self.token_importance = self.token_importance.scatter_add(1, self.keys, column_sums)
        fetched = self._fetched_values(layer, scores, prob)
        weights = drop(prob if fetched is None else prob * fetched, dropout)
        out = weights @ v.repeat_interleave(n_group, 1)  # [B, H, n, D]
        if scales.v is not None:
            out = out * scales.v.repeat_interleave(n_group, 1)
        out = out * alive
        # Alg. 2: s_h[head] += sum of |E[head]|
        self.head_importance = self.head_importance + out.detach().abs().double().sum((2, 3))
        if lsb_rows is not None:
            n_rows = int(self.heads.sum()) * q.shape[2]
            self.layer_lsb_fraction.append(int(lsb_rows.sum()) / n_rows)
        self.layer_token_importance.append(self.token_importance)
        self.layer_head_importance.append(self.head_importance)
        if self.capture != "nothing":
            self.passes[-1].append(self._record(rows, scales, fetched, lsb_rows))
        self._advance(layer)
        return out

    def record(self, model: str, token_ids: Tensor) -> AttentionRecord:
        """Everything decided so far; ``token_ids`` int64[n] are the tokens of all passes."""
        if self.capture == "nothing":
            raise RuntimeError("this cascade captured nothing")
        return AttentionRecord(
            model=model,
            shape=self.shape,
            settings=self.settings,
            token_ids=token_ids.cpu().numpy().astype(np.int32),
            n_prompt=self.n_prompt,
            passes=tuple(tuple(layers) for layers in self.passes),
        )

    # ---- the parts of attend ------------------------------------------------------------------------------

    def _scales(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Scales:
        known = self.scales[layer]
        if known is None:
            s, per_head = self.settings, (2, 3)
            known = self.scales[layer] = Scales(
                q=None if s.q_bits is None else scale_of(q, s.q_bits, per_head),
                k=None if s.k_bits is None else scale_of(k, s.k_bits + s.lsb_bits, per_head),
                v=None if s.v_bits is None else scale_of(v, s.v_bits, per_head),
            )
        return known

    def _cached(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of this layer's keys; decoders store the new rows first."""
        if not self.shape.causal:
            return k, v
        cache = self.caches[layer]
        if cache is None:
            self.caches[layer] = KVCache(k, v, self.rows)
            return k, v
        cache.k = torch.cat([cache.k, k], dim=2)
        cache.v = torch.cat([cache.v, v], dim=2)
        cache.positions = torch.cat([cache.positions, self.rows], dim=1)
        if cache.positions.shape == self.keys.shape:  # nothing pruned
            return cache.k, cache.v
        slots = torch.searchsorted(cache.positions.contiguous(), self.keys.contiguous())  # [B, m]
        slots = slots[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return cache.k.gather(2, slots), cache.v.gather(2, slots)

    def _probabilities(
        self, q: Tensor, k: Tensor, scales: Scales, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores and probabilities float[B, H, n, m]; rows that fetched LSBs bool[B, H, n], or None."""
        step = torch.tensor(scaling, dtype=q.dtype, device=q.device)
        if scales.q is not None:
            step = step * scales.q
        if scales.k is not None:
            step = step * scales.k.repeat_interleave(self.shape.n_heads // self.shape.n_kv_heads, 1)

        def scores_with(key: Tensor) -> Tensor:
            s = q @ key.transpose(-1, -2) * step  # [B, H, n, m]
            if self.shape.causal:
                hidden = self.keys[:, None, None, :] > self.rows[:, None, :, None]
                s = s.masked_fill(hidden, -torch.inf)
            return s

        if not self.settings.progressive:
            scores = scores_with(k)
            return scores, scores.softmax(-1), None
        scores = scores_with(msb_plane(k, self.settings.lsb_bits))
        # Progressive quantisation: a flat row is not safe on MSBs alone; fetch the LSBs, redo it once.
        lsb_rows = scores.detach().softmax(-1).amax(-1) < self.settings.lsb_threshold
        lsb_rows = lsb_rows & self.heads[:, :, None]
        if lsb_rows.any():
            scores = torch.where(lsb_rows[..., None], scores_with(k), scores)
        return scores, scores.softmax(-1), lsb_rows

    def _fetched_values(self, layer: int, scores: Tensor, prob: Tensor) -> Tensor | None:
        """Local value pruning: which V each head and query fetches, bool[B, H, n, m]; None for all."""
        count = self.value_counts[layer]
        if not self.prunes_values or count >= prob.shape[-1]:
            return None
        ranked = prob if self.settings.value_semantics == "probability" else scores
        fetched = self.select_values(ranked.detach(), count)
        return fetched & (scores > -torch.inf) & self.heads[:, :, None, None]

    def _record(
        self, rows: tuple[Tensor, ...], scales: Scales, fetched: Tensor | None, lsb_rows: Tensor | None
    ) -> LayerRecord:
        """The decisions of this layer for the first sequence of the batch."""

        def array(x: Tensor | None, dtype: type) -> np.ndarray | None:
            return None if x is None else x[0].detach().cpu().numpy().astype(dtype)

        def step(x: Tensor | None) -> np.ndarray | None:
            return None if x is None else x[0, :, 0, 0].double().cpu().numpy()

        q, k, v = [array(x, np.int16) if self.capture == "integers" else None for x in rows]
        return LayerRecord(
            queries=self.rows[0].cpu().numpy().astype(np.int32),
            keys=self.keys[0].cpu().numpy().astype(np.int32),
            heads=self.heads[0].nonzero()[:, 0].cpu().numpy().astype(np.int32),
            values=array(fetched, np.bool_),
            lsb_rows=array(lsb_rows, np.bool_),
            q=q,
            k=k,
            v=v,
            q_scale=step(scales.q),
            k_scale=step(scales.k),
            v_scale=step(scales.v),
        )

    # ---- what survives ------------------------------------------------------------------------------------

    def _advance(self, layer: int) -> None:
        """Choose the tokens and heads of the next layer or, after the last one, the keys of the next pass."""
        if layer + 1 == self.shape.n_layers:
            if self.shape.causal:
                self._end_pass()
            return
        if self.first_pass:
            self._select_heads(self.head_counts[layer + 1])
        self.survivors = None
        if not self.prunes_tokens:
            return
        keys = self.keys if self.first_pass else self._available(layer + 1)
        index = self._select_tokens(keys, self.token_counts[layer + 1], protect_last=self.shape.causal)
        if index is None:
            self.keys = keys
            return
        self.keys = keys.gather(1, index)
        if self.first_pass:  # in generation the one row is the new token, which stays
            self.survivors, self.rows = index, self.keys

    def _end_pass(self) -> None:
        """A token that loses here is evicted: no later token sees it, in any layer."""
        self.next_keys = self.pass_keys
        if self.scores_tokens:
            n_next = self.settings.token_counts(self.shape.n_layers, self.n_tokens + 1)[0]
            index = self._select_tokens(self.pass_keys, max(1, n_next - 1), protect_last=False)
            if index is not None:
                self.next_keys = self.pass_keys.gather(1, index)
        self.token_importance = self.token_importance * self.settings.importance_rescale

    def _available(self, layer: int) -> Tensor:
        """Keys still alive of which ``layer`` holds K and V: a pruned prompt left gaps. int64[B, m]."""
        if not self.settings.prune_prompt:
            return self.keys
        cache = self.caches[layer]
        assert cache is not None
        has_kv = torch.isin(self.keys[0], torch.cat([cache.positions[0], self.rows[0]]))
        return self.keys[:, has_kv]

    def _select_tokens(self, keys: Tensor, count: int, protect_last: bool) -> Tensor | None:
        """Indices into ``keys`` of the ``count`` most important, int64[B, count]; None to keep all.

        ``protect_last``: the newest token always stays, since its output predicts the next one; the engine
        then picks count - 1 of the others.
        """
        n_keys = keys.shape[1]
        if count >= n_keys:
            return None
        scores = self.token_importance.gather(1, keys)
        last = torch.tensor([n_keys - 1], device=keys.device)
        if not protect_last:
            return torch.stack([self.select(row, count) for row in scores])
        if count == 1:
            return last.expand(len(keys), 1)
        return torch.stack([torch.cat([self.select(row[:-1], count - 1), last]) for row in scores])

    def _select_heads(self, count: int) -> None:
        if count >= self.head_counts[len(self.layer_heads) - 1]:
            return
        kept = torch.zeros_like(self.heads)
        for row, (alive, importance) in enumerate(zip(self.heads, self.head_importance, strict=True)):
            candidates = alive.nonzero()[:, 0]
            kept[row, candidates[self.select(importance[candidates], count)]] = True
        self.heads = kept
