# SPDX-License-Identifier: MIT
"""The masters of the convolution system by themselves: bursts, order, stops, ranges; broken on purpose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.convolution.config import ConvolutionConfig
from hw.system.bench import Bench
from hw.system.convolution.config import BURST_WORDS, ConvolutionSystemConfig
from hw.system.convolution.reader import WordReader
from hw.system.convolution.writer import WordWriter
from hw.system.runs import Run
from tests.hw.mutants import mutated

BASE = 0x1_2340_0000
CONFIG = ConvolutionSystemConfig(core=ConvolutionConfig(bus_bytes=8, max_writes=3))
N_BYTES = CONFIG.bus_bytes
MEMORY = np.random.default_rng(1).integers(0, 256, 700 * N_BYTES, dtype=np.uint8)
N_WORDS = len(MEMORY) // N_BYTES
LATENCY_CYCLES = 20
LINE = list(range(3, 150))
MIXED = [*LINE, 9, 9, 10, 300, 12, 13, *range(508, 518), 600, 8, 16, 24, N_WORDS - 1]
"""The first page of 4,096 bytes ends behind word 511."""


@dataclass
class Play:
    """What one run of a master showed."""

    answers: list[int] = field(default_factory=list)
    """Words, or cycles of answers to writes."""
    bursts: list[tuple[int, int]] = field(default_factory=list)
    """First word, words."""
    problems: list[str] = field(default_factory=list)
    n_cycles: int = 0
    n_failed: int = 0
    n_beyond: int = 0
    n_moved: int = 0
    memory: np.ndarray = field(default_factory=lambda: MEMORY)


def play(
    component: Callable,
    requests: Sequence,
    *,
    n_bursts: int = 256,
    p_stall: float = 0.0,
    gap_cycles: int = 0,
    faults: Sequence[int] = (),
    stop_cycle: int | None = None,
    n_words: int = N_WORDS,
) -> Play:
    """Asks for ``requests``, one a cycle where it can; to their end, or idle after ``stop_cycle``."""
    master, seen = component(CONFIG), Play()
    run = Run(
        name="master", steps=(), base=BASE, memory=MEMORY, faults=faults, latency_cycles=LATENCY_CYCLES,
        n_bursts=n_bursts, p_stall=p_stall,
    )  # fmt: skip
    prefix = "m_axi_input" if "arvalid" in master.axi.signature.members else "m_axi_out"

    class Pins:
        """Of the master; the bench's other ports lead nowhere."""

        def __init__(self, ctx) -> None:
            self.ctx = ctx

        def pin(self, name: str):
            return getattr(master.axi, name.removeprefix(f"{prefix}_"), None)

        def get(self, name: str) -> int:
            pin = self.pin(name)
            return 0 if pin is None else self.ctx.get(pin)

        def set(self, name: str, value: int) -> None:
            if (pin := self.pin(name)) is not None:
                self.ctx.set(pin, int(value))

    async def bench_side(ctx) -> None:
        bench, n_asked, resting = Bench(Pins(ctx), run, ["m_axi_input"], N_BYTES), 0, 0
        ctx.set(master.base, BASE)
        ctx.set(master.n_words, n_words)
        ctx.set(master.o.ready, 1)
        for cycle in range(4000):
            runs = stop_cycle is None or cycle < stop_cycle
            ctx.set(master.run, runs)
            ctx.set(master.i.valid, runs and n_asked < len(requests) and resting == 0)
            if n_asked < len(requests):
                ctx.set(master.i.payload, requests[n_asked])
            bench.drive()
            resting = max(0, resting - 1)
            if ctx.get(master.i.valid) and ctx.get(master.i.ready):
                n_asked, resting = n_asked + 1, gap_cycles
            bench.sample()
            if ctx.get(master.o.valid):
                seen.answers.append(ctx.get(master.o.payload))
            seen.n_failed += ctx.get(master.failed)
            seen.n_beyond += ctx.get(master.beyond)
            seen.n_moved += ctx.get(master.moved)
            if len(seen.answers) == len(requests) or (not runs and ctx.get(master.idle)):
                break
            await ctx.tick()
        else:
            seen.problems.append("timeout")
        seen.n_cycles = cycle
        seen.problems += bench.log.problems
        if bench.parts[0].n_open or bench.parts[1].bursts or bench.parts[1].words:
            seen.problems.append("idle with a burst under way")
        seen.bursts = [((address - BASE) // N_BYTES, words) for _, address, words in bench.log.bursts]
        seen.memory = bench.log.memory

    simulator = Simulator(master)
    simulator.add_clock(1e-9)
    simulator.add_testbench(bench_side)
    simulator.run()
    return seen


# --- reader ---------------------------------------------------------------------------------------------


def longest_bursts(words: Sequence[int]) -> list[tuple[int, int]]:
    """Words that follow one another, cut where they begin another BURST_WORDS of memory."""
    bursts: list[list[int]] = []
    for word in words:
        if bursts and word == bursts[-1][-1] + 1 and word % BURST_WORDS:
            bursts[-1].append(word)
        else:
            bursts.append([word])
    return [(burst[0], len(burst)) for burst in bursts]


def problems(seen: Play, words: Sequence[int], bursts: Sequence[tuple[int, int]] | None = None) -> list[str]:
    """Unlike every word once, in order, in the ``bursts`` if they are known."""
    raw = MEMORY.reshape(-1, N_BYTES)
    wrong = list(seen.problems)
    if seen.answers != [int.from_bytes(raw[word].tobytes(), "little") for word in words]:
        wrong.append("answers")
    covered = [word for first, n in seen.bursts for word in range(first, first + n)]
    if covered != list(words) or any(
        first // BURST_WORDS != (first + n - 1) // BURST_WORDS for first, n in seen.bursts
    ):
        wrong.append("bursts")
    if bursts is not None and seen.bursts != bursts:
        wrong.append("bursts not as long as they can be")
    if seen.n_moved != len(words):
        wrong.append("moved")
    return wrong


def test_a_word_a_cycle_in_the_longest_bursts():
    seen = play(WordReader, LINE)
    assert problems(seen, LINE, longest_bursts(LINE)) == []
    first = BURST_WORDS - LINE[0] % BURST_WORDS
    assert seen.n_cycles <= 2 + LATENCY_CYCLES + first + len(LINE) + BURST_WORDS
    seen = play(WordReader, MIXED)
    assert problems(seen, MIXED, longest_bursts(MIXED)) == []


def test_a_word_that_goes_alone_does_not_wait():
    """Asked for in cycle 0, offered in cycle 2; each word for itself where the next one comes late."""
    assert play(WordReader, [5]).n_cycles == 2 + LATENCY_CYCLES
    apart = list(range(5, 20))
    assert problems(play(WordReader, apart, gap_cycles=3), apart, [(word, 1) for word in apart]) == []


@pytest.mark.parametrize("n_bursts", [1, 2, 256])
def test_order_under_stalls(n_bursts):
    assert problems(play(WordReader, MIXED, n_bursts=n_bursts, p_stall=0.4), MIXED) == []


@pytest.mark.parametrize("stop_cycle", [1, 2, 3, 4, 9, 11, 30, 55])
def test_a_stop_breaks_nothing_off(stop_cycle):
    """What was offered is read, and not answered."""
    seen = play(WordReader, MIXED, n_bursts=1, stop_cycle=stop_cycle)
    assert seen.problems == []
    assert len(seen.answers) <= sum(n for _, n in seen.bursts) < len(MIXED)


def test_beyond_the_memory_nothing_is_read():
    seen = play(WordReader, [5, 6, 7, 6], n_words=7, stop_cycle=60)
    assert (seen.bursts, len(seen.answers), seen.problems) == ([(5, 2)], 2, [])
    assert seen.n_beyond == 60 - 2


READER_MUTANTS = {
    "burst a word short": ("arlen.eq(count - 1)", "arlen.eq(count - 2)"),
    "across its place": (" & (word % BURST_WORDS != 0)", ""),
    "joins another": ("(word == first + count)", "(word >= first + count)"),
    "waits for the next one": ("(count != 0) & ~joins & free", "(count != 0) & wanted & ~joins & free"),
    "each word alone": ("joins.eq(wanted & (count != 0)", "joins.eq(wanted & (count == 9)"),
    "burst over one that waits": ("free.eq(~axi.arvalid | axi.arready)", "free.eq(1)"),
    "word taken without a place": ("takes.eq(wanted & (joins | (count == 0) | offers))", "takes.eq(wanted)"),
    "wrong address": ("first * self.config.bus_bytes", "first * 4"),
    "last word is beyond": ("word >= self.n_words", "word >= self.n_words - 1"),
}


@pytest.mark.parametrize("name", READER_MUTANTS)
def test_reader_mutant_is_caught(name):
    component = mutated("hw.system.convolution.reader", *READER_MUTANTS[name]).WordReader
    ways = (({}, longest_bursts(MIXED)), ({"n_bursts": 2, "p_stall": 0.4}, None))
    caught = any(problems(play(component, MIXED, **way), MIXED, bursts) for way, bursts in ways)
    assert caught or play(component, [5]).n_cycles != 2 + LATENCY_CYCLES


STOP_MUTANTS = {
    "burst withdrawn": (
        "with m.If(~self.run):\n            m.d.sync += count.eq(0)",
        "with m.If(~self.run):\n            m.d.sync += [count.eq(0), axi.arvalid.eq(0)]",
    ),
    "idle before the last answer": ("~axi.arvalid & (under_way == 0)", "~axi.arvalid"),
    "burst begun after the stop": ("offers.eq(self.run & (count", "offers.eq((count"),
}


@pytest.mark.parametrize("name", STOP_MUTANTS)
def test_stop_mutant_is_caught(name):
    component = mutated("hw.system.convolution.reader", *STOP_MUTANTS[name]).WordReader
    plays = [play(component, MIXED, n_bursts=1, stop_cycle=n) for n in (2, 3, 4, 9, 11, 30)]
    right = [play(WordReader, MIXED, n_bursts=1, stop_cycle=n) for n in (2, 3, 4, 9, 11, 30)]
    assert any(one.problems or one.bursts != good.bursts for one, good in zip(plays, right, strict=True))


@pytest.mark.parametrize("failed", ["self.moved & axi.rresp[1]", "0"])
def test_an_error_is_told(failed):
    """Of one word; or not, with the mutant."""
    old = "self.failed.eq(self.moved & axi.rresp[1])"
    component = mutated("hw.system.convolution.reader", old, f"self.failed.eq({failed})").WordReader
    assert play(component, LINE, faults=[BASE + 40 * N_BYTES]).n_failed == (failed != "0")


# --- writer ---------------------------------------------------------------------------------------------


def writes(words: Sequence[int], seed: int = 1) -> list[dict[str, int]]:
    rng = np.random.default_rng(seed)
    return [
        {"address": word, "data": int(rng.integers(0, 2**63)), "strobe": int(rng.integers(1, 256))}
        for word in words
    ]


def written(made: Sequence[dict[str, int]]) -> np.ndarray:
    """Memory after them."""
    memory = MEMORY.copy().reshape(-1, N_BYTES)
    for one in made:
        chosen = [byte for byte in range(N_BYTES) if one["strobe"] >> byte & 1]
        raw = np.frombuffer(one["data"].to_bytes(N_BYTES, "little"), np.uint8)
        memory[one["address"], chosen] = raw[chosen]
    return memory.ravel()


def write_problems(component: Callable, **way) -> list[str]:
    """Of the mixed words, some written twice."""
    made = writes(MIXED)
    seen = play(component, made, **way)
    wrong = list(seen.problems)
    if not np.array_equal(seen.memory, written(made)):
        wrong.append("memory")
    if (len(seen.answers), seen.n_moved) != (len(made), len(made)):
        wrong.append("answers")
    return wrong


@pytest.mark.parametrize("p_stall", [0.0, 0.4])
def test_writes_arrive_in_order(p_stall):
    assert write_problems(WordWriter, p_stall=p_stall) == []


@pytest.mark.parametrize("stop_cycle", [1, 2, 3, 9, 30])
def test_a_stop_ends_the_word_under_way(stop_cycle):
    made = writes(MIXED)
    seen = play(WordWriter, made, p_stall=0.4, stop_cycle=stop_cycle)
    assert seen.problems == []
    assert np.array_equal(seen.memory, written(made[: seen.n_moved]))


def test_beyond_the_memory_nothing_is_written():
    made = writes([5, 6, 7])
    seen = play(WordWriter, made, n_words=7, stop_cycle=50)
    assert (seen.n_moved, len(seen.answers), seen.n_beyond) == (2, 2, 48)
    assert np.array_equal(seen.memory, written(made[:2]))


@pytest.mark.parametrize("failed", ["answered & axi.bresp[1]", "0"])
def test_an_error_of_a_write_is_told(failed):
    old = "self.failed.eq(answered & axi.bresp[1])"
    component = mutated("hw.system.convolution.writer", old, f"self.failed.eq({failed})").WordWriter
    assert play(component, writes(LINE), faults=[BASE + 40 * N_BYTES]).n_failed == (failed != "0")


WRITER_MUTANTS = {
    "all bytes written": ("axi.wstrb.eq(write.strobe)", "axi.wstrb.eq(~0)"),
    "address over one that waits": ("(~axi.awvalid | axi.awready) & (~axi", "(~axi"),
    "word over one that waits": ("& (~axi.wvalid | axi.wready) &", "&"),
    "answers forgotten": ("pending + self.moved - answered", "pending + self.moved"),
    "not the last word": ("axi.wlast.eq(1)", "axi.wlast.eq(0)"),
    "answer not taken": ("axi.bready.eq(self.o.ready | ~self.run)", "axi.bready.eq(0)"),
    "wrong address": ("write.address * self.config.bus_bytes", "write.address * 4"),
    "last word is beyond": ("(write.address < self.n_words)", "(write.address < self.n_words - 1)"),
}


@pytest.mark.parametrize("name", WRITER_MUTANTS)
def test_writer_mutant_is_caught(name):
    component = mutated("hw.system.convolution.writer", *WRITER_MUTANTS[name]).WordWriter
    assert write_problems(component) or write_problems(component, p_stall=0.4)


def test_writer_is_not_idle_before_the_last_answer():
    old = "~axi.awvalid & ~axi.wvalid & (pending == 0)"
    component = mutated("hw.system.convolution.writer", old, "~axi.awvalid & ~axi.wvalid").WordWriter
    cycles = [play(one, writes(LINE), stop_cycle=3).n_cycles for one in (WordWriter, component)]
    assert cycles[0] >= LATENCY_CYCLES > cycles[1]
