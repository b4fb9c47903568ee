# SPDX-License-Identifier: MIT
"""Confidence check, alone and with its softmax: golden, bits, cycles, a shared score source, mutants."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from amaranth import Value
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.confidence.config import ConfidenceConfig, ConfidentSoftmaxConfig
from hw.confidence.cycles import TimedRow, place_cycles, replay, row_interval_cycles
from hw.confidence.golden import Check, ScoreRow, combine, confident_softmax, entries
from hw.confidence.rtl import Confidence, ConfidentSoftmax
from hw.confidence.vectors import case, cases, corner_rows, joined_case, random_rows
from hw.harness import verilated
from hw.harness.amaranth_sim import run_case
from hw.harness.job import Beats, Case, judge, unpack_fields
from hw.registry import BLOCKS
from hw.softmax.config import row_scale
from tests.hw.mutants import mutated

SMALL = ConfidenceConfig(lanes=2, n_max=16)
CHIP = ConfidenceConfig()
SHAPES = [
    {"lanes": 2, "n_max": 16},
    {"lanes": 1, "n_max": 8, "window": 1, "tag_bits": 8},
    {"lanes": 4, "n_max": 32, "window": 4},
]


def exact_rows(rng: np.random.Generator, n_rows: int, n_keys: int) -> list[tuple[ScoreRow, np.ndarray]]:
    """Attention as the chip quantises it: Q of 12 bits, K of 6 + 4 bits, D = 64; float64 rows of all bits."""
    made = []
    for _ in range(n_rows):
        q, k = rng.integers(-2047, 2048, 64), rng.integers(-512, 512, (n_keys, 64))
        step = 2.0 ** rng.uniform(-2, 3) / np.abs(k @ q).max()
        msb, lsb = (k >> 4) @ q, (k & 15) @ q
        exact = np.exp((k @ q - (k @ q).max()) * step)
        row = ScoreRow(
            msb=torch.from_numpy(msb), lsb=torch.from_numpy(lsb), msb_scale=row_scale(16 * step),
            lsb_scale=row_scale(step), check=Check(threshold=410, progressive=True),
        )  # fmt: skip
        made.append((row, exact / exact.sum()))
    return made


def test_recomputed_rows_equal_the_softmax_of_all_bits():
    """Both planes together lose nothing: 0.72 of the softmax's own 2^-14, plus the last rounding."""
    rows = exact_rows(np.random.default_rng(1), 40, 50)
    done = confident_softmax([row for row, _ in rows], CHIP)
    recomputed = [(entry, probability) for entry, probability, _ in done if entry.used_lsb]
    assert len(recomputed) > 5
    for entry, probability in recomputed:
        assert np.abs(probability.numpy() / 4096 - rows[entry.row][1]).max() <= 1 / 4096
    confident = [e for e, _, _ in done if not e.used_lsb and not e.dropped]
    assert len(confident) + len(recomputed) == len(rows) and confident


@given(
    checks=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30),
    window=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=200, deadline=None)
def test_entries_obey_the_window(checks, window):
    """No row enters before the row ``window`` before it is settled, every row that needs it enters twice."""
    config = ConfidenceConfig(window=window)
    made = [Check(threshold=2048, progressive=p, flush=f) for p, f, _ in checks]
    made[-1] = Check(threshold=2048, progressive=made[-1].progressive, flush=True)
    largest = [100 if low else 3000 for _, _, low in checks]
    order = entries(made, largest, config)
    first = {e.row: i for i, e in enumerate(order) if not e.used_lsb}
    again = {e.row: i for i, e in enumerate(order) if e.used_lsb}
    assert sorted(first, key=first.__getitem__) == list(range(len(made)))
    assert set(again) == {r for r, c in enumerate(made) if c.progressive and largest[r] < 2048}
    assert [e.row for e in order if e.dropped] == sorted(again)
    for row, place in again.items():
        assert place > first[row]
        if row + window in first:
            assert place < first[row + window]
        if made[row].flush and row + 1 in first:
            assert place < first[row + 1]
    if window == 1:
        assert [e.row for e in order] == sorted(e.row for e in order)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
@pytest.mark.parametrize(
    ("part", "config_type"),
    [(Confidence, ConfidenceConfig), (ConfidentSoftmax, ConfidentSoftmaxConfig)],
    ids=["alone", "with softmax"],
)
def test_rtl_matches_golden_and_cycles_in_amaranth(part, config_type, shape, p_stall):
    config = config_type(**shape)
    for full_rate in cases(config, seed=3, n_random=8):
        one = full_rate.stalled(p_stall, seed=4) if p_stall else full_rate
        assert judge(one, run_case(part(config), one)).problems == ()


