# SPDX-License-Identifier: MIT
"""Amaranth implementation of the probability-times-value array."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.datapath import delayed, select, tree
from hw.kv_buffer.config import BANK_ELEMENTS, READ_LATENCY_CYCLES
from hw.kv_buffer.rtl import KvBuffer, line_address, line_layout, load_layout
from hw.stream.config import FifoConfig
from hw.stream.rtl import Fifo

from .config import LEVELS_PER_CYCLE, PROBABILITY_BITS, ROUTE_CYCLES, SHIFT_BITS, SHIFTS, PvConfig


def row_layout(config: PvConfig) -> data.StructLayout:
    """Payload of ``i_row``: where the vectors of the kept probabilities lie.

    ``head_dim`` is a place in HEAD_DIMS, ``shift`` one in SHIFTS. ``release`` other than 0: this is the last
    row that needs ``region``, which becomes free once so many lines have been loaded to it in all. ``last``:
    the sum is complete (0: it goes on with the next row's vectors).
    """
    return data.StructLayout(
        {
            "head_dim": 2,
            "region": config.buffer.region_bits,
            "shift": SHIFT_BITS,
            "release": config.buffer.count_bits,
            "last": 1,
        }
    )


def kept_layout(config: PvConfig) -> data.StructLayout:
    """Payload of ``i``: a packed beat of (probability, index of the vector in the region) pairs."""
    pair = data.StructLayout({"probability": PROBABILITY_BITS, "index": config.index_bits})
    return data.StructLayout(
        {"data": data.ArrayLayout(pair, config.lanes), "count": config.lanes.bit_length(), "last": 1}
    )


class _Lane:
    """One kept probability on its way to the banks that hold its vector."""

    def __init__(self, config: PvConfig, name: str) -> None:
        self.probability = Signal(PROBABILITY_BITS, name=f"{name}_probability", reset_less=True)
        self.line = Signal(config.buffer.line_bits, name=f"{name}_line", reset_less=True)
        self.bank = Signal(range(max(config.buffer.n_banks, 2)), name=f"{name}_bank", reset_less=True)
        """The first of them."""

    def fields(self) -> tuple[Signal, Signal, Signal]:
        return self.probability, self.line, self.bank


def _step_layout(config: PvConfig) -> data.StructLayout:
    """What goes down the pipeline beside the products of one cycle. ``first`` and ``end`` of a sum, ``free``:
    the last read of the region."""
    return data.StructLayout(
        {
            "head_dim": 2,
            "region": config.buffer.region_bits,
            "shift": SHIFT_BITS,
            "first": 1,
            "end": 1,
            "free": 1,
        }
    )


class Pv(wiring.Component):
    """M multipliers: up to M/D kept vectors a cycle, times their probabilities, into D exact sums.

    Vector v lies in line v // (M/D), slot v mod (M/D). Each slot has an address of its own, so lanes of one
    beat that name different slots go together, whatever their lines; lanes of the same slot go one after the
    other, the first lane first. Vectors in ascending order from a whole line on never conflict. A lane waits
    for a line not yet written.

    Latency ``config.latency_cycles`` from the last lane granted to ``o``, ``config.magnitude_latency_cycles``
    more to ``o_magnitude``; rows back to back. The pipeline runs freely: a row is taken only while both
    output queues have room for it.

    Members
    -------
    i_load, i_value : load and lines of the value buffer, see :class:`hw.kv_buffer.rtl.KvBuffer`
    i_row : stream of :func:`row_layout`, one beat for each list on ``i``
    i : stream of :func:`kept_layout`; a beat may be empty; lanes at and above ``count`` are ignored; at most
        ``n_max`` pairs in one sum
    freed : no port, for who loads: of each region, a pulse: its lines no longer count
    o : stream of ``max_head_dim`` signed outputs of ``element_bits`` bits, those at and above D are 0
    o_magnitude : stream of unsigned sum |o|, one beat for each beat of ``o``
    """

    def __init__(self, config: PvConfig) -> None:
        self.config = config
        outputs = data.ArrayLayout(signed(config.element_bits), config.max_head_dim)
        super().__init__(
            {
                "i_load": In(stream.Signature(load_layout(config.buffer))),
                "i_value": In(stream.Signature(line_layout(config.buffer))),
                "i_row": In(stream.Signature(row_layout(config))),
                "i": In(stream.Signature(kept_layout(config))),
                "o": Out(stream.Signature(outputs)),
                "o_magnitude": Out(stream.Signature(unsigned(config.magnitude_bits))),
            }
        )
        self.freed = Signal(config.buffer.n_regions)

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        m.submodules.values = values = KvBuffer(cfg.buffer)
        wiring.connect(m, wiring.flipped(self.i_load), values.i_load)
        wiring.connect(m, wiring.flipped(self.i_value), values.i_line)

        lanes, granted, granting = self._grant(m, values, *self._row(m))
        steps = [granting]
        """Entry c: the step that was granted c cycles ago."""
        for cycle in range(1, cfg.latency_cycles):
            held = delayed(m, Value.cast(steps[-1]), 1, f"step{cycle}", is_valid=True)
            steps.append(data.View(_step_layout(cfg), held))

        probabilities = self._route(m, values, lanes, granted, steps)
        sums = self._sums(m, values, probabilities, steps)
        self._output(m, sums, steps)
        return m

    def _row(self, m: Module) -> tuple[data.View, Signal]:
        """The row whose beats are being taken, and whether there is one."""
        cfg = self.config
        row, active = Signal(row_layout(cfg), reset_less=True), Signal()
        taken, ends, room = Signal(), Signal(), Signal()
        m.d.comb += [
            ends.eq(self.i.valid & self.i.ready & self.i.payload.last),
            self.i_row.ready.eq((~active | ends) & room),
            taken.eq(self.i_row.valid & self.i_row.ready),
        ]
        with m.If(taken):
            m.d.sync += [active.eq(1), row.eq(self.i_row.payload)]
        with m.Elif(ends):
            m.d.sync += active.eq(0)

        places = []
        for port, depth, name in (
            (self.o, cfg.output_fifo_beats, "output_places"),
            (self.o_magnitude, cfg.magnitude_fifo_beats, "magnitude_places"),
        ):
            left = Signal(range(depth + 1), init=depth, name=name)
            m.d.sync += left.eq(left - (taken & self.i_row.payload.last) + (port.valid & port.ready))
            places.append(left)
        m.d.comb += room.eq((places[0] != 0) & (places[1] != 0))
        return row, active

    def _grant(
        self, m: Module, values: KvBuffer, row: data.View, active: Signal
    ) -> tuple[list[_Lane], Signal, data.View]:
        """Holds a beat until each lane has had its turn; returns it, the lanes granted now, their step."""
        cfg = self.config
        beat = self.i.payload
        busy, ends_row, starts_sum = Signal(), Signal(), Signal(init=1)
        of_row = Signal(row_layout(cfg), reset_less=True)
        lanes = [_Lane(cfg, f"lane{i}") for i in range(cfg.lanes)]
        pending = Signal(cfg.lanes)
        earlier = [Signal(cfg.lanes, name=f"lane{i}_earlier", reset_less=True) for i in range(cfg.lanes)]
        """Lanes before this one in the same slot."""

        n_written = Signal(cfg.buffer.count_bits)
        grant = Signal(cfg.lanes)
        done, taken = Signal(), Signal()
        m.d.comb += [
            n_written.eq(select(of_row.region, list(values.n_written))),
            done.eq(busy & (pending == grant) & ~(ends_row & (n_written < of_row.release))),
            self.i.ready.eq(active & (~busy | done)),
            taken.eq(self.i.valid & self.i.ready),
        ]
        for i, lane in enumerate(lanes):
            blocked = (pending & earlier[i]).any()
            m.d.comb += grant[i].eq(pending[i] & ~blocked & (lane.line < n_written))

        m.d.sync += pending.eq(pending & ~grant)
        with m.If(taken):
            m.d.sync += [busy.eq(1), ends_row.eq(beat.last), of_row.eq(row)]
            m.d.sync += pending.eq(Cat(i < beat.count for i in range(cfg.lanes)))
        with m.Elif(done):
            m.d.sync += busy.eq(0)
        places = [self._place(beat.data[i].index, row.head_dim) for i in range(cfg.lanes)]
        for i, (lane, (line, bank)) in enumerate(zip(lanes, places, strict=True)):
            same = [bank == before for _, before in places[:i]]
            with m.If(taken):
                m.d.sync += [
                    lane.probability.eq(beat.data[i].probability),
                    lane.line.eq(line),
                    lane.bank.eq(bank),
                    earlier[i].eq(Cat(same)),
                ]

        step = Signal(_step_layout(cfg), name="granting")
        stepping = Signal()
        m.d.comb += [
            stepping.eq(grant.any() | done),
            step.head_dim.eq(of_row.head_dim),
            step.region.eq(of_row.region),
            step.shift.eq(of_row.shift),
            step.first.eq(stepping & starts_sum),
            step.end.eq(done & ends_row & of_row.last),
            step.free.eq(done & ends_row & (of_row.release != 0)),
            values.forget.eq(Mux(step.free, 1 << step.region, 0)),
            self.freed.eq(values.forget),
        ]
        with m.If(stepping):
            m.d.sync += starts_sum.eq(step.end)
        return lanes, grant, step

    def _place(self, index: Value, head_dim: Value) -> tuple[Value, Value]:
        """Line and first bank of the vector with this index."""
        bank_bits = (self.config.buffer.n_banks - 1).bit_length()
        codes = range(len(self.config.head_dims))
        line = select(head_dim, [index[bank_bits - code :] for code in codes])
        bank = select(head_dim, [Cat(Const(0, code), index[: bank_bits - code]) for code in codes])
        return line, bank

    def _route(
        self, m: Module, values: KvBuffer, lanes: list[_Lane], grant: Signal, steps: list[data.View]
    ) -> list[Value]:
        """Reads each bank where its lane says; returns the probabilities in step with the bank's elements.

        A bank without a lane gets probability 0, so that what it holds does not matter.
        """
        cfg = self.config
        granted = delayed(m, grant, 1, "granted", is_valid=True)
        moving = [_Lane(cfg, f"granted{i}") for i in range(cfg.lanes)]
        for to, lane in zip(moving, lanes, strict=True):
            m.d.sync += [target.eq(value) for target, value in zip(to.fields(), lane.fields(), strict=True)]

        probabilities = []
        for bank in range(cfg.buffer.n_banks):
            first = select(steps[1].head_dim, [Const(bank & ~mask, 16) for mask in self._part_masks()])
            hits = [Signal(name=f"bank{bank}_hit{i}") for i in range(cfg.lanes)]
            for i, (hit, lane) in enumerate(zip(hits, moving, strict=True)):
                m.d.comb += hit.eq(granted[i] & (lane.bank == first))
            enable = Signal(name=f"bank{bank}_enable")
            line = Signal(cfg.buffer.line_bits, name=f"bank{bank}_line", reset_less=True)
            probability = Signal(PROBABILITY_BITS, name=f"bank{bank}_probability", reset_less=True)
            m.d.sync += [
                enable.eq(Cat(hits).any()),
                line.eq(_one_of(hits, [lane.line for lane in moving])),
                probability.eq(_one_of(hits, [lane.probability for lane in moving])),
            ]
            m.d.comb += [
                values.enable[bank].eq(enable),
                values.address[bank].eq(line_address(cfg.buffer, steps[2].region, line)),
            ]
            probabilities.append(delayed(m, probability, READ_LATENCY_CYCLES, f"bank{bank}_probability"))
        m.d.comb += values.free.eq(Mux(steps[2].free, 1 << steps[2].region, 0))
        return probabilities

    def _part_masks(self) -> list[int]:
        """Bits of a bank's number that name a part of the vector, for each head dimension."""
        return [(1 << code) - 1 for code in range(len(self.config.head_dims))]

    def _sums(
        self, m: Module, values: KvBuffer, probabilities: list[Value], steps: list[data.View]
    ) -> list[Signal]:
        """Accumulators, one for each dimension; the cycle after a sum's last step they hold all of it."""
        cfg = self.config
        parts = cfg.max_head_dim // BANK_ELEMENTS
        joining = ROUTE_CYCLES + READ_LATENCY_CYCLES + 1 + cfg.tree_stages
        accumulating = joining + 1
        sums = []
        by_part = [
            [self._part_sum(m, values, probabilities, part, e) for e in range(BANK_ELEMENTS)]
            for part in range(parts)
        ]
        for dim in range(cfg.max_head_dim):
            part, e = divmod(dim, BANK_ELEMENTS)
            of_part = [by_part[other][e] for other in range(parts)]
            choices = []
            for mask in self._part_masks():
                joined = [of_part[other] for other in range(parts) if other & mask == part]
                choices.append(sum(joined[1:], joined[0]) if joined else Const(0))
            term = Signal(signed(cfg.step_sum_bits), name=f"term{dim}", reset_less=True)
            total = Signal(signed(cfg.sum_bits), name=f"total{dim}", reset_less=True)
            m.d.sync += [
                term.eq(select(steps[joining].head_dim, choices)),
                total.eq(Mux(steps[accumulating].first, 0, total) + term),
            ]
            sums.append(total)
        return sums

    def _part_sum(self, m: Module, values: KvBuffer, probabilities: list[Value], part: int, e: int) -> Value:
        """Sum over the banks that hold this part of a vector of the largest head dimension."""
        cfg = self.config
        terms: list[Value] = []
        for bank in range(part, cfg.buffer.n_banks, cfg.max_head_dim // BANK_ELEMENTS):
            product = Signal(signed(cfg.product_bits), name=f"product{bank}_{e}", reset_less=True)
            m.d.sync += product.eq(values.elements[bank][e] * probabilities[bank])
            terms.append(product)
        return tree(m, terms, f"sum{part}_{e}", levels_per_cycle=LEVELS_PER_CYCLE)

    def _output(self, m: Module, sums: list[Signal], steps: list[data.View]) -> None:
        """Shifts, rounds and saturates whole sums, adds their magnitudes, and queues both."""
        cfg = self.config
        queued = cfg.latency_cycles - 1
        outputs: list[Value] = []
        magnitudes: list[Value] = []
        low, high = -(1 << (cfg.element_bits - 1)), (1 << (cfg.element_bits - 1)) - 1
        for dim, total in enumerate(sums):
            # All but the last bit of the shift; the last one, with the half that rounds, comes a cycle later.
            shifted = Signal(signed(cfg.sum_bits - SHIFTS[0] + 1), name=f"shifted{dim}", reset_less=True)
            rounded = Signal(signed(cfg.sum_bits - SHIFTS[0] + 1), name=f"rounded{dim}")
            output = Signal(signed(cfg.element_bits), name=f"output{dim}", reset_less=True)
            magnitude = Signal(signed(cfg.element_bits + 1), name=f"magnitude{dim}", reset_less=True)
            m.d.sync += shifted.eq(_shifted(total, SHIFTS[0] - 1, steps[queued - 2].shift))
            m.d.comb += rounded.eq((shifted + 1) >> 1)
            m.d.sync += [
                output.eq(Mux(rounded < low, low, Mux(rounded > high, high, rounded))),
                magnitude.eq(Mux(output < 0, -output, output)),
            ]
            outputs.append(output)
            magnitudes.append(magnitude)

        m.submodules.queue = queue = Fifo(
            FifoConfig(width_bits=cfg.max_head_dim * cfg.element_bits, depth=cfg.output_fifo_beats)
        )
        m.submodules.magnitude_queue = magnitude_queue = Fifo(
            FifoConfig(width_bits=cfg.magnitude_bits, depth=cfg.magnitude_fifo_beats)
        )
        total = tree(m, magnitudes, "magnitude_sum", levels_per_cycle=LEVELS_PER_CYCLE)
        end = steps[queued].end
        m.d.comb += [
            queue.i.valid.eq(end),
            queue.i.payload.eq(Cat(outputs)),
            magnitude_queue.i.valid.eq(
                delayed(m, end, cfg.magnitude_latency_cycles, "magnitude_end", is_valid=True)
            ),
            magnitude_queue.i.payload.eq(total),
            self.o.valid.eq(queue.o.valid),
            Value.cast(self.o.payload).eq(queue.o.payload),
            queue.o.ready.eq(self.o.ready),
            self.o_magnitude.valid.eq(magnitude_queue.o.valid),
            self.o_magnitude.payload.eq(magnitude_queue.o.payload),
            magnitude_queue.o.ready.eq(self.o_magnitude.ready),
        ]


def _one_of(hits: Sequence[Value], values: Sequence[Value]) -> Value:
    """The value whose hit is set, at most one of them; 0 for none."""
    return reduce(or_, (Mux(hit, value, 0) for hit, value in zip(hits, values, strict=True)))


def _shifted(value: Value, least: int, more: Value) -> Value:
    """Signed ``value`` shifted right by ``least + more``, a stage for each bit of ``more``."""
    value = value >> least
    for stage in range(len(more)):
        value = Mux(more[stage], value >> (1 << stage), value)
    return value
