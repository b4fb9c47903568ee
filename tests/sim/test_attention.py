# SPDX-License-Identifier: MIT
"""The cycle model on the usual rungs: smoke, unloaded latency, the roofs, monotony, conservation."""

from dataclasses import replace

import numpy as np
import pytest

from hw.config import PRESETS, preset
from hw.topk.cycles import expected_selection_cycles, filter_cycles
from sim.attention import CAUSES, CoreTiming, array_cycles, run_attention
from sim.workload import LayerPass, ModelShape, Pruning, Workload, generation, summarisation

PAPER = preset("paper")
GPT2_SMALL = ModelShape(name="gpt2-small", n_layers=12, n_heads=12, head_dim=64)


def one_layer(chip=PAPER, *, timing=None, bits=8, **shape):
    full = {"token": 0, "layer": 0, "n_heads": 1, "n_queries": 1} | shape
    full.setdefault("n_context", full["n_keys"])
    work = Workload(
        name="one",
        head_dim=64,
        query_bits=12,
        key_bits=bits,
        key_lsb_bits=4,
        value_bits=bits,
        passes=(LayerPass(**full),),
    )
    return run_attention(work, chip, timing)


@pytest.mark.parametrize("name", PRESETS)
def test_smoke_on_every_preset(name):
    work = summarisation("w", GPT2_SMALL, 40, Pruning(token_keep=0.7, head_keep=0.9, value_keep=0.5))
    run = run_attention(work, PRESETS[name])
    assert run.total_cycles > 0
    assert run.n_flops == work.n_flops


def test_unloaded_latency_without_selection():
    """One query, every value used: K in, scores, softmax, weighted sum, by hand."""
    timing = CoreTiming()
    run = one_layer(n_keys=64, n_values=64)
    transfer = 64 * 64 / (512 * timing.achievable_bandwidth)  # 64 rows of 64 bytes: 8.8 cycles, over 8 lines
    front = 45 + max(transfer, 8) + 6 + 16 + 9 + 8
    assert 45 + 2 * transfer < front
    assert run.total_cycles == pytest.approx(front + 8 + 10 + 8)


def test_unloaded_latency_with_selection_and_fetch():
    """As above, with 16 of 64 values selected and fetched afterwards."""
    timing, config = CoreTiming(), PAPER.topk
    run = one_layer(n_keys=64, n_values=16)
    rate = 512 * timing.achievable_bandwidth
    front = 45 + 64 * 64 / rate + 6 + 16 + 9 + 8
    decide = float(expected_selection_cycles(64, 16, config))
    fetch = 4 + 45 + max(64 / 16, 16 * 64 / rate)
    assert run.total_cycles == pytest.approx(front + decide + fetch + 10 + 8)


def test_unloaded_latency_with_lsb_refetch():
    """A refetch is one more round: DRAM, scores and softmax again."""
    rate = 512 * CoreTiming().achievable_bandwidth
    plain = one_layer(n_keys=64, n_values=64)
    again = one_layer(n_keys=64, n_values=64, lsb_fraction=1.0)
    lsb_transfer = 64 * 32 / rate
    assert again.total_cycles - plain.total_cycles == pytest.approx(
        45 + max(lsb_transfer, 8) + 6 + 16 + 9 + 8
    )


def test_token_selection_hides_behind_the_value_path_and_head_selection_does_not():
    config = PAPER.topk
    plain = one_layer(n_keys=64, n_values=64)
    selecting = one_layer(n_keys=64, n_values=64, token_topk=32, token_candidates=64)
    selection = 1 + 4 + float(expected_selection_cycles(64, 32, config)) + float(filter_cycles(64, config))
    value_path = 8 + 10
    assert selection > value_path
    assert selecting.total_cycles - plain.total_cycles == pytest.approx(selection - value_path)
    heads = one_layer(n_keys=64, n_values=64, n_heads=8)
    pruning = one_layer(n_keys=64, n_values=64, n_heads=8, head_topk=4)
    selection = 1 + 1 + float(expected_selection_cycles(8, 4, config)) + float(filter_cycles(8, config))
    assert pruning.total_cycles - heads.total_cycles == pytest.approx(selection)


def test_compute_roof():
    """1,024 queries over 1,024 keys: everything but fill and drain of one layer runs at the peak."""
    run = one_layer(n_queries=1024, n_keys=1024, n_values=1024, n_heads=16)
    peak_flops_per_cycle = 2 * 2 * PAPER.n_multipliers
    least_cycles = run.n_flops / peak_flops_per_cycle
    fill = run.cycles_by_cause["fill_and_drain"]
    assert run.total_cycles == pytest.approx(least_cycles + fill - 128)  # the first query is in the fill
    assert run.n_flops / run.total_cycles > 0.999 * peak_flops_per_cycle


