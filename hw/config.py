# SPDX-License-Identifier: MIT
"""The chip as one nested configuration, and the named presets that RTL, model and report share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args

from hw.topk.config import TopKConfig

SelectEngine = Literal["quickselect", "radix"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChipConfig:
    """Resources of the attention core (SpAtten Table I)."""

    name: str
    """Preset name, or any name for a chip of your own."""
    clock_hz: float = 1e9
    n_multipliers: int = 512
    """Multipliers of one array, operands ``onchip_bits`` wide; there are two arrays (QK and PV)."""
    onchip_bits: int = 12
    """Width of an operand on the chip, bits."""
    kv_sram_bytes: int = 196_608
    """Size of the key SRAM and of the value SRAM, each, both halves of its double buffer together, bytes."""
    n_dram_channels: int = 16
    dram_bytes_per_cycle: int = 32
    """Peak of one DRAM channel, bytes per core cycle."""
    dram_latency_cycles: int = 45
    """Unloaded read latency, core cycles."""
    softmax_lanes: int = 8
    """Exponentials, and divisions, per cycle."""
    topk: TopKConfig = field(default_factory=TopKConfig)
    select_engine: SelectEngine = "quickselect"
    """How tokens, heads and values are selected in RTL: quick-select is the paper's."""
    n_value_engines: int = 1
    """Local value selections that take turns over the rows; 1..8."""
    confidence_window: int = 2
    """Rows whose confidence may be undecided at a time; 1, 2, 4 or 8."""

    def __post_init__(self) -> None:
        for name in (
            "clock_hz",
            "n_multipliers",
            "kv_sram_bytes",
            "n_dram_channels",
            "dram_bytes_per_cycle",
            "softmax_lanes",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.select_engine not in get_args(SelectEngine):
            raise ValueError(f"select_engine must be quickselect or radix, not {self.select_engine!r}")
        if not 1 <= self.n_value_engines <= 8:
            raise ValueError(f"n_value_engines must be in 1..8, not {self.n_value_engines}")
        if self.confidence_window not in (1, 2, 4, 8):
            raise ValueError(f"confidence_window must be 1, 2, 4 or 8, not {self.confidence_window}")
        if self.dram_latency_cycles < 0:
            raise ValueError(f"dram_latency_cycles must not be negative, not {self.dram_latency_cycles}")

    @property
    def peak_bytes_per_cycle(self) -> int:
        """DRAM peak over all channels, bytes per core cycle."""
        return self.n_dram_channels * self.dram_bytes_per_cycle


PRESETS: dict[str, ChipConfig] = {
    chip.name: chip
    for chip in (
        ChipConfig(name="paper"),
        ChipConfig(name="paper_eighth", n_multipliers=64, kv_sram_bytes=24_576, n_dram_channels=2),
        ChipConfig(name="plus", select_engine="radix", n_value_engines=2, confidence_window=4),
        ChipConfig(
            name="edge",
            clock_hz=1e8,
            n_multipliers=64,
            kv_sram_bytes=24_576,
            n_dram_channels=1,
            dram_bytes_per_cycle=8,
            softmax_lanes=2,
            topk=TopKConfig(lanes=4),
            n_value_engines=2,
        ),
        ChipConfig(
            name="tiny",
            n_multipliers=64,
            kv_sram_bytes=12_288,
            n_dram_channels=1,
            dram_bytes_per_cycle=8,
            softmax_lanes=2,
            topk=TopKConfig(lanes=4),
            n_value_engines=2,
        ),
    )
}


def preset(name: str) -> ChipConfig:
    """The preset called ``name``; ValueError naming the known ones otherwise."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
    return PRESETS[name]


def chip_of(name: str, changes: Sequence[str] = ()) -> ChipConfig:
    """A preset with some fields changed, such as ``n_multipliers=256`` or ``topk.lanes=8``, named after both.

    ValueError naming what is allowed where a field is unknown, a value is no number, or it is out of range.
    """
    chip = preset(name)
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"a change must look like topk.lanes=8, not {change!r}")
        chip = _changed(chip, path.strip().split("."), value.strip())
    return replace(chip, name="-".join([name, *(change.replace("=", "") for change in changes)]))


def _changed(config: Any, path: list[str], value: str) -> Any:
    known = [f.name for f in fields(config) if f.name != "name"]
    if path[0] not in known:
        raise ValueError(f"field must be one of {', '.join(known)}, not {path[0]!r}")
    old = getattr(config, path[0])
    if is_dataclass(old) != (len(path) > 1):
        raise ValueError(
            f"field {path[0]!r} {'is a group: name one of its fields' if len(path) == 1 else 'has no fields'}"
        )
    if len(path) > 1:
        return replace(config, **{path[0]: _changed(old, path[1:], value)})
    try:
        return replace(config, **{path[0]: type(old)(value)})
    except ValueError as error:
        if "invalid literal" in str(error) or "could not convert" in str(error):
            raise ValueError(f"{path[0]} must be a number, not {value!r}") from None
        raise
