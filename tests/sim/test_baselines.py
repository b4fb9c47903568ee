# SPDX-License-Identifier: MIT
"""Rooflines: both roofs by hand, and the platform table against the figures it is derived from."""

import pytest

from sim.baselines import Platform, fp32_bytes, platforms, roofline_s
from sim.workload import ModelShape, Pruning, generation, summarisation

SHAPE = ModelShape(name="m", n_layers=2, n_heads=4, head_dim=64)


def machine(peak_flops, bandwidth_bytes_per_s):
    return Platform(
        platform="m",
        label="M",
        short="M",
        peak_flops=peak_flops,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        dynamic_power_w=1,
        source="",
        tag="",
    )


def test_bandwidth_roof_of_decoding():
    work = generation("w", SHAPE, 99, 1, Pruning())
    traffic = 2 * 4 * (1 + 100 + 100 + 1) * 64 * 4  # layers, heads, (Q, K, V, output) rows, D, fp32
    assert roofline_s(work, machine(1e15, 1e9)) == pytest.approx(traffic / 1e9)
    assert fp32_bytes(work).sum() == traffic - 2 * 4 * 64 * 4


def test_compute_roof_of_a_sentence():
    work = summarisation("w", SHAPE, 50, Pruning())
    assert roofline_s(work, machine(1e9, 1e15)) == pytest.approx(work.n_flops / 1e9)


def test_gpt2_medium_decoding_at_the_bandwidth_of_a_titan_xp():
    """Reading the fp32 K and V of 32 tokens at 547.7 GB/s takes 11.6 ms."""
    medium = ModelShape(name="gpt2-medium", n_layers=24, n_heads=16, head_dim=64)
    work = generation("w", medium, 992, 32, Pruning())
    assert roofline_s(work, platforms()["titan_xp"]) == pytest.approx(11.6e-3, rel=0.005)


def test_every_platform_has_positive_peaks_and_a_source():
    assert list(platforms()) == ["titan_xp", "xeon", "jetson_nano", "raspberry_pi"]
    for item in platforms().values():
        assert min(item.peak_flops, item.bandwidth_bytes_per_s, item.dynamic_power_w) > 0
        assert item.source and item.tag == "quoted"
