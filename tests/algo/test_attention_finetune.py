# SPDX-License-Identifier: MIT
"""Fine-tuning: it learns through pruning and quantisation, and resumes to the same bits."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from algo.attention.decoder import Decoder
from algo.attention.encoder import Encoder
from algo.attention.finetune import (
    Distillation,
    LanguageTask,
    SentimentTask,
    Teacher,
    TrainConfig,
    restore_weights,
    train,
)
from algo.attention.reviews import Review, load_reviews, spliced, split
from algo.attention.settings import CascadeSettings

PRUNED = CascadeSettings(token_keep=0.6, head_keep=0.7, q_bits=8, k_bits=8, v_bits=8)
OFF = CascadeSettings()
CONFIG = TrainConfig(epochs=6, batch_size=8, learning_rate=5e-3, checkpoint_steps=5)


class Stop(Exception):
    """An interruption."""


class LetterTokenizer:
    """One token per letter."""

    def __call__(self, text: str, verbose: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") for letter in text]}


def sentiment_task(settings: CascadeSettings = PRUNED, **more) -> SentimentTask:
    """Positive if "a" and "b" are more than half of its letters: learnable in a few epochs."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=26, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    encoder = Encoder(BertModel(config, add_pooling_layer=False), LetterTokenizer())
    letters = torch.randint(4, (96, 8), generator=torch.Generator().manual_seed(1))
    texts = ["".join(chr(97 + i) for i in row)[: 6 + n % 3] for n, row in enumerate(letters.tolist())]
    reviews = [Review(text, sum(letter < "c" for letter in text) > len(text) / 2) for text in texts]
    return SentimentTask(encoder, reviews, settings, "letters", **more)


def distilled_task(*, anneal: float = 0.0, **weights: float) -> SentimentTask:
    """Taught by the same model with a head that is not zero."""
    dense = sentiment_task(OFF)
    torch.nn.init.normal_(dense.head.weight, generator=torch.Generator().manual_seed(2))
    return sentiment_task(teacher=dense.teach(), distillation=Distillation(**weights), anneal=anneal)


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


@pytest.mark.parametrize("make", [sentiment_task, partial(distilled_task, anneal=0.4), language_task])
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


def test_bfloat16_products_are_for_the_training_alone(tmp_path):
    """Seen from within the loss; an error leaves nothing behind either."""
    task, seen = sentiment_task(), []
    loss = task.loss

    def watched(batch, progress):
        seen.append(torch.get_float32_matmul_precision())
        if len(seen) > 3:
            raise Stop
        return loss(batch, progress)

    task.loss = watched
    with pytest.raises(Stop):
        train(task, TrainConfig(batch_size=8, bfloat16_products=True), tmp_path / "a", quiet)
    assert seen == ["medium"] * 4 and torch.get_float32_matmul_precision() == "highest"
    seen.clear()
    with pytest.raises(Stop):
        train(task, TrainConfig(batch_size=8), tmp_path / "b", quiet)
    assert seen == ["highest"] * 4


def test_a_finished_run_is_not_repeated(tmp_path):
    losses = train(sentiment_task(), CONFIG, tmp_path, quiet)
    task = sentiment_task()

    def never(step, n_steps, loss):
        raise AssertionError("trained again")

    assert train(task, CONFIG, tmp_path, never) == losses
    assert task.correct().float().mean() > 0.7


