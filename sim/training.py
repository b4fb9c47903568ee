# SPDX-License-Identifier: MIT
"""TinyTL's training steps on the convolution core, estimated. Needs no torch.

Each pass over a layer is what the core would run: convolutions and depthwise layers, passes with kernel 1 for
group norms and their gradients, transposes and convolutions over pixels for gradients of weights. Biases'
gradients are sums that the epilogue makes on the way. Kernels over lists take what their cycle model says.
The classifier's scores go through the loss unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from algo.tinytl.architecture import Backbone, Layer, Method, Pass, n_trained, passes
from hw.convolution.operations import MapShape
from hw.depthwise.layer import DepthwiseLayer
from hw.epilogue.config import Side
from hw.systolic.config import SystolicConfig
from hw.systolic.descriptor import Layer as Convolution
from hw.training.config import GROUP, Image, Kernel
from hw.training.cycles import Timed, job_cycles
from sim.convolution import Core, Estimate, Scores, Task, energy_pj, estimate, total

MAX_CHANNELS = 4096
"""Of the array: pixels are channels where the gradient of a weight is summed."""
HALF_BYTES, N_ACCUMULATORS = 131_072, 1024
MASTER_BYTES = 8
"""A weight and its momentum."""
UPDATE_BYTES = 2 * MASTER_BYTES + 2 + 1
"""Of an element: master read and written, gradient read, 8-bit weight written."""
NORM_KERNELS = {"fwd": Kernel.NORM, "dgrad": Kernel.NORM_BACK, "wgrad": Kernel.NORM_GAMMA}
NORM_BYTES = 2 * 8 + 8 + 8 + 3 * 2
"""Of a channel: two sums and two weights read; state, multiplier and bias written. Of the gradient alike."""


def training_core(rows: int, columns: int) -> Core:
    """An array of any size with room for ProxylessNAS-Mobile, the memory of preset ``paper``."""
    return Core(
        array=SystolicConfig(
            rows=rows, columns=columns, n_words=HALF_BYTES // rows, n_accumulators=N_ACCUMULATORS,
            max_channels=MAX_CHANNELS, max_size=2048,
        )
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One pass over one layer, for one picture."""

    of: Pass
    tasks: tuple[Task, ...]
    kernel: Timed | None = None
    """Of a group norm or its gradient, over lists."""


def works(backbone: Backbone, method: Method, resolution: int) -> list[Work]:
    """All passes over a picture, in the order of :func:`algo.tinytl.architecture.passes`."""
    found = list(passes(backbone, method, resolution))
    return list(_Lowering(backbone, found).works())


