# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the confidence check, alone and with its softmax."""

from collections.abc import Sequence
from functools import singledispatch

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.softmax.config import MULTIPLIER_BITS, PROBABILITY_BITS, SHIFT_BITS, row_scale
from hw.softmax.vectors import dense_beats, scale_beats

from .config import COUNTER_BITS, LSB_BITS, ConfidenceConfig, ConfidentSoftmaxConfig
from .cycles import EntryTiming, TimedRow, replay
from .golden import Check, Entry, ScoreRow, combine, confident_softmax, entries

NEVER, ALWAYS = 0, 4095
"""Thresholds below and, but for a probability of 4,095, above every maximum."""


@singledispatch
def _cases(config: ConfidenceConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    corners = corner_rows(config)
    rows = random_rows(n_random, rng, config)
    # Maxima just below, at and above the threshold; what a recomputed row reports must not matter.
    near = [max(0, min(4095, row.check.threshold + i % 3 - 1)) for i, row in enumerate(corners)]
    uniform = rng.integers(0, 4096, n_random).tolist()
    return [case("corners", corners, near, config), case("random", rows, uniform, config)]


def cases(config: ConfidenceConfig, *, seed: int, n_random: int) -> list[Case]:
    """Corners, then ``n_random`` random rows of any length; the last row always flushes."""
    return _cases(config, np.random.default_rng(seed), n_random)


@_cases.register
def _joined(config: ConfidentSoftmaxConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    return [
        joined_case("corners", corner_rows(config), config),
        joined_case("random", random_rows(n_random, rng, config), config),
    ]


def corner_rows(config: ConfidenceConfig) -> list[ScoreRow]:
    """Lengths around a beat and a full row, as static, kept and recomputed rows; extreme scores; flushes."""
    n_max, lanes = config.n_max, config.lanes
    rows = []
    highest = (1 << (config.stored_bits - 1)) - 1
    scale = row_scale(16 / highest)
    lengths = sorted({1, lanes, min(lanes + 1, n_max), n_max})
    for n in (*lengths, *lengths[::-1]):
        for progressive, threshold in ((False, ALWAYS), (True, NEVER), (True, ALWAYS), (True, 1000)):
            msb = np.where(np.arange(n) % 2, highest, -highest - 1)
            lsb = np.arange(n) % 3 * (1 << LSB_BITS) - (1 << LSB_BITS)
            lsb = np.where(msb > 0, np.minimum(lsb, 15), np.maximum(lsb, 0))
            rows.append((msb, lsb, Check(threshold=threshold, progressive=progressive)))
    # Runs of short recomputed rows fill every slot; a flush in the middle of them empties all.
    for i in range(6 * config.window):
        flush = i in (0, 3 * config.window, 3 * config.window + 1)
        rows.append(
            (np.arange(3 % n_max + 1), -np.arange(3 % n_max + 1),
             Check(threshold=ALWAYS, progressive=i % 5 != 4, flush=flush))
        )  # fmt: skip
    return _finish([_row(*parts, scale, scale, tag) for tag, parts in enumerate(rows)])


def random_rows(n_rows: int, rng: np.random.Generator, config: ConfidenceConfig) -> list[ScoreRow]:
    """Rows of any length; one in four static, one in eight flushes; about half of the others recomputed."""
    rows = []
    for _ in range(n_rows):
        n = min(config.n_max, int(np.exp2(rng.uniform(0, config.n_max.bit_length() - 0.5))))
        magnitude = 2.0 ** rng.uniform(0, config.stored_bits - 8)
        exact = rng.normal(0, magnitude, n)
        msb = np.rint(exact).astype(np.int64)
        lsb = np.rint((exact - msb) * 16 + rng.normal(0, magnitude, n)).astype(np.int64)
        step = 2.0 ** rng.uniform(-3, 4) / magnitude
        check = Check(
            threshold=int(rng.integers(0, 4096)),
            progressive=bool(rng.random() < 0.75),
            flush=bool(rng.random() < 0.125),
        )
        tag = int(rng.integers(0, 1 << config.tag_bits))
        rows.append(_row(msb, lsb, check, row_scale(step), row_scale(step / 16), tag))
    return _finish(rows)


def _row(
    msb: np.ndarray,
    lsb: np.ndarray,
    check: Check,
    msb_scale: tuple[int, int],
    lsb_scale: tuple[int, int],
    tag: int,
) -> ScoreRow:
    return ScoreRow(
        msb=torch.from_numpy(msb.astype(np.int64)),
        lsb=torch.from_numpy(lsb.astype(np.int64)),
        msb_scale=msb_scale,
        lsb_scale=lsb_scale,
        check=check,
        tag=tag,
    )


def _finish(rows: list[ScoreRow]) -> list[ScoreRow]:
    """The same rows, the last one flushing, so that every row is settled at the end."""
    last = rows[-1]
    check = Check(threshold=last.check.threshold, progressive=last.check.progressive, flush=True)
    return [
        *rows[:-1],
        _row(last.msb.numpy(), last.lsb.numpy(), check, last.msb_scale, last.lsb_scale, last.tag),
    ]


def case(
    name: str, rows: Sequence[ScoreRow], max_probabilities: Sequence[int], config: ConfidenceConfig
) -> Case:
    """The check alone: the softmax's answers are part of the stimulus."""
    order = entries([row.check for row in rows], max_probabilities, config)
    timing = replay(_timed(rows, order), config)
    answers = [0 if e.used_lsb else max_probabilities[e.row] for e in order]
    sent = [
        combine(rows[e.row].msb, rows[e.row].lsb, config) if e.used_lsb else rows[e.row].msb for e in order
    ]
    scales = [rows[e.row].lsb_scale if e.used_lsb else rows[e.row].msb_scale for e in order]
    return Case(
        name=name,
        inputs={
            **_row_inputs(rows, order, config),
            "i_probability": pack_fields([(np.array(answers), PROBABILITY_BITS)]),
        },
        expected={
            **_reports(rows, order, config),
            "o_softmax_row": scale_beats(scales),
            "o_score": dense_beats([s.numpy() for s in sent], config.score_bits, config.lanes),
            "o_decision": pack_fields([(np.array([e.dropped for e in order]), 1)]),
        },
        expected_cycles={
            **_report_cycles(order, timing),
            "o_softmax_row": np.array([t.begin_cycle + 1 for t in timing]),
            "o_score": np.array([cycle for t in timing for cycle in t.score_cycles]),
            "o_decision": np.array([t.decision_cycle + 1 for t in timing]),
        },
        max_cycles=timing[-1].score_cycles[-1] + 200,
    )


def joined_case(name: str, rows: Sequence[ScoreRow], config: ConfidenceConfig) -> Case:
    """Check and softmax together: golden models composed."""
    done = confident_softmax(rows, config)
    order = [entry for entry, _, _ in done]
    timing = replay(_timed(rows, order), config, with_softmax=True)
    kept = [probability.numpy() for entry, probability, _ in done if not entry.dropped]
    outputs = np.array([cycle for t in timing for cycle in t.output_cycles])
    return Case(
        name=name,
        inputs=_row_inputs(rows, order, config),
        expected={
            **_reports(rows, order, config),
            "o": dense_beats(kept, PROBABILITY_BITS, config.lanes),
        },
        expected_cycles={**_report_cycles(order, timing), "o": outputs},
        max_cycles=int(outputs[-1]) + 200,
    )


def _timed(rows: Sequence[ScoreRow], order: Sequence[Entry]) -> list[TimedRow]:
    dropped = {e.row for e in order if e.dropped}
    return [
        TimedRow(
            n_keys=row.msb.numel(),
            progressive=row.check.progressive,
            dropped=number in dropped,
            flush=row.check.flush,
        )
        for number, row in enumerate(rows)
    ]


def _row_inputs(
    rows: Sequence[ScoreRow], order: Sequence[Entry], config: ConfidenceConfig
) -> dict[str, Beats]:
    def column(values) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    again = [rows[e.row].lsb.numpy() for e in order if e.used_lsb]
    return {
        "i_row": pack_fields(
            [
                (column([r.tag for r in rows]), config.tag_bits),
                (column([r.check.threshold for r in rows]), PROBABILITY_BITS),
                (column([r.check.progressive for r in rows]), 1),
                (column([r.check.flush for r in rows]), 1),
                (column([r.msb_scale[0] for r in rows]), MULTIPLIER_BITS),
                (column([r.msb_scale[1] for r in rows]), SHIFT_BITS),
                (column([r.lsb_scale[0] for r in rows]), MULTIPLIER_BITS),
                (column([r.lsb_scale[1] for r in rows]), SHIFT_BITS),
            ]
        ),
        "i_msb": dense_beats([r.msb.numpy() for r in rows], config.score_bits, config.lanes),
        "i_lsb": dense_beats(again, config.score_bits, config.lanes),
    }


def _reports(rows: Sequence[ScoreRow], order: Sequence[Entry], config: ConfidenceConfig) -> dict[str, Beats]:
    """Golden beats of ``o_begin``, ``o_row`` and ``o_request``."""
    done = [e for e in order if not e.dropped]
    tags = np.array([rows[e.row].tag for e in done], dtype=np.int64)
    used_lsb = np.array([e.used_lsb for e in done], dtype=np.int64)
    requests = np.array([rows[e.row].tag for e in order if e.dropped], dtype=np.int64)
    begun = np.array([rows[e.row].tag for e in order], dtype=np.int64)
    return {
        "o_begin": pack_fields([(begun, config.tag_bits), (np.array([e.used_lsb for e in order]), 1)]),
        "o_row": pack_fields(
            [
                (tags, config.tag_bits),
                (used_lsb, 1),
                (1 + np.arange(len(done)), COUNTER_BITS),
                (np.cumsum(used_lsb), COUNTER_BITS),
            ]
        ),
        "o_request": pack_fields([(requests, config.tag_bits)]),
    }


def _report_cycles(order: Sequence[Entry], timing: Sequence[EntryTiming]) -> dict[str, np.ndarray]:
    decided = np.array([t.decision_cycle + 1 for t in timing])
    dropped = np.array([e.dropped for e in order])
    return {
        "o_begin": np.array([t.begin_cycle + 1 for t in timing]),
        "o_row": decided[~dropped],
        "o_request": decided[dropped],
    }
