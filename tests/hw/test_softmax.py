# SPDX-License-Identifier: MIT
"""Softmax: golden against float64, RTL against golden (bits) and cycle model (cycles), mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.softmax.config import SoftmaxConfig, row_scale
from hw.softmax.cycles import replay, row_interval_cycles, row_latency_cycles
from hw.softmax.golden import SoftmaxRows, exponentials, reciprocal, softmax
from hw.softmax.rtl import Softmax
from hw.softmax.vectors import case, cases, corner_rows, random_row
from tests.hw.mutants import mutated

CHIP = SoftmaxConfig()
SMALL = SoftmaxConfig(lanes=2, n_max=16)
BUILT = [
    SMALL,
    SoftmaxConfig(lanes=1, n_max=8, score_bits=12),
    SoftmaxConfig(lanes=4, n_max=32, score_bits=40),
    SoftmaxConfig(lanes=2, n_max=16, score_bits=16, probability_bits=17),
]

UNROUNDED_BOUND = 11.5 * 2.0**-18
"""docs/softmax.md derives it; below 2^-14."""


def float_softmax(scores: np.ndarray, step: np.ndarray) -> np.ndarray:
    """float64 of the same integer scores."""
    below = (scores.max(axis=-1, keepdims=True) - scores).astype(np.float64)
    powers = np.exp(-below * step[:, None])
    return powers / powers.sum(axis=-1, keepdims=True)


def golden(scores: np.ndarray, step: np.ndarray) -> SoftmaxRows:
    scale = torch.tensor([row_scale(float(one)) for one in step])
    return softmax(torch.from_numpy(scores), scale[:, 0], scale[:, 1], CHIP)


def adversarial(rng: np.random.Generator, n: int, n_rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups of rows that push each term of the bound."""
    lowest, highest = -(1 << 35), (1 << 35) - 1
    magnitude = 2.0 ** rng.uniform(0, 33, n_rows)
    normal = np.rint(rng.normal(0, 1, (n_rows, n)) * magnitude[:, None]).clip(lowest, highest)
    one_above = np.zeros((n_rows, n))
    # The rest share about half of the row: p (1 - p) and the entropy are near their largest.
    one_above[:, 1:] = -np.rint((np.log(max(n - 1, 1)) + rng.uniform(-2, 2, n_rows)) * 2**30)[:, None]
    saturated = np.where(rng.random((n_rows, n)) < 0.5, lowest, highest)
    # Exponentials just below and above what the sum can hold.
    at_the_floor = np.zeros((n_rows, n))
    at_the_floor[:, 1:] = -np.rint(rng.uniform(27, 29, (n_rows, 1)) * np.log(2) * 2**30)
    small = 2.0**-30
    return [
        (normal.astype(np.int64), 2.0 ** rng.uniform(-6, 7, n_rows) / magnitude),
        (one_above.astype(np.int64), np.full(n_rows, small) * rng.uniform(0.9, 1.1, n_rows)),
        (saturated.astype(np.int64), 2.0 ** rng.uniform(-40, 8, n_rows)),
        (at_the_floor.astype(np.int64), np.full(n_rows, small)),
        (np.full((n_rows, n), lowest), 2.0 ** rng.uniform(-40, 8, n_rows)),
    ]


def test_golden_is_within_the_bounds_of_float64_on_10000_rows():
    rng = np.random.default_rng(1)
    n_rows = 0
    for n in (1, 2, 3, 8, 31, 102, 204, 1024):
        for scores, step in adversarial(rng, n, 250):
            rows, exact = golden(scores, step), float_softmax(scores, step)
            n_rows += len(scores)
            assert np.abs(rows.unrounded.numpy() - exact).max() <= UNROUNDED_BOUND < 2.0**-14
            assert np.abs(rows.probability.numpy() / 4096 - exact).max() <= 1 / 4096
            total = rows.probability.sum(dim=-1)
            assert 4096 - n * (1 / 2 + 1 / 16) - 1.02 <= int(total.min())
            assert int(total.max()) <= 4096.08 + n / 2
            assert torch.equal(rows.max_probability, rows.probability.amax(dim=-1))
    assert n_rows == 10_000


def test_steps_of_the_bound():
    """Each term of the derivation by itself, in units of 2^-18."""
    rng = np.random.default_rng(2)
    for step in 2.0 ** rng.uniform(-50, 5, 300):
        multiplier, shift = row_scale(step)
        ratio = multiplier * 2.0 ** (6 - shift - 18) / (step * np.log2(np.e))
        assert abs(ratio - 1) <= 2.0**-18
    # t in 0..2 in steps of 2^-16: multiplier 2^17 halves d 2^1 exactly.
    d = torch.arange(1 << 17)
    powers = exponentials(-d, torch.tensor(1 << 17), torch.tensor(21))
    exact = torch.exp2(28 - d.to(torch.float64) / 65536)
    ratio = (powers / exact - 1) * 2.0**18
    assert float(ratio.min()) >= -1.01 and float(ratio.max()) <= 6.84
    assert (powers.diff() <= 0).all()
    total = torch.randint(1 << 28, (1 << 38) + 1, (200_000,), generator=torch.Generator().manual_seed(3))
    total = torch.cat([total, 1 << torch.arange(28, 39), (1 << torch.arange(29, 39)) - 1])
    inverse, k = reciprocal(total)
    error = (inverse * total).to(torch.float64) * torch.exp2(-18.0 - 28 - k) - 1
    assert float(error.min()) * 2**18 >= -1 and float(error.max()) * 2**18 <= 5


