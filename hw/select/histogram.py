# SPDX-License-Identifier: MIT
"""Counts the digits of P elements a cycle and finds the bin that holds the k-th largest."""

from amaranth import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.topk.filter import popcount

from .config import RadixConfig


class Histogram(wiring.Component):
    """Cumulative counters in two levels, so that no sum over the bins is ever taken.

    A digit is a group (its upper half) and a place in it (its lower half), G = 2^(digit_bits / 2) of each.
    Counter g of the groups holds the elements whose group is at least g; counter (g, j) those of group g
    whose place is at least j. Each adds the population count of P bits a cycle. The k-th largest lies in the
    last group whose counter reaches k, and there in the last place whose counter reaches what k still lacks:
    two times G subtractions and a selection by their signs.

    A line enters the counters COUNT_LATENCY_CYCLES after it came in; PICK_CYCLES - 1 cycles after that the
    outputs are right, and stay so until the next line.

    Members
    -------
    valid : a line comes in
    first : it is the first of a pass, before which nothing counts
    digits : lanes digits
    counted : which lanes count
    target : the wanted element is the target-th largest counted, at least 1
    bin : its digit
    rest : it is the rest-th largest of its bin
    excess : elements of the bin beyond these
    """

    def __init__(self, config: RadixConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "digits": In(data.ArrayLayout(config.digit_bits, config.lanes)),
                "counted": In(config.lanes),
                "target": In(config.count_bits),
                "bin": Out(config.digit_bits),
                "rest": Out(config.count_bits),
                "excess": Out(config.count_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        groups, bins = self._count(m)
        self._pick(m, groups, bins)
        return m

    def _count(self, m: Module) -> tuple[list[Value], list[list[Value]]]:
        """The counters: [g] at least g; [g][j] in group g, at least j."""
        cfg = self.config
        size, half = cfg.half_size, cfg.digit_bits // 2
        in_group: list[Signal] = []
        in_upper: list[Signal] = []
        at_place: list[Signal] = []
        for lane in range(cfg.lanes):
            digit = Signal(cfg.digit_bits, name=f"digit{lane}", reset_less=True)
            counted = Signal(name=f"counted{lane}", reset_less=True)
            m.d.sync += [digit.eq(self.digits[lane]), counted.eq(self.counted[lane])]
            decoded = [Signal(size, name=f"{n}{lane}") for n in ("group", "upper", "place")]
            group, place = digit[half:], digit[:half]
            m.d.comb += [
                decoded[0].eq(Cat((group == g) & counted for g in range(size))),
                decoded[1].eq(Cat(counted, *((group >= g) & counted for g in range(1, size)))),
                decoded[2].eq(Cat(C(1, 1), *(place >= j for j in range(1, size)))),
            ]
            for columns, bits in zip((in_group, in_upper, at_place), decoded, strict=True):
                columns.append(bits)

        valid, first = Signal(2), Signal(2, reset_less=True)
        m.d.sync += [valid.eq(Cat(self.valid, valid)), first.eq(Cat(self.first, first))]

        def counter(name: str, marked: list[Value]) -> Signal:
            mask = Signal(cfg.lanes, name=f"{name}_mask")
            n_marked = Signal(range(cfg.lanes + 1), name=f"{name}_n", reset_less=True)
            count = Signal(cfg.count_bits, name=f"{name}_count", reset_less=True)
            m.d.comb += mask.eq(Cat(marked))
            m.d.sync += n_marked.eq(popcount(mask))
            with m.If(valid[1]):
                m.d.sync += count.eq(Mux(first[1], 0, count) + n_marked)
            return count

        lanes = range(cfg.lanes)
        groups = [counter(f"from{g}", [in_upper[lane][g] for lane in lanes]) for g in range(size)]
        bins = [
            [counter(f"bin{g}_{j}", [in_group[lane][g] & at_place[lane][j] for lane in lanes])
             for j in range(size)]
            for g in range(size)
        ]  # fmt: skip
        return groups, bins

    def _pick(self, m: Module, groups: list[Value], bins: list[list[Value]]) -> None:
        cfg = self.config
        size = cfg.half_size
        chosen, rest, _ = self._last_reached(m, "group", self.target, groups)
        group, group_target = Signal(size, reset_less=True), Signal(cfg.count_bits, reset_less=True)
        m.d.sync += [group.eq(chosen), group_target.eq(rest)]

        places, place_group = [], Signal(size, reset_less=True)
        place_target = Signal(cfg.count_bits, reset_less=True)
        for j in range(size):
            place = Signal(cfg.count_bits, name=f"place{j}_count", reset_less=True)
            m.d.sync += place.eq(_one_of(group, [bins[g][j] for g in range(size)]))
            places.append(place)
        m.d.sync += [place_group.eq(group), place_target.eq(group_target)]

        chosen, rest, excess = self._last_reached(m, "place", place_target, places)
        m.d.comb += [
            self.bin.eq(Cat(_number(chosen), _number(place_group))),
            self.rest.eq(rest),
            self.excess.eq(excess),
        ]

    def _last_reached(
        self, m: Module, name: str, target: Value, counts: list[Value]
    ) -> tuple[Signal, Signal, Signal]:
        """One-hot the last of the falling ``counts`` that reaches ``target``; what the next one leaves of
        the target; and by how much the chosen one exceeds it. The first always reaches it."""
        cfg = self.config
        size = len(counts)
        lacks, reached = [], Signal(size, name=f"{name}_reached")
        for i, count in enumerate(counts):
            lack = Signal(signed(cfg.count_bits + 1), name=f"{name}_lack{i}")
            m.d.comb += [lack.eq(target - count), reached[i].eq((lack <= 0) if i else 1)]
            lacks.append(lack)
        chosen = Signal(size, name=f"{name}_chosen")
        rest, excess = (Signal(cfg.count_bits, name=f"{name}_{n}") for n in ("rest", "excess"))
        m.d.comb += [
            chosen.eq(reached & ~(reached >> 1)),
            rest.eq(_one_of(chosen, [*lacks[1:], target])),
            excess.eq(-_one_of(chosen, lacks).as_signed()),
        ]
        return chosen, rest, excess


def _one_of(one_hot: Value, values: list[Value]) -> Value:
    chosen = Mux(one_hot[0], values[0], 0).as_unsigned()
    for i, value in enumerate(values[1:], start=1):
        chosen = chosen | Mux(one_hot[i], value, 0).as_unsigned()
    return chosen


def _number(one_hot: Value) -> Value:
    """Binary number of the set bit."""
    n_bits = (len(one_hot) - 1).bit_length()
    return Cat(Cat(one_hot[i] for i in range(len(one_hot)) if i >> bit & 1).any() for bit in range(n_bits))
