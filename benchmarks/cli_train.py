# SPDX-License-Identifier: MIT
"""``quartet train``: fine-tuning and GAN training from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cli_common import PRESET_HELP, Device, print_fields, user_input

train_app = typer.Typer(no_args_is_help=True, help="Fine-tune with pruning and quantisation switched on.")

TokenRatio = Annotated[float, typer.Option(help="Token pruning, layers / sum of keep ratios; 1 is off.")]
HeadRatio = Annotated[float, typer.Option(help="Head pruning, layers / sum of keep ratios; 1 is off.")]
Bits = Annotated[str | None, typer.Option(help="8 (Q, K, V), or 6+4 (K in two planes), or float.")]


@train_app.command()
def sentiment(
    model: Annotated[
        str, typer.Argument(help="minilm, or a folder with a Hugging Face BERT model.")
    ] = "minilm",
    data: Annotated[
        Path | None, typer.Option(help="Reviews: id, rating and text by tabs; default: fetched once by pip.")
    ] = None,
    token_ratio: TokenRatio = 1.9,
    head_ratio: HeadRatio = 1.1,
    bits: Bits = "8",
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 5e-5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    start: Annotated[Path | None, typer.Option(help="Folder of a finished run to go on from.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of a finished dense run to distil from, and start from.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and weights.")] = Path(
        "results/train/sentiment"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Sentiment of movie reviews on an encoder. An interrupted run goes on where it stopped."""
    with user_input():
        from functools import partial

        from algo.attention.finetune import TrainConfig
        from benchmarks.quality.sentiment import TOKEN_FREE_FRACTION
        from benchmarks.quality.training import prepare_sentiment, pruning

        config = TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            device=device,
            bfloat16_products=True,
        )
        settings = partial(
            pruning,
            token_ratio=token_ratio,
            head_ratio=head_ratio,
            bits=bits,
            token_free_fraction=TOKEN_FREE_FRACTION,
        )
        reviews = str(data) if data else None
        task = prepare_sentiment(model, reviews, settings, start, teacher, config, out)
    _train(task, as_json=as_json)


