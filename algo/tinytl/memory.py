# SPDX-License-Identifier: MIT
"""Memory of a training step, counted on the paper's basis and on a fuller one. Needs no torch.

The paper's basis (its released profiler) walks the layers forward. At each it adds what the layer needs now,
what earlier layers have saved for the backward pass, and the shortcut's copy of the block's input; the
largest sum, times the batch, plus the parameters is the footprint. Per element:

==================  =========================  ======================================================
layer               needs now, bytes           saves, bytes
==================  =========================  ======================================================
convolution         4 in + 4 out / groups      4 in, where its weight is trained
linear              4 in + 4 out               4 in, where its weight is trained
norm                4 in                       4 in, where its scales are trained
ReLU, ReLU6         4 in                       in / 8, where anything but the classifier is trained
pooling, resizing   0                          0
==================  =========================  ======================================================

Trained parameters take 4 bytes, frozen ones 1 (an index to one of 256 values). The basis leaves out what an
exact step needs as well; :func:`full_count` adds it:

- a group norm's input, or its normalised input, wherever a gradient passes through the norm, trained or not;
- gradients of the parameters (4 bytes) and Adam's two moments (8 bytes);
- gradients of activations: at each layer of the backward pass, of its output and of its input, and that of
  the shortcut while its block lasts, beside what is still saved.
"""

from collections.abc import Callable
from dataclasses import dataclass

from algo.tinytl.architecture import Backbone, Layer, Method, Pass, layers, n_parameters, n_trained, passes

FLOAT_BYTES = 4
FROZEN_BYTES = 1
GRADIENT_BYTES, ADAM_BYTES = 4, 8


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one training step, bytes."""

    parameter_bytes: int
    activation_bytes: float
    """Largest sum for one picture; an eighth where masks end within a byte."""
    saved_bytes: float
    """Of one picture, at the end of the forward pass."""
    update_bytes: int
    """Parameter gradients and optimiser state; 0 on the paper's basis."""
    batch_size: int

    @property
    def total_bytes(self) -> float:
        """All of it, for the batch."""
        return self.batch_size * self.activation_bytes + self.parameter_bytes + self.update_bytes


def parameter_bytes(backbone: Backbone, method: Method) -> int:
    """Four bytes for a trained parameter, one for a frozen one."""
    trained = n_trained(backbone, method)
    return FLOAT_BYTES * trained + FROZEN_BYTES * (n_parameters(backbone) - trained)


def published(backbone: Backbone, method: Method, resolution: int, batch_size: int) -> Footprint:
    """The paper's basis. ``resolution`` in pixels; ValueError for a batch below 1."""

    def saved(layer: Layer, gradients: set[str]) -> float:
        if layer.kind == "act":
            return layer.n_in / 8 if method.name != "last" else 0.0
        return FLOAT_BYTES * layer.n_in if "wgrad" in gradients else 0.0

    return _footprint(backbone, method, resolution, batch_size, saved, backward=False)


def full_count(
    backbone: Backbone,
    method: Method,
    resolution: int,
    batch_size: int,
    *,
    main_norm_bytes: int = FLOAT_BYTES,
    backward: bool = True,
) -> Footprint:
    """The paper's basis with saved norm inputs, and with ``backward`` all gradients and Adam's state.

    ``main_norm_bytes`` for an element of the main branch's saved norm inputs: 4, or 1 for
    :mod:`algo.tinytl.saved8` (without its scales).
    """

    def saved(layer: Layer, gradients: set[str]) -> float:
        if layer.kind == "act":
            return layer.n_in / 8 if "dgrad" in gradients else 0.0
        if layer.kind == "norm" and gradients & {"dgrad", "wgrad"}:
            return (main_norm_bytes if layer.part == "main" else FLOAT_BYTES) * layer.n_in
        return FLOAT_BYTES * layer.n_in if "wgrad" in gradients else 0.0

    return _footprint(backbone, method, resolution, batch_size, saved, backward=backward)


def _footprint(
    backbone: Backbone,
    method: Method,
    resolution: int,
    batch_size: int,
    saved: Callable[[Layer, set[str]], float],
    *,
    backward: bool,
) -> Footprint:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    gradients = _gradients(list(passes(backbone, method, resolution)))
    shortcuts = [0, *(FLOAT_BYTES * block.c_in * block.has_shortcut for block in backbone.blocks), 0]
    held, peak, steps = 0.0, 0.0, []
    side = {layer.block: layer.h_in for layer in reversed(layers(backbone, resolution))}
    for layer in layers(backbone, resolution):
        shortcut = shortcuts[layer.block + 1] * side[layer.block] ** 2
        peak = max(peak, _needed_now(layer) + held + shortcut)
        held += saved(layer, gradients[layer.name])
        steps.append((layer, held, shortcut))
    total = held
    if backward:
        for layer, held, shortcut in steps:
            if gradients[layer.name]:
                n_gradients = layer.n_out + layer.n_in * ("dgrad" in gradients[layer.name])
                peak = max(peak, held + shortcut + FLOAT_BYTES * n_gradients)
    update = (GRADIENT_BYTES + ADAM_BYTES) * n_trained(backbone, method) if backward else 0
    return Footprint(parameter_bytes(backbone, method), peak, total, update, batch_size)


def _gradients(steps: list[Pass]) -> dict[str, set[str]]:
    """Which gradients each layer computes, by layer name."""
    found: dict[str, set[str]] = {}
    for step in steps:
        found.setdefault(step.layer.name, set())
        if step.kind != "fwd":
            found[step.layer.name].add(step.kind)
    return found


def _needed_now(layer: Layer) -> float:
    if layer.kind == "conv":
        return FLOAT_BYTES * layer.n_in + FLOAT_BYTES * layer.n_out // layer.groups
    if layer.kind == "linear":
        return FLOAT_BYTES * (layer.n_in + layer.n_out)
    return 0 if layer.kind in ("avgpool2", "bilinear_up") else FLOAT_BYTES * layer.n_in
