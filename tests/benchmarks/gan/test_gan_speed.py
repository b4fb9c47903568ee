# SPDX-License-Identifier: MIT
"""``quartet anycost``: costs, measured times and what is made of them."""

import json

import pytest
from typer.testing import CliRunner

from algo.anycost.architecture import GeneratorConfig, compute_macs
from benchmarks.cli import app
from benchmarks.gan import speed

SMALL = GeneratorConfig(resolution=32, channel_multiplier=1 / 128, style_size=8, n_mapping_layers=1)


def run(*arguments):
    return CliRunner().invoke(app, ["anycost", *(str(argument) for argument in arguments)])


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


def test_costs():
    rows = json.loads(run("--json").stdout)
    assert len(rows) == 27 and rows[0]["name"] == "1024 x 1"
    assert rows[0]["useful_macs"] == 74_260_144_128 and rows[0]["published_basis_macs"] == 144_153_428_736
    table = run().stdout
    assert "74.26" in table and "144.15" in table and "evolved 116G, 1024 px" in table


def test_measuring_resumes(tmp_path, monkeypatch):
    speed.measure(tmp_path, 1, quiet, SMALL)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) == 3 * 16 and "32x0.25-round3.json" in files
    (tmp_path / "8x1-round2.json").unlink()
    timed = []
    monkeypatch.setattr(speed, "_time", lambda shape, sub, n: timed.append(sub) or {"wall_s": 1.0})
    speed.measure(tmp_path, 1, quiet, SMALL)
    assert timed == [SMALL.uniform(1.0, 8)]
    assert all((tmp_path / name).read_bytes() == files[name] for name in files if name != "8x1-round2.json")


@pytest.fixture
def times(tmp_path, monkeypatch):
    """Three rounds of given times: the square root of the MACs, in microseconds, and one slow round."""
    rounds: dict = {}

    def fake(shape, sub, n_threads):
        rounds[sub] = rounds.get(sub, 0) + 1
        cpu_s = 1e-6 * compute_macs(shape, sub) ** 0.5
        return {"wall_s": cpu_s * (5 if rounds[sub] == 2 else 1), "cpu_s": cpu_s, "load_average": 2.0}

    monkeypatch.setattr(speed, "_time", fake)
    return tmp_path


def test_summary_is_of_medians(times):
    speed.measure(times, 1, quiet)
    found = speed.summarise(times)
    rows = found["rows"]
    assert [(row["resolution"], row["ratio"]) for row in rows[:5]] == [
        (1024, 1.0), (1024, 0.75), (1024, 0.5), (1024, 0.25), (512, 1.0),
    ]  # fmt: skip
    assert len(rows) == 16 and rows[0]["cpu_speed_up_x"] == 1 and rows[0]["n_rounds"] == 3
    for row in rows:
        assert row["wall_s"] == pytest.approx(1e-6 * row["useful_macs"] ** 0.5)
        assert row["wall_spread_s"] == pytest.approx(4 * row["wall_s"])
        assert row["cpu_speed_up_x"] == pytest.approx(row["macs_saved_x"] ** 0.5)
        assert row["ns_per_mac_over_full_x"] == pytest.approx(row["macs_saved_x"] ** 0.5)


def test_command_writes_table_and_plot(times):
    result = run("--measure", "--out", times, "--threads", 1)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (times / "report").iterdir()}
    assert names == {"speed.csv", "speed.json", "speed.png", "speed.svg"}
    assert len((times / "report" / "speed.csv").read_text().splitlines()) == 17
    assert "128 x 0.25" in result.stdout and "paper: 6-12x on CPUs (quoted)" in result.stdout


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no times: run quartet anycost --measure first"):
        speed.summarise(tmp_path)
    (tmp_path / "1024x1-round1.json").write_text("{")
    with pytest.raises(ValueError, match=r"1024x1-round1.json is not a result file"):
        speed.summarise(tmp_path)
    result = run("--measure", "--out", tmp_path)
    assert result.exit_code == 2 and "is not a result file" in result.stderr
