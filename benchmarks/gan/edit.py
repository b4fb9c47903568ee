# SPDX-License-Identifier: MIT
"""``quartet edit``: a picture into a generator's styles, along a direction; cheap preview, then in full."""

import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor

from algo.anycost.architecture import SubGenerator, compute_macs
from algo.anycost.editing import moved, principal_directions, read_direction
from algo.anycost.generator import Generator
from algo.anycost.projection import Encoder, ProjectionConfig, load_encoder, project, reconstruction
from algo.files import write_atomically
from algo.gan.data import as_floats, read_picture
from algo.gan.loop import FINISHED
from algo.gan.training import Distance, Elastic, load_generator, resized
from benchmarks.gan.training import ENCODER, projection_term, run_folder, trained_elastic
from benchmarks.plots import style
from benchmarks.quality.progress import Progress

N_TIMED = 15
"""Renderings behind a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """An image and what it took."""

    image: Tensor
    """float[1, 3, r, r], clamped to -1..1."""
    seconds: float
    """Wall time of the convolutions, from styles to pixels; the median where rendered more than once."""
    macs: int
    """Useful multiply-accumulates."""


@dataclass(frozen=True, kw_only=True)
class Editor:
    """A trained generator with what editing needs."""

    generator: Generator
    name: str
    elastic: Elastic | None
    """How its last stage was trained; None: only the full generator was."""
    encoder: Encoder | None
    """Starts the projection; else the mean w does."""
    directions: Tensor
    """Principal components of w, float[size, size]."""
    perceptual: Distance | None = None
    _alone: dict[SubGenerator, Generator] = field(default_factory=dict)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Outputs trained to be images of their own, largest first."""
        return self.elastic.resolutions if self.elastic else (self.generator.config.resolution,)

    def sub(self, ratio: float, resolution: int | None) -> SubGenerator:
        """A uniform sub-generator; ValueError where it is none of this generator."""
        return self.generator.config.uniform(ratio, resolution)

    def note(self, sub: SubGenerator) -> str | None:
        """Why the sub-generator's image says little, if it was not trained."""
        if sub.resolution not in self.resolutions:
            return f"{self.name} was not trained to make images of {sub.resolution} pixels"
        if sub.widths != self.generator.full.widths and (not self.elastic or self.elastic.channels == "full"):
            return f"{self.name} was not trained to make images with fewer channels"
        return None

    def project(
        self, image: Tensor, n_steps: int, on_step: Callable[[int, int, float], None]
    ) -> tuple[Tensor, list[float]]:
        """Styles float[1, n_styles, size] of uint8[3, R, R], and the losses; trained sub-generators count."""
        target = as_floats(image[None]).to(self.generator.constant)
        with torch.no_grad():
            start = self.encoder(target) if self.encoder else None
        return project(
            self.generator, target, ProjectionConfig(n_steps=n_steps), projection_term(self.elastic),
            start=start, perceptual=self.perceptual, on_step=on_step,
        )  # fmt: skip

    @torch.inference_mode()
    def render(self, styles: Tensor, sub: SubGenerator, n_timed: int = 1) -> Rendered:
        """By a generator of its own that holds only ``sub``, warmed up: the time is that of its size."""
        is_new = sub not in self._alone
        if is_new:
            self._alone[sub] = self.generator.standalone(sub).eval()
        alone, seconds = self._alone[sub], []
        chosen = styles[:, : alone.config.n_styles]
        if is_new:
            alone(chosen)
        for _ in range(n_timed):
            start = time.perf_counter()
            image = alone(chosen)
            seconds.append(time.perf_counter() - start)
        return Rendered(
            image=image.clamp(-1, 1),
            seconds=statistics.median(seconds),
            macs=compute_macs(self.generator.config, sub),
        )

    @torch.no_grad()
    def distance(self, preview: Tensor, full: Tensor) -> dict[str, float]:
        """Of the preview, enlarged, to the full image: squared error (values -1..1), perceptual if set."""
        enlarged = resized(preview, full.shape[-1])
        found = {"mse": float(reconstruction(enlarged, full))}
        if self.perceptual:
            found["perceptual"] = float(self.perceptual(enlarged, full))
        return found


def load_editor(checkpoint: Path, *, perceptual: bool = False) -> Editor:
    """ValueError or OSError, one line, where the folder holds no run that can edit."""
    folder = run_folder(checkpoint)
    generator = load_generator(folder)
    if generator.config.n_classes:
        raise ValueError(f"{folder} holds a class-conditional generator; editing needs one without classes")
    if perceptual:
        from benchmarks.gan.features import Features

        distance = Features().distance
    return Editor(
        generator=generator,
        name=str(checkpoint),
        elastic=trained_elastic(folder),
        encoder=load_encoder(folder / ENCODER, folder) if (folder / ENCODER / FINISHED).is_file() else None,
        directions=principal_directions(generator),
        perceptual=distance if perceptual else None,
    )


