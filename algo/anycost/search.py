# SPDX-License-Identifier: MIT
"""Evolutionary search of a sub-generator under any cost. Needs no torch.

Anycost GAN describes such a search and publishes its results, not the search.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from algo.anycost.architecture import GeneratorConfig, SubGenerator
from algo.evolution import Evolution, OnGeneration, fittest

Cost = Callable[[SubGenerator], float]
"""What must stay within the budget: multiply-accumulates, latency, energy ..."""
Fitness = Callable[[SubGenerator], float]
"""What is made as small as possible, such as the distance to the full generator's images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(Evolution):
    """How long and how boldly to search."""

    mutate_width: float = 0.1
    """Probability for each layer of a mutant."""
    mutate_resolution: float = 0.5

    def __post_init__(self) -> None:
        Evolution.__post_init__(self)  # slots: super() would not find it
        for name in ("mutate_width", "mutate_resolution"):
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
    space = _Space(shape, tuple(resolutions) or (shape.resolution,), config)
    checked = [shape.checked(sub) for sub in start if cost(sub) <= budget]
    best = fittest(space, cost, budget, fitness, config, start=checked, on_generation=on_generation)
    return Found(best.candidate, best.cost, best.fitness, best.history, best.n_evaluated)


@dataclass(frozen=True)
class _Space:
    """All sub-generators that end at one of ``ends``."""

    shape: GeneratorConfig
    ends: tuple[int, ...]
    config: SearchConfig

    @property
    def cheapest(self) -> SubGenerator:
        """Lowest and narrowest."""
        shape = self.shape
        return SubGenerator(min(self.ends), tuple(shape.choices(i)[0] for i in range(shape.n_styles)))

    def drawn(self, rng: Random) -> SubGenerator:
        """Each layer narrowest with one probability drawn for all, else random: small budgets are met too."""
        narrow = rng.random()
        widths = tuple(
            choices[0] if rng.random() < narrow else rng.choice(choices)
            for choices in map(self.shape.choices, range(self.shape.n_styles))
        )
        return SubGenerator(rng.choice(self.ends), widths)

    def mutant(self, parent: SubGenerator, rng: Random) -> SubGenerator:
        """Some layers, and maybe the resolution, drawn anew."""
        widths = tuple(
            rng.choice(self.shape.choices(i)) if rng.random() < self.config.mutate_width else width
            for i, width in enumerate(parent.widths)
        )
        moves = rng.random() < self.config.mutate_resolution
        return SubGenerator(rng.choice(self.ends) if moves else parent.resolution, widths)

    def crossing(self, a: SubGenerator, b: SubGenerator, rng: Random) -> SubGenerator:
        """Every layer, and the resolution, from either."""
        widths = tuple(rng.choice(pair) for pair in zip(a.widths, b.widths, strict=True))
        return SubGenerator(rng.choice((a.resolution, b.resolution)), widths)
