# SPDX-License-Identifier: MIT
"""Importance accumulators: golden against plain sums and floats, RTL against golden and cycles, mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import preset
from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.importance.config import ImportanceConfig, head_config
from hw.importance.cycles import Add, Keep, Read, add_cycles, keep_cycles, replay
from hw.importance.golden import Importance
from hw.importance.rtl import Importance as ImportanceRtl
from hw.importance.vectors import cases
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

SMALL = ImportanceConfig(lanes=2, n_max=32, kept_lanes=4, value_bits=5, max_adds=20, element_bits=8)
EQUAL = ImportanceConfig(lanes=4, n_max=32, kept_lanes=4, value_bits=5, max_adds=33, element_bits=8)
HEADS = ImportanceConfig(lanes=1, n_max=16, kept_lanes=4, value_bits=7, max_adds=20, element_bits=8)
CHIP = ImportanceConfig()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_golden_is_a_plain_sum_over_the_tokens_that_are_left(seed):
    rng = np.random.default_rng(seed)
    golden = Importance(CHIP)
    tokens, totals = np.arange(0), np.zeros(30, dtype=np.int64)
    for layer in range(6):
        tokens = np.append(tokens, np.arange(5 * layer, 5 * layer + 5))
        for _ in range(3):
            row = rng.integers(0, 4096, len(tokens))
            golden.add(torch.from_numpy(row))
            totals[tokens] += row
        assert golden.elements(0).tolist() == totals[tokens].tolist()
        kept = np.flatnonzero(rng.random(len(tokens)) < 0.8)
        golden.keep(torch.from_numpy(kept))
        tokens = tokens[kept]
    golden.clear()
    assert golden.elements(0).numel() == 0


def test_scores_are_within_the_stated_bound_of_float_sums():
    """Each probability is off by at most 2^-13, or 2^-12 where 1.0 saturates; sums add nothing to that."""
    rng = np.random.default_rng(1)
    golden, exact, n_rows = Importance(CHIP), np.zeros(100), 300
    shift = 3
    for row in range(n_rows):
        probability = np.exp(rng.normal(0, 2, 100)) if row % 10 else np.eye(100)[row % 100]
        probability = probability / probability.sum()
        exact += probability
        units = np.minimum(np.floor(probability * 4096 + 0.5), 4095).astype(np.int64)
        golden.add(torch.from_numpy(units))
    error = np.abs(golden.elements(0).numpy() / 4096 - exact)
    assert 0 < error.max() <= n_rows * 2.0**-12
    cut = golden.elements(shift).numpy() * 2.0 ** (shift - 12) - exact
    assert (cut <= n_rows * 2.0**-12).all() and (cut > -n_rows * 2.0**-12 - 2.0 ** (shift - 12)).all()


@pytest.mark.parametrize("config", [SMALL, EQUAL, HEADS, CHIP, ImportanceConfig(max_adds=1)], ids=str)
def test_no_sum_can_overflow_and_a_safe_shift_never_saturates(config):
    largest = (1 << config.value_bits) - 1
    assert config.max_adds * largest < 1 << config.score_bits
    assert config.max_adds * largest >= 1 << (config.score_bits - 1)
    for n_adds in {0, 1, config.max_adds // 2, config.max_adds}:
        shift = config.safe_shift(n_adds)
        assert (n_adds * largest) >> shift <= config.max_element
        assert shift == 0 or (n_adds * largest) >> (shift - 1) > config.max_element
        assert shift <= config.max_shift


def test_widths_of_the_chip():
    assert (CHIP.score_bits, CHIP.max_shift, CHIP.safe_shift(4096), CHIP.safe_shift(4097)) == (34, 10, 0, 1)
    heads = BLOCKS["head_importance"].config(preset("paper"))
    assert (heads.value_bits, heads.score_bits) == (19, 35)
    assert heads == head_config(kept_lanes=16, magnitude_bits=19, element_bits=24)


@pytest.mark.parametrize("config", [SMALL, EQUAL, HEADS], ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(config, p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(config, seed=3, n_random=20)]
    for one, log in run_cases(ImportanceRtl(config), chosen):
        assert judge(one, log).problems == ()


def check_in_harness(config, n_random):
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    full_rate = cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(BLOCKS["token_importance"], config, runs)
    problems = {
        one.name: verdict.problems
        for one, log in zip(runs, logs, strict=True)
        if (verdict := judge(one, log)).problems
    }
    assert not problems


def test_verilog_matches_golden_and_cycles():
    check_in_harness(ImportanceConfig(lanes=4, kept_lanes=8, n_max=256), n_random=300)


@pytest.mark.full
@pytest.mark.parametrize("config", [
    CHIP, ImportanceConfig(lanes=2, kept_lanes=4), ImportanceConfig(lanes=16, element_bits=40),
    head_config(kept_lanes=16, magnitude_bits=19, element_bits=24),
    ImportanceConfig(lanes=1, kept_lanes=1, n_max=2),
], ids=str)  # fmt: skip
def test_verilog_on_1000_layers(config):
    check_in_harness(config, n_random=1000)


def test_rows_take_one_beat_a_cycle_and_a_layer_of_1024_tokens_is_packed_in_174_cycles():
    rows = [np.ones(1, dtype=np.int64)] * 50
    taken, _ = replay([Add(rows=rows), Read()], CHIP)
    assert taken == [1, 52]
    assert add_cycles([1024, 3], CHIP) == 129
    assert keep_cycles(np.arange(304, 1016), CHIP) == 1 + 126 + 45 + 2
    assert replay([Keep(positions=np.arange(0)), Read()], CHIP)[0] == [1, 6]


MUTANTS = [
    ("a bit too few for a score", "base = Signal(cfg.score_bits,", "base = Signal(cfg.score_bits - 1,"),
    ("the sum two beats before forgotten", "Mux(repeats[1], third.sums[lane],", "Mux(0, third.sums[lane],"),
    ("the sum one beat before forgotten", "repeats[0],", "0,"),
    ("older sum first", "for s in (second, third))", "for s in (third, second))"),
    ("old content counts", "Mux(inside[lane], before, 0)", "before"),
    ("one position too many counts", "inside[lane].eq(position < n_held)",
     "inside[lane].eq(position <= n_held)"),
    ("reads while sums are written", "m.next = \"START\"", "m.next = \"READ\""),
    ("wraps where it should saturate", "Mux(shifted > largest, largest, shifted)", "shifted"),
    ("next line too early while keeping", "(position[cfg.lane_bits :] > self.line)",
     "(position[cfg.lane_bits :] > self.line + 1)"),
    ("writes on where the list before ended",
     "with m.If(self.done):\n            m.d.sync += self.write_line.eq(0)",
     "with m.If(0):\n            m.d.sync += self.write_line.eq(0)"),
    ("count of the last beat lost", "n_held.eq(n_packed + kept.count)", "n_held.eq(n_packed)"),
    ("one row too few", "with m.If(n_rows == 1):", "with m.If(n_rows == 2):"),
    ("does not wait for its output", "self.flow.eq(~end.valid | end.ready)", "self.flow.eq(1)"),
    ("last of the output lost", "reader.last.eq(is_last_line)", "reader.last.eq(0)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.importance.rtl", old, new)
    full_rate = cases(SMALL, seed=3, n_random=20)
    runs = (*full_rate, *(one.stalled(0.4, seed=1, slowdown=3) for one in full_rate))
    assert any(judge(one, log).problems for one, log in run_cases(mutant.Importance(SMALL), runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, r"lanes must be a power of two in 1..16 \(kept_lanes\), not 3"),
        ({"lanes": 32}, r"lanes must be a power of two in 1..16 \(kept_lanes\), not 32"),
        ({"kept_lanes": 64}, "kept_lanes must be a power of two in 1..32, not 64"),
        ({"n_max": 1000}, "n_max must be a power of two in 32..65536, not 1000"),
        ({"n_max": 16}, "n_max must be a power of two in 32..65536, not 16"),
        ({"value_bits": 25}, "value_bits must be in 1..24, not 25"),
        ({"max_adds": 0}, "max_adds must be at least 1, not 0"),
        ({"element_bits": 41}, "element_bits must be in 8..40, not 41"),
        (
            {"max_adds": 1 << 40},
            "max_adds must be at most 68736258049 at value_bits 12, not 1099511627776",
        ),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        ImportanceConfig(**changes)


def test_golden_rejects_bad_values_and_positions():
    golden = Importance(CHIP)
    golden.add(torch.tensor([1, 2, 3]))
    for call, message in (
        (lambda: golden.add(torch.tensor([4096])), "values must be in 0..4095, not 4096..4096"),
        (lambda: golden.add(torch.tensor([1]), 4), r"start must be in 0..3 \(n\), not 4"),
        (lambda: golden.add(torch.zeros(1025, dtype=torch.int64)), "positions must be below 1024, not 1024"),
        (lambda: golden.keep(torch.tensor([3])), "positions must be in 0..2, not 3..3"),
        (lambda: golden.keep(torch.tensor([1, 1])), "positions must be ascending"),
        (lambda: golden.elements(11), "shift must be in 0..10, not 11"),
        (lambda: CHIP.safe_shift(-1), "n_adds must be in 0..4194304, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert golden.scores.tolist() == [1, 2, 3]
