# SPDX-License-Identifier: MIT
"""Scores added up over the heads."""

from .streams import Beat


class Sums:
    """Mirrors :class:`hw.attention.sums.Sums`; its sink never waits."""

    def __init__(self) -> None:
        self.row = 0
        self.held: tuple[Beat, bool] | None = None
        """The beat that is being added, and whether it completes its sums."""
        self.out: Beat | None = None
        self.ended = False
        """The last beat of the sums left in this cycle."""
        self.stamps: list[int] = []

    def step(self, cycle: int, beat: Beat | None, n_rows: int) -> bool:
        """One cycle; whether the beat was taken."""
        self.ended = self.out is not None and self.out[1]
        if self.out is not None:
            self.stamps.append(cycle)
        self.out = self.held[0] if self.held is not None and self.held[1] else None
        self.held = None
        if beat is None:
            return False
        is_final = self.row == n_rows - 1
        self.held = beat, is_final
        if beat[1]:
            self.row = 0 if is_final else self.row + 1
        return True
