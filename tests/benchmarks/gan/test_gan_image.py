# SPDX-License-Identifier: MIT
"""``quartet image`` from the command line, on a toy generator."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator
from algo.anycost.quantise import QuantConfig, quantise
from algo.gan.training import load_generator
from benchmarks.cli import app
from benchmarks.gan import image
from benchmarks.gan.training import run_folder
from hw.config import chip_of


def run(*arguments):
    return CliRunner().invoke(app, ["image", *(str(argument) for argument in arguments)])


def test_image(random_run, tmp_path):
    result = run(random_run, "--ratio", 0.5, "--resolution", 8, "--count", 2, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert json.loads((tmp_path / "image.json").read_text()) == found
    assert found["resolution"] == 8 and len(found["widths"]) == 4

    # Everything once more, from the parts.
    generator = load_generator(run_folder(random_run))
    sub = generator.config.uniform(0.5, 8)
    quantised = quantise(generator, QuantConfig())
    styles = image.styles_of(generator, 1, 2)
    exact = generator(styles, sub).double()
    images = torch.stack([image.integers(quantised, one[None], sub).image for one in styles])
    assert found["psnr_db"] == pytest.approx(image.psnr_db(images, exact)) and found["psnr_db"] > 30
    assert found["max_error"]["green"] == pytest.approx(float((images - exact)[:, 1].abs().max()))
    assert found["estimated"]["cycles"] == pytest.approx(sum(row["cycles"] for row in found["layers"]), abs=9)
    assert found["signal_to_error_db"].keys() == {"conv0", "conv1", "conv2", "image0", "image1"}
    assert all(value > 20 for value in found["signal_to_error_db"].values())
    for name, value in (("float", exact[0]), ("integer", images[0])):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (8, 8)
            red, green, blue = ((value[:, 3, 2].clamp(-1, 1) + 1) * 127.5).round().int().tolist()
            assert picture.getpixel((2, 3)) == (red, green, blue)
    with Image.open(found["picture"]) as picture:
        assert picture.width > 500


def test_more_bits_are_nearer(random_run, tmp_path):
    found = {}
    for wide in ("none", "all"):
        result = run(
            random_run, "--wide", wide, "--count", 1, "--out", tmp_path, "--json", "--preset", "edge"
        )
        assert result.exit_code == 0, result.output
        found[wide] = json.loads(result.stdout)
    assert found["all"]["psnr_db"] > found["none"]["psnr_db"] + 3
    assert found["all"]["estimated"]["macs"] > 1.9 * found["none"]["estimated"]["macs"]
    assert found["all"]["preset"] == "edge"


def test_the_seed_is_that_of_the_image(random_run):
    generator = load_generator(run_folder(random_run))
    assert torch.equal(image.styles_of(generator, 1, 3)[1:], image.styles_of(generator, 2, 2))


def test_image_says_what_it_made(random_run, tmp_path):
    out = run(random_run, "--count", 1, "--out", tmp_path).stdout
    assert "16 px, widths " in out and "maps of 8 bits\n" in out
    assert " dB over 1 image(s)" in out and "(estimated)" in out


def test_every_sub_generator(random_run):
    result = run(random_run, "--every", "--count", 1, "--json")
    rows = json.loads(result.stdout)
    assert [row["resolution"] for row in rows] == sorted((row["resolution"] for row in rows), reverse=True)
    assert len({tuple(row["widths"]) for row in rows}) == len(rows) > 4
    assert all(row["all_db"] > row["none_db"] - 1 > 25 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", 1.5], "ratio must be above 0 and at most 1, not 1.5"),
        (["--resolution", 64], "sub-generator resolution must be one of (4, 8, 16), not 64"),
        (["--wide", "some"], "wide must be one of none, colours, all, not 'some'"),
        (["--count", 0], "count must be at least 1, not 0"),
        (["--preset", "huge"], "preset must be one of"),
        (["--set", "kv_sram_bytes=1024"], "must hold the input of one row of output"),
        (
            ["--set", "n_multipliers=4096", "--set", "kv_sram_bytes=4096"],
            "cannot run conv3.blur: a row must be at most 10 beats, not 17",
        ),
    ],
)
def test_bad_input(random_run, tmp_path, arguments, message):
    result = run(random_run, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_every_has_no_use_for_other_options(random_run):
    result = run(random_run, "--every", "--rtl", "--wide", "all")
    assert result.exit_code == 2 and "--every has no use for --rtl, --wide" in result.stderr


def test_no_run_there(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 2 and "holds no finished training run" in result.stderr


def test_the_image_in_verilog(random_run, tmp_path):
    """Bit for bit; the estimate is near."""
    result = run(random_run, "--ratio", 0.5, "--count", 1, "--exact", "--rtl", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (measured,) = found["rtl"]
    assert found["exact_cycles"] == [measured["cycles"]]
    assert measured["mismatches"] == [] and measured["n_writes"] > 1000
    assert measured["cycles"] == pytest.approx(measured["estimated_cycles"], rel=0.05)


def test_a_mismatch_is_an_error(random_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        image,
        "measured",
        lambda made, chip: image.Measured(cycles=1, estimated_cycles=3, n_writes=2, mismatches=("x",)),
    )
    result = run(random_run, "--count", 1, "--rtl", "--out", tmp_path)
    assert result.exit_code == 1 and "1 cycles (measured; estimated 3), ('x',)" in result.stdout


@pytest.mark.full
def test_config_f_in_verilog():
    """64 pixels of the published widths, at ratio 0.25 up to 512 channels, on 32 x 32 multipliers."""
    torch.manual_seed(0)
    shape = GeneratorConfig(resolution=64)
    generator = Generator(shape).eval().requires_grad_(False)
    for layer in generator.convs:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    sub = shape.uniform(0.25)
    quantised = quantise(generator, QuantConfig(n_images=4), [sub])
    made = image.integers(quantised, image.styles_of(generator, 1, 1), sub)
    measured = image.measured(made, chip_of("paper", ["n_multipliers=1024"]))
    assert measured.mismatches == () and measured.n_writes > 100_000
    assert measured.cycles == pytest.approx(measured.estimated_cycles, rel=0.03)
