# SPDX-License-Identifier: MIT
"""The quoted data: Fig. 14 is consistent with its own printed means, and with what is derived from it."""

import pytest

from benchmarks.paper import eager_latency_s, eager_power_w, fig14, geomean, headline
from benchmarks.tasks import benchmarks, pruning_settings
from sim.baselines import platforms


@pytest.mark.parametrize("platform", ["titan_xp", "xeon", "jetson_nano", "raspberry_pi"])
@pytest.mark.parametrize("quantity", ["speedup", "energy"])
def test_printed_geometric_means_follow_from_the_rows(platform, quantity):
    """The paper truncates: 162.50 is printed as 162, 1910.5 as 1910."""
    rows = [getattr(fig14()[item.benchmark], quantity)[platform] for item in benchmarks()]
    printed = getattr(fig14()["geomean"], quantity)[platform]
    assert printed <= geomean(rows) + 0.5 and geomean(rows) < printed + 1


def test_fig14_has_the_30_benchmarks_and_the_mean():
    assert set(fig14()) == {item.benchmark for item in benchmarks()} | {"geomean"}


def test_platform_powers_are_what_the_paper_implies():
    mean = fig14()["geomean"]
    for name, machine in platforms().items():
        implied_w = headline()["power_w"].value * mean.energy[name] / mean.speedup[name]
        assert machine.dynamic_power_w == pytest.approx(implied_w, rel=0.003)


def test_table_ii_adds_up():
    parts = sum(headline()[f"{part}_power_w"].value for part in ("logic", "sram", "dram"))
    assert parts == pytest.approx(headline()["power_w"].value, abs=0.02)


def test_eager_anchor_exists_for_gpt2_medium_only_and_agrees_across_platforms():
    assert eager_latency_s("gpt2-small-ptb", "titan_xp") is None
    assert eager_latency_s("bert-large-cola", "xeon") is None
    for name in platforms():
        spatten_s = eager_latency_s("gpt2-medium-ptb", name) / fig14()["gpt2-medium-ptb"].speedup[name]
        assert spatten_s == pytest.approx(0.3667 / 208)
    assert eager_power_w("gpt2-medium-ptb", "titan_xp") == pytest.approx(8.30 * 2806 / 208)


def test_bert_token_keep_is_what_the_two_quoted_means_leave():
    ratio = 1.9 ** (30 / 22) / 3.8 ** (8 / 22)
    assert pruning_settings()["bert"].token_keep == pytest.approx(1 / ratio, abs=5e-4)
    assert pruning_settings()["bert"].head_keep == pytest.approx(1 / 1.1, abs=5e-4)


def test_geometric_mean():
    assert geomean([1, 10, 100]) == pytest.approx(10)
    with pytest.raises(ValueError, match="at least one value"):
        geomean([])
