# SPDX-License-Identifier: MIT
"""Sentences, prompts and new tokens for the attention core, and all that must come out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from hw.confidence.config import LSB_BITS
from hw.fetch.config import ATOM_BYTES
from hw.fetch.cycles import MemoryTiming
from hw.fetch.vectors import memories
from hw.harness.job import Beats, Case, pack_fields
from hw.softmax.config import row_scale
from hw.stream.rows import dense_beats

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig
from .cycles import replay
from .golden import AttentionGolden, LayerResult
from .layers import GivenTokens, HeadInput, LayerInput, Rows
from .matrix import matrix_pass, most_parts
from .program import Pass, PlaneBits, Planes, changed_heads, id_beats, place_in_plane, planes_of, programs
from .trace import Sentence, traces

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
    """How a random pass is pruned and quantised."""

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
    rows: Rows = "all"
    protect_last: bool = False
    group_size: int = 1
    """Heads that share K and V."""
    token_shift: int = 0
    streamed: float = 0.0
    """Share of the layers that are streamed."""


def sentence(shape: Shape, options: Options, config: AttentionConfig, rng: np.random.Generator) -> Sentence:
    """Random numbers of full range, so that sums come to their limits; scales at which softmax decides."""
    return computed(
        Pass(layers=_layers(shape, options, shape.n_tokens, {}, rng), bits=_bits(options)), config
    )


def one_token(
    shape: Shape,
    options: Options,
    given: GivenTokens,
    config: AttentionConfig,
    rng: np.random.Generator,
    heads: Mapping[int, Sequence[int]] | None = None,
) -> Sentence:
    """A pass that begins with a given list, random as :func:`sentence`; ``shape.n_tokens`` positions."""
    n_tokens = min(given.n_keep, len(given.tokens))
    layers = _layers(shape, options, n_tokens, heads or {}, rng)
    return computed(Pass(layers=layers, bits=_bits(options), given=given, heads=heads or {}), config)


def generation(
    shape: Shape,
    options: Options,
    n_new: int,
    config: AttentionConfig,
    rng: np.random.Generator,
    *,
    sequence: int,
    halve: bool = False,
) -> list[Sentence]:
    """A prompt of ``shape.n_tokens`` tokens, which all stay, and ``n_new`` passes of one token more.

    Between passes the importance of tokens lies outside, by position. A token that a layer drops is there
    again in the next pass; one that is evicted at its beginning is not.
    """
    n_all = shape.n_tokens + n_new
    layers = _layers(replace(shape, n_tokens=n_all), replace(options, rows="all"), n_all, {}, rng)
    prompt = [replace(_part(one, 0, shape.n_tokens, "causal"), n_tokens_next=n_all) for one in layers]
    done = [computed(Pass(layers=prompt, bits=_bits(options), sequence=sequence), config)]
    heads = changed_heads([result.heads.tolist() for result in done[0].results], shape.n_heads)
    importance = np.zeros(n_all, dtype=np.int64)
    tokens = np.arange(shape.n_tokens)
    for position in range(shape.n_tokens, n_all):
        for result in done[-1].results:
            importance[result.tokens] = result.token_importance
        tokens = np.append(tokens, position)
        n_keep = _share(options.token_keep, len(tokens))
        given = GivenTokens(tokens=tokens, importance=importance[tokens], n_keep=n_keep, halve=halve)
        new = []
        for layer in layers:
            n_keep = _share(options.token_keep, n_keep)
            new.append(replace(_part(layer, position, position + 1, "one"), n_tokens_next=n_keep))
        one = Pass(layers=new, bits=_bits(options), given=given, heads=heads, sequence=sequence)
        done.append(computed(one, config))
        tokens = done[-1].results[0].tokens.numpy()
    return done


def computed(one: Pass, config: AttentionConfig) -> Sentence:
    """The pass through the golden model."""
    first, given, n_heads = one.layers[0], one.given, len(one.layers[0].heads)
    if given is None:
        golden = AttentionGolden(config, one.n_positions, n_heads)
    else:
        golden = AttentionGolden.given(
            config,
            given.tokens,
            given.importance,
            given.n_keep,
            one.n_positions,
            n_heads,
            first.token_shift,
            given.halve,
            first.protect_last,
        )
    results = [golden.layer(layer, one.heads.get(number)) for number, layer in enumerate(one.layers)]
    known = {name.name: getattr(one, name.name) for name in fields(Pass)}
    return Sentence(**known, results=results, eviction=golden.eviction)


def _bits(options: Options) -> PlaneBits:
    return PlaneBits(q=options.q_bits, k=options.k_bits, v=options.v_bits)


def _part(layer: LayerInput, first: int, stop: int, rows: Rows) -> LayerInput:
    """Of all positions the queries ``first`` to ``stop``, and the keys up to them."""
    heads = [replace(head, q=head.q[first:stop], k=head.k[:stop], v=head.v[:stop]) for head in layer.heads]
    return replace(layer, heads=heads, rows=rows)


def _share(ratio: float, n: int) -> int:
    return max(1, int(ratio * n))


def _layers(
    shape: Shape,
    options: Options,
    n_tokens: int,
    given_heads: Mapping[int, Sequence[int]],
    rng: np.random.Generator,
) -> list[LayerInput]:
    """``n_tokens`` are present in the first one."""
    layers = []
    n_heads = shape.n_heads
    for number in range(shape.n_layers):
        if number in given_heads:
            n_heads = len(given_heads[number])
        layers.append(_layer(shape, options, n_tokens, n_heads, rng))
        n_tokens, n_heads = layers[-1].n_tokens_next, layers[-1].n_heads_next
    return layers


def _layer(
    shape: Shape, options: Options, n_tokens: int, n_heads: int, rng: np.random.Generator
) -> LayerInput:
    heads: list[HeadInput] = []
    for number in range(shape.n_heads):
        heads.append(_head(shape, options, heads[-1] if number % options.group_size else None, rng))
    return LayerInput(
        heads=heads,
        progressive=options.progressive,
        threshold=options.threshold,
        n_values=_share(options.value_keep, n_tokens),
        out_shift=int(rng.integers(8, 13)),
        n_tokens_next=_share(options.token_keep, n_tokens),
        n_heads_next=_share(options.head_keep, n_heads),
        token_shift=options.token_shift,
        head_shift=int(rng.integers(0, 3)),
        rows=options.rows,
        protect_last=options.protect_last,
        streamed=options.streamed > 0 and bool(rng.random() < options.streamed),
        groups=None if options.group_size == 1 else [n // options.group_size for n in range(shape.n_heads)],
    )


def _head(shape: Shape, options: Options, neighbour: HeadInput | None, rng: np.random.Generator) -> HeadInput:
    """With the K and V of its ``neighbour``, if that is of its group."""
    lsb_bits = LSB_BITS * options.progressive

    def numbers(n_rows: int, bits: int) -> torch.Tensor:
        bound = 1 << (bits - 1)
        values = rng.integers(-bound, bound, (n_rows, shape.head_dim))
        extreme = rng.random(values.shape) < 0.02
        return torch.from_numpy(np.where(extreme, rng.choice([-bound, bound - 1], values.shape), values))

    q = numbers(1 if options.rows == "one" else shape.n_tokens, options.q_bits)
    k = neighbour.k if neighbour else numbers(shape.n_tokens, options.k_bits + lsb_bits)
    if options.favourite is not None:
        q = q.abs().clamp(max=(1 << (options.q_bits - 1)) - 1)
        k[options.favourite] = (1 << (options.k_bits + lsb_bits - 1)) - 1
    largest = 2.0 ** (options.q_bits + options.k_bits + lsb_bits - 2) * shape.head_dim**0.5
    step = float(rng.uniform(1, 8)) / largest
    return HeadInput(
        q=q,
        k=k,
        v=neighbour.v if neighbour else numbers(shape.n_tokens, options.v_bits),
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
    """Passes through the core, one after the other; each sequence in a part of the memory of its own.

    With ``jitter_cycles`` the memory answers after a random time, see :class:`hw.harness.memory.Memory`.
    """
    program = programs(sentences, config)
    results = [result for one in sentences for result in one.results]
    selecting = [
        r
        for one in sentences
        for r, layer in zip(one.results, one.layers, strict=True)
        if layer.rows not in ("one", "sum")
    ]
    sums = [result.sums for result in results if result.sums is not None]
    token_lists = [kept for one in sentences for kept in _token_lists(one)]
    n_rows = sum(len(result.order) for result in results)
    timing = None if jitter_cycles else replay(traces(sentences), config, memory)
    n_scores = sum(len(result.tokens) * max(len(result.order), len(result.heads)) for result in results)
    budget_cycles = timing.n_cycles if timing else 40 * n_scores
    return Case(
        name=name,
        inputs=program.inputs,
        expected={
            "o": np.concatenate([_outputs(result, config) for result in results]),
            "o_token_importance": _elements([importance for importance, _ in token_lists], config),
            "o_head_importance": _elements([r.head_importance for r in selecting], config),
            "o_tokens": id_beats([kept for _, kept in token_lists], config),
            "o_heads": id_beats([r.next_heads for r in selecting], config),
            "o_summary": np.concatenate([_summaries(one) for one in sentences]),
            "o_sums": dense_beats(
                [total.numpy() & ((1 << config.sum_bits) - 1) for total in sums],
                config.confidence.lanes,
                config.sum_bits,
            ),
        },
        expected_cycles=timing.by_stream if timing else {},
        memories=memories(program.atoms, config.fetch.crossbar, memory, jitter_cycles),
        max_cycles=max_cycles or 3000 + 400 * n_rows + 400 * len(results) + budget_cycles,
    )


def _token_lists(one: Sentence) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every selection of tokens the elements, and what was kept."""
    first = [(one.eviction.importance, one.eviction.kept)] if one.eviction is not None else []
    return first + [(r.token_importance, r.next_tokens) for r in one.results if r.sums is None]


