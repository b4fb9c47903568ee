# SPDX-License-Identifier: MIT
"""Payloads of the attention core's streams."""

from amaranth import signed
from amaranth.lib import data

from hw.pv.config import PROBABILITY_BITS
from hw.pv.config import SHIFT_BITS as OUT_SHIFT_BITS
from hw.softmax.config import MULTIPLIER_BITS, SHIFT_BITS
from hw.stream.rtl import packed_layout

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig


def layer_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``i_layer``: what holds for all heads of a layer.

    ``first``: a new sentence of ``n_tokens`` tokens and ``n_heads`` heads; otherwise both go on from the
    layer before, and ``n_heads`` only tells how many beats of ``i_head`` follow. ``dim`` is log2(D / 32).
    ``n_values``, ``n_tokens_next`` and ``n_heads_next`` above what there is keep everything. ``out_shift``
    0..7 stands for 8..15.
    """
    return data.StructLayout(
        {
            "first": 1,
            "n_tokens": config.count_bits,
            "n_heads": HEAD_BITS + 1,
            "dim": 2,
            "q_bits": 4,
            "k_bits": 4,
            "v_bits": 4,
            "progressive": 1,
            "threshold": PROBABILITY_BITS,
            "n_values": config.count_bits,
            "out_shift": OUT_SHIFT_BITS,
            "n_tokens_next": config.count_bits,
            "n_heads_next": HEAD_BITS + 1,
            "token_shift": config.token_importance.shift_bits,
            "head_shift": config.head_importance.shift_bits,
        }
    )


def plane_layout(config: AttentionConfig) -> data.StructLayout:
    """Where a head's rows lie in a plane, see :class:`hw.fetch.layout.Request`."""
    return data.StructLayout({"base_atom": config.fetch.atom_address_bits, "record_heads": 3, "head": 2})


def head_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``i_head``, one beat for each head of the model: its planes and the scales of its scores."""
    plane = plane_layout(config)
    return data.StructLayout(
        {
            "q": plane,
            "k": plane,
            "lsb": plane,
            "v": plane,
            "msb_multiplier": MULTIPLIER_BITS,
            "msb_shift": SHIFT_BITS,
            "lsb_multiplier": MULTIPLIER_BITS,
            "lsb_shift": SHIFT_BITS,
        }
    )


def numbered_head_layout(config: AttentionConfig) -> data.StructLayout:
    """A surviving head: its number and what ``i_head`` said of it."""
    return data.StructLayout({"number": HEAD_BITS, "planes": head_layout(config)})


def output_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``o``: an output row, its head's number, its query's place in the list of kept tokens."""
    return data.StructLayout(
        {
            "head": HEAD_BITS,
            "row": config.id_bits,
            "used_lsb": 1,
            "data": data.ArrayLayout(signed(config.pv.element_bits), config.pv.max_head_dim),
        }
    )


def ids_layout(config: AttentionConfig) -> data.StructLayout:
    """Numbers of tokens, or heads, as a packed beat."""
    return packed_layout(config.id_bits, config.lanes)


def elements_layout(config: AttentionConfig) -> data.StructLayout:
    """Importance scores as a packed beat, in the order of the kept list."""
    return packed_layout(config.token_importance.element_bits, config.lanes)


def summary_layout() -> data.StructLayout:
    """Payload of ``o_summary``, one beat a layer: bytes wanted, bytes of the atoms moved, rows with LSBs."""
    return data.StructLayout(
        {
            "ideal_bytes": TRAFFIC_BITS,
            "moved_bytes": TRAFFIC_BITS,
            "n_rows": COUNT_BITS,
            "n_recomputed": COUNT_BITS,
        }
    )


def tag_layout(config: AttentionConfig) -> data.StructLayout:
    """A row's name between the core's blocks."""
    return data.StructLayout({"row": config.id_bits, "half": 1})
