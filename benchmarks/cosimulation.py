# SPDX-License-Identifier: MIT
"""Runs blocks against their golden models in Verilog simulators, for ``quartet cosim``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hw.config import ChipConfig
from hw.harness import cosim
from hw.harness.job import judge
from hw.registry import Block

STALLS = (0.0, 0.3)
"""Every case runs at full rate, where cycles must equal the cycle model if there is one, and under random
stalls."""


@dataclass(frozen=True, kw_only=True)
class CosimRow:
    """One case of one block in one simulator."""

    block: str
    simulator: str
    case: str
    n_beats: int
    n_cycles: int
    """First input transfer to last output transfer."""
    cycles_checked: bool
    """At full rate every output beat is also held to the cycle model, of blocks that have one."""
    problems: tuple[str, ...]


def simulators(wanted: str | None) -> tuple[list[str], list[str]]:
    """The simulators to use, and a line for each that is left out because it is not installed.

    Raises FileNotFoundError where the one asked for is missing, ValueError where it is unknown.
    """
    if wanted is None:
        reasons = {name: cosim.missing_simulator(name) for name in cosim.SIMULATORS}
        return [n for n, why in reasons.items() if not why], [why for why in reasons.values() if why]
    if wanted not in cosim.SIMULATORS:
        raise ValueError(f"sim must be one of {', '.join(cosim.SIMULATORS)}, not {wanted!r}")
    if reason := cosim.missing_simulator(wanted):
        raise FileNotFoundError(reason)
    return [wanted], []


def waves_file(block: Block, simulator: str) -> Path:
    """Where the waveforms of ``block`` go: FST from Icarus, VCD from Verilator."""
    folder = Path("results/waves")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{block.name}-{simulator}.{'fst' if simulator == 'icarus' else 'vcd'}"


def run(
    block: Block, chip: ChipConfig, simulator: str, *, seed: int, n_random: int, waves: Path | None
) -> Iterator[CosimRow]:
    """All cases of ``block`` on ``chip`` in one simulator run; the verdicts in order."""
    config = block.config(chip)
    full_rate = block.cases(config, seed=seed, n_random=n_random)
    cases = [one.stalled(p, seed + 1) if p else one for one in full_rate for p in STALLS]
    for one, log in zip(cases, cosim.run_cases(block, config, cases, simulator, waves), strict=True):
        verdict = judge(one, log)
        yield CosimRow(
            block=block.name,
            simulator=simulator,
            case=verdict.case,
            n_beats=verdict.n_beats,
            n_cycles=verdict.n_cycles,
            cycles_checked=bool(one.expected_cycles),
            problems=verdict.problems,
        )


def n_mismatches(rows: Sequence[CosimRow]) -> int:
    """Cases with at least one problem."""
    return sum(bool(row.problems) for row in rows)
