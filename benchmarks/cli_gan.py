# SPDX-License-Identifier: MIT
"""``quartet gan``, ``anycost``, ``edit``, ``image`` and ``search``: generators from the command line."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cli_common import PRESET_HELP, Changes, Device, user_input

gan_app = typer.Typer()
IMAGE_FOLDER = Path("results/image")
DEFAULT_STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@gan_app.command("anycost")
def anycost_costs(
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the uniform ones on this CPU: minutes; resumes.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Estimate them on the convolution core, three sizes of array.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the times.")] = Path("results/anycost/speed"),
    report: Annotated[
        Path | None,
        typer.Option(help="Folder of table and plot; default OUT/report, or results/anycost/latency."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Multiply-accumulates of Anycost GAN's 16 uniform and 11 evolved sub-generators, on both bases."""
    from benchmarks.gan import speed
    from benchmarks.quality.progress import progress_bar

    if latency:
        from benchmarks.gan.latency import latency_rows, print_latency, write_latency

        rows = latency_rows()
        with user_input():
            written = write_latency(rows, report or Path("results/anycost/latency"))
        print_latency(rows, written, as_json=as_json)
        return
    if not measure:
        speed.print_costs(speed.cost_rows(), as_json=as_json)
        return
    with progress_bar() as progress, user_input():
        speed.measure(out, threads, progress)
        written = speed.write_report(out, report or out / "report")
        summary = speed.summarise(out)
    speed.print_speed(summary, written, as_json=as_json)


@gan_app.command()
def edit(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a finished run, such as results/train/anycost.")
    ],
    image: Annotated[Path | None, typer.Option(help="The picture to edit.")] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="Principal component of w by number, 1 the widest; or a .npy or .safetensors file."
        ),
    ] = "1",
    strength: Annotated[
        list[float] | None,
        typer.Option(
            help="How far, standard deviations (file: times its vector); repeatable. Default -2 to 2."
        ),
    ] = None,
    preview: Annotated[float, typer.Option(help="Channel ratio of the preview, above 0, at most 1.")] = 0.25,
    preview_resolution: Annotated[
        int | None, typer.Option(help="Pixels of a side of the preview; default: all.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the projection.")] = 200,
    perceptual: Annotated[
        bool,
        typer.Option("--perceptual", help="Add the distance of network features: slower, pip fetches them."),
    ] = False,
    page: Annotated[
        bool, typer.Option("--page", help="Edit in the browser, on this machine only, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0: any that is free.")] = 8765,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; small generators need one.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of picture, styles and numbers.")] = Path("results/edit"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Edit a picture with a trained generator: projected, moved along a direction, previewed, rendered."""
    from benchmarks.quality.progress import progress_bar

    if page:
        with user_input():
            from benchmarks.gan.page import open_page

            if image is not None:
                raise ValueError("--page takes its picture in the browser: leave --image out")
            server = open_page(
                checkpoint, port, preview, preview_resolution, steps, threads, perceptual=perceptual
            )
        print(server.url, flush=True)
        with suppress(KeyboardInterrupt), server:
            server.serve_forever()
        return
    with user_input():
        from benchmarks.gan.edit import prepare_edit, print_edit

        if image is None:
            raise ValueError("edit needs a picture, --image FILE, or --page")
        strengths = DEFAULT_STRENGTHS if strength is None else strength
        task = prepare_edit(
            checkpoint, image, direction, strengths, preview, preview_resolution, steps, threads, out,
            perceptual=perceptual,
        )  # fmt: skip
    with progress_bar() as progress:
        found = task(progress)
    print_edit(found, as_json=as_json)


