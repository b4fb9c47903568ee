# SPDX-License-Identifier: MIT
"""The commands rtl, cosim and run: what they print, and how they refuse bad input."""

import json

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from algo.attention.decoder import Decoder
from algo.attention.encoder import load_encoder
from algo.attention.settings import CascadeSettings
from benchmarks.cli import app
from benchmarks.pruned_run import PrunedRun, TopKEngine, run_decoder, run_encoder
from hw.config import preset
from hw.harness.job import Log
from hw.topk.config import TopKConfig

TEXT = "The movie was a truly wonderful surprise from start to finish"


def quartet(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtl", "topk", "--preset", "huge"), "preset must be one of paper"),
        (("rtl", "sorter"), "block must be one of topk"),
        (("cosim", "system"), "block must be one of topk"),
        (("cosim", "topk", "--sim", "modelsim"), "sim must be one of verilator, icarus, not 'modelsim'"),
        (("run", "no-such-folder", "--text", "x"), "no-such-folder"),
        (("run", "minilm", "--text", "x", "--keep", "0"), "token_keep must be above 0 and at most 1, not 0"),
        (("run", "minilm", "--text", "x", "--keep", "1.5"), "token_keep must be above 0 and at most 1"),
        (("topk", "3", "1", "-k", "3"), "k must be in 0..2 (n), not 3"),
        (
            ("topk", "3", "1", "-k", "1", "--set", "topk.lanes=3"),
            "lanes must be a power of two in 1..32, not 3",
        ),
        (("topk", "3", "-k", "1", "--set", "topk.element_bits=99"), "element_bits must be in 8..32, not 99"),
        (("rtl", "topk", "--set", "lanes=4"), "field must be one of clock_hz"),
        (("rtl", "topk", "--set", "topk=4"), "field 'topk' is a group"),
        (("rtl", "topk", "--set", "clock_hz.x=4"), "field 'clock_hz' has no fields"),
        (("rtl", "topk", "--set", "topk.lanes"), "a change must look like topk.lanes=8, not 'topk.lanes'"),
        (("rtl", "topk", "--set", "topk.lanes=four"), "lanes must be a number, not 'four'"),
        (("run", "minilm", "--text", "x", "--bits", "7"), "k_bits must be one of 4, 6, 8, 10, 12, not 7"),
        (("run", "minilm"), "give either --text or --file"),
        (("run", "minilm", "--file", "no-such-file"), "no-such-file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = quartet(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("quartet: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rtl_prints_the_files_it_wrote(tmp_path):
    result = quartet("rtl", "zero_eliminator", "--preset", "tiny", "--out", str(tmp_path))
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path}/tiny/zero_eliminator.v\n"
    assert (tmp_path / "tiny" / "zero_eliminator.v").read_text().startswith("\nmodule zero_eliminator(")


@pytest.mark.parametrize("options", [(), ("--rtl",)], ids=["golden", "verilog"])
def test_topk_runs_one_request(options):
    chip = ("--preset", "tiny", "--set", "topk.lanes=4")
    result = quartet(
        "topk", "3", "1", "4", "1", "5", "9", "2", "6", "5", "-k", "4", "--json", *chip, *options
    )
    assert result.exit_code == 0
    selection = json.loads(result.stdout)
    assert (selection["values"], selection["indices"]) == ([5, 9, 6, 5], [4, 5, 7, 8])
    assert selection["mismatches"] == [] and selection["first_to_last_cycles"] > 9


def test_cosim_reports_every_case():
    result = quartet("cosim", "zero_eliminator", "--sim", "verilator", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["problems"] for row in rows] == [[]] * len(rows)
    assert sum(row["cycles_checked"] for row in rows) == len(rows) / 2


def test_cosim_fails_on_a_mismatch(monkeypatch):
    import hw.zero_eliminator.vectors as vectors

    golden = vectors.eliminate_zeros

    def off_by_one(data, mask):
        packed, count = golden(data, mask)
        return packed ^ 1, count

    monkeypatch.setattr(vectors, "eliminate_zeros", off_by_one)
    result = quartet("cosim", "zero_eliminator", "--sim", "verilator")
    assert result.exit_code == 1
    assert "o beat 0: 0x" in result.stdout


def test_waves_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = quartet("cosim", "zero_eliminator", "--sim", "verilator", "--waves", "--vectors", "0")
    assert result.exit_code == 0
    assert (tmp_path / "results/waves/zero_eliminator-verilator.vcd").read_text().startswith("$version")


def run(settings: CascadeSettings, rtl: bool = False) -> PrunedRun:
    encoder = load_encoder("minilm")
    return run_encoder(encoder, encoder.token_ids(TEXT), settings, preset("paper"), rtl=rtl)[0]


def test_run_in_verilog_equals_run_in_golden():
    settings = CascadeSettings(token_keep=0.5, head_keep=0.8, k_bits=6, v_bits=6, lsb_bits=4)
    golden, verilog = (run(settings, rtl) for rtl in (False, True))
    assert verilog.mismatches == ()
    assert verilog.layers == golden.layers
    assert verilog.quality == golden.quality
    counts = [len(row.positions) for row in golden.layers]
    assert counts[0] == 13 and counts == sorted(counts, reverse=True) and counts[-1] < 7
    assert golden.layers[-1].n_heads < golden.layers[0].n_heads == 12
    assert 0 < golden.quality["cosine similarity of embeddings"] < 1
    assert golden.chip.run.n_flops < golden.dense_chip.run.n_flops
    assert golden.chip.latency_s < golden.dense_chip.latency_s
    assert golden.savings.traffic_ratio_fp32 > 2 * golden.savings.traffic_ratio_onchip > 4


def test_nothing_pruned_gives_the_same_embedding():
    whole = run(CascadeSettings())
    assert whole.quality["cosine similarity of embeddings"] == pytest.approx(1, abs=1e-6)
    assert whole.engine_cycles == 0 and whole.mean_token_keep == 1
    assert whole.savings.traffic_ratio_fp32 == whole.savings.operations_ratio == 1


def test_a_decoder_generates_beside_the_full_model():
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 64, "eos_token_id": 0}
    model = Decoder(GPT2LMHeadModel(GPT2Config(**shape)).eval())
    ids = torch.arange(20)
    off, _ = run_decoder(model, ids, 4, CascadeSettings(), preset("paper"), rtl=False)
    assert off.outputs["full"] == off.outputs["pruned"] and off.quality["leading tokens that agree"] == 4
    settings = CascadeSettings(token_keep=0.5, k_bits=8, v_bits=8)
    pruned, record = run_decoder(model, ids, 4, settings, preset("paper"), rtl=True)
    assert pruned.mismatches == () and pruned.n_selections > 4
    assert len(record.passes) == 4 and len(pruned.layers[-1].positions) < 20


