# SPDX-License-Identifier: MIT
"""Payloads of the kernels' streams."""

from amaranth.lib import data

from .config import (
    FACTOR_BITS,
    GROUP,
    RECIPROCAL_BITS,
    WORD_BITS,
    Image,
    Job,
    Kernel,
    Norm,
    NormBack,
    NormGamma,
    TrainingConfig,
    Update,
    reciprocal,
)
from .microcode import N_SLOTS, SLOT_BITS, Slot, slots


def job_layout(config: TrainingConfig) -> data.StructLayout:
    """Payload of ``i_job``: a kernel for ``count`` elements (UPDATE) or groups of 8 channels, at least one.

    ``halves``: gradients are of 16 bits, two a word. The fields of the other kernels have any value.
    """
    return data.StructLayout(
        {
            "kernel": Kernel,
            "count": config.count_bits,
            "halves": 1,
            "momentum": FACTOR_BITS,
            "rate": FACTOR_BITS,
            "rate_shift": 6,
            "image": Image,
            "image_shift": 5,
            "reciprocal": RECIPROCAL_BITS,
            "epsilon": 31,
            "slots": data.ArrayLayout(SLOT_BITS, N_SLOTS),
        }
    )


def master_layout() -> data.StructLayout:
    """An element of a master; a word of 32 bits stands in place of the weight."""
    return data.StructLayout({"weight": WORD_BITS, "momentum": WORD_BITS})


def out_layout() -> data.StructLayout:
    """Payload of ``o``: 8 bytes of a master for reader 0, or 4 bytes of whatever for either reader."""
    return data.StructLayout({"data": 2 * WORD_BITS, "reader": 1})


def job_fields(job: Job, *, count: int, halves: bool = False, plain: bool = False) -> dict:
    """A job as :func:`job_layout` has it; ``plain``: a norm's gamma is 1."""
    fields: dict = {"kernel": kernel_of(job, plain=plain), "count": count, "halves": halves}
    match job:
        case Update():
            names = ("momentum", "rate", "rate_shift", "image", "image_shift")
            return fields | {name: getattr(job, name) for name in names}
        case Norm():
            fields["epsilon"] = job.epsilon
    if isinstance(job, Norm | NormBack):
        fields["reciprocal"] = reciprocal(GROUP * job.pixels)[0]
    by_slot, mask = slots(job), (1 << SLOT_BITS) - 1
    return fields | {"slots": [by_slot.get(slot, 0) & mask for slot in Slot]}


def kernel_of(job: Job, *, plain: bool = False) -> Kernel:
    """Which kernel computes a job."""
    if isinstance(job, Norm) and plain:
        return Kernel.NORM_PLAIN
    return {
        Update: Kernel.UPDATE,
        Norm: Kernel.NORM,
        NormBack: Kernel.NORM_BACK,
        NormGamma: Kernel.NORM_GAMMA,
    }[type(job)]
