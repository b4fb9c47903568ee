# SPDX-License-Identifier: MIT
"""Sentences for the attention core, and all that must come out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.confidence.config import LSB_BITS
from hw.fetch.config import ATOM_BYTES
from hw.fetch.cycles import MemoryTiming
from hw.fetch.layout import Plane
from hw.fetch.vectors import memories
from hw.harness.job import Beats, Case, pack_fields
from hw.softmax.config import row_scale
from hw.stream.rows import dense_beats

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig
from .cycles import LayerTrace, replay
from .golden import AttentionGolden, LayerResult
from .layers import HeadInput, LayerInput
from .program import PlaneBits, Program, program
from .trace import traces

MEMORY = MemoryTiming(latency_cycles=20)
"""Of the sentences here."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a random sentence."""

    n_tokens: int
    n_heads: int
    head_dim: int
    n_layers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a random sentence is pruned and quantised."""

    token_keep: float = 1.0
    """Share of a layer's tokens that go on to the next; heads and values likewise."""
    head_keep: float = 1.0
    value_keep: float = 1.0
    q_bits: int = 12
    k_bits: int = 8
    v_bits: int = 8
    progressive: bool = True
    threshold: int = 400
    favourite: int | None = None
    """A token to which all others attend."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence:
    """One sentence: what the core is given, and what golden makes of it."""

    layers: Sequence[LayerInput]
    results: Sequence[LayerResult]
    bits: PlaneBits


def sentence(shape: Shape, options: Options, config: AttentionConfig, rng: np.random.Generator) -> Sentence:
    """Random numbers of full range, so that sums come to their limits; scales at which softmax decides."""
    golden = AttentionGolden(config, shape.n_tokens, shape.n_heads)
    layers, results = [], []
    for _ in range(shape.n_layers):
        layer = LayerInput(
            heads=[_head(shape, options, rng) for _ in range(shape.n_heads)],
            progressive=options.progressive,
            threshold=options.threshold,
            n_values=_share(options.value_keep, len(golden.tokens)),
            out_shift=int(rng.integers(8, 13)),
            n_tokens_next=_share(options.token_keep, len(golden.tokens)),
            n_heads_next=_share(options.head_keep, len(golden.heads)),
            head_shift=int(rng.integers(0, 3)),
        )
        layers.append(layer)
        results.append(golden.layer(layer))
    bits = PlaneBits(q=options.q_bits, k=options.k_bits, v=options.v_bits)
    return Sentence(layers=layers, results=results, bits=bits)


def _share(ratio: float, n: int) -> int:
    return max(1, int(ratio * n))


def _head(shape: Shape, options: Options, rng: np.random.Generator) -> HeadInput:
    lsb_bits = LSB_BITS * options.progressive

    def numbers(bits: int) -> torch.Tensor:
        bound = 1 << (bits - 1)
        values = rng.integers(-bound, bound, (shape.n_tokens, shape.head_dim))
        extreme = rng.random(values.shape) < 0.02
        return torch.from_numpy(np.where(extreme, rng.choice([-bound, bound - 1], values.shape), values))

    q, k = numbers(options.q_bits), numbers(options.k_bits + lsb_bits)
    if options.favourite is not None:
        q = q.abs().clamp(max=(1 << (options.q_bits - 1)) - 1)
        k[options.favourite] = (1 << (options.k_bits + lsb_bits - 1)) - 1
    largest = 2.0 ** (options.q_bits + options.k_bits + lsb_bits - 2) * shape.head_dim**0.5
    step = float(rng.uniform(1, 8)) / largest
    return HeadInput(
        q=q,
        k=k,
        v=numbers(options.v_bits),
        msb_scale=row_scale(step * (1 << lsb_bits)),
        lsb_scale=row_scale(step),
    )


def case(
    name: str,
    sentences: Sequence[Sentence],
    config: AttentionConfig,
    *,
    memory: MemoryTiming = MEMORY,
    jitter_cycles: int = 0,
    max_cycles: int | None = None,
) -> Case:
    """Sentences through the core, one after the other; each in a part of the memory of its own.

    With ``jitter_cycles`` the memory answers after a random time, see :class:`hw.harness.memory.Memory`.
    """
    programs: list[Program] = []
    timed: list[LayerTrace] = []
    for one in sentences:
        before = sum(len(done.atoms) for done in programs)
        programs.append(program(one.layers, one.bits, config, first_atom=before))
        timed += traces(one.layers, one.results, one.bits, first_atom=before)
    results = [result for one in sentences for result in one.results]
    n_rows = sum(len(result.order) for result in results)
    atoms = np.concatenate([one.atoms for one in programs])
    return Case(
        name=name,
        inputs={
            "i_layer": np.concatenate([one.layers for one in programs]),
            "i_head": np.concatenate([one.heads for one in programs]),
        },
        expected={
            "o": np.concatenate([_outputs(result, config) for result in results]),
            "o_token_importance": _elements([r.token_importance for r in results], config),
            "o_head_importance": _elements([r.head_importance for r in results], config),
            "o_tokens": _ids([r.next_tokens for r in results], config),
            "o_heads": _ids([r.next_heads for r in results], config),
            "o_summary": np.concatenate([_summaries(one) for one in sentences]),
        },
        expected_cycles={} if jitter_cycles else replay(timed, config, memory).by_stream,
        memories=memories(atoms, config.fetch.crossbar, memory, jitter_cycles),
        max_cycles=max_cycles or 3000 + 400 * n_rows,
    )


def _outputs(result: LayerResult, config: AttentionConfig) -> Beats:
    heads, rows, used_lsb = (np.array(column) for column in zip(*result.order, strict=True))
    data = np.zeros((len(rows), config.pv.max_head_dim), dtype=np.int64)
    outputs = result.outputs.numpy()
    data[:, : outputs.shape[2]] = outputs[heads, rows]
    mask = (1 << config.pv.element_bits) - 1
    return pack_fields(
        [
            (result.heads.numpy()[heads], HEAD_BITS),
            (rows, config.id_bits),
            (used_lsb.astype(np.int64), 1),
            (data & mask, config.pv.element_bits),
        ]
    )


def _elements(lists: Sequence[torch.Tensor], config: AttentionConfig) -> Beats:
    return dense_beats([x.numpy() for x in lists], config.lanes, config.token_importance.element_bits)


def _ids(lists: Sequence[torch.Tensor], config: AttentionConfig) -> Beats:
    return dense_beats([x.numpy() for x in lists], config.lanes, config.id_bits)


def _summaries(one: Sentence) -> Beats:
    rows = [_summary(layer, result, one.bits) for layer, result in zip(one.layers, one.results, strict=True)]
    widths = (TRAFFIC_BITS, TRAFFIC_BITS, COUNT_BITS, COUNT_BITS)
    return pack_fields(list(zip(np.array(rows, dtype=np.int64).T, widths, strict=True)))


def _summary(layer: LayerInput, result: LayerResult, bits: PlaneBits) -> tuple[int, int, int, int]:
    """Bytes wanted, bytes of the atoms that hold them, rows, rows with LSBs.

    Each surviving head's queries, keys and values once; its LSB plane if any of its rows needed it.
    """
    n_tokens, head_dim = layer.heads[0].q.shape
    ideal = moved = 0
    for place, head in enumerate(result.heads.tolist()):
        widths = [bits.q, bits.k, bits.v]
        if bool(result.used_lsb[place].any()):
            widths.append(LSB_BITS)
        for width in widths:
            plane = Plane(
                base_atom=0, n_heads=len(layer.heads), n_tokens=n_tokens, head_dim=head_dim, bits=width
            )
            request = plane.request(head, 1)
            ideal += request.ideal_bytes(len(result.tokens))
            moved += request.moved_bytes(len(result.tokens))
    assert moved % ATOM_BYTES == 0
    return ideal, moved, len(result.order), int(result.used_lsb.sum())


def cases(config: AttentionConfig, *, seed: int, n_random: int) -> list[Case]:
    """Chosen corners, then ``n_random`` sentences of any shape, some of them with a memory that dawdles."""
    rng = np.random.default_rng(seed)
    small, large = config.qk.head_dims[0], config.qk.head_dims[-1]
    corners = {
        "one token, one head": (Shape(1, 1, small, 1), Options()),
        "nothing pruned": (Shape(5, 2, small, 2), Options()),
        "pruned to one": (Shape(9, 3, small, 3), Options(token_keep=0.4, head_keep=0.5, value_keep=0.5)),
        # The list's first lines decide: the rest of it is read when the new list is complete.
        "first of many kept": (
            Shape(19, 1, small, 3),
            Options(token_keep=0.06, favourite=1, progressive=False),
        ),
        "every row recomputed": (Shape(6, 2, small, 2), Options(k_bits=6, threshold=4095, head_keep=0.5)),
        "some rows recomputed": (Shape(11, 2, small, 2), Options(k_bits=4, threshold=1200, token_keep=0.7)),
        "no row recomputed": (Shape(4, 2, small, 1), Options(k_bits=6, threshold=0)),
        "narrow planes": (
            Shape(7, 5, small, 1),
            Options(k_bits=10, v_bits=6, q_bits=10, progressive=False),
        ),
        "largest dimension": (Shape(5, 2, large, 2), Options(token_keep=0.8, value_keep=0.7)),
    }
    made = {name: sentence(*chosen, config, rng) for name, chosen in corners.items()}
    runs = [case(name, [one], config) for name, one in made.items()]
    one_after_another = [made[name] for name in ("pruned to one", "some rows recomputed", "narrow planes")]
    runs.append(case("sentence after sentence", one_after_another, config))
    for number in range(n_random):
        one = sentence(*_any(config, rng), config, rng)
        runs.append(case(f"random {number}", [one], config, jitter_cycles=30 * (number % 2)))
    return runs


def _any(config: AttentionConfig, rng: np.random.Generator) -> tuple[Shape, Options]:
    options = Options(
        token_keep=float(rng.uniform(0.3, 1)),
        head_keep=float(rng.uniform(0.3, 1)),
        value_keep=float(rng.uniform(0.2, 1)),
        q_bits=int(rng.choice([8, 10, 12])),
        k_bits=int(rng.choice([4, 6, 8, 10, 12])),
        v_bits=int(rng.choice([4, 6, 8, 10, 12])),
        progressive=bool(rng.random() < 0.5),
        threshold=int(rng.choice([0, 400, 800, 1600, 4095])),
    )
    n_tokens = int(rng.integers(2, 20))
    return Shape(n_tokens, int(rng.integers(1, 5)), int(rng.choice(config.qk.head_dims)), 2), options
