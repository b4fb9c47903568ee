# SPDX-License-Identifier: MIT
"""Workloads: the cascade schedule and its bounds, refusal of impossible shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algo.attention.record import AttentionRecord, LayerRecord
from algo.attention.record import ModelShape as RecordShape
from algo.attention.settings import CascadeSettings
from benchmarks.savings import savings
from hw.config import preset
from sim.attention import run_attention
from sim.baselines import fp32_bytes
from sim.workload import (
    GenerationSchedule,
    LayerPass,
    ModelShape,
    Pruning,
    ScheduleLayer,
    cascade_keep,
    generation,
    recorded,
    scheduled_generation,
    summarisation,
    unpruned,
)

BERT_BASE = ModelShape(name="bert-base", n_layers=12, n_heads=12, head_dim=64)


@given(
    n_layers=st.integers(1, 48), mean_keep=st.floats(0.55, 1.0), unpruned_share=st.sampled_from([0.15, 0.30])
)
def test_cascade_reaches_the_mean_and_never_rises(n_layers, mean_keep, unpruned_share):
    unpruned = int(np.ceil(unpruned_share * n_layers - 1e-9))
    if unpruned / n_layers >= mean_keep:
        return
    keep = np.array(cascade_keep(n_layers, mean_keep, unpruned_share))
    assert len(keep) == n_layers
    assert (keep[:unpruned] == 1).all()
    assert (np.diff(keep) <= 1e-12).all() and keep[-1] > 0 and keep[0] <= 1
    if n_layers > unpruned:
        assert keep.mean() == pytest.approx(mean_keep)
        pruned = keep[unpruned:]
        assert pruned[0] + pruned[-1] == pytest.approx(2 * pruned.mean())  # r_start + r_end = 2 r_avg


def test_cascade_by_hand():
    """12 layers, 2 unpruned. Mean 0.75: r_avg = (12 x 0.75 - 2) / 10 = 0.7, from 1 to 0.4; mean 0.5: r_avg
    0.4, from 1.5 r_avg to r_avg / 2.
    """
    gentle = cascade_keep(12, 0.75, 0.15)
    assert (gentle[2], gentle[-1]) == (pytest.approx(1.0), pytest.approx(0.4))
    steep = cascade_keep(12, 0.5, 0.15)
    assert (steep[2], steep[-1]) == (pytest.approx(0.6), pytest.approx(0.2))


def test_cascade_refuses_what_the_unpruned_layers_already_exceed():
    with pytest.raises(ValueError, match=r"ratio must be in 1\.\.6 .* for 12 layers, not 10"):
        cascade_keep(12, 0.1, 0.15)


def test_dense_summarisation_counts_every_product():
    work = summarisation("w", BERT_BASE, 10, Pruning())
    assert work.n_macs == 2 * 12 * 12 * 10 * 10 * 64
    assert not work.column("token_topk").any() and not work.column("head_topk").any()


def test_dense_generation_counts_every_product():
    work = generation("w", BERT_BASE, 4, 3, Pruning())
    assert work.n_macs == 2 * 12 * 12 * (5 + 6 + 7) * 64
    assert work.column("n_context").tolist() == [5] * 12 + [6] * 12 + [7] * 12


def test_a_pruned_token_leaves_as_query_key_and_value():
    work = summarisation("w", BERT_BASE, 100, Pruning(token_keep=0.6, value_keep=0.5))
    assert (work.column("n_queries") == work.column("n_keys")).all()
    assert (work.column("n_context") == work.column("n_keys")).all()
    assert work.column("n_keys")[0] == 100 and work.column("n_keys")[-1] < 60
    assert work.column("n_values")[0] == 50


def test_selection_between_layers_asks_for_the_next_layers_count():
    work = summarisation("w", BERT_BASE, 100, Pruning(token_keep=0.6, head_keep=0.9))
    keys, selected = work.column("n_keys"), work.column("token_topk")
    falling = np.diff(keys) < 0
    assert (selected[:-1][falling] == keys[1:][falling]).all() and not selected[:-1][~falling].any()
    assert selected[-1] == 0


def schedule(n_layers):
    layer = ScheduleLayer(n_heads=2, n_keys=4, n_values=2, token_topk=0)
    last = ScheduleLayer(n_heads=1, n_keys=4, n_values=2, token_topk=6)
    layers = (*[layer] * (n_layers - 1), last)
    return GenerationSchedule(
        name="s", pruning=Pruning(), first=layers, later=layers, refetched_heads={(1, 0): 1}
    )


def test_scheduled_generation_follows_the_schedule():
    work = scheduled_generation(
        "w", ModelShape(name="m", n_layers=3, n_heads=2, head_dim=8), 10, 2, schedule(3)
    )
    assert work.column("n_heads").tolist() == [2, 2, 1] * 2
    assert work.column("lsb_fraction").tolist() == [0, 0, 0, 0.5, 0, 0]
    assert work.column("head_topk").tolist() == [0, 1, 0] * 2
    # The last layer selects more tokens than it kept: from the whole context, for the next token.
    assert work.column("token_candidates").tolist() == [0, 0, 11, 0, 0, 12]


def test_schedule_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="s must have 12 layers, not 3"):
        scheduled_generation("w", BERT_BASE, 10, 2, schedule(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_keys": 5}, "n_values <= n_keys <= n_context must hold, not 2, 5, 4"),
        ({"n_heads": 0}, "n_heads must be at least 1, not 0"),
        ({"layer": -1}, "layer must be a finite number of at least 0, not -1"),
        ({"lsb_fraction": 1.5}, r"lsb_fraction must be in 0\.\.1, not 1\.5"),
        ({"token_topk": 3}, "token_topk <= token_candidates <= n_context must hold, not 3, 0, 4"),
        ({"head_topk": 2}, "head_topk must be at most n_heads = 1, not 2"),
        ({"n_kv_heads": 2}, "n_kv_heads must be at most n_heads = 1, not 2"),
        ({"causal": True}, "n_queries must be n_keys = 4 where causal, not 1"),
    ],
)
def test_impossible_layers_are_refused(change, message):
    shape = {"token": 0, "layer": 0, "n_heads": 1, "n_queries": 1, "n_context": 4, "n_keys": 4, "n_values": 2}
    with pytest.raises(ValueError, match=message):
        LayerPass(**(shape | change))


@pytest.mark.parametrize("name", ["token_keep", "head_keep", "value_keep"])
@pytest.mark.parametrize("value", [0, -0.1, 1.1])
def test_keep_shares_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0 and at most 1, not {value}"):
        Pruning(**{name: value})


def test_a_record_is_a_workload():
    """Two layers of an encoder by hand; the second lost a token and a head and redid one row of three."""
    shape = RecordShape(n_layers=2, n_heads=2, n_kv_heads=2, head_dim=64, causal=False)
    lsb_rows = np.array([[False] * 3, [False, True, False]])
    layers = (
        LayerRecord(queries=np.arange(4), keys=np.arange(4), heads=np.arange(2)),
        LayerRecord(queries=np.arange(3), keys=np.arange(3), heads=np.array([1]), lsb_rows=lsb_rows),
    )
    record = AttentionRecord(
        model="by hand",
        shape=shape,
        settings=CascadeSettings(k_bits=6, v_bits=8, lsb_bits=4),
        token_ids=np.arange(4),
        n_prompt=4,
        passes=(layers,),
    )
    first, second = recorded(record).passes
    assert (first.n_heads, first.n_queries, first.n_keys, first.n_values) == (2, 4, 4, 4)
    assert (first.token_topk, first.token_candidates, first.head_topk) == (3, 4, 1)
    assert (second.n_heads, second.n_keys, second.token_topk) == (1, 3, 0)
    assert second.lsb_fraction == pytest.approx(1 / 3)
    work, dense = recorded(record), unpruned(record)
    assert (work.query_bits, work.key_bits, work.key_lsb_bits, work.value_bits) == (12, 6, 4, 8)
    assert (dense.n_macs, work.n_macs) == (64 * 2 * 2 * 4 * 8, 64 * (2 * 4 * 8 + 3 * 6))


def test_a_decoders_record_is_causal_and_shares_keys():
    """Five tokens and a new one; the second layer lost a token and one head of the first group."""
    shape = RecordShape(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=64, causal=True)
    kept, heads, last = np.array([0, 1, 3, 4]), np.array([0, 2, 3]), np.array([5])
    values = np.zeros((4, 4, 4), dtype=bool)
    values[:, [0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 0, 3]] = True  # of what it sees each row uses 1, 2, 2, 2
    prompt = (
        LayerRecord(queries=np.arange(5), keys=np.arange(5), heads=np.arange(4)),
        LayerRecord(queries=kept, keys=kept, heads=heads, values=values),
    )
    token = (
        LayerRecord(queries=last, keys=np.arange(6), heads=np.arange(4)),
        LayerRecord(queries=last, keys=np.array([0, 1, 3, 4, 5]), heads=np.array([2, 3])),
    )
    record = AttentionRecord(
        model="by hand",
        shape=shape,
        settings=CascadeSettings(k_bits=8, v_bits=8),
        token_ids=np.arange(6),
        n_prompt=5,
        passes=(prompt, token),
    )
    work, dense = recorded(record), unpruned(record)
    assert [one.causal for one in work.passes] == [True, True, False, False]
    assert work.column("n_groups").tolist() == [2, 2, 2, 1]
    assert work.column("key_pairs").tolist() == [15, 10, 6, 5]
    assert work.column("value_pairs").tolist() == [15, 7, 6, 5]
    counted = savings(record)
    assert (work.n_macs, dense.n_macs) == (counted.n_macs, counted.dense_macs)
    counts = run_attention(work, preset("tiny")).counts
    assert counts.qk_macs == 64 * (4 * 15 + 3 * 10 + 4 * 6 + 2 * 5)
    query_bytes = 1.5 * 64 * (4 * 5 + 3 * 4 + 4 + 2)
    assert counts.dram_ideal_bytes == counted.kv_bytes + query_bytes
    assert fp32_bytes(dense).sum() == counted.dense_fp32_kv_bytes + 4 * 64 * 2 * 4 * (5 + 1)
