# SPDX-License-Identifier: MIT
"""Amaranth implementation of the softmax: three stages on successive rows, free-running pipelines between."""

from itertools import pairwise

import numpy as np
from amaranth import Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo, packed_layout

from .config import (
    EXPONENT_BITS,
    EXPONENT_FRACTION_BITS,
    MANTISSA_FRACTION_BITS,
    MAX_ROWS,
    MULTIPLIER_BITS,
    OUTPUT_FIFO_BEATS,
    RECIPROCAL_FRACTION_BITS,
    RECIPROCAL_TABLE_BITS,
    SHIFT_BITS,
    SUM_FRACTION_BITS,
    TABLE_BITS,
    SoftmaxConfig,
    exponential_table,
    reciprocal_table,
)

INVERSE_BITS = RECIPROCAL_FRACTION_BITS + 1


def row_layout() -> data.StructLayout:
    """Payload of ``i_row``: what turns a score difference into a base-2 exponent."""
    return data.StructLayout({"multiplier": MULTIPLIER_BITS, "shift": SHIFT_BITS})


class Softmax(wiring.Component):
    """Softmax of one row after another, in fixed point; numbers as in :mod:`hw.softmax.golden`.

    Stage 1 buffers the scores and finds the maximum. Stage 2 reads them back, turns each into a power of two
    of its distance from the maximum, buffers that, sums, and inverts the sum: the probability of the maximum
    leaves on ``o_row``. Stage 3 waits for the decision; it drops the row, or multiplies each exponential by
    the inverse. The stages work on successive rows, one beat a cycle each. Inside a stage nothing stalls: a
    line is read only if its results have a place. Cycles: :mod:`hw.softmax.cycles`.

    Members
    -------
    i_row : stream of :func:`row_layout`, one beat a row
    i : stream of :func:`hw.stream.rtl.packed_layout` of signed scores; dense rows, 1..n_max keys
    o_row : stream of ``max_probability`` (``probability_bits``), one beat a row, before its division
    i_decision : stream of ``drop``, one beat a row: 1 discards the row's probabilities
    o : stream of :func:`hw.stream.rtl.packed_layout` of probabilities of ``probability_bits``; dense rows
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_row": In(stream.Signature(row_layout())),
                "i": In(stream.Signature(packed_layout(config.score_bits, config.lanes))),
                "o_row": Out(stream.Signature(_report_layout(config))),
                "i_decision": In(stream.Signature(data.StructLayout({"drop": 1}))),
                "o": Out(stream.Signature(packed_layout(config.probability_bits, config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.collect = collect = _Collect(cfg)
        m.submodules.exponentials = exponentials = _Exponentials(cfg)
        m.submodules.divide = divide = _Divide(cfg)
        m.submodules.rows = rows = Fifo(FifoConfig(width_bits=row_layout().size, depth=MAX_ROWS + 2))
        m.d.comb += [
            rows.i.payload.eq(Value.cast(self.i_row.payload)),
            rows.i.valid.eq(self.i_row.valid),
            self.i_row.ready.eq(rows.i.ready),
        ]
        wiring.connect(m, wiring.flipped(self.i), collect.i)
        wiring.connect(m, rows.o, exponentials.i_row)
        wiring.connect(m, collect.o_row, exponentials.i_maximum)
        wiring.connect(m, collect.lines, exponentials.lines)
        wiring.connect(m, exponentials.o_row, wiring.flipped(self.o_row))
        wiring.connect(m, exponentials.o_shape, divide.i_shape)
        wiring.connect(m, exponentials.o_inverse, divide.i_inverse)
        wiring.connect(m, exponentials.lines_out, divide.lines)
        wiring.connect(m, wiring.flipped(self.i_decision), divide.i_decision)
        wiring.connect(m, divide.o, wiring.flipped(self.o))
        return m


def _report_layout(config: SoftmaxConfig) -> data.StructLayout:
    """Payload of ``o_row``."""
    return data.StructLayout({"max_probability": config.probability_bits})


def _lines_signature(bits: int, config: SoftmaxConfig) -> wiring.Signature:
    """Read side of a ring of lines: ``take`` frees the next line, whose data follow a cycle later."""
    return wiring.Signature(
        {
            "take": In(1),
            "skip": In(config.line_count_bits),  # lines freed unread, at the same time
            "data": Out(unsigned(bits * config.lanes)),
        }
    )


class _Ring(wiring.Component):
    """A buffer of lines in order of arrival. ``has_room`` counts lines reserved, which are written later."""

    def __init__(self, bits: int, config: SoftmaxConfig) -> None:
        self.config = config
        super().__init__(
            {
                "reserve": In(1),
                "has_room": Out(1),
                "write": In(1),
                "w_data": In(unsigned(bits * config.lanes)),
                "lines": Out(_lines_signature(bits, config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        depth = self.config.buffer_lines
        m.submodules.words = words = memory.Memory(shape=self.w_data.shape(), depth=depth, init=[])
        write, read = words.write_port(), words.read_port()
        level = Signal(range(depth + 1))
        m.d.comb += [
            self.has_room.eq(level != depth),
            write.data.eq(self.w_data),
            write.en.eq(self.write),
            read.en.eq(1),
            self.lines.data.eq(read.data),
        ]
        freed = self.lines.take + self.lines.skip
        # The depth is a power of two: addresses wrap by themselves.
        next_line = Signal(range(depth))
        m.d.comb += read.addr.eq(next_line)
        m.d.sync += [
            level.eq(level + self.reserve - freed),
            next_line.eq(next_line + freed),
            write.addr.eq(write.addr + self.write),
        ]
        return m


def _shape_layout(config: SoftmaxConfig) -> dict[str, int]:
    """Beats of a row, and keys of its last beat."""
    return {"n_lines": config.line_count_bits, "last_count": config.lanes.bit_length()}


class _Collect(wiring.Component):
    """Stage 1: the scores into a ring, the row's maximum by a tree of L lanes and a running comparison."""

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config
        self.row = data.StructLayout({"maximum": signed(config.score_bits), **_shape_layout(config)})
        super().__init__(
            {
                "i": In(stream.Signature(packed_layout(config.score_bits, config.lanes))),
                "o_row": Out(stream.Signature(self.row)),
                "lines": Out(_lines_signature(config.score_bits, config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.ring = ring = _Ring(cfg.score_bits, cfg)
        m.submodules.fifo = fifo = Fifo(FifoConfig(width_bits=self.row.size, depth=MAX_ROWS))
        wiring.connect(m, wiring.flipped(self.lines), ring.lines)

        n_waiting = Signal(range(MAX_ROWS + 1))
        """Rows taken whole that stage 2 has not begun: each has a place in the queue."""
        n_before = Signal(cfg.line_count_bits)
        """Lines of the row already taken."""
        take = self.i.valid & self.i.ready
        payload = self.i.payload
        m.d.comb += [
            self.i.ready.eq(ring.has_room & (n_waiting != MAX_ROWS)),
            ring.reserve.eq(take),
            ring.write.eq(take),
            ring.w_data.eq(Value.cast(payload.data)),
        ]
        begun = self.o_row.valid & self.o_row.ready
        m.d.sync += n_waiting.eq(n_waiting + (take & payload.last) - begun)
        with m.If(take):
            m.d.sync += n_before.eq(Mux(payload.last, 0, n_before + 1))

        valid, last = Signal(), Signal(reset_less=True)
        shape = Signal(data.StructLayout(_shape_layout(cfg)), reset_less=True)
        m.d.sync += [
            valid.eq(take),
            last.eq(payload.last),
            shape.n_lines.eq(n_before + 1),
            shape.last_count.eq(payload.count),
        ]
        lowest = -(1 << (cfg.score_bits - 1))
        scores = []
        for lane in range(cfg.lanes):
            score = Signal(signed(cfg.score_bits), name=f"score{lane}", reset_less=True)
            m.d.sync += score.eq(Mux(lane < payload.count, payload.data[lane].as_signed(), lowest))
            scores.append(score)
        for level in range(cfg.tree_levels):
            below, scores = scores, []
            for pair in range(len(below) // 2):
                larger = Signal(signed(cfg.score_bits), name=f"larger{level}_{pair}", reset_less=True)
                a, b = below[2 * pair], below[2 * pair + 1]
                m.d.sync += larger.eq(Mux(a > b, a, b))
                scores.append(larger)
        valid = _delay(m, valid, cfg.tree_levels, "valid", resets=True)
        last = _delay(m, last, cfg.tree_levels, "last")
        shape = _delay(m, shape, cfg.tree_levels, "shape")

        running, best = (Signal(signed(cfg.score_bits), init=lowest, name=n) for n in ("running", "best"))
        m.d.comb += best.eq(Mux(scores[0] > running, scores[0], running))
        with m.If(valid):
            m.d.sync += running.eq(Mux(last, lowest, best))
        m.d.comb += [
            fifo.i.valid.eq(valid & last),
            fifo.i.payload.eq(Cat(best, shape)),
            Value.cast(self.o_row.payload).eq(fifo.o.payload),
            self.o_row.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o_row.ready),
        ]
        return m


class _Exponentials(wiring.Component):
    """Stage 2: scores to exponentials, their sum, its inverse."""

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config
        collected = data.StructLayout({"maximum": signed(config.score_bits), **_shape_layout(config)})
        super().__init__(
            {
                "i_row": In(stream.Signature(unsigned(row_layout().size))),
                "i_maximum": In(stream.Signature(collected)),
                "lines": In(_lines_signature(config.score_bits, config)),
                "o_row": Out(stream.Signature(_report_layout(config))),
                "o_shape": Out(stream.Signature(data.StructLayout(_shape_layout(config)))),
                "o_inverse": Out(stream.Signature(_inverse_layout(config))),
                "lines_out": Out(_lines_signature(config.stored_fraction_bits + 1, config)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.ring = ring = _Ring(cfg.stored_fraction_bits + 1, cfg)
        wiring.connect(m, wiring.flipped(self.lines_out), ring.lines)
        shape_bits = data.StructLayout(_shape_layout(cfg)).size
        m.submodules.shapes = shapes = Fifo(FifoConfig(width_bits=shape_bits, depth=MAX_ROWS))
        m.submodules.inverses = inverses = Fifo(
            FifoConfig(width_bits=_inverse_layout(cfg).size, depth=MAX_ROWS)
        )
        m.submodules.reports = reports = Fifo(FifoConfig(width_bits=cfg.probability_bits, depth=MAX_ROWS))
        for fifo, out in ((shapes, self.o_shape), (inverses, self.o_inverse), (reports, self.o_row)):
            m.d.comb += [
                Value.cast(out.payload).eq(fifo.o.payload),
                out.valid.eq(fifo.o.valid),
                fifo.o.ready.eq(out.ready),
            ]

        # One line a cycle; the next row is taken while the last line of the row before is read.
        row = data.View(row_layout(), self.i_row.payload)
        n_left = Signal(cfg.line_count_bits)
        last_count = Signal(cfg.lanes.bit_length(), reset_less=True)
        maximum = Signal(signed(cfg.score_bits), reset_less=True)
        multiplier = Signal(MULTIPLIER_BITS, reset_less=True)
        shift = Signal(SHIFT_BITS, reset_less=True)
        n_unreported = Signal(range(MAX_ROWS + 1))
        """Rows taken whose maximum has not left: each has a place in the queue of ``o_row``."""
        read, is_last, begin = Signal(), Signal(), Signal()
        m.d.comb += [
            read.eq((n_left != 0) & ring.has_room),
            is_last.eq(n_left == 1),
            begin.eq(
                ((n_left == 0) | (read & is_last))
                & self.i_maximum.valid
                & self.i_row.valid
                & shapes.i.ready
                & (n_unreported != MAX_ROWS)
            ),
            self.i_maximum.ready.eq(begin),
            self.i_row.ready.eq(begin),
            shapes.i.valid.eq(begin),
            shapes.i.payload.eq(Cat(self.i_maximum.payload.n_lines, self.i_maximum.payload.last_count)),
            self.lines.take.eq(read),
            ring.reserve.eq(read),
        ]
        m.d.sync += n_unreported.eq(n_unreported + begin - (self.o_row.valid & self.o_row.ready))
        with m.If(begin):
            m.d.sync += [
                n_left.eq(self.i_maximum.payload.n_lines),
                last_count.eq(self.i_maximum.payload.last_count),
                maximum.eq(self.i_maximum.payload.maximum),
                multiplier.eq(row.multiplier),
                shift.eq(row.shift),
            ]
        with m.Elif(read):
            m.d.sync += n_left.eq(n_left - 1)

        full = (1 << cfg.lanes) - 1
        inside = Signal(cfg.lanes, reset_less=True)
        m.d.sync += inside.eq(Mux(is_last, Cat(lane < last_count for lane in range(cfg.lanes)), full))
        depth = 10  # registers from the line read to its exponentials
        valid = _delay(m, read, 1 + depth, "valid", resets=True)
        last = _delay(m, is_last, 1 + depth, "last")
        inside = _delay(m, inside, depth - 1, "inside")
        held = [_delay(m, value, 1, name) for value, name in ((maximum, "row_maximum"), (shift, "row_shift"))]
        maximum, shift = held
        # A row's parameters change with its lines, so each pipeline register of the lines has one of theirs.
        shift1 = _delay(m, shift, 1, "shift1")
        shift2 = _delay(m, shift1, 1, "shift2")
        multiplier = _delay(m, multiplier, 4, "row_multiplier")
        exponentials = []
        for lane in range(cfg.lanes):
            score = self.lines.data.word_select(lane, cfg.score_bits).as_signed()
            e = _exponential(m, lane, score, maximum, shift1, shift2, multiplier, inside[lane], cfg)
            exponentials.append(e)
        cut = SUM_FRACTION_BITS - cfg.stored_fraction_bits
        m.d.comb += [
            ring.write.eq(valid),
            ring.w_data.eq(Cat(e[cut:] for e in exponentials)),
        ]

        line_sum = _add_tree(m, exponentials, cfg)
        valid = _delay(m, valid, cfg.sum_stages, "sum_valid", resets=True)
        last = _delay(m, last, cfg.sum_stages, "sum_last")
        partial, total = Signal(cfg.sum_bits), Signal(cfg.sum_bits, reset_less=True)
        total_valid = Signal()
        new_sum = Signal(cfg.sum_bits)
        m.d.comb += new_sum.eq(partial + line_sum)
        m.d.sync += [total.eq(new_sum), total_valid.eq(valid & last)]
        with m.If(valid):
            m.d.sync += partial.eq(Mux(last, 0, new_sum))

        inverse, power = _reciprocal(m, total, cfg)
        done = _delay(m, total_valid, 5, "inverse_valid", resets=True)
        one = Signal(cfg.probability_bits + 2, name="one")
        m.d.comb += [
            one.eq(inverse >> (RECIPROCAL_FRACTION_BITS - cfg.probability_bits - 1 + power)),
            reports.i.valid.eq(done),
            reports.i.payload.eq(_rounded(one, cfg)),
            inverses.i.valid.eq(done),
            inverses.i.payload.eq(Cat(inverse, power)),
        ]
        return m


def _inverse_layout(config: SoftmaxConfig) -> data.StructLayout:
    """Mantissa of 1 / sum, and the power of two below it."""
    return data.StructLayout({"mantissa": INVERSE_BITS, "power": range(config.n_max.bit_length())})


def _exponential(m, lane, score, maximum, shift1, shift2, multiplier, inside, cfg: SoftmaxConfig) -> Signal:
    """One lane from a score to 2^-t: ten registers, results 0 outside the row."""

    def register(name: str, bits: int, value) -> Signal:
        held = Signal(bits, name=f"{name}{lane}", reset_less=True)
        m.d.sync += held.eq(value)
        return held

    # min(floor(d 2^(22 - shift)), 2^22 - 1): by multiples of 8, then by 0..7.
    distance = register("distance", cfg.score_bits, maximum - score)
    wide = EXPONENT_BITS + cfg.score_bits
    coarse = register("coarse", wide, (distance << EXPONENT_BITS) >> (shift1 & 0x38))
    fine = Signal(wide, name=f"fine{lane}")
    m.d.comb += fine.eq(coarse >> shift2[:3])
    aligned = register("aligned", EXPONENT_BITS, fine | fine[EXPONENT_BITS:].any().replicate(EXPONENT_BITS))

    # The product of 22 by 18 bits, from four of 11 by 9.
    half, part = EXPONENT_BITS // 2, MULTIPLIER_BITS // 2
    low, high = aligned[:half], aligned[half:]
    m_low, m_high = multiplier[:part], multiplier[part:]
    products = [
        register(name, half + part, a * b)
        for name, a, b in (
            ("low_low", low, m_low),
            ("low_high", low, m_high),
            ("high_low", high, m_low),
            ("high_high", high, m_high),
        )
    ]
    bits = EXPONENT_BITS + MULTIPLIER_BITS
    lower = register("lower", bits, products[0] + (products[1] << part))
    upper = register("upper", bits, (products[2] << half) + (products[3] << (half + part)))
    t = register("t", EXPONENT_BITS, (lower + upper) >> MULTIPLIER_BITS)

    rest_bits = EXPONENT_FRACTION_BITS - TABLE_BITS
    point, drop = _table(m, f"power{lane}", exponential_table(), t[rest_bits:EXPONENT_FRACTION_BITS])
    point = register("point", MANTISSA_FRACTION_BITS + 1, point)
    drop = register("drop", len(drop), drop)
    rest = register("rest", rest_bits, t[:rest_bits])
    whole = register("whole0_", EXPONENT_BITS - EXPONENT_FRACTION_BITS, t[EXPONENT_FRACTION_BITS:])

    fall = register("fall", len(drop), (drop * rest) >> rest_bits)
    point = register("point1_", len(point), point)
    whole = register("whole1_", len(whole), whole)
    mantissa = register("mantissa", len(point), point - fall)
    whole = register("whole2_", len(whole), whole)
    shifted = (mantissa << (SUM_FRACTION_BITS - MANTISSA_FRACTION_BITS)) >> whole
    return register("exponential", SUM_FRACTION_BITS + 1, Mux(inside, shifted, 0))


def _table(m: Module, name: str, points: np.ndarray, index: Value) -> tuple[Signal, Signal]:
    """Point ``index`` and its fall to the next one."""
    values = points.tolist()
    falls = [a - b for a, b in pairwise(values)]
    point = Signal(max(values).bit_length(), name=f"{name}_point")
    fall = Signal(max(falls).bit_length(), name=f"{name}_fall")
    with m.Switch(index):
        for i, drop in enumerate(falls):
            with m.Case(i):
                m.d.comb += [point.eq(values[i]), fall.eq(drop)]
    return point, fall


def _add_tree(m: Module, terms: list[Signal], cfg: SoftmaxConfig) -> Signal:
    """Sum of the lanes: a register after every second level."""
    for level in range(cfg.tree_levels):
        below, terms = terms, []
        registered = level % 2 == 1 or level == cfg.tree_levels - 1
        for pair in range(len(below) // 2):
            total = Signal(SUM_FRACTION_BITS + 2 + level, name=f"sum{level}_{pair}", reset_less=registered)
            domain = m.d.sync if registered else m.d.comb
            domain += total.eq(below[2 * pair] + below[2 * pair + 1])
            terms.append(total)
    return terms[0]


def _reciprocal(m: Module, total: Signal, cfg: SoftmaxConfig) -> tuple[Signal, Signal]:
    """Mantissa and power of the inverse of a sum of at least 1.0: five registers."""

    def register(name: str, bits: int, value) -> Signal:
        held = Signal(bits, name=f"inverse_{name}", reset_less=True)
        m.d.sync += held.eq(value)
        return held

    n_powers = cfg.n_max.bit_length()
    highest = Signal(range(n_powers), name="highest")
    for power in range(1, n_powers):
        with m.If(total[SUM_FRACTION_BITS + power]):
            m.d.comb += highest.eq(power)
    power = register("power0", len(highest), highest)
    held = register("sum", len(total), total)

    cut = SUM_FRACTION_BITS - RECIPROCAL_FRACTION_BITS
    fraction = register("fraction", RECIPROCAL_FRACTION_BITS, held >> (cut + power))
    power = register("power1", len(highest), power)

    rest_bits = RECIPROCAL_FRACTION_BITS - RECIPROCAL_TABLE_BITS
    point, drop = _table(m, "inverse", reciprocal_table(), fraction[rest_bits:])
    point, drop = register("point", len(point), point), register("drop", len(drop), drop)
    rest = register("rest", rest_bits, fraction[:rest_bits])
    power = register("power2", len(highest), power)

    fall = register("fall", len(drop), (drop * rest) >> rest_bits)
    point = register("point1", len(point), point)
    power = register("power3", len(highest), power)
    mantissa = register("mantissa", INVERSE_BITS, point - fall)
    return mantissa, register("power4", len(highest), power)


class _Divide(wiring.Component):
    """Stage 3: drops a row, or multiplies its exponentials by the inverse of their sum, and rounds."""

    def __init__(self, config: SoftmaxConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_shape": In(stream.Signature(data.StructLayout(_shape_layout(config)))),
                "i_inverse": In(stream.Signature(_inverse_layout(config))),
                "i_decision": In(stream.Signature(data.StructLayout({"drop": 1}))),
                "lines": In(_lines_signature(config.stored_fraction_bits + 1, config)),
                "o": Out(stream.Signature(packed_layout(config.probability_bits, config.lanes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        out_layout = packed_layout(cfg.probability_bits, cfg.lanes)
        m.submodules.fifo = fifo = Fifo(FifoConfig(width_bits=out_layout.size, depth=OUTPUT_FIFO_BEATS))
        m.d.comb += [
            Value.cast(self.o.payload).eq(fifo.o.payload),
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
        ]

        n_left = Signal(cfg.line_count_bits)
        last_count = Signal(cfg.lanes.bit_length(), reset_less=True)
        mantissa = Signal(INVERSE_BITS, reset_less=True)
        power = Signal.like(self.i_inverse.payload.power, reset_less=True)
        n_in_flight = Signal(range(OUTPUT_FIFO_BEATS + 1))
        """Lines read whose beat has not left: each has a place in the output queue."""
        read, is_last, begin, drop = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            read.eq((n_left != 0) & (n_in_flight != OUTPUT_FIFO_BEATS)),
            is_last.eq(n_left == 1),
            # The inverse of a row comes after its shape, so it alone tells that the row is complete.
            begin.eq(((n_left == 0) | (read & is_last)) & self.i_inverse.valid & self.i_decision.valid),
            drop.eq(begin & self.i_decision.payload.drop),
            self.i_shape.ready.eq(begin),
            self.i_inverse.ready.eq(begin),
            self.i_decision.ready.eq(begin),
            self.lines.take.eq(read),
            self.lines.skip.eq(Mux(drop, self.i_shape.payload.n_lines, 0)),
        ]
        m.d.sync += n_in_flight.eq(n_in_flight + read - (self.o.valid & self.o.ready))
        with m.If(read):
            m.d.sync += n_left.eq(n_left - 1)
        with m.If(begin & ~drop):
            m.d.sync += [
                n_left.eq(self.i_shape.payload.n_lines),
                last_count.eq(self.i_shape.payload.last_count),
                mantissa.eq(self.i_inverse.payload.mantissa),
                power.eq(self.i_inverse.payload.power),
            ]

        valid = _delay(m, read, 4, "valid", resets=True)
        last = _delay(m, is_last, 4, "last")
        count = _delay(m, Mux(is_last, last_count, cfg.lanes), 4, "count")
        mantissa = _delay(m, mantissa, 1, "row_mantissa")
        power = _delay(m, power, 3, "row_power")
        o = Signal(out_layout, name="probabilities")
        low_bits = INVERSE_BITS // 2
        stored_bits = cfg.stored_fraction_bits + 1
        product_bits = stored_bits + INVERSE_BITS
        cut = cfg.stored_fraction_bits + RECIPROCAL_FRACTION_BITS - cfg.probability_bits - 1
        for lane in range(cfg.lanes):
            e = self.lines.data.word_select(lane, stored_bits)
            low, high, product, halves = (
                Signal(bits, name=f"{name}{lane}", reset_less=True)
                for name, bits in (
                    ("low", stored_bits + low_bits),
                    ("high", product_bits - low_bits),
                    ("product", product_bits),
                    ("halves", cfg.probability_bits + 2),
                )
            )
            m.d.sync += [
                low.eq(e * mantissa[:low_bits]),
                high.eq(e * mantissa[low_bits:]),
                product.eq(low + (high << low_bits)),
                halves.eq(product >> (cut + power)),
            ]
            m.d.comb += o.data[lane].eq(_rounded(halves, cfg))
        m.d.comb += [
            o.count.eq(count),
            o.last.eq(last),
            fifo.i.valid.eq(valid),
            fifo.i.payload.eq(Value.cast(o)),
        ]
        return m


def _rounded(halves: Signal, config: SoftmaxConfig) -> Value:
    """Half units to units, half up; 1.0 becomes one unit less."""
    units = (halves + 1) >> 1
    largest = (1 << config.probability_bits) - 1
    return Mux(units > largest, largest, units)[: config.probability_bits]


def _delay(m: Module, value, cycles: int, name: str, *, resets: bool = False):
    """``value`` that many cycles later; ``resets`` where it must be 0 after reset (valid bits)."""
    shape = value.shape() if isinstance(value, Value | data.View) else Shape.cast(value)
    for stage in range(cycles):
        held = Signal(shape, name=f"{name}_{stage + 1}", reset_less=not resets)
        m.d.sync += held.eq(value)
        value = held
    return value
