# SPDX-License-Identifier: MIT
"""The memories that a test bench puts behind a block's request and response streams.

Imports numpy only: the simulator side of cocotb reads it too. ``main.cpp`` follows the same rules.
"""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """One port of a memory, answering in the order of the requests.

    A request's payload is {address, tag} and a response's {data, tag}, the first field in the lowest bits;
    the tag, of any width, comes back as it went. A request taken in cycle t is answered in cycle
    ``max(t + latency_cycles + jitter, previous answer + interval_cycles)`` or, under back-pressure, as soon
    after as the response stream is free; ``jitter`` is drawn from 0..jitter_cycles for each request, by a
    generator of its own for each channel, so that channels overtake each other. Any number of requests may be
    under way. The stalls of a case fall on both streams as on any other.

    Ports with the same ``words`` object share them during a run, each run from a fresh copy. A port that
    ``writes`` takes {address, data, strobe}, a bit of ``strobe`` for each byte, and answers 0; its bytes are
    there for requests of the cycle of the answer, and of later ones. A request to read sees what is there in
    the cycle in which it is taken.
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
    writes: bool = False

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
        return [
            self.address_bits, self.latency_cycles, self.jitter_cycles, self.interval_cycles, int(self.writes)
        ]  # fmt: skip


def images_of(memories: Mapping[str, Memory]) -> list[np.ndarray]:
    """The different ``words`` of some memories."""
    return list({id(memory.words): memory.words for memory in memories.values()}.values())


def image_number(memory: Memory, images: list[np.ndarray]) -> int:
    """Which of :func:`images_of` a memory shares."""
    return [id(words) for words in images].index(id(memory.words))


def responders(memories: Mapping[str, Memory], seed: int) -> "dict[str, Responder]":
    """Of one run, by request stream."""
    images = images_of(memories)
    copies = [words.copy() for words in images]
    return {
        request: Responder(memory, seed, copies[image_number(memory, images)])
        for request, memory in memories.items()
    }


class Responder:
    """One port during one run."""

    def __init__(self, memory: Memory, seed: int, words: np.ndarray) -> None:
        self.memory, self.words = memory, words
        self.rng = random.Random(f"{seed} {memory.response} jitter")
        self.answers: deque[tuple[int, int, int]] = deque()  # (cycle, address, tag, or data and strobe)
        self.busy_until = 0

    def ask(self, request: int, cycle: int) -> None:
        """A request was taken in ``cycle``."""
        memory = self.memory
        address, tag = request & ((1 << memory.address_bits) - 1), request >> memory.address_bits
        due = cycle + memory.latency_cycles + self.rng.randint(0, memory.jitter_cycles)
        due = max(due, self.busy_until)
        self.busy_until = due + memory.interval_cycles
        self.answers.append((due, 0, self._read(address, tag)) if not memory.writes else (due, address, tag))

    def _read(self, address: int, tag: int) -> int:
        word = self.words[address].astype("<u4").tobytes() if address < len(self.words) else b""
        return int.from_bytes(word, "little") | tag << 32 * self.words.shape[1]

    def _write(self, address: int, data_and_strobe: int) -> None:
        n_bytes = 4 * self.words.shape[1]
        data = data_and_strobe.to_bytes(n_bytes + n_bytes // 8 + 1, "little")
        word = self.words[address].view(np.uint8)
        for place in range(n_bytes):
            if data_and_strobe >> (8 * n_bytes + place) & 1:
                word[place] = data[place]

    def answer(self, cycle: int) -> int | None:
        """The payload to offer from ``cycle`` on, once; None where nothing is due."""
        if not self.answers or self.answers[0][0] > cycle:
            return None
        _, address, payload = self.answers.popleft()
        if not self.memory.writes:
            return payload
        self._write(address, payload)
        return 0
