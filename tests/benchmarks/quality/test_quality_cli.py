# SPDX-License-Identifier: MIT
"""``quartet train`` and ``quartet quality`` from the command line."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from algo.attention.decoder import load_decoder
from benchmarks.cli import app
from benchmarks.quality import language, probability
from benchmarks.quality import sentiment as sentiment_experiment


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentiment(encoder_folder, reviews_file, out, *more):
    return run("train", "sentiment", encoder_folder, "--data", reviews_file, "--out", out, *more)


def test_train_sentiment(encoder_folder, reviews_file, tmp_path):
    options = ("--learning-rate", "0.005", "--epochs", "30", "--json")
    done = sentiment(encoder_folder, reviews_file, tmp_path / "a", *options)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["n_train"], result["n_validation"], result["n_test"]) == (48, 12, 20)
    assert result["validation_accuracy"] > 0.8 and result["test_accuracy"] > 0.8
    again = sentiment(encoder_folder, reviews_file, tmp_path / "a", *options)
    assert json.loads(again.stdout) == result
    further = sentiment(encoder_folder, reviews_file, tmp_path / "b", "--start", tmp_path / "a", "--json")
    assert json.loads(further.stdout)["last_loss_nats"] < 0.5


def test_distil_from_a_dense_run(encoder_folder, reviews_file, tmp_path):
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    off = ("--token-ratio", 1, "--head-ratio", 1, "--bits", "float")
    assert sentiment(encoder_folder, reviews_file, dense, *off).exit_code == 0
    done = sentiment(encoder_folder, reviews_file, pruned, "--teacher", dense, "--epochs", 1, "--json")
    assert done.exit_code == 0, done.stderr
    task = json.loads((pruned / "train.json").read_text())["run"]["task"]
    assert task["source"] == f"from {dense}" and task["distillation"]["importance"] == 3
    assert task["n_sentences"] == 2 * 48 and task["early_exit"]
    assert task["teacher"].startswith("reviews, from ") and (dense / "teacher.safetensors").is_file()
    done = sentiment(encoder_folder, reviews_file, tmp_path / "x", "--teacher", pruned)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert f"teacher {pruned} must be a dense run" in done.stderr


def test_train_language(decoder_folder, text_file, tmp_path):
    done = run(
        "train", "language", decoder_folder, "--text", text_file, "--window", 16, "--out", tmp_path,
        "--learning-rate", "0.01", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["test_loss_nats"] < result["test_loss_before_nats"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--token-ratio", "9"], "token ratio must be in 1..3 (exclusive) for 6 layers, not 9.0"),
        (["--head-ratio", "0.5"], "head ratio must be in 1..3 (exclusive) for 6 layers, not 0.5"),
        (["--bits", "5"], "q_bits must be one of 4, 6, 8, 10, 12, not 5"),
        (["--bits", "x"], "bits must look like 8 or 6+4, not 'x'"),
        (["--device", "tpu"], "device must be cpu or cuda, not 'tpu'"),
        (["--learning-rate", "0"], "learning_rate must be positive, not 0.0"),
        (["--start", "nowhere"], "nowhere holds no finished training run"),
        (["--teacher", "nowhere"], "teacher nowhere holds no finished training run: it has no train.json"),
        (["--data", "nowhere"], "reviews file nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(encoder_folder, reviews_file, tmp_path, more, message):
    done = sentiment(encoder_folder, reviews_file, tmp_path, *more)
    assert done.exit_code == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_decoder_for_the_encoder_command(decoder_folder, reviews_file, tmp_path):
    done = sentiment(decoder_folder, reviews_file, tmp_path)
    assert done.exit_code == 2
    assert "model must be an encoder (bert), not 'llama', a decoder" in done.stderr


def test_another_run_in_the_folder(encoder_folder, reviews_file, tmp_path):
    assert sentiment(encoder_folder, reviews_file, tmp_path).exit_code == 0
    done = sentiment(encoder_folder, reviews_file, tmp_path, "--seed", "1")
    assert done.exit_code == 2 and "holds another run: seed 0 there, 1 here" in done.stderr


def test_quality_from_an_empty_folder(
    encoder_folder, decoder_folder, text_file, reviews_file, tmp_path, monkeypatch
):
    """Every part through the command line, on tiny models; run again, nothing is computed."""
    tiny = {
        probability: {"models": ("smollm2",), "n_windows": 2, "window": 32},
        language: {"model": str(decoder_folder), "n_windows": 3, "n_prompt": 24, "n_scored": 6},
        sentiment_experiment: {"model": str(encoder_folder), "seeds": (0, 1), "dense_epochs": 2},
    }
    for module, fields in tiny.items():
        monkeypatch.setattr(module, "Setup", partial(module.Setup, **fields))
    monkeypatch.setattr(language, "CASES", [language.DENSE, language.Case(ratio=2.0, score_prompt=True)])
    monkeypatch.setattr(probability, "load_decoder", lambda name: load_decoder(decoder_folder))
    command = ("quality", "--text", text_file, "--data", reviews_file, "--out", tmp_path, "--json")
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert {"probability", "language", "sentiment"} <= summary.keys()
    assert [row["score_prompt"] for row in summary["language"]["rows"]] == [False, True]
    assert summary["sentiment"]["seeds_of_longer"] == [0, 1]
    written = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json") if "report" not in str(path)
    }
    again = run(*command)
    assert again.exit_code == 0 and written == {path: path.stat().st_mtime_ns for path in written}


def test_unknown_experiment(tmp_path):
    done = run("quality", "speed", "--out", tmp_path)
    assert done.exit_code == 2
    assert "experiment must be one of probability, language, sentiment, not 'speed'" in done.stderr
