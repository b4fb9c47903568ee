# SPDX-License-Identifier: MIT
"""Busy multipliers of the depthwise unit, from its cycle model: ``python -m benchmarks.depthwise_cycles``.

Prints Markdown tables: kernels by size of the map, forward and transposed; all depthwise layers of
ProxylessNAS-Mobile at 224 pixels, where weights, pixels and sums never wait; and layers as operations of the
smallest convolution core, from its exact cycle model. Products with padding count.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from algo.tinytl.architecture import PROXYLESS_MOBILE, layers
from hw.config import preset
from hw.convolution import cycles
from hw.convolution.config import convolution_config
from hw.convolution.program import lowered
from hw.convolution.runs import depthwise
from hw.depthwise.config import DepthwiseConfig, depthwise_config
from hw.depthwise.cycles import busy, layer_cycles
from hw.depthwise.layer import DepthwiseLayer
from hw.systolic.config import systolic_config

KERNELS, KINDS = (3, 5, 7), ("stride 1", "stride 2", "transposed")
SIZES = (7, 14, 28, 56, 112)
RESOLUTION = 224
ONE_TILE = DepthwiseConfig(lanes=8)


def by_size() -> Iterator[str]:
    """A row for each kernel and kind; columns are sizes of the larger map."""
    yield f"| kernel | | {' | '.join(f'{size} px' for size in SIZES)} |"
    yield f"|---|---|{'---|' * len(SIZES)}"
    for kernel in KERNELS:
        for kind in KINDS:
            shares = [f"{busy(square(size, kernel, kind), ONE_TILE):.3f}" for size in SIZES]
            yield f"| {kernel} | {kind} | {' | '.join(shares)} |"


def square(size: int, kernel: int, kind: str, channels: int = 8) -> DepthwiseLayer:
    """From or, if transposed, to ``size`` x ``size``, padded on all sides."""
    half = -(-size // 2)
    if kind == "transposed":
        return DepthwiseLayer(
            height=half, width=half, out_height=size, out_width=size, channels=channels, kernel=kernel,
            padding=kernel // 2, stride=2, transposed=True,
        )  # fmt: skip
    return DepthwiseLayer(
        height=size, width=size, channels=channels, kernel=kernel, padding=kernel // 2,
        stride=1 if kind == "stride 1" else 2,
    )  # fmt: skip


def network() -> Iterator[str]:
    """A row for each depthwise layer, forward and its input's gradient, on the smallest chip and the paper's:
    cycles, busy share of the unit's multipliers, and of the unit's and the array's together."""
    chips = [preset("tiny"), preset("paper")]
    of_chip = "cycles, {0} | busy | of all | gradient"
    yield f"| layer | channels | px | kernel, stride | {' | '.join(of_chip.format(c.name) for c in chips)} |"
    yield f"|{'---|' * 12}"
    for of in layers(PROXYLESS_MOBILE, RESOLUTION):
        if of.kind != "conv" or of.groups != of.c_in or of.groups == 1:
            continue
        layer = square(of.h_in, of.kernel, f"stride {of.stride}", of.c_in)
        back = square(of.h_in, of.kernel, "transposed" if of.stride == 2 else "stride 1", of.c_in)
        cells = [of.name, str(of.c_in), str(of.h_in), f"{of.kernel}, {of.stride}"]
        for chip in chips:
            config, array = depthwise_config(chip), systolic_config(chip)
            share = busy(layer, config)
            of_all = share * config.n_multipliers / (config.n_multipliers + array.rows)
            cells += [f"{layer_cycles(layer, config):,}", f"{share:.3f}", f"{of_all:.3f}"]
            cells.append(f"{busy(back, config):.3f}")
        yield f"| {' | '.join(cells)} |"


def in_the_core(size: int = 28, channels: int = 48) -> Iterator[str]:
    """A row for each kernel and kind: cycles of the unit, and of an operation of maps of 8 and of 16 bits to
    one of 8 bits, with its table and in a memory of the chip's latency."""
    chip, rng = preset("tiny"), np.random.default_rng(1)
    config = convolution_config(chip)
    yield "| kernel | | cycles of the unit | 8 bits: of the operation | busy | 16 bits | busy |"
    yield f"|{'---|' * 7}"
    for kernel in KERNELS:
        for kind in KINDS:
            layer = square(size, kernel, kind, channels)
            cells = [str(kernel), kind, f"{layer_cycles(layer, config.depthwise):,}"]
            for wide in (False, True):
                of = replace(layer, wide=wide)
                x = rng.integers(-128, 128, (of.height, of.width, channels))
                program = lowered([depthwise("layer", of, "x", rng, {"y": 8})], {"x": x}, config)
                done = cycles.replay(program, config, latency_cycles=chip.dram_latency_cycles).done
                share = of.n_macs / (done * config.depthwise.lanes * config.depthwise.n_multipliers)
                cells += [f"{done:,}", f"{share:.3f}"]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for table in (by_size, network, in_the_core):
        print("\n".join(table()), end="\n\n")
