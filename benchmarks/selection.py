# SPDX-License-Identifier: MIT
"""Single requests to the top-k engine, in the golden model or in the simulated Verilog."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hw.harness.job import judge, unpack_fields
from hw.registry import BLOCKS
from hw.topk.config import TopKConfig
from hw.topk.cycles import replay
from hw.topk.golden import check_request, top_k
from hw.topk.vectors import case


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the engine kept of one request, and how long it took."""

    n: int
    """Elements of the request."""
    values: tuple[int, ...]
    indices: tuple[int, ...]
    """Ascending; of equal elements the earlier ones."""
    pass_lines: tuple[int, ...]
    """Lines of P elements compared in each pass."""
    selection_cycles: int
    """First comparison to the decision."""
    first_to_last_cycles: int
    """First input to last output, both counted."""
    engine: str
    mismatches: tuple[str, ...]
    """Differences of the Verilog from golden and cycle model; empty where they agree or it did not run."""


def run_request(elements: Sequence[int], k: int, config: TopKConfig, *, seed: int, rtl: bool) -> Selection:
    """One request from reset; ValueError where the engine cannot serve it.

    With ``rtl`` values and indices are the Verilog's (C++ harness), else the golden model's. Cycles are the
    cycle model's, to which the Verilog is held.
    """
    tensor = torch.tensor(list(elements), dtype=torch.int64)
    check_request(tensor, k, config)
    request = (tensor.numpy(), k, seed)
    timing = replay([request], config)[0]
    if rtl:
        values, indices, mismatches = _simulate(request, config)
    else:
        kept_values, kept_indices = top_k(tensor, k, config)
        values, indices, mismatches = kept_values.tolist(), kept_indices.tolist(), ()
    return Selection(
        n=len(elements),
        values=tuple(values),
        indices=tuple(indices),
        pass_lines=timing.pass_lines,
        selection_cycles=timing.selection_cycles,
        first_to_last_cycles=timing.first_to_last_cycles,
        engine="Verilog, simulated" if rtl else "golden model, replayed cycles",
        mismatches=mismatches,
    )


def _simulate(
    request: tuple[np.ndarray, int, int], config: TopKConfig
) -> tuple[list[int], list[int], tuple[str, ...]]:
    from hw.harness import verilated

    one = case("request", [request], config, np.random.default_rng(0))
    log = verilated.run_cases(BLOCKS["topk"], config, [one])[0]
    lanes = config.lanes
    layout = [
        (lanes, config.element_bits), (lanes, config.index_bits), (1, lanes.bit_length()), (1, 1)
    ]  # fmt: skip
    values, indices, count, _ = unpack_fields(log.beats["o"], layout)
    used = np.arange(lanes) < count
    return values[used].tolist(), indices[used].tolist(), judge(one, log).problems
