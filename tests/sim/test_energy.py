# SPDX-License-Identifier: MIT
"""Energy: linear in counts, every table row priced, node scaling, malformed tables."""

from dataclasses import fields, replace

import pytest

from hw.config import preset
from sim.attention import Counts, run_attention
from sim.energy import PARTS, actions, energy_pj, energy_table, price_pj, scale_energy
from sim.tables import read_table
from sim.workload import ModelShape, Pruning, generation

SHAPE = ModelShape(name="m", n_layers=4, n_heads=4, head_dim=64)
WORK = generation(
    "w", SHAPE, 100, 2, Pruning(token_keep=0.7, value_keep=0.5, key_lsb_bits=4, lsb_fraction=0.1)
)
COUNTS = run_attention(WORK, preset("paper")).counts


def scaled(counts, factor):
    return Counts(**{item.name: factor * getattr(counts, item.name) for item in fields(counts)})


def test_energy_is_linear_in_the_counts():
    once, thrice = energy_pj(COUNTS), energy_pj(scaled(COUNTS, 3))
    assert set(once) == set(PARTS)
    for part in PARTS:
        assert once[part] > 0
        assert thrice[part] == pytest.approx(3 * once[part])


@pytest.mark.parametrize("name", [item.name for item in fields(Counts)])
def test_every_count_but_the_ideal_bytes_costs_energy(name):
    more = sum(energy_pj(replace(COUNTS, **{name: 2 * getattr(COUNTS, name)})).values())
    less = sum(energy_pj(COUNTS).values())
    assert (more > less) == (name != "dram_ideal_bytes")


def test_every_action_has_a_row_and_every_row_is_used():
    used = {row for part in actions(COUNTS).values() for row in part}
    assert used == {(row.component, row.action) for row in energy_table()}


def test_a_transferred_kilobyte_and_its_row_by_hand():
    empty = scaled(COUNTS, 0)
    counts = replace(empty, dram_bytes=1024.0, dram_rows_activated=1.0)
    assert energy_pj(counts)["dram"] == pytest.approx(909 + 8192 * (1.51 + 1.17 + 0.80))


def test_logic_scales_with_the_node_and_dram_does_not():
    assert price_pj("adder", "add_32b", 45) == 0.1
    assert price_pj("adder", "add_32b", 40) == pytest.approx(0.0862)
    assert price_pj("dram", "io", 7) == price_pj("dram", "io", 45) == 0.80
    assert scale_energy(scale_energy(1.0, 45, 16), 16, 45) == pytest.approx(1.0)


def test_unknown_node_and_row_are_refused():
    with pytest.raises(ValueError, match="node_nm must be one of 45, 40, 32, 28, 22, 16, 7, not 65"):
        scale_energy(1.0, 45, 65)
    with pytest.raises(ValueError, match=r"the energy table has no row dram\.shout"):
        price_pj("dram", "shout")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("component,action\ndram,io\n", "columns must be component,action,value_pj.*, not component,action"),
        (
            "component,action,value_pj,per,node_nm,voltage_v,source,tag\na,b,-1,bit,,,s,quoted\n",
            "value_pj must be a number of at least 0, not '-1'",
        ),
        ("component,action,value_pj,per,node_nm,voltage_v,source,tag\na,b\n", "line 2: expected 8 cells"),
    ],
)
def test_malformed_table_is_refused(tmp_path, text, message):
    path = tmp_path / "energy_table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        energy_table(path)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv", ("a",))


def test_every_row_says_where_it_comes_from():
    assert all(row.source and row.tag in ("quoted", "simulated", "estimated") for row in energy_table())
