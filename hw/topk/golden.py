# SPDX-License-Identifier: MIT
"""Bit-exact model of the top-k engine, by its own algorithm: quick-select, then a filter (SpAtten Alg. 3)."""

import torch

from .config import TopKConfig


def top_k(elements: torch.Tensor, k: int, config: TopKConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of ``elements`` in their original order; of equal ones the earlier are kept.

    The result does not depend on the pivots, so none are drawn here; :mod:`hw.topk.cycles` replays them.

    Parameters
    ----------
    elements : int64[n], 0 <= n <= n_max, each in 0..2**element_bits - 1
    k : int, 0..n

    Returns
    -------
    values, indices : int64[k] each, indices ascending

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape, an element out of range, n above n_max, k outside 0..n.
    """
    check_request(elements, k, config)
    n = elements.numel()
    if k in (0, n):
        indices = torch.arange(k)
    else:
        threshold, n_equal = _quick_select(elements, k)
        equal = elements == threshold
        keep = (elements > threshold) | (equal & (equal.cumsum(0) <= n_equal))
        indices = torch.nonzero(keep).flatten()
    return elements[indices], indices


def check_request(elements: torch.Tensor, k: int, config: TopKConfig) -> None:
    """Raise TypeError or ValueError, naming what is allowed, unless the engine can serve the request."""
    if elements.dtype != torch.int64 or elements.ndim != 1:
        raise TypeError(f"elements must be int64[n], not {elements.dtype}{list(elements.shape)}")
    n = elements.numel()
    if n > config.n_max:
        raise ValueError(f"n must be in 0..{config.n_max}, not {n}")
    if not 0 <= k <= n:
        raise ValueError(f"k must be in 0..{n} (n), not {k}")
    limit = 1 << config.element_bits
    if n and not (int(elements.min()) >= 0 and int(elements.max()) < limit):
        raise ValueError(
            f"elements must be in 0..{limit - 1}, not {int(elements.min())}..{int(elements.max())}"
        )


def _quick_select(elements: torch.Tensor, k: int) -> tuple[int, int]:
    """The k-th largest of ``elements`` and how many equal to it belong to the k largest; 0 < k < n."""
    rest, target = elements, k
    while True:
        pivot = rest[0]
        left, right = rest[rest < pivot], rest[rest > pivot]
        n_not_left = rest.numel() - left.numel()
        if right.numel() > target:
            rest = right
        elif n_not_left < target:
            rest, target = left, target - n_not_left
        else:
            return int(pivot), target - right.numel()
