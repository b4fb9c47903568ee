# SPDX-License-Identifier: MIT
"""Fine-tuning with the cascade switched on: the pruned, quantised forward pass, trained end to end.

Selections take no gradient and quantisation passes it straight through. A run can stop at any time: started
again it goes on from its last checkpoint and ends with the same bits as if never stopped (on the CPU with the
same number of threads), because the batch order depends on (seed, epoch) and dropout on (seed, step) only.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from algo.attention.cascade import Cascade, Scales
from algo.attention.decoder import Decoder
from algo.attention.encoder import Encoder
from algo.attention.models import family_of
from algo.attention.record import ModelShape
from algo.attention.reviews import Review
from algo.attention.settings import CascadeSettings
from algo.files import write_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 5e-5
    """Peak; linear warm-up over the first tenth of the steps, then linear decay to 0. AdamW."""
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"
    checkpoint_steps: int = 100
    bfloat16_products: bool = False
    """Matrix products round their float32 inputs to bfloat16 where the CPU can (PyTorch's precision
    "medium"): two to three times as fast. All else stays in float32."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "checkpoint_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if self.device.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, not {self.device!r}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but this PyTorch sees no CUDA device")


class Task(Protocol):
    """What :func:`train` trains."""

    module: nn.Module
    """Parameters that require a gradient are trained and saved."""

    def describe(self) -> dict[str, Any]:
        """Everything that the result depends on, as plain data."""
        ...

    def batches(self, generator: torch.Generator, batch_size: int) -> Sequence[Any]:
        """One epoch."""
        ...

    def loss(self, batch: Any, progress: float = 1.0) -> Tensor:
        """Scalar; ``progress`` is the share of the run's steps done before this one."""
        ...


OnStep = Callable[[int, int, float], None]
"""``on_step(step, n_steps, loss)``."""


def train(task: Task, config: TrainConfig, folder: Path, on_step: OnStep) -> list[float]:
    """Train, or finish a started run in ``folder``; returns the loss of each step.

    Leaves ``weights.safetensors`` and ``train.json``. ValueError if ``folder`` holds another run.
    """
    run = {"task": task.describe(), "config": asdict(config)}
    if (folder / "train.json").is_file():
        done = _json(folder / "train.json")
        _check_same(done["run"], run, folder)
        restore_weights(task.module, folder)
        return done["losses"]
    module = task.module.to(config.device)
    parameters: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), config.learning_rate, weight_decay=config.weight_decay)
    losses = _resume(folder, run, parameters, optimizer)
    module.train()
    with matmul_precision(bfloat16_products=config.bfloat16_products):
        _take_steps(task, config, folder, run, parameters, optimizer, losses, on_step)
    module.eval()
    write_atomically(folder / "weights.safetensors", save(_plain(parameters)))
    finished = json.dumps({"run": run, "losses": losses}, indent=1)
    write_atomically(folder / "train.json", finished.encode())
    for leftover in [*folder.glob("checkpoint-*.safetensors"), folder / "checkpoint.json"]:
        leftover.unlink(missing_ok=True)
    return losses


