# SPDX-License-Identifier: MIT
"""Fetcher: layout and golden, RTL of each part and of the whole against golden and cycle model, mutants."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hw.config import PRESETS, preset
from hw.fetch import golden
from hw.fetch.config import (
    ATOM_BITS,
    ATOM_BYTES,
    HEAD_DIMS,
    PLANE_BITS,
    AddressConfig,
    ConverterConfig,
    CrossbarConfig,
    FetchConfig,
    JoinConfig,
    LinesConfig,
    SplitConfig,
    fetch_config,
)
from hw.fetch.cycles import MemoryTiming, fetch_bound_cycles, replay
from hw.fetch.layout import Plane, Request, channel_images, join_planes, split_planes
from hw.fetch.rtl import AddressGenerator, Converter, Crossbar, Fetch, Lines, PlaneJoin, PlaneSplit
from hw.fetch.vectors import cases
from hw.harness import verilated
from hw.harness.amaranth_sim import run_case
from hw.harness.job import Case, judge, unpack_fields
from hw.registry import BLOCKS
from tests.hw.mutants import mutated

SMALL = FetchConfig(n_ports=4, n_channels=2, depth=8, kept_lanes=2, elements_per_beat=16,
                    max_head_dim=64, n_max=32, atom_address_bits=16)  # fmt: skip
PARTS = [
    (PlaneSplit, SplitConfig(lanes=3)),
    (PlaneJoin, JoinConfig(lanes=3)),
    (AddressGenerator, AddressConfig(n_ports=4, kept_lanes=2, n_max=64, atom_address_bits=16)),
    (AddressGenerator, AddressConfig(n_ports=1, kept_lanes=1, n_max=32, atom_address_bits=14)),
    (Crossbar, CrossbarConfig(n_ports=4, n_channels=2, depth=8, atom_address_bits=12, note_bits=5)),
    (Crossbar, CrossbarConfig(n_ports=1, n_channels=1, depth=2, atom_address_bits=12, note_bits=1)),
    (Crossbar, CrossbarConfig(n_ports=2, n_channels=4, depth=4, atom_address_bits=12, note_bits=3)),
    (Converter, ConverterConfig(elements_per_beat=4)),
    (Converter, ConverterConfig(elements_per_beat=16)),
    (Lines, LinesConfig(n_ports=4, elements_per_beat=8, max_head_dim=32)),
    (Lines, LinesConfig(n_ports=8, elements_per_beat=16, max_head_dim=128)),
    (Fetch, SMALL),
]
IDS = [f"{component.__name__}-{number}" for number, (component, _) in enumerate(PARTS)]


def bits_of(atoms: np.ndarray) -> torch.Tensor:
    as_bytes = np.ascontiguousarray(atoms, "<u4").view(np.uint8)
    return torch.from_numpy(np.unpackbits(as_bytes, bitorder="little").astype(np.int64))


# --- layout and golden ----------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", PLANE_BITS)
@pytest.mark.parametrize("n_heads", [1, 2, 5, 8])
def test_layout_keeps_every_value_and_wastes_no_atom_of_a_whole_group(head_dim, bits, n_heads):
    plane = Plane(base_atom=7, n_heads=n_heads, n_tokens=5, head_dim=head_dim, bits=bits)
    rng = np.random.default_rng(bits * head_dim + n_heads)
    values = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n_heads, 5, head_dim))
    values[0, 0, :2] = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    atoms = plane.pack(values)
    assert atoms.shape == (plane.n_atoms, 8)
    assert np.array_equal(plane.unpack(atoms), values)
    if n_heads % plane.record_heads == 0:
        assert atoms.size * 32 == values.size * bits

    before = np.zeros((7, 8), dtype=np.uint32)
    memory = bits_of(np.concatenate([before, atoms]))
    kept = torch.tensor([0, 2, 4])
    for head in range(n_heads):
        g = plane.record_heads
        for n in range(1, min(g - head % g, n_heads - head) + 1):
            rows = golden.fetch_rows(memory, plane.request(head, n), kept)
            assert np.array_equal(rows.numpy(), values[head : head + n, kept.numpy()])


def test_heads_that_share_a_record():
    shared = {
        (dim, bits): Plane(base_atom=0, n_heads=8, n_tokens=1, head_dim=dim, bits=bits).record_heads
        for dim in HEAD_DIMS
        for bits in PLANE_BITS
    }
    assert {key: g for key, g in shared.items() if g > 1} == {
        (32, 4): 2, (32, 6): 4, (32, 10): 4, (32, 12): 2, (64, 6): 2, (64, 10): 2
    }  # fmt: skip


def test_addresses_of_a_pair_by_hand():
    """64 elements of 6 bits are 48 bytes: the second head of a pair starts in the middle of an atom."""
    plane = Plane(base_atom=10, n_heads=3, n_tokens=100, head_dim=64, bits=6)
    assert plane.address(0, 0) == (10 * 32, 0)
    assert plane.address(1, 0) == (11 * 32, 128)
    assert plane.address(0, 2) == (16 * 32, 0)
    assert plane.address(2, 1) == ((10 + 300 + 2) * 32, 0)  # the odd head: records of its own, two atoms each
    assert plane.n_atoms == 300 + 200
    pair = plane.request(0, 2)
    assert (pair.n_atoms, pair.ideal_bytes(10), pair.moved_bytes(10)) == (3, 960, 960)
    second = plane.request(1, 1)
    assert (second.n_atoms, second.ideal_bytes(10), second.moved_bytes(10)) == (2, 480, 640)


def test_atoms_are_read_once_in_ascending_order_and_hold_the_rows():
    plane = Plane(base_atom=3, n_heads=5, n_tokens=20, head_dim=64, bits=10)
    kept = torch.tensor([1, 2, 3, 7, 8, 19])
    for head, n_heads in ((0, 2), (1, 1), (4, 1)):
        request = plane.request(head, n_heads)
        ports = golden.atom_addresses(request, kept, 4)
        assert all((port[1:] > port[:-1]).all() for port in ports)
        atoms = torch.cat(ports).tolist()
        assert len(set(atoms)) == len(atoms) == request.moved_bytes(len(kept)) // ATOM_BYTES
        for token in kept.tolist():
            address, bit = plane.address(head, token)
            end = address * 8 + bit + n_heads * request.row_bits
            assert set(range(address // ATOM_BYTES, -(-end // ATOM_BITS))) <= set(atoms)


def test_channels_interleave_atoms():
    atoms = np.arange(7 * 8, dtype=np.uint32).reshape(7, 8)
    for channel, image in enumerate(channel_images(atoms, 4)):
        for row, atom in enumerate(image):
            assert np.array_equal(atom, atoms[row * 4 + channel])


def test_planes_join_to_what_was_split_and_stay_near_the_float_value():
    rng = np.random.default_rng(1)
    for msb_bits in PLANE_BITS:
        bits = msb_bits + 4
        x = rng.normal(size=2000)
        step = np.abs(x).max() / ((1 << (bits - 1)) - 1)
        k = np.round(x / step).astype(np.int64)
        msb, lsb = split_planes(k)
        assert np.array_equal(join_planes(msb, lsb), k)
        assert msb.min() >= -(1 << (msb_bits - 1)) and msb.max() < 1 << (msb_bits - 1)
        assert lsb.min() >= 0 and lsb.max() <= 15
        tensors = golden.split(torch.from_numpy(k))
        assert np.array_equal(tensors[0].numpy(), msb) and np.array_equal(tensors[1].numpy(), lsb)
        assert torch.equal(golden.join(*tensors), torch.from_numpy(k))
        half = step / 2 * (1 + 1e-9)
        assert (np.abs(x - step * k) <= half).all()
        error = x - 16 * step * msb
        assert (error >= -half).all() and (error <= 15 * step + half).all()


def test_both_planes_in_memory_give_the_scores_of_the_whole_key():
    rng = np.random.default_rng(2)
    keys = rng.integers(-(1 << 9), 1 << 9, (2, 9, 64))
    msb_values, lsb_values = split_planes(keys)
    msb = Plane(base_atom=0, n_heads=2, n_tokens=9, head_dim=64, bits=6)
    lsb = Plane(base_atom=msb.n_atoms, n_heads=2, n_tokens=9, head_dim=64, bits=4, is_unsigned=True)
    memory = bits_of(np.concatenate([msb.pack(msb_values), lsb.pack(lsb_values)]))
    kept = torch.tensor([0, 4, 8])
    query = torch.from_numpy(rng.integers(-2048, 2048, 64))
    upper = golden.fetch_rows(memory, msb.request(1, 1), kept)[0] @ query
    lower = golden.fetch_rows(memory, lsb.request(1, 1), kept)[0] @ query
    whole = torch.from_numpy(keys[1][kept.numpy()]) @ query
    assert torch.equal(16 * upper + lower, whole)


def test_lines_of_two_heads_alternate():
    rows = torch.arange(2 * 7 * 32).reshape(2, 7, 32)
    data, count, last, head = golden.lines(rows, 64, 4)
    assert head.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert count.tolist() == [64, 64, 64, 64, 64, 32, 64, 32]
    assert last.tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    assert torch.equal(data[3], rows[1, 2:4].reshape(-1))
    assert torch.equal(data[5], torch.cat([rows[0, 6], torch.zeros(32, dtype=torch.int64)]))


# --- RTL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("component", "config"), PARTS, ids=IDS)
@pytest.mark.parametrize("p_stall", [0.0, 0.4], ids=["full-rate", "stalls"])
def test_rtl_matches_golden_and_cycles(component, config, p_stall):
    for full_rate in cases(config, seed=1, n_random=5):
        one = full_rate.stalled(p_stall, seed=2) if p_stall else full_rate
        assert judge(one, run_case(component(config), one)).problems == ()


def cycles_between(component, config, one, start, end):
    """From the last transfer on ``start`` to the first on ``end``."""
    log = run_case(component(config), one)
    assert judge(one, log).problems == ()
    return int(log.cycles[end][0] - log.cycles[start][-1])


def test_latencies_are_those_of_the_configuration():
    """One request alone, part by part and through the whole; memory of one cycle."""
    config = SMALL.crossbar
    one_atom = cases(config, seed=1, n_random=0)[0]
    memory_cycles = MemoryTiming().latency_cycles
    assert cycles_between(Crossbar, config, one_atom, "i0", "o0") == config.LATENCY_CYCLES + memory_cycles
    one_row = cases(SMALL, seed=1, n_random=0)[0]
    request, kept = requests_of(one_row)[0]
    assert len(kept) == 1
    further_parts = request.head_dim // SMALL.elements_per_beat - 1
    assert cycles_between(Fetch, SMALL, one_row, "i_request", "o") == (
        SMALL.addresses.LATENCY_CYCLES + config.LATENCY_CYCLES + memory_cycles
        + SMALL.converter.LATENCY_CYCLES + further_parts + SMALL.lines.LATENCY_CYCLES
    )  # fmt: skip


def test_the_memory_is_asked_for_each_wanted_atom_once():
    one = cases(SMALL, seed=3, n_random=0)[1]
    log = run_case(Fetch(SMALL), one.stalled(0.2, seed=4))
    asked = Counter()
    for channel in range(SMALL.n_channels):
        layout = [(1, SMALL.crossbar.channel_address_bits), (1, SMALL.crossbar.tag_bits)]
        addresses, _ = unpack_fields(log.beats[f"o_request{channel}"], layout)
        asked.update((addresses[:, 0] * SMALL.n_channels + channel).tolist())
    counters = unpack_fields(one.expected["o_counters"], [(2, SMALL.addresses.counter_bits)])[0]
    assert sum(asked.values()) * ATOM_BYTES == counters[:, 1].sum()
    wanted = Counter()
    for request, kept in requests_of(one):
        wanted.update(golden.atom_addresses(request, torch.tensor(kept), 1)[0].tolist())
    assert asked == wanted


def requests_of(one: Case) -> list[tuple[Request, list[int]]]:
    """Requests and kept lists of a case, read back from its input beats."""
    config = SMALL.addresses
    widths = [(1, bits) for bits in (config.atom_address_bits, 4, 1, 2, 3, 2, 3)]
    fields = [column[:, 0].tolist() for column in unpack_fields(one.inputs["i_request"], widths)]
    data, count, last = unpack_fields(
        one.inputs["i_kept"],
        [(config.kept_lanes, config.token_bits), (1, config.kept_lanes.bit_length()), (1, 1)],
    )
    lists, tokens = [], []
    for row, n, ends in zip(data.tolist(), count[:, 0].tolist(), last[:, 0].tolist(), strict=True):
        tokens += row[:n]
        if ends:
            lists.append(tokens)
            tokens = []
    requests = [
        Request(base_atom=base, bits=bits, is_unsigned=bool(is_unsigned), head_dim=32 << dim,
                record_heads=record_heads, head=head, n_heads=n_heads)
        for base, bits, is_unsigned, dim, record_heads, head, n_heads in zip(*fields, strict=True)
    ]  # fmt: skip
    return list(zip(requests, lists, strict=True))


def check_in_harness(config: FetchConfig, n_random: int) -> None:
    full_rate = cases(config, seed=5, n_random=n_random)
    runs = [*full_rate, *(one.stalled(0.3, seed=6) for one in full_rate)]
    logs = verilated.run_cases(BLOCKS["fetch"], config, runs)
    assert [judge(one, log).problems for one, log in zip(runs, logs, strict=True)] == [()] * len(runs)


def test_verilog_matches_golden_and_cycles():
    check_in_harness(
        FetchConfig(n_ports=2, n_channels=2, depth=8, kept_lanes=2, elements_per_beat=16,
                    max_head_dim=32, n_max=64, atom_address_bits=16),
        n_random=30,
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "paper_eighth"])
def test_verilog_of_a_preset(name):
    check_in_harness(BLOCKS["fetch"].config(preset(name)), n_random=200)


# --- cycles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", PLANE_BITS)
def test_a_long_request_runs_near_its_bound_on_the_published_shape(bits):
    """Dense lists: all but the busiest resource adds only latency, that of the memory and 20 cycles."""
    config = BLOCKS["fetch"].config(PRESETS["paper"])
    plane = Plane(base_atom=0, n_heads=2, n_tokens=1024, head_dim=64, bits=bits)
    request = plane.request(0, plane.record_heads)
    bound = int(fetch_bound_cycles(request, 1024, config))
    cycles = int(replay([(request, np.arange(1024))], config, MemoryTiming(latency_cycles=45)).lines[-1])
    assert bound < cycles <= bound + 45 + 20


def test_bound_names_the_busiest_resource():
    config = FetchConfig(n_ports=4, n_channels=1, kept_lanes=4, elements_per_beat=16, max_head_dim=64)
    plane = Plane(base_atom=0, n_heads=2, n_tokens=1024, head_dim=64, bits=8)
    memory_bound = fetch_bound_cycles(plane.request(0, 1), np.array([1, 4, 100]), config)
    assert memory_bound.tolist() == [4, 8, 200]  # one row: its four beats; else two atoms a row, one channel
    wide = FetchConfig(n_ports=4, n_channels=4, kept_lanes=4, elements_per_beat=16, max_head_dim=64)
    assert fetch_bound_cycles(plane.request(0, 1), 100, wide) == 100  # 25 rows a port, four beats each


def test_back_to_back_requests_overlap():
    plane = Plane(base_atom=0, n_heads=1, n_tokens=32, head_dim=64, bits=8)
    one = (plane.request(0, 1), np.arange(32))
    memory = MemoryTiming(latency_cycles=40)
    config = replace(SMALL, depth=64)  # 8 slots a port would wait for the memory
    alone, twice = (int(replay([one] * n, config, memory).lines[-1]) for n in (1, 2))
    assert twice - alone == fetch_bound_cycles(one[0], 32, config) == 32


# --- mutants --------------------------------------------------------------------------------------------

MUTANTS = [
    ("planes swapped", "planes", "PlaneJoin", 1, "Cat(lsb, msb)", "Cat(msb, lsb)"),
    ("one bit of the LSB plane lost", "planes", "PlaneSplit", 0, "(self.o_lsb, 0, LSB_BITS)",
     "(self.o_lsb, 0, LSB_BITS - 1)"),
    ("last atom of a record lost", "addresses", "AddressGenerator", 2,
     "((end + _UNITS_PER_ATOM - 1) >> to_atoms) - (first", "(end >> to_atoms) - (first"),
    ("lane at the count takes a token", "addresses", "AddressGenerator", 2,
     "(lane < count)", "(lane <= count)"),
    ("carry of the address cut", "addresses", "AddressGenerator", 2,
     "self.config.token_bits + 3", "self.config.token_bits + 2"),
    ("next request starts at the port where the last ended", "addresses", "AddressGenerator", 2,
     "last | (turn == n_turns - 1)", "turn == n_turns - 1"),
    ("atoms as they arrive, not in order", "crossbar", "Crossbar", 4,
     "& filled.bit_select(head, 1)", "& filled.any()"),
    ("one address more than there are slots", "crossbar", "Crossbar", 5,
     "self.o_free.eq(used != cfg.depth)", "self.o_free.eq(1)"),
    ("a port takes two answers at once", "crossbar", "Crossbar", 6,
     "Cat(*grants).any())", "answer.valid)"),
    ("grants the port that had its turn", "crossbar", "Crossbar", 4,
     "turn.eq(~((granted << 1) - 1))", "turn.eq(~(granted - 1))"),
    ("atom boundary met too late", "converter", "Converter", 8, "crosses.eq(end > n_words)",
     "crosses.eq(end > n_words + 1)"),
    ("zeros for the sign", "converter", "Converter", 8, "sign.eq(raw[-1] & ~cut.is_unsigned)", "sign.eq(0)"),
    ("skip of a shared record ignored", "converter", "Converter", 8,
     "next_cut.skip * (ROW_UNIT_BITS // width)", "0"),
    ("rows of the next request join the line", "lines", "Lines", 10,
     "(use & row.full & row.last) | ended", "(use & row.full & row.last)"),
    ("last line unmarked", "lines", "Lines", 9, "self.o.payload.last.eq(ends)", "self.o.payload.last.eq(0)"),
    ("row register always ready", "lines", "Lines", 9, "source.ready.eq(~self.full | self.taken)",
     "source.ready.eq(1)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "module", "component", "part", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS]
)
def test_mutant_is_caught(name, module, component, part, old, new):
    mutant = mutated(f"hw.fetch.{module}", old, new)
    config = PARTS[part][1]
    full_rate = cases(config, seed=1, n_random=5)
    runs = [*full_rate, *(one.stalled(0.4, seed=2, slowdown=3) for one in full_rate)]
    caught = (judge(one, run_case(getattr(mutant, component)(config), one)).problems for one in runs)
    assert any(caught), name


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (SplitConfig, {"lanes": 0}, "lanes must be in 1..512, not 0"),
        (AddressConfig, {"n_ports": 6}, "n_ports must be a power of two in 1..64, not 6"),
        (AddressConfig, {"kept_lanes": 64}, "kept_lanes must be a power of two in 1..32, not 64"),
        (AddressConfig, {"n_max": 1000}, "n_max must be a power of two in 2..65536, not 1000"),
        (CrossbarConfig, {"n_channels": 3}, "n_channels must be a power of two in 1..64, not 3"),
        (CrossbarConfig, {"depth": 1}, "depth must be a power of two in 2..1024, not 1"),
        (ConverterConfig, {"elements_per_beat": 32},
         "elements_per_beat must be a power of two in 4..16, not 32"),
        (LinesConfig, {"max_head_dim": 96}, "max_head_dim must be one of 32, 64, 128, not 96"),
        (LinesConfig, {"n_ports": 4}, "must hold max_head_dim elements, not 64 < 128"),
        (FetchConfig, {"atom_address_bits": 40}, "atom_address_bits must be in 8..32, not 40"),
    ],
)  # fmt: skip
def test_rejects_bad_config(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_rejects_bad_planes_and_requests():
    plane = Plane(base_atom=0, n_heads=3, n_tokens=4, head_dim=64, bits=6)
    for call, message in (
        (lambda: plane.request(0, 3), r"n_heads must be in 1..2, not 3"),
        (lambda: plane.request(2, 2), r"n_heads must be in 1..1, not 2"),
        (lambda: plane.request(3, 1), r"head must be in 0..2, not 3"),
        (lambda: plane.address(0, 4), r"token must be in 0..3, not 4"),
        (lambda: plane.pack(np.zeros((3, 4, 32), dtype=np.int64)), r"values must have shape \(3, 4, 64\)"),
        (lambda: plane.pack(np.full((3, 4, 64), 32)), r"values must be in -32..31 \(6 bits\), not 32..32"),
        (lambda: plane.unpack(np.zeros((1, 8), dtype=np.uint32)), r"atoms must have shape \(20, 8\)"),
        (lambda: Plane(base_atom=0, n_heads=1, n_tokens=1, head_dim=64, bits=5), r"bits must be one of 4, 6"),
        (lambda: Plane(base_atom=0, n_heads=1, n_tokens=1, head_dim=48, bits=6), r"head_dim must be one of"),
        (lambda: Plane(base_atom=-1, n_heads=1, n_tokens=1, head_dim=64, bits=6), r"base_atom must not be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_presets():
    shapes = {
        name: fetch_config(
            n_multipliers=chip.n_multipliers, n_channels=chip.n_dram_channels, kept_lanes=chip.topk.lanes,
            n_max=chip.topk.n_max,
        )
        for name, chip in PRESETS.items()
    }  # fmt: skip
    assert (shapes["paper"].n_ports, shapes["paper"].n_channels, shapes["paper"].depth) == (32, 16, 64)
    for name, chip in PRESETS.items():
        assert shapes[name].lines.line_elements == chip.n_multipliers
        assert shapes[name].max_head_dim == (128 if name in ("paper", "plus") else 64)


def test_configuration_cycles_and_layout_need_numpy_only():
    code = (
        "import sys, hw.fetch.config, hw.fetch.cycles, hw.fetch.layout; "
        "print([m for m in ('torch', 'amaranth') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
