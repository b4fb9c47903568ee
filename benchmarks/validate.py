# SPDX-License-Identifier: MIT
"""The cycle models against the RTL, output beat by output beat, for ``quartet validate``.

Each block runs its case vectors in Verilator at full rate, the attention core the workloads named here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from algo.attention.encoder import PACKAGED, Encoder, load_encoder
from algo.attention.models import weights_folder
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import run_on_chip
from hw.attention.config import AttentionConfig, attention_config
from hw.attention.vectors import Options, Sentence, Shape, case, generation, matrix_product, sentence
from hw.config import ChipConfig
from hw.fetch.cycles import MemoryTiming
from hw.harness import verilated
from hw.harness.job import Case, Log, judge
from hw.registry import BLOCKS
from sim.driver.layers import plane_bits

PRESETS = ("tiny", "edge")
CORE = "attention"
SEED = 1
MEMORY = MemoryTiming(latency_cycles=20)
SLOW_MEMORY = MemoryTiming(latency_cycles=150, interval_cycles=2)

_STATIC = Options(q_bits=8, k_bits=8, v_bits=8, progressive=False)
_PROGRESSIVE = Options(q_bits=10, k_bits=6, v_bits=6, threshold=1200)
_PRUNED: dict[str, Any] = {"token_keep": 0.7, "head_keep": 0.7, "value_keep": 0.5}

SENTENCES: dict[str, tuple[Shape, Options, MemoryTiming]] = {
    "1 token, 8 bits": (Shape(1, 4, 32, 2), _STATIC, MEMORY),
    "32 tokens, 8 bits": (Shape(32, 4, 32, 2), _STATIC, MEMORY),
    "64 tokens, 8 bits": (Shape(64, 2, 32, 1), _STATIC, MEMORY),
    "32 tokens, pruned, 8 bits": (Shape(32, 4, 32, 3), replace(_STATIC, **_PRUNED), MEMORY),
    "32 tokens, 6+4 bits": (Shape(32, 4, 32, 2), _PROGRESSIVE, MEMORY),
    "32 tokens, pruned, 6+4 bits": (Shape(32, 4, 32, 3), replace(_PROGRESSIVE, **_PRUNED), MEMORY),
    "32 tokens, pruned, 6+4 bits, slow memory": (
        Shape(32, 4, 32, 3),
        replace(_PROGRESSIVE, **_PRUNED),
        SLOW_MEMORY,
    ),
    "24 tokens of dimension 64, pruned, 6+4 bits": (
        Shape(24, 4, 64, 2),
        replace(_PROGRESSIVE, **_PRUNED),
        MEMORY,
    ),
    "96 tokens, streamed, 8 bits": (Shape(96, 2, 32, 1), replace(_STATIC, streamed=1.0), MEMORY),
}
"""Random encoder sentences: shape (tokens, heads, dimension of a head, layers), pruning, memory."""

N_NEW = 3
GENERATIONS: dict[str, tuple[Shape, Options]] = {
    "prompt of 16, 3 new tokens, 8 bits": (Shape(16, 4, 32, 2), _STATIC),
    "prompt of 16, 3 new tokens, pruned, 6+4 bits, paired heads": (
        Shape(16, 4, 32, 2),
        replace(_PROGRESSIVE, **_PRUNED, group_size=2, protect_last=True),
    ),
    "prompt of 16, 3 new tokens, pruned, 6+4 bits, streamed": (
        Shape(16, 4, 32, 2),
        replace(_PROGRESSIVE, **_PRUNED, protect_last=True, streamed=1.0),
    ),
}
"""Random causal prompts, and passes of one new token after them."""

MATRICES = {"200 x 300 weights, 8 bits": (200, 300, 8), "33 x 512 weights, 12 bits": (33, 512, 12)}
"""Matrix-vector products: outputs, inputs, bits of a weight."""

TEXT = (
    "The committee praised the young director for a film that is funny, moving and far braver than anything "
    "else shown at the festival this year."
)
_TEXT_PRUNED: dict[str, Any] = {
    "token_keep": 0.5,
    "head_keep": 0.8,
    "value_keep": 0.6,
    "lsb_threshold": 0.3,
}
TEXTS = {
    "MiniLM, 30 tokens, 8 bits": CascadeSettings(k_bits=8, v_bits=8),
    "MiniLM, 30 tokens, pruned, 8 bits": CascadeSettings(k_bits=8, v_bits=8, **_TEXT_PRUNED),
    "MiniLM, 30 tokens, pruned, 6+4 bits": CascadeSettings(k_bits=6, v_bits=6, lsb_bits=4, **_TEXT_PRUNED),
}
"""``TEXT`` through all six layers of the packaged model."""


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """One run of one block from reset, at full rate."""

    preset: str
    block: str
    workload: str
    n_beats: int
    """Output beats whose cycle the model gives."""
    rtl_cycles: int
    """First input transfer to the last of those beats, both counted: measured in RTL."""
    model_cycles: int
    """The same by the cycle model."""
    difference_cycles: int
    """RTL minus model, of the beat in which they differ most."""
    problems: tuple[str, ...]
    """One line a stream whose beats or cycles differ."""


def missing_texts() -> str | None:
    """Why the sentences through MiniLM are left out here, or None where its package is installed."""
    try:
        weights_folder("minilm", PACKAGED)
    except FileNotFoundError as error:
        return f"MiniLM's sentences: {error}"
    return None


def check(block_names: Sequence[str], chips: Sequence[ChipConfig]) -> None:
    """ValueError where a block does not exist on a chip, or a workload does not fit its core."""
    for chip in chips:
        for name in block_names:
            BLOCKS[name].config(chip)
        if CORE in block_names:
            sentences = [(shape, options, 0) for shape, options, _ in SENTENCES.values()]
            generations = [(shape, options, N_NEW) for shape, options in GENERATIONS.values()]
            largest = max(n_out for n_out, _, _ in MATRICES.values())
            if largest > attention_config(chip).n_max:
                raise ValueError(f"topk.n_max must be at least {largest} to validate, not {chip.topk.n_max}")
            for shape, options, n_new in sentences + generations:
                attention_config(chip).check_run(
                    shape.n_tokens + n_new,
                    shape.n_heads,
                    shape.head_dim,
                    progressive=options.progressive,
                    streamed=options.streamed > 0,
                )


def validate(
    block_names: Sequence[str], chips: Sequence[ChipConfig], *, texts: bool, n_jobs: int = 1
) -> Iterator[list[ValidationRow]]:
    """The rows of each block on each chip, a list as soon as it is there, in any order.

    ``texts``: with MiniLM's sentences, which need its package.
    """
    tasks = [(name, chip) for name in block_names for chip in chips]
    tasks.sort(key=lambda task: task[0] != CORE)  # the longest first
    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    yield from parallel(delayed(_validate_block)(name, chip, texts) for name, chip in tasks)


def _validate_block(name: str, chip: ChipConfig, texts: bool) -> list[ValidationRow]:
    block = BLOCKS[name]
    config = block.config(chip)
    cases = core_cases(config, texts=texts) if name == CORE else block.cases(config, seed=SEED, n_random=5)
    timed = [one for one in cases if one.expected_cycles]
    if not timed:  # no cycle model: nothing to build for
        return []
    logs = verilated.run_cases(block, config, timed)
    return [_row(chip.name, name, *run) for run in zip(timed, logs, strict=True)]


def core_cases(config: AttentionConfig, *, texts: bool) -> list[Case]:
    """The attention core's workloads with their golden results and cycles."""
    rng = np.random.default_rng(SEED)
    cases = [
        case(name, [sentence(shape, options, config, rng)], config, memory=memory)
        for name, (shape, options, memory) in SENTENCES.items()
    ]
    for name, (shape, options) in GENERATIONS.items():
        passes = generation(shape, replace(options, rows="one"), N_NEW, config, rng, sequence=0)
        cases.append(case(name, passes, config, memory=MEMORY))
    for name, (n_out, n_in, weight_bits) in MATRICES.items():
        product = matrix_product(n_out, n_in, weight_bits, config, rng)
        cases.append(case(name, [product], config, memory=MEMORY))
    if texts:
        encoder = load_encoder("minilm")
        cases += [
            case(name, [_of_text(encoder, settings, config)], config, memory=MEMORY)
            for name, settings in TEXTS.items()
        ]
    return cases


