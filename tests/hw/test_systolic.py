# SPDX-License-Identifier: MIT
"""Systolic array: golden against PyTorch, RTL against golden (bits) and cycle model, tilings, mutants."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.config import PRESETS
from hw.harness import cosim, verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import Case, judge
from hw.kv_buffer.cycles import Load
from hw.registry import BLOCKS
from hw.systolic.config import MIN_PASS_CYCLES, SystolicConfig, systolic_config
from hw.systolic.cycles import busy, layer_cycles, replay, tiling_ceiling
from hw.systolic.descriptor import KERNELS, Layer, bands_of, image_words, phases, tile_rows, weight_rows
from hw.systolic.golden import convolution
from hw.systolic.rtl import Systolic
from hw.systolic.vectors import Task, case, cases
from tests.hw.mutants import mutated

SMALL = SystolicConfig(rows=3, columns=2, n_words=64, n_accumulators=16, max_channels=32, max_size=64)
RATIOS = (0.25, 0.5, 0.75, 1.0)
CHIPS = [SystolicConfig(rows=n, columns=n, n_words=1 << 14, n_accumulators=1024) for n in (16, 32, 64)]


def random_task(layer: Layer, seed: int = 1) -> Task:
    rng = np.random.default_rng(seed)
    bound = 1 << (8 * layer.n_planes - 1)
    weights = (layer.n_out, layer.n_in // layer.groups, layer.kernel, layer.kernel)
    return Task(
        layer=layer,
        activations=rng.integers(-bound, bound, (layer.height, layer.width, layer.stored)),
        weights=rng.integers(-128, 128, weights),
    )


def by_definition(task: Task) -> np.ndarray:
    """The sums as the formula says, pixel by pixel and tap by tap."""
    layer, x, w = task.layer, task.activations, task.weights
    sums = np.zeros((layer.out_height, layer.out_width, layer.n_out), dtype=np.int64)
    n_in, n_out = layer.n_in // layer.groups, layer.n_out // layer.groups
    for group in range(layer.groups):
        ins = slice(group * (layer.stored // layer.groups), group * (layer.stored // layer.groups) + n_in)
        outs = slice(group * n_out, (group + 1) * n_out)
        for ky, kx in np.ndindex(layer.kernel, layer.kernel):
            tap = w[outs, :, ky, kx]
            if layer.transposed:
                for y, xx in np.ndindex(layer.height, layer.width):
                    sums[2 * y + ky, 2 * xx + kx, outs] += tap @ x[y, xx, ins]
                continue
            for y, xx in np.ndindex(layer.out_height, layer.out_width):
                iy, ix = y * layer.stride + ky - layer.padding, xx * layer.stride + kx - layer.padding
                if 0 <= iy < layer.height and 0 <= ix < layer.width:
                    sums[y, xx, outs] += tap @ x[iy, ix, ins]
    return sums


@pytest.mark.parametrize(
    "layer",
    [
        Layer(height=5, width=4, n_in=3, n_out=2, kernel=3, padding=1),
        Layer(height=5, width=6, n_in=2, n_out=2, kernel=5, stride=2, padding=2, wide=True),
        Layer(height=3, width=2, n_in=2, n_out=3, kernel=3, stride=2, transposed=True),
        Layer(height=4, width=4, n_in=4, n_out=6, kernel=3, padding=1, groups=2, n_stored=6),
        Layer(height=2, width=3, n_in=2, n_out=4, kernel=7, padding=6, groups=2),
        Layer(height=2, width=3, n_in=4, n_out=2, kernel=5, stride=2, transposed=True, groups=2),
    ],
    ids=str,
)
def test_golden_is_the_definition(layer):
    task = random_task(layer)
    sums = convolution(torch.from_numpy(task.activations), torch.from_numpy(task.weights), layer)
    assert np.array_equal(sums.numpy(), by_definition(task))


def test_golden_takes_the_first_channels_and_wraps():
    layer = Layer(height=1, width=1, n_in=600, n_out=1, kernel=1, wide=True)
    low = convolution(torch.full((1, 1, 600), -(2**15)), torch.full((1, 600, 1, 1), -128), layer)
    assert int(low) == 600 * 2**22 - 2**32
    more = random_task(Layer(height=3, width=3, n_in=6, n_out=8, kernel=3))
    few = Layer(height=3, width=3, n_in=2, n_out=3, kernel=3, n_stored=6)
    sums = convolution(torch.from_numpy(more.activations), torch.from_numpy(more.weights), few)
    assert np.array_equal(
        sums.numpy(),
        by_definition(Task(layer=few, activations=more.activations, weights=more.weights[:3, :2])),
    )


def test_golden_rejects_what_the_array_cannot_take():
    layer = Layer(height=2, width=2, n_in=2, n_out=2, kernel=1)
    x, w = torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 2, 1, 1, dtype=torch.int64)
    with pytest.raises(
        TypeError, match=r"activations must be int64\[2, 2, 2\], not torch.float32\[2, 2, 2\]"
    ):
        convolution(x.float(), w, layer)
    with pytest.raises(
        TypeError, match=r"weights must be int64\[2, 2, 1, 1\], not torch.int64\[2, 2, 3, 3\]"
    ):
        convolution(x, torch.zeros(2, 2, 3, 3, dtype=torch.int64), layer)
    with pytest.raises(ValueError, match=r"activations must be in -128..127"):
        convolution(x + 128, w, layer)
    with pytest.raises(ValueError, match=r"weights must be for at least 2 outputs in 1 groups and 2 inputs"):
        convolution(x, w[:1], layer)


@given(
    kernel=st.sampled_from(KERNELS),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    n_words=st.sampled_from([64, 256, 4096]),
)
@settings(max_examples=80, deadline=None)
def test_descriptors_cover_every_output_once(kernel, height, width, stride, transposed, n_words):
    """Also: every input pixel that an output needs lies in the band, or outside of the whole input."""
    config = replace(SMALL, n_words=n_words)
    layer_stride, padding = (2, 0) if transposed else (stride, kernel // 2)
    try:
        layer = Layer(height=height, width=width, n_in=4, n_out=1, kernel=kernel,
                      stride=layer_stride, padding=padding, transposed=transposed)  # fmt: skip
        bands = bands_of(layer, config)
    except ValueError:
        return  # too large for these words, or no output at all
    seen = np.zeros((layer.out_height, layer.out_width), dtype=int)
    for band in bands:
        assert band.n_words <= n_words
        for d in (work.descriptor for work in band.works):
            assert d.n_pixels <= config.n_accumulators
            rows, columns = d.y + d.step * np.arange(d.out_height), d.x + d.step * np.arange(d.out_width)
            seen[np.ix_(rows, columns)] += 1
            first = band.first_row + d.origin_y
            last = first + d.stride * (d.out_height - 1) + d.kernel_height - 1
            assert max(0, first) >= band.first_row
            assert min(height - 1, last) < band.first_row + band.n_rows or last < band.first_row
    assert (seen == 1).all()


def test_phases_of_the_transpose_meet_each_tap_once():
    layer = Layer(height=4, width=4, n_in=1, n_out=1, kernel=3, stride=2, transposed=True)
    assert [(p.taps_y, p.taps_x) for p in phases(layer)] == [
        ((2, 0), (2, 0)), ((2, 0), (1,)), ((1,), (2, 0)), ((1,), (1,)),
    ]  # fmt: skip
    assert [p.n_taps for p in phases(layer)] == [4, 2, 2, 1]


def test_words_and_weights_lie_as_documented():
    layer = Layer(height=1, width=2, n_in=8, n_out=2, kernel=1, groups=2, wide=True)
    x = np.arange(16).reshape(1, 2, 8) * 256 + 7
    words = image_words(x, layer, SMALL)
    assert words.tolist() == [
        [0, 1, 2], [3, 0, 0], [4, 5, 6], [7, 0, 0], [8, 9, 10], [11, 0, 0], [12, 13, 14], [15, 0, 0],
        *[[7, 7, 7], [7, 0, 0]] * 4,
    ]  # fmt: skip
    weights = np.arange(8).reshape(2, 4, 1, 1)
    (band,) = bands_of(layer, SMALL)
    rows = [weight_rows(weights, work, layer, SMALL).tolist() for work in band.works]
    assert rows == [[[0, 0], [1, 0], [2, 0], [3, 0]], [[4, 0], [5, 0], [6, 0], [7, 0]]]
    assert [tile_rows(work, SMALL) for work in band.works] == [[3, 1]] * 2


@cache
def short_cases() -> list[Case]:
    """The corners that Amaranth's simulator runs in seconds."""
    chosen = cases(SMALL, seed=3, n_random=0)
    names = {"extreme operands", "channels around a tile", "few pixels", "first channels of more",
             "loads outlast their layers", "two groups", "many rectangles"}  # fmt: skip
    rng = np.random.default_rng(5)
    up = Layer(height=2, width=2, n_in=4, n_out=5, stride=2, transposed=True)
    bands = Layer(height=5, width=9, n_in=4, n_out=1, stride=2, padding=1)
    return [
        *(one for one in chosen if one.name in names),
        case(
            "stride",
            [random_task(Layer(height=5, width=5, n_in=2, n_out=1, stride=2, padding=1))],
            SMALL,
            rng,
        ),
        case("up", [random_task(up), random_task(replace(up, wide=True))], SMALL, rng),
        case("bands", [random_task(bands), random_task(replace(bands, wide=True, width=5))], SMALL, rng),
    ]


