# SPDX-License-Identifier: MIT
"""A record as the chip reads it, and the chip's outputs as the record's tokens and heads."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from algo.attention.record import AttentionRecord
from hw.attention.config import AttentionConfig
from hw.attention.program import (
    Program,
    programs,
    unpack_elements,
    unpack_ids,
    unpack_outputs,
    unpack_summary,
)

from .layers import passes_of


def program_of(record: AttentionRecord, config: AttentionConfig) -> Program:
    """Memory image, descriptors and given lists of a record; ValueErrors as :func:`passes_of` has them.

    A decoder's passes follow one another; K and V of all positions of the run lie in memory once a layer.
    """
    return programs(passes_of(record, config), config)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerOutput:
    """What came out for one layer. n tokens and h heads are present in it."""

    tokens: np.ndarray
    """int64[n], positions."""
    heads: np.ndarray
    """int64[h], numbers."""
    outputs: np.ndarray
    """int64[h, r, D]; r is n, or 1 in a pass of a new token"""
    used_lsb: np.ndarray
    """bool[h, r]"""
    token_importance: np.ndarray
    """int64[n]"""
    head_importance: np.ndarray
    """int64[h]; empty in a pass of a new token"""
    ideal_bytes: int
    moved_bytes: int


def unpack(
    beats: Mapping[str, np.ndarray], record: AttentionRecord, config: AttentionConfig
) -> list[LayerOutput]:
    """The core's output beats, by port, as layers of an encoder's ``record``; see :func:`unpack_passes`."""
    if len(record.passes) != 1:
        raise ValueError(f"passes of the record must be 1, not {len(record.passes)}: use unpack_passes")
    return unpack_passes(beats, record, config)[0]


def unpack_passes(
    beats: Mapping[str, np.ndarray], record: AttentionRecord, config: AttentionConfig
) -> list[list[LayerOutput]]:
    """The core's output beats, by port, as passes and layers of ``record``.

    ValueError where rows are missing, or come twice: the run was not a whole one.
    """
    reader = _Reader(beats, record, config)
    return [
        [reader.layer(number, layer, of_pass[layer].heads) for layer in range(len(of_pass))]
        for number, of_pass in enumerate(record.passes)
    ]


class _Reader:
    """Takes layer after layer from the streams."""

    def __init__(
        self, beats: Mapping[str, np.ndarray], record: AttentionRecord, config: AttentionConfig
    ) -> None:
        self.head_dim, self.n_heads = record.shape.head_dim, record.shape.n_heads
        self.n_prompt = record.n_prompt
        self.rows = unpack_outputs(beats["o"], config)
        self.first_row = 0
        self.elements = {
            name: iter(unpack_elements(beats[f"o_{name}_importance"], config)) for name in ("token", "head")
        }
        self.lists = {name: iter(unpack_ids(beats[f"o_{name}s"], config)) for name in ("token", "head")}
        self.summaries = iter(unpack_summary(beats["o_summary"]))

    def layer(self, number: int, layer: int, given_heads: np.ndarray) -> LayerOutput:
        """``layer`` of pass ``number``; passes of new tokens are given their heads."""
        if layer == 0 and number == 0:
            self.tokens, self.heads = np.arange(self.n_prompt), np.arange(self.n_heads)
        elif layer == 0:
            next(self.elements["token"])  # those by which tokens were evicted
            self.tokens = next(self.lists["token"])
        if number:
            self.heads = given_heads.astype(np.int64)
        n_rows = 1 if number else len(self.tokens)
        outputs, used_lsb = self._rows(layer, n_rows)
        summary = next(self.summaries)
        selects_heads = number == 0
        done = LayerOutput(
            tokens=self.tokens,
            heads=self.heads,
            outputs=outputs,
            used_lsb=used_lsb,
            token_importance=next(self.elements["token"]),
            head_importance=next(self.elements["head"]) if selects_heads else np.zeros(0, dtype=np.int64),
            ideal_bytes=summary["ideal_bytes"],
            moved_bytes=summary["moved_bytes"],
        )
        self.tokens = next(self.lists["token"])
        if selects_heads:
            self.heads = next(self.lists["head"])
        return done

    def _rows(self, layer: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Outputs int64[h, r, D] and used_lsb bool[h, r] of the layer's rows."""
        shape = (len(self.heads), n_rows)
        part = slice(self.first_row, self.first_row + len(self.heads) * n_rows)
        self.first_row = part.stop
        at = np.searchsorted(self.heads, self.rows.heads[part]), self.rows.rows[part]
        n_seen = np.zeros(shape, dtype=np.int64)
        np.add.at(n_seen, at, 1)
        if (n_seen != 1).any():
            raise ValueError(
                f"layer {layer} must have each row once, not {n_seen.min()}..{n_seen.max()} times"
            )
        outputs = np.zeros((*shape, self.head_dim), dtype=np.int64)
        used_lsb = np.zeros(shape, dtype=bool)
        outputs[at] = self.rows.data[part, : self.head_dim]
        used_lsb[at] = self.rows.used_lsb[part]
        return outputs, used_lsb