@contextmanager
def matmul_precision(*, bfloat16_products: bool) -> Iterator[None]:
    """Set it for a while: see :attr:`TrainConfig.bfloat16_products`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if bfloat16_products else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _take_steps(
    task: Task, config: TrainConfig, folder: Path, run: dict, parameters: dict[str, Tensor],
    optimizer: torch.optim.AdamW, losses: list[float], on_step: OnStep,
) -> None:  # fmt: skip
    """All steps that ``losses`` does not hold yet; appends to it."""
    n_steps = step = 0
    for epoch in range(config.epochs):
        batches = task.batches(torch.Generator().manual_seed(config.seed * 1000 + epoch), config.batch_size)
        n_steps = len(batches) * config.epochs
        for batch in batches:
            step += 1
            if step <= len(losses):
                continue
            torch.manual_seed(config.seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _slope(step, n_steps)
            loss = task.loss(batch, (step - 1) / n_steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            on_step(step, n_steps, losses[-1])
            if step % config.checkpoint_steps == 0:
                _checkpoint(folder, run, parameters, optimizer, losses)


def restore_weights(module: nn.Module, folder: Path) -> None:
    """Load the weights of a finished run; FileNotFoundError if absent, ValueError if they do not fit."""
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished training run: it has no weights.safetensors")
    weights = load(path.read_bytes())
    parameters = dict(module.named_parameters())
    for name, value in weights.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ValueError(f"{path} does not fit the model: {name} of shape {tuple(value.shape)}")
        parameters[name].data.copy_(value)


def _slope(step: int, n_steps: int) -> float:
    warm_up = max(1, n_steps // 10)
    return min(step / warm_up, (n_steps - step + 1) / max(1, n_steps - warm_up + 1), 1.0)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _checkpoint(
    folder: Path, run: dict, parameters: dict[str, Tensor], optimizer: torch.optim.AdamW, losses: list[float]
) -> None:
    """Tensors first, under a name of their own; then the JSON that points to them; then the old ones go."""
    tensors = dict(parameters)
    for name, p in parameters.items():
        for key, value in optimizer.state[p].items():
            tensors[f"{key}:{name}"] = value
    data = save(_plain(tensors))
    path = folder / f"checkpoint-{len(losses):06d}.safetensors"
    write_atomically(path, data)
    pointer = {"run": run, "losses": losses, "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / "checkpoint.json", json.dumps(pointer).encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != path:
            old.unlink()


def _resume(
    folder: Path, run: dict, parameters: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> list[float]:
    """Load the checkpoint, if there is one; returns the losses of the steps it covers."""
    if not (folder / "checkpoint.json").is_file():
        return []
    pointer = _json(folder / "checkpoint.json")
    _check_same(pointer["run"], run, folder)
    path = folder / pointer["file"]
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != pointer["sha256"]:
        raise ValueError(f"checkpoint {path} is damaged: remove {folder} to start anew")
    tensors = load(data)
    for name, p in parameters.items():
        p.data.copy_(tensors[name])
        state = {key: tensors[f"{key}:{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[p] = {
            key: value if key == "step" else value.to(p.device) for key, value in state.items()
        }
    return pointer["losses"]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: remove it to start anew") from None


def _check_same(saved: dict, run: dict, folder: Path) -> None:
    """A folder belongs to one run: name the first difference."""
    run = json.loads(json.dumps(run))
    defaults = {"task": {"early_exit": False, "anneal": 0.0}, "config": asdict(TrainConfig())}
    for part in run:
        for key, value in run[part].items():
            there = saved[part].get(key, defaults[part].get(key))
            if key == "settings" and there is not None:  # one that came later had its default
                there = CascadeSettings().to_dict() | there
            if there != value:
                raise ValueError(f"{folder} holds another run: {key} {there!r} there, {value!r} here")


# ---- tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Weights of what a pruned model learns from its dense teacher, beside the labels (weight 1)."""

    logits: float = 1.0
    """Kullback-Leibler divergence of the softened classes, times temperature^2 (Hinton et al., 2015)."""
    temperature: float = 2.0
    embedding: float = 1.0
    """Squared error of the mean hidden state, over the teacher's variance across sentences."""
    importance: float = 1.0
    """Divergence of each pruning layer's token importance from the teacher's :attr:`Teacher.saliency`."""
    sharpness: float = 2.0
    """Power of the saliency: above 1 it stresses the tokens that matter most."""

    def __post_init__(self) -> None:
        for name in ("logits", "embedding", "importance"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("temperature", "sharpness"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Teacher:
    """What a dense model says about each sentence of a task."""

    logits: Tensor  # float[N, 2]
    embedding: Tensor  # float[N, hidden]
    saliency: list[Tensor]
    """Per sentence float[n], >= 0: how much each token's hidden state after the first layer can move the
    decision, the norm of the gradient of (positive - negative logit). The first selection happens there."""
    source: str
    """Where the dense model came from."""

    def fits(self, ids: list[Tensor]) -> bool:
        """Whether sentences of token ids, int64[n] each, are as many and as long as those it was asked."""
        return [len(row) for row in self.saliency] == [len(row) for row in ids]

    def save(self, path: Path) -> None:
        """One safetensors file, written whole."""
        tensors = {"logits": self.logits, "embedding": self.embedding, "saliency": torch.cat(self.saliency)}
        tensors["lengths"] = torch.tensor([len(row) for row in self.saliency])
        write_atomically(path, save(tensors, {"source": self.source}))

    @classmethod
    def load(cls, path: Path) -> "Teacher":
        """Inverse of :meth:`save`."""
        with safe_open(path, "pt") as file:
            logits, embedding, flat, lengths = (
                file.get_tensor(name) for name in ("logits", "embedding", "saliency", "lengths")
            )
            source = file.metadata()["source"]
        return cls(logits, embedding, list(flat.split(lengths.tolist())), source)


class ImportanceMatch(Cascade):
    """A cascade that measures how far the importance it selects tokens by is from a given saliency.

    Selections take no gradient, so nothing in the loss says which tokens attention should mark as important;
    this divergence does, and it is differentiable in the attention probabilities.
    """

    def __init__(
        self,
        settings: CascadeSettings,
        shape: ModelShape,
        saliency: Tensor | None = None,
        early_exit: bool = False,
    ) -> None:
        """saliency : float[B, n] of all tokens, or None to measure nothing."""
        super().__init__(settings, shape, early_exit=early_exit)
        self.saliency = saliency
        self.divergences: list[Tensor] = []
        """Per layer that selects, scalar: mean over the batch of KL(saliency || column sums), nats."""

    def _probabilities(
        self, q: Tensor, k: Tensor, scales: Scales, scaling: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scores, prob, lsb_rows = super()._probabilities(q, k, scales, scaling)
        selects = len(self.layer_heads) < self.shape.n_layers  # nothing is selected after the last layer
        if self.saliency is not None and selects:
            column_sums = (prob * self.heads[:, :, None, None]).sum((1, 2))  # [B, m]
            target = self.saliency.gather(1, self.keys)
            log_target = (target / target.sum(1, keepdim=True)).clamp_min(1e-9).log()
            log_share = (column_sums / column_sums.sum(1, keepdim=True)).clamp_min(1e-9).log()
            self.divergences.append(
                nn.functional.kl_div(log_share, log_target, log_target=True, reduction="batchmean")
            )
        return scores, prob, lsb_rows


class SentimentTask:
    """Positive or negative: a linear head on the mean of an encoder's tokens, those that survive or all.

    Word embeddings stay as they are. Sentences of equal length form a batch: there is no padding anywhere.
    """

    def __init__(
        self,
        encoder: Encoder,
        reviews: list[Review],
        settings: CascadeSettings,
        source: str,
        teacher: Teacher | None = None,
        distillation: Distillation = Distillation(),
        early_exit: bool = False,
        anneal: float = 0.0,
    ) -> None:
        """The head starts at zero, so nothing depends on a random initialisation.

        ``early_exit``: the mean is over all tokens, a pruned one with the state in which it left.
        ``anneal``: share of the training in which the token ratios fall from 1 to those of the settings.
        ``teacher`` was made by :meth:`teach` of a task with the same sentences; ValueError if it was not.
        """
        hidden_size = encoder.model.config.hidden_size
        self.encoder, self.settings, self.source = encoder, settings, source
        self.early_exit, self.anneal = early_exit, anneal
        self.head = nn.Linear(hidden_size, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.module: nn.Module = nn.ModuleDict({"encoder": encoder.model, "head": self.head})
        for p in encoder.model.get_input_embeddings().parameters():
            p.requires_grad_(False)
        self.ids = [encoder.token_ids(review.text) for review in reviews]
        self.labels = torch.tensor([int(review.positive) for review in reviews])
        if teacher and not teacher.fits(self.ids):
            raise ValueError(
                f"teacher {teacher.source} was asked about other sentences than those of the task"
            )
        self.teacher, self.distillation = teacher, distillation

    def describe(self) -> dict[str, Any]:
        """Model, data and settings."""
        data = hashlib.sha256(b"".join(ids.numpy().tobytes() for ids in self.ids)).hexdigest()[:12]
        description = {
            "task": "sentiment",
            "model": self.encoder.name,
            "source": self.source,
            "n_sentences": len(self.ids),
            "data": data,
            "settings": self.settings.to_dict(),
            "early_exit": self.early_exit,
            "anneal": self.anneal,
        }
        if self.teacher:
            description |= {"teacher": self.teacher.source, "distillation": asdict(self.distillation)}
        return description

    def batches(self, generator: torch.Generator, batch_size: int) -> list[Tensor]:
        """Indices of sentences of equal length, int64[up to batch_size], in random order."""
        lengths = torch.tensor([len(ids) for ids in self.ids])
        batches = []
        for length in lengths.unique().tolist():
            group = (lengths == length).nonzero()[:, 0]
            batches += group[torch.randperm(len(group), generator=generator)].split(batch_size)
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in order]

    def embed(
        self, batch: Tensor, settings: CascadeSettings | None = None, saliency: Tensor | None = None
    ) -> tuple[Tensor, ImportanceMatch]:
        """Mean of the last hidden states that the head reads, float[B, hidden], and the cascade that ran."""
        device = self.head.weight.device
        ids = torch.stack([self.ids[i] for i in batch.tolist()]).to(device)  # [B, n]
        cascade = ImportanceMatch(settings or self.settings, self.encoder.shape, saliency, self.early_exit)
        cascade.begin(ids.shape[0], ids.shape[1], device)
        hidden = self.encoder.model(input_ids=ids, cascade=cascade, return_dict=True).last_hidden_state
        n_read = hidden.shape[1] if self.early_exit else cascade.rows.shape[1]  # rows that are not zeros
        return hidden.sum(1) / n_read, cascade

    def logits(self, batch: Tensor, settings: CascadeSettings | None = None) -> Tensor:
        """Scores of (negative, positive), float[B, 2]."""
        return self.head(self.embed(batch, settings)[0])

    def loss(self, batch: Tensor, progress: float = 1.0) -> Tensor:
        """Mean cross-entropy, nats, and the terms of :class:`Distillation` where there is a teacher."""
        teacher, weight, device = self.teacher, self.distillation, self.head.weight.device
        saliency = None
        if teacher:
            saliency = torch.stack([teacher.saliency[i] for i in batch.tolist()]).to(device)
            saliency = saliency**weight.sharpness
        settings = self.settings
        if progress < self.anneal:
            settings = settings.relaxed(progress / self.anneal, self.encoder.shape.n_layers)
        embedding, cascade = self.embed(batch, settings, saliency)
        logits = self.head(embedding)
        loss = nn.functional.cross_entropy(logits, self.labels[batch].to(device))
        if teacher:
            softened = (logits / weight.temperature).log_softmax(-1)
            target = (teacher.logits[batch].to(device) / weight.temperature).log_softmax(-1)
            divergence = nn.functional.kl_div(softened, target, log_target=True, reduction="batchmean")
            loss = loss + weight.logits * weight.temperature**2 * divergence
            variance = teacher.embedding.var(0, correction=0).sum().to(device)
            error = (embedding - teacher.embedding[batch].to(device)).square().sum(1).mean()
            loss = loss + weight.embedding * error / variance
            loss = loss + weight.importance * torch.stack(cascade.divergences).mean()
        return loss

    def teach(self) -> Teacher:
        """What the model as it stands, with pruning off, says about the sentences, in evaluation mode."""
        self.module.eval()
        states: list[Tensor] = []

        def watch(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            states.append(args[0].detach().requires_grad_())  # cut here: layers below need no gradient
            return (states[-1], *args[1:]), kwargs

        n = len(self.ids)
        dtype = self.head.weight.dtype
        logits, embedding = (torch.zeros(n, size, dtype=dtype) for size in (2, self.head.in_features))
        saliency = [torch.zeros(0)] * n
        layers = family_of(self.encoder.model).layers(self.encoder.model.base_model)
        if len(layers) < 2:
            raise ValueError("a teacher must have at least 2 layers: the first selection comes after one")
        handle = layers[1].register_forward_pre_hook(watch, with_kwargs=True)
        try:
            for batch in self.batches(torch.Generator().manual_seed(0), 64):
                mean, _ = self.embed(batch, CascadeSettings())
                scores = self.head(mean)
                (gradient,) = torch.autograd.grad((scores[:, 1] - scores[:, 0]).sum(), states.pop())
                logits[batch], embedding[batch] = scores.detach().cpu(), mean.detach().cpu()
                for i, norms in zip(batch.tolist(), gradient.norm(dim=-1).cpu(), strict=True):
                    saliency[i] = norms
        finally:
            handle.remove()
        return Teacher(logits, embedding, saliency, self.source)

    @torch.no_grad()
    def correct(self, settings: CascadeSettings | None = None) -> Tensor:
        """Which sentences are classified rightly, bool[n], in evaluation mode."""
        self.module.eval()
        right = torch.zeros(len(self.ids), dtype=torch.bool)
        for batch in self.batches(torch.Generator().manual_seed(0), 64):
            right[batch] = self.logits(batch, settings).argmax(-1).cpu() == self.labels[batch]
        return right


class LanguageTask:
    """Next-token prediction of a decoder whose prompt pass is pruned: the loss of the surviving rows."""

    def __init__(
        self, decoder: Decoder, ids: Tensor, settings: CascadeSettings, source: str, window: int
    ) -> None:
        """ids : int64[n], the whole text; ValueError if shorter than one window of ``window`` tokens."""
        if len(ids) < window + 1:
            raise ValueError(f"text must have at least {window + 1} tokens, not {len(ids)}")
        if not settings.prune_prompt:
            raise ValueError("prune_prompt must be True to fine-tune: the loss is that of the prompt pass")
        self.decoder, self.ids, self.settings, self.source = decoder, ids, settings, source
        self.window = window
        self.module: nn.Module = decoder.model

    def describe(self) -> dict[str, Any]:
        """Model, data and settings."""
        return {
            "task": "language",
            "model": self.decoder.name,
            "source": self.source,
            "data": hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()[:12],
            "window": self.window,
            "settings": self.settings.to_dict(),
        }

    def batches(self, generator: torch.Generator, batch_size: int) -> list[Tensor]:
        """Windows of the text in random order, int64[up to batch_size, window + 1]."""
        windows = self.ids.unfold(0, self.window + 1, self.window)  # the last token of one starts the next
        return list(windows[torch.randperm(len(windows), generator=generator)].split(batch_size))

    def loss(self, batch: Tensor, progress: float = 1.0) -> Tensor:
        """Mean cross-entropy, nats, of the tokens after those that reach the last layer."""
        batch = batch.to(next(self.module.parameters()).device)
        cascade = Cascade(self.settings, self.decoder.shape)
        positions = cascade.begin(batch.shape[0], self.window, batch.device)
        output = self.module(
            input_ids=batch[:, :-1],
            position_ids=positions,
            cascade=cascade,
            use_cache=False,
            return_dict=True,
        )
        rows = cascade.rows  # [B, n]
        logits = output.logits.gather(1, rows[..., None].expand(-1, -1, output.logits.shape[-1]))
        targets = batch.gather(1, rows + 1)
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
