# SPDX-License-Identifier: MIT
"""The attention core: whole sentences against golden, in three simulators; mutants."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import hw.attention.rtl
from algo.attention.encoder import load_encoder
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import ChipRun, run_on_chip
from hw.attention.config import AttentionConfig, attention_config
from hw.attention.layers import GivenTokens
from hw.attention.program import PlaneBits, program, unpack_outputs
from hw.attention.rtl import Attention
from hw.attention.vectors import (
    Options,
    Sentence,
    Shape,
    case,
    cases,
    matrix_product,
    one_token,
    sentence,
)
from hw.config import ChipConfig, preset
from hw.fetch.cycles import MemoryTiming
from hw.harness import cosim, verilated
from hw.harness.amaranth_sim import run_case
from hw.harness.job import Case, judge
from hw.registry import BLOCKS
from hw.topk.config import TopKConfig
from tests.hw.mutants import mutated

TINY = attention_config(preset("tiny"))
CHIP = ChipConfig(
    name="small",
    n_multipliers=32,
    kv_sram_bytes=1536,
    n_dram_channels=1,
    softmax_lanes=2,
    topk=TopKConfig(lanes=2, n_max=16),
    n_value_engines=2,
)
SMALL = attention_config(CHIP)
SMALL_CYCLES = 1500
"""Little more than the small run needs: a mutant that waits for ever is caught soon."""
TEXT = (
    "The committee praised the young director for a film that is funny, moving and far braver than anything "
    "else shown at the festival this year."
)
PRUNED = {"token_keep": 0.5, "head_keep": 0.8, "value_keep": 0.6, "q_bits": 12}
MODES = {
    "8 bits": CascadeSettings(**PRUNED, k_bits=8, v_bits=8),
    "6+4 bits": CascadeSettings(**PRUNED, k_bits=6, v_bits=6, lsb_bits=4, lsb_threshold=0.3),
}


def small_case() -> Case:
    """Two sentences that prune tokens, heads and values, and compute some rows again."""
    options = Options(k_bits=4, token_keep=0.6, head_keep=0.7, value_keep=0.5, threshold=2600)
    rng = np.random.default_rng(3)
    first = sentence(Shape(5, 3, 32, 2), options, SMALL, rng)
    second = sentence(Shape(2, 2, 32, 1), options, SMALL, rng)
    return case("small", [first, second], SMALL, max_cycles=SMALL_CYCLES)


def new_token_case() -> Case:
    """A causal prompt of one group, then a new token: a given list of which one token goes, three groups.

    Of the groups one is gone, of one a single head is left; some rows are computed again.
    """
    rng = np.random.default_rng(5)
    causal = Options(rows="causal", group_size=2, k_bits=4, threshold=0)
    prompt = sentence(Shape(3, 2, 32, 1), causal, SMALL, rng)
    given = GivenTokens(
        tokens=torch.tensor([1, 2, 3, 4, 6]),
        importance=torch.tensor([701, 90, 95, 94, 0]),
        n_keep=4,
        halve=True,
    )
    options = Options(
        rows="one", group_size=3, k_bits=4, threshold=3000, value_keep=0.5, token_keep=0.8, protect_last=True
    )
    token = one_token(Shape(7, 9, 32, 2), options, given, SMALL, rng, {0: [1, 3, 4, 5]})
    return case("new token", [prompt, token], SMALL, max_cycles=SMALL_CYCLES)


def streamed_case() -> Case:
    """A new token whose keys are two tiles, and whose kept values are too, in three heads; then a sentence
    that is not streamed."""
    rng = np.random.default_rng(8)
    assert SMALL.tile_keys(32) == 8
    options = Options(
        rows="one", k_bits=4, threshold=1000, value_keep=0.7, token_keep=0.9, protect_last=True, streamed=1.0
    )
    tokens = np.array([0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
    given = GivenTokens(tokens=tokens, importance=rng.integers(0, 900, len(tokens)), n_keep=13)
    token = one_token(Shape(16, 3, 32, 1), options, given, SMALL, rng)
    resident = sentence(Shape(2, 3, 32, 1), Options(k_bits=4, threshold=0), SMALL, rng)
    return case("streamed", [token, resident], SMALL, max_cycles=SMALL_CYCLES)


def matrix_case() -> Case:
    """Two products, the first of one beat of sums a part; then a sentence."""
    rng = np.random.default_rng(4)
    products = [matrix_product(n_out, n_in, 8, SMALL, rng) for n_out, n_in in ((2, 90), (9, 150))]
    resident = sentence(Shape(2, 3, 32, 1), Options(k_bits=4, threshold=0), SMALL, rng)
    return case("matrix", [*products, resident], SMALL, max_cycles=SMALL_CYCLES)


def problems(config: AttentionConfig, runs: list[Case], logs) -> dict[str, tuple[str, ...]]:
    verdicts = {one.name: judge(one, log) for one, log in zip(runs, logs, strict=True)}
    return {name: verdict.problems for name, verdict in verdicts.items() if verdict.problems}


def minilm(mode: str) -> ChipRun:
    torch.set_num_threads(1)
    return run_on_chip(load_encoder("minilm"), TEXT, MODES[mode], TINY)


def minilm_case(mode: str, run: ChipRun) -> Case:
    settings = MODES[mode]
    one = Sentence(
        layers=[layer.input for layer in run.layers],
        results=[layer.result for layer in run.layers],
        bits=PlaneBits(k=settings.k_bits, v=settings.v_bits),
    )
    return case(f"MiniLM, {mode}", [one], TINY)


@pytest.fixture(scope="module")
def runs() -> dict[str, ChipRun]:
    return {mode: minilm(mode) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_the_sentence_shows_every_technique(runs, mode):
    """At least 24 tokens; a third of them, a head and values pruned; 5 to 50 % of the rows with LSBs."""
    results = [layer.result for layer in runs[mode].layers]
    assert len(results) == 6
    assert len(results[0].tokens) >= 24
    assert len(results[-1].tokens) <= len(results[0].tokens) * 2 / 3
    assert len(results[-1].heads) < 12
    assert not results[3].kept_values.all()
    used_lsb = torch.cat([result.used_lsb.flatten() for result in results]).double().mean()
    assert used_lsb == 0 if mode == "8 bits" else 0.05 <= used_lsb <= 0.5


def test_minilm_and_corners_in_verilator(runs):
    """All six layers of a real sentence, and corners; at full rate and under stalls, through cocotb."""
    full_rate = [*(minilm_case(mode, run) for mode, run in runs.items()), *cases(TINY, seed=5, n_random=2)]
    todo = [one.stalled(p, 6) if p else one for one in full_rate for p in (0, 0.4)]
    assert problems(TINY, todo, cosim.run_cases(BLOCKS["attention"], TINY, todo)) == {}


def test_corners_in_icarus():
    """A second simulator, with rules of its own for what is unknown."""
    if reason := cosim.missing_simulator("icarus"):
        pytest.skip(reason)
    todo = cases(TINY, seed=1, n_random=0)[:3]
    assert problems(TINY, todo, cosim.run_cases(BLOCKS["attention"], TINY, todo, "icarus")) == {}


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "edge", "paper_eighth"])
def test_random_sentences(name):
    config = attention_config(preset(name))
    full_rate = cases(config, seed=11, n_random=200)
    todo = [one.stalled(p, 12) if p else one for one in full_rate for p in (0, 0.3, 0.7)]
    assert problems(config, todo, verilated.run_cases(BLOCKS["attention"], config, todo)) == {}


def test_small_core_in_amaranth():
    """Also that this run shows what the mutants below break."""
    one = small_case()
    log = run_case(Attention(SMALL), one)
    assert judge(one, log).problems == ()
    rows = unpack_outputs(log.beats["o"], SMALL)
    assert 3 <= rows.used_lsb.sum() <= len(rows.used_lsb) - 3
    assert len(rows.heads) == 5 * 3 + 3 * 2 + 2 * 2


MUTANTS = {
    "LSB scores from the MSB plane": ("rows", "Mux(is_lsb, self.n_lines, 0)", "0"),
    "head not flushed before the next": ("rows", "self.progressive & is_last", "0"),
    "output of another head": ("rows", "finished.head.eq(tag.head)", "finished.head.eq(tag.half)"),
    "head over one row too early": ("rows", "row == self.n - 1", "row == self.n - 2"),
    "LSB plane of the other half": ("loader", "order.plane.eq(Mux(half,", "order.plane.eq(Mux(~half,"),
    "LSB lines over the keys": ("loader", "order.append.eq(1)", "order.append.eq(0)"),
    "first chunk of queries again": ("loader", "order.line.eq(chunk)", "order.line.eq(0)"),
    "query read before it came": ("query_ring", "~self.is_new | (self.row != n_present)", "1"),
    "tokens and heads swap their counts": (
        "cascade", "Mux(of_tokens, n_stay, layer.n_heads_next)", "Mux(of_tokens, layer.n_heads_next, n_stay)",
    ),
    "every head's magnitude to the first": ("cascade", "payload.line.eq(head)", "payload.line.eq(0)"),
    "old importance in a new sentence": (
        "cascade", 'State("ANEW"):\n                command(Op.CLEAR)',
        'State("ANEW"):\n                command(Op.ADD)',
    ),
    "one token too many in the last line": ("lists", "left < self.lanes, left,", "0, left,"),
    "next engine after a line, not a row": ("values", "self.i.payload.last", "Value.cast(1)"),
    "counters go on into the next layer": ("rtl", "m.If(cascade.ended)", "m.If(0)"),
}  # fmt: skip
NEW_TOKEN_MUTANTS = {
    "a half for every head of a group": (
        "rows", "half.eq(half ^ (head.last_of_group", "half.eq(half ^ (1",
    ),
    "half free before its last row": ("rows", "complete & (n_open == 1)", "n_open == 1"),
    "last row of the layer not flushed": ("rows", "ends_layer.eq(head.last |", "ends_layer.eq(0 &"),
    "causal row one key too long": (
        "rows", "self.n_keys.eq(Mux(self.causal, tag.row + 1", "self.n_keys.eq(Mux(self.causal, tag.row + 2",
    ),
    "values beyond the keys of a causal row": (
        "rows", "selected.n.eq(n_keys)", "selected.n.eq(self.n)",
    ),
    "query by the list of tokens": ("loader", "(what.target == Target.QUERY) & self.one", "0"),
    "keys of a group fetched again": ("cascade", "starts_layer | is_other", "1"),
    "group of the head before unknown": ("cascade", "group.eq(read_group.data)", "group.eq(0)"),
    "newest token not protected": ("cascade", "self.layer.protect_last & scores.last", "0"),
    "importance not halved": ("cascade", "halve.eq(layer.halve)", "halve.eq(0)"),
    "eviction by the count of the next layer": (
        "cascade", "Mux(evicting, layer.n_tokens,", "Mux(0, layer.n_tokens,",
    ),
    "heads selected for a new token": ("cascade", 'm.next = "FORGET HEADS"', 'm.next = "READ HEADS"'),
}  # fmt: skip
STREAMED_MUTANTS = {
    "tile one key too long": ("tiles", "self.last.eq(left <= most)", "self.last.eq(left <= most + 1)"),
    "every tile in the first region": ("tiles", "self.region.eq(self.region + 1)", "self.region.eq(0)"),
    "LSB tile from the MSB plane": ("loader", "Mux(is_lsb, Value.cast(self.key_entry.lsb),", "Mux(0, 0,"),
    "every tile from the first keys": ("loader", "key_tile.tiles.first >> lines_pass", "0"),
    "values of the list, not of what is kept": ("loader", "order.of_row.eq(1)", "order.of_row.eq(0)"),
    "values asked for before their tokens": ("loader", "self.ids_wait & ~gathering", "1"),
    "tokens of one line for all lanes": ("tiles", "(lines[lane] == line)", "1"),
    "token found too late": ("tiles", "now = Mux(moving[lane], word, held[lane])", "now = held[lane]"),
    "places in the list, not in the region": ("rtl", "streamed, tile.beat * cfg.lanes + lane,", "0, 0,"),
    "tile of a row not ended": ("rtl", "pairs.last | (streamed & tile.ends)", "pairs.last"),
    "tile of tokens not ended": ("rtl", "m.If(sources.o.payload & gathered.ends)", "m.If(0)"),
    "a sum for every tile": ("tiles", "out.last.eq(tiles.last)", "out.last.eq(1)"),
    "row ends with its first tile": ("rows", "query.last.eq(tiles.last)", "query.last.eq(1)"),
    "LSBs asked for as well by the head": ("rtl", "~cascade.streamed & ~issue", "~issue"),
    "half changed by a streamed head": ("rows", "(head.last_of_group & ~self.streamed)", "1"),
}  # fmt: skip
MATRIX_MUTANTS = {
    "sums go on from the matrix before": ("sums", "held.first.eq(row == 0)", "held.first.eq(0)"),
    "sums leave one part too early": ("sums", "row == self.n_rows - 1", "row == self.n_rows - 2"),
    "parts of the vector by the list of rows": ("lists", "Mux(counted,", "Mux(0,"),
    "parts of the vector asked for again": ("loader", "Mux(self.sums, self.ring_n_reserve - 1, 0)", "0"),
    "layer ends before its sums": ("cascade", "m.If(self.summed)", "m.If(1)"),
    "rows of sums wait for reports": ("rows", "(half == which) & ~self.sums", "(half == which)"),
    "scores of sums to the confidence check": ("rtl", "Mux(cascade.sums, sums.i.ready,", "Mux(0, 0,"),
}  # fmt: skip
COMPONENTS = {
    "rows": ("RowSource", "QueryIssue", "Reports"),
    "loader": ("Loader",),
    "query_ring": ("QueryRing",),
    "values": ("ValueSelect",),
    "cascade": ("Cascade",),
    "lists": ("KeptList",),
    "sums": ("Sums",),
    "tiles": ("Tiles", "Gather", "TileEnd", "WeightedRows"),
}
"""What a module gives to its users; ``rtl`` is the core itself."""
USERS = [importlib.import_module(f"hw.attention.{name}") for name in ("rtl", "cascade", "rows", "loader")]


def test_new_token_in_amaranth():
    """Also that this run shows what its mutants break."""
    one = new_token_case()
    log = run_case(Attention(SMALL), one)
    assert judge(one, log).problems == ()
    rows = unpack_outputs(log.beats["o"], SMALL)
    assert sorted(rows.heads.tolist()[-4:]) == [1, 3, 4, 5]
    assert 3 <= rows.used_lsb[-8:].sum() <= 6 and rows.used_lsb[-1]


LATE = ("values asked for before their tokens", "every tile in the first region")
"""Mutants that only cost cycles."""


def caught(name: str, mutants: dict[str, tuple[str, str, str]], one: Case, monkeypatch) -> bool:
    """By what comes out, whenever it comes."""
    if name not in LATE:
        one = replace(one, expected_cycles={})
    module, old, new = mutants[name]
    broken = mutated(f"hw.attention.{module}", old, new)
    for component in COMPONENTS.get(module, ()):
        for user in USERS:
            if hasattr(user, component):
                monkeypatch.setattr(user, component, getattr(broken, component))
    if module == "tiles":
        monkeypatch.setattr(hw.attention.rtl, "lines_of", broken.lines_of)
    core = broken.Attention if module == "rtl" else Attention
    return judge(one, run_case(core(SMALL), one)).problems != ()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    assert caught(name, MUTANTS, small_case(), monkeypatch)


@pytest.mark.parametrize("name", NEW_TOKEN_MUTANTS)
def test_new_token_mutant_is_caught(name, monkeypatch):
    assert caught(name, NEW_TOKEN_MUTANTS, new_token_case(), monkeypatch)


def test_streamed_in_amaranth():
    """Also that this run shows what its mutants break."""
    one = streamed_case()
    log = run_case(Attention(SMALL), one)
    assert judge(one, log).problems == ()
    rows = unpack_outputs(log.beats["o"], SMALL)
    assert 1 <= rows.used_lsb[:3].sum() <= 2


@pytest.mark.parametrize("name", STREAMED_MUTANTS)
def test_streamed_mutant_is_caught(name, monkeypatch):
    assert caught(name, STREAMED_MUTANTS, streamed_case(), monkeypatch)


def test_matrix_in_amaranth():
    """Golden is numpy's product of integers."""
    rng = np.random.default_rng(4)
    one = matrix_product(7, 100, 12, SMALL, rng)
    heads = one.layers[0].heads
    product = sum(np.asarray(head.k) @ np.asarray(head.q)[0] for head in heads)
    assert np.array_equal(one.results[0].sums.numpy(), product)
    assert judge(matrix_case(), run_case(Attention(SMALL), matrix_case())).problems == ()