def test_dram_roof():
    """Decoding with 12-bit K and V and no selection: all but the first head's fill at the achievable rate."""
    timing = CoreTiming()
    run = one_layer(n_keys=1024, n_values=1024, n_heads=400, bits=12)
    rate = 512 * timing.achievable_bandwidth
    least_cycles = run.counts.dram_bytes / rate
    overhead = run.total_cycles - least_cycles
    assert 0 < overhead <= run.cycles_by_cause["fill_and_drain"]
    assert run.counts.dram_bytes / run.total_cycles > 0.995 * rate


@pytest.mark.parametrize("n_values", [16, 60])
def test_select_engine_sets_the_pace_of_short_lists(n_values):
    """With enough fetches in flight, each further head costs one occupancy of the quick-select engine."""
    timing = CoreTiming(value_fetches_in_flight=8)
    few = one_layer(n_keys=64, n_values=n_values, n_heads=10, timing=timing)
    many = one_layer(n_keys=64, n_values=n_values, n_heads=110, timing=timing)
    occupancy = 1 + 4 + float(expected_selection_cycles(64, n_values, PAPER.topk))
    assert many.total_cycles - few.total_cycles == pytest.approx(100 * occupancy)


def test_values_fetched_one_head_at_a_time_set_the_pace():
    few, many = (one_layer(n_keys=64, n_values=16, n_heads=n) for n in (10, 110))
    fetch = 4 + 45 + 4
    assert fetch > 1 + 4 + float(expected_selection_cycles(64, 16, PAPER.topk))
    assert many.total_cycles - few.total_cycles == pytest.approx(100 * fetch)


@pytest.mark.parametrize("n_tokens", [11, 64, 175, 512])
def test_more_token_or_head_pruning_never_costs_cycles(n_tokens):
    cycles = [
        run_attention(
            summarisation("w", GPT2_SMALL, n_tokens, Pruning(token_keep=t, head_keep=h)), PAPER
        ).total_cycles
        for t, h in ((1.0, 1.0), (0.8, 1.0), (0.6, 1.0), (0.6, 0.8), (0.4, 0.6))
    ]
    assert cycles == sorted(cycles, reverse=True)


def test_more_token_pruning_never_costs_cycles_in_generation():
    cycles = [
        run_attention(
            generation("w", GPT2_SMALL, 992, 4, Pruning(token_keep=keep, value_keep=0.3)), PAPER
        ).total_cycles
        for keep in np.linspace(1, 0.2, 9)
    ]
    assert cycles == sorted(cycles, reverse=True)


def test_local_value_pruning_never_reads_more():
    values = range(2, 257, 2)
    moved = [one_layer(n_keys=256, n_values=n).counts.dram_bytes for n in values]
    assert moved == sorted(moved)


def test_causes_add_up_over_layers_and_tokens():
    work = generation("w", GPT2_SMALL, 100, 3, Pruning(token_keep=0.7, value_keep=0.4, key_bits=6))
    whole = run_attention(work, PAPER)
    parts = [run_attention(replace(work, passes=(item,)), PAPER) for item in work.passes]
    for cause in CAUSES:
        assert whole.cycles_by_cause[cause] == pytest.approx(sum(p.cycles_by_cause[cause] for p in parts))
    assert whole.counts.dram_bytes == pytest.approx(sum(p.counts.dram_bytes for p in parts))


def test_traffic_in_bytes_and_atoms():
    run = one_layer(n_keys=10, n_values=10, n_heads=2, bits=6)
    query_bytes = 96
    assert run.counts.dram_ideal_bytes == 2 * (10 * 48 + 10 * 48 + query_bytes)
    assert run.counts.dram_bytes == run.counts.dram_ideal_bytes  # two heads share a record of 96 bytes
    alone = one_layer(n_keys=10, n_values=10, n_heads=1, bits=6)
    assert alone.counts.dram_bytes == 10 * 64 + 10 * 64 + query_bytes
    selected = one_layer(n_keys=10, n_values=4, n_heads=2, bits=6)
    assert selected.counts.dram_bytes == 2 * (10 * 48 + 4 * 64 + query_bytes)
    refetched = one_layer(n_keys=10, n_values=10, n_heads=2, bits=6, lsb_fraction=0.5)
    assert refetched.counts.dram_bytes == run.counts.dram_bytes + 10 * 32


def test_keys_beyond_the_sram_are_read_again_for_every_query():
    small = preset("paper_eighth")  # 128 keys
    fits = one_layer(small, n_queries=5, n_keys=128, n_values=128)
    streams = one_layer(small, n_queries=5, n_keys=131, n_values=131)
    assert fits.counts.dram_bytes == 2 * 128 * 64 + 5 * 96
    assert streams.counts.dram_bytes == pytest.approx((128 + 5 * 3) * 2 * 64 + 5 * 96)


