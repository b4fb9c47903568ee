# SPDX-License-Identifier: MIT
"""Results: round trip, derived values, and refusal of every kind of damage in one line."""

import json
import re

import pytest

from benchmarks.runner import collect_provenance, run_one
from benchmarks.tasks import select
from hw.config import preset
from sim.energy import PARTS
from sim.records import decode, digest
from sim.result import BenchmarkResult, DenseTraffic, on_core

RESULT = run_one(select("bert-base-cola")[0], preset("paper"), collect_provenance("test"))


def damaged(change):
    data = json.loads(RESULT.to_json())
    change(data)
    return json.dumps(data)


def test_round_trip():
    assert BenchmarkResult.from_json(RESULT.to_json()) == RESULT


def test_derived_values():
    run = RESULT.pruned
    assert run.latency_s == pytest.approx(sum(run.run.cycles_by_cause.values()) / 1e9)
    assert run.peak_flops == 2.048e12 and run.peak_bytes_per_s == 512e9
    assert 0 < run.utilisation < 1 and 0 < run.bandwidth_share < 1
    assert sum(run.power_w.values()) == pytest.approx(run.total_energy_pj * 1e-12 / run.latency_s)
    assert RESULT.speedup("xeon", "roofline") == pytest.approx(
        RESULT.baseline("xeon", "roofline").latency_s / run.latency_s
    )
    assert RESULT.speedup("xeon", "nothing of the kind") is None
    assert RESULT.dram_reduction_fp32 / RESULT.dram_reduction_onchip == pytest.approx(32 / 12)


def test_cycles_of_the_core_take_the_place_of_the_closed_forms():
    before = RESULT.pruned
    run = on_core(before, 5000, dram_ideal_bytes=1000, dram_bytes=1024)
    assert (run.cycles, run.latency_s) == (5000, pytest.approx(5e-6))
    counts = run.run.counts
    assert (counts.dram_ideal_bytes, counts.dram_bytes) == (1000, 1024)
    refreshes_per_cycle = before.run.counts.dram_refreshes / before.cycles
    assert counts.dram_refreshes / run.cycles == pytest.approx(refreshes_per_cycle)
    assert run.energy_pj["dram"] < before.energy_pj["dram"]
    assert run.energy_pj["topk"] == before.energy_pj["topk"]
    assert on_core(before, 5000).run.counts.dram_bytes == before.run.counts.dram_bytes


NOT_NEGATIVE = "must be a finite number of at least 0, not"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour="red"), "colour is not a known field"),
        (lambda d: d.pop("pruned"), "pruned is missing"),
        (lambda d: d["pruned"]["run"].pop("n_flops"), "pruned.run.n_flops is missing"),
        (
            lambda d: d["pruned"]["run"]["cycles_by_cause"].update(qk=-1.0),
            f"pruned.run.cycles_by_cause.qk {NOT_NEGATIVE} -1.0",
        ),
        (
            lambda d: d["dense"]["run"]["counts"].update(dram_bytes=-5),
            f"dense.run.counts.dram_bytes {NOT_NEGATIVE} -5.0",
        ),
        (
            lambda d: d["dense_traffic"].update(fp32_bytes=float("nan")),
            f"dense_traffic.fp32_bytes {NOT_NEGATIVE} nan",
        ),
        (
            lambda d: d["baselines"][1].update(latency_s="fast"),
            "baselines[1].latency_s must be float, not 'fast'",
        ),
        (lambda d: d["pruned"].update(clock_hz=0), "pruned.clock_hz must be positive, not 0"),
        (
            lambda d: d["pruned"]["energy_pj"].pop("dram"),
            f"pruned.energy_pj must have the keys {', '.join(PARTS)}",
        ),
        (lambda d: d["provenance"].update(dirty="no"), "provenance.dirty must be bool, not 'no'"),
        (lambda d: d.update(pruned=[1, 2]), "pruned must hold an object, not [1, 2]"),
    ],
)
def test_damaged_results_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BenchmarkResult.from_json(damaged(change))


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match=r"not valid JSON: .*line 1"):
        BenchmarkResult.from_json("{half")


def test_hash_depends_on_every_value_and_not_on_the_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_integers_are_read_as_floats_but_booleans_are_not():
    assert decode(DenseTraffic, {"fp32_bytes": 1, "onchip_bytes": 2}).fp32_bytes == 1.0
    with pytest.raises(ValueError, match="fp32_bytes must be float, not True"):
        decode(DenseTraffic, {"fp32_bytes": True, "onchip_bytes": 2})
