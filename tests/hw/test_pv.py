# SPDX-License-Identifier: MIT
"""Probability-times-value array: golden against float64, RTL against golden and cycle model, mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import PRESETS
from hw.harness import amaranth_sim, cosim, verilated
from hw.harness.amaranth_sim import run_case, run_cases
from hw.harness.job import judge
from hw.kv_buffer.cycles import Load
from hw.pv.config import SHIFTS, PvConfig, pv_config
from hw.pv.cycles import RowShape, dense_row_cycles, replay, row_cycles, row_latency_cycles
from hw.pv.golden import weighted_sum
from hw.pv.rtl import Pv
from hw.pv.vectors import cases
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

SMALL = PvConfig(n_multipliers=64, max_head_dim=64, n_lines=8, n_max=32, lanes=4)
WIDE = PvConfig(n_multipliers=128, n_lines=2, n_max=16, lanes=2)
BUILT = [
    SMALL,
    replace(SMALL, n_regions=4),
    PvConfig(n_multipliers=32, max_head_dim=32, n_lines=4, n_max=16, element_bits=5),
]
CHIP = PvConfig()


@given(
    head_dim=st.sampled_from([32, 64, 128]),
    n_kept=st.integers(0, 300),
    shift=st.sampled_from(list(SHIFTS)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_golden_is_within_half_a_unit_of_float64(head_dim, n_kept, shift, seed):
    """float64 holds every product and sum below 2^53; only the one rounding, and saturation, may differ."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=n_kept)
    probability = np.minimum(np.rint(weights / max(weights.sum(), 1e-9) * 4096), 4095).astype(np.int64)
    values = rng.integers(-2048, 2048, (n_kept, head_dim))
    o, magnitude = weighted_sum(torch.from_numpy(probability), torch.from_numpy(values), shift, CHIP)
    exact = probability.astype(np.float64) @ values.astype(np.float64) / 2.0**shift
    assert np.abs(o.numpy() - exact.clip(-2048, 2047)).max() <= 0.5
    assert int(magnitude) == int(np.abs(o.numpy()).sum()) < 1 << CHIP.magnitude_bits


def test_halves_round_up_and_extremes_saturate():
    half = torch.tensor([[1, -1, 3, -3, *[0] * 28]])
    o, magnitude = weighted_sum(torch.tensor([2048]), half, 12, CHIP)
    assert o[:4].tolist() == [1, 0, 2, -1]
    assert int(magnitude) == 4
    n = CHIP.n_max
    for value in (-2048, 2047):
        total = n * 4095 * value
        assert -(1 << (CHIP.sum_bits - 1)) <= total < 1 << (CHIP.sum_bits - 1)
        o, magnitude = weighted_sum(torch.full((n,), 4095), torch.full((n, 128), value), 12, CHIP)
        assert o.tolist() == [value] * 128
        assert int(magnitude) == 128 * abs(value) < 1 << CHIP.magnitude_bits


def test_golden_rejects_what_the_array_cannot_take():
    p, v = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 64, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"probability must be int64 of 1 axes, not torch.float32\[3\]"):
        weighted_sum(p.float(), v, 12, CHIP)
    with pytest.raises(ValueError, match=r"head_dim must be one of \(32, 64\), not 128"):
        weighted_sum(p, torch.zeros(3, 128, dtype=torch.int64), 12, SMALL)
    with pytest.raises(ValueError, match="n_kept must be the same for both and at most 1024, not 2 and 3"):
        weighted_sum(p[:2], v, 12, CHIP)
    with pytest.raises(ValueError, match=r"shift must be in 8..15, not 16"):
        weighted_sum(p, v, 16, CHIP)
    with pytest.raises(ValueError, match=r"probability must be in 0..4095"):
        weighted_sum(p + 4096, v, 12, CHIP)
    with pytest.raises(ValueError, match=r"values must be in -2048..2047"):
        weighted_sum(p, v - 2049, 12, CHIP)


