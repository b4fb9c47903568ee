# SPDX-License-Identifier: MIT
"""Records as the chip reads them, and its outputs as layers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from algo.attention.decoder import Decoder
from algo.attention.encoder import Encoder
from algo.attention.record import AttentionRecord
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import ChipGenerationRun, ChipRun, generate_on_chip, run_on_chip
from hw.attention.config import attention_config
from hw.attention.program import programs
from hw.attention.vectors import Sentence, case
from hw.config import preset
from sim.driver.layers import layers_of, passes_of, plane_bits
from sim.driver.program import program_of, unpack, unpack_passes

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


# ---- decoders ---------------------------------------------------------------------------------------------


def generation(settings: CascadeSettings) -> ChipGenerationRun:
    """A random Llama of 3 layers, 4 heads and 2 groups: a prompt of 9 tokens, 4 new ones."""
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.12,
    )  # fmt: skip
    decoder = Decoder(LlamaForCausalLM(config).eval(), name="random")
    return generate_on_chip(decoder, list(range(2, 11)), settings, TINY, 4)


GENERATION = CascadeSettings(
    token_schedule=(0.9, 0.7, 0.5), head_counts=(4, 3, 2), value_keep=0.7, prune_prompt=False,
    importance_rescale=0.5, k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.3,
)  # fmt: skip


def test_saved_generation_gives_the_chip_what_the_run_gave_it(tmp_path):
    """Descriptors, given lists and scores, a memory that holds K and V once; after a way through a file."""
    run = generation(GENERATION)
    record = AttentionRecord.load(run.record.save(tmp_path))
    one = case("run", run.sentences, TINY)
    program = program_of(record, TINY)
    for name, beats in program.inputs.items():
        assert np.array_equal(beats, one.inputs[name]), name
    (memory,) = one.memories.values()
    assert np.array_equal(program.atoms, memory.words)
    prompt_alone = programs(passes_of(record, TINY)[:1], TINY)
    later_queries = 3 * 3 * (4 * 32 * 12 // 256)
    assert len(program.atoms) == len(prompt_alone.atoms) + later_queries + 3 * 3 * ATOMS_OF_POSITION


ATOMS_OF_POSITION = 2 * 2 + 1
"""In a layer, of 2 groups of 32 elements: K and V of 6 bits, 384 bits in 2 atoms each; LSBs in one."""


def test_outputs_of_generation_come_back_by_pass_and_layer():
    run = generation(GENERATION)
    got = unpack_passes(dict(case("run", run.sentences, TINY).expected), run.record, TINY)
    assert [len(of_pass) for of_pass in got] == [3] * 4
    for outputs, layers in zip(got, run.passes, strict=True):
        for output, layer in zip(outputs, layers, strict=True):
            want = layer.result
            for name in ("tokens", "heads", "outputs", "used_lsb", "token_importance", "head_importance"):
                assert np.array_equal(getattr(output, name), getattr(want, name).numpy()), name
            assert 0 < output.ideal_bytes <= output.moved_bytes
    assert got[3][0].outputs.shape == (4, 1, 32) and len(got[3][0].tokens) < 12
    with pytest.raises(ValueError, match="passes of the record must be 1, not 4: use unpack_passes"):
        unpack({}, run.record, TINY)


def test_records_of_generation_that_the_chip_cannot_run_are_refused():
    record = generation(GENERATION).record
    unscored = tuple(replace(layer, token_importance=None) for layer in record.passes[1])
    for broken, message in (
        (
            replace(record, passes=(record.passes[0], unscored, *record.passes[2:])),
            r"pass 1 of the record must hold importance: run it on the chip",
        ),
        (
            replace(record, settings=replace(GENERATION, prune_prompt=True)),
            r"prune_prompt must be False to generate on the chip",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            program_of(broken, TINY)
