# SPDX-License-Identifier: MIT
"""Systolic array: golden against PyTorch, RTL against golden (bits) and cycle model, tilings, mutants."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from amaranth import Value
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.systolic_cycles import (
    CONFIGS,
    of_ceiling,
    of_inserted_zeros,
    of_serial,
    sub_generators,
    weights_set_the_pace,
)
from hw.config import PRESETS
from hw.harness import cosim, verilated
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import Case, judge
from hw.kv_buffer.cycles import Load
from hw.registry import BLOCKS
from hw.systolic.config import MIN_PASS_CYCLES, SystolicConfig, systolic_config
from hw.systolic.cycles import Surroundings, layer_cycles, replay, serial_cycles
from hw.systolic.descriptor import band_words, bands_of, tile_rows, weight_rows
from hw.systolic.golden import convolution
from hw.systolic.layer import KERNELS, Layer, phases
from hw.systolic.layout import ALIGN_BYTES, image_bytes, input_layout, tile_ends
from hw.systolic.rtl import Systolic
from hw.systolic.vectors import Task, case, cases
from tests.hw.mutants import mutated

SMALL = SystolicConfig(rows=12, columns=2, n_words=64, n_accumulators=16, max_channels=32, max_size=64)


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
    layer = Layer(height=2, width=2, n_in=8, n_out=2, kernel=1, groups=2, wide=True, n_stored=12)
    x = np.arange(48).reshape(2, 2, 12) * 256 + 7
    layout = input_layout(layer, SMALL)
    assert (layout.group_quads, layout.pixel_quads, layout.row_quads) == (2, 4, 8)
    assert (layout.row_bytes, layout.plane_bytes) == (32, ALIGN_BYTES)
    image = image_bytes(x, layer, SMALL)
    groups = np.arange(48).reshape(8, 6)
    assert np.array_equal(image[:64].reshape(8, 8), np.pad(groups, ((0, 0), (0, 2))))
    assert image[64:].reshape(8, 8).tolist() == [[7] * 6 + [0] * 2] * 8
    (band,) = bands_of(layer, SMALL)
    words = band_words(image, band, layout, SMALL)
    assert words.shape == (12, 12) and (band.plane_words, band.n_words) == (6, 12)
    assert np.array_equal(words[:5].ravel(), image[:60]) and words[5].tolist() == [*image[60:64], *[0] * 8]
    weights = np.arange(12).reshape(2, 6, 1, 1)
    rows = [weight_rows(weights, work, layer, SMALL).tolist() for work in band.works]
    assert rows == [[[0, 0], [1, 0], [2, 0], [3, 0]], [[6, 0], [7, 0], [8, 0], [9, 0]]]


def test_bands_begin_at_aligned_bytes():
    layer = Layer(height=9, width=9, n_in=5, n_out=1, padding=1, wide=True)
    layout, bands = input_layout(layer, SMALL), bands_of(layer, SMALL)
    image = image_bytes(random_task(layer).activations, layer, SMALL)
    assert len(bands) > 2
    for band in bands:
        assert band.first_byte % ALIGN_BYTES == 0
        high, low = band_words(image, band, layout, SMALL).reshape(2, -1)
        start = band.first_row * layout.row_bytes - band.first_byte
        for plane, words in enumerate((high, low)):
            rows = image.reshape(2, -1)[plane, : 9 * layout.row_bytes].reshape(9, -1)
            rows = rows[band.first_row : band.first_row + band.n_rows]
            assert np.array_equal(words[start : start + rows.size], rows.ravel())


def test_tiles_take_quads_until_two_share_a_bank():
    """Of three banks; kernels as (rows, columns, quads of a tap)."""
    assert tile_ends((2, 3, 2), (6, 2), SMALL) == (3, 6, 9, 12)
    assert tile_ends((1, 3, 2), (6, 3), SMALL) == (2, 4, 6)
    assert tile_ends((2, 1, 2), (2, 2), SMALL) == (3, 4)
    assert tile_ends((2, 1, 2), (3, 2), SMALL) == (2, 4)
    layer = Layer(height=5, width=6, n_in=3, n_out=3, kernel=5)
    assert input_layout(layer, SMALL).row_quads == 8  # two more than its pixels: rows of taps fit together
    work = bands_of(layer, SMALL)[0].works[0]
    assert tile_rows(work, SMALL) == [*[9] * 8, 3] * 2


@cache
def short_cases() -> list[Case]:
    """The corners that Amaranth's simulator runs in seconds."""
    rng = np.random.default_rng(5)
    r, c = SMALL.rows, SMALL.columns
    layers = {
        "taps share passes": [
            Layer(height=2, width=3, n_in=5, n_out=c + 1, padding=1, n_stored=9),
            Layer(height=3, width=3, n_in=2, n_out=1, stride=2, padding=1, wide=True),
        ],
        "few pixels": [
            Layer(height=1, width=w, n_in=n_in, n_out=c + 1, kernel=1, wide=wide)
            for w, n_in, wide in ((1, 2 * r, False), (2, r + 1, True), (3, 1, False), (1, r, True))
        ],
        "loads outlast their layers": [
            Layer(height=4, width=4, n_in=1, n_out=1, kernel=1, stride=2, n_stored=2 * r + 1)
            for _ in range(4)
        ],
        "every pass sends": [Layer(height=3, width=5, n_in=1, n_out=5 * c, kernel=1)],
        "four phases": [Layer(height=2, width=2, n_in=8, n_out=c + 1, stride=2, transposed=True)],
        "two groups": [Layer(height=2, width=2, n_in=10, n_out=2 * c, padding=1, groups=2)],
        "rectangles": [Layer(height=1, width=SMALL.n_accumulators + 1, n_in=1, n_out=1, padding=1)],
        "bands": [Layer(height=7, width=18, n_in=8, n_out=1, stride=2, padding=1)],
    }
    made = [
        case(name, [random_task(layer, seed=7) for layer in of_case], SMALL, rng)
        for name, of_case in layers.items()
    ]
    return [*(one for one in cases(SMALL, seed=3, n_random=0) if one.name == "extreme operands"), *made]


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
        SystolicConfig(rows=20, columns=6),
        SystolicConfig(rows=64, columns=4),
    ],
    ids=["16 x 32", "16 x 8", "20 x 6", "64 x 4"],
)
def test_other_arrays_match_golden_and_cycles(config):
    check_in_harness(config, n_random=40)


