# SPDX-License-Identifier: MIT
"""What the chip is told of each layer, from the settings of a run and its integers."""

import math
from collections.abc import Sequence

import numpy as np

from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings
from hw.attention.config import AttentionConfig
from hw.attention.layers import GivenTokens, HeadInput, Integers, LayerInput
from hw.attention.program import Pass, PlaneBits, changed_heads
from hw.confidence.config import LSB_BITS
from hw.importance.config import MAX_LAYERS
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
        _check_size(config, shape, n_tokens)
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
            heads=_head_inputs(heads, score_steps, s),
            progressive=s.progressive,
            threshold=threshold_units(s.lsb_threshold),
            n_values=self._value_counts[layer] if s.value_keep < 1 else n_present,
            out_shift=output_shift(self.bits.v),
            n_tokens_next=n_present if last else self._token_counts[layer + 1],
            n_heads_next=n_heads_present if last else self._head_counts[layer + 1],
            token_shift=self.config.token_importance.safe_shift(self._n_head_rows),
            head_shift=self.config.head_importance.safe_shift(self._n_rows),
            streamed=streams(self.config, self.shape, n_present, progressive=s.progressive),
        )


class DecoderBuilder:
    """Describes the passes of one decoder's run, in order: the prompt, then one for each token fed back.

    For each pass: :meth:`begin`, and for each layer :meth:`next` and, when the core has computed it,
    :meth:`returned`. Between passes the tokens' importance lies here, by position, so that a token that a
    layer dropped is there again in the next pass. Counts are those of the float cascade.
    """

    def __init__(
        self,
        config: AttentionConfig,
        settings: CascadeSettings,
        shape: ModelShape,
        n_prompt: int,
        n_passes: int,
    ) -> None:
        """ValueError where the chip cannot run these settings, this model or this many tokens."""
        self.bits = plane_bits(settings)
        _check_decoder(config, settings, shape, n_passes)
        self.config, self.settings, self.shape, self.n_prompt = config, settings, shape, n_prompt
        self.n_all = n_prompt + n_passes - 1
        """Positions of the whole run."""
        if self.n_all > config.n_max:
            raise ValueError(f"prompt and new tokens must be at most {config.n_max}, not {self.n_all}")
        head_counts = settings.heads_per_layer(shape.n_layers, shape.n_heads)
        self.token_shift = config.token_importance.safe_shift(sum(head_counts) * self.n_all)
        """One for all passes, so that importance keeps its unit; what it cuts off is lost between passes."""
        self._head_counts = head_counts
        self._number = -1
        """Of the pass; 0 is the prompt."""
        self._layer = 0
        self._tokens = np.arange(n_prompt)
        """Positions not evicted."""
        self._importance = np.zeros(self.n_all, dtype=np.int64)
        for number in range(n_passes):
            _check_size(config, shape, self._n_present(number))

    @property
    def n_positions(self) -> int:
        """Positions up to the pass at hand."""
        return self.n_prompt + self._number

    def begin(self) -> GivenTokens | None:
        """The next pass: its list of tokens, the new one last and of no importance; None for the prompt."""
        self._number += 1
        self._layer = 0
        if self._number == 0:
            return None
        self._tokens = np.append(self._tokens, self.n_positions - 1)
        return GivenTokens(
            tokens=self._tokens,
            importance=self._importance[self._tokens],
            n_keep=self._n_keep(self._number),
            halve=self.settings.importance_rescale < 1,
        )

    def next(
        self, heads: Sequence[tuple[Integers, Integers, Integers]], score_steps: Sequence[float]
    ) -> LayerInput:
        """The next layer of the pass.

        Parameters
        ----------
        heads : for each head of the model (q, k, v), int64[N, D] by position; q of a new token int64[1, D]
        score_steps : for each head, the value of one unit of Q.K, K with its LSBs
        """
        s, layer, is_prompt = self.settings, self._layer, self._number == 0
        self._layer += 1
        last = self._layer == self.shape.n_layers
        n_layers, n_all = self.shape.n_layers, self.n_positions
        prunes = self._prunes_tokens()
        keeps_values = s.value_keep == 1 or (is_prompt and not s.prune_prompt)
        return LayerInput(
            heads=_head_inputs(heads, score_steps, s),
            progressive=s.progressive,
            threshold=threshold_units(s.lsb_threshold),
            n_values=n_all if keeps_values else s.value_counts(n_layers, n_all, prunes)[layer],
            out_shift=output_shift(self.bits.v),
            n_tokens_next=s.token_counts(n_layers, n_all)[layer + 1] if prunes and not last else n_all,
            n_heads_next=self.shape.n_heads if last else self._head_counts[layer + 1],
            token_shift=self.token_shift,
            head_shift=self.config.head_importance.safe_shift(self._layer * n_all) if is_prompt else 0,
            rows="causal" if is_prompt else "one",
            protect_last=True,
            streamed=streams(
                self.config,
                self.shape,
                self._n_present(self._number),
                progressive=s.progressive,
                one_row=not is_prompt,
            ),
            groups=groups_of(self.shape),
        )

    def returned(self, tokens: np.ndarray, importance: np.ndarray) -> None:
        """Of the layer described last: int64[n] the tokens present, int64[n] their importance after it."""
        if self._layer == 1:  # those after eviction
            self._tokens = tokens
        if self._scores_tokens(self._number):
            self._importance[tokens] = importance

    def _scores_tokens(self, number: int) -> bool:
        return number > 0 or self.settings.prune_prompt or self.settings.score_prompt

    def _prunes_tokens(self) -> bool:
        """By what the passes before have scored; a prompt that is pruned, by itself."""
        return self.settings.prune_prompt or (self._number > 0 and self._scores_tokens(self._number - 1))

    def _n_present(self, number: int) -> int:
        """Most tokens of a layer of the pass."""
        return min(self._n_keep(number), self.n_prompt + number)

    def _n_keep(self, number: int) -> int:
        """Tokens with which a pass begins: the nominal count of its first layer, never the newest alone."""
        if number == 0 or not self._scores_tokens(number - 1):
            return self.n_prompt + number
        return max(2, self.settings.token_counts(self.shape.n_layers, self.n_prompt + number)[0])


