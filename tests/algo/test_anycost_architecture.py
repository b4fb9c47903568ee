# SPDX-License-Identifier: MIT
"""Widths, layers and costs of the sub-generators against published and separately derived numbers."""

import csv
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from algo.anycost.architecture import (
    EVOLVED,
    GeneratorConfig,
    SubGenerator,
    compute_macs,
    evolved,
    layers,
    n_parameters,
    published_macs,
    uniform_sub_generators,
)

CONFIG_F = GeneratorConfig()
SMALL = GeneratorConfig(resolution=64, channel_multiplier=1 / 16, style_size=32)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_every_kind_of_layer_of_all_27_sub_generators():
    expected: dict[str, dict[str, tuple[int, ...]]] = {}
    for row in rows_of(Path(__file__).with_name("anycost_sums.csv")):
        name, kind, *sums = row.values()
        expected.setdefault(name, {})[kind] = tuple(int(value) for value in sums)
    subs = uniform_sub_generators() | evolved()
    assert subs.keys() == expected.keys() and len(subs) == 27
    for name, sub in subs.items():
        found: dict[str, tuple[int, ...]] = {}
        for layer in layers(CONFIG_F, sub):
            one = (
                1,
                layer.n_macs,
                layer.n_macs_published,
                layer.n_params,
                layer.in_elements,
                layer.out_elements,
            )
            found[layer.kind] = tuple(map(sum, zip(found.get(layer.kind, (0,) * 6), one, strict=True)))
        assert found == expected[name], name


def test_both_counting_bases_of_config_f():
    assert CONFIG_F.n_styles == 18
    assert compute_macs(CONFIG_F, CONFIG_F.full) == 74_260_144_128
    assert published_macs(CONFIG_F, CONFIG_F.full) == 144_153_428_736
    assert n_parameters(CONFIG_F, CONFIG_F.full) == 30_370_060


def test_published_counts_of_the_evolved_sub_generators():
    """The authors' counter also has the products of weights and of activations: up to half a percent."""
    rows = rows_of(EVOLVED)
    assert len(rows) == 11
    for row in rows:
        ours = published_macs(CONFIG_F, evolved()[row["name"]]) / 1e9
        assert 0 < float(row["published_gmacs"]) / ours - 1 < 0.005


@pytest.mark.parametrize(
    "ratio, widths",
    [
        (1.0, [512, 512, 512, 512, 512, 256, 128, 64, 32]),
        (0.75, [512, 512, 512, 512, 384, 192, 96, 48, 24]),
        (0.5, [512, 512, 512, 512, 256, 128, 64, 32, 16]),
        (0.25, [512, 512, 512, 256, 128, 64, 32, 16, 8]),
    ],
)
def test_uniform_widths(ratio, widths):
    assert CONFIG_F.uniform(ratio).widths == tuple(width for width in widths for _ in range(2))


def test_published_sub_generators_are_among_the_choices():
    choices = [set(CONFIG_F.choices(i)) for i in range(18)]
    assert choices[0] == {512} and choices[6] == {256, 384, 512} and choices[17] == {8, 16, 24, 32}
    for sub in (*evolved().values(), CONFIG_F.full, CONFIG_F.uniform(0.25)):
        assert all(width in widths for width, widths in zip(sub.widths, choices, strict=True))


def test_sandwich_is_a_quarter_full_a_quarter_smallest():
    rng = random.Random(0)
    drawn = [SMALL.sandwich(rng, flexible=True) for _ in range(2000)]
    counts = Counter(drawn)
    assert abs(counts[SMALL.full] - 500) < 60 and abs(counts[SMALL.uniform(0.25)] - 500) < 60
    assert len(counts) > 900
    uniform = {SMALL.sandwich(rng, flexible=False, resolution=32) for _ in range(200)}
    assert uniform == {SMALL.uniform(ratio, 32) for ratio in (0.25, 0.5, 0.75, 1.0)}


def test_code_tells_widths_apart():
    code = CONFIG_F.arch_code
    assert len(code(CONFIG_F.full)) == CONFIG_F.arch_size == 72 and sum(code(CONFIG_F.full)) == 18
    assert code(CONFIG_F.full)[-4:] == [0, 0, 0, 1] and code(CONFIG_F.uniform(0.25))[-4:] == [1, 0, 0, 0]
    rng = random.Random(1)
    subs = {SMALL.flexible(rng) for _ in range(300)}
    assert len({tuple(SMALL.arch_code(sub)) for sub in subs}) == len(subs)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"resolution": 48}, "resolution must be a power of two from 4 on, not 48"),
        ({"style_size": 0}, "style_size must be at least 1, not 0"),
        ({"n_classes": -1}, "n_classes must not be negative, not -1"),
        ({"channel_multiplier": 0.1}, "channel_multiplier 0.1 leaves no channel at 1024 px and ratio 0.25"),
    ],
)
def test_rejects_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**fields)


def test_rejects_sub_generators_from_elsewhere():
    with pytest.raises(ValueError, match=r"ratio must be above 0 and at most 1, not 1.5"):
        SMALL.uniform(1.5)
    with pytest.raises(ValueError, match=r"sub-generator resolution must be one of .*, not 128"):
        SMALL.uniform(1.0, 128)
    with pytest.raises(ValueError, match="a sub-generator needs 10 widths, not 2"):
        layers(SMALL, SubGenerator(64, (4, 4)))
    with pytest.raises(ValueError, match=r"width 9 must be in 1..16, not 17"):
        layers(SMALL, SubGenerator(64, (*SMALL.full.widths[:9], 17)))


def test_needs_no_torch():
    code = "import sys, algo.anycost.architecture; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
