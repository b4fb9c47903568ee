# SPDX-License-Identifier: MIT
"""``quartet image``: an image by the integers of the convolution core, beside the float one."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from algo.anycost.architecture import RATIOS, SubGenerator, compute_macs
from algo.anycost.generator import Generator
from algo.anycost.quantise import WIDE, QuantConfig, QuantisedGenerator, quantise
from algo.anycost.record import GeneratorRecord
from algo.files import write_atomically
from algo.gan.pictures import write_png
from algo.gan.training import load_generator
from benchmarks.gan.edit import show_image
from benchmarks.gan.training import run_folder
from benchmarks.plots import style
from hw.config import ChipConfig
from hw.convolution import golden
from hw.convolution.operations import Operation
from hw.epilogue.config import Job, epilogue_config
from hw.fir.config import Map, fir_config
from sim.anycost import tasks
from sim.convolution import Estimate, Task, core_of, energy_pj, estimate, tasks_of, total
from sim.driver.generator import constant_name, image_step, operations

PEAK = 2.0
"""Range of an image, -1..1."""
MAX_SHOWN = 8
MAP_BITS = {"none": "8 bits", "colours": "8 bits, 16 for toRGB", "all": "16 bits"}
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, eq=False)
class Integers:
    """One image as the core computes it."""

    record: GeneratorRecord
    operations: Sequence[Operation]
    maps: dict[str, Tensor]
    """int64[H, W, C], by name."""

    def level(self, n: int) -> Tensor:
        """The image of level ``n``, float64[3, H, W]."""
        return self.maps[f"image{n}"].permute(2, 0, 1).double() * image_step(self.record)

    @property
    def image(self) -> Tensor:
        """Of the last level."""
        return self.level(len(self.record.to_rgb) - 1)


def integers(quantised: QuantisedGenerator, styles: Tensor, sub: SubGenerator) -> Integers:
    """By the golden model; ``styles`` float[1, n_styles, size]."""
    record = quantised.record(styles, sub)
    made = operations(record)
    maps = golden.run(made, {constant_name(record): torch.from_numpy(record.constant)})
    return Integers(record=record, operations=made, maps=maps)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One image by the simulated Verilog."""

    cycles: int
    """From the start to the last acknowledged write."""
    estimated_cycles: int
    """In the same memory: each port has words of its own in every cycle, so all together have no limit."""
    n_writes: int
    """Words written and compared."""
    mismatches: tuple[str, ...]
    """With golden, the first of each kind; with the exact cycle model."""


def exact_cycles(made: Integers, chip: ChipConfig) -> int:
    """By the core's exact cycle model, each port with a memory of the chip's latency: some seconds."""
    from hw.convolution.config import convolution_config
    from hw.convolution.cycles import replay
    from hw.convolution.program import lowered

    config = convolution_config(chip)
    program = lowered(made.operations, {constant_name(made.record): made.record.constant}, config)
    return replay(program, config, latency_cycles=chip.dram_latency_cycles).done


