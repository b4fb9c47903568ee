# SPDX-License-Identifier: MIT
"""``quartet gan`` at toy sizes: every case is one stored result, interrupted ones go on, tables and plots."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from algo.anycost.architecture import SubGenerator
from algo.anycost.projection import distance_to_full
from algo.gan.data import ImageSet, as_floats
from algo.gan.training import load_generator
from benchmarks.cli import app
from benchmarks.gan import elastic, experiments, few_shot, judge, report, training
from benchmarks.gan.metrics import kid, standardised
from tests.benchmarks.gan.conftest import Pixels, quiet

EMOJI = replace(
    few_shot.EMOJI, n_pictures=8, n_steps=4, n_checks=2, resolution=16, style_size=8, n_mapping_layers=1,
    max_channels=8, batch_size=2, n_fakes=12,
    cases=tuple(few_shot.Case(1.0, "nonsaturating", a, seed) for seed in (0, 1) for a in ("cutout", "")),
)  # fmt: skip
FASHION = replace(
    EMOJI, data="fashion", conditional=True, mirror=False, n_pictures=None, n_steps=2,
    cases=(
        *(few_shot.Case(f, "hinge", a, 0) for f in (0.5, 1.0) for a in ("cutout", "")),
        few_shot.Case(0.5, "nonsaturating", "cutout", 0),
    ),
)  # fmt: skip
ANYCOST = elastic.Setup(
    n_pictures=8, resolution=16, n_resolutions=2, style_size=8, n_mapping_layers=1, batch_size=2,
    steps_full=2, steps_resolutions=1, steps_channels=2, separate=((16, 0.5), (8, 0.25)), n_projected=2,
    projection_steps=2, search_ratios=(0.5,), n_search_z=2, n_other_z=3, n_other_draws=2,
    search=elastic.SearchConfig(population=6, generations=2),
)  # fmt: skip


def images(name: str, resolution: int, *, test: bool = False) -> ImageSet:
    """Noise, ten classes."""
    rng = torch.Generator().manual_seed(int(test))
    pixels = torch.randint(256, (12, 3, resolution, resolution), generator=rng)
    return ImageSet(pixels.byte(), torch.arange(12) % 10, f"noise for {name}{' test' * test}")


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Noise for pictures, no packaged weights."""
    for module in (training, judge):
        monkeypatch.setattr(module, "Features", Pixels)
    for module in (few_shot, elastic):
        monkeypatch.setattr(module, "load_images", images)
    for module in (training, elastic):
        monkeypatch.setattr(module, "N_FAKES", 10)
    setups = {
        "emoji": EMOJI, "emoji-no-r1": replace(EMOJI, r1_weight=0.0),
        "emoji-animals": replace(EMOJI, data="emoji-animals"), "fashion": FASHION,
    }  # fmt: skip
    for name, setup in setups.items():
        monkeypatch.setitem(few_shot.SETUPS, name, setup)
    monkeypatch.setattr(elastic, "Setup", lambda device: replace(ANYCOST, device=device))


def run(*arguments):
    return CliRunner().invoke(app, ["gan", *(str(argument) for argument in arguments)])


def results(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def trained(folder) -> dict[str, dict]:
    """Descriptions of the finished runs by name, without the mark of their inputs."""
    paths = folder.glob("runs/*/train.json")
    return {path.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text())["run"] for path in paths}


def check_runs(folder) -> None:
    """Each run was trained as its case says."""
    for name, setup in (("emoji", EMOJI), ("fashion", FASHION)):
        runs = trained(folder / name)
        assert runs.keys() == {case.name for case in setup.cases}
        for case in setup.cases:
            run = runs[case.name]
            n = round(case.fraction * (setup.n_pictures or 12))
            assert (run["loss"], run["augment"], run["seed"]) == (case.loss, case.augment, case.seed)
            assert run["data"].endswith(f"{n} of {setup.n_pictures or 12}")
            assert run["generator"]["n_classes"] == (10 if setup.conditional else 0)
    runs = trained(folder / "anycost")
    assert runs["full"]["elastic"] is None and runs["resolutions"]["start"].startswith("full-")
    for variant, (conditioned, distilled) in elastic.VARIANTS.items():
        last = runs[f"channels-{variant}"]
        assert last["start"].startswith("resolutions-") and last["elastic"] == {
            "resolutions": [16, 8], "n_sampled": 2, "channels": "flexible", "conditioned": conditioned,
            "distillation": 2.0 if distilled else 0.0,
        }  # fmt: skip
    alone = runs["separate-8x0.25"]
    assert alone["n_steps"] == 5 and alone["generator"]["resolution"] == 8 and alone["elastic"] is None
    assert alone["opponent"]["channel_multiplier"] == 4 * alone["generator"]["channel_multiplier"]


