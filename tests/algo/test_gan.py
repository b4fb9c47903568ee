# SPDX-License-Identifier: MIT
"""GAN training: losses by hand, resumption bit for bit, every switch reaches the loss, and it learns."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from algo.anycost.architecture import GeneratorConfig
from algo.files import cache_folder
from algo.gan import data as gan_data
from algo.gan.data import ImageSet, as_floats, load_images
from algo.gan.loop import LoopConfig, load_run, run
from algo.gan.losses import LOSSES, path_lengths, r1_penalty
from algo.gan.pictures import grid, write_png
from algo.gan.training import Elastic, GanConfig, GanTraining, Start, distillation, load_generator, sample

SHAPE = GeneratorConfig(
    resolution=16, channel_multiplier=1 / 128, max_channels=16, style_size=8, n_mapping_layers=2
)
ELASTIC = Elastic(resolutions=(16, 8), n_sampled=1, channels="flexible", conditioned=True, distillation=2.0)
EVERYTHING = {"r1_every": 2, "path_weight": 2.0, "path_every": 3, "augment": "color,translation,cutout"}


class Stop(Exception):
    """An interruption."""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 12, classes: bool = False) -> ImageSet:
    """Reddish squares, brighter from class to class."""
    images = torch.full((n, 3, 16, 16), 60) + torch.tensor([100, 0, 20])[None, :, None, None]
    labels = torch.arange(n) % 10
    if classes:
        images = images + 8 * labels[:, None, None, None]
    images = images + torch.randint(-10, 11, images.shape, generator=rng())
    return ImageSet(images.to(torch.uint8), labels if classes else None, "red")


def gan(data: ImageSet | None = None, **fields) -> GanTraining:
    more = {key: fields.pop(key) for key in ("elastic", "start", "seed", "shape") if key in fields}
    shape = more.pop("shape", SHAPE)
    return GanTraining(shape, data or pictures(), GanConfig(batch_size=4, **fields), **more)


def quiet(step: int, n_steps: int, losses: dict[str, float]) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory) -> Start:
    """Two steps of a plain run."""
    folder = tmp_path_factory.mktemp("stage")
    run(gan(), LoopConfig(n_steps=2), folder, quiet)
    return Start.read(folder)


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    loss = LOSSES["nonsaturating"]
    expected = (softplus(-2) + softplus(-0.5) + softplus(-3) + softplus(1)) / 2
    assert float(loss.discriminator(real, fake)) == pytest.approx(expected, rel=1e-6)
    assert float(loss.generator(fake)) == pytest.approx((softplus(3) + softplus(-1)) / 2, rel=1e-6)
    hinge = LOSSES["hinge"]
    assert float(hinge.discriminator(real, fake)) == (0 + 0.5) / 2 + (0 + 2) / 2
    assert float(hinge.generator(fake)) == 1.0


def test_r1_of_a_linear_critic_is_its_weight():
    weight = torch.randn(3, 4, 4, generator=rng()).double()
    images = torch.randn(5, 3, 4, 4, generator=rng()).double().requires_grad_()
    penalty = r1_penalty((images * weight).sum((1, 2, 3)), images)
    assert float(penalty) == pytest.approx(float(weight.square().sum()))


def test_path_lengths_of_a_linear_generator():
    """images = J styles with a scaled orthogonal J: |J^T y| is the scale times |y|, per layer."""
    basis = torch.linalg.qr(torch.randn(48, 48, generator=rng()).double()).Q * 3
    styles = torch.randn(2, 4, 12, generator=rng()).double().requires_grad_()
    images = (styles.flatten(1) @ basis.T).reshape(2, 3, 4, 4)
    lengths = path_lengths(images, styles, rng(7))
    noise = torch.randn(2, 3, 4, 4, generator=rng(7)).double() / 4
    expected = 3 * noise.flatten(1).norm(dim=1) / 2  # root mean square over four layers
    assert torch.allclose(lengths, expected, rtol=1e-6)


def test_distillation_by_hand():
    images = [torch.randn(2, 3, r, r, generator=rng(r)) for r in (4, 8)]
    target = torch.randn(2, 3, 8, 8, generator=rng())
    plain = distillation(images[1:], target)
    assert torch.allclose(plain, (images[1] - target).square().mean())
    both = distillation(images, target, lambda a, b: (a.abs().max() <= 1) * torch.ones(()))
    resized = torch.nn.functional.interpolate(target, (4, 4), mode="bilinear", antialias=True)
    assert torch.allclose(both, plain + (images[0] - resized).square().mean() + 2)


@pytest.mark.parametrize("elastic", [None, ELASTIC], ids=["plain", "elastic"])
def test_an_interrupted_run_resumes_to_the_same_bits(elastic, first_stage, tmp_path):
    def fresh() -> GanTraining:
        return gan(elastic=elastic, start=first_stage if elastic else None, **EVERYTHING)

    loop = LoopConfig(n_steps=7, seed=3, checkpoint_steps=2)
    whole = run(fresh(), loop, tmp_path / "whole", quiet)

    def stop_at_five(step, n_steps, losses):
        if step == 5:
            raise Stop

    with pytest.raises(Stop):
        run(fresh(), loop, tmp_path / "halves", stop_at_five)
    steps, saved = [], []
    halves = run(fresh(), loop, tmp_path / "halves", lambda s, n, losses: steps.append(s), saved.append)
    assert steps == [5, 6, 7] and saved == [6, 7] and halves == whole
    assert all(("r1" in losses) == (step % 2 == 0) for step, losses in enumerate(whole, 1))
    assert all(("path" in losses) == (step % 3 == 0) for step, losses in enumerate(whole, 1))
    assert all(("distillation" in losses) == bool(elastic) for losses in whole)
    a, b = (load_run(tmp_path / part)[1] for part in ("whole", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert sorted(p.name for p in (tmp_path / "halves").iterdir()) == ["train.json", "weights.safetensors"]


def test_a_finished_run_is_read_and_gives_its_generator(tmp_path):
    first = gan()
    losses = run(first, LoopConfig(n_steps=2), tmp_path, quiet)
    again = gan()

    def never(step, n_steps, losses):
        raise AssertionError("trained again")

    assert run(again, LoopConfig(n_steps=2), tmp_path, never) == losses
    images = sample(first.average, 5)
    assert images.shape == (5, 3, 16, 16) and images.abs().max() <= 1
    assert torch.equal(sample(again.average, 5), images)
    assert torch.equal(sample(load_generator(tmp_path), 5), images)


def test_a_folder_belongs_to_one_run(tmp_path):
    run(gan(), LoopConfig(n_steps=1), tmp_path, quiet)
    with pytest.raises(ValueError, match="holds another run: augment '' there, 'cutout' here"):
        run(gan(augment="cutout"), LoopConfig(n_steps=1), tmp_path, quiet)
    with pytest.raises(ValueError, match="holds another run: n_steps 1 there, 2 here"):
        run(gan(), LoopConfig(n_steps=2), tmp_path, quiet)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged: remove"):
        run(gan(), LoopConfig(n_steps=1), tmp_path, quiet)
    with pytest.raises(FileNotFoundError, match="holds no finished training run"):
        Start.read(tmp_path / "nothing")


def test_a_damaged_checkpoint_is_told(tmp_path):
    def stop(step, n_steps, losses):
        if step == 2:
            raise Stop

    loop = LoopConfig(n_steps=3, checkpoint_steps=1)
    with pytest.raises(Stop):
        run(gan(), loop, tmp_path, stop)
    path = tmp_path / json.loads((tmp_path / "checkpoint.json").read_text())["file"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged: remove"):
        run(gan(), loop, tmp_path, quiet)


@pytest.mark.parametrize(
    "loss, augment",
    [("nonsaturating", ""), ("hinge", "color,translation,cutout")],
    ids=["plain", "augmented"],
)
def test_it_learns_the_colour(loss, augment):
    """Mean colour of reddish squares, from grey, in 40 steps."""
    training = gan(loss=loss, augment=augment, learning_rate=1e-2)
    wanted = as_floats(training.data.images).mean((0, 2, 3))

    def error() -> float:
        return float((sample(training.average, 16).mean((0, 2, 3)) - wanted).abs().max())

    before = error()
    for step in range(1, 41):
        training.step(step, rng(step))
    assert error() < 0.5 * before


def test_every_switch_changes_the_step():
    """From the same weights and draws; each pair of settings must lead to other weights."""
    variants = [
        {}, {"loss": "hinge"}, {"augment": "cutout"}, {"mirror": False}, {"style_mixing": 0.0},
        {"noise": False}, {"r1_every": 1}, {"r1_every": 1, "augment": "color"},
        {"r1_every": 1, "augment": "color", "r1_on": "augmented"},
        {"path_weight": 1.0, "path_every": 1}, {"discriminator_steps": 2},
    ]  # fmt: skip
    ends = []
    for fields in variants:
        training = gan(**fields)
        for step in (1, 2):
            training.step(step, rng(step))
        ends.append(torch.cat([value.flatten() for value in training.state.weights().values()]))
    for i, a in enumerate(ends):
        assert all(not torch.equal(a, b) for b in ends[:i]), variants[i]


def test_a_narrow_generator_can_face_a_wide_discriminator():
    wide = replace(SHAPE, channel_multiplier=1 / 64, max_channels=32)
    alone, facing = gan(), GanTraining(SHAPE, pictures(), GanConfig(batch_size=4), opponent=wide)
    assert facing.generator.full == alone.generator.full
    expected = GanTraining(wide, pictures(), GanConfig(batch_size=4)).discriminator.state_dict()
    assert {n: v.shape for n, v in facing.discriminator.state_dict().items()} == {
        n: v.shape for n, v in expected.items()
    }
    assert alone.describe()["opponent"] is None and facing.describe()["opponent"]["max_channels"] == 32
    assert math.isfinite(facing.step(1, rng())["discriminator"])


def test_r1_on_augmented_reals_has_the_gradient_there():
    """A cutout hides pixels from the critic: they have no gradient in the raw image, but do after it."""
    raw = gan(augment="cutout")
    real = as_floats(raw.data.images[:4])
    augmented = gan(augment="cutout", r1_on="augmented")
    values = [float(t._r1(real.clone(), None, None, rng(5)).detach()) for t in (raw, augmented)]
    assert 0 < values[0] < values[1]


def test_without_noise_the_strengths_stay_zero():
    for noise in (True, False):
        training = gan(noise=noise)
        training.step(1, rng())
        strengths = [conv.noise_strength for conv in training.generator.convs]
        assert all((strength != 0) == noise for strength in strengths)


def test_the_average_follows_at_its_half_life():
    training = gan(ema_images=8.0)  # two batches
    for step, share in ((1000, 0.5**0.5), (20, 0.5), (1, 0.5**20)):  # a twentieth of 20 batches is one
        with torch.no_grad():
            for average, now in zip(
                training.average.parameters(), training.generator.parameters(), strict=True
            ):
                average.zero_()
                now.fill_(1.0)
        training._move_average(step)
        assert all(torch.allclose(p, torch.tensor(1 - share)) for p in training.average.parameters())


def test_classes_reach_both_players():
    shape = replace(SHAPE, n_classes=10)
    training = gan(pictures(40, classes=True), shape=shape, loss="hinge")
    images, labels = training._reals(rng())
    assert torch.allclose(images.mean((1, 2, 3)), (100 + 8 * labels) / 127.5 - 1, atol=0.02)
    before = [training.generator.classes.weight.clone(), training.discriminator.classes.weight.clone()]
    training.step(1, rng())
    after = [training.generator.classes.weight, training.discriminator.classes.weight]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    images = sample(training.average, 20)
    assert len({float(image.mean()) for image in images[:10]}) == 10


def test_elastic_training_needs_what_it_uses(first_stage):
    with pytest.raises(ValueError, match="distillation needs an earlier run"):
        gan(elastic=ELASTIC)
    with pytest.raises(ValueError, match="channels must be full, uniform or flexible, not 'half'"):
        Elastic(resolutions=(16,), channels="half")
    with pytest.raises(ValueError, match=r"n_sampled must be in 1..1, not 2"):
        Elastic(resolutions=(16,))
    wide = GeneratorConfig(
        resolution=16, channel_multiplier=1 / 64, max_channels=32, style_size=8, n_mapping_layers=2
    )
    with pytest.raises(ValueError, match=r"does not fit a generator of"):
        gan(elastic=ELASTIC, start=first_stage, shape=wide)
    with pytest.raises(ValueError, match="n_classes must be 10 for red, not 0"):
        gan(pictures(classes=True))
    with pytest.raises(ValueError, match="images must have 8 pixels a side, not 16"):
        gan(shape=GeneratorConfig(resolution=8, channel_multiplier=1 / 64, style_size=8))


def test_a_later_stage_starts_from_the_average_sorted(first_stage):
    training = gan(elastic=ELASTIC, start=first_stage)
    assert training.teacher is not None
    styles = training.teacher.styles(torch.randn(2, 8, generator=rng()))
    full = training.teacher(styles)
    assert torch.allclose(training.generator(styles), full, atol=1e-5)
    sorted_first = training.generator.convs[0].conv.weight
    assert not torch.equal(sorted_first, training.teacher.convs[0].conv.weight)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"batch_size": 0}, "batch_size must be positive, not 0"),
        ({"r1_weight": -1.0}, r"r1_weight must not be negative, not -1.0"),
        ({"loss": "wgan"}, "loss must be one of nonsaturating, hinge, not 'wgan'"),
        ({"r1_on": "fakes"}, "r1_on must be raw or augmented, not 'fakes'"),
        ({"style_mixing": 1.5}, r"style_mixing must be in 0..1, not 1.5"),
        ({"augment": "blur"}, "policy must list some of"),
        ({"device": "tpu"}, "device must be cpu or cuda, not 'tpu'"),
    ],
)
def test_rejects_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        GanConfig(**fields)


def test_a_folder_of_pictures(tmp_path):
    Image.new("RGBA", (20, 10), (255, 0, 0, 255)).save(tmp_path / "b.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "a.png")
    (tmp_path / "note.txt").write_text("not a picture")
    data = load_images(str(tmp_path), 8)
    assert data.images.shape == (2, 3, 8, 8) and data.labels is None and data.n_classes == 0
    assert (data.images[0] == 0).all()
    assert (data.images[1, :, 4] == torch.tensor([255, 0, 0])[:, None]).all()  # a red bar on white
    assert (data.images[1, :, 0] == 255).all()
    assert as_floats(data.images).min() == -1 and as_floats(data.images).max() == 1
    part = data.subset(1)
    assert len(part.images) == 1 and part.source.endswith("1 of 2") and part.sha256 != data.sha256
    with pytest.raises(ValueError, match=r"n must be in 1..2 pictures, not 3"):
        data.subset(3)


def test_fashion_from_its_files(tmp_path, monkeypatch):
    """IDX files: a header of 16 or 8 bytes, then bytes row by row."""
    pixels = torch.arange(2 * 28 * 28) % 251
    for part, first in (("train", 0), ("t10k", 5)):
        images, labels = tmp_path / f"{part}-images-idx3-ubyte.gz", tmp_path / f"{part}-labels-idx1-ubyte.gz"
        images.write_bytes(gzip.compress(bytes(16) + bytes(pixels.tolist())))
        labels.write_bytes(gzip.compress(bytes(8) + bytes([first, 9])))
    monkeypatch.setattr(gan_data, "_installed", lambda package, inside: tmp_path)
    data = load_images("fashion", 32)
    assert data.images.shape == (2, 1, 32, 32) and data.n_classes == 10 and data.labels.tolist() == [0, 9]
    assert torch.equal(data.images[1, 0, 2:30, 2:30], pixels[784:].reshape(28, 28).byte())
    assert (data.images[:, :, :2] == 0).all() and data.without_labels().n_classes == 0
    test = load_images("fashion", 16, test=True)
    assert test.images.shape == (2, 1, 16, 16) and test.labels.tolist() == [5, 9] and "test" in test.source
    assert as_floats(test.images).shape == (2, 3, 16, 16)


def test_emoji_from_the_font():
    """Only where the font is on this machine: nothing is fetched by a test."""
    places = (Path("/"), cache_folder() / "debian" / gan_data.FONT_PACKAGE)
    if not any((place / gan_data.FONT).is_file() for place in places):
        pytest.skip("fonts-noto-color-emoji is neither installed nor fetched")
    smileys = load_images("emoji-smileys", 32)
    assert smileys.images.shape == (104, 3, 32, 32) and smileys.labels is None
    corners, yellow = smileys.images[:, :, 0, 0], smileys.images[0, :, 16, 6]
    assert (corners == 255).all() and yellow[0] > 200 > 100 > yellow[2]


def test_a_package_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gan_data.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="package no-such is not installed and apt-get could not"):
        gan_data._installed("no-such", "usr/share/no-such")


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data must be one of emoji-smileys, .* or a folder"):
        load_images("cifar", 8)
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        load_images(str(tmp_path), 8)
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(ValueError, match=r"x.png is not a picture"):
        load_images(str(tmp_path), 8)
    with pytest.raises(ValueError, match="data emoji-foods has no test part"):
        load_images("emoji-foods", 8, test=True)


def test_grid_places_pictures_row_by_row(tmp_path):
    images = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 5.0)])
    sheet = grid(images, 2, gap=1)
    assert sheet.shape == (7, 7, 3)
    assert (sheet[1:3, 1:3] == 0).all() and (sheet[1:3, 4:6] == 128).all() and (sheet[4:6, 1:3] == 255).all()
    write_png(tmp_path / "grid.png", sheet, scale=2)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (14, 14) and picture.getpixel((3, 3)) == (0, 0, 0)
