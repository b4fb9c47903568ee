# SPDX-License-Identifier: MIT
"""The register map: one table, from which come the RTL, docs/registers.md and the C header.

``python -m hw.system.registers`` writes docs/registers.md.
"""

from pathlib import Path

from .config import DESCRIPTOR_ERROR_TEXT, ERROR_TEXT, DescriptorError, ErrorCode, SystemConfig, SystemFormat
from .register_map import ACCESS_TEXT, Register, code_lines, header_text, page_lines, pair, run_registers
from .streams import INPUTS, OUTPUTS, output_name, stride_bytes

DRAM_OFFSET, DRAM_STEP = 0x100, 8
OUTPUT_OFFSET, OUTPUT_STEP = 0x400, 0x20


def registers(config: SystemConfig) -> tuple[Register, ...]:
    """Every register of a build, by ascending offset."""
    n_channels = config.core.fetch.n_channels
    table = [
        *run_registers(
            letters="QTET",
            build={
                "n_channels": (n_channels, "DRAM channels"),
                "bus_bytes": (config.bus_bytes, "bytes of a word of the masters"),
                "n_outputs": (len(OUTPUTS), "output regions"),
                "n_inputs": (len(INPUTS), "input streams of a job"),
            },
            place=Register(name="ERROR_JOB", offset=0x18, access="ro",
                           description="number of the job that was being read when the error came, from 0"),
        ),
        *pair("DESCRIPTOR_BASE", 0x28, "rw", "byte address of the first job, a multiple of 4,096"),
        Register(name="DESCRIPTOR_BYTES", offset=0x30, access="rw",
                 description="bytes of all jobs, a multiple of bus_bytes"),
        Register(name="N_LAYERS", offset=0x34, access="rw", description="jobs of the run"),
        *pair("CYCLES", 0x40, "ro", "clock cycles of the run"),
        *pair("IDEAL_BYTES", 0x48, "ro", "bytes of planes that were wanted"),
        *pair("MOVED_BYTES", 0x50, "ro", "bytes of planes that were read, in atoms of 32"),
        Register(name="ROWS", offset=0x58, access="ro", description="output rows of layers that are over"),
        Register(name="RECOMPUTED_ROWS", offset=0x5C, access="ro",
                 description="of these, rows computed again with LSBs"),
        Register(name="LAYERS_DONE", offset=0x60, access="ro", description="layers that are over"),
    ]  # fmt: skip
    for c in range(n_channels):
        offset = DRAM_OFFSET + DRAM_STEP * c
        table += pair(
            f"DRAM{c}_BASE", offset, "rw", f"byte address of DRAM channel {c}'s atom 0, a multiple of 4,096"
        )
    for i, (port, layout) in enumerate(OUTPUTS.items()):
        name, offset = f"OUT_{output_name(port)}", OUTPUT_OFFSET + OUTPUT_STEP * i
        stride = stride_bytes(layout(config.core), config.bus_bits)
        table += [
            *pair(
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
    of_one = [
        register
        for register in registers(config)
        if not register.name.startswith("DRAM") or register.name.startswith("DRAM0_")
    ]
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
        *page_lines(of_one),
        "",
        "## Error codes",
        "",
        *code_lines("code", ERROR_TEXT.items()),
        "",
        "Details of DESCRIPTOR:",
        "",
        *code_lines("detail", DESCRIPTOR_ERROR_TEXT.items()),
    ]
    return "\n".join(lines) + "\n"


def c_header(config: SystemConfig) -> str:
    """Offsets, fields and error codes for C; the same table as the RTL's."""
    return header_text(
        "Registers of the Quartet attention system",
        "QUARTET_SYSTEM_H",
        "QUARTET_",
        registers(config),
        {"ERROR_CODE": ErrorCode, "DESCRIPTOR_ERROR": DescriptorError},
    )


if __name__ == "__main__":
    from hw.config import preset

    from .config import system_config

    Path("docs/registers.md").write_text(markdown(system_config(preset("paper"))))
