# SPDX-License-Identifier: MIT
"""The first training steps on the convolution core's Verilog, every write against golden."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hw.config import ChipConfig
from hw.convolution.config import ConvolutionConfig, convolution_config
from hw.convolution.cycles import replay
from hw.convolution.golden import run
from hw.convolution.operations import Operation, output_shapes, read_shapes
from hw.convolution.program import lowered
from hw.convolution.runs import Run
from sim.driver.training import carried


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Steps by the simulated Verilog."""

    cycles: tuple[int, ...]
    """Of each step, from its start to the last acknowledged write."""
    n_writes: int
    """Words written and compared."""
    mismatches: tuple[str, ...]
    """With golden, the first of each kind; with the exact cycle model."""

    @property
    def fields(self) -> dict[str, Any]:
        """For a result's JSON."""
        return {
            "rtl_cycles": list(self.cycles),
            "rtl_writes": self.n_writes,
            "rtl_mismatches": list(self.mismatches),
        }


def measured(
    operations: Sequence[Operation],
    examples: Sequence[Mapping[str, Tensor]],
    chip: ChipConfig,
    lists: Mapping[str, Tensor] | None = None,
) -> Measured:
    """A step for each of ``examples``, the maps it is given; lists go from step to step, the first one begins
    with ``lists``.

    Each step's commands run in Verilator, in a memory of the chip's latency. ValueError where the chip is too
    small for the step.
    """
    from hw.convolution.vectors import case_of
    from hw.harness import verilated
    from hw.harness.job import judge
    from hw.registry import BLOCKS

    config, latency_cycles = core_of(operations, chip), chip.dram_latency_cycles
    steps = list(runs(operations, examples, lists))
    cases = [case_of(one, config, latency_cycles=latency_cycles) for one in steps]
    logs = verilated.run_cases(BLOCKS["convolution"], config, cases)
    cycles = tuple(int(log.since_first_input("o_done")[-1]) for log in logs)
    models = [_model_cycles(one, config, latency_cycles) for one in steps]
    problems = [
        f"{one.name}: {problem}"
        for one, case, log in zip(steps, cases, logs, strict=True)
        for problem in judge(case, log).problems
    ]
    late = [
        f"{one.name}: done in cycle {cycle}, cycle model {model}"
        for one, cycle, model in zip(steps, cycles, models, strict=True)
        if cycle != model
    ]
    return Measured(
        cycles=cycles,
        n_writes=sum(len(case.expected["o_write"]) for case in cases),
        mismatches=(*problems, *late),
    )


def runs(
    operations: Sequence[Operation],
    examples: Sequence[Mapping[str, Tensor]],
    lists: Mapping[str, Tensor] | None = None,
) -> Iterator[Run]:
    """Each step with the maps and lists that it begins with."""
    lists = lists or {}
    for number, maps in enumerate(examples):
        begun = {**lists, **maps}
        yield Run(
            name=f"step {number}",
            operations=operations,
            maps={name: values.numpy() for name, values in begun.items()},
        )
        lists = carried(operations, run(operations, begun))


def check(operations: Sequence[Operation], maps: Mapping[str, Tensor], chip: ChipConfig) -> None:
    """ValueError where the chip is too small for the step."""
    try:
        lowered(
            operations, {name: values.numpy() for name, values in maps.items()}, core_of(operations, chip)
        )
    except ValueError as error:
        raise ValueError(f"preset {chip.name}: {error}") from None


def core_of(operations: Sequence[Operation], chip: ChipConfig) -> ConvolutionConfig:
    """The chip's core, but with counters and tables for as many channels as the step has."""
    config = convolution_config(chip)
    most = max(
        of.channels
        for operation in operations
        for of in (*read_shapes(operation).values(), *output_shapes(operation).values())
    )
    channels = max(config.array.max_channels, 1 << (most - 1).bit_length())
    tiles = max(config.epilogue.max_tiles, channels // config.epilogue.lanes)
    return replace(
        config,
        array=replace(config.array, max_channels=channels),
        epilogue=replace(config.epilogue, max_tiles=tiles),
    )


def _model_cycles(one: Run, config: ConvolutionConfig, latency_cycles: int) -> int:
    program = lowered(one.operations, one.maps, config)
    return replay(program, config, latency_cycles=latency_cycles).done
