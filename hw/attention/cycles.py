# SPDX-License-Identifier: MIT
"""Cycles of the attention core at full rate: an exact replay, register by register.

Every unit of :mod:`hw.attention.replay` mirrors the registers and handshakes of its component and none of its
data. What the data decide is given or found beforehand: which rows are computed again, which keys, tokens and
heads are kept, and how long each selection takes. One step is one cycle. Within it units step from the output
to the input, so that a register emptied in a cycle refills in it, and each reads only what the unit before it
held when the cycle began. The first cycle in which anything is taken is cycle 1.

Imports numpy at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from hw.fetch.cycles import MemoryTiming

from .config import AttentionConfig
from .replay.core import Core
from .replay.sentence import LayerTrace, layers_of

__all__ = ["AttentionTiming", "LayerTrace", "replay"]

MAX_QUIET_CYCLES = 4_000_000
"""More than the longest time between two output beats with any real memory: a matrix of 1,024 x 8,192 12-bit
weights comes through one channel of 8 bytes a cycle in 1,572,864."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionTiming:
    """Cycle of each beat of each output stream, int64, of all layers one after the other."""

    o: np.ndarray
    o_token_importance: np.ndarray
    o_head_importance: np.ndarray
    o_tokens: np.ndarray
    o_heads: np.ndarray
    o_summary: np.ndarray
    """One beat a layer: its end."""
    o_sums: np.ndarray

    @property
    def by_stream(self) -> dict[str, np.ndarray]:
        """Under the names of the streams."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def layer_cycles(self) -> np.ndarray:
        """int64[n_layers]: from the end of the layer before to the end of each layer."""
        return np.diff(self.o_summary, prepend=0)

    @property
    def n_cycles(self) -> int:
        """First transfer to last, both counted."""
        return int(self.o_summary[-1])


def replay(traces: Sequence[LayerTrace], config: AttentionConfig, memory: MemoryTiming) -> AttentionTiming:
    """Sentences through the core one after the other, from reset; all sinks ready, all inputs on offer.

    Parameters
    ----------
    traces : the layers of all sentences in order, at least one; those of :func:`hw.attention.trace.traces`
    memory : of each channel, answering in order after a fixed time

    Raises
    ------
    ValueError
        No layers, or a first layer that begins no sentence.
    RuntimeError
        Nothing left for ``MAX_QUIET_CYCLES`` or twice that: memory far too slow, or contradictory traces.
    """
    if not traces or "go on" in (traces[0].tokens_from, traces[0].heads_from):
        raise ValueError("traces must hold at least one layer, and the first must not go on from another")
    core = Core(layers_of(traces, config), config, memory)
    cycle = n_before = 0
    while not core.is_done:
        cycle += 1
        core.step(cycle)
        if cycle % MAX_QUIET_CYCLES == 0:
            if core.n_stamps == n_before:
                raise RuntimeError(f"nothing left the core for {MAX_QUIET_CYCLES} cycles up to cycle {cycle}")
            n_before = core.n_stamps
    heads, tokens = core.cascade.heads, core.cascade.tokens
    return AttentionTiming(
        o=np.array(core.output_stamps),
        o_token_importance=np.array(tokens.score_stamps),
        o_head_importance=np.array(heads.score_stamps),
        o_tokens=np.array(tokens.kept_stamps),
        o_heads=np.array(heads.kept_stamps),
        o_summary=np.array(core.cascade.summary_stamps),
        o_sums=np.array(core.sums.stamps),
    )
