# SPDX-License-Identifier: MIT
"""Tables made from saved results: rows per benchmark, means, and the paper's figures beside ours."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.paper import PAPER_EAGER, fig14, geomean, headline
from sim.attention import CAUSES
from sim.baselines import ROOFLINE, platforms
from sim.energy import PARTS
from sim.result import BenchmarkResult

SIMULATED = "simulated"
FAMILIES = {"bert": "BERT", "gpt2": "GPT-2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The paper's value beside ours."""

    label: str
    unit: str
    paper: float | None
    """None: the paper gives no such value."""
    paper_source: str
    ours: float
    status: str
    """Of our value: simulated, on released or estimated workloads."""
    note: str = ""
    """On which basis, and what is not the same."""

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's."""
        return self.ours / self.paper if self.paper else None


def family(result: BenchmarkResult) -> str:
    """'bert' or 'gpt2'."""
    return result.benchmark.partition("-")[0]


def of_family(results: Sequence[BenchmarkResult], name: str) -> list[BenchmarkResult]:
    return [result for result in results if family(result) == name]


def status(results: Iterable[BenchmarkResult]) -> str:
    """'simulated' and how well the workloads are known."""
    return f"{SIMULATED}, workload: {workload_kinds(results)}"


def workload_kinds(results: Iterable[BenchmarkResult]) -> str:
    """'released trace', 'estimated', or both."""
    return " and ".join(sorted({result.workload_status for result in results}, reverse=True))


def row(result: BenchmarkResult) -> dict[str, Any]:
    """One benchmark, flat, with units in the names; None where a value does not exist."""
    pruned, paper = result.pruned, fig14()[result.benchmark]
    flat: dict[str, Any] = {
        "benchmark": result.benchmark,
        "chip": pruned.chip,
        "status": status([result]),
        "cycles": pruned.cycles,
        "closed_form_cycles": pruned.run.total_cycles,
        "latency_s": pruned.latency_s,
        "dense_latency_s": result.dense.latency_s,
        "flops_per_s": pruned.flops_per_s,
        "utilisation": pruned.utilisation,
        "energy_j": pruned.total_energy_pj * 1e-12,
        "dram_bytes": pruned.run.counts.dram_bytes,
        "dram_reduction_fp32_basis": result.dram_reduction_fp32,
        "dram_reduction_12bit_basis": result.dram_reduction_onchip,
        "computation_reduction": result.computation_reduction,
        "flops_per_byte": pruned.flops_per_byte,
    }
    for name in platforms():
        flat |= {
            f"speedup_{name}_roofline": result.speedup(name, ROOFLINE),
            f"speedup_{name}_paper_eager": result.speedup(name, PAPER_EAGER),
            f"paper_speedup_{name}_paper_eager": paper.speedup[name],
            f"energy_ratio_{name}_roofline": result.energy_ratio(name, ROOFLINE),
            f"energy_ratio_{name}_paper_eager": result.energy_ratio(name, PAPER_EAGER),
            f"paper_energy_ratio_{name}_paper_eager": paper.energy[name],
        }
    flat |= {f"cycles_{cause}": pruned.run.cycles_by_cause[cause] for cause in CAUSES}
    flat |= {f"energy_{part}_pj": pruned.energy_pj[part] for part in PARTS}
    return flat | {"config_hash": result.config_hash}


def headline_comparisons(results: Sequence[BenchmarkResult]) -> list[Comparison]:
    """The figures of the paper's text and tables, beside ours over the benchmarks at hand."""
    found = []
    for name, label in FAMILIES.items():
        group = of_family(results, name)
        if group:
            found.append(
                _against(
                    f"{name}_tflops",
                    f"Throughput, {label}, mean of {len(group)}",
                    _mean(group, lambda r: r.pruned.flops_per_s * 1e-12),
                    group,
                    "operations that remain after pruning",
                )
            )
    medium = [result for result in results if result.model == "gpt2-medium"]
    if medium:
        found.append(
            _against(
                "gpt2_medium_attention_s",
                f"Attention of GPT-2-Medium, 32 tokens, mean of {len(medium)}",
                _mean(medium, lambda r: r.pruned.latency_s * 1e3),
                medium,
                "the paper's without head pruning, ours with it (1.1x)",
                scale=1e3,
                unit="ms",
            )
        )
    found += _reductions(results)
    for name, label in FAMILIES.items():
        group = of_family(results, name)
        if group:
            found.append(
                _against(
                    f"{name}_flops_per_byte",
                    f"Operational intensity, {label}",
                    geomean(r.pruned.flops_per_byte for r in group),
                    group,
                    "geometric mean; our bytes are whole 32-byte atoms",
                )
            )
    return found