def chosen_direction(editor: Editor, name: str) -> Tensor:
    """Principal component number ``name`` (1 the widest), or the vector of a file."""
    if not name.lstrip("-").isdigit():
        return read_direction(Path(name), editor.generator.config)
    if not 1 <= int(name) <= len(editor.directions):
        raise ValueError(f"direction must be in 1..{len(editor.directions)}, or a file, not {name}")
    return editor.directions[int(name) - 1]


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A prepared edit; everything the user gave is checked."""

    editor: Editor
    image: Tensor
    """uint8[3, R, R]."""
    image_name: str
    direction: Tensor
    direction_name: str
    strengths: tuple[float, ...]
    preview: SubGenerator
    n_steps: int
    folder: Path

    def __call__(self, progress: Progress) -> dict[str, Any]:
        """Project, move, render; writes picture, styles and numbers, and returns the numbers."""
        editor, full = self.editor, self.editor.generator.full
        begun = time.perf_counter()
        styles, losses = editor.project(
            self.image, self.n_steps, lambda step, n, loss: progress(f"projecting, loss {loss:.4f}", step, n)
        )
        projected_s = time.perf_counter() - begun
        edited = [moved(styles, self.direction[None], torch.tensor([s])) for s in self.strengths]
        previews = [editor.render(x, self.preview, N_TIMED) for x in edited]
        fulls = [editor.render(x, full, N_TIMED) for x in edited]
        projected = editor.render(styles, full)
        target = as_floats(self.image[None])
        picture = self.folder / "edit.png"
        found = {
            "checkpoint": editor.name,
            "image": self.image_name,
            "direction": self.direction_name,
            "note": editor.note(self.preview),
            "n_threads": torch.get_num_threads(),
            "projection": {
                "start": "encoder" if editor.encoder else "mean w",
                "n_steps": len(losses),
                "seconds": projected_s,
                "mse": float(reconstruction(projected.image, target)),
            },
            "preview": self._cost(self.preview, previews),
            "full": self._cost(full, fulls),
            "distances": [
                {"strength": s, **editor.distance(preview.image, whole.image)}
                for s, preview, whole in zip(self.strengths, previews, fulls, strict=True)
            ],
            "picture": str(picture),
            "styles": str(self.folder / "styles.safetensors"),
        }
        write_atomically(picture, self._figure(found, target, projected, previews, fulls))
        write_atomically(self.folder / "styles.safetensors", save({"styles": styles.contiguous()}))
        write_atomically(self.folder / "edit.json", (json.dumps(found, indent=1) + "\n").encode())
        return found

    @property
    def _title(self) -> str:
        name = self.direction_name
        return f"direction {name}" if name.isdigit() else Path(name).stem

    def _cost(self, sub: SubGenerator, rendered: Sequence[Rendered]) -> dict[str, Any]:
        return {
            "resolution": sub.resolution,
            "widths": sub.widths,
            "useful_macs": rendered[0].macs,
            "seconds": statistics.median(one.seconds for one in rendered),
        }

    def _figure(
        self,
        found: dict[str, Any],
        target: Tensor,
        projected: Rendered,
        previews: Sequence[Rendered],
        fulls: Sequence[Rendered],
    ) -> bytes:
        """Input and projection at the left, then a column for each strength: preview over full."""
        n = 1 + len(self.strengths)
        with style():
            figure = Figure(figsize=(1.55 * n + 0.5, 4.1), layout="constrained")
            rows = figure.subplots(2, n, squeeze=False)
            show_image(rows[0][0], target, "input")
            show_image(rows[1][0], projected.image, "projected")
            for i, (s, preview, whole) in enumerate(zip(self.strengths, previews, fulls, strict=True), 1):
                strength = f"{s:+g}" if s else "0"
                show_image(rows[0][i], preview.image, f"{self._title}: {strength}" if i == 1 else strength)
                show_image(rows[1][i], whole.image, "")
            for ax, what in ((rows[0][1], "preview"), (rows[1][1], "full")):
                cost = found[what]
                ax.set_ylabel(f"{what}: {_cost_line(cost)}", fontsize=8.5)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=160)
        return buffer.getvalue()


def _cost_line(cost: dict[str, Any]) -> str:
    return f"{cost['resolution']} px\n{cost['useful_macs'] / 1e6:.3g} MMACs, {1e3 * cost['seconds']:.2g} ms"


def show_image(ax: Axes, image: Tensor, title: str) -> None:
    """float[1, 3, H, W], values -1..1, without axes."""
    ax.imshow(((image[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy(), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(title, loc="center", fontsize=9.5, fontweight="normal")


def prepare_edit(
    checkpoint: Path, image: Path, direction: str, strengths: Sequence[float], ratio: float,
    resolution: int | None, n_steps: int, n_threads: int, folder: Path, *, perceptual: bool,
) -> Edit:  # fmt: skip
    """Checks everything before the projection; ValueError or OSError, one line."""
    for strength in strengths:
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, not {strength}")
    ProjectionConfig(n_steps=n_steps)
    torch.set_num_threads(n_threads)
    if not image.is_file():
        raise FileNotFoundError(f"image {image} does not exist")
    editor = load_editor(checkpoint, perceptual=perceptual)
    return Edit(
        editor=editor,
        image=read_picture(image.read_bytes(), str(image), editor.generator.config.resolution),
        image_name=str(image),
        direction=chosen_direction(editor, direction),
        direction_name=direction,
        strengths=tuple(strengths),
        preview=editor.sub(ratio, resolution),
        n_steps=n_steps,
        folder=folder,
    )


def print_edit(found: dict[str, Any], *, as_json: bool) -> None:
    """What it took and how far the preview is from the full image."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    projection, preview, full = found["projection"], found["preview"], found["full"]
    print(
        f"projected in {projection['n_steps']} steps, {projection['seconds']:.1f} s, from the "
        f"{projection['start']}: squared error {projection['mse']:.4f} (values -1..1)"
    )
    for what, cost in (("preview", preview), ("full", full)):
        print(f"{what:8} {_cost_line(cost).replace(chr(10), ', ')}")
    print(
        f"saved    {full['useful_macs'] / preview['useful_macs']:.1f}x multiply-accumulates, "
        f"{full['seconds'] / preview['seconds']:.1f}x time (wall, {found['n_threads']} CPU thread(s))"
    )
    for row in found["distances"]:
        values = ", ".join(f"{name} {row[name]:.4f}" for name in ("mse", "perceptual") if name in row)
        print(f"strength {row['strength']:+g}: preview to full {values}")
    if found["note"]:
        print(f"note: {found['note']}")
    print(found["picture"])
