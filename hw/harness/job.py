# SPDX-License-Identifier: MIT
"""What every way of running a block takes and gives: beats in, beats out, the cycle of each transfer.

A beat is a row of 32-bit words, lowest bits first; a stream of n beats is ``uint32[n, n_words]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .memory import Memory

Beats = np.ndarray

QUIET_CYCLES = 16
"""Cycles watched after the last expected beat: anything that comes out then is an error."""


@dataclass(frozen=True)
class StreamPort:
    """One stream at the edge of a block."""

    name: str
    bits: int
    """Width of the payload."""
    is_input: bool

    @property
    def n_words(self) -> int:
        """32-bit words of one beat."""
        return -(-self.bits // 32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of a block from reset: stimulus, what must come out, and when."""

    name: str
    inputs: Mapping[str, Beats]
    """Beats offered on each input stream, as early as back-pressure allows."""
    expected: Mapping[str, Beats]
    """The golden model's beats on each output stream; after them the block must stay silent."""
    expected_cycles: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The cycle model's cycle of each output beat at full rate; the first input transfer is cycle 1."""
    p_stall: float = 0.0
    """Chance, per cycle and port, that a source waits or a sink is not ready."""
    seed: int = 1
    """Seed of the stalls."""
    max_cycles: int
    """Budget; a run that needs more has failed."""
    memories: Mapping[str, Memory] = field(default_factory=dict)
    """Memories by the output stream that carries their requests. The one that brings the answers does not
    stand in ``inputs``; that of the requests may stand in ``expected``."""

    def stalled(self, p_stall: float, seed: int, slowdown: int = 12) -> "Case":
        """The same stimulus under random stalls; cycle expectations do not apply."""
        return replace(
            self,
            name=f"{self.name}, stalls {p_stall:g}",
            expected_cycles={},
            p_stall=p_stall,
            seed=seed,
            max_cycles=self.max_cycles * slowdown,
        )

    @property
    def answering(self) -> dict[str, str]:
        """Input stream that brings a memory's answers -> output stream of its requests."""
        return {memory.response: request for request, memory in self.memories.items()}


@dataclass(frozen=True, kw_only=True)
class Log:
    """What one run of a case showed."""

    beats: Mapping[str, Beats]
    """Beats seen on each output stream."""
    cycles: Mapping[str, np.ndarray]
    """int64 cycle number of each transfer on each stream, inputs and outputs; the first after reset is 0."""
    n_cycles: int
    """Cycles simulated."""

    def since_first_input(self, port: str) -> np.ndarray:
        """Cycle of each transfer on ``port``, where the first transfer on any stream counts as 1."""
        first = min(int(stamps[0]) for stamps in self.cycles.values() if len(stamps))
        return self.cycles[port] - first + 1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Comparison of one run with golden and cycle model."""

    case: str
    n_beats: int
    """Output beats compared."""
    n_cycles: int
    """First input transfer to last output transfer, both counted."""
    problems: tuple[str, ...]
    """One line per mismatch, the first of each kind; empty when all agree."""


def judge(case: Case, log: Log) -> Verdict:
    """Whole sequences must be equal, nothing may follow, and at full rate every beat must be on time."""
    problems: list[str] = []
    for port, want in case.expected.items():
        got = log.beats[port]
        n_common = min(len(got), len(want))
        differing = np.flatnonzero((got[:n_common] != want[:n_common]).any(axis=1))
        if differing.size:
            beat = int(differing[0])
            problems.append(f"{port} beat {beat}: {_hex(got[beat])}, golden {_hex(want[beat])}")
        if len(got) != len(want):
            problems.append(f"{port}: {len(got)} beats after {log.n_cycles} cycles, golden {len(want)}")
    if case.p_stall == 0 and not problems:
        for port, on_time in case.expected_cycles.items():
            stamps = log.since_first_input(port)
            late = np.flatnonzero(stamps != on_time)
            if late.size:
                beat = int(late[0])
                problems.append(f"{port} beat {beat}: cycle {stamps[beat]}, cycle model {on_time[beat]}")
    ends = [int(log.since_first_input(port)[-1]) for port in case.expected if len(log.cycles[port])]
    return Verdict(
        case=case.name,
        n_beats=sum(len(b) for b in case.expected.values()),
        n_cycles=max(ends, default=0),
        problems=tuple(problems),
    )


def _hex(words: np.ndarray) -> str:
    return "0x" + "".join(f"{int(word):08x}" for word in words[::-1])


def pack_fields(fields: Sequence[tuple[np.ndarray, int]]) -> Beats:
    """Lay fields side by side, first field in the lowest bits, as Amaranth's layouts do.

    Parameters
    ----------
    fields : sequence of (values, bits)
        ``values`` is an unsigned integer array of shape [n_beats] or [n_beats, n_elements], each value
        below ``2**bits``; element 0 of a row lies lowest. ``bits`` is at most 63.

    Returns
    -------
    uint32[n_beats, n_words]
    """
    columns = [column for values, bits in fields for column in _bit_columns(np.asarray(values), bits)]
    bits_by_beat = np.concatenate(columns, axis=1)
    n_beats, n_bits = bits_by_beat.shape
    padded = np.zeros((n_beats, -(-n_bits // 32) * 32), dtype=np.uint8)
    padded[:, :n_bits] = bits_by_beat
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def _bit_columns(values: np.ndarray, bits: int) -> list[np.ndarray]:
    values = values.reshape(len(values), int(np.prod(values.shape[1:]))).astype(np.uint64)
    if values.size and int(values.max()) >> bits:
        raise ValueError(f"value {int(values.max())} does not fit in {bits} bits")
    as_bits = (values[:, :, None] >> np.arange(bits, dtype=np.uint64)) & np.uint64(1)
    return [as_bits.reshape(len(values), values.shape[1] * bits).astype(np.uint8)]


def unpack_fields(beats: Beats, layout: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Undoes :func:`pack_fields`: ``layout`` lists (n_elements, bits), each int64[n_beats, n_elements]."""
    as_bits = np.unpackbits(
        np.ascontiguousarray(beats, dtype="<u4").view(np.uint8), axis=1, bitorder="little"
    )
    fields, start = [], 0
    for n_elements, bits in layout:
        end = start + n_elements * bits
        part = as_bits[:, start:end].reshape(len(beats), n_elements, bits).astype(np.int64)
        fields.append(part @ (1 << np.arange(bits, dtype=np.int64)))
        start = end
    return fields
