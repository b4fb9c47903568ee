# SPDX-License-Identifier: MIT
"""Convolution core: walks, reader, writer and dispatch by themselves, and their mutants."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.lib import data

from hw.convolution import dispatch, reader, writer
from hw.convolution.config import RECORD_BYTES, mask_bytes
from hw.convolution.dispatch import Kind
from hw.convolution.reader import TAG, TAG_BITS
from hw.convolution.traffic import addresses, lengths, pieces, requests, steps, writes
from hw.convolution.walk import Walk, job_layout
from hw.convolution.writer import Format, lanes_layout, output_layout, write_layout
from hw.harness.amaranth_sim import run_cases
from hw.harness.job import Case, judge, pack_fields
from hw.harness.memory import Memory
from tests.hw.mutants import mutated

MEMORY_BYTES = 1 << 12


def beats(layout, payloads):
    """uint32[n, words] of payloads as an Amaranth layout has them."""
    n_bytes = -(-layout.size // 32) * 4
    raw = b"".join(layout.const(one).as_value().value.to_bytes(n_bytes, "little") for one in payloads)
    return np.frombuffer(raw, "<u4").reshape(len(payloads), -1).astype(np.uint32)


def random_walk(rng, *, unit, max_bytes, n_bytes=None):
    """Up to 3 x 3 x 6 elements: side by side, apart, one on the other, or strides that fall back."""
    n = n_bytes or unit * int(rng.integers(1, max_bytes // unit + 1))
    stride = lambda most: unit * int(rng.integers(0, 4 * most // unit + 1))  # noqa: E731
    column = [n, unit, stride(12), 0][rng.integers(4)]
    n_columns = int(rng.integers(1, 7))
    return Walk(
        base=64 + stride(64),
        n_columns=n_columns,
        column_stride=column,
        n_rows=int(rng.integers(1, 4)),
        row_stride=[n_columns * column, stride(40)][rng.integers(2)],
        n_tiles=int(rng.integers(1, 4)),
        tile_stride=stride(60),
        n_bytes=n,
        last_bytes=0 if n_bytes else unit * int(rng.integers(1, n // unit + 1)),
    )


# --- reader ---------------------------------------------------------------------------------------------

SHAPES = [(8, 8, 4), (8, 16, 2), (4, 20, 4), (32, 8, 4), (16, 64, 2), (8, 64, 64)]
"""Bytes of the bus, of an element, of its unit."""


def reading(bus, max_bytes, unit, *, depth, seed, latency=5):
    """Random walks over random bytes: stimulus, the elements that must come, cycles at full rate."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, MEMORY_BYTES, dtype=np.uint8)
    walks = [random_walk(rng, unit=unit, max_bytes=max_bytes) for _ in range(6)]
    walks += 2 * [Walk(base=64, n_columns=1, column_stride=0, n_bytes=unit)]  # asked for twice
    tags = rng.integers(0, 1 << TAG_BITS, len(walks))
    jobs = [{"extra": {"tag": int(tag)}, "walk": w.fields} for tag, w in zip(tags, walks, strict=True)]
    asked = np.concatenate([requests(w, bus) for w in walks])
    n_steps = sum(len(steps(w, bus)) for w in walks)
    case = Case(
        name=f"bus {bus}",
        inputs={"i": beats(job_layout(TAG), jobs)},
        expected={
            "o": np.zeros(
                (sum(w.n_elements for w in walks), -(-(8 * max_bytes + TAG_BITS + 2) // 32)), np.uint32
            ),
            "o_request": pack_fields([(asked, 32 - (bus.bit_length() - 1))]),
        },
        memories={
            "o_request": Memory(
                response="i_response",
                words=image.view("<u4").reshape(-1, bus // 4).astype(np.uint32),
                address_bits=32 - (bus.bit_length() - 1),
                latency_cycles=latency,
            )
        },
        max_cycles=n_steps + 60 + (latency * n_steps if depth < 8 else 0),
    )
    elements = [
        (image[at : at + n].tobytes(), int(tag), number == 0, number == w.n_elements - 1)
        for tag, w in zip(tags, walks, strict=True)
        for number, (at, n) in enumerate(zip(addresses(w), lengths(w), strict=True))
    ]
    return case, elements, n_steps


def read_problems(component, bus, max_bytes, unit, *, depth, seed):
    full_rate, elements, n_steps = reading(bus, max_bytes, unit, depth=depth, seed=seed)
    problems = []
    for case, log in run_cases(component, [full_rate, full_rate.stalled(0.4, seed=2)]):
        got = [int.from_bytes(row.astype("<u4").tobytes(), "little") for row in log.beats["o"]]
        seen = [
            (
                (word & ((1 << 8 * len(content)) - 1)).to_bytes(len(content), "little"),
                word >> 8 * max_bytes & (1 << TAG_BITS) - 1,
                *(word >> (8 * max_bytes + TAG_BITS + bit) & 1 for bit in (0, 1)),
            )
            for word, (content, *_) in zip(got, elements, strict=False)
        ]
        if seen != [tuple(element) for element in elements] or len(got) != len(elements):
            problems.append(f"{case.name}: elements differ")
        if not np.array_equal(log.beats["o_request"], case.expected["o_request"]):
            problems.append(f"{case.name}: requests differ")
        if case.p_stall == 0 and depth >= 8 and log.since_first_input("o")[-1] != n_steps + 8:
            # walk taken in 1, shown in 2, word asked for in 2, there in 7, queued in 8, element in 9
            problems.append(f"{case.name}: {log.since_first_input('o')[-1]} cycles, not {n_steps + 8}")
    return problems


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("depth", [3, 16])
def test_reader_brings_every_element_and_asks_once(shape, depth):
    bus, max_bytes, unit = shape
    component = reader.Reader(bus_bytes=bus, max_bytes=max_bytes, unit_bytes=unit, depth=depth)
    assert read_problems(component, *shape, depth=depth, seed=depth) == []


# --- writer ---------------------------------------------------------------------------------------------


def walked(outputs, walk, which, values, format_, plane_stride):
    """Of each element whose it is, its lanes, and the pieces it writes; the walk goes to ``outputs``."""
    job = {"extra": {"format": format_, "plane_stride": plane_stride}, "walk": walk.fields}
    outputs.append({"reader": which, "job": job})
    made = pieces(walk, values, format_, plane_stride)
    return [(which, row, got) for row, got in zip(values, made, strict=True)]


def element(row, which):
    """A beat of lanes; those of a mask carry numbers, those of numbers a mask, for nobody."""
    bits = sum(int(value & 1) << lane for lane, value in enumerate(row))
    numbers = [-1 - int(value) for value in row] if which == 2 else row.tolist()
    return {"data": numbers, "mask": bits, "reader": which}


def writing(columns, bus, *, seed, max_writes):
    """Rounds of one or two readers' walks, and a mask's; elements of each in turn."""
    rng = np.random.default_rng(seed)
    outputs, lanes, parts = [], [], []
    for number in range(9):
        format_ = [Format.BYTES, Format.HALVES, Format.PLANES][number % 3]
        n_bytes = columns * (2 if format_ == Format.HALVES else 1)
        w = random_walk(rng, unit=4, max_bytes=n_bytes, n_bytes=n_bytes if number % 2 else None)
        made = []
        for which in range(1 + (number > 2)):
            plane_stride = 4 * int(rng.integers(0, 200))
            values = rng.integers(-(1 << 15), 1 << 15, (w.n_elements, columns))
            made.append(walked(outputs, w, which, values, format_, plane_stride))
        if number % 4 in (0, 3):
            base, n_bytes = w.base + 2 * int(rng.integers(0, 9)), mask_bytes(columns)
            mask = replace(w, base=base, column_stride=n_bytes, n_bytes=n_bytes, last_bytes=0)
            values = rng.integers(0, 2, (w.n_elements, columns))
            made.append(walked(outputs, mask, 2, values, Format.BITS, 0))
        for together in zip(*made, strict=True):
            lanes += [element(row, which) for which, row, _ in together]
            parts += [(which, piece) for which, _, got in together for piece in got]
    sent = list(writes(parts, bus))
    words = np.zeros((MEMORY_BYTES // bus, bus // 4), np.uint32)
    bits = 32 - (bus.bit_length() - 1)
    n_steps = sum(-(-(at + len(content)) // bus) - at // bus for _, (at, content, _) in parts)
    return Case(
        name=f"bus {bus}",
        inputs={
            "i_output": beats(output_layout(), outputs),
            "i_fence": np.zeros((1, 1), np.uint32),
            "i": beats(lanes_layout(columns), lanes),
        },
        expected={
            "o_write": beats(
                write_layout(bus),
                [{"address": a, "data": int.from_bytes(d, "little"), "strobe": s} for a, d, s in sent],
            )
        },
        memories={
            "o_write": Memory(
                response="i_written", words=words, address_bits=bits, latency_cycles=7, writes=True
            )
        },
        max_cycles=n_steps + len(outputs) + 60 + (20 * len(sent) if max_writes < 8 else 0),
    )


def write_problems(component, columns, bus, *, seed, max_writes):
    full_rate = writing(columns, bus, seed=seed, max_writes=max_writes)
    return [
        problem
        for case, log in run_cases(component, [full_rate, full_rate.stalled(0.4, seed=2)])
        for problem in [*judge(case, log).problems, *fence_problems(case, log)]
    ]


def fence_problems(case, log):
    """The fence, offered with the first walk, must wait for the last acknowledgement.

    Under stalls it may come before a walk, and pass.
    """
    fence, written = log.cycles["i_fence"], log.cycles["i_written"]
    waited = len(fence) == 1 and (case.p_stall or fence[0] > written.max())
    return [] if waited else [f"{case.name}: fence at {fence}"]


@pytest.mark.parametrize("shape", [(4, 4), (4, 8), (8, 8), (4, 32), (12, 16)], ids=str)
@pytest.mark.parametrize("max_writes", [1, 63])
def test_writer_writes_what_lies_together_at_once(shape, max_writes):
    component = writer.Writer(columns=shape[0], bus_bytes=shape[1], max_writes=max_writes)
    assert write_problems(component, *shape, seed=max_writes, max_writes=max_writes) == []


def test_elements_longer_than_the_core_takes_are_cut():
    """A wrong list must not keep a port busy for ever."""
    long = Walk(base=64, n_columns=3, column_stride=8, n_bytes=255)
    case, *_ = reading(8, 8, 4, depth=16, seed=1)
    jobs = [{"extra": {"tag": 0}, "walk": long.fields}]
    asked = [at // 8 + word for at in addresses(long) for word in (0, 1)]
    asked = [word for n, word in enumerate(asked) if n == 0 or word != asked[n - 1]]
    read = replace(
        case,
        inputs={"i": beats(job_layout(TAG), jobs)},
        expected={"o": np.zeros((3, 3), np.uint32), "o_request": pack_fields([(np.array(asked), 29)])},
        max_cycles=60,
    )
    ((_, log),) = run_cases(reader.Reader(bus_bytes=8, max_bytes=8, unit_bytes=4, depth=16), [read])
    assert len(log.beats["o"]) == 3
    assert np.array_equal(log.beats["o_request"], read.expected["o_request"])

    shape = {"format": Format.HALVES, "plane_stride": 0}
    outputs = [{"reader": 0, "job": {"extra": shape, "walk": long.fields}}]
    written = replace(
        writing(4, 8, seed=1, max_writes=63),
        inputs={
            "i_output": beats(output_layout(), outputs),
            "i_fence": np.zeros((1, 1), np.uint32),
            "i": beats(lanes_layout(4), 3 * [element(np.ones(4, np.int64), 0)]),
        },
        expected={"o_write": np.zeros((4, 3), np.uint32)},
        max_cycles=60,
    )
    ((_, log),) = run_cases(writer.Writer(columns=4, bus_bytes=8, max_writes=63), [written])
    assert len(log.cycles["i"]) == 3 and len(log.cycles["i_fence"]) == 1


# --- dispatch -------------------------------------------------------------------------------------------

LAYOUTS = {Kind.LOAD: data.StructLayout({"half": 1, "n": 9}), Kind.SIDE: data.StructLayout({"x": 504})}


def dispatch_problems(component):
    """Two lists: all kinds known; a record that nobody takes."""
    rng = np.random.default_rng(1)
    lists = [
        [Kind.LOAD, Kind.SIDE, Kind.SIDE, Kind.LOAD],
        [Kind.SIDE, Kind.MAP, Kind.LOAD],
        [Kind.SIDE],
        [77],
    ]
    records, sent = [], {kind: [] for kind in LAYOUTS}
    for kinds in lists:
        for number, kind in enumerate(kinds):
            payload = int.from_bytes(rng.bytes(RECORD_BYTES - 1), "little")
            first, last = number == 0, number == len(kinds) - 1
            records.append({"data": payload << 8 | kind, "tag": 0, "first": first, "last": last})
            if kind in LAYOUTS:
                sent[kind].append(payload & ((1 << LAYOUTS[kind].size) - 1))
    flat = {kind: data.StructLayout({"x": layout.size}) for kind, layout in LAYOUTS.items()}
    case = Case(
        name="lists",
        inputs={"i": beats(reader.read_layout(RECORD_BYTES), records)},
        expected={
            "o_done": np.array([[0], [1], [0], [1]], np.uint32),
            "o_load": beats(flat[Kind.LOAD], [{"x": x} for x in sent[Kind.LOAD]]),
            "o_side": beats(flat[Kind.SIDE], [{"x": x} for x in sent[Kind.SIDE]]),
        },
        max_cycles=60,
    )
    return [
        problem
        for one, log in run_cases(component, [case, case.stalled(0.5, seed=3)])
        for problem in judge(one, log).problems
    ]


def test_dispatch_hands_each_record_to_its_unit():
    assert dispatch_problems(dispatch.Dispatch(LAYOUTS)) == []


# --- mutants --------------------------------------------------------------------------------------------

MUTANTS = [
    ("column runs on in the next row", "walk", "o.address.eq(next_row)]", "o.address.eq(next_row + 4)]"),
    ("rows go on from tile to tile", "walk", "for base in (of_tile, of_row, o.address)]\n        with",
     "for base in (of_tile, o.address)]\n        with"),
    ("row counter stays", "walk", "row.eq(0), tile.eq(tile + 1)", "tile.eq(tile + 1)"),
    ("last tile as the others", "walk", "o.n_bytes.eq(walk.last_bytes)", "o.n_bytes.eq(walk.n_bytes)"),
    ("walk taken late", "walk", "~self.o.valid | (moves & o.last)", "~self.o.valid"),
    ("walk taken early", "walk", "(moves & o.last))", "o.last)"),
    ("first stays", "walk", "[o.first.eq(0), self.o", "[self.o"),
    ("keeps a word over walks", "reader", "(of.first & (step.place == 0)) | ", ""),
    ("asks again for each element", "reader", "(word != before)", "(word != before) | (step.place == 0)"),
    ("one word too many", "reader", ">= begins + of.n_bytes)", "> begins + of.n_bytes)"),
    ("does not shift", "reader", "(window, word) >> (step.offset", "(window, word) >> (0 * step.offset"),
    ("forgets the word held", "reader", "held.eq(word)", "held.eq(words.payload)"),
    ("asks without a place", "reader", "step.fresh & steps.ready),", "step.fresh),"),
    ("step goes without its request", "reader", "(~step.fresh | self.o_request.ready)", "1"),
    ("overruns the output", "reader", "~step.ends | ~self.o.valid | self.o.ready", "1"),
    ("takes a word that is not there", "reader", "takes.eq(steps.valid & (~step.fresh | words.valid)",
     "takes.eq(steps.valid"),
    ("element lost between words", "reader", "Mux(step.place == place, word, other) for place, other in "
     "enumerate(earlier))\n        with", "other for other in earlier)\n        with"),
    ("other word sends nothing", "writer", "(step.valid & ~fits))", "0)"),
    ("nothing together", "writer", "fits.eq(~mine.valid | (mine.write.address == of.write.address))",
     "fits.eq(~mine.valid)"),
    ("rest waits for ever", "writer", "element.last & last_place & last_plane", "0"),
    ("element at its first word", "writer", "is_written << offset", "is_written"),
    ("writes whole elements", "writer", "UNIT_BYTES * unit < element.n_bytes", "1"),
    ("low plane over the high one", "writer", "Mux(plane, element.extra.plane_stride, 0)", "0"),
    ("mask as numbers", "writer", "packed.eq(self.i.payload.mask)", "packed.eq(low)"),
    ("mask at halves of its address", "writer", ">> (UNIT_BYTES.bit_length() - 1)", ">> 2"),
    ("mask for nobody", "writer", "Array(walker.i.ready for walker in walkers)",
     "Array(walker.i.ready for walker in walkers[:2])"),
    ("planes swapped", "writer", "Mux(plane, low, high)", "Mux(plane, high, low)"),
    ("fence opens before the last answer", "writer", "& (pending == 0)", ""),
    ("forgets the bytes before", "writer", "(word.write.address == of.write.address), word.write.strobe, 0)",
     "0, word.write.strobe, 0)"),
    ("old bytes stay", "writer", "Mux(kept[byte], old, 0)", "old"),
    ("writes without bound", "writer", "& (pending != self.max_writes)", ""),
    ("overruns the write", "writer", "(~self.o_write.valid | self.o_write.ready)", "1"),
    ("payload from the kind on", "dispatch", "record[KIND_BITS : KIND_BITS + layout.size]", "record"),
    ("unknown is not told", "dispatch", "unknown | ~kind", "~kind"),
    ("last unknown is not told", "dispatch", "unknown | ~kind.matches(*self.layouts)", "unknown"),
    ("unknown for ever", "dispatch", "unknown.eq(0),", ""),
    ("done twice", "dispatch", "done.valid.eq(0)", "done.valid.eq(done.valid)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, module, old, new, monkeypatch):
    mutant = mutated(f"hw.convolution.{module}", old, new)
    if module == "dispatch":
        assert dispatch_problems(mutant.Dispatch(LAYOUTS))
        return
    if module == "walk":
        monkeypatch.setattr(reader, "Walker", mutant.Walker)
    if module in ("walk", "reader"):
        made = mutant if module == "reader" else reader
        shape = 8, 16, 4
        parts = (made.Reader(bus_bytes=8, max_bytes=16, unit_bytes=4, depth=depth) for depth in (16, 3))
        found = (read_problems(part, *shape, depth=part.depth, seed=1) for part in parts)
    else:
        parts = (mutant.Writer(columns=4, bus_bytes=8, max_writes=n) for n in (63, 1))
        found = (write_problems(part, 4, 8, seed=1, max_writes=part.max_writes) for part in parts)
    assert any(found), name
