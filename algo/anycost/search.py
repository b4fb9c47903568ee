# SPDX-License-Identifier: MIT
"""Evolutionary search of a sub-generator under any cost. Needs no torch.

Anycost GAN describes such a search and publishes its results, not the search. This one has the defaults of
Once for All (Cai et al., ICLR 2020) from the same laboratory, with a smaller population.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from algo.anycost.architecture import GeneratorConfig, SubGenerator

Cost = Callable[[SubGenerator], float]
"""What must stay within the budget: multiply-accumulates, latency, energy ..."""
Fitness = Callable[[SubGenerator], float]
"""What is made as small as possible, such as the distance to the full generator's images."""
OnGeneration = Callable[[int, int, float], None]
"""``on_generation(generation, n_generations, best fitness)``."""
MAX_TRIES = 10_000
"""Candidates over budget before giving up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How long and how boldly to search."""

    population: int = 50
    generations: int = 20
    parent_share: float = 0.25
    """The best of each generation, which live on and breed."""
    mutation_share: float = 0.5
    """Of the children; the others are crossings of two parents."""
    mutate_width: float = 0.1
    """Probability for each layer of a mutant."""
    mutate_resolution: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("parent_share", "mutation_share", "mutate_width", "mutate_resolution"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Found:
    """The best sub-generator of a search."""

    sub: SubGenerator
    cost: float
    fitness: float
    history: tuple[float, ...]
    """Best fitness after the first population and after each generation; never rises."""
    n_evaluated: int
    """Different sub-generators whose fitness was computed."""


def evolve(
    shape: GeneratorConfig,
    cost: Cost,
    budget: float,
    fitness: Fitness,
    config: SearchConfig = SearchConfig(),
    *,
    resolutions: Sequence[int] = (),
    start: Sequence[SubGenerator] = (),
    on_generation: OnGeneration = lambda generation, n, best: None,
) -> Found:
    """The fittest sub-generator that costs at most ``budget``.

    Each layer has the widths of :meth:`~algo.anycost.architecture.GeneratorConfig.choices`; ``resolutions``
    (by default the full one) may end it. ``start`` joins the first population, where affordable. Each
    sub-generator is evaluated once; ties go to the one met first. ValueError where nothing affordable is
    found.
    """
    rng = random.Random(config.seed)
    ends = tuple(resolutions) or (shape.resolution,)
    known: dict[SubGenerator, float] = {}

    def evaluated(candidate: SubGenerator) -> float:
        if candidate not in known:
            known[candidate] = fitness(candidate)
        return known[candidate]

    def affordable(draw: Callable[[], SubGenerator]) -> SubGenerator:
        for _ in range(MAX_TRIES):
            if cost(candidate := draw()) <= budget:
                return candidate
        raise ValueError(f"budget {budget:g} was exceeded by {MAX_TRIES} candidates in a row")

    cheapest = SubGenerator(min(ends), tuple(shape.choices(i)[0] for i in range(shape.n_styles)))
    if cost(cheapest) > budget:
        raise ValueError(f"budget must be at least {cost(cheapest):g}, the cheapest cost, not {budget:g}")
    population = [shape.checked(sub) for sub in start if cost(sub) <= budget]
    while len(population) < config.population:
        population.append(affordable(partial(_random, shape, ends, rng)))
    population = sorted(dict.fromkeys(population), key=evaluated)
    history = [evaluated(population[0])]
    n_parents = max(1, round(config.parent_share * config.population))
    n_mutants = round(config.mutation_share * (config.population - n_parents))
    for generation in range(1, config.generations + 1):
        parents = population[:n_parents]
        mutant = partial(_mutant, parents, shape, ends, config, rng)
        children = [affordable(mutant) for _ in range(n_mutants)]
        crossing = partial(_crossing, parents, rng)
        n_crossings = config.population - len(parents) - n_mutants
        children += [affordable(crossing) for _ in range(n_crossings)]
        population = sorted(dict.fromkeys([*parents, *children]), key=evaluated)
        history.append(evaluated(population[0]))
        on_generation(generation, config.generations, history[-1])
    best = population[0]
    return Found(best, cost(best), history[-1], tuple(history), len(known))


def _random(shape: GeneratorConfig, ends: Sequence[int], rng: random.Random) -> SubGenerator:
    """Each layer narrowest with one probability drawn for all, else random: small budgets are met too."""
    narrow = rng.random()
    widths = tuple(
        choices[0] if rng.random() < narrow else rng.choice(choices)
        for choices in map(shape.choices, range(shape.n_styles))
    )
    return SubGenerator(rng.choice(ends), widths)


def _mutant(
    parents: Sequence[SubGenerator],
    shape: GeneratorConfig,
    ends: Sequence[int],
    config: SearchConfig,
    rng: random.Random,
) -> SubGenerator:
    parent = rng.choice(parents)
    widths = tuple(
        rng.choice(shape.choices(i)) if rng.random() < config.mutate_width else width
        for i, width in enumerate(parent.widths)
    )
    moves = rng.random() < config.mutate_resolution
    return SubGenerator(rng.choice(ends) if moves else parent.resolution, widths)


def _crossing(parents: Sequence[SubGenerator], rng: random.Random) -> SubGenerator:
    """Every layer, and the resolution, from either of two parents."""
    a, b = rng.choice(parents), rng.choice(parents)
    widths = tuple(rng.choice(pair) for pair in zip(a.widths, b.widths, strict=True))
    return SubGenerator(rng.choice((a.resolution, b.resolution)), widths)