def check_search(folder, row: dict) -> None:
    """Both are compared on z that the search has not seen."""
    (run_folder,) = folder.glob("runs/channels-both-*")
    generator = load_generator(run_folder)
    fresh = [distance_to_full(generator, 3, seed=seed) for seed in (1, 2)]
    uniform, found = generator.config.uniform(0.5), SubGenerator(16, tuple(row["found_widths"]))
    assert row["uniform_mse"] == pytest.approx(sum(one(uniform) for one in fresh) / 2)
    assert row["found_mse"] == pytest.approx(sum(one(found) for one in fresh) / 2)
    assert row["gain"] == pytest.approx(1 - sum(one(found) / one(uniform) for one in fresh) / 2)


def test_everything_with_one_command(tmp_path):
    first = run("--out", tmp_path, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert [row["augmented"] for row in found["emoji"]["rows"]] == [True, False] * 2
    assert [gain["n_seeds"] for gain in found["emoji"]["gains"]] == [2]
    assert all(len(curve["checks"]) == 2 for curve in found["emoji"]["curves"])
    assert found["emoji"]["rows"][0]["n_real"] == 8 and found["emoji"]["rows"][0]["n_fake"] == 12

    rows = found["fashion"]["rows"]
    assert [(r["loss"], r["n_pictures"]) for r in rows] == [("hinge", 12)] * 2 + [("hinge", 6)] * 2 + [
        ("nonsaturating", 6)
    ]
    assert all(row["n_real"] == 12 for row in rows)  # the test part, whatever the fraction
    assert [(g["loss"], g["fraction"]) for g in found["fashion"]["gains"]] == [("hinge", 1.0), ("hinge", 0.5)]

    anycost = found["anycost"]
    assert set(anycost["variants"]) == set(elastic.VARIANTS)
    for rows in anycost["variants"].values():
        assert [(r["resolution"], r["ratio"]) for r in rows][:2] == [(16, 1.0), (16, 0.75)] and len(rows) == 8
    alone = {(row["resolution"], row["ratio"]): row["macs"] for row in anycost["separate"]}
    same = {(r["resolution"], r["ratio"]): r["macs"] for r in anycost["variants"]["both"]}
    assert set(alone) == {(16, 0.5), (8, 0.25)} and all(alone[key] == same[key] for key in alone)
    assert anycost["search"][0]["found_macs"] <= anycost["search"][0]["uniform_macs"]
    assert set(anycost["projection"]) == {"with", "without"}

    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {
        "summary.json", "gan.md", "emoji.csv", "fashion.csv", "anycost.csv", "emoji.png", "emoji_samples.png",
        "fashion.png", "anycost.png", "anycost_preview.png",
        "emoji-no-r1.csv", "emoji-no-r1.png", "emoji-no-r1_samples.png",
        "emoji-animals.csv", "emoji-animals.png", "emoji-animals_samples.png",
    }  # fmt: skip
    for name in written:
        if name.endswith(".png"):
            with Image.open(tmp_path / "report" / name) as picture:
                assert min(picture.size) > 300
    text = (tmp_path / "report" / "gan.md").read_text()
    assert "| 8 | nonsaturating | yes | 0 |" in text and "| 16 px x 0.25 |" in text and "not FID" in text

    check_runs(tmp_path)
    check_search(tmp_path / "anycost", anycost["search"][0])
    assert anycost["projection"]["with"]["full_mse"] != anycost["projection"]["without"]["full_mse"]
    unseen, seen = (Pixels()(as_floats(images("fashion", 16, test=test).images)) for test in (True, False))
    assert found["fashion"]["reals"]["kid"] == pytest.approx(kid(*standardised(unseen, seen)))

    # A second time nothing is computed.
    before = {name: results(tmp_path / name) for name in experiments.NAMES}
    again = run("--out", tmp_path, "--only", "anycost", "--only", "emoji")
    assert again.exit_code == 0 and "## Fashion-MNIST" in again.stdout
    assert before == {name: results(tmp_path / name) for name in experiments.NAMES}


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, monkeypatch):
    setup = replace(EMOJI, cases=EMOJI.cases[:1])
    few_shot.run_few_shot(tmp_path / "whole", setup, quiet)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3 and "measuring" not in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        few_shot.run_few_shot(tmp_path / "halves", setup, stop)
    assert results(tmp_path / "halves").keys() == {"reals.json"}
    few_shot.run_few_shot(tmp_path / "halves", setup, quiet)
    name = f"{setup.cases[0].name}.json"
    whole, halves = (json.loads((tmp_path / part / name).read_text()) for part in ("whole", "halves"))
    assert whole["result"].pop("n_steps_here") == 4 and halves["result"].pop("n_steps_here") == 2
    for saved in (whole, halves):
        del saved["result"]["cpu_seconds_here"]
    assert whole == halves