class _Lowering:
    def __init__(self, backbone: Backbone, found: Sequence[Pass]) -> None:
        self.backbone, self.passes = backbone, found
        self.needed = {(one.layer.name, one.kind) for one in found}
        self.layers = {one.layer.name: one.layer for one in found}

    def works(self) -> Iterator[Work]:
        """Passes that something else does on the way have no tasks."""
        for one in self.passes:
            tasks = tuple(getattr(self, f"_{one.kind}")(one.layer))
            kernel = NORM_KERNELS.get(one.kind) if one.layer.kind == "norm" else None
            n_groups = one.layer.c_out // GROUP
            timed = None if kernel is None else Timed(kernel=kernel, count=n_groups)
            yield Work(of=one, tasks=tasks, kernel=timed)

    # ---- forward

    def _fwd(self, layer: Layer) -> Iterator[Task]:
        match layer.kind:
            case "conv" | "avgpool2":
                yield Task(name=layer.name, of=self._plain(layer), **self._after(layer))
            case "linear":
                yield Task(name=layer.name, of=self._plain(layer), out_bits=(16,), planar=True)
                yield self._loss(layer)
            case "norm":
                yield Task(name=layer.name, of=_pass_over(layer), **self._end(layer))
            case "bilinear_up":
                yield from self._resized(layer, layer.h_in, layer.h_out, forward=True)

    def _plain(self, layer: Layer) -> Convolution | DepthwiseLayer:
        if layer.groups == layer.c_in > 1:
            return DepthwiseLayer(
                height=layer.h_in, width=layer.h_in, channels=layer.c_in, kernel=layer.kernel,
                stride=layer.stride, padding=self._padding(layer), out_height=layer.h_out,
                out_width=layer.h_out,
            )  # fmt: skip
        return Convolution(
            height=layer.h_in, width=layer.h_in, n_in=layer.c_in, n_out=layer.c_out, kernel=layer.kernel,
            stride=layer.stride, padding=layer.kernel // 2, groups=layer.groups,
        )  # fmt: skip

    def _loss(self, classifier: Layer) -> Task:
        """Gradients of the scores, for those of weights and of the input, and their sums for the biases."""
        n_readers = 1 + ((classifier.name, "dgrad") in self.needed)
        of = Scores(n_classes=classifier.c_out)
        return Task(name="loss", of=of, out_bits=n_readers * (16,), planar=n_readers == 1, sums=True)

    def _padding(self, layer: Layer) -> int:
        """Rows above the input."""
        if layer.kind == "avgpool2":
            return 0
        if self.backbone.padding == "symmetric" or layer.part == "lite":
            return layer.kernel // 2
        return max(0, (layer.h_out - 1) * layer.stride + layer.kernel - layer.h_in) // 2

    def _after(self, layer: Layer) -> dict[str, Any]:
        """What the epilogue of a convolution does: up to the group norm, or all that follows."""
        if layer.kind != "conv":
            return {"out_bits": (8,)}
        norm = self._norm_of(layer)
        if norm.kind == "norm":
            return {"out_bits": (16,), "planar": True, "sums": True}
        return self._end(norm)

    def _norm_of(self, layer: Layer) -> Layer:
        name = layer.name
        return self.layers[name.replace("conv", "gn") if layer.part == "lite" else f"{name}.gn"]

    def _end(self, norm: Layer) -> dict[str, Any]:
        """From a norm on: ReLU6 and its mask, or the block's output for the next block and its shortcut."""
        unit = norm.name.removesuffix(".gn")
        act = f"{norm.name.rsplit('.', 1)[0]}.act"
        if norm.part == "lite" and norm.name.endswith("gn2"):
            return {"out_bits": (16,), "planar": True}
        if act in self.layers:
            masks = (act, "dgrad") in self.needed
            return {"out_bits": (8,), "planar": unit.endswith("expand") or unit == "stem", "masks": masks}
        if self.backbone.has_lite(norm.block):
            return {"out_bits": (16,), "planar": True, "side": self._shortcut(norm.block)}
        return {"out_bits": (8, 16), "side": self._shortcut(norm.block)}

    def _shortcut(self, block: int) -> Side:
        return Side.RESIDUAL if self.backbone.blocks[block].has_shortcut else Side.NONE

    def _resized(self, layer: Layer, size: int, out_size: int, *, forward: bool) -> Iterator[Task]:
        """Bilinear by two: depthwise with four taps a side. Otherwise a product over pixels, transposed."""
        name = layer.name if forward else f"{layer.name}.adjoint"
        end: dict[str, Any] = {"out_bits": (16,), "planar": True}
        if forward:
            end = {"out_bits": (8, 16), "side": Side.RESIDUAL}
        if max(size, out_size) == 2 * min(size, out_size):
            yield Task(
                name=name,
                of=DepthwiseLayer(
                    height=size, width=size, channels=layer.c_in, kernel=4, stride=2, padding=1,
                    transposed=out_size > size, out_height=out_size, out_width=out_size, wide=True,
                    replicate=True,
                ),
                **end,
            )  # fmt: skip
            return
        yield _transpose(f"{name}.in", size, layer.c_in)
        yield Task(
            name=name, of=_product(rows=layer.c_in, n_in=size**2, n_out=out_size**2), out_bits=(16,),
            planar=True,
        )  # fmt: skip
        back = MapShape(height=layer.c_in, width=1, channels=out_size**2, bits=16)
        yield Task(name=f"{name}.out", of=back, **end)

    # ---- backward

    def _dgrad(self, layer: Layer) -> Iterator[Task]:
        name = f"{layer.name}.dgrad"
        match layer.kind:
            case "conv" | "linear" | "avgpool2":
                yield Task(name=name, of=self._adjoint(layer), out_bits=(16,), **self._before(layer))
            case "norm":
                yield self._norm_products(layer)
                yield Task(name=f"{name}.slope", of=_pass_over(layer), out_bits=(16,), planar=True)
                yield Task(name=name, of=_pass_over(layer), out_bits=(16,), side=Side.RESIDUAL)
            case "bilinear_up":
                yield from self._resized(layer, layer.h_out, layer.h_in, forward=False)

    def _adjoint(self, layer: Layer) -> Convolution | DepthwiseLayer:
        padding, by_two = self._padding(layer), layer.stride == 2
        if layer.groups == layer.c_in > 1:
            return DepthwiseLayer(
                height=layer.h_out, width=layer.h_out, channels=layer.c_in, kernel=layer.kernel,
                stride=layer.stride, transposed=by_two,
                padding=padding if by_two else layer.kernel - 1 - padding, out_height=layer.h_in,
                out_width=layer.h_in, wide=True,
            )  # fmt: skip
        return Convolution(
            height=layer.h_out, width=layer.h_out, n_in=layer.c_out, n_out=layer.c_in, kernel=layer.kernel,
            stride=layer.stride, transposed=by_two, padding=0 if by_two else layer.kernel - 1 - padding,
            groups=layer.groups, wide=True,
        )  # fmt: skip

    def _before(self, layer: Layer) -> dict[str, Any]:
        """What the epilogue of an adjoint does: the mask of the unit before it and, without a group norm,
        the sums for that one's bias; or the sum with the shortcut's gradient."""
        inside = layer.name.endswith((".dw", ".project", ".conv2")) or layer.name == "classifier"
        if layer.name.endswith(".dw") and self._lone_dw(layer):
            inside = layer.block == 0  # its input is the stem's, with a ReLU6
        affine = self.backbone.norm == "affine" and layer.part == "main"
        planar = not affine or layer.name.endswith(".project")
        side = Side.MASK if inside else Side.RESIDUAL
        return {"side": side, "planar": planar, "sums": inside and affine}

    def _lone_dw(self, layer: Layer) -> bool:
        """Whether the block has no expansion: its depthwise layer reads the block's input."""
        return self.backbone.blocks[layer.block].expansion == 1

    def _norm_products(self, layer: Layer) -> Task:
        return Task(
            name=f"{layer.name}.products", of=_pass_over(layer), out_bits=(16,), planar=True,
            side=Side.PRODUCT, sums=True,
        )  # fmt: skip

    def _bgrad(self, layer: Layer) -> Iterator[Task]:
        """A sum that another operation makes, but of the first group norm."""
        if layer.kind == "norm" and (layer.name, "dgrad") not in self.needed:
            yield self._norm_products(layer)

    def _wgrad(self, layer: Layer) -> Iterator[Task]:
        name = f"{layer.name}.wgrad"
        if layer.kind == "affine":
            yield Task(
                name=name, of=_pass_over(layer), out_bits=(16,), planar=True, side=Side.PRODUCT, sums=True
            )
        elif layer.groups == layer.c_in > 1:
            tap = DepthwiseLayer(height=layer.h_out, width=layer.h_out, channels=layer.c_in, kernel=1)
            for i in range(layer.kernel**2):
                yield Task(
                    name=f"{name}.{i}", of=tap, out_bits=(8,), planar=True, side=Side.PRODUCT, sums=True
                )
        elif layer.kind in ("conv", "linear"):
            yield _transpose(f"{name}.in", layer.h_out, layer.c_out)
            yield from _weight_products(layer, name)


