# SPDX-License-Identifier: MIT
"""What one simulation says: a frozen object, read back strictly, with derived values as properties."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from hw.config import ChipConfig
from sim.attention import CoreRun, CoreTiming, run_attention
from sim.baselines import fp32_bytes
from sim.energy import PARTS, energy_pj
from sim.memory import row_bytes
from sim.records import decode, reject_negative
from sim.workload import ONCHIP_BITS, Workload

LOGIC_PARTS = ("qk_array", "pv_array", "softmax", "topk", "fetcher", "importance")
SRAM_PARTS = ("key_sram", "value_sram")


@dataclass(frozen=True, kw_only=True, slots=True)
class SimResult:
    """One workload on one chip. Status of every number here: simulated.

    Counts are those of the closed form (:mod:`sim.attention`), and so are cycles unless ``core_cycles`` holds
    those of the core's cycle model, which equals its RTL.
    """

    workload: str
    chip: str
    clock_hz: float
    peak_flops: float
    """Of both arrays, operations per second."""
    peak_bytes_per_s: float
    """Of the DRAM."""
    run: CoreRun
    energy_pj: dict[str, float]
    """By part of the chip; keys: PARTS."""
    core_cycles: int | None = None
    """Of :func:`hw.attention.cycles.replay`, with a memory of fixed latency; None where it has not run."""

    def __post_init__(self) -> None:
        reject_negative(self)
        if set(self.energy_pj) != set(PARTS):
            raise ValueError(f"energy_pj must have the keys {', '.join(PARTS)}")
        measures = {
            "clock_hz": self.clock_hz,
            "peak_flops": self.peak_flops,
            "peak_bytes_per_s": self.peak_bytes_per_s,
            "run.n_flops": self.run.n_flops,
            "run.cycles_by_cause": self.run.total_cycles,
            "run.counts.dram_ideal_bytes": self.run.counts.dram_ideal_bytes,
            "run.counts.dram_bytes": self.run.counts.dram_bytes,
            "energy_pj": self.total_energy_pj,
            "core_cycles": self.cycles,
        }
        for name, value in measures.items():
            if value == 0:
                raise ValueError(f"{name} must be positive, not 0")

    @property
    def cycles(self) -> float:
        """Those of the core's cycle model where it has run, else those of the closed form."""
        return self.run.total_cycles if self.core_cycles is None else self.core_cycles

    @property
    def latency_s(self) -> float:
        return self.cycles / self.clock_hz

    @property
    def flops_per_s(self) -> float:
        """Useful operations after pruning, two per multiply-accumulate, per second."""
        return self.run.n_flops / self.latency_s

    @property
    def utilisation(self) -> float:
        """Share of the peak of both arrays."""
        return self.flops_per_s / self.peak_flops

    @property
    def flops_per_byte(self) -> float:
        """Operational intensity on the bytes really moved."""
        return self.run.n_flops / self.run.counts.dram_bytes

    @property
    def bandwidth_share(self) -> float:
        """Share of the DRAM peak that was used."""
        return self.run.counts.dram_bytes / self.latency_s / self.peak_bytes_per_s

    @property
    def total_energy_pj(self) -> float:
        return sum(self.energy_pj.values())

    @property
    def power_w(self) -> dict[str, float]:
        """Mean dynamic power, grouped as in the paper's Table II: logic, sram, dram."""
        groups = {"logic": LOGIC_PARTS, "sram": SRAM_PARTS, "dram": ("dram",)}
        return {
            group: sum(self.energy_pj[part] for part in parts) * 1e-12 / self.latency_s
            for group, parts in groups.items()
        }


def simulate(workload: Workload, chip: ChipConfig, timing: CoreTiming | None = None) -> SimResult:
    """Cycles and energy of ``workload`` on ``chip``."""
    run = run_attention(workload, chip, timing)
    return SimResult(
        workload=workload.name,
        chip=chip.name,
        clock_hz=chip.clock_hz,
        peak_flops=2 * 2 * chip.n_multipliers * chip.clock_hz,
        peak_bytes_per_s=chip.peak_bytes_per_cycle * chip.clock_hz,
        run=run,
        energy_pj=energy_pj(run.counts),
    )


