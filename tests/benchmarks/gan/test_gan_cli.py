# SPDX-License-Identifier: MIT
"""``quartet train diffaugment`` and ``quartet train anycost`` from the command line."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.gan import judge, training
from tests.benchmarks.gan.conftest import Pixels


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """No packaged weights, few pictures."""
    for module in (training, judge):
        monkeypatch.setattr(module, "Features", Pixels)
    monkeypatch.setattr(training, "N_FAKES", 20)
    monkeypatch.setattr(training, "STYLE_SIZE", 8)


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 0, 255 - 40 * i)).save(pictures / f"{i}.png")
    return pictures


def run(*arguments):
    return CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])


def test_train_diffaugment(folder, tmp_path):
    arguments = ["diffaugment", "--data", folder, "--resolution", 16, "--batch-size", 4, "--steps", 3,
                 "--checkpoint-steps", 2, "--pictures", 5, "--out", tmp_path / "out", "--json"]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["n_steps"] == 3 and found["n_real"] == 5 and found["n_fake"] == 20
    assert found["frechet_pca_64"] is None and 0 <= found["authentic_share"] <= 1
    with Image.open(found["samples"]) as picture:
        assert picture.size == (2 * (8 * 18 + 2),) * 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "nearest.png", "samples-000002.png", "samples-000003.png", "train.json", "weights.safetensors",
    }  # fmt: skip
    assert json.loads(run(*arguments).stdout) == found  # read, not trained again


def test_train_anycost(folder, tmp_path):
    arguments = ["anycost", "--data", folder, "--resolution", 16, "--n-resolutions", 2, "--batch-size", 4,
                 "--steps", 5, "--checkpoint-steps", 2, "--out", tmp_path / "out", "--json"]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = found["sub_generators"]
    assert [(row["resolution"], row["ratio"]) for row in rows] == [
        (resolution, ratio) for resolution in (16, 8) for ratio in (1.0, 0.75, 0.5, 0.25)
    ]
    assert rows[0]["mse_to_full"] == 0 and all(row["mse_to_full"] > 0 for row in rows[1:4])
    assert rows[0]["macs"] > rows[3]["macs"] > rows[7]["macs"] > 0
    with Image.open(found["preview"]) as picture:
        assert picture.size == (6 * 18 + 2, 8 * 18 + 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "full", "resolutions", "channels", "preview.png",
    }  # fmt: skip
    runs = [
        json.loads((tmp_path / "out" / stage / "train.json").read_text())["run"] for stage in training.STAGES
    ]
    assert [r["n_steps"] for r in runs] == [2, 1, 2] and [r["start"].split()[0] for r in runs] == [
        "random",
        "full",
        "resolutions",
    ]
    assert [r["elastic"] and r["elastic"]["channels"] for r in runs] == [None, "full", "uniform"]
    assert json.loads(run(*arguments).stdout) == found


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["diffaugment", "--resolution", "48"], "resolution must be 16, 32, 64 or 128, not 48"),
        (
            ["diffaugment", "--augment", "blur"],
            "policy must list some of color, translation, cutout, not 'blur'",
        ),
        (["diffaugment", "--loss", "wgan"], "loss must be one of nonsaturating, hinge, not 'wgan'"),
        (["diffaugment", "--pictures", "7"], "n must be in 1..6 pictures, not 7"),
        (["diffaugment", "--conditional"], "conditional needs data with classes: pictures has none"),
        (["diffaugment", "--data", "cifar"], "data must be one of emoji-smileys"),
        (["anycost", "--n-resolutions", "4"], "resolutions must be among (8, 16, 32), not 4"),
        (["anycost", "--channels", "half"], "channels must be full, uniform or flexible, not 'half'"),
        (["anycost", "--device", "tpu"], "device must be cpu or cuda, not 'tpu'"),
    ],
)
def test_bad_input_is_one_line(arguments, message, folder):
    data = [] if "--data" in arguments else ["--data", folder]
    result = run(*arguments, *data)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_stage_steps():
    assert training.stage_steps(100) == (40, 20, 40) and training.stage_steps(3) == (1, 1, 1)
    with pytest.raises(ValueError, match="n_steps must be at least 3, one a stage, not 2"):
        training.stage_steps(2)
