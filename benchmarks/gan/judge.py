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

    Parameters: ``training`` are the pictures that could have been copied, at most 2,000, drawn with seed 0;
    ``reference`` judges by those to compare with, by default the same; ``mirror`` also looks for copies
    of mirrored training pictures.
    """

    def __init__(self, training: ImageSet, reference: "Judge | None" = None, *, mirror: bool = True) -> None:
        self.mirror = mirror
        self.features: Features = reference.features if reference else Features()
        self.training = as_floats(training.subset(min(MAX_REALS, len(training.images))).images)
        self.of_training = self.features(self.training)
        self.of_reference = reference.of_training if reference else self.of_training

    def quality(self, fakes: Tensor) -> Quality:
        """Of fakes float[m, 3, R, R]."""
        return quality(self.of_reference, self.features(fakes), self.of_training)

    def nearest_pairs(self, fakes: Tensor) -> Tensor:
        """The twelve fakes nearest to a training picture, each above it: uint8[height, width, 3]."""
        reals, of_reals = self.training, self.of_training
        if self.mirror:
            mirrored = reals.flip(3)
            reals, of_reals = torch.cat([reals, mirrored]), torch.cat([of_reals, self.features(mirrored)])
        index, distance = nearest(of_reals, self.features(fakes))
        closest = distance.argsort()[: 2 * N_COLUMNS]
        pairs = torch.stack([fakes[closest], reals[index[closest]]])
        return grid(torch.cat([row for half in pairs.split(N_COLUMNS, dim=1) for row in half]), N_COLUMNS)
