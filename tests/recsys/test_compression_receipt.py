"""The receipt: operations by hand and by torch's own counter, closeness, speeds in the same rounds."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recsys.compression.factorisation import factorise_words
from recsys.compression.pruning import prune
from recsys.compression.receipt import closeness, operations
from recsys.compression.sharing import share_layers
from recsys.compression.speed import measure_speed
from recsys.compression.variant import Variant


@pytest.mark.parametrize("tokens", [5, 16])
def test_operations_are_those_that_torch_counts(tiny_teacher, made_up_texts, tokens):
    whole = Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)
    for variant in (
        whole,
        prune(whole, made_up_texts[:20], heads=3, feed_forward=24),
        prune(whole, made_up_texts[:20], heads=0, refit=False),
        share_layers(whole),
        factorise_words(whole, made_up_texts, rank=8),
    ):
        transformer = variant.transformer.train()  # attention written out, so that the counter sees it
        ids = torch.ones(1, tokens, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            transformer(ids, ids)
        transformer.eval()
        assert operations(transformer.architecture, tokens) == counter.get_total_flops(), variant.recipe


def test_closeness_leaves_out_texts_without_words():
    rows = np.eye(12, 12, dtype=np.float32)
    rows[11] = 0.0
    same = closeness(rows, rows)
    assert (same.cosine, same.neighbour_overlap) == (1.0, 1.0)
    turned = np.roll(rows, 1, axis=1)
    assert closeness(rows, turned).cosine == 0.0
    assert math.isnan(closeness(rows[11:], rows[11:]).cosine)


class Sleeper:
    """Encodes by waiting: a text in so many seconds."""

    dim, encoder_id = 2, "sleeper"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, texts):
        time.sleep(self.seconds * len(texts))
        return np.zeros((len(texts), 2), np.float32)


def test_speeds_are_told_apart():
    found = measure_speed({"slow": Sleeper(0.004), "quick": Sleeper(0.001)}, ["a"] * 10, rounds=3)
    assert found["quick"].ratio_to(found["slow"]).low > 1.5
    assert found["slow"].p99_ms.mean >= found["slow"].p50_ms >= 4.0
    assert found["quick"].texts_per_second <= 1000.0


def test_nothing_to_time_is_refused():
    for texts, rounds in (([], 3), (["a"], 0)):
        with pytest.raises(ValueError, match="one text and in one round"):
            measure_speed({"quick": Sleeper(0.0)}, texts, rounds=rounds)


def test_a_table_of_words_alone_takes_no_operations(tiny_teacher):
    bare = replace(tiny_teacher.transformer.architecture, layers=())
    assert operations(bare, 10) == 0
