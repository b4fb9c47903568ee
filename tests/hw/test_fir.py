# SPDX-License-Identifier: MIT
"""Filter: golden against the float layers, RTL against golden and cycle model, mutants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algo.anycost.layers import blur, upsample
from hw.config import PRESETS
from hw.fir.config import FirConfig, Map, fir_config
from hw.fir.cycles import map_cycles, replay
from hw.fir.golden import filtered
from hw.fir.rtl import Fir
from hw.fir.vectors import cases
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.systolic.descriptor import Layer
from hw.systolic.golden import convolution
from tests.hw.mutants import mutated

WIDE = FirConfig(lanes=8, element_bits=32, out_bits=34, row_beats=256)
SMALL = FirConfig(lanes=2, element_bits=6, out_bits=6, row_beats=12, max_channels=5, max_size=12)
CONFIGS = [
    SMALL,
    FirConfig(lanes=1, element_bits=2, out_bits=2, row_beats=2, max_channels=1, max_size=2),
    FirConfig(lanes=1, row_beats=9, max_channels=3, max_size=9),
    FirConfig(lanes=3, element_bits=32, out_bits=32, row_beats=13, max_channels=8, max_size=16),
]


def reference(x, up):
    """The float layer on float64[height, width, channels]."""
    x = x.permute(2, 0, 1)[None]
    return (upsample(x) if up else blur(x, 1, gain=4))[0].permute(1, 2, 0)


def noise(of, bits, seed):
    bound = 1 << (bits - 1)
    return torch.from_numpy(
        np.random.default_rng(seed).integers(-bound, bound, (of.height, of.width, of.channels))
    )


@given(
    up=st.booleans(),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    bits=st.integers(2, 32),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_golden_is_the_float_layer_rounded_once(up, height, width, bits, seed):
    """Float64 holds these sums exactly. So golden is at most 1/2 above, and less than 1/2 below."""
    of = Map(upsample=up, height=height, width=width, channels=3)
    config = FirConfig(element_bits=bits, out_bits=bits + 2)
    x = noise(of, bits, seed)
    exact = reference(x.double(), up)
    y = filtered(x, of, config)
    assert y.shape == (*of.out_size, 3)
    assert torch.equal(y.double(), torch.floor(exact + 0.5))
    error = y - exact
    assert float(error.min()) > -0.5 and float(error.max()) <= 0.5


@pytest.mark.parametrize(("up", "bound_steps"), [(False, 2.5), (True, 1.0)], ids=["blur", "upsample"])
def test_error_against_float_is_the_inputs_times_the_gain_and_one_rounding(up, bound_steps):
    """Elements half a step off, times 4 (blur) or 1 (weights add up to 64 / 16 or 16 / 16), plus 1/2."""
    of = Map(upsample=up, height=12, width=11, channels=4)
    real = 100 * torch.randn(of.height, of.width, of.channels, generator=torch.Generator().manual_seed(1))
    steps = real.double().round().long()
    error = (filtered(steps, of, WIDE) - reference(real.double(), up)).abs().max()
    assert bound_steps / 4 < float(error) <= bound_steps
    worst = torch.full_like(real, 0.5).double()  # half to even: 0
    error = (filtered(worst.round().long(), of, WIDE) - reference(worst, up)).abs().max()
    assert float(error) == (0.5 if up else 2.0)


@pytest.mark.parametrize("value", [-(2**31), 2**31 - 1])
def test_extremes_need_two_bits_more_or_saturate(value):
    of = Map(upsample=False, height=4, width=4, channels=1)
    x = torch.full((4, 4, 1), value)
    inside = filtered(x, of, WIDE)[1, 1, 0]
    assert int(inside) == 4 * value
    narrow = FirConfig(lanes=8, element_bits=32, out_bits=32)
    assert int(filtered(x, of, narrow)[1, 1, 0]) == value
    up = Map(upsample=True, height=4, width=4, channels=1)
    assert int(filtered(x, up, narrow)[3, 3, 0]) == value


def test_blurs_the_sums_of_a_transposed_convolution():
    """Sums of the systolic array, 2H + 1 wide, to 2H: as the generator's layer, rounded once."""
    layer = Layer(height=3, width=4, n_in=5, n_out=6, kernel=3, stride=2, transposed=True)
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.integers(-128, 128, (3, 4, 5)))
    w = torch.from_numpy(rng.integers(-128, 128, (6, 5, 3, 3)))
    of = Map(upsample=False, height=7, width=9, channels=6)
    y = filtered(convolution(x, w, layer), of, WIDE)
    grown = torch.nn.functional.conv_transpose2d(
        x.permute(2, 0, 1)[None].double(), w.transpose(0, 1).double(), stride=2
    )
    want = torch.floor(blur(grown, 1, gain=4) + 0.5)[0].permute(1, 2, 0)
    assert y.shape == (6, 8, 6)
    assert torch.equal(y.double(), want)


