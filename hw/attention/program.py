# SPDX-License-Identifier: MIT
"""Passes for the core: memory image, descriptors and given lists in, rows and lists out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hw.confidence.config import LSB_BITS
from hw.fetch.layout import Plane, split_planes
from hw.harness.job import Beats, pack_fields, unpack_fields
from hw.kv_buffer.config import HEAD_DIMS
from hw.pv.config import SHIFTS
from hw.stream.rows import dense_beats

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig
from .layers import GivenTokens, Integers, LayerInput


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneBits:
    """Widths in memory: 4, 6, 8, 10 or 12."""

    q: int = 12
    k: int
    """Of the MSB plane where there is an LSB plane."""
    v: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """One run through all layers: a sentence, a prompt, or one new token."""

    layers: Sequence[LayerInput]
    bits: PlaneBits
    given: GivenTokens | None = None
    """The list of tokens to begin with; None: all of the sentence."""
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Lists of heads to begin a layer with, by layer; the first layer has all, a later one what the layer
    before left."""
    sequence: int | None = None
    """Passes of one sequence share its K and V, kept by position; None: a sequence of its own."""

    @property
    def n_positions(self) -> int:
        """Positions of which K and V are there."""
        return len(self.layers[0].heads[0].k)

    @property
    def head_dim(self) -> int:
        """D"""
        return int(self.layers[0].heads[0].q.shape[-1])

    @property
    def n_tokens(self) -> int:
        """Tokens present in the first layer."""
        if self.given is None:
            return self.n_positions
        return min(self.given.n_keep, len(self.given.tokens))


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """What the core is given for passes one after the other."""

    layers: Beats
    """For ``i_layer``."""
    heads: Beats
    """For ``i_head``."""
    tokens: Beats
    """For ``i_tokens``."""
    token_importance: Beats
    """For ``i_token_importance``."""
    head_lists: Beats
    """For ``i_heads``."""
    atoms: np.ndarray
    """uint32[n_atoms, 8]: the memory from the first atom on."""

    @property
    def inputs(self) -> dict[str, Beats]:
        """Beats by input stream."""
        return {
            "i_layer": self.layers,
            "i_head": self.heads,
            "i_tokens": self.tokens,
            "i_token_importance": self.token_importance,
            "i_heads": self.head_lists,
        }


Planes = dict[str, Plane]
"""Where ``q``, ``k``, ``v`` and, if progressive, ``lsb`` of a layer lie; q by head, the others by group."""


def program(
    layers: Sequence[LayerInput], bits: PlaneBits, config: AttentionConfig, *, first_atom: int = 0
) -> Program:
    """The program of one sentence; see :func:`programs`."""
    return programs([Pass(layers=layers, bits=bits)], config, first_atom=first_atom)


def programs(passes: Sequence[Pass], config: AttentionConfig, *, first_atom: int = 0) -> Program:
    """Planes as :func:`planes_of` places them, filled, and the descriptors that name them.

    Of a sequence, K and V are those of its pass with the most positions, which are the others' too.

    Raises ValueError where a pass does not fit the core, an element its plane, or the planes the memory.
    """
    for one in passes:
        _check_pass(one, config)
    longest = _longest(passes)
    planes = planes_of(passes, first_atom)
    placed: dict[int, np.ndarray] = {}
    layer_rows, head_rows = [], []
    for one, of_pass, keys_from in zip(passes, planes, longest, strict=True):
        for number, (layer, of_layer) in enumerate(zip(one.layers, of_pass, strict=True)):
            for name, plane in of_layer.items():
                if plane.base_atom not in placed:
                    source = layer if name == "q" else keys_from.layers[number]
                    placed[plane.base_atom] = plane.pack(_values(source, name))
            layer_rows.append(_layer_row(one, number, config))
            head_rows += [_head_row(layer, head, of_layer) for head in range(len(layer.heads))]
    n_atoms = first_atom + sum(len(image) for image in placed.values())
    if n_atoms > 1 << config.fetch.atom_address_bits:
        raise ValueError(f"planes must fit in {1 << config.fetch.atom_address_bits} atoms, not {n_atoms}")
    given = [one.given for one in passes if one.given is not None]
    return Program(
        layers=_pack(layer_rows, _layer_bits(config)),
        heads=_pack(head_rows, _head_bits(config)),
        tokens=id_beats([one.tokens for one in given], config),
        token_importance=given_importance_beats([one.importance for one in given], config),
        head_lists=id_beats([heads for one in passes for _, heads in sorted(one.heads.items())], config),
        atoms=np.concatenate([placed[base] for base in sorted(placed)]),
    )


def changed_heads(lists: Sequence[Sequence[int]], n_heads: int) -> dict[int, list[int]]:
    """For ``Pass.heads``: of the layers' lists of heads those unlike the list before; it begins with all."""
    before = list(range(n_heads))
    changed = {}
    for number, heads in enumerate(lists):
        if list(heads) != before:
            changed[number] = before = list(heads)
    return changed


