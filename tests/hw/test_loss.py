# SPDX-License-Identifier: MIT
"""Loss unit: golden against PyTorch's gradient in float64, RTL against golden and cycles, mutants."""

import numpy as np
import pytest
import torch

from hw.config import PRESETS
from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.loss.config import Job, LossConfig, loss_config, smoothed
from hw.loss.cycles import latency_cycles, picture_cycles, replay
from hw.loss.golden import loss_gradient
from hw.loss.rtl import Loss
from hw.loss.vectors import HIGHEST, LOWEST, ONE, case, cases, corner_pictures, random_picture
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

CHIP = LossConfig()
SMALL = LossConfig(lanes=2, max_classes=8)
BUILT = [SMALL, LossConfig(lanes=1, max_classes=4), LossConfig(lanes=8, max_classes=16)]

UNIT = 2.0**-15
GRADIENT_BOUND = 2.1 * UNIT
"""docs/loss.md derives it."""


def in_float(scores, label, job):
    """float64 gradient of the cross entropy of the same scores and targets, by PyTorch."""
    scores = scores.double() * 2.0**-job.fraction_bits
    scores.requires_grad_()
    target = torch.full_like(scores, job.other_target / ONE).scatter(
        -1, label[..., None], job.label_target / ONE
    )
    torch.nn.functional.cross_entropy(scores, target.detach(), reduction="sum").backward()
    return scores.grad


def adversarial(rng, n, n_rows):
    """Pairs of scores and fraction bits that push each term of the bound."""
    spread = np.exp2(rng.uniform(0, 14, (n_rows, 1)))
    normal = rng.normal(0, 1, (n_rows, n)) * spread
    one_above = np.zeros((n_rows, n))
    # The others share about half of the row.
    one_above[:, 1:] = -(np.log(n) + rng.uniform(-2, 2, (n_rows, 1))) * 2**11
    saturated = np.where(rng.random((n_rows, n)) < 0.5, LOWEST, HIGHEST)
    # Exponentials just below and above what is stored for the division.
    at_the_cut = np.zeros((n_rows, n))
    at_the_cut[:, 1:] = -rng.uniform(16, 18, (n_rows, 1)) * np.log(2) * 2**11
    made = ((normal, 8), (normal, 11), (one_above, 11), (saturated, 16), (saturated, 0), (at_the_cut, 11))
    return [
        (torch.from_numpy(np.rint(scores).clip(LOWEST, HIGHEST).astype(np.int64)), bits)
        for scores, bits in made
    ]


@pytest.mark.parametrize("n_classes", [2, 3, 10, 37, 102, 1000, 1024])
def test_golden_is_within_the_bounds_of_float64(n_classes):
    rng = np.random.default_rng(n_classes)
    for scores, fraction_bits in adversarial(rng, n_classes, 60):
        label = torch.from_numpy(rng.integers(0, n_classes, len(scores)))
        for job in (
            smoothed(0.1, n_classes, fraction_bits=fraction_bits),
            smoothed(0.0, n_classes, fraction_bits=fraction_bits),
        ):
            gradient = loss_gradient(scores, label, job, CHIP)
            error = gradient * UNIT - in_float(scores, label, job)
            assert float(error.abs().max()) <= GRADIENT_BOUND
            total = gradient.sum(dim=-1)
            assert int(total.min()) >= -0.875 * n_classes - 1.4
            assert int(total.max()) <= 0.625 * n_classes + 0.7


@pytest.mark.parametrize("n_classes", [2, 10, 37, 900, 1024])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.99])
def test_targets_are_those_of_label_smoothing(n_classes, epsilon):
    """Against PyTorch's own ``label_smoothing``: the bound above, and what rounding the targets adds."""
    job = smoothed(epsilon, n_classes, fraction_bits=10)
    assert job.label_target + (n_classes - 1) * job.other_target == ONE
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(np.rint(rng.normal(0, 2048, (20, n_classes))).astype(np.int64))
    label = torch.from_numpy(rng.integers(0, n_classes, 20))
    exact = (scores / 2.0**10).double().requires_grad_()
    torch.nn.functional.cross_entropy(exact, label, label_smoothing=epsilon, reduction="sum").backward()
    error = (loss_gradient(scores, label, job, CHIP) * UNIT - exact.grad).abs()
    of_label = error.gather(-1, label[:, None])
    assert float(error.scatter(-1, label[:, None], 0.0).max()) <= GRADIENT_BOUND + 2.0**-18
    assert float(of_label.max()) <= GRADIENT_BOUND + (n_classes - 1) * 2.0**-18


def test_corner_gradients_by_hand():
    equal = loss_gradient(torch.zeros(4, dtype=torch.int64), torch.tensor(1), Job(), CHIP)
    assert equal.tolist() == [8192, -24576, 8192, 8192]
    huge = torch.tensor([LOWEST, HIGHEST, LOWEST])
    right, wrong = (loss_gradient(huge, torch.tensor(label), Job(), CHIP).tolist() for label in (1, 0))
    assert (right, wrong) == ([0, 0, 0], [-32768, 32767, 0])
    thousand = smoothed(0.1, 1000, fraction_bits=8)
    sure = torch.full((1000,), LOWEST)
    sure[7] = HIGHEST
    gradient = loss_gradient(sure, torch.tensor(7), thousand, CHIP)
    # Targets 13 and 131,072 - 999 x 13 units of 2^-17; p = 1 is one unit less. Halves go up.
    assert gradient.tolist() == [3247 if k == 7 else -3 for k in range(1000)]


