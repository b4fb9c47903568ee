# SPDX-License-Identifier: MIT
"""Query-times-key array: golden against float64, RTL against golden (bits) and cycle model, mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import PRESETS, ChipConfig
from hw.harness import cosim, verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.kv_buffer.config import KvBufferConfig
from hw.kv_buffer.cycles import Load
from hw.kv_buffer.golden import to_lines
from hw.qk.config import SCORE_BITS, QkConfig, qk_config
from hw.qk.cycles import RowShape, replay, row_cycles, row_latency_cycles
from hw.qk.golden import scores
from hw.qk.rtl import Qk
from hw.qk.vectors import cases
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

SMALL = QkConfig(n_multipliers=64, max_head_dim=64, n_lines=8, n_max=64)
WIDE = QkConfig(n_multipliers=128, n_lines=4, n_max=16)
BUILT = [
    SMALL,
    replace(SMALL, n_regions=4),
    QkConfig(n_multipliers=32, max_head_dim=32, n_lines=4, n_max=16, element_bits=5),
]
CHIP = QkConfig()


@given(
    head_dim=st.sampled_from([32, 64, 128]),
    msb_bits=st.sampled_from([4, 6, 8, 10, 12]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_two_planes_make_the_exact_product(head_dim, msb_bits, seed):
    """float64 holds every product and sum below 2^53, so the comparison is exact."""
    rng = np.random.default_rng(seed)
    query = rng.integers(-2048, 2048, head_dim)
    keys = rng.integers(-(1 << (msb_bits + 3)), 1 << (msb_bits + 3), (9, head_dim))
    msb, lsb = keys >> 4, keys & 15
    exact = keys.astype(np.float64) @ query.astype(np.float64)
    passes = [scores(torch.from_numpy(query), torch.from_numpy(plane), CHIP) for plane in (msb, lsb)]
    joined = 16 * passes[0] + passes[1]
    assert np.array_equal(joined.numpy(), exact.astype(np.int64))
    assert int(joined.abs().max()) < 1 << (SCORE_BITS - 2)


@pytest.mark.parametrize(("query", "key"), [(-2048, -2048), (-2048, 2047), (2047, -2048)])
def test_extreme_scores_fit_their_widths(query, key):
    of_msb = int(scores(torch.full((128,), query), torch.full((1, 128), key), CHIP)[0])
    of_lsb = int(scores(torch.full((128,), query), torch.full((1, 128), 15), CHIP)[0])
    assert -(1 << (CHIP.sum_bits - 1)) <= of_msb < 1 << (CHIP.sum_bits - 1)
    assert abs(16 * of_msb + of_lsb) < 1 << (SCORE_BITS - 2)


def test_golden_rejects_what_the_array_cannot_take():
    query, keys = torch.zeros(64, dtype=torch.int64), torch.zeros(3, 64, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"query must be int64 of 1 axes, not torch.float32\[64\]"):
        scores(query.float(), keys, CHIP)
    with pytest.raises(ValueError, match=r"head_dim must be one of \(32, 64\), not 128"):
        scores(torch.zeros(128, dtype=torch.int64), torch.zeros(3, 128, dtype=torch.int64), SMALL)
    with pytest.raises(ValueError, match=r"keys must be in -2048..2047"):
        scores(query, keys + 2048, CHIP)


def test_lines_hold_vectors_side_by_side():
    vectors = torch.arange(3 * 32).reshape(3, 32)
    lines = to_lines(vectors, KvBufferConfig(n_multipliers=64, element_bits=12, n_lines=4))
    assert lines.tolist() == [list(range(64)), [*range(64, 96), *[0] * 32]]


@pytest.mark.parametrize("config", BUILT, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(config, p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(config, seed=3, n_random=12)]
    for one, log in run_cases(Qk(config), chosen):
        assert judge(one, log).problems == ()


@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_128_dimensions_in_amaranth(p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in cases(WIDE, seed=3, n_random=0)]
    for one, log in run_cases(Qk(WIDE), chosen[:3]):
        assert judge(one, log).problems == ()


def check_in_harness(config: QkConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    block = BLOCKS["qk"]
    full_rate = block.cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(block, config, runs)
    verdicts = [judge(one, log) for one, log in zip(runs, logs, strict=True)]
    assert {v.case: v.problems for v in verdicts if v.problems} == {}


def test_verilog_matches_golden_and_cycles():
    check_in_harness(qk_config(PRESETS["tiny"]), n_random=150)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_match_golden_and_cycles(name):
    check_in_harness(qk_config(PRESETS[name]), n_random=60)


@pytest.mark.full
@pytest.mark.parametrize("simulator", cosim.SIMULATORS)
def test_cocotb(simulator):
    if reason := cosim.missing_simulator(simulator):
        pytest.skip(reason)
    block, config = BLOCKS["qk"], qk_config(PRESETS["tiny"])
    full_rate = block.cases(config, seed=5, n_random=10)
    runs = [*full_rate, *(one.stalled(0.3, seed=6) for one in full_rate)]
    logs = cosim.run_cases(block, config, runs, simulator)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [()] * len(runs)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("n_keys", [1, 4, 100, 512])
def test_closed_forms_equal_the_replay(head_dim, n_keys):
    n_lines = -(-n_keys * head_dim // CHIP.n_multipliers)
    row = RowShape(head_dim=head_dim, region=0, base_line=0, n_keys=n_keys)
    first, second, third = replay([Load(region=0, n_lines=n_lines)], [row] * 3, CHIP)
    assert third[0] - second[0] == row_cycles(n_keys, head_dim, CHIP)
    # The first row's lines are written from cycle 2 on and read a cycle after; a loaded row does not wait.
    assert first[-1] == row_latency_cycles(n_keys, head_dim, CHIP) + 1


def test_a_row_that_is_never_loaded_is_named():
    row = RowShape(head_dim=64, region=0, base_line=2, n_keys=1)
    with pytest.raises(ValueError, match="line 2 of region 0 is read, but loads bring 2"):
        replay([Load(region=0, n_lines=2)], [row], CHIP)


MUTANTS = [
    ("a sum loses its guard bit", "hw.qk.rtl",
     "product.eq(", "product[:-1].eq("),
    ("one key too few in the last line (`<` for `<=`)", "hw.qk.rtl",
     "last_line.eq(n_left <= vectors)", "last_line.eq(n_left < vectors)"),
    ("head dimensions swapped at the tree", "hw.qk.rtl",
     "score.eq(Mux(lane < count, select(head_dim, choices), 0))",
     "score.eq(Mux(lane < count, select(~head_dim, choices), 0))"),
    ("lanes past the row show the rest of the line", "hw.qk.rtl",
     "Mux(lane < count, select(head_dim, choices), 0)", "select(head_dim, choices)"),
    ("query not repeated over the line", "hw.qk.rtl",
     "query.data[e % d]", "query.data[e]"),
    ("query out of step with its keys", "hw.qk.rtl",
     "delayed(m, held, READ_LATENCY_CYCLES, ", "delayed(m, held, READ_LATENCY_CYCLES - 1, "),
    ("reads a line that is not there yet", "hw.qk.rtl",
     "(line < n_written)", "(line <= n_written)"),
    ("base line ignored: both planes read the same", "hw.qk.rtl",
     "line.eq(query.base_line)", "line.eq(0)"),
    ("regions swapped on the read side", "hw.qk.rtl",
     "line_address(cfg.buffer, region, line)", "line_address(cfg.buffer, ~region, line)"),
    ("last of the row lost", "hw.qk.rtl",
     '"last": last & ends', '"last": last & ~ends'),
    ("queue overruns: credits ignored", "hw.qk.rtl",
     "(credits_left != 0)", "1"),
    ("a bubble between rows", "hw.qk.rtl",
     "((~active | ends) & ", "(~active & "),
    ("region released before all its lines came", "hw.qk.rtl",
     "~(last_line & (n_written < release))", "1"),
    ("a load overruns the region being read", "hw.kv_buffer.rtl",
     "(load.payload.append | is_free.bit_select(load.payload.region, 1))", "1"),
    ("ready of the lines stuck at 1", "hw.kv_buffer.rtl",
     "line.ready.eq(n_left != 0)", "line.ready.eq(1)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(module, old, new)
    if module == "hw.kv_buffer.rtl":
        monkeypatch.setattr("hw.qk.rtl.KvBuffer", mutant.KvBuffer)
    component = mutant.Qk if module == "hw.qk.rtl" else Qk
    full_rate = cases(SMALL, seed=3, n_random=8)
    runs = [*full_rate, *(one.stalled(0.5, seed=4, slowdown=4) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component(SMALL), runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_multipliers": 96}, r"n_multipliers must be a power of two in 32..2048, not 96"),
        ({"max_head_dim": 96}, "max_head_dim must be one of 32, 64, 128, not 96"),
        ({"n_multipliers": 64}, "max_head_dim must be at most n_multipliers = 64, not 128"),
        ({"n_lines": 100}, r"n_lines must be a power of two in 2..65536, not 100"),
        ({"element_bits": 1}, r"element_bits must be in 2..16, not 1"),
        ({"element_bits": 15}, r"element_bits must be in 2..14, not 15"),
        ({"n_max": 1000}, r"n_max must be a power of two in 2..65536, not 1000"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        QkConfig(**changes)


def test_chips():
    assert [qk_config(chip).n_lines for chip in PRESETS.values()] == [128, 128, 128, 128, 64]
    assert [qk_config(chip).max_head_dim for chip in PRESETS.values()] == [128, 64, 128, 64, 64]
    chip = ChipConfig(name="own", n_multipliers=16)
    with pytest.raises(ValueError, match="n_multipliers must be at least 32, not 16"):
        qk_config(chip)
    with pytest.raises(ValueError, match="kv_sram_bytes must hold four lines of 512 x 12 bits, not 3000"):
        qk_config(replace(chip, n_multipliers=512, kv_sram_bytes=3000))
