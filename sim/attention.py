# SPDX-License-Identifier: MIT
"""First cycle model of the attention core: overlapped stages in a layer, layers and tokens one after another.

Per query of a head, with K kept keys and V used values (of a causal prompt the means of what a query sees
and uses), D the head dimension, P the lanes of the top-k engine, f the share of heads that fetch their LSBs,
and M multipliers in each array:

    qk       = (1 + f) scores(K)            scores(n) = ceil(n / floor(M / D)), or n ceil(D / M) where M < D
    softmax  = (1 + f) ceil(K / lanes)      the exponential pass and the division pass, pipelined, each
    select   = 1 + ceil(K / P) + E(K, V)    E: expected quick-select cycles; 0 where every value is used
    fetch    = (filter + latency + max(ceil(K / P), t_V)) / fetches in flight       0 where V is not selected
    pv       = scores(V)
    dram     = t_Q + loads (t_K + f t_LSB + t_V)    t: atoms x 32 B / (peak x achievable share)

The stages work on different queries and heads at once, so the slowest sets the pace:

    query = max(qk, softmax, select, fetch, pv)
    head  = max(n_queries query, dram)

Keys and values that fit in half of the SRAM are read once for the heads that share them, and reused over
their queries; those beyond it are read again for every query, through the other half. ``loads`` is the mean
over the keys, and a head counts its part of what is shared. A layer cannot start before the previous one has
ended (its tokens are not known):

    front = latency + max(t_K, scores(K)) + qk, exp, divide latencies + ceil(K / lanes)
            + f (the same again for the LSB plane)
    tail  = max(E + fetch path + max(t_V, scores(V)) + pv latency, token selection) + head selection + barrier
    layer = front + tail + (n_queries - 1) query + (n_heads - 1) head

The token selection is 1 + ceil(n / P) + E(n, k) + filter(n), beside the value path of the last query; the
head selection runs after it on the same engine. The result is an expectation, hence not an integer.
"""

from dataclasses import dataclass

import numpy as np

from hw.config import ChipConfig
from hw.topk.config import FILTER_LATENCY_CYCLES
from hw.topk.cycles import expected_selection_cycles, filter_cycles
from sim.memory import (
    ACHIEVABLE_BANDWIDTH,
    ATOM_BYTES,
    REFRESH_INTERVAL_S,
    lone_row_atoms,
    row_bytes,
    rows_activated,
    shared_row_atoms,
)
from sim.records import reject_negative
from sim.workload import Workload

COMPARATOR_ARRAYS = 2
"""Left and right array of a top-k engine (SpAtten Fig. 9)."""

SRAM_HALVES = 2
"""Both SRAMs are double buffered: one half works while the other loads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreTiming:
    """Every latency of the model in one place. Estimated pipeline depths, until the RTL has them."""

    qk_latency_cycles: int = 6
    """Key line read to score: SRAM, multiplier, adder tree."""
    exp_latency_cycles: int = 16
    """Score to exponential in the running sum: dequantise, maximum, exponential, add."""
    divide_latency_cycles: int = 9
    """Exponential to probability: multiply by the reciprocal, quantise."""
    pv_latency_cycles: int = 10
    """Last probability to output: SRAM, multiplier, adder tree, accumulate, write."""
    layer_barrier_cycles: int = 8
    """Control between two layers."""
    value_fetches_in_flight: int = 1
    """Selected V rows of how many heads are on their way at once; 1: the coarse pipeline of the paper."""
    achievable_bandwidth: float = ACHIEVABLE_BANDWIDTH
    """Share of the DRAM peak that is reached."""

    def __post_init__(self) -> None:
        reject_negative(self)
        if self.value_fetches_in_flight < 1:
            raise ValueError(
                f"value_fetches_in_flight must be at least 1, not {self.value_fetches_in_flight}"
            )
        if not 0 < self.achievable_bandwidth <= 1:
            raise ValueError(
                f"achievable_bandwidth must be above 0 and at most 1, not {self.achievable_bandwidth}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What the core did, summed over the workload. Expectations, hence floats."""

    qk_macs: float
    """Products of queries and keys, the recomputed ones included."""
    pv_macs: float
    key_sram_read_bytes: float
    key_sram_write_bytes: float
    value_sram_read_bytes: float
    value_sram_write_bytes: float
    exponentials: float
    divisions: float
    importance_updates: float
    """Additions into the token and head importance accumulators."""
    comparisons: float
    """Elements compared with a pivot or threshold, P in each of the two arrays while an engine runs."""
    topk_fifo_bytes: float
    """Bytes written to and read from the buffers of the top-k engines."""
    dram_ideal_bytes: float
    """Bits asked for, in bytes."""
    dram_bytes: float
    """Bytes moved, in whole 32-byte atoms. Reads only."""
    dram_rows_activated: float
    dram_refreshes: float
    """All-bank refreshes, over all channels."""

    def __post_init__(self) -> None:
        reject_negative(self)


