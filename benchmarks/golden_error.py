# SPDX-License-Identifier: MIT
"""Error of the attention core against float, measured on MiniLM: ``python -m benchmarks.golden_error``.

Two questions. How far is each output row of the core from float attention of the same integers with the same
decisions, and how far may it be (the bound of docs/attention_core.md)? And what does that cost the text's
embedding? Draws ``docs/results/attention/golden_error.png``, saves the figures beside it as CSV and prints
them as a Markdown table. Simulated, with the golden model; about a minute.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from torch import Tensor

from algo.attention.encoder import Encoder, load_encoder
from algo.attention.replay import replay
from algo.attention.settings import CascadeSettings
from algo.files import write_atomically
from benchmarks.chip_run import ChipLayer, ChipRun, run_on_chip
from benchmarks.plots import BLUE, VERMILION, style
from benchmarks.quality.progress import progress_bar
from benchmarks.quality.text import load_text
from hw.attention.config import AttentionConfig, attention_config
from hw.confidence.config import LSB_BITS
from hw.config import preset
from hw.pv.config import PROBABILITY_BITS
from sim.driver.layers import output_shift

SEED = 11
LENGTHS = (16, 32, 64, 128, 256)
"""Tokens of a passage."""
PASSAGES_EACH = 3
POINTS = 5000
"""Rows drawn of each setting, at random."""
OUTPUT = Path("docs/results/attention")

PROBABILITY_ERROR_UNITS = 0.5 + 11.5 / 64
"""Largest error of one probability, unit 2^-12: its last rounding, 11.5 2^-18 before it (docs/softmax.md)."""
SATURATION_ERROR_UNITS = 1.0
"""The same where the probability saturates at 4,095: then 1.0 itself is 4,095."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way of quantising, pruned or not."""

    name: str
    colour: str
    cascade: CascadeSettings

    @property
    def pruned(self) -> bool:
        return self.cascade.token_keep < 1


def _both(name: str, colour: str, cascade: CascadeSettings) -> tuple[Setting, Setting]:
    pruned = replace(cascade, token_keep=0.7, head_keep=0.9, value_keep=0.5)
    return Setting(name, colour, cascade), Setting(f"{name}, pruned", colour, pruned)


SETTINGS = (
    *_both("8 bits", BLUE, CascadeSettings(k_bits=8, v_bits=8)),
    *_both("6+4 bits", VERMILION, CascadeSettings(k_bits=6, v_bits=6, lsb_bits=LSB_BITS)),
)


# ---- one row -------------------------------------------------------------------------------------------


def output_bound(n_kept: NDArray[Any], max_value: NDArray[np.int64], out_shift: int) -> NDArray[np.float64]:
    """Largest error of any output of a row, units of o; any shape.

    1/2 + 2^-out_shift max|V| (0.68 n_kept + 0.32): derived in docs/attention_core.md. It holds against float
    outputs within the range of o; those of V with b bits are, if out_shift is at least b.

    Parameters
    ----------
    n_kept : values that the row fetches
    max_value : largest |V| among them
    out_shift : 8..15
    """
    saturated = SATURATION_ERROR_UNITS - PROBABILITY_ERROR_UNITS
    return 0.5 + max_value * (PROBABILITY_ERROR_UNITS * n_kept + saturated) / 2.0**out_shift


def float_outputs(layer: ChipLayer) -> Tensor:
    """Float attention of the layer's integers with the chip's decisions: float64[h, n, D], unit of o.

    The planes that each row used, all its keys in the softmax, the kept ones in the sum.
    """
    outputs = []
    for place, number in enumerate(layer.result.heads.tolist()):
        head, tokens = layer.input.heads[number], layer.result.tokens
        q, k, v = (x[tokens].double() for x in (head.q, head.k, head.v))
        scores = q @ k.mT
        if layer.input.progressive:
            msb = torch.floor(k / 2**LSB_BITS) * 2**LSB_BITS
            scores = torch.where(layer.result.used_lsb[place][:, None], scores, q @ msb.mT)
        probability = (scores * layer.score_steps[number]).softmax(-1) * layer.result.kept_values[place]
        outputs.append(probability @ v)
    return torch.stack(outputs) * 2.0 ** (PROBABILITY_BITS - layer.input.out_shift)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowErrors:
    """Rows of one layer or of many, one entry each."""

    n_kept: NDArray[np.int64]
    max_value: NDArray[np.int64]
    error: NDArray[np.float64]
    """Of the row's worst output, units of o."""
    bound: NDArray[np.float64]
    """Units of o."""

    @property
    def share(self) -> NDArray[np.float64]:
        """Error as a share of its bound."""
        return self.error / self.bound


