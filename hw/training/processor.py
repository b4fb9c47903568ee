# SPDX-License-Identifier: MIT
"""The list processor: runs a norm's program for one group of channels after another."""

from collections.abc import Mapping
from itertools import pairwise

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import (
    INVERSE_BITS,
    MAX_EXPONENT,
    ROOT_POINT_BITS,
    ROOT_REST_BITS,
    ROOT_TABLE_BITS,
    SUM_BITS,
    WORD_BITS,
    TrainingConfig,
    root_table,
)
from .layouts import job_layout, out_layout
from .microcode import (
    CONSTANTS,
    N_REGISTERS,
    PROGRAMS,
    SLOT_BITS,
    From,
    Give,
    Instruction,
    Limit,
    Slot,
    program,
    starts,
)

OPERAND_BITS = 25
"""Width of operand b; signed."""
PRODUCT_BITS = SUM_BITS + OPERAND_BITS
EXPONENT_BITS = MAX_EXPONENT.bit_length()
LIMITS: Mapping[Limit, tuple[int, int]] = {
    Limit.SIGNED_48: (-(1 << 47), (1 << 47) - 1),
    Limit.SIGNED_32: (-(1 << 31), (1 << 31) - 1),
    Limit.SIGNED_24: (-(1 << 23), (1 << 23) - 1),
    Limit.SIGNED_16: (-(1 << 15), (1 << 15) - 1),
    Limit.UNSIGNED_16: (0, (1 << 16) - 1),
    Limit.MAGNITUDE_16: (-(1 << 16) + 1, (1 << 16) - 1),
    Limit.POSITIVE: (1, (1 << 47) - 1),
}


def instruction_layout() -> data.StructLayout:
    """An :class:`hw.training.microcode.Instruction`; ``writes``: there is a dest."""
    register = range(N_REGISTERS)
    return data.StructLayout(
        {
            "a": register,
            "a_from": From,
            "b": register,
            "c": register,
            "subtract": 1,
            "shift": 7,
            "job_shift": 1,
            "exponents": 2,
            "limit": Limit,
            "root": 1,
            "dest": register,
            "writes": 1,
            "takes_sum": 1,
            "sees_word": 1,
            "takes_word": 1,
            "give": Give,
            "second": 1,
            "ends": 1,
        }
    )


def encoded(instruction: Instruction) -> int:
    """As the store holds it."""
    names = [name for name in Instruction.__slots__ if name != "dest"]
    fields = {name: int(getattr(instruction, name)) for name in names}
    fields |= {"dest": instruction.dest or 0, "writes": int(instruction.dest is not None)}
    layout = instruction_layout()
    return sum(fields[name] << field.offset for name, field in layout)


