# SPDX-License-Identifier: MIT
"""Stimulus and expectations for the fetcher and its parts."""

from collections import deque
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from hw.harness.job import Beats, Case, pack_fields
from hw.harness.memory import Memory

from . import golden
from .config import (
    ATOM_BITS,
    ATOM_BYTES,
    CUT_BITS,
    HEAD_DIMS,
    LSB_BITS,
    ONCHIP_BITS,
    PLANE_BITS,
    ROW_UNIT_BITS,
    AddressConfig,
    ConverterConfig,
    CrossbarConfig,
    FetchConfig,
    JoinConfig,
    LinesConfig,
    SplitConfig,
)
from .cycles import (
    AddressModel,
    Atom,
    ConverterModel,
    CrossbarModel,
    Cut,
    LinesModel,
    MemoryTiming,
    RowPart,
    replay,
)
from .layout import Plane, Request, channel_images

Kept = tuple[Request, np.ndarray]
"""A request and its kept tokens, int64[n_kept], ascending."""


@singledispatch
def _cases(config: Any, rng: np.random.Generator, n_random: int) -> list[Case]:
    raise TypeError(f"no vectors for {type(config).__name__}")


def cases(config: Any, *, seed: int, n_random: int) -> list[Case]:
    """Corners first, then ``n_random`` random beats or requests."""
    return _cases(config, np.random.default_rng(seed), n_random)


