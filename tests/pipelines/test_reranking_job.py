"""Rerankers and off-policy estimates through the command line."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
from deltalake import DeltaTable

from recsys.parquet import write_parquet

EXPLORED = [
    "--set=reranking.exploration.share=0.5",
    "--set=reranking.diversity.relevance_share=0.8",
    '--set=reranking.rules=[{action="filter", field="age_days", above=40}]',
]


def last_line(done) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_the_price_of_every_reranker_is_told(job):
    words = ("--protocol", "time", "--no-baselines", "--rerank", *job.settings, *EXPLORED)
    prices = job.json("evaluate", job.data, *words)["reranking"]
    plain = prices["plain"]
    assert plain["ndcg_at_10_minus_plain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    similarity = [
        prices[name]["intra_list_similarity_at_10"]["mean"]
        for name in ("plain", "diversity, lambda 0.7", "diversity, lambda 0.3")
    ]
    assert similarity == sorted(similarity, reverse=True)
    assert prices["exploration, share 0.5"]["coverage_at_10"] > plain["coverage_at_10"]
    assert {"rules", "as configured"} <= set(prices)
    for entry in prices.values():
        interval = entry["ndcg_at_10_minus_plain"]
        difference = entry["ndcg_at_10"]["mean"] - plain["ndcg_at_10"]["mean"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert interval["mean"] == pytest.approx(difference)


def test_the_value_of_our_lists_is_estimated_from_logged_propensities(job):
    words = ("--protocol", "slate", "--no-baselines", "--off-policy", *job.settings)
    found = job.json("evaluate", job.data, *words)["off_policy"]
    for name in ("logged", "ips", "snips", "doubly_robust", "model"):
        assert 0.0 < found[name]["low"] < found[name]["mean"] < found[name]["high"] < 1.0
    assert 1 < found["effective_slates"] < found["slates"]
    assert found["examination"][0] == 1.0 >= found["examination"][-1] > 0.1


def test_what_cannot_be_told_is_refused_at_once(job, tmp_path):
    world = tmp_path / "world"
    shutil.copytree(job.data, world)
    impressions = pl.read_parquet(world / "impressions.parquet").drop("propensity")
    write_parquet(world / "impressions.parquet", impressions)
    done = job.run("evaluate", world, "--protocol", "slate", "--off-policy", *job.settings, code=65)
    assert last_line(done).startswith("error: no_propensities:")
    assert last_line(job.run("evaluate", job.data, "--off-policy", code=64)).startswith("error: usage:")
    slate = job.run("evaluate", job.data, "--protocol", "slate", "--rerank", code=64)
    assert "time or last" in last_line(slate)
    rule = '--set=reranking.rules=[{action="filter", field="category", equals="nowhere"}]'
    refused = last_line(job.run("train", job.data, rule, code=78))
    assert refused.startswith("error: rule_invalid: no item has category 'nowhere'; there are: ")


@pytest.mark.slow
def test_a_night_is_reranked_as_its_bundle_says_and_repeats_to_the_bit(job, tmp_path):
    job.run("train", job.data, "--name", "explored", *job.settings, *EXPLORED)
    words = ("--model", "models:/explored/1", "--out", tmp_path / "scores", "--top-k", "5")
    night = job.json("score", job.data, *words)
    again = job.json("score", job.data, *words)
    assert not again["changed"]
    assert again["digest"] == night["digest"]
    rows = pl.from_arrow(DeltaTable(str(tmp_path / "scores")).to_pyarrow_table())
    assert rows["propensity"].is_between(0, 1, closed="right").all()
    assert 0.3 < (rows["propensity"] < 0.1).mean() < 0.6  # half of the places are drawn at random
    created = pl.read_parquet(job.data / "items.parquet").select("item_id", "created_at")
    moments = rows.join(created, on="item_id")["created_at"].dt.epoch("s").cast(pl.Float64)
    assert (night["as_of"] - moments).max() / 86_400 < 40
    assert job.json("verify", "models:/explored/1")["golden_rows"] > 0
