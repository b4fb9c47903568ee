# SPDX-License-Identifier: MIT
"""What the SpAtten paper says, quoted: Fig. 14 per benchmark, and its headline figures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sim.baselines import platforms
from sim.tables import number, read_table

FIG14_PATH = Path(__file__).with_name("paper_fig14.csv")
HEADLINE_PATH = Path(__file__).with_name("paper_headline.csv")
PAPER_EAGER = "eager PyTorch, timed by the paper"
"""Kind of the baseline of Fig. 14: batch 1, cuDNN or MKL, as in SpAtten's evaluation set-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fig14Row:
    """Ratios of one benchmark by platform."""

    speedup: dict[str, float]
    energy: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One figure of the text or a table."""

    quantity: str
    label: str
    value: float
    unit: str
    source: str


@cache
def fig14() -> dict[str, Fig14Row]:
    """Fig. 14 by benchmark, its printed 'geomean' row included."""
    names = tuple(platforms())
    columns = (*(f"speedup_{name}" for name in names), *(f"energy_{name}" for name in names))
    return {
        row["benchmark"]: Fig14Row(
            speedup={name: number(row, f"speedup_{name}", FIG14_PATH) for name in names},
            energy={name: number(row, f"energy_{name}", FIG14_PATH) for name in names},
        )
        for row in read_table(FIG14_PATH, ("benchmark", *columns))
    }


@cache
def headline() -> dict[str, Headline]:
    """The headline figures by quantity."""
    rows = read_table(HEADLINE_PATH, ("quantity", "label", "value", "unit", "source"))
    return {
        row["quantity"]: Headline(
            quantity=row["quantity"],
            label=row["label"],
            value=number(row, "value", HEADLINE_PATH),
            unit=row["unit"],
            source=row["source"],
        )
        for row in rows
    }


def eager_latency_s(benchmark: str, platform: str) -> float | None:
    """Time of the paper's own baseline, where an absolute anchor exists; None elsewhere.

    The paper times the attention of GPT-2-Medium on TITAN Xp (Table IV, mean of its four tasks, whose dense
    work is the same). The other platforms follow from Fig. 14: both ratios of a benchmark have the same
    SpAtten time in them.
    """
    if not benchmark.startswith("gpt2-medium-"):
        return None
    ratios = fig14()[benchmark].speedup
    return headline()["titan_xp_gpt2_medium_attention_s"].value * ratios[platform] / ratios["titan_xp"]


def eager_power_w(benchmark: str, platform: str) -> float:
    """Dynamic power of the paper's baseline on one benchmark, implied by its own ratios.

    SpAtten's 8.30 W (Table II) x energy ratio / speed-up of that benchmark: SpAtten's power as a constant.
    """
    row = fig14()[benchmark]
    return headline()["power_w"].value * row.energy[platform] / row.speedup[platform]


def geomean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers; ValueError where there is none."""
    logs = [math.log(value) for value in values]
    if not logs:
        raise ValueError("a geometric mean needs at least one value")
    return math.exp(math.fsum(logs) / len(logs))
