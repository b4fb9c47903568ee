# SPDX-License-Identifier: MIT
"""The attention core behind AXI: registers, masters, and the course of a run."""

from typing import Any

from amaranth import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw.attention.rtl import Attention
from hw.stream.fork import connect

from .axi import flat_ports, join, lite_signature, read_signature, write_signature
from .config import ALIGNMENT_BYTES, DESCRIPTORS, DRAM, ErrorCode, SystemConfig
from .course import Course, first_of
from .jobs import JobReader
from .lite import RegisterFile
from .reader import DescriptorReader, DramReader
from .register_map import ADDRESS_BITS as LITE_ADDRESS_BITS
from .registers import registers
from .streams import INPUTS, OUTPUTS, output_name
from .writer import OutputWriter

LITE, OUTPUT = "s_axil", "m_axi_out"
"""Prefixes of the other ports."""


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
            m.d.comb += both.eq(file.wide(name))
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

    def _error(self, m: Module, jobs, descriptors, outputs, drams):
        """What went wrong in this cycle of a run; of several the first of this list."""
        found = [
            (descriptors.failed, ErrorCode.DESCRIPTOR_READ, 0),
            *((dram.failed, ErrorCode.DRAM_READ, c) for c, dram in enumerate(drams)),
            (outputs.failed, ErrorCode.WRITE, 0),
            (outputs.full, ErrorCode.OUTPUT_FULL, outputs.full_output),
            (jobs.failed, ErrorCode.DESCRIPTOR, jobs.detail),
            (jobs.too_short, ErrorCode.DESCRIPTOR_LENGTH, 0),
            (jobs.too_long, ErrorCode.DESCRIPTOR_LENGTH, 1),
        ]
        return first_of(m, found, "error")

    def _refusal(self, m: Module, file):
        """Why a run cannot begin."""
        low = ALIGNMENT_BYTES - 1
        bases = [
            ("descriptor_base", 0),
            *((f"dram{c}_base", 1 + c) for c in self.channels),
            *((f"out_{output_name(name).lower()}_base", 128 + i) for i, name in enumerate(OUTPUTS)),
        ]
        found = [(file.n_layers == 0, ErrorCode.NO_LAYERS, 0)]
        for name, detail in bases:
            found.append(((getattr(file, f"{name}_lo") & low) != 0, ErrorCode.UNALIGNED, detail))
        return first_of(m, found, "refusal")

    def _course(self, m: Module, file, jobs, error, ended, idle) -> None:
        m.submodules.course = course = Course()
        course.join(m, file, file.error_job, self.irq)
        m.d.comb += [
            course.refusal.eq(self._refusal(m, file)),
            course.error.eq(error),
            course.place.eq(jobs.job),
            course.ended.eq(ended),
            course.idle.eq(idle),
            self.begins.eq(course.begins),
            self.running.eq(course.running),
        ]

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
