# SPDX-License-Identifier: MIT
"""Shape of the core behind AXI, its error codes, and the format of what lies in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from hw.attention.config import AttentionConfig, attention_config
from hw.config import ChipConfig

ALIGNMENT_BYTES = 4096
"""Of every base address. AXI bursts must not cross a multiple of it."""
BURST_WORDS = 16
"""Words of one burst of the descriptor reader."""
DESCRIPTOR_WORDS = 64
"""Words of descriptors that are fetched ahead."""
DESCRIPTORS, DRAM = "m_axi_desc", "m_axi_dram"
"""Prefixes of the ports of read masters; the second is followed by the channel's number."""
COUNT_BITS = 16
"""Width of a count in a job's header."""


class ErrorCode(IntEnum):
    """Field ``code`` of register ERROR; ``detail`` is what the description names."""

    NONE = 0
    NO_LAYERS = 1
    UNALIGNED = 2
    DESCRIPTOR = 3
    DESCRIPTOR_LENGTH = 4
    OUTPUT_FULL = 5
    DRAM_READ = 6
    DESCRIPTOR_READ = 7
    WRITE = 8


ERROR_TEXT: Mapping[ErrorCode, str] = {
    ErrorCode.NONE: "no error",
    ErrorCode.NO_LAYERS: "N_LAYERS is 0",
    ErrorCode.UNALIGNED: "a base address is no multiple of 4,096; detail: 0 descriptors, 1 + c DRAM "
    "channel c, 128 + i output i",
    ErrorCode.DESCRIPTOR: "a descriptor asks for what the core cannot do; detail: see the next table",
    ErrorCode.DESCRIPTOR_LENGTH: "DESCRIPTOR_BYTES ends within a job (detail 0) or after the last one (1)",
    ErrorCode.OUTPUT_FULL: "an output region is too small; detail: number of the output",
    ErrorCode.DRAM_READ: "SLVERR or DECERR on a read of planes; detail: DRAM channel",
    ErrorCode.DESCRIPTOR_READ: "SLVERR or DECERR on a read of descriptors",
    ErrorCode.WRITE: "SLVERR or DECERR on a write of outputs",
}


class DescriptorError(IntEnum):
    """Detail of ``ErrorCode.DESCRIPTOR``."""

    TOKENS = 1
    HEADS = 2
    N_TOKENS = 3
    N_HEADS = 4
    DIM = 5
    BITS = 6
    N_VALUES = 7
    N_TOKENS_NEXT = 8
    N_HEADS_NEXT = 9
    ROWS = 10
    KEYS = 11
    COUNTS = 12
    PLANE = 13
    LIST = 14


DESCRIPTOR_ERROR_TEXT: Mapping[DescriptorError, str] = {
    DescriptorError.TOKENS: "`tokens` is no source, or goes on where no layer came before",
    DescriptorError.HEADS: "`heads` likewise",
    DescriptorError.N_TOKENS: "`n_tokens` is 0 or above what was built",
    DescriptorError.N_HEADS: "`n_heads` is 0, above what was built, or has changed where the list goes on",
    DescriptorError.DIM: "`dim` is the code of no head dimension of this build",
    DescriptorError.BITS: "`q_bits`, `k_bits` or `v_bits` is none of 4, 6, 8, 10, 12",
    DescriptorError.N_VALUES: "`n_values` is 0",
    DescriptorError.N_TOKENS_NEXT: "`n_tokens_next` is 0",
    DescriptorError.N_HEADS_NEXT: "`n_heads_next` is 0",
    DescriptorError.ROWS: "`rows` SUM with heads that are not filled, or more of them than tokens can be",
    DescriptorError.KEYS: "the keys present (with LSBs) neither fit in half of the buffer nor are streamed",
    DescriptorError.COUNTS: "the header's counts do not agree with `n_heads`, `tokens` and `heads`",
    DescriptorError.PLANE: "`record_heads` of a plane is not in 1..4, or `head` is not below it",
    DescriptorError.LIST: "a list is not dense, does not end with its last beat, is too long, names a head "
    "that is not there, or has not as many scores as tokens",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemConfig:
    """One core behind AXI. Make it with :func:`system_config`."""

    core: AttentionConfig
    bus_bits: int = 64
    """Width of every master: that of one DRAM channel."""
    n_outstanding: int = 32
    """Atoms that a DRAM channel may have under way."""

    def __post_init__(self) -> None:
        if self.bus_bits not in (32, 64, 128, 256):
            raise ValueError(f"bus_bits must be 32, 64, 128 or 256, not {self.bus_bits}")
        if not 2 <= self.n_outstanding <= 256:
            raise ValueError(f"n_outstanding must be in 2..256, not {self.n_outstanding}")

    @property
    def bus_bytes(self) -> int:
        """Bytes of one bus word."""
        return self.bus_bits // 8

    @property
    def read_masters(self) -> tuple[str, ...]:
        """Prefixes of their ports: descriptors, then DRAM channels."""
        return DESCRIPTORS, *(f"{DRAM}{c}" for c in range(self.core.fetch.n_channels))


def system_config(chip: ChipConfig) -> SystemConfig:
    """The system of a chip."""
    return SystemConfig(core=attention_config(chip), bus_bits=8 * chip.dram_bytes_per_cycle)


@dataclass(frozen=True, kw_only=True)
class SystemFormat:
    """What software must know of a build: where its registers are, how its memory is laid out."""

    addresses: Mapping[str, int]
    """Of the registers by name."""

    bus_bytes: int
    n_channels: int
    inputs: tuple[str, ...]
    """The core's input streams in the order of a job: a beat of the first, then as many of each other as the
    job's header counts."""
    strides_bytes: Mapping[str, int]
    """Of each output stream the bytes from one beat to the next."""
    output_names: Mapping[str, str]
    """Of each output stream its name in registers, as in ``OUT_{name}_BYTES``."""

    @property
    def header_bytes(self) -> int:
        """A job's header, in whole words."""
        return self.padded_bytes((len(self.inputs) - 1) * COUNT_BITS // 8)

    def padded_bytes(self, n_bytes: int) -> int:
        """``n_bytes`` in whole words of the bus."""
        return -(-n_bytes // self.bus_bytes) * self.bus_bytes