def test_teacher_by_hand():
    """Saliency by finite differences of the decision, moving one token's state after the first layer."""
    task = sentiment_task(OFF)
    torch.nn.init.normal_(task.head.weight, generator=torch.Generator().manual_seed(2))
    task.module.double()
    teacher = task.teach()
    batch = torch.tensor([5])
    mean, _ = task.embed(batch)
    assert torch.equal(teacher.embedding[5], mean[0])
    assert torch.equal(teacher.logits[5], task.logits(batch)[0])
    second = task.encoder.model.encoder.layer[1]

    def decision(token: int, change: torch.Tensor) -> float:
        def move(module, args, kwargs):
            args[0][0, token] += change
            return args, kwargs

        handle = second.register_forward_pre_hook(move, with_kwargs=True)
        negative, positive = task.logits(batch)[0].tolist()
        handle.remove()
        return positive - negative

    with torch.no_grad():
        steps = 1e-5 * torch.eye(16, dtype=torch.float64)
        slopes = [[(decision(t, e) - decision(t, -e)) / 2e-5 for e in steps] for t in range(len(task.ids[5]))]
    expected = torch.tensor(slopes, dtype=torch.float64).norm(dim=1)
    assert torch.allclose(teacher.saliency[5], expected, rtol=1e-6)
    assert [len(row) for row in teacher.saliency] == [len(ids) for ids in task.ids]


def test_importance_divergence_by_hand():
    """KL of the saliency from the column sums, which are what the cascade adds to the importances."""
    task = sentiment_task(CascadeSettings(token_keep=0.6, head_keep=0.7))
    task.module.eval()
    batch = torch.tensor([0, 3])
    saliency = torch.rand(2, len(task.ids[0]), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, cascade = task.embed(batch, saliency=saliency)
    first, second, _ = cascade.layer_token_importance
    assert len(cascade.divergences) == 2  # the last layer selects nothing
    for sums, keys, divergence in zip(
        (first, second - first), cascade.kept_tokens[:2], cascade.divergences, strict=True
    ):
        share = sums.gather(1, keys)
        share = share / share.sum(1, keepdim=True)
        target = saliency.double().gather(1, keys)
        target = target / target.sum(1, keepdim=True)
        expected = (target * (target / share).log()).sum(1).mean()
        assert float(divergence) == pytest.approx(float(expected), abs=1e-6) and float(divergence) > 0.01


def test_head_reads_the_survivors_or_with_early_exit_all():
    batch = torch.tensor([5])
    for early_exit in (False, True):
        task = sentiment_task(early_exit=early_exit)
        task.module.eval()
        mean, _ = task.embed(batch)
        result = task.encoder.run(task.ids[5], PRUNED, early_exit=early_exit)
        n_read = len(task.ids[5]) if early_exit else result.n_kept_tokens[-1]
        assert len(result.hidden) == n_read
        assert torch.allclose(mean[0], result.embedding, atol=1e-6)
        mean.square().sum().backward()
        grad = task.encoder.model.encoder.layer[0].output.dense.weight.grad
        assert grad is not None and grad.abs().sum() > 0


def test_pruning_sets_in_over_the_first_part_of_the_steps(tmp_path):
    task, lengths, kept = sentiment_task(anneal=0.5), [], []
    embed = task.embed

    def watched(*arguments):
        mean, cascade = embed(*arguments)
        lengths.append(cascade.n_tokens)
        kept.append(cascade.keys.shape[1])
        return mean, cascade

    task.embed = watched
    train(task, CONFIG, tmp_path, quiet)
    n_steps = len(kept)
    ratios = PRUNED.token_ratios(3)
    for step, (n, m) in enumerate(zip(lengths, kept, strict=True)):
        share = min(1.0, step / n_steps / 0.5)
        assert m == int((1 - share * (1 - ratios[-1])) * n + 1e-9)
    assert kept[0] == lengths[0] and kept[-1] < lengths[-1]


def test_matching_the_importance_makes_selections_follow_the_teacher(tmp_path):
    """Only that term on: the tokens kept become those of the largest saliency."""

    def agreement(task: SentimentTask) -> float:
        task.module.eval()
        hits = total = 0
        for batch in task.batches(torch.Generator().manual_seed(0), 32):
            _, cascade = task.embed(batch)
            kept = cascade.kept_tokens[1]
            for i, row in zip(batch.tolist(), kept, strict=True):
                best = task.teacher.saliency[i].topk(kept.shape[1]).indices
                hits += len(set(best.tolist()) & set(row.tolist()))
                total += kept.shape[1]
        return hits / total

    task = distilled_task(logits=0, embedding=0, importance=10)
    before = agreement(task)
    train(task, CONFIG, tmp_path, quiet)
    assert agreement(task) > before + 0.02


def test_distillation_of_the_teacher_itself_costs_nothing():
    """A student equal to its teacher, nothing pruned: only the label loss is left."""
    dense = sentiment_task(OFF)
    torch.nn.init.normal_(dense.head.weight, generator=torch.Generator().manual_seed(2))
    student = sentiment_task(OFF, teacher=dense.teach(), distillation=Distillation(importance=0))
    student.head.load_state_dict(dense.head.state_dict())
    student.module.eval()
    batch = torch.tensor([0, 3])
    assert float(student.loss(batch).detach()) == pytest.approx(float(dense.loss(batch).detach()), abs=1e-6)


def test_saved_teacher(tmp_path):
    teacher = sentiment_task(OFF).teach()
    teacher.save(tmp_path / "teacher.safetensors")
    again = Teacher.load(tmp_path / "teacher.safetensors")
    assert torch.equal(again.logits, teacher.logits) and torch.equal(again.embedding, teacher.embedding)
    assert again.source == teacher.source == "letters"
    for a, b in zip(again.saliency, teacher.saliency, strict=True):
        assert torch.equal(a, b)


def test_teacher_of_other_sentences():
    teacher = sentiment_task(OFF).teach()
    teacher.saliency.pop()
    with pytest.raises(ValueError, match="was asked about other sentences"):
        sentiment_task(teacher=teacher)


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


def test_a_run_saved_before_a_setting_existed(tmp_path):
    """Such a run had the setting's default."""
    train(sentiment_task(), TrainConfig(), tmp_path, quiet)
    path = tmp_path / "train.json"
    saved = json.loads(path.read_text())
    del saved["run"]["task"]["settings"]["score_prompt"]
    del (
        saved["run"]["task"]["early_exit"],
        saved["run"]["task"]["anneal"],
        saved["run"]["config"]["bfloat16_products"],
    )
    path.write_text(json.dumps(saved))
    assert train(sentiment_task(), TrainConfig(), tmp_path, quiet) == saved["losses"]
    with pytest.raises(ValueError, match="holds another run: settings"):
        train(sentiment_task(OFF), TrainConfig(), tmp_path, quiet)
    with pytest.raises(ValueError, match="holds another run: early_exit False there, True here"):
        train(sentiment_task(early_exit=True), TrainConfig(), tmp_path, quiet)


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"importance": -1}, "importance must not be negative, not -1"),
        ({"temperature": 0}, "temperature must be positive, not 0"),
    ],
)
def test_bad_distillation(fields, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**fields)


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


