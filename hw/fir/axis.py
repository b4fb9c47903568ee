# SPDX-License-Identifier: MIT
"""The filter along one axis: what came before, from a memory, and a sum of shifts."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .config import AXIS_GAIN_BITS, N_PAST


def operation_layout() -> data.StructLayout:
    """What a step does along one axis.

    ``upsample`` : otherwise blur
    ``first`` : what came before was another line, and counts as zeros
    ``odd`` : to upsample, the output place is odd
    ``fresh`` : a new element comes; without one, 0 takes its place in the sum and nothing is remembered
    """
    return data.StructLayout({"upsample": 1, "first": 1, "odd": 1, "fresh": 1})


class Axis(wiring.Component):
    """Sums of [1, 3, 3, 1] along one axis, for many lines side by side: one step a cycle.

    The memory holds the last three elements a, b, c (a the latest) of each line. With the new element x:

    - blur: x + 3 a + 3 b + c. The first element of a line completes the line before it, as the zero of that
      line's border, in the same step in which it begins its own.
    - upsample: the inserted zeros leave two taps. At place 0: 3 x; odd: x + 3 a; even: 3 a + b.

    All are 3 p + q = (p << 1) + p + q. Where elements have n bits, p lies within 2 and q within 2 of theirs,
    and the weights of a sum add up to 8 at most (to blur; 4 to upsample): -2^(n-1) 8 <= sum <
    2^(n-1) 8, which are n + 3 bits.

    Parameters: ``bits`` of an element, ``lanes``, ``n_lines`` (at least 2) addresses.

    Members
    -------
    enable : everything moves one step
    address : line of the step that comes with the next ``enable``
    valid, operation, x : the step whose line was the address one ``enable`` ago
    sum : of ``bits`` + 3, in the same cycle
    """

    def __init__(self, *, bits: int, lanes: int, n_lines: int) -> None:
        self.bits, self.lanes, self.n_lines = bits, lanes, n_lines
        super().__init__(
            {
                "enable": In(1),
                "address": In(range(n_lines)),
                "valid": In(1),
                "operation": In(operation_layout()),
                "x": In(data.ArrayLayout(signed(bits), lanes)),
                "sum": Out(data.ArrayLayout(signed(bits + AXIS_GAIN_BITS), lanes)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        of_lane = data.ArrayLayout(signed(self.bits), N_PAST)
        past = memory.Memory(shape=data.ArrayLayout(of_lane, self.lanes), depth=self.n_lines, init=[])
        m.submodules.past = past
        write = past.write_port()
        read = past.read_port(transparent_for=(write,))  # a single line is read as it is written
        line = Signal(range(self.n_lines))
        with m.If(self.enable):
            m.d.sync += line.eq(self.address)
        m.d.comb += [
            read.addr.eq(self.address),
            read.en.eq(self.enable),
            write.addr.eq(line),
            write.en.eq(self.enable & self.valid & self.operation.fresh),
        ]
        for lane in range(self.lanes):
            kept = self._sum(m, lane, read.data[lane])
            m.d.comb += [write.data[lane][i].eq(value) for i, value in enumerate(kept)]
        return m

    def _sum(self, m: Module, lane: int, past: data.View) -> tuple:
        """Drives the sum of one lane; returns what its line is to remember."""
        do = self.operation
        a, b, c = past[0], past[1], past[2]
        x = Signal(signed(self.bits), name=f"x{lane}")
        p = Signal(signed(self.bits + 1), name=f"p{lane}")
        q = Signal(signed(self.bits + 1), name=f"q{lane}")
        m.d.comb += x.eq(Mux(do.fresh, self.x[lane], 0))
        with m.If(do.upsample):
            m.d.comb += [
                p.eq(Mux(do.first, x, a)),
                q.eq(Mux(do.first, 0, Mux(do.odd, x, b))),
            ]
        with m.Else():
            m.d.comb += [p.eq(a + b), q.eq(Mux(do.first, 0, x) + c)]
        m.d.comb += self.sum[lane].eq((p << 1) + p + q)
        return x, Mux(do.first, 0, a), b  # of another line b need not be hidden: no sum meets it as c
