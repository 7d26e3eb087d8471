"""A base and what was logged since become one dataset, each thing once."""

import polars as pl
import pytest

from recsys.dataset_folder import load, write_dataset
from recsys.dataset_union import unite
from recsys.errors import RecsysError


def folder(path, items, events, impressions=None):
    path.mkdir()
    events = [(*event[:4], NOW + event[4]) for event in events]
    log = {name: [event[place] for event in events] for place, name in enumerate(EVENT)}
    types = {"user_id": type(events[0][1]), "item_id": type(events[0][2])} if events else {}
    kinds = {name: pl.Int64 if kind is int else pl.String for name, kind in types.items()}
    frame = pl.DataFrame(log, schema_overrides={"event_id": pl.String, **kinds})
    write_dataset(path, pl.DataFrame(items), frame, impressions)
    return path


NOW = 1_760_000_000.0
EVENT = ("event_id", "user_id", "item_id", "event_type", "timestamp")


def test_days_that_overlap_are_joined_and_new_words_win(tmp_path):
    base = folder(
        tmp_path / "base",
        {"item_id": ["a", "b"], "title": ["lamp", "cup"], "brand": ["x", "y"]},
        [("1", "u", "a", "click", 10.0), (None, "u", "b", "click", 11.0), (None, "u", "b", "click", 12.0)],
    )
    days = folder(
        tmp_path / "days",
        {"item_id": ["b", "c"], "title": ["tea cup", "pot"], "category": ["kitchen", None]},
        [("2", "v", "c", "click", 20.0), ("1", "u", "a", "purchase", 99.0)],
    )
    counts = unite([base, days], tmp_path / "all")
    assert counts == {"items": {"rows": 3, "repeated": 1}, "events": {"rows": 4, "repeated": 1}}
    dataset, report = load(tmp_path / "all")
    titles = dict(zip(dataset.catalogue.ids, dataset.catalogue.title, strict=True))
    assert titles == {"a": "lamp", "b": "tea cup", "c": "pot"}
    assert report.tables["events"].good == len(dataset.events) == 4
    again = unite([tmp_path / "all", days], tmp_path / "twice")
    assert again["events"] == {"rows": 4, "repeated": 2}


@pytest.mark.parametrize(("logged", "kept"), [(["7", "8"], [7, 8]), (["7", "x8"], ["7", "x8"])])
def test_whole_numbers_stay_numbers_where_all_ids_are(tmp_path, logged, kept):
    base = folder(tmp_path / "base", {"item_id": [7], "title": ["t"]}, [("1", 5, 7, "click", 1.0)])
    days = folder(
        tmp_path / "days",
        {"item_id": logged[1:], "title": ["new"]},
        [(str(place), "5", item, "click", 2.0 + place) for place, item in enumerate(logged, start=2)],
    )
    unite([base, days], tmp_path / "all")
    dataset, report = load(tmp_path / "all")
    assert list(dataset.catalogue.ids) == kept
    assert report.tables["events"].quarantined == 0
    assert len(dataset.users) == 1


def test_slates_with_flags_and_slates_with_ids_are_one_table(tmp_path):
    def slates(name, shown, clicked):
        return pl.DataFrame(
            {
                "impression_id": [name],
                "user_id": ["5"],
                "timestamp": [NOW + 5],
                "shown": [shown],
                "clicked": [clicked],
            }
        )

    base_slates = slates("s1", [7, 8], [False, True]).with_columns(pl.col("user_id").cast(pl.Int64))
    items = {"item_id": [7, 8], "title": ["t", "u"]}
    base = folder(tmp_path / "base", items, [("1", 5, 7, "click", 1.0)], base_slates)
    later = {"item_id": ["9"], "title": ["v"]}
    days = folder(tmp_path / "days", later, [("2", "5", "9", "click", 2.0)], slates("s2", ["9", "7"], ["9"]))
    unite([base, days], tmp_path / "all")
    dataset, _ = load(tmp_path / "all")
    shown = [dataset.catalogue.ids[row] for row in dataset.slates.item_index]
    assert shown == [7, 8, 9, 7]
    assert dataset.slates.clicked.tolist() == [False, True, True, False]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecsysError, match="no_input"):
        unite([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
