"""The simulated files: sound, reproducible, and telling the truth about their clicks."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from recsys.dataset_folder import load
from recsys.draws import Draws
from recsys.errors import RecsysError
from recsys.events import Slates
from recsys.simulation import SimulationConfig, SimulationReport, simulate
from recsys.simulation.grammar import Grammar
from recsys.simulation.simulator import _auc
from recsys.simulation.world import Population

CONFIG = SimulationConfig()
SMALL = SimulationConfig(users=60, items=80, days=3)
TABLES = ("items", "users", "impressions", "events", "truth")


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest() for name in TABLES}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationReport]:
    """The default world: what `recsys demo` runs on."""
    folder = tmp_path_factory.mktemp("world")
    return folder, simulate(folder, CONFIG)


@pytest.fixture(scope="module")
def tables(world) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(world[0] / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module")
def truth(tables) -> pl.DataFrame:
    """Truth with `clicked` beside it."""
    clicks = tables["impressions"].select("impression_id", item_id="clicked").explode("item_id").drop_nulls()
    return (
        tables["truth"]
        .join(
            clicks.with_columns(clicked=True),
            on=["impression_id", "item_id"],
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("clicked").fill_null(False))
    )


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, config in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, seed=1))):
        simulate(tmp_path / name, config)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert all(first[name] != other[name] for name in TABLES)


def test_chunk_size_does_not_change_a_row(tmp_path):
    simulate(tmp_path / "a", SMALL)
    simulate(tmp_path / "b", replace(SMALL, requests_per_chunk=7))
    for name in TABLES:
        first, second = (pl.read_parquet(tmp_path / folder / f"{name}.parquet") for folder in "ab")
        assert first.equals(second)


def test_report_counts_what_the_files_hold(world, tables):
    report = world[1]
    assert (report.users, report.items) == (tables["users"].height, tables["items"].height)
    assert (report.impressions, report.events) == (tables["impressions"].height, tables["events"].height)
    assert report.shown == tables["truth"].height
    assert report.clicks == tables["impressions"]["clicked"].list.len().sum()


def test_the_dataset_checks_find_nothing_wrong(world):
    dataset, report = load(world[0])
    assert all(counts.rows_in == counts.good for counts in report.tables.values())
    assert isinstance(dataset.slates, Slates)
    assert int(dataset.slates.clicked.sum()) == world[1].clicks
    assert {"click", "comment", "dismiss", "like", "purchase", "share", "view"} <= set(dataset.event_types)


def test_events_point_to_shown_items_and_known_users(tables):
    shown = tables["impressions"].explode("shown", "position", "propensity").rename({"shown": "item_id"})
    keys = ["impression_id", "user_id", "item_id", "position"]
    assert tables["events"].join(shown, on=keys, how="anti").height == 0
    assert tables["impressions"].join(tables["users"], on="user_id", how="anti").height == 0
    assert shown.join(tables["items"], on="item_id", how="anti").height == 0
    assert shown.select("impression_id", "item_id", "position").equals(
        tables["truth"].select("impression_id", "item_id", "position")
    )


def test_items_are_shown_after_creation_and_users_act_after_arrival(tables):
    shown = (
        tables["impressions"]
        .explode("shown", "position", "propensity")
        .join(tables["items"], left_on="shown", right_on="item_id")
    )
    assert (shown["timestamp"] > shown["created_at"]).all()
    population = Population(CONFIG, Grammar.load(), Draws(CONFIG.seed))
    user = tables["impressions"]["user_id"].str.slice(1).cast(pl.Int64).to_numpy()
    day = (tables["impressions"]["timestamp"].dt.epoch("s").to_numpy() - CONFIG.start_s) // 86_400
    assert (day >= population.arrival_day(user)).all()
    assert (shown["created_at"] > CONFIG.start).any()


def test_log_is_in_time_order_and_sessions_do_not_overlap(tables):
    assert tables["impressions"]["timestamp"].is_sorted()
    assert tables["events"]["timestamp"].is_sorted()
    slates = tables["impressions"].select(
        "impression_id", shown_at="timestamp", next_at=pl.col("timestamp").shift(-1).over("user_id")
    )
    joined = tables["events"].join(slates, on="impression_id")
    assert (joined["timestamp"] > joined["shown_at"]).all()
    assert joined.filter(pl.col("timestamp") >= pl.col("next_at")).height == 0


def test_clicked_lists_equal_click_events_and_follow_views(tables):
    events = tables["events"]
    clicks = events.filter(pl.col("event_type") == "click").select("impression_id", "item_id", "timestamp")
    listed = tables["impressions"].select("impression_id", item_id="clicked").explode("item_id").drop_nulls()
    assert clicks.select("impression_id", "item_id").sort(pl.all()).equals(listed.sort(pl.all()))
    after = events.filter(pl.col("event_type").is_in(["like", "comment", "share", "purchase"]))
    paired = after.join(clicks, on=["impression_id", "item_id"], how="left", suffix="_click")
    assert (paired["timestamp"] > paired["timestamp_click"]).all()
    views = events.filter(pl.col("event_type") == "view")
    paired = clicks.join(views, on=["impression_id", "item_id"], how="left", suffix="_view")
    assert (paired["timestamp"] > paired["timestamp_view"]).all()
    dismissed = events.filter(pl.col("event_type") == "dismiss")
    assert dismissed.height > 100
    assert dismissed.join(clicks, on=["impression_id", "item_id"], how="semi").height == 0


def test_clicks_are_calibrated_in_every_decile_of_the_truth(truth):
    assert np.allclose(truth["examination"] * truth["attraction"], truth["click_probability"], atol=1e-6)
    deciles = (
        truth.with_columns(decile=(pl.col("click_probability").rank("ordinal") * 10 / truth.height).floor())
        .group_by("decile")
        .agg(
            stated=pl.col("click_probability").sum(),
            variance=(pl.col("click_probability") * (1 - pl.col("click_probability"))).sum(),
            clicks=pl.col("clicked").sum(),
        )
    )
    error = (deciles["clicks"] - deciles["stated"]) / deciles["variance"].sqrt()
    assert error.abs().max() < 4.0
    assert abs((deciles["clicks"] - deciles["stated"]).sum()) < 4.0 * np.sqrt(deciles["variance"].sum())


def test_click_rate_is_realistic_and_falls_with_position(truth):
    assert 0.06 < truth["clicked"].mean() < 0.10
    rate = (
        truth.group_by("position")
        .agg(pl.col("clicked").mean(), pl.col("examination").first())
        .sort("position")
    )
    assert rate["examination"][0] == 1.0
    assert rate["examination"][19] == pytest.approx(20**-0.25)
    assert rate["examination"].diff().drop_nulls().lt(0).all()
    assert rate["clicked"][:5].mean() > 1.3 * rate["clicked"][15:].mean()


def test_oracle_is_in_its_band_and_popularity_is_well_below(world, truth):
    report = world[1]
    assert 0.75 < report.oracle_auc < 0.82
    assert report.oracle_auc - report.attraction_auc < 0.02
    last_day = truth["impression_id"] >= truth["impression_id"].max() * 13 // 14
    past, today = truth.filter(~last_day), truth.filter(last_day)
    popularity = past.group_by("item_id").agg(popularity=(pl.col("clicked").sum() + 2) / (pl.len() + 30))
    joined = today.join(popularity, on="item_id", how="left", maintain_order="left").fill_null(2 / 30)
    score, clicked = (joined[name].to_numpy().reshape(-1, 20) for name in ("popularity", "clicked"))
    both = clicked.any(axis=1) & ~clicked.all(axis=1)
    auc = _auc(score[both], clicked[both]).mean()
    assert 0.53 < auc < report.oracle_auc - 0.12


def test_follow_ups_rise_with_attraction(tables, truth):
    joined = tables["events"].join(truth, on=["impression_id", "item_id"])
    mean = dict(joined.group_by("event_type").agg(pl.col("attraction").mean()).iter_rows())
    assert mean["dismiss"] < mean["view"] < mean["click"] < mean["like"] < mean["purchase"]


def test_auc_equals_scikit_learn(rng):
    score = rng.integers(0, 6, (40, 9)).astype(np.float32)  # with ties
    clicked = rng.random((40, 9)) < 0.3
    clicked[:, 0], clicked[:, 1] = True, False
    expected = [roc_auc_score(y, s) for y, s in zip(clicked, score, strict=True)]
    assert _auc(score, clicked) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("users", "items", "days"), [(1, 1, 1), (1, 1, 20), (2, 5, 4), (40, 21, 3), (5, 30, 1)]
)
def test_tiny_worlds_are_sound(tmp_path, users, items, days):
    config = SimulationConfig(users=users, items=items, days=days, requests_per_user_day=2.0)
    done: list[tuple[int, int]] = []
    report = simulate(tmp_path, config, progress=lambda day, of: done.append((day, of)))
    assert done == [(day, days) for day in range(1, days + 1)]
    slates = pl.read_parquet(tmp_path / "impressions.parquet")
    assert slates.height == report.impressions
    assert (slates["shown"].list.n_unique() == slates["shown"].list.len()).all()
    assert (slates["shown"].list.len() <= min(20, items)).all()
    assert pl.read_parquet(tmp_path / "users.parquet").height == users


def test_a_failed_run_leaves_the_earlier_files_alone(tmp_path):
    def stop(day: int, days: int) -> None:
        raise KeyboardInterrupt

    simulate(tmp_path, SMALL)
    before = digests(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, replace(SMALL, seed=9), progress=stop)
    assert digests(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)


def test_an_unusable_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecsysError, match="storage_failed"):
        simulate(tmp_path / "file", SMALL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_memory_is_flat_in_the_number_of_users(tmp_path):
    peak = {}
    for users in (1_000, 50_000):
        script = (
            "import re, sys; from pathlib import Path;"
            "from recsys.simulation import SimulationConfig, simulate;"
            f"report = simulate(Path(sys.argv[1]), SimulationConfig(users={users}, days=2));"
            "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text());"
            "print(peak[1], report.users / report.seconds)"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        peak[users], speed = (float(word) for word in run.stdout.split())
        print(f"{users} users: {peak[users] / 1024:.0f} MB, {speed:.0f} users/s")
    assert peak[50_000] < 1.3 * peak[1_000]
