# SPDX-License-Identifier: MIT
"""Kernels of a training step: golden models against float, RTL against both models, mutants."""

import math

import numpy as np
import pytest
import torch

from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.training import microcode, processor, rtl, vectors
from hw.training.config import (
    GROUP,
    MAX_COUNT,
    Image,
    Kernel,
    Norm,
    NormBack,
    TrainingConfig,
    Update,
    reciprocal,
    root_table,
)
from hw.training.cycles import Timed, job_cycles, replay
from hw.training.golden import inverse_root, norm, norm_back, norm_gamma, update
from hw.training.operations import Gradient, NormaliseBackward, NormaliseGamma
from hw.training.operations import Update as UpdateOperation
from hw.training.rtl import Training
from hw.training.vectors import cases, gamma_task, random_update
from tests.hw.mutants import mutated

CONFIG = TrainingConfig()

# --- golden against float ---------------------------------------------------------------------------------


def test_reciprocals_and_inverse_roots_are_as_exact_as_stated():
    for n in [*range(8, 4000, 8), MAX_COUNT - 8, MAX_COUNT]:
        mantissa, shift = reciprocal(n)
        assert 1 << 23 <= mantissa < 1 << 24 and abs(mantissa * n - (1 << shift)) * 2 <= n
    assert len(root_table()) == 385
    rng = np.random.default_rng(1)
    corners = [edge + d for bits in range(1, 47) for edge in [1 << bits] for d in (-1, 0, 1)]
    for value in [*corners, (1 << 47) - 1, *(2 ** (47 * rng.random(20_000))).astype(np.int64).tolist()]:
        r, j = inverse_root(value)
        assert 1 << 15 <= r < 1 << 16 and 0 <= j <= 23
        assert abs(math.ldexp(r, j - 39) * math.sqrt(value) - 1) < 2**-15


def maps_of(rng, pixels, channels, mean, deviation):
    """A map of 16 bits and a gradient that has to do with it: int64[pixels, channels]."""
    z = np.rint(rng.normal(mean, deviation, (pixels, channels))).clip(-32768, 32767).astype(np.int64)
    g = np.rint(rng.normal(20, 300, z.shape) + z / 40).astype(np.int64)
    return torch.from_numpy(z), torch.from_numpy(g)


def sums_of(a, b):
    return torch.stack([a.sum(0), (a * b).sum(0)], -1)


