# SPDX-License-Identifier: MIT
"""Bit-exact model of the importance accumulators: plain sums."""

import torch

from .config import ImportanceConfig


class Importance:
    """Cumulative scores of tokens, or of heads, by position in the list of those still kept (SpAtten Alg. 2).

    ``scores`` : int64[n], n the positions used since the last clear or selection.

    All methods raise ValueError where a value or a position is out of range.
    """

    def __init__(self, config: ImportanceConfig) -> None:
        self.config = config
        self.scores = torch.zeros(0, dtype=torch.int64)

    def add(self, values: torch.Tensor, start: int = 0) -> None:
        """Add values to the scores from position ``start``; positions beyond n begin at 0.

        Parameters
        ----------
        values : int64[m], 0..2**value_bits - 1; start + m <= n_max
        start : int, 0..n
        """
        limit = 1 << self.config.value_bits
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < limit):
            raise ValueError(
                f"values must be in 0..{limit - 1}, not {int(values.min())}..{int(values.max())}"
            )
        end = start + values.numel()
        if not 0 <= start <= self.scores.numel():
            raise ValueError(f"start must be in 0..{self.scores.numel()} (n), not {start}")
        if end > self.config.n_max:
            raise ValueError(f"positions must be below {self.config.n_max}, not {end - 1}")
        grown = torch.zeros(max(end, self.scores.numel()), dtype=torch.int64)
        grown[: self.scores.numel()] = self.scores
        grown[start:end] += values
        self.scores = grown

    def load(self, elements: torch.Tensor, shift: int, *, halve: bool = False) -> None:
        """Scores element * 2^shift in place of all others; with ``halve`` half of that, rounded down.

        Parameters
        ----------
        elements : int64[n], 0..2**element_bits - 1, and a score at most: below 2**(score_bits - shift); n in
            1..n_max
        shift : int, 0..max_shift
        """
        if not 0 <= shift <= self.config.max_shift:
            raise ValueError(f"shift must be in 0..{self.config.max_shift}, not {shift}")
        limit = 1 << min(self.config.element_bits, self.config.score_bits - shift)
        if not 1 <= elements.numel() <= self.config.n_max:
            raise ValueError(f"elements must be 1..{self.config.n_max}, not {elements.numel()}")
        if not (int(elements.min()) >= 0 and int(elements.max()) < limit):
            raise ValueError(
                f"elements must be in 0..{limit - 1}, not {int(elements.min())}..{int(elements.max())}"
            )
        self.scores = (elements << shift) >> halve

    def elements(self, shift: int) -> torch.Tensor:
        """Scores for the selection engine: min(floor(score / 2^shift), 2^element_bits - 2), int64[n].

        With :meth:`ImportanceConfig.safe_shift` nothing saturates, and two tokens change places only where
        their scores differ by less than 2^shift.
        """
        if not 0 <= shift <= self.config.max_shift:
            raise ValueError(f"shift must be in 0..{self.config.max_shift}, not {shift}")
        return (self.scores >> shift).clamp(max=self.config.max_element)

    def keep(self, positions: torch.Tensor) -> None:
        """Only these positions stay, in their order; their scores go on cumulatively.

        Parameters
        ----------
        positions : int64[k], ascending, below n
        """
        n = self.scores.numel()
        if positions.numel() and not (int(positions.min()) >= 0 and int(positions.max()) < n):
            raise ValueError(
                f"positions must be in 0..{n - 1}, not {int(positions.min())}..{int(positions.max())}"
            )
        if bool((positions.diff() <= 0).any()):
            raise ValueError("positions must be ascending")
        self.scores = self.scores[positions]

    def clear(self) -> None:
        """A new sentence: no position used."""
        self.scores = self.scores[:0]
