# SPDX-License-Identifier: MIT
"""Evolutionary search of whatever can be drawn, changed and crossed, under any cost. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
"""A candidate."""

MAX_TRIES = 10_000
"""Candidates over budget before giving up."""
OnGeneration = Callable[[int, int, float], None]
"""``on_generation(generation, n_generations, best fitness)``."""


class Space(Protocol[T]):
    """What is searched; candidates can be hashed."""

    @property
    def cheapest(self) -> T:
        """Costs no more than any other."""
        ...

    def drawn(self, rng: Random) -> T:
        """Any candidate, cheap ones often enough that small budgets are met."""
        ...

    def mutant(self, parent: T, rng: Random) -> T:
        """A change of one candidate."""
        ...

    def crossing(self, a: T, b: T, rng: Random) -> T:
        """Parts of two candidates."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Evolution:
    """How long and how boldly to search. The defaults are those of Once for All (Cai et al., ICLR 2020),
    with a smaller population."""

    population: int = 50
    generations: int = 20
    parent_share: float = 0.25
    """The best of each generation, which live on and breed."""
    mutation_share: float = 0.5
    """Of the children; the others are crossings of two parents."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("population", "generations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("parent_share", "mutation_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Fittest(Generic[T]):
    """The best candidate of a search."""

    candidate: T
    cost: float
    fitness: float
    history: tuple[float, ...]
    """Best fitness after the first population and after each generation; never rises."""
    n_evaluated: int
    """Different candidates whose fitness was computed."""


def fittest(
    space: Space[T],
    cost: Callable[[T], float],
    budget: float,
    fitness: Callable[[T], float],
    config: Evolution = Evolution(),
    *,
    start: Sequence[T] = (),
    on_generation: OnGeneration = lambda generation, n, best: None,
) -> Fittest[T]:
    """The candidate of smallest ``fitness`` that costs at most ``budget``.

    ``start`` joins the first population, where affordable. Each candidate is evaluated once; ties go to the
    one met first. ValueError where nothing affordable is found.
    """
    rng = Random(config.seed)
    known: dict[T, float] = {}

    def evaluated(candidate: T) -> float:
        if candidate not in known:
            known[candidate] = fitness(candidate)
        return known[candidate]

    def affordable(draw: Callable[[], T]) -> T:
        for _ in range(MAX_TRIES):
            if cost(candidate := draw()) <= budget:
                return candidate
        raise ValueError(f"budget {budget:g} was exceeded by {MAX_TRIES} candidates in a row")

    if (least := cost(space.cheapest)) > budget:
        raise ValueError(f"budget must be at least {least:g}, the cheapest cost, not {budget:g}")
    population = [candidate for candidate in start if cost(candidate) <= budget]
    while len(population) < config.population:
        population.append(affordable(partial(space.drawn, rng)))
    population = sorted(dict.fromkeys(population), key=evaluated)
    history = [evaluated(population[0])]
    n_parents = max(1, round(config.parent_share * config.population))
    n_mutants = round(config.mutation_share * (config.population - n_parents))
    for generation in range(1, config.generations + 1):
        parents = population[:n_parents]

        def mutant(parents: list[T] = parents) -> T:
            return space.mutant(rng.choice(parents), rng)

        def crossing(parents: list[T] = parents) -> T:
            return space.crossing(rng.choice(parents), rng.choice(parents), rng)

        children = [affordable(mutant) for _ in range(n_mutants)]
        children += [affordable(crossing) for _ in range(config.population - len(parents) - n_mutants)]
        population = sorted(dict.fromkeys([*parents, *children]), key=evaluated)
        history.append(evaluated(population[0]))
        on_generation(generation, config.generations, history[-1])
    best = population[0]
    return Fittest(best, cost(best), history[-1], tuple(history), len(known))
