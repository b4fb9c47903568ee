# SPDX-License-Identifier: MIT
"""``quartet memory``: TinyTL's memory as published, counted on two bases, and measured in real steps."""

import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from algo.tinytl.architecture import PROXYLESS_MOBILE, method
from algo.tinytl.memory import full_count, parameter_bytes, published

FLOWERS = replace(PROXYLESS_MOBILE, n_classes=102)
"""The network of the paper's table: ProxylessNAS-Mobile with lite modules, the 102 classes of Flowers."""
PAPER = Path(__file__).with_name("paper_memory.csv")
MB = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRow:
    """One training step; megabytes of 10^6 bytes."""

    method: str
    resolution: int
    batch_size: int
    paper_mb: float
    """Quoted."""
    published_basis_mb: float
    """Estimated: the paper's way of counting."""
    with_norm_inputs_mb: float
    """Estimated: the same and the saved inputs of group norms."""
    full_count_mb: float
    """Estimated: all that and gradients and Adam's state."""


def memory_rows() -> list[MemoryRow]:
    """One row for each published number."""
    with PAPER.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    found = []
    for row in rows:
        step = (FLOWERS, method(row["method"]), int(row["resolution"]), int(row["batch_size"]))
        found.append(
            MemoryRow(
                method=row["method"],
                resolution=step[2],
                batch_size=step[3],
                paper_mb=float(row["memory_mb"]),
                published_basis_mb=published(*step).total_bytes / MB,
                with_norm_inputs_mb=full_count(*step, backward=False).total_bytes / MB,
                full_count_mb=full_count(*step).total_bytes / MB,
            )
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """One real training step of PyTorch in float32 on the CPU, random weights and pictures."""

    method: str
    resolution: int
    batch_size: int
    mode: str
    """autograd, eight_bits, or recompute with its slice and micro-batch."""
    live_mb: float
    """Measured: most bytes alive that were not before the step (pictures, parameters and gradients were)."""
    with_parameters_mb: float
    """Measured and estimated: the same and parameters at the paper's 4 or 1 bytes."""
    seconds: float
    """Measured, of a step without the counter; the faster of two."""
    gradient_error: float
    """Measured in float64: length of the difference from autograd's gradient over its length."""


MODES: dict[str, tuple[int, int] | None] = {
    "autograd": None,
    "eight_bits": None,
    "recompute, slices of 960, 4 pictures": (960, 4),
    "recompute, slices of 960, 1 picture": (960, 1),
    "recompute, slices of 48, 1 picture": (48, 1),
    "recompute, slices of 8, 1 picture": (8, 1),
}
"""Ways of running a step: slice and micro-batch of recomputation."""


def measured_steps(
    method_name: str, resolution: int, batch_size: int, modes: list[str] | None = None
) -> Iterator[MeasuredStep]:
    """Measure each of ``modes`` (all of :data:`MODES` by default). ValueError for an unknown one."""
    import torch
    from torch.nn import functional as F

    from algo.tinytl.live import gradient_error, peak_bytes_of
    from algo.tinytl.network import Network, set_trained
    from algo.tinytl.recompute import RecomputedStep

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores, labels, reduction="sum")

    chosen, generator = method(method_name), torch.Generator().manual_seed(0)
    network = _shaken(Network(FLOWERS), generator)
    trained = set_trained(network, chosen)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randn(batch_size, 3, resolution, resolution, generator=generator)
    labels = torch.arange(batch_size) % FLOWERS.n_classes

    def run_of(mode: str) -> Callable[[torch.Tensor], None]:
        """One step in ``mode`` that leaves its gradients in ``.grad``."""
        shape = MODES[mode]
        network.save_in_eight_bits(mode == "eight_bits")
        if shape:
            recomputed = RecomputedStep(network, slice_channels=shape[0], micro_batch=shape[1])

            def recompute(images: torch.Tensor) -> None:
                recomputed(images, labels, loss)

            return recompute

        def autograd(images: torch.Tensor) -> None:
            for parameter in trained:
                assert parameter.grad is not None
                parameter.grad.zero_()
            loss(network(images), labels).backward()

        return autograd

    def gradients_of(mode: str) -> list[torch.Tensor]:
        """In float64: float32 alone moves them by a percent in this deep network of random weights."""
        network.double()
        run_of(mode)(images.double())
        found = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]
        network.float()
        return found

    exact = gradients_of("autograd")
    for mode in list(MODES) if modes is None else modes:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        step = partial(run_of(mode), images)
        yield MeasuredStep(
            method=method_name,
            resolution=resolution,
            batch_size=batch_size,
            mode=mode,
            live_mb=(live := peak_bytes_of(step)) / MB,
            with_parameters_mb=(live + parameter_bytes(FLOWERS, chosen)) / MB,
            seconds=min(_seconds(step) for _ in range(2)),
            gradient_error=gradient_error(gradients_of(mode), exact),
        )


def _shaken(network: Any, generator: Any) -> Any:
    """Norms and classifier away from where they start, so that every gradient has something to pass."""
    import torch

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "classifier" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
