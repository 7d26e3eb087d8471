"""Distillation, layer dropping and augmentation, on the tiny teacher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.text.augmentation import augment, drop_words, shuffle_sentences
from recsys.text.quantization import mean_cosine
from recsys.text.student import DistillationConfig, distil, fingerprint, neighbour_overlap
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer, spread_layers

CONFIG = DistillationConfig(layers=2, max_epochs=2, learning_rate=2e-3, warmup_steps=5)


@pytest.fixture(scope="module")
def distilled(tiny_teacher, made_up_texts):
    return distil(tiny_teacher, made_up_texts, CONFIG)


def test_distillation_brings_the_student_closer(tiny_teacher, made_up_texts, distilled):
    student, report = distilled
    assert report.holdout_cosine > report.initial_cosine + 0.02
    assert 0 < report.neighbour_overlap <= 1
    untrained = TextTransformer.from_teacher(tiny_teacher.transformer, 2)
    teacher = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    before, after = (
        mean_cosine(TorchEncoder(model, tiny_teacher.tokenizer), teacher, made_up_texts)
        for model in (untrained, student)
    )
    assert after > before + 0.02


def test_report_counts_what_was_done(made_up_texts, distilled):
    student, report = distilled
    assert report.layers == len(student.layers) == 2
    assert report.parameters == sum(weights.numel() for weights in student.parameters())
    assert len(made_up_texts) < report.texts < 2 * len(made_up_texts)
    assert report.epochs == CONFIG.max_epochs
    assert report.steps == CONFIG.max_epochs * -(-report.texts // CONFIG.batch_size)


def test_same_seed_gives_the_same_bytes(tiny_teacher, made_up_texts, distilled):
    again, _ = distil(tiny_teacher, made_up_texts[::-1], CONFIG)
    other, _ = distil(tiny_teacher, made_up_texts, replace(CONFIG, seed=1))
    assert again.to_files() == distilled[0].to_files()
    assert other.to_files() != distilled[0].to_files()


def test_teacher_is_left_alone_and_student_can_be_trained_on(tiny_teacher, distilled):
    student, _ = distilled
    copy = TextTransformer.from_teacher(tiny_teacher.transformer, range(4))
    assert copy.to_files() == tiny_teacher.transformer.to_files()
    assert not student.training
    assert all(weights.requires_grad and weights.grad is None for weights in student.parameters())


def test_token_cap_limits_the_steps_and_progress_sees_each(tiny_teacher, made_up_texts):
    seen: list[tuple[int, int]] = []
    config = replace(CONFIG, max_tokens_seen=3_000)
    _, report = distil(tiny_teacher, made_up_texts, config, progress=lambda *step: seen.append(step))
    assert report.epochs == 1
    assert 3_000 / 32 <= report.texts < len(made_up_texts)
    assert seen == [(step + 1, report.steps) for step in range(report.steps)]


def test_worsening_student_stops_early_and_keeps_its_best_weights(tiny_teacher, made_up_texts):
    config = replace(CONFIG, learning_rate=3.0, max_epochs=30, patience=1)
    _, report = distil(tiny_teacher, made_up_texts, config)
    assert report.stopped_early
    assert report.epochs < 30
    assert report.holdout_cosine >= report.initial_cosine


def test_diverged_student_is_not_kept(tiny_teacher, made_up_texts):
    config = replace(CONFIG, learning_rate=1e30, patience=1)
    student, report = distil(tiny_teacher, made_up_texts, config)
    assert report.holdout_cosine == report.initial_cosine
    assert np.isfinite(TorchEncoder(student, tiny_teacher.tokenizer).encode(["red lamp"])).all()


def test_spent_clock_ends_training(tiny_teacher, made_up_texts):
    _, report = distil(tiny_teacher, made_up_texts, replace(CONFIG, seconds=0.0))
    assert report.stopped_early
    assert report.steps == 0


@pytest.mark.parametrize("texts", [[], ["", "  "], ["red lamp"], ["red lamp"] * 3, ["a", "b", "c"]])
def test_hardly_any_text_still_gives_a_student(tiny_teacher, texts):
    student, report = distil(tiny_teacher, texts, CONFIG)
    assert np.isnan(report.holdout_cosine)
    assert np.isfinite(TorchEncoder(student, tiny_teacher.tokenizer).encode(["red lamp"])).all()


def test_fingerprint_changes_with_what_decides_the_student(tiny_teacher):
    texts = ["red lamp", "old chair"]
    base = fingerprint(tiny_teacher, texts, CONFIG)
    assert base == fingerprint(replace(tiny_teacher, name="other"), texts[::-1] * 2, replace(CONFIG))
    assert base != fingerprint(tiny_teacher, ["red lamp", "old chairs"], CONFIG)
    assert base != fingerprint(tiny_teacher, texts, replace(CONFIG, layers=1))
    assert base != fingerprint(replace(tiny_teacher, sha256="1" * 64), texts, CONFIG)


def test_student_survives_its_files(distilled):
    student, _ = distilled
    files = student.to_files()
    assert TextTransformer.from_files(files).to_files() == files
    for damaged in ({**files, "transformer.json": b"{}"}, {**files, "transformer.safetensors": b"no"}, {}):
        with pytest.raises(RecsysError, match="encoder_invalid"):
            TextTransformer.from_files(damaged)


@pytest.mark.parametrize(
    ("available", "wanted", "kept"),
    [(6, 3, [0, 3, 5]), (6, 2, [0, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (6, 1, [0]), (12, 4, [0, 4, 8, 11])],
)
def test_kept_layers_are_spread_with_first_and_last(available, wanted, kept):
    assert spread_layers(available, wanted) == kept


def test_layers_that_are_not_there_are_refused(tiny_teacher):
    for layers in (0, 5, [4], []):
        with pytest.raises(ValueError, match="layers"):
            TextTransformer.from_teacher(tiny_teacher.transformer, layers)


def test_neighbour_overlap_of_a_small_table():
    line = np.array([[np.cos(angle), np.sin(angle)] for angle in (0.0, 0.1, 0.3, 1.0)], np.float32)
    assert neighbour_overlap(line, line, k=1) == 1.0
    assert neighbour_overlap(line, line[[0, 1, 3, 2]], k=1) == 1 / 4 * (1 + 1 + 0 + 0)
    assert np.isnan(neighbour_overlap(line, line, k=4))


def test_augmented_copy_keeps_to_the_words_of_its_text(made_up_texts, rng):
    copies = augment(made_up_texts, rng=rng)
    assert all(
        set(copy.split()) <= set(text.split()) for copy, text in zip(copies, made_up_texts, strict=True)
    )
    titles = sum(copy == text.split("\n")[0] for copy, text in zip(copies, made_up_texts, strict=True))
    assert 0.15 < titles / len(copies) < 0.35
    assert augment(["", "lamp"], rng=rng) == ["", "lamp"]


def test_shuffled_sentences_are_the_same_sentences(rng):
    shuffled = {shuffle_sentences("A b\nC d. E f!", rng) for _ in range(50)}
    assert len(shuffled) == 6
    assert all(sorted(text.split()) == ["A", "C", "E", "b", "d.", "f!"] for text in shuffled)


def test_dropping_leaves_a_word_at_least(rng):
    assert all(drop_words("lamp", rng) == "lamp" for _ in range(20))
    assert len(drop_words("word " * 1000, rng).split()) == pytest.approx(800, abs=50)
