# SPDX-License-Identifier: MIT
"""Shape of the convolution core behind AXI, and its error codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from hw.config import ChipConfig
from hw.convolution.config import ConvolutionConfig, convolution_config

READ_PORTS = ("commands", "weights", "input", "side")
"""The core's read ports, each with a master of its own, in the order of their numbers in errors."""
BURST_WORDS = 8
"""Most words of one burst; with the widest bus 512 bytes, of which 4,096 is a multiple."""
MAX_WORDS_UNDER_WAY = 1024
"""The core asks for no more on one port before it has taken answers."""


class ErrorCode(IntEnum):
    """Field ``code`` of register ERROR; ``detail`` is what the description names."""

    NONE = 0
    NO_COMMANDS = 1
    UNALIGNED = 2
    COMMAND = 3
    READ = 4
    WRITE = 5
    READ_RANGE = 6
    WRITE_RANGE = 7
    STALLED = 8


ERROR_TEXT: Mapping[ErrorCode, str] = {
    ErrorCode.NONE: "no error",
    ErrorCode.NO_COMMANDS: "N_COMMANDS is 0",
    ErrorCode.UNALIGNED: "MEMORY_BASE is no multiple of 4,096 (detail 0), or COMMANDS none of 64 (1)",
    ErrorCode.COMMAND: "a command of unknown kind; told when the list ends",
    ErrorCode.READ: "SLVERR or DECERR on a read; detail: 0 commands, 1 weights, 2 input, 3 side",
    ErrorCode.WRITE: "SLVERR or DECERR on a write",
    ErrorCode.READ_RANGE: "a read at or above MEMORY_BYTES, which does not reach the bus; detail as of READ",
    ErrorCode.WRITE_RANGE: "a write likewise",
    ErrorCode.STALLED: "no word was read or written for STALL_CYCLES",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvolutionSystemConfig:
    """One core behind AXI; every master is as wide as the core's bus."""

    core: ConvolutionConfig

    @property
    def bus_bytes(self) -> int:
        """Bytes of one bus word."""
        return self.core.bus_bytes

    @property
    def read_masters(self) -> tuple[str, ...]:
        """Prefixes of their ports."""
        return tuple(f"m_axi_{port}" for port in READ_PORTS)


def convolution_system_config(chip: ChipConfig) -> ConvolutionSystemConfig:
    """The system of a chip."""
    return ConvolutionSystemConfig(core=convolution_config(chip))
