# SPDX-License-Identifier: MIT
"""Transfer learning: a pretrained network to a new set of labelled pictures, with any of the methods.

Runs under :func:`algo.gan.loop.run`: interrupted and started again it ends with the same bits.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from algo.gan.data import ImageSet
from algo.gan.loop import Losses, State
from algo.tinytl.architecture import Method
from algo.tinytl.network import Network, set_trained
from algo.tinytl.recompute import RecomputedStep
from algo.tinytl.weights import as_input

GRADIENTS = ("autograd", "recompute", "eight_bits")
SLICE_CHANNELS, MICRO_BATCH = 96, 4
"""Of recomputation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig:
    """The recipe; defaults follow TinyTL where they can (Adam, cosine to 0, crops, smoothed labels)."""

    batch_size: int = 8
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    min_crop: float = 0.22
    """Smallest share of the picture that a random crop keeps; 1 crops nothing."""
    mirror: bool = True
    gradients: str = "autograd"
    """``recompute``: the same in little memory; ``eight_bits``: group norms save inputs in 8 bits."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in 0..1 without 1, not {self.label_smoothing}")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must be above 0 and at most 1, not {self.min_crop}")
        if self.gradients not in GRADIENTS:
            raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, not {self.gradients!r}")
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, not {self.device!r}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but this PyTorch sees no CUDA device")


class Transfer:
    """A run for :func:`algo.gan.loop.run`.

    Parameters: ``data`` with labels 0..n_classes-1; ``n_steps``, the length of the cosine. ValueError where
    labels and classifier do not fit, or gradients and network.
    """

    def __init__(
        self, network: Network, data: ImageSet, method: Method, config: TransferConfig, n_steps: int
    ) -> None:
        if data.labels is None:
            raise ValueError(f"data needs classes: {data.source} has none")
        if int(data.labels.max()) >= network.backbone.n_classes:
            raise ValueError(
                f"labels must be in 0..{network.backbone.n_classes - 1}, not {int(data.labels.max())}"
            )
        if config.gradients == "eight_bits" and network.backbone.norm != "group":
            raise ValueError("gradients eight_bits needs norm group: norm affine saves nothing")
        self.network, self.data, self.method, self.config = network.to(config.device), data, method, config
        self.labels, self.n_steps = data.labels, n_steps
        self.trained = set_trained(network, method)
        network.save_in_eight_bits(config.gradients == "eight_bits")
        optimizer = torch.optim.Adam(self.trained, lr=config.learning_rate)
        self.state = State({"network": network}, {"network": optimizer})
        self.optimizer = optimizer
        self.recomputed = None
        if config.gradients == "recompute":
            self.recomputed = RecomputedStep(network, slice_channels=SLICE_CHANNELS, micro_batch=MICRO_BATCH)

    def describe(self) -> dict[str, Any]:
        """Network, data, method and recipe."""
        backbone = self.network.backbone
        return {
            "task": "tinytl",
            "backbone": backbone.name,
            "norm": backbone.norm,
            "lite": backbone.lite,
            "method": self.method.name,
            "source": self.data.source,
            "data": self.data.sha256,
            "resolution": self.data.images.shape[-1],
            **asdict(self.config),
        }

    def step(self, step: int, rng: torch.Generator) -> Losses:
        """One batch, drawn without replacement."""
        n = min(self.config.batch_size, len(self.labels))
        batch = torch.randperm(len(self.labels), generator=rng)[:n]
        images = augmented(as_input(self.data.images[batch]), self.config, rng).to(self.config.device)
        labels = self.labels[batch].to(self.config.device)
        share = 0.5 * (1 + math.cos(math.pi * (step - 1) / self.n_steps))
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * share
        self.network.train()
        if self.recomputed:
            loss = self.recomputed(images, labels, lambda scores, of: self.loss(scores, of) / n)
        else:
            self.optimizer.zero_grad()
            loss = self.loss(self.scores(images, rng), labels) / n
            loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def scores(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Of the network; another training may draw a part of it."""
        return self.network(images)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy against smoothed labels, nats, summed over the pictures."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(scores, labels, label_smoothing=smoothing, reduction="sum")


@torch.no_grad()
def correct(
    network: Network, data: ImageSet, batch_size: int = 50, on_batch: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Which pictures the network classifies rightly, bool[N]; ``on_batch(n_done)`` after every batch."""
    assert data.labels is not None
    device = network.classifier.weight.device
    right = []
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        right.append(network(as_input(images).to(device)).argmax(1).cpu() == labels)
        on_batch(sum(map(len, right)))
    return torch.cat(right)


def augmented(images: Tensor, config: TransferConfig, rng: torch.Generator) -> Tensor:
    """Random crops, resized back, and mirror images: float[B, 3, R, R], each picture its own.

    A crop keeps a uniform share of the area from ``min_crop`` to 1, its sides' ratio log-uniform in 3/4..4/3
    but at most the picture; bilinear.
    """
    if config.min_crop == 1 and not config.mirror:
        return images
    n = len(images)
    area = config.min_crop + (1 - config.min_crop) * torch.rand(n, generator=rng)
    ratio = torch.exp((torch.rand(n, generator=rng) * 2 - 1) * math.log(4 / 3)) if config.min_crop < 1 else 1
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    dx = (torch.rand(n, generator=rng) * 2 - 1) * (1 - width)
    dy = (torch.rand(n, generator=rng) * 2 - 1) * (1 - height)
    sign = 1 - 2 * (torch.rand(n, generator=rng) < 0.5).float() if config.mirror else torch.ones(n)
    zero = torch.zeros(n)
    rows = [torch.stack([sign * width, zero, dx], 1), torch.stack([zero, height, dy], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
