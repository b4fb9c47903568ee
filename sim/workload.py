# SPDX-License-Identifier: MIT
"""What the attention core has to do: every layer of every pass, after pruning, with its bit widths."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from algo.attention import settings
from algo.attention.record import AttentionRecord
from sim.records import reject_negative

ONCHIP_BITS = 12
"""Operand width of the published arrays; a dense run fetches K and V at this width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPass:
    """One layer in one pass over the model; all its heads have the same shape.

    A pass is the whole sentence (summarisation, ``n_queries`` > 1) or one generated token.
    """

    token: int
    """Number of the pass: 0 for a summarisation, 0.. for generated tokens."""
    layer: int
    n_heads: int
    """Heads that survived head pruning."""
    n_queries: int
    n_context: int
    """Tokens whose K and V lie in DRAM, kept or not."""
    n_keys: int
    """Tokens kept by token pruning: K rows read per head."""
    n_values: int
    """V rows used per query after local value pruning."""
    lsb_fraction: float = 0.0
    """Share of the heads whose least significant bits are fetched and whose scores are recomputed."""
    token_topk: int = 0
    """Tokens kept by the selection at the end of this layer; 0: no selection."""
    token_candidates: int = 0
    """Tokens that this selection chooses from: the kept ones, or the whole context for the next token."""
    head_topk: int = 0
    """Heads kept by the selection at the end of this layer; 0: no selection."""
    n_kv_heads: int = 0
    """K and V that the heads share in groups; 0: each head has its own."""
    causal: bool = False
    """A decoder's prompt: each query sees the keys up to its own."""

    def __post_init__(self) -> None:
        reject_negative(self)
        for name in ("n_heads", "n_queries", "n_values"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.n_values <= self.n_keys <= self.n_context:
            raise ValueError(
                "n_values <= n_keys <= n_context must hold, not "
                f"{self.n_values}, {self.n_keys}, {self.n_context}"
            )
        if not self.token_topk <= self.token_candidates <= self.n_context:
            raise ValueError(
                "token_topk <= token_candidates <= n_context must hold, not "
                f"{self.token_topk}, {self.token_candidates}, {self.n_context}"
            )
        if self.head_topk > self.n_heads:
            raise ValueError(f"head_topk must be at most n_heads = {self.n_heads}, not {self.head_topk}")
        if self.lsb_fraction > 1:
            raise ValueError(f"lsb_fraction must be in 0..1, not {self.lsb_fraction}")
        if self.n_kv_heads > self.n_heads:
            raise ValueError(f"n_kv_heads must be at most n_heads = {self.n_heads}, not {self.n_kv_heads}")
        if self.causal and self.n_queries != self.n_keys:
            raise ValueError(f"n_queries must be n_keys = {self.n_keys} where causal, not {self.n_queries}")

    @property
    def n_groups(self) -> int:
        """Different K and V among the heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def key_pairs(self) -> int:
        """Pairs of a query and a key that it sees, of one head."""
        return _triangle(self.n_keys) if self.causal else self.n_queries * self.n_keys

    @property
    def value_pairs(self) -> int:
        """Pairs of a query and a value that it uses, of one head."""
        if not self.causal:
            return self.n_queries * self.n_values
        return _triangle(self.n_values) + (self.n_queries - self.n_values) * self.n_values


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The attention of one model over one input; ``passes`` run one after the other."""

    name: str
    head_dim: int
    """D, elements of a query, key or value of one head."""
    query_bits: int
    key_bits: int
    """Width of the K plane that is always read (the MSBs), bits."""
    key_lsb_bits: int
    """Width of the K plane that is read on demand, bits."""
    value_bits: int
    passes: tuple[LayerPass, ...]

    def __post_init__(self) -> None:
        reject_negative(self)
        for name in ("head_dim", "query_bits", "key_bits", "value_bits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.passes:
            raise ValueError("passes must hold at least one layer")

    def column(self, field: str) -> np.ndarray:
        """One field or property of all passes: int64 or float64[n_passes]."""
        return np.array([getattr(item, field) for item in self.passes])

    @property
    def n_macs(self) -> int:
        """Useful multiply-accumulates: D per head, query, and key seen or value used; no recomputed score."""
        pairs = self.column("key_pairs") + self.column("value_pairs")
        return int((self.column("n_heads") * pairs).sum()) * self.head_dim

    @property
    def n_flops(self) -> int:
        """Two operations per useful multiply-accumulate, as the paper counts."""
        return 2 * self.n_macs


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The attention of a transformer."""

    name: str
    n_layers: int
    n_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """Pruning and quantisation settings of one task. The defaults prune nothing and use the on-chip width."""

    token_keep: float = 1.0
    """Mean share of the tokens kept over *all* layers, the unpruned first 15 % included."""
    head_keep: float = 1.0
    """Mean share of the heads kept over all layers, the unpruned first 30 % included."""
    value_keep: float = 1.0
    """Local value pruning: share of the kept tokens' V rows used per query."""
    query_bits: int = ONCHIP_BITS
    key_bits: int = ONCHIP_BITS
    key_lsb_bits: int = 0
    value_bits: int = ONCHIP_BITS
    lsb_fraction: float = 0.0

    def __post_init__(self) -> None:
        for name in ("token_keep", "head_keep", "value_keep"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        reject_negative(self)


def cascade_keep(n_layers: int, mean_keep: float, unpruned_share: float) -> list[float]:
    """Share kept in each layer: 1 in the first layers, then the linear schedule of the algorithm.

    ``mean_keep`` is the mean over *all* layers, as the paper's overall ratios are; the schedule itself is
    :func:`algo.attention.settings.keep_schedule`. ValueError where the unpruned layers alone exceed it.
    """
    if mean_keep >= 1:
        return [1.0] * n_layers
    r_avg = settings.mean_keep(1 / mean_keep, n_layers, unpruned_share)
    return settings.keep_schedule(n_layers, r_avg, unpruned_share)


def summarisation(name: str, shape: ModelShape, n_tokens: int, pruning: Pruning) -> Workload:
    """A whole sentence at once (BERT). A pruned token is gone as query, key and value."""
    return _workload(name, shape, pruning, tuple(_cascade(shape, pruning, n_tokens, token=None)))


def generation(name: str, shape: ModelShape, n_prompt: int, n_generated: int, pruning: Pruning) -> Workload:
    """Tokens generated one by one after a prompt, whose own pass is not part of it (as in the paper)."""
    passes = (
        item
        for token in range(n_generated)
        for item in _cascade(shape, pruning, n_prompt + 1 + token, token=token)
    )
    return _workload(name, shape, pruning, tuple(passes))


def _cascade(shape: ModelShape, pruning: Pruning, n_tokens: int, token: int | None) -> list[LayerPass]:
    token_keep = cascade_keep(shape.n_layers, pruning.token_keep, settings.TOKEN_FREE_FRACTION)
    head_keep = cascade_keep(shape.n_layers, pruning.head_keep, settings.HEAD_FREE_FRACTION)
    n_keys = [settings.floor_count(keep, n_tokens) for keep in token_keep]
    n_heads = [settings.nearest_count(keep, shape.n_heads) for keep in head_keep]
    return [
        LayerPass(
            token=token or 0,
            layer=layer,
            n_heads=n_heads[layer],
            n_queries=n_keys[layer] if token is None else 1,
            n_context=n_keys[layer] if token is None else n_tokens,
            n_keys=n_keys[layer],
            n_values=settings.floor_count(pruning.value_keep, n_keys[layer]),
            lsb_fraction=pruning.lsb_fraction,
            token_topk=_selected(n_keys, layer),
            token_candidates=n_keys[layer] if _selected(n_keys, layer) else 0,
            head_topk=_selected(n_heads, layer),
        )
        for layer in range(shape.n_layers)
    ]


def _selected(counts: list[int], layer: int) -> int:
    """What the selection after ``layer`` keeps; 0 where the next layer has as many, or there is none."""
    following = counts[layer + 1 : layer + 2]
    return following[0] if following and following[0] < counts[layer] else 0


def _workload(name: str, shape: ModelShape, pruning: Pruning, passes: tuple[LayerPass, ...]) -> Workload:
    return Workload(
        name=name,
        head_dim=shape.head_dim,
        query_bits=pruning.query_bits,
        key_bits=pruning.key_bits,
        key_lsb_bits=pruning.key_lsb_bits,
        value_bits=pruning.value_bits,
        passes=passes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleLayer:
    """One layer of a measured generation schedule."""

    n_heads: int
    n_keys: int
    """Kept tokens; 0: the whole context."""
    n_values: int
    token_topk: int
    """0: no selection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationSchedule:
    """What each layer kept while tokens were generated: the first token, and all later ones."""

    name: str
    pruning: Pruning
    """Only its bit widths are used."""
    first: tuple[ScheduleLayer, ...]
    later: tuple[ScheduleLayer, ...]
    refetched_heads: Mapping[tuple[int, int], int]
    """(token, layer) -> heads whose LSBs were fetched; none where absent."""


def scheduled_generation(
    name: str, shape: ModelShape, n_prompt: int, n_generated: int, schedule: GenerationSchedule
) -> Workload:
    """Generation that keeps what ``schedule`` kept; ValueError where its number of layers is another."""
    for part in (schedule.first, schedule.later):
        if len(part) != shape.n_layers:
            raise ValueError(f"{schedule.name} must have {shape.n_layers} layers, not {len(part)}")
    passes = []
    for token in range(n_generated):
        layers = schedule.first if token == 0 else schedule.later
        n_context = n_prompt + 1 + token
        for layer, plan in enumerate(layers):
            refetched = schedule.refetched_heads.get((token, layer), 0)
            following = layers[layer + 1 : layer + 2]
            n_keys = plan.n_keys or n_context
            # After the last layer the tokens of the next pass are chosen: pruned ones may come back.
            candidates = n_keys if plan.token_topk <= n_keys else n_context
            prunes_heads = bool(following) and following[0].n_heads < plan.n_heads
            passes.append(
                LayerPass(
                    token=token,
                    layer=layer,
                    n_heads=plan.n_heads,
                    n_queries=1,
                    n_context=n_context,
                    n_keys=n_keys,
                    n_values=plan.n_values,
                    lsb_fraction=refetched / plan.n_heads,
                    token_topk=plan.token_topk,
                    token_candidates=candidates if plan.token_topk else 0,
                    head_topk=following[0].n_heads if prunes_heads else 0,
                )
            )
    return _workload(name, shape, schedule.pruning, tuple(passes))


def recorded(record: AttentionRecord) -> Workload:
    """The workload of a recorded run of a real model, pass by pass and layer by layer.

    Widths that are off in the record count as the on-chip width. The selection between two generated tokens
    is left out.
    """
    shape, passes = record.shape, []
    group_size = shape.n_heads // shape.n_kv_heads
    for token, layers in enumerate(record.passes):
        n_tokens = record.n_prompt + token
        n_keys = [layer.n_keys for layer in layers]
        n_heads = [len(layer.heads) for layer in layers]
        for number, layer in enumerate(layers):
            token_topk = _selected(n_keys, number)
            passes.append(
                LayerPass(
                    token=token,
                    layer=number,
                    n_heads=n_heads[number],
                    n_queries=len(layer.queries),
                    n_context=n_tokens if shape.causal else n_keys[number],
                    n_keys=n_keys[number],
                    n_values=max(1, layer.n_values),
                    lsb_fraction=layer.lsb_fraction,
                    token_topk=token_topk,
                    token_candidates=n_keys[number] if token_topk else 0,
                    head_topk=_selected(n_heads, number),
                    n_kv_heads=len(np.unique(layer.heads // group_size)),
                    causal=shape.causal and token == 0,
                )
            )
    widths = record.settings
    return Workload(
        name=record.model,
        head_dim=shape.head_dim,
        query_bits=widths.q_bits or ONCHIP_BITS,
        key_bits=widths.k_bits or ONCHIP_BITS,
        key_lsb_bits=widths.lsb_bits,
        value_bits=widths.v_bits or ONCHIP_BITS,
        passes=tuple(passes),
    )


def unpruned(record: AttentionRecord) -> Workload:
    """The dense run over the same tokens, at the on-chip width."""
    shape = record.shape
    passes = []
    for token in range(len(record.passes)):
        n_tokens = record.n_prompt + token
        for layer in range(shape.n_layers):
            passes.append(
                LayerPass(
                    token=token,
                    layer=layer,
                    n_heads=shape.n_heads,
                    n_queries=1 if token else n_tokens,
                    n_context=n_tokens,
                    n_keys=n_tokens,
                    n_values=n_tokens,
                    n_kv_heads=shape.n_kv_heads,
                    causal=shape.causal and token == 0,
                )
            )
    return Workload(
        name=record.model,
        head_dim=shape.head_dim,
        query_bits=ONCHIP_BITS,
        key_bits=ONCHIP_BITS,
        key_lsb_bits=0,
        value_bits=ONCHIP_BITS,
        passes=tuple(passes),
    )
