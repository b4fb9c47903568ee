# SPDX-License-Identifier: MIT
"""A workload on the attention core's exact cycle model: its layers, replayed.

:func:`hw.attention.cycles.replay` equals the RTL cycle for cycle, given what the core is told of a layer and
what the data decide. A workload knows counts only. So here each layer becomes a :class:`LayerShape`, and a
shape a :class:`hw.attention.cycles.LayerTrace` whose data are drawn: which tokens of the context are present,
all probabilities, all importances. Scores are normal with a standard deviation of ``SCORE_SPREAD`` nats, half
of their variance a token's own (all rows agree on it) and half the row's; probabilities are their softmax in
units of 2^-12. Rows computed again with LSBs are those with the lowest maxima. The seed is made of the shape
and the number of the draw, so nothing depends on the order of the work.

The core runs layers strictly one after the other. So the cycles of a workload are the sum over its layers,
each replayed alone from reset. A shape that comes n times is replayed with min(n, ``N_DRAWS``) draws, whose
mean counts n times. The sum is not quite the whole run:

- A layer alone fills its lists, or is given the heads, where it would go on with those of the layer before,
  and its first row is the first to use each buffer: a cycle or two.
- The pivots of quick-select come from a generator that runs on from layer to layer and begins anew here:
  other draws of the same distribution. The radix engine has nothing of the kind.
- Planes of a layer begin at the first atom, so that they may meet other channels.

``tests/sim/test_core.py`` holds the sum to whole runs.

Left out: writing new K and V, and the host's time between layers. Needs neither torch nor Amaranth.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from algo.attention.record import ModelShape
from hw.attention.config import AttentionConfig, attention_config
from hw.attention.cycles import LayerTrace, replay
from hw.attention.layers import Rows
from hw.attention.replay.cascade import Source
from hw.confidence.config import LSB_BITS
from hw.config import ChipConfig
from hw.fetch.layout import Plane, Request
from hw.softmax.config import PROBABILITY_BITS
from sim.driver.layers import streams
from sim.memory import memory_timing
from sim.records import digest
from sim.workload import LayerPass, Workload

SCORE_SPREAD = 2.0
"""Standard deviation of the scores of a row, nats. Assumed."""


N_DRAWS = 3
"""Of a shape that comes so often, or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """All that the cycles of a layer depend on, but for its data."""

    head_dim: int
    query_bits: int
    key_bits: int
    key_lsb_bits: int
    value_bits: int
    rows: Rows
    streamed: bool
    n_evictable: int
    """Tokens of a list that is given, of which ``n_keys`` stay; 0 where none is."""
    n_positions: int
    """Tokens for which K and V have room in memory."""
    n_model_heads: int
    n_heads: int
    n_kv_heads: int
    n_keys: int
    n_values: int
    n_recomputed: int
    """Rows that are computed again with LSBs."""
    n_tokens_next: int
    n_heads_next: int

    @property
    def n_queries(self) -> int:
        """Of a head."""
        return 1 if self.rows == "one" else self.n_keys


def layer_shapes(workload: Workload, config: AttentionConfig) -> list[LayerShape]:
    """One for each layer of each pass, told to the core as ``sim.driver`` does.

    ValueError where the core cannot run the workload.
    """
    n_model_heads = int(workload.column("n_heads").max())
    n_positions = int(workload.column("n_context").max())
    shapes: list[LayerShape] = []
    for _, layers in groupby(workload.passes, key=lambda one: one.token):
        of_pass = list(layers)
        for number, layer in enumerate(of_pass):
            following = of_pass[number + 1 : number + 2]
            rows = _rows(layer)
            shapes.append(
                LayerShape(
                    head_dim=workload.head_dim,
                    query_bits=workload.query_bits,
                    key_bits=workload.key_bits,
                    key_lsb_bits=workload.key_lsb_bits,
                    value_bits=workload.value_bits,
                    rows=rows,
                    streamed=_streamed(workload, of_pass, layer, config),
                    n_evictable=layer.n_context if rows == "one" and number == 0 else 0,
                    n_positions=n_positions,
                    n_model_heads=n_model_heads,
                    n_heads=layer.n_heads,
                    n_kv_heads=layer.n_groups,
                    n_keys=layer.n_keys,
                    n_values=layer.n_values,
                    n_recomputed=round(layer.lsb_fraction * layer.n_heads * layer.n_queries),
                    n_tokens_next=following[0].n_keys if following else layer.n_keys,
                    n_heads_next=following[0].n_heads if following else layer.n_heads,
                )
            )
    return shapes


def _rows(layer: LayerPass) -> Rows:
    if layer.causal:
        return "causal"
    return "one" if layer.n_queries == 1 < layer.n_context else "all"


def _streamed(
    workload: Workload, of_pass: list[LayerPass], layer: LayerPass, config: AttentionConfig
) -> bool:
    """As the driver has it; ValueError where the layer does not fit."""
    if workload.key_lsb_bits not in (0, LSB_BITS):
        raise ValueError(f"key_lsb_bits must be 0 or {LSB_BITS} on the core, not {workload.key_lsb_bits}")
    progressive = workload.key_lsb_bits > 0
    is_encoder = _rows(layer) == "all"
    n_tokens = layer.n_keys if is_encoder else max(one.n_keys for one in of_pass)
    config.check_run(
        layer.n_context, layer.n_heads, workload.head_dim, progressive=progressive, streamed=True
    )
    shape = ModelShape(
        n_layers=1,
        n_heads=layer.n_heads,
        n_kv_heads=layer.n_groups,
        head_dim=workload.head_dim,
        causal=not is_encoder,
    )
    return streams(config, shape, n_tokens, progressive=progressive, one_row=layer.n_queries == 1)


