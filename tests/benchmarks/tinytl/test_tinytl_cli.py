# SPDX-License-Identifier: MIT
"""``quartet train tinytl``, ``quartet memory``, ``quartet run efficientnet-lite0``."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from algo.gan.data import ImageSet
from algo.gan.loop import LoopConfig, run
from algo.tinytl import weights
from algo.tinytl.architecture import EFFICIENTNET_LITE0, METHODS, Block
from algo.tinytl.data import load_labelled
from algo.tinytl.network import Network, modules_by_layer
from algo.tinytl.transfer import Transfer, TransferConfig, augmented, correct
from benchmarks.cli import app
from benchmarks.tinytl import classify, training
from benchmarks.tinytl.classify import read_picture
from benchmarks.tinytl.memory import measured_steps, memory_rows

SMALL = replace(
    EFFICIENTNET_LITE0,
    name="small",
    n_classes=2,
    c_mix=32,
    blocks=(Block(16, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1), Block(16, 24, 3, 3, 2)),
)


def small(*, n_classes=1000, lite=False, norm="affine", seed=0) -> Network:
    """In place of the packaged network."""
    return Network(replace(SMALL, n_classes=n_classes, lite=lite, norm=norm), seed)


def quartet(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    monkeypatch.setattr(training, "pretrained", small)
    monkeypatch.setattr(
        classify, "load_classifier", lambda: (small().eval(), [f"class {i}" for i in range(1000)])
    )


@pytest.fixture
def folder(tmp_path):
    """Two classes, red and blue pictures."""
    for name, colour in (("blue", (20, 40, 230)), ("red", (220, 40, 30))):
        pictures = tmp_path / "pictures" / name
        pictures.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (64, 64), tuple(c + i for c in colour)).save(pictures / f"{i}.png")
    return tmp_path / "pictures"


def squares(n: int = 12) -> ImageSet:
    """Red and blue squares with noise."""
    labels = torch.arange(n) % 2
    images = torch.where(labels[:, None] == 0, torch.tensor([200, 40, 30]), torch.tensor([30, 40, 200]))
    noise = torch.randint(-20, 21, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return ImageSet((images[:, :, None, None] + noise).to(torch.uint8), labels, "squares")


def transfer(name="lite+bias", n_steps=6, norm="group", **fields) -> Transfer:
    config = TransferConfig(**({"batch_size": 4, "learning_rate": 3e-3} | fields))
    return Transfer(small(n_classes=2, lite=True, norm=norm), squares(), METHODS[name], config, n_steps)


def quiet(step, n_steps, losses):
    """No progress."""


@pytest.mark.parametrize("gradients", ["autograd", "recompute"])
def test_an_interrupted_run_resumes_to_the_same_bits(gradients, tmp_path):
    class Stop(Exception):
        pass

    def stop(step, n_steps, losses):
        if step == 5:
            raise Stop

    loop = LoopConfig(n_steps=6, seed=1, checkpoint_steps=2)
    whole = transfer(gradients=gradients)
    losses = run(whole, loop, tmp_path / "whole", quiet)
    with pytest.raises(Stop):
        run(transfer(gradients=gradients), loop, tmp_path / "halves", stop)
    halves = transfer(gradients=gradients)
    assert run(halves, loop, tmp_path / "halves", quiet) == losses
    for name, value in whole.state.weights().items():
        assert torch.equal(value, halves.state.weights()[name]), name


PLAIN = {"min_crop": 1.0, "mirror": False, "label_smoothing": 0.0}


def test_all_ways_to_gradients_train_alike(tmp_path):
    """Recomputation and eight bits follow autograd over eight steps, eight bits less closely."""
    found = {}
    for gradients in ("autograd", "recompute", "eight_bits"):
        one = transfer(gradients=gradients, n_steps=8, **PLAIN)
        losses = run(one, LoopConfig(n_steps=8), tmp_path / gradients, quiet)
        found[gradients] = torch.tensor([entry["loss"] for entry in losses])
    assert found["autograd"][-1] < found["autograd"][0] - 0.03
    assert (found["recompute"] - found["autograd"]).abs().max() < 1e-3
    assert (found["eight_bits"] - found["autograd"]).abs().max() < 0.01


def test_frozen_parameters_stay(tmp_path):
    one = transfer("bias", n_steps=3)
    before = {name: value.clone() for name, value in one.state.weights().items()}
    run(one, LoopConfig(n_steps=3), tmp_path, quiet)
    moved = {n for n, v in one.state.weights().items() if not torch.equal(v, before[n])}
    trained = {f"network.{n}" for n, parameter in one.network.named_parameters() if parameter.requires_grad}
    assert moved == trained - {n for n in trained if ".lite.norm1" in n}  # behind scales of 0


def test_it_learns(tmp_path):
    one = transfer("last", n_steps=12, learning_rate=0.03, **PLAIN)
    run(one, LoopConfig(n_steps=12), tmp_path, quiet)
    assert correct(one.network.eval(), squares()).all()


def test_augmentation_without_crops_or_mirror_is_nothing():
    images = torch.rand(3, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    plain = TransferConfig(min_crop=1.0, mirror=False)
    assert torch.equal(augmented(images, plain, generator), images)
    mirrored = augmented(images, TransferConfig(min_crop=1.0), generator)
    for one, picture in zip(mirrored, images, strict=True):
        assert any(torch.allclose(one, x, atol=1e-5) for x in (picture, picture.flip(2)))
    cropped = augmented(images, TransferConfig(), generator)
    assert cropped.shape == images.shape and not torch.allclose(cropped, images, atol=1e-2)


def test_packaged_weights_land_where_they_belong():
    network = small(n_classes=2)
    packed = {}
    for ours, (conv, norm) in weights._packaged_names(network).items():
        weight = modules_by_layer(network)[ours].weight
        packed[f"{conv}.weight"] = torch.randn_like(weight)
        for name in ("weight", "bias", "running_mean", "running_var"):
            packed[f"{norm}.{name}"] = torch.rand(len(weight)) + 0.5
    packed |= {"_fc.weight": torch.randn(2, 32), "_fc.bias": torch.randn(2)}
    weights.load_packaged(network, packed)
    x = torch.randn(2, 3, 64, 64)
    y = torch.nn.functional.pad(x, (0, 1, 0, 1))
    y = torch.nn.functional.conv2d(y, packed["_conv_stem.weight"], stride=2)
    statistics = [packed[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    y = torch.nn.functional.batch_norm(y, *statistics, eps=1e-3).clamp(0, 6)
    assert torch.allclose(network.stem(x), y, atol=1e-5)
    assert torch.equal(network.classifier.bias, packed["_fc.bias"])


def test_train_tinytl(folder, tmp_path):
    arguments = ["train", "tinytl", "--data", folder, "--resolution", 64, "--batch-size", 4, "--steps", 3,
                 "--min-crop", 1, "--out", tmp_path / "out", "--json"]  # fmt: skip
    result = quartet(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["n_steps"] == 3 and found["method"] == "lite+bias" and 0 <= found["accuracy"] <= 1
    assert found["memory_full_count_mb"] > found["memory_published_mb"] > 0
    assert json.loads(quartet(*arguments).stdout) == found
    other = quartet(*arguments, "--method", "bias")
    assert other.exit_code == 2 and "holds another run" in other.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "half"], "method must be one of last, bias"),
        (["--gradients", "none"], "gradients must be one of autograd, recompute, eight_bits, not 'none'"),
        (["--gradients", "eight_bits"], "gradients eight_bits needs norm group"),
        (["--min-crop", "0"], "min_crop must be above 0 and at most 1, not 0.0"),
        (["--label-smoothing", "1"], "label_smoothing must be in 0..1 without 1, not 1.0"),
        (["--learning-rate", "0"], "learning_rate must be positive, not 0.0"),
        (["--resolution", "48"], "resolution must be at least 64 pixels, not 48"),
        (["--method", "full", "--gradients", "recompute"], "method must leave the convolutions"),
        (["--data", "nowhere"], "data must be fashion, emoji or a folder with a folder a class, not nowhere"),
    ],
)
def test_bad_input_is_one_line(arguments, message, folder, tmp_path):
    data = [] if "--data" in arguments else ["--data", folder]
    result = quartet("train", "tinytl", *data, "--out", tmp_path, *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_labelled_folders(folder):
    found = load_labelled(str(folder), 64)
    assert found.classes == ("blue", "red")
    assert found.training.labels.tolist() == [0] * 6 + [1] * 6 and found.test.labels.tolist() == [0, 0, 1, 1]
    assert (found.training.images[0, 2] > found.training.images[0, 0]).all()  # blue is blue
    (folder / "red" / "0.png").rename(folder / "0.png")
    with pytest.raises(ValueError, match="must hold a folder for each of at least two classes, not 0"):
        load_labelled(str(folder / "red"), 64)


def test_run_efficientnet(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGBA", (300, 200), (200, 30, 30, 255)).save(path)
    result = quartet("run", "efficientnet-lite0", "--image", path, "--top", 3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    # a classifier of zeros: all alike, ties to the earlier
    assert found["indices"] == [0, 1, 2] and found["classes"][1] == "class 1"
    assert found["probabilities"] == pytest.approx([0.001] * 3)
    assert "picture.png" in quartet("run", "efficientnet-lite0", "--image", path).stdout


def test_the_middle_of_a_picture(tmp_path):
    picture = Image.new("RGBA", (400, 256), (0, 0, 0, 255))
    picture.paste((10, 200, 30, 255), (200 - 112, 128 - 112, 200 + 112, 128 + 112))
    picture.save(tmp_path / "p.png")
    read = read_picture(tmp_path / "p.png")
    assert read.shape == (1, 3, 224, 224) and read[0, :, 5:-5, 5:-5].flatten(1).unique(dim=1).tolist() == [
        [10], [200], [30]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["efficientnet-lite0"], "efficientnet-lite0 needs a picture: --image FILE"),
        (["efficientnet-lite0", "--image", "no.png"], "image no.png does not exist"),
        (["efficientnet-lite0", "--image", __file__], "is not a picture"),
        (["minilm", "--text", "a", "--image", "no.png"], "--image is for efficientnet-lite0"),
    ],
)
def test_bad_pictures_are_one_line(arguments, message):
    result = quartet("run", *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_memory_rows_are_the_papers():
    rows = memory_rows()
    assert len(rows) == 21
    for row in rows:
        assert round(row.published_basis_mb, 1) == row.paper_mb
        assert row.full_count_mb > row.with_norm_inputs_mb >= row.published_basis_mb
    table = quartet("memory").stdout
    assert "390.8" in table and "lite+bias" in table


def test_measured_steps():
    modes = ["autograd", "recompute, slices of 960, 1 picture"]
    usual, little = measured_steps("bias", 64, 1, modes)
    assert usual.gradient_error == 0 and little.gradient_error < 1e-9
    assert little.live_mb < usual.live_mb and little.with_parameters_mb > 5.2
    with pytest.raises(ValueError, match="mode must be one of autograd"):
        next(measured_steps("bias", 64, 1, ["magic"]))
    assert quartet("memory", "--measure", "full").exit_code == 2
