# SPDX-License-Identifier: MIT
"""Rounding and saturation in hardware, as :mod:`.golden` has them."""

from amaranth import Module, Mux, Signal, Value, signed

from .config import signed_range


def shifted(m: Module, x: Value, shift: Value, name: str) -> Signal:
    """``x`` by 2^-shift, half up, a cycle later: (((2 x) >> s) + 1) >> 1, of which the first shift has the
    cycle before to itself."""
    held = Signal(signed(len(x) + 1), name=f"{name}_shifted", reset_less=True)
    half_up = Signal(signed(len(x) + 1), name=f"{name}_rounded")
    m.d.sync += held.eq((x << 1) >> shift)
    m.d.comb += half_up.eq((held + 1) >> 1)
    return half_up


def saturated(x: Signal, bits: int) -> Value:
    """To the nearest number of so many signed bits."""
    low, high = signed_range(bits)
    return Mux(x < low, low, Mux(x > high, high, x))
