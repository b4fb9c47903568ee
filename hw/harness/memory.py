# SPDX-License-Identifier: MIT
"""The memory that a test bench puts behind a block's request and response streams.

Imports numpy only: the simulator side of cocotb reads it too. ``main.cpp`` follows the same rules.
"""

import random
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """A read-only memory of one channel, answering in the order of the requests.

    A request's payload is {address, tag} and a response's {data, tag}, the first field in the lowest bits;
    the tag, of any width, comes back as it went. A request taken in cycle t is answered in cycle
    ``max(t + latency_cycles + jitter, previous answer + interval_cycles)`` or, under back-pressure, as soon
    after as the response stream is free; ``jitter`` is drawn from 0..jitter_cycles for each request, by a
    generator of its own for each channel, so that channels overtake each other. Any number of requests may be
    under way. The stalls of a case fall on both streams as on any other.
    """

    response: str
    """Input stream of the block that brings the answers."""
    words: np.ndarray
    """uint32[n_addresses, data_bits / 32]: what each address holds; past the end all bits are 0."""
    address_bits: int
    latency_cycles: int = 1
    jitter_cycles: int = 0
    interval_cycles: int = 1
    """Cycles that the channel needs for one answer."""

    def __post_init__(self) -> None:
        if self.latency_cycles < 1:
            raise ValueError(f"latency_cycles must be at least 1, not {self.latency_cycles}")
        if self.jitter_cycles < 0:
            raise ValueError(f"jitter_cycles must not be negative, not {self.jitter_cycles}")
        if self.interval_cycles < 1:
            raise ValueError(f"interval_cycles must be at least 1, not {self.interval_cycles}")
        if not 1 <= self.address_bits <= 32:
            raise ValueError(f"address_bits must be in 1..32, not {self.address_bits}")
        if self.words.ndim != 2 or self.words.dtype != np.uint32:
            raise ValueError(
                f"words must be uint32[n, n_words], not {self.words.dtype}{list(self.words.shape)}"
            )

    @property
    def numbers(self) -> list[int]:
        """Everything but the names and the words, as the runners pass it on."""
        return [self.address_bits, self.latency_cycles, self.jitter_cycles, self.interval_cycles]


class Responder:
    """One memory during one run."""

    def __init__(self, memory: Memory, seed: int) -> None:
        self.memory = memory
        self.rng = random.Random(f"{seed} {memory.response} jitter")
        self.answers: deque[tuple[int, int]] = deque()  # (cycle, payload)
        self.busy_until = 0

    def ask(self, request: int, cycle: int) -> None:
        """A request was taken in ``cycle``."""
        memory = self.memory
        address, tag = request & ((1 << memory.address_bits) - 1), request >> memory.address_bits
        word = memory.words[address].astype("<u4").tobytes() if address < len(memory.words) else b""
        due = cycle + memory.latency_cycles + self.rng.randint(0, memory.jitter_cycles)
        due = max(due, self.busy_until)
        self.busy_until = due + memory.interval_cycles
        self.answers.append((due, int.from_bytes(word, "little") | tag << 32 * memory.words.shape[1]))

    def answer(self, cycle: int) -> int | None:
        """The payload to offer from ``cycle`` on, once; None where nothing is due."""
        if self.answers and self.answers[0][0] <= cycle:
            return self.answers.popleft()[1]
        return None