@pytest.mark.full
def test_narrow_layers_of_a_generator_on_32_x_32():
    """Whose quads of several taps share passes, and bands, at their real widths and few pixels."""
    block = BLOCKS["systolic"]
    config = SystolicConfig(rows=32, columns=32, n_words=1024, n_accumulators=1024)
    layers = [
        Layer(height=24, width=24, n_in=8, n_out=8, padding=1),
        Layer(height=12, width=12, n_in=16, n_out=8, stride=2, transposed=True),
        Layer(height=20, width=20, n_in=48, n_out=24, padding=1),
        Layer(height=20, width=20, n_in=24, n_out=3, kernel=1),
        Layer(height=10, width=10, n_in=96, n_out=48, stride=2, transposed=True),
    ]
    tasks = [random_task(layer) for layer in layers]
    full_rate = case("narrow layers", tasks, config, np.random.default_rng(1))
    runs = [full_rate, full_rate.stalled(0.3, seed=2)]
    logs = verilated.run_cases(block, config, runs)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [(), ()]
    assert all(layer_cycles(layer, config) < serial_cycles(layer, config) for layer in layers)


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
    ("banks hold each other's quads", "hw.systolic.buffer",
     "self.quads[b].eq(read.data)", "self.quads[b - 1].eq(read.data)"),
    ("a sum of quads loses its carry", "hw.systolic.buffer",
     "total.word.eq(a.word + b.word + carry)", "total.word.eq(a.word + b.word)"),
    ("the shifter turns the other way", "hw.systolic.buffer",
     "-(1 << level) if down else 1 << level", "1 << level if down else -(1 << level)"),
    ("a tile ends where the banks do", "hw.systolic.tiles",
     "in_use.bit_select(at.following.bank, 1)",
     "(in_use.bit_select(at.following.bank, 1) | (at.following.bank == 0))"),
    ("a tile reads a bank twice", "hw.systolic.tiles",
     "(at.ends_sums | in_use.bit_select(at.following.bank, 1))", "at.ends_sums"),
    ("lanes keep the quads of the tile before", "hw.systolic.tiles",
     "with m.Elif(begins):", "with m.Elif(0):"),
    ("rows of weights in other lanes", "hw.systolic.tiles",
     "Cat(at.part, at.quad.bank)", "Cat(at.quad.bank, at.part)"),
    ("a quad is cut after three channels", "hw.systolic.tiles",
     "self.part == QUAD_BYTES - 1", "self.part == QUAD_BYTES - 2"),
    ("a quad runs on into the next tap", "hw.systolic.tiles",
     "self.ends_quad.eq(last_in | ", "self.ends_quad.eq(self.ends_sums | "),
    ("columns of the kernel go on into the next row", "hw.systolic.tiles",
     "self.kernel_x.eq(Mux(last_x, 0, self.kernel_x + 1))", "self.kernel_x.eq(self.kernel_x + 1)"),
    ("next kernel row beside the last tap", "hw.systolic.tiles",
     "Mux(last_x, next_row, next_tap)", "next_tap"),
    ("second tile of outputs starts where the first ended", "hw.systolic.tiles",
     "m.d.comb += self.following.eq(0)", "m.d.comb += self.following.eq(next_quad)"),
    ("only the first tile of a descriptor begins new sums", "hw.systolic.tiles",
     "self.first.eq((in_left", "self.first.eq((self.channel == held.channel) & (in_left"),
    ("weights of the next tile wait a cycle", "hw.systolic.tiles",
     "(~occupied | self.switch)", "~occupied"),
    ("weights overtake the tile that waits", "hw.systolic.tiles",
     "~rows_came & (~occupied | self.switch)", "~rows_came"),
    ("a descriptor is taken a cycle late", "hw.systolic.tiles",
     "~busy | (self.o.valid & self.o.ready & tile.ends)", "~busy"),
    ("low plane over the high one", "hw.systolic.rtl",
     "first.word + self._geometry.plane_words", "first.word"),
    ("low bytes taken as signed", "hw.systolic.rtl",
     "byte[-1] & ~low", "byte[-1]"),
    ("high plane counts as low", "hw.systolic.rtl",
     "Mux(high, array.sums[c] << OPERAND_BITS, array.sums[c])", "array.sums[c]"),
    ("both planes begin the sums", "hw.systolic.rtl",
     "self.first.eq(of.first & ~self._plane)", "self.first.eq(of.first)"),
    ("lanes without a channel take part", "hw.systolic.rtl",
     "Mux(channel < used, extended, 0)", "extended"),
    ("columns without a channel show sums", "hw.systolic.rtl",
     "Mux(c < n_out, Mux(first, 0, read.data[c].as_signed()) + added, 0)",
     "Mux(first, 0, read.data[c].as_signed()) + added"),
    ("lanes read beside the banks' last one without a carry", "hw.systolic.rtl",
     "lane.word + (self._address.bank + number >= config.n_banks)", "lane.word"),
    ("words wrap around where padding should be", "hw.systolic.rtl",
     "(at + tap >= 0) & ", ""),
    ("no padding on the right", "hw.systolic.rtl",
     "(at + tap < size)", "(at + tap <= size)"),
    ("all lanes at the first kernel row", "hw.systolic.rtl",
     "inside_y.bit_select(lane.y, 1)", "inside_y[0]"),
    ("stride ignored between rows", "hw.systolic.rtl",
     "self._y + geometry.stride + 1", "self._y + 1"),
    ("stride of addresses ignored", "hw.systolic.rtl",
     "Mux(self._geometry.stride, twice, once)", "once"),
    ("places of the phases side by side", "hw.systolic.rtl",
     "Mux(geometry.step, self._column << 1, self._column)", "self._column"),
    ("a short pass does not wait", "hw.systolic.rtl",
     "short - self.pixel, 0", "0, 0"),
    ("reads a word that is not there yet", "hw.systolic.rtl",
     "(word < n_written)", "(word <= n_written)"),
    ("half freed before all its words came", "hw.systolic.rtl",
     "(~frees | (n_written >= release))", "1"),
    ("queue overruns: room ignored", "hw.systolic.rtl",
     "(~self.last | self._has_room(o))", "(~self.last | self._has_room(o) | 1)"),
    ("a bubble between passes", "hw.systolic.rtl",
     "tiles.o.ready.eq(~self._active | (self.issue & self._ends & last_plane))",
     "tiles.o.ready.eq(~self._active)"),
]  # fmt: skip


