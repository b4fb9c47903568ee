# SPDX-License-Identifier: MIT
"""A record as the chip reads it, and the chip's outputs as the record's tokens and heads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from algo.attention.record import AttentionRecord
from hw.attention.config import AttentionConfig
from hw.attention.program import Program, program, unpack_elements, unpack_ids, unpack_outputs, unpack_summary

from .layers import layers_of, plane_bits


def program_of(record: AttentionRecord, config: AttentionConfig) -> Program:
    """Memory image and descriptors of an encoder's record; ValueErrors as :func:`layers_of` has them."""
    return program(layers_of(record, config), plane_bits(record.settings), config)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerOutput:
    """What came out for one layer. n tokens and h heads are present in it."""

    tokens: np.ndarray
    """int64[n], positions."""
    heads: np.ndarray
    """int64[h], numbers."""
    outputs: np.ndarray
    """int64[h, n, D]"""
    used_lsb: np.ndarray
    """bool[h, n]"""
    token_importance: np.ndarray
    """int64[n]"""
    head_importance: np.ndarray
    """int64[h]"""
    ideal_bytes: int
    moved_bytes: int


def unpack(
    beats: Mapping[str, np.ndarray], record: AttentionRecord, config: AttentionConfig
) -> list[LayerOutput]:
    """The core's output beats, by port, as layers of ``record``'s model.

    ValueError where rows are missing, or come twice: the run was not a whole one.
    """
    rows = unpack_outputs(beats["o"], config)
    elements = {name: unpack_elements(beats[f"o_{name}_importance"], config) for name in ("token", "head")}
    tokens, heads = np.arange(record.n_prompt), np.arange(record.shape.n_heads)
    next_lists = {name: unpack_ids(beats[f"o_{name}"], config) for name in ("tokens", "heads")}
    summaries = unpack_summary(beats["o_summary"])
    layers, first = [], 0
    for number, summary in enumerate(summaries):
        part = slice(first, first + len(heads) * len(tokens))
        first = part.stop
        place = np.searchsorted(heads, rows.heads[part])
        shape = (len(heads), len(tokens))
        outputs = np.zeros((*shape, record.shape.head_dim), dtype=np.int64)
        used_lsb = np.zeros(shape, dtype=bool)
        n_seen = np.zeros(shape, dtype=np.int64)
        np.add.at(n_seen, (place, rows.rows[part]), 1)
        if (n_seen != 1).any():
            raise ValueError(
                f"layer {number} must have each row once, not {n_seen.min()}..{n_seen.max()} times"
            )
        outputs[place, rows.rows[part]] = rows.data[part, : record.shape.head_dim]
        used_lsb[place, rows.rows[part]] = rows.used_lsb[part]
        layers.append(
            LayerOutput(
                tokens=tokens,
                heads=heads,
                outputs=outputs,
                used_lsb=used_lsb,
                token_importance=elements["token"][number],
                head_importance=elements["head"][number],
                ideal_bytes=summary["ideal_bytes"],
                moved_bytes=summary["moved_bytes"],
            )
        )
        tokens, heads = next_lists["tokens"][number], next_lists["heads"][number]
    return layers
