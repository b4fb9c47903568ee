# SPDX-License-Identifier: MIT
"""A real text through a real model, its cascade decided by the chip, for ``quartet run``.

With bits given the whole attention is computed by the attention core. Without bits the model is in float and
the top-k engine selects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from algo.attention import decoder, encoder
from algo.attention.cascade import Capture
from algo.attention.decoder import Decoder, load_decoder
from algo.attention.encoder import Encoder, load_encoder
from algo.attention.models import FAMILIES, model_type, weights_folder
from algo.attention.record import AttentionRecord
from algo.attention.settings import CascadeSettings
from benchmarks.chip_run import generate_on_chip, run_on_chip
from benchmarks.savings import Savings, savings
from benchmarks.selection import Selection, run_request
from benchmarks.system_run import run_on_system
from hw.attention.config import AttentionConfig, attention_config
from hw.attention.golden import LayerResult
from hw.attention.layers import LayerInput
from hw.attention.program import unpack_summary
from hw.attention.vectors import Sentence, case
from hw.config import ChipConfig
from hw.harness import verilated
from hw.harness.job import judge
from hw.qk.cycles import row_cycles
from hw.registry import BLOCKS
from hw.system.config import system_config
from hw.topk.config import TopKConfig
from sim.driver.layers import DecoderBuilder, LayerBuilder, plane_bits
from sim.memory import memory_timing
from sim.result import SimResult, on_core, simulate
from sim.workload import recorded, unpruned

DENSE_PROMPT = (
    "the prompt is not pruned, so that every layer has K and V of the same tokens; the first new token sees "
    "all of it"
)
"""Of a decoder on the attention core."""

SYSTEM_ORIGIN = (
    "from start to interrupt, measured in simulated Verilog of the whole system, memory at random rates"
)
SYSTEM_SLACK = 4
"""Cycles that a memory at random rates is allowed, in those of a case at full rate."""


class TopKEngine:
    """Selects for the cascade as the chip does: scores in fixed point, ties to the earlier position.

    The scores of a request share one binary point, which puts the largest just below 2**element_bits; they
    are rounded to nearest (half to even) and saturate.
    """

    def __init__(self, config: TopKConfig, *, rtl: bool) -> None:
        self.config, self.rtl = config, rtl
        self.selections: list[Selection] = []

    def quantise(self, scores: torch.Tensor) -> torch.Tensor:
        """int64[n] in units of a power of two, for non-negative scores float[n]."""
        largest = float(scores.max()) if scores.numel() else 0.0
        fraction_bits = self.config.element_bits - math.frexp(largest)[1]
        scaled = torch.round(scores.double() * 2.0**fraction_bits).to(torch.int64)
        return scaled.clamp(max=(1 << self.config.element_bits) - 1)

    def select(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        """Positions of the k largest scores, ascending; from the simulated Verilog where ``rtl``."""
        elements, seed = self.quantise(scores).tolist(), len(self.selections) + 1
        self.selections.append(run_request(elements, k, self.config, seed=seed, rtl=self.rtl))
        return torch.tensor(self.selections[-1].indices, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The tokens and heads of one layer."""

    layer: int
    positions: tuple[int, ...]
    n_heads: int
    selection_cycles: int | None
    """Top-k engine for the tokens of this layer, first score in to last index out; None if it did not run."""


@dataclass(frozen=True, kw_only=True)
class CoreRun:
    """All passes on the attention core: golden model, and simulated Verilog where asked for."""

    preset: str
    n_rows: int
    n_rows_with_lsb: int
    ideal_bytes: int
    """Of Q, K, V and LSBs wanted."""
    moved_bytes: int
    """Of the atoms that hold them."""
    cycles: int
    """First descriptor in to last summary out, the memory that of ``memory``."""
    model_cycles: int
    """The same by the cycle model: equal, but where ``cycles`` are those of the whole system."""
    memory: str
    """Latency and peak of the preset's memory, in words."""
    first_array_cycles: int
    """What the first array alone needs: the bound of this run."""
    origin: str
    """Of the cycles: the cycle model, or the simulated Verilog."""
    axi_bytes: Mapping[str, int] = field(default_factory=dict)
    """What each kind of master of the system moved; then ``cycles`` are those from start to interrupt."""