@pytest.mark.parametrize("pixels, mean, deviation", [(1, 0, 3000), (49, 300, 3000), (196, -9000, 1000)])
def test_group_norm_is_that_of_float(pixels, mean, deviation):
    """Forward, and by central differences' formula backward, gamma's gradient too."""
    rng, channels, epsilon = np.random.default_rng(2), 3 * GROUP, 100
    z, g = maps_of(rng, pixels, channels, mean, deviation)
    gamma = torch.from_numpy(rng.integers(1000, 5000, channels) * rng.choice([-1, 1], channels))
    beta = torch.from_numpy(rng.integers(-(1 << 16), 1 << 16, channels))
    job = Norm(pixels=pixels, epsilon=epsilon, shift=8)
    fields, state = norm(sums_of(z, z), gamma << 3, beta << 5, Norm(
        pixels=pixels, epsilon=epsilon, shift=8, gamma_shift=3, beta_shift=5))  # fmt: skip
    assert fields.multiplier.max() < 65_535
    y = (((z * gamma.sign() * fields.multiplier + 128) >> job.shift) + fields.bias) / 2**16

    x = z.double().requires_grad_()
    weight = (gamma.double() / 4096).requires_grad_()
    groups = x.T.reshape(1, channels, pixels)
    want = torch.nn.functional.group_norm(groups, channels // GROUP, weight, beta.double() / 2**16, epsilon)
    want = want.reshape(channels, pixels).T
    assert (y - want).abs().max() < 2e-4 * want.abs().max()

    want.backward(g.double())
    sums = sums_of(g, z)
    q = norm_gamma(sums, state)
    assert (q - weight.grad).abs().max() < 1 + 2e-4 * (g.double().abs().sum(0)).max()
    e = NormBack(pixels=pixels, scale_exponent=27, multiplier_exponent=24, bias_exponent=18)
    scale, back = norm_back(sums, state, e)
    assert scale.abs().max() < 32_767 and back.multiplier.max() < 65_535
    gg = g.double() * gamma / 4096
    dz = gg * back.multiplier * 2.0**-24 + z * scale * 2.0**-27 + back.bias * 2.0**-18
    rounding = 2**-18 + (z.double().abs().max() + abs(mean)) * 2**-28
    assert (dz - x.grad).abs().max() < rounding + 1e-4 * x.grad.abs().max()


def test_without_gamma_it_is_one():
    """Whatever shift its master would have."""
    sums, beta = torch.tensor([[0, 1000]] * 8), torch.zeros(8, dtype=torch.int64)
    given, _ = norm(sums, beta + 4096, beta, Norm(pixels=9, shift=3))
    plain, _ = norm(sums, None, beta, Norm(pixels=9, shift=3, gamma_shift=31))
    assert plain.multiplier.tolist() == given.multiplier.tolist()


def test_updates_are_those_of_float():
    rng, n = np.random.default_rng(3), 1000
    master = torch.from_numpy(rng.integers(-(1 << 28), 1 << 28, (n, 2)))
    gradient = torch.from_numpy(rng.integers(-(1 << 20), 1 << 20, n))
    job = Update(momentum=58_982, rate=40_000, rate_shift=10, image=Image.BYTES, image_shift=22)
    made, image = update(master, gradient, job)
    momentum = master[:, 1].double() * (58_982 / 65_536) + gradient.double() * (40_000 / 1024)
    assert (made[:, 1] - momentum).abs().max() <= 1
    assert (made[:, 0] - (master[:, 0].double() - momentum)).abs().max() <= 1
    assert image is not None
    assert (image - (made[:, 0].double() / 2**22).clamp(-128, 127)).abs().max() <= 0.5


def test_updates_saturate():
    top, bottom = (1 << 31) - 1, -(1 << 31)
    master = torch.tensor([[top, bottom], [bottom, top], [0, 0], [5, 7]])
    made, image = update(
        master, torch.tensor([bottom, top, bottom, 0]),
        Update(momentum=65_535, rate=65_535, image=Image.HALVES),
    )  # fmt: skip
    assert made.tolist() == [[top, bottom], [bottom, top], [top, bottom], [-2, 7]]
    assert image is not None and image.tolist() == [32_767, -32_768, 32_767, -2]


# --- RTL ----------------------------------------------------------------------------------------------------


def problems(made):
    return [p for case, log in run_cases(Training(CONFIG), made) for p in judge(case, log).problems]


def test_rtl_matches_golden_and_cycles():
    assert problems(cases(CONFIG, seed=1, n_random=4)) == []


def in_turns():
    """Updates right after norms, so slowly that a norm's last word waits when an update's first one comes."""
    rng = np.random.default_rng(8)
    tasks = [
        task
        for _ in range(6)
        for task in (gamma_task(rng, n_groups=1), random_update(rng, image=Image.NONE, halves=False, n=2))
    ]
    return vectors.case("in turns", tasks, CONFIG).stalled(0.9, seed=9, slowdown=60)


def test_rtl_matches_golden_under_stalls():
    made = cases(CONFIG, seed=2, n_random=2)
    stalled = [case.stalled(p, seed=3) for case, p in zip(made, 4 * [0.2, 0.6], strict=True)]
    assert problems([*stalled, in_turns()]) == []


def test_verilog_matches_golden_and_cycles():
    made = cases(CONFIG, seed=4, n_random=60)
    made += [case.stalled(p, seed=5) for case in made for p in (0.2, 0.7)]
    logs = verilated.run_cases(BLOCKS["training"], CONFIG, made)
    assert [judge(case, log).problems for case, log in zip(made, logs, strict=True)] == [()] * len(made)


def test_mean_cycles_of_jobs():
    """What job_cycles says is the distance of jobs in the replay; about 13 cycles a channel for a norm."""
    for job in (
        Timed(kernel=Kernel.UPDATE, count=64, image=Image.BYTES),
        Timed(kernel=Kernel.UPDATE, count=64, image=Image.BIAS),
        *(Timed(kernel=kernel, count=5) for kernel in Kernel if kernel != Kernel.UPDATE),
    ):
        stamps = replay([job, job])
        half = len(stamps) // 2
        assert stamps[half] - stamps[0] == job_cycles(job)
        if job.kernel != Kernel.UPDATE:
            assert job_cycles(job) < 15 * GROUP * job.count


def test_programs_never_read_too_early():
    for kernel in microcode.PROGRAMS:
        program, written = microcode.program(kernel), dict[int, int]()
        for number, one in enumerate(program):
            assert all(number - written[r] >= microcode.LATENCY for r in one.reads if r in written)
            written |= dict.fromkeys(one.writes, number)


# --- mutants ------------------------------------------------------------------------------------------------

MUTANTS = [
    ("momentum cut", "update", "(kept + (1 << 15)) >> 16", "kept >> 16"),
    ("step cut", "update", "(moved + 1) >> 1", "moved >> 1"),
    ("step wraps", "update", "saturated((moved + 1) >> 1, WORD_BITS)", "(moved + 1) >> 1"),
    ("momentum wraps", "update", "saturated(kept + step, WORD_BITS)", "kept + step"),
    ("weight climbs", "update", "weight - momentum", "weight + momentum"),
    ("image cut", "update", "rounded = (shifted + 1) >> 1", "rounded = shifted >> 1"),
    ("image of a weight too early", "update", "(lowered << 1) >> job.image_shift",
     "(weight << 1) >> job.image_shift"),
    ("lower half twice", "update", "halves[upper]", "halves[0]"),
    ("a half a word", "update", "goes & (~job.halves | upper)", "goes"),
    ("jobs overlap", "update", "~active & (n_under_way == 0)", "~active"),
    ("image turned round", "update", "(*reversed(earlier), of.o_image)", "(of.o_image, *earlier)"),
    ("bias without sign", "update", "bias[-1].replicate(8)", "(bias[-1] & 0).replicate(8)"),
    ("image for reader 0", "update", "self.o.payload.reader.eq(word != 0)", "self.o.payload.reader.eq(0)"),
    ("rounds down", "processor", "rounded.eq((shifted + 1) >> 1)", "rounded.eq(shifted >> 1)"),
    ("wraps", "processor", "Mux(total < low, low, Mux(total > high, high, total))", "total"),
    ("adds always", "processor", "Mux(writing.subtract, added[1] - rounded, added[1] + rounded)",
     "added[1] + rounded"),
    ("the same shift for every variance", "processor", "Mux(base > less, base - less, 0)",
     "Mux(base > 0, base, 0)"),
    ("shift below nothing", "processor", "Mux(base > less, base - less, 0)", "base - less"),
    ("a word too early", "processor", "(of.sees_word & ~words.valid)", "(of.takes_word & ~words.valid)"),
    ("a word lost", "processor", "(gives & o.valid & ~o.ready)", "0"),
    ("root without its line", "processor", "point - ((drop * rest) >> ROOT_REST_BITS)", "point"),
    ("root of 1 wraps", "processor", "Mux(rounded >> INVERSE_BITS, (1 << INVERSE_BITS) - 1, rounded)",
     "rounded"),
    ("sums without their high words", "processor", "self.i_sums.payload[: SUM_BITS - WORD_BITS]",
     "low[: SUM_BITS - WORD_BITS]"),
    ("next job too early", "processor", "~Cat(valid).any()", "~valid[0]"),
    ("reads a result too early", "microcode", "LATENCY = 4", "LATENCY = 3"),
    ("variance of no mean", "microcode", "yield _of(MEAN, MEAN, VARIANCE, subtract=True, dest=VARIANCE)",
     "yield _of(ZERO, MEAN, VARIANCE, subtract=True, dest=VARIANCE)"),
    ("no epsilon", "microcode", "b=TWO_16, c=VARIANCE", "b=ZERO, c=VARIANCE"),
    ("gamma of the channel before", "microcode", "yield _of(SHORT_ROOT, gamma, give",
     "yield _of(SHORT_ROOT, gammas[0], give"),
    ("multiplier with a sign", "microcode", "give=Give.MAGNITUDE", "give=Give.LOW"),
    ("gradient not centred", "microcode", "_of(s, MEAN, p, subtract=True", "_of(s, ZERO, p, subtract=True"),
    ("groups add up", "microcode", "S if made else ZERO", "S"),
    ("update overtakes a norm", "rtl", "update.o.ready.eq(o.ready & ~processor.o.valid)",
     "update.o.ready.eq(o.ready)"),
    ("norms begin during an update", "rtl", "job.ready.eq(update.i_job.ready & processor.i_job.ready)",
     "job.ready.eq(processor.i_job.ready)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def mutant_cases():
    made = cases(CONFIG, seed=6, n_random=0)
    return [*(one for case in made for one in (case, case.stalled(0.5, seed=7))), in_turns()]


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, mutant_cases, monkeypatch):
    mutant = mutated(f"hw.training.{module}", old, new)
    unit = Training
    match module:
        case "rtl":
            unit = mutant.Training
        case "microcode":
            for what in ("program", "starts"):
                monkeypatch.setattr(processor, what, getattr(mutant, what))
        case _:
            monkeypatch.setattr(rtl, module.capitalize(), getattr(mutant, module.capitalize()))
    runs = run_cases(unit(CONFIG), mutant_cases)
    assert any(judge(case, log).problems for case, log in runs), name


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingConfig(count_bits=3), "count_bits must be in 4..24, not 3"),
        (lambda: Update(momentum=65_536), "momentum must be in 0..65535, not 65536"),
        (lambda: Update(rate_shift=48), "rate_shift must be in 0..47, not 48"),
        (lambda: Norm(pixels=16_385, shift=0), "pixels must be in 1..16384, not 16385"),
        (lambda: Norm(pixels=1, shift=48), "shift must be in 0..47, not 48"),
        (
            lambda: NormBack(pixels=1, scale_exponent=3, multiplier_exponent=0, bias_exponent=12),
            "bias_exponent must be in 0..11, not 12",
        ),
        (
            lambda: NormaliseGamma(name="q", channels=12, sums="s", state="t", gradient="g"),
            "q: channels must be a multiple of 8, not 12",
        ),
        (
            lambda: UpdateOperation(
                name="u", master="m", shape=(2, 2, 6), gradient="g", gradient_from=Gradient.MAP,
                job=Update(image=Image.BYTES), image="w",
            ),
            "u: channels must be a multiple of 4, not 6",
        ),
        (
            lambda: UpdateOperation(name="u", master="m", shape=(8,), gradient=("g",), job=Update()),
            "u: gradient must be one list, not",
        ),
        (
            lambda: NormaliseBackward(
                name="b", channels=8, sums="s", state="t", side_table="a", table="a",
                job=NormBack(pixels=1, scale_exponent=0, multiplier_exponent=0, bias_exponent=0),
            ),
            "b: tables must be two, not 'a' twice",
        ),
        (
            lambda: UpdateOperation(name="u", master="m", shape=(8,), gradient="g", job=Update(), image="t"),
            "u: image must be named if there is one, and only then",
        ),
    ],
)  # fmt: skip
def test_rejects_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_golden_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="channels must be a multiple of 8, not 4"):
        norm_gamma(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"gradient must be in -2147483648\.\.2147483647"):
        update(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([1 << 31]), Update())
