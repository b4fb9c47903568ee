# SPDX-License-Identifier: MIT
"""Transposer: RTL against golden and cycle model, mutants."""

import pytest
import torch

from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.transpose.config import Map, TransposeConfig
from hw.transpose.cycles import map_cycles, replay
from hw.transpose.golden import transposed
from hw.transpose.rtl import Transpose
from hw.transpose.vectors import cases
from tests.hw.mutants import mutated

SMALL = TransposeConfig(lanes=4)


def problems(config, made):
    return [p for case, log in run_cases(Transpose(config), made) for p in judge(case, log).problems]


@pytest.mark.parametrize("lanes", [2, 4, 6])
def test_rtl_matches_golden_and_cycles(lanes):
    config = TransposeConfig(lanes=lanes)
    made = cases(config, seed=1, n_random=4)
    assert problems(config, made) == []
    assert problems(config, [case.stalled(0.4, seed=2) for case in made]) == []


def test_verilog_matches_golden_and_cycles():
    config = TransposeConfig(lanes=8)
    made = cases(config, seed=3, n_random=30)
    made += [case.stalled(p, seed=4) for case in made for p in (0.2, 0.7)]
    logs = verilated.run_cases(BLOCKS["transpose"], config, made)
    assert [judge(case, log).problems for case, log in zip(made, logs, strict=True)] == [()] * len(made)


def test_a_beat_a_cycle():
    """Whole blocks: as many cycles as beats."""
    whole = Map(n_pixels=40, n_channels=16, wide=True)
    assert map_cycles(whole, SMALL) == 160
    for of in (whole, Map(n_pixels=9, n_channels=6, wide=False)):
        stamps = replay([of] * 4, SMALL)
        beats = len(stamps) // 4
        assert stamps[3 * beats] - stamps[2 * beats] == map_cycles(of, SMALL)


def test_rejects_bad_input():
    with pytest.raises(ValueError, match=r"lanes must be in 2\.\.64, not 1"):
        TransposeConfig(lanes=1)
    with pytest.raises(ValueError, match=r"n_pixels must be in 1\.\.16777215, not 0"):
        Map(n_pixels=0, n_channels=1, wide=True)
    with pytest.raises(ValueError, match=r"x must be in -128\.\.127"):
        transposed(torch.tensor([[128]]), Map(n_pixels=1, n_channels=1, wide=False))
    with pytest.raises(TypeError, match=r"x must be int64\[1, 2\], not torch.int64\[1, 1\]"):
        transposed(torch.tensor([[128]]), Map(n_pixels=1, n_channels=2, wide=True))


MUTANTS = [
    ("banks not turned", 'rotated(m, elements, beat, "turned_in", down=True)', "elements"),
    ("turned the other way", '"turned_in", down=True', '"turned_in"'),
    ("lanes not turned back", 'rotated(m, found, turn, "turned_out")', "found"),
    ("all banks at one place", "number + lanes - channel, number - channel", "channel, channel"),
    ("one half", "half.eq(~half)", "half.eq(half)"),
    ("written before it is read", "active & ~full.bit_select(half, 1)", "active"),
    ("read before it is written", "flow & full.bit_select(half, 1)", "flow"),
    ("lanes without a pixel", "Mux(lane < n_pixels, element, 0)", "element"),
    ("channels that are none", "Mux(channels_left > lanes, lanes, channels_left)", "lanes"),
    ("a block too few", "channels_left <= lanes", "channels_left <= lanes + 1"),
    ("bytes as halves", "Mux(of.wide, wide, narrow)", "wide"),
    ("bytes without sign", "NARROW_BITS).as_signed()", "NARROW_BITS)"),
    ("a beat lost", "flow.eq(~self.o.valid | self.o.ready)", "flow.eq(1)"),
    ("rows run on", "channels_left.eq(of.n_channels), of.n_pixels", "of.n_pixels"),
]


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.transpose.rtl", old, new)
    made = cases(SMALL, seed=5, n_random=0)
    runs = run_cases(mutant.Transpose(SMALL), [*made, *(case.stalled(0.4, seed=6) for case in made)])
    assert any(judge(case, log).problems for case, log in runs), name