def _pass_over(layer: Layer) -> DepthwiseLayer:
    return DepthwiseLayer(height=layer.h_out, width=layer.h_out, channels=layer.c_out, kernel=1, wide=True)


def _transpose(name: str, size: int, channels: int) -> Task:
    of = MapShape(height=size, width=size, channels=channels, bits=16)
    return Task(name=name, of=of, out_bits=(16,))


def _product(*, rows: int, n_in: int, n_out: int) -> Convolution:
    """A matrix of 16 bits, a pixel a row, times one of 8 bits."""
    return Convolution(height=rows, width=1, n_in=n_in, n_out=n_out, kernel=1, wide=True)


def _weight_products(layer: Layer, name: str) -> Iterator[Task]:
    """For each tap, output by input channels: the input shifted by it, a sum over pixels in parts that are
    added up, and the result turned as the update reads it. Groups are computed as if they were one."""
    n_pixels, back = layer.h_out**2, MapShape(height=layer.c_out, width=1, channels=layer.c_in, bits=16)
    shift = DepthwiseLayer(
        height=layer.h_in, width=layer.h_in, channels=layer.c_in, kernel=max(1, layer.kernel),
        stride=layer.stride, padding=layer.kernel // 2, out_height=layer.h_out, out_width=layer.h_out,
    )  # fmt: skip
    for tap in range(max(1, layer.kernel) ** 2):
        if layer.kernel > 1:
            yield Task(name=f"{name}.{tap}.shift", of=shift, out_bits=(8,), planar=True)
        for first in range(0, n_pixels, MAX_CHANNELS):
            n_in = min(MAX_CHANNELS, n_pixels - first)
            yield Task(
                name=f"{name}.{tap}.{first}", of=_product(rows=layer.c_out, n_in=n_in, n_out=layer.c_in),
                out_bits=(16,), planar=True, side=Side.RESIDUAL if first else Side.NONE,
            )  # fmt: skip
        yield Task(name=f"{name}.{tap}.out", of=back, out_bits=(16,), planar=True)