@pytest.mark.parametrize("config", BUILT, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(config, p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(config, seed=3, n_random=10)]
    for one, log in run_cases(Pv(config), chosen):
        assert judge(one, log).problems == ()


@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_128_dimensions_in_amaranth(p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(WIDE, seed=3, n_random=0)]
    for one, log in run_cases(Pv(WIDE), chosen[1:3]):
        assert judge(one, log).problems == ()


def check_in_harness(config: PvConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    block = BLOCKS["pv"]
    full_rate = block.cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(block, config, runs)
    verdicts = [judge(one, log) for one, log in zip(runs, logs, strict=True)]
    assert {v.case: v.problems for v in verdicts if v.problems} == {}


def test_verilog_matches_golden_and_cycles():
    check_in_harness(pv_config(PRESETS["tiny"]), n_random=150)


def problems_when_held(port: str, component: Pv, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Problems of a run in which nothing is taken from one output for the first 120 cycles."""

    def drive(sink, ctx, cycle):
        ctx.set(sink.stream.ready, sink.port.name != port or cycle >= 120)

    monkeypatch.setattr(amaranth_sim._Sink, "drive", drive)
    one = next(one for one in cases(SMALL, seed=3, n_random=0) if one.name == "rows of one vector")
    one = replace(one, expected_cycles={}, max_cycles=400)
    return judge(one, run_case(component, one)).problems


@pytest.mark.parametrize(("port", "place"), [("o", 0), ("o_magnitude", 1)])
def test_a_held_output_loses_nothing_but_for_a_queue_without_credits(port, place, monkeypatch):
    assert problems_when_held(port, Pv(SMALL), monkeypatch) == ()
    mutant = mutated("hw.pv.rtl", f"places[{place}] != 0", "1")
    assert problems_when_held(port, mutant.Pv(SMALL), monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_match_golden_and_cycles(name):
    check_in_harness(pv_config(PRESETS[name]), n_random=60)


@pytest.mark.full
@pytest.mark.parametrize("simulator", cosim.SIMULATORS)
def test_cocotb(simulator):
    if reason := cosim.missing_simulator(simulator):
        pytest.skip(reason)
    block, config = BLOCKS["pv"], pv_config(PRESETS["tiny"])
    full_rate = block.cases(config, seed=5, n_random=10)
    runs = [*full_rate, *(one.stalled(0.3, seed=6) for one in full_rate)]
    logs = cosim.run_cases(block, config, runs, simulator)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [()] * len(runs)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("n_kept", [0, 1, 16, 17, 204, 512])
def test_closed_forms_equal_the_replay(head_dim, n_kept):
    row = RowShape(head_dim=head_dim, region=0, indices=np.arange(n_kept))
    first, second, third = replay([Load(region=0, n_lines=128)], [row] * 3, CHIP)[0]
    # The row and the load are taken in cycle 1, and lines come as fast as a dense row takes them.
    assert first == row_latency_cycles(n_kept, head_dim, CHIP)
    interval = dense_row_cycles(n_kept, head_dim, CHIP)
    assert third - second == second - first == interval == row_cycles(row.indices, head_dim, CHIP)


def test_conflicts_cost_what_the_fullest_slot_needs():
    rng = np.random.default_rng(7)
    waits = RowShape(head_dim=64, region=0, indices=np.array([1023]))
    for share in (0.05, 0.2, 0.5, 1.0):
        kept = np.flatnonzero(rng.random(1024) < share)
        row = RowShape(head_dim=64, region=0, indices=kept)
        _, first, second = replay([Load(region=0, n_lines=128)], [waits, row, row], CHIP)[0]
        assert second - first == row_cycles(kept, 64, CHIP)
        assert row_cycles(kept, 64, CHIP) >= dense_row_cycles(len(kept), 64, CHIP)
    same_slot = np.arange(16) * 8
    assert row_cycles(same_slot, 64, CHIP) == 16


MUTANTS = [
    ("a product loses its guard bit",
     "product.eq(", "product[:-1].eq("),
    ("probability taken as signed",
     "values.elements[bank][e] * probabilities[bank]",
     "values.elements[bank][e] * probabilities[bank].as_signed()"),
    ("sum carries over to the next row",
     "Mux(steps[accumulating].first, 0, total)", "total"),
    ("rounds down",
     "(shifted + 1) >> 1", "shifted >> 1"),
    ("saturation off by one (`>=` for `>`)",
     "Mux(rounded > high, high, rounded)", "Mux(rounded >= high, high - 1, rounded)"),
    ("shift of the row before",
     "steps[queued - 2].shift", "steps[queued - 1].shift"),
    ("lanes of one slot granted together",
     "pending[i] & ~blocked & ", "pending[i] & "),
    ("reads a line that is not there yet",
     "(lane.line < n_written)", "(lane.line <= n_written)"),
    ("noise above count taken as a probability",
     "Cat(i < beat.count for", "Cat(i <= beat.count for"),
    ("regions swapped on the read side",
     "line_address(cfg.buffer, steps[2].region, line)", "line_address(cfg.buffer, ~steps[2].region, line)"),
    ("region freed before its last read",
     "values.free.eq(Mux(steps[2].free, 1 << steps[2].region,",
     "values.free.eq(Mux(steps[0].free, 1 << steps[0].region,"),
    ("region released before all its lines came",
     "~(ends_row & (n_written < of_row.release))", "1"),
    ("last beat of a row lost",
     "step.end.eq(done & ends_row & of_row.last)", "step.end.eq(grant.any() & ends_row & of_row.last)"),
    ("a bubble between beats",
     "(~busy | done)", "~busy"),
    ("magnitude of the largest negative output",
     "magnitude.eq(Mux(output < 0, -output, output))", "magnitude.eq(Mux(output < 0, ~output, output))"),
    ("the two outputs' queues swap their credits",
     "(self.o, cfg.output_fifo_beats,", "(self.o_magnitude, cfg.output_fifo_beats,"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.pv.rtl", old, new)
    full_rate = cases(SMALL, seed=3, n_random=8)
    runs = [*full_rate, *(one.stalled(0.5, seed=4, slowdown=4) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(mutant.Pv(SMALL), runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_multipliers": 96}, r"n_multipliers must be a power of two in 32..2048, not 96"),
        ({"max_head_dim": 96}, "max_head_dim must be one of 32, 64, 128, not 96"),
        ({"n_multipliers": 64}, "max_head_dim must be at most n_multipliers = 64, not 128"),
        ({"n_lines": 100}, r"n_lines must be a power of two in 2..65536, not 100"),
        ({"element_bits": 17}, r"element_bits must be in 2..16, not 17"),
        ({"lanes": 3}, r"lanes must be a power of two in 1..32, not 3"),
        ({"n_max": 1000}, r"n_max must be a power of two in 2..65536, not 1000"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        PvConfig(**changes)
