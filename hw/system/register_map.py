# SPDX-License-Identifier: MIT
"""Registers in a table: what a design behind AXI4-Lite is made of, and its page and C header from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import version
from typing import Literal

ADDRESS_BITS = 12

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


def pair(name: str, offset: int, access: Access, description: str) -> list[Register]:
    """64 bits, the low half first."""
    return [
        Register(name=f"{name}_LO", offset=offset, access=access, description=f"{description}, bits 31..0"),
        Register(name=f"{name}_HI", offset=offset + 4, access=access, description="bits 63..32"),
    ]


def _bit(name: str, low: int, description: str) -> Field:
    return Field(name=name, low=low, bits=1, description=description)


_EVENTS = (
    _bit("done", 0, "a run has ended well"),
    _bit("error", 1, "a run has ended with an error, or was refused"),
)


def run_registers(*, letters: str, build: Mapping[str, tuple[int, str]], place: Register) -> list[Register]:
    """What every design has: what it is, and the course of a run (:class:`hw.system.course.Course`).

    Parameters
    ----------
    letters : four, which register ID shows
    build : value and description of each byte of register BUILD, the lowest first
    place : where the first error came
    """
    major, minor, patch = (int(part) for part in version("quartet").split(".")[:3])
    return [
        Register(name="ID", offset=0x00, access="ro", reset=int.from_bytes(letters.encode(), "big"),
                 description=f"the letters {letters}"),
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
            name="BUILD", offset=0x08, access="ro", description="what was built",
            reset=sum(value << 8 * byte for byte, (value, _) in enumerate(build.values())),
            fields=tuple(
                Field(name=name, low=8 * byte, bits=8, description=text)
                for byte, (name, (_, text)) in enumerate(build.items())
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
        place,
        Register(name="IRQ_ENABLE", offset=0x1C, access="rw", locked=False, fields=_EVENTS,
                 description="which events raise `irq`; may be written at any time"),
        Register(name="IRQ_STATUS", offset=0x20, access="w1c", fields=_EVENTS,
                 description="events since they were cleared"),
    ]  # fmt: skip


def page_lines(table: Sequence[Register]) -> list[str]:
    """The table in Markdown."""
    lines = ["| offset | name | access | reset | bits | what |", "|---|---|---|---|---|---|"]
    for register in table:
        start = f"| {register.offset:#05x} | {register.name} | {register.access} | {register.reset:#x} |"
        lines.append(f"{start} 31..0 | {register.description} |")
        for field in register.fields:
            high = field.low + field.bits - 1
            bits = f"{high}..{field.low}" if field.bits > 1 else f"{field.low}"
            lines.append(f"| | {field.name} | | | {bits} | {field.description} |")
    return lines


def code_lines(column: str, texts: Iterable[tuple[IntEnum, str]]) -> list[str]:
    """Codes of errors in Markdown; ``column`` names what they are."""
    lines = [f"| {column} | name | what |", "|---|---|---|"]
    return lines + [f"| {code.value} | {code.name} | {text} |" for code, text in texts]


def header_text(
    title: str, guard: str, prefix: str, table: Sequence[Register], codes: Mapping[str, type[IntEnum]]
) -> str:
    """Offsets, fields and codes for C, each name after ``prefix``."""
    lines = ["/* SPDX-License-Identifier: MIT */", f"/* {title}; generated beside its Verilog. */"]
    lines += [f"#ifndef {guard}", f"#define {guard}", ""]
    for register in table:
        lines.append(f"#define {prefix}{register.name} {register.offset:#05x}u")
        for field in register.fields:
            name = f"{prefix}{register.name}_{field.name.upper()}"
            lines += [f"#define {name}_SHIFT {field.low}u", f"#define {name}_MASK {field.mask:#010x}u"]
    lines.append("")
    for kind, members in codes.items():
        lines += [f"#define {prefix}{kind}_{member.name} {member.value}u" for member in members]
    return "\n".join([*lines, "", "#endif", ""])