@pytest.mark.parametrize("name", MATRIX_MUTANTS)
def test_matrix_mutant_is_caught(name, monkeypatch):
    assert caught(name, MATRIX_MUTANTS, matrix_case(), monkeypatch)


def test_list_is_read_to_its_end(monkeypatch):
    """Where its first line holds all that stays, the new list is complete before the old one is read."""
    options = Options(token_keep=0.07, favourite=1, progressive=False)
    one = sentence(Shape(15, 1, 32, 2), options, SMALL, np.random.default_rng(1))
    long_list = case("long list", [one], SMALL, max_cycles=800)
    assert judge(long_list, run_case(Attention(SMALL), long_list)).problems == ()
    broken = mutated("hw.attention.cascade", "m.If(ended.all())", "m.If(ended[0])")
    monkeypatch.setattr(hw.attention.rtl, "Cascade", broken.Cascade)
    assert judge(long_list, run_case(Attention(SMALL), long_list)).problems


@pytest.mark.parametrize(
    ("shape", "progressive", "message"),
    [
        ((0, 2, 32), False, r"n_tokens must be in 1..1024, not 0"),
        ((5, 65, 32), False, r"n_heads must be in 1..64, not 65"),
        ((5, 2, 128), False, r"head_dim must be one of \(32, 64\), not 128"),
        ((129, 2, 32), False, r"n_tokens must be at most 128 at head_dim 32.* their keys fit"),
        ((65, 2, 32), True, r"n_tokens must be at most 64 at head_dim 32.* both planes"),
    ],
)
def test_sentence_that_does_not_fit_is_refused(shape, progressive, message):
    with pytest.raises(ValueError, match=message):
        TINY.check_run(*shape, progressive=progressive)


