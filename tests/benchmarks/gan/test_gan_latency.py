# SPDX-License-Identifier: MIT
"""``quartet anycost --latency``."""

import csv
import json

import pytest
from typer.testing import CliRunner

from algo.anycost.architecture import GeneratorConfig
from benchmarks.cli import app
from benchmarks.gan import latency
from sim.anycost import image_estimate, square_core


@pytest.fixture(scope="module")
def rows():
    return latency.latency_rows()


def test_rows(rows):
    assert len(rows) == 3 * 27
    by_key = {(row["array"], row["name"]): row for row in rows}
    shape = GeneratorConfig()
    half = by_key[32, "1024 x 0.5"]
    assert half["cycles"] == round(image_estimate(shape, shape.uniform(0.5), square_core(32)).cycles)
    assert half["milliseconds"] == pytest.approx(half["cycles"] / 1e6, rel=1e-6)
    assert half["useful_macs"] / (half["useful_share"] * 32**2) == pytest.approx(half["cycles"], rel=1e-6)
    for row in rows:
        assert 0 < row["useful_share"] < 1
        assert sum(value for name, value in row.items() if name.startswith("paced_by_")) == pytest.approx(1)
    for size in latency.SIZES:
        assert by_key[size, "1024 x 1"]["cycles"] > by_key[size, "15G"]["cycles"]
    assert (
        by_key[16, "1024 x 1"]["cycles"] > by_key[32, "1024 x 1"]["cycles"] > by_key[64, "1024 x 1"]["cycles"]
    )


def test_command_writes_table_and_plot(tmp_path):
    result = CliRunner().invoke(app, ["anycost", "--latency", "--report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "evolved 15G, 256 px" in result.stdout and "estimated" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        f"latency.{kind}" for kind in ("json", "csv", "png", "svg")
    }
    saved = json.loads((tmp_path / "latency.json").read_text())
    assert saved["status"] == latency.STATUS and len(saved["rows"]) == 81
    with (tmp_path / "latency.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["cycles"] for line in lines] == [str(row["cycles"]) for row in saved["rows"]]
    shown = CliRunner().invoke(app, ["anycost", "--latency", "--report", str(tmp_path), "--json"])
    assert json.loads(shown.stdout) == saved["rows"]
