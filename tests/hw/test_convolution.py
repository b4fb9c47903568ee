# SPDX-License-Identifier: MIT
"""Convolution core: operations lowered and run in RTL against their golden model; mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator
from algo.anycost.quantise import QuantConfig, quantise
from hw.config import PRESETS
from hw.convolution import maps, program, rtl, vectors
from hw.convolution.config import ConvolutionConfig, convolution_config
from hw.convolution.golden import run
from hw.convolution.operations import MapShape, Reduce
from hw.convolution.program import lowered
from hw.convolution.rtl import Convolution
from hw.convolution.runs import (
    Run,
    around_a_tile,
    by_channel,
    conv,
    depthwise,
    filters,
    fir,
    masks,
    runs,
    single_pixels,
    training,
)
from hw.convolution.vectors import case_of, cases, timed_case
from hw.depthwise.config import DepthwiseConfig
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import EpilogueConfig
from hw.fir.config import FirConfig, Map
from hw.harness import cosim, verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from hw.loss.config import LossConfig
from hw.registry import BLOCKS
from hw.systolic.config import SystolicConfig
from hw.systolic.layer import Layer
from sim.convolution import core_of, estimate, tasks_of, total
from sim.driver import generator as driver
from tests.hw.mutants import mutated


def small(*, rows=8, columns=4, n_words=64, **changes):
    """A core that Amaranth's simulator runs in seconds."""
    array = SystolicConfig(
        rows=rows, columns=columns, n_words=n_words, n_accumulators=16, max_channels=16, max_size=32
    )
    fir_ = FirConfig(
        lanes=columns, element_bits=16, out_bits=18, row_beats=32, max_channels=columns, max_size=33
    )
    return ConvolutionConfig(
        array=array,
        fir=fir_,
        depthwise=DepthwiseConfig(lanes=columns, row_pixels=16, max_size=32),
        epilogue=EpilogueConfig(lanes=columns, max_tiles=4),
        loss=LossConfig(lanes=2, max_classes=16),
        **{"bus_bytes": 8, "read_words": 16, **changes},
    )


SMALL = small()
CONFIGS = [SMALL, small(rows=16, columns=8, bus_bytes=32, read_words=4, max_writes=2)]


def problems(component, cases):
    return [problem for case, log in run_cases(component, cases) for problem in judge(case, log).problems]


def after(one, config):
    """Memory after a run, as golden's writes leave it."""
    case = case_of(one, config)
    image = case.memories["o_write"].words.astype("<u4").view(np.uint8).copy()
    bus = config.bus_bytes
    for beat in case.expected["o_write"]:
        bits = int.from_bytes(beat.astype("<u4").tobytes(), "little")
        word, bits = bits & ((1 << config.bus_address_bits) - 1), bits >> config.bus_address_bits
        for place in range(bus):
            if bits >> (8 * bus + place) & 1:
                image[word, place] = bits >> 8 * place & 0xFF
    return image.reshape(-1)


def misread(one, config):
    """Maps that memory does not hold after a run."""
    memory = after(one, config)
    given = {name: torch.from_numpy(values) for name, values in one.maps.items()}
    program = lowered(one.operations, one.maps, config)
    places = {**program.places, **program.lists}
    golden = run(one.operations, given)
    return [name for name, v in golden.items() if not np.array_equal(places[name].read(memory), v.numpy())]


@pytest.mark.parametrize("config", CONFIGS, ids=["8x4", "16x8"])
def test_golden_maps_can_be_read_back_where_they_are_written(config):
    assert [misread(one, config) for one in runs(config, seed=3, n_random=4)] == 13 * [[]]


def test_rtl_writes_what_golden_says_when_the_cycle_model_says():
    assert problems(Convolution(SMALL), cases(SMALL, seed=1, n_random=2)) == []


@pytest.mark.parametrize("bus_bytes", [4, 64])
def test_narrowest_and_widest_bus(bus_bytes):
    config = small(bus_bytes=bus_bytes)
    assert problems(Convolution(config), [timed_case(mixture(np.random.default_rng(9)), config)]) == []


@pytest.mark.parametrize("latency_cycles", [1, 40])
def test_cycles_in_narrow_queues_and_in_other_memories(latency_cycles):
    """Where reads and writes wait for their answers."""
    config, rng = CONFIGS[1], np.random.default_rng(7)
    made = [
        timed_case(make(config, rng), config, latency_cycles=latency_cycles)
        for make in (single_pixels, filters, by_channel, training)
    ]
    assert problems(Convolution(config), made) == []


