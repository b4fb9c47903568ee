# SPDX-License-Identifier: MIT
"""Traffic and operations of a recorded run beside the dense one: what the decisions save, before any chip."""

from dataclasses import dataclass

import numpy as np

from algo.attention.record import AttentionRecord, LayerRecord

FP32_BITS, ONCHIP_BITS = 32, 12


@dataclass(frozen=True, kw_only=True)
class Savings:
    """K and V fetched once per pass, layer and key/value head; products of scores and of weighted sums."""

    kv_bytes: float
    """Of the run: kept rows of the heads in use at their widths, LSB planes where a row of the head asked."""
    dense_fp32_kv_bytes: float
    """Every row of every head in 32 bits, the basis of the paper's traffic reductions."""
    dense_onchip_kv_bytes: float
    """The same in 12 bits."""
    n_macs: int
    dense_macs: int

    @property
    def traffic_ratio_fp32(self) -> float:
        return self.dense_fp32_kv_bytes / self.kv_bytes

    @property
    def traffic_ratio_onchip(self) -> float:
        return self.dense_onchip_kv_bytes / self.kv_bytes

    @property
    def operations_ratio(self) -> float:
        return self.dense_macs / self.n_macs


def savings(record: AttentionRecord) -> Savings:
    """Counts over all passes of ``record``; widths that are off count as 32 bits."""
    shape = record.shape
    kv_bits, n_macs, dense_rows, dense_macs = 0.0, 0, 0, 0
    for number, layers in enumerate(record.passes):
        n_keys = record.n_prompt + number
        queries = np.arange(n_keys) if number == 0 else np.array([n_keys - 1])
        pairs = _visible_pairs(queries, np.arange(n_keys), shape.causal)
        dense_rows += shape.n_layers * shape.n_kv_heads * n_keys
        dense_macs += shape.n_layers * shape.n_heads * 2 * pairs * shape.head_dim
        for layer in layers:
            kv_bits += shape.head_dim * _fetched_bits_per_element(record, layer)
            n_macs += shape.head_dim * _n_products(record, layer)
    return Savings(
        kv_bytes=kv_bits / 8,
        dense_fp32_kv_bytes=2 * dense_rows * shape.head_dim * FP32_BITS / 8,
        dense_onchip_kv_bytes=2 * dense_rows * shape.head_dim * ONCHIP_BITS / 8,
        n_macs=n_macs,
        dense_macs=dense_macs,
    )


def _visible_pairs(queries: np.ndarray, keys: np.ndarray, causal: bool) -> int:
    """Query-key pairs that attention computes; a decoder's query sees keys up to its own position."""
    if not causal:
        return len(queries) * len(keys)
    return int(np.searchsorted(keys, queries, side="right").sum())


def _fetched_bits_per_element(record: AttentionRecord, layer: LayerRecord) -> int:
    """Bits fetched for one of the D elements, summed over the rows of K and V."""
    settings, shape = record.settings, record.shape
    group = layer.heads // (shape.n_heads // shape.n_kv_heads)
    total = 0
    for kv_head in np.unique(group):
        heads = layer.heads[group == kv_head]
        needs_lsb = layer.lsb_rows is not None and bool(layer.lsb_rows[heads].any())
        key_bits = (settings.k_bits or FP32_BITS) + needs_lsb * settings.lsb_bits
        n_values = layer.n_keys
        if layer.values is not None:  # a V row serves every query head of its group
            n_values = int(layer.values[heads].any(axis=(0, 1)).sum())
        total += layer.n_keys * key_bits + n_values * (settings.v_bits or FP32_BITS)
    return total


def _n_products(record: AttentionRecord, layer: LayerRecord) -> int:
    """Scores (twice for a row redone with LSBs) and weighted values, each D multiplications."""
    pairs = _visible_pairs(layer.queries, layer.keys, record.shape.causal)
    scores = len(layer.heads) * pairs
    if layer.lsb_rows is not None:
        per_row = [_visible_pairs(layer.queries[i : i + 1], layer.keys, record.shape.causal)
                   for i in range(len(layer.queries))]  # fmt: skip
        scores += int((layer.lsb_rows[layer.heads] * np.array(per_row)).sum())
    values = len(layer.heads) * pairs if layer.values is None else int(layer.values[layer.heads].sum())
    return scores + values
