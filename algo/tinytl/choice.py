# SPDX-License-Identifier: MIT
"""Which blocks of a backbone are kept, and which of them get a lite module: TinyTL's feature-extractor
adaptation (its section 3.3) on a backbone whose weights are given. Needs no torch.

The paper chooses depths, widths, kernels and lite modules of a trained super-network. Of a single trained
network only whole blocks can be left out, those with a shortcut around them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from random import Random

from algo.tinytl.architecture import Backbone


class Part(IntEnum):
    """What of a block is there."""

    ABSENT = 0
    """Nothing but its shortcut."""
    MAIN = 1
    LITE = 2
    """Main branch and lite module."""


Choice = tuple[Part, ...]
"""One for each block of the whole backbone."""


def options(backbone: Backbone) -> tuple[tuple[Part, ...], ...]:
    """What each block may be, the cheapest first."""
    return tuple(
        (Part.ABSENT,) * block.has_shortcut + (Part.MAIN,) + (Part.LITE,) * backbone.has_lite(index)
        for index, block in enumerate(backbone.blocks)
    )


def whole(backbone: Backbone) -> Choice:
    """All that there is."""
    return tuple(parts[-1] for parts in options(backbone))


def chosen(backbone: Backbone, choice: Choice) -> Backbone:
    """The backbone of the blocks that are there. ValueError where the choice is none of :func:`options`."""
    check_choice(backbone, choice)
    kept = [index for index, part in enumerate(choice) if part != Part.ABSENT]
    return replace(
        backbone,
        name=f"{backbone.name}:{''.join(str(int(part)) for part in choice)}",
        blocks=tuple(backbone.blocks[index] for index in kept),
        without_lite=frozenset(new for new, old in enumerate(kept) if choice[old] == Part.MAIN),
    )


def check_choice(backbone: Backbone, choice: Sequence[Part]) -> None:
    """ValueError where the choice is none of :func:`options`."""
    if len(choice) != len(backbone.blocks):
        raise ValueError(f"choice must be of {len(backbone.blocks)} blocks, not {len(choice)}")
    for index, (part, parts) in enumerate(zip(choice, options(backbone), strict=True)):
        if part not in parts:
            allowed = " or ".join(str(int(one)) for one in parts)
            raise ValueError(f"choice of block {index} must be {allowed}, not {int(part)}")


@dataclass(frozen=True)
class ChoiceSpace:
    """All choices, for :func:`algo.evolution.fittest`."""

    backbone: Backbone
    mutated_blocks: float = 2
    """Of a mutant, on average."""

    @property
    def cheapest(self) -> Choice:
        """As little as there may be."""
        return tuple(parts[0] for parts in options(self.backbone))

    def drawn(self, rng: Random) -> Choice:
        """Each block the cheapest with one probability drawn for all, else random."""
        cheap = rng.random()
        return tuple(
            parts[0] if rng.random() < cheap else rng.choice(parts) for parts in options(self.backbone)
        )

    def mutant(self, parent: Choice, rng: Random) -> Choice:
        """Some blocks drawn anew."""
        share = self.mutated_blocks / len(parent)
        return tuple(
            rng.choice(parts) if rng.random() < share else part
            for part, parts in zip(parent, options(self.backbone), strict=True)
        )

    def crossing(self, a: Choice, b: Choice, rng: Random) -> Choice:
        """Each block of either."""
        return tuple(rng.choice(pair) for pair in zip(a, b, strict=True))


def within(
    space: ChoiceSpace, cost: Callable[[Choice], float], low: float, high: float, rng: Random, n_tries: int
) -> Choice:
    """A random choice that costs ``low``..``high``; ValueError where ``n_tries`` find none."""
    for _ in range(n_tries):
        if low <= cost(choice := space.drawn(rng)) <= high:
            return choice
    raise ValueError(f"no choice was found that costs {low:g}..{high:g} in {n_tries} tries")
