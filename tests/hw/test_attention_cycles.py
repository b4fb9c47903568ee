# SPDX-License-Identifier: MIT
"""The attention core's cycle model against its RTL: every beat of every output, none early, none late."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.decode_step import OPTIONS, decode_step
from hw.attention import cycles as attention_cycles
from hw.attention.config import AttentionConfig, attention_config
from hw.attention.cycles import LayerTrace, replay
from hw.attention.layers import GivenTokens
from hw.attention.replay import sentence as replayed
from hw.attention.rtl import Attention
from hw.attention.trace import traces
from hw.attention.vectors import (
    MEMORY,
    Options,
    Shape,
    case,
    cases,
    generation,
    matrix_product,
    one_token,
    sentence,
)
from hw.config import ChipConfig, preset
from hw.fetch.cycles import MemoryTiming
from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import Case, judge
from hw.registry import BLOCKS
from hw.topk.config import TopKConfig
from tests.hw.test_attention import SMALL


def chip(name: str, **changes) -> AttentionConfig:
    return attention_config(ChipConfig(name=name, **changes))


TINY = attention_config(preset("tiny"))
SPLIT = chip(
    "split",
    n_multipliers=64,
    kv_sram_bytes=12_288,
    n_dram_channels=2,
    softmax_lanes=1,
    topk=TopKConfig(lanes=8, n_max=32),
    select_engine="radix",
    n_value_engines=3,
    confidence_window=4,
)
"""Scores, tokens and heads each come in wider beats than they go on in; radix engines."""
PLAIN = chip(
    "plain",
    n_multipliers=32,
    kv_sram_bytes=6144,
    n_dram_channels=1,
    softmax_lanes=4,
    topk=TopKConfig(lanes=4, n_max=32),
    confidence_window=1,
)
"""One value engine, rows settled one by one."""


def one_layer(**changes) -> list[LayerTrace]:
    """Four tokens, one head."""
    rng = np.random.default_rng(1)
    one = sentence(Shape(4, 1, 32, 1), Options(**changes), TINY, rng)
    return traces([one])


def small_case(memory: MemoryTiming) -> Case:
    options = Options(k_bits=4, token_keep=0.6, head_keep=0.7, value_keep=0.5, threshold=1500)
    one = sentence(Shape(7, 3, 32, 2), options, SMALL, np.random.default_rng(3))
    return case("small", [one], SMALL, memory=memory)


def small_generation(memory: MemoryTiming) -> Case:
    """A causal prompt of four tokens, then two new ones; heads in pairs, a token evicted before each."""
    options = Options(
        k_bits=4, token_keep=0.7, value_keep=0.6, threshold=4000, rows="one", group_size=2, protect_last=True
    )
    rng = np.random.default_rng(5)
    passes = generation(Shape(4, 4, 32, 1), options, 2, SMALL, rng, sequence=0, halve=True)
    assert any(bool(result.used_lsb.any()) for one in passes[1:] for result in one.results)
    return case("generation", passes, SMALL, memory=memory)


def test_every_beat_is_on_time_in_amaranth():
    """Tokens, heads and values pruned, some rows computed again; also with a slow channel."""
    slow = MemoryTiming(latency_cycles=1, interval_cycles=3)
    runs = [small_case(MEMORY), small_case(slow), small_generation(MEMORY)]
    for one, log in run_cases(Attention(SMALL), runs):
        assert set(one.expected_cycles) == set(one.expected)
        for port, cycles in one.expected_cycles.items():
            np.testing.assert_array_equal(log.since_first_input(port), cycles, err_msg=f"{one.name} {port}")


@pytest.mark.full
@pytest.mark.parametrize("config", [TINY, SPLIT, PLAIN], ids=["tiny", "split", "plain"])
def test_every_beat_is_on_time(config):
    timed = [one for one in cases(config, seed=21, n_random=60) if one.expected_cycles]
    assert len(timed) >= 30
    logs = verilated.run_cases(BLOCKS["attention"], config, timed)
    late = {one.name: judge(one, log).problems for one, log in zip(timed, logs, strict=True)}
    assert {name: problems for name, problems in late.items() if problems} == {}


def test_a_slower_memory_delays_every_output():
    """So that a wrong latency would show in every stream."""
    fast, slow = (replay(one_layer(), TINY, MemoryTiming(latency_cycles=n)).by_stream for n in (20, 21))
    for name, cycles in fast.items():
        assert (slow[name] > cycles).all()


def test_rows_computed_again_cost_cycles():
    first, again = (replay(one_layer(threshold=t), TINY, MEMORY).n_cycles for t in (0, 4095))
    assert again > first + 4


def new_token_cycles(n_keys: int, n_heads: int, **changes) -> int:
    """One layer of one query a head."""
    given = GivenTokens(tokens=np.arange(n_keys), importance=np.zeros(n_keys, np.int64), n_keep=n_keys)
    options = Options(rows="one", progressive=False, **changes)
    one = one_token(Shape(n_keys, n_heads, 32, 1), options, given, TINY, np.random.default_rng(6))
    return replay(traces([one]), TINY, MEMORY).n_cycles


def test_a_group_fetches_its_keys_once():
    """A new token's pace is that of the memory: 32 keys of 8 bits are 32 atoms, and as many of values."""
    own, shared = (new_token_cycles(32, 8, group_size=size) for size in (1, 4))
    assert own - shared > 6 * 2 * 32 * 0.8


