# SPDX-License-Identifier: MIT
"""``quartet search``: cheapest at equal distance, against trying everything; from the command line."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from algo.anycost.architecture import GeneratorConfig, SubGenerator, compute_macs
from algo.anycost.search import SearchConfig
from benchmarks.cli import app
from benchmarks.gan import search

SHAPE = GeneratorConfig(resolution=8, channel_multiplier=1 / 32, max_channels=64, style_size=8)
CONFIG = SearchConfig(population=24, generations=8)


def steps(sub):
    """A cost with stairs: sixteen channels at a time, the first layers dear."""
    return sum((4 - i) * -(-width // 16) for i, width in enumerate(sub.widths))


def lost(sub):
    """A distance that counts the last layers most."""
    return sum(
        (1 + i) * (1 - width / full) ** 2
        for i, (width, full) in enumerate(zip(sub.widths, SHAPE.full.widths, strict=True))
    )


@pytest.mark.parametrize("cost", [steps, lambda sub: compute_macs(SHAPE, sub)])
def test_as_cheap_as_the_best_of_all(cost):
    every = [
        SubGenerator(8, widths)
        for widths in itertools.product(*(SHAPE.choices(i) for i in range(SHAPE.n_styles)))
    ]
    uniform = SHAPE.uniform(0.5)
    best = min((sub for sub in every if lost(sub) <= lost(uniform)), key=cost)
    assert cost(search.cheapest_of_all(SHAPE, cost, uniform, lost)) == cost(best)
    found = search.cheapest(SHAPE, cost, uniform, lost, CONFIG)
    assert lost(found) <= lost(uniform)
    assert cost(best) <= cost(found) <= 1.05 * cost(best) < cost(uniform)


def test_nothing_cheaper_is_the_uniform_one():
    smallest = SHAPE.uniform(0.25)
    assert search.cheapest(SHAPE, steps, smallest, lost, CONFIG) == smallest


@pytest.mark.parametrize("options", [[], ["--everything"]])
def test_command(random_run, tmp_path, monkeypatch, options):
    monkeypatch.setattr(search, "N_STEPS", 2)
    result = CliRunner().invoke(
        app,
        ["search", str(random_run), *options, "--population", "4", "--generations", "1", "--images", "1",
         "--out", str(tmp_path), "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "search.json").read_text())
    assert "was not trained to make images with fewer channels" in found["note"]
    assert [row["found"] for row in found["rows"]] == ["uniform", "by macs", "by cycles"] * 3
    for uniform, by_macs, by_cycles in zip(*(found["rows"][i::3] for i in range(3)), strict=True):
        assert max(by_macs["mse"], by_cycles["mse"]) <= uniform["mse"]
        assert by_macs["macs"] <= uniform["macs"] and by_cycles["cycles"] <= uniform["cycles"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "images must be at least 1, not 0"),
        (["--population", "0"], "population must be at least 1, not 0"),
        (["--preset", "huge"], "preset must be one of"),
        (["--everything"], "--everything tries at most 3 sub-generators, not"),
    ],
)
def test_bad_input(random_run, arguments, message, monkeypatch):
    monkeypatch.setattr(search, "MOST_TRIED", 3)
    result = CliRunner().invoke(app, ["search", str(random_run), *arguments])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
