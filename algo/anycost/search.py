# SPDX-License-Identifier: MIT
"""Evolutionary search of a sub-generator under any cost. Needs no torch.

Anycost GAN describes such a search and publishes its results, not the search.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
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
    step_channels: int | None = None
    """Widths between those that training draws are tried too, in steps of so many; None: none of them."""

    def __post_init__(self) -> None:
        Evolution.__post_init__(self)  # slots: super() would not find it
        if self.step_channels is not None and self.step_channels < 1:
            raise ValueError(f"step_channels must be at least 1, not {self.step_channels}")
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

    Each layer has the widths of :meth:`~algo.anycost.architecture.GeneratorConfig.choices`, or also those
    between them (``config``); ``resolutions`` (by default the full one) may end it. A candidate spends the
    budget: random layers become narrower until it is affordable, then wider while it is. ``start`` joins the
    first population as it is, where affordable. Each sub-generator is evaluated once; ties go to the one met
    first. ValueError where nothing affordable is found.
    """
    checked = [shape.checked(sub) for sub in start if cost(sub) <= budget]
    cost = cache(cost)
    space = _Space(shape, tuple(resolutions) or (shape.resolution,), config, cost, budget)
    best = fittest(space, cost, budget, fitness, config, start=checked, on_generation=on_generation)
    return Found(best.candidate, best.cost, best.fitness, best.history, best.n_evaluated)


@dataclass(frozen=True)
class _Space:
    """All sub-generators that end at one of ``ends``."""

    shape: GeneratorConfig
    ends: tuple[int, ...]
    config: SearchConfig
    cost: Cost
    budget: float

    @property
    def cheapest(self) -> SubGenerator:
        """Lowest and narrowest."""
        return SubGenerator(min(self.ends), tuple(widths[0] for widths in self.options))

    @cached_property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """Widths that each layer may have, ascending."""
        choices = [self.shape.choices(i) for i in range(self.shape.n_styles)]
        step = self.config.step_channels
        if step is None:
            return tuple(choices)
        return tuple(tuple(sorted({*widths, *range(widths[0], widths[-1], step)})) for widths in choices)

    def drawn(self, rng: Random) -> SubGenerator:
        """Each layer narrowest with one probability drawn for all, else random: small budgets are met too."""
        narrow = rng.random()
        widths = tuple(
            options[0] if rng.random() < narrow else rng.choice(options) for options in self.options
        )
        return self._spent(SubGenerator(rng.choice(self.ends), widths), rng)

    def mutant(self, parent: SubGenerator, rng: Random) -> SubGenerator:
        """Some layers, and maybe the resolution, drawn anew."""
        widths = tuple(
            rng.choice(options) if rng.random() < self.config.mutate_width else width
            for options, width in zip(self.options, parent.widths, strict=True)
        )
        moves = rng.random() < self.config.mutate_resolution
        resolution = rng.choice(self.ends) if moves else parent.resolution
        return self._spent(SubGenerator(resolution, widths), rng)

    def crossing(self, a: SubGenerator, b: SubGenerator, rng: Random) -> SubGenerator:
        """Every layer, and the resolution, from either."""
        widths = tuple(rng.choice(pair) for pair in zip(a.widths, b.widths, strict=True))
        return self._spent(SubGenerator(rng.choice((a.resolution, b.resolution)), widths), rng)

    def _spent(self, sub: SubGenerator, rng: Random) -> SubGenerator:
        """As near below the budget as single steps bring it, or the narrowest of its resolution."""
        while self.cost(sub) > self.budget and (narrower := self._steps(sub, -1)):
            sub = rng.choice(narrower)
        while wider := [one for one in self._steps(sub, 1) if self.cost(one) <= self.budget]:
            sub = rng.choice(wider)
        return sub

    def _steps(self, sub: SubGenerator, direction: int) -> list[SubGenerator]:
        """One layer at a time with its next width."""
        found = []
        for i, (options, width) in enumerate(zip(self.options, sub.widths, strict=True)):
            j = bisect_right(options, width) if direction > 0 else bisect_left(options, width) - 1
            if 0 <= j < len(options):
                found.append(replace(sub, widths=(*sub.widths[:i], options[j], *sub.widths[i + 1 :])))
        return found
