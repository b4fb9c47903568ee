# SPDX-License-Identifier: MIT
"""The estimate of operations: cases by hand, the same tasks from shapes and from numbers, energy."""

from dataclasses import replace

import pytest
import torch

from algo.anycost.architecture import (
    GeneratorConfig,
    SubGenerator,
    compute_macs,
    evolved,
    uniform_sub_generators,
)
from algo.anycost.generator import Generator
from algo.anycost.quantise import QuantConfig, quantise
from hw.config import preset
from hw.convolution.operations import MapShape
from hw.depthwise.cycles import LATENCY_CYCLES as DEPTHWISE_LATENCY
from hw.depthwise.cycles import pass_cycles
from hw.depthwise.layer import DepthwiseLayer, phases
from hw.epilogue.config import LATENCY_CYCLES, Side
from hw.fir.config import Map
from hw.systolic.config import SystolicConfig
from hw.systolic.cycles import layer_cycles
from hw.systolic.descriptor import Layer
from sim.anycost import image_estimate, latency_cost, square_core, tasks
from sim.convolution import Core, Task, actions, core_of, energy_pj, estimate, mean_words, tasks_of, total
from sim.driver.generator import operations

FREE = Core(
    array=SystolicConfig(rows=8, columns=8, n_words=1024), bus_bytes=64, memory_bytes_per_cycle=1e9,
    latency_cycles=0,
)  # fmt: skip
LAYER = Layer(height=16, width=16, n_in=16, n_out=16, padding=1)
SMALL = GeneratorConfig(resolution=16, channel_multiplier=1 / 64, max_channels=12, style_size=16)


