# SPDX-License-Identifier: MIT
"""The 30 benchmarks: complete, sourced, and equal to what is known of the released traces."""

import pytest

from benchmarks.tasks import benchmarks, gpt2_schedules, select
from hw.config import preset
from sim.attention import run_attention


def named(name):
    return select(name)[0]


def test_thirty_of_two_families_each_with_a_source():
    names = [item.benchmark for item in benchmarks()]
    assert len(set(names)) == 30
    assert [sum(n.startswith(family) for n in names) for family in ("bert", "gpt2")] == [22, 8]
    assert all(item.length_source and item.setting_source for item in benchmarks())


def test_only_the_two_released_traces_are_not_estimated():
    known = [item.benchmark for item in benchmarks() if item.status != "estimated"]
    assert known == ["gpt2-small-wikitext2", "gpt2-medium-wikitext2"]


@pytest.mark.parametrize(
    ("name", "kv_bytes", "heads", "flops"),
    [
        ("gpt2-small-wikitext2", 82_428_256, 32 * 144, 0.1969e9),
        ("gpt2-medium-wikitext2", 708.03e6, 32 * 354, 1.0229e9),
    ],
)
def test_released_traces_keep_their_traffic_and_operations(name, kv_bytes, heads, flops):
    """K and V bytes and operations summed over the rows of the released files."""
    work = named(name).pruned()
    run = run_attention(work, preset("paper"))
    assert work.column("n_heads").sum() == heads
    assert run.counts.dram_ideal_bytes - heads * 96 == pytest.approx(kv_bytes, rel=1e-5)
    assert run.n_flops == pytest.approx(flops, rel=3e-4)


def test_refetched_heads_of_the_small_trace():
    """7.0 % of 4,608 rows: 323 heads, 51 of them in the first token, none from token 15 on."""
    work = named("gpt2-small-wikitext2").pruned()
    refetched = work.column("lsb_fraction") * work.column("n_heads")
    by_token = [refetched[work.column("token") == token].sum() for token in range(32)]
    assert sum(by_token) == pytest.approx(323)
    assert by_token[0] == pytest.approx(51) and not any(by_token[15:])


def test_tasks_without_a_trace_borrow_their_models():
    assert named("gpt2-small-ptb").pruned().passes == named("gpt2-small-wikitext2").pruned().passes
    assert named("gpt2-small-ptb").status == "estimated"


def test_schedules_have_one_row_per_layer():
    assert {name: len(s.later) for name, s in gpt2_schedules().items()} == {
        "gpt2-small-wikitext2": 12,
        "gpt2-medium-wikitext2": 24,
    }


def test_select_matches_shell_patterns_and_refuses_nothing():
    assert len(select("*")) == 30
    assert len(select("gpt2-*-ptb")) == 2
    with pytest.raises(ValueError, match="--only 'llama' matches none of the 30 benchmarks"):
        select("llama")