def _outputs(result: LayerResult, config: AttentionConfig) -> Beats:
    heads, rows, used_lsb = np.array(result.order, dtype=np.int64).reshape(-1, 3).T
    data = np.zeros((len(rows), config.pv.max_head_dim), dtype=np.int64)
    outputs = result.outputs.numpy()
    data[:, : outputs.shape[2]] = outputs[heads, rows]
    mask = (1 << config.pv.element_bits) - 1
    return pack_fields(
        [
            (result.heads.numpy()[heads], HEAD_BITS),
            (rows, config.id_bits),
            (used_lsb, 1),
            (data & mask, config.pv.element_bits),
        ]
    )


def _elements(lists: Sequence[torch.Tensor], config: AttentionConfig) -> Beats:
    return dense_beats([x.numpy() for x in lists], config.lanes, config.token_importance.element_bits)


def _summaries(one: Sentence) -> Beats:
    planes = planes_of([one])[0]
    rows = [_summary(*of_layer) for of_layer in zip(one.layers, one.results, planes, strict=True)]
    widths = (TRAFFIC_BITS, TRAFFIC_BITS, COUNT_BITS, COUNT_BITS)
    return pack_fields(list(zip(np.array(rows, dtype=np.int64).T, widths, strict=True)))


def _summary(layer: LayerInput, result: LayerResult, planes: Planes) -> tuple[int, int, int, int]:
    """Bytes wanted, bytes of the atoms that hold them, rows, rows with LSBs.

    Each surviving head's queries once; keys and values of each group of which a head survives once, and its
    LSB plane if any row of those heads needed it. Of a streamed layer, for each row the keys that it sees,
    their LSBs if it needed them, and the values that it keeps.
    """
    ideal = moved = 0

    def fetch(name: str, number: int, n_rows: int) -> None:
        nonlocal ideal, moved
        request = planes[name].request(number, 1)
        ideal += request.ideal_bytes(n_rows)
        moved += request.moved_bytes(n_rows)

    n_keys = len(result.tokens)
    n_queries = 1 if result.sums is not None else result.used_lsb.shape[1]
    used_lsb: dict[int, bool] = {}
    """By group."""
    for place, head in enumerate(result.heads.tolist()):
        fetch("q", place_in_plane(layer, "q", head), n_queries)
        group, rows = layer.head_groups[head], result.used_lsb[place].tolist()
        if result.sums is not None:
            fetch("k", group, n_keys)
        elif layer.streamed:
            for row, used in enumerate(rows):
                n_seen = row + 1 if layer.rows == "causal" else n_keys
                for name in ("k", "lsb") if used else ("k",):
                    fetch(name, group, n_seen)
                fetch("v", group, int(result.kept_values[place, row].sum()))
        else:
            used_lsb[group] = used_lsb.get(group, False) or any(rows)
    for group, used in used_lsb.items():
        for name in ("k", "v", "lsb") if used else ("k", "v"):
            fetch(name, group, n_keys)
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
    runs += [case(name, [one], config) for name, one in _streamed_corners(config, rng).items()]
    one_after_another = [made[name] for name in ("pruned to one", "some rows recomputed", "narrow planes")]
    runs.append(case("sentence after sentence", one_after_another, config))
    for number in range(n_random):
        one = sentence(*_any(config, rng), config, rng)
        runs.append(case(f"random {number}", [one], config, jitter_cycles=30 * (number % 2)))
    runs += decoder_cases(config, seed=seed, n_random=n_random)
    return [*runs, *matrix_cases(config, seed=seed, n_random=n_random // 2)]


def _streamed_corners(config: AttentionConfig, rng: np.random.Generator) -> dict[str, Sentence]:
    """Runs of one, of a tile, of a tile and one; layers by turns; rows three times as long as the buffer."""
    small, large = config.qk.head_dims[0], config.qk.head_dims[-1]
    tile = min(config.tile_keys(large), config.n_max - 1)
    every = Options(k_bits=4, threshold=1200, streamed=1.0)
    one = replace(every, rows="one", threshold=2000, protect_last=True)

    def new(n_tokens: int, n_heads: int, options: Options) -> Sentence:
        given = GivenTokens(
            tokens=np.arange(n_tokens), importance=rng.integers(0, 4000, n_tokens), n_keep=n_tokens
        )
        return one_token(Shape(n_tokens, n_heads, large, 1), options, given, config, rng)

    long = min(config.n_max, 3 * config.qk.n_regions * config.tile_keys(large) + 1)
    return {
        "streamed, one token": sentence(Shape(1, 1, small, 1), every, config, rng),
        "streamed, one value": sentence(Shape(6, 2, small, 2), replace(every, value_keep=0.1), config, rng),
        "streamed, every row recomputed": sentence(
            Shape(7, 2, small, 2), replace(every, threshold=4095, token_keep=0.6), config, rng
        ),
        "streamed, causal": sentence(Shape(11, 2, small, 2), replace(every, rows="causal"), config, rng),
        "streamed by turns": sentence(
            Shape(9, 3, small, 4), replace(every, streamed=0.5, value_keep=0.6, head_keep=0.7), config, rng
        ),
        "streamed, a tile": new(tile, 3, one),
        "streamed, a tile and one": new(tile + 1, 2, replace(one, value_keep=0.9)),
        "streamed, three times the buffer": new(long, 2, replace(one, value_keep=0.8)),
        "streamed, three times the buffer, groups": new(long, 3, replace(one, group_size=2, k_bits=8)),
    }


def decoder_cases(config: AttentionConfig, *, seed: int, n_random: int) -> list[Case]:
    """Causal prompts, new tokens, grouped heads: chosen corners, then ``n_random`` runs of generation."""
    rng = np.random.default_rng(seed)
    small, lanes = config.qk.head_dims[0], config.lanes
    pruned = Options(token_keep=0.7, value_keep=0.6, protect_last=True, threshold=1200)
    causal = replace(pruned, rows="causal")
    one = replace(pruned, rows="one")

    def prompt(n_tokens: int, options: Options, n_heads: int = 2) -> list[Sentence]:
        return [sentence(Shape(n_tokens, n_heads, small, 2), options, config, rng)]

    def new(shape: Shape, options: Options, given: GivenTokens, heads: Any = None) -> list[Sentence]:
        return [one_token(shape, options, given, config, rng, heads)]

    def tokens(n: int, n_keep: int, importance: Any = None, **changes: Any) -> GivenTokens:
        """The first ``n``, of random importance where none is given."""
        scores = rng.integers(0, 4000, n) if importance is None else np.array(importance)
        return GivenTokens(tokens=np.arange(n), importance=scores, n_keep=n_keep, **changes)

    gaps = GivenTokens(tokens=np.array([1, 2, 5, 6, 9, 12, 13]), importance=np.arange(7) * 99 % 350, n_keep=5)
    most = config.token_importance.max_element
    groups = {0: [0, 1, 2, 7], 1: [1, 7]}
    three = replace(one, group_size=3)
    sentence_before, sentence_after = (prompt(6, Options(token_keep=0.6)) for _ in range(2))
    taking_turns = [
        generation(Shape(n, 2, small, 2), replace(one, head_keep=0.5), 3, config, rng, sequence=n, halve=True)
        for n in (4, 5)
    ]
    chosen = {
        "one key, one head": new(Shape(1, 1, small, 1), one, tokens(1, 1)),
        "nine heads in three groups, some pruned": new(Shape(7, 9, small, 3), three, tokens(7, 6), groups),
        "a new token, every row recomputed": new(
            Shape(6, 5, small, 2), replace(one, k_bits=6, threshold=4095, group_size=2), tokens(6, 6)
        ),
        "a new token, static, narrow": new(
            Shape(6, 3, small, 2),
            replace(one, q_bits=8, k_bits=10, v_bits=6, progressive=False),
            tokens(6, 5),
        ),
        "the newest of no importance stays": new(
            Shape(9, 2, small, 2), one, tokens(9, 4, [9, 8, 7, 6, 5, 4, 3, 2, 0])
        ),
        "scores at their limit": new(Shape(6, 2, small, 2), one, tokens(6, 3, [most] * 5 + [most - 1])),
        "all but the newest evicted": new(Shape(7, 2, small, 2), one, tokens(7, 1)),
        "list with gaps": new(Shape(15, 2, small, 2), one, gaps),
        "odd scores halved": new(Shape(6, 2, small, 2), one, tokens(6, 3, [7, 9, 8, 6, 1, 3], halve=True)),
        "scores shifted": new(Shape(8, 2, small, 2), replace(one, token_shift=3), tokens(8, 5, halve=True)),
        "all rows of a given list": new(Shape(8, 2, small, 2), replace(one, rows="all"), tokens(8, 6)),
        "prompt of one": prompt(1, causal),
        "prompt of a line": prompt(lanes, causal),
        "prompt of a line and one": prompt(lanes + 1, replace(causal, group_size=2)),
        "prompt, heads pruned": prompt(9, replace(causal, group_size=2, head_keep=0.5), 5),
        "new token between sentences": [
            *sentence_before,
            *new(Shape(7, 3, small, 2), one, tokens(7, 5)),
            *sentence_after,
        ],
        "two sequences taking turns": [one for both in zip(*taking_turns, strict=True) for one in both],
    }
    runs = [case(name, passes, config) for name, passes in chosen.items()]
    for number in range(n_random):
        shape, options = _any(config, rng)
        options = replace(options, protect_last=bool(rng.random() < 0.8), group_size=int(rng.integers(1, 4)))
        shape = replace(shape, n_heads=int(rng.integers(1, 10)))
        passes = generation(shape, options, 3, config, rng, sequence=0, halve=bool(rng.random() < 0.5))
        runs.append(case(f"generation {number}", passes, config, jitter_cycles=30 * (number % 2)))
    return runs


def matrix_product(
    n_out: int, n_in: int, weight_bits: int, config: AttentionConfig, rng: np.random.Generator
) -> Sentence:
    """Random weights and vector; every eighth number at an end of its range."""

    def numbers(shape: tuple[int, ...], bits: int) -> np.ndarray:
        bound = 1 << (bits - 1)
        values = rng.integers(-bound, bound, shape)
        return np.where(rng.random(shape) < 0.125, rng.choice([-bound, bound - 1], shape), values)

    weights, vector = numbers((n_out, n_in), weight_bits), numbers((n_in,), 12)
    return computed(matrix_pass(vector, weights, weight_bits, config), config)


def matrix_cases(config: AttentionConfig, *, seed: int, n_random: int) -> list[Case]:
    """Matrix-vector products: corners, the largest sum that there can be, between sentences; random ones."""
    rng = np.random.default_rng(seed)
    large = config.qk.head_dims[-1]
    tile = min(config.tile_keys(large), config.n_max - 1)
    n_in = most_parts(config) * large
    largest = matrix_pass(np.full(n_in, -2048), np.full((2, n_in), -2048), 12, config)
    before, after = (
        sentence(Shape(3, 2, config.qk.head_dims[0], 1), Options(streamed=p), config, rng) for p in (0, 1)
    )
    chosen = {
        "matrix, one weight": [matrix_product(1, 1, 8, config, rng)],
        "matrix, outputs of one beat": [matrix_product(2, 3 * large, 12, config, rng)],
        "matrix, a tile and one": [matrix_product(tile + 1, 2 * large + 1, 8, config, rng)],
        "matrix, heads of several lines": [matrix_product(3, (config.lanes + 1) * large, 4, config, rng)],
        "matrix, largest sum": [computed(largest, config)],
        "matrices between sentences": [
            before,
            *(matrix_product(n, large + n, 8, config, rng) for n in (5, 2)),
            after,
            matrix_product(4, large, 6, config, rng),
            before,
        ],
    }
    runs = [case(name, passes, config) for name, passes in chosen.items()]
    for number in range(n_random):
        n_out, n_parts = int(rng.integers(1, min(80, config.n_max))), int(rng.integers(1, 6))
        bits = int(rng.choice([4, 6, 8, 10, 12]))
        one = matrix_product(n_out, int(rng.integers(1, n_parts * large + 1)), bits, config, rng)
        runs.append(case(f"matrix {number}", [one], config, jitter_cycles=30 * (number % 2)))
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
        streamed=float(rng.choice([0, 0.5, 1])),
    )
    n_tokens = int(rng.integers(2, 20))
    return Shape(n_tokens, int(rng.integers(1, 5)), int(rng.choice(config.qk.head_dims)), 2), options
