# SPDX-License-Identifier: MIT
"""What the core is given for one layer, as numbers. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Integers = Any
"""int64[N, D], numpy or torch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadInput:
    """One head of one layer, all N tokens by position; rows of pruned tokens are ignored."""

    q: Integers
    """int64[N, D], 12 bits signed at most (``qk.element_bits``)."""
    k: Integers
    """int64[N, D]; progressive: 16 msb + lsb with 0 <= lsb < 16, else the MSB plane itself; the MSB plane has
    12 bits signed at most."""
    v: Integers
    """int64[N, D], 12 bits signed at most (``pv.element_bits``)."""
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
    """Heads likewise."""
    token_shift: int = 0
    """Right shift of the tokens' importance on its way to the selection (:meth:`Importance.elements`)."""
    head_shift: int = 0
    """That of the heads'."""