def lone(task, core=FREE):
    """Cycles without what nothing hides: first read, last write, pipelines, input beyond the first pass.

    Of these layers, all input is in one band and all output in one rectangle.
    """
    fill = 4
    if isinstance(of := task.of, Layer):
        more_words = (-(-of.n_in // 8) - 1) * of.height * of.width
        fill = 8 * -(-8 // core.bus_bytes) + core.array.latency_cycles + more_words * -(-8 // core.bus_bytes)
    return estimate(task, core).cycles - 2 * core.latency_cycles - fill - LATENCY_CYCLES


def test_a_free_core_takes_what_the_array_takes():
    task = Task(name="c", of=LAYER, out_bits=(8,))
    assert lone(task) == layer_cycles(LAYER, FREE.array)
    assert estimate(task, FREE).limit == "array"
    assert estimate(task, FREE).macs == LAYER.n_macs


def test_a_second_reader_stops_the_array_once_a_beat():
    one, two = (Task(name="c", of=LAYER, out_bits=bits) for bits in ((8,), (8, 8)))
    assert lone(two) - lone(one) == 16 * 16 * 2
    assert estimate(two, FREE).out_beats == 2 * estimate(one, FREE).out_beats == 2 * 16 * 16 * 2


def test_two_planes_are_written_apart():
    """Bytes of both fit in a word of the bus, but lie in different ones."""
    narrow, wide = (Task(name="c", of=LAYER, out_bits=(bits,)) for bits in (8, 16))
    assert lone(wide) - lone(narrow) == 16 * 16 * 2


@pytest.mark.parametrize(
    ("change", "limit", "cycles"),
    [
        ({"bus_bytes": 4}, "array", layer_cycles(LAYER, FREE.array) + 512),
        ({"memory_bytes_per_cycle": 1.0}, "memory", 0),
    ],
)
def test_a_slow_port_sets_the_pace(change, limit, cycles):
    """A beat of 8 bytes leaves in two words of 4. Memory: everything at a byte a cycle."""
    core = replace(FREE, **change)
    task = Task(name="c", of=LAYER, out_bits=(8,))
    found = estimate(task, core)
    assert found.limit == limit
    assert lone(task, core) == (cycles or found.memory_bytes)


def test_weights_that_come_slowly():
    """One pixel: each tile of 8 rows waits for 8 cycles, 16 with half a row a cycle."""
    layer = Layer(height=1, width=1, n_in=64, n_out=64, kernel=1)
    task = Task(name="c", of=layer, out_bits=(8,))
    slow = replace(FREE, bus_bytes=4)
    assert estimate(task, slow).limit == "weights"
    assert lone(task, slow) == 64 * 8 * 2 + 8  # the outputs' second words
    assert estimate(task, FREE).weight_bytes == 64 * 64


def test_elements_that_straddle_words():
    """12 bytes at every 12: they begin at 0, 4, .. 28 of a word of 32, at 24 and 28 of them in two words."""
    assert mean_words(12, 12, 32) == 1.25
    assert mean_words(24, 24, 32) == 1.5
    assert mean_words(32, 32, 32) == mean_words(8, 8, 32) == mean_words(4, 128, 32) == 1
    assert mean_words(128, 128, 32) == 4
    assert mean_words(16, 48, 32, offset=32) == 1
    one, two = (Task(name="c", of=replace(LAYER, n_out=n), out_bits=(8,)) for n in (8, 12))
    narrow = replace(FREE, bus_bytes=8)
    assert lone(one, narrow) == layer_cycles(one.of, narrow.array)
    # Pixels of 12 bytes begin at 0 or 4 of a word of 8: a tile of 8 takes 1 or 2 words, the one of 4 one.
    assert lone(two, narrow) == layer_cycles(two.of, narrow.array) + 256 * 0.5


def test_input_comes_a_word_of_the_array_a_cycle():
    """However wide the bus: a toRGB of eight tiles of channels to one pass of output."""
    layer = Layer(height=4, width=4, n_in=64, n_out=3, kernel=1)
    task = Task(name="c", of=layer, out_bits=(8,))
    assert lone(task) == 8 * 16
    assert estimate(task, FREE).cycles - lone(task) > 7 * 16  # all but the first pass's words


def test_bytes_by_hand():
    residual = estimate(Task(name="c", of=LAYER, out_bits=(8, 16), side=Side.RESIDUAL), FREE)
    tables = 2 * 5 * 8 * 2
    assert residual.side_bytes == 16 * 16 * 16 * 2 + tables
    assert residual.output_bytes == 16 * 16 * 16 * 3
    assert residual.weight_bytes == 9 * 16 * 16
    noise = estimate(Task(name="c", of=LAYER, out_bits=(8,), side=Side.NOISE), FREE)
    assert noise.side_bytes == 2 * 16 * 16 * 2 + tables
    assert residual.memory_bytes == sum(
        getattr(residual, f"{what}_bytes") for what in ("weight", "input", "side", "output")
    )


def test_planar_maps():
    """Three colours of 16 bits take two words of 4 bytes; of two tiles both have all eight lanes."""
    few, many = (
        Task(
            name="c", of=Layer(height=16, width=16, n_in=16, n_out=n, kernel=1), out_bits=(16,), planar=True,
            side=Side.RESIDUAL,
        )
        for n in (3, 9)
    )  # fmt: skip
    assert estimate(few, FREE).output_bytes == 256 * 8
    assert estimate(few, FREE).side_bytes == 256 * 8 + 5 * 16
    assert estimate(many, FREE).output_bytes == 256 * 2 * 16
    narrow = replace(FREE, bus_bytes=8)
    assert lone(few, narrow) == 2 * 256
    assert lone(many, narrow) == 2 * 2 * 256 + 2 * 256


def test_the_filter_takes_a_tile_after_the_other():
    of = Map(upsample=False, height=9, width=9, channels=20)
    task = Task(name="f", of=of, out_bits=(8,))
    assert lone(task) == 3 * (10 * 9 + 1)
    assert estimate(task, FREE).limit == "filter"
    assert estimate(task, FREE).input_bytes == 3 * 81 * 16
    assert lone(task, replace(FREE, bus_bytes=4)) == 3 * 81 * 16 / 4
    colours = Task(
        name="f", of=Map(upsample=True, height=9, width=9, channels=3), out_bits=(16,), planar=True
    )
    assert lone(colours) == 4 * 81
    assert estimate(colours, FREE).input_bytes == 81 * 8 and estimate(colours, FREE).output_bytes == 324 * 8


DEPTHWISE = DepthwiseLayer(height=16, width=16, channels=20, padding=1)


def test_the_depthwise_unit_takes_a_tile_after_the_other():
    task = Task(name="d", of=DEPTHWISE, out_bits=(8,), planar=True)
    found = estimate(task, FREE)
    fill = 9 + DEPTHWISE_LATENCY
    assert found.cycles == 3 * pass_cycles(phases(DEPTHWISE)[0].of, FREE.depthwise) + fill + LATENCY_CYCLES
    assert found.limit == "depthwise" and found.macs == 0 and found.depthwise_macs == 9 * 256 * 20
    assert found.weight_bytes == 3 * 9 * 8
    assert found.input_bytes == found.output_bytes == 3 * 256 * 8 and found.depthwise_steps == 3 * 256
    wide = estimate(replace(task, of=replace(DEPTHWISE, wide=True), out_bits=(16,)), FREE)
    assert wide.input_bytes == wide.output_bytes == 3 * 256 * 16 and wide.cycles == found.cycles
    assert energy_pj(found, FREE)["array"] == 0 < energy_pj(found, FREE)["depthwise"]


def test_a_transposed_depthwise_layer_reads_its_input_once_for_each_phase():
    layer = DepthwiseLayer(
        height=8, width=8, channels=8, stride=2, padding=1, transposed=True, out_height=16, out_width=16
    )
    found = estimate(Task(name="d", of=layer, out_bits=(8,), planar=True), FREE)
    assert found.input_bytes == 4 * 64 * 8 and found.weight_bytes == 9 * 8
    assert found.depthwise_macs == 64 * 9 * 8 and found.output_bytes == 256 * 8


def test_masks_products_and_sums():
    plain = Task(name="c", of=LAYER, out_bits=(16,), planar=True)
    masked, product = (estimate(replace(plain, side=side), FREE) for side in (Side.MASK, Side.PRODUCT))
    tables = 2 * 5 * 8 * 2
    assert masked.side_bytes == 2 * 2 * 256 + tables and product.side_bytes == 256 * 16 * 2 + tables
    full = estimate(replace(plain, masks=True, sums=True), FREE)
    assert full.output_bytes - estimate(plain, FREE).output_bytes == 2 * 2 * 256 + 16 * 16
    assert full.out_beats == 2 * estimate(plain, FREE).out_beats


def test_a_transposed_map_takes_whole_blocks():
    """9 pixels of 20 channels: two by three blocks of 8 x 8, written as 20 pixels of two tiles."""
    of = MapShape(height=3, width=3, channels=20, bits=8)
    task = Task(name="t", of=of, out_bits=(16,), planar=True)
    found = estimate(task, FREE)
    assert task.out_shape == (20, 1, 9) and found.limit == "transpose"
    assert found.cycles == 2 * 3 * 8 + 8 + LATENCY_CYCLES
    assert found.input_bytes == 9 * 3 * 8 and found.output_bytes == 20 * 2 * 16


@pytest.mark.parametrize("wide", ["none", "colours", "all"])
@pytest.mark.parametrize("sub", [SMALL.full, SMALL.uniform(0.5, 8), SubGenerator(16, (8, 4, 12, 8, 8, 8))])
def test_shapes_alone_give_the_same_tasks_as_an_image(sub, wide):
    torch.manual_seed(0)
    generator = Generator(SMALL)
    for layer in generator.convs:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    quantised = quantise(generator, QuantConfig(n_images=1, wide=wide), [SMALL.full])
    styles = generator.styles(torch.randn(1, 16))
    made = tasks_of(operations(quantised.record(styles, sub)))
    assert tasks(SMALL, sub, wide=wide) == made
    assert [task.side for task in tasks(SMALL, sub, noise=False)].count(Side.NOISE) == 0


def test_products_are_the_useful_ones_and_padding():
    """Phases of a transposed kernel are a row longer than their input; all else agrees."""
    shape = GeneratorConfig()
    core = square_core(32)
    for sub in [*uniform_sub_generators().values(), *evolved().values()]:
        found, useful = image_estimate(shape, sub, core), compute_macs(shape, sub)
        assert useful <= found.macs < 1.03 * useful
        assert found.cycles > useful / 32**2


def test_all_presets_run_the_trained_shape():
    shape = GeneratorConfig(resolution=32, channel_multiplier=1 / 16, max_channels=64, style_size=64)
    for name in ("tiny", "edge", "paper"):
        core = core_of(preset(name))
        assert image_estimate(shape, shape.full, core).cycles > image_estimate(
            shape, shape.uniform(0.25), core
        ).cycles  # fmt: skip


def test_the_cost_of_a_search():
    cost = latency_cost(SMALL, FREE)
    assert cost(SMALL.full) == image_estimate(SMALL, SMALL.full, FREE).cycles > cost(SMALL.uniform(0.25))


def test_energy_is_linear_and_has_no_part_for_nothing():
    one = estimate(Task(name="c", of=LAYER, out_bits=(8,)), FREE)
    once, twice = energy_pj(one, FREE), energy_pj(total([one, one]), FREE)
    idle = {part for part, value in once.items() if value == 0}
    assert idle == {"filter", "depthwise"} and min(once.values()) == 0
    assert all(twice[part] == pytest.approx(2 * once[part]) for part in once)
    products = actions(one, FREE)["array"][("multiplier", "multiply_12b")]
    assert products == pytest.approx(LAYER.n_macs * 64 / 144)
