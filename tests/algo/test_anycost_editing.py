# SPDX-License-Identifier: MIT
"""Directions: principal components by another way, moving by hand, files that are read or named as wrong."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.editing import moved, principal_directions, read_direction
from algo.anycost.generator import Generator

SHAPE = GeneratorConfig(
    resolution=16, channel_multiplier=1 / 64, max_channels=16, style_size=8, n_mapping_layers=2
)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SHAPE).requires_grad_(False)


def test_principal_directions_are_those_of_the_covariance(generator):
    directions = principal_directions(generator, 4000, seed=3).double()
    z = torch.randn(4000, 8, generator=torch.Generator().manual_seed(3))
    w = generator.w(z).double()
    values, vectors = torch.linalg.eigh(w.T.cov())
    assert torch.allclose(directions.norm(dim=1), values.flip(0).sqrt(), rtol=1e-4)
    for direction, value, vector in zip(directions, values.flip(0), vectors.flip(1).T, strict=True):
        assert abs(float(direction @ vector)) == pytest.approx(float(value.sqrt()), rel=1e-3)
        assert direction[direction.abs().argmax()] > 0
    along = (w - w.mean(0)) @ (directions / directions.norm(dim=1, keepdim=True)).T
    assert torch.allclose(along.std(0), directions.norm(dim=1), rtol=1e-3)  # one unit is one deviation


def test_principal_directions_need_enough_samples_and_no_classes(generator):
    with pytest.raises(ValueError, match="n_samples must be above 8, the style size, not 8"):
        principal_directions(generator, 8)
    assert torch.equal(principal_directions(generator), principal_directions(generator))


def test_moved_by_hand():
    styles = torch.arange(12.0).reshape(1, 2, 6)
    everywhere = torch.zeros(2, 6)
    everywhere[0, 1], everywhere[1, 5] = 1.0, 10.0
    out = moved(styles, everywhere, torch.tensor([2.0, -0.5]))
    assert out.tolist() == [[[0, 3, 2, 3, 4, 0], [6, 9, 8, 9, 10, 6]]]
    of_layers = torch.zeros(1, 2, 6)
    of_layers[0, 1, 0] = 1.0
    assert (moved(styles.expand(3, 2, 6), of_layers, torch.tensor([4.0])) - styles).sum((0, 2)).tolist() == [
        0,
        12,
    ]


def test_directions_of_files(tmp_path):
    vector, layers = torch.randn(8), torch.randn(SHAPE.n_styles, 8)
    np.save(tmp_path / "a.npy", vector.numpy().astype(np.float64))
    save_file({"any name": layers}, tmp_path / "b.safetensors")
    assert torch.equal(read_direction(tmp_path / "a.npy", SHAPE), vector)
    assert torch.equal(read_direction(tmp_path / "b.safetensors", SHAPE), layers)


def test_bad_files_are_named(tmp_path):
    def reject(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_direction(tmp_path / name, SHAPE)

    np.save(tmp_path / "short.npy", np.zeros(7))
    np.save(tmp_path / "whole.npy", np.zeros(8, int))
    np.save(tmp_path / "nan.npy", np.full(8, np.nan))
    np.save(tmp_path / "text.npy", np.array(["x"]))
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"a": torch.zeros(8), "b": torch.zeros(8)}, tmp_path / "two.safetensors")
    reject("short.npy", r"short.npy must have the shape \(8,\) or \(6, 8\), not \(7,\)")
    reject("whole.npy", "must hold finite floating-point numbers")
    reject("nan.npy", "must hold finite floating-point numbers")
    reject("text.npy", "is not a .npy file of numbers")
    reject("junk.npy", "is not a .npy file of numbers")
    reject("junk.safetensors", "is not a .safetensors file")
    reject("two.safetensors", "must hold one tensor, not 2")
    reject("smile", "direction must be a number or a .npy or .safetensors file, not .*smile")
    for missing in ("none.npy", "none.safetensors"):
        with pytest.raises(FileNotFoundError):
            read_direction(tmp_path / missing, SHAPE)
