# SPDX-License-Identifier: MIT
"""Distances between sets of pictures, from features of :mod:`benchmarks.gan.features`.

They are *not* FID: that name belongs to Inception features of 50,000 pictures. Compare these numbers only
with others of the same features and the same number of pictures.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

PCA_SIZE = 64


def kid(real: Tensor, fake: Tensor) -> float:
    """Kernel distance of float[n, d] and float[m, d]: unbiased squared MMD with kernel (x.y / d + 1)^3.

    Binkowski et al., ICLR 2018, over all pairs. Unbiased, so it is about 0 (and may fall below) for two
    samples of one distribution, whatever their sizes.
    """
    real, fake = real.double(), fake.double()
    n, m, d = len(real), len(fake), real.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"kid needs at least 2 pictures of each kind, not {n} and {m}")
    within_real, within_fake, between = (
        (a @ b.T / d + 1) ** 3 for a, b in ((real, real), (fake, fake), (real, fake))
    )
    return float(
        (within_real.sum() - within_real.diagonal().sum()) / (n * (n - 1))
        + (within_fake.sum() - within_fake.diagonal().sum()) / (m * (m - 1))
        - 2 * between.mean()
    )


def frechet_pca(real: Tensor, fake: Tensor, size: int = PCA_SIZE) -> float:
    """Frechet distance of Gaussians fitted in the ``size`` leading principal components of ``real``.

    |mean difference|^2 + trace(A + B - 2 (A B)^(1/2)); unlike :func:`kid` it grows as the sets shrink. Both
    sets need more pictures than ``size``.
    """
    real, fake = real.double(), fake.double()
    if min(len(real), len(fake)) <= size:
        raise ValueError(f"frechet_pca needs more than {size} pictures of each kind")
    centre = real.mean(0)
    basis = torch.linalg.svd(real - centre, full_matrices=False).Vh[:size].T
    a, b = (real - centre) @ basis, (fake - centre) @ basis
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # The trace of (A B)^(1/2) is that of the symmetric (A^(1/2) B A^(1/2))^(1/2).
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp_min(0).sqrt() @ vectors.T
    root_trace = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root_trace)


def nearest(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest real picture of each fake one, and its distance: int64[m], float[m]."""
    distance, index = torch.cdist(fake.double(), real.double()).min(1)
    return index, distance


def authentic_share(real: Tensor, fake: Tensor) -> float:
    """Share of fakes that are farther from their nearest real picture than that one is from the next real.

    Alaa et al., ICML 2022 (authenticity). A generator that copies its training pictures has 0.
    """
    index, distance = nearest(real, fake)
    between = torch.cdist(real.double(), real.double())
    between.fill_diagonal_(torch.inf)
    return float((distance > between.min(1).values[index]).double().mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How near a generator's pictures are to the real ones."""

    kid: float
    frechet_pca_64: float | None
    """None for fewer than 65 pictures."""
    authentic_share: float
    n_real: int
    n_fake: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def standardised(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the mean and standard deviation of each feature over ``real`` taken out."""
    deviation, mean = torch.std_mean(real.double(), 0)
    scale = deviation.clamp_min(1e-6)
    return (real.double() - mean) / scale, (fake.double() - mean) / scale


def quality(real: Tensor, fake: Tensor, training: Tensor | None = None) -> Quality:
    """All of the above for features float[n, d], float[m, d], standardised by the real ones.

    ``training`` float[l, d] are those that could have been copied, where they are not the real ones compared
    with.
    """
    seen = standardised(real if training is None else training, fake)
    real, fake = standardised(real, fake)
    enough = min(len(real), len(fake)) > PCA_SIZE
    return Quality(
        kid=kid(real, fake),
        frechet_pca_64=frechet_pca(real, fake) if enough else None,
        authentic_share=authentic_share(*seen),
        n_real=len(real),
        n_fake=len(fake),
    )
