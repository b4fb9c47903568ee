# SPDX-License-Identifier: MIT
"""Evolutionary search against exhaustive search where that is possible, and its promises where not."""

import itertools

import pytest

from algo.anycost.architecture import GeneratorConfig, SubGenerator, compute_macs
from algo.anycost.search import SearchConfig, evolve

TINY = GeneratorConfig(resolution=8, channel_multiplier=1 / 64, max_channels=64, style_size=8)
SMALL = GeneratorConfig(resolution=64, channel_multiplier=1 / 16, max_channels=64, style_size=32)


def macs_of(shape):
    return lambda sub: compute_macs(shape, sub)


def missing(shape):
    """Odd layers matter ten times as much as even ones; a lower resolution costs 50."""

    def fitness(sub: SubGenerator) -> float:
        full = shape.full.widths
        lost = sum((9 * (i % 2) + 1) * (1 - w / full[i]) for i, w in enumerate(sub.widths))
        return lost + 50 * (sub.resolution < shape.resolution)

    return fitness


def test_finds_what_an_exhaustive_search_finds():
    everything = [SubGenerator(8, w) for w in itertools.product(*map(TINY.choices, range(4)))]
    assert len(everything) > 50
    for share in (0.3, 0.6):
        budget = share * compute_macs(TINY, TINY.full)
        affordable = [sub for sub in everything if compute_macs(TINY, sub) <= budget]
        best = min(missing(TINY)(sub) for sub in affordable)
        found = evolve(TINY, macs_of(TINY), budget, missing(TINY))
        assert found.fitness == best and found.cost == compute_macs(TINY, found.sub) <= budget


def test_better_than_uniform_at_equal_cost():
    for ratio in (0.5, 0.75):
        uniform = SMALL.uniform(ratio)
        found = evolve(
            SMALL, macs_of(SMALL), compute_macs(SMALL, uniform), missing(SMALL), resolutions=(64, 32)
        )
        assert found.sub.resolution == 64 and found.cost <= compute_macs(SMALL, uniform)
        assert found.fitness < 0.9 * missing(SMALL)(uniform)


def test_no_two_parents_are_alike():
    """Copies of the best would crowd out the others, and hardly anything new would be tried."""
    for seed in range(3):
        budget = compute_macs(SMALL, SMALL.uniform(0.5))
        config = SearchConfig(seed=seed, step_channels=4)
        found = evolve(SMALL, macs_of(SMALL), budget, missing(SMALL), config, resolutions=(64, 32))
        assert found.n_evaluated > 320  # 312, 251, 248 if they could be


def test_promises():
    seen: list[SubGenerator] = []
    shown: list[tuple[int, int, float]] = []

    def fitness(sub: SubGenerator) -> float:
        seen.append(sub)
        return missing(SMALL)(sub)

    budget, config = 0.5 * compute_macs(SMALL, SMALL.full), SearchConfig(population=20, generations=6, seed=3)
    found = evolve(
        SMALL, macs_of(SMALL), budget, fitness, config,
        resolutions=(64, 32), on_generation=lambda *args: shown.append(args),
    )  # fmt: skip
    assert len(seen) == len(set(seen)) == found.n_evaluated
    assert all(compute_macs(SMALL, sub) <= budget and sub.resolution in (64, 32) for sub in seen)
    assert all(w in SMALL.choices(i) for sub in seen for i, w in enumerate(sub.widths))
    assert len(found.history) == 7 and list(found.history) == sorted(found.history, reverse=True)
    assert [step for step, _, _ in shown] == [1, 2, 3, 4, 5, 6] and shown[-1] == (6, 6, found.fitness)
    assert found.fitness == min(map(missing(SMALL), seen))
    assert evolve(SMALL, macs_of(SMALL), budget, missing(SMALL), config, resolutions=(64, 32)) == found


def test_candidates_spend_the_budget():
    """None of the drawn ones, at its resolution, could be a step wider in any layer."""
    shape, seen = SMALL, []

    def fitness(sub: SubGenerator) -> float:
        seen.append(sub)
        return missing(shape)(sub)

    budget = 0.5 * compute_macs(shape, shape.full)
    evolve(shape, macs_of(shape), budget, fitness, SearchConfig(population=20, generations=4))
    for sub in seen:
        for i, width in enumerate(sub.widths):
            wider = min((w for w in shape.choices(i) if w > width), default=None)
            if wider is not None:
                other = SubGenerator(sub.resolution, (*sub.widths[:i], wider, *sub.widths[i + 1 :]))
                assert compute_macs(shape, other) > budget


def test_a_start_may_have_widths_that_are_no_choice():
    """Its descendants spend the budget too, by the next choices."""
    narrow = SMALL.uniform(0.25)
    assert narrow.widths[-1] not in SMALL.choices(SMALL.n_styles - 1)
    seen: set[SubGenerator] = set()

    def fitness(sub: SubGenerator) -> float:
        seen.add(sub)
        return float(sub != narrow)

    config = SearchConfig(population=8, generations=6, mutate_width=0.0, mutation_share=1.0)
    evolve(SMALL, macs_of(SMALL), compute_macs(SMALL, SMALL.full), fitness, config, start=[narrow])
    assert seen == {narrow, SMALL.full}


def test_finer_steps_find_more():
    budget = compute_macs(SMALL, SMALL.uniform(0.75))

    def fitness(sub: SubGenerator) -> float:
        return sum((1 - w / full) ** 2 for w, full in zip(sub.widths, SMALL.full.widths, strict=True))

    coarse, fine = (
        evolve(SMALL, macs_of(SMALL), budget, fitness, SearchConfig(step_channels=step)) for step in (None, 2)
    )
    assert fine.fitness < coarse.fitness
    for i, width in enumerate(fine.sub.widths):
        assert SMALL.choices(i)[0] <= width <= SMALL.choices(i)[-1] and width % 2 == 0
    assert any(width not in SMALL.choices(i) for i, width in enumerate(fine.sub.widths))


def test_a_start_is_never_made_worse():
    start = SMALL.uniform(0.5)
    few = SearchConfig(population=2, generations=1)
    found = evolve(
        SMALL, macs_of(SMALL), compute_macs(SMALL, start), lambda sub: float(sub != start), few, start=[start]
    )
    assert found.sub == start and found.history == (0.0, 0.0)


def test_any_cost_will_do():
    """Here the widest layer from 16 pixels on: all others may be full."""
    found = evolve(SMALL, lambda sub: max(sub.widths[4:]), 32, missing(SMALL), SearchConfig(generations=40))
    choices = [SMALL.choices(i) for i in range(SMALL.n_styles)]
    assert found.sub.widths[:4] == tuple(widths[-1] for widths in choices[:4])
    assert found.sub.widths[4:] == tuple(max(w for w in widths if w <= 32) for widths in choices[4:])


def test_rejects_bad_input():
    with pytest.raises(ValueError, match=r"budget must be at least \d+.*, the cheapest cost, not 1"):
        evolve(SMALL, macs_of(SMALL), 1, missing(SMALL))
    with pytest.raises(ValueError, match="population must be at least 1, not 0"):
        SearchConfig(population=0)
    with pytest.raises(ValueError, match=r"mutate_width must be in 0..1, not 2"):
        SearchConfig(mutate_width=2)
    with pytest.raises(ValueError, match="step_channels must be at least 1, not 0"):
        SearchConfig(step_channels=0)