def test_planes_beyond_the_memory_are_refused():
    one = sentence(Shape(4, 1, 32, 1), Options(), TINY, np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"planes must fit in 67108864 atoms, not \d+"):
        program(one.layers, one.bits, TINY, first_atom=(1 << 26) - 3)


def test_lines_that_no_row_needs_come_before_the_next_layer(monkeypatch):
    """Of a causal row computed again few LSBs are used; a slow memory brings the others when all is done."""
    rng = np.random.default_rng(3)
    options = Options(rows="causal", k_bits=4, threshold=3000, favourite=2)
    first = sentence(Shape(8, 1, 32, 1), options, SMALL, rng)
    assert first.results[0].used_lsb.nonzero().tolist() == [[0, 1]]
    then = sentence(Shape(5, 2, 32, 1), Options(k_bits=4, token_keep=0.6, threshold=2000), SMALL, rng)
    late = case("late", [first, then], SMALL, memory=MemoryTiming(latency_cycles=20, interval_cycles=60))
    assert judge(late, run_case(Attention(SMALL), late)).problems == ()
    broken = mutated("hw.attention.cascade", "~self.releasing | (side is heads)", "1")
    monkeypatch.setattr(hw.attention.rtl, "Cascade", broken.Cascade)
    assert judge(late, run_case(Attention(SMALL), late)).problems