@pytest.mark.parametrize(("up", "shared"), [(False, 3), (True, 1)], ids=["blur", "upsample"])
def test_strips_make_the_whole_map(up, shared):
    """Columns 0..6 and those from 7 - ``shared`` on; each loses the output column next to the cut."""
    whole = Map(upsample=up, height=5, width=12, channels=3)
    x = noise(whole, 8, seed=4)
    left, right = x[:, :7], x[:, 7 - shared :]
    parts = [
        filtered(part.contiguous(), Map(upsample=up, height=5, width=part.shape[1], channels=3), WIDE)
        for part in (left, right)
    ]
    joined = torch.cat([parts[0][:, :-1], parts[1][:, 1:]], dim=1)
    assert torch.equal(joined, filtered(x, whole, WIDE))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    made = cases(config, seed=1, n_random=3)
    runs = [one.stalled(p_stall, seed=2) if p_stall else one for one in made]
    for one, log in run_cases(Fir(config), runs):
        verdict = judge(one, log)
        assert verdict.problems == () and verdict.n_beats > 0


def test_cycles_are_a_beat_each():
    up = Map(upsample=True, height=3, width=5, channels=17)
    down = Map(upsample=False, height=9, width=7, channels=17)
    assert map_cycles(up, WIDE) == 4 * 3 * 5 * 3
    assert map_cycles(down, WIDE) == (10 * 7 + 1) * 3
    first, second, third = replay([up, down, up], WIDE)
    assert np.all(np.diff(first) == 1) and first[0] == 5
    assert len(second) == 8 * 6 * 3
    assert third[0] - second[-1] == 1  # no step is lost between maps


