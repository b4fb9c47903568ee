# SPDX-License-Identifier: MIT
"""A real encoder or decoder whose attention is the chip's: integers in and out, the chip's own decisions.

The rest of the model stays in float, as the host computes it: embeddings, projections, feed-forward layers.
In each layer the host quantises Q, K and V; :class:`hw.attention.golden.AttentionGolden`, bit for bit the
RTL, computes the attention and decides which tokens and heads the next layer has. A decoder runs its prompt,
and then a pass for each token fed back; the host keeps K, V and the tokens' importance by position.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from algo.attention.cascade import Cascade
from algo.attention.decoder import Decoder, Session
from algo.attention.encoder import Encoder
from algo.attention.quantise import quantise, scale_of
from algo.attention.record import AttentionRecord, LayerRecord, ModelShape
from algo.attention.settings import CascadeSettings
from hw.attention.config import AttentionConfig
from hw.attention.golden import AttentionGolden, Eviction, LayerResult
from hw.attention.layers import GivenTokens, LayerInput
from hw.attention.program import changed_heads
from hw.attention.trace import Sentence
from hw.pv.config import PROBABILITY_BITS
from sim.driver.layers import DecoderBuilder, LayerBuilder, groups_of


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


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipGenerationRun:
    """What one prompt gave: the last token is not fed back."""

    token_ids: Tensor
    """Prompt and generated tokens, int64[n]."""
    n_prompt: int
    text: str | None
    """The generated part, where there is a tokenizer."""
    logits: Tensor
    """Scores of each new token, float[n_new, vocab]."""
    passes: tuple[tuple[ChipLayer, ...], ...]
    """The prompt, then one pass for each token fed back."""
    sentences: tuple[Sentence, ...]
    """The same as the core is given it, and what must come out."""
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
        _no_dropout(dropout)
        steps = _steps(q, k, v, self._bits, self.golden.heads)
        ints = _integers(q, k, v, self._bits, steps)
        planes = [_by_position(x, self.rows, self.golden.n_tokens) for x in ints]
        score_steps = (scaling * steps[0] * steps[1]).tolist()
        given = self._builder.next(
            list(zip(*planes, strict=True)), score_steps, len(self.rows), len(self.golden.heads)
        )
        result = self.golden.layer(given)
        self.layers.append(_chip_layer(given, result, self.rows, ints, score_steps, steps))
        return _outputs(self.layers[-1], q)


class ChipGeneration:
    """Takes the place of a cascade in a decoder's call: prompt and generation, pass after pass.

    As in :class:`algo.attention.cascade.Cascade`, steps are those of the prompt, and what is larger later
    saturates: Q's for each head, K's for each group; V's one for all groups that have a head left.
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
        self._builder = builder = DecoderBuilder(config, settings, shape, n_prompt, n_passes)
        self._bits = (builder.bits.q, builder.bits.k + settings.lsb_bits, builder.bits.v)
        self.config, self.settings, self.shape = config, settings, shape
        self.passes: list[list[ChipLayer]] = []
        self.given: list[GivenTokens | None] = []
        """The list with which each pass began."""
        self.evictions: list[Eviction | None] = []
        self.rows = torch.arange(n_prompt)
        """int64[n], positions of the rows in the layer at hand."""
        self._steps: list[list[Tensor]] = []
        """Of each layer, fixed by the prompt."""
        self._groups = torch.tensor(groups_of(shape))
        rows = (shape.n_layers, shape.n_kv_heads, builder.n_all, shape.head_dim)
        self._keys, self._values = (torch.zeros(rows, dtype=torch.int64) for _ in "kv")
        """Of each layer and group, by position."""

    # ---- passes -------------------------------------------------------------------------------------------

    def begin(self, batch: int, n_tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """Start the prompt's pass; returns its positions, int64[1, n_tokens]. One sequence, on the CPU."""
        assert (batch, n_tokens) == (1, len(self.rows))
        self.golden = AttentionGolden(self.config, n_tokens, self.shape.n_heads)
        self._begin(self._builder.begin())
        return self.rows[None]

    def step(self) -> Tensor:
        """Start the pass of one more token; returns its position, int64[1, 1]."""
        given = self._builder.begin()
        assert given is not None
        n_positions = self._builder.n_positions
        self.golden = AttentionGolden.given(
            self.config,
            torch.from_numpy(given.tokens),
            torch.from_numpy(given.importance),
            given.n_keep,
            n_positions,
            self.shape.n_heads,
            self._builder.token_shift,
            given.halve,
            protect_last=True,
        )
        self.rows = torch.tensor([n_positions - 1])
        self._begin(given)
        return self.rows[None]

    def _begin(self, given: GivenTokens | None) -> None:
        self.given.append(given)
        self.evictions.append(self.golden.eviction)
        self.passes.append([])

    # ---- called by the model adapter ----------------------------------------------------------------------

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """Of x : float[1, n', ...] the rows that the chip kept for ``layer``; a new token's one row stays."""
        kept = torch.isin(self.rows, self.golden.tokens)
        self.rows = self.rows[kept]
        return x[:, kept] if layer else x

    def rotate(self, x: Tensor) -> Tensor:
        """Of x : float[1, n_all, D], one row for each row of the pass, those of the rows still there."""
        return x if x.shape[1] == 1 else x[:, self.rows]

    def leave(self, x: Tensor) -> Tensor:
        """Rows x : float[1, n, C] back in place among all rows of the pass; a pruned token's row is zero."""
        if len(self.passes) > 1:
            return x
        return x.new_zeros(1, self.golden.n_tokens, x.shape[2]).index_copy(1, self.rows, x)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, dropout: float = 0.0
    ) -> Tensor:
        """q : float[1, H, n, D]; k, v : float[1, G, n, D], of the rows of this pass that are still there.

        Returns float[1, H, n, D]; a pruned head gives zeros.
        """
        _no_dropout(dropout)
        is_prompt = len(self.passes) == 1
        heads = self.golden.heads if is_prompt else self.passes[0][layer].result.heads
        if is_prompt:
            self._steps.append(_steps(q, k, v, self._bits, self._groups[heads].unique()))
        steps = self._steps[layer]
        ints = _integers(q, k, v, self._bits, steps)
        for memory, rows in ((self._keys, ints[1]), (self._values, ints[2])):
            memory[layer][:, self.rows] = rows
        queries = _by_position(ints[0], self.rows, self.golden.n_tokens) if is_prompt else ints[0]
        keys, values = (x[layer][:, : self.golden.n_tokens] for x in (self._keys, self._values))
        planes = [(queries[head], keys[group], values[group]) for head, group in enumerate(self._groups)]
        score_steps = (scaling * steps[0] * steps[1][self._groups]).tolist()
        given = self._builder.next(planes, score_steps)
        result = self.golden.layer(given, None if is_prompt else heads.tolist())
        self._builder.returned(result.tokens.numpy(), result.token_importance.numpy())
        self.passes[-1].append(_chip_layer(given, result, self.rows, ints, score_steps, steps))
        return _outputs(self.passes[-1][-1], q)

    def sentences(self) -> list[Sentence]:
        """What the core was given for each pass, and what must come out."""
        lists = [layer.result.heads.tolist() for layer in self.passes[0]]
        heads = changed_heads(lists, self.shape.n_heads)
        return [
            Sentence(
                layers=[layer.input for layer in layers],
                bits=self._builder.bits,
                given=given,
                heads=heads if given else {},
                sequence=0,
                results=[layer.result for layer in layers],
                eviction=eviction,
            )
            for layers, given, eviction in zip(self.passes, self.given, self.evictions, strict=True)
        ]

    def record(self, model: str, token_ids: Tensor) -> AttentionRecord:
        """The run so far; ``token_ids`` int64[n] are the tokens of all passes."""
        return AttentionRecord(
            model=model,
            shape=self.shape,
            settings=self.settings,
            token_ids=token_ids.numpy().astype(np.int32),
            n_prompt=self._builder.n_prompt,
            passes=tuple(tuple(layer.record for layer in layers) for layers in self.passes),
        )


