# SPDX-License-Identifier: MIT
"""``quartet train tinytl``: EfficientNet-Lite0 from ImageNet to other pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algo.gan.loop import LoopConfig, run
from algo.tinytl.adapt import inherited
from algo.tinytl.architecture import check_resolution, method, n_trained
from algo.tinytl.choice import Choice
from algo.tinytl.data import Labelled, load_labelled
from algo.tinytl.memory import full_count, published
from algo.tinytl.transfer import Transfer, TransferConfig, correct
from algo.tinytl.weights import pretrained
from benchmarks.quality.progress import Progress

LITE_METHODS = ("lite", "lite+bias")
"""Methods whose network has lite modules: new ones do nothing unless they are trained."""


@dataclass(frozen=True, kw_only=True)
class TransferRun:
    """A prepared run; everything the user gave is checked."""

    transfer: Transfer
    labelled: Labelled
    loop: LoopConfig
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Train (or finish) and measure; returns plain data. Memory is estimated, in MB of 10^6 bytes."""
        transfer, test = self.transfer, self.labelled.test
        losses = run(
            transfer,
            self.loop,
            self.folder,
            lambda step, n, losses: progress(f"loss {losses['loss']:.3f}", step, n),
        )
        network = transfer.network.eval()
        n = len(test.images)
        right = correct(network, test, on_batch=lambda done: progress("measuring", done, n))
        backbone, resolution = network.backbone, test.images.shape[-1]
        memory = (backbone, transfer.method, resolution, transfer.config.batch_size)
        return {
            "data": transfer.data.source,
            "method": transfer.method.name,
            "n_trained": n_trained(backbone, transfer.method),
            "n_steps": len(losses),
            "first_loss": losses[0]["loss"],
            "last_loss": losses[-1]["loss"],
            "test": test.source,
            "accuracy": float(right.double().mean()),
            "memory_published_mb": published(*memory).total_bytes / 1e6,
            "memory_full_count_mb": full_count(*memory).total_bytes / 1e6,
            "weights": str(self.folder / "weights.safetensors"),
        }


def prepare_transfer(
    data: str,
    resolution: int,
    method_name: str,
    config: TransferConfig,
    loop: LoopConfig,
    folder: Path,
    *,
    n_pictures: int | None = None,
    n_test: int | None = None,
    norm: str = "affine",
    choice: Choice | None = None,
) -> TransferRun:
    """The packaged network for ``data``; ``n_pictures`` (by seed) and ``n_test`` draw parts of it.

    ``choice`` leaves out some of its blocks and lite modules.
    """
    chosen = method(method_name)
    labelled = load_labelled(data, resolution)
    training, test = labelled.training, labelled.test
    training = training.subset(n_pictures, loop.seed) if n_pictures else training
    test = test.subset(min(n_test, len(test.images))) if n_test else test
    network = pretrained(
        n_classes=len(labelled.classes), lite=chosen.name in LITE_METHODS, norm=norm, seed=loop.seed
    )
    network = inherited(network, choice) if choice else network
    check_resolution(network.backbone, resolution)
    transfer = Transfer(network, training, chosen, config, loop.n_steps)
    return TransferRun(
        transfer=transfer, labelled=Labelled(training, test, labelled.classes), loop=loop, folder=folder
    )