def on_core(
    result: SimResult, cycles: int, dram_ideal_bytes: int | None = None, dram_bytes: int | None = None
) -> SimResult:
    """The same workload with the cycles of the core's cycle model, and its traffic where that is counted."""
    counts = result.run.counts
    counts = replace(
        counts,
        dram_ideal_bytes=counts.dram_ideal_bytes if dram_ideal_bytes is None else float(dram_ideal_bytes),
        dram_bytes=counts.dram_bytes if dram_bytes is None else float(dram_bytes),
        dram_refreshes=counts.dram_refreshes * cycles / result.run.total_cycles,
    )
    return replace(
        result, core_cycles=cycles, run=replace(result.run, counts=counts), energy_pj=energy_pj(counts)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTraffic:
    """Bytes of Q, K and V of the unpruned workload, each read once: the two bases of a DRAM reduction."""

    fp32_bytes: float
    """The paper's basis."""
    onchip_bytes: float
    """At 12 bits, the width that the arrays work with."""

    def __post_init__(self) -> None:
        reject_negative(self)


def dense_traffic(dense: Workload) -> DenseTraffic:
    """Both bases for an unpruned workload."""
    total_bytes = float(fp32_bytes(dense).sum())
    return DenseTraffic(
        fp32_bytes=total_bytes, onchip_bytes=total_bytes * row_bytes(ONCHIP_BITS, 1) / row_bytes(32, 1)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Time and power of another machine on the dense workload; never without its kind."""

    platform: str
    kind: str
    """'roofline', or how and by whom it was measured."""
    latency_s: float
    dynamic_power_w: float

    def __post_init__(self) -> None:
        reject_negative(self)

    @property
    def energy_pj(self) -> float:
        return self.latency_s * self.dynamic_power_w * 1e12


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """How a result came about."""

    command: str
    commit: str
    """Git commit, or 'unknown' outside a checkout."""
    dirty: bool
    """Whether tracked files differed from the commit."""
    date: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    seed: int | None
    """None: nothing random in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkResult:
    """One benchmark: pruned and dense on the chip, and the baselines on the dense workload."""

    benchmark: str
    model: str
    task: str
    workload_status: str
    """How the pruning and the length are known: 'released trace' or 'estimated'."""
    workload_source: str
    config: dict[str, Any]
    """Resolved configuration: chip, timing, workload settings."""
    config_hash: str
    pruned: SimResult
    dense: SimResult
    dense_traffic: DenseTraffic
    baselines: tuple[Baseline, ...]
    provenance: Provenance

    def baseline(self, platform: str, kind: str) -> Baseline | None:
        """The baseline of that platform and kind; None where the result has none."""
        matching = (item for item in self.baselines if (item.platform, item.kind) == (platform, kind))
        return next(matching, None)

    def speedup(self, platform: str, kind: str) -> float | None:
        """Baseline time over the pruned run's."""
        item = self.baseline(platform, kind)
        return item.latency_s / self.pruned.latency_s if item else None

    def energy_ratio(self, platform: str, kind: str) -> float | None:
        """Baseline energy over the pruned run's."""
        item = self.baseline(platform, kind)
        return item.energy_pj / self.pruned.total_energy_pj if item else None

    @property
    def dram_reduction_fp32(self) -> float:
        """Dense fp32 bytes over the bytes the pruned run asked for (the paper's basis)."""
        return self.dense_traffic.fp32_bytes / self.pruned.run.counts.dram_ideal_bytes

    @property
    def dram_reduction_onchip(self) -> float:
        """Dense 12-bit bytes over the bytes the pruned run asked for."""
        return self.dense_traffic.onchip_bytes / self.pruned.run.counts.dram_ideal_bytes

    @property
    def computation_reduction(self) -> float:
        return self.dense.run.n_flops / self.pruned.run.n_flops

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "BenchmarkResult":
        """Read what :meth:`to_json` wrote.

        Raises ValueError in one line: not JSON, or the field that is unknown, missing, negative or mistyped.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not valid JSON: {error}") from None
        return decode(cls, data)
