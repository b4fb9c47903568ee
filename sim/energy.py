# SPDX-License-Identifier: MIT
"""Energy = actions counted by the cycle model x the sourced energy per action in ``energy_table.csv``."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sim.attention import Counts
from sim.records import reject_negative
from sim.tables import number, read_table

TABLE_PATH = Path(__file__).with_name("energy_table.csv")
SCALING_PATH = Path(__file__).with_name("node_scaling.csv")

CHIP_NODE_NM = 40
"""SpAtten: TSMC 40 nm (Table I)."""

EXP_MULTIPLIES, EXP_ADDS = 5, 5
"""Fifth-order Taylor series by fused multiply-adds (SpAtten, softmax module)."""
DIVIDE_MULTIPLIES, DIVIDE_ADDS = 4, 4
"""Estimated: two Newton-Raphson steps of two fused multiply-adds; Horowitz lists no divider."""
SCALE_MULTIPLIES = 2
"""Dequantisation with 1 / sqrt(D) before the exponential, quantisation after the division."""

PLAIN_BITS = 8
"""Bits of a byte, for the rows of the table that are per bit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyRow:
    """One row of the table; ``value_pj`` is per ``per`` at ``node_nm`` (None: not scaled, as for DRAM)."""

    component: str
    action: str
    value_pj: float
    per: str
    node_nm: int | None
    voltage_v: float | None
    source: str
    tag: str
    """quoted, simulated or estimated."""

    def __post_init__(self) -> None:
        reject_negative(self)


@cache
def energy_table(path: Path = TABLE_PATH) -> tuple[EnergyRow, ...]:
    """The table; ValueError naming file and cell where it is malformed."""
    columns = ("component", "action", "value_pj", "per", "node_nm", "voltage_v", "source", "tag")
    return tuple(
        EnergyRow(
            component=row["component"],
            action=row["action"],
            value_pj=number(row, "value_pj", path),
            per=row["per"],
            node_nm=int(number(row, "node_nm", path)) if row["node_nm"] else None,
            voltage_v=number(row, "voltage_v", path) if row["voltage_v"] else None,
            source=row["source"],
            tag=row["tag"],
        )
        for row in read_table(path, columns)
    )


@cache
def node_factors(path: Path = SCALING_PATH) -> dict[int, float]:
    """Energy of logic relative to 45 nm, at 0.9 V, by node in nanometres."""
    rows = read_table(path, ("node_nm", "energy_factor", "source", "tag"))
    return {int(number(row, "node_nm", path)): number(row, "energy_factor", path) for row in rows}


def scale_energy(value_pj: float, from_nm: int, to_nm: int) -> float:
    """``value_pj`` of logic or SRAM carried from one node to another at 0.9 V.

    Ratio of the Stillmaker-Baas factors; ValueError for a node that the table lacks.
    """
    factors = node_factors()
    for node_nm in (from_nm, to_nm):
        if node_nm not in factors:
            known = ", ".join(str(node) for node in factors)
            raise ValueError(f"node_nm must be one of {known}, not {node_nm}")
    return value_pj * factors[to_nm] / factors[from_nm]


def price_pj(component: str, action: str, node_nm: int = CHIP_NODE_NM) -> float:
    """Energy of one action at ``node_nm``; ValueError where the table has no such row."""
    for row in energy_table():
        if (row.component, row.action) == (component, action):
            return row.value_pj if row.node_nm is None else scale_energy(row.value_pj, row.node_nm, node_nm)
    raise ValueError(f"the energy table has no row {component}.{action}")


def actions(counts: Counts) -> dict[str, dict[tuple[str, str], float]]:
    """How often each row of the table is used, by part of the chip; linear in ``counts``."""
    dram_bits = counts.dram_bytes * PLAIN_BITS
    macs = {"qk_array": counts.qk_macs, "pv_array": counts.pv_macs}
    arrays = {
        part: {("multiplier", "multiply_12b"): number_of, ("adder", "add_24b"): number_of}
        for part, number_of in macs.items()
    }
    exponentials, divisions = counts.exponentials, counts.divisions
    multiplies = EXP_MULTIPLIES * exponentials + (DIVIDE_MULTIPLIES + SCALE_MULTIPLIES) * divisions
    accumulates = exponentials
    return {
        "dram": {
            ("dram", "activate"): counts.dram_rows_activated,
            ("dram", "pre_gsa"): dram_bits,
            ("dram", "post_gsa"): dram_bits,
            ("dram", "io"): dram_bits,
            ("dram", "refresh"): counts.dram_refreshes,
        },
        "key_sram": {
            ("sram", "read"): counts.key_sram_read_bytes,
            ("sram", "write"): counts.key_sram_write_bytes,
        },
        "value_sram": {
            ("sram", "read"): counts.value_sram_read_bytes,
            ("sram", "write"): counts.value_sram_write_bytes,
        },
        **arrays,
        "softmax": {
            ("softmax", "fp32_multiply"): multiplies,
            ("softmax", "fp32_add"): EXP_ADDS * exponentials + DIVIDE_ADDS * divisions + accumulates,
        },
        "topk": {
            ("adder", "add_24b"): counts.comparisons,
            ("buffer", "access"): counts.topk_fifo_bytes,
        },
        # Through the address and data FIFOs of the fetcher: written once, read once.
        "fetcher": {("buffer", "access"): 2 * counts.dram_bytes},
        "importance": {
            ("adder", "add_32b"): counts.importance_updates,
            # An accumulator of 4 bytes is read and written back.
            ("buffer", "access"): 8 * counts.importance_updates,
        },
    }


PARTS = (
    "dram",
    "key_sram",
    "value_sram",
    "qk_array",
    "pv_array",
    "softmax",
    "topk",
    "fetcher",
    "importance",
)


def energy_pj(counts: Counts, node_nm: int = CHIP_NODE_NM) -> dict[str, float]:
    """Dynamic energy by part of the chip, picojoules; clock tree, control and leakage are not in it."""
    return {
        part: sum(number_of * price_pj(*row, node_nm) for row, number_of in used.items())
        for part, used in actions(counts).items()
    }
