# SPDX-License-Identifier: MIT
"""Bit-exact models of the stream parts: integers in, integers out. FIFO and skid buffer are the identity."""

import torch

from .config import PackerConfig, RegroupConfig, WidthChangeConfig


def change_width(beats: torch.Tensor, config: WidthChangeConfig) -> torch.Tensor:
    """Regroup int64[n_beats, lanes_in] to int64[m_beats, lanes_out]; a rest below a beat stays inside."""
    elements = beats.reshape(-1)
    n_whole = elements.numel() // config.lanes_out * config.lanes_out
    return elements[:n_whole].reshape(-1, config.lanes_out)


def pack(
    data: torch.Tensor, count: torch.Tensor, last: torch.Tensor, config: PackerConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Join the first ``count`` elements of each beat into full beats, list by list.

    A list whose last input beat is empty, after beats that left nothing over, ends with an empty beat.

    Parameters
    ----------
    data : int64[n_beats, lanes]
    count : int64[n_beats], 0..lanes
    last : int64[n_beats], 1 at the end of each list (the final beat must end one)

    Returns
    -------
    data, count, last of the output beats; lanes at and above ``count`` are 0
    """
    out_data, out_count, out_last = [], [], []
    start = 0
    for end in (torch.nonzero(last).flatten() + 1).tolist():
        kept = [data[beat, : int(count[beat])] for beat in range(start, end)]
        elements = torch.cat(kept)
        # A full beat leaves at once, so an empty last beat after it finds nothing but its own mark to send.
        ends_empty = elements.numel() % config.lanes == 0 and int(count[end - 1]) == 0
        n_beats = -(-elements.numel() // config.lanes) + ends_empty
        padded = torch.zeros(n_beats * config.lanes, dtype=torch.int64)
        padded[: elements.numel()] = elements
        out_data.append(padded.reshape(n_beats, config.lanes))
        counts = torch.full((n_beats,), config.lanes)
        counts[-1] = elements.numel() - (n_beats - 1) * config.lanes
        out_count.append(counts)
        out_last.append(torch.arange(n_beats) == n_beats - 1)
        start = end
    return torch.cat(out_data), torch.cat(out_count), torch.cat(out_last).to(torch.int64)


def regroup(
    data: torch.Tensor, count: torch.Tensor, last: torch.Tensor, config: RegroupConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of packed beats, from ``lanes_in`` to ``lanes_out`` lanes: all full but the last of a row.

    A row ends with an empty beat where its last input beat is empty and the wider side's beats are all full
    before it, as in :func:`pack`.

    Parameters
    ----------
    data : int64[n_beats, lanes_in]
    count : int64[n_beats], 0..lanes_in
    last : int64[n_beats], 1 at the end of each row (the final beat must end one)

    Returns
    -------
    data, count, last of the output beats; lanes at and above ``count`` are 0
    """
    wide = torch.zeros(len(data), config.packer.lanes, dtype=torch.int64)
    wide[:, : config.lanes_in] = data
    data, count, last = pack(wide, count, last, config.packer)
    parts = torch.arange(config.n_parts)
    start = parts * config.lanes_out
    filled = (count[:, None] - start).clamp(0, config.lanes_out)
    final = parts == ((count - 1).clamp(min=0) // config.lanes_out)[:, None]
    kept = (parts <= final.to(torch.int64).argmax(dim=1, keepdim=True)).flatten()
    return (
        data.reshape(-1, config.lanes_out)[kept],
        filled.flatten()[kept],
        (final & (last[:, None] == 1)).flatten()[kept].to(torch.int64),
    )
