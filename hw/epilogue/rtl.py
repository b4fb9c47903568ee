# SPDX-License-Identifier: MIT
"""Amaranth implementation of the epilogue: jobs, table, and steps into the datapath."""

from amaranth import EnableInserter, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .config import (
    BEAT_BITS,
    LIMIT_BITS,
    MASK_READER,
    MAX_OUT_SHIFT,
    MAX_READERS,
    MAX_REDUCE_SHIFT,
    MAX_SHIFT,
    MAX_SIDE_SHIFT,
    PARTS,
    TABLE_BEATS,
    TABLE_BITS,
    Activation,
    EpilogueConfig,
    Reduction,
    Side,
)
from .datapath import Datapath, out_layout, side_layout, sums_layout, table_layout


def job_layout(config: EpilogueConfig) -> data.StructLayout:
    """Payload of ``i_job``, see :class:`hw.epilogue.config.Job`; ``two``: there are two readers."""
    reader = data.StructLayout({"shift": range(MAX_OUT_SHIFT + 1), "wide": 1})
    return data.StructLayout(
        {
            "n_beats": BEAT_BITS,
            "n_tables": range(config.max_tiles + 1),
            "shift": range(MAX_SHIFT + 1),
            "side": Side,
            "side_shift": range(MAX_SIDE_SHIFT + 1),
            "activation": Activation,
            "limit": LIMIT_BITS,
            "two": 1,
            "readers": data.ArrayLayout(reader, MAX_READERS),
            "mask": 1,
            "reduction": Reduction,
            "reduce_shift": range(MAX_REDUCE_SHIFT + 1),
            "gives_sums": 1,
        }
    )


def in_layout(config: EpilogueConfig) -> data.StructLayout:
    """Payload of ``i``: a beat of channels and their entry of the table."""
    return data.StructLayout({"data": sums_layout(config), "tile": range(config.max_tiles)})


