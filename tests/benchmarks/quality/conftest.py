# SPDX-License-Identifier: MIT
"""Tiny models with a tokenizer, saved as Hugging Face folders, and a reviews file."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz ."


def save_tokenizer(folder: Path) -> None:
    """One token per letter; anything else is unknown."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"?": len(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder)


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=6, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.fixture(scope="session")
def reviews_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reviews") / "reviews.txt"
    lines = [
        f"{i}\t{1 if i % 2 else -1}\t{'good film' if i % 2 else 'bad film'} {'abc'[i % 3]}" for i in range(80)
    ]
    path.write_text("\n".join(lines))
    return path