def check_in_harness(name: str, config: ConfidenceConfig, n_random: int) -> None:
    """At full rate with exact cycles, and the same vectors under light and heavy stalls."""
    full_rate = BLOCKS[name].cases(config, seed=11, n_random=n_random)
    runs = [*full_rate, *(one.stalled(p, seed=12) for one in full_rate for p in (0.2, 0.7))]
    logs = verilated.run_cases(BLOCKS[name], config, runs)
    problems = {
        one.name: verdict.problems
        for one, log in zip(runs, logs, strict=True)
        if (verdict := judge(one, log)).problems
    }
    assert not problems


def test_verilog_of_both_matches_golden_and_cycles():
    check_in_harness("confident_softmax", ConfidentSoftmaxConfig(lanes=2, n_max=64), n_random=300)


@pytest.mark.full
@pytest.mark.parametrize("lanes, window", [(1, 1), (2, 8), (8, 2), (16, 4)])
def test_verilog_matches_golden_and_cycles_on_1000_rows(lanes, window):
    shape = {"lanes": lanes, "window": window}
    check_in_harness("confidence", ConfidenceConfig(**shape), n_random=1000)
    check_in_harness("confident_softmax", ConfidentSoftmaxConfig(**shape), n_random=1000)


class SharedSource:
    """A score array with one pipeline for both planes: rows in the order of ``o_begin``, each once named."""

    def __init__(self, part: ConfidentSoftmax, one: Case, seed: int, p_stall: float) -> None:
        self.part, self.rng, self.p_stall = part, random.Random(seed), p_stall
        config = part.config
        layout = [(config.lanes, config.score_bits), (1, config.lanes.bit_length()), (1, 1)]
        self.planes = {
            name: _split(one.inputs[name], unpack_fields(one.inputs[name], layout)[2][:, 0])
            for name in ("i_msb", "i_lsb")
        }
        self.begun: deque[tuple[str, deque[int]]] = deque()
        """Rows named and not yet delivered: the stream, and the beats left."""
        self.waiting = deque(_numbers(one.inputs["i_row"]))
        self.seen: dict[str, list[int]] = {name: [] for name in one.expected}
        self.n_expected = sum(len(beats) for beats in one.expected.values())
        self.budget_cycles = one.max_cycles * 12

    async def play(self, ctx) -> None:
        """Until everything expected is there, or the budget is spent."""
        while sum(map(len, self.seen.values())) < self.n_expected and self.budget_cycles > 0:
            self.budget_cycles -= 1
            queues = {"i_row": self.waiting, "i_msb": deque(), "i_lsb": deque()}
            if self.begun:
                queues[self.begun[0][0]] = self.begun[0][1]
            for name, queue in queues.items():
                port = getattr(self.part, name)
                # A beat on offer stays: only the row at the head is ever offered, until it is delivered.
                on = bool(queue) and (ctx.get(port.valid) or self._willing())
                ctx.set(port.valid, on)
                if on:
                    ctx.set(Value.cast(port.payload), queue[0])
            for name in self.seen:
                ctx.set(getattr(self.part, name).ready, self._willing())
            for name in [name for name in queues if _fires(ctx, getattr(self.part, name))]:
                queues[name].popleft()
                if self.begun and not self.begun[0][1]:
                    self.begun.popleft()
            for name in self.seen:
                port = getattr(self.part, name)
                if _fires(ctx, port):
                    self.seen[name].append(ctx.get(Value.cast(port.payload)))
                    if name == "o_begin":
                        plane = "i_lsb" if ctx.get(port.payload.lsb) else "i_msb"
                        self.begun.append((plane, deque(self.planes[plane].popleft())))
            await ctx.tick()

    def _willing(self) -> bool:
        return self.rng.random() >= self.p_stall


def _fires(ctx, port) -> bool:
    return bool(ctx.get(port.valid) and ctx.get(port.ready))


def _numbers(beats: Beats) -> list[int]:
    return [int.from_bytes(row.astype("<u4").tobytes(), "little") for row in beats]


