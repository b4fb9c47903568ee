# SPDX-License-Identifier: MIT
"""Epilogue: golden against exact and float arithmetic, RTL against golden and cycle model, mutants."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import PRESETS
from hw.epilogue.config import (
    LATENCY_CYCLES,
    SLOPE,
    SLOPE_SHIFT,
    Activation,
    EpilogueConfig,
    Job,
    Reader,
    Reduction,
    Side,
    Table,
    epilogue_config,
)
from hw.epilogue.cycles import job_cycles, replay
from hw.epilogue.golden import epilogue
from hw.epilogue.rtl import Epilogue
from hw.epilogue.vectors import cases
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.systolic.config import systolic_config
from tests.hw.mutants import mutated

SMALL = EpilogueConfig(lanes=2, max_tiles=3)
CONFIGS = [SMALL, EpilogueConfig(lanes=1, max_tiles=2), EpilogueConfig(lanes=5, max_tiles=4)]


def signed(bits):
    return st.one_of(
        st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        st.sampled_from([-(1 << (bits - 1)), -1, 0, 1, (1 << (bits - 1)) - 1]),
    )


def nearest(x):
    """Half up."""
    return floor(x + Fraction(1, 2))


def clamp(x, bits):
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, x))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_golden_is_exact_arithmetic_rounded_half_up(data):
    draw = data.draw
    x, bias, side, scale = (draw(signed(bits)) for bits in (32, 24, 16, 16))
    multiplier, limit = draw(st.integers(0, 65535)), draw(st.integers(0, (1 << 23) - 1))
    reader = Reader(shift=draw(st.integers(0, 39)), wide=draw(st.booleans()))
    kind = draw(st.sampled_from(Side))
    side = side & 1 if kind == Side.MASK else side
    reduction = Reduction.PRODUCT if kind == Side.PRODUCT else draw(st.sampled_from(list(Reduction)[:2]))
    job = Job(
        shift=draw(st.integers(0, 47)),
        side=kind,
        side_shift=draw(st.integers(0, 15)),
        activation=draw(st.sampled_from(Activation)),
        limit=limit,
        readers=(reader,),
        reduction=reduction,
        reduce_shift=draw(st.integers(0, 23)),
    )
    t = clamp(nearest(Fraction(x * multiplier, 1 << job.shift)), 24)
    u = clamp(t + bias + (side * (1 << job.side_shift) if kind in (Side.NOISE, Side.RESIDUAL) else 0), 24)
    v = {
        Activation.NONE: u,
        Activation.RELU: max(u, 0),
        Activation.RELU6: min(max(u, 0), limit),
        Activation.LEAKY: u if u >= 0 else nearest(u * Fraction(SLOPE, 1 << SLOPE_SHIFT)),
    }[job.activation]
    passes = 0 < u < limit if job.activation == Activation.RELU6 else u > 0
    if kind == Side.MASK and not side:
        v, passes = 0, False
    want = clamp(nearest(Fraction(v * scale, 1 << reader.shift)), reader.bits)
    r = clamp(nearest(Fraction(v, 1 << job.reduce_shift)), 16)
    sums = {Reduction.NONE: None, Reduction.SQUARE: [[r, r * r]], Reduction.PRODUCT: [[r, r * side]]}

    table = Table(multiplier=np.array([multiplier]), bias=np.array([bias]), scales=np.array([[scale]]))
    beside = None if job.side == Side.NONE else torch.tensor([side])
    got = epilogue(torch.tensor([x]), job, table, beside)
    assert (int(got.maps[0]), bool(got.mask)) == (want, passes)
    assert (None if got.sums is None else got.sums.tolist()) == sums[reduction]


def test_sums_run_over_all_pixels_of_each_channel():
    x = torch.tensor([[[3, -2], [5, 70_000]], [[-1, 0], [2, 9]]])
    side = torch.tensor([[[1, -2], [3, 4]], [[5, -6], [-32768, 8]]])
    numbers = Table(multiplier=np.ones(2, int), bias=np.zeros(2, int), scales=np.ones((1, 2), int))
    got = epilogue(x, Job(side=Side.PRODUCT, reduction=Reduction.PRODUCT), numbers, side)
    assert got.sums.tolist() == [[9, 3 + 15 - 5 - 2 * 32768], [32774, 4 + 4 * 32767 + 72]]
    got = epilogue(x, Job(reduction=Reduction.SQUARE, activation=Activation.RELU), numbers)
    assert got.sums.tolist() == [[10, 9 + 25 + 4], [32776, 32767**2 + 81]]


def test_a_table_can_be_had_back_from_its_words():
    made = Table(
        multiplier=np.array([0, 65535]),
        bias=np.array([-(2**23), 2**23 - 1]),
        scales=np.array([[-1, 7], [1, 2]]),
    )
    again = Table.of_words(made.words())
    for name in ("multiplier", "bias", "scales"):
        assert np.array_equal(getattr(again, name), getattr(made, name))


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.name)
def test_error_against_float_keeps_the_bound(activation):
    """docs/epilogue.md derives it. No number saturates here; noise and scales are half a step off at most."""
    generator = torch.Generator().manual_seed(1)
    n, shift, side_shift, out_shift = 16, 24, 4, 20
    x = torch.randint(-(2**24), 2**24, (4000, n), generator=generator)
    scale, bias, noise, style = (
        size * torch.randn(shape, generator=generator).double()
        for size, shape in ((2.0**14, n), (20_000.0, n), (1000.0, (4000, 1)), (2**9, n))
    )
    scale = scale.abs()
    limit = 20_000
    job = Job(
        shift=shift,
        side=Side.NOISE,
        side_shift=side_shift,
        activation=activation,
        limit=limit,
        readers=(Reader(shift=out_shift, wide=True),),
    )
    steps = (scale.round().long(), bias.round().long(), style.round().long())
    table = Table(multiplier=steps[0].numpy(), bias=steps[1].numpy(), scales=steps[2].numpy()[None])
    got = epilogue(x, job, table, noise.round().long()).maps[0]

    u = x * scale * 2.0**-shift + bias + noise * 2**side_shift
    v = {
        Activation.NONE: u,
        Activation.RELU: u.clamp(min=0),
        Activation.RELU6: u.clamp(0, limit),
        Activation.LEAKY: torch.where(u < 0, 0.2 * u, u),
    }[activation]
    want = v * style * 2.0**-out_shift
    of_u = x.abs() * (scale - steps[0]).abs() * 2.0**-shift + 1 + 2.0 ** (side_shift - 1)
    leaky = activation == Activation.LEAKY
    of_v = of_u + leaky * (0.5 + u.abs() * (0.2 - SLOPE / 2**SLOPE_SHIFT))
    bound = (
        0.5 + of_v * steps[2].abs() * 2.0**-out_shift + v.abs() * (style - steps[2]).abs() * 2.0**-out_shift
    )
    error = (got - want).abs()
    assert bool((error <= bound).all())
    assert float((error / bound).max()) > 0.9
    assert float(bound.max()) < 1.0


@pytest.mark.parametrize(
    ("bias", "shift", "out_shift", "wide", "want"),
    [
        (0, 0, 23, True, [32767, -32767]),  # t
        (2**23 - 1, 0, 23, True, [32767, 0]),  # t, then u or not
        (-(2**23), 0, 23, True, [0, -32767]),
        (2**23 - 1, 47, 0, True, [32767, 32767]),  # only the output
        (-(2**23), 47, 0, False, [-128, -128]),
    ],
)
def test_saturates_at_every_stage(bias, shift, out_shift, wide, want):
    numbers = table(multiplier=65535, bias=bias, scale=32767)
    job = Job(shift=shift, readers=(Reader(shift=out_shift, wide=wide),))
    got = epilogue(torch.tensor([[2**31 - 1], [-(2**31)]]), job, numbers)
    assert got.maps[0].flatten().tolist() == want


def test_two_readers_get_their_own_scale_shift_and_width():
    table = Table(multiplier=np.array([1]), bias=np.array([0]), scales=np.array([[3], [-100]]))
    job = Job(readers=(Reader(shift=1), Reader(shift=0, wide=True)))
    got = epilogue(torch.tensor([[5], [1000]]), job, table)
    assert [m.flatten().tolist() for m in got.maps] == [[8, 127], [-500, -32768]]
    assert got.mask.all()


def test_a_table_is_five_beats_a_tile():
    table = Table(
        multiplier=np.array([1, 2, 65535]),
        bias=np.array([-1, 2**22, -(2**23)]),
        scales=np.array([[-1, 7, 8]]),
    )
    assert table.beats(2).tolist() == [
        [1, 2], [0xFFFF, 0], [0xFFFF, 0x40], [0xFFFF, 7], [0, 0],
        [65535, 0], [0, 0], [0xFF80, 0], [8, 0], [0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    made = cases(config, seed=1, n_random=6)
    runs = [one.stalled(p_stall, seed=2) if p_stall else one for one in made]
    for one, log in run_cases(Epilogue(config), runs):
        verdict = judge(one, log)
        assert verdict.problems == () and verdict.n_beats > 0


def test_cycles_are_a_beat_a_reader():
    one = Job(n_beats=7, n_tables=2)
    two = Job(n_beats=4, readers=(Reader(), Reader()))
    assert (job_cycles(one), job_cycles(two)) == (17, 8)
    first, second, third = replay([one, two, two])
    assert first.tolist() == list(range(12 + LATENCY_CYCLES, 19 + LATENCY_CYCLES))
    assert second[0] == first[-1] + 1 and third[0] == second[-1] + 1 and len(third) == 8


MUTANTS = [
    ("noise from every lane", "datapath",
     "self.side[0], self.side[lane]", "self.side[lane], self.side[lane]"),
    ("noise for a residual", "datapath", "self.side[0], self.side[lane]", "self.side[0], self.side[0]"),
    ("side without being asked", "datapath",
     "Mux(is_added, side << steps[0].side_shift, 0)", "(side << steps[0].side_shift)"),
    ("factor added", "datapath", "(kind == Side.NOISE) | (kind == Side.RESIDUAL)",
     "(kind != Side.NONE) & (kind != Side.MASK)"),
    ("mask added", "datapath", "(kind == Side.NOISE) | (kind == Side.RESIDUAL)",
     "(kind != Side.NONE) & (kind != Side.PRODUCT)"),
    ("mask for every side", "datapath", "(kind != Side.MASK) | ", ""),
    ("mask of lane 0", "datapath", "Value.cast(self.side)[lane]", "Value.cast(self.side)[0]"),
    ("mask in words", "datapath", "Value.cast(self.side)[lane]", "self.side[lane].bit_select(0, 1)"),
    ("mask a step early", "datapath", "delayed(m, keeps, 4,", "delayed(m, keeps, 3,"),
    ("masked stays open", "datapath", "~over & kept)", "~over)"),
    ("sums with a mask", "datapath", " & ~steps[-1].sums.gives", ""),
    ("factor a step early", "datapath", "delayed(m, self.side[lane], 5,", "delayed(m, self.side[lane], 4,"),
    ("sums of the next step", "datapath", "steps[5].sums", "steps[4].sums"),
    ("adds a step early", "datapath", "delayed(m, self.adds, 5,", "delayed(m, self.adds, 4,"),
    ("reduced one bit short", "reduce", "signed(REDUCED_BITS)", "signed(REDUCED_BITS - 1)"),
    ("product of sums short", "reduce", "signed(2 * REDUCED_BITS)", "signed(2 * REDUCED_BITS - 1)"),
    ("reduced wraps around", "reduce", "r.eq(saturated(half_up, REDUCED_BITS))", "r.eq(half_up)"),
    ("reduced with the next shift", "reduce", "steps[0].shift", "steps[1].shift"),
    ("always squares", "reduce", "Mux(steps[2].squares, r, side)", "r"),
    ("products of the next kind", "reduce", "steps[2].squares", "steps[1].squares"),
    ("value of the next beat", "reduce", "delayed(m, r, 1,", "delayed(m, r, 0,"),
    ("factor of the next beat", "reduce", "delayed(m, self.side[lane], 2,", "delayed(m, self.side[lane], 1,"),
    ("sums of a beat ago", "reduce", "transparent_for=(write,)", "transparent_for=()"),
    ("sums go on", "reduce", "touched.eq(0)", "touched.eq(touched)"),
    ("sums begin with what was there", "reduce",
     "Mux(touched.bit_select(tile, 1), Value.cast(read.data), 0)", "Value.cast(read.data)"),
    ("tile of the part before", "reduce", 
     "Mux(steps[1].gives, steps[1].tile, steps[2].tile)", "steps[2].tile"),
    ("cleared by the first part", "reduce", "steps[2].gives & steps[2].clears", "steps[2].gives"),
    ("cleared by a beat", "reduce", "steps[2].gives & steps[2].clears", "steps[2].clears"),
    ("sums without sign", "reduce", "total[-1].replicate(padding)", "(total[-1] & 0).replicate(padding)"),
    ("next part", "reduce", "word_select(steps[2].part", "word_select(steps[1].part"),
    ("sum written early", "reduce", "delayed(m, self.adds, 3,", "delayed(m, self.adds, 2,"),
    ("every reader adds", "rtl", "(job.reduction != Reduction.NONE) & (reader == 0)",
     "(job.reduction != Reduction.NONE)"),
    ("sums do not rest", "rtl", "(start.n_tables == 0) & ~start.gives_sums", "start.n_tables == 0"),
    ("sums rest while the output stands", "rtl", "with m.If(resting & flow)", "with m.If(resting)"),
    ("job taken while sums rest", "rtl", 
     "(~loading & ~resting & ~running) | ends", "(~loading & ~running) | ends"),
    ("parts go on from job to job", "rtl", "m.d.sync += number.eq(0)", "pass"),
    ("sums take beats", "rtl", "steps & ends_beat & ~job.gives_sums)", "steps & ends_beat)"),
    ("sums wait for beats", "rtl", "(comes | job.gives_sums)", "comes"),
    ("no mask after two readers", "rtl", "(reader != MASK_READER) & job.mask", "(reader == 0) & job.mask"),
    ("side not shifted", "datapath", "side << steps[0].side_shift", "side"),
    ("bias without its sign", "datapath", "BIAS_LOW_BITS]).as_signed()", "BIAS_LOW_BITS])"),
    ("scale of the other reader", "datapath", "entry[4], entry[3]", "entry[3], entry[4]"),
    ("product one bit short", "datapath",
     "signed(IN_BITS + MULTIPLIER_BITS)", "signed(IN_BITS + MULTIPLIER_BITS - 1)"),
    ("sum one bit short", "datapath",
     "signed(SIDE_BITS + MAX_SIDE_SHIFT + 1)", "signed(SIDE_BITS + MAX_SIDE_SHIFT)"),
    ("second product short", "datapath",
     "signed(VALUE_BITS + SCALE_BITS)", "signed(VALUE_BITS + SCALE_BITS - 2)"),
    ("cut for rounded", "rounding", "half_up.eq((held + 1) >> 1)", "half_up.eq(held >> 1)"),
    ("shift of the next step", "datapath", "product, steps[1].shift", "product, steps[0].shift"),
    ("output shift of the next step", "datapath", "steps[6].out_shift", "steps[5].out_shift"),
    ("bias of the next step", "datapath", "delayed(m, added, 2,", "delayed(m, added, 1,"),
    ("scale of the next step", "datapath", "delayed(m, scale, 5,", "delayed(m, scale, 4,"),
    ("mask of the next step", "datapath", "delayed(m, mask, 2,", "delayed(m, mask, 1,"),
    ("width of the next step", "datapath", "steps[-1].wide", "steps[-2].wide"),
    ("first sum wraps around", "datapath", "t.eq(saturated(half_up, VALUE_BITS))", "t.eq(half_up)"),
    ("second sum wraps around", "datapath", "u.eq(saturated(total, VALUE_BITS))", "u.eq(total)"),
    ("saturates to the wrong end", "rounding",
     "Mux(x < low, low, Mux(x > high, high, x))", "Mux(x < low, low + 1, Mux(x > high, high, x))"),
    ("saturates too high", "rounding", "Mux(x > high, high, x)", "Mux(x > high + 1, high, x)"),
    ("slope cut", "datapath", "u * SLOPE + (1 << (SLOPE_SHIFT - 1))", "u * SLOPE"),
    ("limit for every ReLU", "datapath",
     "(do == Activation.RELU6) &", "((do == Activation.RELU6) | (do == Activation.RELU)) &"),
    ("mask at the limit", "datapath", "mask.eq((u > 0) & ~over", "mask.eq((u > 0)"),
    ("mask at zero", "datapath", "mask.eq((u > 0)", "mask.eq((u >= 0)"),
    ("ReLU6 below zero", "datapath", "m.Case(Activation.RELU, Activation.RELU6)", "m.Case(Activation.RELU)"),
    ("one reader twice", "rtl", "reader.eq(following)", "reader.eq(0)"),
    ("beat taken for each reader", "rtl", "self.i.ready.eq(steps & ends_beat", "self.i.ready.eq(steps"),
    ("side taken for each reader", "rtl",
     "self.i_side.ready.eq(steps & ends_beat & has_side)", "self.i_side.ready.eq(steps & has_side)"),
    ("side taken without being asked", "rtl",
     "self.i_side.ready.eq(steps & ends_beat & has_side)", "self.i_side.ready.eq(steps & ends_beat)"),
    ("does not wait for the side", "rtl", "self.i.valid & (self.i_side.valid | ~has_side)", "self.i.valid"),
    ("overruns the output", "rtl", "flow.eq(~self.o.valid | self.o.ready)", "flow.eq(1)"),
    ("reads on while it stands", "rtl", "read.en.eq(flow)", "read.en.eq(1)"),
    ("job taken late", "rtl", "(~loading & ~resting & ~running) | ends",
     "~loading & ~resting & ~running"),
    ("job taken while loading", "rtl", "(~loading & ~resting & ~running) | ends",
     "(~resting & ~running) | ends"),
    ("runs before its table", "rtl", "running.eq((start.n_tables == 0) & ~", "running.eq(~"),
    ("one entry too few", "rtl", "with m.If(job.n_tables == 1)", "with m.If(job.n_tables <= 2)"),
    ("entries go on", "rtl", "with m.If(~loading):", "with m.If(0):"),
    ("parts in the wrong order", "rtl", "part.rotate_left(1)", "part.rotate_right(1)"),
    ("one beat more", "rtl", "beat_ends & (job.n_beats == 1)", "beat_ends & (job.n_beats == 0)"),
    ("last for one reader only", "rtl",
     "step.last.eq(job.n_beats == 1)", "step.last.eq((job.n_beats == 1) & (number == 0))"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(f"hw.epilogue.{module}", old, new)
    made = mutant.Epilogue if module == "rtl" else Epilogue
    parts = {"datapath": ("rtl.Datapath",), "reduce": ("datapath.Sums",),
             "rounding": ("datapath.shifted", "datapath.saturated")}  # fmt: skip
    for place in parts.get(module, ()):
        monkeypatch.setattr(f"hw.epilogue.{place}", getattr(mutant, place.rpartition(".")[2]))
    component = made(SMALL)
    full_rate = cases(SMALL, seed=1, n_random=6)
    runs = [*full_rate, *(one.stalled(0.5, seed=2, slowdown=3) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component, runs)), name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EpilogueConfig(lanes=65), "lanes must be in 1..64, not 65"),
        (lambda: EpilogueConfig(max_tiles=1), "max_tiles must be in 2..4096, not 1"),
        (lambda: Job(n_beats=0), r"n_beats must be in 1..4294967295, not 0"),
        (lambda: Job(shift=48), "shift must be in 0..47, not 48"),
        (lambda: Job(side_shift=16), "side_shift must be in 0..15, not 16"),
        (lambda: Job(limit=1 << 23), "limit must be in 0..8388607, not 8388608"),
        (lambda: Job(readers=()), "number of readers must be in 1..2, not 0"),
        (lambda: Reader(shift=40), "shift must be in 0..39, not 40"),
        (lambda: Job(reduce_shift=24), "reduce_shift must be in 0..23, not 24"),
        (lambda: Job(side=Side.PRODUCT), "side PRODUCT needs reduction PRODUCT and the other way round"),
        (
            lambda: epilogue(torch.tensor([1]), Job(side=Side.MASK), table(), torch.tensor([2])),
            r"side must be in 0\.\.1 if it is MASK",
        ),
        (lambda: Job(n_tables=4).check(SMALL), "n_tables must be at most 3, not 4"),
        (lambda: Job(n_beats=25, gives_sums=True).check(SMALL), "n_beats of sums must be at most 24, not 25"),
        (lambda: Job(gives_sums=True, mask=True), "a job that gives sums must have one reader, no table"),
        (lambda: table(multiplier=65536), r"multiplier must be in 0..65535, not 65536..65536"),
        (lambda: table(bias=-(2**23) - 1), r"bias must be in -8388608..8388607, not"),
        (lambda: table(scale=32768), r"scales must be in -32768..32767, not"),
        (
            lambda: Table(multiplier=np.ones(2, int), bias=np.ones(3, int), scales=np.ones((1, 2), int)),
            r"bias must be of shape \[2\], not \[3\]",
        ),
        (lambda: epilogue(torch.zeros(1, 2).long(), Job(), table()), r"x must be int64\[1, 1\], not"),
        (lambda: epilogue(torch.tensor([2**31]), Job(), table()), r"x must be in -2147483648..2147483647"),
        (
            lambda: epilogue(torch.tensor([1]), Job(side=Side.NOISE), table()),
            "side must be given if it is NOISE",
        ),
        (
            lambda: epilogue(torch.tensor([1]), Job(readers=(Reader(), Reader())), table()),
            "scales must have a row for each of 2 readers, not 1",
        ),
    ],
)  # fmt: skip
def test_rejects(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def table(multiplier=1, bias=0, scale=1):
    return Table(multiplier=np.array([multiplier]), bias=np.array([bias]), scales=np.array([[scale]]))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_a_lane_a_column_and_an_entry_a_tile(name):
    config, array = epilogue_config(PRESETS[name]), systolic_config(PRESETS[name])
    assert config.lanes == array.columns
    assert config.lanes * (config.max_tiles - 1) < array.max_channels <= config.lanes * config.max_tiles