class Epilogue(wiring.Component):
    """From sums to maps: scale, bias, noise or residual, activation or mask, the scale of each who reads the
    map; and sums over all beats of a tile.

    ::

        t = sat24(rnd(x multiplier, shift))
        u = sat24(t + bias + (side << side_shift))
        v = activation(u)                          0 where a mask on the side is 0
        o = sat(rnd(v scale, reader.shift))        to 8 or 16 bits, for one reader or two
        r = sat16(rnd(v, reduce_shift))            sums of r, and of r r or r side, of each tile

    A job loads its table first, if it brings one, a beat a cycle; then a beat a cycle for each reader and for
    the mask: all get it, one after the other. The next job is taken with the last of them. A job that gives
    sums takes no beats; it rests for a cycle first.

    Latency LATENCY_CYCLES. ``i.ready`` follows ``o.ready`` in the same cycle, and waits for ``i_side``.

    Members
    -------
    i_job : stream of :func:`job_layout`
    i_table : stream of :func:`hw.epilogue.datapath.table_layout`; TABLE_BEATS for each entry
    i : stream of :func:`in_layout`
    i_side : stream of :func:`hw.epilogue.datapath.side_layout`; a beat for each of ``i``, of jobs with a side
    o : stream of :func:`hw.epilogue.datapath.out_layout`
    """

    def __init__(self, config: EpilogueConfig) -> None:
        self.config = config
        super().__init__(
            {
                "i_job": In(stream.Signature(job_layout(config))),
                "i_table": In(stream.Signature(table_layout(config))),
                "i": In(stream.Signature(in_layout(config))),
                "i_side": In(stream.Signature(side_layout(config))),
                "o": Out(stream.Signature(out_layout(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        flow, steps, ends_beat, loading = Signal(), Signal(), Signal(), Signal()
        reader, following = Signal(range(MAX_READERS + 1)), Signal(range(MAX_READERS + 1))
        """Whom the beat is for, and for whom it is next; 0: for nobody else."""
        entry_complete, entry = self._table(m, loading, flow)
        job, running = self._jobs(m, loading, flow, entry_complete, steps & ends_beat)
        has_side, comes = job.side != Side.NONE, Signal()
        m.d.comb += [
            flow.eq(~self.o.valid | self.o.ready),
            comes.eq(self.i.valid & (self.i_side.valid | ~has_side)),
            steps.eq(flow & running & (comes | job.gives_sums)),
            ends_beat.eq(following == 0),
            self.i.ready.eq(steps & ends_beat & ~job.gives_sums),
            self.i_side.ready.eq(steps & ends_beat & has_side),
        ]
        with m.If((reader == 0) & job.two):
            m.d.comb += following.eq(1)
        with m.Elif((reader != MASK_READER) & job.mask):
            m.d.comb += following.eq(MASK_READER)
        with m.If(steps):
            m.d.sync += reader.eq(following)

        datapath = Datapath(self.config)
        m.submodules.datapath = EnableInserter(flow)(datapath)
        with m.If(flow):
            m.d.sync += [
                datapath.valid.eq(steps),
                datapath.adds.eq(steps & (job.reduction != Reduction.NONE) & (reader == 0)),
                datapath.x.eq(self.i.payload.data),
                datapath.side.eq(self.i_side.payload),
                *self._step(datapath.step, job, reader),
                *self._sums(m, datapath.step.sums, job, steps),
            ]
        m.d.comb += [
            datapath.entry.eq(entry),
            self.o.valid.eq(datapath.o_valid),
            self.o.payload.eq(datapath.o),
        ]
        return m

    def _jobs(
        self, m: Module, loading: Signal, flow: Signal, entry_complete: Value, beat_ends: Value
    ) -> tuple[data.View, Signal]:
        """The job under way, its numbers of beats and tables being those left; whether it takes beats.

        Drives ``loading``: it takes its table.
        """
        job = Signal(job_layout(self.config), reset_less=True)
        running, resting, ends = Signal(), Signal(), Signal()
        start = self.i_job.payload
        m.d.comb += [
            ends.eq(beat_ends & (job.n_beats == 1)),
            self.i_job.ready.eq((~loading & ~resting & ~running) | ends),
        ]
        with m.If(beat_ends):
            m.d.sync += job.n_beats.eq(job.n_beats - 1)
        with m.If(ends):
            m.d.sync += running.eq(0)
        with m.If(entry_complete):
            m.d.sync += job.n_tables.eq(job.n_tables - 1)
            with m.If(job.n_tables == 1):
                m.d.sync += [loading.eq(0), running.eq(1)]
        with m.If(resting & flow):
            m.d.sync += [resting.eq(0), running.eq(1)]
        with m.If(self.i_job.valid & self.i_job.ready):
            m.d.sync += [
                job.eq(start),
                loading.eq(start.n_tables != 0),
                resting.eq(start.gives_sums),
                running.eq((start.n_tables == 0) & ~start.gives_sums),
            ]
        return job, running

    def _table(self, m: Module, loading: Signal, flow: Signal) -> tuple[Signal, data.View]:
        """Beats to the entries from 0 on, and the entry of the beat on ``i``.

        Returns whether an entry is complete with this beat, and the entry that was asked for a step ago.
        """
        table = memory.Memory(
            shape=data.ArrayLayout(self.config.lanes * TABLE_BITS, TABLE_BEATS),
            depth=self.config.max_tiles,
            init=[],
        )
        m.submodules.table = table
        write, read = table.write_port(granularity=1), table.read_port()
        tile, part = Signal(range(self.config.max_tiles)), Signal(TABLE_BEATS, init=1)
        taken, complete = Signal(), Signal()
        m.d.comb += [
            self.i_table.ready.eq(loading),
            taken.eq(self.i_table.valid & loading),
            complete.eq(taken & part[-1]),
            read.addr.eq(self.i.payload.tile),
            read.en.eq(flow),
            write.addr.eq(tile),
            write.en.eq(Mux(taken, part, 0)),
            *(place.eq(Value.cast(self.i_table.payload)) for place in write.data),
        ]
        with m.If(~loading):
            m.d.sync += tile.eq(0)
        with m.If(taken):
            m.d.sync += part.eq(part.rotate_left(1))
        with m.If(complete):
            m.d.sync += tile.eq(tile + 1)
        return complete, read.data

    def _sums(self, m: Module, sums: data.View, job: data.View, steps: Signal) -> list:
        """What a beat adds to or gives of the sums, as assignments."""
        number = Signal(range(self.config.max_tiles * PARTS))
        """Of the part that is given; after the last one all are zeros until something is added."""
        tile = number[PARTS.bit_length() - 1 :]
        with m.If(~job.gives_sums):
            m.d.sync += number.eq(0)
        with m.Elif(steps):
            m.d.sync += number.eq(number + 1)
        return [
            sums.shift.eq(job.reduce_shift),
            sums.squares.eq(job.reduction == Reduction.SQUARE),
            sums.tile.eq(Mux(job.gives_sums, tile, self.i.payload.tile)),
            sums.gives.eq(job.gives_sums & steps),
            sums.part.eq(number),
            sums.clears.eq(job.n_beats == 1),
        ]

    def _step(self, step: data.View, job: data.View, number: Signal) -> list:
        """A beat for one reader, as assignments."""
        reader = job.readers[number == 1]
        same = ("shift", "side", "side_shift", "activation", "limit")
        return [
            *(step[name].eq(job[name]) for name in same),
            step.out_shift.eq(reader.shift),
            step.wide.eq(reader.wide),
            step.reader.eq(number),
            step.last.eq(job.n_beats == 1),
        ]
