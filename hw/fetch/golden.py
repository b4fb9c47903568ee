# SPDX-License-Identifier: MIT
"""Bit-exact models of the fetcher and its parts: int64 tensors in and out. No value is ever rounded.

A float value x, quantised to the nearest multiple of a step s with b + 4 bits, becomes K with
``|x - s K| <= s / 2`` (inside the range). Splitting and joining K is exact, so both planes together stay
within s / 2 of x. The MSB plane alone, 16 s K_msb, lacks s K_lsb with K_lsb in 0..15:
``-s / 2 <= x - 16 s K_msb <= 15.5 s``.
"""

import torch

from .config import ATOM_BITS, LSB_BITS
from .layout import Request


def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """MSB plane floor(values / 16), signed, and LSB plane values mod 16 in 0..15; any shape."""
    return values >> LSB_BITS, values & ((1 << LSB_BITS) - 1)


def join(msb: torch.Tensor, lsb: torch.Tensor) -> torch.Tensor:
    """16 msb + lsb: undoes :func:`split`."""
    return (msb << LSB_BITS) + lsb


def atom_addresses(request: Request, kept: torch.Tensor, n_ports: int) -> list[torch.Tensor]:
    """Atoms that each port reads, int64[n] in ascending order, each once.

    The r-th of the ``kept`` tokens (int64[n_kept], ascending) is port r mod n_ports's.
    """
    wanted = torch.arange(request.first_bit, request.first_bit + request.n_heads * request.row_bits)
    in_record = torch.unique(wanted // ATOM_BITS)
    starts = request.base_atom + kept * request.stride_atoms
    return [(starts[port::n_ports, None] + in_record).reshape(-1) for port in range(n_ports)]


def cut_rows(stream: torch.Tensor, request: Request) -> torch.Tensor:
    """Elements from bits: int64[n_heads, head_dim], extended by sign or zeros.

    ``stream`` holds the bits (0 or 1, int64[n_bits], lowest first) from the record's first wanted row on.
    """
    n_bits = request.n_heads * request.row_bits
    bits = stream[:n_bits].reshape(request.n_heads, request.head_dim, request.bits)
    weights = 1 << torch.arange(request.bits)
    if not request.is_unsigned:
        weights[-1] = -weights[-1]
    return (bits * weights).sum(-1)


def fetch_rows(memory_bits: torch.Tensor, request: Request, kept: torch.Tensor) -> torch.Tensor:
    """Rows of the kept tokens, int64[n_heads, n_kept, head_dim].

    ``memory_bits`` is the memory from atom 0 on, one bit an element (int64[n_bits], lowest bits first).
    """
    first_bits = (request.base_atom + kept * request.stride_atoms) * ATOM_BITS + request.first_bit
    rows = [cut_rows(memory_bits[first:], request) for first in first_bits.tolist()]
    return torch.stack(rows, dim=1)


def lines(rows: torch.Tensor, line_elements: int, n_ports: int) -> tuple[torch.Tensor, ...]:
    """Rows int64[n_heads, n_kept, head_dim] as lines, in the order in which they leave.

    Tokens come in rounds of ``n_ports``; in a round, all lines of one head precede those of the next head.

    Returns
    -------
    data int64[n_lines, line_elements], zeros at and above count; count, last, head int64[n_lines]
    """
    n_heads, n_kept, head_dim = rows.shape
    rows_per_line = line_elements // head_dim
    data, count, last, head = [], [], [], []
    order = [
        (h, first)
        for start in range(0, n_kept, n_ports)
        for h in range(n_heads)
        for first in range(start, min(start + n_ports, n_kept), rows_per_line)
    ]
    for h, first in order:
        elements = rows[h, first : first + rows_per_line].reshape(-1)
        data.append(torch.nn.functional.pad(elements, (0, line_elements - elements.numel())))
        count.append(elements.numel())
        last.append(int(first + rows_per_line >= n_kept))
        head.append(h)
    return (torch.stack(data), *(torch.tensor(field) for field in (count, last, head)))