@gan_app.command()
def image(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a finished run, such as results/train/anycost.")
    ],
    ratio: Annotated[float, typer.Option(help="Of channels, above 0, at most 1.")] = 1.0,
    resolution: Annotated[int | None, typer.Option(help="Pixels of a side; default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the image; more images take the next ones.")] = 1,
    count: Annotated[int, typer.Option(help="Images.")] = 6,
    wide: Annotated[
        str, typer.Option(help="Maps of 16 bits instead of 8: none, colours (what toRGB reads) or all.")
    ] = "none",
    every: Annotated[
        bool,
        typer.Option(
            "--every", help="Print a table of all uniform sub-generators and widths of maps instead."
        ),
    ] = False,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "tiny",
    changes: Changes = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Cycles by the core's exact cycle model as well: seconds an image."),
    ] = False,
    rtl: Annotated[
        bool,
        typer.Option("--rtl", help="Run each image in simulated Verilog as well: minutes to build, once."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of pictures and numbers.")] = IMAGE_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Images of a trained generator in the integers of the convolution core, beside the float ones."""
    with user_input():
        from benchmarks.gan.image import prepare_image, print_image, print_quality, quality_rows
        from hw.config import chip_of

        given = {
            "--exact": exact, "--rtl": rtl, "--ratio": ratio != 1, "--resolution": resolution,
            "--wide": wide != "none", "--preset": preset != "tiny", "--set": changes,
            "--out": out != IMAGE_FOLDER,
        }  # fmt: skip
        if every and (idle := [name for name, value in given.items() if value]):
            raise ValueError(f"--every has no use for {', '.join(idle)}: leave it out")
        task = prepare_image(
            checkpoint, ratio, resolution, seed, count, wide, chip_of(preset, changes or ()), out,
            exact=exact, rtl=rtl,
        )  # fmt: skip
    if every:
        print_quality(quality_rows(task.generator, seed, count), as_json=as_json)
        return
    found = task()
    print_image(found, as_json=as_json)
    if any(run["mismatches"] for run in found.get("rtl", ())):
        raise typer.Exit(1)


@gan_app.command()
def search(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a finished run, such as results/train/anycost.")
    ],
    population: Annotated[int, typer.Option(help="Sub-generators of a generation.")] = 50,
    generations: Annotated[int, typer.Option(help="Of each of the 36 searches.")] = 20,
    images: Annotated[
        int, typer.Option(help="z behind a distance; the last check has four times as many.")
    ] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the searches.")] = 0,
    everything: Annotated[
        bool, typer.Option("--everything", help="Try all sub-generators of a small one instead of searching.")
    ] = False,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "tiny",
    changes: Changes = None,
    out: Annotated[Path, typer.Option(help="Folder of the numbers.")] = Path("results/search"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """The cheapest sub-generators as near to the full image as uniform ones: by MACs, by estimated cycles."""
    from benchmarks.quality.progress import progress_bar

    with user_input():
        from benchmarks.gan.search import prepare_search, print_search
        from hw.config import chip_of

        task = prepare_search(
            checkpoint, population, generations, images, seed, chip_of(preset, changes or ()), out,
            everything=everything,
        )  # fmt: skip
    with progress_bar() as progress:
        result = task(progress)
    print_search(result, as_json=as_json)


@gan_app.command()
def gan(
    only: Annotated[
        list[str] | None,
        typer.Option(help="emoji, emoji-no-r1, emoji-animals, fashion or anycost; repeatable."),
    ] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/gan"),
    report: Annotated[
        Path | None, typer.Option(help="Folder of tables and plots; default OUT/report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """DiffAugment on few pictures and Anycost GAN's sub-generators, trained here: tables and plots.

    Finished cases are reused, interrupted ones go on. Minutes on one core: the three of
    emoji 40 each, fashion 35, anycost 60.
    """
    with user_input():
        from benchmarks.gan.experiments import check_names, run_experiments
        from benchmarks.gan.report import print_summary, write
        from benchmarks.quality.progress import progress_bar

        chosen = check_names(only)
    with progress_bar() as progress, user_input():
        run_experiments(chosen, out, device, threads, progress)
        written = write(out, report or out / "report")
    print_summary(out, written, as_json=as_json)
