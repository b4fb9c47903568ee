# SPDX-License-Identifier: MIT
"""The loss unit between maps, by itself: pictures that follow each other, as no core sends them."""

import numpy as np
import pytest
import torch

from hw.harness.amaranth_sim import run_cases
from hw.harness.job import Case, pack_fields
from hw.loss.config import FRACTION_BITS_BITS, LABEL_BITS, SCORE_BITS, TARGET_BITS, LossConfig
from hw.loss.golden import loss_gradient
from hw.loss.maps import MapLoss
from hw.loss.vectors import Picture, corner_pictures, random_picture


def rows(values: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """int64[n, width]: one after the other, behind the last one whatever there may be."""
    filled = rng.integers(-(1 << 15), 1 << 15, -(-len(values) // width) * width)
    filled[: len(values)] = values
    return filled.reshape(-1, width)


def case_of(pictures: list[Picture], config: LossConfig, columns: int, rng: np.random.Generator) -> Case:
    scores = np.concatenate([rows(p.scores, config.lanes, rng) for p in pictures])
    n_tiles = sum(-(-len(p.scores) // columns) for p in pictures)
    return Case(
        name="pictures",
        inputs={
            "i_map": pack_fields(
                [
                    (np.array([len(p.scores) for p in pictures]), config.count_bits),
                    (np.array([p.job.fraction_bits for p in pictures]), FRACTION_BITS_BITS),
                    (np.array([p.job.label_target for p in pictures]), TARGET_BITS),
                    (np.array([p.job.other_target for p in pictures]), TARGET_BITS),
                ]
            ),
            "i_label": pack_fields([(np.array([p.label for p in pictures]), LABEL_BITS)]),
            "i": pack_fields([(scores & 0xFFFF, SCORE_BITS)]),
        },
        # Lanes behind the last class may hold anything: values are compared below.
        expected={"o": np.zeros((n_tiles, -(-columns * 16 // 32)), np.uint32)},
        max_cycles=60 * len(scores) + 500,
    )


def golden(pictures: list[Picture], config: LossConfig, columns: int) -> list[list[int]]:
    """The classes of each tile."""
    found = []
    for p in pictures:
        of = loss_gradient(torch.from_numpy(p.scores), torch.tensor(p.label), p.job, config).tolist()
        found += [of[first : first + columns] for first in range(0, len(of), columns)]
    return found


@pytest.mark.parametrize("p_stall", [0.0, 0.4])
@pytest.mark.parametrize(("lanes", "columns"), [(2, 4), (4, 4), (2, 8), (4, 12)])
def test_pictures_that_follow_each_other(lanes, columns, p_stall):
    """Corners and random ones, back to back: no score, label or tile goes to another picture."""
    config, rng = LossConfig(lanes=lanes, max_classes=16), np.random.default_rng(columns)
    pictures = [*corner_pictures(config), *(random_picture(int(n), rng) for n in rng.integers(2, 17, 20))]
    case = case_of(pictures, config, columns, rng)
    case = case.stalled(p_stall, seed=5) if p_stall else case
    ((_, log),) = run_cases(MapLoss(config, columns=columns), [case])
    lanes_seen = np.ascontiguousarray(log.beats["o"]).view("<i2")[:, :columns].tolist()
    wanted = golden(pictures, config, columns)
    assert len(lanes_seen) == len(wanted)
    assert [seen[: len(want)] for seen, want in zip(lanes_seen, wanted, strict=True)] == wanted
