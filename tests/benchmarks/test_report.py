# SPDX-License-Identifier: MIT
"""The report and its tables: pure, self-contained, complete, and right about what it compares."""

import csv
import re

import pytest

from benchmarks import plots, summary
from benchmarks.paper import PAPER_EAGER, fig14, geomean
from benchmarks.report import load_results, report_context, used_energy_rows, write_report
from benchmarks.runner import collect_provenance, run_one, write_atomically
from benchmarks.summary import significant
from benchmarks.tasks import benchmarks, select
from hw.config import preset
from sim.energy import energy_table

PROVENANCE = collect_provenance("quartet bench <test>")
ALL = [run_one(item, preset("paper"), PROVENANCE) for item in benchmarks()]
FEW = [result for result in ALL if result.benchmark in ("bert-base-cola", "gpt2-medium-ptb")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(ALL, tmp_path_factory.mktemp("report"))


def test_page_needs_nothing_from_outside(page):
    html = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(s.startswith(("data:image/svg+xml;base64,", "#")) for s in sources)
    assert "@import" not in html and "<script" not in html and "url(" not in html


def test_page_shows_every_benchmark_figure_and_origin(page):
    html = page.read_text()
    assert html.count("data:image/svg+xml") == len(plots.FIGURES)
    assert all(item.benchmark in html for item in benchmarks())
    assert "quartet bench &lt;test&gt;" in html and "<test>" not in html  # the command is escaped
    for word in ("simulated", "quoted", "estimated", "released trace", PROVENANCE.commit):
        assert word in html


def test_every_anchor_of_the_navigation_exists(page):
    html = page.read_text()
    for anchor in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{anchor}"' in html


def test_files_beside_the_page(page):
    for name in plots.FIGURES:
        assert (page.parent / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (page.parent / "plots" / f"{name}.svg").read_text()
    markdown = (page.parent / "report.md").read_text()
    for name in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (page.parent / name).exists()


def test_csv_holds_the_results(page):
    with (page.parent / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["benchmark"] for row in rows] == [item.benchmark for item in benchmarks()]
    for row, result in zip(rows, ALL, strict=True):
        assert float(row["latency_s"]) == result.pruned.latency_s
        assert float(row["paper_speedup_xeon_paper_eager"]) == fig14()[result.benchmark].speedup["xeon"]
        assert (row["speedup_xeon_paper_eager"] == "") == (result.model != "gpt2-medium")
        causes = sum(float(v) for k, v in row.items() if k.startswith("cycles_"))
        assert causes == pytest.approx(float(row["cycles"]))


def test_same_results_give_the_same_bytes(tmp_path):
    first, second = write_report(FEW, tmp_path / "a"), write_report(FEW, tmp_path / "b")
    for path in sorted(first.parent.rglob("*.*")):
        assert path.read_bytes() == (second.parent / path.relative_to(first.parent)).read_bytes(), path.name


def test_a_report_of_one_benchmark(tmp_path):
    (result,) = (r for r in ALL if r.benchmark == "gpt2-small-ptb")
    html = write_report([result], tmp_path).read_text()
    assert "1 of 30 benchmarks" in html and "gpt2-small-ptb" in html and "bert-base-cola" not in html


def test_another_memory_is_called_a_stand_in(page):
    tiny = run_one(select("bert-base-cola")[0], preset("tiny"), PROVENANCE)
    assert report_context([tiny])["stand_in_dram"] and not report_context(FEW)["stand_in_dram"]
    assert "stand-in" not in page.read_text()


def test_means_compare_like_with_like():
    rows = summary.speedup_comparisons(ALL)
    eager = [row for row in rows if PAPER_EAGER in row.label]
    roofline = [row for row in rows if "(roofline)" in row.label]
    assert len(eager) == len(roofline) == 4
    assert all("4 benchmarks" in row.label and "same baseline" in row.note for row in eager)
    assert all("30 benchmarks" in row.label and "not the same baseline" in row.note for row in roofline)
    medium = [fig14()[r.benchmark].speedup["xeon"] for r in ALL if r.model == "gpt2-medium"]
    assert eager[1].paper == pytest.approx(geomean(medium))
    assert eager[1].ratio == pytest.approx(eager[1].ours / eager[1].paper)
    # One SpAtten time stands behind all four platforms, so one ratio must come out.
    assert max(row.ratio for row in eager) == pytest.approx(min(row.ratio for row in eager))


def test_without_gpt2_medium_there_is_no_eager_row():
    rows = summary.speedup_comparisons([r for r in ALL if r.model == "bert-base"])
    assert len(rows) == 4 and not any(PAPER_EAGER in row.label for row in rows)


def test_energy_rows_used_are_listed_only_where_used():
    bert = [r for r in ALL if r.benchmark == "bert-base-cola"]
    assert used_energy_rows(bert) == list(energy_table())
    assert len(used_energy_rows(ALL)) == len(energy_table())


def test_load_results_in_the_papers_order(tmp_path):
    for result in reversed(FEW):
        write_atomically(tmp_path / f"{result.benchmark}.json", result.to_json())
    assert load_results(tmp_path) == FEW


def test_load_results_refuses_an_empty_folder_and_a_mixture(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results in .*run quartet bench"):
        load_results(tmp_path)
    (tmp_path / "a.json").write_text(FEW[0].to_json())
    tiny = run_one(select("bert-large-cola")[0], preset("tiny"), PROVENANCE)
    (tmp_path / "b.json").write_text(tiny.to_json())
    with pytest.raises(ValueError, match="mixes results of paper, tiny"):
        load_results(tmp_path)


def test_load_results_refuses_an_unknown_benchmark(tmp_path):
    text = FEW[0].to_json().replace('"benchmark": "bert-base-cola"', '"benchmark": "llama"')
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: benchmark must be one of the 30, not 'llama'"):
        load_results(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.43, "0.430"),
        (1.185, "1.19"),
        (99.96, "100"),
        (162.5, "162"),
        (24112, "24,100"),
        (0.000012, "1.20e-05"),
    ],
)
def test_significant_digits(value, text):
    assert significant(value) == text
