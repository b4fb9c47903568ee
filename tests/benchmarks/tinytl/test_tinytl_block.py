# SPDX-License-Identifier: MIT
"""``quartet train block``."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from algo.gan.data import ImageSet
from algo.tinytl.architecture import EFFICIENTNET_LITE0, Block
from algo.tinytl.network import Network, modules_by_layer
from benchmarks.cli import app
from benchmarks.tinytl import block

SMALL = replace(
    EFFICIENTNET_LITE0,
    name="small",
    n_classes=2,
    c_mix=32,
    blocks=(Block(16, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1)),
)


def small(*, norm="affine", lite=False, seed=0) -> Network:
    """In place of the packaged network."""
    network = Network(replace(SMALL, norm=norm, lite=lite), seed)
    with torch.no_grad():
        for name, module in modules_by_layer(network).items():
            if name.endswith(".gn"):
                module.bias.normal_(0, 0.3)
    return network


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(12, 3, 8, 8) * 255, (32, 32)).to(torch.uint8)
    monkeypatch.setattr(block, "pretrained", small)
    monkeypatch.setattr(block, "load_images", lambda data, resolution: ImageSet(pictures, None, data))


def train(*arguments):
    return CliRunner().invoke(app, ["train", "block", *map(str, arguments)])


@pytest.mark.parametrize("norm", ["affine", "group"])
def test_a_run_writes_the_losses_and_their_curve(tmp_path, norm):
    options = "--norm", norm, "--steps", 12, "--pictures", 3, "--resolution", 32, "--rate", 0.1
    done = train(2, *options, "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["n_trained"] == 48 + 48 + 16
    assert result["last_loss"] < 0.97 * result["first_loss"]
    assert result["last_loss"] == pytest.approx(result["last_loss_float"], rel=0.1)
    assert all(result[f"gradient_error_{unit}"] < 0.2 for unit in ("expand", "dw", "project"))
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["picture"]) for row in rows] == 4 * [0, 1, 2]
    last = [float(row["integer_loss"]) for row in rows[-3:]]
    assert sum(last) / 3 == pytest.approx(result["last_loss"], rel=1e-4)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "block.json").read_text()) == result


def test_a_lite_module_trains_too_and_steps_run_in_verilog(tmp_path):
    """Its gradients at a second scale of 0 are 0, but for that scale's."""
    options = "--method", "lite+bias", "--steps", 6, "--pictures", 2, "--resolution", 32, "--rtl-steps", 2
    done = train(2, *options, "--rate", 0.1, "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["n_trained"] == 48 + 48 + 16 + 16 * 8 * 25 + 2 * 16 + 16 * 16 + 16
    assert result["gradient_error_lite.conv1.weight"] == result["gradient_error_lite.norm1.bias"] == 0
    assert 0 < result["gradient_error_lite.norm2.weight"] < 0.2
    assert result["last_loss"] == pytest.approx(result["last_loss_float"], rel=0.1)
    assert result["rtl_mismatches"] == [] and result["rtl_writes"] > 2000
    first, second = result["rtl_cycles"]
    assert first == second > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "lite"], "method must be one of bias, lite+bias, not 'lite'"),
        ([0, "--method", "lite+bias"], "block must have a lite module, which block 0 has not"),
        (["--weight-rate", 0], "weight_rate must be above 0, not 0.0"),
        (["--preset", "huge"], "preset must be one of paper, paper_eighth, plus, edge, tiny, not 'huge'"),
        ([3], "block must be in 0..2, not 3"),
        (["--rate", 0], "rate must be above 0, not 0.0"),
        (["--momentum", 1], "momentum must be in 0..1 without 1, not 1.0"),
        (["--norm", "batch"], "norm must be group or affine, not 'batch'"),
        (["--pictures", 13], "n must be in 1..12 pictures, not 13"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = train(*arguments)
    assert done.exit_code == 2
    assert done.stderr == f"quartet: {message}\n"
