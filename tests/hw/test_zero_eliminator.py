# SPDX-License-Identifier: MIT
"""Zero eliminator: golden, RTL against golden and cycle model, mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hw.harness.amaranth_sim import run_case
from hw.harness.job import judge
from hw.zero_eliminator.config import ZeroEliminatorConfig
from hw.zero_eliminator.cycles import zero_eliminator_cycles
from hw.zero_eliminator.golden import eliminate_zeros
from hw.zero_eliminator.rtl import ZeroEliminator
from hw.zero_eliminator.vectors import cases
from tests.hw.mutants import mutated

CONFIGS = [
    ZeroEliminatorConfig(lanes=1, element_bits=8),
    ZeroEliminatorConfig(lanes=2, element_bits=1),
    ZeroEliminatorConfig(lanes=8, element_bits=12),
    ZeroEliminatorConfig(lanes=8, element_bits=12, shift_stages_per_cycle=1),
    ZeroEliminatorConfig(lanes=16, element_bits=34, shift_stages_per_cycle=2),
    ZeroEliminatorConfig(lanes=32, element_bits=9),
]


def test_golden_packs_the_papers_example():
    """SpAtten Fig. 10: a0b0cd0e becomes abcde000."""
    a, b, c, d, e = 1, 2, 3, 4, 5
    row = torch.tensor([[a, 0, b, 0, c, d, 0, e]])
    packed, count = eliminate_zeros(row, row != 0)
    assert packed.tolist() == [[a, b, c, d, e, 0, 0, 0]]
    assert count.tolist() == [5]


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=9))
def test_golden_equals_a_plain_filter(rows):
    data = torch.tensor(rows)
    packed, count = eliminate_zeros(data, data > 1)
    for row, out, n in zip(rows, packed.tolist(), count.tolist(), strict=True):
        kept = [x for x in row if x > 1]
        assert (out, n) == (kept + [0] * (8 - len(kept)), len(kept))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    for full_rate in cases(config, seed=1, n_random=40):
        one = full_rate.stalled(p_stall, seed=2) if p_stall else full_rate
        log = run_case(ZeroEliminator(config), one)
        verdict = judge(one, log)
        assert verdict.problems == ()
        if not p_stall:
            assert verdict.n_cycles == zero_eliminator_cycles(len(one.inputs["i"]), config)


MUTANTS = [
    ("misses a zero", "sums[i - 1] if i else 0", "sums[i - 2] if i > 1 else 0"),
    ("shifts by one lane too many", "source[i + (1 << stage)] if i + (1 << stage) < cfg.lanes",
     "source[i + (2 << stage)] if i + (2 << stage) < cfg.lanes"),
    ("leaves what moved behind", "own.present & ~own.zeros[stage]", "own.present"),
    ("drops last", "held_last.eq(last)", "held_last.eq(0)"),
    ("ready stuck at 1", "ready.eq(~held_valid | next_ready)", "ready.eq(1)"),
    ("count off by one", "cfg.lanes - sums[-1]", "cfg.lanes - sums[-1] + 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    config = ZeroEliminatorConfig(lanes=8, element_bits=12)
    mutant = mutated("hw.zero_eliminator.rtl", old, new)
    full_rate = cases(config, seed=1, n_random=20)
    runs = [*full_rate, *(one.stalled(0.5, seed=2, slowdown=3) for one in full_rate)]
    caught = (judge(one, run_case(mutant.ZeroEliminator(config), one)).problems for one in runs)
    assert any(caught), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..64, not 3"),
        ({"element_bits": 0}, "element_bits must be in 1..64, not 0"),
        ({"shift_stages_per_cycle": 0}, "shift_stages_per_cycle must be at least 1, not 0"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        ZeroEliminatorConfig(**changes)


def test_latency_follows_the_registers():
    latencies = [
        ZeroEliminatorConfig(lanes=16, shift_stages_per_cycle=n).latency_cycles for n in (1, 2, 3, 4, 6)
    ]
    assert latencies == [4, 2, 2, 1, 1]
    assert np.all(np.diff(latencies) <= 0)
