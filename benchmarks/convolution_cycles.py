# SPDX-License-Identifier: MIT
"""Cycles of the convolution core's Verilog beside the estimate:
``python -m benchmarks.convolution_cycles [PRESET]``.

Levels of an Anycost generator and single operations on the core of ``tiny``, or of another preset, in
Verilator, in a memory of the chip's latency that answers a word a cycle at each port. Prints a Markdown table
and compares every write with golden. Exit code 1 on a mismatch, 2 where there is no such preset.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hw.config import preset
from hw.convolution.config import convolution_config
from hw.convolution.loss_runs import picture
from hw.convolution.runs import Run, block, conv, depthwise, fir
from hw.convolution.vectors import case_of
from hw.depthwise.layer import DepthwiseLayer
from hw.fir.config import Map
from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.systolic.layer import Layer
from sim.convolution import core_of, estimate, tasks_of, total

SEED = 1


def levels(rng: np.random.Generator) -> Iterator[Run]:
    """Up-convolution, blur, convolution, skip, toRGB: from 8 to 16 px at five widths, from 16 to 32 px.

    Pixels of 12 and 24 channels straddle the words of the bus.
    """
    for size, channels in ((8, 64), (8, 32), (8, 24), (8, 16), (8, 12), (16, 32)):
        run = block(rng, n_in=channels, n_up=channels, n_out=channels, size=size)
        yield replace(run, name=f"level of {2 * size} px, {channels} channels")


def single(rng: np.random.Generator) -> Iterator[Run]:
    """Each operation by itself, at 16 px."""
    for n in (8, 64):
        x = {"x": rng.integers(-128, 128, (16, 16, n))}
        small = {"x": rng.integers(-128, 128, (8, 8, n))}
        grown = {"x": rng.integers(-(1 << 15), 1 << 15, (17, 17, n))}
        colours = {"r": rng.integers(-(1 << 15), 1 << 15, (16, 16, 3))}
        same = Layer(height=16, width=16, n_in=n, n_out=n, padding=1)
        up = Layer(height=8, width=8, n_in=n, n_out=n, stride=2, transposed=True)
        to_rgb = Layer(height=16, width=16, n_in=n, n_out=3, kernel=1)
        blur = Map(upsample=False, height=17, width=17, channels=n)
        by_channel = DepthwiseLayer(height=16, width=16, channels=n, kernel=5, padding=2)
        halved = replace(by_channel, kernel=3, padding=1, stride=2, out_height=8, out_width=8)
        back = replace(halved, height=8, width=8, out_height=16, out_width=16, transposed=True, wide=True)
        dy = {"x": rng.integers(-(1 << 15), 1 << 15, (8, 8, n))}
        scores = {"c's scores": rng.integers(-999, 999, (1, 1, n)), "c's label": np.array([[n - 1]])}
        for name, operation, maps in (
            ("convolution", conv("c", same, "x", rng, {"y": 8}, noise=True), x),
            ("convolution, two readers", conv("c", same, "x", rng, {"y": 8, "z": 8}), x),
            ("up-convolution", conv("c", up, "x", rng, {"y": 16}), small),
            ("blur", fir("c", blur, "x", rng, {"y": 8}, noise=True), grown),
            ("toRGB", conv("c", to_rgb, "x", rng, {"y": 16}, residual="r"), x | colours),
            ("depthwise 5 x 5", depthwise("c", by_channel, "x", rng, {"y": 8}), x),
            ("depthwise 3 x 3, stride 2", depthwise("c", halved, "x", rng, {"y": 8}), x),
            ("its gradient, 16 bits", depthwise("c", back, "x", rng, {"y": 16}), dy),
            ("gradient of the loss", picture("c", n, rng, {"y": 16}), scores),
        ):
            yield Run(name=f"{name}, {n} channels", operations=[operation], maps=maps)


def main(name: str = "tiny") -> int:
    """Print the table; 1 where golden and Verilog differ."""
    try:
        chip, rng = preset(name), np.random.default_rng(SEED)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config, core = convolution_config(chip), core_of(chip)
    core = replace(core, memory_bytes_per_cycle=5.0 * core.bus_bytes)
    runs = [*levels(rng), *single(rng)]
    cases = [case_of(run, config, latency_cycles=chip.dram_latency_cycles) for run in runs]
    print("| what | writes | cycles in RTL | estimated | RTL / estimated |\n|---|---|---|---|---|")
    failed = False
    for run, case, log in zip(
        runs, cases, verilated.run_cases(BLOCKS["convolution"], config, cases), strict=True
    ):
        verdict = judge(case, log)
        estimated = total(estimate(task, core) for task in tasks_of(run.operations)).cycles
        failed |= bool(verdict.problems)
        print(
            f"| {run.name} | {verdict.n_beats - 1:,} | {verdict.n_cycles:,} | {estimated:,.0f} | "
            f"{verdict.n_cycles / estimated:.3f}{''.join(map(' {}'.format, verdict.problems))} |"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
