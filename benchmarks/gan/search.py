# SPDX-License-Identifier: MIT
"""``quartet search``: the cheapest sub-generators of a given quality, by products and by estimated cycles."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from algo.anycost.architecture import GeneratorConfig, SubGenerator, compute_macs
from algo.anycost.generator import Generator
from algo.anycost.projection import distance_to_full
from algo.anycost.search import Cost, Fitness, SearchConfig, evolve
from algo.files import write_atomically
from algo.gan.training import load_generator
from benchmarks.gan.training import run_folder, trained_elastic
from benchmarks.quality.progress import Progress
from hw.config import ChipConfig
from sim.anycost import latency_cost
from sim.convolution import core_of

RATIOS = (0.75, 0.5, 0.25)
"""Uniform sub-generators whose distance to the full images the others must keep."""
MOST_TRIED = 20_000
N_STEPS = 6
"""Searches of one bisection."""
STATUS = "cycles: estimated in closed form; distances: measured in float"


@dataclass(frozen=True, kw_only=True)
class SearchTask:
    """Everything the user gave, checked."""

    generator: Generator
    name: str
    note: str | None
    chip: ChipConfig
    config: SearchConfig | None
    """None: try everything."""
    n_z: int
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Searches, writes the numbers, returns them."""
        shape = self.generator.config
        fitness = cache(distance_to_full(self.generator, self.n_z))
        fresh = distance_to_full(self.generator, 4 * self.n_z, seed=1)
        costs = {
            "macs": lambda sub: float(compute_macs(shape, sub)),
            "cycles": latency_cost(shape, core_of(self.chip)),
        }
        rows = []
        for ratio in RATIOS:
            uniform = shape.uniform(ratio)
            subs = {"uniform": uniform}
            for by, cost in costs.items():
                show = _progress_of(progress, f"ratio {ratio:g}, by {by}")
                subs[f"by {by}"] = (
                    cheapest(shape, cost, uniform, fitness, self.config, show)
                    if self.config
                    else cheapest_of_all(shape, cost, uniform, fitness)
                )
            rows += [
                {
                    "ratio": ratio,
                    "found": found,
                    "widths": sub.widths,
                    **{by: round(cost(sub)) for by, cost in costs.items()},
                    "mse": fitness(sub),
                    "mse_on_fresh_z": fresh(sub),
                }
                for found, sub in subs.items()
            ]
        result = {
            "checkpoint": self.name,
            "note": self.note,
            "preset": self.chip.name,
            "search": asdict(self.config) if self.config else "all tried",
            "n_z": self.n_z,
            "status": STATUS,
            "rows": rows,
        }
        write_atomically(self.folder / "search.json", (json.dumps(result, indent=1) + "\n").encode())
        return result


def cheapest(
    shape: GeneratorConfig,
    cost: Cost,
    uniform: SubGenerator,
    fitness: Fitness,
    config: SearchConfig,
    progress: Callable[[int], None] = lambda step: None,
) -> SubGenerator:
    """The cheapest sub-generator found that is no further from the full images than ``uniform``.

    A bisection of the budget, a search for each: as far down as the fittest is fit enough. Each begins with
    the smallest, and with the best so far, one layer narrower.
    """
    best, wanted = uniform, fitness(uniform)
    smallest = SubGenerator(shape.resolution, tuple(shape.choices(i)[0] for i in range(shape.n_styles)))
    low, high = cost(smallest), cost(uniform)
    for step in range(N_STEPS):
        progress(step)
        if low >= high:
            break
        budget = (low + high) / 2
        found = evolve(shape, cost, budget, fitness, config, start=(smallest, *_narrower(shape, best)))
        if found.fitness <= wanted:
            best, high = found.sub, found.cost
        else:
            low = budget
    return best


def cheapest_of_all(
    shape: GeneratorConfig, cost: Cost, uniform: SubGenerator, fitness: Fitness
) -> SubGenerator:
    """The same with certainty: the first, in the order of costs, that is near enough."""
    every = itertools.product(*(shape.choices(i) for i in range(shape.n_styles)))
    subs = sorted((SubGenerator(shape.resolution, widths) for widths in every), key=cost)
    wanted = fitness(uniform)
    return next((sub for sub in subs if cost(sub) < cost(uniform) and fitness(sub) <= wanted), uniform)


def _narrower(shape: GeneratorConfig, sub: SubGenerator) -> Iterator[SubGenerator]:
    """One layer at a time with its next smaller width."""
    for i, width in enumerate(sub.widths):
        smaller = [choice for choice in shape.choices(i) if choice < width]
        if smaller:
            yield replace(sub, widths=(*sub.widths[:i], smaller[-1], *sub.widths[i + 1 :]))


def _progress_of(progress: Progress, what: str) -> Callable[[int], None]:
    return lambda step: progress(what, step, N_STEPS)


def prepare_search(
    checkpoint: Path,
    population: int,
    generations: int,
    n_z: int,
    seed: int,
    chip: ChipConfig,
    folder: Path,
    *,
    everything: bool = False,
) -> SearchTask:
    """ValueError or OSError, one line, where something does not fit."""
    config = SearchConfig(population=population, generations=generations, seed=seed)
    if n_z < 1:
        raise ValueError(f"images must be at least 1, not {n_z}")
    folder_of_run = run_folder(checkpoint)
    generator, elastic = load_generator(folder_of_run), trained_elastic(folder_of_run)
    trained = elastic is not None and elastic.channels != "full"
    note = None if trained else f"{checkpoint} was not trained to make images with fewer channels"
    n_subs = math.prod(len(generator.config.choices(i)) for i in range(generator.config.n_styles))
    if everything and n_subs > MOST_TRIED:
        raise ValueError(f"--everything tries at most {MOST_TRIED} sub-generators, not {n_subs}")
    latency_cost(generator.config, core_of(chip))(generator.full)  # rejects a core that is too small
    return SearchTask(
        generator=generator, name=str(checkpoint), note=note, chip=chip, n_z=n_z,
        config=None if everything else config,
        folder=folder,
    )  # fmt: skip


def print_search(result: dict[str, Any], *, as_json: bool) -> None:
    """What costs how much at the same distance."""
    if as_json:
        print(json.dumps(result, indent=1))
        return
    table = Table(
        box=box.SIMPLE_HEAD, title="Cheapest at the distance of the uniform ones", title_justify="left"
    )
    for head in ("ratio", "sub-generator", "MMACs", "cycles", "of uniform", "mse", "mse, fresh z", "widths"):
        table.add_column(head, justify="right")
    uniform_cycles = {row["ratio"]: row["cycles"] for row in result["rows"] if row["found"] == "uniform"}
    for row in result["rows"]:
        table.add_row(
            f"{row['ratio']:g}",
            row["found"],
            f"{row['macs'] / 1e6:.2f}",
            f"{row['cycles']:,}",
            f"{row['cycles'] / uniform_cycles[row['ratio']]:.3f}",
            f"{row['mse']:.4f}",
            f"{row['mse_on_fresh_z']:.4f}",
            " ".join(map(str, row["widths"])),
        )
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    console.print(f"{result['preset']}; {result['status']}")
    if result["note"]:
        console.print(f"note: {result['note']}")