@pytest.mark.parametrize("config", CONFIGS, ids=["8x4", "16x8"])
def test_rtl_writes_the_same_under_stalls(config):
    """Of every port, and of a memory whose ports overtake each other."""
    rng = np.random.default_rng(2)
    made = [
        case_of(make(config, rng), config, jitter_cycles=9)
        for make in (single_pixels, around_a_tile, filters, masks, by_channel)
    ]
    assert problems(Convolution(config), [case.stalled(0.3, seed=3) for case in made]) == []


def test_lists_may_follow_one_another(small_case):
    """Started at once: the second one writes the same again."""
    case = small_case
    twice = {name: np.concatenate([beats, beats]) for name, beats in case.expected.items()}
    starts = {"i_start": np.concatenate([case.inputs["i_start"]] * 2)}
    again = replace(case, inputs=starts, expected=twice, expected_cycles={}, max_cycles=2 * case.max_cycles)
    assert problems(Convolution(SMALL), [again]) == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["edge", "paper"])
def test_the_verilog_of_larger_chips(name):
    config = convolution_config(PRESETS[name])
    todo = cases(config, seed=6, n_random=20)
    todo += [case.stalled(0.3, seed=7) for case in todo]
    logs = verilated.run_cases(BLOCKS["convolution"], config, todo)
    assert [judge(case, log).problems for case, log in zip(todo, logs, strict=True)] == [()] * len(todo)


def generated(ratio):
    """An image of 16 px and at most 64 channels by a sub-generator, as operations, and its constant."""
    torch.manual_seed(1)
    config = GeneratorConfig(resolution=16, channel_multiplier=1 / 16, max_channels=64, style_size=16)
    generator = Generator(config)
    for layer in [*generator.convs, *generator.to_rgb]:
        torch.nn.init.normal_(layer.bias, std=0.3)
    for layer in generator.convs:
        torch.nn.init.constant_(layer.noise_strength, 0.1)
    generator.eval().requires_grad_(False)
    quantised = quantise(generator, QuantConfig(n_images=2, wide="colours"))
    record = quantised.record(generator.styles(torch.randn(1, config.style_size)), config.uniform(ratio))
    maps = {driver.constant_name(record): record.constant}
    return Run(name=f"ratio {ratio}", operations=driver.operations(record), maps=maps)


@pytest.mark.full
def test_the_verilog_under_cocotb():
    """Its memories play by the same rules."""
    config, rng = convolution_config(PRESETS["tiny"]), np.random.default_rng(8)
    todo = [case_of(make(config, rng), config, jitter_cycles=5) for make in (single_pixels, filters)]
    todo += [case.stalled(0.3, seed=9) for case in todo]
    logs = cosim.run_cases(BLOCKS["convolution"], config, todo)
    assert [judge(case, log).problems for case, log in zip(todo, logs, strict=True)] == [()] * len(todo)


def test_the_verilog_of_the_smallest_chip_makes_images_at_three_ratios_and_runs_every_corner():
    """Images from 4 to 16 pixels, in about the estimated cycles; corners at full rate and under stalls."""
    config = convolution_config(PRESETS["tiny"])
    core = replace(core_of(PRESETS["tiny"]), latency_cycles=12, memory_bytes_per_cycle=1e9)
    images = [generated(ratio) for ratio in (1, 0.5, 0.25)]
    todo = [case_of(one, config, latency_cycles=core.latency_cycles) for one in images]
    corners = cases(config, seed=4, n_random=6)
    todo += [*corners, *(case.stalled(0.4, seed=5) for case in corners)]
    logs = verilated.run_cases(BLOCKS["convolution"], config, todo)
    for case, log in zip(todo, logs, strict=True):
        verdict = judge(case, log)
        assert verdict.problems == () and verdict.n_beats > 0
    for one, log in zip(images, logs, strict=False):
        estimated = total(estimate(task, core) for task in tasks_of(one.operations)).cycles
        assert 0.95 < log.since_first_input("o_done")[-1] / estimated < 1.05


# --- mutants --------------------------------------------------------------------------------------------

