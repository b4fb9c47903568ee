# SPDX-License-Identifier: MIT
"""Convolution core: kernels of training and transposed maps against golden and cycle model; mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hw.convolution import program, rtl, vectors
from hw.convolution.golden import run
from hw.convolution.operations import MapShape, Reduce, checked_lists
from hw.convolution.program import lowered
from hw.convolution.rtl import Convolution
from hw.convolution.runs import conv
from hw.convolution.training_runs import norms, training_runs, transposed, transposes, updates
from hw.convolution.vectors import case_of, timed_case
from hw.systolic.layer import Layer
from hw.training.config import TrainingConfig
from hw.training.config import Update as Job
from hw.training.operations import Update
from tests.hw.mutants import mutated
from tests.hw.test_convolution import CONFIGS, SMALL, misread, problems, small

ODD = small(rows=8, columns=12)


@pytest.mark.parametrize("config", [*CONFIGS, ODD], ids=["8x4", "16x8", "8x12"])
def test_golden_lists_and_maps_can_be_read_back_where_they_are_written(config):
    assert [misread(one, config) for one in training_runs(config, seed=1)] == 4 * [[]]


def test_rtl_writes_what_golden_says_when_the_cycle_model_says():
    made = [timed_case(one, SMALL) for one in training_runs(SMALL, seed=2)]
    assert problems(Convolution(SMALL), made) == []


def test_tiles_of_twelve_channels_and_a_slow_memory():
    """Channels that fill no tile, words of memory narrower than masters; where all waits for memory."""
    config = replace(ODD, bus_bytes=4, read_words=3, max_writes=2)
    made = [timed_case(one, config, latency_cycles=4) for one in training_runs(config, seed=3)[1:3]]
    assert problems(Convolution(config), made) == []


def test_rtl_writes_the_same_under_stalls():
    made = [case_of(one, SMALL, jitter_cycles=9) for one in training_runs(SMALL, seed=4)]
    assert problems(Convolution(SMALL), [case.stalled(0.3, seed=5) for case in made]) == []


def test_a_weight_gradient_is_the_sum_over_pixels():
    """By golden; turned round, times activations, turned back."""
    one = training_runs(SMALL, seed=6)[-1]
    maps = run(one.operations, {name: torch.from_numpy(values) for name, values in one.maps.items()})
    turn, product = one.operations[:2]
    e = product.epilogue
    dy, x = (maps[name].flatten(end_dim=1).double() for name in ("turn x", "x"))
    of_turn = turn.epilogue.outputs[0]
    scale = torch.from_numpy(turn.epilogue.multiplier / 2**turn.epilogue.shift).double()
    bias = torch.from_numpy(turn.epilogue.bias).double()
    turned = ((dy.T * scale + bias) * torch.from_numpy(of_turn.scale) / 2**of_turn.shift).clamp(-32768, 32767)
    sums = turned @ x
    u = sums * torch.from_numpy(e.multiplier / 2**e.shift) + torch.from_numpy(e.bias)
    made = u * torch.from_numpy(e.outputs[0].scale) / 2 ** e.outputs[0].shift
    within = made.clamp(-32768, 32767)
    assert (maps["dw"][:, 0] - within).abs().max() < 1 + 2e-3 * made.abs().max()
    assert maps["by input"].shape == (maps["dw"].shape[2], 1, maps["dw"].shape[0])


def test_what_the_core_does_not_take():
    rng = np.random.default_rng(7)
    few = replace(SMALL, training=TrainingConfig(count_bits=4))
    one = updates(rng)
    with pytest.raises(ValueError, match="update of bias: elements must be at most 15, not 16"):
        lowered(one.operations, one.maps, few)
    with pytest.raises(ValueError, match="update of weights: image 'w' must be a list of another operation"):
        run(one.operations[1:], {name: torch.from_numpy(values) for name, values in one.maps.items()})
    for name, made in (("gamma's gradient", updates(rng)), ("of nobody", norms(rng))):
        with pytest.raises(ValueError, match=f": list {name!r} is read before it is written"):
            lowered(made.operations, {k: v for k, v in made.maps.items() if k != name}, SMALL)
    layer = Layer(height=256, width=256, n_in=1, n_out=4, kernel=1)
    summed = conv("sums", layer, "y", rng, {"a": 8}, reduce=Reduce(name="s", shift=0))
    update = Update(name="u", master="m", shape=(4,), gradient="s", job=Job(), start=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="u: sums must be over at most 65535 pixels, not 65536"):
        checked_lists([summed, update], ())
    shape = MapShape(height=5, width=4, channels=3, bits=16)
    many = transposed("t", shape, rng, {"a": 16})
    with pytest.raises(ValueError, match="n_tables must be at most 4, not 5"):
        lowered([many], {"t x": np.zeros((5, 4, 3), np.int64)}, SMALL)


# --- mutants --------------------------------------------------------------------------------------------

MUTANTS = [
    ("gamma for beta", "kernels", norms, "column_stride=beta - gamma", "column_stride=0"),
    ("rest of the channels over the first ones", "kernels", norms,
     "(whole, 1, channels - whole * lanes)", "(0, 1, channels - whole * lanes)"),
    ("bias into the multiplier", "kernels", updates, "BIAS_FIELD, SCALE_FIELD = 1,",
     "BIAS_FIELD, SCALE_FIELD = 0,"),
    ("scale of reader 1", "kernels", updates, "SCALE_FIELD = 1, 3", "SCALE_FIELD = 1, 4"),
    ("weights of the first tap", "kernels", updates, "tap // layer.kernel, tap % layer.kernel", "0, 0"),
    ("gradients of the first tile", "kernels", updates, "first // lanes * place.tile_bytes", "0"),
    ("gradients of the first row", "kernels", updates, "y * place.row_bytes", "0"),
    ("gradients of the first map", "kernels", updates, "row if len(of.gradients) > 1 else 0", "0"),
    ("masters of other channels", "kernels", updates, "row_stride=channels * MASTER_BYTES",
     "row_stride=n_lanes * MASTER_BYTES"),
    ("sums S and P for gradients", "kernels", updates, "stride = SUMS * SUM_BYTES if",
     "stride = SUM_BYTES if"),
    ("words of a kernel for reader 0", "rtl", updates, "sink.payload.reader.eq(word.reader)",
     "sink.payload.reader.eq(0)"),
    ("words of a kernel get lost", "rtl", updates, "words.ready.eq(sink.ready & ~elements.valid)",
     "words.ready.eq(1)"),
    ("block of the first tile", "program", transposes, "row_stride=place.tile_bytes,", "row_stride=0,"),
    ("pixels left are the first ones", "program", transposes,
     "place.address + first * place.pixel_bytes", "place.address"),
    ("blocks overlap", "program", transposes, "tile_stride=lanes * place.pixel_bytes",
     "tile_stride=place.pixel_bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "make", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, make, old, new, monkeypatch):
    mutant, rng = mutated(f"hw.convolution.{module}", old, new), np.random.default_rng(8)
    one = transposes(ODD, rng) if make is transposes else make(rng)
    most = timed_case(one, ODD).max_cycles
    made = mutant if module == "rtl" else rtl
    if module == "kernels":
        monkeypatch.setattr(program, "tasks", mutant.tasks)
    elif module == "program":
        monkeypatch.setattr(vectors, "lowered", mutant.lowered)
    wrong = module == "kernels" and misread(one, ODD)
    assert wrong or problems(made.Convolution(ODD), [replace(case_of(one, ODD), max_cycles=most)]), name