def measured(made: Integers, chip: ChipConfig) -> Measured:
    """Runs the image's commands in Verilator, every write compared with golden's, in the chip's memory."""
    from hw.convolution.config import convolution_config
    from hw.convolution.runs import Run
    from hw.convolution.vectors import case_of
    from hw.harness import verilated
    from hw.harness.job import judge
    from hw.registry import BLOCKS

    config, constant = convolution_config(chip), constant_name(made.record)
    run = Run(name="image", operations=made.operations, maps={constant: made.record.constant})
    case = case_of(run, config, latency_cycles=chip.dram_latency_cycles)
    core = replace(core_of(chip), memory_bytes_per_cycle=math.inf)
    (log,) = verilated.run_cases(BLOCKS["convolution"], config, [case])
    cycles, model = int(log.since_first_input("o_done")[-1]), exact_cycles(made, chip)
    late = (f"done in cycle {cycles}, cycle model {model}",) if cycles != model else ()
    return Measured(
        cycles=cycles,
        estimated_cycles=round(total(estimate(task, core) for task in tasks_of(made.operations)).cycles),
        n_writes=len(case.expected["o_write"]),
        mismatches=(*judge(case, log).problems, *late),
    )


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Everything the user gave, checked."""

    generator: Generator
    name: str
    sub: SubGenerator
    seed: int
    n_images: int
    wide: str
    chip: ChipConfig
    exact: bool
    rtl: bool
    folder: Path

    def __call__(self) -> dict[str, Any]:
        """Makes the images, writes pictures and numbers, returns the numbers."""
        g, sub = self.generator, self.sub
        quantised = quantise(g, QuantConfig(wide=self.wide))
        styles = styles_of(g, self.seed, self.n_images)
        exact = g(styles, sub).double()
        made = [integers(quantised, one[None], sub) for one in styles]
        images = torch.stack([one.image for one in made])
        layers = [
            {"operation": task.name, **_numbers(estimate(task, core_of(self.chip)))}
            for task in tasks_of(made[0].operations)
        ]
        found = {
            "checkpoint": self.name,
            "resolution": sub.resolution,
            "widths": used_widths(g, sub),
            "wide": self.wide,
            "seed": self.seed,
            "n_images": self.n_images,
            "psnr_db": psnr_db(images, exact),
            "max_error": dict(zip(COLOURS, (images - exact).abs().amax((0, 2, 3)).tolist(), strict=True)),
            "signal_to_error_db": map_errors(g, sub, styles, made),
            "preset": self.chip.name,
            "estimated": self._estimated(made[0].operations),
            "layers": layers,
            "origin": "image: golden model of the core; cycles, traffic and energy: estimated in closed form",
        }
        if self.exact:
            found["exact_cycles"] = [exact_cycles(one, self.chip) for one in made]
        if self.rtl:
            found["rtl"] = [asdict(measured(one, self.chip)) for one in made]
        self._write(found, exact, images)
        return found

    def _estimated(self, made: Sequence[Operation]) -> dict[str, Any]:
        core = core_of(self.chip)
        whole = total(estimate(task, core) for task in tasks_of(made))
        return {
            **_numbers(whole),
            "milliseconds": 1e3 * whole.cycles / self.chip.clock_hz,
            "busy": whole.macs / (whole.cycles * core.array.rows * core.array.columns),
            "energy_uj": sum(energy_pj(whole, core).values()) / 1e6,
        }

    def _write(self, found: dict[str, Any], exact: Tensor, images: Tensor) -> None:
        for name, image in (("float", exact[0]), ("integer", images[0])):
            write_png(self.folder / f"{name}.png", as_pixels(image))
        picture = self.folder / "comparison.png"
        write_atomically(picture, _figure(found, exact, images))
        found["picture"] = str(picture)
        write_atomically(self.folder / "image.json", (json.dumps(found, indent=1) + "\n").encode())


def prepare_image(
    checkpoint: Path, ratio: float, resolution: int | None, seed: int, n_images: int, wide: str,
    chip: ChipConfig, folder: Path, *, exact: bool = False, rtl: bool = False,
) -> ImageTask:  # fmt: skip
    """ValueError or OSError, one line, where something does not fit."""
    if n_images < 1:
        raise ValueError(f"count must be at least 1, not {n_images}")
    QuantConfig(wide=wide)
    generator = load_generator(run_folder(checkpoint))
    task = ImageTask(
        generator=generator, name=str(checkpoint), sub=generator.config.uniform(ratio, resolution), seed=seed,
        n_images=n_images, wide=wide, chip=chip, exact=exact, rtl=rtl, folder=folder,
    )  # fmt: skip
    check_fits(tasks(generator.config, task.sub, wide=wide), chip)
    return task


def check_fits(operations: Sequence[Task], chip: ChipConfig) -> None:
    """ValueError where array, filter or table of the chip's core cannot take an operation."""
    core, filter_, table = core_of(chip), fir_config(chip), epilogue_config(chip)
    for task in operations:
        try:
            estimate(task, core)
            channels = task.out_shape[2]
            Job(n_tables=-(-channels // table.lanes)).check(table)
            if isinstance(task.of, Map):
                replace(task.of, channels=min(channels, filter_.lanes)).check(filter_)
        except ValueError as error:
            raise ValueError(f"{chip.name} cannot run {task.name}: {error}") from None


def styles_of(generator: Generator, seed: int, n: int) -> Tensor:
    """Styles of ``n`` z, seeds ``seed``, ``seed`` + 1 ...; of class 0 where there are classes."""
    size = generator.config.style_size
    z = torch.cat([torch.randn(1, size, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)])
    labels = torch.zeros(n, dtype=torch.int64) if generator.config.n_classes else None
    return generator.styles(z, labels)


def used_widths(generator: Generator, sub: SubGenerator) -> tuple[int, ...]:
    """Those up to the resolution."""
    return sub.widths[: 2 * generator.config.levels.index(sub.resolution) + 2]


def psnr_db(images: Tensor, exact: Tensor) -> float:
    """Over all pixels and colours, the peak being the range -1..1; values beyond it count as they are."""
    mse = float((images - exact).square().mean())
    return 10 * math.log10(PEAK**2 / mse) if mse else math.inf


def map_errors(g: Generator, sub: SubGenerator, styles: Tensor, made: Sequence[Integers]) -> dict[str, float]:
    """Power of each float map over that of the integers' error, decibels: as next read, and the colours.

    Errors of all layers before add up in it.
    """
    outputs: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda m, inputs, out, j=j: outputs.__setitem__(j, out.double()))
        for j, layer in enumerate(g.convs)
    ]
    levels = g.pyramid(styles, sub)
    for hook in hooks:
        hook.remove()
    found = {}
    for j, exact in sorted(outputs.items()):
        maps = []
        for i, one in enumerate(made):
            reader = one.record.convs[j].readers[0]
            factors = torch.from_numpy(reader.factors)[:, None, None]
            value = one.maps[reader.name].permute(2, 0, 1) * reader.step
            maps.append((value - exact[i] * factors, exact[i] * factors))
        found[f"conv{j}"] = _decibels(maps)
    for n, level in enumerate(levels):
        exact = level.double()
        found[f"image{n}"] = _decibels([(one.level(n) - exact[i], exact[i]) for i, one in enumerate(made)])
    return found


