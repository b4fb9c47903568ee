# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the transposer."""

from collections.abc import Sequence

import numpy as np
import torch

from hw.harness.job import Case, pack_fields

from .config import CHANNEL_BITS, ELEMENT_BITS, NARROW_BITS, PIXEL_BITS, Map, TransposeConfig
from .cycles import replay
from .golden import transposed


def cases(config: TransposeConfig, *, seed: int, n_random: int) -> list[Case]:
    """Maps of every size around a block, of both widths; then random ones. Each follows the one before."""
    rng, c = np.random.default_rng(seed), config.lanes
    sizes = (1, c - 1, c, c + 1, 2 * c, 3 * c)
    corners = [
        Map(n_pixels=p, n_channels=k, wide=bool((p + k) % 2) != (p == k)) for p in sizes for k in sizes
    ]
    several = [
        Map(
            n_pixels=int(rng.integers(1, 4 * c)),
            n_channels=int(rng.integers(1, 4 * c)),
            wide=bool(rng.integers(0, 2)),
        )
        for _ in range(2 + n_random)
    ]
    whole = [Map(n_pixels=2 * c, n_channels=2 * c, wide=wide) for wide in (True, False, True)]
    return [
        case(name, maps, config, rng)
        for name, maps in (("corners", corners), ("whole blocks", whole), ("random maps", several))
    ]


def case(name: str, maps: Sequence[Map], config: TransposeConfig, rng: np.random.Generator) -> Case:
    """Maps of random elements, lanes without a channel of random bits."""
    taken, given = zip(*(_beats(of, config.lanes, rng) for of in maps), strict=True)
    fields = [("n_pixels", PIXEL_BITS), ("n_channels", CHANNEL_BITS), ("wide", 1)]
    beats_in, beats_out = np.concatenate(taken), np.concatenate(given)
    return Case(
        name=name,
        inputs={
            "i_map": pack_fields(
                [(np.array([int(getattr(of, field)) for of in maps]), bits) for field, bits in fields]
            ),
            "i": pack_fields([(beats_in, NARROW_BITS)]),
        },
        expected={"o": pack_fields([(beats_out & ((1 << ELEMENT_BITS) - 1), ELEMENT_BITS)])},
        expected_cycles={"o": replay(maps, config)},
        max_cycles=2 * (len(beats_in) + len(beats_out)) + 100,
    )


def _beats(of: Map, lanes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """uint8[n, 2 C] beats in, int64[n, C] beats out, of a map with the ends of its range in it."""
    bits = ELEMENT_BITS if of.wide else NARROW_BITS
    top = 1 << (bits - 1)
    x = rng.integers(-top, top, (of.n_pixels, of.n_channels))
    x.flat[:2] = [-top, top - 1][: x.size]
    y = transposed(torch.from_numpy(x), of).numpy()
    taken, given = [], []
    for pixel in range(0, of.n_pixels, lanes):
        out = np.zeros((of.n_channels, lanes), np.int64)
        part = y[:, pixel : pixel + lanes]
        out[:, : part.shape[1]] = part
        given.append(out)
        for channel in range(0, of.n_channels, lanes):
            block = x[pixel : pixel + lanes, channel : channel + lanes]
            beats = rng.integers(0, 256, (len(block), 2 * lanes))
            n = block.shape[1]
            if of.wide:
                beats[:, : 2 * n : 2], beats[:, 1 : 2 * n : 2] = block & 0xFF, block >> 8 & 0xFF
            else:
                beats[:, :n] = block & 0xFF
            taken.append(beats)
    return np.concatenate(taken), np.concatenate(given)