def _check_decoder(
    config: AttentionConfig, settings: CascadeSettings, shape: ModelShape, n_passes: int
) -> None:
    if not shape.causal:
        raise ValueError(f"the model must be a decoder, not {shape}")
    if settings.prune_prompt and n_passes > 1:
        raise ValueError(
            "prune_prompt must be False to generate on the chip: after a pruned prompt each layer would hold "
            "K and V of another set of tokens"
        )
    if settings.importance_rescale not in (0.5, 1):
        raise ValueError(
            f"importance_rescale must be 0.5 or 1 on the chip, not {settings.importance_rescale}"
        )
    if shape.n_layers > MAX_LAYERS:
        raise ValueError(f"n_layers must be at most {MAX_LAYERS} on the chip, not {shape.n_layers}")


def _check_size(config: AttentionConfig, shape: ModelShape, n_tokens: int) -> None:
    """ValueError where so many tokens, or the model's heads, do not fit: keys that do not are streamed."""
    config.check_run(n_tokens, shape.n_heads, shape.head_dim, progressive=False, streamed=True)


def streams(
    config: AttentionConfig, shape: ModelShape, n_tokens: int, *, progressive: bool, one_row: bool = False
) -> bool:
    """Whether a layer of so many tokens is streamed: its keys do not fit in half of the buffer, or
    nothing shares them, because heads have one row each and a K of their own.
    """
    fits = n_tokens <= config.fitting_tokens(shape.head_dim, progressive=progressive)
    return not fits or (one_row and shape.n_kv_heads == shape.n_heads)