@given(
    scores=st.lists(st.integers(-(1 << 35), (1 << 35) - 1), min_size=1, max_size=40),
    exponent=st.floats(-45, 8),
)
@settings(max_examples=200, deadline=None)
def test_larger_scores_never_get_smaller_probabilities(scores, exponent):
    values = np.sort(np.array([scores], dtype=np.int64))
    rows = golden(values, np.array([2.0**exponent]))
    assert (rows.probability.diff() >= 0).all()
    assert int(rows.probability[0, -1]) == int(rows.max_probability[0])


def test_equal_and_one_hot_rows_are_exact():
    equal = golden(np.full((1, 1024), -5), np.array([1.0])).probability
    assert equal.tolist() == [[4] * 1024]
    one_hot = np.full((1, 1024), -100)
    one_hot[0, 7] = 100
    probability = golden(one_hot, np.array([1.0])).probability[0]
    assert (int(probability[7]), int(probability.sum())) == (4095, 4095)


@pytest.mark.parametrize("config", BUILT, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(config, p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(config, seed=3, n_random=10)]
    for one, log in run_cases(Softmax(config), chosen):
        assert judge(one, log).problems == ()


def check_in_harness(config: SoftmaxConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    block = BLOCKS["softmax"]
    full_rate = block.cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(block, config, runs)
    problems = {
        one.name: verdict.problems
        for one, log in zip(runs, logs, strict=True)
        if (verdict := judge(one, log)).problems
    }
    assert not problems


def test_verilog_matches_golden_and_cycles():
    check_in_harness(SoftmaxConfig(lanes=2, n_max=64), n_random=300)


@pytest.mark.full
@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_verilog_matches_golden_and_cycles_on_2000_rows(lanes):
    check_in_harness(SoftmaxConfig(lanes=lanes), n_random=2000)


def test_rows_flow_at_one_beat_a_cycle_and_a_lone_row_has_the_stated_latency():
    for n_keys in (1, 24, 100, 1024):
        cycles = [t.row_cycle for t in replay([(n_keys, False)] * 60, CHIP)]
        assert set(np.diff(cycles)) == {int(row_interval_cycles(n_keys, CHIP))}
        lone = replay([(n_keys, False)], CHIP)[0]
        assert lone.output_cycles[-1] == int(row_latency_cycles(n_keys, CHIP))


MUTANTS = [
    ("cuts where it should round", "units = (halves + 1) >> 1", "units = halves >> 1"),
    ("1.0 wraps to 0", "Mux(units > largest, largest, units)", "units"),
    ("a bit too few for the sum", "new_sum = Signal(cfg.sum_bits)", "new_sum = Signal(cfg.sum_bits - 1)"),
    ("one lane past the row joins the maximum", "Mux(lane < payload.count,", "Mux(lane <= payload.count,"),
    ("lanes past the row join the sum", "Mux(inside, shifted, 0)", "shifted"),
    ("exponent wraps", "fine | fine[EXPONENT_BITS:].any().replicate(EXPONENT_BITS)", "fine"),
    ("maximum of the row before", "running.eq(Mux(last, lowest, best))", "running.eq(best)"),
    ("partial product in the wrong place", "(products[1] << part)", "(products[1] << half)"),
    ("multiplier of the next row", "_delay(m, multiplier, 4,", "_delay(m, multiplier, 3,"),
    ("fall of the point before", "in pairwise(values)", "in pairwise([values[0], *values[:-1]])"),
    ("ready stuck at 1", "ring.has_room & (n_waiting != MAX_ROWS)", "1"),
    ("a dropped row keeps its lines", "Mux(drop, self.i_shape.payload.n_lines, 0)", "0"),
    ("output without credits", "(n_left != 0) & (n_in_flight != OUTPUT_FIFO_BEATS)", "n_left != 0"),
    ("last of the output lost", "o.last.eq(last)", "o.last.eq(0)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.softmax.rtl", old, new)
    rng = np.random.default_rng(9)
    rows = [*corner_rows(SMALL), *(random_row(None, rng, SMALL) for _ in range(10))]
    full_rate = case("mutant", rows, SMALL)
    runs = (full_rate, full_rate.stalled(0.6, seed=1, slowdown=3))
    assert any(judge(one, log).problems for one, log in run_cases(mutant.Softmax(SMALL), runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..16, not 3"),
        ({"lanes": 32}, "lanes must be a power of two in 1..16, not 32"),
        ({"n_max": 1000}, "n_max must be a power of two in 8..1024, not 1000"),
        ({"n_max": 2048}, "n_max must be a power of two in 8..1024, not 2048"),
        ({"n_max": 4}, "n_max must be a power of two in 8..1024, not 4"),
        ({"score_bits": 7}, "score_bits must be in 8..40, not 7"),
        ({"score_bits": 41}, "score_bits must be in 8..40, not 41"),
        ({"probability_bits": 18}, "probability_bits must be in 8..17, not 18"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxConfig(**changes)


@pytest.mark.parametrize(
    ("scores", "multiplier", "message"),
    [
        (torch.zeros(0, dtype=torch.int64), 1, r"n must be in 1..1024, not 0"),
        (torch.zeros(1025, dtype=torch.int64), 1, r"n must be in 1..1024, not 1025"),
        (torch.tensor([1 << 35]), 1, r"scores must be in -34359738368..34359738367, not 34359738368"),
        (torch.tensor([5]), 1 << 18, r"multiplier must be in 0..262143, not 262144"),
    ],
)
def test_golden_rejects_bad_rows(scores, multiplier, message):
    with pytest.raises(ValueError, match=message):
        softmax(scores, torch.tensor(multiplier), torch.tensor(0), CHIP)


@pytest.mark.parametrize("step", [-1.0, float("nan"), float("inf")])
def test_row_scale_rejects_bad_steps(step):
    with pytest.raises(ValueError, match="step must be finite and not negative"):
        row_scale(step)