def test_a_case_is_computed_again_when_its_inputs_change(tmp_path):
    setup = replace(EMOJI, cases=EMOJI.cases[:1])
    few_shot.run_few_shot(tmp_path, setup, quiet)
    before = results(tmp_path)
    few_shot.run_few_shot(tmp_path, replace(setup, learning_rate=1e-3), quiet)
    after = results(tmp_path)
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in before)


def test_published_setups_are_the_promised_ones(monkeypatch):
    monkeypatch.undo()
    assert [(case.augment != "", case.seed) for case in few_shot.EMOJI.cases] == [
        (True, 0), (False, 0), (True, 1), (False, 1), (True, 2), (False, 2),
    ]  # fmt: skip
    cases = {(case.fraction, case.loss, case.augment != "") for case in few_shot.FASHION.cases}
    assert len(few_shot.FASHION.cases) == 8 and cases == {
        *((fraction, "hinge", augmented) for fraction in (0.1, 0.2, 1.0) for augmented in (True, False)),
        (0.1, "nonsaturating", True), (0.1, "nonsaturating", False),
    }  # fmt: skip
    shape = elastic.Setup().shape
    assert len(elastic.Setup().separate) == 3 and elastic.Setup().resolutions == (32, 16, 8)
    assert [shape.channels(level) for level in shape.levels] == [64, 64, 64, 32]


def test_gains_are_paired_by_seed():
    def row(seed: int, augmented: bool, kid: float) -> dict:
        return {"loss": "hinge", "fraction": 0.1, "seed": seed, "augmented": augmented, "kid": kid}

    rows = [row(0, True, 5.0), row(0, False, 8.0), row(1, True, 6.0), row(1, False, 7.0), row(2, True, 1.0)]
    (gain,) = report.gains(rows)
    assert gain["kid_gain"] == 2.0 and gain["n_seeds"] == 2
    assert gain["half_95"] == pytest.approx(12.706 * 1.0)  # t(1) times sqrt(2) / sqrt(2)
    assert report.gains(rows[:2])[0]["half_95"] is None and report.gains(rows[4:]) == []


def test_bad_input_is_one_line(tmp_path):
    for arguments, message in (
        (
            ["--only", "faces"],
            "--only must be one of emoji, emoji-no-r1, emoji-animals, fashion, anycost, not 'faces'",
        ),
        (["--only", "emoji", "--device", "tpu"], "device must be cpu or cuda, not 'tpu'"),
    ):
        result = run(*arguments, "--out", tmp_path)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "reals.json").write_text("{")
    result = run("--only", "emoji", "--out", tmp_path)
    assert result.exit_code == 2 and "reals.json is not a result file" in result.stderr