def row_errors(layer: ChipLayer) -> RowErrors:
    """Every row of a layer against float, and its bound; entries [h n]."""
    kept, given = layer.result.kept_values, layer.input
    v = torch.stack([given.heads[number].v[layer.result.tokens] for number in layer.result.heads.tolist()])
    largest = v.abs().amax(-1)[:, None, :] * kept  # [h, n, n]
    n_kept, max_value = kept.sum(-1).flatten().numpy(), largest.amax(-1).flatten().numpy()
    return RowErrors(
        n_kept=n_kept,
        max_value=max_value,
        error=(layer.result.outputs - float_outputs(layer)).abs().amax(-1).flatten().numpy(),
        bound=output_bound(n_kept, max_value, given.out_shift),
    )


def joined(parts: Sequence[RowErrors]) -> RowErrors:
    """All rows in one."""
    names = ("n_kept", "max_value", "error", "bound")
    return RowErrors(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


# ---- a text --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """What one setting gave for one passage: 1 - cosine between embeddings."""

    n_tokens: int
    chip_to_same_decisions: float
    """Chip against the float model that follows the chip's decisions: arithmetic alone."""
    chip_to_float: float
    """Against the float model at the same settings, which decides for itself; it has a V step a head."""
    float_to_dense: float
    """What pruning and quantisation change, in float."""
    chip_to_dense: float
    same_tokens: float
    """Share of the last layer's tokens that chip and float model both kept."""


def measure_passage(encoder: Encoder, ids: Tensor, setting: Setting, run: ChipRun) -> Passage:
    """Compare one run with the float models."""
    dense, pruned = encoder.run(ids), encoder.run(ids, setting.cascade)
    tokens = run.layers[-1].result.tokens
    replayed = replay(encoder.model, run.record)[tokens].mean(0)
    both = torch.isin(tokens, pruned.kept_tokens[-1])
    return Passage(
        n_tokens=len(ids),
        chip_to_same_decisions=_distance(run.embedding, replayed),
        chip_to_float=_distance(run.embedding, pruned.embedding),
        float_to_dense=_distance(pruned.embedding, dense.embedding),
        chip_to_dense=_distance(run.embedding, dense.embedding),
        same_tokens=float(both.float().mean()),
    )


def _distance(a: Tensor, b: Tensor) -> float:
    """1 - cosine, in float64 so that small ones do not vanish."""
    return 1 - float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def passages(encoder: Encoder) -> Iterator[Tensor]:
    """Token ids of passages of Python's language reference, first and last mark included."""
    assert encoder.tokenizer is not None
    marked = encoder.token_ids("a")
    ids = encoder.tokenizer(load_text().content, add_special_tokens=False, verbose=False)["input_ids"]
    rng = np.random.default_rng(SEED)
    for length in LENGTHS:
        for start in rng.integers(0, len(ids) - length, PASSAGES_EACH):
            inner = torch.tensor(ids[start : start + length - 2])
            yield torch.cat([marked[:1], inner, marked[-1:]])


def measure(
    encoder: Encoder, setting: Setting, core: AttentionConfig, texts: Sequence[Tensor]
) -> tuple[RowErrors, list[Passage]]:
    """All passages at one setting."""
    rows, found = [], []
    for ids in texts:
        run = run_on_chip(encoder, ids, setting.cascade, core)
        rows += [row_errors(layer) for layer in run.layers]
        found.append(measure_passage(encoder, ids, setting, run))
    return joined(rows), found


# ---- table and plot ------------------------------------------------------------------------------------

COMPARISONS = {
    "chip_to_same_decisions": "chip against float\nwith the same decisions",
    "chip_to_float": "chip against float\nthat decides for itself",
    "float_to_dense": "float, same settings,\nagainst dense float",
    "chip_to_dense": "chip\nagainst dense float",
}
COLUMNS = (
    "setting",
    "rows",
    "worst_error_units",
    "its_bound_units",
    "median_error_units",
    "worst_share_of_bound",
    "median_share_of_bound",
    "cosine_chip_to_same_decisions",
    "cosine_chip_to_float",
    "cosine_float_to_dense",
    "cosine_chip_to_dense",
    "same_tokens",
)


def table_row(setting: Setting, rows: RowErrors, found: Sequence[Passage]) -> dict[str, str]:
    """One line of the table; cosines and shares of tokens are means over passages."""
    worst = int(rows.error.argmax())

    def cosine(name: str) -> str:
        return f"{1 - np.mean([getattr(one, name) for one in found]):.5f}"

    values = (
        setting.name,
        f"{len(rows.error)}",
        f"{rows.error[worst]:.2f}",
        f"{rows.bound[worst]:.2f}",
        f"{np.median(rows.error):.2f}",
        f"{rows.share.max():.3f}",
        f"{np.median(rows.share):.3f}",
        *map(cosine, COMPARISONS),
        f"{np.mean([one.same_tokens for one in found]):.3f}",
    )
    return dict(zip(COLUMNS, values, strict=True))


def as_csv(rows: Sequence[dict[str, str]]) -> bytes:
    """Header and lines."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


Results = Sequence[tuple[Setting, RowErrors, Sequence[Passage]]]


def plot_rows(results: Results, ax: Axes) -> Axes:
    """Each row's largest error over the values that it keeps, log-log, with its bound."""
    rng = np.random.default_rng(SEED)
    for setting, rows, _ in results:
        chosen = rng.permutation(len(rows.error))[:POINTS]
        x = rows.n_kept[chosen] * rng.uniform(0.95, 1.05, len(chosen))
        ax.scatter(x, rows.error[chosen], s=4, color=setting.colour, alpha=0.2, linewidths=0, rasterized=True)
    for setting, _, _ in results:
        if not setting.pruned:
            plot_bound(setting, ax)
    ax.axhline(0.5, color="#57606A", lw=1, ls=":")
    ax.text(3.1, 0.4, "last rounding alone, 1/2", va="top", color="#57606A", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(
        xlim=(3, 330),
        ylim=(0.1, 150),
        xlabel="values that the row keeps",
        ylabel="largest error of the row's outputs, units (±2,047)",
        title="Output rows, core against float on the same integers",
    )
    ax.grid()
    return ax


def plot_bound(setting: Setting, ax: Axes) -> None:
    """The bound of rows whose largest value is V's largest, with its name along the line."""
    bits = setting.cascade.v_bits or 0
    largest = 2 ** (bits - 1) - 1
    n_kept = np.geomspace(3, 330)
    bound = output_bound(n_kept, np.full(len(n_kept), largest), output_shift(bits))
    ax.plot(n_kept, bound, color=setting.colour, lw=1.8)
    at = 30
    slope = (bound[at + 1] - bound[at]) / (n_kept[at + 1] - n_kept[at])
    ax.text(
        n_kept[at],
        1.1 * bound[at],
        f"bound, {setting.name}, |V| = {largest}",
        ha="center",
        va="bottom",
        rotation=np.degrees(np.arctan(slope)),
        rotation_mode="anchor",
        transform_rotates_text=True,
        color=setting.colour,
        fontsize=9,
    )


def plot_embeddings(results: Results, ax: Axes) -> Axes:
    """1 - cosine of every passage, log scale: one band a comparison, one line a setting."""
    for place, (setting, _, found) in enumerate(results):
        for band, name in enumerate(COMPARISONS):
            x = [getattr(one, name) for one in found]
            y = np.full(len(x), band + (place - (len(results) - 1) / 2) * 0.17)
            face = "white" if setting.pruned else setting.colour
            ax.scatter(x, y, s=24, facecolor=face, edgecolor=setting.colour, linewidths=1, alpha=0.85)
        ax.scatter([], [], s=28, facecolor=face, edgecolor=setting.colour, label=setting.name)
    ax.set_xscale("log")
    ax.set_yticks(range(len(COMPARISONS)), list(COMPARISONS.values()))
    ax.set_ylim(len(COMPARISONS) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="1 - cosine similarity (log)", title="Embeddings of the passages, MiniLM")
    ax.grid(axis="x")
    for edge in range(1, len(COMPARISONS)):
        ax.axhline(edge - 0.5, color="#D8DEE4", lw=0.7)
    return ax


def golden_figure(results: Results) -> Figure:
    """Rows against their bound; embeddings against the float models."""
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    plot_rows(results, left)
    plot_embeddings(results, right)
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def main() -> None:
    """Measure, save, draw, print."""
    torch.set_num_threads(1)
    encoder, core = load_encoder("minilm"), attention_config(preset("paper"))
    texts = list(passages(encoder))
    results: list[tuple[Setting, RowErrors, Sequence[Passage]]] = []
    with progress_bar() as progress:
        for done, setting in enumerate(SETTINGS):
            progress(setting.name, done, len(SETTINGS))
            results.append((setting, *measure(encoder, setting, core, texts)))
    table = [table_row(*result) for result in results]
    write_atomically(OUTPUT / "golden_error.csv", as_csv(table))
    picture = io.BytesIO()
    with style():
        golden_figure(results).savefig(picture, format="png", dpi=200, metadata={"Software": None})
    write_atomically(OUTPUT / "golden_error.png", picture.getvalue())
    for name in COLUMNS:
        print(f"| {name} | {' | '.join(row[name] for row in table)} |")
        if name == COLUMNS[0]:
            print("|---" * (1 + len(table)) + "|")


if __name__ == "__main__":
    main()
