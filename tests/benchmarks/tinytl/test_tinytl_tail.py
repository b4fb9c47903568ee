# SPDX-License-Identifier: MIT
"""``quartet train tail``."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from algo.gan.data import ImageSet
from algo.tinytl.architecture import EFFICIENTNET_LITE0, Block
from algo.tinytl.data import Labelled
from algo.tinytl.network import Network, modules_by_layer
from benchmarks.cli import app
from benchmarks.tinytl import block_rtl, tail

SMALL = replace(
    EFFICIENTNET_LITE0,
    name="small",
    c_mix=32,
    blocks=(Block(16, 8, 1, 3, 2), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1), Block(16, 24, 2, 3, 2)),
)


def small(*, n_classes, norm="affine", lite=False, seed=0) -> Network:
    """In place of the packaged network."""
    network = Network(replace(SMALL, n_classes=n_classes, norm=norm, lite=lite), seed)
    with torch.no_grad():
        for name, module in modules_by_layer(network).items():
            if name.endswith(".gn"):
                module.bias.normal_(0, 0.3)
    return network


def pictures(n: int, size: int) -> ImageSet:
    """A class is the colour that is bright."""
    labels = torch.arange(n) % 3
    images = torch.randint(0, 120, (n, 3, size, size), dtype=torch.uint8)
    images[torch.arange(n), labels] += 120
    return ImageSet(images, labels, "colours")


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(tail, "pretrained", small)

    def colours(data: str, size: int) -> Labelled:
        return Labelled(pictures(24, size), pictures(12, size), tuple("abc"))

    monkeypatch.setattr(tail, "load_labelled", colours)


def train(*arguments):
    return CliRunner().invoke(app, ["train", "tail", *map(str, arguments)])


def run(tmp_path, *arguments):
    options = "--pictures", 24, "--test-pictures", 12, "--out", tmp_path, "--json"
    done = train(*arguments, *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_run_writes_the_losses_and_their_curve(tmp_path):
    options = "--method", "bias", "--blocks", 2, "--classifier-rate", 1e-2
    result = run(tmp_path, *options, "--steps", 72, "--resolution", 32)
    assert result["n_trained"] == 3 * 32 + 3 + 2 * 48 + 16 + 2 * 32 + 24 + 32
    assert result["last_loss"] < 0.8 * result["first_loss"]
    for name in ("first_loss", "last_loss"):
        assert result[name] == pytest.approx(result[f"{name}_float"], rel=0.03)
    assert result["accuracy_before"] == result["accuracy_before_float"] == pytest.approx(1 / 3)
    assert result["accuracy"] == result["accuracy_float"] > 0.6
    errors = {name: value for name, value in result.items() if name.startswith("gradient_error_")}
    assert len(errors) == 2 + 1 + 2 * 3 and 0 < max(errors.values()) < 0.5
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["picture"]) for row in rows) == sorted(3 * [*range(24)])
    last = [float(row["integer_loss"]) for row in rows[-18:]]
    assert sum(last) / 18 == pytest.approx(result["last_loss"], rel=1e-4)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "tail.json").read_text()) == result


def test_the_classifier_alone(tmp_path):
    """With group norms; nothing goes back beyond it."""
    result = run(tmp_path, "--method", "last", "--norm", "group", "--steps", 2, "--resolution", 32)
    assert result["n_trained"] == 3 * 32 + 3
    # units, pooling and scores, loss, gradient of the weights, updates
    assert result["n_operations"] == 4 * 3 + 2 + 1 + 3 + 2


def test_a_lite_module_trains_too_and_steps_run_in_verilog(tmp_path):
    options = "--classifier-rate", 1e-2, "--weight-rate", 1, "--resolution", 64, "--preset", "tiny"
    result = run(tmp_path, "--steps", 4, "--rtl-steps", 1, *options)
    n_lite = 16 * 8 * 25 + 2 * 16 + 16 * 24 + 24
    assert result["n_trained"] == 3 * 32 + 3 + 2 * 32 + 24 + 32 + n_lite
    assert result["rtl_mismatches"] == [] and result["rtl_writes"] > 2000
    assert len(result["rtl_cycles"]) == 1
    errors = {name: value for name, value in result.items() if ".lite." in name}
    assert len(errors) == 5 and max(errors.values()) < 0.9  # 1 where the integers' is 0


def test_verilog_that_differs_fails_the_run(tmp_path, monkeypatch):
    """The results are there."""
    wrong = block_rtl.Measured(cycles=(1,), n_writes=1, mismatches=("step 0: wrong word",))
    monkeypatch.setattr(block_rtl, "measured", lambda *arguments: wrong)
    options = "--method", "last", "--resolution", 32, "--steps", 2, "--rtl-steps", 3, "--preset", "tiny"
    done = train(*options, "--pictures", 24, "--test-pictures", 12, "--out", tmp_path)
    assert done.exit_code == 1
    assert json.loads((tmp_path / "tail.json").read_text())["rtl_mismatches"] == ["step 0: wrong word"]


def test_a_training_is_kept_though_verilog_breaks(tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no simulator")

    monkeypatch.setattr(block_rtl, "measured", broken)
    options = "--method", "last", "--resolution", 32, "--steps", 2, "--rtl-steps", 1, "--preset", "tiny"
    assert train(*options, "--pictures", 24, "--test-pictures", 12, "--out", tmp_path).exit_code == 1
    assert json.loads((tmp_path / "tail.json").read_text())["n_steps"] == 2


def test_a_folder_that_cannot_be_is_found_out_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tail, "descend", None)
    options = "--method", "last", "--resolution", 32, "--pictures", 24, "--test-pictures", 12
    done = train(*options, "--out", tmp_path / "file" / "x")
    assert done.exit_code == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "full"], "method must be one of last, bias, lite+bias, not 'full'"),
        (["--blocks", 5], "blocks must be in 1..4, not 5"),
        (["--blocks", 0], "blocks must be in 1..4, not 0"),
        (["--resolution", 32], "resolution must be at least 64 pixels, not 32"),
        (["--resolution", 256], "resolution must be at most 224 pixels, not 256"),
        (["--classifier-rate", 0], "classifier_rate must be above 0, not 0.0"),
        (["--classifier-rate", 1e9], "rate must move classifier.bias by 2^-47..65535 of its units, not 1"),
        (["--label-smoothing", 1], "label_smoothing must be in 0..0.99, not 1.0"),
        (["--preset", "huge"], "preset must be one of paper, paper_eighth, plus, edge, tiny, not 'huge'"),
        (["--pictures", 25], "n must be in 1..24 pictures, not 25"),
        (["--norm", "batch"], "norm must be group or affine, not 'batch'"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = train("--pictures", 24, "--test-pictures", 12, *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"quartet: {message}") and done.stderr.count("\n") == 1