def test_a_region_may_hold_more_than_the_longest_row():
    config = attention_config(replace(CHIP, topk=TopKConfig(lanes=2, n_max=4), kv_sram_bytes=6144))
    assert config.qk.buffer.region_lines > config.n_max == config.tile_keys(32)
    options = Options(k_bits=4, threshold=2000, value_keep=0.8, streamed=1.0)
    rng = np.random.default_rng(1)
    passes = [sentence(Shape(4, 2, 32, 2), options, config, rng), matrix_product(4, 100, 8, config, rng)]
    run = case("small rows", passes, config, max_cycles=SMALL_CYCLES)
    assert judge(run, run_case(Attention(config), run)).problems == ()


@pytest.mark.parametrize("window", [1, 4, 8])
def test_new_rows_wait_for_no_half_that_they_hold(window):
    """Every row of a new token is computed again, with a window of one row and one wider than the halves."""
    config = replace(SMALL, confidence=replace(SMALL.confidence, window=window))
    options = Options(rows="one", k_bits=6, threshold=4095, group_size=2, protect_last=True, value_keep=0.7)
    given = GivenTokens(tokens=np.array([0, 2, 3, 5]), importance=np.array([9, 4, 7, 0]), n_keep=3)
    one = one_token(Shape(6, 7, 32, 1), options, given, config, np.random.default_rng(2))
    assert one.results[0].used_lsb.all() and len(one.results[0].order) == 7
    new_token = case("new token", [one], config, max_cycles=SMALL_CYCLES)
    assert judge(new_token, run_case(Attention(config), new_token)).problems == ()
