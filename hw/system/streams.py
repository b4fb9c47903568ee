# SPDX-License-Identifier: MIT
"""The core's streams as they lie in memory: a stream more is a line more here."""

from collections.abc import Callable, Mapping

from amaranth.lib import data

from hw.attention.config import AttentionConfig
from hw.attention.shapes import (
    elements_layout,
    given_importance_layout,
    head_layout,
    ids_layout,
    layer_layout,
    output_layout,
    summary_layout,
    sums_layout,
)

from .config import COUNT_BITS

Layout = Callable[[AttentionConfig], data.StructLayout]

INPUTS: Mapping[str, Layout] = {
    "i_layer": layer_layout,
    "i_token_importance": given_importance_layout,
    "i_tokens": ids_layout,
    "i_heads": ids_layout,
    "i_head": head_layout,
}
"""In the order in which a job brings them, which is one in which the core can take them."""

OUTPUTS: Mapping[str, Layout] = {
    "o": output_layout,
    "o_token_importance": elements_layout,
    "o_head_importance": elements_layout,
    "o_tokens": ids_layout,
    "o_heads": ids_layout,
    "o_summary": lambda config: summary_layout(),
    "o_sums": sums_layout,
}
"""In the order of their registers."""


def output_name(port: str) -> str:
    """Of an output in the names of registers: ``o`` brings rows."""
    return port.removeprefix("o_").upper() if port != "o" else "ROW"


def header_layout() -> data.StructLayout:
    """A job's first record: how many beats follow of each input, but the first, of which one does."""
    return data.StructLayout({name: COUNT_BITS for name in list(INPUTS)[1:]})


def n_words(layout: data.StructLayout, bus_bits: int) -> int:
    """Bus words of one beat; the bits above it are 0."""
    return -(-layout.size // bus_bits)


def stride_bytes(layout: data.StructLayout, bus_bits: int) -> int:
    """From one beat of an output to the next: a power of two, so that none lies across 4,096 bytes."""
    return bus_bits // 8 << (n_words(layout, bus_bits) - 1).bit_length()
