# SPDX-License-Identifier: MIT
"""Cycles of both selection engines, measured in their Verilog: ``python -m benchmarks.select_cycles``.

Prints one Markdown table: local value selection on 12-bit probabilities, token selection on 24-bit
importance, random inputs and the worst order or ties known for each engine.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.select import cycles as radix_cycles
from hw.select.config import RadixConfig
from hw.topk import cycles as quickselect_cycles
from hw.topk.config import TopKConfig
from hw.topk.vectors import case

POINTS = ((1024, 512), (204, 40), (102, 20))
"""n, k: the released SpAtten cost model's two points, and the last layers of the released GPT-2 trace."""
WIDTHS = ((12, "probability"), (24, "importance"))
N_INPUTS = 1000
SEED = 21
LANES = 16

Make = Callable[[np.random.Generator, int, int], np.ndarray]


def random_softmax(rng: np.random.Generator, n: int, bits: int) -> np.ndarray:
    """A row of softmax, or a sum of many, in units of 2^-bits of its own largest."""
    weights = np.exp(rng.normal(0, 1.5, n) if bits <= 12 else rng.normal(0, 0.5, n))
    scale = weights.sum() if bits <= 12 else weights.max()
    return np.minimum(weights / scale * 2.0**bits, 2.0**bits - 1).astype(np.int64)


INPUTS: dict[str, Make] = {
    "uniform": lambda rng, n, bits: rng.integers(0, 1 << bits, n),
    "softmax-like": random_softmax,
    "ascending": lambda rng, n, bits: np.arange(n),
    "all equal": lambda rng, n, bits: np.full(n, 5),
}


def measure(engine: str, make: Make, n: int, k: int, bits: int) -> np.ndarray:
    """Selection cycles of N_INPUTS requests: first comparison to the decision.

    Measured between transfers of the Verilog: the decision falls one cycle before the next request is taken.
    Raises RuntimeError where the Verilog differs from golden or cycle model.
    """
    rng = np.random.default_rng(SEED)
    requests = [(make(rng, n, bits), k, 0) for _ in range(N_INPUTS)]
    config: TopKConfig
    timing: Any
    if engine == "topk":
        config, timing = TopKConfig(lanes=LANES, element_bits=bits), quickselect_cycles.replay
    else:
        config, timing = RadixConfig(lanes=LANES, element_bits=bits), radix_cycles.replay
    one = case("cycles", requests, config, rng, timing)
    log = verilated.run_cases(BLOCKS[engine], config, [one])[0]
    if problems := judge(one, log).problems:
        raise RuntimeError(problems[0])
    first_input = log.cycles["i"][:: -(-n // LANES)]
    return log.cycles["i_request"][1:] - 1 - first_input[:-1]


def main() -> None:
    """Print the table."""
    print("| elements | n, k | input | quick-select mean | worst seen | radix mean | worst seen | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for bits, name in WIDTHS:
        for n, k in POINTS:
            bound = int(radix_cycles.worst_selection_cycles(n, RadixConfig(lanes=LANES, element_bits=bits)))
            for order, make in INPUTS.items():
                quick, radix = (measure(engine, make, n, k, bits) for engine in ("topk", "radix_select"))
                print(
                    f"| {bits}-bit {name} | {n}, {k} | {order} | {quick.mean():.1f} | {quick.max()} "
                    f"| {radix.mean():.1f} | {radix.max()} | {bound} |"
                )


if __name__ == "__main__":
    main()