def unsigned(values: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement of signed values as a field of ``bits``."""
    return np.asarray(values) & ((1 << bits) - 1)


# --- planes ---------------------------------------------------------------------------------------------


def _plane_values(lanes: int, rng: np.random.Generator, n_random: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = -(1 << 15), (1 << 15) - 1
    corners = np.array([low, high, -1, 0, 1, -16, -17, 15, 16])
    corner_rows = np.resize(corners, (len(corners), lanes)) if lanes > 1 else corners[:, None]
    values = np.concatenate([corner_rows, rng.integers(low, high + 1, (n_random, lanes))])
    return values, rng.integers(0, 2, len(values))


@_cases.register
def _split_cases(config: SplitConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    return [_plane_case(config, rng, n_random, is_split=True)]


@_cases.register
def _join_cases(config: JoinConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    return [_plane_case(config, rng, n_random, is_split=False)]


def _plane_case(
    config: SplitConfig | JoinConfig, rng: np.random.Generator, n_random: int, is_split: bool
) -> Case:
    values, last = _plane_values(config.lanes, rng, n_random)
    msb, lsb = (part.numpy() for part in golden.split(torch.from_numpy(values)))
    whole_bits = ONCHIP_BITS + LSB_BITS
    whole = {"": pack_fields([(unsigned(values, whole_bits), whole_bits), (last, 1)])}
    parts = {
        "_msb": pack_fields([(unsigned(msb, ONCHIP_BITS), ONCHIP_BITS), (last, 1)]),
        "_lsb": pack_fields([(lsb, LSB_BITS), (last, 1)]),
    }
    before, after = (whole, parts) if is_split else (parts, whole)
    on_time = 1 + config.LATENCY_CYCLES + np.arange(len(values))
    return Case(
        name="corners, random values",
        inputs={f"i{name}": beats for name, beats in before.items()},
        expected={f"o{name}": beats for name, beats in after.items()},
        expected_cycles={f"o{name}": on_time for name in after},
        max_cycles=len(values) + 100,
    )


# --- requests -------------------------------------------------------------------------------------------


def corner_planes(max_head_dim: int, n_tokens: int) -> list[tuple[Plane, int, int]]:
    """(plane, first head, heads): every width and dimension, all heads of a record, its last head alone."""
    chosen = []
    base = 3  # not the start of a channel round
    for dim in (d for d in HEAD_DIMS if d <= max_head_dim):
        for bits in PLANE_BITS:
            shape = {"base_atom": base, "n_tokens": n_tokens, "head_dim": dim, "bits": bits}
            plane = Plane(n_heads=5, is_unsigned=bits == LSB_BITS and dim == 64, **shape)
            g = plane.record_heads
            chosen.append((plane, 0, g))
            chosen.append((plane, min(2 * g, 5) - 1, 1))
            base += plane.n_atoms
    return chosen


def _random_requests(
    config: AddressConfig, max_head_dim: int, rng: np.random.Generator, n_random: int, n_tokens: int
) -> list[tuple[Plane, Request, np.ndarray]]:
    """Corner requests with short lists of changing length, then ``n_random`` with longer ones."""
    found = []
    planes = corner_planes(max_head_dim, n_tokens)
    lengths = [1, 2, config.kept_lanes, config.kept_lanes + 1, config.n_ports, config.n_ports + 1]
    for number, (plane, head, n_heads) in enumerate(planes):
        n_kept = min(lengths[number % len(lengths)], n_tokens)
        found.append((plane, plane.request(head, n_heads), _kept(rng, n_tokens, n_kept)))
    for _ in range(n_random):
        plane, _, _ = planes[rng.integers(len(planes))]
        head = int(rng.integers(plane.n_heads))
        room = min(plane.record_heads, plane.n_heads - head // plane.record_heads * plane.record_heads)
        n_heads = 1 + int(rng.integers(room - head % plane.record_heads))
        n_kept = 1 + int(rng.integers(n_tokens))
        found.append((plane, plane.request(head, n_heads), _kept(rng, n_tokens, n_kept)))
    return found


def _kept(rng: np.random.Generator, n_tokens: int, n_kept: int) -> np.ndarray:
    return np.sort(rng.choice(n_tokens, n_kept, replace=False))


def request_beats(requests: Sequence[Request], config: AddressConfig) -> Beats:
    """Requests as the beats of ``i_request``."""
    columns: dict[str, list[int]] = {
        "base_atom": [r.base_atom for r in requests],
        "bits": [r.bits for r in requests],
        "is_unsigned": [r.is_unsigned for r in requests],
        "dim": [HEAD_DIMS.index(r.head_dim) for r in requests],
        "record_heads": [r.record_heads for r in requests],
        "head": [r.head for r in requests],
        "n_heads": [r.n_heads for r in requests],
    }
    widths = (config.atom_address_bits, 4, 1, 2, 3, 2, 3)
    return pack_fields(
        [(np.array(column), bits) for column, bits in zip(columns.values(), widths, strict=True)]
    )


def kept_beats(lists: Sequence[np.ndarray], config: AddressConfig) -> Beats:
    """Kept lists, one after the other, as the packed beats of ``i_kept``."""
    lanes = config.kept_lanes
    data, count, last = [], [], []
    for tokens in lists:
        for first in range(0, len(tokens), lanes):
            part = tokens[first : first + lanes]
            data.append(np.pad(part, (0, lanes - len(part))))
            count.append(len(part))
            last.append(first + lanes >= len(tokens))
    fields = [(data, config.token_bits), (count, lanes.bit_length()), (last, 1)]
    return pack_fields([(np.array(values), bits) for values, bits in fields])


def _counter_beats(requests: Sequence[Kept], config: AddressConfig) -> Beats:
    counters = [(r.ideal_bytes(len(kept)), r.moved_bytes(len(kept))) for r, kept in requests]
    return pack_fields([(np.array(counters), config.counter_bits)])


def _note(request: Request, last: bool) -> int:
    skip = request.first_bit % ATOM_BITS // ROW_UNIT_BITS
    fields = ((request.bits, 4), (request.is_unsigned, 1), (skip, 2), (HEAD_DIMS.index(request.head_dim), 2),
              (request.n_heads, 3), (last, 1))  # fmt: skip
    note, at = 0, 0
    for value, bits in fields:
        note |= int(value) << at
        at += bits
    return note


@_cases.register
def _address_cases(config: AddressConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    found = _random_requests(config, HEAD_DIMS[-1], rng, n_random, min(config.n_max, 64))
    requests = [(request, kept) for _, request, kept in found]
    # A full list at the top of the address range: every counter and sum at its maximum.
    widest = Plane(base_atom=0, n_heads=1, n_tokens=config.n_max, head_dim=128, bits=12)
    room = 1 << config.atom_address_bits
    top = Request(base_atom=room - widest.n_atoms, bits=12, is_unsigned=False, head_dim=128,
                  record_heads=1, head=0, n_heads=1)  # fmt: skip
    return [
        _address_case("corners, random requests", requests, config),
        _address_case("largest request", [(top, np.arange(config.n_max))], config),
    ]


def _address_case(name: str, requests: Sequence[Kept], config: AddressConfig) -> Case:
    expected: dict[str, Beats] = {}
    for port in range(config.n_ports):
        addresses, notes = [], []
        for request, kept in requests:
            mine = golden.atom_addresses(request, torch.from_numpy(kept), config.n_ports)[port].tolist()
            n_tokens = len(range(port, len(kept), config.n_ports))
            ends_here = (len(kept) - 1) % config.n_ports == port
            for number, address in enumerate(mine):
                addresses.append(address)
                in_last = ends_here and number // request.n_atoms == n_tokens - 1
                notes.append(_note(request, in_last))
        expected[f"o{port}"] = pack_fields(
            [(np.array(addresses, dtype=np.int64), config.atom_address_bits),
             (np.array(notes, dtype=np.int64), CUT_BITS)]
        )  # fmt: skip
    expected["o_counters"] = _counter_beats(requests, config)
    model = AddressModel(config, requests)
    stamps: list[list[int]] = [[] for _ in range(config.n_ports)]
    cycle = 0
    while sum(map(len, stamps)) < sum(len(expected[f"o{p}"]) for p in range(config.n_ports)) or len(
        model.counter_stamps
    ) < len(requests):
        cycle += 1
        for port, atom in enumerate(model.step(cycle, [True] * config.n_ports)):
            if atom is not None:
                stamps[port].append(cycle)
    on_time = {f"o{port}": np.array(found, dtype=np.int64) for port, found in enumerate(stamps)}
    return Case(
        name=name,
        inputs={
            "i_request": request_beats([r for r, _ in requests], config),
            "i_kept": kept_beats([kept for _, kept in requests], config),
        },
        expected=expected,
        expected_cycles={**on_time, "o_counters": np.array(model.counter_stamps)},
        max_cycles=cycle + 100,
    )


# --- crossbar -------------------------------------------------------------------------------------------


@_cases.register
def _crossbar_cases(config: CrossbarConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    n_atoms = min(64 * config.n_channels, 1 << config.atom_address_bits)
    n = config.depth + n_random
    one_channel = [rng.integers(0, n_atoms // config.n_channels, 8) * config.n_channels] * config.n_ports
    spread = [(np.arange(n) * config.n_ports + port) % n_atoms for port in range(config.n_ports)]
    anywhere = [rng.integers(0, n_atoms, rng.integers(1, n + 1)) for _ in range(config.n_ports)]
    alone = [np.array([1 % n_atoms]), *([np.zeros(0, dtype=np.int64)] * (config.n_ports - 1))]
    timings = {"slow": MemoryTiming(latency_cycles=9, interval_cycles=3), "": MemoryTiming(latency_cycles=4)}
    made = [
        _crossbar_case("one atom", alone, config, rng, n_atoms, MemoryTiming()),
        _crossbar_case("one channel", one_channel, config, rng, n_atoms, timings[""]),
        _crossbar_case("ascending atoms", spread, config, rng, n_atoms, timings[""]),
        _crossbar_case("random atoms, slow memory", anywhere, config, rng, n_atoms, timings["slow"]),
    ]
    return [*made, _crossbar_case("latencies of 1 to 30", anywhere, config, rng, n_atoms, timings[""], 29)]


def _crossbar_case(
    name: str,
    wanted: Sequence[np.ndarray],
    config: CrossbarConfig,
    rng: np.random.Generator,
    n_atoms: int,
    timing: MemoryTiming,
    jitter_cycles: int = 0,
) -> Case:
    atoms = rng.integers(0, 1 << 32, (n_atoms, ATOM_BYTES // 4), dtype=np.uint32)
    inputs, expected = {}, {}
    for port, addresses in enumerate(wanted):
        notes = rng.integers(0, 1 << config.note_bits, len(addresses))
        inputs[f"i{port}"] = pack_fields([(addresses, config.atom_address_bits), (notes, config.note_bits)])
        expected[f"o{port}"] = pack_fields([(atoms[addresses], 32), (notes, config.note_bits)])
    stamps, cycle = _replay_crossbar(wanted, config, timing)
    return Case(
        name=name,
        inputs=inputs,
        expected=expected,
        expected_cycles={} if jitter_cycles else stamps,
        max_cycles=cycle * (1 + jitter_cycles) + 200,
        memories=memories(atoms, config, timing, jitter_cycles),
    )


def _replay_crossbar(
    wanted: Sequence[np.ndarray], config: CrossbarConfig, timing: MemoryTiming
) -> tuple[dict[str, np.ndarray], int]:
    model = CrossbarModel(config, timing)
    sources = [deque(Atom(int(a)) for a in addresses) for addresses in wanted]
    stamps: list[list[int]] = [[] for _ in wanted]
    cycle = 0
    while sum(map(len, stamps)) < sum(map(len, wanted)):
        cycle += 1
        for port, out in enumerate(model.delivered):
            if out:
                out.clear()
                stamps[port].append(cycle)
        room = model.step(cycle)
        for queue, source, free in zip(model.queues, sources, room, strict=True):
            queue.put(source.popleft() if source and free else None)
    return {f"o{port}": np.array(s, dtype=np.int64) for port, s in enumerate(stamps)}, cycle


def memories(
    atoms: np.ndarray, config: CrossbarConfig, timing: MemoryTiming, jitter_cycles: int = 0
) -> dict[str, Memory]:
    """The channels' memories of an image, uint32[n_atoms, 8], for :attr:`hw.harness.job.Case.memories`."""
    return {
        f"o_request{c}": Memory(
            response=f"i_response{c}",
            words=image,
            address_bits=config.channel_address_bits,
            latency_cycles=1 if jitter_cycles else timing.latency_cycles,
            jitter_cycles=jitter_cycles,
            interval_cycles=timing.interval_cycles,
        )
        for c, image in enumerate(channel_images(atoms, config.n_channels))
    }


# --- converter and lines --------------------------------------------------------------------------------


def _row_beats(parts: Sequence[tuple[np.ndarray, tuple[int, ...]]], n_elements: int) -> Beats:
    data = np.array([part for part, _ in parts], dtype=np.int64).reshape(len(parts), n_elements)
    marks = np.array([mark for _, mark in parts], dtype=np.int64).reshape(len(parts), 4)
    fields = [(unsigned(data, ONCHIP_BITS), ONCHIP_BITS)]
    return pack_fields([*fields, *zip(marks.T, (1, 2, 2, 1), strict=True)])


def _row_parts(rows: np.ndarray, last: bool, n_elements: int) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """Rows int64[n_heads, head_dim] of one record as parts with their marks."""
    n_heads, head_dim = rows.shape
    n_parts = head_dim // n_elements
    return [
        (
            rows[head, k * n_elements : (k + 1) * n_elements],
            (k == n_parts - 1, HEAD_DIMS.index(head_dim), head, last),
        )
        for head in range(n_heads)
        for k in range(n_parts)
    ]


@_cases.register
def _converter_cases(config: ConverterConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    chosen = corner_planes(HEAD_DIMS[-1], 4)
    picks = [*chosen, *(chosen[k] for k in rng.integers(0, len(chosen), n_random))]
    atoms, notes, parts = [], [], []
    coming: deque[Atom] = deque()
    for plane, head, n_heads in picks:
        request, last = plane.request(head, n_heads), bool(rng.integers(2))
        bits = rng.integers(0, 2, (request.n_atoms, ATOM_BITS))
        if rng.integers(4) == 0:
            bits[:] = rng.integers(2)  # all ones and all zeros: -1, 0, 15
        stream = torch.from_numpy(bits.reshape(-1)[request.first_bit % ATOM_BITS :])
        rows = golden.cut_rows(stream, request).numpy()
        atoms.append(bits)
        notes += [_note(request, last)] * request.n_atoms
        coming.extend(Atom(0, Cut(request, last)) for _ in range(request.n_atoms))
        parts += _row_parts(rows, last, config.elements_per_beat)
    model, cycle = ConverterModel(config), 0
    stamps: list[int] = []
    while len(stamps) < len(parts):
        cycle += 1
        if model.step(coming, True) is not None:
            stamps.append(cycle)
    return [
        Case(
            name="corners, random records",
            inputs={"i": pack_fields([(np.concatenate(atoms), 1), (np.array(notes), CUT_BITS)])},
            expected={"o": _row_beats(parts, config.elements_per_beat)},
            expected_cycles={"o": np.array(stamps)},
            max_cycles=cycle + 100,
        )
    ]


@_cases.register
def _lines_cases(config: LinesConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    planes = corner_planes(config.max_head_dim, config.n_ports * 4)
    lengths = [1, 2, config.n_ports - 1, config.n_ports, config.n_ports + 1]
    picks = [planes[k] for k in rng.integers(0, len(planes), len(planes) + n_random)]
    parts: list[list] = [[] for _ in range(config.n_ports)]
    coming: list[deque[RowPart]] = [deque() for _ in range(config.n_ports)]
    wanted = []
    for number, (plane, head, n_heads) in enumerate(picks):
        n_kept = (
            max(1, lengths[number]) if number < len(lengths) else 1 + int(rng.integers(3 * config.n_ports))
        )
        request = plane.request(head, n_heads)
        rows = rng.integers(-2048, 2048, (n_heads, n_kept, plane.head_dim))
        lines = golden.lines(torch.from_numpy(rows), config.line_elements, config.n_ports)
        wanted.append([part.numpy() for part in lines])
        for rank in range(n_kept):
            last = rank == n_kept - 1
            new = _row_parts(rows[:, rank], last, config.elements_per_beat)
            parts[rank % config.n_ports] += new
            coming[rank % config.n_ports].extend(
                RowPart(bool(mark[0]), Cut(request, last)) for _, mark in new
            )
    model, cycle = LinesModel(config), 0
    while len(model.stamps) < sum(len(part[0]) for part in wanted):
        cycle += 1
        for port, ready in enumerate(model.step(cycle)):
            model.put(port, coming[port].popleft() if ready and coming[port] else None)
    return [
        Case(
            name="lists of every length",
            inputs={f"i{port}": _row_beats(p, config.elements_per_beat) for port, p in enumerate(parts)},
            expected={"o": _line_beats(wanted, config)},
            expected_cycles={"o": np.array(model.stamps)},
            max_cycles=cycle + 100,
        )
    ]


def _line_beats(wanted: Sequence[Sequence[np.ndarray]], config: LinesConfig) -> Beats:
    data, count, last, head = (np.concatenate(column) for column in zip(*wanted, strict=True))
    return pack_fields(
        [(unsigned(data, ONCHIP_BITS), ONCHIP_BITS), (count, config.line_elements.bit_length()),
         (last, 1), (head, 2)]
    )  # fmt: skip


# --- the whole ------------------------------------------------------------------------------------------


@_cases.register
def _fetch_cases(config: FetchConfig, rng: np.random.Generator, n_random: int) -> list[Case]:
    n_tokens = min(config.n_max, 24)
    found = _random_requests(config.addresses, config.max_head_dim, rng, n_random, n_tokens)
    whole = Plane(base_atom=1, n_heads=1, n_tokens=config.n_max, head_dim=config.max_head_dim, bits=12)
    end = max(plane.base_atom + plane.n_atoms for plane in (whole, *(plane for plane, _, _ in found)))
    atoms = rng.integers(0, 1 << 32, (end, ATOM_BYTES // 4), dtype=np.uint32)
    requests = [(request, kept) for _, request, kept in found]
    near, far = MemoryTiming(), MemoryTiming(latency_cycles=45, interval_cycles=2)
    corners = len(corner_planes(config.max_head_dim, n_tokens))
    made = [
        _fetch_case("one row", requests[:1], atoms, config, near),
        _fetch_case("corners", requests[:corners], atoms, config, near),
        _fetch_case("corners, latencies of 1 to 40", requests[:corners], atoms, config, near, 39),
        _fetch_case("full list", [(whole.request(0, 1), np.arange(config.n_max))], atoms, config, near),
    ]
    if n_random:
        made.append(_fetch_case("random requests, slow memory", requests[corners:], atoms, config, far))
    return made


def _fetch_case(
    name: str,
    requests: Sequence[Kept],
    atoms: np.ndarray,
    config: FetchConfig,
    timing: MemoryTiming,
    jitter_cycles: int = 0,
) -> Case:
    bits = torch.from_numpy(
        np.unpackbits(np.ascontiguousarray(atoms, "<u4").view(np.uint8), bitorder="little").astype(np.int64)
    )
    wanted = []
    for request, kept in requests:
        rows = golden.fetch_rows(bits, request, torch.from_numpy(kept))
        lines = golden.lines(rows, config.lines.line_elements, config.n_ports)
        wanted.append([part.numpy() for part in lines])
    stamps = replay(requests, config, timing)
    return Case(
        name=name,
        inputs={
            "i_request": request_beats([r for r, _ in requests], config.addresses),
            "i_kept": kept_beats([kept for _, kept in requests], config.addresses),
        },
        expected={
            "o": _line_beats(wanted, config.lines),
            "o_counters": _counter_beats(requests, config.addresses),
        },
        expected_cycles={} if jitter_cycles else {"o": stamps.lines, "o_counters": stamps.counters},
        max_cycles=int(stamps.lines[-1]) * (1 + jitter_cycles // 4) + 300,
        memories=memories(atoms, config.crossbar, timing, jitter_cycles),
    )
