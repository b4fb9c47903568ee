# SPDX-License-Identifier: MIT
"""The multipliers: weights stay, activations move right, sums move down."""

from amaranth import Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed

from .config import OPERAND_BITS, SystolicConfig


class Array(wiring.Component):
    """R x C cells; a vector and a row of weights enter each cycle, and C sums of R products leave.

    Cell (r, c) works on a vector r + c cycles after it entered. The weights of the next tile travel the same
    way to a second register of each cell, and ``switch``, which comes with a tile's first vector, moves them
    to the first. So whoever feeds the array sees no skew: rows of the next tile may enter from the cycle of
    ``switch`` on, and the next ``switch`` may come in the cycle after the last of them.

    Latency R + C - 1 from a vector to its sums. Free-running; rows that were not loaded keep their weights.

    Members
    -------
    vector : R signed activations of 9 bits, -128..255
    switch : the vector is the first one that meets the weights loaded last
    weights, row, load : C weights for a row of cells, its number, and whether they are there
    sums : C signed sums of ``config.sum_bits``
    """

    def __init__(self, config: SystolicConfig) -> None:
        self.config = config
        super().__init__(
            {
                "vector": In(signed(OPERAND_BITS + 1)).array(config.rows),
                "switch": In(1),
                "weights": In(signed(OPERAND_BITS)).array(config.columns),
                "row": In(range(config.rows)),
                "load": In(1),
                "sums": Out(signed(config.sum_bits)).array(config.columns),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        down: list[tuple[Value, Value]] = [
            (Const(0, signed(cfg.sum_bits)), delayed(m, self.weights[c], c, f"weight_skew{c}"))
            for c in range(cfg.columns)
        ]
        """Of each column: the sum and the weight that come from above."""
        switch, load, row = self.switch, self.load, self.row
        for r in range(cfg.rows):
            right = (delayed(m, self.vector[r], r, f"skew{r}"), switch, load & (row == r))
            for c in range(cfg.columns):
                right, down[c] = self._cell(m, f"{r}_{c}", right, down[c])
            switch = delayed(m, switch, 1, f"switch{r}", is_valid=True)
            load = delayed(m, load, 1, f"load{r}", is_valid=True)
            row = delayed(m, row, 1, f"row{r}")
        for c in range(cfg.columns):
            m.d.comb += self.sums[c].eq(delayed(m, down[c][0], cfg.columns - 1 - c, f"deskew{c}"))
        return m

    def _cell(
        self, m: Module, name: str, right: tuple[Value, Value, Value], down: tuple[Value, Value]
    ) -> tuple[tuple[Value, Value, Value], tuple[Value, Value]]:
        """One multiplier; what it hands to its right and lower neighbours a cycle later."""
        activation, switch, load = right
        partial, weight = down
        held = Signal(signed(OPERAND_BITS), name=f"held{name}", reset_less=True)
        following = Signal(signed(OPERAND_BITS), name=f"following{name}", reset_less=True)
        now = Signal(signed(OPERAND_BITS), name=f"now{name}")
        total = Signal(signed(self.config.sum_bits), name=f"total{name}", reset_less=True)
        m.d.comb += now.eq(Mux(switch, following, held))
        m.d.sync += [
            held.eq(now),
            following.eq(Mux(load, weight, following)),
            total.eq(partial + activation * now),
        ]
        passed = (
            delayed(m, activation, 1, f"activation{name}"),
            delayed(m, switch, 1, f"switch{name}", is_valid=True),
            delayed(m, load, 1, f"load{name}", is_valid=True),
        )
        return passed, (total, delayed(m, weight, 1, f"weight{name}"))