@dataclass(frozen=True, kw_only=True)
class PrunedRun:
    """A text's pruned run beside its full one."""

    model: str
    tokens: tuple[str, ...]
    """All of them; what a layer holds are positions into this."""
    layers: tuple[LayerRow, ...]
    """Of the encoder's pass, or of the last generated token."""
    outputs: dict[str, str]
    """Generated text of the full and the pruned model; empty for an encoder."""
    quality: dict[str, float]
    savings: Savings
    chip: SimResult
    """The pruned run on the whole attention core: closed form, but cycles and traffic of ``core``."""
    dense_chip: SimResult
    """The dense one, at the on-chip width: closed form."""
    n_selections: int
    engine_cycles: int
    """Sum over the selections."""
    engine: str
    mismatches: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know of this run."""
    core: CoreRun | None = None
    """Where the whole attention was the chip's; then the selections are the core's own."""

    @property
    def mean_token_keep(self) -> float:
        """Tokens over the shown layers, as a share of the unpruned ones."""
        return sum(len(row.positions) for row in self.layers) / (len(self.tokens) * len(self.layers))


def load_model(name_or_folder: str, n_layers: int | None = None) -> Encoder | Decoder:
    """``minilm``, ``smollm2``, or a local Hugging Face folder of a known family.

    ``n_layers``: of a decoder the first so many layers. FileNotFoundError or ValueError, one line, otherwise.
    """
    packaged = {**encoder.PACKAGED, **decoder.PACKAGED}
    is_decoder = name_or_folder in decoder.PACKAGED
    if name_or_folder not in packaged:
        family = FAMILIES.get(model_type(weights_folder(name_or_folder, packaged)) or "")
        is_decoder = family is not None and family.causal
    if is_decoder:
        return load_decoder(name_or_folder, n_layers=n_layers)
    if n_layers is not None:
        raise ValueError("layers must not be given for an encoder: all of its layers run")
    return load_encoder(name_or_folder)


def check_length(n_tokens: int, config: TopKConfig) -> None:
    """ValueError where a text, with what is generated, is longer than the top-k engine takes."""
    if n_tokens > config.n_max:
        raise ValueError(
            f"text must have at most {config.n_max} tokens for this top-k engine, not {n_tokens}"
        )


def run_encoder(
    model: Encoder, ids: torch.Tensor, settings: CascadeSettings, chip: ChipConfig, *, rtl: bool
) -> tuple[PrunedRun, AttentionRecord]:
    """Token ids int64[n] once full and once pruned; quality is the similarity of the embeddings."""
    engine = TopKEngine(chip.topk, rtl=rtl)
    full = model.run(ids)
    pruned = model.run(ids, settings, select=engine.select, capture=_capture(settings))
    assert pruned.record is not None
    similarity = float(torch.cosine_similarity(full.embedding, pruned.embedding, dim=0))
    run = _assemble(
        model, ids, pruned.record, chip, engine, {}, {"cosine similarity of embeddings": similarity}
    )
    return run, pruned.record


def check_on_core(
    model: Encoder, n_tokens: int, settings: CascadeSettings, chip: ChipConfig
) -> AttentionConfig:
    """The core; ValueError where it cannot run this text with these settings."""
    config = attention_config(chip)
    LayerBuilder(config, settings, model.shape, n_tokens)
    return config


def run_encoder_on_core(
    model: Encoder,
    ids: torch.Tensor,
    settings: CascadeSettings,
    chip: ChipConfig,
    *,
    rtl: bool,
    axi: bool = False,
) -> tuple[PrunedRun, AttentionRecord]:
    """Token ids int64[n] with the chip's attention, bit for bit; with ``rtl`` also in its Verilog.

    Then every output, list, importance score, LSB decision, counter and cycle is compared with the models.
    With ``axi`` as well it is the Verilog of the whole system (:func:`benchmarks.system_run.run_on_system`),
    which has no cycles to be compared with.
    """
    config = check_on_core(model, len(ids), settings, chip)
    full, in_float = model.run(ids), model.run(ids, settings)
    on_chip = run_on_chip(model, ids, settings, config)
    sentence = Sentence(
        layers=[layer.input for layer in on_chip.layers],
        results=[layer.result for layer in on_chip.layers],
        bits=plane_bits(settings),
    )
    core, mismatches = _core_run([sentence], chip, config, rtl=rtl, axi=axi)
    quality = {
        "cosine similarity of embeddings, chip and full": _cosine(on_chip.embedding, full.embedding),
        "chip and float, pruned alike": _cosine(on_chip.embedding, in_float.embedding),
        "float, pruned alike, and full": _cosine(in_float.embedding, full.embedding),
    }
    engine = TopKEngine(chip.topk, rtl=rtl)
    run = _assemble(model, ids, on_chip.record, chip, engine, {}, quality)
    return replace(_on_core(run, core), mismatches=mismatches), on_chip.record


def check_decoder_on_core(
    model: Decoder, n_prompt: int, n_new: int, settings: CascadeSettings, chip: ChipConfig
) -> AttentionConfig:
    """The core; ValueError where it cannot run this prompt, with what is generated, with these settings."""
    config = attention_config(chip)
    DecoderBuilder(config, settings, model.shape, n_prompt, n_new)
    return config


def run_decoder_on_core(
    model: Decoder,
    ids: torch.Tensor,
    n_new: int,
    settings: CascadeSettings,
    chip: ChipConfig,
    *,
    rtl: bool,
    axi: bool = False,
) -> tuple[PrunedRun, AttentionRecord]:
    """Generate ``n_new`` tokens after ids int64[n] with the chip's attention, bit for bit.

    With ``rtl`` also in its Verilog, with ``axi`` in that of the system, all passes one after the other: then
    everything that comes out is compared, as in :func:`run_encoder_on_core`.
    """
    config = check_decoder_on_core(model, len(ids), n_new, settings, chip)
    full, in_float = model.run(ids, n_new=n_new), model.run(ids, settings, n_new=n_new)
    on_chip = generate_on_chip(model, ids, settings, config, n_new)
    core, mismatches = _core_run(on_chip.sentences, chip, config, rtl=rtl, axi=axi)
    new = {
        name: run.token_ids[len(ids) :]
        for name, run in (("full", full), ("float, pruned", in_float), ("chip", on_chip))
    }
    texts = {"full": full.text, "float, pruned": in_float.text, "chip": on_chip.text}
    quality = {
        f"leading tokens that agree, chip and {name}": _n_agreeing(new["chip"], new[name])
        for name in ("float, pruned", "full")
    }
    quality["cosine similarity of the first new token's scores, chip and full"] = _cosine(
        on_chip.logits[0], full.logits[0]
    )
    run = _assemble(
        model,
        on_chip.token_ids[:-1],
        on_chip.record,
        chip,
        TopKEngine(chip.topk, rtl=rtl),
        {name: text or str(new[name].tolist()) for name, text in texts.items()},
        quality,
    )
    return replace(_on_core(run, core), mismatches=mismatches, notes=(DENSE_PROMPT,)), on_chip.record


def truncated(run: PrunedRun, n_layers: int) -> PrunedRun:
    """The same with a note that says so."""
    note = f"a truncated model: its first {n_layers} layers, then norm and head; what it writes means little"
    return replace(run, notes=(note, *run.notes))


def _n_agreeing(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a == b).long().cumprod(0).sum())


def _core_run(
    sentences: Sequence[Sentence], chip: ChipConfig, config: AttentionConfig, *, rtl: bool, axi: bool
) -> tuple[CoreRun, tuple[str, ...]]:
    """Counters and cycles of passes one after the other; with ``rtl`` also what differs in the Verilog."""
    one = case("text", sentences, config, memory=memory_timing(chip))
    model_cycles = int(one.expected_cycles["o_summary"][-1])
    cycles, origin = model_cycles, "cycle model"
    mismatches: tuple[str, ...] = ()
    axi_bytes: Mapping[str, int] = {}
    if axi:
        on_system = run_on_system(
            sentences, one.expected, system_config(chip), max_cycles=SYSTEM_SLACK * one.max_cycles
        )
        cycles, origin, mismatches = on_system.cycles, SYSTEM_ORIGIN, on_system.mismatches
        axi_bytes = on_system.bytes_by_master
    elif rtl:
        verdict = judge(one, verilated.run_cases(BLOCKS["attention"], config, [one])[0])
        cycles, origin, mismatches = verdict.n_cycles, "measured in simulated Verilog", verdict.problems
    summaries = unpack_summary(one.expected["o_summary"])
    core = CoreRun(
        preset=chip.name,
        n_rows=sum(summary["n_rows"] for summary in summaries),
        n_rows_with_lsb=sum(summary["n_recomputed"] for summary in summaries),
        ideal_bytes=sum(summary["ideal_bytes"] for summary in summaries),
        moved_bytes=sum(summary["moved_bytes"] for summary in summaries),
        cycles=cycles,
        model_cycles=model_cycles,
        memory=_memory_text(chip),
        first_array_cycles=sum(
            _first_array_cycles(layer, result, config)
            for sentence in sentences
            for layer, result in zip(sentence.layers, sentence.results, strict=True)
        ),
        origin=origin,
        axi_bytes=axi_bytes,
    )
    return core, mismatches


def _memory_text(chip: ChipConfig) -> str:
    n = chip.n_dram_channels
    channels = f"{n} channel{'s' * (n > 1)} of {chip.dram_bytes_per_cycle} bytes a cycle"
    return f"memory of {chip.dram_latency_cycles} cycles, {channels}"


def _on_core(run: PrunedRun, core: CoreRun) -> PrunedRun:
    """With the cycles of the core's model and its traffic in place of the closed form's."""
    chip = on_core(run.chip, core.model_cycles, core.ideal_bytes, core.moved_bytes)
    return replace(run, core=core, chip=chip)


def _first_array_cycles(layer: LayerInput, result: LayerResult, config: AttentionConfig) -> int:
    """Rows, and those computed again, each over the keys that it sees."""
    n_keys = len(result.tokens)
    seen = np.arange(n_keys) + 1 if layer.rows == "causal" else np.array([n_keys])
    cycles = row_cycles(seen, result.outputs.shape[2], config.qk)
    return int(((1 + result.used_lsb.numpy()) * cycles).sum())


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def run_decoder(
    model: Decoder, ids: torch.Tensor, n_new: int, settings: CascadeSettings, chip: ChipConfig, *, rtl: bool
) -> tuple[PrunedRun, AttentionRecord]:
    """Generate ``n_new`` tokens after ids int64[n], full and pruned.

    Quality: the mean negative log-likelihood, nats a token, of the full model's text under either model
    (pruned with exact selection), and how many tokens of the two texts agree from the start.
    """
    engine = TopKEngine(chip.topk, rtl=rtl)
    full = model.run(ids, n_new=n_new)
    pruned = model.run(ids, settings, n_new=n_new, select=engine.select, capture=_capture(settings))
    assert pruned.record is not None
    target = full.token_ids[None]
    new = full.token_ids[len(ids) :], pruned.token_ids[len(ids) :]
    quality = {
        "nats/token of the full text, full model": float(model.score(target, len(ids)).mean()),
        "nats/token of the full text, pruned model": float(model.score(target, len(ids), settings).mean()),
        "leading tokens that agree": _n_agreeing(*new),
    }
    texts = {"full": full.text or str(new[0].tolist()), "pruned": pruned.text or str(new[1].tolist())}
    run = _assemble(model, pruned.token_ids[:-1], pruned.record, chip, engine, texts, quality)
    return run, pruned.record


def _capture(settings: CascadeSettings) -> Capture:
    """Integers where there are any."""
    return "integers" if settings.k_bits and settings.v_bits else "decisions"


def _assemble(
    model: Encoder | Decoder,
    ids: torch.Tensor,
    record: AttentionRecord,
    chip: ChipConfig,
    engine: TopKEngine,
    outputs: dict[str, str],
    quality: dict[str, float],
) -> PrunedRun:
    return PrunedRun(
        model=model.name,
        tokens=tuple(_words(model, ids)),
        layers=_layers(record, engine.selections),
        outputs=outputs,
        quality=quality,
        savings=savings(record),
        chip=simulate(recorded(record), chip),
        dense_chip=simulate(unpruned(record), chip),
        n_selections=len(engine.selections),
        engine_cycles=sum(selection.first_to_last_cycles for selection in engine.selections),
        engine="Verilog, simulated" if engine.rtl else "golden model, replayed cycles",
        mismatches=tuple(
            f"selection {number}: {mismatch}"
            for number, selection in enumerate(engine.selections)
            for mismatch in selection.mismatches
        ),
    )


def _layers(record: AttentionRecord, selections: Sequence[Selection]) -> tuple[LayerRow, ...]:
    """Rows of the last pass. In an encoder's single pass each layer that lost tokens had one selection."""
    left = iter(selections)
    by_engine = bool(selections)
    rows: list[LayerRow] = []
    for number, layer in enumerate(record.passes[-1]):
        cycles = None
        if by_engine and len(record.passes) == 1 and rows and layer.n_keys < len(rows[-1].positions):
            request = (len(rows[-1].positions), layer.n_keys)
            cycles = next(s.first_to_last_cycles for s in left if (s.n, len(s.indices)) == request)
        rows.append(
            LayerRow(
                layer=number,
                positions=tuple(layer.keys.tolist()),
                n_heads=len(layer.heads),
                selection_cycles=cycles,
            )
        )
    return tuple(rows)


def _words(model: Encoder | Decoder, ids: torch.Tensor) -> list[str]:
    if model.tokenizer is None:
        return [str(token) for token in ids.tolist()]
    pieces = model.tokenizer.convert_ids_to_tokens(ids.tolist())
    return [piece.replace("\u0120", "").replace("\u010a", "\\n") or "_" for piece in pieces]


def read_text(text: str | None, file: Path | None) -> str:
    """The text given directly or in a file; ValueError unless exactly one is given."""
    if (text is None) == (file is None):
        raise ValueError("give either --text or --file")
    return text if text is not None else Path(file or "").read_text()
