# SPDX-License-Identifier: MIT
"""Augmentation unit: golden against the float operations, RTL against golden and cycle model, mutants."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from algo import diffaugment
from hw.augment.config import (
    LFSR_BITS,
    LFSR_TAPS,
    ONE,
    AugmentConfig,
    Draws,
    Job,
    augment_config,
    cut_size,
    largest_shift,
    last_centre,
)
from hw.augment.cycles import image_cycles, replay
from hw.augment.golden import augment, drawn
from hw.augment.rtl import Augment
from hw.augment.vectors import ORDERS, case, cases, task
from hw.config import PRESETS
from hw.harness import verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

WIDE = AugmentConfig()
SMALL = AugmentConfig(element_bits=8, max_pixels=16, max_size=16)
CONFIGS = [SMALL, AugmentConfig(element_bits=16, max_pixels=32, max_size=8),
           AugmentConfig(element_bits=4, max_pixels=4, max_size=2)]  # fmt: skip


def in_float(job):
    """The operations of a job in the terms of the float module, for one image of float64."""
    d = job.draws
    one = torch.tensor
    by_name = {
        "color": diffaugment.Color(
            one([float(d.brightness)]), one([d.saturation / ONE]), one([d.contrast / ONE])
        ),
        "translation": diffaugment.Translation(one([[d.shift_y, d.shift_x]])),
        "cutout": diffaugment.Cutout(one([[d.centre_y, d.centre_x]])),
    }
    return [by_name[name] for name in job.policy]


def reference(x, job):
    """float64[height, width, 3]."""
    x = x.double().permute(2, 0, 1)[None]
    run = diffaugment.adjoint if job.adjoint else diffaugment.apply
    return run(x, in_float(job))[0].permute(1, 2, 0)


def bound(x, job):
    """Largest difference of golden from float on the same integers, see docs/augment.md."""
    k, s = job.draws.contrast / ONE, job.draws.saturation / ONE
    far = 4 / 3 * float(x.abs().max())  # of a channel from the mean of three
    return 0.5 + 2**-16 * far + 0.625 * 2**-6 * (abs(k - k * s) + abs(1 - k))


def picture(size):
    """A photograph that comes with matplotlib, as int64[size, size, 3] of 8 bits."""
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").crop((0, 0, 512, 512)).resize((size, size)))
    return pixels.astype(np.int64) - 128


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("adjoint", [False, True], ids=["forward", "adjoint"])
def test_golden_is_the_float_operations_rounded_once(order, adjoint):
    rng = np.random.default_rng(len(order))
    for size in ((1, 1), (4, 5), (9, 7), (16, 16)):
        job, x = task(size, order, WIDE, rng)
        job, x = replace(job, adjoint=adjoint), torch.from_numpy(x)
        want = reference(x, job).clamp(-(2**15), 2**15 - 1)
        assert float((augment(x, job, WIDE) - want).abs().max()) <= bound(x, job)


def test_without_colours_nothing_is_rounded():
    x = torch.from_numpy(picture(8))
    job = Job(height=8, width=8, policy=("color",))
    assert torch.equal(augment(x, job, AugmentConfig(element_bits=8, max_pixels=64)), x)


@pytest.mark.parametrize("order", ORDERS[-6:], ids="-".join)
def test_adjoint_identity(order):
    """<T x, y> = <x, T* y> for the linear part, up to half a unit an element and what the gains add."""
    rng = np.random.default_rng(3)
    job, x = task((6, 5), order, WIDE, rng)
    draws = replace(job.draws, brightness=0, saturation=20_000, contrast=40_000)
    job = replace(job, adjoint=False, draws=draws)
    x, y = (torch.from_numpy(rng.integers(-4096, 4096, (6, 5, 3))) for _ in range(2))
    forward, backward = augment(x, job, WIDE), augment(y, replace(job, adjoint=True), WIDE)
    difference = abs(int((forward * y).sum()) - int((x * backward).sum()))
    assert difference <= bound(x, job) * (int(y.abs().sum()) + int(x.abs().sum()))
    assert int((forward * y).sum()) != int((x * y).sum())


def test_lfsr_has_the_longest_period():
    """x^(2^32 - 1) = 1 modulo its polynomial, and no divisor of the exponent does it."""
    polynomial = 1 << LFSR_BITS | 1 | sum(1 << tap + 1 for tap in LFSR_TAPS if tap + 1 < LFSR_BITS)

    def times(a, b):
        product = 0
        for bit in range(LFSR_BITS):
            product ^= (a << bit) if b >> bit & 1 else 0
        for bit in reversed(range(LFSR_BITS, 2 * LFSR_BITS)):
            product ^= (polynomial << bit - LFSR_BITS) if product >> bit & 1 else 0
        return product

    def power(exponent):
        value, base = 1, 2
        while exponent:
            value = times(value, base) if exponent & 1 else value
            base, exponent = times(base, base), exponent >> 1
        return value

    period = (1 << LFSR_BITS) - 1
    assert power(period) == 1
    assert all(power(period // prime) != 1 for prime in (3, 5, 17, 257, 65_537))


def test_draws_have_the_papers_distribution():
    """Every shift and centre about equally often; colours within their ranges and centred."""
    n, size = 8000, 10
    job = Job(height=size, width=size, draw=True, one_bits=14)
    draws = [each.draws for each in drawn([job] * n)]
    for axis in "yx":
        shifts = Counter(getattr(d, f"shift_{axis}") for d in draws)
        centres = Counter(getattr(d, f"centre_{axis}") for d in draws)
        assert set(shifts) == set(range(-largest_shift(size), largest_shift(size) + 1))
        assert set(centres) == set(range(last_centre(size) + 1))
        for counts in (shifts, centres):
            expected = n / len(counts)
            chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
            assert chi2 < 3 * len(counts)
    for name, low, high in (
        ("brightness", -(1 << 13), 1 << 13),
        ("saturation", 0, 2 * ONE),
        ("contrast", ONE // 2, ONE * 3 // 2),
    ):
        values = np.array([getattr(d, name) for d in draws])
        assert low <= values.min() < low + (high - low) / 500
        assert high - (high - low) / 500 < values.max() < high
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * n)
        assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 11, 12, 32])
def test_sizes_round_like_the_paper(size):
    assert largest_shift(size) == int(size / 8 + 0.5)
    assert cut_size(size) == int(size / 2 + 0.5)
    assert last_centre(size) == size - int(size / 2 + 0.5) % 2


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    made = cases(config, seed=1, n_random=4)
    runs = [one.stalled(p_stall, seed=2) if p_stall else one for one in made]
    for one, log in run_cases(Augment(config), runs):
        verdict = judge(one, log)
        assert verdict.problems == () and verdict.n_beats > 0


def test_pictures_forward_and_back_in_verilog():
    """A photograph under every order with drawn parameters, and a gradient back through the same draws."""
    config = augment_config(PRESETS["tiny"])
    rng = np.random.default_rng(7)
    x, gradient = picture(32), rng.integers(-(2**15), 2**15, (32, 32, 3))
    forward = [
        Job(height=32, width=32, policy=order, draw=True, seed=1000 + n) for n, order in enumerate(ORDERS)
    ]
    back = [replace(job, adjoint=True) for job in drawn(forward)]
    todo = [
        case("forward", [(job, x) for job in forward], config),
        case("adjoint", [(job, gradient) for job in back], config),
    ]
    todo.append(todo[0].stalled(0.3, seed=5))
    logs = verilated.run_cases(BLOCKS["augment"], config, todo)
    for one, log in zip(todo, logs, strict=True):
        assert judge(one, log).problems == ()


def test_cycles_are_a_pixel_each():
    job = Job(height=32, width=32)
    stamps = replay([job] * 3)["o"].reshape(3, -1)
    assert image_cycles(job) == 1029
    assert np.all(np.diff(stamps, axis=1) == 1) and np.all(np.diff(stamps[:, 0]) == 1029)
    small = Job(height=1, width=1)
    assert np.all(np.diff(replay([small] * 4)["o"])[1:] == image_cycles(small))


MUTANTS = [
    ("draw too few", "prepare", "busy.eq(1), step.eq(0)]", "busy.eq(1), step.eq(1)]"),
    ("old bits drawn", "prepare", "[:DRAW_BITS])", "[-DRAW_BITS:])"),
    ("LFSR runs without draws", "prepare", "m.If(job.draw & ~ends)", "m.If(~ends)"),
    ("seed 0 taken", "prepare", " & (self.i.payload.seed != 0)", ""),
    ("one shift too few", "prepare", "1 + select", "select"),
    ("odd rectangle", "prepare", "- ((size + 1) >> 1)[0]", "- 0"),
    ("shift not reversed", "prepare", "Mux(job.adjoint, -v, v)", "v"),
    ("order not reversed", "prepare", "job[name] ^ job.adjoint", "job[name]"),
    ("gradient gets brighter", "prepare", "job.color & ~job.adjoint", "job.color"),
    ("gain cut for rounded", "prepare", "saturation + (ONE >> 1))", "saturation)"),
    ("shift of a policy without", "prepare", "Mux(job.translation, v, 0)", "v"),
    ("cutout of a policy without", "prepare", "Mux(job.cutout, cut, 0)", "cut"),
    ("draws lost under stalls", "prepare", "(self.o_draws.valid & ~self.o_draws.ready)", "0"),
    ("both halves one", "rtl", "half.eq(~half)", "half.eq(half)"),
    ("a column too many", "rtl", "row_ends.eq(self.x == job.width - 1)", "row_ends.eq(self.x == job.width)"),
    ("rectangle a row short", "rtl", "(down >= 0)", "(down > 0)"),
    ("border seen", "rtl", "(y < job.height)", "(y <= job.height)"),
    ("mean of what is cut out", "rtl", "(job.cutout_late | ~_cut(cut_y, cut_x, job))", "1"),
    ("mean of what is shifted out", "rtl", "seen.eq(_within(y, x, job) & ", "seen.eq("),
    ("mean cut for rounded", "rtl", "product >> shift_less_one) + 1", "product >> shift_less_one)"),
    ("mean of the channels cut for rounded", "rtl", "(1 << (THIRD_SHIFT - 1))", "0"),
    ("sums run on", "rtl", "m.d.sync += total.eq(0)", "m.d.sync += total.eq(total)"),
    ("zero before the colours stays", "rtl", "after.eq((outside & job.translation_late)", "after.eq(outside"),
    ("zero behind the colours gets colours", "rtl", "Mux(drops, 0, clamped)", "clamped"),
    ("wraps around", "rtl", "Mux(rounded >= high, high - 1, rounded)", "rounded"),
    ("cut for rounded", "rtl", "(1 << (GAIN_BITS + MEAN_BITS - 1))", "0"),
    ("drops last", "rtl", 'held(last, "last", 4)', "0"),
    ("next image too early", "rtl", "~active & (under_way == 0)", "~active"),
    ("next image too late", "rtl", "~active & (under_way == 0)", "~active & ~self.o.valid"),
    ("overruns the output", "rtl", "flow.eq(~self.o.valid | self.o.ready)", "flow.eq(1)"),
    ("half filled while shown", "rtl", "~loading & ~self.o.valid &", "~loading &"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(f"hw.augment.{module}", old, new)
    if module == "rtl":
        component = mutant.Augment(SMALL)
    else:
        monkeypatch.setattr("hw.augment.rtl.Prepare", mutant.Prepare)
        component = Augment(SMALL)
    full_rate = cases(SMALL, seed=1, n_random=1)
    runs = [*full_rate, *(one.stalled(0.5, seed=2, slowdown=3) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component, runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"element_bits": 3}, "element_bits must be in 4..16, not 3"),
        ({"max_pixels": 48}, "max_pixels must be a power of two in 4..65536, not 48"),
        ({"max_size": 1}, "max_size must be in 2..1024, not 1"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**changes)


def test_rejects_what_it_cannot_take():
    for changes, message in (
        ({"policy": ("blur",)}, "policy must list some of color, translation, cutout, each once"),
        ({"policy": ("color", "color")}, "each once"),
        ({"height": 0}, "height must be in 1..1024, not 0"),
        ({"draws": Draws(shift_y=4)}, "shift_y must be in -3..3, not 4"),
        ({"draws": Draws(centre_x=6)}, "centre_x must be in 0..5, not 6"),
    ):
        with pytest.raises(ValueError, match=message):
            Job(**{"height": 4, "width": 5, **changes})
    with pytest.raises(ValueError, match=r"saturation must be in 0..65535, not 65536"):
        Draws(saturation=65_536)
    for job, message in (
        (Job(height=17, width=1), "height must be at most 16, not 17"),
        (Job(height=5, width=5), "an image must be at most 16 pixels, not 25"),
        (Job(height=2, width=2, draws=Draws(brightness=128)), "brightness must be in -128..127, not 128"),
        (Job(height=2, width=2, one_bits=8), "one_bits must be below 8, not 8"),
    ):
        with pytest.raises(ValueError, match=message):
            job.check(SMALL)
    job = Job(height=2, width=2, draw=True)
    with pytest.raises(TypeError, match=r"x must be int64\[2, 2, 3\], not torch.float32\[2, 2, 3\]"):
        augment(torch.zeros(2, 2, 3), job, SMALL)
    with pytest.raises(ValueError, match=r"x must be in -128..127"):
        augment(torch.full((2, 2, 3), 128), job, SMALL)
    with pytest.raises(ValueError, match="draw must be False"):
        augment(torch.zeros(2, 2, 3, dtype=torch.int64), job, SMALL)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_take_at_most_the_key_srams_bytes(name):
    chip = PRESETS[name]
    n_bytes = 2 * augment_config(chip).max_pixels * 6
    assert chip.kv_sram_bytes / 2 < n_bytes <= chip.kv_sram_bytes
