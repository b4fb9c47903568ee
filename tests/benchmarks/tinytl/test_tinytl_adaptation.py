# SPDX-License-Identifier: MIT
"""``quartet adapt`` at toy size: search, trainings, tables; what is there is reused."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from algo.evolution import Evolution
from algo.gan.data import ImageSet
from benchmarks.cli import app
from benchmarks.tinytl import adaptation, training
from benchmarks.tinytl.adaptation import Setup, parted, run_adaptation, summarise, write
from tests.benchmarks.tinytl.test_tinytl_cli import folder, small, squares  # noqa: F401
from tests.benchmarks.tinytl.test_tinytl_methods import no_progress


@pytest.fixture
def setup(folder, monkeypatch):  # noqa: F811
    """Red and blue pictures, a network of four blocks, three steps."""
    for module in (training, adaptation):
        monkeypatch.setattr(module, "pretrained", small)
    return Setup(
        data=str(folder), n_validation=4, batch_size=4, n_super_steps=3, n_steps=2, shares=(0.93,),
        n_random=1, evolution=Evolution(population=6, generations=2),
    )  # fmt: skip


def test_everything_is_trained_within_its_budget_and_reused(setup, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run_adaptation(out, setup, 1, no_progress)
    monkeypatch.setattr(adaptation, "prepare_transfer", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(adaptation, "adapted", lambda *a, **k: pytest.fail("searched again"))
    run_adaptation(out, setup, 1, no_progress)
    summary = summarise(out)
    rows = {row["kind"]: row for row in summary["rows"]}
    assert set(rows) == {"whole", "found", "random"} and summary["rows"][0] is rows["whole"]
    assert rows["whole"]["choice"] == "1222" and rows["whole"]["n_lite"] == 3
    (search,) = summary["searches"]
    budget = 0.93 * rows["whole"]["memory_mb"]
    assert rows["found"]["memory_mb"] == pytest.approx(search["cost"] / 1e6)
    assert rows["found"]["memory_mb"] <= budget
    assert 0.95 * budget <= rows["random"]["memory_mb"] <= budget
    written = write(out, tmp_path / "report")
    assert [path.suffix for path in written] == [".json", ".md", ".csv", ".png"]
    assert json.loads(written[0].read_text())["rows"] == summary["rows"]


def test_another_budget_keeps_the_shared_training(setup, tmp_path, monkeypatch):
    run_adaptation(tmp_path, setup, 1, no_progress)
    run_adaptation(tmp_path, replace(setup, shares=(0.97,)), 1, no_progress)
    assert len(list(tmp_path.glob("runs/shared-*"))) == 1 and len(list(tmp_path.glob("search-*.json"))) == 2


def test_a_budget_below_the_smallest_part(setup, tmp_path):
    with pytest.raises(ValueError, match=r"budget must be at least 0\.861, the smallest part, not 0\.5"):
        run_adaptation(tmp_path, replace(setup, shares=(0.97, 0.5)), 1, no_progress)
    assert not list(tmp_path.rglob("*.json"))


def test_parts_do_not_overlap():
    pictures = ImageSet(torch.arange(12).byte().view(12, 1, 1, 1), torch.arange(12) % 2, "numbers")
    first, others = parted(pictures, 5)
    assert (len(first.images), len(others.images)) == (5, 7)
    assert sorted([*first.images.flatten().tolist(), *others.images.flatten().tolist()]) == list(range(12))
    assert torch.equal(first.labels, first.images.flatten() % 2)
    with pytest.raises(ValueError, match=r"n_validation must be in 1\.\.11 pictures, not 12"):
        parted(pictures, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1.5"], "budget must be above 0 and at most 1, not 1.5"),
        (["--data", "nowhere"], "data must be fashion, emoji or a folder"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["adapt", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2 and message in result.output
    assert not list(tmp_path.iterdir())