def test_a_causal_prompt_takes_as_long_as_its_rows_have_keys():
    shape, options = Shape(16, 2, 32, 1), Options(progressive=False)
    whole, causal = (
        replay(
            traces([sentence(shape, replace(options, rows=rows), TINY, np.random.default_rng(7))]),
            TINY,
            MEMORY,
        )
        for rows in ("all", "causal")
    )
    assert len(causal.o) == len(whole.o) == 32
    assert causal.n_cycles < whole.n_cycles


def test_new_tokens_leave_nothing_of_heads():
    """And an eviction is one more selection of tokens."""
    given = GivenTokens(tokens=np.arange(9), importance=np.arange(9), n_keep=5)
    one = one_token(Shape(9, 2, 32, 2), Options(rows="one"), given, TINY, np.random.default_rng(8))
    timing = replay(traces([one]), TINY, MEMORY)
    assert len(timing.o_heads) == len(timing.o_head_importance) == 0
    assert len(timing.o) == 4 and len(timing.o_summary) == 2
    assert len(timing.o_token_importance) == -(-9 // TINY.lanes) + 2 * -(-5 // TINY.lanes)


def test_layers_add_up():
    one = sentence(Shape(5, 2, 32, 3), Options(token_keep=0.7), TINY, np.random.default_rng(2))
    timing = replay(traces([one]), TINY, MEMORY)
    assert timing.layer_cycles.shape == (3,)
    assert (
        timing.layer_cycles.sum()
        == timing.n_cycles
        == max(cycles.max(initial=0) for cycles in timing.by_stream.values())
    )
    assert (timing.layer_cycles > 100).all()


def test_kept_sets_are_those_of_golden():
    """The model finds them itself, from what decides; equal ones by their place."""
    options = Options(token_keep=0.5, head_keep=0.5, value_keep=0.4)
    one = sentence(Shape(9, 4, 32, 2), options, TINY, np.random.default_rng(4))
    of_layers = traces([one])
    layers = replayed.layers_of(of_layers, TINY)
    for trace, layer, result in zip(of_layers, layers, one.results, strict=True):
        for head, row in np.ndindex(result.used_lsb.shape):
            kept = np.flatnonzero(result.kept_values[head, row])
            np.testing.assert_array_equal(trace.kept_values(head, row), kept)
        np.testing.assert_array_equal(result.tokens[layer.token_choice.kept], result.next_tokens)
        np.testing.assert_array_equal(result.heads[layer.head_choice.kept], result.next_heads)


def test_no_sentence_is_refused():
    with pytest.raises(ValueError, match="traces must hold at least one layer, and the first must not go on"):
        replay([], TINY, MEMORY)


def test_a_core_that_stands_still_is_an_error(monkeypatch):
    monkeypatch.setattr(attention_cycles, "MAX_QUIET_CYCLES", 1000)
    with pytest.raises(RuntimeError, match="nothing left the core for 1000 cycles up to cycle 1000"):
        replay(one_layer(), TINY, MemoryTiming(latency_cycles=2000))


def test_imports_neither_torch_nor_amaranth():
    """What `quartet bench` imports must be light."""
    code = "import sys, hw.attention.cycles; sys.exit(bool({'torch', 'amaranth'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("weight_bits", [8, 12])
def test_a_matrix_comes_as_fast_as_memory_brings_it(weight_bits):
    """Second layer of GPT-2-Small's feed-forward part, at the published size: within 5 % of DRAM's bound."""
    paper = preset("paper")
    config = attention_config(paper)
    product = matrix_product(768, 3072, weight_bits, config, np.random.default_rng(1))
    n_cycles = replay(traces([product]), config, MemoryTiming(latency_cycles=45)).n_cycles
    bound_cycles = 768 * 3072 * weight_bits / 8 / paper.peak_bytes_per_cycle
    assert bound_cycles < n_cycles <= 1.05 * bound_cycles


def test_a_decode_step_of_the_whole_paper_core():
    """GPT-2-Small's shape, 12 layers of 12 heads, 1,024 keys in the first: the published size, in Verilog."""
    paper = attention_config(preset("paper"))
    one = decode_step(1024, 12, paper, replace(OPTIONS, token_keep=0.9))
    used_lsb = [int(result.used_lsb.sum()) for result in one.results]
    assert 0 < sum(used_lsb) < 12 * 12
    step = case("decode step", [one], paper, memory=MemoryTiming(latency_cycles=45))
    (log,) = verilated.run_cases(BLOCKS["attention"], paper, [step])
    assert judge(step, log).problems == ()
