# SPDX-License-Identifier: MIT
"""Cycle model of the depthwise unit.

Imports numpy at most.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .config import DepthwiseConfig, Pass
from .layer import DepthwiseLayer, phases

SUM_STAGES = 4
"""Of the last group of products: operands, products, their sum, the sum of the groups."""
LATENCY_CYCLES = 3 + SUM_STAGES
"""With the groups of a window: its last step to its sums."""


def pass_cycles(of: Pass, config: DepthwiseConfig, groups_before: int = 0) -> int:
    """A pass's part of a sequence without waiting for weights, pixels or who takes the sums: from the last
    window of the pass before, of so many groups of products, to its own last one. For each output the groups
    of the one before or, if these are more, the steps since then.

    A row of output begins lead_x + 1 steps after the row before, of stride 2 with a row of the input between
    them; the first one lead_y rows later.
    """
    groups, begins = of.group_cycles(config), of.lead_x + 1
    first = max(of.lead_y * of.width + begins, groups_before)
    others = (of.out_height - 1) * max((of.stride - 1) * of.width + begins, groups)
    return first + others + of.out_height * (of.out_width - 1) * max(of.stride, groups)


def layer_cycles(layer: DepthwiseLayer, config: DepthwiseConfig) -> int:
    """All tiles of a layer, one after the other, as a part of a sequence of such layers."""
    passes = [phase.of for phase in phases(layer)]
    groups = [of.group_cycles(config) for of in passes]
    of_tile = sum(map(pass_cycles, passes, [config] * len(passes), [groups[-1], *groups]))
    return -(-layer.channels // config.lanes) * of_tile


def busy(layer: DepthwiseLayer, config: DepthwiseConfig) -> float:
    """Share of the multipliers' cycles with a product; those with padding count."""
    return layer.n_macs / (layer_cycles(layer, config) * config.lanes * config.n_multipliers)


class Step(NamedTuple):
    """Of :class:`hw.depthwise.scan.Scan`."""

    fresh: bool
    emits: bool
    last: bool


def steps(of: Pass) -> Iterator[Step]:
    """All steps of a pass."""
    for row in range(of.last_row + 1):
        row_emits = row >= of.lead_y and (row - of.lead_y) % of.stride == 0
        last_column = of.last_column if row_emits else of.width - 1
        for column in range(last_column + 1):
            yield Step(
                fresh=row < of.height and column < of.width,
                emits=row_emits and column >= of.lead_x and (column - of.lead_x) % of.stride == 0,
                last=row == of.last_row and column == of.last_column,
            )


class _Window(NamedTuple):
    half: int
    last: bool
    groups: int


class Unit:
    """:class:`hw.depthwise.rtl.Depthwise`, cycle by cycle, without the arithmetic: :meth:`look` says what
    happens in a cycle, :meth:`tick` goes on to the next one."""

    def __init__(self, config: DepthwiseConfig) -> None:
        self.config = config
        self.loading: Pass | None = None
        """Pass whose weights come, ``n_weights`` more of them."""
        self.n_weights = self.half = 0
        self.used = [False, False]
        self.steps = deque[Step]()
        self.scanned = _Window(0, False, 0)
        """Half and groups of the pass that is scanned."""
        self.step: tuple[Step, _Window] | None = None
        self.window: _Window | None = None
        self.multiplied: _Window | None = None
        self.groups_left = 0
        self.stages = [False] * SUM_STAGES
        """Whether a sum will be complete; of the last one, whether it is."""
        self.out = False
        """Whether sums are offered."""

    def look(self, weight_offered: bool, pixel_offered: bool, taken: bool) -> None:
        """``taken``: sums, if there are any."""
        self.leaves = not self.out or taken
        self.flows = not self.stages[-1] or self.leaves
        self.ends = self.multiplied is not None and self.groups_left == 1 and self.flows
        self.copies = self.window is not None and (self.multiplied is None or self.ends)
        self.shifts = self.window is None or self.copies
        step = self.steps[0] if self.steps else None
        self.moves = self.shifts and step is not None and (pixel_offered or not step.fresh)
        self.takes = self.moves and step is not None and step.fresh
        self.weight = (
            weight_offered and self.loading is not None and self.n_weights > 0 and not self.used[self.half]
        )
        scans = not self.steps or (self.moves and len(self.steps) == 1)
        self.hands = self.loading is not None and self.n_weights == 0 and scans
        self.pass_ready = self.loading is None or self.hands

    def tick(self, of: Pass | None) -> None:
        """``of``: a pass that is taken."""
        if self.leaves:
            self.out = self.stages[-1]
        if self.flows:
            self.stages = [self.ends, *self.stages[:-1]]
            self.groups_left -= self.multiplied is not None
        if self.ends and self.multiplied is not None:
            if self.multiplied.last:
                self.used[self.multiplied.half] = False
            self.multiplied = None
        if self.copies and self.window is not None:
            self.multiplied, self.groups_left = self.window, self.window.groups
        if self.shifts:
            emits = self.step is not None and self.step[0].emits
            self.window = self.step[1] if emits and self.step is not None else None
            self.step = None
        if self.moves:
            step = self.steps.popleft()
            self.step = step, self.scanned._replace(last=step.last)
        self.n_weights -= self.weight
        if self.hands and self.loading is not None:
            self.steps.extend(steps(self.loading))
            self.scanned = _Window(self.half, False, self.loading.group_cycles(self.config))
            self.used[self.half], self.half, self.loading = True, 1 - self.half, None
        if of is not None:
            self.loading, self.n_weights = of, of.n_taps


def replay(
    passes: Sequence[Pass], config: DepthwiseConfig, taken: Callable[[int], bool] = lambda cycle: True
) -> list[np.ndarray]:
    """Cycle of each output beat of each pass, from reset; the first transfer is cycle 1.

    Everything is there at once; sums are taken in the cycles that ``taken`` says.
    """
    unit, waiting, stamps, cycle = Unit(config), deque(passes), list[int](), 1
    n_weights, n_pixels = sum(of.n_taps for of in passes), sum(of.height * of.width for of in passes)
    n_sums = [of.out_height * of.out_width for of in passes]
    while len(stamps) < sum(n_sums):
        if unit.out and taken(cycle):
            stamps.append(cycle)
        unit.look(n_weights > 0, n_pixels > 0, taken(cycle))
        n_weights -= unit.weight
        n_pixels -= unit.takes
        unit.tick(waiting.popleft() if waiting and unit.pass_ready else None)
        cycle += 1
    return np.split(np.array(stamps, dtype=np.int64), np.cumsum(n_sums)[:-1])
