# SPDX-License-Identifier: MIT
"""The register map: one table, from which come the RTL, docs/registers.md and the C header.

``python -m hw.system.registers`` writes docs/registers.md.
"""

from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from .config import DESCRIPTOR_ERROR_TEXT, ERROR_TEXT, DescriptorError, ErrorCode, SystemConfig, SystemFormat
from .streams import INPUTS, OUTPUTS, output_name, stride_bytes

ADDRESS_BITS = 12
MAGIC = 0x51544554
"""The letters QTET."""
DRAM_OFFSET, DRAM_STEP = 0x100, 8
OUTPUT_OFFSET, OUTPUT_STEP = 0x400, 0x20

Access = Literal["ro", "rw", "w1s", "w1c"]
ACCESS_TEXT = {
    "ro": "read only",
    "rw": "read and write; while busy a write answers SLVERR and changes nothing",
    "w1s": "writing 1 acts once; reads as 0",
    "w1c": "writing 1 clears",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """Some bits of a register."""

    name: str
    low: int
    bits: int
    description: str

    @property
    def mask(self) -> int:
        """Ones at the field's place."""
        return (1 << self.bits) - 1 << self.low


@dataclass(frozen=True, kw_only=True)
class Register:
    """32 bits at a byte offset."""

    name: str
    offset: int
    access: Access
    description: str
    reset: int = 0
    fields: tuple[Field, ...] = ()
    """None: one number of 32 bits."""
    locked: bool = True
    """Of "rw": not to be written while busy."""

    @property
    def mask(self) -> int:
        """Bits that exist."""
        return sum(field.mask for field in self.fields) if self.fields else 0xFFFF_FFFF


def _bit(name: str, low: int, description: str) -> Field:
    return Field(name=name, low=low, bits=1, description=description)


_EVENTS = (
    _bit("done", 0, "a run has ended well"),
    _bit("error", 1, "a run has ended with an error, or was refused"),
)


def _pair(name: str, offset: int, access: Access, description: str) -> list[Register]:
    """64 bits, the low half first."""
    return [
        Register(name=f"{name}_LO", offset=offset, access=access, description=f"{description}, bits 31..0"),
        Register(name=f"{name}_HI", offset=offset + 4, access=access, description="bits 63..32"),
    ]


def registers(config: SystemConfig) -> tuple[Register, ...]:
    """Every register of a build, by ascending offset."""
    n_channels = config.core.fetch.n_channels
    major, minor, patch = (int(part) for part in version("quartet").split(".")[:3])
    build = n_channels | config.bus_bytes << 8 | len(OUTPUTS) << 16 | len(INPUTS) << 24
    table = [
        Register(name="ID", offset=0x00, access="ro", reset=MAGIC, description="the letters QTET"),
        Register(
            name="VERSION", offset=0x04, access="ro", reset=major << 16 | minor << 8 | patch,
            description="of this design",
            fields=(
                Field(name="major", low=16, bits=8, description=""),
                Field(name="minor", low=8, bits=8, description=""),
                Field(name="patch", low=0, bits=8, description=""),
            ),
        ),
        Register(
            name="BUILD", offset=0x08, access="ro", reset=build, description="what was built",
            fields=(
                Field(name="n_channels", low=0, bits=8, description="DRAM channels"),
                Field(name="bus_bytes", low=8, bits=8, description="bytes of a word of the masters"),
                Field(name="n_outputs", low=16, bits=8, description="output regions"),
                Field(name="n_inputs", low=24, bits=8, description="input streams of a job"),
            ),
        ),
        Register(
            name="CONTROL", offset=0x0C, access="w1s", description="commands",
            fields=(
                _bit("start", 0, "begin a run; nothing where one is under way"),
                _bit("soft_reset", 1, "end the run, wait for open transfers, forget done and error"),
            ),
        ),
        Register(
            name="STATUS", offset=0x10, access="ro", description="of the run",
            fields=(
                _bit("busy", 0, "a run is under way, or its last transfers are"),
                _bit("done", 1, "the last run ended well"),
                _bit("error", 2, "the last run ended with an error"),
            ),
        ),
        Register(
            name="ERROR", offset=0x14, access="ro", description="the first error of the last run",
            fields=(
                Field(name="code", low=0, bits=8, description="see below"),
                Field(name="detail", low=8, bits=8, description="see below"),
            ),
        ),
        Register(name="ERROR_JOB", offset=0x18, access="ro",
                 description="number of the job that was being read when the error came, from 0"),
        Register(name="IRQ_ENABLE", offset=0x1C, access="rw", locked=False, fields=_EVENTS,
                 description="which events raise `irq`; may be written at any time"),
        Register(name="IRQ_STATUS", offset=0x20, access="w1c", fields=_EVENTS,
                 description="events since they were cleared"),
        *_pair("DESCRIPTOR_BASE", 0x28, "rw", "byte address of the first job, a multiple of 4,096"),
        Register(name="DESCRIPTOR_BYTES", offset=0x30, access="rw",
                 description="bytes of all jobs, a multiple of bus_bytes"),
        Register(name="N_LAYERS", offset=0x34, access="rw", description="jobs of the run"),
        *_pair("CYCLES", 0x40, "ro", "clock cycles of the run"),
        *_pair("IDEAL_BYTES", 0x48, "ro", "bytes of planes that were wanted"),
        *_pair("MOVED_BYTES", 0x50, "ro", "bytes of planes that were read, in atoms of 32"),
        Register(name="ROWS", offset=0x58, access="ro", description="output rows of layers that are over"),
        Register(name="RECOMPUTED_ROWS", offset=0x5C, access="ro",
                 description="of these, rows computed again with LSBs"),
        Register(name="LAYERS_DONE", offset=0x60, access="ro", description="layers that are over"),
    ]  # fmt: skip
    for c in range(n_channels):
        offset = DRAM_OFFSET + DRAM_STEP * c
        table += _pair(
            f"DRAM{c}_BASE", offset, "rw", f"byte address of DRAM channel {c}'s atom 0, a multiple of 4,096"
        )
    for i, (port, layout) in enumerate(OUTPUTS.items()):
        name, offset = f"OUT_{output_name(port)}", OUTPUT_OFFSET + OUTPUT_STEP * i
        stride = stride_bytes(layout(config.core), config.bus_bits)
        table += [
            *_pair(
                f"{name}_BASE", offset, "rw", f"byte address of the region of `{port}`, a multiple of 4,096"
            ),
            Register(name=f"{name}_BYTES", offset=offset + 8, access="rw", description="size of the region"),
            Register(
                name=f"{name}_BEATS",
                offset=offset + 12,
                access="ro",
                description="beats written in the last run",
            ),
            Register(
                name=f"{name}_STRIDE",
                offset=offset + 16,
                access="ro",
                reset=stride,
                description="bytes from one beat to the next",
            ),
        ]
    return tuple(table)


def system_format(config: SystemConfig) -> SystemFormat:
    """Of a build."""
    return SystemFormat(
        addresses={register.name: register.offset for register in registers(config)},
        bus_bytes=config.bus_bytes,
        n_channels=config.core.fetch.n_channels,
        inputs=tuple(INPUTS),
        strides_bytes={
            port: stride_bytes(layout(config.core), config.bus_bits) for port, layout in OUTPUTS.items()
        },
        output_names={port: output_name(port) for port in OUTPUTS},
    )


def markdown(config: SystemConfig) -> str:
    """docs/registers.md for a build; only channel 0 stands for all."""
    lines = [
        "# Registers of `hw/system`",
        "",
        "Written by `python -m hw.system.registers` from the table that the RTL is made of; do not edit.",
        "Addresses are byte offsets; every register has 32 bits. Reset values and strides are those of "
        "preset `paper`.",
        f"Of the {config.core.fetch.n_channels} DRAM channels of that preset only channel 0 is listed; "
        f"DRAMc_BASE_LO lies at {DRAM_OFFSET:#05x} + {DRAM_STEP} c.",
        "An address without a register answers SLVERR.",
        "",
        *(f"- {kind}: {text}" for kind, text in ACCESS_TEXT.items()),
        "",
        "| offset | name | access | reset | bits | what |",
        "|---|---|---|---|---|---|",
    ]
    for register in registers(config):
        if register.name.startswith("DRAM") and not register.name.startswith("DRAM0_"):
            continue
        start = f"| {register.offset:#05x} | {register.name} | {register.access} | {register.reset:#x} |"
        lines.append(f"{start} 31..0 | {register.description} |")
        for field in register.fields:
            high = field.low + field.bits - 1
            bits = f"{high}..{field.low}" if field.bits > 1 else f"{field.low}"
            lines.append(f"| | {field.name} | | | {bits} | {field.description} |")
    lines += ["", "## Error codes", "", "| code | name | what |", "|---|---|---|"]
    lines += [f"| {code.value} | {code.name} | {text} |" for code, text in ERROR_TEXT.items()]
    lines += ["", "Details of DESCRIPTOR:", "", "| detail | name | what |", "|---|---|---|"]
    lines += [f"| {code.value} | {code.name} | {text} |" for code, text in DESCRIPTOR_ERROR_TEXT.items()]
    return "\n".join(lines) + "\n"


def c_header(config: SystemConfig) -> str:
    """Offsets, fields and error codes for C; the same table as the RTL's."""
    lines = [
        "/* SPDX-License-Identifier: MIT */",
        "/* Registers of the Quartet attention system; generated beside its Verilog. */",
        "#ifndef QUARTET_SYSTEM_H",
        "#define QUARTET_SYSTEM_H",
        "",
    ]
    prefix = "QUARTET_"
    for register in registers(config):
        lines.append(f"#define {prefix}{register.name} {register.offset:#05x}u")
        for field in register.fields:
            name = f"{prefix}{register.name}_{field.name.upper()}"
            lines += [f"#define {name}_SHIFT {field.low}u", f"#define {name}_MASK {field.mask:#010x}u"]
    lines.append("")
    codes: tuple[tuple[str, type[IntEnum]], ...] = (
        ("ERROR_CODE", ErrorCode),
        ("DESCRIPTOR_ERROR", DescriptorError),
    )
    for kind, members in codes:
        lines += [f"#define {prefix}{kind}_{member.name} {member.value}u" for member in members]
    return "\n".join([*lines, "", "#endif", ""])


if __name__ == "__main__":
    from hw.config import preset

    from .config import system_config

    Path("docs/registers.md").write_text(markdown(system_config(preset("paper"))))