def _check_pass(one: Pass, config: AttentionConfig) -> None:
    """ValueError where it does not fit the core."""
    if one.n_positions > config.n_max:
        raise ValueError(f"n_positions must be at most {config.n_max}, not {one.n_positions}")
    n_present = one.n_tokens
    n_heads = len(one.layers[0].heads)
    for number, layer in enumerate(one.layers):
        config.check_run(
            n_present,
            len(layer.heads),
            one.head_dim,
            progressive=layer.progressive,
            streamed=layer.streamed or layer.rows == "sum",
        )
        if layer.rows != "sum":
            n_present = min(n_present, layer.n_tokens_next)
        elif number in one.heads or n_heads < len(layer.heads) or n_heads > config.n_max:
            raise ValueError(
                f"rows 'sum' of layer {number} need all of at most {config.n_max} heads, not a list of them"
            )
        n_heads = min(n_heads, layer.n_heads_next)


def _longest(passes: Sequence[Pass]) -> list[Pass]:
    """For each pass the one of its sequence with the most positions."""
    longest: dict[int, Pass] = {}
    for one in passes:
        if one.sequence is not None:
            known = longest.setdefault(one.sequence, one)
            if one.n_positions > known.n_positions:
                longest[one.sequence] = one
    return [one if one.sequence is None else longest[one.sequence] for one in passes]


def planes_of(passes: Sequence[Pass], first_atom: int = 0) -> list[list[Planes]]:
    """Where the planes of each pass and layer lie: one behind the other, in the order of passes and layers.

    A layer's planes come as q, v, k, lsb; those that it needs. A sequence's first pass makes room for K and V
    of all positions of the longest one; its later passes add their q.
    """
    shared: dict[tuple[int, int], Planes] = {}
    placed: list[list[Planes]] = []
    for one, longest in zip(passes, _longest(passes), strict=True):
        placed.append([])
        for number, layer in enumerate(one.layers):
            known = {} if one.sequence is None else shared.get((one.sequence, number), {})
            planes: Planes = {}
            n_queries, n_heads = len(layer.heads[0].q), len(layer.heads)
            n_groups = layer.head_groups[-1] + 1
            shapes = {
                "q": (n_heads, n_queries, one.bits.q),
                "v": (n_groups, longest.n_positions, one.bits.v),
                "k": (n_groups, longest.n_positions, one.bits.k),
            }
            if layer.rows == "sum":  # the queries are rows of one plane, and nothing is weighted
                shapes["q"] = (1, n_heads, one.bits.q)
                del shapes["v"]
            if layer.progressive:
                shapes["lsb"] = (n_groups, longest.n_positions, LSB_BITS)
            for name, (n, n_tokens, width) in shapes.items():
                if name in known and name != "q":
                    planes[name] = known[name]
                    continue
                planes[name] = Plane(
                    base_atom=first_atom,
                    n_heads=n,
                    n_tokens=n_tokens,
                    head_dim=one.head_dim,
                    bits=width,
                    is_unsigned=name == "lsb",
                )
                first_atom += planes[name].n_atoms
            if one.sequence is not None:
                shared.setdefault((one.sequence, number), planes)
            placed[-1].append(planes)
    return placed


def _values(layer: LayerInput, name: str) -> np.ndarray:
    """Of a plane: int64[heads or groups, tokens, D]."""
    if name == "q":
        queries = np.stack([np.asarray(head.q) for head in layer.heads])
        return queries.swapaxes(0, 1) if layer.rows == "sum" else queries
    groups = layer.head_groups
    firsts = [layer.heads[groups.index(group)] for group in range(groups[-1] + 1)]
    if name == "v":
        return np.stack([np.asarray(head.v) for head in firsts])
    keys = np.stack([np.asarray(head.k) for head in firsts])
    if not layer.progressive:
        return keys
    return split_planes(keys)[name == "lsb"]


GO_ON, FILL, GIVEN = range(3)
"""Where a list comes from: the layer before, all there are, from outside (``Source`` of the RTL)."""
ROWS = {"all": 0, "causal": 1, "one": 2, "sum": 3}
"""``Rows`` of the RTL."""


def _layer_row(one: Pass, number: int, config: AttentionConfig) -> tuple[int, ...]:
    layer, bits = one.layers[number], one.bits
    n_tokens = one.n_positions if one.given is None else min(one.given.n_keep, config.n_max)
    anew = FILL if number == 0 else GO_ON
    return (
        GIVEN if one.given is not None and number == 0 else anew,
        GIVEN if number in one.heads else anew,
        n_tokens,
        len(layer.heads),
        HEAD_DIMS.index(one.head_dim),
        bits.q,
        bits.k,
        bits.v,
        layer.progressive,
        layer.threshold,
        min(layer.n_values, config.n_max),
        layer.out_shift - SHIFTS[0],
        min(layer.n_tokens_next, config.n_max),
        min(layer.n_heads_next, config.head_importance.n_max),
        layer.token_shift,
        layer.head_shift,
        ROWS[layer.rows],
        layer.protect_last,
        one.given is not None and one.given.halve,
        layer.streamed,
    )


