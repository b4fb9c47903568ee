# SPDX-License-Identifier: MIT
"""FIFO, skid buffer, width change and packer: bits, cycles, stalls, mutants."""

import pytest

from hw.harness.amaranth_sim import run_case
from hw.harness.job import judge
from hw.stream.config import FifoConfig, PackerConfig, RegroupConfig, SkidConfig, WidthChangeConfig
from hw.stream.cycles import passing_cycles, width_change_cycles
from hw.stream.rtl import Fifo, Packer, Regroup, SkidBuffer, WidthChange
from hw.stream.vectors import cases
from tests.hw.mutants import mutated

BUILT = [
    (Fifo, FifoConfig(width_bits=5, depth=2)),
    (Fifo, FifoConfig(width_bits=70, depth=7)),
    (SkidBuffer, SkidConfig(width_bits=33)),
    (WidthChange, WidthChangeConfig(element_bits=8, lanes_in=2, lanes_out=8)),
    (WidthChange, WidthChangeConfig(element_bits=8, lanes_in=8, lanes_out=2)),
    (WidthChange, WidthChangeConfig(element_bits=7, lanes_in=3, lanes_out=3)),
    (WidthChange, WidthChangeConfig(element_bits=7, lanes_in=3, lanes_out=6)),
    (Packer, PackerConfig(element_bits=12, lanes=1)),
    (Packer, PackerConfig(element_bits=12, lanes=8)),
    *(
        (Regroup, RegroupConfig(element_bits=9, lanes_in=lanes_in, lanes_out=lanes_out))
        for lanes_in, lanes_out in ((8, 2), (2, 8), (4, 4), (4, 1), (1, 1))
    ),
]


@pytest.mark.parametrize(
    ("part", "config"), BUILT, ids=lambda x: x.__name__ if isinstance(x, type) else str(x)
)
@pytest.mark.parametrize("p_stall", [0.0, 0.3, 0.8], ids=["full-rate", "stalls", "mostly-stalled"])
def test_matches_golden_and_cycles(part, config, p_stall):
    for full_rate in cases(config, seed=1, n_random=60):
        one = full_rate.stalled(p_stall, seed=2, slowdown=30) if p_stall else full_rate
        verdict = judge(one, run_case(part(config), one))
        assert verdict.problems == ()
        if p_stall == 0:
            n_beats = len(one.inputs["i"])
            if isinstance(config, FifoConfig | SkidConfig):
                assert verdict.n_cycles == passing_cycles(n_beats, config)
            elif isinstance(config, WidthChangeConfig):
                assert verdict.n_cycles == width_change_cycles(n_beats, config)


SPLITTING = RegroupConfig(element_bits=8, lanes_in=4, lanes_out=2)
MUTANTS = [
    ("FIFO loses the word that meets a full memory", Fifo, FifoConfig(width_bits=8, depth=4),
     "self.i.ready.eq(level != depth)", "self.i.ready.eq(1)"),
    ("FIFO lets a word overtake", Fifo, FifoConfig(width_bits=8, depth=4),
     "go_past.eq((~self.o.valid | self.o.ready) & (level == 0))", "go_past.eq(~self.o.valid | self.o.ready)"),
    ("skid buffer forgets the spare word", SkidBuffer, SkidConfig(width_bits=8),
     "self.o.valid.eq(spare_valid | self.i.valid)", "self.o.valid.eq(self.i.valid)"),
    ("width change swaps the order", WidthChange, WidthChangeConfig(element_bits=8, lanes_in=1, lanes_out=4),
     "o.eq(Cat(o, i)[len(i) :])", "o.eq(Cat(i, o))"),
    ("packer drops the overflow of a last beat", Packer, PackerConfig(element_bits=8, lanes=4),
     "flush.eq(i.last & over)", "flush.eq(0)"),
    ("packer forgets last", Packer, PackerConfig(element_bits=8, lanes=4),
     "o.last.eq(flush | (i.last & ~over))", "o.last.eq(flush)"),
    ("regroup delivers an empty part (`<` for `<=`)", Regroup, SPLITTING,
     "ends.eq(rest.count <= lanes_out)", "ends.eq(rest.count < lanes_out)"),
    ("regroup marks every part as the last", Regroup, SPLITTING,
     "o.last.eq(rest.last & ends)", "o.last.eq(rest.last)"),
    ("regroup takes a beat before the one it holds is gone", Regroup, SPLITTING,
     "~self.o.valid | (self.o.ready & ends)", "~self.o.valid | self.o.ready"),
    ("regroup loses a cycle between beats", Regroup, SPLITTING,
     "~self.o.valid | (self.o.ready & ends)", "~self.o.valid"),
    ("regroup drops the row's end", Regroup, RegroupConfig(element_bits=8, lanes_in=2, lanes_out=4),
     "packer.i.payload.last.eq(self.i.payload.last)", "packer.i.payload.last.eq(0)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "config", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(name, part, config, old, new):
    mutant = mutated("hw.stream.rtl", old, new)
    full_rate = cases(config, seed=1, n_random=40)
    runs = [*full_rate, *(one.stalled(0.4, seed=2, slowdown=3) for one in full_rate)]
    caught = (judge(one, run_case(getattr(mutant, part.__name__)(config), one)).problems for one in runs)
    assert any(caught), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FifoConfig(width_bits=8, depth=1), "depth must be at least 2, not 1"),
        (lambda: FifoConfig(width_bits=0, depth=2), "width_bits must be at least 1, not 0"),
        (lambda: SkidConfig(width_bits=0), "width_bits must be at least 1, not 0"),
        (lambda: PackerConfig(element_bits=8, lanes=3), "lanes must be a power of two, not 3"),
        (
            lambda: RegroupConfig(element_bits=8, lanes_in=3, lanes_out=2),
            "lanes_in must be a power of two, not 3",
        ),
        (
            lambda: RegroupConfig(element_bits=8, lanes_in=4, lanes_out=0),
            "lanes_out must be a power of two, not 0",
        ),
        (lambda: RegroupConfig(element_bits=0, lanes_in=4, lanes_out=2), "element_bits must be at least 1"),
        (
            lambda: WidthChangeConfig(element_bits=8, lanes_in=2, lanes_out=3),
            "must divide the other, not 2 and 3",
        ),
        (lambda: WidthChangeConfig(element_bits=8, lanes_in=0, lanes_out=3), "lanes must be at least 1"),
    ],
)
def test_rejects_bad_config(make, message):
    with pytest.raises(ValueError, match=message):
        make()
