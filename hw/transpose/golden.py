# SPDX-License-Identifier: MIT
"""Bit-exact model of the transposer."""

import torch

from .config import ELEMENT_BITS, NARROW_BITS, Map


def transposed(x: torch.Tensor, of: Map) -> torch.Tensor:
    """Channel c of pixel p becomes channel p of pixel c.

    Parameters
    ----------
    x : int64[n_pixels, n_channels], signed 8 bits, or 16 of a wide map

    Returns
    -------
    int64[n_channels, n_pixels]

    Raises
    ------
    TypeError, ValueError
        Wrong dtype or shape; an element out of range.
    """
    shape, bound = [of.n_pixels, of.n_channels], 1 << ((ELEMENT_BITS if of.wide else NARROW_BITS) - 1)
    if x.dtype != torch.int64 or list(x.shape) != shape:
        raise TypeError(f"x must be int64{shape}, not {x.dtype}{list(x.shape)}")
    if not (-bound <= int(x.min()) and int(x.max()) < bound):
        raise ValueError(f"x must be in {-bound}..{bound - 1}")
    return x.T