def _layer_bits(config: AttentionConfig) -> tuple[int, ...]:
    """Widths of :func:`hw.attention.shapes.layer_layout`."""
    count, heads = config.count_bits, HEAD_BITS + 1
    shifts = (config.token_importance.shift_bits, config.head_importance.shift_bits)
    return (2, 2, count, heads, 2, 4, 4, 4, 1, 12, count, 3, count, heads, *shifts, 2, 1, 1, 1)


def place_in_plane(layer: LayerInput, name: str, head: int) -> int:
    """Of a head in the plane of queries, keys, LSBs or values."""
    if name != "q":
        return layer.head_groups[head]
    return 0 if layer.rows == "sum" else head


def _head_row(layer: LayerInput, head: int, planes: Planes) -> tuple[int, ...]:
    row: list[int] = []
    for name in ("q", "k", "lsb", "v"):
        if name in planes:
            request = planes[name].request(place_in_plane(layer, name, head), 1)
            row += [request.base_atom, request.record_heads, request.head]
        else:
            row += [0, 0, 0]
    return (*row, *layer.heads[head].msb_scale, *layer.heads[head].lsb_scale, layer.head_groups[head])


def _head_bits(config: AttentionConfig) -> tuple[int, ...]:
    """Widths of :func:`hw.attention.shapes.head_layout`."""
    return (*(config.fetch.atom_address_bits, 3, 2) * 4, 18, 6, 18, 6, HEAD_BITS)


def id_beats(lists: Sequence[Integers], config: AttentionConfig) -> Beats:
    """Lists of tokens or heads, as ``i_tokens``, ``i_heads``, ``o_tokens`` and ``o_heads`` carry them."""
    return dense_beats([np.asarray(x) for x in lists], config.lanes, config.id_bits)


def given_importance_beats(lists: Sequence[Integers], config: AttentionConfig) -> Beats:
    """Scores as ``i_token_importance`` takes them."""
    importance = config.token_importance
    return dense_beats([np.asarray(x) for x in lists], importance.lanes, importance.element_bits)


def _pack(rows: Sequence[tuple[int, ...]], bits: Sequence[int]) -> Beats:
    values = np.array(rows, dtype=np.int64)
    return pack_fields(list(zip(values.T, bits, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Rows of ``o`` as numbers."""

    heads: np.ndarray
    """int64[n_rows]"""
    rows: np.ndarray
    """int64[n_rows]: place of the query among the tokens present in the layer."""
    used_lsb: np.ndarray
    """bool[n_rows]"""
    data: np.ndarray
    """int64[n_rows, max_head_dim]"""


def unpack_outputs(beats: Beats, config: AttentionConfig) -> Outputs:
    """Beats of ``o``, in the order in which they left."""
    element_bits = config.pv.element_bits
    heads, rows, used_lsb, data = unpack_fields(
        beats, [(1, HEAD_BITS), (1, config.id_bits), (1, 1), (config.pv.max_head_dim, element_bits)]
    )
    sign = 1 << (element_bits - 1)
    return Outputs(
        heads=heads[:, 0], rows=rows[:, 0], used_lsb=used_lsb[:, 0] == 1, data=(data ^ sign) - sign
    )


def unpack_ids(beats: Beats, config: AttentionConfig) -> list[np.ndarray]:
    """Lists of ``o_tokens`` or ``o_heads``, one a layer."""
    return _lists(beats, config.lanes, config.id_bits)


def unpack_elements(beats: Beats, config: AttentionConfig) -> list[np.ndarray]:
    """Lists of ``o_token_importance`` or ``o_head_importance``, one a layer."""
    return _lists(beats, config.lanes, config.token_importance.element_bits)


def _lists(beats: Beats, lanes: int, element_bits: int) -> list[np.ndarray]:
    """Packed beats as lists that end with ``last``."""
    data, count, last = unpack_fields(beats, [(lanes, element_bits), (1, lanes.bit_length()), (1, 1)])
    held = data[np.arange(lanes) < count]
    ends = np.cumsum(count[:, 0])[last[:, 0] == 1]
    return np.split(held, ends[:-1])


def unpack_summary(beats: Beats) -> list[dict[str, int]]:
    """Counters of ``o_summary``, one dictionary a layer."""
    widths = {
        "ideal_bytes": TRAFFIC_BITS,
        "moved_bytes": TRAFFIC_BITS,
        "n_rows": COUNT_BITS,
        "n_recomputed": COUNT_BITS,
    }
    columns = unpack_fields(beats, [(1, bits) for bits in widths.values()])
    rows = np.concatenate(columns, axis=1).tolist()
    return [dict(zip(widths, row, strict=True)) for row in rows]