STAGES = ("dram", "qk", "softmax", "select", "value_fetch", "pv")
CAUSES = (*STAGES, "fill_and_drain", "token_selection", "head_selection")


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreRun:
    """Cycles and counts of one workload on one chip."""

    cycles_by_cause: dict[str, float]
    """What the core was waiting for; the total is their sum. Keys: CAUSES."""
    busy_cycles: dict[str, float]
    """How long each stage worked, overlapped or not. Keys: STAGES."""
    n_flops: float
    """Useful operations, two per multiply-accumulate."""
    counts: Counts

    def __post_init__(self) -> None:
        reject_negative(self)
        for name, known in (("cycles_by_cause", CAUSES), ("busy_cycles", STAGES)):
            if set(getattr(self, name)) != set(known):
                raise ValueError(f"{name} must have the keys {', '.join(known)}")

    @property
    def total_cycles(self) -> float:
        return sum(self.cycles_by_cause.values())


def run_attention(workload: Workload, chip: ChipConfig, timing: CoreTiming | None = None) -> CoreRun:
    """Cycles, stage times and counts of ``workload`` on ``chip``; formulas in the module docstring.

    Raises ValueError where a selection is larger than the top-k engine was built for.
    """
    return _Model(workload, chip, timing or CoreTiming()).run()


