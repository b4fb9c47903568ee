# SPDX-License-Identifier: MIT
"""A training step's gradients in the Verilog of the convolution core."""

from hw.config import PRESETS
from hw.convolution.config import convolution_config
from hw.convolution.runs import Run
from hw.convolution.vectors import timed_case
from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.training.operations import KernelOperation
from sim.driver import training
from sim.driver.training import Descent
from tests.sim.test_driver_training import CASES, block_of, examples_of, maps_of, quantise


def gradients(name):
    """Forward and backward through a block with frozen norms: masks, residuals, sums, transposed weights."""
    block = block_of(**CASES[name])
    examples = examples_of(block)
    record = quantise(block, examples)
    step = training.operations(record, Descent(rate=0.1), input_gradient=True)
    operations = [one for one in step if not isinstance(one, KernelOperation)]
    maps = {map_name: values.numpy() for map_name, values in maps_of(record, examples, 0).items()}
    return Run(name=name, operations=operations, maps=maps)


def test_gradients_of_a_block_are_golden_in_verilog_and_take_the_modelled_cycles():
    config = convolution_config(PRESETS["tiny"])
    todo = [timed_case(gradients(name), config) for name in CASES if name.startswith("affine")]
    todo.append(todo[0].stalled(0.3, seed=1))
    logs = verilated.run_cases(BLOCKS["convolution"], config, todo)
    assert [judge(case, log).problems for case, log in zip(todo, logs, strict=True)] == [()] * 4
    assert all(len(log.beats["o_write"]) > 900 for log in logs)
