"""What a family or a source is worth: left out in truth, on the same requests, with its interval."""

from __future__ import annotations

import numpy as np
import pytest

from features.builder import Features
from features.families import families
from pipelines.ablation import ablation_document, blanked, sourceless
from recsys.events import lengths_to_offsets
from recsys.ranker_training import fit_ranker
from recsys.ranking import RankerConfig
from recsys.requests import SOURCES, Requests


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, Requests]:
    """300 requests of 12 candidates; the first column tells most, the third a little."""
    rng = np.random.default_rng(0)
    offsets = lengths_to_offsets(np.full(300, 12))
    matrix = rng.random((3600, 6)).astype(np.float32)
    asked = np.arange(300)
    requests = Requests.of(asked, asked * 1.0, asked * 0, (offsets, rng.integers(0, 99, 3600)))
    chance = 0.4 * matrix[:, 0] + 0.1 * matrix[:, 2]
    return matrix, requests.labelled(rng.random(3600) < chance)


def test_a_blanked_column_is_a_column_that_was_never_there(rows):
    matrix, requests = rows
    config = RankerConfig(rounds=20, min_data_in_leaf=20)
    kept = [0, 1, 4, 5]
    before = matrix.copy()
    with blanked(matrix, [2, 3]):
        ranker = fit_ranker(matrix, requests, list("abcdef"), "whole", config)[0]
    np.testing.assert_array_equal(matrix, before)
    smaller = fit_ranker(matrix[:, kept], requests, list("abef"), "part", config)[0]
    np.testing.assert_array_equal(ranker.score(matrix, "whole"), smaller.score(matrix[:, kept], "part"))


def test_without_a_source_what_only_it_proposed_is_gone():
    requests = Requests.of(
        np.zeros(3, np.int32),
        np.zeros(3),
        np.zeros(3, np.int64),
        (np.array([0, 3, 4, 6]), np.arange(6, dtype=np.int32)),
        np.array([1, 2, 3, 1, 0, 6], np.int32),
    )
    left = sourceless(requests, 1)
    assert left.offsets.tolist() == [0, 2, 2, 4]
    assert left.item_index.tolist() == [1, 2, 4, 5]
    assert left.source.tolist() == [2, 2, 0, 6]


def test_worth_is_full_minus_without_over_the_seeds_that_have_it():
    full = np.array([0.5, 0.7, 0.9])
    runs = [
        {"families": {"text": full - 0.1}, "sources": {"als": full}},
        {"families": {"text": full - 0.3}, "sources": {}},
    ]
    document = ablation_document(full, runs, np.arange(3), "time")
    assert document["headline"] == "ndcg_at_10"
    assert document["families"]["text"]["mean"] == pytest.approx(0.2)
    assert document["families"]["text"]["low"] == pytest.approx(0.2)
    assert document["sources"]["als"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["time", "slate"])
def test_the_command_tells_the_worth_of_everything_it_can_leave_out(job, protocol):
    found = job.json(
        "evaluate", job.data, "--ablate", "--no-baselines", "--protocol", protocol, *job.settings
    )
    ablation = found["ablation"]
    assert ablation["headline"] == found["headline"]
    assert set(ablation["families"]) == set(families(Features().declarations))
    assert set(ablation["sources"]) <= set(SOURCES)
    assert {"als", "text", "popular"} <= set(ablation["sources"]) or protocol == "slate"
    for entries in (ablation["families"], ablation["sources"]):
        for worth in entries.values():
            assert worth["low"] <= worth["mean"] <= worth["high"]
    if protocol == "slate":
        assert not ablation["sources"]
        assert ablation["families"]["sources"]["mean"] == 0.0  # logged slates carry no sources
    else:
        assert any(abs(entry["mean"]) > 1e-6 for entry in ablation["families"].values())
