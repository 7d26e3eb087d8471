"""The ranker: what it learns, when it stops, what it refuses, and that it is the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.ranker_training import fit_ranker, split_requests
from recsys.ranking import Ranker, RankerConfig
from recsys.requests import Requests

NAMES, HASH = ("noise", "signal", "gap"), "0123"
CONFIG = RankerConfig(rounds=60, patience=10, leaves=7, min_data_in_leaf=10, threads=1, learning_rate=0.1)
REQUESTS, ROWS = 150, 12


def make_rows(
    positions: np.ndarray | None = None, seed: int = 0, strength: float = 3.0
) -> tuple[np.ndarray, Requests]:
    """The chance of a click rises with column 1; column 2 is mostly missing."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(REQUESTS * ROWS, 3)).astype(np.float32)
    matrix[rng.random(len(matrix)) < 0.8, 2] = np.nan
    clicked = rng.random(len(matrix)) < 1 / (1 + np.exp(2 - strength * matrix[:, 1]))
    offsets = np.arange(REQUESTS + 1, dtype=np.int64) * ROWS
    items = np.tile(np.arange(ROWS), REQUESTS)
    requests = Requests.of(np.zeros(REQUESTS), np.arange(REQUESTS), np.zeros(REQUESTS), (offsets, items))
    requests = requests.labelled(clicked)
    if positions is not None:
        requests = replace(requests, position=positions.astype(np.int32))
    return matrix, requests


def fit(matrix: np.ndarray, requests: Requests, config: RankerConfig = CONFIG, seed: int = 0):
    return fit_ranker(matrix, requests, NAMES, HASH, config, seed=seed)


@pytest.fixture(scope="module")
def fitted():
    return fit(*make_rows())


def test_a_planted_signal_is_learned(fitted):
    ranker, report = fitted
    matrix, requests = make_rows(seed=7)
    scores = ranker.score(matrix, HASH)
    assert scores.shape == (requests.rows,)
    assert np.corrcoef(scores, matrix[:, 1])[0, 1] > 0.8
    assert next(iter(report.gain)) == "signal"
    assert set(report.gain) == set(NAMES)
    assert (report.rows, report.trees) == (REQUESTS * ROWS, ranker.booster.num_trees())
    assert 0.8 < report.validation_ndcg_at_10 <= 1.0


def test_training_stops_where_the_newest_requests_stop_improving(fitted):
    _, report = fit(*make_rows(strength=0.0), replace(CONFIG, rounds=400, patience=5))
    assert 1 <= report.trees < 400
    matrix, requests = make_rows()
    turned = matrix.copy()
    turned[-23 * ROWS :, 1] *= -1  # the newest 15 % say the opposite of all the others
    assert fit(turned, requests)[1].trees < fitted[1].trees


def test_trees_after_the_best_one_are_dropped(fitted):
    more_patience = fit(*make_rows(), replace(CONFIG, patience=20))[1]
    assert more_patience.trees == fitted[1].trees < CONFIG.rounds


def test_the_newest_share_validates():
    offsets = np.zeros(11, np.int64)
    moments = np.array([5, 9, 1, 8, 2, 7, 3, 6, 4, 0.0])
    requests = Requests.of(np.zeros(10), moments, np.zeros(10), (offsets, np.zeros(0)))
    fit_part, held = split_requests(requests, 0.3)
    assert held.tolist() == [1, 3, 5]
    assert fit_part.tolist() == [0, 2, 4, 6, 7, 8, 9]


def test_requests_of_one_moment_are_split_by_turns():
    requests = Requests.of(np.arange(9), np.full(9, 4.0), np.zeros(9), (np.zeros(10, np.int64), np.zeros(0)))
    fit_part, held = split_requests(requests, 0.25)
    assert held.tolist() == [0, 4, 8]
    assert np.sort(np.concatenate([fit_part, held])).tolist() == list(range(9))


def test_the_same_seed_gives_the_same_bytes(fitted):
    assert fit(*make_rows())[0].to_files() == fitted[0].to_files()
    assert fit(*make_rows(), seed=1)[0].to_files() != fitted[0].to_files()


def test_files_give_the_same_scores_to_the_last_bit(fitted):
    ranker, _ = fitted
    again = Ranker.from_files(ranker.to_files())
    matrix, _ = make_rows(seed=9)
    np.testing.assert_array_equal(again.score(matrix, HASH), ranker.score(matrix, HASH))
    np.testing.assert_array_equal(ranker.score(matrix, HASH, threads=2), ranker.score(matrix, HASH))
    assert again.features == NAMES
    assert again.to_files() == ranker.to_files()


def test_a_row_scores_alone_as_in_a_batch(fitted):
    matrix, _ = make_rows(seed=9)
    whole = fitted[0].score(matrix, HASH)
    np.testing.assert_array_equal([fitted[0].score(matrix[[row]], HASH)[0] for row in range(20)], whole[:20])
    assert fitted[0].score(matrix[:0], HASH).shape == (0,)


def test_a_matrix_of_another_schema_is_refused(fitted):
    with pytest.raises(RecsysError, match="feature_mismatch: the matrix has other features"):
        fitted[0].score(make_rows()[0], "4567")


def test_a_model_text_of_another_schema_is_refused(fitted):
    files = fitted[0].to_files()
    files["ranker.json"] = files["ranker.json"].replace(b"noise", b"nose")
    with pytest.raises(RecsysError, match="feature_mismatch: model text and feature schema disagree"):
        Ranker.from_files(files)


def test_one_request_is_too_few():
    matrix, requests = make_rows()
    with pytest.raises(RecsysError, match="no_training_rows: the log has too few requests"):
        fit(matrix[:ROWS], requests.take(np.array([0])))


def test_positions_count_only_where_every_row_has_one():
    places = np.tile(np.arange(1, ROWS + 1), REQUESTS)
    one_missing = places.copy()
    one_missing[5] = 0
    without, partly, shown = (
        fit(*make_rows(positions))[0].to_files()["ranker.txt"] for positions in (None, one_missing, places)
    )
    assert partly == without
    assert shown != without
