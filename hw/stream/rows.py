# SPDX-License-Identifier: MIT
"""Rows of elements as the dense packed beats in which blocks exchange them."""

from collections.abc import Sequence

import numpy as np

from hw.harness.job import Beats, pack_fields


def dense_beats(rows: Sequence[np.ndarray], lanes: int, element_bits: int) -> Beats:
    """Packed beats of rows: full but for the last of a row, zeros above ``count``; an empty row is one beat.

    Parameters
    ----------
    rows : sequence of int64[n], unsigned, ``element_bits`` wide, at most 63

    Returns
    -------
    uint32[n_beats, n_words] of :func:`hw.stream.rtl.packed_layout`; n_beats is 0 without rows
    """
    data, count, last = [np.zeros((0, lanes), dtype=np.int64)], [np.zeros(0, int)], [np.zeros(0, int)]
    for row in rows:
        n_beats = max(1, -(-len(row) // lanes))
        padded = np.zeros(n_beats * lanes, dtype=np.int64)
        padded[: len(row)] = row
        data.append(padded.reshape(n_beats, lanes))
        ends = np.arange(n_beats) == n_beats - 1
        count.append(np.where(ends, len(row) - (n_beats - 1) * lanes, lanes))
        last.append(ends)
    return pack_fields(
        [
            (np.concatenate(data), element_bits),
            (np.concatenate(count), lanes.bit_length()),
            (np.concatenate(last), 1),
        ]
    )
