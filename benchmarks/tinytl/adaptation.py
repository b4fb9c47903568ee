# SPDX-License-Identifier: MIT
"""``quartet adapt``: the blocks and lite modules that suit a data set, within memory budgets.

What the search finds is trained anew, like the whole network and random choices of the same memory.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from algo.evolution import Evolution
from algo.gan.data import ImageSet
from algo.gan.loop import LoopConfig, run
from algo.tinytl.adapt import SuperTransfer, adapted, memory_cost
from algo.tinytl.architecture import METHODS
from algo.tinytl.choice import Choice, ChoiceSpace, Part, whole, within
from algo.tinytl.data import load_labelled
from algo.tinytl.network import Network
from algo.tinytl.transfer import TransferConfig
from algo.tinytl.weights import pretrained
from benchmarks.gan.report import table
from benchmarks.output import as_json_bytes, as_png, print_markdown, write_files
from benchmarks.plots import BLUE, GREY, VERMILION, style
from benchmarks.quality.progress import Progress
from benchmarks.quality.report import as_csv
from benchmarks.quality.store import cached, fingerprint, load_results
from benchmarks.tinytl.training import prepare_transfer

COMMAND = "quartet adapt"
METHOD = METHODS["lite+bias"]
NEAR = 0.95
"""Least memory of a random choice, as a share of the budget."""
N_TRIES = 200_000
LOOKS = {"whole": (GREY, "s"), "found": (BLUE, "o"), "random": (VERMILION, "x")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The experiment; one seed."""

    data: str = "fashion"
    resolution: int = 64
    n_validation: int = 300
    """Of the training part: what the search judges by."""
    batch_size: int = 16
    learning_rate: float = 2e-3
    min_crop: float = 1.0
    n_super_steps: int = 1500
    n_steps: int = 1500
    shares: tuple[float, ...] = (0.5, 0.75)
    """Budgets, of the whole network's memory of a step."""
    n_random: int = 2
    """Random choices to compare with, for each budget."""
    evolution: Evolution = field(default_factory=lambda: Evolution(population=20, generations=8))
    n_test: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"budget must be above 0 and at most 1, not {share:g}")

    @property
    def config(self) -> TransferConfig:
        """Of every training."""
        return TransferConfig(
            batch_size=self.batch_size, learning_rate=self.learning_rate, min_crop=self.min_crop,
            device=self.device,
        )  # fmt: skip


def run_adaptation(folder: Path, setup: Setup, threads: int, progress: Progress) -> None:
    """Compute what is not there yet; interrupted trainings go on."""
    torch.set_num_threads(threads)
    inputs = {key: value for key, value in asdict(setup).items() if key not in ("device", "n_test", "shares")}
    mark = fingerprint(inputs)
    labelled = load_labelled(setup.data, setup.resolution)
    validation, rest = parted(labelled.training, setup.n_validation)
    network = pretrained(n_classes=len(labelled.classes), lite=True)
    cost = memory_cost(network, METHOD, setup.resolution, setup.batch_size)
    everything, space = whole(network.backbone), ChoiceSpace(network.backbone)
    if min(setup.shares) < (least := cost(space.cheapest) / cost(everything)):
        raise ValueError(f"budget must be at least {least:.3f}, the smallest part, not {min(setup.shares):g}")
    _train(folder, setup, "whole", everything, progress)
    for share in setup.shares:
        budget = share * cost(everything)

        def search(budget: float = budget) -> dict[str, Any]:
            _shared(folder / "runs" / f"shared-{mark}", setup, network, rest, progress)
            found = adapted(
                network, validation, cost, budget, setup.evolution,
                lambda generation, n, best: progress(f"search: loss {best:.3f}", generation, n),
            )  # fmt: skip
            return {**asdict(found), "candidate": found.candidate}

        found = cached(folder, f"search-{share:g}", inputs | {"share": share}, search)
        _train(folder, setup, f"found-{share:g}", _choice(found["candidate"]), progress)
        rng = Random(0)
        for number in range(setup.n_random):
            choice = within(space, cost, NEAR * budget, budget, rng, N_TRIES)
            _train(folder, setup, f"random-{share:g}-{number}", choice, progress)


def parted(pictures: ImageSet, n: int) -> tuple[ImageSet, ImageSet]:
    """``n`` of the pictures, always the same ones, and the others."""
    if not 1 <= n < len(pictures.images):
        raise ValueError(f"n_validation must be in 1..{len(pictures.images) - 1} pictures, not {n}")
    assert pictures.labels is not None
    order = torch.randperm(len(pictures.images), generator=torch.Generator().manual_seed(0))
    first, others = (
        ImageSet(pictures.images[kept], pictures.labels[kept], f"{pictures.source}, {len(kept)} of them")
        for kept in (order[:n], order[n:])
    )
    return first, others


