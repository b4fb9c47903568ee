# SPDX-License-Identifier: MIT
"""From passes and their golden results to what the cycle model needs of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .cycles import LayerTrace
from .golden import Eviction, LayerResult
from .program import Pass, Planes, place_in_plane, planes_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Sentence(Pass):
    """One pass: what the core is given, and what golden makes of it."""

    results: Sequence[LayerResult]
    eviction: Eviction | None = None
    """Where a list of tokens was given."""


def traces(sentences: Sequence[Sentence], *, first_atom: int = 0) -> list[LayerTrace]:
    """One trace a layer, planes where :func:`hw.attention.program.programs` puts them."""
    return [
        _trace(one, number, of_layer)
        for one, of_pass in zip(sentences, planes_of(sentences, first_atom), strict=True)
        for number, of_layer in enumerate(of_pass)
    ]


def _trace(one: Sentence, number: int, planes: Planes) -> LayerTrace:
    layer, result = one.layers[number], one.results[number]
    eviction = one.eviction if number == 0 else None
    heads = result.heads.tolist()
    groups = [layer.head_groups[head] for head in heads]
    return LayerTrace(
        tokens_from="given" if eviction else "go on" if number else "fill",
        heads_from="given" if number in one.heads else "go on" if number else "fill",
        n_listed=len(eviction.tokens) if eviction else one.n_positions,
        given_importance=np.asarray(eviction.importance) if eviction else None,
        n_model_heads=len(layer.heads),
        tokens=result.tokens.numpy(),
        planes=[
            {name: plane.request(place_in_plane(layer, name, head), 1) for name, plane in planes.items()}
            for head in heads
        ],
        groups=groups,
        rows=layer.rows,
        streamed=layer.streamed or layer.rows == "sum",
        head_dim=one.head_dim,
        progressive=layer.progressive,
        used_lsb=result.used_lsb.numpy(),
        n_values=layer.n_values,
        probabilities=result.probabilities.numpy(),
        token_importance=result.token_importance.numpy(),
        head_importance=result.head_importance.numpy(),
        protect_last=layer.protect_last,
        n_tokens_next=layer.n_tokens_next,
        n_heads_next=layer.n_heads_next,
    )
