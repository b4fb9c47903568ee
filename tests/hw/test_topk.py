# SPDX-License-Identifier: MIT
"""Top-k engine: golden against an oracle, RTL against golden (bits) and cycle model (cycles), mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.harness import verilated
from hw.harness.amaranth_sim import run_case, run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.topk.config import TopKConfig
from hw.topk.cycles import expected_selection_cycles, filter_cycles, replay
from hw.topk.golden import top_k
from hw.topk.rtl import TopK
from hw.topk.vectors import case, cases, corner_requests, random_requests
from tests.hw.mutants import mutated

SMALL = TopKConfig(lanes=4, n_max=64, element_bits=12)
PUBLISHED = TopKConfig(lanes=16)
BUILT = [TopKConfig(lanes=lanes, element_bits=bits) for lanes in (1, 4, 16, 32) for bits in (12, 24)]


def oracle(elements: torch.Tensor, k: int) -> torch.Tensor:
    """torch.topk on keys that are all different: the element, then the earlier position."""
    n = elements.numel()
    keys = elements * n + torch.arange(n - 1, -1, -1)
    return torch.topk(keys, k).indices.sort().values


@given(data=st.data(), n=st.integers(1, 200), bits=st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_golden_equals_torch_topk_with_the_tie_rule(data, n, bits):
    elements = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=n, max_size=n)))
    k = data.draw(st.integers(0, n))
    values, indices = top_k(elements, k, TopKConfig(n_max=256, element_bits=12))
    assert torch.equal(indices, oracle(elements, k))
    assert torch.equal(values, elements[indices])


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(lanes, p_stall):
    config = TopKConfig(lanes=lanes, n_max=64, element_bits=12)
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(config, seed=3, n_random=8)]
    for one, log in run_cases(TopK(config), chosen):
        assert judge(one, log).problems == ()


def check_in_harness(config: TopKConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under stalls."""
    block = BLOCKS["topk"]
    full_rate = block.cases(config, seed=11, n_random=n_random)
    all_cases = [*full_rate, *(one.stalled(0.3, seed=12) for one in full_rate)]
    logs = verilated.run_cases(block, config, all_cases)
    problems = {
        one.name: verdict.problems
        for one, log in zip(all_cases, logs, strict=True)
        if (verdict := judge(one, log)).problems
    }
    assert not problems


@pytest.mark.parametrize("config", BUILT, ids=str)
def test_verilog_matches_golden_and_cycles(config):
    check_in_harness(config, n_random=100)


@pytest.mark.full
@pytest.mark.parametrize("config", BUILT, ids=str)
def test_verilog_matches_golden_and_cycles_on_2000_vectors(config):
    check_in_harness(config, n_random=2000)


@pytest.mark.full
@pytest.mark.parametrize("lanes, n_max", [(2, 32), (8, 4096), (32, 64), (1, 2)])
def test_other_built_shapes(lanes, n_max):
    check_in_harness(TopKConfig(lanes=lanes, n_max=n_max, element_bits=8), n_random=50)