@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles_in_amaranth(p_stall):
    chosen = [one.stalled(p_stall, seed=4) if p_stall else one for one in short_cases()]
    for one, log in run_cases(Systolic(SMALL), chosen):
        assert judge(one, log).problems == ()


def check_in_harness(config: SystolicConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    block = BLOCKS["systolic"]
    full_rate = block.cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(block, config, runs)
    verdicts = [judge(one, log) for one, log in zip(runs, logs, strict=True)]
    assert {v.case: v.problems for v in verdicts if v.problems} == {}


def test_verilog_matches_golden_and_cycles():
    check_in_harness(systolic_config(PRESETS["tiny"]), n_random=40)


@pytest.mark.full
@pytest.mark.parametrize(
    "config",
    [
        systolic_config(PRESETS["paper"]),
        SystolicConfig(rows=16, columns=8),
        SystolicConfig(rows=5, columns=12),
    ],
    ids=["16 x 32", "16 x 8", "5 x 12"],
)
def test_other_arrays_match_golden_and_cycles(config):
    check_in_harness(config, n_random=40)


@pytest.mark.full
@pytest.mark.parametrize("simulator", cosim.SIMULATORS)
def test_cocotb(simulator):
    if reason := cosim.missing_simulator(simulator):
        pytest.skip(reason)
    block, config = BLOCKS["systolic"], systolic_config(PRESETS["tiny"])
    full_rate = block.cases(config, seed=5, n_random=3)
    runs = [*full_rate, *(one.stalled(0.3, seed=6) for one in full_rate)]
    logs = cosim.run_cases(block, config, runs, simulator)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [()] * len(runs)


@pytest.mark.parametrize(
    "layer",
    [
        Layer(height=4, width=5, n_in=5, n_out=7, padding=1),
        Layer(height=3, width=3, n_in=1, n_out=1, kernel=1),
        Layer(height=2, width=1, n_in=5, n_out=4, kernel=1, wide=True),
        Layer(height=4, width=4, n_in=3, n_out=4, stride=2, transposed=True),
        Layer(height=5, width=6, n_in=2, n_out=2, kernel=5, stride=2, padding=2, groups=2),
    ],
    ids=str,
)
def test_closed_form_equals_the_replay(layer):
    """Of the second of two layers, whose words are there before its first vector."""
    first = Layer(height=4, width=4, n_in=1, n_out=8, kernel=7, padding=3)
    works = [[w for band in bands_of(one, SMALL, half=h) for w in band.works]
             for h, one in ((0, first), (1, layer))]  # fmt: skip
    loads = [
        Load(region=h, n_lines=sum(b.n_words for b in bands_of(one, SMALL)))
        for h, one in ((0, first), (1, layer))
    ]
    stamps = replay(loads, [*works[0], *works[1]], SMALL)
    alone = replay(loads[:1], works[0], SMALL)
    between = int(stamps[-1][-1]) - int(alone[-1][-1])
    short = max(0, MIN_PASS_CYCLES - works[1][-1].descriptor.n_pixels)
    assert between == layer_cycles(layer, SMALL) - short


MUTANTS = [
    ("a column sees the weight of its neighbour a cycle early", "hw.systolic.array",
     "delayed(m, self.weights[c], c, ", "delayed(m, self.weights[c], 0, "),
    ("vectors enter without a skew", "hw.systolic.array",
     "delayed(m, self.vector[r], r, ", "delayed(m, self.vector[r], 0, "),
    ("switch passes down a cycle late", "hw.systolic.array",
     "delayed(m, switch, 1, f\"switch{r}\"", "delayed(m, switch, 2, f\"switch{r}\""),
    ("the first vector meets the old weights", "hw.systolic.array",
     "activation * now", "activation * held"),
    ("every row takes the weights", "hw.systolic.array",
     "load & (row == r)", "load"),
    ("a load overruns the half being read", "hw.systolic.buffer",
     "& is_free.bit_select(self.i_load.payload.half, 1)", "& 1"),
    ("ready of the words stuck at 1", "hw.systolic.buffer",
     "self.i_word.ready.eq(n_left != 0)", "self.i_word.ready.eq(1)"),
    ("low plane over the high one", "hw.systolic.passes",
     "Mux(plane, held.plane_words, 0)", "0"),
    ("a full last tile of channels makes another one", "hw.systolic.passes",
     "in_left <= cfg.rows", "in_left < cfg.rows"),
    ("columns of the kernel go on into the next row", "hw.systolic.passes",
     "kernel_x.eq(0),\n                        kernel_y.eq(Mux", "kernel_y.eq(Mux"),
    ("second tile of outputs starts where the first ended", "hw.systolic.passes",
     "Mux(last_y, held.address, next_row)", "next_row"),
    ("only the first pass of a descriptor begins new sums", "hw.systolic.passes",
     "o.first.eq(~plane & (in_left", "o.first.eq((channel == held.channel) & ~plane & (in_left"),
    ("low bytes taken as signed", "hw.systolic.rtl",
     "byte[-1] & ~low", "byte[-1]"),
    ("high plane counts as low", "hw.systolic.rtl",
     "Mux(high, array.sums[c] << OPERAND_BITS, array.sums[c])", "array.sums[c]"),
    ("lanes without a channel take part", "hw.systolic.rtl",
     "inside & (r < n_in)", "inside"),
    ("columns without a channel show sums", "hw.systolic.rtl",
     "Mux(c < n_out, Mux(first, 0, read.data[c].as_signed()) + added, 0)",
     "Mux(first, 0, read.data[c].as_signed()) + added"),
    ("words wrap around where padding should be", "hw.systolic.rtl",
     "(y >= 0) & (y < geometry.in_height) &", "(y < geometry.in_height) &"),
    ("no padding on the right", "hw.systolic.rtl",
     "(x < geometry.in_width)", "(x <= geometry.in_width)"),
    ("stride ignored between rows", "hw.systolic.rtl",
     "y.eq(y + geometry.stride + 1)", "y.eq(y + 1)"),
    ("places of the phases side by side", "hw.systolic.rtl",
     "Mux(geometry.step, column << 1, column)", "column"),
    ("a short pass does not wait", "hw.systolic.rtl",
     "short - self.pixel, 0", "0, 0"),
    ("reads a word that is not there yet", "hw.systolic.rtl",
     "(address < n_written)", "(address <= n_written)"),
    ("half freed before all its words came", "hw.systolic.rtl",
     "(~frees | (n_written >= release))", "1"),
    ("starts before its weights came", "hw.systolic.rtl",
     "~of.weights | loaded", "1"),
    ("weights of the next tile wait a cycle", "hw.systolic.rtl",
     "~loaded | switch", "~loaded"),
    ("queue overruns: room ignored", "hw.systolic.rtl",
     "(~of.last | self._has_room(o))", "(~of.last | self._has_room(o) | 1)"),
    ("a bubble between passes", "hw.systolic.rtl",
     "passes.ready.eq(~active | (self.issue & ends))", "passes.ready.eq(~active)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(module, old, new)
    if module != "hw.systolic.rtl":
        part = {"array": "Array", "buffer": "ActivationBuffer", "passes": "PassGenerator"}[
            module.split(".")[-1]
        ]
        monkeypatch.setattr(f"hw.systolic.rtl.{part}", getattr(mutant, part))
    component = mutant.Systolic if module == "hw.systolic.rtl" else Systolic
    full_rate = short_cases()
    runs = [*full_rate, *(one.stalled(0.5, seed=4, slowdown=4) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component(SMALL), runs)), name


def generator_layers(ratio: float) -> list[tuple[int, Layer]]:
    """(resolution, layer) of the 3 x 3 convolutions and toRGBs of the 1024 px generator at a uniform ratio.

    Anycost GAN, uniform channels: min(512, int(16,384 / resolution x 2 x ratio)).
    """

    def width(resolution: int) -> int:
        return min(512, int(16_384 // resolution * 2 * ratio))

    made = [(4, Layer(height=4, width=4, n_in=width(4), n_out=width(4), padding=1))]
    for resolution in (8 << level for level in range(8)):
        below, own, half = width(resolution // 2), width(resolution), resolution // 2
        made += [
            (resolution, Layer(height=half, width=half, n_in=below, n_out=own, stride=2, transposed=True)),
            (resolution, Layer(height=resolution, width=resolution, n_in=own, n_out=own, padding=1)),
            (resolution, Layer(height=resolution, width=resolution, n_in=own, n_out=3, kernel=1)),
        ]
    return made


def test_widths_are_the_published_ones():
    widths = [[layer.n_out for _, layer in generator_layers(ratio)][1::3] for ratio in RATIOS]
    assert widths == [
        [512, 512, 256, 128, 64, 32, 16, 8],
        [512, 512, 512, 256, 128, 64, 32, 16],
        [512, 512, 512, 384, 192, 96, 48, 24],
        [512, 512, 512, 512, 256, 128, 64, 32],
    ]


@pytest.mark.parametrize("config", CHIPS, ids=lambda config: f"{config.rows} x {config.columns}")
def test_generator_keeps_the_multipliers_busy(config):
    """From 32 px on: at 90 % of the tiling ceiling; where input channels fill the rows, never slower than an
    array that loads, fills and drains for each tile; phases in 0.30 of the cycles of inserted zeros."""
    for ratio in RATIOS:
        for resolution, layer in generator_layers(ratio):
            cycles = layer_cycles(layer, config)
            serial = sum(
                -(-phase.n_taps * layer.n_in // config.rows)
                * -(-layer.n_out // config.columns)
                * (phase.height * phase.width + 2 * config.rows + config.columns - 2)
                for phase in phases(layer)
            )
            if resolution < 32:
                continue
            assert busy(layer, config) >= 0.9 * tiling_ceiling(layer, config)
            if layer.n_in % config.rows == 0:
                assert cycles <= serial
            if layer.transposed:
                tiles = -(-layer.n_in // config.rows) * -(-layer.n_out // config.columns)
                with_zeros = layer.kernel**2 * tiles * layer.out_height * layer.out_width
                assert cycles <= 0.30 * with_zeros


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 1}, r"rows must be in 2..64, not 1"),
        ({"columns": 65}, r"columns must be in 2..64, not 65"),
        ({"max_channels": 0}, r"max_channels must be in 1..4096, not 0"),
        ({"max_size": 5000}, r"max_size must be in 1..4096, not 5000"),
        ({"n_words": 100}, r"n_words must be a power of two in 4..65536, not 100"),
        ({"n_accumulators": 2}, r"n_accumulators must be a power of two in 4..65536, not 2"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        SystolicConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": 4}, r"kernel must be one of \(1, 3, 5, 7\), not 4"),
        ({"kernel": 1, "stride": 2, "transposed": True}, "kernel must be at least 3 if transposed, not 1"),
        ({"stride": 3}, r"stride must be 1, or 2 \(always 2 if transposed\), not 3"),
        ({"transposed": True}, r"stride must be 1, or 2 \(always 2 if transposed\), not 1"),
        ({"padding": 3}, r"padding must be in 0..2 \(0 if transposed\), not 3"),
        ({"groups": 3}, "groups must be 1 or 2, not 3"),
        ({"groups": 2}, "n_out must be a multiple of groups = 2, not 5"),
        ({"n_in": 0}, "n_in must be at least 1, not 0"),
        ({"n_stored": 2}, "n_stored must be at least n_in = 4, not 2"),
        ({"height": 2}, "height and width must hold the kernel of 3 with padding 0, not 2 x 3"),
    ],
)
def test_rejects_bad_layer(changes, message):
    with pytest.raises(ValueError, match=message):
        Layer(**{"height": 3, "width": 3, "n_in": 4, "n_out": 5, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 65}, "height must be at most 64, not 65"),
        ({"n_in": 33}, "n_in must be at most 32, not 33"),
        ({"n_in": 32}, "n_words must hold the input of one row of output, 99 words, not 64"),
    ],
)
def test_rejects_layers_beyond_the_array(changes, message):
    layer = replace(Layer(height=3, width=3, n_in=4, n_out=5), **changes)
    with pytest.raises(ValueError, match=message):
        bands_of(layer, SMALL)


def test_chips():
    configs = {name: systolic_config(chip) for name, chip in PRESETS.items()}
    assert {name: (c.rows, c.columns, c.n_words, c.n_accumulators) for name, c in configs.items()} == {
        "paper": (16, 32, 4096, 1024),
        "paper_eighth": (8, 8, 1024, 512),
        "plus": (16, 32, 4096, 1024),
        "edge": (8, 8, 1024, 512),
        "tiny": (8, 8, 512, 256),
    }