@pytest.mark.parametrize("config", BUILT, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    made = cases(config, seed=3, n_random=8)
    runs = [one.stalled(p_stall, seed=4) if p_stall else one for one in made]
    for one, log in run_cases(Loss(config), runs):
        verdict = judge(one, log)
        assert verdict.problems == () and verdict.n_beats > 0


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_verilog_matches_golden_and_cycles(name):
    block, config = BLOCKS["loss"], loss_config(PRESETS[name])
    full_rate = block.cases(config, seed=11, n_random=200)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    for one, log in zip(runs, verilated.run_cases(block, config, runs), strict=True):
        assert judge(one, log).problems == ()


def test_a_beat_a_cycle_and_the_stated_latency():
    for n_classes in (2, 10, 37, 1000):
        n_beats = int(picture_cycles(n_classes, CHIP))
        stamps = replay([n_classes] * 60, CHIP).reshape(60, n_beats)
        assert set(np.diff(stamps[:, 0])) == {n_beats}
        assert stamps[0, -1] == int(latency_cycles(n_classes, CHIP))


MUTANTS = [
    ("cuts where it should round", "half = 1 << CUT_BITS >> 1", "half = 0"),
    ("1.0 wraps around", "Mux(units > largest, largest, units)", "units"),
    ("targets exchanged", "Mux(is_label, picture", "Mux(~is_label, picture"),
    ("target added", "half - job.payload.label_target", "half + job.payload.label_target"),
    ("others without a target", "half - job.payload.other_target", "half"),
    ("label a lane too far", "+ lane\n", "+ lane + 1\n"),
    ("label in the first beat only", "(n_before << cfg.softmax.tree_levels)", "0"),
    ("beats counted on", "Mux(probabilities.payload.last, 0, n_before + 1)", "n_before + 1"),
    ("picture left at every beat", "take & probabilities.payload.last", "take"),
    ("lanes past the row", "Mux(inside, gradient, 0)", "gradient"),
    ("one step for all", "SHIFT + job.payload.fraction_bits", "SHIFT"),
    ("job taken by the softmax alone", "pictures.i.valid.eq(job.valid &", "pictures.i.valid.eq(0 &"),
    ("overruns the output", "ready.eq(~o.valid | o.ready)", "ready.eq(1)"),
    ("a bubble behind every beat", "ready.eq(~o.valid | o.ready)", "ready.eq(~o.valid)"),
    ("last of the output lost", "o.payload.last.eq(probabilities.payload.last)", "o.payload.last.eq(0)"),
    ("maxima never taken", "softmax.o_row.ready.eq(1)", "softmax.o_row.ready.eq(0)"),
    ("too few pictures wait", "depth=MAX_PICTURES", "depth=8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.loss.rtl", old, new)
    rng = np.random.default_rng(9)
    pictures = [*(random_picture(2, rng) for _ in range(60)), *corner_pictures(SMALL)]
    full_rate = case("mutant", pictures, SMALL)
    runs = (full_rate, full_rate.stalled(0.6, seed=1, slowdown=3))
    assert any(judge(one, log).problems for one, log in run_cases(mutant.Loss(SMALL), runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..16, not 3"),
        ({"max_classes": 1000}, "max_classes must be a power of two in 8..1024, not 1000"),
        ({"lanes": 1, "max_classes": 1}, "max_classes must be a power of two in 2..1024, not 1"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**changes)


def test_rejects_what_it_cannot_take():
    for changes, message in (
        ({"fraction_bits": 32}, "fraction_bits must be in 0..31, not 32"),
        ({"label_target": ONE + 1}, "label_target must be in 0..131072, not 131073"),
        ({"other_target": -1}, "other_target must be in 0..131072, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Job(**changes)
    with pytest.raises(ValueError, match=r"epsilon must be in 0..0.99, not 1"):
        smoothed(1.0, 10, fraction_bits=8)
    with pytest.raises(ValueError, match=r"n_classes must be in 2..1024, not 1"):
        smoothed(0.1, 1, fraction_bits=8)
    scores = torch.zeros(3, dtype=torch.int64)
    for bad, label, message in (
        (scores[:1], 0, r"classes must be 2..1024, not 1"),
        (scores - 32769, 0, r"scores must be in -32768..32767, not -32769..-32769"),
        (scores, 3, r"label must be in 0..2, not 3..3"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_gradient(bad, torch.tensor(label), Job(), CHIP)
    with pytest.raises(TypeError, match=r"scores must be int64\[..., K\], not torch.float32\[3\]"):
        loss_gradient(scores.float(), torch.tensor(0), Job(), CHIP)
    with pytest.raises(TypeError, match=r"label must be int64\[\], not torch.int64\[1\]"):
        loss_gradient(scores, torch.tensor([0]), Job(), CHIP)
