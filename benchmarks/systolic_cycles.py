# SPDX-License-Identifier: MIT
"""Every layer of the 1024 px Anycost generator on three arrays: ``python -m benchmarks.systolic_cycles``.

Prints one Markdown table, a line for each uniform ratio and one for the 11 evolved sub-generators.
"""

from collections.abc import Iterable, Iterator

from algo.anycost.architecture import RATIOS, GeneratorConfig, evolved
from hw.systolic.config import SystolicConfig
from hw.systolic.cycles import busy, layer_cycles, serial_cycles, tiling_ceiling
from hw.systolic.layer import Layer
from sim.anycost import square_core, tasks

CONFIGS = [square_core(size).array for size in (16, 32, 64)]


def sub_generators() -> Iterator[tuple[str, list[Layer]]]:
    """Name and convolutions: 3 x 3, their transposes, and 1 x 1 to colours."""
    config = GeneratorConfig()
    subs = {f"x {ratio:g}": config.uniform(ratio) for ratio in RATIOS}
    for name, sub in (subs | evolved(config)).items():
        yield name, [task.of for task in tasks(config, sub) if isinstance(task.of, Layer)]


def weights_set_the_pace(layer: Layer, config: SystolicConfig) -> bool:
    """Whether rows of weights, one a cycle, take longer than a pass over the input's pixels."""
    return layer.height * layer.width < config.rows


def of_serial(layer: Layer, config: SystolicConfig) -> float:
    """Cycles over those of an array that loads, fills and drains for each tile."""
    return layer_cycles(layer, config) / serial_cycles(layer, config)


def of_ceiling(layer: Layer, config: SystolicConfig) -> float:
    """Share kept busy of the multipliers that tiles can use."""
    return busy(layer, config) / tiling_ceiling(layer, config)


def of_inserted_zeros(layer: Layer, config: SystolicConfig) -> float:
    """Cycles of a transposed layer over those of all taps at every output pixel."""
    tiles = -(-(layer.kernel**2) * layer.n_in // config.rows) * -(-layer.n_out // config.columns)
    return layer_cycles(layer, config) / (tiles * layer.out_height * layer.out_width)


def worst(layers: Iterable[Layer], config: SystolicConfig) -> str:
    """Most cycles over serial, least share of the ceiling, most cycles over inserted zeros."""
    of_activations = [layer for layer in layers if not weights_set_the_pace(layer, config)]
    phased = [layer for layer in of_activations if layer.transposed and layer.n_in >= config.rows]
    return (
        f"{max(of_serial(layer, config) for layer in layers):.3f}, "
        f"{min(of_ceiling(layer, config) for layer in of_activations):.3f}, "
        f"{max(of_inserted_zeros(layer, config) for layer in phased):.3f}"
    )


def line(name: str, layers: list[Layer], *, one_generator: bool) -> str:
    """A row of the table."""
    cells = [worst(layers, config) for config in CONFIGS]
    if one_generator:
        totals = [sum(layer_cycles(layer, config) for layer in layers) / 1e6 for config in CONFIGS]
        cells = [f"{total:,.1f} M, {cell}" for total, cell in zip(totals, cells, strict=True)]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    print("| layers of | " + " | ".join(f"{c.rows} x {c.columns}" for c in CONFIGS) + " |")
    print("|---" * (1 + len(CONFIGS)) + "|")
    evolved_layers = set()
    for name, layers in sub_generators():
        if name.startswith("x "):
            print(line(name, layers, one_generator=True))
        else:
            evolved_layers.update(layers)
    print(line("the 11 evolved", list(evolved_layers), one_generator=False))


if __name__ == "__main__":
    main()
