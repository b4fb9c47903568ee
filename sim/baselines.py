# SPDX-License-Identifier: MIT
"""Roofline models of the platforms that SpAtten compares with: the least time their peaks allow.

A roofline has none of the launch and data-movement overheads of the eager PyTorch runs that the paper timed:
it is the stronger opponent, and a speed-up over it must never be read as one over the paper's baseline.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sim.records import reject_negative
from sim.tables import number, read_table
from sim.workload import Workload

PLATFORMS_PATH = Path(__file__).with_name("platforms.csv")
FP32_BYTES = 4
ROOFLINE = "roofline"


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """A general-purpose machine."""

    platform: str
    label: str
    short: str
    """Label for a narrow column."""
    peak_flops: float
    """fp32 operations per second."""
    bandwidth_bytes_per_s: float
    dynamic_power_w: float
    """Power above idle while it runs attention, implied by the paper's own ratios."""
    source: str
    tag: str

    def __post_init__(self) -> None:
        reject_negative(self)


@cache
def platforms(path: Path = PLATFORMS_PATH) -> dict[str, Platform]:
    """The platforms by name, in the paper's order."""
    numeric = ("peak_flops", "bandwidth_bytes_per_s", "dynamic_power_w")
    rows = read_table(path, ("platform", "label", "short", *numeric, "source", "tag"))
    return {
        row["platform"]: Platform(
            platform=row["platform"],
            label=row["label"],
            short=row["short"],
            source=row["source"],
            tag=row["tag"],
            **{name: number(row, name, path) for name in numeric},
        )
        for row in rows
    }


def fp32_bytes(workload: Workload) -> np.ndarray:
    """Bytes of Q, K and V of each layer pass, each read once as fp32; float64[n_passes]."""
    queries = workload.column("n_heads") * workload.column("n_queries")
    keys_values = workload.column("n_groups") * (workload.column("n_keys") + workload.column("n_values"))
    return 1.0 * (queries + keys_values) * workload.head_dim * FP32_BYTES


def roofline_s(workload: Workload, platform: Platform) -> float:
    """Least time for ``workload`` in fp32: the slower of arithmetic and traffic, layer by layer.

    Traffic is Q, K, V read and the output written once, as a perfectly fused kernel would.
    """
    pairs = workload.column("key_pairs") + workload.column("value_pairs")
    flops = 2 * workload.head_dim * workload.column("n_heads") * pairs
    output = workload.column("n_heads") * workload.column("n_queries") * workload.head_dim * FP32_BYTES
    traffic = fp32_bytes(workload) + output
    return float(np.maximum(flops / platform.peak_flops, traffic / platform.bandwidth_bytes_per_s).sum())