def gaps(rng: np.random.Generator, n: int, most: int) -> np.ndarray:
    """Cycles, some close together."""
    return 1 + np.cumsum(rng.integers(0, most + 1, n) * (rng.random(n) < 0.5))


@pytest.mark.parametrize("sum_cycles", [1, 3])
def test_replay_knows_when_inputs_come_and_sums_are_taken(sum_cycles):
    rng = np.random.default_rng(8)
    layers = [
        Layer(height=3, width=4, n_in=5, n_out=7, padding=1),
        Layer(height=3, width=5, n_in=1, n_out=11, kernel=1, wide=True),
        Layer(height=2, width=2, n_in=7, n_out=3, stride=2, transposed=True),
    ]
    one = case("timed", [random_task(layer) for layer in layers], SMALL, rng)
    n = {name: len(beats) for name, beats in (one.inputs | one.expected).items()}
    around = Surroundings(
        words_from=gaps(rng, n["i_word"], 3),
        weights_from=gaps(rng, n["i_weight"], 2),
        sums_from=gaps(rng, n["o"], 4),
        sum_cycles=sum_cycles,
    )
    bands = [bands_of(layer, SMALL, half=i % 2) for i, layer in enumerate(layers)]
    assert all(len(of_layer) == 1 for of_layer in bands)
    loads = [Load(region=band.half, n_lines=band.n_words) for (band,) in bands]
    works = [work for (band,) in bands for work in band.works]
    assert np.array_equal(np.concatenate(replay(loads, works, SMALL, around)), measured(one, around))