MUTANTS = [
    ("beat lost between jobs", "feed", "self.i.ready.eq(self.o_job.ready)",
     "self.i.ready.eq(self.o_job.ready & ~active)"),
    ("entry stays from tile to tile", "feed", "eq(of.first_tile + 1)", "eq(of.first_tile)"),
    ("tile ends early", "feed", "tile_beat == of.tile_beats - 1", "tile_beat == of.tile_beats - 2"),
    ("beats of the tile before", "feed", "[tile_beat.eq(0), of.first_tile", "[of.first_tile"),
    ("sums without sign", "feed", "select(which, sums)", "select(which, [x.as_unsigned() for x in sums])"),
    ("always the array", "feed", "select(which, [source.valid for source in sources])", "sources[0].valid"),
    ("all elements for the first unit", "rtl", "source.payload.tag == tag", "tag == 0"),
    ("all for reader 0", "rtl", '"data", "mask", "reader"', '"data", "mask"'),
    ("the same record again", "rtl", "walk.column_stride.eq(RECORD_BYTES)", "walk.column_stride.eq(0)"),
    ("nobody waits for what is written", "program", "            self._command(Kind.FENCE)\n", ""),
    ("every job loads the table", "program", "        self.n_tables = 0\n", ""),
    ("noise by tile", "program", "n_tiles=of.n_tiles,\n        n_rows=of.n_rows,\n        row_stride=2",
     "n_tiles=of.n_tiles,\n        tile_stride=2,\n        n_rows=of.n_rows,\n        row_stride=2"),
    ("mask stays behind", "rtl", '"data", "mask", "reader"', '"data", "reader"'),
    ("nothing is reduced", "program", '"reduction": job.reduction', '"reduction": 0'),
    ("numbers of the operation", "program", "if name is None else self.lists[name].address", ""),
    ("weights of the operation", "program", "if operation.named_weights is not None", "if False"),
    ("lists begin with zeros", "program", "place.write(memory, content)", "pass"),
    ("phases side by side", "program", "row_stride=2 * of.step * width", "row_stride=2 * width"),
    ("weights of the first tile", "program", "phase.weights(of_tile)",
     "phase.weights(weights[: self.lanes])"),
    ("weights by channel", "program", ".reshape(self.lanes, -1).T)", ".reshape(self.lanes, -1))"),
    ("phases from the map's first pixel", "program", "y=phase.row, x=phase.column", "y=0, x=0"),
    ("phases of a tile side by side", "program", "step=phase.step", "step=1"),
    ("low plane is the high one", "program", "tile_stride=place.plane_bytes", "tile_stride=0"),
    ("halves of a pixel", "maps", "n_bytes = last_bytes = self.pixel_bytes", "n_bytes = last_bytes = 4"),
    ("last tile writes beyond its pixel", "maps",
     "min(self.lanes, self.pixel_bytes - last_tile * self.lanes)", "self.lanes"),
]  # fmt: skip


@pytest.fixture(scope="module")
def small_case():
    """Two planes, three tiles, both readers, all sources, phases, a mask written and read, sums, table
    and weights that have names; and their cycles."""
    case = timed_case(mixture(np.random.default_rng(6)), SMALL)
    assert problems(Convolution(SMALL), [case]) == []
    return case


def mixture(rng):
    size = {"height": 3, "width": 4}
    wide = Layer(**size, n_in=3, n_out=9, kernel=1, wide=True)
    grown = Layer(**size, n_in=6, n_out=6, stride=2, transposed=True, n_stored=9)
    blur = Map(upsample=False, **size, channels=9)
    back = Layer(height=2, width=3, n_in=9, n_out=9, kernel=1)
    spread = DepthwiseLayer(
        height=2, width=3, channels=9, padding=2, stride=2, transposed=True, wide=True, out_width=4
    )
    return Run(
        name="mixture",
        operations=[
            conv("wide", wide, "x", rng, {"a": 8, "b": 16}, noise=True),
            conv("grown", grown, "a", rng, {"d": 8}, noise=True),
            fir("blur", blur, "b", rng, {"e": 8, "f": 16}, mask="open", reduce=Reduce(name="s", shift=3)),
            replace(
                conv("back", back, "e", rng, {"g": 16}, masked_by="open", named_table="t"), named_weights="w"
            ),
            depthwise("spread", spread, "f", rng, {"h": 8}),
        ],
        maps={
            "x": rng.integers(-(1 << 15), 1 << 15, (3, 4, 3)),
            "t": conv("other", back, "e", rng, {"g": 16}).epilogue.table().words(),
            "w": rng.integers(-128, 128, (9, 9, 1, 1)),
        },
    )  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch, small_case):
    mutant = mutated(f"hw.convolution.{module}", old, new)
    case = small_case
    made = mutant if module == "rtl" else rtl
    if module == "maps":
        monkeypatch.setattr(program, "for_array", mutant.for_array)
        monkeypatch.setattr(program, "planar", mutant.planar)
        config = CONFIGS[1]
        assert misread(around_a_tile(config, np.random.default_rng(6)), config), name
        return
    if module == "feed":
        monkeypatch.setattr(rtl, "Feed", mutant.Feed)
    elif module == "program":
        monkeypatch.setattr(vectors, "lowered", mutant.lowered)
        case = replace(case_of(mixture(np.random.default_rng(6)), SMALL), max_cycles=small_case.max_cycles)
    assert problems(made.Convolution(SMALL), [case]), name


