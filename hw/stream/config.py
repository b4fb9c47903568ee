# SPDX-License-Identifier: MIT
"""Shapes and latencies of the stream parts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FifoConfig:
    """First-in first-out queue of flat words."""

    width_bits: int
    depth: int
    """Words held, the output register included; at least 2."""

    LATENCY_CYCLES = 1
    """An empty queue shows a word in the cycle after it was taken in."""

    def __post_init__(self) -> None:
        if self.width_bits < 1:
            raise ValueError(f"width_bits must be at least 1, not {self.width_bits}")
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, not {self.depth}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SkidConfig:
    """Two-word register slice that cuts every combinational path from one side to the other."""

    width_bits: int

    LATENCY_CYCLES = 1

    def __post_init__(self) -> None:
        if self.width_bits < 1:
            raise ValueError(f"width_bits must be at least 1, not {self.width_bits}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthChangeConfig:
    """From ``lanes_in`` to ``lanes_out`` elements a beat; one must divide the other."""

    element_bits: int
    lanes_in: int
    lanes_out: int

    LATENCY_CYCLES = 1

    def __post_init__(self) -> None:
        if self.element_bits < 1:
            raise ValueError(f"element_bits must be at least 1, not {self.element_bits}")
        if min(self.lanes_in, self.lanes_out) < 1:
            raise ValueError(f"lanes must be at least 1, not {self.lanes_in} and {self.lanes_out}")
        if max(self.lanes_in, self.lanes_out) % min(self.lanes_in, self.lanes_out):
            raise ValueError(
                "one of lanes_in and lanes_out must divide the other, "
                f"not {self.lanes_in} and {self.lanes_out}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RegroupConfig:
    """From packed beats of up to ``lanes_in`` elements to full ones of ``lanes_out``; both powers of two."""

    element_bits: int
    lanes_in: int
    lanes_out: int

    def __post_init__(self) -> None:
        if self.element_bits < 1:
            raise ValueError(f"element_bits must be at least 1, not {self.element_bits}")
        for name, lanes in (("lanes_in", self.lanes_in), ("lanes_out", self.lanes_out)):
            if lanes < 1 or lanes & (lanes - 1):
                raise ValueError(f"{name} must be a power of two, not {lanes}")

    @property
    def packer(self) -> "PackerConfig":
        """The packer, as wide as the wider side."""
        return PackerConfig(element_bits=self.element_bits, lanes=max(self.lanes_in, self.lanes_out))

    @property
    def n_parts(self) -> int:
        """Output beats of one full beat of the packer."""
        return self.packer.lanes // self.lanes_out

    @property
    def latency_cycles(self) -> int:
        """The beat that completes an output beat to that output beat: 0, or 1 where wide beats are split."""
        return int(self.n_parts > 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackerConfig:
    """Joins beats of 0..lanes elements into full beats."""

    element_bits: int
    lanes: int
    """Elements of a full beat; a power of two."""

    LATENCY_CYCLES = 0
    """The beat that completes an output beat shows it in the same cycle."""

    def __post_init__(self) -> None:
        if self.element_bits < 1:
            raise ValueError(f"element_bits must be at least 1, not {self.element_bits}")
        if self.lanes < 1 or self.lanes & (self.lanes - 1):
            raise ValueError(f"lanes must be a power of two, not {self.lanes}")

    @property
    def count_bits(self) -> int:
        """Width of a beat's number of elements, bits."""
        return self.lanes.bit_length()