def test_engine_quantises_with_the_largest_just_below_the_width():
    engine = TopKEngine(TopKConfig(element_bits=12), rtl=False)
    assert engine.quantise(torch.tensor([0.0, 0.25, 1000.0])).tolist() == [0, 1, 4000]
    assert engine.quantise(torch.tensor([1023.99, 512.0])).tolist() == [4095, 2048]  # saturates
    assert engine.quantise(torch.zeros(3)).tolist() == [0, 0, 0]
    assert engine.select(torch.tensor([1023.0, 3.1, 1.0, 3.0]), 2).tolist() == [0, 1]  # 12.4 and 12: a tie


def test_a_text_longer_than_the_engine_is_refused():
    result = quartet("run", "minilm", "--text", TEXT, "--set", "topk.lanes=4", "--set", "topk.n_max=16")
    assert result.exit_code == 0
    result = quartet(
        "run", "minilm", "--text", f"{TEXT} {TEXT}", "--set", "topk.lanes=4", "--set", "topk.n_max=16"
    )
    assert result.exit_code == 2
    assert "text must have at most 16 tokens for this top-k engine, not 24" in result.stderr


ON_CORE = ("run", "minilm", "--text", TEXT, "--keep", "0.5", "--heads", "0.8", "--values", "0.6",
           "--bits", "6+4", "--threshold", "0.3", "--preset", "tiny")  # fmt: skip


def test_encoder_with_bits_runs_on_the_attention_core():
    result = quartet(*ON_CORE, "--json")
    assert result.exit_code == 0
    run = json.loads(result.stdout)
    core = run["core"]
    assert run["layers"][-1]["n_heads"] < 12 and len(run["layers"][-1]["positions"]) < 7
    assert 0 < core["n_rows_with_lsb"] < core["n_rows"]
    assert 0 < core["ideal_bytes"] < core["moved_bytes"]
    assert core["first_array_cycles"] < core["cycles"] and core["origin"] == "cycle model"
    assert run["quality"]["chip and float, pruned alike"] > 0.9
    assert run["n_selections"] == 0 and run["mismatches"] == []


def simulated(flip: int):
    """What a simulator would show of a case, one bit of the first output wrong if ``flip``."""

    def run_cases(block, config, cases):
        logs = []
        for one in cases:
            beats = {port: want.copy() for port, want in one.expected.items()}
            beats["o"][0, 0] ^= flip
            cycles = {**one.expected_cycles, "i_layer": np.array([1])}
            logs.append(Log(beats=beats, cycles=cycles, n_cycles=one.max_cycles))
        return logs

    return run_cases


@pytest.mark.parametrize(("flip", "exit_code"), [(0, 0), (1 << 20, 1)])
def test_mismatch_in_the_core_fails_the_run(flip, exit_code, monkeypatch):
    monkeypatch.setattr("benchmarks.pruned_run.verilated.run_cases", simulated(flip))
    result = quartet(*ON_CORE, "--rtl")
    assert result.exit_code == exit_code
    assert "cycles (measured in simulated Verilog)" in result.stdout
    assert ("mismatch: o beat 0: 0x" in result.stdout) == bool(flip)


@pytest.mark.full
def test_encoder_on_the_simulated_core():
    result = quartet(*ON_CORE, "--rtl")
    assert result.exit_code == 0 and "mismatch" not in result.stdout


def test_a_text_whose_keys_do_not_fit_the_core_is_streamed():
    result = quartet(
        "run", "minilm", "--text", " ".join([TEXT] * 6), "--keep", "0.3", "--bits", "6+4", "--preset", "tiny"
    )
    assert result.exit_code == 0 and "bytes" in result.stdout
