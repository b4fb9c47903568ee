# SPDX-License-Identifier: MIT
"""``quartet training``: rows by method and resolution, operations by layer, files."""

import csv
import json

import pytest
from typer.testing import CliRunner

from algo.tinytl.architecture import METHODS, n_trained, passes
from benchmarks.cli import app
from benchmarks.tinytl.steps import backbone_named, core_of_size, layer_rows, step_rows


def quartet(*arguments):
    return CliRunner().invoke(app, ["training", *map(str, arguments)])


def test_rows_and_files(tmp_path):
    result = quartet("--method", "bias", "--method", "full", "--resolution", 64, "--json", "--out", tmp_path)
    rows = json.loads(result.output)
    assert [row["method"] for row in rows] == ["bias", "full"]
    assert rows[0]["cycles"] < rows[1]["cycles"] and rows[0]["energy_mj"] < rows[1]["energy_mj"]
    assert json.loads((tmp_path / "steps.json").read_text())["rows"] == rows
    operations = list(csv.DictReader((tmp_path / "layers.csv").read_text().splitlines()))
    backbone = backbone_named("proxylessnas-mobile")
    layers = {one.layer.name for one in passes(backbone, METHODS["full"], 64) if one.kind == "wgrad"}
    assert {row["layer"] for row in operations if row["pass"] == "wgrad"} == layers - {
        name
        for name in layers
        if ".gn" in name  # sums that other operations make
    }
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_shares_are_of_the_multipliers_there_are():
    backbone, core = backbone_named("efficientnet-lite0"), core_of_size("8x16")
    (row,) = step_rows(backbone, ["lite+bias"], [64], 2, core)
    assert row["array_busy"] == row["array_macs"] / row["array_cycles"] / 128
    assert row["all_busy"] == (row["array_macs"] + row["depthwise_macs"]) / row["cycles"] / (128 + 48)
    rows = layer_rows(backbone, "lite+bias", 64, core)
    assert {one["unit"] for one in rows} == {"array", "depthwise", "pass", "transpose", "loss"}
    assert all(0 <= one["busy"] <= 1 for one in rows)
    of_picture = sum(one["cycles"] for one in rows)
    updates = 2 * 1.25 * n_trained(backbone, METHODS["lite+bias"])
    assert 2 * of_picture + updates < row["cycles"] < 2.2 * of_picture + updates  # and the norms' kernels


def test_table(tmp_path):
    result = quartet("--method", "last", "--resolution", 64, "--out", tmp_path)
    assert result.exit_code == 0 and "Training steps, estimated" in result.output
    assert "keep at least 0." in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--array", "16"], "--array must be rows x columns such as 16x32, not '16'"),
        (["--array", "6x32"], "rows must be in 8..64, not 6"),
        (
            ["--backbone", "vgg"],
            "--backbone must be one of proxylessnas-mobile, efficientnet-lite0, not 'vgg'",
        ),
        (["--method", "most"], "method must be one of last, bias"),
        (["--resolution", 48], "resolution must be at least 64 pixels, not 48"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    result = quartet("--out", tmp_path, *arguments)
    assert result.exit_code == 2 and message in result.output
    assert not list(tmp_path.iterdir())
