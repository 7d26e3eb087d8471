"""Timings: ratios of the same rounds, tails, and texts of a wanted length."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.compression.memory import peak_memory
from recsys.compression.speed import Timing, texts_of_tokens
from recsys.compression.static import static_table
from recsys.compression.variant import Variant


def test_a_ratio_is_told_round_by_round():
    slow = Timing(10, np.array([2.0, 4.0, 3.0]), np.ones(5))
    quick = Timing(10, np.array([1.0, 1.0, 1.0]), np.ones(5))
    found = quick.ratio_to(slow)
    assert (found.low, found.mean, found.high) == (2.0, 3.0, 4.0)
    assert quick.texts_per_second == 10.0


def test_the_tail_has_an_interval_that_holds_it():
    seconds = np.arange(1, 201) / 1000
    timing = Timing(200, np.ones(3), seconds)
    assert timing.p50_ms == pytest.approx(100.5)
    assert timing.p99_ms.mean == pytest.approx(np.quantile(seconds, 0.99) * 1000)
    assert timing.p99_ms.low <= timing.p99_ms.mean <= timing.p99_ms.high


def test_texts_have_almost_the_wanted_tokens(tiny_teacher, made_up_texts):
    found = texts_of_tokens(tiny_teacher.tokenizer, made_up_texts, 12, 20)
    lengths = [len(ids) for ids in tiny_teacher.tokenizer.encode(found)]
    assert len(found) == 12
    assert max(lengths) <= 20
    assert np.mean(lengths) > 15
    assert texts_of_tokens(tiny_teacher.tokenizer, ["", " "], 5, 20) == []


def test_peak_memory_is_of_a_process_of_its_own(tiny_teacher, made_up_texts):
    ballast = np.ones(400_000_000, np.uint8)  # of this process, and not to be counted
    table = static_table(
        Variant(tiny_teacher.transformer, tiny_teacher.tokenizer),
        made_up_texts,
        np.ones((len(made_up_texts), tiny_teacher.transformer.dim), np.float32),
    )
    peak = peak_memory(table.to_files(), made_up_texts)
    assert 10e6 < peak < ballast.nbytes
    with pytest.raises(RuntimeError, match="encoder_invalid"):
        peak_memory({"nothing.json": b"{}"}, made_up_texts)