def _of_text(encoder: Encoder, settings: CascadeSettings, config: AttentionConfig) -> Sentence:
    layers = run_on_chip(encoder, TEXT, settings, config).layers
    return Sentence(
        layers=[layer.input for layer in layers],
        results=[layer.result for layer in layers],
        bits=plane_bits(settings),
    )


def _row(preset: str, block: str, one: Case, log: Log) -> ValidationRow:
    of_streams = [(log.since_first_input(port), model) for port, model in one.expected_cycles.items()]
    differences = np.concatenate([rtl[: len(model)] - model[: len(rtl)] for rtl, model in of_streams])
    return ValidationRow(
        preset=preset,
        block=block,
        workload=one.name,
        n_beats=sum(len(model) for _, model in of_streams),
        rtl_cycles=max(int(rtl.max(initial=0)) for rtl, _ in of_streams),
        model_cycles=max(int(model.max(initial=0)) for _, model in of_streams),
        difference_cycles=int(differences[np.abs(differences).argmax()]) if differences.size else 0,
        problems=judge(one, log).problems,
    )


@dataclass(frozen=True, kw_only=True)
class ValidationLine:
    """A line of the table: one workload of the core, or all cases of another block."""

    preset: str
    workload: str
    n_beats: int
    rtl_cycles: int
    """Summed over the cases."""
    model_cycles: int
    difference_cycles: int
    """Of the beat in which they differ most."""
    is_equal: bool
    """All beats, in value and in cycle."""


def table_lines(rows: Sequence[ValidationRow]) -> list[ValidationLine]:
    """In the order of ``rows``, but those that differ last, the worst of them at the end."""
    groups: dict[tuple[str, str, str], list[ValidationRow]] = {}
    for row in rows:
        own = row.workload if row.block == CORE else ""
        groups.setdefault((row.preset, row.block, own), []).append(row)
    lines = []
    for (preset, block, own), members in groups.items():
        worst = max(members, key=lambda row: abs(row.difference_cycles))
        lines.append(
            ValidationLine(
                preset=preset,
                workload=f"{block}: {own or _n_cases(len(members))}",
                n_beats=sum(row.n_beats for row in members),
                rtl_cycles=sum(row.rtl_cycles for row in members),
                model_cycles=sum(row.model_cycles for row in members),
                difference_cycles=worst.difference_cycles,
                is_equal=not any(row.problems for row in members),
            )
        )
    return sorted(lines, key=lambda line: (not line.is_equal, abs(line.difference_cycles)))


def _n_cases(n: int) -> str:
    return f"{n} case{'s' * (n > 1)}"
