# SPDX-License-Identifier: MIT
"""Workloads on the core's exact cycle model: shapes as the driver has them, sum of the parts, closed form."""

from dataclasses import replace

import numpy as np
import pytest

from hw.attention.config import attention_config
from hw.attention.cycles import replay
from hw.config import preset
from sim.attention import run_attention
from sim.core import N_DRAWS, core_cycles, layer_shapes, layer_trace, replays
from sim.memory import memory_timing
from sim.workload import ModelShape, Pruning, Workload, generation, summarisation

PAPER, EIGHTH, PLUS, TINY = map(preset, ("paper", "paper_eighth", "plus", "tiny"))
MODEL = ModelShape(name="m", n_layers=4, n_heads=4, head_dim=64)
PROGRESSIVE = Pruning(
    token_keep=0.7, head_keep=0.9, value_keep=0.6, key_bits=6, key_lsb_bits=4, value_bits=8, lsb_fraction=0.25
)
PRUNED_VALUES = Pruning(key_bits=8, value_bits=8, value_keep=0.3)
SENTENCE = summarisation("sentence", MODEL, 24, PROGRESSIVE)
TOKENS = generation("tokens", MODEL, 60, 2, PROGRESSIVE)


def prompt(n_tokens: int, n_kv_heads: int) -> Workload:
    """Nothing pruned, causal, K and V shared."""
    dense = summarisation("prompt", MODEL, n_tokens, Pruning(key_bits=8, value_bits=8))
    passes = tuple(replace(one, causal=True, n_kv_heads=n_kv_heads) for one in dense.passes)
    return replace(dense, passes=passes)


def test_shapes_of_a_sentence():
    shapes = layer_shapes(SENTENCE, attention_config(PLUS))
    assert [s.rows for s in shapes] == ["all"] * 4 and not any(s.streamed for s in shapes)
    assert [s.n_keys for s in shapes[1:]] == [s.n_tokens_next for s in shapes[:-1]]
    assert [s.n_heads for s in shapes[1:]] == [s.n_heads_next for s in shapes[:-1]]
    assert shapes[-1].n_tokens_next == shapes[-1].n_keys < 24
    assert shapes[0].n_recomputed == 24 * 4 // 4


def test_shapes_of_new_tokens_are_streamed_and_begin_with_the_whole_context():
    shapes = layer_shapes(TOKENS, attention_config(PLUS))
    assert all(s.rows == "one" and s.streamed for s in shapes)
    assert [s.n_evictable for s in shapes] == [61, 0, 0, 0, 62, 0, 0, 0]
    assert {s.n_positions for s in shapes} == {62}


def test_shared_keys_stay_in_the_buffers_and_long_ones_are_streamed():
    config = attention_config(TINY)
    assert not any(s.streamed for s in layer_shapes(prompt(64, 2), config))
    assert all(s.streamed for s in layer_shapes(prompt(65, 2), config))
    trace = layer_trace(layer_shapes(prompt(9, 2), config)[0], config)
    assert trace.groups == [0, 0, 1, 1] and trace.planes[0]["k"] == trace.planes[1]["k"]
    assert not np.triu(trace.probabilities[0], 1).any()


def test_drawn_data_are_a_softmax_and_repeat():
    config = attention_config(PLUS)
    shape = layer_shapes(SENTENCE, config)[0]
    one, again, other = (layer_trace(shape, config, draw=draw) for draw in (0, 0, 1))
    sums = one.probabilities.sum(-1)
    assert np.abs(sums - 4096).max() <= 24 / 2 + 1  # each is rounded, the largest one saturates
    assert np.array_equal(one.probabilities, again.probabilities)
    assert not np.array_equal(one.probabilities, other.probabilities)
    assert one.used_lsb.sum() == shape.n_recomputed
    maxima = one.probabilities.max(-1)
    assert maxima[one.used_lsb].max() <= maxima[~one.used_lsb].min()


@pytest.mark.parametrize(
    ("work", "chip", "layer_slack_cycles", "share"),
    [
        (SENTENCE, PLUS, 2, 0.001),
        (TOKENS, PLUS, 2, 0.002),
        (SENTENCE, PAPER, 40, 0.02),
        (TOKENS, PAPER, 40, 0.03),
    ],
)
def test_layers_replayed_alone_add_up_to_the_whole_run(work, chip, layer_slack_cycles, share):
    """With radix engines to a cycle or two a layer; quick-select draws other pivots."""
    config, memory = attention_config(chip), memory_timing(chip)
    shapes = layer_shapes(work, config)
    traces = [
        layer_trace(shape, config, goes_on=one.layer > 0)
        for shape, one in zip(shapes, work.passes, strict=True)
    ]
    whole = replay(traces, config, memory).layer_cycles
    parts = np.array([replay([layer_trace(s, config)], config, memory).n_cycles for s in shapes])
    assert np.abs(whole - parts).max() <= layer_slack_cycles
    assert abs(whole.sum() - parts.sum()) <= share * whole.sum()


def test_a_shape_that_repeats_is_replayed_a_few_times():
    dense = generation("dense", MODEL, 7, 1, Pruning(key_bits=8, value_bits=8))
    deep = replace(dense, passes=dense.passes * 5)
    weights = replays(deep, PLUS)
    first, repeated = ([n for one, n in weights.items() if (one.shape.n_evictable > 0) == is_first]
                       for is_first in (True, False))  # fmt: skip
    assert first == [1] and repeated == [pytest.approx(19 / N_DRAWS)] * N_DRAWS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_lsb_bits": 3}, "key_lsb_bits must be 0 or 4 on the core, not 3"),
        ({"head_dim": 48}, r"head_dim must be one of \(32, 64, 128\), not 48"),
        ({"key_bits": 7}, "bits must be one of 4, 6, 8, 10, 12, not 7"),
    ],
)
def test_what_the_core_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        core_cycles(replace(SENTENCE, **changes), PLUS)


@pytest.mark.parametrize(
    ("work", "chip", "low", "high"),
    [
        # Long rows on small arrays: these set the pace.
        (summarisation("rows", MODEL, 48, Pruning(key_bits=8, value_bits=8)), EIGHTH, 0.95, 1.02),
        (
            generation("row", MODEL, 400, 1, Pruning(key_bits=8, value_bits=8, value_keep=0.3)),
            EIGHTH,
            0.9,
            1.15,
        ),
        (prompt(40, 2), EIGHTH, 0.9, 1.05),
        # Short ones on large arrays: the way through the core does, longer than the closed form has it.
        (SENTENCE, PAPER, 0.45, 1.0),
        (TOKENS, PAPER, 0.6, 1.0),
    ],
)
def test_closed_form_is_within_a_stated_share(work, chip, low, high):
    assert low <= run_attention(work, chip).total_cycles / core_cycles(work, chip) <= high
