# SPDX-License-Identifier: MIT
"""A unit's group norm as operations: two forward, four backward.

Forward the convolution's sums z become a map of 16 bits and are summed; a kernel makes the table of the pass
that normalises them. Backward, a pass over the gradient g of the normed map sums g and g z and writes scale
g; a kernel makes the tables of two passes whose sum is the gradient of z: one over z, one over scale g.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algo.tinytl.quantise import UnitRecord
from hw.convolution.operations import Epilogue, Operation, Output, Reduce
from hw.epilogue.config import Reduction
from hw.training.config import GAMMA_BITS, GAMMA_FRACTION_BITS
from hw.training.operations import Normalise, NormaliseBackward, NormaliseGamma
from sim.driver.formats import (
    GAMMA_UNIT,
    MASTER_SHIFT,
    WIDE_SHIFT,
    norm_format,
    norm_of,
    norm_unit,
    scale_unit,
    weighted_step,
)
from sim.driver.passes import pass_over
from sim.driver.words import Floats, multiplier_of, output_of


def sums_epilogue(unit: UnitRecord) -> Epilogue:
    """From the convolution to the map ``NAME.z``, whose integers are summed as they are written."""
    step = norm_format(unit).sum_step / (1 << WIDE_SHIFT)
    multiplier, shift = multiplier_of(unit.in_step * unit.steps / step)
    return Epilogue(
        multiplier=multiplier,
        shift=shift,
        bias=np.zeros(unit.n_out, np.int32),
        outputs=(output_of(_z(unit), 16, np.full(unit.n_out, 1 / (1 << WIDE_SHIFT))),),
        reduce=Reduce(name=f"{_z(unit)}.sums", shift=WIDE_SHIFT),
    )


def forward(unit: UnitRecord, beta: str, ended: Mapping[str, Any], *, scaled: bool = True) -> list[Operation]:
    """From the sums to u; ``ended``: fields of the epilogue that follow, with the name of its table.

    Unless ``scaled`` the scale is 1.
    """
    of = norm_format(unit)
    signs = np.where(norm_of(unit).scale < 0, -1, 1).astype(np.int8)
    return [
        Normalise(
            name=f"{unit.name}.normalise",
            channels=unit.n_out,
            sums=f"{_z(unit)}.sums",
            table=ended["named_table"],
            state=_state(unit),
            beta=beta,
            gamma=scale_master(unit) if scaled else None,
            gamma_start=scale_start(norm_of(unit).scale, scale_unit(unit)) if scaled else None,
            beta_start=np.rint(unit.bias / (norm_unit(unit) / (1 << MASTER_SHIFT))).astype(np.int64),
            job=of.forward,
        ),
        pass_over(_z(unit), unit, name=f"{unit.name}.normed", signs=signs, **{"shift": of.shift, **ended}),
    ]


def backward(
    unit: UnitRecord,
    *,
    further: bool,
    trained: bool = False,
    growth: float = 1.0,
    more: tuple[Output, ...] = (),
) -> list[Operation]:
    """From the map ``NAME.gradient`` of u to the sums for bias and scale and, ``further``, to the map
    ``NAME.back`` for the convolution's adjoint and those of ``more`` outputs. A ``trained`` scale is in the
    table ``NAME.scaled.table``; ``growth``: of trained weights."""
    of, norm = norm_format(unit), norm_of(unit)
    name, sums = f"{unit.name}.scaled", f"{unit.name}.sums"
    scaled = norm.scale * of.gradient_step / of.scaled_step / (1 << WIDE_SHIFT)
    output = output_of(name, 16, scaled)
    if trained:
        up = round(math.log2(of.scaled_step / of.gradient_step))
        output = scale_output(name, norm.scale, up + WIDE_SHIFT)
    products = pass_over(
        f"{unit.name}.gradient", unit, name=name, product=_z(unit), outputs=(output,),
        named_table=scaled_table(unit) if trained else None,
        reduce=Reduce(name=sums, shift=WIDE_SHIFT, kind=Reduction.PRODUCT),
    )  # fmt: skip
    if not further:
        return [products]
    slope = Output(
        name=f"{unit.name}.slope", bits=16, scale=np.zeros(unit.n_out, np.int16), shift=of.slope_shift
    )
    weighted = unit.steps * of.sum_gradient_unit / weighted_step(unit, growth)
    return [
        products,
        NormaliseBackward(
            name=f"{unit.name}.normalise.back",
            channels=unit.n_out,
            sums=sums,
            state=_state(unit),
            side_table=f"{unit.name}.slope.table",
            table=f"{unit.name}.back.table",
            job=of.backward,
        ),
        pass_over(_z(unit), unit, name=slope.name, outputs=(slope,), named_table=f"{unit.name}.slope.table"),
        pass_over(
            name, unit, name=f"{unit.name}.back", shift=of.back_shift, residual=slope.name,
            side_shift=of.side_shift, outputs=(output_of(f"{unit.name}.back", 16, weighted), *more),
            named_table=f"{unit.name}.back.table",
        ),
    ]  # fmt: skip


def scale_gradient(unit: UnitRecord, sums: str) -> NormaliseGamma:
    """List ``NAME.scale.gradient`` from the sums of g and g z."""
    return NormaliseGamma(
        name=f"{unit.name}.normalise.scale", channels=unit.n_out, sums=sums, state=_state(unit),
        gradient=f"{unit.name}.scale.gradient",
    )  # fmt: skip


def scale_output(name: str, scale: Floats, shift: int) -> Output:
    """Values times a scale in the format of the kernels, 2^-``shift`` of them: what an update's image is."""
    integers = np.rint(scale * (1 << GAMMA_FRACTION_BITS))
    if np.abs(integers).max() >= 1 << (GAMMA_BITS - 1):
        limit = 1 << (GAMMA_BITS - 1 - GAMMA_FRACTION_BITS)
        raise ValueError(f"trained scales of {name} must be below {limit}, not {np.abs(scale).max():g}")
    return Output(name=name, bits=16, scale=integers.astype(np.int16), shift=GAMMA_FRACTION_BITS + shift)


def scale_start(scale: Floats, unit: float = GAMMA_UNIT) -> NDArray[np.int64]:
    """A scale in 32 bits."""
    return np.rint(scale / unit).astype(np.int64)


def scale_master(unit: UnitRecord) -> str:
    """List of the scale in 32 bits."""
    return f"{unit.name}.scale"


def scaled_table(unit: UnitRecord) -> str:
    """Table whose reader's scale is a trained scale."""
    return f"{unit.name}.scaled.table"


def _z(unit: UnitRecord) -> str:
    return f"{unit.name}.z"


def _state(unit: UnitRecord) -> str:
    return f"{unit.name}.state"