# ---- one layer's numbers ----------------------------------------------------------------------------------


def _no_dropout(dropout: float) -> None:
    if dropout:
        raise ValueError(f"dropout must be 0 on the chip, not {dropout}")


def _steps(q: Tensor, k: Tensor, v: Tensor, bits: tuple[int, int, int], v_heads: Tensor) -> list[Tensor]:
    """Value of one unit, float64 [H] of q, [G] of k and of v: one for each, but of v that of ``v_heads``."""
    q_bits, k_bits, v_bits = bits
    scales = (
        scale_of(q, q_bits, (2, 3)),
        scale_of(k, k_bits, (2, 3)),
        scale_of(v[:, v_heads], v_bits, (1, 2, 3)),
    )
    sizes = (q.shape[1], k.shape[1], v.shape[1])
    return [scale.double().expand(1, n, 1, 1).flatten() for scale, n in zip(scales, sizes, strict=True)]


def _integers(
    q: Tensor, k: Tensor, v: Tensor, bits: tuple[int, int, int], steps: list[Tensor]
) -> list[Tensor]:
    """int64[heads, n, D] each; what is larger than the steps allow saturates."""
    return [
        quantise(x, width, step.to(x.dtype)[None, :, None, None])[0].to(torch.int64)
        for x, width, step in zip((q, k, v), bits, steps, strict=True)
    ]


