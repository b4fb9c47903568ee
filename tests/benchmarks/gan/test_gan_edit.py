# SPDX-License-Identifier: MIT
"""``quartet edit`` and ``quartet train encoder`` from the command line, on a toy generator."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from algo.anycost.architecture import compute_macs
from algo.anycost.editing import moved
from algo.anycost.projection import ProjectionConfig
from algo.gan.data import as_floats, load_images
from benchmarks.cli import app
from benchmarks.gan import edit
from benchmarks.gan.training import projection_term, trained_elastic


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_edit(anycost_run, pictures, tmp_path):
    arguments = ["edit", anycost_run, "--image", pictures / "3.png", "--direction", 2, "--strength", -3,
                 "--strength", 1.5, "--preview", 0.25, "--preview-resolution", 8, "--steps", 4,
                 "--out", tmp_path / "out", "--json"]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    editor = edit.load_editor(anycost_run)
    shape, sub = editor.generator.config, editor.sub(0.25, 8)
    assert found["preview"]["useful_macs"] == compute_macs(shape, sub)
    assert found["full"]["useful_macs"] == compute_macs(shape, shape.full)
    assert found["preview"]["seconds"] > 0 and found["note"] is None
    assert found["projection"] | {"seconds": 0, "mse": 0} == {
        "start": "mean w", "n_steps": 4, "seconds": 0, "mse": 0,
    }  # fmt: skip

    # The distances are those of what the whole generator makes of the saved styles.
    styles = load_file(tmp_path / "out" / "styles.safetensors")["styles"]
    for row, strength in zip(found["distances"], (-3, 1.5), strict=True):
        edited = moved(styles, editor.directions[1:2], torch.tensor([strength]))
        with torch.no_grad():
            full, small = editor.generator(edited), editor.generator(edited, sub)
        large = torch.nn.functional.interpolate(small.clamp(-1, 1), (16, 16), mode="bilinear", antialias=True)
        assert row["strength"] == strength
        assert row["mse"] == pytest.approx(float((large - full.clamp(-1, 1)).square().mean()), rel=1e-3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "edit.json", "edit.png", "styles.safetensors",
    }  # fmt: skip
    with Image.open(found["picture"]) as picture:
        assert picture.width > 500 and picture.height > 500
    assert json.loads((tmp_path / "out" / "edit.json").read_text()) == found


def test_edit_says_what_it_took(anycost_run, pictures, tmp_path):
    np.save(tmp_path / "none.npy", np.zeros(8))
    result = run(
        "edit", anycost_run / "resolutions", "--image", pictures / "0.png", "--direction",
        tmp_path / "none.npy", "--steps", 2, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("projected in 2 steps") and "from the mean w" in lines[0]
    assert lines[1].startswith("preview") and "MMACs" in lines[1] and lines[2].startswith("full")
    distances = [line.split()[-1] for line in lines if line.startswith("strength")]
    assert len(distances) == 5 and len(set(distances)) == 1  # a direction of zeros moves nothing
    assert any("was not trained to make images with fewer channels" in line for line in lines)
    assert lines[-1] == str(tmp_path / "out" / "edit.png")


def test_encoder_starts_the_projection(anycost_run, pictures, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(anycost_run, copied)
    arguments = ["train", "encoder", copied, "--data", pictures, "--steps", 2, "--batch-size", 4, "--json"]
    trained = run(*arguments)
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["n_steps"] == 2
    assert json.loads(run(*arguments).stdout) == json.loads(trained.stdout)  # read, not trained again
    result = run("edit", copied, "--image", pictures / "0.png", "--steps", 1, "--out", tmp_path, "--json")
    assert json.loads(result.stdout)["projection"]["start"] == "encoder"
    editor = edit.load_editor(copied)
    target = as_floats(load_images(str(pictures), 16).images[:1])
    with torch.no_grad():
        encoded = editor.encoder(target)
    step = (load_file(tmp_path / "styles.safetensors")["styles"] - encoded).abs().max()
    assert 0 < step < 1.01 * ProjectionConfig().learning_rate  # one step of Adam away

    other = copied / "full" / "encoder"
    shutil.copytree(copied / "channels" / "encoder", other)
    result = run("edit", copied / "full", "--image", pictures / "0.png", "--out", tmp_path)
    assert result.exit_code == 2 and "holds an encoder of channels" in result.stderr


def test_projection_counts_trained_sub_generators_only(anycost_run):
    terms = {
        stage: projection_term(trained_elastic(anycost_run / stage))
        for stage in ("full", "resolutions", "channels")
    }
    assert terms["full"].weight == 0
    assert terms["resolutions"].ratios == (1.0,) and terms["resolutions"].resolutions == (16, 8)
    assert terms["channels"].ratios == (0.25, 0.5, 0.75, 1.0) and terms["channels"].weight == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "nothing.png"], "image nothing.png does not exist"),
        (["--direction", "9"], "direction must be in 1..8, or a file, not 9"),
        (["--direction", "0"], "direction must be in 1..8, or a file, not 0"),
        (["--direction", "smile"], "direction must be a number or a .npy or .safetensors file, not smile"),
        (["--preview", "0"], "ratio must be above 0 and at most 1, not 0"),
        (["--preview-resolution", "12"], "resolution must be one of (4, 8, 16), not 12"),
        (["--steps", "0"], "n_steps must be at least 1, not 0"),
        (["--strength", "nan"], "strength must be finite, not nan"),
    ],
)
def test_bad_input_is_one_line(arguments, message, anycost_run, pictures, tmp_path):
    image = [] if "--image" in arguments else ["--image", pictures / "0.png"]
    result = run("edit", anycost_run, "--out", tmp_path / "out", *arguments, *image)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_bad_files_are_one_line(anycost_run, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes((pictures / "0.png").read_bytes()[:60])
    for image, message in (("text.png", "is not a picture"), ("half.png", "is a damaged picture")):
        result = run("edit", anycost_run, "--image", tmp_path / image)
        assert result.exit_code == 2 and message in result.stderr
    result = run("edit", tmp_path, "--image", pictures / "0.png")
    assert result.exit_code == 2 and "holds no finished training run" in result.stderr
    result = run("edit", anycost_run)
    assert result.exit_code == 2 and "edit needs a picture, --image FILE, or --page" in result.stderr