def measured(one: Case, around: Surroundings) -> np.ndarray:
    """Cycles in which the sums leave the RTL, its neighbours behaving as ``around`` says."""
    dut, taken = Systolic(SMALL), []
    offered = {"i_word": around.words_from, "i_weight": around.weights_from}

    async def bench(ctx) -> None:
        sent = dict.fromkeys(one.inputs, 0)
        for cycle in range(1, 5000):
            for name, beats in one.inputs.items():
                port, beat = getattr(dut, name), sent[name]
                is_there = beat < len(beats) and cycle >= offered.get(name, np.ones(len(beats)))[beat]
                ctx.set(port.valid, int(is_there))
                if is_there:
                    ctx.set(Value.cast(port.payload), int.from_bytes(beats[beat].tobytes(), "little"))
            if len(taken) == len(around.sums_from):
                return
            last = taken[-1] if taken else -around.sum_cycles
            wanted = max(around.sums_from[len(taken)], last + around.sum_cycles)
            ctx.set(dut.o.ready, int(cycle >= wanted))
            for name in sent:
                port = getattr(dut, name)
                sent[name] += ctx.get(port.valid) & ctx.get(port.ready)
            if ctx.get(dut.o.valid) & ctx.get(dut.o.ready):
                taken.append(cycle)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench)
    simulator.run()
    return np.array(taken)


PARTS = {"array": ["Array"], "buffer": ["ActivationBuffer", "plus", "rotated"], "tiles": ["TileLoader"]}


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(module, old, new)
    if module != "hw.systolic.rtl":
        for part in PARTS[module.split(".")[-1]]:
            monkeypatch.setattr(f"hw.systolic.rtl.{part}", getattr(mutant, part))
    component = mutant.Systolic if module == "hw.systolic.rtl" else Systolic
    full_rate = short_cases()
    runs = [*full_rate, *(one.stalled(0.5, seed=4, slowdown=4) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component(SMALL), runs)), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.rows} x {config.columns}")
def test_no_layer_of_a_generator_is_slower_than_a_serial_array(config):
    """Tiles have no gaps, maps grow by at most 1 %. Where an input is no smaller than a tile, at 0.98 of the
    tiling ceiling; where one tap fills the rows, four phases in 0.30 of the cycles of inserted zeros."""
    for layer in {layer for _, layers in sub_generators() for layer in layers}:
        assert of_serial(layer, config) <= 1, layer
        layout = input_layout(layer, config)
        assert layout.row_quads <= 1.01 * layer.width * layout.pixel_quads
        for phase in phases(layer):
            shape = (len(phase.taps_y), len(phase.taps_x), layout.pixel_quads)
            tiles = tile_ends(shape, (layout.row_quads, layout.pixel_quads), config)
            assert len(tiles) == -(-phase.n_taps * layer.n_in // config.rows), layer
        if weights_set_the_pace(layer, config):
            continue
        assert of_ceiling(layer, config) >= 0.98, layer
        if layer.transposed and layer.n_in >= config.rows:
            assert of_inserted_zeros(layer, config) <= 0.30, layer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 4}, r"rows must be in 8..64, not 4"),
        ({"rows": 10}, r"rows must be a multiple of 4, not 10"),
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
        ({"n_in": 32, "width": 12}, "n_words must hold the input of one row of output, 96 words, not 64"),
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
