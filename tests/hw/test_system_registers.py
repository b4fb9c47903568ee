# SPDX-License-Identifier: MIT
"""The register table, and what is made from it."""

import gc
import shutil
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import UnusedElaboratable

import hw.system.rtl
from hw.attention.config import attention_config
from hw.attention.program import Pass
from hw.attention.vectors import Options, Shape, sentence
from hw.config import PRESETS, preset
from hw.export import write_rtl
from hw.registry import TOPS, block
from hw.system.config import SystemConfig, system_config
from hw.system.registers import c_header, markdown, registers, system_format
from hw.system.rtl import System
from hw.system.streams import INPUTS, OUTPUTS
from sim.driver.system import image_of
from tests.hw.test_export import lint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", PRESETS)
def test_registers_lie_side_by_side(name):
    """Ascending, aligned, none twice; fields do not overlap; reset values fit; every stream has its place."""
    table = registers(system_config(preset(name)))
    assert all(a.offset < b.offset for a, b in pairwise(table))
    assert all(register.offset % 4 == 0 and register.offset < 1 << 12 for register in table)
    assert len({register.name for register in table}) == len(table)
    for register in table:
        assert sum(field.mask for field in register.fields) == register.mask or not register.fields
        assert register.reset & ~register.mask == 0


def test_page_is_that_of_the_table():
    """After a change: python -m hw.system.registers."""
    assert (ROOT / "docs" / "registers.md").read_text() == markdown(system_config(preset("paper")))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_header_compiles_and_says_the_same(tmp_path):
    config = system_config(preset("edge"))
    lines = [f'_Static_assert(QUARTET_{one.name} == {one.offset}, "");' for one in registers(config)]
    lines += [
        f"_Static_assert(QUARTET_{one.name}_{field.name.upper()}_MASK >> "
        f'QUARTET_{one.name}_{field.name.upper()}_SHIFT == {(1 << field.bits) - 1}, "");'
        for one in registers(config)
        for field in one.fields
    ]
    (tmp_path / "system.h").write_text(c_header(config))
    (tmp_path / "check.c").write_text("\n".join(['#include "system.h"', *lines, ""]))
    command = ["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", "check.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_tiny_system_lints(tmp_path):
    check_export("tiny", tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"tiny"}))
def test_every_system_lints(name, tmp_path):
    check_export(name, tmp_path)


def check_export(name, folder):
    """``quartet rtl system``: Verilog that is clean under lint, with its header beside it."""
    lint(write_rtl([block("system", tops=True)], preset(name), folder))
    assert (folder / name / "system.h").read_text() == c_header(system_config(preset(name)))


def test_every_master_is_as_wide_as_its_channel():
    widths = {name: system_config(preset(name)).bus_bits for name in PRESETS}
    assert widths == {"paper": 256, "paper_eighth": 256, "plus": 256, "edge": 64, "tiny": 64}


def test_a_stream_that_no_table_lists_is_refused(monkeypatch):
    monkeypatch.setattr(hw.system.rtl, "OUTPUTS", dict(list(OUTPUTS.items())[:-1]))
    with warnings.catch_warnings():  # what was begun is thrown away here, and not in another test
        warnings.simplefilter("ignore", UnusedElaboratable)
        with pytest.raises(ValueError, match=r"streams in hw/system.* must be those of the core.*o_sums"):
            System(system_config(preset("tiny"))).elaborate(None)
        gc.collect()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bus_bits": 48}, "bus_bits must be 32, 64, 128 or 256, not 48"),
        ({"n_outstanding": 1}, r"n_outstanding must be in 2..256, not 1"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SystemConfig(core=attention_config(preset("tiny")), **changes)


def test_the_system_is_named_but_has_no_vectors():
    with pytest.raises(ValueError, match=r"block must be one of topk, .* convolution_system, not 'chip'"):
        block("chip", tops=True)
    with pytest.raises(ValueError, match="block must have streams to be given vectors, not 'system'"):
        TOPS["system"].cases(system_config(preset("tiny")), seed=1, n_random=0)


def test_image_deals_atoms_over_channels():
    """Two channels: even atoms in one, odd ones in the other; every region aligned, none over another."""
    config = system_config(preset("paper_eighth"))
    layout = system_format(config)
    one = sentence(Shape(6, 2, 32, 1), Options(), config.core, np.random.default_rng(1))
    image = image_of([one], config.core, layout, base=0x8000)
    both = [image.regions[f"dram{c}"] for c in range(2)]
    parts = [image.memory[r.address - 0x8000 :][: r.n_bytes].reshape(-1, 32) for r in both]
    plane = one_plane(one, config.core)
    woven = np.stack([parts[0][: len(plane) // 2], parts[1][: len(plane) // 2]], axis=1).reshape(-1, 32)
    assert np.array_equal(woven[: len(plane)], plane[: len(woven)])
    ordered = sorted(image.regions.values(), key=lambda region: region.address)
    assert all(region.address % 4096 == 0 for region in ordered)
    assert all(a.address + a.n_bytes <= b.address for a, b in pairwise(ordered))
    assert set(image.regions) == {"descriptors", "dram0", "dram1", *OUTPUTS}
    assert layout.inputs == tuple(INPUTS)


def one_plane(one: Pass, core) -> np.ndarray:
    """The first plane of a pass, queries, an even number of atoms: uint8[n, 32]."""
    from hw.attention.program import planes_of

    plane = planes_of([one])[0][0]["q"]
    atoms = plane.pack(np.stack([np.asarray(head.q) for head in one.layers[0].heads]))
    return atoms.astype("<u4").view(np.uint8).reshape(-1, 32)[: len(atoms) // 2 * 2]


def test_base_must_be_aligned():
    config = system_config(preset("tiny"))
    one = sentence(Shape(2, 1, 32, 1), Options(), config.core, np.random.default_rng(1))
    with pytest.raises(ValueError, match=r"base must be a multiple of 4096, not 0x40"):
        image_of([one], config.core, system_format(config), base=0x40)
