# SPDX-License-Identifier: MIT
"""Sub-generators of Anycost GAN on the convolution core, estimated. Needs no torch."""

from collections.abc import Callable
from functools import cache

from algo.anycost.architecture import GeneratorConfig, SubGenerator, layers
from algo.anycost.architecture import Layer as Row
from hw.epilogue.config import Side
from hw.fir.config import Map
from hw.systolic.config import SystolicConfig
from hw.systolic.descriptor import Layer
from sim.convolution import Core, Estimate, Task, estimate, total

HALF_BYTES = 131_072
"""Of activations: config-f 1024 needs three rows of 98,304 bytes together, at every level from 64 px on."""
N_ACCUMULATORS = 1024


def square_core(size: int) -> Core:
    """``size`` x ``size`` multipliers, room for config-f 1024, the memory of preset ``paper``."""
    return Core(
        array=SystolicConfig(
            rows=size, columns=size, n_words=HALF_BYTES // size, n_accumulators=N_ACCUMULATORS
        )
    )


def tasks(
    config: GeneratorConfig, sub: SubGenerator, *, wide: str = "none", noise: bool = True
) -> list[Task]:
    """The operations of one image, as :func:`sim.driver.generator.operations` makes them.

    Mapping network, styles and demodulation are computed elsewhere: they are at most 0.5 % of config-f 1024.
    wide : none, colours or all, see :class:`algo.anycost.quantise.QuantConfig`; ``noise`` has strength.
    """
    conv_bits, rgb_bits = 16 if wide == "all" else 8, 8 if wide == "none" else 16
    side = Side.NOISE if noise else Side.NONE
    made: list[Task] = []
    n_convs = 2 * config.levels.index(sub.resolution) + 1
    number = level = 0
    for row in layers(config, sub):
        readers = ((conv_bits,) if number < n_convs - 1 else ()) + (() if number % 2 else (rgb_bits,))
        match row.kind:
            case "modconv":
                of = _layer(row, wide=wide == "all")
                made.append(Task(name=f"conv{number}", of=of, out_bits=readers, side=side))
                number += 1
            case "modconv_up":
                made.append(
                    Task(
                        name=f"conv{number}", of=_layer(row, wide=wide == "all"), out_bits=(16,), planar=True
                    )
                )
            case "blur4x4_dw":
                blur = Map(upsample=False, height=row.h_in, width=row.h_in, channels=row.c_in)
                made.append(Task(name=f"conv{number}.blur", of=blur, out_bits=readers, side=side))
                number += 1
            case "torgb1x1":
                if level:
                    half = Map(upsample=True, height=row.h_in // 2, width=row.h_in // 2, channels=3)
                    made.append(Task(name=f"skip{level}", of=half, out_bits=(16,), planar=True))
                below = Side.RESIDUAL if level else Side.NONE
                of = _layer(row, wide=wide != "none")
                made.append(Task(name=f"rgb{level}", of=of, out_bits=(16,), planar=True, side=below))
                level += 1
    return made


def _layer(row: Row, *, wide: bool) -> Layer:
    up = row.kind == "modconv_up"
    return Layer(
        height=row.h_in, width=row.h_in, n_in=row.c_in, n_out=row.c_out, kernel=row.kernel,
        stride=2 if up else 1, padding=0 if up else row.kernel // 2, transposed=up, wide=wide,
    )  # fmt: skip


def image_estimate(config: GeneratorConfig, sub: SubGenerator, core: Core, *, wide: str = "none") -> Estimate:
    """One image by a sub-generator."""
    return total(estimate(task, core) for task in tasks(config, sub, wide=wide))


def latency_cost(config: GeneratorConfig, core: Core) -> Callable[[SubGenerator], float]:
    """Estimated cycles of one image, as a cost for :func:`algo.anycost.search.evolve`."""

    @cache
    def cycles(sub: SubGenerator) -> float:
        return image_estimate(config, sub, core).cycles

    return cycles
