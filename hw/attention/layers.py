# SPDX-License-Identifier: MIT
"""What the core is given for one layer, as numbers. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Integers = Any
"""int64 array, numpy or torch."""

Rows = Literal["all", "causal", "one", "sum"]
"""Queries of a head, and the keys that they see: every token present, all keys; every token present, the keys
up to its own; one query, all keys (generation); likewise, and only the scores are wanted, added up over the
heads: parts of a matrix-vector product."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadInput:
    """One head of one layer, all N tokens by position; rows of pruned tokens are ignored."""

    q: Integers
    """int64[N, D], 12 bits signed at most (``qk.element_bits``); with rows "one" int64[1, D]."""
    k: Integers
    """int64[N, D]; progressive: 16 msb + lsb with 0 <= lsb < 16, else the MSB plane itself; the MSB plane has
    12 bits signed at most."""
    v: Integers
    """int64[N, D], 12 bits signed at most (``pv.element_bits``); unused with rows "sum"."""
    msb_scale: tuple[int, int]
    """Multiplier and shift (:func:`hw.softmax.config.row_scale`) of the value of one unit of an MSB score:
    q's step times k's step / sqrt(D), 16 times that when progressive."""
    lsb_scale: tuple[int, int]
    """Likewise for 16 msb + lsb; unused when static."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerInput:
    """One layer: what its heads read, and how many tokens, heads and values are kept."""

    heads: Sequence[HeadInput]
    """All H heads, by number; pruned ones are ignored."""
    progressive: bool
    """K has an LSB plane, on which a row that is not confident falls back."""
    threshold: int
    """0..4,095, unit 2^-12: a row whose largest probability is below it is computed again with the LSBs."""
    n_values: int
    """Local value pruning: values kept for each row, at least 1; more than the keys means all."""
    out_shift: int
    """Right shift of p V, 8..15; 12 gives o the unit of V, s that of V times 2^(s - 12)."""
    n_tokens_next: int
    """Tokens kept for the next layer, at least 1; as many as are present, or more: all stay."""
    n_heads_next: int
    """Heads likewise; with rows "one" all stay."""
    token_shift: int = 0
    """Right shift of the tokens' importance on its way to the selection (:meth:`Importance.elements`)."""
    head_shift: int = 0
    """That of the heads'."""
    rows: Rows = "all"
    protect_last: bool = False
    """The last token of the list stays in every selection: the newest one predicts the next."""
    streamed: bool = False
    """Each row reads its keys, and the values that it keeps, from memory anew; otherwise a group's rows share
    them in half of the buffers, where they must have a place."""
    groups: Sequence[int] | None = None
    """Of each head, the number of the K and V that it reads: ascending from 0 without gaps, as heads of one
    group are neighbours. None: each head has its own."""

    @property
    def head_groups(self) -> list[int]:
        """Group of each head; ValueError where ``groups`` is no such list."""
        if self.groups is None:
            return list(range(len(self.heads)))
        groups = list(self.groups)
        ascending = groups[:1] == [0] and all(0 <= b - a <= 1 for a, b in pairwise(groups))
        if len(groups) != len(self.heads) or not ascending:
            raise ValueError(
                f"groups must be {len(self.heads)} numbers, ascending from 0 without gaps, not {groups}"
            )
        return groups


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenTokens:
    """The list of tokens with which a pass begins, from outside.

    Shift of the importance and protection of the last token are those of the pass's first layer.
    """

    tokens: Integers
    """int64[m], positions, ascending."""
    importance: Integers
    """int64[m], importance of each, shifted right by ``token_shift``: 0..2^element_bits - 2."""
    n_keep: int
    """The most important so many stay; as many as there are, or more: all."""
    halve: bool = False
    """Importance counts half, rounded down."""