def array_cycles(n_rows: np.ndarray, head_dim: int, n_multipliers: int) -> np.ndarray:
    """Cycles of one multiplier array for ``n_rows`` products of length ``head_dim``: scores(n) above."""
    if n_multipliers < head_dim:
        return n_rows * -(-head_dim // n_multipliers)
    return -(-n_rows // (n_multipliers // head_dim))


class _Model:
    """All passes of one workload at once: every array below is float64 or int64[n_passes]."""

    def __init__(self, workload: Workload, chip: ChipConfig, timing: CoreTiming) -> None:
        self.workload, self.chip, self.timing = workload, chip, timing
        self.n_heads = workload.column("n_heads")
        self.n_groups = workload.column("n_groups")
        self.n_queries = workload.column("n_queries")
        self.n_context = workload.column("n_context")
        self.n_keys = workload.column("n_keys")
        self.n_values = workload.column("n_values")
        self.seen_keys = -(-workload.column("key_pairs") // self.n_queries)
        """Mean over the queries, rounded up; so are the values used."""
        self.used_values = -(-workload.column("value_pairs") // self.n_queries)
        self.lsb = workload.column("lsb_fraction")
        self._check_capacity()
        self.selects = self.n_values < self.n_keys
        # A head alone with its V and one query reads the rows that it selected; otherwise every kept V is
        # needed for some query.
        self.fetches_selected = self.selects & (self.n_queries == 1) & (self.n_groups == self.n_heads)
        resident = np.minimum(self.n_keys, self._resident_keys())
        n_rows = self.n_queries * self.n_heads / self.n_groups
        self.n_loads = (resident + n_rows * (self.n_keys - resident)) / self.n_keys
        """Times that a key (and its value) is read for the heads that share it, mean over the keys."""
        self.key_lines = -(-self.seen_keys // chip.topk.lanes)
        self.scores_cycles = array_cycles(self.seen_keys, workload.head_dim, chip.n_multipliers)
        self.pv_cycles = array_cycles(self.used_values, workload.head_dim, chip.n_multipliers)
        self.decide_cycles = expected_selection_cycles(self.seen_keys, self.used_values, chip.topk)
        self._count_atoms()

    def _check_capacity(self) -> None:
        largest, n_max = int(self.n_context.max()), self.chip.topk.n_max
        if largest > n_max:
            raise ValueError(
                f"n_context must be at most topk.n_max = {n_max} of {self.chip.name}, not {largest}"
            )

    def _resident_keys(self) -> int:
        """Keys that half of the SRAM holds."""
        row_bits = self.chip.onchip_bits * self.workload.head_dim
        return self.chip.kv_sram_bytes // SRAM_HALVES * 8 // row_bits

    def _count_atoms(self) -> None:
        """Atoms of query rows of one head, of one load of K, of its LSBs (if it fetches them) and of V."""
        work, dim = self.workload, self.workload.head_dim

        def shared(bits: int) -> np.ndarray:
            return shared_row_atoms(bits, dim, self.n_groups) / self.n_groups

        lone = lone_row_atoms(work.value_bits, dim, self.n_groups)
        self.n_value_rows = np.where(self.fetches_selected, self.n_values, self.n_keys)
        self.query_atoms = (
            self.n_queries * shared_row_atoms(work.query_bits, dim, self.n_heads) / self.n_heads
        )
        self.key_atoms = self.n_keys * shared(work.key_bits)
        self.lsb_atoms = self.n_keys * shared(work.key_lsb_bits)
        self.value_atoms = self.n_value_rows * np.where(self.fetches_selected, lone, shared(work.value_bits))
        kv_atoms = self.key_atoms + self.lsb * self.lsb_atoms + self.value_atoms
        self.head_atoms = self.query_atoms + self.n_loads * kv_atoms * self.n_groups / self.n_heads

    def run(self) -> CoreRun:
        stages = self.stage_cycles()
        causes = self.layer_cycles(stages)
        n_items = self.n_heads * self.n_queries
        busy = {
            stage: cycles * (self.n_heads if stage == "dram" else n_items) for stage, cycles in stages.items()
        }
        total_cycles = float(sum(cycles.sum() for cycles in causes.values()))
        return CoreRun(
            cycles_by_cause={cause: float(causes[cause].sum()) for cause in CAUSES},
            busy_cycles={stage: float(busy[stage].sum()) for stage in STAGES},
            n_flops=float(self.workload.n_flops),
            counts=self.counts(busy["select"], total_cycles),
        )

    def transfer_cycles(self, atoms: np.ndarray) -> np.ndarray:
        """Cycles that the DRAM needs for ``atoms``, its latency apart."""
        return atoms * ATOM_BYTES / (self.chip.peak_bytes_per_cycle * self.timing.achievable_bandwidth)

    def stage_cycles(self) -> dict[str, np.ndarray]:
        """Occupancy of each stage: per query, but ``dram`` per head over all its queries."""
        fetch = self.value_fetch_cycles() / self.timing.value_fetches_in_flight
        return {
            "dram": self.transfer_cycles(self.head_atoms),
            "qk": (1 + self.lsb) * self.scores_cycles,
            "softmax": (1 + self.lsb) * -(-self.seen_keys // self.chip.softmax_lanes),
            "select": np.where(self.selects, 1 + self.key_lines + self.decide_cycles, 0.0),
            "value_fetch": np.where(self.fetches_selected, fetch, 0.0),
            "pv": 1.0 * self.pv_cycles,
        }

    def value_fetch_cycles(self) -> np.ndarray:
        """From the decision of the local value selection to the last V row in the SRAM."""
        transfer = np.maximum(self.key_lines, self.transfer_cycles(self.value_atoms))
        return FILTER_LATENCY_CYCLES + self.chip.dram_latency_cycles + transfer

    def layer_cycles(self, stages: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cycles of each layer pass by cause; together they are the layer's time."""
        per_query = np.stack([stages[stage] for stage in STAGES[1:]])
        query_cycles = per_query.max(axis=0)
        dram_bound = stages["dram"] > self.n_queries * query_cycles
        paced_by = np.where(dram_bound, 0, 1 + per_query.argmax(axis=0))
        first_head = (self.n_queries - 1) * query_cycles
        later_heads = (self.n_heads - 1) * np.maximum(self.n_queries * query_cycles, stages["dram"])
        value_path = self.value_path_cycles()

        causes = {
            stage: np.where(paced_by == number, first_head + later_heads, 0.0)
            for number, stage in enumerate(STAGES)
        }
        causes["fill_and_drain"] = self.front_cycles() + value_path + self.timing.layer_barrier_cycles
        causes["token_selection"] = np.maximum(0, self.token_selection_cycles() - value_path)
        causes["head_selection"] = self.head_selection_cycles()
        return causes

    def front_cycles(self) -> np.ndarray:
        """From the first request of a layer to the last probability of its first query.

        Not before the first head's K and V are loaded, where V does not wait for a selection.
        """
        latency = self.chip.dram_latency_cycles
        pipeline = (
            latency
            + self.timing.qk_latency_cycles
            + self.timing.exp_latency_cycles
            + self.timing.divide_latency_cycles
            + -(-self.n_keys // self.chip.softmax_lanes)
        )
        first = pipeline + np.maximum(self.transfer_cycles(self.key_atoms), self.scores_cycles)
        again = pipeline + np.maximum(self.transfer_cycles(self.lsb_atoms), self.scores_cycles)
        unselected = np.where(self.fetches_selected, 0, self.value_atoms)
        loaded = latency + self.transfer_cycles(self.key_atoms + unselected)
        return np.maximum(first + self.lsb * again, loaded)

    def value_path_cycles(self) -> np.ndarray:
        """From the last probability of a query to its output: select, fetch V, weighted sum as V comes."""
        in_sram = FILTER_LATENCY_CYCLES + np.maximum(self.key_lines, self.pv_cycles)
        from_dram = np.maximum(
            self.value_fetch_cycles(), FILTER_LATENCY_CYCLES + self.chip.dram_latency_cycles + self.pv_cycles
        )
        selected = self.decide_cycles + np.where(self.fetches_selected, from_dram, in_sram)
        return np.where(self.selects, selected, self.pv_cycles) + self.timing.pv_latency_cycles

    def token_selection_cycles(self) -> np.ndarray:
        return self._selection_cycles("token_candidates", "token_topk")

    def head_selection_cycles(self) -> np.ndarray:
        return self._selection_cycles("n_heads", "head_topk")

    def _selection_cycles(self, candidates: str, selected: str) -> np.ndarray:
        """A whole selection on an idle engine, load to last output; 0 where nothing is selected."""
        n, k, engine = self.workload.column(candidates), self.workload.column(selected), self.chip.topk
        load = 1 + -(-n // engine.lanes)
        cycles = load + expected_selection_cycles(n, k, engine) + filter_cycles(n, engine)
        return np.where(k > 0, cycles, 0.0)

    def counts(self, select_cycles: np.ndarray, total_cycles: float) -> Counts:
        """Actions over the workload; ``select_cycles`` of the local value engine, all heads and queries."""
        work, chip, again = self.workload, self.chip, 1 + self.lsb
        word_bytes = chip.onchip_bits / 8
        scores = self.n_heads * work.column("key_pairs")
        used_values = self.n_heads * work.column("value_pairs")
        loaded_rows = self.n_groups * self.n_loads
        qk_macs = float((scores * again).sum()) * work.head_dim
        pv_macs = float(used_values.sum()) * work.head_dim
        engine_cycles = select_cycles + self.token_selection_cycles() + self.head_selection_cycles()
        comparisons = float(engine_cycles.sum()) * COMPARATOR_ARRAYS * chip.topk.lanes
        return Counts(
            qk_macs=qk_macs,
            pv_macs=pv_macs,
            key_sram_read_bytes=qk_macs * word_bytes,
            key_sram_write_bytes=float((loaded_rows * self.n_keys * again).sum())
            * work.head_dim
            * word_bytes,
            value_sram_read_bytes=pv_macs * word_bytes,
            value_sram_write_bytes=float((loaded_rows * self.n_value_rows).sum())
            * work.head_dim
            * word_bytes,
            exponentials=float((scores * again).sum()),
            divisions=float((scores * again).sum()),
            importance_updates=float((scores + self.n_heads * self.n_queries * work.head_dim).sum()),
            comparisons=comparisons,
            # An element that both arrays compare is read from one FIFO and written to another.
            topk_fifo_bytes=comparisons * chip.topk.element_bits / 8,
            dram_ideal_bytes=float(self._ideal_bytes().sum()),
            dram_bytes=float((self.n_heads * self.head_atoms).sum()) * ATOM_BYTES,
            dram_rows_activated=float((loaded_rows * self._rows_activated()).sum()),
            dram_refreshes=total_cycles / chip.clock_hz / REFRESH_INTERVAL_S * chip.n_dram_channels,
        )

    def _ideal_bytes(self) -> np.ndarray:
        work, dim = self.workload, self.workload.head_dim
        key_bytes = row_bytes(work.key_bits, dim) + self.lsb * row_bytes(work.key_lsb_bits, dim)
        kv_bytes = self.n_keys * key_bytes + self.n_value_rows * row_bytes(work.value_bits, dim)
        query_bytes = self.n_queries * row_bytes(work.query_bits, dim)
        return self.n_groups * self.n_loads * kv_bytes + self.n_heads * query_bytes

    def _rows_activated(self) -> np.ndarray:
        """DRAM rows opened for one load of K, of the LSBs (a share of the heads) and of V."""
        work, n_context = self.workload, self.n_context

        def rows(bits: int, n_rows: np.ndarray) -> np.ndarray:
            return rows_activated(n_context * row_bytes(bits, work.head_dim), n_rows / n_context)

        return (
            rows(work.key_bits, self.n_keys)
            + self.lsb * rows(work.key_lsb_bits, self.n_keys)
            + rows(work.value_bits, self.n_value_rows)
        )