def test_spliced_sentences():
    reviews = [
        Review(" ".join(f"{name}{i}" for i in range(n)), True)
        for name, n in zip("abcde", (1, 2, 5, 9, 20), strict=True)
    ]
    texts = spliced(reviews, 40)
    assert len(texts) == 200 and texts == spliced(reviews, 40) and len(set(texts)) > 50
    lengths = dict(zip("abcde", (1, 2, 5, 9, 20), strict=True))
    for i, text in enumerate(texts):
        words = text.split()
        first, second = words[0][0], words[-1][0]
        n = next((n for n, word in enumerate(words) if word != f"{first}{n}"), len(words))
        assert first == "abcde"[i % 5] and words[:n] == reviews[i % 5].text.split()[:n]
        assert words[n:] == reviews["abcde".index(second)].text.split()[lengths[second] - len(words[n:]) :]
    assert {text.split()[-1][0] for text in texts} == set("abcde")


def test_split_is_fixed_and_disjoint():
    reviews = [Review(str(i), True) for i in range(40)]
    parts = split(reviews)
    assert (len(parts.training), len(parts.validation), len(parts.test)) == (24, 6, 10)
    assert {*parts.training, *parts.validation, *parts.test} == set(reviews)
    assert split(reviews) == parts
    many = split([Review(str(i), True) for i in range(10_000)])
    assert (len(many.training), len(many.validation), len(many.test)) == (6500, 1000, 2500)
