# SPDX-License-Identifier: MIT
"""The ways of running a block: they agree with each other, notice errors, and cache their builds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.config import preset
from hw.fetch.config import CrossbarConfig
from hw.harness import build, cosim, verilated
from hw.harness.amaranth_sim import run_case, run_cases
from hw.harness.job import Case, judge, pack_fields, unpack_fields
from hw.harness.memory import Memory, Responder, responders
from hw.registry import BLOCKS, Block


@given(
    n_beats=st.integers(1, 5),
    layout=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_fields_survive_packing(n_beats, layout, seed):
    rng = np.random.default_rng(seed)
    fields = [rng.integers(0, 1 << bits, (n_beats, n)) for n, bits in layout]
    beats = pack_fields([(values, bits) for values, (_, bits) in zip(fields, layout, strict=True)])
    assert beats.shape == (n_beats, -(-sum(n * bits for n, bits in layout) // 32))
    for values, back in zip(fields, unpack_fields(beats, layout), strict=True):
        assert np.array_equal(values, back)


def test_packing_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="value 4 does not fit in 2 bits"):
        pack_fields([(np.array([1, 4]), 2)])


BLOCK, CONFIG = BLOCKS["zero_eliminator"], BLOCKS["zero_eliminator"].config(preset("tiny"))


def _cases() -> list[Case]:
    full_rate = BLOCK.cases(CONFIG, seed=1, n_random=10)
    return [*full_rate, *(one.stalled(0.5, seed=3) for one in full_rate)]


def test_the_harness_agrees_with_amaranths_simulator():
    one = _cases()[0]
    in_python = run_case(BLOCK.component(CONFIG), one)
    verilog = verilated.run_cases(BLOCK, CONFIG, [one])[0]
    assert in_python.n_cycles == verilog.n_cycles
    for name in in_python.cycles:
        assert np.array_equal(in_python.cycles[name], verilog.cycles[name])


def test_cases_one_after_another_leave_nothing_behind_in_amaranths_simulator():
    """The first one is broken off, with words in the queue, which the next one must not see."""
    block = BLOCKS["fifo"]
    config = block.config(preset("tiny"))
    whole = block.cases(config, seed=5, n_random=20)[0]
    runs = [replace(whole.stalled(0.5, seed=1), max_cycles=9), whole, whole.stalled(0.3, seed=6)]
    for (one, log), same in zip(run_cases(block.component(config), runs), runs, strict=True):
        alone = run_case(block.component(config), same)
        assert one is same and log.n_cycles == alone.n_cycles
        for name, beats in alone.beats.items():
            assert np.array_equal(log.beats[name], beats)
        for name, cycles in alone.cycles.items():
            assert np.array_equal(log.cycles[name], cycles)
    assert len(log.beats["o"]) == len(whole.expected["o"])


@pytest.mark.parametrize("simulator", cosim.SIMULATORS)
def test_cocotb_on_the_verilog(simulator):
    if reason := cosim.missing_simulator(simulator):
        pytest.skip(reason)
    logs = cosim.run_cases(BLOCK, CONFIG, _cases(), simulator)
    assert [judge(one, log).problems for one, log in zip(_cases(), logs, strict=True)] == [()] * len(logs)


@pytest.mark.parametrize("name", ["fifo", "skid_buffer", "width_change", "packer", "regroup"])
def test_stream_parts_in_the_harness(name):
    block = BLOCKS[name]
    config = block.config(preset("tiny"))
    full_rate = block.cases(config, seed=5, n_random=200)
    runs = [*full_rate, *(one.stalled(0.3, seed=6) for one in full_rate)]
    for one, log in zip(runs, verilated.run_cases(block, config, runs), strict=True):
        assert judge(one, log).problems == ()


def test_a_wrong_expectation_is_reported_in_every_way_of_running():
    one = _cases()[0]
    wrong_bits = dict(one.expected)
    wrong_bits["o"] = wrong_bits["o"].copy()
    wrong_bits["o"][3, 0] ^= 1
    shorter = {"o": one.expected["o"][:-1]}
    late = {"o": one.expected_cycles["o"] + 1}
    for expected, cycles, word in (
        (wrong_bits, {}, "o beat 3: 0x"),
        (shorter, {}, f"golden {len(shorter['o'])}"),
        (one.expected, late, "cycle model"),
    ):
        broken = Case(
            name="broken",
            inputs=one.inputs,
            expected=expected,
            expected_cycles=cycles,
            max_cycles=one.max_cycles,
        )
        for log in (
            run_case(BLOCK.component(CONFIG), broken),
            verilated.run_cases(BLOCK, CONFIG, [broken])[0],
        ):
            assert word in judge(broken, log).problems[0]


def test_a_run_over_its_budget_is_a_mismatch():
    one = _cases()[0]
    short = Case(name="short", inputs=one.inputs, expected=one.expected, max_cycles=4)
    for log in (run_case(BLOCK.component(CONFIG), short), verilated.run_cases(BLOCK, CONFIG, [short])[0]):
        assert "after 4 cycles" in judge(short, log).problems[0]


def test_the_cache_builds_once_and_leaves_nothing_half_done(tmp_path, monkeypatch):
    monkeypatch.setenv("QUARTET_BUILD", str(tmp_path))
    made = []

    def make(folder):
        made.append(folder)
        (folder / "result").write_text("x")
        if len(made) == 1:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        build.cached("kind", "key", make)
    assert list((tmp_path / "kind").iterdir()) == []
    for _ in range(2):
        assert (build.cached("kind", "key", make) / "result").read_text() == "x"
    assert len(made) == 2


def test_unknown_simulator_is_rejected():
    with pytest.raises(ValueError, match="sim must be one of verilator, icarus, not 'modelsim'"):
        cosim.run_cases(BLOCK, CONFIG, [], "modelsim")


# --- memories -------------------------------------------------------------------------------------------


def _memory(**changes) -> Memory:
    words = np.arange(8, dtype=np.uint32).reshape(4, 2)
    return Memory(**{"response": "i", "words": words, "address_bits": 3, **changes})


def test_a_memory_answers_in_order_after_its_latency_and_at_its_rate():
    memory = _memory(latency_cycles=5, interval_cycles=3)
    responder = Responder(memory, seed=1, words=memory.words)
    for cycle, address, tag in ((10, 1, 9), (11, 3, 7), (30, 5, 1)):
        responder.ask(address | tag << 3, cycle)
    answers = [(cycle, beat) for cycle in range(50) if (beat := responder.answer(cycle)) is not None]
    words = {1: 2 | 3 << 32, 3: 6 | 7 << 32, 5: 0}  # past the end: zeros
    assert answers == [(15, words[1] | 9 << 64), (18, words[3] | 7 << 64), (35, words[5] | 1 << 64)]


def test_jitter_keeps_the_order_of_a_channel_and_differs_between_channels():
    shown = []
    for response in ("i_response0", "i_response1"):
        memory = _memory(response=response, jitter_cycles=20)
        responder = Responder(memory, seed=1, words=memory.words)
        for cycle in range(40):
            responder.ask(cycle % 4, cycle)
        found = [(cycle, beat) for cycle in range(200) if (beat := responder.answer(cycle)) is not None]
        assert [beat for _, beat in found] == [2 * (i % 4) | (2 * (i % 4) + 1) << 32 for i in range(40)]
        assert all(i + 1 <= cycle for i, (cycle, _) in enumerate(found))
        shown.append([cycle for cycle, _ in found])
    assert shown[0] != shown[1]


def test_what_is_written_is_read_from_the_cycle_of_the_acknowledgement_on():
    """By ports that share the words; those of the case, and of others, stay as they are."""
    read = _memory(latency_cycles=2)
    write = replace(read, response="i_written", latency_cycles=5, writes=True)
    other = _memory(response="i_other")
    ports = responders({"r": read, "w": write, "o": other}, seed=1)
    data, strobe = 0x8877665544332211, 0b10000110
    ports["w"].ask(1 | data << 3 | strobe << 67, cycle=10)
    old, new = 2 | 3 << 32, 0x8800000300332202
    seen = []
    for cycle in range(10, 20):
        acknowledged = ports["w"].answer(cycle)
        assert acknowledged == (0 if cycle == 15 else None)
        ports["r"].ask(1, cycle)
        ports["o"].ask(1, cycle)
        seen.append((cycle, ports["r"].answer(cycle), ports["o"].answer(cycle)))
    assert [beat for _, beat, _ in seen[2:7]] == 5 * [old]
    assert [beat for _, beat, _ in seen[7:]] == 3 * [new]
    assert [beat for *_, beat in seen[1:]] == 9 * [old]
    assert read.words[1].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_cycles": 0}, "latency_cycles must be at least 1, not 0"),
        ({"jitter_cycles": -1}, "jitter_cycles must not be negative, not -1"),
        ({"interval_cycles": 0}, "interval_cycles must be at least 1, not 0"),
        ({"address_bits": 33}, "address_bits must be in 1..32, not 33"),
        ({"words": np.zeros(3, dtype=np.uint32)}, r"words must be uint32\[n, n_words\], not uint32\[3\]"),
    ],
)
def test_bad_memories_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        _memory(**changes)


# Tags of 3 + 1 bits behind an address of 9: fields that do not start on a byte.
CROSSBAR = Block(
    name="crossbar", summary="", package="hw.fetch", component_name="Crossbar", config=lambda _: None
)
CROSSBAR_CONFIG = CrossbarConfig(n_ports=2, n_channels=2, depth=8, atom_address_bits=10, note_bits=3)


def _memory_cases() -> list[Case]:
    full_rate = CROSSBAR.cases(CROSSBAR_CONFIG, seed=1, n_random=20)
    return [*full_rate, *(one.stalled(0.4, seed=3) for one in full_rate)]


def test_memories_answer_alike_in_the_harness_and_in_amaranths_simulator():
    runs = _memory_cases()
    for one, verilog in zip(runs, verilated.run_cases(CROSSBAR, CROSSBAR_CONFIG, runs), strict=True):
        in_python = run_case(CROSSBAR.component(CROSSBAR_CONFIG), one)
        assert judge(one, verilog).problems == judge(one, in_python).problems == ()
        if one.expected_cycles:
            assert {name: c.tolist() for name, c in in_python.cycles.items()} == {
                name: c.tolist() for name, c in verilog.cycles.items()
            }


def test_memories_answer_under_cocotb():
    simulator = "verilator" if cosim.missing_simulator("icarus") else "icarus"  # the one that builds faster
    runs = _memory_cases()
    logs = cosim.run_cases(CROSSBAR, CROSSBAR_CONFIG, runs, simulator)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [()] * len(runs)


def test_a_wrong_memory_is_noticed():
    one = _memory_cases()[0]
    wrong = {
        name: replace(memory, words=memory.words ^ np.uint32(1)) for name, memory in one.memories.items()
    }
    broken = replace(one, memories=wrong)
    for log in (
        run_case(CROSSBAR.component(CROSSBAR_CONFIG), broken),
        verilated.run_cases(CROSSBAR, CROSSBAR_CONFIG, [broken])[0],
    ):
        assert "o0 beat 0: 0x" in judge(broken, log).problems[0]