# ---- of a step ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A training step on a batch; cycles of one core, energy without clock tree, control and leakage."""

    cycles: float
    memory_bytes: float
    energy_pj: float
    array_macs: int
    """Products of 8 bits that the array makes: two for one of 16 bits."""
    depthwise_macs: int
    array_cycles: float
    depthwise_cycles: float
    """Of the operations of each unit."""


def step(backbone: Backbone, method: Method, resolution: int, batch_size: int, core: Core) -> Step:
    """Pictures one after the other, each with its update: nothing in the core sums gradients of pictures."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    of_picture = works(backbone, method, resolution)
    found = [(task, estimate(task, core)) for work in of_picture for task in work.tasks]
    whole = total(one for _, one in found)
    kernels = [work.kernel for work in of_picture if work.kernel]
    n_channels = GROUP * sum(kernel.count for kernel in kernels)
    n_weights = n_trained(backbone, method)
    update = Timed(kernel=Kernel.UPDATE, count=n_weights, image=Image.BYTES)
    in_lists = n_channels * NORM_BYTES + n_weights * UPDATE_BYTES
    of_kernels = sum(map(job_cycles, kernels)) + job_cycles(update)
    return Step(
        cycles=batch_size * (whole.cycles + of_kernels),
        memory_bytes=batch_size * (whole.memory_bytes + in_lists),
        energy_pj=batch_size * (sum(energy_pj(whole, core).values()) + in_lists * _byte_pj(core)),
        array_macs=batch_size * whole.macs,
        depthwise_macs=batch_size * whole.depthwise_macs,
        array_cycles=batch_size * _cycles_of(found, Convolution),
        depthwise_cycles=batch_size * _cycles_of(found, DepthwiseLayer),
    )


def _cycles_of(found: Sequence[tuple[Task, Estimate]], kind: type) -> float:
    return sum(one.cycles for task, one in found if isinstance(task.of, kind))


@cache
def _byte_pj(core: Core) -> float:
    """Of a byte of memory, from the table of energies."""
    return energy_pj(Estimate(input_bytes=1), core)["dram"]


def busy(task: Task, core: Core) -> float:
    """Share of the multipliers of the unit that computes a task, array or depthwise, that have a product."""
    one = estimate(task, core)
    if isinstance(task.of, DepthwiseLayer):
        return one.depthwise_macs / (one.cycles * core.array.columns * core.depthwise_multipliers)
    return one.macs / (one.cycles * core.array.rows * core.array.columns)