def _by_position(x: Tensor, rows: Tensor, n_tokens: int) -> Tensor:
    """int64[H, n, D] to [H, N, D]; zeros for tokens no longer there, as nothing reads them."""
    return x.new_zeros(len(x), n_tokens, x.shape[2]).index_copy(1, rows, x)


def _chip_layer(
    given: LayerInput,
    result: LayerResult,
    rows: Tensor,
    ints: list[Tensor],
    score_steps: list[float],
    steps: list[Tensor],
) -> ChipLayer:
    return ChipLayer(
        input=given,
        result=result,
        score_steps=tuple(score_steps),
        v_step=float(steps[2][0]),
        record=_record(given, result, rows, ints, steps),
    )


def _outputs(layer: ChipLayer, like: Tensor) -> Tensor:
    """float[1, H, n, D] as the model goes on with them."""
    out = torch.zeros_like(like)
    out[0, layer.result.heads] = (layer.result.outputs * layer.o_step).to(like.dtype)
    return out


def _record(
    given: LayerInput, result: LayerResult, rows: Tensor, ints: list[Tensor], steps: list[Tensor]
) -> LayerRecord:
    n_heads = len(given.heads)

    def of_all_heads(decided: Tensor) -> np.ndarray:
        """bool[h, ...] to [H, ...], False for a head pruned."""
        every = torch.zeros(n_heads, *decided.shape[1:], dtype=torch.bool)
        return every.index_copy(0, result.heads, decided).numpy()

    q, k, v = (x.numpy().astype(np.int16) for x in ints)
    q_scale, k_scale, v_scale = (step.numpy() for step in steps)
    kept = result.kept_values
    seen = torch.ones_like(kept).tril() if given.rows == "causal" else torch.ones_like(kept)
    return LayerRecord(
        queries=rows.numpy().astype(np.int32),
        keys=result.tokens.numpy().astype(np.int32),
        heads=result.heads.numpy().astype(np.int32),
        values=None if torch.equal(kept, seen) else of_all_heads(kept),
        lsb_rows=of_all_heads(result.used_lsb) if given.progressive else None,
        q=q,
        k=k,
        v=v,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        token_importance=result.token_importance.numpy(),
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


def generate_on_chip(
    decoder: Decoder,
    prompt: str | list[int] | Tensor,
    settings: CascadeSettings,
    config: AttentionConfig,
    n_new: int,
) -> ChipGenerationRun:
    """Generate ``n_new`` tokens greedily (ties to the lower id) with the attention of the chip.

    ValueError on a prompt that is empty or too long for the model or the chip, on settings that the chip
    cannot run, and on ``n_new`` above 1 after a prompt that is pruned.
    """
    if n_new < 1:
        raise ValueError(f"n_new must be at least 1, not {n_new}")
    ids = decoder.token_ids(prompt, n_new)
    chip = ChipGeneration(config, settings, decoder.shape, len(ids), n_new)
    session = Session(decoder.model, ids[None], cast(Cascade, chip))  # it takes what a cascade takes
    logits = [session.logits]
    tokens = [session.logits.argmax(-1)]
    for _ in range(n_new - 1):
        logits.append(session.feed(tokens[-1]))
        tokens.append(session.logits.argmax(-1))
    all_ids = torch.cat([ids, *tokens])
    return ChipGenerationRun(
        token_ids=all_ids,
        n_prompt=len(ids),
        text=None if decoder.tokenizer is None else str(decoder.tokenizer.decode(torch.cat(tokens).tolist())),
        logits=torch.cat(logits),
        passes=tuple(tuple(layers) for layers in chip.passes),
        sentences=tuple(chip.sentences()),
        record=chip.record(decoder.name, all_ids[:-1]),
    )