@train_app.command()
def language(
    model: Annotated[
        str, typer.Argument(help="smollm2, or a folder with a Hugging Face GPT-2 or Llama model.")
    ] = "smollm2",
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text; default: Python's language reference.")
    ] = None,
    token_ratio: TokenRatio = 2.0,
    head_ratio: HeadRatio = 1.0,
    bits: Bits = None,
    window: Annotated[int, typer.Option(help="Tokens of a training window.")] = 256,
    n_train: Annotated[int | None, typer.Option(min=1, help="Tokens to train on; default all.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 2e-5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and weights.")] = Path(
        "results/train/language"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Next-token prediction of a decoder with a pruned prompt. An interrupted run goes on."""
    with user_input():
        from functools import partial

        from algo.attention.finetune import TrainConfig
        from benchmarks.quality.training import prepare_language, pruning

        config = TrainConfig(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, device=device
        )
        settings = partial(pruning, token_ratio=token_ratio, head_ratio=head_ratio, bits=bits)
        task = prepare_language(model, str(text) if text else None, settings, window, n_train, config, out)
    _train(task, as_json=as_json)


DATA_HELP = "emoji-smileys, emoji-animals, emoji-foods, fashion, or a folder of pictures."
POLICY_HELP = "DiffAugment: a list of color, translation, cutout; none is off."


@train_app.command()
def diffaugment(
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "emoji-smileys",
    pictures: Annotated[int | None, typer.Option(min=1, help="Train on this many; default all.")] = None,
    conditional: Annotated[bool, typer.Option("--conditional", help="Use the classes (fashion).")] = False,
    resolution: Annotated[int, typer.Option(help="Pixels of a side: 16, 32, 64 or 128.")] = 32,
    augment: Annotated[str, typer.Option(help=POLICY_HELP)] = "color,translation,cutout",
    loss: Annotated[str, typer.Option(help="nonsaturating or hinge.")] = "nonsaturating",
    r1_weight: Annotated[float, typer.Option(help="Gamma of the R1 penalty; 0 is off.")] = 1.0,
    r1_on: Annotated[str, typer.Option(help="raw or augmented reals.")] = "raw",
    mirror: Annotated[bool, typer.Option(help="Flip half of the real pictures.")] = True,
    noise: Annotated[bool, typer.Option(help="Let the generator add noise; short runs do without.")] = False,
    steps: Annotated[int, typer.Option(min=1)] = 1500,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of both networks.")] = 2e-3,
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="Also of the sample grids.")] = 250,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    start: Annotated[Path | None, typer.Option(help="Folder of a finished run to go on from.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, weights and sample grids.")] = Path(
        "results/train/diffaugment"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """A small StyleGAN2 on few pictures, with DiffAugment. An interrupted run goes on where it stopped."""
    with user_input():
        from algo.gan.data import load_images
        from algo.gan.loop import LoopConfig
        from algo.gan.training import GanConfig
        from benchmarks.gan.training import chosen_data, prepare_diffaugment

        config = GanConfig(
            batch_size=batch_size, learning_rate=learning_rate, loss=loss,
            augment="" if augment == "none" else augment, r1_weight=r1_weight, r1_on=r1_on, mirror=mirror,
            noise=noise, device=device,
        )  # fmt: skip
        loop = LoopConfig(n_steps=steps, seed=seed, checkpoint_steps=checkpoint_steps)
        chosen = chosen_data(load_images(data, resolution), pictures, conditional=conditional)
        task = prepare_diffaugment(chosen, config, loop, out, start)
    _train(task, as_json=as_json)


@train_app.command()
def anycost(
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "emoji-smileys",
    pictures: Annotated[int | None, typer.Option(min=1, help="Train on this many; default all.")] = None,
    resolution: Annotated[int, typer.Option(help="Pixels of a side: 16, 32, 64 or 128.")] = 32,
    n_resolutions: Annotated[int, typer.Option(min=1, help="Outputs that are images: the last levels.")] = 3,
    channels: Annotated[str, typer.Option(help="Sub-generators: uniform, flexible, or full for none.")] = (
        "uniform"
    ),
    conditioned: Annotated[
        bool, typer.Option(help="Tell the discriminator which sub-generator it sees.")
    ] = True,
    distillation: Annotated[
        float, typer.Option(help="Weight of the distance to the teacher; 0 is off.")
    ] = 2.0,
    augment: Annotated[str, typer.Option(help=POLICY_HELP)] = "color,translation,cutout",
    r1_weight: Annotated[float, typer.Option(help="Gamma of the R1 penalty; 0 is off.")] = 1.0,
    noise: Annotated[bool, typer.Option(help="Let the generator add noise; short runs do without.")] = False,
    steps: Annotated[int, typer.Option(min=3, help="All three stages: 40, 20 and 40 %.")] = 3000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of both networks.")] = 2e-3,
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="Also of the sample grids.")] = 250,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the three stages.")] = Path("results/train/anycost"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Anycost GAN: one generator whose sub-generators all make images. An interrupted run goes on."""
    with user_input():
        from algo.gan.data import load_images
        from algo.gan.loop import LoopConfig
        from algo.gan.training import Elastic, GanConfig
        from benchmarks.gan.training import chosen_data, prepare_anycost

        config = GanConfig(
            batch_size=batch_size, learning_rate=learning_rate, r1_weight=r1_weight, noise=noise,
            augment="" if augment == "none" else augment, device=device,
        )  # fmt: skip
        elastic = Elastic(
            resolutions=tuple(resolution >> i for i in range(n_resolutions)), n_sampled=min(2, n_resolutions),
            channels=channels, conditioned=conditioned, distillation=distillation,
        )  # fmt: skip
        loop = LoopConfig(n_steps=steps, seed=seed, checkpoint_steps=checkpoint_steps)
        chosen = chosen_data(load_images(data, resolution), pictures, conditional=False)
        task = prepare_anycost(chosen, config, elastic, loop, out)
    _train(task, as_json=as_json)


@train_app.command()
def encoder(
    generator: Annotated[Path, typer.Argument(help="Folder of a finished run without classes.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "emoji-smileys",
    pictures: Annotated[int | None, typer.Option(min=1, help="Train on this many; default all.")] = None,
    generated: Annotated[float, typer.Option(help="Share of pictures that the generator makes, 0..1.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 2e-3,
    checkpoint_steps: Annotated[int, typer.Option(min=1)] = 250,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Default: encoder inside the generator's folder, where edit looks.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pictures to styles of a trained generator: where edit starts from. An interrupted run goes on."""
    with user_input():
        from algo.anycost.projection import EncoderConfig
        from algo.gan.loop import LoopConfig
        from benchmarks.gan.training import prepare_encoder

        config = EncoderConfig(
            batch_size=batch_size, learning_rate=learning_rate, generated_share=generated
        )  # fmt: skip
        loop = LoopConfig(n_steps=steps, seed=seed, checkpoint_steps=checkpoint_steps)
        task = prepare_encoder(generator, data, pictures, config, loop, out)
    _train(task, as_json=as_json)


@train_app.command()
def tinytl(
    data: Annotated[
        str, typer.Option(help="fashion, emoji, or a folder with a folder of pictures for each class.")
    ] = "emoji",
    method: Annotated[
        str, typer.Option(help="last, bias, lite, lite+bias, norm+last or full.")
    ] = "lite+bias",
    resolution: Annotated[int, typer.Option(help="Pixels of a side; at least 64 with lite modules.")] = 96,
    pictures: Annotated[int | None, typer.Option(min=1, help="Train on this many; default all.")] = None,
    test_pictures: Annotated[int | None, typer.Option(min=1, help="Judge by this many.")] = 1000,
    steps: Annotated[int, typer.Option(min=1)] = 300,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="At the start; falls to 0 by a cosine.")] = 1e-3,
    label_smoothing: Annotated[float, typer.Option(help="0..1 without 1.")] = 0.1,
    min_crop: Annotated[float, typer.Option(help="Smallest share of a picture in a crop; 1: none.")] = 0.22,
    mirror: Annotated[bool, typer.Option(help="Flip half of the pictures.")] = True,
    norm: Annotated[
        str, typer.Option(help="affine (batch norms, frozen), or group in their place.")
    ] = "affine",
    gradients: Annotated[
        str, typer.Option(help="autograd; recompute: the same in little memory; eight_bits (norm group).")
    ] = "autograd",
    checkpoint_steps: Annotated[int, typer.Option(min=1)] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and weights.")] = Path(
        "results/train/tinytl"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """EfficientNet-Lite0 from ImageNet to other pictures, by TinyTL. An interrupted run goes on."""
    with user_input():
        from algo.gan.loop import LoopConfig
        from algo.tinytl.transfer import TransferConfig
        from benchmarks.tinytl.training import prepare_transfer

        config = TransferConfig(
            batch_size=batch_size, learning_rate=learning_rate, label_smoothing=label_smoothing,
            min_crop=min_crop, mirror=mirror, gradients=gradients, device=device,
        )  # fmt: skip
        loop = LoopConfig(n_steps=steps, seed=seed, checkpoint_steps=checkpoint_steps)
        task = prepare_transfer(
            data, resolution, method, config, loop, out,
            n_pictures=pictures, n_test=test_pictures, norm=norm,
        )  # fmt: skip
    _train(task, as_json=as_json)


@train_app.command()
def block(
    index: Annotated[int, typer.Argument(help="Of the packaged EfficientNet-Lite0's blocks, 0..15.")] = 2,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "emoji-animals",
    resolution: Annotated[int, typer.Option(help="Pixels of a picture's side: 16, 32, 64 or 128.")] = 128,
    pictures: Annotated[int, typer.Option(min=1, help="Drawn with the seed, trained on in turn.")] = 8,
    method: Annotated[str, typer.Option(help="bias, or lite+bias: with a new lite module.")] = "bias",
    norm: Annotated[
        str, typer.Option(help="affine (batch norms, frozen), or group in their place.")
    ] = "affine",
    steps: Annotated[int, typer.Option(min=1, help="Of one picture each.")] = 200,
    rate: Annotated[float, typer.Option(help="Of gradient descent, for biases.")] = 0.01,
    weight_rate: Annotated[float, typer.Option(help="For a lite module's weights and scales.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="0..1 without 1.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    rtl_steps: Annotated[int, typer.Option(min=0, help="Run so many in Verilog as well.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "tiny",
    out: Annotated[Path, typer.Option(help="Folder of the losses and their curve.")] = Path(
        "results/train/block"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """One block by the convolution core's integers, beside float.

    The block learns to make of darkened pictures what it made of the pictures as they were.
    """
    with user_input():
        import torch

        from benchmarks.tinytl.block import prepare_block
        from hw.config import preset as chip_of
        from sim.driver.descent import Descent

        torch.set_num_threads(threads)
        descent = Descent(rate=rate, momentum=momentum, weight_rate=weight_rate)
        task = prepare_block(
            index, data, resolution, pictures, method, norm, descent, steps, seed, chip_of(preset), rtl_steps,
            out,
        )  # fmt: skip
    _train(task, as_json=as_json)


@train_app.command()
def tail(
    blocks: Annotated[int, typer.Option(help="Of EfficientNet-Lite0, the last ones: 1..16.")] = 1,
    data: Annotated[
        str, typer.Option(help="fashion, emoji (by kind), or a folder with one folder a class.")
    ] = "fashion",
    resolution: Annotated[int, typer.Option(help="Pixels of a picture's side; at most 224.")] = 64,
    pictures: Annotated[int, typer.Option(min=0, help="Train on this many; 0: all.")] = 400,
    test_pictures: Annotated[int, typer.Option(min=0, help="Judge by this many; 0: all.")] = 300,
    calibration_pictures: Annotated[int, typer.Option(min=1, help="Measure ranges on this many.")] = 64,
    method: Annotated[str, typer.Option(help="last, bias or lite+bias.")] = "lite+bias",
    norm: Annotated[
        str, typer.Option(help="affine (batch norms, frozen), or group in their place.")
    ] = "affine",
    label_smoothing: Annotated[float, typer.Option(help="0..0.99")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Of one picture each.")] = 400,
    rate: Annotated[float, typer.Option(help="Of gradient descent, for biases.")] = 0.01,
    weight_rate: Annotated[float, typer.Option(help="For a lite module's weights and scales.")] = 0.01,
    classifier_rate: Annotated[float, typer.Option(help="For the classifier.")] = 3e-5,
    momentum: Annotated[float, typer.Option(help="0..1 without 1.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    rtl_steps: Annotated[int, typer.Option(min=0, help="Run so many more in Verilog.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of PyTorch.")] = 1,
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "edge",
    out: Annotated[Path, typer.Option(help="Folder of the losses and their curve.")] = Path(
        "results/train/tail"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Last blocks, head and loss by the convolution core's integers, beside float.

    From ImageNet to other pictures, by TinyTL: what lies before the tail stays as it is.
    """
    with user_input():
        import torch

        from benchmarks.tinytl.tail import prepare_tail
        from hw.config import preset as chip_of
        from sim.driver.descent import Descent

        torch.set_num_threads(threads)
        descent = Descent(
            rate=rate, momentum=momentum, weight_rate=weight_rate, classifier_rate=classifier_rate
        )
        task = prepare_tail(
            blocks, data, resolution, pictures, test_pictures, calibration_pictures, method, norm,
            label_smoothing, descent, steps, seed, chip_of(preset), rtl_steps, out,
        )  # fmt: skip
    _train(task, as_json=as_json)


def _train(task: Callable[..., dict[str, Any]], *, as_json: bool) -> None:
    from benchmarks.quality.progress import progress_bar

    with progress_bar() as progress, user_input():  # a folder that holds another run is found out only here
        result = task(progress)
    print_fields(result, as_json=as_json)
    if result.get("rtl_mismatches"):
        raise typer.Exit(1)
