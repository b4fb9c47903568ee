# SPDX-License-Identifier: MIT
"""Bit-exact model of the query-times-key array."""

import torch

from .config import QkConfig


def scores(query: torch.Tensor, keys: torch.Tensor, config: QkConfig) -> torch.Tensor:
    """Q.K for one query and a plane of keys (SpAtten Alg. 1, without scale): exact, nothing rounded.

    Both planes of a key use it. With K = 16 K_msb + K_lsb, K_msb signed and K_lsb unsigned,
    Q.K = 16 scores(Q, K_msb) + scores(Q, K_lsb).

    Parameters
    ----------
    query : int64[D], D one of ``config.head_dims``, each element in ``element_bits`` signed bits
    keys : int64[n_keys, D], likewise

    Returns
    -------
    int64[n_keys], each in ``config.sum_bits`` signed bits

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, D not built, an element out of range.
    """
    for name, value, n_axes in (("query", query, 1), ("keys", keys, 2)):
        if value.dtype != torch.int64 or value.ndim != n_axes:
            raise TypeError(f"{name} must be int64 of {n_axes} axes, not {value.dtype}{list(value.shape)}")
        if value.shape[-1] not in config.head_dims:
            raise ValueError(f"head_dim must be one of {config.head_dims}, not {value.shape[-1]}")
        bound = 1 << (config.element_bits - 1)
        if value.numel() and not (-bound <= int(value.min()) and int(value.max()) < bound):
            raise ValueError(f"{name} must be in {-bound}..{bound - 1}")
    return (keys * query).sum(dim=1)
