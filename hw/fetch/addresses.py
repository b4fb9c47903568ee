# SPDX-License-Identifier: MIT
"""Kept tokens to atom addresses, dealt over the ports."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .config import ATOM_BITS, ATOM_BYTES, CUT_BITS, MAX_RECORD_ATOMS, ROW_UNIT_BITS, AddressConfig
from .shapes import atom_address_layout, counters_layout, cut_layout, kept_layout, request_layout

_UNITS_PER_ATOM = ATOM_BITS // ROW_UNIT_BITS
_RECORD_UNITS = MAX_RECORD_ATOMS * _UNITS_PER_ATOM


class _Stage:
    """Handshake of one pipeline register: free when empty or when what it holds leaves."""

    def __init__(self, m: Module, name: str) -> None:
        self.valid_in, self.leaves = Signal(name=f"{name}_valid_in"), Signal(name=f"{name}_leaves")
        self.valid, self.ready, self.load = (Signal(name=f"{name}_{s}") for s in ("valid", "ready", "load"))
        m.d.comb += [
            self.ready.eq(~self.valid | self.leaves),
            self.load.eq(self.ready & self.valid_in),
        ]
        with m.If(self.ready):
            m.d.sync += self.valid.eq(self.valid_in)


class _Plan:
    """What the stages below know of a request, registered along with its tokens."""

    def __init__(self, config: AddressConfig, name: str) -> None:
        def register(field: str, shape) -> Signal:
            return Signal(shape, name=f"{name}_{field}", reset_less=True)

        self.base = register("base", config.atom_address_bits)
        self.n_atoms = register("n_atoms", range(MAX_RECORD_ATOMS + 1))
        self.ideal_units = register("ideal_units", range(_RECORD_UNITS + 1))
        self.cut = Signal(cut_layout(), name=f"{name}_cut")

    def take(self, other: "_Plan") -> list:
        return [getattr(self, f).eq(getattr(other, f)) for f in ("base", "n_atoms", "ideal_units", "cut")]


class AddressGenerator(wiring.Component):
    """Turns the kept tokens of a request into the atoms that hold the wanted rows, each atom once.

    The r-th kept token belongs to port r mod n_ports, which lists the atoms of that token's record in
    ascending order, one a cycle; tokens ascend, so a port's addresses do. A request starts at port 0.
    Requests and kept lists are taken one after the other without a gap: address arithmetic takes
    ``LATENCY_CYCLES`` and is pipelined. A beat of kept tokens waits until all its ports are free.

    Throughput: one beat of kept tokens a cycle, and n_ports atoms a cycle; a port takes a token each n_atoms
    cycles.

    Members
    -------
    i_request : stream of :class:`hw.fetch.layout.Request`
    i_kept : stream of packed token indices; one dense list, of at least one token, for each request
    o{p} : stream of ``address`` (number of an atom) and ``note`` (:func:`hw.fetch.shapes.cut_layout`)
    o_counters : stream of ``ideal_bytes`` and ``moved_bytes``, one beat a request
    """

    def __init__(self, config: AddressConfig) -> None:
        self.config = config
        atom = stream.Signature(atom_address_layout(config.atom_address_bits, CUT_BITS))
        super().__init__(
            {
                "i_request": In(stream.Signature(request_layout(config))),
                "i_kept": In(stream.Signature(kept_layout(config))),
                **{f"o{port}": Out(atom) for port in range(config.n_ports)},
                "o_counters": Out(stream.Signature(counters_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        product, start = _Stage(m, "product"), _Stage(m, "start")
        planned, plan, stride = self._plan_request(m)
        kept = self.i_kept
        m.d.comb += [
            kept.ready.eq(planned.valid & product.ready),
            product.valid_in.eq(planned.valid & kept.valid),
            product.leaves.eq(start.ready),
            start.valid_in.eq(product.valid),
            planned.leaves.eq(product.load & kept.payload.last),
        ]

        product_plan, start_plan = _Plan(self.config, "product"), _Plan(self.config, "start")
        counts, lasts = self._follow(m, product, start)
        with m.If(product.load):
            m.d.sync += product_plan.take(plan)
        with m.If(start.load):
            m.d.sync += start_plan.take(product_plan)
        starts = []
        for lane in range(self.config.kept_lanes):
            token = kept.payload.data[lane]
            distance = Signal(self.config.token_bits + 3, name=f"distance{lane}", reset_less=True)
            address = Signal(self.config.atom_address_bits, name=f"start{lane}", reset_less=True)
            parts = [Mux(stride[bit], token << bit, 0) for bit in range(3)]
            with m.If(product.load):
                m.d.sync += distance.eq(parts[0] + parts[1] + parts[2])
            with m.If(start.load):
                m.d.sync += address.eq(product_plan.base + distance)
            starts.append(address)

        counter_ready = self._count(m, start, start_plan, counts, lasts)
        self._deal(m, start, start_plan, starts, counts, lasts, counter_ready)
        return m

    def _plan_request(self, m: Module) -> tuple[_Stage, _Plan, Signal]:
        """Three registers: the row's length; bounds of the rows in a record; atoms, stride and first atom."""
        cfg = self.config
        length, bounds, planned = (_Stage(m, name) for name in ("length", "bounds", "planned"))
        m.d.comb += [
            self.i_request.ready.eq(length.ready),
            length.valid_in.eq(self.i_request.valid),
            length.leaves.eq(bounds.ready),
            bounds.valid_in.eq(length.valid),
            bounds.leaves.eq(planned.ready),
            planned.valid_in.eq(bounds.valid),
        ]
        raw = Signal(request_layout(cfg), name="length_request")
        row_units = Signal(range(_RECORD_UNITS + 1), reset_less=True)
        with m.If(length.load):
            request = self.i_request.payload
            m.d.sync += [raw.eq(request), row_units.eq((request.bits >> 1) << request.dim)]

        known = Signal(request_layout(cfg), name="bounds_request")
        first, end, record = (
            Signal(range(_RECORD_UNITS + 1), name=f"{name}_units", reset_less=True)
            for name in ("first", "end", "record")
        )
        with m.If(bounds.load):
            m.d.sync += [
                known.eq(raw),
                first.eq(raw.head * row_units),
                end.eq((raw.head + raw.n_heads) * row_units),
                record.eq(raw.record_heads * row_units),
            ]

        plan, stride = _Plan(cfg, "planned"), Signal(range(MAX_RECORD_ATOMS + 1), reset_less=True)
        to_atoms = _UNITS_PER_ATOM.bit_length() - 1
        with m.If(planned.load):
            m.d.sync += [
                plan.base.eq(known.base_atom + (first >> to_atoms)),
                plan.n_atoms.eq(((end + _UNITS_PER_ATOM - 1) >> to_atoms) - (first >> to_atoms)),
                plan.ideal_units.eq(end - first),
                stride.eq((record + _UNITS_PER_ATOM - 1) >> to_atoms),
                plan.cut.skip.eq(first[:to_atoms]),
                plan.cut.last.eq(0),
            ]
            m.d.sync += [plan.cut[f].eq(known[f]) for f in ("bits", "is_unsigned", "dim", "n_heads")]
        return planned, plan, stride

    def _follow(self, m: Module, product: _Stage, start: _Stage) -> tuple[Signal, Signal]:
        """Number of tokens and end mark of a beat, along with its addresses."""
        beat = self.i_kept.payload
        counts = [Signal(range(self.config.kept_lanes + 1), name=f"{n}_count") for n in ("product", "start")]
        lasts = [Signal(name=f"{n}_last") for n in ("product", "start")]
        with m.If(product.load):
            m.d.sync += [counts[0].eq(beat.count), lasts[0].eq(beat.last)]
        with m.If(start.load):
            m.d.sync += [counts[1].eq(counts[0]), lasts[1].eq(lasts[0])]
        return counts[1], lasts[1]

    def _count(self, m: Module, start: _Stage, plan: _Plan, count: Signal, last: Signal) -> Signal:
        """Sums the tokens as they leave; at the end of a list, two products. Returns whether it is ready."""
        cfg = self.config
        total = _Stage(m, "total")
        n_before, n_all = Signal(range(cfg.n_max + 1)), Signal(range(cfg.n_max + 1), reset_less=True)
        atoms, units = Signal.like(plan.n_atoms), Signal.like(plan.ideal_units)
        out = self.o_counters
        m.d.comb += [
            total.valid_in.eq(start.valid & start.leaves & last),
            total.leaves.eq(~out.valid | out.ready),
        ]
        with m.If(start.valid & start.leaves):
            m.d.sync += n_before.eq(Mux(last, 0, n_before + count))
        with m.If(total.load):
            m.d.sync += [n_all.eq(n_before + count), atoms.eq(plan.n_atoms), units.eq(plan.ideal_units)]
        with m.If(~out.valid | out.ready):
            m.d.sync += [
                out.valid.eq(total.valid),
                out.payload.ideal_bytes.eq((n_all * units) << (ROW_UNIT_BITS // 8).bit_length() - 1),
                out.payload.moved_bytes.eq((n_all * atoms) << ATOM_BYTES.bit_length() - 1),
            ]
        return total.ready

    def _deal(self, m: Module, start: _Stage, plan: _Plan, starts, count, last, counter_ready) -> None:
        """Gives each token of a beat to its port, where a cursor steps through the atoms."""
        cfg = self.config
        n_turns = cfg.n_ports // cfg.kept_lanes
        turn = Signal(range(max(n_turns, 2)))
        readies = [Signal(name=f"cursor{port}_ready") for port in range(cfg.n_ports)]
        turn_ready = Signal()
        with m.Switch(turn):
            for t in range(n_turns):
                with m.Case(t):
                    group = readies[t * cfg.kept_lanes : (t + 1) * cfg.kept_lanes]
                    m.d.comb += turn_ready.eq(Cat(*group).all())
        m.d.comb += start.leaves.eq(turn_ready & (counter_ready | ~last))
        with m.If(start.valid & start.leaves):
            m.d.sync += turn.eq(Mux(last | (turn == n_turns - 1), 0, turn + 1))

        for port in range(cfg.n_ports):
            lane = port % cfg.kept_lanes
            out = getattr(self, f"o{port}")
            left = Signal(range(MAX_RECORD_ATOMS + 1), name=f"cursor{port}_left")
            cut = Signal(cut_layout(), name=f"cursor{port}_cut")
            m.d.comb += [
                out.valid.eq(left != 0),
                out.payload.note.eq(cut),
                readies[port].eq((left == 0) | ((left == 1) & out.ready)),
            ]
            mine = start.valid & start.leaves & (turn == port // cfg.kept_lanes) & (lane < count)
            with m.If(mine):
                m.d.sync += [
                    out.payload.address.eq(starts[lane]),
                    left.eq(plan.n_atoms),
                    cut.eq(plan.cut),
                    cut.last.eq(last & (count == lane + 1)),
                ]
            with m.Elif(out.valid & out.ready):
                m.d.sync += [out.payload.address.eq(out.payload.address + 1), left.eq(left - 1)]
