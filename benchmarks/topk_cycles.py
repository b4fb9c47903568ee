# SPDX-License-Identifier: MIT
"""Distribution of the top-k engine's cycles, measured in its Verilog: ``python -m benchmarks.topk_cycles``.

Prints two Markdown tables: random inputs at the two points of the released SpAtten cost model, and other
orders of the input, against the closed form of the mean.
"""

import time
from collections.abc import Callable

import numpy as np

from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from hw.topk.config import TopKConfig
from hw.topk.cycles import expected_selection_cycles, replay
from hw.topk.vectors import case

POINTS = ((1024, 512, 270), (204, 40, 71))
"""n, k, and the mean cycles of the passes in the released cost model at 16 lanes (quoted)."""
N_INPUTS = 1000
SEED = 21
CONFIG = TopKConfig(lanes=16)


def measure(
    make: Callable[[np.random.Generator], np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Selection cycles, cycles from first input to last output, and simulated cycles per second.

    Raises RuntimeError where the Verilog differs from golden or cycle model.
    """
    rng = np.random.default_rng(SEED)
    requests = [(make(rng), k, 0) for _ in range(N_INPUTS)]
    one = case("cycles", requests, CONFIG, rng)
    verilated.build(BLOCKS["topk"], CONFIG)
    start = time.perf_counter()
    log = verilated.run_cases(BLOCKS["topk"], CONFIG, [one])[0]
    speed = log.n_cycles / (time.perf_counter() - start)
    if problems := judge(one, log).problems:
        raise RuntimeError(problems[0])
    timing = replay(requests, CONFIG)
    selection = np.array([t.selection_cycles for t in timing])
    return selection, np.array([t.first_to_last_cycles for t in timing]), speed


def main() -> None:
    """Print the tables."""
    print("| n, k | quantity | mean | released model | min | 5 % | median | 95 % | max |")
    print("|---|---|---|---|---|---|---|---|---|")
    speeds = []
    for n, k, released in POINTS:
        selection, total, speed = measure(lambda rng, n=n: rng.integers(0, 1 << CONFIG.element_bits, n), k)  # type: ignore[misc]
        speeds.append(speed)
        for name, values, quoted in (
            ("selection", selection, f"{released}"),
            ("first input to last output", total, "-"),
        ):
            spread = np.percentile(values, [0, 5, 50, 95, 100]).astype(int)
            print(f"| {n}, {k} | {name} | {values.mean():.1f} | {quoted} | {' | '.join(map(str, spread))} |")
    print()
    print("| order of 1,024 elements, k = 512 | mean selection | max |")
    print("|---|---|---|")
    n, k = 1024, 512
    first_pass = -(-n // CONFIG.lanes) - 1  # comparisons that the closed form leaves to the load
    expected = float(expected_selection_cycles(n, k, CONFIG)) + first_pass
    print(f"| random, closed form | {expected:.1f} | - |")
    orders: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "random": lambda rng: rng.permutation(n),
        "ascending": lambda rng: np.arange(n),
        "descending": lambda rng: np.arange(n)[::-1],
        "organ pipe": lambda rng: np.minimum(np.arange(n), np.arange(n)[::-1]),
        "16 different values": lambda rng: rng.integers(0, 16, n),
    }
    for name, make in orders.items():
        selection, _, speed = measure(make, k)
        speeds.append(speed)
        print(f"| {name} | {selection.mean():.1f} | {selection.max()} |")
    print()
    print(f"simulated: median {np.median(speeds) / 1e3:.0f} k cycles/s over {len(speeds)} runs")


if __name__ == "__main__":
    main()
