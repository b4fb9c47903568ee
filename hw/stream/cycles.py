# SPDX-License-Identifier: MIT
"""Cycles of the stream parts at full rate, from the first beat taken to the last delivered, both counted."""

from collections.abc import Sequence

from .config import FifoConfig, PackerConfig, RegroupConfig, SkidConfig, WidthChangeConfig


def passing_cycles(n_beats: int, config: FifoConfig | SkidConfig) -> int:
    """n_beats + LATENCY_CYCLES: one beat a cycle through a FIFO or a skid buffer."""
    return n_beats + config.LATENCY_CYCLES if n_beats else 0


def width_change_cycles(n_beats_in: int, config: WidthChangeConfig) -> int:
    """Joining: one input beat a cycle; splitting: lanes_in / lanes_out output beats each, none lost between.

    cycles = n_beats_in * max(1, lanes_in / lanes_out) + LATENCY_CYCLES
    """
    if not n_beats_in:
        return 0
    return n_beats_in * max(1, config.lanes_in // config.lanes_out) + config.LATENCY_CYCLES


def packer_cycles(counts: Sequence[int], lasts: Sequence[bool], config: PackerConfig) -> list[int]:
    """Cycle of each output beat: that of the input beat that completes it.

    A last beat that overflows costs one more cycle, in which its rest leaves.

    Parameters
    ----------
    counts, lasts : elements of each input beat, and whether it ends its list
    """
    wide = RegroupConfig(element_bits=1, lanes_in=config.lanes, lanes_out=config.lanes)
    return regroup_cycles(counts, lasts, wide)


def regroup_cycles(counts: Sequence[int], lasts: Sequence[bool], config: RegroupConfig) -> list[int]:
    """Cycle of each output beat at full rate; the first input beat is taken in cycle 1.

    Packing as in :func:`packer_cycles`. Where wide beats are split, each is taken with the last part of the
    one before, its parts that hold elements (at least one) follow one a cycle, and an input beat that
    completes a wide one waits for that.
    """
    lanes = config.packer.lanes
    cycle, rest = 0, 0
    outputs: list[int] = []

    def emit(at: int, n_elements: int) -> int:
        """The packer offers a beat from cycle ``at`` on; returns the cycle in which it leaves the packer."""
        if config.n_parts == 1:
            outputs.append(at)
            return at
        taken = max(at, outputs[-1] if outputs else 0)
        outputs.extend(taken + 1 + part for part in range(max(1, -(-n_elements // config.lanes_out))))
        return taken

    for count, last in zip(counts, lasts, strict=True):
        cycle += 1
        total = rest + count
        if total >= lanes or last:
            cycle = emit(cycle, min(total, lanes))
        if last and total > lanes:
            cycle = emit(cycle + 1, total - lanes)
        rest = 0 if last else total % lanes
    return outputs
