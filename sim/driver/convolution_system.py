# SPDX-License-Identifier: MIT
"""What software writes to the registers of the convolution core behind AXI.

Needs no torch and no simulator; with the address that a board has, the same bytes and writes run a chip.
"""

from collections.abc import Mapping

from hw.convolution.program import Program
from hw.system.config import ALIGNMENT_BYTES

STALL_CYCLES = 1 << 24
"""Without a word read or written for so long a run has failed: no pass over the accumulators takes longer."""
BOTH_EVENTS = 0b11


def register_writes(
    program: Program, addresses: Mapping[str, int], *, base: int, stall_cycles: int = STALL_CYCLES
) -> list[tuple[int, int]]:
    """(address, value), all but the start, for a program whose memory lies at byte address ``base``.

    ``addresses`` are the registers' offsets by name; ``stall_cycles`` 0: a run may wait for ever.
    ValueError where ``base`` is no multiple of 4,096.
    """
    if base % ALIGNMENT_BYTES:
        raise ValueError(f"base must be a multiple of {ALIGNMENT_BYTES}, not {base:#x}")
    values = {
        "MEMORY_BASE_LO": base & 0xFFFF_FFFF,
        "MEMORY_BASE_HI": base >> 32,
        "MEMORY_BYTES": len(program.memory),
        "COMMANDS": program.base,
        "N_COMMANDS": program.n_commands,
        "STALL_CYCLES": stall_cycles,
        "IRQ_ENABLE": BOTH_EVENTS,
    }
    return [(addresses[name], value) for name, value in values.items()]
