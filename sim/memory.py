# SPDX-License-Identifier: MIT
"""HBM2 as one server: a read costs a fixed latency and its bytes at the achievable bandwidth.

Traffic is counted in 32-byte atoms, the smallest read of a pseudo-channel, beside the bytes asked for.
"""

import numpy as np

ATOM_BYTES = 32
"""Burst of a 64-bit pseudo-channel: 4 beats of 8 bytes (JESD235; Ramulator2 preset HBM2_2000Mbps)."""

ROW_BYTES = 1024
"""Page of a pseudo-channel (Ramulator2 preset HBM2_2000Mbps: 32 columns of 32 bytes)."""

REFRESH_INTERVAL_S = 3.9e-6
"""tREFI of HBM2 (DRAMsim3 HBM2_8Gb_x128.ini)."""

ACHIEVABLE_BANDWIDTH = 0.91
"""Share of the peak that rows read in ascending address order reach. Estimated: an all-bank refresh of
260 ns every 3,900 ns takes 6.7 %, row activations most of the rest."""


def row_bytes(bits: int, head_dim: int) -> float:
    """Bytes of one packed K or V row (one token, one head, one bit plane)."""
    return bits * head_dim / 8


def shared_row_atoms(bits: int, head_dim: int, n_heads: np.ndarray) -> np.ndarray:
    """Atoms of one token's rows over ``n_heads`` heads that read the same tokens.

    Two heads share a record, so that a row that does not fill whole atoms (6 or 10 bits) wastes nothing;
    an odd head pays for its own atoms.
    """
    pair = -(-2 * bits * head_dim // (8 * ATOM_BYTES))
    return n_heads // 2 * pair + n_heads % 2 * lone_row_atoms(bits, head_dim)


def lone_row_atoms(bits: int, head_dim: int) -> int:
    """Atoms of one row that is read alone (a value row that one head kept)."""
    return -(-bits * head_dim // (8 * ATOM_BYTES))


def rows_activated(plane_bytes: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Expected DRAM rows opened to read a share ``keep`` of the tokens of a plane of ``plane_bytes``.

    Consecutive atoms lie in different pseudo-channels, so the 32 atoms of a row belong to different tokens:
    a row stays closed only where all of them were pruned. Rounded up to one row.
    """
    atoms_per_row = ROW_BYTES // ATOM_BYTES
    touched = 1 - (1 - keep) ** atoms_per_row
    return np.where(plane_bytes > 0, np.maximum(1.0, plane_bytes / ROW_BYTES * touched), 0.0)
