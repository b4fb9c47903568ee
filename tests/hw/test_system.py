# SPDX-License-Identifier: MIT
"""The core behind AXI: real sentences through memory, every error, soft reset; start values taken away."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from benchmarks.system_run import BASE, BUSY, DONE, ERROR, SOFT_RESET, START, Software
from hw.attention.config import attention_config
from hw.attention.layers import GivenTokens
from hw.attention.program import ROWS, PlaneBits
from hw.attention.shapes import head_layout, ids_layout, layer_layout
from hw.attention.vectors import Options, Sentence, Shape, case, matrix_product, one_token, sentence
from hw.config import ChipConfig, preset
from hw.harness.build import emit
from hw.registry import TOPS
from hw.system.config import DescriptorError, ErrorCode, SystemConfig, system_config
from hw.system.cosim import Models, run_in_amaranth, run_in_verilator, without_start_values
from hw.system.registers import registers, system_format
from hw.system.runs import Log, Run, Step
from hw.topk.config import TopKConfig
from sim.driver.system import Image, image_of
from tests.hw.test_attention import MODES, minilm

CONFIG = system_config(preset("tiny"))
CORE = CONFIG.core
FORMAT = system_format(CONFIG)
ADDRESS = FORMAT.addresses
SOFTWARE = Software(FORMAT)
write, read, job, RESULTS = SOFTWARE.write, SOFTWARE.read, SOFTWARE.job, SOFTWARE.results
MODELS = pytest.mark.parametrize("models", get_args(Models))
QUICK = {"latency_cycles": 8, "jitter_cycles": 12, "p_stall": 0.2}


def mismatches(image: Image, log: Log, passes: Sequence[Sentence]) -> tuple[str, ...]:
    """Of the last job of a run, against golden."""
    return SOFTWARE.mismatches(image, log, case("golden", passes, CORE).expected)


def small(seed: int = 1) -> list[Sentence]:
    """A sentence that prunes tokens and heads and computes rows again; then, streamed, a new token of a given
    list; then a matrix times a vector."""
    rng = np.random.default_rng(seed)
    options = Options(k_bits=4, token_keep=0.6, head_keep=0.7, value_keep=0.5, threshold=2600)
    given = GivenTokens(tokens=np.array([0, 1, 3, 4, 5, 6]), importance=rng.integers(0, 99, 6), n_keep=4)
    new = replace(options, rows="one", protect_last=True, streamed=1.0)
    return [
        sentence(Shape(5, 3, 32, 2), options, CORE, rng),
        one_token(Shape(7, 3, 32, 1), new, given, CORE, rng, {0: [0, 2]}),
        matrix_product(5, 70, 8, CORE, rng),
    ]


SMALL = small()
LITTLE = [sentence(Shape(3, 2, 32, 1), Options(k_bits=4, threshold=2600), CORE, np.random.default_rng(2))]
"""To see that all is well again."""


def joined(first: Image, second: Image) -> np.ndarray:
    """Memory of both, the second right behind the first."""
    return np.concatenate([first.memory, second.memory])


def after(image: Image) -> Image:
    """``LITTLE`` behind another job in memory."""
    return image_of(LITTLE, CORE, FORMAT, base=image.base + len(image.memory))


def test_minilm_in_verilator():
    """All six layers of a real sentence through AXI, random latency and back-pressure on every channel."""
    passes = sentence_of("6+4 bits")
    image = image_of(passes, CORE, FORMAT, base=BASE)
    run = Run(
        name="MiniLM", steps=job(image), base=BASE, memory=image.memory, seed=4, max_cycles=200_000, **QUICK
    )
    (log,) = run_in_verilator(CONFIG, [run], state_seed=1, models="cocotbext-axi")
    assert mismatches(image, log, passes) == ()


@pytest.mark.full
@pytest.mark.parametrize("p_stall", [0.0, 0.5])
def test_minilm_at_other_rates(p_stall):
    passes = sentence_of("8 bits")
    image = image_of(passes, CORE, FORMAT, base=BASE)
    run = Run(
        name="MiniLM", steps=job(image), base=BASE, memory=image.memory, p_stall=p_stall, max_cycles=400_000
    )
    (log,) = run_in_verilator(CONFIG, [run], state_seed=2)
    assert mismatches(image, log, passes) == ()


def sentence_of(mode: str) -> list[Sentence]:
    """The sentence of the core's own test."""
    layers, settings = minilm(mode).layers, MODES[mode]
    bits = PlaneBits(k=settings.k_bits, v=settings.v_bits)
    return [Sentence(layers=[x.input for x in layers], results=[x.result for x in layers], bits=bits)]


