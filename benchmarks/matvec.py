# SPDX-License-Identifier: MIT
"""A matrix-vector product of any size on the attention core, in golden, cycle model and Verilog."""

from dataclasses import dataclass

import numpy as np

from hw.attention.config import AttentionConfig, attention_config
from hw.attention.cycles import replay
from hw.attention.matrix import matrix_pass, most_parts
from hw.attention.program import Pass
from hw.attention.trace import traces
from hw.attention.vectors import case, computed
from hw.config import ChipConfig
from hw.fetch.config import ATOM_BYTES, PLANE_BITS
from hw.harness import verilated
from hw.harness.job import judge
from hw.registry import BLOCKS
from sim.memory import memory_timing

VECTOR_BITS = 12


@dataclass(frozen=True, kw_only=True)
class MatvecRun:
    """A product, block by block of what the core can take at once."""

    preset: str
    rows: int
    columns: int
    weight_bits: int
    blocks: int
    """Passes through the core; sums over blocks of columns are added outside."""
    cycles: int
    dram_bound_cycles: float
    """Weights at the peak of DRAM."""
    array_bound_cycles: float
    """Products at the peak of the first array."""
    origin: str
    mismatches: tuple[str, ...]
    """Between the Verilog, golden and the cycle model; empty without --rtl."""

    @property
    def share_of_bound(self) -> float:
        """The larger bound over the cycles."""
        return max(self.dram_bound_cycles, self.array_bound_cycles) / self.cycles


def run_matvec(
    rows: int, columns: int, weight_bits: int, chip: ChipConfig, *, seed: int = 1, rtl: bool = False
) -> MatvecRun:
    """Random weights and vector of full range.

    Raises
    ------
    ValueError
        A width that the fetcher does not have; a matrix without rows or columns.
    RuntimeError
        The golden core's sums are not numpy's.
    """
    for name, value in (("rows", rows), ("columns", columns)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if weight_bits not in PLANE_BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, PLANE_BITS))}, not {weight_bits}")
    config = attention_config(chip)
    rng = np.random.default_rng(seed)
    weights, vector = (
        rng.integers(-(1 << bits - 1), 1 << bits - 1, shape)
        for bits, shape in ((weight_bits, (rows, columns)), (VECTOR_BITS, columns))
    )
    passes, places = _blocks(weights, vector, weight_bits, config)
    sentences = [computed(one, config) for one in passes]
    product = np.zeros(rows, dtype=np.int64)
    for place, one in zip(places, sentences, strict=True):
        sums = one.results[0].sums
        assert sums is not None
        product[place] += sums.numpy()
    if not np.array_equal(product, weights @ vector):
        raise RuntimeError("the core's sums differ from numpy's product")
    memory = memory_timing(chip)
    bytes_per_cycle = ATOM_BYTES / memory.interval_cycles
    mismatches: tuple[str, ...] = ()
    if rtl:
        run = case("matvec", sentences, config, memory=memory)
        (log,) = verilated.run_cases(BLOCKS["attention"], config, [run])
        n_cycles, mismatches = int(log.since_first_input("o_summary")[-1]), judge(run, log).problems
    else:
        n_cycles = replay(traces(sentences), config, memory).n_cycles
    return MatvecRun(
        preset=chip.name,
        rows=rows,
        columns=columns,
        weight_bits=weight_bits,
        blocks=len(passes),
        cycles=n_cycles,
        dram_bound_cycles=rows * columns * weight_bits / 8 / (bytes_per_cycle * chip.n_dram_channels),
        array_bound_cycles=rows * columns / chip.n_multipliers,
        origin="measured in simulated Verilog" if rtl else "cycle model, equal to the RTL",
        mismatches=mismatches,
    )


def _blocks(
    weights: np.ndarray, vector: np.ndarray, weight_bits: int, config: AttentionConfig
) -> tuple[list[Pass], list[slice]]:
    """Passes, and the rows whose sums each brings."""
    most_columns = most_parts(config) * config.qk.head_dims[-1]
    passes, places = [], []
    for row in range(0, weights.shape[0], config.n_max):
        rows = slice(row, row + config.n_max)
        for column in range(0, weights.shape[1], most_columns):
            part = slice(column, column + most_columns)
            passes.append(
                matrix_pass(vector[part], weights[rows, part], weight_bits, config, vector_bits=VECTOR_BITS)
            )
            places.append(rows)
    return passes, places
