# SPDX-License-Identifier: MIT
"""The register map: one table, from which come the RTL, docs/convolution_registers.md and the C header.

``python -m hw.system.convolution.registers`` writes docs/convolution_registers.md.
"""

from pathlib import Path

from hw.convolution.config import COMMAND_COUNT_BITS, RECORD_BYTES
from hw.system.register_map import (
    ACCESS_TEXT,
    Field,
    Register,
    code_lines,
    header_text,
    page_lines,
    pair,
    run_registers,
)

from .config import ERROR_TEXT, READ_PORTS, ConvolutionSystemConfig, ErrorCode

COUNTERS_OFFSET = 0x48


def registers(config: ConvolutionSystemConfig) -> tuple[Register, ...]:
    """Every register of a build, by ascending offset."""
    array = config.core.array
    table = [
        *run_registers(
            letters="QTCV",
            build={
                "rows": (array.rows, "of the array"),
                "columns": (array.columns, "of the array"),
                "bus_bytes": (config.bus_bytes, "bytes of a word of the masters"),
            },
            place=Register(name="ERROR_COMMAND", offset=0x18, access="ro",
                           description="commands that had been read when the error came"),
        ),
        *pair("MEMORY_BASE", 0x28, "rw", "byte address of the memory, a multiple of 4,096"),
        Register(name="MEMORY_BYTES", offset=0x30, access="rw",
                 description="its size, a multiple of bus_bytes; what lies above is not touched"),
        Register(name="COMMANDS", offset=0x34, access="rw",
                 description=f"where in it the commands begin, a multiple of {RECORD_BYTES}"),
        Register(name="N_COMMANDS", offset=0x38, access="rw", description="how many there are",
                 fields=(Field(name="count", low=0, bits=COMMAND_COUNT_BITS, description=""),)),
        Register(name="STALL_CYCLES", offset=0x3C, access="rw",
                 description="a run without a word read or written for so long ends; 0: never"),
        *pair("CYCLES", 0x40, "ro", "clock cycles of the run"),
    ]  # fmt: skip
    for number, port in enumerate(READ_PORTS):
        name, offset = f"{port.upper()}_WORDS", COUNTERS_OFFSET + 8 * number
        table += pair(name, offset, "ro", f"words read by `m_axi_{port}`")
    offset = COUNTERS_OFFSET + 8 * len(READ_PORTS)
    table += pair("WRITTEN_WORDS", offset, "ro", "words written, in whole or in part")
    return tuple(table)


def addresses(config: ConvolutionSystemConfig) -> dict[str, int]:
    """Offset of each register by name."""
    return {register.name: register.offset for register in registers(config)}


def markdown(config: ConvolutionSystemConfig) -> str:
    """docs/convolution_registers.md for a build."""
    lines = [
        "# Registers of `hw/system/convolution`",
        "",
        "Written by `python -m hw.system.convolution.registers` from the table that the RTL is made of;",
        "do not edit. Addresses are byte offsets; every register has 32 bits. Reset values are those of",
        "preset `paper`.",
        "An address without a register answers SLVERR.",
        "",
        *(f"- {kind}: {text}" for kind, text in ACCESS_TEXT.items()),
        "",
        *page_lines(registers(config)),
        "",
        "## Error codes",
        "",
        *code_lines("code", ERROR_TEXT.items()),
    ]
    return "\n".join(lines) + "\n"


def c_header(config: ConvolutionSystemConfig) -> str:
    """Offsets, fields and error codes for C; the same table as the RTL's."""
    return header_text(
        "Registers of the Quartet convolution system",
        "QUARTET_CONVOLUTION_SYSTEM_H",
        "QUARTET_CONVOLUTION_",
        registers(config),
        {"ERROR_CODE": ErrorCode},
    )


if __name__ == "__main__":
    from hw.config import preset

    from .config import convolution_system_config

    Path("docs/convolution_registers.md").write_text(markdown(convolution_system_config(preset("paper"))))