@pytest.mark.parametrize(
    ("n", "k", "selection_budget", "total_budget"), [(1024, 512, 270, 400), (204, 40, 71, 120)]
)
def test_mean_cycles_of_the_verilog(n, k, selection_budget, total_budget):
    """1,000 random inputs; the budget of the passes is the released cost model's figure at P = 16."""
    rng = np.random.default_rng(21)
    requests = [(rng.integers(0, 1 << 24, n), k, 0) for _ in range(1000)]
    one = case(f"{n}, {k}", requests, PUBLISHED, rng)
    log = verilated.run_cases(BLOCKS["topk"], PUBLISHED, [one])[0]
    assert judge(one, log).problems == ()
    timing = replay(requests, PUBLISHED)
    n_lines, n_beats = -(-n // 16), -(-k // 16)
    first_input = log.cycles["i"][::n_lines]
    last_output = log.cycles["o"][n_beats - 1 :: n_beats]
    total = last_output - first_input + 1
    assert total.tolist() == [t.first_to_last_cycles for t in timing]
    selection = np.array([t.selection_cycles for t in timing])
    for name, values in (("selection", selection), ("first input to last output", total)):
        spread = np.percentile(values, [0, 5, 50, 95, 100]).astype(int).tolist()
        print(f"n {n}, k {k}: {name} mean {values.mean():.1f} cycles, min/5/50/95/max {spread}")
    assert selection.mean() <= selection_budget
    assert total.mean() <= total_budget


@pytest.mark.parametrize(("n", "k"), [(1024, 512), (1024, 100), (204, 40), (40, 39), (17, 5)])
def test_expected_cycles_agree_with_the_replay(n, k):
    rng = np.random.default_rng(n + k)
    timing = replay([(rng.permutation(n), k, 0) for _ in range(2000)], PUBLISHED)
    seen = np.array([t.decided_cycle - t.first_input_cycle + 1 - t.pass_lines[0] for t in timing])
    standard_error = seen.std() / len(seen) ** 0.5
    assert (
        abs(seen.mean() - expected_selection_cycles(n, k, PUBLISHED))
        < 4 * standard_error + 0.03 * seen.mean()
    )


def test_expected_cycles_broadcast_and_edges():
    table = expected_selection_cycles(np.array([[10], [20]]), np.array([0, 5, 10]), PUBLISHED)
    assert table.shape == (2, 3)
    assert table[0, 0] == table[0, 2] == 2  # nothing to select: the last line settles, then the decision
    assert (table[:, 1] > 2).all()
    with pytest.raises(ValueError, match="k must be in"):
        expected_selection_cycles(5, 6, PUBLISHED)


def test_filter_cycles_bound_the_replay():
    timing = replay([(np.arange(100), 1, 0)], PUBLISHED)[0]  # the largest comes last
    assert timing.output_cycles[-1] - timing.decided_cycle == filter_cycles(100, PUBLISHED)


def test_a_seed_makes_a_request_reproducible():
    rng = np.random.default_rng(5)
    elements = rng.integers(0, 4096, 64)
    first, _, again = replay([(elements, 9, 77), (elements, 30, 0), (elements, 9, 77)], SMALL)
    assert first.pass_lines == again.pass_lines


MUTANTS = [
    ("keeps one tie too many", "hw.topk.filter", "(n_before < n_equal)", "(n_before <= n_equal)"),
    ("drops last", "hw.topk.filter", "payload.last.eq(found_all)",
     "payload.last.eq(0)"),
    ("ready stuck at 1", "hw.topk.rtl",
     "self.i.ready.eq(~final.busy | (line_number < final.line_number))", "self.i.ready.eq(1)"),
    ("stops a pass early, as Alg. 3 prints it", "hw.topk.rtl",
     "(target + parts.n_left > n_list)", "(target + parts.n_left >= n_list)"),
    ("counts an empty line", "hw.topk.compact_list",
     "packer.o.valid & (packer.o.payload.count != 0)", "packer.o.valid"),
    ("forgets the noise past n", "hw.topk.rtl", "Cat(is_member(e) for e in elements) & self.mask",
     "Cat(is_member(e) for e in elements)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(module, old, new)
    if module == "hw.topk.filter":
        monkeypatch.setattr(TopK, "FINAL", mutant.Filter)
    if module == "hw.topk.compact_list":
        monkeypatch.setattr("hw.topk.rtl.CompactList", mutant.CompactList)
    rng = np.random.default_rng(9)
    requests = [
        *corner_requests(17, SMALL), *corner_requests(64, SMALL), *random_requests(33, 10, SMALL, rng)
    ]  # fmt: skip
    full_rate = case("mutant", requests, SMALL, rng)
    runs = (full_rate, full_rate.stalled(0.4, seed=1, slowdown=3))
    assert any(judge(one, run_case(getattr(mutant, "TopK", TopK)(SMALL), one)).problems for one in runs), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..32, not 3"),
        ({"lanes": 64}, "lanes must be a power of two in 1..32, not 64"),
        ({"n_max": 1000}, "n_max must be a power of two in 32..65536, not 1000"),
        ({"n_max": 16}, "n_max must be a power of two in 32..65536, not 16"),
        ({"element_bits": 7}, "element_bits must be in 8..32, not 7"),
        ({"element_bits": 33}, "element_bits must be in 8..32, not 33"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        TopKConfig(**changes)


@pytest.mark.parametrize(
    ("elements", "k", "message"),
    [
        (torch.zeros(4, dtype=torch.int64), 5, r"k must be in 0..4 \(n\), not 5"),
        (torch.zeros(4, dtype=torch.int64), -1, r"k must be in 0..4 \(n\), not -1"),
        (torch.zeros(65, dtype=torch.int64), 5, "n must be in 0..64, not 65"),
        (torch.full((4,), 4096), 2, r"elements must be in 0..4095, not 4096..4096"),
        (torch.full((4,), -1), 2, r"elements must be in 0..4095, not -1..-1"),
    ],
)
def test_golden_rejects_bad_requests(elements, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(elements, k, SMALL)