class Processor(wiring.Component):
    """An instruction a cycle, but where a word to take is not there or one to give has no place.

    Four stages: registers are read; words pass and a b is made; it is shifted; rounded, added, limited and
    written. A program runs once for each group; the next job waits until the stages are empty.

    Members
    -------
    i_job : stream of :func:`hw.training.layouts.job_layout`
    i_sums, i_words : streams of words of 32 bits
    o : stream of :func:`hw.training.layouts.out_layout`, of one word each
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i_sums": In(stream.Signature(WORD_BITS)),
                "i_words": In(stream.Signature(WORD_BITS)),
                "o": Out(stream.Signature(out_layout())),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        job = Signal(job_layout(self.config), reset_less=True)
        flow = Signal()
        read = data.View(instruction_layout(), Signal(instruction_layout().size, name="read"))
        """The instruction whose registers are read, and those behind it."""
        steps = [read]
        valid = [Signal(name="read_valid")]
        for stage in ("passing", "shifting", "writing"):
            of, is_valid = Signal(instruction_layout(), name=stage), Signal(name=f"{stage}_valid")
            with m.If(flow):
                m.d.sync += [of.eq(steps[-1]), is_valid.eq(valid[-1])]
            steps.append(of)
            valid.append(is_valid)
        passing, shifting, writing = steps[1:]
        self._fetch(m, job, flow, read, valid)

        a, b, c, write = self._registers(m, flow, read, passing)
        exponent, low = Signal(EXPONENT_BITS), Signal(WORD_BITS)
        self._pass(m, flow, passing, valid[1], a, b, exponent, low)
        operand = self._operand(passing, job, a, low)
        shift = self._shift(m, passing, job, exponent)

        root, root_exponent = self._root(m, flow, operand)
        result = self._alu(m, flow, operand, b, c, shift, shifting, writing)
        m.d.comb += [
            write.en.eq(flow & valid[3] & writing.writes),
            write.addr.eq(writing.dest),
            write.data.eq(Mux(writing.root, root, result)),
        ]
        with m.If(flow & valid[3] & writing.root):
            m.d.sync += exponent.eq(root_exponent)
        with m.If(flow & valid[1] & (passing.a_from == From.WORD_HIGH)):
            m.d.sync += exponent.eq(self.i_words.payload[:EXPONENT_BITS])
        return m

    def _fetch(self, m: Module, job: data.View, flow: Signal, read: data.View, valid: list[Signal]) -> None:
        """From jobs to instructions; drives ``read``, and valid[0]."""
        instructions = [one for kernel in PROGRAMS for one in program(kernel)]
        store = memory.Memory(
            shape=unsigned(instruction_layout().size),
            depth=len(instructions),
            init=[encoded(one) for one in instructions],
        )
        m.submodules.store = store
        port = store.read_port()
        at, first, next_ = (
            Signal(range(len(instructions)), name=name) for name in ("at", "first", "next_at")
        )
        running = valid[0]
        taken = Signal()
        m.d.comb += [
            self.i_job.ready.eq(~Cat(valid).any()),
            taken.eq(self.i_job.valid & self.i_job.ready),
            port.addr.eq(next_),
            port.en.eq(flow),
            Value.cast(read).eq(port.data),
            next_.eq(Mux(read.ends, first, at + 1)),
        ]
        with m.If(taken):
            with m.Switch(self.i_job.payload.kernel):
                for kernel, start in starts().items():
                    with m.Case(kernel):
                        m.d.comb += next_.eq(start)
            m.d.sync += [job.eq(self.i_job.payload), running.eq(1), at.eq(next_), first.eq(next_)]
        with m.Elif(flow & running):
            m.d.sync += at.eq(next_)
            with m.If(read.ends):
                m.d.sync += [job.count.eq(job.count - 1), running.eq(job.count != 1)]

    def _registers(self, m: Module, flow: Signal, read: data.View, passing: data.View) -> tuple:
        """Operands of the instruction that passes words, and the port of results."""
        file = memory.Memory(
            shape=signed(SUM_BITS),
            depth=N_REGISTERS,
            init=[CONSTANTS.get(number, 0) for number in range(N_REGISTERS)],
        )
        m.submodules.registers = file
        ports = [file.read_port() for _ in range(3)]
        for port, address in zip(ports, (read.a, read.b, read.c), strict=True):
            m.d.comb += [port.addr.eq(address), port.en.eq(flow)]
        return *(port.data for port in ports), file.write_port()

    def _pass(
        self,
        m: Module,
        flow: Signal,
        of: data.View,
        valid: Signal,
        a: Value,
        b: Value,
        exponent: Signal,
        low: Signal,
    ) -> None:
        """Words in and out; drives ``flow``, and ``low``, the word before."""
        sums, words, o = self.i_sums, self.i_words, self.o
        gives = of.give != Give.NOTHING
        stalls = valid & (
            (of.takes_sum & ~sums.valid) | (of.sees_word & ~words.valid) | (gives & o.valid & ~o.ready)
        )
        m.d.comb += [
            flow.eq(~stalls),
            sums.ready.eq(flow & valid & of.takes_sum),
            words.ready.eq(flow & valid & of.takes_word),
        ]
        with m.If(sums.ready):
            m.d.sync += low.eq(sums.payload)
        with m.If(o.ready):
            m.d.sync += o.valid.eq(0)
        with m.If(flow & valid & gives):
            m.d.sync += [o.valid.eq(1), o.payload.reader.eq(of.second)]
            with m.Switch(of.give):
                with m.Case(Give.LOW):
                    m.d.sync += o.payload.data.eq(Cat(a[:16], b[:16]))
                with m.Case(Give.MAGNITUDE):
                    m.d.sync += o.payload.data.eq(Cat(Mux(x < 0, -x, x)[:16] for x in (a, b)))
                with m.Case(Give.HIGH):
                    m.d.sync += o.payload.data.eq(Cat(a[16:32], b[16:32]))
                with m.Case(Give.WHOLE):
                    m.d.sync += o.payload.data.eq(a[:32])
                with m.Default():
                    m.d.sync += o.payload.data.eq(Cat(exponent, Const(0, 8 - EXPONENT_BITS), a[:24]))

    def _operand(self, of: data.View, job: data.View, a: Value, low: Signal) -> Value:
        """Operand a."""
        word = self.i_words.payload
        return Array(
            [
                a,
                Cat(low, self.i_sums.payload[: SUM_BITS - WORD_BITS]).as_signed(),
                word.as_signed(),
                word[8:].as_signed(),
                Cat(word[: INVERSE_BITS - 1], Const(1, 1)),
                job.reciprocal,
                job.epsilon,
            ]
        )[of.a_from]

    def _shift(self, m: Module, of: data.View, job: data.View, exponent: Signal) -> Signal:
        """Places that the product is shifted by."""
        base, less = Signal(signed(SLOT_BITS)), Signal(EXPONENT_BITS + 2)
        shift = Signal(SLOT_BITS - 1)
        slots = Array(job.slots[number].as_signed() for number in range(len(Slot)))
        m.d.comb += [
            base.eq(Mux(of.job_shift, slots[of.shift], of.shift)),
            less.eq(Array([0, exponent, exponent << 1, (exponent << 1) + exponent])[of.exponents]),
            shift.eq(Mux(base > less, base - less, 0)),
        ]
        return shift

    def _alu(
        self,
        m: Module,
        flow: Signal,
        a: Value,
        b: Value,
        c: Value,
        shift: Signal,
        shifting: data.View,
        writing: data.View,
    ) -> Signal:
        """limit(c +- rnd(a b, shift)), two cycles after its operands; half up is ((2 x >> s) + 1) >> 1."""
        product = Signal(signed(PRODUCT_BITS), reset_less=True)
        shifted = Signal(signed(PRODUCT_BITS + 1), reset_less=True)
        places = Signal.like(shift, reset_less=True)
        added = [Signal(signed(SUM_BITS), name=f"added{n}", reset_less=True) for n in range(2)]
        operand, factor = Signal(signed(SUM_BITS)), Signal(signed(OPERAND_BITS))
        m.d.comb += [operand.eq(a), factor.eq(b[:OPERAND_BITS].as_signed())]
        with m.If(flow):
            m.d.sync += [
                product.eq(operand * factor),
                places.eq(shift),
                added[0].eq(c),
                shifted.eq((product << 1) >> places),
                added[1].eq(added[0]),
            ]
        rounded, total = Signal(signed(PRODUCT_BITS + 1)), Signal(signed(PRODUCT_BITS + 2))
        low, high, result = (
            Signal(signed(SUM_BITS), name=name) for name in ("low_limit", "high_limit", "result")
        )
        m.d.comb += [
            rounded.eq((shifted + 1) >> 1),
            total.eq(Mux(writing.subtract, added[1] - rounded, added[1] + rounded)),
            result.eq(Mux(total < low, low, Mux(total > high, high, total))),
        ]
        with m.Switch(writing.limit):
            for limit, (least, most) in LIMITS.items():
                with m.Case(limit):
                    m.d.comb += [low.eq(least), high.eq(most)]
        return result

    def _root(self, m: Module, flow: Signal, a: Value) -> tuple[Value, Value]:
        """Mantissa and exponent of an inverse root, two cycles after its operand."""
        cut = SUM_BITS - 2 - ROOT_TABLE_BITS - ROOT_REST_BITS
        operand, pairs = Signal(SUM_BITS), Signal(EXPONENT_BITS)
        m.d.comb += operand.eq(a)
        for pair in reversed(range(MAX_EXPONENT + 1)):
            with m.If(operand.word_select(MAX_EXPONENT - pair, 2).any()):
                m.d.comb += pairs.eq(pair)
        normalised = Signal(SUM_BITS)
        m.d.comb += normalised.eq(operand << (pairs << 1))
        x = Signal(SUM_BITS - cut, reset_less=True)
        exponents = [Signal(EXPONENT_BITS, name=f"root_exponent{n}", reset_less=True) for n in range(2)]

        points = root_table()
        table = memory.Memory(
            shape=unsigned(2 * ROOT_POINT_BITS),
            depth=len(points) - 1,
            init=[p | (p - q) << (ROOT_POINT_BITS + 1) for p, q in pairwise(points.tolist())],
        )
        m.submodules.roots = table
        port, rest = table.read_port(), Signal(ROOT_REST_BITS, reset_less=True)
        m.d.comb += [port.addr.eq(x[ROOT_REST_BITS:] - (1 << ROOT_TABLE_BITS)), port.en.eq(flow)]
        with m.If(flow):
            m.d.sync += [
                x.eq(normalised[cut:]),
                exponents[0].eq(pairs),
                exponents[1].eq(exponents[0]),
                rest.eq(x[:ROOT_REST_BITS]),
            ]
        point, drop = port.data[: ROOT_POINT_BITS + 1], port.data[ROOT_POINT_BITS + 1 :]
        line, mantissa = Signal(ROOT_POINT_BITS + 1), Signal(INVERSE_BITS)
        m.d.comb += line.eq(point - ((drop * rest) >> ROOT_REST_BITS))
        rounded = (line + (1 << (ROOT_POINT_BITS - INVERSE_BITS - 1))) >> (ROOT_POINT_BITS - INVERSE_BITS)
        m.d.comb += mantissa.eq(Mux(rounded >> INVERSE_BITS, (1 << INVERSE_BITS) - 1, rounded))
        return mantissa, exponents[1]
