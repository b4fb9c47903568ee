# SPDX-License-Identifier: MIT
"""``quartet transfer`` at toy size: each run is one stored result, reused; rows, differences, plot."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.tinytl import methods, training
from benchmarks.tinytl.methods import Setup, run_methods
from benchmarks.tinytl.methods_report import differences, markdown, rows_of, summarise, write
from tests.benchmarks.tinytl.test_tinytl_cli import small


def no_progress(what, done, total):
    """Nothing to see."""


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Red and blue pictures, a network of four blocks, three steps."""
    monkeypatch.setattr(training, "pretrained", small)
    for name, colour in (("blue", (20, 40, 230)), ("red", (220, 40, 30))):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (64, 64), tuple(c + i for c in colour)).save(folder / f"{i}.png")
    return Setup(
        data=str(tmp_path / "pictures"), methods=("last", "lite+bias"), seeds=(0, 1), n_steps=3, batch_size=4
    )


def file(method: str, seed: int, accuracy: float) -> dict:
    """A saved run."""
    result = {
        "accuracy": accuracy, "last_loss": 1.0, "n_trained": 10, "memory_published_mb": 1.0,
        "memory_full_count_mb": 2.0, "cpu_seconds_here": 3.0,
    }  # fmt: skip
    inputs = {"method": method, "seed": seed, "learning_rate": 0.1, "n_steps": 5}
    return {"inputs": inputs, "result": result}


def test_runs_are_reused_and_summarised(setup, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_methods(out, setup, 1, no_progress)
    monkeypatch.setattr(methods, "prepare_transfer", lambda *a, **k: pytest.fail("trained again"))
    run_methods(out, setup, 1, no_progress)
    written = write(out, tmp_path / "report")
    assert [path.name for path in written] == ["summary.json", "transfer.md", "transfer.csv", "transfer.png"]
    summary = json.loads(written[0].read_text())
    assert [(row["method"], row["seed"]) for row in summary["rows"]] == [
        ("last", 0), ("last", 1), ("lite+bias", 0), ("lite+bias", 1)
    ]  # fmt: skip
    assert summary["settings"]["n_steps"] == 3 and "seed" not in summary["settings"]
    assert summary["rates"] == {"last": methods.RATES["last"], "lite+bias": methods.RATES["lite+bias"]}


def test_another_setting_is_another_run(setup, tmp_path):
    one = replace(setup, methods=("last",), seeds=(0,))
    run_methods(tmp_path, one, 1, no_progress)
    run_methods(tmp_path, replace(one, n_steps=2), 1, no_progress)
    assert len(list((tmp_path / methods.RUNS).iterdir())) == 2
    assert summarise(tmp_path)["settings"]["n_steps"] == 2


def test_differences_pair_the_seeds():
    files = [file("bias", 0, 0.80), file("last", 0, 0.75), file("bias", 1, 0.82), file("last", 1, 0.70)]
    files += [file("bias", 2, 0.99), file("full", 0, 0.9)]  # without a partner
    (found,) = differences(rows_of(dict(enumerate(files))))
    assert found["methods"] == ("bias", "last")
    assert found["points"] == pytest.approx({0: 5.0, 1: 12.0})
    assert found["mean"] == pytest.approx(8.5) and found["half_95"] == pytest.approx(12.706 * 3.5)


def test_a_missing_seed_leaves_its_place_empty():
    files = [file("last", 0, 0.5), file("bias", 0, 0.6), file("bias", 1, 0.7)]
    rows = rows_of(dict(enumerate(files)))
    text = markdown({"rows": rows, "rates": {"last": 1, "bias": 2}, "differences": differences(rows)})
    assert "| `last` | 1 | 10 | 1.0 | 2.0 | 50.00 |  | 50.00 |" in text
    assert "| `bias` - `last` | +10.00 |  | +10.00 | one seed |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method", "most"],
            "method must be one of last, bias, lite, lite+bias, norm+last, full, not 'most'",
        ),
        (["--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["transfer", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2 and message in " ".join(result.output.replace("│", "").split())
    assert not list(tmp_path.iterdir())
