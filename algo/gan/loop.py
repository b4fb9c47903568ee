# SPDX-License-Identifier: MIT
"""A training loop that can stop at any time and ends with the same bits as if it never had.

All randomness of a step comes from a generator seeded by (seed, step), so that a checkpoint needs no more
than the tensors. On the CPU the result depends on the number of threads as well.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from algo.files import write_atomically

Losses = dict[str, float]
WEIGHTS, FINISHED, POINTER = "weights.safetensors", "train.json", "checkpoint.json"
"""Files of a run: the first two when it has ended, the last while it has not."""
OnStep = Callable[[int, int, Losses], None]
"""``on_step(step, n_steps, losses)`` after every step."""
OnSave = Callable[[int], None]
"""``on_save(step)`` after every checkpoint and at the end."""


class Trainee(Protocol):
    """What :func:`run` trains."""

    state: "State"

    def describe(self) -> dict[str, Any]:
        """Everything that the result depends on, as plain data."""
        ...

    def step(self, step: int, rng: torch.Generator) -> Losses:
        """One step, 1 the first; draws from ``rng`` (on the CPU) only."""
        ...


class State:
    """Every tensor that training changes: modules by name, and Adam's moments.

    Parameters: ``optimizers`` are named like the module whose parameters they own.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> None:
        self.modules, self.optimizers = modules, optimizers

    def weights(self) -> dict[str, Tensor]:
        """Those of the modules, named "module.parameter"."""
        return {
            f"{part}.{name}": value
            for part, module in self.modules.items()
            for name, value in module.state_dict().items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments; a parameter that has had no gradient yet has none."""
        moments = {
            f"{key}:{part}.{name}": value
            for part, optimizer in self.optimizers.items()
            for name, parameter in self.modules[part].named_parameters()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        return self.weights() | moments

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`tensors`; KeyError where a weight is missing."""
        with torch.no_grad():
            for name, value in self.weights().items():
                value.copy_(tensors[name])
        for part, optimizer in self.optimizers.items():
            for name, parameter in self.modules[part].named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                saved = {key: tensors.get(f"{key}:{part}.{name}") for key in keys}
                optimizer.state[parameter] = {
                    # Adam keeps its step count on the CPU.
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in saved.items()
                    if value is not None
                }


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """How long, and how often to save."""

    n_steps: int
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("n_steps", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")


def run(
    trainee: Trainee, config: LoopConfig, folder: Path, on_step: OnStep, on_save: OnSave = lambda step: None
) -> list[Losses]:
    """Train, or finish a started run in ``folder``; returns the losses of each step.

    Leaves ``weights.safetensors`` (no moments) and ``train.json``; a finished run is read, not repeated.
    ValueError if ``folder`` holds another run or a damaged one.
    """
    described = {**trainee.describe(), "n_steps": config.n_steps, "seed": config.seed}
    if (folder / FINISHED).is_file():
        done = _json(folder / FINISHED)
        _check_same(done["run"], described, folder)
        trainee.state.restore({**trainee.state.tensors(), **_read(folder / WEIGHTS, None)})
        return done["losses"]
    losses = _resume(folder, described, trainee.state)
    for step in range(len(losses) + 1, config.n_steps + 1):
        rng = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        losses.append(trainee.step(step, rng))
        on_step(step, config.n_steps, losses[-1])
        if step % config.checkpoint_steps == 0 and step < config.n_steps:
            _checkpoint(folder, described, trainee.state, losses)
            on_save(step)
    write_atomically(folder / WEIGHTS, save(_plain(trainee.state.weights())))
    on_save(config.n_steps)
    finished = json.dumps({"run": described, "losses": losses})
    write_atomically(folder / FINISHED, finished.encode())
    for leftover in [*folder.glob("checkpoint-*.safetensors"), folder / POINTER]:
        leftover.unlink(missing_ok=True)
    return losses


def load_run(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of a finished run; FileNotFoundError where there is none."""
    if not (folder / FINISHED).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds no finished training run ({FINISHED}, {WEIGHTS})")
    return _json(folder / FINISHED)["run"], _read(folder / WEIGHTS, None)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _checkpoint(folder: Path, described: dict, state: State, losses: list[Losses]) -> None:
    """Tensors first, under a name of their own; then the JSON that points to them; then the old ones go."""
    data = save(_plain(state.tensors()))
    path = folder / f"checkpoint-{len(losses):06d}.safetensors"
    write_atomically(path, data)
    pointer = {
        "run": described,
        "losses": losses,
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomically(folder / POINTER, json.dumps(pointer).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != path:
            old.unlink()


def _resume(folder: Path, described: dict, state: State) -> list[Losses]:
    """Load the checkpoint, if there is one; returns the losses of the steps it covers."""
    if not (folder / POINTER).is_file():
        return []
    pointer = _json(folder / POINTER)
    _check_same(pointer["run"], described, folder)
    state.restore(_read(folder / pointer["file"], pointer["sha256"]))
    return pointer["losses"]


def _read(path: Path, sha256: str | None) -> dict[str, Tensor]:
    data = path.read_bytes() if path.is_file() else b""
    if not data or sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise ValueError(f"{path} is damaged: remove {path.parent} to start anew")
    return load(data)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: remove it to start anew") from None


def _check_same(saved: dict, described: dict, folder: Path) -> None:
    """A folder belongs to one run: name the first difference."""
    for key, value in json.loads(json.dumps(described)).items():
        if saved.get(key) != value:
            raise ValueError(f"{folder} holds another run: {key} {saved.get(key)!r} there, {value!r} here")
