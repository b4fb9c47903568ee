# SPDX-License-Identifier: MIT
"""The attention core behind AXI: registers, masters, and the course of a run."""

from typing import Any

from amaranth import Module, ResetInserter, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from hw.attention.rtl import Attention
from hw.stream.fork import connect

from .axi import flat_ports, join, lite_signature, read_signature, write_signature
from .config import ALIGNMENT_BYTES, ErrorCode, SystemConfig
from .jobs import JobReader
from .lite import RegisterFile
from .reader import DescriptorReader, DramReader
from .registers import ADDRESS_BITS as LITE_ADDRESS_BITS
from .registers import registers
from .streams import INPUTS, OUTPUTS, output_name
from .writer import OutputWriter

LITE, DESCRIPTORS, OUTPUT, DRAM = "s_axil", "m_axi_desc", "m_axi_out", "m_axi_dram"
"""Prefixes of the ports; the last one is followed by the channel's number."""


class System(wiring.Component):
    """A run: software lays jobs and planes into memory, sets registers and starts; outputs go to memory.

    ::

        s_axil -> RegisterFile -> course of the run -> irq
        m_axi_desc -> DescriptorReader -> JobReader -> Attention -> OutputWriter -> m_axi_out
        m_axi_dram{c} <----------- DramReader{c} <-------'

    Core and job reader are in reset except while a run is under way; the masters are not, so that whatever
    ends a run, every transfer on a bus comes to its end. See docs/system.md.

    Members
    -------
    s_axil_* : AXI4-Lite slave, 32 bits, :data:`hw.system.registers.ADDRESS_BITS` of address
    m_axi_desc_*, m_axi_dram{c}_* : AXI4 read masters
    m_axi_out_* : AXI4 write master
    irq : high while an enabled event is pending
    """

    def __init__(self, config: SystemConfig) -> None:
        self.config = config
        self.table = registers(config)
        self.channels = range(config.core.fetch.n_channels)
        read = read_signature(config.bus_bits)
        ports = {
            **flat_ports(LITE, lite_signature(LITE_ADDRESS_BITS), is_slave=True),
            **flat_ports(DESCRIPTORS, read),
            **flat_ports(OUTPUT, write_signature(config.bus_bits)),
        }
        for c in self.channels:
            ports |= flat_ports(f"{DRAM}{c}", read)
        super().__init__({**ports, "irq": Out(1)})

    def elaborate(self, platform) -> Module:
        m = Module()
        cfg = self.config
        self.running, self.begins = Signal(), Signal()
        core, jobs = Attention(cfg.core), JobReader(cfg)
        self._check_streams(core)
        m.submodules.core = ResetInserter(~self.running)(core)
        m.submodules.jobs = ResetInserter(~self.running)(jobs)
        m.submodules.registers = file = RegisterFile(self.table)
        m.submodules.descriptors = descriptors = DescriptorReader(cfg)
        m.submodules.outputs = outputs = OutputWriter(cfg)
        drams = [DramReader(cfg.core.fetch.crossbar, cfg) for _ in self.channels]
        for c, dram in enumerate(drams):
            m.submodules[f"dram{c}"] = dram
            connect(m, getattr(core, f"o_request{c}"), dram.i)
            connect(m, dram.o, getattr(core, f"i_response{c}"))
            join(m, self, f"{DRAM}{c}", dram.axi)
        join(m, self, LITE, file.axi)
        join(m, self, DESCRIPTORS, descriptors.axi)
        join(m, self, OUTPUT, outputs.axi)
        connect(m, descriptors.o, jobs.i)
        for name in INPUTS:
            connect(m, getattr(jobs, name), getattr(core, name))
        for name in OUTPUTS:
            connect(m, getattr(core, name), getattr(outputs, name))

        self._parameters(m, file, jobs, descriptors, outputs, drams)
        self._constants(m, file)
        masters: list[Any] = [descriptors, outputs, *drams]
        m.d.comb += [master.run.eq(self.running) for master in masters]
        error = self._error(m, jobs, descriptors, outputs, drams)
        ended = self._counters(m, file, core, outputs)
        idle = Signal()
        m.d.comb += idle.eq(1)
        for master in masters:
            with m.If(~master.idle):
                m.d.comb += idle.eq(0)
        self._course(m, file, jobs, error, ended & jobs.all_read & descriptors.exhausted & idle, idle)
        m.d.comb += [master.start.eq(self.begins) for master in (descriptors, outputs)]
        return m

    def _check_streams(self, core: Attention) -> None:
        """ValueError where the core has a stream that no table lists."""
        memory = {f"{name}{c}" for c in self.channels for name in ("o_request", "i_response")}
        unknown = set(core.signature.members) ^ {*INPUTS, *OUTPUTS, *memory}
        if unknown:
            raise ValueError(f"streams in hw/system/streams.py must be those of the core, unlike {unknown}")

    def _parameters(self, m: Module, file, jobs, descriptors, outputs, drams) -> None:
        def pair(name: str):
            both = Signal(64, name=f"{name}_value")
            m.d.comb += both.eq(_wide(file, name))
            return both

        word_shift = self.config.bus_bytes.bit_length() - 1
        m.d.comb += [
            descriptors.base.eq(pair("descriptor_base")),
            descriptors.n_words.eq(file.descriptor_bytes >> word_shift),
            jobs.n_layers.eq(file.n_layers),
            jobs.exhausted.eq(descriptors.exhausted),
        ]
        m.d.comb += [dram.base.eq(pair(f"dram{c}_base")) for c, dram in enumerate(drams)]
        for name in OUTPUTS:
            register = f"out_{output_name(name).lower()}"
            m.d.comb += [
                getattr(outputs, f"{name}_base").eq(pair(f"{register}_base")),
                getattr(outputs, f"{name}_bytes").eq(getattr(file, f"{register}_bytes")),
                getattr(file, f"{register}_beats").eq(getattr(outputs, f"{name}_beats")),
            ]

    def _constants(self, m: Module, file) -> None:
        for register in self.table:
            if register.access == "ro" and register.reset:
                m.d.comb += getattr(file, register.name.lower()).eq(register.reset)

    def _error(self, m: Module, jobs, descriptors, outputs, drams):
        """What went wrong in this cycle of a run; of several the first of this list."""
        error = Signal(data.StructLayout({"code": 8, "detail": 8}))
        found = [
            (descriptors.failed, ErrorCode.DESCRIPTOR_READ, 0),
            *((dram.failed, ErrorCode.DRAM_READ, c) for c, dram in enumerate(drams)),
            (outputs.failed, ErrorCode.WRITE, 0),
            (outputs.full, ErrorCode.OUTPUT_FULL, outputs.full_output),
            (jobs.failed, ErrorCode.DESCRIPTOR, jobs.detail),
            (jobs.too_short, ErrorCode.DESCRIPTOR_LENGTH, 0),
            (jobs.too_long, ErrorCode.DESCRIPTOR_LENGTH, 1),
        ]
        for condition, code, detail in reversed(found):
            with m.If(condition):
                m.d.comb += [error.code.eq(code), error.detail.eq(detail)]
        return error

    def _refusal(self, m: Module, file):
        """Why a run cannot begin."""
        refusal = Signal(data.StructLayout({"code": 8, "detail": 8}))
        low = ALIGNMENT_BYTES - 1
        bases = [
            ("descriptor_base", 0),
            *((f"dram{c}_base", 1 + c) for c in self.channels),
            *((f"out_{output_name(name).lower()}_base", 128 + i) for i, name in enumerate(OUTPUTS)),
        ]
        for name, detail in reversed(bases):
            with m.If((getattr(file, f"{name}_lo") & low) != 0):
                m.d.comb += [refusal.code.eq(ErrorCode.UNALIGNED), refusal.detail.eq(detail)]
        with m.If(file.n_layers == 0):
            m.d.comb += [refusal.code.eq(ErrorCode.NO_LAYERS), refusal.detail.eq(0)]
        return refusal

    def _course(self, m: Module, file, jobs, error, ended, idle) -> None:
        start, soft_reset = file.control[0], file.control[1]
        refusal = self._refusal(m, file)
        busy, done, failed = Signal(), Signal(), Signal()
        first, error_job = Signal(error.shape()), Signal(32)
        m.d.comb += [
            file.busy.eq(busy),
            file.status.eq(busy | done << 1 | failed << 2),
            file.error.eq(first.as_value()),
            file.error_job.eq(error_job),
            self.irq.eq((file.irq_status & file.irq_enable).any()),
        ]
        with m.FSM():
            with m.State("IDLE"):
                with m.If(soft_reset):
                    m.d.sync += [done.eq(0), failed.eq(0), first.eq(0)]
                with m.Elif(start):
                    m.d.sync += [done.eq(0), failed.eq(0), first.eq(0), error_job.eq(0)]
                    with m.If(refusal.code != 0):
                        m.d.sync += [failed.eq(1), first.eq(refusal)]
                        m.d.comb += file.irq_status_set.eq(0b10)
                    with m.Else():
                        m.d.comb += self.begins.eq(1)
                        m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += [self.running.eq(1), busy.eq(1)]
                with m.If(soft_reset):
                    m.next = "STOP"
                with m.Elif(error.code != 0):
                    m.d.sync += [failed.eq(1), first.eq(error), error_job.eq(jobs.job)]
                    m.next = "STOP"
                with m.Elif(ended):
                    m.d.sync += done.eq(1)
                    m.d.comb += file.irq_status_set.eq(0b01)
                    m.next = "IDLE"
            with m.State("STOP"):
                m.d.comb += busy.eq(1)
                with m.If(soft_reset):
                    m.d.sync += [failed.eq(0), first.eq(0)]
                with m.If(idle):
                    m.d.comb += file.irq_status_set[1].eq(failed & ~soft_reset)
                    m.next = "IDLE"

    def _counters(self, m: Module, file, core: Attention, outputs: OutputWriter):
        """Sums over the layers; returns: every layer is over, and all that it gave is on its way."""
        summary = core.o_summary
        totals = {
            name: Signal(64, name=name)
            for name in ("cycles", "ideal_bytes", "moved_bytes", "rows", "recomputed_rows", "layers_done")
        }
        for name, total in totals.items():
            if hasattr(file, name):
                m.d.comb += getattr(file, name).eq(total)
            else:
                low, high = (getattr(file, f"{name}_{half}") for half in ("lo", "hi"))
                m.d.comb += [low.eq(total), high.eq(total >> 32)]
        with m.If(self.begins):
            m.d.sync += [total.eq(0) for total in totals.values()]
        with m.Else():
            m.d.sync += totals["cycles"].eq(totals["cycles"] + self.running)
            with m.If(summary.valid & summary.ready):
                p = summary.payload
                added = {
                    "ideal_bytes": p.ideal_bytes,
                    "moved_bytes": p.moved_bytes,
                    "rows": p.n_rows,
                    "recomputed_rows": p.n_recomputed,
                    "layers_done": 1,
                }
                m.d.sync += [totals[name].eq(totals[name] + value) for name, value in added.items()]
        waiting = Signal(len(OUTPUTS))
        m.d.comb += [waiting[i].eq(getattr(core, name).valid) for i, name in enumerate(OUTPUTS)]
        return (totals["layers_done"] == file.n_layers) & (totals["rows"] == outputs.o_beats) & (waiting == 0)


def _wide(file, name: str):
    return getattr(file, f"{name}_lo") | getattr(file, f"{name}_hi") << 32
