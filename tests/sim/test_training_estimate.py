# SPDX-License-Identifier: MIT
"""Training steps in closed form: products against the published layer shapes, what each method needs."""

from dataclasses import replace

import pytest

from algo.tinytl.architecture import (
    EFFICIENTNET_LITE0,
    METHODS,
    PROXYLESS_MOBILE,
    Block,
    layers,
    n_trained,
    passes,
)
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Side
from hw.systolic.descriptor import Layer as Convolution
from hw.training.config import Image, Kernel
from hw.training.cycles import Timed, job_cycles
from sim.convolution import Scores, estimate
from sim.training import busy, step, training_core, works

FLOWERS = replace(PROXYLESS_MOBILE, n_classes=102)
LITE_BIAS = METHODS["lite+bias"]
CORE = training_core(16, 32)
SMALL = replace(
    PROXYLESS_MOBILE, name="small", n_classes=8, c_mix=64,
    blocks=(Block(16, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1)),
)  # fmt: skip


def test_every_pass_has_its_work():
    for method in METHODS.values():
        found = works(SMALL, method, 64)
        assert [work.of for work in found] == list(passes(SMALL, method, 64))


@pytest.mark.parametrize("kind", ["fwd", "dgrad"])
def test_products_are_those_of_the_layers(kind):
    """Padding aside, and what an adjoint makes beyond the edges of a small map; two for 16 bits."""
    planes = 1 if kind == "fwd" else 2
    for work in works(FLOWERS, LITE_BIAS, 224):
        layer = work.of.layer
        if work.of.kind != kind or layer.kind not in ("conv", "linear"):
            continue
        task = work.tasks[0]
        one = estimate(task, CORE)
        made = one.depthwise_macs or one.macs / planes
        assert layer.n_macs * 0.8 < made < layer.n_macs * 2, layer.name
        if layer.stride == 1:
            assert made == layer.n_macs, layer.name


def test_gradients_of_weights_sum_over_all_pixels():
    """One product a weight and pixel, of 16 bits; of two groups also those between them."""
    for work in works(FLOWERS, METHODS["full"], 224):
        layer = work.of.layer
        if work.of.kind == "wgrad" and layer.kind == "conv" and layer.groups in (1, 2):
            made = sum(estimate(task, CORE).macs for task in work.tasks)
            assert made == 2 * layer.groups * layer.n_macs, layer.name


def test_masks_are_written_where_a_gradient_passes_and_read_there():
    def count(method):
        tasks = [task for work in works(FLOWERS, METHODS[method], 224) for task in work.tasks]
        return sum(task.masks for task in tasks), sum(task.side == Side.MASK for task in tasks)

    n_acts = sum(layer.kind == "act" for layer in layers(FLOWERS, 224))
    assert count("last") == (0, 0)
    written, read = count("full")
    assert written == n_acts == read


def test_a_frozen_affine_norm_needs_no_passes_of_its_own():
    grouped = replace(EFFICIENTNET_LITE0, norm="group", n_classes=10)
    affine = replace(EFFICIENTNET_LITE0, n_classes=10)
    for kind in ("fwd", "dgrad", "bgrad"):
        tasks = [t for w in works(affine, METHODS["bias"], 64) if w.of.layer.kind == "affine"
                 and w.of.kind == kind for t in w.tasks]  # fmt: skip
        assert not tasks
    cheap, dear = (step(b, METHODS["bias"], 64, 1, CORE) for b in (affine, grouped))
    assert cheap.cycles < dear.cycles and cheap.memory_bytes < dear.memory_bytes
    assert cheap.array_macs == dear.array_macs


def test_a_step_is_its_pictures_each_with_an_update():
    one, eight = (step(SMALL, LITE_BIAS, 64, n, CORE) for n in (1, 8))
    n_weights = n_trained(SMALL, LITE_BIAS)
    update = job_cycles(Timed(kernel=Kernel.UPDATE, count=n_weights, image=Image.BYTES))
    assert update == pytest.approx(1.25 * n_weights, rel=0.01)
    assert eight.cycles == pytest.approx(8 * one.cycles)
    kernels = [work.kernel for work in works(SMALL, LITE_BIAS, 64) if work.kernel]
    norms = [layer for layer in layers(SMALL, 64) if layer.kind == "norm"]
    assert [k.count for k in kernels if k.kernel == Kernel.NORM] == [norm.c_out // 8 for norm in norms]
    assert update + sum(map(job_cycles, kernels)) < one.cycles
    assert eight.array_macs == 8 * one.array_macs
    last = step(SMALL, METHODS["last"], 64, 1, CORE)
    full = step(SMALL, METHODS["full"], 64, 1, CORE)
    assert last.cycles < one.cycles < full.cycles and last.energy_pj < one.energy_pj < full.energy_pj
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        step(SMALL, LITE_BIAS, 64, 0, CORE)


@pytest.mark.parametrize(("method", "n_readers"), [("last", 1), ("lite+bias", 2), ("full", 2)])
def test_the_classifiers_scores_have_a_loss(method, n_readers):
    """Once a step, of 16 bits; the gradient's reader is the weights', and the input's where one is needed."""
    tasks = [task for work in works(FLOWERS, METHODS[method], 64) for task in work.tasks]
    (place,) = (i for i, task in enumerate(tasks) if isinstance(task.of, Scores))
    assert tasks[place - 1].name == "classifier" and tasks[place - 1].out_bits == (16,)
    loss = tasks[place]
    assert loss.of.n_classes == 102 and loss.out_bits == n_readers * (16,) and loss.sums


@pytest.mark.parametrize("size", [(16, 16), (16, 32), (32, 32)])
def test_depthwise_layers_keep_at_least_half_of_their_unit_busy(size):
    """Forward and backward, of every depthwise layer, with what memory and outputs cost."""
    core = training_core(*size)
    shares = {}
    for work in works(FLOWERS, LITE_BIAS, 224):
        layer = work.of.layer
        if layer.kind == "conv" and layer.groups == layer.c_in > 1:
            (task,) = work.tasks
            assert isinstance(task.of, DepthwiseLayer)
            shares[layer.name, work.of.kind] = busy(task, core)
    assert len(shares) == 2 * 20
    assert min(shares.values()) > 0.5


def test_channels_that_fill_the_array_keep_it_busy():
    for work in works(FLOWERS, LITE_BIAS, 224):
        for task in work.tasks:
            of = task.of
            fits = isinstance(of, Convolution) and of.n_in % 16 == 0 and of.n_out % 32 == 0
            if (
                fits
                and of.n_in >= 64
                and of.groups == 1
                and of.kernel == 1
                and of.out_height * of.out_width >= 196
            ):
                assert busy(task, CORE) > 0.65, task.name
