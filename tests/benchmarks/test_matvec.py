# SPDX-License-Identifier: MIT
"""``quartet matvec``: products of any size, in blocks, against numpy and in Verilog."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.matvec import run_matvec
from hw.config import chip_of, preset


def quartet(*arguments: str):
    return CliRunner().invoke(app, ["matvec", *arguments])


def test_a_large_matrix_is_cut_in_blocks_of_rows_and_columns():
    """64 rows and 64 parts of 64 elements at a time; the run itself compares with numpy."""
    run = run_matvec(70, 4100, 4, chip_of("tiny", ["topk.n_max=64"]))
    assert run.blocks == 4 and run.mismatches == ()
    assert run.dram_bound_cycles == 70 * 4100 / 2 / 8
    assert 0.8 < run.share_of_bound < 1


def test_twice_the_bits_take_twice_the_cycles_where_memory_is_the_bound():
    narrow, wide = (run_matvec(64, 640, bits, preset("tiny")).cycles for bits in (4, 8))
    assert 1.9 < wide / narrow < 2.1


def test_in_verilog():
    result = quartet("--rows", "33", "--columns", "130", "--preset", "tiny", "--rtl", "--json")
    assert result.exit_code == 0
    fields = json.loads(result.stdout)
    assert fields["mismatches"] == [] and fields["origin"] == "measured in simulated Verilog"
    assert fields["cycles"] == run_matvec(33, 130, 8, preset("tiny")).cycles


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "0"), "rows must be at least 1, not 0"),
        (("--columns", "-3"), "columns must be at least 1, not -3"),
        (("--bits", "7"), "bits must be one of 4, 6, 8, 10, 12, not 7"),
        (("--preset", "huge"), "preset must be one of paper"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = quartet(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
