# SPDX-License-Identifier: MIT
"""A decode step of GPT-2-Small's shape in the Verilog of a whole core: ``python -m benchmarks.decode_step``.

With ``--compare``, what streaming its keys and values is worth, by the cycle model.

One new token, 12 heads of 64 elements, random numbers: output and cycle of every beat against golden and the
cycle model. Building the simulator of ``paper`` takes minutes, once.
"""

import time
from dataclasses import replace
from typing import Annotated

import numpy as np
import typer

from hw.attention.config import AttentionConfig, attention_config
from hw.attention.cycles import replay
from hw.attention.layers import GivenTokens
from hw.attention.trace import traces
from hw.attention.vectors import Options, Sentence, Shape, case, one_token
from hw.config import preset
from hw.fetch.cycles import MemoryTiming
from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS

N_HEADS, HEAD_DIM = 12, 64
OPTIONS = Options(
    rows="one", k_bits=6, v_bits=8, threshold=600, value_keep=0.4, protect_last=True, streamed=1.0
)
MEMORY = MemoryTiming(latency_cycles=45)
SEED = 3


def decode_step(n_keys: int, n_layers: int, config: AttentionConfig, options: Options = OPTIONS) -> Sentence:
    """``n_keys`` tokens in the first layer, the share ``options.token_keep`` of a layer's in the next."""
    rng = np.random.default_rng(SEED)
    given = GivenTokens(tokens=np.arange(n_keys), importance=rng.integers(0, 4000, n_keys), n_keep=n_keys)
    return one_token(Shape(n_keys, N_HEADS, HEAD_DIM, n_layers), options, given, config, rng)


def compare(n_keys: int, config: AttentionConfig) -> None:
    """Print the cycles of one layer with keys and values in halves of the buffers, and streamed."""
    print("| | in halves | streamed |")
    print("|---|---|---|")
    for bits, precision in (("8", replace(OPTIONS, k_bits=8, progressive=False)), ("6+4", OPTIONS)):
        for share in (1.0, 0.4):
            cycles = []
            for streamed in (0.0, 1.0):
                options = replace(precision, value_keep=share, streamed=streamed)
                step = decode_step(n_keys, 1, config, options)
                cycles.append(replay(traces([step]), config, MEMORY).n_cycles)
            print(f"| {bits} bits, {share:.0%} of the values | {cycles[0]:,} | {cycles[1]:,} |")


def main(
    preset_name: Annotated[str, typer.Option("--preset")] = "paper",
    n_keys: Annotated[int, typer.Option("--keys", min=1, max=1024)] = 1024,
    n_layers: Annotated[int, typer.Option("--layers", min=1, max=32)] = 12,
    token_keep: Annotated[float, typer.Option("--keep", min=0.01, max=1)] = 0.9,
    compares: Annotated[bool, typer.Option("--compare")] = False,
) -> None:
    """Print cycles, differences and simulated cycles per second."""
    config = attention_config(preset(preset_name))
    if compares:
        compare(n_keys, config)
        return
    one = decode_step(n_keys, n_layers, config, replace(OPTIONS, token_keep=token_keep))
    run = case("decode step", [one], config, memory=MEMORY)
    verilated.build(BLOCKS["attention"], config)
    start = time.perf_counter()
    log = verilated.run_cases(BLOCKS["attention"], config, [run])[0]
    seconds = time.perf_counter() - start
    problems = judge(run, log).problems
    ends = run.expected_cycles["o_summary"]
    used_lsb = sum(int(result.used_lsb.sum()) for result in one.results)
    print("| layer | keys | cycles (RTL and model) |")
    print("|---|---|---|")
    for number, (result, cycles) in enumerate(zip(one.results, np.diff(ends, prepend=0), strict=True)):
        print(f"| {number} | {len(result.tokens)} | {cycles:,} |")
    print()
    print(f"{n_layers * N_HEADS} rows, {used_lsb} of them again with LSBs; {ends[-1]:,} cycles")
    print(f"differences between RTL, golden and cycle model: {'; '.join(problems) or 'none'}")
    print(f"simulated: {log.n_cycles / seconds:,.0f} cycles/s")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    typer.run(main)
