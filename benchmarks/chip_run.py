# SPDX-License-Identifier: MIT
"""A real encoder whose attention is the chip's: integers in, integers out, the chip's own decisions.

The rest of the model stays in float, as the host computes it: embeddings, projections, feed-forward layers.
In each layer the host quantises Q, K and V; :class:`hw.attention.golden.AttentionGolden`, bit for bit the
RTL, computes the attention and decides which tokens and heads the next layer has.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algo.attention.encoder import Encoder
from algo.attention.quantise import quantise, scale_of
from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings
from hw.attention.config import AttentionConfig
from hw.attention.golden import AttentionGolden, LayerResult
from hw.attention.layers import LayerInput
from hw.pv.config import PROBABILITY_BITS
from sim.driver.layers import LayerBuilder


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipLayer:
    """One layer as the chip computed it, and what its integers stand for."""

    input: LayerInput
    result: LayerResult
    score_steps: tuple[float, ...]
    """Value of one unit of the score that ``lsb_scale`` belongs to (static: ``msb_scale``), per head, [H]."""
    v_step: float
    """Value of one unit of V, the same for all heads."""
    record: LayerRecord
    """The layer's integers, scales and decisions."""

    @property
    def o_step(self) -> float:
        """Value of one unit of an output."""
        return self.v_step * 2.0 ** (self.input.out_shift - PROBABILITY_BITS)


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipRun:
    """What one text gave."""

    embedding: Tensor
    """Mean over the surviving tokens, float[hidden]."""
    hidden: Tensor
    """Last hidden states of the surviving tokens, float[n_last, hidden]."""
    layers: tuple[ChipLayer, ...]
    record: AttentionRecord
    """The run as a workload, with the chip's decisions."""


class ChipAttention:
    """Takes the place of a cascade in an encoder's call (:class:`algo.attention.cascade.Attention`).

    Q and K have a step for each head, V one for all heads of a layer, so that the sums of |o| of its heads
    compare. Steps follow from the largest magnitudes among the rows and heads present. From layer to layer
    the unit of o changes with V's step, which the cumulative importance of heads does not know.
    """

    def __init__(
        self, config: AttentionConfig, settings: CascadeSettings, shape: ModelShape, n_tokens: int
    ) -> None:
        """ValueError where the chip cannot run these settings, this model or this many tokens."""
        self._builder = LayerBuilder(config, settings, shape, n_tokens)
        bits = self._builder.bits
        self._bits = (bits.q, bits.k + settings.lsb_bits, bits.v)
        """Of Q, K with its LSB plane, V."""
        self.config, self.settings, self.shape = config, settings, shape
        self.golden = AttentionGolden(config, n_tokens, shape.n_heads)
        self.rows = self.golden.tokens
        """int64[n], positions of the rows in the layer at hand."""
        self.layers: list[ChipLayer] = []

    # ---- called by the model adapter ----------------------------------------------------------------------

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """Of x : float[1, n', ...] the rows that the chip kept for ``layer``."""
        kept = torch.isin(self.rows, self.golden.tokens)
        self.rows = self.golden.tokens
        return x[:, kept] if layer else x

    def rotate(self, x: Tensor) -> Tensor:
        """Of x : float[1, N, D] the rows still there."""
        return x[:, self.rows]

    def leave(self, x: Tensor) -> Tensor:
        """Rows x : float[1, n, C] back in place among all N; a pruned token's row is zero."""
        return x.new_zeros(1, self.golden.n_tokens, x.shape[2]).index_copy(1, self.rows, x)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """q, k, v : float[1, H, n, D] of the rows still there. Returns as much; a pruned head gives zeros."""
        if dropout:
            raise ValueError(f"dropout must be 0 on the chip, not {dropout}")
        q_bits, k_bits, v_bits = self._bits
        scales = (
            scale_of(q, q_bits, (2, 3)),
            scale_of(k, k_bits, (2, 3)),
            scale_of(v[:, self.golden.heads], v_bits, (1, 2, 3)),
        )
        ints = [
            quantise(x, bits, scale)[0].to(torch.int64)
            for x, bits, scale in zip((q, k, v), self._bits, scales, strict=True)
        ]
        steps = [scale.double().expand(1, len(ints[0]), 1, 1).flatten() for scale in scales]  # float64[H]
        score_steps = (scaling * steps[0] * steps[1]).tolist()
        planes = [self._by_position(x) for x in ints]
        given = self._builder.next(
            list(zip(*planes, strict=True)), score_steps, len(self.rows), len(self.golden.heads)
        )
        result = self.golden.layer(given)
        self.layers.append(
            ChipLayer(
                input=given,
                result=result,
                score_steps=tuple(score_steps),
                v_step=float(scales[2]),
                record=self._record(result, ints, steps),
            )
        )
        out = torch.zeros_like(q)
        out[0, result.heads] = (result.outputs * self.layers[-1].o_step).to(q.dtype)
        return out

    # ---- the parts of attend ------------------------------------------------------------------------------

    def _by_position(self, x: Tensor) -> Tensor:
        """int64[H, n, D] to [H, N, D]; zeros for tokens no longer there, as nothing reads them."""
        return x.new_zeros(len(x), self.golden.n_tokens, x.shape[2]).index_copy(1, self.rows, x)

    def _record(self, result: LayerResult, ints: list[Tensor], steps: list[Tensor]) -> LayerRecord:

        def of_all_heads(decided: Tensor) -> np.ndarray:
            """bool[h, ...] to [H, ...], False for a head pruned."""
            every = torch.zeros(self.shape.n_heads, *decided.shape[1:], dtype=torch.bool)
            return every.index_copy(0, result.heads, decided).numpy()

        q, k, v = (x.numpy().astype(np.int16) for x in ints)
        q_scale, k_scale, v_scale = (step.numpy() for step in steps)
        tokens = result.tokens.numpy().astype(np.int32)
        return LayerRecord(
            queries=tokens,
            keys=tokens,
            heads=result.heads.numpy().astype(np.int32),
            values=None if bool(result.kept_values.all()) else of_all_heads(result.kept_values),
            lsb_rows=of_all_heads(result.used_lsb) if self.settings.progressive else None,
            q=q,
            k=k,
            v=v,
            q_scale=q_scale,
            k_scale=k_scale,
            v_scale=v_scale,
        )


@torch.no_grad()
def run_on_chip(
    encoder: Encoder, text: str | list[int] | Tensor, settings: CascadeSettings, config: AttentionConfig
) -> ChipRun:
    """Encode one text, or its token ids, with the attention of the chip.

    ValueError on a text that is empty, or too long for the model or the chip, and on settings that the chip
    cannot run.
    """
    ids = encoder.token_ids(text)
    chip = ChipAttention(config, settings, encoder.shape, len(ids))
    output = encoder.model(input_ids=ids[None], cascade=chip, return_dict=True).last_hidden_state
    hidden = output[0, chip.rows]
    return ChipRun(
        embedding=hidden.mean(0),
        hidden=hidden,
        layers=tuple(chip.layers),
        record=AttentionRecord(
            model=encoder.name,
            shape=encoder.shape,
            settings=settings,
            token_ids=ids.numpy().astype(np.int32),
            n_prompt=len(ids),
            passes=(tuple(layer.record for layer in chip.layers),),
        ),
    )
