# SPDX-License-Identifier: MIT
"""Adversarial losses and the two regularisers of StyleGAN2."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """Means over a batch of logits float[N]."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """Of the logits of real and of generated images."""
    generator: Callable[[Tensor], Tensor]
    """Of the logits of generated images."""


LOSSES = {
    # Goodfellow et al., NeurIPS 2014
    "nonsaturating": AdversarialLoss(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: F.softplus(-fake).mean(),
    ),
    # Lim and Ye, 2017; Miyato et al., ICLR 2018
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
}


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over images of |d logit / d image|^2 (Mescheder et al., ICML 2018); ``images`` need a gradient."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(images: Tensor, styles: Tensor, rng: torch.Generator) -> Tensor:
    """|J^T y| of each image, y unit noise over sqrt(H W): float[N].

    ``styles`` float[N, n_styles, size] need a gradient; root mean square over layers of the norms.
    """
    noise = torch.randn(images.shape, generator=rng).to(images) / math.sqrt(images[0, 0].numel())
    (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()