def _reductions(results: Sequence[BenchmarkResult]) -> list[Comparison]:
    n = len(results)
    return [
        _against(
            "dram_reduction",
            f"DRAM reduction, fp32 basis, {n} benchmarks",
            geomean(r.dram_reduction_fp32 for r in results),
            results,
            "geometric mean; dense fp32 bytes over bytes asked for",
        ),
        Comparison(
            label=f"DRAM reduction, 12-bit basis, {n} benchmarks",
            unit="x",
            paper=None,
            paper_source="",
            ours=geomean(r.dram_reduction_onchip for r in results),
            status=status(results),
            note="geometric mean; what pruning and narrow formats save against a dense 12-bit chip",
        ),
        _against(
            "computation_reduction",
            f"Computation reduction, {n} benchmarks",
            geomean(r.computation_reduction for r in results),
            results,
            "geometric mean; a pruned BERT token is gone as query and as key",
        ),
    ]


def power_comparisons(results: Sequence[BenchmarkResult]) -> list[Comparison]:
    """Mean dynamic power over the benchmarks, beside Table II."""
    notes = {
        "logic": ("Logic", "no clock tree, control or leakage in ours"),
        "sram": ("K and V SRAM", "dynamic only"),
        "dram": ("DRAM", "activations, bits and refresh"),
    }
    return [
        _against(
            f"{group}_power_w",
            f"{label} power, mean of {len(results)}",
            sum(result.pruned.power_w[group] for result in results) / len(results),
            results,
            note,
        )
        for group, (label, note) in notes.items()
    ]


def speedup_comparisons(results: Sequence[BenchmarkResult]) -> list[Comparison]:
    """Geometric mean speed-up per platform, the baseline and its kind in the label."""
    return _ratio_comparisons(results, "speed-up", lambda r, p, k: r.speedup(p, k), lambda row: row.speedup)


def energy_comparisons(results: Sequence[BenchmarkResult]) -> list[Comparison]:
    """Geometric mean energy ratio per platform, the baseline and its kind in the label."""
    return _ratio_comparisons(
        results, "energy ratio", lambda r, p, k: r.energy_ratio(p, k), lambda row: row.energy
    )


def _ratio_comparisons(
    results: Sequence[BenchmarkResult], what: str, ours: Callable, paper: Callable
) -> list[Comparison]:
    found = []
    for kind in (PAPER_EAGER, ROOFLINE):
        group = [r for r in results if r.baseline("titan_xp", kind)]
        for name, machine in platforms().items() if group else ():
            same = "same baseline" if kind == PAPER_EAGER else "not the same baseline: ours is a roofline"
            found.append(
                Comparison(
                    label=f"{machine.label} ({kind}), {what}, {len(group)} benchmarks",
                    unit="x",
                    paper=geomean(paper(fig14()[r.benchmark])[name] for r in group),
                    paper_source=f"SpAtten Fig. 14, over {PAPER_EAGER}",
                    ours=geomean(ours(r, name, kind) for r in group),
                    status=status(group),
                    note=f"geometric mean; {same}",
                )
            )
    return found


def _against(
    quantity: str,
    label: str,
    ours: float,
    group: Sequence[BenchmarkResult],
    note: str,
    *,
    scale: float = 1.0,
    unit: str | None = None,
) -> Comparison:
    quoted = headline()[quantity]
    return Comparison(
        label=label,
        unit=unit or quoted.unit,
        paper=quoted.value * scale,
        paper_source=quoted.source,
        ours=ours,
        status=status(group),
        note=note,
    )


def _mean(results: Sequence[BenchmarkResult], value: Callable[[BenchmarkResult], float]) -> float:
    return sum(value(result) for result in results) / len(results)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with thousands separators and ``digits`` significant digits; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded:,.0f}"
    text = f"{rounded:#.{digits}g}"
    return text if "e" not in text else f"{rounded:.{digits - 1}e}"