def test_counts_of_one_head():
    counts = one_layer(n_queries=3, n_keys=20, n_values=10, lsb_fraction=1.0).counts
    assert counts.qk_macs == 2 * 3 * 20 * 64
    assert counts.pv_macs == 3 * 10 * 64
    assert counts.exponentials == counts.divisions == 2 * 3 * 20
    assert counts.importance_updates == 3 * (20 + 64)
    assert counts.key_sram_read_bytes == counts.qk_macs * 1.5
    assert counts.value_sram_write_bytes == 20 * 64 * 1.5  # all kept values of a sentence are loaded


def test_array_cycles_rounds_lines_and_splits_long_rows():
    assert array_cycles(np.array([1, 8, 9]), 64, 512).tolist() == [1, 1, 2]
    assert array_cycles(np.array([3]), 64, 16).tolist() == [12]


def test_faster_memory_shortens_a_memory_bound_run_only():
    fast = replace(PAPER, dram_bytes_per_cycle=64)
    decode = {"n_keys": 1024, "n_values": 1024, "n_heads": 100, "bits": 12}
    assert one_layer(fast, **decode).total_cycles < 0.6 * one_layer(**decode).total_cycles
    dense = {"n_queries": 512, "n_keys": 512, "n_values": 512}
    assert one_layer(fast, **dense).total_cycles == pytest.approx(one_layer(**dense).total_cycles, rel=0.01)


def test_more_keys_than_the_engine_holds_are_refused():
    with pytest.raises(ValueError, match=r"n_context must be at most topk\.n_max = 1024 of paper, not 1025"):
        one_layer(n_keys=1025, n_values=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_fetches_in_flight": 0}, "value_fetches_in_flight must be at least 1, not 0"),
        ({"achievable_bandwidth": 1.1}, "achievable_bandwidth must be above 0 and at most 1, not 1.1"),
        ({"qk_latency_cycles": -1}, "qk_latency_cycles must be a finite number of at least 0, not -1"),
    ],
)
def test_impossible_timing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CoreTiming(**change)


def test_sentence_with_local_value_pruning_selects_from_the_sram():
    """Two queries: the values are on the chip already, so the selection is followed by no fetch."""
    config = PAPER.topk
    run = one_layer(n_queries=2, n_keys=64, n_values=16)
    decide = float(expected_selection_cycles(64, 16, config))
    transfer = 64 * 64 / (512 * CoreTiming().achievable_bandwidth)
    front = 45 + max(transfer, 8) + 6 + 16 + 9 + 8
    second_query = 1 + 4 + decide
    assert run.total_cycles == pytest.approx(front + decide + 4 + max(4, 2) + 10 + 8 + second_query)
    assert run.counts.dram_bytes == 2 * 64 * 64 + 2 * 96


def test_comparisons_follow_the_engines_and_refreshes_the_time():
    run = one_layer(n_keys=64, n_values=16, n_heads=3, token_topk=32, token_candidates=64)
    config = PAPER.topk
    local = 3 * (1 + 4 + float(expected_selection_cycles(64, 16, config)))
    token = 1 + 4 + float(expected_selection_cycles(64, 32, config)) + float(filter_cycles(64, config))
    assert run.counts.comparisons == pytest.approx(2 * 16 * (local + token))
    assert run.counts.topk_fifo_bytes == pytest.approx(3 * run.counts.comparisons)
    assert run.counts.dram_refreshes == pytest.approx(16 * run.total_cycles / 3900)


def test_first_output_waits_for_the_whole_load_of_a_slow_memory():
    slow = replace(PAPER, n_dram_channels=1)
    run = one_layer(slow, n_keys=256, n_values=256)
    plane = 256 * 64 / (32 * CoreTiming().achievable_bandwidth)
    assert run.cycles_by_cause["fill_and_drain"] == pytest.approx(45 + 2 * plane + 32 + 10 + 8)


@pytest.mark.parametrize(
    ("cause", "shape"),
    [
        ("dram", {"n_keys": 1024, "n_values": 1024, "bits": 12}),
        ("qk", {"n_keys": 64, "n_values": 64, "n_queries": 64}),
        ("select", {"n_keys": 512, "n_values": 200, "n_queries": 1}),
        ("value_fetch", {"n_keys": 64, "n_values": 16}),
    ],
)
def test_the_pace_is_put_down_to_the_stage_that_sets_it(cause, shape):
    few, many = (one_layer(n_heads=n, **shape).cycles_by_cause for n in (10, 20))
    assert [name for name in CAUSES if many[name] > few[name]] == [cause]
