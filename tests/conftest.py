"""Fixtures for every test: a tiny text model that is made in a second and needs no download."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from recsys.text.openvino_runtime import OpenVinoEncoder
    from recsys.text.teacher import Teacher

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

ADJECTIVES = ("red", "small", "wooden", "quiet", "bright", "old", "smooth", "heavy")
NOUNS = ("lamp", "chair", "kettle", "brush", "garden", "mirror", "violin", "basket")
PLACES = ("kitchen", "studio", "balcony", "workshop", "hallway", "nursery")


@pytest.fixture(scope="session")
def made_up_texts() -> list[str]:
    """384 different item texts: a title, a new line, a description."""
    return [
        f"{adjective} {noun}\nA {adjective} {noun} for the {place}. It comes with a {noun} bag!"
        for adjective, noun, place in itertools.product(ADJECTIVES, NOUNS, PLACES)
    ]


@pytest.fixture(scope="session")
def tiny_teacher(made_up_texts: list[str]) -> Teacher:
    """A random model of four layers and width 32 with a small vocabulary of its own."""
    import tokenizers
    import torch
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    from recsys.text.teacher import Teacher
    from recsys.text.tokenization import Tokenizer, TokenLimits
    from recsys.text.transformer import Architecture, TextTransformer

    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    trained.normalizer = normalizers.BertNormalizer()
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained.train_from_iterator(
        made_up_texts, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    trained.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    trained.enable_padding(length=48)
    tokenizer = Tokenizer(trained.to_str().encode(), TokenLimits(max_chars=200, max_tokens=32))
    shape = Architecture.uniform(
        tokenizer.vocabulary, dim=32, heads=4, feed_forward=64, layers=4, positions=32
    )
    torch.set_num_threads(1)  # the model is too small to share out
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = TextTransformer(shape).eval()
    return Teacher("tiny", transformer, tokenizer, "0" * 64)


@pytest.fixture(scope="session")
def tiny_encoder(tiny_teacher: Teacher) -> OpenVinoEncoder:
    """The tiny model compiled in fp32, without training."""
    from recsys.text.quantization import build_encoder

    return build_encoder(tiny_teacher.transformer, tiny_teacher.tokenizer, [], precision="fp32")


@pytest.fixture(scope="session")
def tiny_teacher_folder(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT in a folder, as the transformers library writes it."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("teacher")
    config = BertConfig(
        vocab_size=tiny_teacher.tokenizer.vocabulary,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tiny_teacher.tokenizer.definition)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts the same in every test."""
    return np.random.default_rng(0)
