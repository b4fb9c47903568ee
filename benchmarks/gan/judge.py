# SPDX-License-Identifier: MIT
"""Judges generators by the same real pictures, whose features are computed once."""

import torch
from torch import Tensor

from algo.gan.data import ImageSet, as_floats
from algo.gan.pictures import grid
from benchmarks.gan.features import Features
from benchmarks.gan.metrics import Quality, nearest, quality

MAX_REALS = 2000
"""Real pictures behind a distance, and training pictures among which copies are looked for."""
N_COLUMNS = 6
"""Of the picture of fakes over their nearest reals, which has two rows of pairs."""


class Judge:
    """Distances of fakes to real pictures, and how near they come to the training pictures.

    Parameters: ``training`` are the pictures that could have been copied; ``reference``, by default the same,
    those compared with. At most 2,000 of each, drawn with seed 0.
    """

    def __init__(
        self, training: ImageSet, reference: ImageSet | None = None, features: Features | None = None
    ) -> None:
        self.features = features or Features()
        self.training = _drawn(training)
        self.of_training = self.features(self.training)
        self.of_reference = self.features(_drawn(reference)) if reference else self.of_training

    def quality(self, fakes: Tensor) -> Quality:
        """Of fakes float[m, 3, R, R]."""
        return quality(self.of_reference, self.features(fakes), self.of_training)

    def nearest_pairs(self, fakes: Tensor) -> Tensor:
        """The twelve fakes nearest to a training picture or its mirror image, above it: uint8[h, w, 3]."""
        mirrored = self.training.flip(3)
        reals, of_reals = (
            torch.cat(both)
            for both in ((self.training, mirrored), (self.of_training, self.features(mirrored)))
        )
        index, distance = nearest(of_reals, self.features(fakes))
        closest = distance.argsort()[: 2 * N_COLUMNS]
        pairs = torch.stack([fakes[closest], reals[index[closest]]])
        return grid(torch.cat([row for half in pairs.split(N_COLUMNS, dim=1) for row in half]), N_COLUMNS)


def _drawn(pictures: ImageSet) -> Tensor:
    return as_floats(pictures.subset(min(MAX_REALS, len(pictures.images))).images)
