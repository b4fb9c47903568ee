# SPDX-License-Identifier: MIT
"""Radix engine and local value selection: golden against an oracle, RTL against golden, mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.select.config import LocalValueConfig, RadixConfig
from hw.select.cycles import replay, worst_selection_cycles
from hw.select.golden import local_values, radix_select, unsigned_scores
from hw.select.rtl import LocalValueSelect, RadixSelect
from hw.select.vectors import cases, corner_rows, local_case, random_rows
from hw.topk.config import TopKConfig
from hw.topk.cycles import replay as quickselect_replay
from hw.topk.golden import top_k
from hw.topk.vectors import case, corner_requests, random_requests
from tests.hw.mutants import mutated

SMALL = RadixConfig(lanes=4, n_max=32, element_bits=11, digit_bits=4)
LOCAL = LocalValueConfig(lanes=4, in_lanes=2, n_max=32, score_bits=14, digit_bits=4)
BY_SCORE = LocalValueConfig(semantics="score", lanes=4, in_lanes=2, n_max=32, score_bits=14, digit_bits=4)
QUICK = LocalValueConfig(engine="quickselect", lanes=4, in_lanes=4, n_max=32)
QUICK_BY_SCORE = LocalValueConfig(
    engine="quickselect", semantics="score", lanes=4, in_lanes=1, n_max=32, score_bits=14
)
TOKENS = LocalValueConfig(
    semantics="score", lanes=4, in_lanes=4, n_max=32, payload_bits=5, score_bits=12, score_is_signed=False
)


def problems_of(component, config, runs):
    """Problems of each run in turn."""
    return (judge(one, log).problems for one, log in run_cases(component(config), runs))


def slowed(one):
    return one.stalled(0.4, seed=4, slowdown=4)


@given(data=st.data(), n=st.integers(1, 200), bits=st.integers(1, 12), digit_bits=st.sampled_from([2, 4, 6]))
@settings(max_examples=200, deadline=None)
def test_golden_equals_torch_topk_with_the_tie_rule(data, n, bits, digit_bits):
    elements = torch.tensor(data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=n, max_size=n)))
    k = data.draw(st.integers(0, n))
    config = RadixConfig(n_max=256, element_bits=13, digit_bits=digit_bits)
    values, indices = radix_select(elements, k, config)
    # Keys that are all different: the element, then the earlier position.
    keys = elements * n + torch.arange(n - 1, -1, -1)
    assert torch.equal(indices, torch.topk(keys, k).indices.sort().values)
    assert torch.equal(values, elements[indices])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_both_engines_agree_and_so_do_both_semantics_where_probabilities_differ(seed, n):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(0, n + 1))
    scores = torch.from_numpy(rng.choice(1 << 20, n, replace=False) - (1 << 19))
    # Grows with the score, as softmax does, and differs wherever the score does.
    probabilities = torch.argsort(torch.argsort(scores))
    by_probability = local_values(probabilities, k, LocalValueConfig())
    by_score = local_values(probabilities, k, LocalValueConfig(semantics="score"), scores)
    quick = local_values(probabilities, k, LocalValueConfig(engine="quickselect"))
    for other in (by_score, quick):
        assert all(torch.equal(a, b) for a, b in zip(by_probability, other, strict=True))


def test_no_dropped_key_is_more_probable_than_a_kept_one_beyond_the_stated_bound():
    rng = np.random.default_rng(4)
    worst = 0.0
    for _ in range(300):
        weights = np.exp(rng.normal(0, rng.uniform(0.1, 4), 200))
        exact = weights / weights.sum()
        units = np.minimum(np.floor(exact * 4096 + 0.5), 4095).astype(np.int64)
        _, kept = local_values(torch.from_numpy(units), 40, LocalValueConfig())
        dropped = np.setdiff1d(np.arange(200), kept.numpy())
        worst = max(worst, exact[dropped].max() - exact[kept.numpy()].min())
    assert 2.0**-14 < worst <= 2.0**-12


def test_scores_made_unsigned_keep_the_order_of_the_extremes():
    scores = torch.tensor([-(1 << 35), -(1 << 35) + 1, -1, 0, 1, (1 << 35) - 1])
    unsigned = unsigned_scores(scores, LocalValueConfig(semantics="score"))
    assert unsigned.tolist() == [0, 1, (1 << 35) - 1, 1 << 35, (1 << 35) + 1, (1 << 36) - 1]
    importance = torch.tensor([0, 1, (1 << 12) - 1])
    assert torch.equal(unsigned_scores(importance, TOKENS), importance)


@pytest.mark.parametrize("config", [
    SMALL, RadixConfig(lanes=4, n_max=32, element_bits=12),
    RadixConfig(lanes=1, n_max=16, element_bits=8, digit_bits=4),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("stalled", [False, True], ids=["full-rate", "stalls"])
def test_radix_rtl_matches_golden_and_cycles_in_amaranth(config, stalled):
    runs = [slowed(one) if stalled else one for one in cases(config, seed=3, n_random=4)[-2:]]
    assert list(problems_of(RadixSelect, config, runs)) == [(), ()]


@pytest.mark.parametrize("config", [LOCAL, BY_SCORE, QUICK, QUICK_BY_SCORE, TOKENS], ids=str)
@pytest.mark.parametrize("stalled", [False, True], ids=["full-rate", "stalls"])
def test_local_rtl_matches_golden_and_cycles_in_amaranth(config, stalled):
    runs = [slowed(one) if stalled else one for one in cases(config, seed=3, n_random=6)[-2:]]
    assert list(problems_of(LocalValueSelect, config, runs)) == [(), ()]


def check_in_harness(name, config, n_random):
    """At full rate with exact cycles, and the same vectors under stalls."""
    full_rate = cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(0.3, seed=12) for one in full_rate)]
    logs = verilated.run_cases(BLOCKS[name], config, runs)
    problems = {
        one.name: verdict.problems
        for one, log in zip(runs, logs, strict=True)
        if (verdict := judge(one, log)).problems
    }
    assert not problems


def test_radix_verilog_matches_golden_and_cycles():
    check_in_harness("radix_select", RadixConfig(lanes=4, n_max=128, element_bits=24), n_random=60)


def test_local_verilog_matches_golden_and_cycles():
    config = LocalValueConfig(semantics="score", lanes=4, in_lanes=2, n_max=128, digit_bits=4)
    check_in_harness("local_value_select", config, n_random=60)


@pytest.mark.full
@pytest.mark.parametrize("config", [
    RadixConfig(lanes=lanes, element_bits=bits) for lanes, bits in ((1, 12), (16, 12), (16, 24), (32, 40))
], ids=str)  # fmt: skip
def test_radix_verilog_on_1000_vectors(config):
    check_in_harness("radix_select", config, n_random=1000)


@pytest.mark.full
@pytest.mark.parametrize("config", [
    LocalValueConfig(), LocalValueConfig(semantics="score"), LocalValueConfig(engine="quickselect"),
    LocalValueConfig(engine="quickselect", semantics="score", score_bits=32),
    LocalValueConfig(semantics="score", in_lanes=16),
    LocalValueConfig(semantics="score", in_lanes=16, payload_bits=10, score_bits=24, score_is_signed=False),
], ids=str)  # fmt: skip
def test_local_verilog_on_500_rows(config):
    check_in_harness("local_value_select", config, n_random=500)


@pytest.mark.parametrize(
    "config", [RadixConfig(element_bits=12), RadixConfig(element_bits=24), SMALL], ids=str
)
def test_worst_case_is_reached_by_equal_elements_and_never_exceeded(config):
    rng = np.random.default_rng(5)
    for n in (2, 17, config.n_max):
        worst = int(worst_selection_cycles(n, config))
        equal = replay([(np.full(n, 5), 1, 0)], config)[0]
        assert equal.selection_cycles == worst
        others = replay(list(random_requests(n, 200, config, rng)), config)
        assert max(timing.selection_cycles for timing in others) <= worst


def test_passes_end_where_a_bin_separates_exactly_k():
    elements = np.array([0x400, 0x401, 0x3FF, 0x001])
    assert replay([(elements, 2, 0)], SMALL)[0].pass_lines == (1,)
    assert replay([(elements, 1, 0)], SMALL)[0].pass_lines == (1, 1, 1)


def test_radix_takes_fewer_cycles_than_quick_select_on_probabilities():
    """1,024 random 12-bit elements, 16 lanes: two passes, whatever the data."""
    rng = np.random.default_rng(6)
    requests = [(rng.integers(0, 4096, 1024), 512, 0) for _ in range(100)]
    radix = replay(requests, RadixConfig(element_bits=12))
    quick = quickselect_replay(requests, TopKConfig(element_bits=12))
    assert max(t.selection_cycles for t in radix) == 138
    assert np.mean([t.selection_cycles for t in quick]) > 200


MUTANTS = [
    ("bin after the k-th", "hw.select.histogram", "(lack <= 0) if i", "(lack < 0) if i"),
    ("places instead of groups", "hw.select.histogram", "group, place = digit[half:], digit[:half]",
     "place, group = digit[half:], digit[:half]"),
    ("counts on from the pass before", "hw.select.histogram", "Mux(first[1], 0, count)", "count"),
    ("early end missed by one", "hw.select.rtl", "(passes.excess == 0)", "(passes.excess == 1)"),
    ("decides a cycle early", "hw.select.rtl", "wait.eq(DECIDE_CYCLES - 1)", "wait.eq(DECIDE_CYCLES - 2)"),
    ("decides a cycle early after the load", "hw.select.rtl", "wait.eq(DECIDE_CYCLES)",
     "wait.eq(DECIDE_CYCLES - 1)"),
    ("does not wait for the filter", "hw.select.rtl", "with m.If(~final.busy):", "with m.If(1):"),
    ("keeps one equal element too few", "hw.select.rtl", "Mux(k == n, n, passes.rest)",
     "Mux(k == n, n, passes.rest - 1)"),
    ("lanes past the list count", "hw.select.digits",
     "self.mask[lane] & (is_first_pass | (top == self.digit_before))",
     "(is_first_pass & self.mask[lane]) | (~is_first_pass & (top == self.digit_before))"),
    ("elements of other bins count", "hw.select.digits", "(top == self.digit_before)", "1"),
    ("list kept after an early end", "hw.select.digits", "ResetInserter(self.clear)(listed)", "listed"),
    ("ready stuck at 1", "hw.select.rtl", "self.i.ready.eq(~final.busy | (load_line < final.line_number))",
     "self.i.ready.eq(1)"),
    ("digit in the wrong place", "hw.select.rtl", "cfg.padded_bits - (number + 1) * cfg.digit_bits",
     "cfg.padded_bits - (cfg.n_digits - number) * cfg.digit_bits"),
]  # fmt: skip

LOCAL_MUTANTS = [
    ("signed scores taken as unsigned", BY_SCORE, ".as_unsigned() ^ inverted", ".as_unsigned()"),
    ("unsigned scores taken as signed", TOKENS, "inverted = -self.config.lowest_score",
     "inverted = 1 << (self.config.score_bits - 1)"),
    ("lines after the last mark stay", BY_SCORE, "found_all.eq(~line.payload.last & (found_all | last_mark))",
     "found_all.eq(0)"),
    ("a row that is marked to its end drops the next", BY_SCORE,
     "~line.payload.last & (found_all | last_mark)", "found_all | last_mark"),
    ("last lost", BY_SCORE, "eliminator.i.payload.last.eq(last_mark)", "eliminator.i.payload.last.eq(0)"),
    ("marks taken without probabilities", BY_SCORE, "marks.o.ready.eq(line.valid & ~found_all &",
     "marks.o.ready.eq(~found_all &"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_radix_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(module, old, new)
    if module == "hw.select.histogram":
        monkeypatch.setattr("hw.select.digits.Histogram", mutant.Histogram)
    if module == "hw.select.digits":
        monkeypatch.setattr("hw.select.rtl.DigitPass", mutant.DigitPass)
    component = getattr(mutant, "RadixSelect", RadixSelect)
    rng = np.random.default_rng(9)
    requests = [
        *random_requests(32, 6, SMALL, rng), *random_requests(13, 6, SMALL, rng), *corner_requests(17, SMALL),
        *(one for n in (32, 3, 32, 1, 32, 5) for one in random_requests(n, 1, SMALL, rng)),
    ]  # fmt: skip
    one = case("mutant", requests, SMALL, rng, replay)
    assert any(problems_of(component, SMALL, (one, slowed(one))))


@pytest.mark.parametrize(("name", "config", "old", "new"), LOCAL_MUTANTS, ids=[m[0] for m in LOCAL_MUTANTS])
def test_local_mutant_is_caught(name, config, old, new):
    mutant = mutated("hw.select.rtl", old, new)
    rng = np.random.default_rng(9)
    rows = [*random_rows(17, 5, config, rng), *corner_rows(6, config), *random_rows(32, 3, config, rng)]
    one = local_case("mutant", rows, config)
    assert any(problems_of(mutant.LocalValueSelect, config, (one, slowed(one))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..32, not 3"),
        ({"element_bits": 41}, "element_bits must be in 8..40, not 41"),
        ({"digit_bits": 3}, "digit_bits must be 2, 4 or 6, not 3"),
        ({"digit_bits": 8}, "digit_bits must be 2, 4 or 6, not 8"),
    ],
)
def test_radix_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        RadixConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "sort"}, "engine must be quickselect or radix, not 'sort'"),
        ({"semantics": "value"}, "semantics must be probability or score, not 'value'"),
        ({"in_lanes": 3}, r"in_lanes must be a power of two in 1..16 \(lanes\), not 3"),
        ({"in_lanes": 32}, r"in_lanes must be a power of two in 1..16 \(lanes\), not 32"),
        ({"n_max": 1000}, "n_max must be a power of two in 32..65536, not 1000"),
        ({"engine": "quickselect", "semantics": "score"},
         "score_bits must be in 8..32 with engine quickselect, not 36"),
        ({"semantics": "score", "score_bits": 41}, "score_bits must be in 8..40 with engine radix, not 41"),
        ({"payload_bits": 7}, "payload_bits must be in 8..40 with engine radix, not 7"),
        ({"engine": "quickselect", "payload_bits": 33},
         "payload_bits must be in 8..32 with engine quickselect, not 33"),
        ({"semantics": "score", "payload_bits": 0}, "payload_bits must be in 1..40, not 0"),
    ],
)  # fmt: skip
def test_local_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalValueConfig(**changes)


@pytest.mark.parametrize(
    ("probabilities", "k", "scores", "message"),
    [
        (torch.zeros(0, dtype=torch.int64), 0, None, "n must be in 1..1024, not 0"),
        (torch.tensor([4096]), 1, torch.tensor([0]), "probabilities must be in 0..4095, not 4096..4096"),
        (torch.tensor([1, 2]), 3, torch.tensor([0, 1]), r"k must be in 0..2 \(n\), not 3"),
        (torch.tensor([1, 2]), 1, torch.tensor([0]), "scores must have 2 values, not 1"),
        (torch.tensor([1]), 1, None, "scores must have 1 values, not 0"),
        (torch.tensor([1]), 1, torch.tensor([-(1 << 35) - 1]),
         r"scores must be in -34359738368..34359738367, not -34359738369"),
        (torch.tensor([1]), 1, torch.tensor([1 << 35]),
         r"scores must be in -34359738368..34359738367, not 34359738368"),
    ],
)  # fmt: skip
def test_golden_rejects_bad_rows(probabilities, k, scores, message):
    with pytest.raises(ValueError, match=message):
        local_values(probabilities, k, LocalValueConfig(semantics="score"), scores)


def test_radix_and_quick_select_return_the_same():
    rng = np.random.default_rng(8)
    for elements, k, _ in random_requests(100, 50, TopKConfig(), rng):
        tensor = torch.from_numpy(elements)
        for a, b in zip(top_k(tensor, k, TopKConfig()), radix_select(tensor, k, RadixConfig()), strict=True):
            assert torch.equal(a, b)
