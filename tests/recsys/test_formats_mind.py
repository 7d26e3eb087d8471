from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.formats import import_dataset

NEWS = [
    'N1\tnews\tworld\tThe "first" title\tAn abstract\thttps://x\t[]\t[]',
    "N2\tsports\tgolf\tSecond\t\thttps://x\t[]\t[]",
    "N3\tnews\tus\tThird\tMore\thttps://x\t[]\t[]",
]
BEHAVIORS = [
    "1\tU1\t11/13/2019 8:36:57 AM\tN1 N2 N1\tN3-1 N2-0",
    "2\tU1\t11/13/2019 9:36:57 PM\tN1 N2 N1\tN1-0 N2-1",
    "3\tU2\t11/14/2019 12:00:00 AM\t\tN1-0 N3-0",
]


def split(folder: Path, news: list[str] = NEWS, behaviors: list[str] = BEHAVIORS) -> Path:
    folder.mkdir()
    (folder / "news.tsv").write_text("\n".join(news) + "\n", encoding="utf-8")
    (folder / "behaviors.tsv").write_text("\n".join(behaviors) + "\n", encoding="utf-8")
    return folder


def test_a_training_split_becomes_items_events_and_slates(tmp_path: Path):
    report = import_dataset("mind", split(tmp_path / "in"), tmp_path / "out")
    assert [(log.lines_in, log.refused) for log in report.logs] == [(3, 0), (3, 0)]
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items.row(0) == ("N1", "news", "world", 'The "first" title', "An abstract")
    assert items["description"].to_list() == ["An abstract", None, "More"]
    events = pl.read_parquet(tmp_path / "out/events.parquet")
    assert events.select("user_id", "item_id", "event_type").rows() == [
        ("U1", "N1", "history_click"),
        ("U1", "N2", "history_click"),
        ("U1", "N1", "history_click"),
        ("U1", "N3", "click"),
        ("U1", "N2", "click"),
    ]
    seconds = events["timestamp"].dt.epoch("s").to_list()
    assert seconds == [None, None, None, 1573634217, 1573681017]
    slates = pl.read_parquet(tmp_path / "out/impressions.parquet")
    assert slates["shown"].to_list() == [["N3", "N2"], ["N1", "N2"], ["N1", "N3"]]
    assert slates["clicked"].to_list() == [["N3"], ["N2"], []]
    dataset, _ = load(tmp_path / "out")
    assert dataset.slates is not None
    assert dataset.slates.clicked.tolist() == [True, False, False, True, False, False]


def test_a_users_history_is_taken_once_and_the_longest_counts(tmp_path: Path):
    behaviors = [
        "1\tU1\t11/13/2019 8:36:57 AM\tN1\tN3-1",
        "2\tU1\t11/13/2019 9:36:57 AM\tN1 N2\tN3-0",
        "3\tU1\t11/13/2019 9:36:58 AM\t\tN3-0",
    ]
    import_dataset("mind", split(tmp_path / "in", behaviors=behaviors), tmp_path / "out")
    events = pl.read_parquet(tmp_path / "out/events.parquet")
    history = events.filter(pl.col("event_type") == "history_click")
    assert history["item_id"].to_list() == ["N1", "N2"]


def test_a_test_split_gives_histories_and_sets_its_slates_apart(tmp_path: Path):
    behaviors = ["1\tU1\t11/13/2019 8:36:57 AM\tN1 N2\tN3 N2", "2\tU2\t11/13/2019 8:36:57 AM\tN2\tN1"]
    report = import_dataset("mind", split(tmp_path / "in", behaviors=behaviors), tmp_path / "out")
    assert report.logs[1].reasons() == {"unlabelled_slate": 2}
    dataset, _ = load(tmp_path / "out")
    assert (len(dataset.events), dataset.slates) == (3, None)
    apart = pl.read_parquet(tmp_path / "out/quarantine/lines.parquet")
    assert apart["text"].to_list() == behaviors


def test_bad_lines_are_counted_and_kept_and_the_good_ones_imported(tmp_path: Path):
    news = [*NEWS, "N4\tnews", ""]
    behaviors = [
        *BEHAVIORS,
        *BEHAVIORS[:1],  # the same impression again
        "4\tU2\t2019-11-14\t\tN1-0",
        "5\tU2\t11/14/2019 9:00:00 AM\t\tN1-0 N2",
        "6\tU2\t11/14/2019 9:00:00 AM\t\tN1-0 N999-1",
        "7\tU2",
    ]
    report = import_dataset("mind", split(tmp_path / "in", news, behaviors), tmp_path / "out")
    assert report.logs[0].reasons() == {"empty_line": 1, "wrong_field_count": 1}
    assert report.logs[1].reasons() == {"bad_labels": 1, "bad_timestamp": 1, "wrong_field_count": 1}
    assert report.check.tables["impressions"].reasons == {
        "duplicate_impression_id": 1,
        "unknown_shown_item": 1,
    }
    lines = pl.read_parquet(tmp_path / "out/quarantine/lines.parquet")
    assert lines.filter(pl.col("reason") == "bad_timestamp")["line"].to_list() == [5]
    assert "behaviors.tsv: 8 lines, 3 refused" in report.lines()
    assert load(tmp_path / "out")[1].tables["impressions"].quarantined == 0


def test_a_missing_file_is_named(tmp_path: Path):
    (split(tmp_path / "in") / "news.tsv").unlink()
    with pytest.raises(RecsysError, match=r"no such file .*news\.tsv") as caught:
        import_dataset("mind", tmp_path / "in", tmp_path / "out")
    assert caught.value.exit_code == 66
