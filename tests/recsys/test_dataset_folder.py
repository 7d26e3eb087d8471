from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.dataset_folder import load, read_tables, write_dataset
from recsys.errors import RecsysError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
START = 1_600_000_000
ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "year": [1, 2, 3]})
EVENTS = pl.DataFrame(
    {
        "user_id": ["u", "v", "u"],
        "item_id": ["a", "b", "c"],
        "event_type": ["click", "view", "click"],
        "timestamp": [float(START), None, START + 0.25],
    }
)
SLATES = pl.DataFrame(
    {
        "impression_id": ["s", "t"],
        "user_id": ["u", "v"],
        "timestamp": [START, START],
        "shown": [["a", "b"], ["c"]],
        "clicked": [["b"], []],
        "position": [[2, 1], [7]],
        "propensity": [[0.5, 0.25], [1.0]],
    }
)
USERS = pl.DataFrame({"user_id": ["u", "w"], "age": ["18-24", "56+"]})


def refusal(folder: Path, **options: object) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        load(folder, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_written_is_what_is_loaded(tmp_path: Path):
    write_dataset(tmp_path / "world", ITEMS, EVENTS, SLATES, USERS)
    dataset, report = load(tmp_path / "world")
    assert dataset.name == "world"
    assert dataset.users.values.to_list() == ["u", "v", "w"]
    assert dataset.events.timestamp.tolist() == [START - 1, START, START + 0.25]
    assert dataset.catalogue.title == ["A", "B", "C"]
    assert dataset.attributes is not None
    assert dataset.attributes["age"].to_list() == ["18-24", "56+"]
    assert dataset.slates is not None
    assert dataset.slates.clicked.tolist() == [False, True, False]
    assert dataset.slates.position.tolist() == [2, 1, 7]
    assert dataset.slates.propensity.tolist() == [0.5, 0.25, 1.0]
    assert [counts.quarantined for counts in report.tables.values()] == [0, 0, 0, 0]


def test_moments_are_stored_as_datetime_utc_and_tables_not_given_are_gone(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS, SLATES, USERS)
    write_dataset(tmp_path, ITEMS, EVENTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "items.parquet"]
    assert pq.read_schema(tmp_path / "events.parquet").field("timestamp").type == pa.timestamp("us", "UTC")
    assert read_tables(tmp_path)["events"].frame.height == 3


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS)
    before = (tmp_path / "items.parquet").read_bytes()
    (tmp_path / "events.parquet").unlink()
    (tmp_path / "events.parquet").mkdir()  # cannot be replaced by a file
    with pytest.raises(RecsysError) as caught:
        write_dataset(tmp_path, ITEMS, EVENTS)
    assert caught.value.exit_code == 74
    assert (tmp_path / "items.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "items.parquet"]


def test_a_csv_folder_gives_the_same_dataset(tmp_path: Path):
    write_dataset(tmp_path / "world", ITEMS, EVENTS, SLATES, USERS)
    folder = tmp_path / "csv" / "world"
    folder.mkdir(parents=True)
    ITEMS.write_csv(folder / "items.csv")
    EVENTS.with_columns(timestamp=pl.Series(["2020-09-13T12:26:40Z", None, f"{START}.25"])).write_csv(
        folder / "events.csv"
    )
    (folder / "impressions.csv").write_text(
        "impression_id,user_id,timestamp,shown,clicked,position,propensity\n"
        's,u,2020-09-13 12:26:40,"[""a"", ""b""]",b,"[2, 1]",0.5|0.25\n'
        "t,v,2020-09-13T14:26:40+02:00,c,[],7,1\n"
    )
    USERS.write_csv(folder / "users.csv", include_bom=True)
    expected, _ = load(tmp_path / "world")
    found, report = load(folder)
    assert [counts.quarantined for counts in report.tables.values()] == [0, 0, 0, 0]
    assert found.events.timestamp.tolist() == expected.events.timestamp.tolist()
    assert found.users.values.to_list() == expected.users.values.to_list()
    assert found.slates is not None
    assert expected.slates is not None
    for name in ("user_index", "timestamp", "item_index", "clicked", "position", "propensity"):
        np.testing.assert_array_equal(getattr(found.slates, name), getattr(expected.slates, name))


def test_bad_csv_cells_and_rows_go_to_the_quarantine_as_they_were(tmp_path: Path):
    ITEMS.write_csv(tmp_path / "items.csv")
    (tmp_path / "events.csv").write_bytes(
        b"user_id,item_id,event_type,timestamp,value\n"
        b"u,a,click,1600000000,1.5\n"
        b"u,b,click,yesterday,1\n"
        b"u,b,click,1600000000,much\n"
        b"u,b,click\n"
        b"u,b,click,1600000000,1,2,3\n"
        b"\xff,b,click,1600000000,1\n"
        b"007,c,click,2020-09-13,\n"
    )
    dataset, report = load(tmp_path, max_bad=1.0, quarantine_to=tmp_path / "bad")
    assert dataset.users.values.to_list() == ["007", "u"]
    assert report.tables["events"].good == 2
    assert report.tables["events"].reasons == {
        "damaged_id": 3,
        "unreadable_timestamp": 1,
        "value_not_finite": 1,
    }
    bad = pl.read_parquet(tmp_path / "bad" / "events.parquet")
    assert bad["row"].to_list() == [1, 2, 3, 4, 5]
    assert bad["timestamp"][0] == "yesterday"
    assert bad["value"][1] == "much"


def test_boolean_clicks_in_csv(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS)
    (tmp_path / "impressions.csv").write_text(
        'impression_id,user_id,timestamp,shown,clicked\ns,u,1600000000,a|b,"[false,true]"\nt,v,1600000000,"[""c""]",true\n'
    )
    slates = load(tmp_path)[0].slates
    assert slates is not None
    assert slates.clicked.tolist() == [False, True, True]


def test_unreadable_lists_in_csv_are_quarantined(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS)
    (tmp_path / "impressions.csv").write_text(
        "impression_id,user_id,timestamp,shown,clicked\n"
        's,u,1600000000,"[""a""",a\n'
        't,u,1600000000,"[[""a""]]",a\n'
        "x,u,1600000000,a,[a\n"
        "y,u,1600000000,a,a\n"
    )
    counts = load(tmp_path, max_bad=1.0)[1].tables["impressions"]
    assert (counts.rows_in, counts.good, counts.quarantined) == (4, 1, 3)


def test_too_many_bad_rows_are_refused_after_they_are_set_apart(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS.with_columns(item_id=pl.Series(["a", "b", "nowhere"])))
    error = refusal(tmp_path, quarantine_to=tmp_path / "bad")
    assert (error.code, error.exit_code) == ("too_many_bad_rows", 65)
    assert "events: 1 of 3 rows are bad (33.3%, at most 5.0% allowed): unknown_item 1" in error.what
    assert pl.read_parquet(tmp_path / "bad" / "events.parquet")["item_id"].to_list() == ["nowhere"]
    dataset, report = load(tmp_path, max_bad=0.34)
    assert len(dataset.events) == 2
    assert report.tables["events"].quarantined == 1


def test_milliseconds_are_named_in_the_error(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS)
    EVENTS.with_columns(pl.col("timestamp") * 1000).write_parquet(tmp_path / "events.parquet")
    assert "looks like milliseconds" in refusal(tmp_path).what


def test_an_empty_catalogue_is_refused_and_an_empty_log_is_not(tmp_path: Path):
    write_dataset(tmp_path / "a", ITEMS.clear(), EVENTS.clear())
    error = refusal(tmp_path / "a")
    assert (error.code, error.exit_code) == ("empty_catalogue", 65)
    write_dataset(tmp_path / "b", ITEMS, EVENTS.clear(), SLATES.clear(), USERS.clear())
    dataset, _ = load(tmp_path / "b")
    assert (len(dataset.catalogue), len(dataset.events), len(dataset.users), dataset.slates) == (
        3,
        0,
        0,
        None,
    )


def test_missing_folder_and_missing_files(tmp_path: Path):
    error = refusal(tmp_path / "nowhere")
    assert (error.code, error.exit_code) == ("no_input", 66)
    ITEMS.write_parquet(tmp_path / "items.parquet")
    error = refusal(tmp_path)
    assert (error.code, error.exit_code) == ("input_invalid", 65)
    assert "events.parquet" in error.what


def test_two_files_for_one_table_are_refused(tmp_path: Path):
    write_dataset(tmp_path, ITEMS, EVENTS)
    ITEMS.write_csv(tmp_path / "items.csv")
    assert "both items.parquet and items.csv" in refusal(tmp_path).what


@pytest.mark.data
@pytest.mark.parametrize("name", ["beauty", "toys", "mind5k", "ml1m"])
def test_the_real_sets_are_good_throughout(name: str):
    if not (SHARED / name).is_dir():
        pytest.skip("no shared data")
    dataset, report = load(SHARED / name)
    assert all(counts.rows_in == counts.good for counts in report.tables.values())
    assert len(dataset.events) == report.tables["events"].rows_in