def _decibels(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    error, signal = (sum(float(pair[i].square().sum()) for pair in pairs) for i in (0, 1))
    return 10 * math.log10(signal / error) if error else math.inf


def _numbers(e: Estimate) -> dict[str, Any]:
    return {
        "cycles": round(e.cycles),
        **({"limit": e.limit} if e.limit else {}),
        "macs": e.macs,
        "memory_bytes": e.memory_bytes,
    }


def as_pixels(image: Tensor) -> Tensor:
    """float[3, H, W] to uint8[H, W, 3]."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)


def _figure(found: dict[str, Any], exact: Tensor, images: Tensor) -> bytes:
    """Columns: images; rows: float, integers, magnitude of the difference, enlarged."""
    n = min(len(images), MAX_SHOWN)
    difference = (images - exact).abs()
    gain = 2 ** math.floor(math.log2(1 / max(float(difference[:n].max()), 2**-16)))
    with style():
        figure = Figure(figsize=(max(5.6, 1.5 * n + 1.2), 5.0), layout="constrained")
        rows = figure.subplots(3, n, squeeze=False)
        for i in range(n):
            show_image(rows[0][i], exact[i : i + 1], "")
            show_image(rows[1][i], images[i : i + 1], "")
            show_image(rows[2][i], 2 * gain * difference[i : i + 1] - 1, "")
        for row, name in zip(rows, ("float", "integers", f"difference x {gain}"), strict=True):
            row[0].set_ylabel(name)
        figure.suptitle(
            f"{found['resolution']} px, {found['psnr_db']:.1f} dB; largest error "
            + ", ".join(f"{name} {value:.3f}" for name, value in found["max_error"].items()),
            fontsize=9.5,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


# ---- all sub-generators ------------------------------------------------------------------------------------


def quality_rows(generator: Generator, seed: int, n_images: int) -> list[dict[str, Any]]:
    """PSNR of the uniform sub-generators at each of the last three levels, by width of the maps."""
    shape = generator.config
    styles = styles_of(generator, seed, n_images)
    of_width = {wide: quantise(generator, QuantConfig(wide=wide)) for wide in WIDE}
    subs = [
        shape.uniform(ratio, level) for level in reversed(shape.levels[-3:]) for ratio in reversed(RATIOS)
    ]
    alike = {(sub.resolution, *used_widths(generator, sub)): sub for sub in subs}
    rows = []
    for sub in alike.values():
        exact = generator(styles, sub).double()
        row: dict[str, Any] = {
            "resolution": sub.resolution, "widths": used_widths(generator, sub),
            "macs": compute_macs(shape, sub),
        }  # fmt: skip
        for wide, quantised in of_width.items():
            images = torch.stack([integers(quantised, one[None], sub).image for one in styles])
            row[f"{wide}_db"] = psnr_db(images, exact)
        rows.append(row)
    return rows


def print_quality(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """The table on stdout."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(
        box=box.SIMPLE_HEAD, title="PSNR against the float image, dB (golden)", title_justify="left"
    )
    for head in ("px", "widths", "MMACs", *(MAP_BITS[wide] for wide in WIDE)):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            str(row["resolution"]),
            " ".join(map(str, row["widths"])),
            f"{row['macs'] / 1e6:.2f}",
            *(f"{row[f'{wide}_db']:.1f}" for wide in WIDE),
        )
    _console().print(table)


def print_image(found: dict[str, Any], *, as_json: bool) -> None:
    """What was made, how near it is, what it costs."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    cost = found["estimated"]
    errors = ", ".join(f"{name} {value:.4f}" for name, value in found["max_error"].items())
    widths, bits = " ".join(map(str, found["widths"])), MAP_BITS[found["wide"]]
    print(f"{found['resolution']} px, widths {widths}, maps of {bits}")
    print(f"PSNR {found['psnr_db']:.2f} dB over {found['n_images']} image(s); largest error (of 2): {errors}")
    print(
        f"{found['preset']}: {cost['cycles']:,} cycles, {cost['milliseconds']:.3g} ms, array "
        f"{100 * cost['busy']:.0f} % busy, {cost['memory_bytes'] / 1e6:.3g} MB, {cost['energy_uj']:.3g} uJ "
        "(estimated)"
    )
    for number, cycles in enumerate(found.get("exact_cycles", ())):
        print(f"image {number} in the exact cycle model, a memory for each port: {cycles:,} cycles")
    for number, run in enumerate(found.get("rtl", ())):
        agrees = run["mismatches"] or f"equal golden and cycle model, {run['n_writes']:,} words written"
        cycles = f"{run['cycles']:,} cycles (measured; estimated {run['estimated_cycles']:,})"
        print(f"image {number} in simulated Verilog, a memory for each port: {cycles}, {agrees}")
    print(found["picture"])


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    return console