@pytest.mark.parametrize(("state_seed", "models"), [(2, "cycles"), (3, "cocotbext-axi")])
def test_any_state_before_reset(state_seed, models):
    """Registers and memories begin with random bits: only reset, soft or hard, makes the design right."""
    image = image_of(SMALL, CORE, FORMAT, base=BASE)
    runs = [
        Run(name="full rate", steps=job(image), base=BASE, memory=image.memory, latency_cycles=1),
        Run(name="stalls", steps=[*job(image), *job(image)], base=BASE, memory=image.memory, **QUICK),
    ]
    for log in run_in_verilator(CONFIG, runs, state_seed=state_seed, models=models):
        assert mismatches(image, log, SMALL) == ()


def test_start_values_are_taken_away():
    text = emit(TOPS["system"], CONFIG).text
    bare = without_start_values(text)
    assert "'h0;" in text and "initial begin" in text
    assert set(re.findall(r"^  initial (\w+)", bare, re.MULTILINE)) == {"at_start"}
    assert set(re.findall(r"^  reg (?:\[[^]]*\] )?(\S+) += ", bare, re.MULTILINE)) <= {"at_start"}


def field(layout, name: str, part: str | None = None) -> tuple[int, int]:
    """First bit and width of a field of a payload."""
    outer = layout[name]
    if part is None:
        return outer.offset, outer.width
    inner = outer.shape[part]
    return outer.offset + inner.offset, inner.width


def poked(image: Image, n_bytes_before: int, place: tuple[int, int], value: int) -> Image:
    """The same with other bits in its first job's record at ``n_bytes_before``."""
    low, width = place
    memory = image.memory.copy()
    window = memory[n_bytes_before : n_bytes_before + 64]  # descriptors come first
    number = int.from_bytes(window.tobytes(), "little")
    number = number & ~((1 << width) - 1 << low) | value << low
    window[:] = np.frombuffer(number.to_bytes(64, "little"), np.uint8)
    return replace(image, memory=memory)