def _split(beats: Beats, last: np.ndarray) -> deque[list[int]]:
    ends = np.flatnonzero(last) + 1
    return deque([_numbers(part) for part in np.split(beats, ends)[:-1]])


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("p_stall", [0.0, 0.6])
def test_one_pipeline_for_both_planes_never_deadlocks(window, p_stall):
    """Scores that come only in the order of ``o_begin``, each row after it was named; random stalls."""
    config = ConfidentSoftmaxConfig(lanes=2, n_max=16, window=window)
    one = joined_case("shared", random_rows(25, np.random.default_rng(5), config), config)
    part = ConfidentSoftmax(config)
    source = SharedSource(part, one, seed=6, p_stall=p_stall)
    simulator = Simulator(part)
    simulator.add_clock(1e-9)
    simulator.add_testbench(source.play)
    simulator.run()
    for name, want in one.expected.items():
        assert source.seen[name] == _numbers(want), name


def test_mean_interval_of_equal_rows():
    for window in (1, 2, 4):
        config = ConfidenceConfig(window=window)
        for n_keys in (8, 100, 1024):
            for progressive in (False, True):
                rows = [TimedRow(n_keys=n_keys, progressive=progressive, dropped=False)] * 80
                begun = [t.begin_cycle for t in replay(rows, config, with_softmax=True)]
                mean = (begun[-1] - begun[39]) / 40
                expected = float(row_interval_cycles(n_keys, config, progressive=progressive))
                assert mean == pytest.approx(expected, abs=0.5)
    lone = [
        TimedRow(n_keys=100, progressive=True, dropped=True),
        TimedRow(n_keys=1, progressive=True, dropped=False),
    ]
    begun = [t.begin_cycle for t in replay(lone, ConfidenceConfig(window=1), with_softmax=True)]
    assert begun[1] - begun[0] == int(place_cycles(100, ConfidenceConfig()))


MUTANTS = [
    ("accepts a maximum just below the threshold", "max_probability < decided.threshold",
     "max_probability + 1 < decided.threshold"),
    ("drops a maximum equal to the threshold", "max_probability < decided.threshold",
     "max_probability <= decided.threshold"),
    ("judges recomputed rows again", "new.checked.eq(~begin_lsb & request.progressive)",
     "new.checked.eq(request.progressive)"),
    ("adds the planes without the shift", "stored << LSB_BITS", "stored"),
    ("reads the next slot", "read.addr.eq(Cat(line, slot))", "read.addr.eq(Cat(line, slot + 1))"),
    ("recomputes with the scale of the MSBs",
     "row.eq(Cat(request.tag, request.lsb_multiplier, request.lsb_shift))",
     "row.eq(Cat(request.tag, request.msb_multiplier, request.msb_shift))"),
    ("slot free before its decision", "is_open.bit_select(slot, 1).eq(request.progressive)",
     "is_open.bit_select(slot, 1).eq(0)"),
    ("flush forgets a slot", "Mux(request.flush, cfg.window, 0)", "Mux(request.flush, cfg.window - 1, 0)"),
    ("ready stuck at 1", "self.i_msb.ready.eq(active & ~is_lsb & advance)", "self.i_msb.ready.eq(1)"),
    ("line number runs on", "Mux(chosen.last, 0, line + 1)", "line + 1"),
    ("reports dropped rows", "reports.i.valid.eq(fire & ~drop)", "reports.i.valid.eq(fire)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, old, new):
    mutant = mutated("hw.confidence.rtl", old, new)
    rows = [*corner_rows(SMALL), *random_rows(30, np.random.default_rng(9), SMALL)]
    near = [max(0, min(4095, row.check.threshold + i % 3 - 1)) for i, row in enumerate(rows)]
    full_rate = case("mutant", rows, near, SMALL)
    runs = (full_rate, full_rate.stalled(0.4, seed=1, slowdown=3))
    assert any(judge(one, run_case(mutant.Confidence(SMALL), one)).problems for one in runs), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 3}, "lanes must be a power of two in 1..16, not 3"),
        ({"n_max": 2048}, "n_max must be a power of two in 8..1024, not 2048"),
        ({"score_bits": 41}, "score_bits must be in 8..40, not 41"),
        ({"window": 3}, "window must be a power of two in 1..8, not 3"),
        ({"window": 16}, "window must be a power of two in 1..8, not 16"),
        ({"tag_bits": 0}, "tag_bits must be in 1..32, not 0"),
    ],
)
def test_rejects_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceConfig(**changes)


def test_combine_rejects_what_does_not_fit():
    largest = torch.tensor([(1 << 31) - 1])
    assert combine(largest, torch.tensor([15]), SMALL).tolist() == [(1 << 35) - 1]
    with pytest.raises(ValueError, match=r"16 msb \+ lsb must be in .* not 34359738368"):
        combine(largest, torch.tensor([16]), SMALL)