def layer_trace(
    shape: LayerShape, config: AttentionConfig, *, draw: int = 0, goes_on: bool = False
) -> LayerTrace:
    """The layer with data drawn as the module says, alone or going on with the lists of the layer before."""
    rng = np.random.default_rng([int(digest(shape), 16), draw])
    probabilities = _probabilities(shape, rng)
    n_rows = shape.n_heads * shape.n_queries
    largest = config.token_importance.max_element
    shift = config.token_importance.safe_shift(n_rows)
    before: Source = "go on" if goes_on else "fill"
    gives_heads = shape.n_heads < shape.n_model_heads and (shape.rows == "one" or not goes_on)
    given = rng.integers(0, largest, shape.n_evictable) if shape.n_evictable else None
    tokens = np.sort(rng.choice(shape.n_positions, shape.n_keys, replace=False))
    return LayerTrace(
        tokens_from=before if given is None else "given",
        heads_from="given" if gives_heads else before,
        n_listed=shape.n_evictable or shape.n_keys,
        given_importance=given,
        n_model_heads=shape.n_model_heads,
        tokens=tokens,
        planes=_planes(shape),
        groups=_groups(shape),
        rows=shape.rows,
        streamed=shape.streamed,
        head_dim=shape.head_dim,
        progressive=shape.key_lsb_bits > 0,
        used_lsb=_least_confident(probabilities, shape.n_recomputed),
        n_values=shape.n_values,
        probabilities=probabilities,
        token_importance=probabilities.sum((0, 1)) >> shift,
        head_importance=rng.integers(0, config.head_importance.max_element, shape.n_heads),
        protect_last=shape.rows != "all",
        n_tokens_next=shape.n_tokens_next,
        n_heads_next=shape.n_heads_next,
    )


def _probabilities(shape: LayerShape, rng: np.random.Generator) -> np.ndarray:
    """int64[h, r, n], 0..4,095; 0 for the keys that a causal row does not see."""
    dims = (shape.n_heads, shape.n_queries, shape.n_keys)
    part = SCORE_SPREAD * 0.5**0.5
    scores = rng.normal(0, part, (1, 1, shape.n_keys)) + rng.normal(0, part, dims)
    if shape.rows == "causal":
        scores = np.where(np.tri(shape.n_keys, dtype=bool), scores, -np.inf)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    units = np.rint(exponentials / exponentials.sum(-1, keepdims=True) * (1 << PROBABILITY_BITS))
    return np.minimum(units, (1 << PROBABILITY_BITS) - 1).astype(np.int64)


def _least_confident(probabilities: np.ndarray, n: int) -> np.ndarray:
    """bool[h, r], n of them: the rows with the lowest maxima, of equal ones the earlier."""
    maxima = probabilities.max(-1)
    marked = np.zeros(maxima.size, dtype=bool)
    marked[np.argsort(maxima, axis=None, kind="stable")[:n]] = True
    return marked.reshape(maxima.shape)


def _groups(shape: LayerShape) -> list[int]:
    """Of each head the number of its K and V, spread evenly."""
    return [head * shape.n_kv_heads // shape.n_heads for head in range(shape.n_heads)]


def _planes(shape: LayerShape) -> list[dict[str, Request]]:
    """Of each head: Q, V, K and LSBs one behind the other, from atom 0."""
    n_queries = 1 if shape.rows == "one" else shape.n_positions
    sizes = {
        "q": (shape.n_heads, n_queries, shape.query_bits),
        "v": (shape.n_kv_heads, shape.n_positions, shape.value_bits),
        "k": (shape.n_kv_heads, shape.n_positions, shape.key_bits),
    }
    if shape.key_lsb_bits:
        sizes["lsb"] = (shape.n_kv_heads, shape.n_positions, shape.key_lsb_bits)
    planes: dict[str, Plane] = {}
    first_atom = 0
    for name, (n_heads, n_tokens, bits) in sizes.items():
        planes[name] = Plane(
            base_atom=first_atom,
            n_heads=n_heads,
            n_tokens=n_tokens,
            head_dim=shape.head_dim,
            bits=bits,
            is_unsigned=name == "lsb",
        )
        first_atom += planes[name].n_atoms
    return [
        {name: plane.request(head if name == "q" else group, 1) for name, plane in planes.items()}
        for head, group in enumerate(_groups(shape))
    ]


@dataclass(frozen=True, slots=True)
class Replay:
    """A layer to be replayed."""

    shape: LayerShape
    draw: int

    def cycles(self, chip: ChipConfig) -> int:
        """From reset to the layer's end."""
        config = attention_config(chip)
        trace = layer_trace(self.shape, config, draw=self.draw)
        return replay([trace], config, memory_timing(chip)).n_cycles


def replays(workload: Workload, chip: ChipConfig) -> dict[Replay, float]:
    """What has to be replayed for a workload, and how often each counts.

    ValueError where the core cannot run it.
    """
    weights: dict[Replay, float] = {}
    for shape, n in Counter(layer_shapes(workload, attention_config(chip))).items():
        n_draws = min(n, N_DRAWS)
        weights |= {Replay(shape, draw): n / n_draws for draw in range(n_draws)}
    return weights


def core_cycles(workload: Workload, chip: ChipConfig) -> int:
    """Cycles of all layers, one after the other, rounded to nearest. Seconds for each 100,000 replayed."""
    return round(sum(n * one.cycles(chip) for one, n in replays(workload, chip).items()))
