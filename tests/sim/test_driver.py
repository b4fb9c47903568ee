# SPDX-License-Identifier: MIT
"""Records as the chip reads them, and its outputs as layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from algo.attention.encoder import Encoder
from algo.attention.record import AttentionRecord
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import ChipRun, run_on_chip
from hw.attention.config import attention_config
from hw.attention.vectors import Sentence, case
from hw.config import preset
from sim.driver.layers import layers_of, plane_bits
from sim.driver.program import program_of, unpack

TINY = attention_config(preset("tiny"))
PRUNED = {"token_keep": 0.6, "head_keep": 0.7, "value_keep": 0.6}
MODES = [
    CascadeSettings(**PRUNED, k_bits=8, v_bits=8),
    CascadeSettings(**PRUNED, k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.2),
]


def chip_run(settings: CascadeSettings) -> ChipRun:
    """A random encoder of 3 layers and 4 heads on 13 tokens."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    encoder = Encoder(BertModel(config, add_pooling_layer=False).eval(), name="random")
    return run_on_chip(encoder, list(range(2, 15)), settings, TINY)


def golden_beats(run: ChipRun) -> dict[str, np.ndarray]:
    """What the core puts out, as the vectors of its tests have it."""
    one = Sentence(
        layers=[layer.input for layer in run.layers],
        results=[layer.result for layer in run.layers],
        bits=plane_bits(run.record.settings),
    )
    return dict(case("run", [one], TINY).expected)


@pytest.mark.parametrize("settings", MODES, ids=["8", "6+4"])
def test_saved_record_gives_the_chip_what_the_run_gave_it(settings, tmp_path):
    """Every descriptor and every atom, after a way through a file."""
    run = chip_run(settings)
    record = AttentionRecord.load(run.record.save(tmp_path))
    one = Sentence(
        layers=[layer.input for layer in run.layers],
        results=[layer.result for layer in run.layers],
        bits=plane_bits(settings),
    )
    inputs = case("run", [one], TINY).inputs
    program = program_of(record, TINY)
    assert np.array_equal(program.layers, inputs["i_layer"])
    assert np.array_equal(program.heads, inputs["i_head"])
    for given, again in zip(run.layers, layers_of(record, TINY), strict=True):
        for a, b in zip(given.input.heads, again.heads, strict=True):
            assert all(np.array_equal(np.asarray(getattr(a, x)), getattr(b, x)) for x in "qkv")


@pytest.mark.parametrize("settings", MODES, ids=["8", "6+4"])
def test_outputs_come_back_by_head_and_token(settings):
    run = chip_run(settings)
    layers = unpack(golden_beats(run), run.record, TINY)
    assert len(layers) == 3
    for layer, got in zip(run.layers, layers, strict=True):
        want = layer.result
        assert np.array_equal(got.tokens, want.tokens.numpy())
        assert np.array_equal(got.heads, want.heads.numpy())
        assert np.array_equal(got.outputs, want.outputs.numpy())
        assert np.array_equal(got.used_lsb, want.used_lsb.numpy())
        assert np.array_equal(got.token_importance, want.token_importance.numpy())
        assert np.array_equal(got.head_importance, want.head_importance.numpy())
        assert 0 < got.ideal_bytes <= got.moved_bytes


def test_missing_row_is_noticed():
    run = chip_run(MODES[0])
    beats = golden_beats(run)
    beats["o"] = np.concatenate([beats["o"][1:2], beats["o"][1:]])
    with pytest.raises(ValueError, match=r"layer 0 must have each row once, not 0\.\.2 times"):
        unpack(beats, run.record, TINY)


def test_records_that_the_chip_cannot_run_are_refused():
    record = chip_run(MODES[0]).record
    layer = record.passes[0][0]

    def with_first(**changes) -> AttentionRecord:
        return replace(record, passes=((replace(layer, **changes), *record.passes[0][1:]),))

    for broken, message in (
        (with_first(q=None), r"layer 0 of the record must hold integers"),
        (with_first(v_scale=np.arange(1.0, 5.0)), r"v_scale of layer 0 must be the same for all heads"),
        (
            replace(record, shape=replace(record.shape, n_kv_heads=2)),
            r"the model must be an encoder with a K",
        ),
        (replace(record, settings=CascadeSettings()), r"q_bits, k_bits and v_bits must be given"),
        (
            replace(record, settings=replace(record.settings, value_semantics="score")),
            r"value_semantics must be probability on the chip, not 'score'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            program_of(broken, TINY)
