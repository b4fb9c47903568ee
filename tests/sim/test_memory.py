# SPDX-License-Identifier: MIT
"""HBM2 as one server: atoms of shared and lone rows, rows opened."""

import numpy as np
import pytest

from sim.memory import lone_row_atoms, row_bytes, rows_activated, shared_row_atoms


@pytest.mark.parametrize(
    ("bits", "pair_atoms", "lone_atoms"),
    [(4, 2, 1), (6, 3, 2), (8, 4, 2), (10, 5, 3), (12, 6, 3), (0, 0, 0)],
)
def test_atoms_of_rows_of_64(bits, pair_atoms, lone_atoms):
    heads = np.array([1, 2, 3])
    expected = [lone_atoms, pair_atoms, pair_atoms + lone_atoms]
    assert shared_row_atoms(bits, 64, heads).tolist() == expected
    assert lone_row_atoms(bits, 64) == lone_atoms


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
