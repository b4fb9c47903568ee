# SPDX-License-Identifier: MIT
"""K and V in DRAM: packed bit planes, rows of several heads sharing records, atoms spread over channels.

A plane holds one operand's elements of b bits for all heads and tokens. A token's rows of g consecutive heads
stand side by side in one *record*, g being the smallest power of two for which the record fills whole
32-byte atoms (g D <= 128, at most four heads): 1 where a row does already, 2 for 64 elements of 6 or 10 bits,
4 for 32 elements of those widths. Records of one group of g heads follow each other in the order of the
tokens, groups in the order of the heads. If g does not divide the number of heads, the records of the last
group hold what remains and are filled up to whole atoms with zeros.

numpy only: the driver that writes memory images shares it with the hardware's golden model.
"""

from dataclasses import dataclass

import numpy as np

from .config import ATOM_BITS, ATOM_BYTES, HEAD_DIMS, LSB_BITS, MAX_RECORD_HEADS, PLANE_BITS


def split_planes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MSB plane ``floor(values / 16)``, with the sign, and LSB plane ``values mod 16`` in 0..15."""
    return values >> LSB_BITS, values & ((1 << LSB_BITS) - 1)


def join_planes(msb: np.ndarray, lsb: np.ndarray) -> np.ndarray:
    """Undoes :func:`split_planes`: 16 msb + lsb."""
    return (msb << LSB_BITS) + lsb


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the fetcher is asked for, beside the kept tokens: rows of heads that share a record."""

    base_atom: int
    """Number of the first atom of the group's records."""
    bits: int
    is_unsigned: bool
    """Elements are zero-extended (LSB plane), not sign-extended."""
    head_dim: int
    record_heads: int
    """Heads of the group: 1..4."""
    head: int
    """First head wanted, counted within the group."""
    n_heads: int
    """Heads wanted: head + n_heads is at most record_heads."""

    def __post_init__(self) -> None:
        if self.bits not in PLANE_BITS:
            raise ValueError(f"bits must be one of 4, 6, 8, 10, 12, not {self.bits}")
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"head_dim must be one of 32, 64, 128, not {self.head_dim}")
        if not 1 <= self.record_heads <= 128 // self.head_dim:
            raise ValueError(f"record_heads must be in 1..{128 // self.head_dim}, not {self.record_heads}")
        if not 0 <= self.head < self.record_heads:
            raise ValueError(f"head must be in 0..{self.record_heads - 1}, not {self.head}")
        if not 1 <= self.n_heads <= self.record_heads - self.head:
            raise ValueError(f"n_heads must be in 1..{self.record_heads - self.head}, not {self.n_heads}")
        if self.base_atom < 0:
            raise ValueError(f"base_atom must not be negative, not {self.base_atom}")

    @property
    def row_bits(self) -> int:
        """Bits of one row."""
        return self.head_dim * self.bits

    @property
    def stride_atoms(self) -> int:
        """Atoms of one record."""
        return -(-self.record_heads * self.row_bits // ATOM_BITS)

    @property
    def first_bit(self) -> int:
        """First wanted bit of a record."""
        return self.head * self.row_bits

    @property
    def n_atoms(self) -> int:
        """Atoms that hold the wanted rows of one token."""
        end_bit = self.first_bit + self.n_heads * self.row_bits
        return -(-end_bit // ATOM_BITS) - self.first_bit // ATOM_BITS

    def first_atom(self, token: int | np.ndarray) -> int | np.ndarray:
        """Number of the first atom wanted of ``token``."""
        return self.base_atom + token * self.stride_atoms + self.first_bit // ATOM_BITS

    def ideal_bytes(self, n_kept: int) -> int:
        """Bytes of the wanted rows."""
        return n_kept * self.n_heads * self.row_bits // 8

    def moved_bytes(self, n_kept: int) -> int:
        """Bytes of the atoms that hold them."""
        return n_kept * self.n_atoms * ATOM_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """One operand's plane in memory."""

    base_atom: int
    n_heads: int
    n_tokens: int
    """Tokens for which there is room."""
    head_dim: int
    bits: int
    is_unsigned: bool = False

    def __post_init__(self) -> None:
        if self.n_heads < 1 or self.n_tokens < 1:
            raise ValueError(f"n_heads and n_tokens must be at least 1, not {self.n_heads}, {self.n_tokens}")
        self.request(0, 1)  # checks the other fields

    @property
    def record_heads(self) -> int:
        """g: heads that share a record."""
        heads = 1
        while heads < MAX_RECORD_HEADS and heads * self.head_dim * self.bits % ATOM_BITS:
            heads *= 2
        return heads

    def _heads_of_group(self, group: int) -> int:
        return min(self.record_heads, self.n_heads - group * self.record_heads)

    def _stride_atoms(self, group: int) -> int:
        return -(-self._heads_of_group(group) * self.head_dim * self.bits // ATOM_BITS)

    def group_base(self, group: int) -> int:
        """Number of the first atom of a group of heads."""
        return self.base_atom + group * self.n_tokens * self._stride_atoms(0)

    @property
    def n_atoms(self) -> int:
        """Atoms of the plane."""
        n_groups = -(-self.n_heads // self.record_heads)
        return (
            self.group_base(n_groups - 1) - self.base_atom + self.n_tokens * self._stride_atoms(n_groups - 1)
        )

    def request(self, head: int, n_heads: int) -> Request:
        """The request for ``n_heads`` heads from ``head`` on; ValueError where they are not of one group."""
        if not 0 <= head < self.n_heads:
            raise ValueError(f"head must be in 0..{self.n_heads - 1}, not {head}")
        group, slot = divmod(head, self.record_heads)
        return Request(
            base_atom=self.group_base(group),
            bits=self.bits,
            is_unsigned=self.is_unsigned,
            head_dim=self.head_dim,
            record_heads=self._heads_of_group(group),
            head=slot,
            n_heads=n_heads,
        )

    def address(self, head: int, token: int) -> tuple[int, int]:
        """Byte address of the atom in which a row starts, and the row's first bit in that atom."""
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"token must be in 0..{self.n_tokens - 1}, not {token}")
        request = self.request(head, 1)
        return int(request.first_atom(token)) * ATOM_BYTES, request.first_bit % ATOM_BITS

    def pack(self, values: np.ndarray) -> np.ndarray:
        """The plane's atoms, uint32[n_atoms, 8], lowest bits first.

        ``values`` is an integer array [n_heads, n_tokens, head_dim]; ValueError where one does not fit.
        """
        shape = (self.n_heads, self.n_tokens, self.head_dim)
        if values.shape != shape:
            raise ValueError(f"values must have shape {shape}, not {values.shape}")
        low = 0 if self.is_unsigned else -(1 << (self.bits - 1))
        high = low + (1 << self.bits) - 1
        if values.min() < low or values.max() > high:
            raise ValueError(
                f"values must be in {low}..{high} ({self.bits} bits), not {values.min()}..{values.max()}"
            )
        bits = (values[..., None].astype(np.int64) >> np.arange(self.bits)) & 1
        parts = []
        for first in range(0, self.n_heads, self.record_heads):
            records = bits[first : first + self.record_heads].transpose(1, 0, 2, 3).reshape(self.n_tokens, -1)
            padding = -records.shape[1] % ATOM_BITS
            parts.append(np.pad(records, ((0, 0), (0, padding))).reshape(-1, ATOM_BITS))
        packed = np.packbits(np.concatenate(parts).astype(np.uint8), axis=1, bitorder="little")
        return packed.view("<u4").astype(np.uint32)

    def unpack(self, atoms: np.ndarray) -> np.ndarray:
        """Undoes :meth:`pack`: int64[n_heads, n_tokens, head_dim] from the plane's atoms."""
        if atoms.shape != (self.n_atoms, ATOM_BYTES // 4):
            raise ValueError(f"atoms must have shape {(self.n_atoms, ATOM_BYTES // 4)}, not {atoms.shape}")
        stream = np.unpackbits(
            np.ascontiguousarray(atoms, dtype="<u4").view(np.uint8), axis=1, bitorder="little"
        ).reshape(-1)
        row_bits = self.head_dim * self.bits
        first_bits = np.array(
            [
                [
                    (address - self.base_atom * ATOM_BYTES) * 8 + bit
                    for address, bit in (self.address(head, token) for token in range(self.n_tokens))
                ]
                for head in range(self.n_heads)
            ]
        )
        rows = stream[first_bits[..., None] + np.arange(row_bits)]
        elements = rows.reshape(*first_bits.shape, self.head_dim, self.bits).astype(np.int64)
        values = elements @ (1 << np.arange(self.bits, dtype=np.int64))
        return values if self.is_unsigned else values - (elements[..., -1] << self.bits)


def channel_images(atoms: np.ndarray, n_channels: int) -> list[np.ndarray]:
    """What each channel holds of a memory from atom 0 on: channel c has atoms c, c + n_channels, ..."""
    return [np.ascontiguousarray(atoms[channel::n_channels]) for channel in range(n_channels)]
