# SPDX-License-Identifier: MIT
"""Directions of editing: what to add to the styles of an image so that one property of it changes.

Anycost GAN takes its directions from labelled pictures. Where there are no labels, the widest directions of
the generator itself serve: the principal components of w (GANSpace, Harkonen et al., NeurIPS 2020).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from algo.anycost.architecture import GeneratorConfig
from algo.anycost.generator import Generator

N_SAMPLES = 10_000
"""z behind the principal components."""


@torch.no_grad()
def principal_directions(generator: Generator, n_samples: int = N_SAMPLES, seed: int = 0) -> Tensor:
    """Principal components of w, widest first, each one standard deviation long: float[size, size].

    The largest entry of each is positive. Unconditional generators only; ``n_samples`` must exceed the size.
    """
    size = generator.config.style_size
    if n_samples <= size:
        raise ValueError(f"n_samples must be above {size}, the style size, not {n_samples}")
    z = torch.randn(n_samples, size, generator=torch.Generator().manual_seed(seed))
    w = generator.w(z.to(generator.constant))
    _, length, axes = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * largest.sign() * length[:, None] / (n_samples - 1) ** 0.5


def moved(styles: Tensor, directions: Tensor, strengths: Tensor) -> Tensor:
    """Styles float[N, n_styles, size] plus the sum of strength times direction, the same for all N.

    directions : float[K, size] (the same for every layer) or float[K, n_styles, size]; strengths : float[K].
    """
    return styles + torch.tensordot(strengths.to(styles), directions.to(styles), dims=1)


def read_direction(path: Path, shape: GeneratorConfig) -> Tensor:
    """A direction float[size] or float[n_styles, size] of a .npy file, or a .safetensors file of one tensor.

    ValueError naming what is wrong with it; OSError where it cannot be read.
    """
    if path.suffix == ".npy":
        direction = _of_numpy(path)
    elif path.suffix == ".safetensors":
        direction = _of_safetensors(path)
    else:
        raise ValueError(f"direction must be a number or a .npy or .safetensors file, not {path}")
    allowed = ((shape.style_size,), (shape.n_styles, shape.style_size))
    if direction.shape not in allowed:
        raise ValueError(
            f"{path} must have the shape {' or '.join(map(str, allowed))}, not {tuple(direction.shape)}"
        )
    if not direction.is_floating_point() or not direction.isfinite().all():
        raise ValueError(f"{path} must hold finite floating-point numbers")
    return direction.float()


def _of_numpy(path: Path) -> Tensor:
    import numpy as np

    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, TypeError):
        raise ValueError(f"{path} is not a .npy file of numbers") from None


def _of_safetensors(path: Path) -> Tensor:
    try:
        tensors = list(load_file(path).values())
    except SafetensorError:
        raise ValueError(f"{path} is not a .safetensors file") from None
    if len(tensors) != 1:
        raise ValueError(f"{path} must hold one tensor, not {len(tensors)}")
    return tensors[0]
