# SPDX-License-Identifier: MIT
"""The quality experiments on tiny models: what they compute, that they resume, and their tables and plots."""

import csv
import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from algo.attention.decoder import load_decoder
from algo.attention.encoder import load_encoder
from algo.attention.reviews import load_reviews, spliced, split
from algo.attention.settings import CascadeSettings
from benchmarks.quality import language, probability, report, sentiment
from benchmarks.quality.statistics import bootstrap_interval, mean_and_half_interval
from benchmarks.quality.store import cached, load_results
from benchmarks.quality.text import load_text


def quiet(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def results(tmp_path_factory, decoder_folder, encoder_folder, text_file, reviews_file):
    """All three experiments."""
    out = tmp_path_factory.mktemp("results")
    setup = language.Setup(model=str(decoder_folder), n_windows=3, n_prompt=24, n_scored=10)
    language.run(out / "language", setup, str(text_file), quiet)
    probe = probability.Setup(models=(str(decoder_folder),), n_windows=2, window=32)
    inputs = load_text(text_file)
    cached(out / "probability", "tiny", {}, lambda: probability.measure(str(decoder_folder), inputs, probe))
    train = sentiment.Setup(model=str(encoder_folder), seeds=(0, 1), dense_epochs=2)
    sentiment.run(out / "sentiment", train, str(reviews_file), quiet)
    return out


def test_dense_case_is_the_models_own_likelihood(results, decoder_folder, text_file):
    decoder = load_decoder(decoder_folder)
    setup = language.Setup(model=str(decoder_folder), n_windows=3, n_prompt=24, n_scored=10)
    ids = language.windows(decoder, load_text(text_file), setup)
    expected = decoder.score(ids, 24, CascadeSettings(prune_prompt=False))
    saved = json.loads((results / "language" / f"{language.DENSE.name}.json").read_text())
    assert np.allclose(saved["result"]["losses_nats"], expected, atol=1e-5)


def test_rows_by_hand(results):
    rows = report.summarise(results)["language"]["rows"]
    assert len(rows) == len(language.CASES)
    files = load_results(results, ["language"], "x")["language"]
    case = language.Case(ratio=2.0, bits="6+4")
    row = next(r for r in rows if r["token_ratio"] == 2 and r["bits"] == "6+4")
    result, dense = files[case.name]["result"], files[language.DENSE.name]["result"]
    losses = np.array(result["losses_nats"])
    assert row["perplexity"] == pytest.approx(math.exp(losses.mean()))
    assert row["loss_delta_nats"] == pytest.approx(losses.mean() - np.mean(dense["losses_nats"]))
    lsb = np.mean(result["lsb_fraction_by_layer"])
    assert row["lsb_fraction"] == pytest.approx(lsb) and row["kv_bits"] == pytest.approx(6 + 4 * lsb + 6)
    kept = np.mean(result["kept_fraction_by_layer"])
    assert row["measured_token_ratio"] == pytest.approx(2, rel=0.15)  # floors of few tokens
    assert row["kv_traffic_reduction_vs_fp32"] == pytest.approx(64 / (row["kv_bits"] * kept))


def test_same_traffic_mixture(results):
    """Halfway between two static widths in bits is halfway between their losses."""
    files = {
        name: file["result"] for name, file in load_results(results, ["language"], "x")["language"].items()
    }
    low, high = (np.mean(files[language.Case(bits=bits).name]["losses_nats"]) for bits in ("6", "8"))
    case = language.Case(bits="6+4")
    assert language._same_traffic(case, 14.0, files) == pytest.approx(math.exp((low + high) / 2))
    assert language._same_traffic(case, 12.0, files) == pytest.approx(math.exp(low))
    assert language._same_traffic(case, 99.0, files) is None
    assert language._same_traffic(language.Case(bits="6"), 14.0, files) is None


def test_a_scored_prompt_changes_what_is_kept(results):
    files = load_results(results, ["language"], "x")["language"]
    scored, unscored = (language.Case(ratio=4.0, score_prompt=s) for s in (True, False))
    assert scored.name == "tokens-4x-float-scored" and "score_prompt" not in unscored.inputs
    a, b = (files[case.name]["result"] for case in (scored, unscored))
    assert a["losses_nats"] != b["losses_nats"]
    assert a["kept_fraction_by_layer"] == b["kept_fraction_by_layer"]  # as many, but others


def test_threshold_raises_the_refetch_rate(results):
    rows = report.summarise(results)["language"]["rows"]
    chosen = [r for r in rows if r["bits"] == "6+4" and r["token_ratio"] == 1 and r["v_bits"] == 6]
    chosen.sort(key=lambda r: r["threshold"])
    rates = [r["lsb_fraction"] for r in chosen]
    assert [r["threshold"] for r in chosen] == list(language.THRESHOLDS)
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == 1


def test_probability_error_falls_with_bits(results):
    data = report.summarise(results)["probability"]["models"]["tiny"]
    # 2 windows, 6 layers, 4 heads, 32 queries
    assert sum(data["n_rows"]) == 2 * 6 * 4 * 32
    means = [data["by_bits"][bits]["overall_mean"] for bits in ("4", "6", "8")]
    assert means[0] > 2 * means[1] > 4 * means[2] > 0
    assert data["by_bits"]["4"]["rms_score_error"] > 2 * data["by_bits"]["6"]["rms_score_error"]


def test_sentiment_summary_by_hand():
    def result(**right: str):
        return {"test": right, "validation": dict.fromkeys(right, "01")}

    results = {
        "dense": result(dense="1100", pruned_without_finetuning="0001"),
        "pruned-0": result(pruned="1110"),
        "pruned-1": result(pruned="0100"),
        "longer-1": result(longer="1011"),
    }
    summary = sentiment.summary(results)
    assert summary["n_test"] == 4 and summary["seeds"] == [0, 1] and summary["seeds_of_longer"] == [1]
    assert summary["dense_accuracy"] == [0.5] and summary["pruned_accuracy"] == [0.75, 0.25]
    assert summary["pruned_without_finetuning_accuracy"] == [0.25] and summary["longer_accuracy"] == [0.75]
    assert summary["dense_validation_accuracy"] == [0.5]
    against = summary["against_dense"]
    assert against["difference"] == [0.25, -0.25] and against["mean_difference"] == 0
    half = 12.706 * np.std([0.25, -0.25], ddof=1) / math.sqrt(2)
    assert against["seed_interval_95"] == pytest.approx([-half, half])
    low, high = against["sentence_interval_95"]
    assert -0.5 <= low < 0 < high <= 0.5
    longer = summary["against_longer"]
    assert longer["difference"] == [-0.5] and longer["seed_interval_95"] is None
    rows = report._sentiment_rows(summary)
    accuracies = [(row["model"], row["seed"], row["test_accuracy"]) for row in rows]
    assert accuracies == [
        ("dense", 0, 0.5),
        ("longer", 1, 0.75),
        ("pruned_without_finetuning", 0, 0.25),
        ("pruned", 0, 0.75),
        ("pruned", 1, 0.25),
    ]


def test_sentiment_summary_of_an_interrupted_run():
    right = {"dense": "10", "pruned_without_finetuning": "00"}
    summary = sentiment.summary({"dense": {"test": right, "validation": right}})
    assert summary["against_dense"] is summary["against_longer"] is None
    assert [row["model"] for row in report._sentiment_rows(summary)] == [
        "dense",
        "pruned_without_finetuning",
    ]
    (ax,) = report.sentiment_figure(summary).axes
    assert {line.get_label(): list(line.get_ydata()) for line in ax.lines} == {
        "dense_accuracy": [50.0],
        "pruned_without_finetuning_accuracy": [0.0],
    }


def test_sentiment_learns(results):
    summary = report.summarise(results)["sentiment"]
    assert summary["n_test"] == 20 and summary["seeds"] == summary["seeds_of_longer"] == [0, 1]
    settings = CascadeSettings.from_dict(summary["settings"])
    assert settings.k_bits == settings.q_bits == settings.v_bits == 8
    assert 6 / sum(settings.token_ratios(6)) == pytest.approx(1.9)


def test_both_runs_of_a_seed_start_from_the_one_dense_model(results):
    folder = results / "sentiment"
    weights = (folder / "dense" / "weights.safetensors").read_bytes()
    source = f"movie reviews, from {hashlib.sha256(weights).hexdigest()[:12]}"
    for seed in (0, 1):
        pruned, longer = (
            json.loads((folder / f"seed-{seed}" / name / "train.json").read_text())["run"]
            for name in ("pruned", "longer")
        )
        assert pruned["task"]["source"] == pruned["task"]["teacher"] == longer["task"]["source"] == source
        assert pruned["config"] == longer["config"] and pruned["config"]["seed"] == seed
        off = CascadeSettings().to_dict()
        assert longer["task"].pop("settings") == off != pruned["task"].pop("settings")
        assert longer["task"] == pruned["task"]  # they differ in nothing else


def test_teacher_is_asked_again_when_its_weights_change(results, encoder_folder, reviews_file, tmp_path):
    dense = shutil.copytree(results / "sentiment" / "dense", tmp_path / "dense")
    reviews = split(load_reviews(str(reviews_file))).training
    encoder = load_encoder(encoder_folder)
    first = sentiment.taught_by(dense, encoder, reviews, "movie reviews", "cpu")
    again = sentiment.taught_by(dense, encoder, reviews, "movie reviews", "cpu")
    assert torch.equal(first.logits, again.logits) and first.source == again.source
    weights = load_file(dense / "weights.safetensors")
    save_file(weights | {"head.bias": weights["head.bias"] + 1.0}, dense / "weights.safetensors")
    shifted = sentiment.taught_by(dense, encoder, reviews, "movie reviews", "cpu")
    assert torch.allclose(shifted.logits, first.logits + 1.0, atol=1e-5) and shifted.source != first.source
    assert len(sentiment.taught_by(dense, encoder, reviews[:7], "movie reviews", "cpu").saliency) == 7


def test_lessons_are_the_teachers_verdicts_on_spliced_sentences(
    results, encoder_folder, reviews_file, tmp_path
):
    dense = shutil.copytree(results / "sentiment" / "dense", tmp_path / "dense")
    reviews = split(load_reviews(str(reviews_file))).training
    encoder = load_encoder(encoder_folder)
    said = sentiment.taught_by(dense, encoder, reviews, "x", "cpu").logits
    weights = load_file(dense / "weights.safetensors")
    weights["head.bias"][0] += (said[:, 1] - said[:, 0]).median()  # so that it says both
    save_file(weights, dense / "weights.safetensors")
    learnt, teacher = sentiment.lessons(dense, encoder, reviews, 2, "x", "cpu")
    assert learnt[: len(reviews)] == reviews
    assert [review.text for review in learnt[len(reviews) :]] == spliced(reviews, 2)
    positive = teacher.logits[:, 1] > teacher.logits[:, 0]
    assert [review.positive for review in learnt[len(reviews) :]] == positive[len(reviews) :].tolist()
    assert len({review.positive for review in learnt[len(reviews) :]}) == 2


def test_finished_cases_are_not_computed_again(results, decoder_folder, text_file, monkeypatch):
    monkeypatch.setattr(language, "score_case", lambda *args: pytest.fail("computed again"))
    setup = language.Setup(model=str(decoder_folder), n_windows=3, n_prompt=24, n_scored=10)
    language.run(results / "language", setup, str(text_file), quiet)


def test_other_inputs_are_computed_again(tmp_path):
    assert cached(tmp_path, "case", {"seed": 0}, lambda: {"x": 1}) == {"x": 1}
    assert cached(tmp_path, "case", {"seed": 0}, lambda: {"x": 2}) == {"x": 1}
    assert cached(tmp_path, "case", {"seed": 1}, lambda: {"x": 3}) == {"x": 3}
    (tmp_path / "case.json").write_text("{")
    with pytest.raises(ValueError, match="is not a result file"):
        cached(tmp_path, "case", {"seed": 1}, lambda: {"x": 4})


def test_report_files(results, tmp_path):
    names = {path.name for path in report.write(results, tmp_path)}
    plots = {f"{name}.{kind}" for name in ("language", "probability", "sentiment") for kind in ("png", "svg")}
    tables = {f"{name}.csv" for name in ("language", "probability", "sentiment")}
    assert names == plots | tables | {"summary.json"} == {path.name for path in tmp_path.iterdir()}
    rows = list(csv.DictReader((tmp_path / "language.csv").read_text().splitlines()))
    assert len(rows) == len(language.CASES) and float(rows[0]["loss_delta_nats"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"].startswith("simulated") and summary["provenance"]["command"] == "quartet quality"
    assert (tmp_path / "language.png").read_bytes()[:4] == b"\x89PNG"


def test_report_keeps_what_it_has_no_results_of(results, tmp_path):
    report.write(results, tmp_path)
    path = tmp_path / "summary.json"
    whole = json.loads(path.read_text())
    whole["provenance"]["commit"] = "earlier"
    whole["sentiment"]["n_test"] = 0
    path.write_text(json.dumps(whole))
    part = tmp_path / "part"
    shutil.copytree(results / "sentiment", part / "sentiment", ignore=shutil.ignore_patterns("seed-*"))
    report.write(part, tmp_path)
    again = json.loads(path.read_text())
    for name in ("language", "probability"):
        assert again[name].pop("provenance") == whole["provenance"] and again[name] == whole[name]
    assert again["sentiment"]["n_test"] == 20 and "provenance" not in again["sentiment"]
    assert again["provenance"]["commit"] != "earlier"
    report.write(part, tmp_path)
    assert json.loads(path.read_text())["language"]["provenance"]["commit"] == "earlier"
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a summary of results"):
        report.write(part, tmp_path)


def test_report_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results: run quartet quality first"):
        report.summarise(tmp_path)
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a result file"):
        report.summarise(tmp_path)


def test_intervals_by_hand():
    mean, half = mean_and_half_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(mean_and_half_interval(np.array([1.0]))[1])
    x = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(x)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)
    assert low < x.mean() < high


def test_text(tmp_path):
    text = load_text()
    assert len(text.content) > 100_000 and text.source.startswith("pydoc_data.topics of Python 3")
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load_text(path)


def test_text_too_short(decoder_folder, text_file):
    decoder = load_decoder(decoder_folder)
    setup = language.Setup(n_windows=1000)
    with pytest.raises(ValueError, match="text must have at least 512000 tokens"):
        language.windows(decoder, load_text(text_file), setup)


def test_plots_show_every_line(results):
    rows = report.summarise(results)["language"]["rows"]
    panels = report.language_figure(rows).axes
    assert [ax.get_ylabel().split(",")[0].split(" (")[0] for ax in panels] == [
        "perplexity", "rows redone with LSBs", "loss added over dense", "loss added over dense",
    ]  # fmt: skip
    pruning, threshold, traffic, _ = panels
    assert len(threshold.patches) == len(language.THRESHOLDS)
    assert [len(line[0].get_xdata()) for line in pruning.containers] == [4, 4, 4, 3]
    points = {line.get_label(): len(line.get_xdata()) for line in traffic.lines}
    assert points["static 4, 6, 8 and mixtures of two"] == 3
    assert points["progressive 4+4, by threshold"] == 3 and points["progressive 6+4, by threshold"] == 1
