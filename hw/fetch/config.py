# SPDX-License-Identifier: MIT
"""Shapes and latencies of the fetcher and of its parts."""

from dataclasses import dataclass

ATOM_BYTES = 32
"""The unit that DRAM moves."""
ATOM_BITS = 8 * ATOM_BYTES
ONCHIP_BITS = 12
"""Width of an element on the chip."""
LSB_BITS = 4
"""Width of the plane of least significant bits, where there is one."""
PLANE_BITS = (4, 6, 8, 10, 12)
"""Widths of a plane in DRAM."""
HEAD_DIMS = (32, 64, 128)
MAX_RECORD_HEADS = 4
"""Heads whose rows of one token share a record, at most."""
MAX_RECORD_ATOMS = 6
"""Atoms of one record at most: 128 elements of 12 bits."""


ROW_UNIT_BITS = 64
"""Every row is whole units of this size."""
CUT_BITS = 13
"""Width of :func:`hw.fetch.shapes.cut_layout`: how to cut rows from atoms."""


def _power_of_two(name: str, value: int, low: int, high: int) -> None:
    if not (low <= value <= high and value & (value - 1) == 0):
        raise ValueError(f"{name} must be a power of two in {low}..{high}, not {value}")


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """The unit that splits values into an MSB plane and an LSB plane."""

    lanes: int = 16
    """Values of a beat."""

    LATENCY_CYCLES = 1

    def __post_init__(self) -> None:
        _in_range("lanes", self.lanes, 1, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinConfig:
    """The unit that joins the two planes again."""

    lanes: int = 16

    LATENCY_CYCLES = 1

    def __post_init__(self) -> None:
        _in_range("lanes", self.lanes, 1, 512)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddressConfig:
    """The address generator: kept tokens in, one stream of atom addresses for each port out."""

    n_ports: int = 32
    kept_lanes: int = 16
    """Token indices of a beat."""
    n_max: int = 1024
    """Tokens of a head, at most."""
    atom_address_bits: int = 26
    """Width of the number of an atom; 26 bits reach 2 GiB."""

    LATENCY_CYCLES = 6
    """From a request taken, whose kept list is there, to its first address."""

    def __post_init__(self) -> None:
        _power_of_two("n_ports", self.n_ports, 1, 64)
        _power_of_two("kept_lanes", self.kept_lanes, 1, self.n_ports)
        _power_of_two("n_max", self.n_max, 2, 65_536)
        _in_range("atom_address_bits", self.atom_address_bits, 8, 32)

    @property
    def token_bits(self) -> int:
        """Width of a token index."""
        return self.n_max.bit_length() - 1

    @property
    def counter_bits(self) -> int:
        """Width of the byte counters: ``n_max`` records of at most 192 bytes never overflow."""
        return (self.n_max * MAX_RECORD_ATOMS * ATOM_BYTES).bit_length()


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossbarConfig:
    """Both crossbars with the queues at their ports."""

    n_ports: int = 32
    n_channels: int = 16
    depth: int = 64
    """Addresses, and atoms, that a port holds; a power of two."""
    atom_address_bits: int = 26
    note_bits: int = CUT_BITS
    """Bits that travel beside an atom from request to delivery."""

    LATENCY_CYCLES = 5
    """From an address taken to its atom on ``o``, uncontended, the memory's latency not counted: address
    queue, request register, answer register, reorder buffer written, and read."""

    def __post_init__(self) -> None:
        _power_of_two("n_ports", self.n_ports, 1, 64)
        _power_of_two("n_channels", self.n_channels, 1, 64)
        _power_of_two("depth", self.depth, 2, 1024)
        _in_range("atom_address_bits", self.atom_address_bits, 8, 32)
        _in_range("note_bits", self.note_bits, 1, 64)

    @property
    def channel_bits(self) -> int:
        """log2 of the number of channels: the lowest bits of an atom's number name its channel."""
        return self.n_channels.bit_length() - 1

    @property
    def channel_address_bits(self) -> int:
        """Width of an address within a channel."""
        return self.atom_address_bits - self.channel_bits

    @property
    def port_bits(self) -> int:
        """Width of a port's number."""
        return self.n_ports.bit_length() - 1

    @property
    def tag_bits(self) -> int:
        """A tag names a slot of a port's reorder buffer, in its lowest bits, and the port."""
        return self.depth.bit_length() - 1 + self.port_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class ConverterConfig:
    """The bit-width converter of one port."""

    elements_per_beat: int = 16

    LATENCY_CYCLES = 1
    """From an atom to the first elements cut from it."""

    def __post_init__(self) -> None:
        _power_of_two("elements_per_beat", self.elements_per_beat, 4, 16)

    @property
    def word_bits(self) -> int:
        """Bits that two bits of width add to a beat: beats, rows and atoms are whole words of this size."""
        return 2 * self.elements_per_beat

    @property
    def atom_words(self) -> int:
        """Words of one atom."""
        return ATOM_BITS // self.word_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class LinesConfig:
    """The unit that gathers the rows of all ports into lines."""

    n_ports: int = 32
    elements_per_beat: int = 16
    """Elements that a port brings per cycle; a line has ``n_ports`` times as many."""
    max_head_dim: int = 128

    LATENCY_CYCLES = 2
    """From the last part of a line's last row, taken, to the line on ``o``: row register, line register."""

    def __post_init__(self) -> None:
        _power_of_two("n_ports", self.n_ports, 1, 64)
        _power_of_two("elements_per_beat", self.elements_per_beat, 4, 16)
        if self.max_head_dim not in HEAD_DIMS:
            raise ValueError(f"max_head_dim must be one of 32, 64, 128, not {self.max_head_dim}")
        if self.line_elements < self.max_head_dim:
            raise ValueError(
                "a line (n_ports x elements_per_beat) must hold max_head_dim elements, "
                f"not {self.line_elements} < {self.max_head_dim}"
            )

    @property
    def line_elements(self) -> int:
        """Elements of an output line."""
        return self.n_ports * self.elements_per_beat

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head dimensions that this unit takes."""
        return tuple(dim for dim in HEAD_DIMS if dim <= self.max_head_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """The whole fetcher of one operand."""

    n_ports: int = 32
    n_channels: int = 16
    depth: int = 64
    """Addresses, and atoms, that a port holds."""
    kept_lanes: int = 16
    """Token indices of a beat of the kept list."""
    elements_per_beat: int = 16
    """Elements that the converter of one port gives per cycle."""
    max_head_dim: int = 128
    n_max: int = 1024
    atom_address_bits: int = 26

    def __post_init__(self) -> None:
        _ = (self.addresses, self.crossbar, self.converter, self.lines)  # each part checks its own fields

    @property
    def addresses(self) -> AddressConfig:
        """The address generator."""
        return AddressConfig(
            n_ports=self.n_ports,
            kept_lanes=self.kept_lanes,
            n_max=self.n_max,
            atom_address_bits=self.atom_address_bits,
        )

    @property
    def crossbar(self) -> CrossbarConfig:
        """Queues and crossbars."""
        return CrossbarConfig(
            n_ports=self.n_ports,
            n_channels=self.n_channels,
            depth=self.depth,
            atom_address_bits=self.atom_address_bits,
        )

    @property
    def converter(self) -> ConverterConfig:
        """The converter of each port."""
        return ConverterConfig(elements_per_beat=self.elements_per_beat)

    @property
    def lines(self) -> LinesConfig:
        """The gathering of rows into lines."""
        return LinesConfig(
            n_ports=self.n_ports, elements_per_beat=self.elements_per_beat, max_head_dim=self.max_head_dim
        )


def fetch_config(*, n_multipliers: int, n_channels: int, kept_lanes: int, n_max: int) -> FetchConfig:
    """The fetcher that feeds an array of ``n_multipliers`` with one line an array cycle.

    Two ports a channel (SpAtten: 32 for 16), more where a port would have to give over 16 elements a cycle.
    """
    n_ports = max(2 * n_channels, n_multipliers // 16)
    return FetchConfig(
        n_ports=n_ports,
        n_channels=n_channels,
        kept_lanes=min(kept_lanes, n_ports),
        elements_per_beat=n_multipliers // n_ports,
        max_head_dim=128 if n_multipliers >= 512 else 64 if n_multipliers >= 64 else 32,
        n_max=n_max,
    )
