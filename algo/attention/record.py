# SPDX-License-Identifier: MIT
"""What the cascade decided, pass by pass and layer by layer, as numpy: the workload of RTL and simulator.

Needs no torch. Saved as a folder of two files: ``record.json`` (model, settings, tokens, checksum) and
``record.safetensors`` (arrays named ``pass.layer.field``).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from algo.attention.settings import CascadeSettings
from algo.files import write_atomically

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The attention geometry of a model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Key/value heads; query head h reads key/value head h // (n_heads / n_kv_heads)."""
    head_dim: int
    causal: bool
    """True for decoders: a query sees its own and earlier positions only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerRecord:
    """One layer in one pass. H heads, G key/value heads, n queries, m keys, D head dimension."""

    queries: NDArray[np.int32]
    """Positions of the rows, ascending, [n]: in the first pass those of the keys, later the new token."""
    keys: NDArray[np.int32]
    """Positions of the keys kept, ascending, [m]; a decoder's query sees those up to its own position."""
    heads: NDArray[np.int32]
    """Heads computed, ascending."""
    values: NDArray[np.bool_] | None = None
    """Local value pruning: V vectors fetched, [H, n, m]; None: all that the query sees."""
    lsb_rows: NDArray[np.bool_] | None = None
    """Progressive quantisation: rows redone with K's LSBs, [H, n]; None: static quantisation or float."""
    q: NDArray[np.int16] | None = None
    """Integers of this pass's rows, [H, n, D], ``q_bits`` wide."""
    k: NDArray[np.int16] | None = None
    """[G, n, D], ``k_bits + lsb_bits`` wide: MSB plane ``k >> lsb_bits``, LSB plane the rest."""
    v: NDArray[np.int16] | None = None
    """[G, n, D], ``v_bits`` wide. K and V of earlier tokens are in the pass that made them."""
    q_scale: NDArray[np.float64] | None = None
    """Value of one step of q, per head, [H]; the same in every pass, as are k_scale and v_scale."""
    k_scale: NDArray[np.float64] | None = None
    """[G]"""
    v_scale: NDArray[np.float64] | None = None
    """[G]"""
    token_importance: NDArray[np.int64] | None = None
    """Where the chip decided: importance of each key after this layer, as its selection compared it, [m]."""

    @property
    def n_keys(self) -> int:
        """Keys kept."""
        return len(self.keys)

    @property
    def n_values(self) -> int:
        """Values fetched by the last query of a head: the largest over heads."""
        if self.values is None or not len(self.heads):
            return len(self.keys)
        return int(self.values[self.heads, -1].sum(-1).max())

    @property
    def lsb_fraction(self) -> float:
        """Share of (head, query) rows redone with LSBs, over the heads computed."""
        if self.lsb_rows is None:
            return 0.0
        return float(self.lsb_rows[self.heads].mean())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionRecord:
    """A whole run: the prompt (or encoder) pass, then one pass for each generated token."""

    model: str
    """Where the weights came from, for the reader."""
    shape: ModelShape
    settings: CascadeSettings
    token_ids: NDArray[np.int32]
    """Input and generated tokens, [n]."""
    n_prompt: int
    """Tokens of the first pass."""
    passes: tuple[tuple[LayerRecord, ...], ...]
    """Layer by layer, for each pass."""

    @property
    def key_counts(self) -> NDArray[np.int64]:
        """Keys kept, [pass, layer]."""
        return np.array([[layer.n_keys for layer in layers] for layers in self.passes])

    @property
    def value_counts(self) -> NDArray[np.int64]:
        """Values fetched by the last query, [pass, layer]."""
        return np.array([[layer.n_values for layer in layers] for layers in self.passes])

    @property
    def head_counts(self) -> NDArray[np.int64]:
        """Heads computed, [pass, layer]."""
        return np.array([[len(layer.heads) for layer in layers] for layers in self.passes])

    @property
    def lsb_fractions(self) -> NDArray[np.float64]:
        """Share of rows redone with LSBs, [pass, layer]."""
        return np.array([[layer.lsb_fraction for layer in layers] for layers in self.passes])

    def save(self, folder: str | Path) -> Path:
        """Write ``record.json`` and ``record.safetensors``; each file appears whole or not at all."""
        folder = Path(folder)
        tensors = save(dict(self._arrays()))
        header = {
            "format": FORMAT,
            "model": self.model,
            "shape": asdict(self.shape),
            "settings": self.settings.to_dict(),
            "token_ids": self.token_ids.tolist(),
            "n_prompt": self.n_prompt,
            "n_passes": len(self.passes),
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        }
        write_atomically(folder / "record.safetensors", tensors)
        write_atomically(folder / "record.json", json.dumps(header, indent=1).encode())
        return folder

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for i_pass, layers in enumerate(self.passes):
            for i_layer, layer in enumerate(layers):
                for field in fields(LayerRecord):
                    array = getattr(layer, field.name)
                    if array is not None:
                        yield f"{i_pass}.{i_layer}.{field.name}", np.ascontiguousarray(array)

    @classmethod
    def load(cls, folder: str | Path) -> "AttentionRecord":
        """Read a saved record. FileNotFoundError where a file is missing, ValueError where one is damaged."""
        folder = Path(folder)
        for name in ("record.json", "record.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} is not a record: it has no {name}")
        try:
            header = json.loads((folder / "record.json").read_text())
            known = header["format"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{folder / 'record.json'} is damaged") from None
        if known != FORMAT:
            raise ValueError(f"format of {folder / 'record.json'} must be {FORMAT}, not {known}")
        tensors = (folder / "record.safetensors").read_bytes()
        if hashlib.sha256(tensors).hexdigest() != header["tensors_sha256"]:
            raise ValueError(
                f"{folder / 'record.safetensors'} does not belong to its record.json, or is damaged"
            )
        arrays: dict[tuple[int, int], dict[str, Any]] = {}
        for name, array in load(tensors).items():
            i_pass, i_layer, field = name.split(".")
            arrays.setdefault((int(i_pass), int(i_layer)), {})[field] = array
        shape = ModelShape(**header["shape"])
        return cls(
            model=header["model"],
            shape=shape,
            settings=CascadeSettings.from_dict(header["settings"]),
            token_ids=np.array(header["token_ids"], np.int32),
            n_prompt=header["n_prompt"],
            passes=tuple(
                tuple(LayerRecord(**arrays[i_pass, i_layer]) for i_layer in range(shape.n_layers))
                for i_pass in range(header["n_passes"])
            ),
        )
