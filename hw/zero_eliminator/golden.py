# SPDX-License-Identifier: MIT
"""Bit-exact model of the zero eliminator."""

import torch


def eliminate_zeros(data: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the marked elements of each row to the lowest lanes, order kept; the other lanes become 0.

    Parameters
    ----------
    data : int64[n_beats, lanes]
    mask : bool[n_beats, lanes]
        True where an element stays.

    Returns
    -------
    int64[n_beats, lanes], int64[n_beats]
        Packed elements and how many there are.
    """
    if data.shape != mask.shape or data.ndim != 2:
        raise ValueError(
            f"data and mask must be [n_beats, lanes], not {tuple(data.shape)}, {tuple(mask.shape)}"
        )
    order = torch.argsort((~mask).to(torch.int64), dim=1, stable=True)
    return (data * mask).gather(1, order), mask.sum(dim=1)
