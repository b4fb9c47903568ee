# SPDX-License-Identifier: MIT
"""Exported Verilog: stable bytes, a true manifest, clean under Verilator's lint."""

import hashlib
import json
import subprocess

import pytest

from hw.config import PRESETS, chip_of, preset
from hw.export import write_rtl
from hw.harness.build import verilator_environment
from hw.registry import BLOCKS, block

# What generated code cannot avoid: start values beside always blocks, unused parts of wide signals,
# constants and sums written at their own width, FSM cases that cannot occur, and comparisons with zero.
WAIVED = ("PROCASSINIT", "UNUSEDSIGNAL", "WIDTHEXPAND", "WIDTHTRUNC", "CASEINCOMPLETE", "CMPCONST",
          "INITIALDLY", "DECLFILENAME")  # fmt: skip


SMALL_PRESETS = ("tiny", "edge")


@pytest.mark.parametrize("name", SMALL_PRESETS)
def test_small_presets_lint(name, tmp_path):
    """The attention core, which holds all the others, on the smallest chip only."""
    chosen = [one for one in BLOCKS.values() if one.name != "attention" or name == "tiny"]
    lint(write_rtl(chosen, preset(name), tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(SMALL_PRESETS)))
def test_large_presets_lint(name, tmp_path):
    chosen = [one for one in BLOCKS.values() if one.name != "attention"]
    lint(write_rtl(chosen, preset(name), tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"tiny"}))
def test_every_attention_core_lints(name, tmp_path):
    lint(write_rtl([block("attention")], preset(name), tmp_path))


def test_one_lane_and_two_lines_lint(tmp_path):
    """The narrowest shapes: nothing may shrink to a wire of no width."""
    chosen = ["topk", "radix_select", "local_value_select", "local_value_select_by_score", "token_importance",
              "head_importance", "zero_eliminator"]  # fmt: skip
    chip = chip_of("tiny", ["topk.lanes=1", "softmax_lanes=1", "topk.n_max=2"])
    lint(write_rtl([block(name) for name in chosen], chip, tmp_path))


def lint(paths):
    for path in paths:
        done = subprocess.run(
            ["verilator", "--lint-only", "-Wall", *(f"-Wno-{w}" for w in WAIVED),
             "--top-module", path.stem, str(path)],
            capture_output=True, text=True, env=verilator_environment(),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


def test_twice_gives_the_same_bytes_even_without_the_cache(tmp_path, monkeypatch):
    chosen = [block("topk"), block("zero_eliminator")]
    for run in ("one", "two"):
        monkeypatch.setenv("QUARTET_BUILD", str(tmp_path / f"cache {run}"))
        write_rtl(chosen, preset("tiny"), tmp_path / run)
    first = {path.name: path.read_bytes() for path in (tmp_path / "one" / "tiny").iterdir()}
    second = {path.name: path.read_bytes() for path in (tmp_path / "two" / "tiny").iterdir()}
    assert first == second
    assert set(first) == {"topk.v", "topk.core", "zero_eliminator.v", "zero_eliminator.core", "manifest.json"}


def test_manifest_tells_what_was_built(tmp_path):
    write_rtl([block("topk")], preset("tiny"), tmp_path)
    write_rtl([block("zero_eliminator")], preset("tiny"), tmp_path)
    manifest = json.loads((tmp_path / "tiny" / "manifest.json").read_text())
    assert manifest["preset"] == "tiny"
    assert manifest["blocks"]["topk"]["config"] == {"lanes": 4, "n_max": 1024, "element_bits": 24}
    for name in ("topk", "zero_eliminator"):
        text = (tmp_path / "tiny" / f"{name}.v").read_bytes()
        assert manifest["blocks"][name]["sha256"] == hashlib.sha256(text).hexdigest()


def test_foreign_manifest_is_not_overwritten(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "manifest.json").write_text("[1, 2")
    with pytest.raises(ValueError, match="is not a manifest of this tool"):
        write_rtl([block("topk")], preset("tiny"), tmp_path)
    assert (tmp_path / "tiny" / "manifest.json").read_text() == "[1, 2"


def test_a_changed_preset_has_a_name_and_a_folder_of_its_own(tmp_path):
    chip = chip_of("tiny", ["topk.lanes=2", "clock_hz=5e8"])
    assert (chip.name, chip.topk.lanes, chip.clock_hz) == ("tiny-topk.lanes2-clock_hz5e8", 2, 5e8)
    assert chip_of("tiny") == preset("tiny")
    assert write_rtl([block("zero_eliminator")], chip, tmp_path)[0].parent.name == chip.name


def test_unknown_names_are_rejected():
    with pytest.raises(
        ValueError, match="preset must be one of paper, paper_eighth, plus, edge, tiny, not 'huge'"
    ):
        preset("huge")
    with pytest.raises(ValueError, match=r"block must be one of topk, .* not 'sorter'"):
        block("sorter")
