# SPDX-License-Identifier: MIT
"""Depthwise unit: golden against PyTorch's layers and their gradients, RTL against golden and cycle model,
mutants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hw.config import PRESETS
from hw.depthwise.config import DepthwiseConfig, Pass, depthwise_config
from hw.depthwise.cycles import busy, layer_cycles, pass_cycles, replay
from hw.depthwise.golden import depthwise, passed
from hw.depthwise.layer import DepthwiseLayer, phases
from hw.depthwise.rtl import Depthwise
from hw.depthwise.vectors import Task, case, cases
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import judge
from tests.hw.mutants import mutated

SMALL = DepthwiseConfig(lanes=2, row_pixels=8, max_size=16)
CONFIGS = [
    SMALL,
    DepthwiseConfig(lanes=1, n_multipliers=1, row_pixels=8, max_size=16),
    DepthwiseConfig(lanes=3, n_multipliers=5, row_pixels=16, max_size=16),
    DepthwiseConfig(lanes=1, n_multipliers=49, row_pixels=8, max_size=16),
]


def noise(seed, bits, *shape):
    bound = 1 << (bits - 1)
    return torch.from_numpy(np.random.default_rng(seed).integers(-bound, bound, shape))


def nchw(x):
    return x.permute(2, 0, 1)[None].double()


def hwc(x):
    return x[0].permute(1, 2, 0).long()


@st.composite
def layers(draw):
    """Any small layer."""
    kernel, transposed = draw(st.integers(1, 7)), draw(st.booleans())
    size = {"height": draw(st.integers(1, 7)), "width": draw(st.integers(1, 7))}
    fields = {
        "channels": draw(st.integers(1, 3)),
        "kernel": kernel,
        "stride": 2 if transposed else draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, kernel - 1)),
        "transposed": transposed,
        "wide": draw(st.booleans()),
        "replicate": draw(st.booleans()),
    }
    try:
        return DepthwiseLayer(
            **size, **fields, out_height=draw(st.integers(1, 16)), out_width=draw(st.integers(0, 16))
        )
    except ValueError:
        assume(False)


def by_definition(x, w, layer):
    """Output by output, tap by tap."""
    sums = torch.zeros(layer.out_height, layer.out_width, layer.channels, dtype=torch.int64)

    def met(out, tap, size):
        if layer.transposed:
            at, odd = divmod(out + layer.padding - tap, 2)
            if odd:
                return None
        else:
            at = layer.stride * out + tap - layer.padding
        if layer.replicate:
            return min(max(at, 0), size - 1)
        return at if 0 <= at < size else None

    for i in range(layer.out_height):
        for j in range(layer.out_width):
            for a in range(layer.kernel):
                for b in range(layer.kernel):
                    y, x_ = met(i, a, layer.height), met(j, b, layer.width)
                    if y is not None and x_ is not None:
                        sums[i, j] += x[y, x_] * w[:, a, b]
    return sums


@given(layer=layers(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_golden_is_the_definition_and_phases_make_the_whole(layer, seed):
    x = noise(seed, 16 if layer.wide else 8, layer.height, layer.width, layer.channels)
    w = noise(seed + 1, 8, layer.channels, layer.kernel, layer.kernel)
    sums = depthwise(x, w, layer)
    assert torch.equal(sums, by_definition(x, w, layer))
    joined = torch.full_like(sums, 1 << 40)
    for phase in phases(layer):
        of = phase.of
        part = x[phase.row : phase.row + of.height, phase.column : phase.column + of.width]
        joined[phase.y :: phase.step, phase.x :: phase.step] = passed(
            part, torch.from_numpy(phase.weights(w.numpy())), of
        )
    assert torch.equal(joined, sums)


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [5, 6])
def test_gradients_of_a_layer_are_layers(kernel, stride, size):
    """Of stride 1 with rotated weights, of stride 2 transposed with the same ones; padding as on all sides,
    and TensorFlow's."""
    n, w = 2, noise(1, 8, 2, kernel, kernel)
    uneven = max(0, (-(-size // stride) - 1) * stride + kernel - size) // 2
    for padding, out in ((kernel // 2, 0), (uneven, -(-size // stride))):
        layer = DepthwiseLayer(
            height=size, width=size, channels=n, kernel=kernel, stride=stride, padding=padding,
            out_height=out, out_width=out,
        )  # fmt: skip
        x = noise(2, 8, size, size, n).double().requires_grad_()
        after = (layer.out_height - 1) * stride + kernel - size - padding
        padded = functional.pad(nchw(x), (padding, after, padding, after))
        y = functional.conv2d(padded, w[:, None].double(), stride=stride, groups=n)
        assert torch.equal(depthwise(x.detach().long(), w, layer), hwc(y))
        dy = noise(3, 16, *hwc(y).shape)
        (dx,) = torch.autograd.grad(y, x, nchw(dy))
        back = DepthwiseLayer(
            height=layer.out_height, width=layer.out_width, channels=n, kernel=kernel, wide=True,
            out_height=size, out_width=size,
            **(
                {"stride": 2, "transposed": True, "padding": padding}
                if stride == 2
                else {"padding": kernel - 1 - padding}
            ),
        )  # fmt: skip
        assert torch.equal(depthwise(dy, w if stride == 2 else w.flip(1, 2), back), dx.long())


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_bilinear_upsampling_and_its_gradient_are_layers(size):
    """Weights [1, 3, 3, 1] by themselves, over 16; the nearest pixel beyond the borders."""
    taps = torch.tensor([1, 3, 3, 1])
    w = (taps[:, None] * taps).expand(2, 4, 4)
    of = {"channels": 2, "kernel": 4, "stride": 2, "padding": 1, "wide": True, "replicate": True}
    up = DepthwiseLayer(height=size[0], width=size[1], transposed=True, **of)
    x = noise(5, 16, *size, 2).double().requires_grad_()
    y = functional.interpolate(nchw(x), scale_factor=2.0, mode="bilinear")
    assert torch.equal(depthwise(x.detach().long(), w, up), hwc(16 * y))
    dy = noise(6, 16, *hwc(y).shape)
    down = DepthwiseLayer(height=2 * size[0], width=2 * size[1], **of)
    (dx,) = torch.autograd.grad(y, x, nchw(dy))
    assert torch.equal(depthwise(dy, w, down), (16 * dx).long())


def test_phases_multiply_no_inserted_zero():
    layer = DepthwiseLayer(height=8, width=8, channels=1, padding=1, stride=2, transposed=True)
    assert sorted(phase.n_taps for phase in phases(layer)) == [1, 2, 2, 4]
    assert layer.n_macs < 9 * 8 * 8
    single = DepthwiseLayer(
        height=2, width=2, channels=1, kernel=1, stride=2, transposed=True, out_height=4, out_width=4
    )
    assert sorted(phase.n_taps for phase in phases(single)) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"kernel": 8}, "kernel must be in 1..7, not 8"),
        ({"stride": 3}, "stride must be 1 or 2, not 3"),
        ({"transposed": True}, "stride must be 2 if transposed, not 1"),
        ({"padding": 3}, "padding must be in 0..2, not 3"),
        ({"height": 2}, "out_height must be in 1..2, not 0"),
        ({"out_width": 8}, "out_width must be in 1..6, not 8"),
    ],
)
def test_rejects_bad_layers(changes, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseLayer(**({"height": 6, "width": 6, "channels": 4} | changes))


def test_golden_rejects_what_it_cannot_take():
    layer = DepthwiseLayer(height=4, width=4, channels=2)
    x, w = noise(1, 8, 4, 4, 2), noise(2, 8, 2, 3, 3)
    with pytest.raises(TypeError, match=r"x must be int64\[4, 4, 2\], not torch.int64\[4, 4, 1\]"):
        depthwise(x[..., :1], w, layer)
    with pytest.raises(ValueError, match=r"x must be in -128..127"):
        depthwise(x + 200, w, layer)
    with pytest.raises(ValueError, match=r"weights must be in -128..127"):
        depthwise(x, w + 200, layer)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.5], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(config, p_stall):
    made = cases(config, seed=1, n_random=4)
    runs = [one.stalled(p_stall, seed=2) if p_stall else one for one in made]
    for one, log in run_cases(Depthwise(config), runs):
        verdict = judge(one, log)
        assert verdict.problems == () and verdict.n_beats > 0


@st.composite
def passes(draw):
    """Any small pass."""
    try:
        return Pass(
            kernel_height=draw(st.integers(1, 7)),
            kernel_width=draw(st.integers(1, 7)),
            stride=draw(st.integers(1, 2)),
            padding_y=draw(st.integers(0, 6)),
            padding_x=draw(st.integers(0, 6)),
            height=draw(st.integers(1, 9)),
            width=draw(st.integers(1, 9)),
            out_height=draw(st.integers(1, 6)),
            out_width=draw(st.integers(1, 6)),
        )
    except ValueError:
        assume(False)


@given(of=passes(), n_multipliers=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_cycles_of_a_pass_whose_weights_are_there(of, n_multipliers):
    """Between the last windows of a pass and of the one before, in which the weights come."""
    config = DepthwiseConfig(lanes=1, n_multipliers=n_multipliers)
    long = Pass(kernel_height=1, kernel_width=1, height=9, width=9, out_height=9, out_width=9)
    stamps, groups = replay([long, of], config), [of.group_cycles(config) for of in (long, of)]
    taken = [last[-1] - n for last, n in zip(stamps, groups, strict=True)]
    assert taken[1] - taken[0] == pass_cycles(of, config, groups[0])


def test_an_output_takes_its_groups_or_its_steps():
    """3 cycles of stride 1 without a gap but the row and the column before the first output; of stride 2 a
    row of input and three steps between two rows of output."""
    config = DepthwiseConfig(n_multipliers=3)
    of = {"height": 14, "width": 14, "channels": 1, "padding": 1}
    assert layer_cycles(DepthwiseLayer(**of), config) == 14 + 2 + 3 * (14 * 14 - 1)
    assert layer_cycles(DepthwiseLayer(**of, stride=2), config) == 7 * (14 + 2 + 3 * 6)
    size = {"height": 7, "width": 7, "out_height": 14, "out_width": 14}
    up = DepthwiseLayer(**(of | size), stride=2, transposed=True)
    assert layer_cycles(up, config) == (1 + 49) + 7 * 8 + (7 + 49) + (7 + 2 * 49)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [14, 28, 56, 112])
def test_most_multipliers_are_busy(kernel, size):
    config = DepthwiseConfig(lanes=32)
    of = {"channels": 96, "kernel": kernel, "padding": kernel // 2}
    assert busy(DepthwiseLayer(height=size, width=size, **of), config) > 0.9
    assert busy(DepthwiseLayer(height=size, width=size, stride=2, **of), config) > 0.5
    half, back = size // 2, {"stride": 2, "transposed": True}
    grown = DepthwiseLayer(height=half, width=half, out_height=size, out_width=size, **back, **of)
    assert busy(grown, config) > 0.5


MUTANTS = [
    ("row of output too early", "scan", "(at >= lead) &", "(at + 1 >= lead) &"),
    ("every row and column emits", "scan", "~(of.by_two & (at[0] ^ lead[0]))", "1"),
    ("stride from the input's first pixel", "scan", "at[0] ^ lead[0]", "at[0]"),
    ("rows without output run on", "scan", "Mux(row_emits, of.last_column, of.width - 1)", "of.last_column"),
    ("takes a pixel for the border below", "scan", "row >= of.height", "row > of.height"),
    ("takes a pixel for the border at the right", "scan", "column >= of.width", "column > of.width"),
    ("old rows above the first one", "scan", "step.top.eq(row == 0)", "step.top.eq(0)"),
    ("end of a row beside its beginning", "scan", "step.left.eq(column == 0)", "step.left.eq(0)"),
    ("pass taken late", "scan", "~self.o.valid | (moves & step.last)", "~self.o.valid"),
    ("pass taken early", "scan", "(moves & step.last))", "step.last)"),
    ("window taken once more", "windows", "self.o.valid.eq(is_there & step.emits)",
     "self.o.valid.eq(step.emits)"),
    ("steps over a window that waits", "windows", "flow.eq(~self.o.valid | self.o.ready)", "flow.eq(1)"),
    ("steps without a pixel", "windows", "ready.eq(flow & (self.i.valid | ~fresh))", "ready.eq(flow)"),
    ("pixel taken while it stands", "windows", "self.i.ready.eq(flow & scan", "self.i.ready.eq(scan"),
    ("waits for a pixel beside the input", "windows", "fresh.eq(~coming.below & ~coming.right)",
     "fresh.eq(~coming.below)"),
    ("narrow elements without sign", "windows", "x[-1].replicate", "(x[-1] & ~x[-1]).replicate"),
    ("narrow elements as wide ones", "windows", "Mux(wide, beat,", "Mux(1, beat,"),
    ("zeros at the left for the nearest pixel", "windows", "border = Mux(step.replicate, column, 0)",
     "border = 0"),
    ("zeros at the right for the nearest pixel", "windows", "Mux(step.replicate, beside, 0)", "0"),
    ("zeros above for the nearest pixel", "windows", "Mux(step.replicate, x.replicate(N_PAST), 0)", "0"),
    ("zeros below for the nearest pixel", "windows", "Mux(step.replicate, read.data[0].as_value(), 0)", "0"),
    ("right border remembered", "windows", "write.en.eq(flow & is_there & ~step.right)",
     "write.en.eq(flow & is_there)"),
    ("single column read too early", "windows", "read_port(transparent_for=(write,))", "read_port()"),
    ("remembers what did not come", "windows", "write.en.eq(flow & is_there & ~", "write.en.eq(flow & ~"),
    ("half of the pass before", "windows", "window.half.eq(step.half)", "window.half.eq(coming.half)"),
    ("weights left of the pass before", "weights", "Mux(place == number, coming, 0)", "coming"),
    ("last word cut short", "weights", "write.en[number].eq(weight & (place <= number))",
     "write.en[number].eq(weight & (place == number))"),
    ("kernel rows from the bottom", "weights", "tap.y.eq(y)", "tap.y.eq(of.last_tap_y - y)"),
    ("kernel columns from the right", "weights", "tap.x.eq(x)", "tap.x.eq(of.last_tap_x - x)"),
    ("one word a pass", "weights", "word.eq(word + 1)", "word.eq(word)"),
    ("weights over those in use", "weights", "holds & ~filled & ~used[half]", "holds & ~filled"),
    ("half never freed", "weights", "used[self.freed_half].eq(0)", "used[self.freed_half].eq(1)"),
    ("one half only", "weights", "half.eq(~half)", "half.eq(half)"),
    ("pass before its weights", "weights", "self.o.valid.eq(holds & filled)", "self.o.valid.eq(holds)"),
    ("weights of a pass late", "weights", "~holds | (self.o.valid & self.o.ready)", "~holds"),
    ("half freed too early", "rtl", "busy & flow & ends & window.last", "busy & window.last"),
    ("half freed with every output", "rtl", "busy & flow & ends & window.last", "busy & flow & ends"),
    ("a word less", "rtl", "ends.eq(word == weights.last_word[window.half])",
     "ends.eq(word + 1 >= weights.last_word[window.half])"),
    ("last word of the other half", "rtl", "weights.last_word[window.half]", "weights.last_word[0]"),
    ("bubble between outputs", "rtl", "windows.o.ready.eq(~busy | (flow & ends))",
     "windows.o.ready.eq(~busy)"),
    ("copies over a window in work", "rtl", "windows.o.ready.eq(~busy | (flow & ends))",
     "windows.o.ready.eq(~busy | ends)"),
    ("words go on while sums stand", "rtl", "Mux(flow, word + 1, word)", "word + 1"),
    ("sums of the output before", "rtl", 'Mux(flags["first"], 0, total)', "total"),
    ("only the last group", "rtl", 'Mux(flags["first"], 0, total)', "0"),
    ("carry lost", "rtl", "signed(MAP_BITS + WEIGHT_BITS), name", "signed(MAP_BITS + WEIGHT_BITS - 1), name"),
    ("weights without sign", "rtl", 'signed(WEIGHT_BITS), name=f"w', 'WEIGHT_BITS, name=f"w'),
    ("rows for columns", "rtl", "select(tap.x, [column.as_value()", "select(tap.y, [column.as_value()"),
    ("overruns a sum that waits", "rtl", "flow.eq(~summed | ~self.o.valid | self.o.ready)", "flow.eq(1)"),
    ("overruns the output", "rtl", "moves.eq(~self.o.valid | self.o.ready)", "moves.eq(1)"),
    ("drops last", "rtl", "self.o.payload.last.eq(last)", "self.o.payload.last.eq(0)"),
]  # fmt: skip


class Slow(wiring.Component):
    """A unit whose sums are taken in the first two of six cycles only."""

    def __init__(self, unit: Depthwise) -> None:
        self.unit = unit
        super().__init__(unit.signature)

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = self.unit
        count, opens = Signal(range(6)), Signal()
        m.d.sync += count.eq(Mux(count == 5, 0, count + 1))
        for name in ("i_pass", "i_weight", "i"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(unit, name))
        m.d.comb += [
            opens.eq(count < 2),
            self.o.valid.eq(unit.o.valid & opens),
            self.o.payload.eq(unit.o.payload),
            unit.o.ready.eq(self.o.ready & opens),
        ]
        return m


def slow_case():
    """Three cycles of products for each sum; two sums of six cycles can be taken."""
    (of,) = (one.of for one in phases(DepthwiseLayer(height=6, width=6, channels=2, padding=1)))
    x, w = noise(1, 8, 6, 6, 2), noise(2, 8, 2, 3, 3)
    stamps = np.concatenate(replay([of], SMALL, lambda cycle: (cycle - 1) % 6 < 2))
    made = case("slow", [Task(of=of, x=x.numpy(), weights=w.numpy())], SMALL, np.random.default_rng(0))
    return replace(made, expected_cycles={"o": stamps}), stamps


def test_products_go_on_while_sums_wait():
    """As many outputs as at full rate."""
    slow, stamps = slow_case()
    ((one, log),) = run_cases(Slow(Depthwise(SMALL)), [slow])
    assert not judge(one, log).problems
    assert stamps[-1] - stamps[1] == 3 * (len(stamps) - 2)


def test_products_that_stop_while_sums_wait_are_noticed():
    mutant = mutated(
        "hw.depthwise.rtl", "flow.eq(~summed | ~self.o.valid | self.o.ready)",
        "flow.eq(~self.o.valid | self.o.ready)",
    )  # fmt: skip
    slow, _ = slow_case()
    ((one, log),) = run_cases(Slow(mutant.Depthwise(SMALL)), [slow])
    assert judge(one, log).problems


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(f"hw.depthwise.{module}", old, new)
    if module == "rtl":
        component = mutant.Depthwise(SMALL)
    elif module == "scan":
        monkeypatch.setattr("hw.depthwise.windows.Scan", mutant.Scan)
        component = Depthwise(SMALL)
    else:
        part = module.capitalize()
        monkeypatch.setattr(f"hw.depthwise.rtl.{part}", getattr(mutant, part))
        component = Depthwise(SMALL)
    full_rate = cases(SMALL, seed=1, n_random=1)
    runs = [*full_rate, *(one.stalled(0.5, seed=2, slowdown=3) for one in full_rate)]
    assert any(judge(one, log).problems for one, log in run_cases(component, runs)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 65}, "lanes must be in 1..64, not 65"),
        ({"n_multipliers": 0}, "n_multipliers must be in 1..49, not 0"),
        ({"row_pixels": 1}, "row_pixels must be in 2..8192, not 1"),
        ({"max_size": 1}, "max_size must be in 2..8192, not 1"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseConfig(**changes)


def test_rejects_passes_that_it_cannot_take():
    of = {"kernel_height": 3, "kernel_width": 3, "height": 4, "width": 4, "out_height": 2, "out_width": 2}
    for changes, message in (
        ({"kernel_width": 8}, "kernel_width must be in 1..7, not 8"),
        ({"padding_x": 3}, "padding must be in 0..2, not 3"),
        ({"stride": 3}, "stride must be 1 or 2, not 3"),
        ({"out_height": 0}, "out_height must be at least 1, not 0"),
        ({"height": 5}, "height must be in 1..4, all that is met, not 5"),
    ):
        with pytest.raises(ValueError, match=message):
            Pass(**(of | changes))
    wide = Pass(kernel_height=1, kernel_width=1, height=1, width=9, out_height=1, out_width=9)
    with pytest.raises(ValueError, match="width must be at most 8, not 9"):
        wide.check(SMALL)
    with pytest.raises(ValueError, match="out_height must be at most 16, not 17"):
        Pass(**(of | {"out_height": 17})).check(SMALL)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_take_the_key_srams_bytes_and_the_arrays_columns(name):
    chip = PRESETS[name]
    config = depthwise_config(chip)
    pixel_bytes = 6 * 2 * config.lanes
    assert 0 <= chip.kv_sram_bytes - config.row_pixels * pixel_bytes < pixel_bytes
    assert config.row_pixels >= 112, "a row of every depthwise layer at 224 pixels"
