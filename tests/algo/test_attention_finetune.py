# SPDX-License-Identifier: MIT
"""Fine-tuning: it learns through pruning and quantisation, and resumes to the same bits."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from algo.attention.decoder import Decoder
from algo.attention.encoder import Encoder
from algo.attention.finetune import LanguageTask, SentimentTask, TrainConfig, restore_weights, train
from algo.attention.reviews import Review, load_reviews, split
from algo.attention.settings import CascadeSettings

PRUNED = CascadeSettings(token_keep=0.6, head_keep=0.7, q_bits=8, k_bits=8, v_bits=8)
CONFIG = TrainConfig(epochs=6, batch_size=8, learning_rate=5e-3, checkpoint_steps=5)


class Stop(Exception):
    """An interruption."""


class LetterTokenizer:
    """One token per letter."""

    def __call__(self, text: str, verbose: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}


def sentiment_task(settings: CascadeSettings = PRUNED) -> SentimentTask:
    """Positive if "a" and "b" are more than half of its letters: learnable in a few epochs."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=26, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    encoder = Encoder(BertModel(config, add_pooling_layer=False), LetterTokenizer())
    letters = torch.randint(4, (96, 8), generator=torch.Generator().manual_seed(1))
    texts = ["".join(chr(97 + i) for i in row)[: 6 + n % 3] for n, row in enumerate(letters.tolist())]
    return SentimentTask(
        encoder,
        [Review(text, sum(letter < "c" for letter in text) > len(text) / 2) for text in texts],
        settings,
        "letters",
    )


def language_task(settings: CascadeSettings = PRUNED) -> LanguageTask:
    """A text of period 5."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    ids = torch.arange(600) % 5
    return LanguageTask(Decoder(LlamaForCausalLM(config)), ids, settings, "period 5", window=16)


def quiet(step: int, n_steps: int, loss: float) -> None:
    """No progress."""


@pytest.mark.parametrize("make", [sentiment_task, language_task])
def test_training_lowers_the_loss(make, tmp_path):
    losses = train(make(), CONFIG, tmp_path, quiet)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("make", [sentiment_task, language_task])
def test_an_interrupted_run_resumes_to_the_same_bits(make, tmp_path):
    whole = train(make(), CONFIG, tmp_path / "whole", quiet)

    def stop_at_thirteen(step, n_steps, loss):
        if step == 13:
            raise Stop

    with pytest.raises(Stop):
        train(make(), CONFIG, tmp_path / "halves", stop_at_thirteen)
    assert (tmp_path / "halves" / "checkpoint-000010.safetensors").is_file()
    steps = []
    halves = train(make(), CONFIG, tmp_path / "halves", lambda step, n, loss: steps.append(step))
    assert steps[0] == 11 and halves == whole
    a, b = (load_file(tmp_path / part / "weights.safetensors") for part in ("whole", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert sorted(p.name for p in (tmp_path / "halves").iterdir()) == ["train.json", "weights.safetensors"]


def test_a_finished_run_is_not_repeated(tmp_path):
    losses = train(sentiment_task(), CONFIG, tmp_path, quiet)
    task = sentiment_task()

    def never(step, n_steps, loss):
        raise AssertionError("trained again")

    assert train(task, CONFIG, tmp_path, never) == losses
    assert task.correct().float().mean() > 0.7


def test_frozen_embeddings_stay(tmp_path):
    task = sentiment_task()
    before = task.encoder.model.embeddings.word_embeddings.weight.clone()
    query = task.encoder.model.encoder.layer[0].attention.self.query.weight.clone()
    train(task, TrainConfig(batch_size=32), tmp_path, quiet)
    assert torch.equal(task.encoder.model.embeddings.word_embeddings.weight, before)
    assert not torch.equal(task.encoder.model.encoder.layer[0].attention.self.query.weight, query)


def test_batches_have_one_length_and_cover_all():
    task = sentiment_task()
    batches = task.batches(torch.Generator().manual_seed(5), 8)
    assert sorted(torch.cat(batches).tolist()) == list(range(96))
    assert all(len({len(task.ids[i]) for i in batch.tolist()}) == 1 for batch in batches)


def test_folder_of_another_run(tmp_path):
    train(sentiment_task(), TrainConfig(), tmp_path, quiet)
    with pytest.raises(ValueError, match="holds another run: seed 0 there, 1 here"):
        train(sentiment_task(), TrainConfig(seed=1), tmp_path, quiet)


def test_damaged_checkpoint(tmp_path):
    def stop(step, n_steps, loss):
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        train(sentiment_task(), CONFIG, tmp_path, stop)
    (tmp_path / "checkpoint-000005.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is damaged: remove"):
        train(sentiment_task(), CONFIG, tmp_path, stop)


def test_weights_of_another_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished training run"):
        restore_weights(sentiment_task().module, tmp_path)
    train(language_task(), TrainConfig(), tmp_path, quiet)
    with pytest.raises(ValueError, match="does not fit the model"):
        restore_weights(sentiment_task().module, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, not 0"),
        ({"seed": -1}, "seed must not be negative, not -1"),
        ({"device": "tpu"}, "device must be cpu or cuda, not 'tpu'"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device():
    with pytest.raises(ValueError, match="sees no CUDA device"):
        TrainConfig(device="cuda")


def test_language_task_rejects():
    with pytest.raises(ValueError, match="prune_prompt must be True"):
        language_task(CascadeSettings(prune_prompt=False))
    decoder = language_task().decoder
    with pytest.raises(ValueError, match="text must have at least 17 tokens, not 10"):
        LanguageTask(decoder, torch.arange(10), PRUNED, "short", 16)


def test_reviews_file(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_bytes("1\t2.5\tGood, très bon\n2\t-0.1\tbad\n3\t0\tneither\n".encode("latin-1"))
    assert load_reviews(path) == [Review("Good, très bon", True), Review("bad", False)]
    path.write_text("1\tgreat\ttext\n")
    with pytest.raises(ValueError, match="line 1 must be id, rating and text"):
        load_reviews(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no rated sentence"):
        load_reviews(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_reviews(tmp_path / "none")


def test_split_is_fixed_and_disjoint():
    reviews = [Review(str(i), True) for i in range(40)]
    training, test = split(reviews)
    assert len(test) == 10 and {*training, *test} == set(reviews)
    assert split(reviews) == (training, test)