def groups_of(shape: ModelShape) -> list[int]:
    """Of each query head the number of its K and V."""
    return [head * shape.n_kv_heads // shape.n_heads for head in range(shape.n_heads)]


def _head_inputs(
    heads: Sequence[tuple[Integers, Integers, Integers]], score_steps: Sequence[float], s: CascadeSettings
) -> list[HeadInput]:
    return [
        HeadInput(q=q, k=k, v=v, msb_scale=row_scale(step * (1 << s.lsb_bits)), lsb_scale=row_scale(step))
        for (q, k, v), step in zip(heads, score_steps, strict=True)
    ]


def passes_of(record: AttentionRecord, config: AttentionConfig) -> list[Pass]:
    """The passes of a record, for the chip to compute and decide anew.

    An encoder has one. Those of a decoder share K and V, and each is given the importance that the chip had
    when the record was made.

    ValueError where the record holds no integers, V has more than one step in a layer, a decoder's was not
    made on the chip, or the chip cannot run it.
    """
    if not record.shape.causal:
        return [Pass(layers=layers_of(record, config), bits=plane_bits(record.settings))]
    builder = DecoderBuilder(config, record.settings, record.shape, record.n_prompt, len(record.passes))
    shape, n_groups = record.shape, record.shape.n_kv_heads
    groups = groups_of(shape)
    keys, values = (
        np.zeros((shape.n_layers, n_groups, builder.n_all, shape.head_dim), dtype=np.int64) for _ in "kv"
    )
    passes = []
    for number, of_pass in enumerate(record.passes):
        given = builder.begin()
        layers = []
        for index, layer in enumerate(of_pass):
            q, k, v = _integers(layer, index)
            if layer.token_importance is None:
                raise ValueError(f"pass {number} of the record must hold importance: run it on the chip")
            keys[index, :, layer.queries], values[index, :, layer.queries] = (
                x.transpose(1, 0, 2) for x in (k, v)
            )
            queries = q if number else _by_position(q, layer, record.n_prompt)
            heads = [
                (queries[head], *(x[index, group, : builder.n_positions] for x in (keys, values)))
                for head, group in enumerate(groups)
            ]
            assert layer.q_scale is not None and layer.k_scale is not None
            steps = shape.head_dim**-0.5 * layer.q_scale * layer.k_scale[groups]
            layers.append(builder.next(heads, steps.tolist()))
            builder.returned(layer.keys.astype(np.int64), layer.token_importance)
        lists = [layer.heads.tolist() for layer in of_pass]
        passes.append(
            Pass(
                layers=layers,
                bits=builder.bits,
                given=given,
                heads=changed_heads(lists, shape.n_heads) if number else {},
                sequence=0,
            )
        )
    return passes


def _integers(layer: LayerRecord, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, K and V of a layer; ValueError where there are none, or V's steps differ."""
    if layer.q is None or layer.k is None or layer.v is None or layer.q_scale is None:
        raise ValueError(f"layer {number} of the record must hold integers (capture 'integers')")
    assert layer.v_scale is not None
    if np.ptp(layer.v_scale) > 0:
        raise ValueError(
            f"v_scale of layer {number} must be the same for all heads, so that the sizes of their "
            f"outputs compare, not {layer.v_scale.min():g}..{layer.v_scale.max():g}"
        )
    return layer.q, layer.k, layer.v


def layers_of(record: AttentionRecord, config: AttentionConfig) -> list[LayerInput]:
    """The layers of an encoder's record; ValueErrors as :func:`passes_of` has them."""
    shape = record.shape
    builder = LayerBuilder(config, record.settings, shape, record.n_prompt)
    layers = []
    for number, layer in enumerate(record.passes[0]):
        planes = [_by_position(x, layer, record.n_prompt) for x in _integers(layer, number)]
        assert layer.q_scale is not None and layer.k_scale is not None
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
