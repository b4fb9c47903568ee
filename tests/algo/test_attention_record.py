# SPDX-License-Identifier: MIT
"""The record: what it holds, that it survives a round trip, and that it is read without torch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from algo.attention.encoder import Encoder
from algo.attention.record import AttentionRecord, LayerRecord
from algo.attention.replay import replay
from algo.attention.settings import CascadeSettings

SETTINGS = CascadeSettings(
    token_keep=0.5,
    head_keep=0.6,
    value_keep=0.5,
    q_bits=12,
    k_bits=6,
    v_bits=8,
    lsb_bits=4,
    lsb_threshold=0.3,
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    return Encoder(BertModel(config, add_pooling_layer=False).double().eval())


@pytest.fixture(scope="module")
def result(encoder):
    ids = torch.randint(50, (16,), generator=torch.Generator().manual_seed(1))
    return encoder.run(ids, SETTINGS, capture="integers")


def test_round_trip(result, tmp_path):
    layers = [
        replace(layer, token_importance=np.arange(layer.n_keys) << 30) for layer in result.record.passes[0]
    ]
    record = replace(result.record, passes=(tuple(layers),))
    loaded = AttentionRecord.load(record.save(tmp_path / "run"))
    assert loaded.settings == SETTINGS and loaded.shape == record.shape and loaded.n_prompt == 16
    assert np.array_equal(loaded.token_ids, record.token_ids)
    for mine, theirs in zip(record.passes[0], loaded.passes[0], strict=True):
        for field in LayerRecord.__dataclass_fields__:
            a, b = getattr(mine, field), getattr(theirs, field)
            assert a.dtype == b.dtype and np.array_equal(a, b), field
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["record.json", "record.safetensors"]


def test_the_recorded_integers_give_the_layer_output(encoder, result):
    """Attention from the record's integers alone equals what the next module of the model received."""
    layer = result.record.passes[0][3]
    seen = {}
    hook = encoder.model.encoder.layer[3].attention.output.dense.register_forward_pre_hook(
        lambda module, args: seen.update(context=args[0])
    )
    encoder.run(result.token_ids, SETTINGS)
    hook.remove()
    q, k, v = (x.astype(np.float64) for x in (layer.q, layer.k, layer.v))
    step = (layer.q_scale * layer.k_scale)[:, None, None] / np.sqrt(8)
    msb, lsb = np.floor(k / 16), k % 16  # two planes; Q.K = 16 Q.K_msb + Q.K_lsb
    on_msb = 16 * q @ msb.transpose(0, 2, 1)
    on_both = on_msb + q @ lsb.transpose(0, 2, 1)
    scores = step * np.where(layer.lsb_rows[..., None], on_both, on_msb)
    prob = np.exp(scores - scores.max(-1, keepdims=True))
    prob /= prob.sum(-1, keepdims=True)
    out = (prob * layer.values) @ v * layer.v_scale[:, None, None]
    out[np.setdiff1d(np.arange(4), layer.heads)] = 0
    expected = seen["context"][0].detach().numpy()  # [n, H D]
    assert np.allclose(out.transpose(1, 0, 2).reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)


def test_integers_are_within_their_widths(result):
    for layer in result.record.passes[0]:
        assert np.abs(layer.q).max() == 2**11 - 1  # the largest magnitude maps to the end of the range
        assert np.abs(layer.k).max() == 2**9 - 1
        assert np.abs(layer.v).max() == 2**7 - 1


def test_replay_of_an_encoder(encoder, result):
    hidden = replay(encoder.model, result.record)
    assert torch.allclose(hidden[result.kept_tokens[-1]], result.hidden, rtol=1e-9, atol=1e-9)


def test_counts(result):
    record = result.record
    assert record.key_counts.tolist() == [list(result.n_kept_tokens)]
    assert record.key_counts.tolist() == [SETTINGS.token_counts(5, 16)]
    assert record.value_counts.tolist() == [SETTINGS.value_counts(5, 16)]
    assert record.head_counts.tolist() == [SETTINGS.heads_per_layer(5, 4)]


def test_damaged_and_missing(result, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a record: it has no record\.json"):
        AttentionRecord.load(tmp_path)
    folder = result.record.save(tmp_path / "run")
    header = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(ValueError, match="must be 1, not 99"):
        AttentionRecord.load(folder)
    (folder / "record.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        AttentionRecord.load(folder)
    (folder / "record.json").write_text(json.dumps(header))
    with (folder / "record.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="does not belong to its record"):
        AttentionRecord.load(folder)


def test_reading_a_record_needs_no_torch(result, tmp_path):
    folder = result.record.save(tmp_path)
    code = (
        "import sys; from algo.attention.record import AttentionRecord; "
        f"print(AttentionRecord.load({str(folder)!r}).key_counts.sum()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == result.record.key_counts.sum()
