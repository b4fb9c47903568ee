# SPDX-License-Identifier: MIT
"""Measured memory of a real step: bytes of all tensors alive at once, and bytes that autograd saves."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts storages made while it is on, from the operation that makes them to their release.

    What exists before is not counted, nor is scratch space inside an operation. ``peak_bytes`` is the
    largest sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {_address(t) for t in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _address(tensor) not in before:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        n_bytes = storage.nbytes()
        self.live_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self._known[address] = weakref.finalize(storage, self._release, address, n_bytes)

    def _release(self, address: int, n_bytes: int) -> None:
        self.live_bytes -= n_bytes
        self._known.pop(address, None)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)


@dataclass(slots=True)
class SavedBytes:
    """What autograd has saved."""

    n_bytes: int = 0


@contextmanager
def saved_for_backward(parameters: Iterable[Tensor]) -> Iterator[SavedBytes]:
    """Bytes of the storages that a forward pass inside saves, each once; ``parameters`` are not counted."""
    seen = {_address(parameter) for parameter in parameters}
    saved, kept = SavedBytes(), []

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in seen:
            seen.add(_address(tensor))
            kept.append(tensor.untyped_storage())  # its address must not be given out again
            saved.n_bytes += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
    kept.clear()


def peak_bytes_of(step: Callable[[], Any]) -> int:
    """Largest sum of bytes alive during ``step`` that were not alive before."""
    with LiveBytes() as live:
        step()
    return live.peak_bytes


def gradient_error(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Length of the difference over the length of the exact gradient, all parameters in one vector."""
    pairs = list(zip(found, exact, strict=True))
    difference = sum(float((a - b).double().square().sum()) for a, b in pairs)
    return (difference / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5
