# SPDX-License-Identifier: MIT
"""A level of an Anycost generator, 8 to 16 px, through AXI: emitted Verilog under cocotb against golden."""

import pytest
import torch

from benchmarks.system_run import BASE
from hw.convolution.golden import run
from hw.convolution.runs import Run as Todo
from hw.system.cosim import run_in_verilator
from hw.system.runs import Run
from tests.hw.test_convolution import generated
from tests.hw.test_convolution_system import QUICK, TINY, TOP, job_of, write

N_OPERATIONS = 5
"""Up-convolution, blur, convolution, skip, toRGB."""
PATIENT = write(STALL_CYCLES=100_000)
"""The array computes longer on what it has than the little jobs of the other tests."""


def level(ratio: float) -> Todo:
    """The last level of an image of 16 px, given the maps of the level below."""
    image = generated(ratio)
    below, last = image.operations[:-N_OPERATIONS], image.operations[-N_OPERATIONS:]
    maps = {name: torch.from_numpy(values) for name, values in image.maps.items()}
    made = {**image.maps, **{name: values.numpy() for name, values in run(below, maps).items()}}
    read = {operation.source for operation in last} | {operation.epilogue.residual for operation in last}
    return Todo(
        name=f"level at {ratio:g}",
        operations=last,
        maps={name: values for name, values in made.items() if name in read},
    )


@pytest.mark.parametrize("ratio", [1, 0.5, 0.25])
def test_a_level_through_axi(ratio):
    """Random latency and back-pressure on every channel, memory of cocotbext-axi: every map equals golden."""
    todo = level(ratio)
    job = job_of(todo, TINY)
    stalled = Run(
        name=todo.name, steps=job.steps(PATIENT), base=BASE, memory=job.memory, max_cycles=300_000, **QUICK
    )
    (log,) = run_in_verilator(TINY, [stalled], state_seed=3, models="cocotbext-axi", top=TOP)
    assert job.problems(log) == []
    assert job.expected.keys() > set(job.program.places) - todo.maps.keys()
