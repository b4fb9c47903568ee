# SPDX-License-Identifier: MIT
"""The passes of the radix engine: one digit of the elements that are still in question, counted by value."""

from amaranth import Cat, Const, Module, ResetInserter, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.topk.compact_list import CompactList
from hw.topk.config import CompactListConfig

from .config import RadixConfig
from .histogram import Histogram


class DigitPass(wiring.Component):
    """Counts digit ``number`` of the elements whose digit before is ``digit_before``, a line a cycle.

    Pass 0 counts the top digits of all elements. Pass 1 reads the stored lines; the elements inside the bin
    go to a list, and each later pass reads and refills that list instead of the lines.

    Members
    -------
    valid : a line is compared
    line : its elements; ignored from pass 2 on
    mask : lanes that hold an element
    first, last : it is the first, the last of the pass
    number : pass and digit, 0 the top one
    digit_before : digit ``number - 1`` of the elements in question; ignored in pass 0
    target : the wanted element is the target-th largest counted, at least 1
    clear : the request is decided: forget the list
    bin, rest, excess : see :class:`hw.select.histogram.Histogram`, DECIDE_CYCLES after the last line
    """

    def __init__(self, config: RadixConfig) -> None:
        self.config = config
        super().__init__(
            {
                "valid": In(1),
                "line": In(config.lanes * config.element_bits),
                "mask": In(config.lanes),
                "first": In(1),
                "last": In(1),
                "number": In(range(config.n_digits)),
                "digit_before": In(config.digit_bits),
                "target": In(config.count_bits),
                "clear": In(1),
                "bin": Out(config.digit_bits),
                "rest": Out(config.count_bits),
                "excess": Out(config.count_bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.histogram = histogram = Histogram(cfg)
        elements, matches = Signal(cfg.lanes * cfg.padded_bits), Signal(cfg.lanes)
        m.d.comb += elements.eq(_padded(self.line, cfg.element_bits, cfg.padded_bits, cfg.lanes))
        if cfg.n_digits > 2:
            self._list(m, elements, matches)
        is_first_pass = self.number == 0
        for lane in range(cfg.lanes):
            element = elements.word_select(lane, cfg.padded_bits)
            top, second = element[-cfg.digit_bits :], element[-2 * cfg.digit_bits : -cfg.digit_bits]
            m.d.comb += matches[lane].eq(self.mask[lane] & (is_first_pass | (top == self.digit_before)))
            m.d.comb += histogram.digits[lane].eq(second)
            with m.If(is_first_pass):
                m.d.comb += histogram.digits[lane].eq(top)
        m.d.comb += [
            histogram.valid.eq(self.valid),
            histogram.first.eq(self.first),
            histogram.counted.eq(matches),
            histogram.target.eq(self.target),
            self.bin.eq(histogram.bin),
            self.rest.eq(histogram.rest),
            self.excess.eq(histogram.excess),
        ]
        return m

    def _list(self, m: Module, elements: Signal, matches: Value) -> None:
        """From pass 2 on the elements come from the list, whose top digit is then ``digit_before``'s."""
        cfg = self.config
        below = cfg.padded_bits - cfg.digit_bits
        listed = CompactList(CompactListConfig(lanes=cfg.lanes, element_bits=below, max_lines=cfg.max_lines))
        # After an early end the list still holds the elements inside the bin.
        m.submodules.listed = ResetInserter(self.clear)(listed)
        from_list = Signal()
        m.d.comb += [
            from_list.eq(self.valid & (self.number > 1)),
            listed.o.ready.eq(from_list),
            listed.i.valid.eq(self.valid & (self.number != 0) & (self.number != cfg.n_digits - 1)),
            listed.i.payload.mask.eq(matches),
            listed.i.payload.last.eq(self.last),
        ]
        with m.If(from_list):
            m.d.comb += elements.eq(_padded(listed.o.payload, below, cfg.padded_bits, cfg.lanes))
        m.d.comb += [
            listed.i.payload.data[lane].eq(elements.word_select(lane, cfg.padded_bits)[:below])
            for lane in range(cfg.lanes)
        ]


def _padded(line: Value, from_bits: int, to_bits: int, lanes: int) -> Value:
    """Each element moved to the top of a wider one, zeros below."""
    zeros = Const(0, to_bits - from_bits)
    return Cat(Cat(zeros, line.word_select(lane, from_bits)) for lane in range(lanes))