def _choice(numbers: list[int]) -> Choice:
    return tuple(Part(number) for number in numbers)


def _shared(folder: Path, setup: Setup, network: Network, pictures: ImageSet, progress: Progress) -> None:
    training = SuperTransfer(network, pictures, METHOD, setup.config, setup.n_super_steps)
    loop = LoopConfig(n_steps=setup.n_super_steps, checkpoint_steps=200)
    run(training, loop, folder, lambda step, n, losses: progress(f"shared: {losses['loss']:.3f}", step, n))


def _train(folder: Path, setup: Setup, name: str, choice: Choice, progress: Progress) -> None:
    """The chosen parts by themselves, from the packaged weights."""
    unused = ("device", "n_validation", "n_super_steps", "shares", "n_random", "evolution")
    inputs = {key: value for key, value in asdict(setup).items() if key not in unused}
    inputs |= {"name": name, "choice": [int(part) for part in choice]}

    def compute() -> dict[str, Any]:
        loop = LoopConfig(n_steps=setup.n_steps, checkpoint_steps=200)
        task = prepare_transfer(
            setup.data, setup.resolution, METHOD.name, setup.config, loop,
            folder / "runs" / f"{name}-{fingerprint(inputs)}", n_test=setup.n_test, choice=choice,
        )  # fmt: skip
        result = task(lambda what, done, total: progress(f"{name}: {what}", done, total))
        return {key: value for key, value in result.items() if key != "weights"}

    cached(folder, name, inputs, compute)


# ---- tables and plot ---------------------------------------------------------------------------------------


def rows_of(files: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each training, largest first; accuracies in percent, memory (full count) in MB."""
    rows = []
    for name, file in files.items():
        if "choice" not in file["inputs"]:
            continue
        choice, result = file["inputs"]["choice"], file["result"]
        rows.append(
            {
                "name": name,
                "kind": name.split("-")[0],
                "choice": "".join(str(part) for part in choice),
                "n_blocks": sum(part != Part.ABSENT for part in choice),
                "n_lite": sum(part == Part.LITE for part in choice),
                "memory_mb": result["memory_full_count_mb"],
                "accuracy": 100 * result["accuracy"],
            }
        )
    return sorted(rows, key=lambda row: -row["memory_mb"])


def summarise(folder: Path) -> dict[str, Any]:
    """Everything saved; FileNotFoundError where nothing is."""
    files = load_results(folder.parent, (folder.name,), COMMAND)[folder.name]
    searches = [
        {"share": file["inputs"]["share"], **file["result"]}
        for name, file in files.items()
        if name.startswith("search-")
    ]
    return {"rows": rows_of(files), "searches": searches}


def markdown(summary: dict[str, Any]) -> str:
    """A row for each training."""
    lines = [
        [
            row["name"], f"`{row['choice']}`", f"{row['n_blocks']}", f"{row['n_lite']}",
            f"{row['memory_mb']:.1f}", f"{row['accuracy']:.2f}",
        ]
        for row in summary["rows"]
    ]  # fmt: skip
    heads = ["trained", "blocks: 0 absent, 1 main, 2 with lite", "blocks", "lite modules", "MB, full count",
             "accuracy, %"]  # fmt: skip
    return table(heads, lines)


def plot_rows(summary: dict[str, Any], ax: Axes) -> Axes:
    """Accuracy against memory."""
    for kind, (colour, marker) in LOOKS.items():
        rows = [row for row in summary["rows"] if row["kind"] == kind]
        x, y = [row["memory_mb"] for row in rows], [row["accuracy"] for row in rows]
        ax.plot(x, y, marker, color=colour, ms=8, mew=2, label=kind)
    ax.set_xlabel("MB of a training step (full count)")
    ax.set_ylabel("test accuracy, %")
    ax.set_title("Blocks and lite modules chosen for a data set")
    ax.legend(frameon=False)
    ax.grid()
    return ax


def write(folder: Path, out: Path) -> list[Path]:
    """``adaptation.md``, ``.csv``, ``.json`` and ``.png``; returns the paths."""
    summary = summarise(folder)
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        plot_rows(summary, figure.subplots())
        picture = as_png(figure)
    files = {
        "adaptation.json": as_json_bytes(summary),
        "adaptation.md": markdown(summary).encode(),
        "adaptation.csv": as_csv(summary["rows"]).encode(),
        "adaptation.png": picture,
    }
    return write_files(out, files)


def print_summary(folder: Path, written: list[Path], *, as_json: bool) -> None:
    """The table on stdout, then the files written; or everything as JSON."""
    summary = summarise(folder)
    print_markdown(summary, markdown(summary), written, as_json=as_json)
