# SPDX-License-Identifier: MIT
"""What the chip is told of each layer, from the settings of a run and its integers."""

import math
from collections.abc import Sequence

import numpy as np

from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings
from hw.attention.config import AttentionConfig
from hw.attention.layers import HeadInput, Integers, LayerInput
from hw.attention.program import PlaneBits
from hw.confidence.config import LSB_BITS
from hw.pv.config import PROBABILITY_BITS, SHIFTS
from hw.softmax.config import row_scale


class LayerBuilder:
    """Describes the layers of one sentence, in order, as the settings have them."""

    def __init__(
        self, config: AttentionConfig, settings: CascadeSettings, shape: ModelShape, n_tokens: int
    ) -> None:
        """ValueError where the chip cannot run these settings, this model or this many tokens."""
        self.bits = plane_bits(settings)
        if shape.causal or shape.n_kv_heads != shape.n_heads:
            raise ValueError(f"the model must be an encoder with a K and V for each head, not {shape}")
        config.check_run(n_tokens, shape.n_heads, shape.head_dim, progressive=settings.progressive)
        self.config, self.settings, self.shape = config, settings, shape
        self._token_counts = settings.token_counts(shape.n_layers, n_tokens)
        self._value_counts = settings.value_counts(shape.n_layers, n_tokens)
        self._head_counts = settings.heads_per_layer(shape.n_layers, shape.n_heads)
        self._n_layers = 0
        self._n_rows = 0
        """Rows of one head, over the layers so far."""
        self._n_head_rows = 0
        """Rows of all heads."""

    def next(
        self,
        heads: Sequence[tuple[Integers, Integers, Integers]],
        score_steps: Sequence[float],
        n_present: int,
        n_heads_present: int,
    ) -> LayerInput:
        """The next layer, of ``n_present`` tokens and ``n_heads_present`` heads.

        Parameters
        ----------
        heads : for each head of the model (q, k, v), int64[N, D] by position
        score_steps : for each head, the value of one unit of Q.K, K with its LSBs
        """
        s, layer = self.settings, self._n_layers
        self._n_layers += 1
        last = self._n_layers == self.shape.n_layers
        self._n_rows += n_present
        self._n_head_rows += n_heads_present * n_present
        return LayerInput(
            heads=[
                HeadInput(
                    q=q, k=k, v=v, msb_scale=row_scale(step * (1 << s.lsb_bits)), lsb_scale=row_scale(step)
                )
                for (q, k, v), step in zip(heads, score_steps, strict=True)
            ],
            progressive=s.progressive,
            threshold=threshold_units(s.lsb_threshold),
            n_values=self._value_counts[layer] if s.value_keep < 1 else n_present,
            out_shift=output_shift(self.bits.v),
            n_tokens_next=n_present if last else self._token_counts[layer + 1],
            n_heads_next=n_heads_present if last else self._head_counts[layer + 1],
            token_shift=self.config.token_importance.safe_shift(self._n_head_rows),
            head_shift=self.config.head_importance.safe_shift(self._n_rows),
        )


def layers_of(record: AttentionRecord, config: AttentionConfig) -> list[LayerInput]:
    """The layers of an encoder's record, for the chip to compute and decide anew.

    ValueError where the record holds no integers, V has more than one step in a layer, or the chip cannot run
    it.
    """
    shape = record.shape
    builder = LayerBuilder(config, record.settings, shape, record.n_prompt)
    layers = []
    for number, layer in enumerate(record.passes[0]):
        if layer.q is None or layer.k is None or layer.v is None or layer.q_scale is None:
            raise ValueError(f"layer {number} of the record must hold integers (capture 'integers')")
        assert layer.k_scale is not None and layer.v_scale is not None
        if np.ptp(layer.v_scale) > 0:
            raise ValueError(
                f"v_scale of layer {number} must be the same for all heads, so that the sizes of their "
                f"outputs compare, not {layer.v_scale.min():g}..{layer.v_scale.max():g}"
            )
        planes = [_by_position(x, layer, record.n_prompt) for x in (layer.q, layer.k, layer.v)]
        steps = shape.head_dim**-0.5 * layer.q_scale * layer.k_scale
        heads = list(zip(*planes, strict=True))
        layers.append(builder.next(heads, steps.tolist(), len(layer.queries), len(layer.heads)))
    return layers


def _by_position(values: np.ndarray, layer: LayerRecord, n_tokens: int) -> np.ndarray:
    """int64[H, N, D] of [H, n, D]; zeros for tokens no longer there, as nothing reads them."""
    placed = np.zeros((values.shape[0], n_tokens, values.shape[2]), dtype=np.int64)
    placed[:, layer.queries] = values
    return placed


def plane_bits(settings: CascadeSettings) -> PlaneBits:
    """Widths of the planes in memory; ValueError where the chip cannot run these settings."""
    s = settings
    if s.q_bits is None or s.k_bits is None or s.v_bits is None:
        raise ValueError("q_bits, k_bits and v_bits must be given to run on the chip, which has no float")
    if s.lsb_bits not in (0, LSB_BITS):
        raise ValueError(f"lsb_bits must be 0 or {LSB_BITS}, not {s.lsb_bits}")
    if s.value_semantics != "probability":
        raise ValueError(f"value_semantics must be probability on the chip, not {s.value_semantics!r}")
    return PlaneBits(q=s.q_bits, k=s.k_bits, v=s.v_bits)


def output_shift(v_bits: int) -> int:
    """Right shift of p V: the smallest, so the finest outputs, at which none saturates, 8..15."""
    return max(SHIFTS[0], v_bits)


def threshold_units(threshold: float) -> int:
    """The confidence threshold 0..1 in units of 2^-12, 0..4,095.

    Rounded up: for a whole number p of units, p / 4096 < threshold means p < ceil(4096 threshold).
    """
    return min(math.ceil(threshold * (1 << PROBABILITY_BITS)), (1 << PROBABILITY_BITS) - 1)
