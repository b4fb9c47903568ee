# SPDX-License-Identifier: MIT
"""Convolution core: gradients of a loss against golden and cycle model, a classifier's step; mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hw.config import PRESETS
from hw.convolution import rtl, vectors
from hw.convolution.config import convolution_config
from hw.convolution.golden import run
from hw.convolution.loss_runs import loss_runs, picture, pictures
from hw.convolution.operations import Epilogue, LossGradient, Output, Reduce
from hw.convolution.program import lowered
from hw.convolution.rtl import Convolution
from hw.convolution.runs import Run
from hw.convolution.vectors import case_of, timed_case
from hw.epilogue.config import EpilogueConfig
from hw.loss.config import Job, LossConfig, smoothed
from tests.hw.mutants import mutated
from tests.hw.test_convolution import CONFIGS, SMALL, misread, problems, small

WHOLE = replace(CONFIGS[1], loss=LossConfig(lanes=8, max_classes=32))
"""A tile at once."""
THIRDS = replace(small(columns=12), loss=LossConfig(lanes=4, max_classes=32), bus_bytes=4)
BUILT = pytest.mark.parametrize("config", [SMALL, WHOLE, THIRDS], ids=["2 of 4", "8 of 8", "4 of 12"])


@BUILT
def test_golden_maps_can_be_read_back_where_they_are_written(config):
    assert [misread(one, config) for one in loss_runs(config, seed=1)] == 2 * [[]]


@BUILT
def test_rtl_writes_what_golden_says_when_the_cycle_model_says(config):
    made = [timed_case(one, config, latency_cycles=5) for one in loss_runs(config, seed=2)]
    stalled = [
        case_of(one, config, jitter_cycles=9).stalled(0.3, seed=3) for one in loss_runs(config, seed=2)
    ]
    assert problems(Convolution(config), [*made, *stalled]) == []


def test_a_thousand_classes():
    """Labels of the first and the last class, to one reader and to two."""
    config = replace(
        small(columns=8),
        loss=LossConfig(lanes=4),
        epilogue=EpilogueConfig(lanes=8, max_tiles=128),
    )
    rng, n = np.random.default_rng(4), 1000
    operations, maps = [], {}
    for label, outputs in ((0, {"a": 16}), (n - 1, {"b": 8, "b16": 16})):
        name = f"{label}"
        operations.append(picture(name, n, rng, outputs))
        maps |= {f"{name}'s scores": rng.integers(-3000, 3000, (1, 1, n))}
        maps |= {f"{name}'s label": np.array([[label]])}
    one = Run(name="thousand", operations=operations, maps=maps)
    assert misread(one, config) == []
    assert problems(Convolution(config), [timed_case(one, config)]) == []


def plain(n, job=None, **more):
    """Hands the gradient on, twice as large for every second channel."""
    scale = np.resize([1, 2], n).astype(np.int16)
    epilogue = Epilogue(
        multiplier=np.ones(n, np.uint16), shift=0, bias=np.zeros(n, np.int32),
        outputs=(Output(name="g", bits=16, scale=scale, shift=0),), **more,
    )  # fmt: skip
    job = job or smoothed(0.1, n, fraction_bits=8)
    return LossGradient(name="loss", source="x", label="y", job=job, epilogue=epilogue)


@pytest.mark.parametrize("n", [2, 3, 10, 37])
def test_a_gradient_is_that_of_pytorchs_cross_entropy(n):
    """By golden; scaled by channel, with that of a bias, which is it itself."""
    rng = np.random.default_rng(n)
    for label in (0, n - 1):
        scores = torch.from_numpy(rng.integers(-1500, 1500, (1, 1, n)))
        operation = plain(n, reduce=Reduce(name="bias", shift=0))
        made = run([operation], {"x": scores, "y": torch.tensor([[label]])})
        x = (scores[0].double() / 2**8).requires_grad_()
        cross_entropy(x, torch.tensor([label]), label_smoothing=0.1).backward()
        exact = x.grad[0] * 2**15
        assert (made["bias"][:, 0] - exact).abs().max() < 2.2 + n / 8
        doubled = 2 * made["bias"][1::2, 0]
        assert torch.equal(made["g"][0, 0, ::2], made["bias"][::2, 0])
        assert torch.equal(made["g"][0, 0, 1::2], doubled.clamp(-32768, 32767))


def test_every_preset_has_classes_for_the_whole_table():
    for chip in PRESETS.values():
        config = convolution_config(chip)
        assert config.max_classes == config.loss.max_classes == 512
        assert config.loss.lanes == chip.softmax_lanes
        assert config.score_bytes == 2 * chip.softmax_lanes


def test_what_the_core_does_not_take():
    maps = {"x": np.zeros((1, 1, 17), np.int64), "y": np.array([[2]])}
    with pytest.raises(ValueError, match="loss: classes must be at most 16, not 17"):
        lowered([plain(17)], maps, SMALL)
    for n in (1, 1025):
        with pytest.raises(ValueError, match=rf"loss: classes must be in 2\.\.1024, not {n}"):
            plain(n, Job())
    few = plain(3)
    x = {"x": np.zeros((1, 1, 3), np.int64)}
    with pytest.raises(ValueError, match=r"loss: label must be in 0\.\.2, not 3"):
        lowered([few], x | {"y": np.array([[3]])}, SMALL)
    with pytest.raises(ValueError, match=r"list 'y' must be \[1, 1\], not \[1\]"):
        lowered([few], x | {"y": np.array([1])}, SMALL)
    with pytest.raises(ValueError, match="loss: list 'y' is read before it is written"):
        lowered([few], x, SMALL)
    with pytest.raises(ValueError, match=r"map 'x' must be \[1, 1, 3\], not \[1, 1, 17\]"):
        lowered([few], maps, SMALL)
    with pytest.raises(ValueError, match=r"loss\.lanes must divide 4 and be at least 2, not 8"):
        replace(SMALL, loss=LossConfig(lanes=8))


# --- mutants --------------------------------------------------------------------------------------------

MUTANTS = [
    ("last class alone", "loss.maps", "scores.last.eq(n_left <= lanes)", "scores.last.eq(n_left < lanes)"),
    ("classes that there are not", "loss.maps", "Mux(scores.last, n_left, lanes)", "lanes"),
    ("scores counted one by one", "loss.maps", "n_left - lanes)", "n_left - 1)"),
    ("label not waited for", "loss.maps", "of.valid & self.i_label.valid & (", "of.valid & ("),
    ("label stays", "loss.maps", "self.i_label.ready.eq(starts)", "self.i_label.ready.eq(0)"),
    ("no fraction bits", "loss.maps", '"fraction_bits", "label_target", "other', '"label_target", "other'),
    ("only whole tiles leave", "loss.maps", "gradients.payload.last | (part", "(part"),
    ("parts of a picture go on", "loss.maps", "Mux(ends, 0, part + 1)", "part + 1"),
    ("all in the first lanes", "loss.maps", "word_select(part,", "word_select(0,"),
    ("overruns the tile", "loss.maps", "gradients.ready.eq(~o.valid | o.ready)", "gradients.ready.eq(1)"),
    ("a bubble behind every tile", "loss.maps", "gradients.ready.eq(~o.valid | o.ready)",
     "gradients.ready.eq(~o.valid)"),
    ("label as scores", "convolution.program", "label, tag=WeightsOf.LABEL", "label, tag=WeightsOf.KERNEL"),
    ("last tile is the first one", "convolution.program", "place.address + first * place.tile_bytes",
     "place.address"),
    ("tiles over each other", "convolution.program", "                    tile_stride=place.tile_bytes,", ""),
    ("last scores left out", "convolution.program", "n_columns=-(-n_scores // self.config.loss.lanes)",
     "n_columns=max(1, n_scores // self.config.loss.lanes)"),
    ("gradient without sign", "convolution.feed", "select(which, sums)",
     "select(which, [x.as_unsigned() for x in sums])"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant, one = mutated(f"hw.{module}", old, new), pictures(SMALL, np.random.default_rng(5))
    case = timed_case(one, SMALL)
    if module == "convolution.program":
        monkeypatch.setattr(vectors, "lowered", mutant.lowered)
        case = replace(case_of(one, SMALL), max_cycles=case.max_cycles)
    elif module == "convolution.feed":
        monkeypatch.setattr(rtl, "Feed", mutant.Feed)
    else:
        monkeypatch.setattr(rtl, "MapLoss", mutant.MapLoss)
    assert problems(Convolution(SMALL), [case]), name
