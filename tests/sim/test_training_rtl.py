# SPDX-License-Identifier: MIT
"""Training steps in the Verilog of the convolution core: forward, backward, update, step after step."""

import numpy as np
import pytest
import torch

from algo.tinytl.quantise import quantise
from benchmarks.tinytl.block_rtl import check, core_of, measured, runs
from hw.config import PRESETS
from hw.convolution.config import convolution_config
from hw.convolution.golden import run
from hw.convolution.vectors import timed_case
from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from sim.driver import tail, training
from sim.driver.descent import Descent
from sim.driver.passes import transposed
from tests.sim import test_driver_lite, test_driver_tail, test_driver_training
from tests.sim.test_driver_training import CASES, examples_of, maps_of

TINY = PRESETS["tiny"]
BLOCKS_TRAINED = {
    **{name: (test_driver_training.block_of, case, 9) for name, case in CASES.items()},
    **{
        f"lite, {name}": (test_driver_lite.block_of, case, 8) for name, case in test_driver_lite.CASES.items()
    },
}


def steps(name, n):
    """Operations of a step with the gradient of the input, and what each of ``n`` steps is given."""
    make, case, size = BLOCKS_TRAINED[name]
    block = make(**case)
    examples = examples_of(block, n=2, size=size)
    record = quantise(block, examples)
    operations = training.operations(record, Descent(rate=0.1), input_gradient=True)
    return operations, [maps_of(record, examples, number % 2) for number in range(n)]


def test_steps_are_golden_in_verilog_and_take_the_modelled_cycles():
    """Two steps with frozen norms, with group norms, and with a lite module; the second one of each under
    stalls as well."""
    config = convolution_config(TINY)
    todo = []
    for name in ("affine", "affine, stride 2", "group", "lite, group"):
        first, second = (timed_case(one, config) for one in runs(*steps(name, 2)))
        todo += [first, second, second.stalled(0.3, seed=1)]
    logs = verilated.run_cases(BLOCKS["convolution"], config, todo)
    assert [judge(case, log).problems for case, log in zip(todo, logs, strict=True)] == [()] * 12
    assert all(len(log.beats["o_write"]) > 900 for log in logs)


def tail_steps(name, n):
    """The same of blocks, head and loss."""
    _, examples, record = test_driver_tail.prepare(**test_driver_tail.CASES[name])
    given = [test_driver_tail.maps_of(record, examples, i) for i in range(n)]
    return tail.operations(record, Descent(rate=0.01)), given


def test_a_core_has_counters_and_tables_for_the_step_s_channels():
    preset = convolution_config(TINY)
    assert core_of([transposed("a", 1, 1, preset.array.max_channels, "b")], TINY) == preset
    wide = core_of([transposed("a", 1, 1, 1280, "b")], TINY)
    assert wide.array.max_channels == wide.epilogue.max_tiles * wide.epilogue.lanes == 2048
    check([transposed("a", 1, 1, 1280, "b")], {"a": torch.zeros(1, 1, 1280, dtype=torch.int64)}, TINY)


def test_runs_begin_with_what_was_learned_and_with_their_own_label():
    operations, (first, second) = tail_steps("one block", 2)
    lists = training.carried(operations, run(operations, first))
    (made,) = runs(operations, [second], lists)
    assert made.maps.keys() == lists.keys() | second.keys()
    for name, value in (lists | second).items():
        assert np.array_equal(made.maps[name], value.numpy()), name
    assert made.maps["label"] == 1 and lists["label"] == 0


def test_steps_of_blocks_head_and_loss_are_golden_in_verilog():
    """Two steps of the last block, and one of a chain of two with stride 2 and shortcut, with the modelled
    cycles; under stalls as well."""
    config = convolution_config(TINY)
    todo = []
    for name, n in (("one block", 2), ("stride 2, shortcut", 1)):
        *_, last = steps_run = [timed_case(one, config) for one in runs(*tail_steps(name, n))]
        todo += [*steps_run, last.stalled(0.3, seed=1)]
    logs = verilated.run_cases(BLOCKS["convolution"], config, todo)
    assert [judge(case, log).problems for case, log in zip(todo, logs, strict=True)] == [()] * 5
    assert all(len(log.beats["o_write"]) > 1500 for log in logs)


@pytest.mark.full
@pytest.mark.parametrize("name", test_driver_tail.CASES)
def test_five_steps_of_every_tail(name):
    """In a memory of the chip's latency; lists go from step to step."""
    operations, given = tail_steps(name, 4)
    found = measured(operations, [*given, given[0]], TINY)
    assert found.mismatches == ()
    assert len(set(found.cycles)) == 1


@pytest.mark.full
@pytest.mark.parametrize("name", BLOCKS_TRAINED)
def test_five_steps_of_every_block(name):
    """In a memory of the chip's latency; lists go from step to step."""
    found = measured(*steps(name, 5), TINY)
    assert found.mismatches == ()
    assert len(set(found.cycles)) == 1  # they do not depend on numbers