MUTANTS = [
    ("line begins with the one before", "axis", "return x, Mux(do.first, 0, a), b", "return x, a, b"),
    ("next line for a border", "axis", "Mux(do.first, 0, x) + c", "x + c"),
    ("carry lost", "axis", 'signed(self.bits + 1), name=f"p{lane}"', 'signed(self.bits), name=f"p{lane}"'),
    ("weight 2 for 3", "axis", "eq((p << 1) + p + q)", "eq((p << 1) + q)"),
    ("odd and even swapped", "axis", "Mux(do.odd, x, b)", "Mux(do.odd, b, x)"),
    ("old element for a border", "axis", "Mux(do.fresh, self.x[lane], 0)", "self.x[lane]"),
    ("single line read too early", "axis", "read_port(transparent_for=(write,))", "read_port()"),
    ("remembers nothing as something", "axis", " & self.operation.fresh)", ")"),
    ("remembers what did not come", "axis", "self.enable & self.valid &", "self.enable &"),
    ("ends a row early", "scan", "of.height + 1))", "of.height))"),
    ("takes an element for the border", "scan", "(column[0] & (column != last_column))", "column[0]"),
    ("rows run on", "scan", "[step.position.eq(0), column.eq(0),", "[column.eq(0),"),
    ("emits a row early", "scan", "row >= 3", "row >= 2"),
    ("full last beat makes another", "scan", "step.n_left <= cfg.lanes", "step.n_left < cfg.lanes"),
    ("map taken late", "scan", "~self.o.valid | (moves & step.last)", "~self.o.valid"),
    ("map taken early", "scan", "(moves & step.last))", "step.last)"),
    ("cut for rounded", "rtl", "(total + (1 << (SHIFT - 1))) >> SHIFT", "total >> SHIFT"),
    ("wraps around", "rtl", "Mux(rounded >= high, high - 1, rounded)", "rounded"),
    ("lanes without a channel speak", "rtl", "Mux(lane < step.n_left, rounded, 0)", "rounded"),
    ("drops last", "rtl", "self.o.payload.last.eq(step.last)", "self.o.payload.last.eq(0)"),
    ("takes while it stands", "rtl", "self.i.ready.eq(flow & scan", "self.i.ready.eq(scan"),
    ("goes on without input", "rtl", "ready.eq(flow & (self.i.valid | ~takes))", "ready.eq(flow)"),
    ("overruns the output", "rtl", "flow.eq(~self.o.valid | self.o.ready)", "flow.eq(1)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(f"hw.fir.{module}", old, new)
    if module == "rtl":
        component = mutant.Fir(SMALL)
    else:
        part = module.capitalize()
        monkeypatch.setattr(f"hw.fir.rtl.{part}", getattr(mutant, part))
        component = Fir(SMALL)
    full_rate = cases(SMALL, seed=1, n_random=1)
    runs = [*full_rate, *(one.stalled(0.5, seed=2, slowdown=3) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component, runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 65}, "lanes must be in 1..64, not 65"),
        ({"element_bits": 33}, "element_bits must be in 2..32, not 33"),
        ({"element_bits": 8, "out_bits": 11}, "out_bits must be in 2..10, not 11"),
        ({"row_beats": 1}, "row_beats must be in 2..65536, not 1"),
        ({"max_channels": 0}, "max_channels must be in 1..4096, not 0"),
        ({"max_size": 1}, "max_size must be in 2..8193, not 1"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        FirConfig(**changes)


def test_rejects_what_it_cannot_take():
    with pytest.raises(ValueError, match="height must be at least 2, not 1"):
        Map(upsample=False, height=1, width=2, channels=1)
    with pytest.raises(ValueError, match="channels must be at least 1, not 0"):
        Map(upsample=True, height=1, width=1, channels=0)
    for (height, width, channels), message in (
        ((13, 2, 1), "height must be at most 12, not 13"),
        ((2, 13, 1), "width must be at most 12, not 13"),
        ((2, 2, 6), "channels must be at most 5, not 6"),
        ((2, 7, 3), "a row must be at most 12 beats, not 14"),
    ):
        with pytest.raises(ValueError, match=message):
            Map(upsample=True, height=height, width=width, channels=channels).check(SMALL)
    of = Map(upsample=True, height=2, width=2, channels=1)
    with pytest.raises(TypeError, match=r"x must be int64\[2, 2, 1\], not torch.float32\[2, 2, 1\]"):
        filtered(torch.zeros(2, 2, 1), of, SMALL)
    with pytest.raises(ValueError, match=r"x must be in -32..31"):
        filtered(torch.full((2, 2, 1), 32), of, SMALL)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_take_the_key_srams_bytes_and_the_arrays_columns(name):
    chip = PRESETS[name]
    config = fir_config(chip)
    row_bytes = 3 * config.row_beats * config.lanes * config.element_bits // 8
    assert chip.kv_sram_bytes - row_bytes < 3 * config.lanes * 2 and row_bytes <= chip.kv_sram_bytes
    assert (config.element_bits, config.out_bits) == (16, 18)