LAYER = layer_layout(CORE)
LAYER_AT = FORMAT.header_bytes
HEAD_AT = LAYER_AT + FORMAT.padded_bytes(-(-LAYER.size // 8))
"""Of a first job without given lists."""
BAD_LAYERS = {
    ("tokens", 0): DescriptorError.TOKENS,
    ("tokens", 3): DescriptorError.TOKENS,
    ("heads", 0): DescriptorError.HEADS,
    ("n_tokens", 0): DescriptorError.N_TOKENS,
    ("n_tokens", 1025): DescriptorError.N_TOKENS,
    ("n_heads", 0): DescriptorError.N_HEADS,
    ("n_heads", 65): DescriptorError.N_HEADS,
    ("n_heads", 2): DescriptorError.COUNTS,
    ("dim", 2): DescriptorError.DIM,
    ("k_bits", 5): DescriptorError.BITS,
    ("v_bits", 0): DescriptorError.BITS,
    ("n_values", 0): DescriptorError.N_VALUES,
    ("n_tokens_next", 0): DescriptorError.N_TOKENS_NEXT,
    ("n_heads_next", 0): DescriptorError.N_HEADS_NEXT,
    ("n_tokens", 65): DescriptorError.KEYS,
}
"""Field of the first layer, and what is wrong with a value of it; 64 keys with LSBs fit in half a buffer."""


def bad_jobs() -> dict[str, tuple[Image, list[Step], ErrorCode, int, int | None]]:
    """By name: image, register writes that spoil it, and the error, its detail and its job."""
    image = image_of(SMALL, CORE, FORMAT, base=BASE)
    given = image_of(SMALL[1:], CORE, FORMAT, base=BASE)
    descriptor = ErrorCode.DESCRIPTOR
    bad = {
        f"{name} {value}": (poked(image, LAYER_AT, field(LAYER, name), value), [], descriptor, detail, 0)
        for (name, value), detail in BAD_LAYERS.items()
    }
    head, ids = head_layout(CORE), ids_layout(CORE)
    for plane, part, value in (("k", "record_heads", 0), ("lsb", "record_heads", 5), ("q", "head", 3)):
        spoiled = poked(image, HEAD_AT, field(head, plane, part), value)
        bad[f"{plane} {part}"] = (spoiled, [], descriptor, DescriptorError.PLANE, 0)
    scores = HEAD_AT + 3 * 8  # six scores, two a beat, a word each
    spoiled = poked(given, scores, field(ids, "count"), 3)
    bad["hole in a list"] = (spoiled, [], descriptor, DescriptorError.LIST, 0)
    spoiled = poked(given, scores, field(ids, "last"), 1)
    bad["list ends early"] = (spoiled, [], descriptor, DescriptorError.LIST, 0)
    spoiled = poked(given, scores + 8, field(ids, "count"), 1)
    bad["more scores than tokens"] = (spoiled, [], descriptor, DescriptorError.LIST, 0)
    spoiled = poked(given, scores + 16, (0, CORE.id_bits), 3)
    sums = poked(given, LAYER_AT, field(LAYER, "rows"), ROWS["sum"])
    bad["sums over a list of heads"] = (sums, [], descriptor, DescriptorError.ROWS, 0)
    bad["head that is not there"] = (spoiled, [], descriptor, DescriptorError.LIST, 0)

    n_bytes = image.regions["descriptors"].n_bytes
    low = BASE & 0xFFFF_FFFF
    too_short, unaligned = ErrorCode.DESCRIPTOR_LENGTH, ErrorCode.UNALIGNED
    bad |= {
        "no layers": (image, write(N_LAYERS=0), ErrorCode.NO_LAYERS, 0, 0),
        "descriptors unaligned": (image, write(DESCRIPTOR_BASE_LO=low + 8), unaligned, 0, 0),
        "channel unaligned": (image, write(DRAM0_BASE_LO=low + 2048), unaligned, 1, 0),
        "output unaligned": (image, write(OUT_TOKENS_BASE_LO=low + 64), unaligned, 128 + 3, 0),
        "no descriptors": (image, write(DESCRIPTOR_BYTES=0), too_short, 0, 0),
        "descriptors too short": (image, write(DESCRIPTOR_BYTES=n_bytes - 8), too_short, 0, 3),
        "descriptors too long": (image, write(DESCRIPTOR_BYTES=n_bytes + 8), too_short, 1, 4),
        "a layer too many": (image, write(N_LAYERS=5), too_short, 0, 4),
        "planes outside": (image, write(DRAM0_BASE_HI=9), ErrorCode.DRAM_READ, 0, None),
        "descriptors outside": (image, write(DESCRIPTOR_BASE_HI=9), ErrorCode.DESCRIPTOR_READ, 0, 0),
        "outputs outside": (image, write(OUT_ROW_BASE_HI=9), ErrorCode.WRITE, 0, None),
    }
    for number, port in enumerate(FORMAT.output_names):
        name = FORMAT.output_names[port]
        bad[f"no room for {port}"] = (
            image,
            write(**{f"OUT_{name}_BYTES": 8}),
            ErrorCode.OUTPUT_FULL,
            number,
            None,
        )
    return bad


def faults() -> dict[str, tuple[int, ErrorCode]]:
    """SLVERR in mid-burst, in mid-run."""
    regions = image_of(SMALL, CORE, FORMAT, base=BASE).regions
    return {
        "plane": (regions["dram0"].address + 8, ErrorCode.DRAM_READ),
        "descriptor": (regions["descriptors"].address + 200, ErrorCode.DESCRIPTOR_READ),
        "row": (regions["o"].address + 3 * FORMAT.strides_bytes["o"] + 40, ErrorCode.WRITE),
        "last summary": (
            regions["o_summary"].address + 2 * FORMAT.strides_bytes["o_summary"],
            ErrorCode.WRITE,
        ),
    }


def error_run(
    name: str, image: Image, spoil: list[Step], seed: int, at: Sequence[int] = ()
) -> tuple[Run, Image]:
    """A job that fails, then one that must not be any the worse for it."""
    good = after(image)
    first = job(image)
    first[len(image.writes) : len(image.writes)] = spoil
    steps = [*first, *job(good)]
    memory = joined(image, good)
    return Run(name=name, steps=steps, base=BASE, memory=memory, faults=at, seed=seed, **QUICK), good


@MODELS
def test_errors_end_the_run_and_the_next_job_is_right(models):
    """Error code, detail and job, an interrupt, no transfer broken off; then a job as if from reset."""
    image = image_of(SMALL, CORE, FORMAT, base=BASE)
    made, expected = [], []
    for seed, (name, (bad, spoil, code, detail, number)) in enumerate(bad_jobs().items()):
        made.append(error_run(name, bad, spoil, seed))
        expected.append((code, detail, number))
    for seed, (name, (at, code)) in enumerate(faults().items()):
        made.append(error_run(f"fault in a {name}", image, [], seed, [at]))
        expected.append((code, 0, None))
    logs = run_in_verilator(CONFIG, [run for run, _ in made], state_seed=5, models=models)
    wrong = {}
    for (run, good), (code, detail, number), log in zip(made, expected, logs, strict=True):
        first = dict(zip(RESULTS, log.reads, strict=False))
        got = (first["STATUS"], first["IRQ_STATUS"], first["ERROR"])
        if got != (ERROR, 2, code | detail << 8) or number not in (None, first["ERROR_JOB"]):
            wrong[run.name] = [f"first job: {first}"]
        elif problems := mismatches(good, log, LITTLE):
            wrong[run.name] = problems
    assert wrong == {}


@MODELS
def test_soft_reset_at_any_time(models):
    """No interrupt, no error, no transfer broken off; the next job is right. Also twice in a row."""
    image = image_of(SMALL, CORE, FORMAT, base=BASE)
    good = after(image)
    setup = SOFTWARE.setup(image)
    runs = []
    for seed, cycles in enumerate((1, 7, 60, 200, 400, 700, 1100)):
        stop = write(CONTROL=SOFT_RESET) * (1 + seed % 2)
        steps = [
            *setup, *write(IRQ_ENABLE=3, CONTROL=START), ("wait", cycles), *read("STATUS"), *stop,
            ("until", ADDRESS["STATUS"], BUSY, 0), *read("STATUS", "ERROR", "IRQ_STATUS"), *job(good),
        ]  # fmt: skip
        runs.append(
            Run(name=str(cycles), steps=steps, base=BASE, memory=joined(image, good), seed=seed, **QUICK)
        )
    for run, log in zip(runs, run_in_verilator(CONFIG, runs, state_seed=6, models=models), strict=True):
        assert log.reads[:4] == [BUSY, 0, 0, 0], run.name
        assert mismatches(good, log, LITTLE) == (), run.name


@MODELS
def test_registers_hold_what_the_table_says(models):
    """Reset values, what can be written, what answers SLVERR, and that nothing can be changed while busy."""
    table = registers(CONFIG)
    names = [register.name for register in table]
    writable = [register for register in table if register.access == "rw"]
    image = image_of(SMALL, CORE, FORMAT, base=BASE)
    everything = {register.name: 0xA5A5_5A5B for register in writable}
    steps = [
        *read(*names),
        *write(**everything),
        *read(*(register.name for register in writable)),
        *write(STATUS=1),
        ("write", 0xFFC, 1),
        ("read", 0xFF8),
        *SOFTWARE.setup(image),
        *write(CONTROL=START, N_LAYERS=7, IRQ_ENABLE=2),
        *read("N_LAYERS", "IRQ_ENABLE"),
        ("until", ADDRESS["STATUS"], DONE, DONE),
        *read("IRQ_STATUS"),
        *write(IRQ_STATUS=2),
        *read("IRQ_STATUS"),
        *write(IRQ_STATUS=1),
        *read("IRQ_STATUS"),
    ]
    run = Run(name="registers", steps=steps, base=BASE, memory=image.memory, **QUICK)
    (log,) = run_in_verilator(CONFIG, [run], state_seed=7, models=models)
    assert log.problems == []
    n = len(names)
    assert dict(zip(names, log.reads[:n], strict=True)) == {one.name: one.reset for one in table}
    assert log.reads[names.index("ID")] == 0x51544554
    held = log.reads[n : n + len(writable)]
    assert held == [0xA5A5_5A5B & register.mask for register in writable]
    assert log.reads[n + len(writable) :] == [0, sum(len(one.layers) for one in SMALL), 2, 1, 1, 0]
    assert log.refused == [ADDRESS["STATUS"], 0xFFC, 0xFF8, ADDRESS["N_LAYERS"]]


WIDE = SystemConfig(
    core=attention_config(
        ChipConfig(
            name="wide",
            n_multipliers=64,
            kv_sram_bytes=12_288,
            n_dram_channels=2,
            softmax_lanes=2,
            topk=TopKConfig(lanes=4, n_max=64),
        )
    ),
    bus_bits=256,
)


@pytest.mark.full
@pytest.mark.parametrize("p_stall", [0.0, 0.3])
def test_two_wide_channels_in_amaranth(p_stall):
    """An atom a word, atoms dealt over two channels; the little sentence, then again."""
    image = image_of(LITTLE, WIDE.core, system_format(WIDE), base=BASE)
    run = Run(
        name="wide", steps=job(image) * 2, base=BASE, memory=image.memory, p_stall=p_stall, jitter_cycles=9
    )
    expected = case("golden", LITTLE, WIDE.core).expected
    (log,) = run_in_amaranth(WIDE, [run])
    assert Software(system_format(WIDE)).mismatches(image, log, expected) == ()
