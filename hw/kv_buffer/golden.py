# SPDX-License-Identifier: MIT
"""How vectors lie in lines."""

import torch

from .config import KvBufferConfig


def to_lines(vectors: torch.Tensor, config: KvBufferConfig) -> torch.Tensor:
    """Vector v lies in line v // (M/D), its elements from (v mod M/D) D on; the rest of the last line is 0.

    Parameters
    ----------
    vectors : int64[n_vectors, D], D one of HEAD_DIMS and at most M

    Returns
    -------
    int64[ceil(n_vectors D / M), M]
    """
    n_vectors, head_dim = vectors.shape
    n_lines = -(-n_vectors // config.vectors_per_line(head_dim))
    lines = torch.zeros(n_lines * config.n_multipliers, dtype=torch.int64)
    lines[: n_vectors * head_dim] = vectors.reshape(-1)
    return lines.reshape(n_lines, config.n_multipliers)
