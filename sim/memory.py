# SPDX-License-Identifier: MIT
"""HBM2 as one server: a read costs a fixed latency and its bytes at the achievable bandwidth.

Traffic is counted in 32-byte atoms, the smallest read of a pseudo-channel, beside the bytes asked for: a
burst of a 64-bit pseudo-channel is 4 beats of 8 bytes (JESD235; Ramulator2 preset HBM2_2000Mbps).
"""

from collections.abc import Callable

import numpy as np

from hw.config import ChipConfig
from hw.fetch.config import ATOM_BYTES, HEAD_DIMS, PLANE_BITS
from hw.fetch.cycles import MemoryTiming
from hw.fetch.layout import Plane

ROW_BYTES = 1024
"""Page of a pseudo-channel (Ramulator2 preset HBM2_2000Mbps: 32 columns of 32 bytes)."""

REFRESH_INTERVAL_S = 3.9e-6
"""tREFI of HBM2 (DRAMsim3 HBM2_8Gb_x128.ini)."""

ACHIEVABLE_BANDWIDTH = 0.91
"""Share of the peak that rows read in ascending address order reach. Estimated: an all-bank refresh of
260 ns every 3,900 ns takes 6.7 %, row activations most of the rest."""


def memory_timing(chip: ChipConfig) -> MemoryTiming:
    """The chip's channels for the exact cycle model: fixed latency, full peak, no refresh.

    A channel answers with one atom at a time, so one faster than an atom a cycle is no faster here.
    """
    return MemoryTiming(
        latency_cycles=chip.dram_latency_cycles,
        interval_cycles=-(-ATOM_BYTES // chip.dram_bytes_per_cycle),
    )


def row_bytes(bits: int, head_dim: int) -> float:
    """Bytes of one packed K or V row (one token, one head, one bit plane)."""
    return bits * head_dim / 8


def shared_row_atoms(bits: int, head_dim: int, n_heads: np.ndarray) -> np.ndarray:
    """Atoms of one token's rows over ``n_heads`` heads that read the same tokens; int64, as ``n_heads``.

    Counted in the layout of :mod:`hw.fetch.layout`, the heads side by side: up to four share a record, so
    that rows that do not fill whole atoms waste nothing in a whole group. A plane of 0 bits has none.
    ValueError as :func:`_plane`.
    """
    return _of_each(n_heads, lambda n: _plane(bits, head_dim, n).n_atoms if bits else 0, np.int64)


def lone_row_atoms(bits: int, head_dim: int, n_heads: np.ndarray) -> np.ndarray:
    """Atoms of one row that is read alone (a value row that one head kept): float64, mean over the heads.

    Where several heads share a record, a row may straddle one atom more than its size needs. ``bits`` is at
    least 1; ValueError as :func:`_plane`.
    """

    def mean_atoms(n: int) -> float:
        plane = _plane(bits, head_dim, n)
        return float(np.mean([plane.request(head, 1).n_atoms for head in range(n)]))

    return _of_each(n_heads, mean_atoms, np.float64)


def _plane(bits: int, head_dim: int, n_heads: int) -> Plane:
    """One token's rows; a width or a dimension that the layout does not have is filled up to the next one.

    Raises ValueError where bits are above 12 or head_dim is above 128.
    """
    for name, value, allowed in (("bits", bits, PLANE_BITS), ("head_dim", head_dim, HEAD_DIMS)):
        if value > allowed[-1]:
            raise ValueError(f"{name} must be at most {allowed[-1]} in memory, not {value}")
    return Plane(
        base_atom=0,
        n_heads=n_heads,
        n_tokens=1,
        head_dim=min(dim for dim in HEAD_DIMS if dim >= head_dim),
        bits=min(width for width in PLANE_BITS if width >= bits),
    )


def _of_each(n_heads: np.ndarray, count: Callable[[int], float], dtype: type) -> np.ndarray:
    """``count`` of each element, evaluated once for each value."""
    values, where = np.unique(n_heads, return_inverse=True)
    return np.array([count(int(n)) for n in values], dtype=dtype)[where].reshape(np.shape(n_heads))


def rows_activated(plane_bytes: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Expected DRAM rows opened to read a share ``keep`` of the tokens of a plane of ``plane_bytes``.

    Consecutive atoms lie in different pseudo-channels, so the 32 atoms of a row belong to different tokens:
    a row stays closed only where all of them were pruned. Rounded up to one row.
    """
    atoms_per_row = ROW_BYTES // ATOM_BYTES
    touched = 1 - (1 - keep) ** atoms_per_row
    return np.where(plane_bytes > 0, np.maximum(1.0, plane_bytes / ROW_BYTES * touched), 0.0)
