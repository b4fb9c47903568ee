# SPDX-License-Identifier: MIT
"""Traffic and operations of a record, against counts by hand."""

import numpy as np

from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings
from benchmarks.savings import savings


def record(shape: ModelShape, settings: CascadeSettings, n_prompt: int, *passes) -> AttentionRecord:
    n = n_prompt + len(passes) - 1
    return AttentionRecord(
        model="by hand",
        shape=shape,
        settings=settings,
        token_ids=np.arange(n),
        n_prompt=n_prompt,
        passes=passes,
    )


def test_encoder_by_hand():
    shape = ModelShape(n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, causal=False)
    settings = CascadeSettings(k_bits=6, v_bits=4, lsb_bits=4)
    everything = LayerRecord(queries=np.arange(4), keys=np.arange(4), heads=np.arange(2))
    values = np.zeros((2, 3, 3), dtype=bool)
    values[1, :, 0] = values[1, 2, 2] = True  # 4 products, 2 different rows
    lsb_rows = np.array([[True, True, True], [False, True, False]])  # head 0 is pruned
    pruned = LayerRecord(
        queries=np.arange(3), keys=np.arange(3), heads=np.array([1]), values=values, lsb_rows=lsb_rows
    )
    saved = savings(record(shape, settings, 4, (everything, pruned)))
    first = 2 * 4 * (6 + 4)
    second = 3 * (6 + 4) + 2 * 4
    assert saved.kv_bytes == (first + second) * 8 / 8
    assert saved.n_macs == 8 * (2 * 2 * 16 + (9 + 3) + 4)
    assert saved.dense_macs == 8 * 2 * 2 * 2 * 16
    assert saved.dense_fp32_kv_bytes == 2 * (2 * 2 * 4) * 8 * 4
    assert saved.dense_onchip_kv_bytes == saved.dense_fp32_kv_bytes * 12 / 32


def test_decoder_with_grouped_heads_by_hand():
    """One layer, 4 query heads on 2 key/value heads, a prompt of 3 tokens and one generated token."""
    shape = ModelShape(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8, causal=True)
    settings = CascadeSettings(k_bits=8, v_bits=8)
    prompt = LayerRecord(queries=np.arange(3), keys=np.arange(3), heads=np.arange(4))
    step = LayerRecord(queries=np.array([3]), keys=np.array([0, 3]), heads=np.array([0, 1]))
    saved = savings(record(shape, settings, 3, (prompt,), (step,)))
    assert saved.kv_bytes == (2 * 3 * 16 + 1 * 2 * 16) * 8 / 8  # heads 0 and 1 share K and V
    assert saved.n_macs == 8 * 2 * (4 * 6 + 2 * 2)
    assert saved.dense_macs == 8 * 2 * 4 * (6 + 4)
    assert saved.dense_fp32_kv_bytes == 2 * 2 * (3 + 4) * 8 * 4
