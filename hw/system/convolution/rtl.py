# SPDX-License-Identifier: MIT
"""The convolution core behind AXI: registers, masters, and the course of a run."""

from typing import Any

from amaranth import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw.convolution.config import RECORD_BYTES
from hw.convolution.rtl import Convolution
from hw.stream.fork import connect
from hw.system.axi import flat_ports, join, lite_signature, read_signature, write_signature
from hw.system.config import ALIGNMENT_BYTES
from hw.system.course import Course, first_of
from hw.system.lite import RegisterFile
from hw.system.register_map import ADDRESS_BITS as LITE_ADDRESS_BITS
from hw.system.rtl import LITE, OUTPUT

from .config import READ_PORTS, ConvolutionSystemConfig, ErrorCode
from .reader import WordReader
from .registers import registers
from .writer import WordWriter


class ConvolutionSystem(wiring.Component):
    """A run: software lays commands, weights and maps into memory, sets registers and starts.

    ::

        s_axil -> RegisterFile -> course of the run -> irq
        m_axi_{commands, weights, input, side} -> WordReader -> Convolution -> WordWriter -> m_axi_out

    The core is in reset except while a run is under way; the masters are not, so that whatever ends a run,
    every transfer on a bus comes to its end. See docs/convolution_system.md.

    Members
    -------
    s_axil_* : AXI4-Lite slave, 32 bits, :data:`hw.system.register_map.ADDRESS_BITS` of address
    m_axi_commands_*, m_axi_weights_*, m_axi_input_*, m_axi_side_* : AXI4 read masters
    m_axi_out_* : AXI4 write master
    irq : high while an enabled event is pending
    """

    def __init__(self, config: ConvolutionSystemConfig) -> None:
        self.config = config
        self.table = registers(config)
        bus_bits = 8 * config.bus_bytes
        ports = {
            **flat_ports(LITE, lite_signature(LITE_ADDRESS_BITS), is_slave=True),
            **flat_ports(OUTPUT, write_signature(bus_bits)),
        }
        for prefix in config.read_masters:
            ports |= flat_ports(prefix, read_signature(bus_bits))
        super().__init__({**ports, "irq": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        self.course = course = Course()
        m.submodules.course = course
        core = Convolution(cfg.core)
        m.submodules.core = ResetInserter(~course.running)(core)
        m.submodules.registers = file = RegisterFile(self.table)
        m.submodules.writer = writer = WordWriter(cfg)
        readers = [WordReader(cfg) for _ in READ_PORTS]
        for port, prefix, reader in zip(READ_PORTS, cfg.read_masters, readers, strict=True):
            m.submodules[f"{port}_reader"] = reader
            connect(m, getattr(core, f"o_request_{port}"), reader.i)
            connect(m, reader.o, getattr(core, f"i_response_{port}"))
            join(m, self, prefix, reader.axi)
        connect(m, core.o_write, writer.i)
        connect(m, writer.o, core.i_written)
        join(m, self, OUTPUT, writer.axi)
        join(m, self, LITE, file.axi)
        masters: list[Any] = [*readers, writer]
        for master in masters:
            m.d.comb += [
                master.base.eq(file.wide("memory_base")),
                master.n_words.eq(file.memory_bytes >> (cfg.bus_bytes.bit_length() - 1)),
                master.run.eq(course.running),
            ]

        taken = self._counters(m, file, masters)
        course.join(m, file, file.error_command, self.irq)
        m.d.comb += [
            course.refusal.eq(self._refusal(m, file)),
            course.error.eq(self._error(m, file, core, readers, writer)),
            course.place.eq(taken["commands_words"] >> ((RECORD_BYTES // cfg.bus_bytes).bit_length() - 1)),
            course.ended.eq(self._list(m, file, core)),
            course.idle.eq(1),
        ]
        for master in masters:
            with m.If(~master.idle):
                m.d.comb += course.idle.eq(0)
        return m

    def _list(self, m: Module, file, core: Convolution) -> Signal:
        """Gives the core its list when a run begins; returns whether all of it is done."""
        asked, done = Signal(), Signal()
        m.d.comb += [
            core.i_start.payload.base.eq(file.commands),
            core.i_start.payload.n_commands.eq(file.n_commands),
            core.i_start.valid.eq(asked),
            core.o_done.ready.eq(1),
        ]
        with m.If(core.i_start.ready):
            m.d.sync += asked.eq(0)
        with m.If(core.o_done.valid):
            m.d.sync += done.eq(1)
        with m.If(self.course.begins):
            m.d.sync += [asked.eq(1), done.eq(0)]
        return done & self.course.idle

    def _refusal(self, m: Module, file) -> Signal:
        """Why a run cannot begin."""
        found = [
            (file.n_commands == 0, ErrorCode.NO_COMMANDS, 0),
            (file.memory_base_lo % ALIGNMENT_BYTES != 0, ErrorCode.UNALIGNED, 0),
            (file.commands % RECORD_BYTES != 0, ErrorCode.UNALIGNED, 1),
        ]
        return first_of(m, found, "refusal")

    def _error(self, m: Module, file, core: Convolution, readers: list[WordReader], writer) -> Signal:
        """What goes wrong in this cycle of a run; of several the first of this list."""
        quiet = Signal(32)
        """Cycles since a word was read or written."""
        moved = Signal()
        for master in (*readers, writer):
            with m.If(master.moved):
                m.d.comb += moved.eq(1)
        with m.If(moved | ~self.course.running):
            m.d.sync += quiet.eq(0)
        with m.Else():
            m.d.sync += quiet.eq(quiet + 1)
        found = [
            *((reader.failed, ErrorCode.READ, number) for number, reader in enumerate(readers)),
            (writer.failed, ErrorCode.WRITE, 0),
            *((reader.beyond, ErrorCode.READ_RANGE, number) for number, reader in enumerate(readers)),
            (writer.beyond, ErrorCode.WRITE_RANGE, 0),
            (core.o_done.valid & core.o_done.payload, ErrorCode.COMMAND, 0),
            ((file.stall_cycles != 0) & (quiet >= file.stall_cycles), ErrorCode.STALLED, 0),
        ]
        return first_of(m, found, "error")

    def _counters(self, m: Module, file, masters: list[Any]) -> dict[str, Signal]:
        """Of the run under way or the last one, by register."""
        names = ["cycles", *(f"{port}_words" for port in READ_PORTS), "written_words"]
        steps = [self.course.running, *(master.moved for master in masters)]
        totals = {name: Signal(64, name=name) for name in names}
        for (name, total), step in zip(totals.items(), steps, strict=True):
            low, high = (getattr(file, f"{name}_{half}") for half in ("lo", "hi"))
            m.d.comb += [low.eq(total), high.eq(total >> 32)]
            with m.If(self.course.begins):
                m.d.sync += total.eq(0)
            with m.Elif(self.course.running):
                m.d.sync += total.eq(total + step)
        return totals