# --- what the core does not take ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bus_bytes": 12}, "bus_bytes must be 4, 8, 16, 32 or 64, not 12"),
        ({"read_words": 1}, r"read_words must be in 3\.\.1024, not 1"),
        ({"max_writes": 0}, r"max_writes must be in 1\.\.1023, not 0"),
        ({"queued_commands": 17}, r"queued_commands must be in 3\.\.16, not 17"),
        ({"columns": 6}, "rows and columns must be multiples of 4, not 8 and 6"),
        ({"epilogue": EpilogueConfig(lanes=8)}, "lanes must be the array's 4 columns, not .4, 4, 8."),
        ({"fir": FirConfig(lanes=4, element_bits=32, out_bits=32)}, "fir.element_bits must be 16, not 32"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(small(columns=changes.pop("columns")) if "columns" in changes else SMALL, **changes)


def test_rejects_what_it_cannot_run():
    rng = np.random.default_rng(1)
    x = {"x": rng.integers(-128, 128, (2, 2, 8))}
    grouped = Layer(height=2, width=2, n_in=8, n_out=4, kernel=1, groups=2)
    with pytest.raises(ValueError, match="c: outputs of each group must be a multiple of 4, not 2"):
        lowered([conv("c", grouped, "x", rng, {"a": 8})], x, SMALL)
    many = Layer(height=2, width=2, n_in=8, n_out=20, kernel=1)
    with pytest.raises(ValueError, match="n_tables must be at most 4, not 5"):
        lowered([conv("c", many, "x", rng, {"a": 8})], x, SMALL)
    plain = conv("c", Layer(height=2, width=2, n_in=8, n_out=4, kernel=1), "x", rng, {"a": 8})
    with pytest.raises(ValueError, match=r"map 'x' must be \[2, 2, 8\], not \[2, 1, 8\]"):
        lowered([plain], {"x": x["x"][:, :1]}, SMALL)
    with pytest.raises(ValueError, match=r"map 'x' must be in -128\.\.127, not 128\.\.128"):
        lowered([plain], {"x": np.full((2, 2, 8), 128)}, SMALL)
    assert "unread" not in lowered([plain], x | {"unread": x["x"]}, SMALL).places
    wide = Map(upsample=True, height=1, width=33, channels=1)
    with pytest.raises(ValueError, match="a row must be at most 32 beats, not 33"):
        lowered([fir("f", wide, "y", rng, {"a": 8})], {"y": np.zeros((1, 33, 1), np.int64)}, SMALL)
    with pytest.raises(ValueError, match="c: channels of a mask beside NOISE must be a multiple of 4, not 3"):
        layer = Layer(height=2, width=2, n_in=8, n_out=3, kernel=1)
        lowered([conv("c", layer, "x", rng, {"a": 8}, noise=True, mask="m")], x, SMALL)
    with pytest.raises(ValueError, match=r"list 't' must be \[5, 4\], not \[4, 5\]"):
        named = conv("c", plain.layer, "x", rng, {"a": 8}, named_table="t")
        lowered([named], x | {"t": np.zeros((4, 5), np.int64)}, SMALL)
    with pytest.raises(ValueError, match=r"named weights must be for \[3, 8\], not \[4, 8\]"):
        replace(plain, layer=layer, epilogue=conv("c", layer, "x", rng, {"a": 8}).epilogue, named_weights="w")
    rows = depthwise("d", DepthwiseLayer(height=1, width=17, channels=1, kernel=1), "y", rng, {"a": 8})
    with pytest.raises(ValueError, match="d: width must be at most 16, not 17"):
        lowered([rows], {"y": np.zeros((1, 17, 1), np.int64)}, SMALL)
    places = MapShape(height=2, width=2, channels=6, bits=8)
    with pytest.raises(ValueError, match="channels of each group must be a multiple of 4"):
        maps.for_array(0, places, [replace(grouped, n_in=6, n_out=8)], SMALL)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_built(name):
    config = convolution_config(PRESETS[name])
    assert config.bus_bytes == PRESETS[name].dram_bytes_per_cycle
    assert config.wide_bytes == 2 * config.array.columns
