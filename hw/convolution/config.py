# SPDX-License-Identifier: MIT
"""Shape of the convolution core: its blocks, its bus, its queues."""

from dataclasses import dataclass, field

from hw.config import ChipConfig
from hw.depthwise.config import DepthwiseConfig, depthwise_config
from hw.epilogue.config import EpilogueConfig, epilogue_config
from hw.fir.config import FirConfig, fir_config
from hw.loss.config import SCORE_BITS, LossConfig, loss_config
from hw.systolic.config import SystolicConfig, systolic_config
from hw.training.config import TrainingConfig, training_config
from hw.transpose.config import TransposeConfig

ADDRESS_BITS = 32
COMMAND_COUNT_BITS = 24
RECORD_BYTES = 64
"""Of one command in memory."""
UNIT_BYTES, MAP_UNIT_BYTES = 2, 4
"""Address and length of whatever is written are multiples of this; of maps of numbers, of the latter."""


def mask_bytes(columns: int) -> int:
    """Length of a mask's element: a bit a column."""
    return -(-columns // (8 * UNIT_BYTES)) * UNIT_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvolutionConfig:
    """One built core; what it computes is a run-time value."""

    array: SystolicConfig = field(default_factory=SystolicConfig)
    fir: FirConfig = field(default_factory=lambda: FirConfig(element_bits=16, out_bits=18))
    depthwise: DepthwiseConfig = field(default_factory=DepthwiseConfig)
    epilogue: EpilogueConfig = field(default_factory=EpilogueConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    bus_bytes: int = 8
    """Of a word of memory: 4, 8, 16, 32 or 64."""
    read_words: int = 64
    """Words that each read port may have asked for and not yet used; 3..1,024. For a word a cycle, as many as
    the cycles of a read and five more."""
    max_writes: int = 63
    """Writes that may wait for their acknowledgement; 1..1,023."""
    queued_commands: int = 3
    """Commands that may wait for each unit; 3..16."""

    def __post_init__(self) -> None:
        lanes = self.array.columns
        if self.bus_bytes not in (4, 8, 16, 32, 64):
            raise ValueError(f"bus_bytes must be 4, 8, 16, 32 or 64, not {self.bus_bytes}")
        for name, low, high in (
            ("read_words", 3, 1024),
            ("max_writes", 1, 1023),
            ("queued_commands", 3, 16),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in {low}..{high}, not {getattr(self, name)}")
        if lanes % 4 or self.array.rows % 4:
            raise ValueError(f"rows and columns must be multiples of 4, not {self.array.rows} and {lanes}")
        others = [self.fir.lanes, self.depthwise.lanes, self.epilogue.lanes]
        if others != 3 * [lanes]:
            raise ValueError(f"lanes must be the array's {lanes} columns, not {others}")
        if self.fir.element_bits != 16:
            raise ValueError(f"fir.element_bits must be 16, not {self.fir.element_bits}")
        if self.loss.lanes < 2 or lanes % self.loss.lanes:
            raise ValueError(f"loss.lanes must divide {lanes} and be at least 2, not {self.loss.lanes}")

    @property
    def transpose(self) -> TransposeConfig:
        """A lane a column."""
        return TransposeConfig(lanes=self.array.columns)

    @property
    def score_bytes(self) -> int:
        """Of what the loss unit takes at once."""
        return self.loss.lanes * SCORE_BITS // 8

    @property
    def max_classes(self) -> int:
        """Of a picture: what the loss unit holds, and the epilogue has table for."""
        return min(self.loss.max_classes, self.epilogue.max_tiles * self.epilogue.lanes)

    @property
    def wide_bytes(self) -> int:
        """Of a lane of 16 bits for each column: an element of a table, a residual, a planar map."""
        return 2 * self.array.columns

    @property
    def bus_address_bits(self) -> int:
        """Width of a bus word's number."""
        return ADDRESS_BITS - (self.bus_bytes.bit_length() - 1)


def convolution_config(chip: ChipConfig) -> ConvolutionConfig:
    """The core of a chip: a bus as wide as one DRAM channel's bytes a cycle, at most 64."""
    return ConvolutionConfig(
        array=systolic_config(chip),
        fir=fir_config(chip),
        depthwise=depthwise_config(chip),
        epilogue=epilogue_config(chip),
        training=training_config(chip),
        loss=loss_config(chip),
        bus_bytes=min(64, chip.dram_bytes_per_cycle),
    )
