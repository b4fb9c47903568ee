# SPDX-License-Identifier: MIT
"""``quartet bench`` and ``quartet report`` as a user meets them: streams, exit codes, one-line refusals."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import runner
from benchmarks.cli import app

CLI = CliRunner()


def invoke(*arguments):
    return CLI.invoke(app, [str(argument) for argument in arguments])


def refused(done):
    """Exit code 2 and exactly one line, on stderr."""
    return done.exit_code == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_bench_prints_tables_and_saves_results(tmp_path):
    done = invoke("bench", "--only", "gpt2-medium-*", "--out", tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    for word in ("gpt2-medium-1bw", "released trace", "roofline", "eager", "304"):
        assert word in done.stdout
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_bench_json_is_json_and_nothing_else(tmp_path):
    done = invoke("bench", "--only", "bert-base-cola", "--out", tmp_path, "--json")
    (row,) = json.loads(done.stdout)
    assert row["benchmark"] == "bert-base-cola" and row["latency_s"] > 0
    assert row["paper_speedup_titan_xp_paper_eager"] == 957


def test_exact_bench_replays_the_core_and_is_reported(tmp_path):
    """12 layers of 11 tokens, about 11,000 cycles: short rows, for which the closed form is far too fast."""
    options = ("bench", "--exact", "--only", "bert-base-cola", "--out", tmp_path)
    (row,) = json.loads(invoke(*options, "--json").stdout)
    assert row["cycles"] > 2 * row["closed_form_cycles"]
    assert row["latency_s"] == pytest.approx(row["cycles"] * 1e-9)
    (tmp_path / "core" / "cycles.json").unlink()
    done = invoke(*options)  # the saved result
    assert "cycles by the core's cycle model" in done.stdout and f"{row['cycles']}" in done.stdout
    assert not (tmp_path / "core" / "cycles.json").exists()
    assert invoke("report", tmp_path).exit_code == 0
    assert f"{row['cycles']:,}" in (tmp_path / "report" / "index.html").read_text()


def test_report_ends_with_the_path_of_the_page(tmp_path):
    invoke("bench", "--only", "bert-base-cola", "--out", tmp_path)
    done = invoke("report", tmp_path)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report" / "index.html")
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "preset must be one of paper, paper_eighth, plus, edge, tiny, not 'huge'"),
        (("--jobs", "0"), "--jobs must be at least 1, not 0"),
        (("--only", "llama"), "--only 'llama' matches none of the 30 benchmarks"),
    ],
)
def test_bench_refuses_bad_input(tmp_path, arguments, message):
    done = invoke("bench", *arguments, "--out", tmp_path)
    assert refused(done) and message in done.stderr


def test_bench_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(invoke("bench", "--out", tmp_path / "file"))


@pytest.mark.parametrize("content", ["{half", "[]", '{"benchmark": "x"}'])
def test_corrupt_results_are_refused_by_both(tmp_path, content):
    (tmp_path / "bert-base-cola.json").write_text(content)
    for done in (invoke("bench", "--out", tmp_path), invoke("report", tmp_path)):
        assert refused(done) and "bert-base-cola.json: " in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"clock_hz": 1000000000.0', '"clock_hz": -1.0', "clock_hz must be a finite number"),
        ('"task"', '"tusk"', "tusk is not a known field"),
    ],
)
def test_report_refuses_damaged_fields(tmp_path, old, new, message):
    invoke("bench", "--only", "bert-base-cola", "--out", tmp_path)
    path = tmp_path / "bert-base-cola.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    done = invoke("report", tmp_path)
    assert refused(done) and message in done.stderr


def test_report_refuses_an_empty_folder(tmp_path):
    done = invoke("report", tmp_path / "none")
    assert refused(done) and "no results in" in done.stderr


def test_a_failed_benchmark_exits_with_1_and_is_named(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(runner, "run_one", broken)
    done = invoke("bench", "--only", "bert-base-cola", "--out", tmp_path)
    assert done.exit_code == 1
    assert done.stderr == "quartet: bert-base-cola failed: RuntimeError: broken on purpose\n"
