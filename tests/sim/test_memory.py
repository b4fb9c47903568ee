# SPDX-License-Identifier: MIT
"""HBM2 as one server: atoms of shared and lone rows, rows opened."""

import numpy as np
import pytest

from hw.config import preset
from sim.memory import lone_row_atoms, memory_timing, row_bytes, rows_activated, shared_row_atoms


@pytest.mark.parametrize(
    ("bits", "pair_atoms", "lone_atoms"),
    [(4, 2, 1), (6, 3, 2), (8, 4, 2), (10, 5, 3), (12, 6, 3)],
)
def test_atoms_of_rows_of_64(bits, pair_atoms, lone_atoms):
    heads = np.array([1, 2, 3])
    expected = [lone_atoms, pair_atoms, pair_atoms + lone_atoms]
    assert shared_row_atoms(bits, 64, heads).tolist() == expected
    assert lone_row_atoms(bits, 64, heads).tolist() == [lone_atoms] * 3


@pytest.mark.parametrize(
    ("bits", "atoms", "lone_atoms"),
    [
        (4, [1, 1, 2, 2, 3], 1),
        (6, [1, 2, 3, 3, 4], 7 / 5),  # four rows of 192 bits in three atoms; the middle two straddle one more
        (8, [1, 2, 3, 4, 5], 1),
        (10, [2, 3, 4, 5, 7], 2),
    ],
)
def test_up_to_four_rows_of_32_share_a_record(bits, atoms, lone_atoms):
    assert shared_row_atoms(bits, 32, np.arange(1, 6)).tolist() == atoms
    assert lone_row_atoms(bits, 32, np.array([5])).tolist() == [lone_atoms]


def test_widths_and_dimensions_between_are_filled_up_and_larger_ones_refused():
    heads = np.array([[2, 4], [6, 2]])
    assert np.array_equal(shared_row_atoms(5, 48, heads), shared_row_atoms(6, 64, heads))
    assert not shared_row_atoms(0, 64, heads).any()
    with pytest.raises(ValueError, match="bits must be at most 12 in memory, not 16"):
        shared_row_atoms(16, 64, heads)
    with pytest.raises(ValueError, match="head_dim must be at most 128 in memory, not 256"):
        lone_row_atoms(8, 256, heads)


def test_rows_opened_between_a_single_one_and_the_whole_plane():
    plane = 1024 * row_bytes(8, 64)
    keep = np.array([0.0001, 0.1, 0.5, 1.0])
    opened = rows_activated(np.full(4, plane), keep)
    assert opened[0] == 1
    assert opened[1] == pytest.approx(64 * (1 - 0.9**32))
    assert opened[3] == 64
    assert (np.diff(opened) > 0).all()


def test_a_plane_of_no_bits_opens_nothing():
    assert rows_activated(np.array([0.0]), np.array([1.0])).tolist() == [0]


@pytest.mark.parametrize(("name", "interval_cycles"), [("paper", 1), ("tiny", 4)])
def test_a_channel_answers_at_the_peak_of_the_preset(name, interval_cycles):
    """32 and 8 bytes a cycle."""
    timing = memory_timing(preset(name))
    assert (timing.latency_cycles, timing.interval_cycles) == (45, interval_cycles)
