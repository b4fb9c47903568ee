# SPDX-License-Identifier: MIT
"""A sentence for the core: memory image and descriptors in, rows and lists out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.confidence.config import LSB_BITS
from hw.fetch.layout import Plane, split_planes
from hw.harness.job import Beats, pack_fields, unpack_fields
from hw.kv_buffer.config import HEAD_DIMS
from hw.pv.config import SHIFTS

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig
from .layers import LayerInput


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneBits:
    """Widths in memory: 4, 6, 8, 10 or 12."""

    q: int = 12
    k: int
    """Of the MSB plane where there is an LSB plane."""
    v: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """What the core is given for one sentence."""

    layers: Beats
    """For ``i_layer``."""
    heads: Beats
    """For ``i_head``."""
    atoms: np.ndarray
    """uint32[n_atoms, 8]: the memory from the sentence's first atom on."""


def program(
    layers: Sequence[LayerInput], bits: PlaneBits, config: AttentionConfig, *, first_atom: int = 0
) -> Program:
    """Planes of all layers one behind the other from ``first_atom`` on, and the descriptors that name them.

    Raises ValueError where a sentence does not fit the core, an element its plane, or the planes the memory.
    """
    n_heads = len(layers[0].heads)
    n_tokens, head_dim = layers[0].heads[0].q.shape
    config.check_run(n_tokens, n_heads, head_dim, progressive=any(layer.progressive for layer in layers))
    images: list[np.ndarray] = []
    layer_rows, head_rows = [], []
    n_atoms = first_atom
    for number, layer in enumerate(layers):
        planes = {}
        for name, values, width, is_unsigned in _planes(layer, bits):
            plane = Plane(
                base_atom=n_atoms,
                n_heads=n_heads,
                n_tokens=n_tokens,
                head_dim=head_dim,
                bits=width,
                is_unsigned=is_unsigned,
            )
            images.append(plane.pack(values))
            n_atoms += plane.n_atoms
            planes[name] = plane
        layer_rows.append(_layer_row(layer, number == 0, n_tokens, n_heads, head_dim, bits, config))
        head_rows += [_head_row(layer, head, planes) for head in range(n_heads)]
    if n_atoms > 1 << config.fetch.atom_address_bits:
        raise ValueError(f"planes must fit in {1 << config.fetch.atom_address_bits} atoms, not {n_atoms}")
    return Program(
        layers=_pack(layer_rows, _layer_bits(config)),
        heads=_pack(head_rows, _head_bits(config)),
        atoms=np.concatenate(images),
    )


def _planes(layer: LayerInput, bits: PlaneBits) -> list[tuple[str, np.ndarray, int, bool]]:
    q, k, v = (np.stack([np.asarray(getattr(head, name)) for head in layer.heads]) for name in "qkv")
    planes = [("q", q, bits.q, False), ("v", v, bits.v, False)]
    if not layer.progressive:
        return [*planes, ("k", k, bits.k, False)]
    msb, lsb = split_planes(k)
    return [*planes, ("k", msb, bits.k, False), ("lsb", lsb, LSB_BITS, True)]


def _layer_row(
    layer: LayerInput,
    first: bool,
    n_tokens: int,
    n_heads: int,
    head_dim: int,
    bits: PlaneBits,
    config: AttentionConfig,
) -> tuple[int, ...]:
    return (
        first,
        n_tokens,
        n_heads,
        HEAD_DIMS.index(head_dim),
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
    )


def _layer_bits(config: AttentionConfig) -> tuple[int, ...]:
    """Widths of :func:`hw.attention.shapes.layer_layout`."""
    count, heads = config.count_bits, HEAD_BITS + 1
    shifts = (config.token_importance.shift_bits, config.head_importance.shift_bits)
    return (1, count, heads, 2, 4, 4, 4, 1, 12, count, 3, count, heads, *shifts)


def _head_row(layer: LayerInput, head: int, planes: dict[str, Plane]) -> tuple[int, ...]:
    row: list[int] = []
    for name in ("q", "k", "lsb", "v"):
        if name in planes:
            request = planes[name].request(head, 1)
            row += [request.base_atom, request.record_heads, request.head]
        else:
            row += [0, 0, 0]
    return (*row, *layer.heads[head].msb_scale, *layer.heads[head].lsb_scale)


def _head_bits(config: AttentionConfig) -> tuple[int, ...]:
    """Widths of :func:`hw.attention.shapes.head_layout`."""
    return (*(config.fetch.atom_address_bits, 3, 2) * 4, 18, 6, 18, 6)


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
