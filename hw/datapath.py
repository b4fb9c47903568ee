# SPDX-License-Identifier: MIT
"""Small pieces of free-running datapaths: narrow named signals, no enables."""

from collections.abc import Sequence

from amaranth import Cat, Module, Mux, Signal, Value, ValueLike, signed


def delayed(m: Module, value: Value, cycles: int, name: str, *, is_valid: bool = False) -> Value:
    """``value`` as it was ``cycles`` ago; only a valid bit (``is_valid``) is cleared by reset."""
    for cycle in range(1, cycles + 1):
        later = Signal(value.shape(), name=f"{name}_after{cycle}", reset_less=not is_valid)
        m.d.sync += later.eq(value)
        value = later
    return value


def select(which: Value, choices: Sequence[ValueLike]) -> Value:
    """``choices[which]``; the last one where ``which`` is beyond them."""
    chosen = Value.cast(choices[-1])
    for place in reversed(range(len(choices) - 1)):
        chosen = Mux(which == place, choices[place], chosen)
    return chosen


def add(m: Module, pair: tuple[Value, Value], name: str, *, registered: bool) -> Signal:
    """The exact sum of two signed values of one width, one bit wider."""
    total = Signal(signed(len(pair[0]) + 1), name=name, reset_less=True)
    m.d["sync" if registered else "comb"] += total.eq(pair[0] + pair[1])
    return total


def tree(m: Module, terms: Sequence[Value], name: str, *, levels_per_cycle: int) -> Value:
    """Exact sum of a power of two of signed terms of one width, one bit wider for each level.

    A register follows every ``levels_per_cycle`` levels and the last: ceil(levels / levels_per_cycle) cycles.
    """
    n_levels = (len(terms) - 1).bit_length()
    for level in range(1, n_levels + 1):
        registered = level % levels_per_cycle == 0 or level == n_levels
        pairs = zip(terms[::2], terms[1::2], strict=True)
        terms = [add(m, pair, f"{name}_{level}_{i}", registered=registered) for i, pair in enumerate(pairs)]
    return terms[0]


def leap(state: Value, taps: Sequence[int], steps: int) -> Value:
    """An LFSR after ``steps`` steps at once, all of them fresh bits; the newest bit lowest."""
    bits = list(state)
    for _ in range(steps):
        feedback = bits[taps[0]]
        for tap in taps[1:]:
            feedback = feedback ^ bits[tap]
        bits = [feedback, *bits[:-1]]
    return Cat(bits)
