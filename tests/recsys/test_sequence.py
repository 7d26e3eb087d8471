"""The sequence model: scoring equals torch, learns an order, knows what it does not know."""

import hashlib
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys.dataset import Dataset
from recsys.requests import HistoryBatch, Requests
from recsys.sequence import SequenceConfig, SequenceModel
from recsys.sequence_training import (
    SequenceNetwork,
    fit_sequence,
    same_items,
    sampled_softmax,
)
from recsys.sequence_windows import steps_of, training_windows

ITEMS, USERS, LENGTH = 12, 60, 14
CONFIG = SequenceConfig(
    embedding_dim=16, history_limit=8, epochs=25, batch_size=16, learning_rate=1e-2, negatives=8, threads=1
)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def log() -> Dataset:
    """Every user walks around a ring of the first ten items; the last two are never touched."""
    rows = [
        (f"u{user:02d}", f"i{(user + step) % 10:02d}", 1_000_000.0 + 60 * step)
        for user in range(USERS)
        for step in range(LENGTH)
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    events = events.with_columns(
        pl.from_epoch("timestamp", time_unit="s").dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
        event_type=pl.lit("click"),
    )
    items = pl.DataFrame({"item_id": [f"i{item:02d}" for item in range(ITEMS)]})
    items = items.with_columns(title=pl.col("item_id"))
    return Dataset.from_frames(items, events)


@pytest.fixture(scope="module")
def model(log: Dataset, embeddings: np.ndarray) -> SequenceModel:
    return fit_sequence(log, embeddings, CONFIG, seed=3)[0]


def histories(*lists: list[int]) -> HistoryBatch:
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    items = np.array([item for items in lists for item in items], np.int32)
    return HistoryBatch(offsets, items, np.zeros(len(items), np.int32), np.zeros(len(items)))


def test_the_next_item_of_a_ring_is_learned(model: SequenceModel) -> None:
    scores = model.block_scores(histories([1, 2, 3], [7, 8], [9]))
    assert scores.argmax(axis=1).tolist() == [4, 9, 0]


def test_scoring_equals_the_training_network(model: SequenceModel) -> None:
    network = SequenceNetwork(model).eval()
    items = [4, 1, 1, 0, 10, 7]
    with torch.no_grad():
        expected = network(network.items(torch.tensor(items))[None])[0, -1].numpy()
    found = model.user_vectors(histories(items))[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_request_does_not_depend_on_those_beside_it(model: SequenceModel) -> None:
    together = model.user_vectors(histories([1, 2], [5], [9, 8, 7, 6], []))
    alone = model.user_vectors(histories([9, 8, 7, 6]))
    assert (together[2] == alone[0]).all()


def test_only_the_newest_events_are_read(model: SequenceModel) -> None:
    long = [0, 5, 2, 7, 1, 2, 3, 4, 5, 6, 7]
    both = model.user_vectors(histories(long, long[-CONFIG.history_limit :]))
    assert (both[0] == both[1]).all()


def test_unknown_users_and_items_are_told(model: SequenceModel) -> None:
    history = histories([], [-1], [1])
    block = model.block_scores(history)
    assert np.isneginf(block[:2]).all()
    assert np.isfinite(block[2]).all()
    requests = Requests.of(
        np.zeros(3, np.int32),
        np.zeros(3),
        np.zeros(3, np.int64),
        (np.array([0, 1, 2, 4]), np.array([0, 0, -1, 2])),
    )
    rows = model.scores(requests, history)
    assert np.isnan(rows).tolist() == [True, True, True, False]
    assert rows[3] == pytest.approx(block[2, 2], abs=1e-6)


def test_an_untouched_item_stands_on_its_text(model: SequenceModel, embeddings: np.ndarray) -> None:
    assert not model.learned[10:].any()
    np.testing.assert_allclose(model.items[10], embeddings[10] @ model.weights.text, rtol=1e-6)
    moved = model.over(np.array([3, -1, 0], np.int32), embeddings[[3, 5, 0]])
    np.testing.assert_array_equal(moved.items[[0, 2]], model.items[[3, 0]])
    np.testing.assert_allclose(moved.items[1], embeddings[5] @ model.weights.text, rtol=1e-6)
    assert moved.bias[1] == pytest.approx(model.bias.mean())


def test_files_bring_the_same_model_back(model: SequenceModel, embeddings: np.ndarray) -> None:
    again = SequenceModel.from_files(model.to_files(), embeddings)
    history = histories([3, 4], [1])
    assert (again.block_scores(history) == model.block_scores(history)).all()
    assert again.config == model.config


def test_the_same_seed_gives_the_same_bytes(log: Dataset, embeddings: np.ndarray) -> None:
    config = SequenceConfig(embedding_dim=8, history_limit=8, epochs=2, negatives=8, threads=1)
    digests = {
        seed: [
            hashlib.sha256(b"".join(fit_sequence(log, embeddings, config, seed=seed)[0].to_files().values()))
            for _ in range(2)
        ]
        for seed in (0, 1)
    }
    assert digests[0][0].digest() == digests[0][1].digest()
    assert digests[0][0].digest() != digests[1][0].digest()


def test_a_fit_goes_on_from_an_earlier_one(
    log: Dataset, embeddings: np.ndarray, model: SequenceModel
) -> None:
    _, cold = fit_sequence(log, embeddings, CONFIG, seed=3)
    _, warm = fit_sequence(log, embeddings, CONFIG, start=model, seed=3)
    assert len(warm.loss) == CONFIG.warm_epochs
    assert warm.loss[0] < cold.loss[CONFIG.warm_epochs]


def test_windows_cover_every_step_once(log: Dataset) -> None:
    windows = training_windows(log.histories, SequenceConfig(history_limit=4))
    assert ((windows.stop - windows.start) <= 5).all()
    predicted = np.concatenate(
        [np.arange(a + 1, b) for a, b in zip(windows.start, windows.stop, strict=True)]
    )
    first = log.histories.offsets[:-1]
    assert sorted(predicted.tolist()) == sorted(set(range(USERS * LENGTH)) - set(first.tolist()))
    few = training_windows(log.histories, SequenceConfig(history_limit=4, events_max=50))
    assert (few.stop - few.start).sum() <= 50
    newest = log.histories.timestamp[few.stop - 1].min()
    left_out = np.setdiff1d(windows.stop, few.stop)
    assert (log.histories.timestamp[left_out - 1] <= newest).all()


def test_a_step_holds_no_more_windows_and_events_than_are_set() -> None:
    config = replace(CONFIG, batch_size=4, batch_events=20)
    lengths = np.array([2, 2, 2, 2, 2, 3, 6, 6, 11, 30, 41])  # of events; one less is predicted
    first = steps_of(lengths, config)
    assert first == [0, 4, 8, 9, 10]
    assert steps_of(lengths[:0], config) == [0]


def test_a_log_without_sequences_gives_the_empty_model(log: Dataset, embeddings: np.ndarray) -> None:
    single = log.with_log(log.events.take(np.arange(USERS)), None)
    model, report = fit_sequence(single, embeddings, CONFIG)
    assert np.isneginf(model.block_scores(histories([1], [2]))).all()
    assert report.loss == ()
    off = SequenceConfig(epochs=0)
    assert np.isneginf(fit_sequence(log, embeddings, off)[0].block_scores(histories([1]))).all()


def test_the_loss_and_its_gradients_are_those_of_autograd() -> None:
    rng = np.random.default_rng(7)
    following_items, negative_items = rng.integers(0, 6, 9), rng.integers(0, 6, 5)
    shapes = [(9, 4), (9, 4), (9,), (5, 4), (5,)]
    inputs = [
        torch.tensor(rng.normal(size=shape), dtype=torch.float32, requires_grad=True) for shape in shapes
    ]
    predicted, following, own_offset, negatives, offset = inputs
    hit = torch.tensor(following_items[:, None] == negative_items)
    assert hit.any()
    own = (predicted * following).sum(1) + own_offset
    block = (predicted @ negatives.T + offset).masked_fill(hit, -torch.inf)
    expected = torch.nn.functional.cross_entropy(
        torch.cat([own[:, None], block], 1), torch.zeros(9, dtype=torch.long)
    )
    expected.backward()
    loss, gradients = sampled_softmax(inputs, same_items(following_items, negative_items))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    for leaf, gradient in zip(inputs, gradients, strict=True):
        torch.testing.assert_close(gradient, leaf.grad)


def test_a_longer_history_is_read_on_from_a_shorter_one_to_the_same_bits(model: SequenceModel) -> None:
    """A new event, several, one of an unknown item, and histories past the limit, which lose their oldest."""
    items = [4, 1, -1, 0, 9, 7, 2, 3, 5, 5, 8, 6]
    fresh = [replace(model).user_vectors(histories(items[:count]))[0] for count in range(13)]
    asked = replace(model)
    for count in [0, 1, 2, 3, 5, 9, 10, 11, 12, 4]:
        assert (asked.user_vectors(histories(items[:count]))[0] == fresh[count]).all()
