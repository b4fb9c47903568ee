# SPDX-License-Identifier: MIT
"""Payloads of the attention core's streams."""

from amaranth import Mux, Value, signed
from amaranth.lib import data, enum

from hw.pv.config import PROBABILITY_BITS
from hw.pv.config import SHIFT_BITS as OUT_SHIFT_BITS
from hw.pv.rtl import row_layout
from hw.softmax.config import MULTIPLIER_BITS, SHIFT_BITS
from hw.stream.rtl import packed_layout

from .config import COUNT_BITS, HEAD_BITS, TRAFFIC_BITS, AttentionConfig


class Source(enum.Enum, shape=2):  # type: ignore[call-arg]
    """Where a layer's list of tokens, or of heads, comes from."""

    GO_ON = 0
    """What the layer before kept, with its importance."""
    FILL = 1
    """0..n-1, importance 0: a new sentence."""
    GIVEN = 2
    """``i_heads``, or ``i_tokens`` with ``i_token_importance``: the most important ``n_tokens`` of them."""


class Rows(enum.Enum, shape=2):  # type: ignore[call-arg]
    """Which queries a head has, and which keys they see."""

    ALL = 0
    """Every token present, all keys."""
    CAUSAL = 1
    """Every token present, the keys up to its own."""
    ONE = 2
    """The row at position 0 of the query plane, all keys: generation."""
    SUM = 3
    """A matrix times a vector, whose parts the heads are: one query a head, and only the scores are wanted,
    added up over the heads. The queries are rows of one plane. Always streamed; no head may be missing."""


def layer_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``i_layer``: what holds for all heads of a layer.

    ``tokens`` and ``heads`` say where the lists come from, ``n_tokens`` how many tokens there are (FILL) or
    stay (GIVEN), ``n_heads`` how many heads the model has: so many beats of ``i_head`` follow. ``dim`` is
    log2(D / 32). ``n_values``, ``n_tokens_next`` and ``n_heads_next`` above what there is keep everything.
    ``out_shift`` 0..7 stands for 8..15. ``protect_last``: the list's last token stays in every selection.
    ``halve``: given importance counts half. ``streamed``: each row reads its keys, and the values that it
    keeps, from memory anew.
    """
    return data.StructLayout(
        {
            "tokens": Source,
            "heads": Source,
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
            "rows": Rows,
            "protect_last": 1,
            "halve": 1,
            "streamed": 1,
        }
    )


def plane_layout(config: AttentionConfig) -> data.StructLayout:
    """Where a head's rows lie in a plane, see :class:`hw.fetch.layout.Request`."""
    return data.StructLayout({"base_atom": config.fetch.atom_address_bits, "record_heads": 3, "head": 2})


def head_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``i_head``, one beat for each head of the model: its planes and the scales of its scores.

    Heads of equal ``group``, next to one another, share ``k``, ``lsb`` and ``v``.
    """
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
            "group": HEAD_BITS,
        }
    )


def numbered_head_layout(config: AttentionConfig) -> data.StructLayout:
    """A surviving head: what ``i_head`` said of it, its number, its place in its group and in the layer."""
    return data.StructLayout(
        {
            "planes": head_layout(config),
            "number": HEAD_BITS,
            "first_of_group": 1,
            "last_of_group": 1,
            "last": 1,
        }
    )


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


def given_importance_layout(config: AttentionConfig) -> data.StructLayout:
    """Importance scores as ``i_token_importance`` brings them."""
    return packed_layout(config.token_importance.element_bits, config.token_importance.lanes)


def elements_layout(config: AttentionConfig) -> data.StructLayout:
    """Importance scores as a packed beat, in the order of the kept list."""
    return packed_layout(config.token_importance.element_bits, config.lanes)


def sums_layout(config: AttentionConfig) -> data.StructLayout:
    """Payload of ``o_sums``: signed sums over the heads, a packed beat."""
    return packed_layout(config.sum_bits, config.confidence.lanes)


def region_of(half: Value, config: AttentionConfig) -> Value:
    """The region of the buffers in which a half begins."""
    return Mux(half, config.qk.n_regions // 2, 0)


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


def key_job_layout(config: AttentionConfig) -> data.StructLayout:
    """The keys that a row needs of a streamed layer: ``n`` of them, in the MSB or the LSB plane of a head."""
    return data.StructLayout({"head": HEAD_BITS, "lsb": 1, "n": config.count_bits})


def value_job_layout(config: AttentionConfig) -> data.StructLayout:
    """The values that a row keeps of a streamed layer: ``n`` of them, of a head."""
    return data.StructLayout({"head": HEAD_BITS, "n": config.count_bits})


def weighted_layout(config: AttentionConfig) -> data.StructLayout:
    """A row for the second array, and how many values it keeps."""
    return data.StructLayout({"row": row_layout(config.pv), "n": config.count_bits})


def tag_layout(config: AttentionConfig) -> data.StructLayout:
    """A row's name between the core's blocks: its query's place in the list, its place in the query ring."""
    return data.StructLayout({"row": config.id_bits, "place": config.ring_bits, "head": HEAD_BITS, "half": 1})
