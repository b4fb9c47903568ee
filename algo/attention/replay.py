# SPDX-License-Identifier: MIT
"""A recorded run computed anew: all tokens at once, no cache and no gathering, the decisions as masks.

It shares no code with :class:`algo.attention.cascade.Cascade` beyond quantisation, so that agreement of the
two means that cache, positions and cascade are right. It also gives the float result a record stands for.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from algo.attention.quantise import msb_plane, quantise
from algo.attention.record import AttentionRecord, LayerRecord


class Replay:
    """Takes the place of a cascade in the model's call; every token keeps its row in every layer."""

    def __init__(self, record: AttentionRecord) -> None:
        self.recorded = record
        self.n_tokens = len(record.token_ids)

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """All rows: a pruned token's go on, unseen by the others."""
        return x

    def rotate(self, x: Tensor) -> Tensor:
        """All rows."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """All rows."""
        return x

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """q : float[1, H, N, D]; k, v : float[1, G, N, D] of all N tokens; returns float[1, H, N, D]."""
        record, settings = self.recorded, self.recorded.settings
        first = record.passes[0][layer]
        n_group = record.shape.n_heads // record.shape.n_kv_heads
        step = torch.tensor(scaling, dtype=q.dtype)
        if first.q_scale is not None:
            q = _with_scale(q, first.q_scale, settings.q_bits)
            step = step * _column(first.q_scale, q)
        if first.k_scale is not None:
            k = _with_scale(k, first.k_scale, (settings.k_bits or 0) + settings.lsb_bits)
            step = step * _column(np.repeat(first.k_scale, n_group), q)
        if first.v_scale is not None:
            v = _with_scale(v, first.v_scale, settings.v_bits) * _column(first.v_scale, v)
        k, v = k.repeat_interleave(n_group, 1), v.repeat_interleave(n_group, 1)
        seen, heads, fetched, lsb_rows = self._masks(layer)
        scores = q @ k.transpose(-1, -2) * step  # [1, H, N, N]
        if settings.lsb_bits:
            on_msb = q @ msb_plane(k, settings.lsb_bits).transpose(-1, -2) * step
            scores = torch.where(lsb_rows[..., None], scores, on_msb)
        prob = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return (prob * fetched) @ v * heads[..., None]

    def _masks(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys seen [N, N], heads computed [H, N], values fetched [H, N, N], LSB rows [H, N]; all bool."""
        n, n_heads = self.n_tokens, self.recorded.shape.n_heads
        seen = np.eye(n, dtype=bool)  # a pruned row attends to itself: any finite value will do
        heads = np.zeros((n_heads, n), bool)
        fetched = np.ones((n_heads, n, n), bool)
        lsb_rows = np.zeros((n_heads, n), bool)
        for layers in self.recorded.passes:
            step: LayerRecord = layers[layer]
            seen[np.ix_(step.queries, step.keys)] = True
            heads[np.ix_(step.heads, step.queries)] = True
            if step.values is not None:
                fetched[:, step.queries[:, None], step.keys[None, :]] = step.values
            if step.lsb_rows is not None:
                lsb_rows[:, step.queries] = step.lsb_rows
        if self.recorded.shape.causal:
            seen = np.tril(seen)
        masks = torch.from_numpy
        return masks(seen), masks(heads), masks(fetched), masks(lsb_rows)


def _column(step: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(step).to(like.dtype)[None, :, None, None]


def _with_scale(x: Tensor, step: np.ndarray | None, bits: int | None) -> Tensor:
    return x if step is None else quantise(x, bits or 0, _column(step, x))


@torch.no_grad()
def replay(model: PreTrainedModel, record: AttentionRecord) -> Tensor:
    """Recompute a record's run on an adapted model of the same weights.

    Returns the model's output for all N tokens: next-token scores float[N, vocab] of a decoder, hidden states
    float[N, hidden] of an encoder. Rows of tokens that the first pass pruned are meaningless.
    """
    ids = torch.from_numpy(record.token_ids).long()[None]
    output = model(input_ids=ids, cascade=Replay(record), return_dict=True, use_cache=False)
    return output.logits[0] if record.shape.causal else output.last_hidden_state[0]
