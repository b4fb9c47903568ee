# SPDX-License-Identifier: MIT
"""A matrix-vector product as a pass through the core (SpAtten-e2e): one layer whose heads are parts of the
vector. Needs no torch."""

import numpy as np

from hw.softmax.config import row_scale

from .config import AttentionConfig
from .layers import HeadInput, LayerInput
from .program import Pass, PlaneBits


def matrix_pass(
    vector: np.ndarray,
    weights: np.ndarray,
    weight_bits: int,
    config: AttentionConfig,
    *,
    vector_bits: int = 12,
) -> Pass:
    """``weights @ vector``; its sums leave on ``o_sums``.

    The vector is cut in parts of the largest D, one for each head; what is missing in the last is 0.

    Parameters
    ----------
    vector : int64[n_in], ``vector_bits`` signed
    weights : int64[n_out, n_in], ``weight_bits`` signed: 4, 6, 8, 10 or 12

    Raises
    ------
    ValueError
        More outputs than the core has keys, or more parts than it has heads: cut the matrix in blocks.
    """
    n_out, n_in = weights.shape
    head_dim, most_heads = config.qk.head_dims[-1], most_parts(config)
    n_heads = -(-n_in // head_dim)
    if vector.shape != (n_in,):
        raise ValueError(f"vector must have {n_in} elements, not shape {list(vector.shape)}")
    if not 1 <= n_out <= config.n_max:
        raise ValueError(f"weights must have 1..{config.n_max} rows, not {n_out}")
    if not 1 <= n_in <= most_heads * head_dim:
        raise ValueError(f"weights must have 1..{most_heads * head_dim} columns, not {n_in}")
    padded = np.zeros((1 + n_out, n_heads * head_dim), dtype=np.int64)
    padded[0, :n_in], padded[1:, :n_in] = vector, weights
    scale = row_scale(1.0)
    heads = [
        HeadInput(q=part[:1], k=part[1:], v=part[1:1], msb_scale=scale, lsb_scale=scale)
        for part in np.split(padded, n_heads, axis=1)
    ]
    layer = LayerInput(
        heads=heads,
        progressive=False,
        threshold=0,
        n_values=1,
        out_shift=8,
        n_tokens_next=n_out,
        n_heads_next=n_heads,
        rows="sum",
        streamed=True,
    )
    return Pass(layers=[layer], bits=PlaneBits(q=vector_bits, k=weight_bits, v=weight_bits))


def most_parts(config: AttentionConfig) -> int:
    """Parts that a vector can be cut in: heads of a layer, whose queries are numbered as tokens are."""
    return min(config.head_importance.n_max, config.n_max)
