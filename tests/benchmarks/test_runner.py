# SPDX-License-Identifier: MIT
"""The runner: resumes, recomputes what is stale, reports failures one by one, writes whole files."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import runner
from benchmarks.exact import CYCLES_FILE, replay_benchmarks
from benchmarks.runner import collect_provenance, open_results, read_result, run_benchmarks, write_atomically
from benchmarks.tasks import select
from hw.config import preset
from sim.core import Replay

PAPER = preset("paper")
CHOSEN = select("bert-*-cola")


def run(out, chip=PAPER, chosen=CHOSEN, **options):
    return run_benchmarks(chosen, chip, out, open_results(chosen, chip, out), **options)


def test_results_are_saved_reused_and_equal(tmp_path):
    done = []
    first = run(tmp_path, command="quartet bench", on_done=done.append)
    assert [o.benchmark for o in first] == [i.benchmark for i in CHOSEN] == [o.benchmark for o in done]
    assert not any(o.reused or o.error for o in first)
    second = run(tmp_path)
    assert all(o.reused for o in second)
    assert [o.result for o in second] == [o.result for o in first]
    assert second[0].result.provenance.command == "quartet bench"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{i.benchmark}.json" for i in CHOSEN)


def test_another_chip_makes_results_stale(tmp_path):
    run(tmp_path)
    outcomes = run(tmp_path, chip=replace(PAPER, n_multipliers=1024))
    assert not any(o.reused for o in outcomes)
    assert not any(o.reused for o in run(tmp_path))


def test_a_changed_model_makes_results_stale(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(runner, "model_digest", lambda: "0" * 16)
    assert not any(o.reused for o in run(tmp_path))


def test_one_failure_leaves_the_others(tmp_path, monkeypatch):
    original = runner.run_one

    def failing(item, chip, provenance, core_cycles):
        if item.benchmark == "bert-base-cola":
            raise RuntimeError("broken on purpose")
        return original(item, chip, provenance, core_cycles)

    monkeypatch.setattr(runner, "run_one", failing)
    outcomes = run(tmp_path)
    assert [o.error for o in outcomes] == ["RuntimeError: broken on purpose", ""]
    assert outcomes[0].result is None and outcomes[1].result is not None
    assert [p.name for p in tmp_path.iterdir()] == ["bert-large-cola.json"]


def test_two_processes_give_the_same_results(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", n_jobs=2)
    assert [o.result.pruned for o in one] == [o.result.pruned for o in two]


def test_a_corrupt_file_is_named_and_left_alone(tmp_path):
    path = tmp_path / "bert-base-cola.json"
    path.write_text("{half")
    with pytest.raises(ValueError, match=r"bert-base-cola\.json: not valid JSON"):
        open_results(CHOSEN, PAPER, tmp_path)
    assert path.read_text() == "{half"
    with pytest.raises(ValueError, match=r"bert-base-cola\.json: not valid JSON"):
        read_result(path)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_provenance_names_commit_versions_and_time():
    found = collect_provenance("quartet bench")
    assert found.command == "quartet bench" and found.seed is None
    assert {"python", "quartet", "numpy", "joblib"} <= set(found.versions)
    assert found.date.endswith("+00:00") and found.commit


def test_bench_and_report_load_neither_torch_nor_amaranth():
    code = (
        "import sys, benchmarks.cli, benchmarks.exact, benchmarks.report, benchmarks.console;"
        "print([name for name in ('torch', 'amaranth', 'transformers', 'pyosys') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runner.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_exact_cycles_are_replayed_once_saved_and_resumed(tmp_path, monkeypatch):
    cola = CHOSEN[0]
    twin = replace(cola, benchmark="twin")
    replayed = []
    monkeypatch.setattr(Replay, "cycles", lambda one, chip: replayed.append(one) or 100 + one.shape.n_keys)
    told = []
    cycles = replay_benchmarks([cola, twin], PAPER, tmp_path, on_done=lambda *n: told.append(n))
    n_layers = len(replayed)
    total = sum(100 + one.shape.n_keys for one in replayed)
    assert cycles == {"bert-base-cola": total, "twin": total}
    assert n_layers == 12 == len(set(replayed))
    assert told == [(n, 12) for n in range(13)]

    path = tmp_path / CYCLES_FILE
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(saved.items())[:10])))
    assert replay_benchmarks([twin], PAPER, tmp_path) == {"twin": cycles["twin"]}
    assert len(replayed) == n_layers + 2
    assert replay_benchmarks([twin], replace(PAPER, dram_latency_cycles=46), tmp_path) != {}
    assert len(replayed) == n_layers + 2 + 12
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"core/cycles\.json: not cycles by hash"):
        replay_benchmarks([twin], PAPER, tmp_path)


def test_exact_cycles_take_the_place_of_the_closed_forms(tmp_path):
    exact = run(tmp_path, core_cycles={"bert-base-cola": 9_000, "bert-large-cola": 20_000})
    assert [o.result.pruned.cycles for o in exact] == [9_000, 20_000]
    assert exact[0].result.dense.core_cycles is None
    assert len(open_results(CHOSEN, PAPER, tmp_path, exact=True)) == 2
    assert not open_results(CHOSEN, PAPER, tmp_path)
    assert [o.result.pruned.core_cycles for o in run(tmp_path)] == [None, None]
