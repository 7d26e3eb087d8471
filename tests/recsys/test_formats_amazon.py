from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.formats import import_dataset

SECONDS = 1_400_000_000
REVIEW_2014 = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": SECONDS, "summary": "x"}
REVIEW_2023 = {
    "user_id": "A1",
    "asin": "V1",
    "parent_asin": "B1",
    "rating": 4.0,
    "timestamp": SECONDS * 1000 + 250,
}
META_2014 = {
    "asin": "B1",
    "title": "Tea",
    "description": "Green",
    "categories": [["Grocery", "Tea"], ["Other"]],
}
META_2018 = {
    "asin": "B1",
    "title": "Tea",
    "description": ["Green", "leaf"],
    "category": ["Grocery", "Tea", "Loose"],
}
META_2023 = {
    "parent_asin": "B1",
    "title": "Tea",
    "description": ["Green", "leaf"],
    "main_category": "Grocery",
    "categories": ["Grocery", "Tea", "Loose"],
}


def as_lines(*records: object) -> str:
    return "".join(line + "\n" for line in (r if isinstance(r, str) else json.dumps(r) for r in records))


def folder(path: Path, reviews: str, metadata: str) -> Path:
    path.mkdir()
    (path / "Grocery.json").write_text(reviews)
    (path / "meta_Grocery.json").write_text(metadata)
    return path


@pytest.mark.parametrize(
    ("review", "meta", "description", "seconds", "stars"),
    [
        (REVIEW_2014, META_2014, "Green", SECONDS, 5.0),
        (REVIEW_2014, META_2018, "Green leaf", SECONDS, 5.0),
        (REVIEW_2023, META_2023, "Green leaf", SECONDS + 0.25, 4.0),
    ],
    ids=["2014", "2018", "2023"],
)
def test_the_field_names_of_each_year(
    tmp_path: Path, review: object, meta: object, description: str, seconds: float, stars: float
):
    import_dataset("amazon", folder(tmp_path / "in", as_lines(review), as_lines(meta)), tmp_path / "out")
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items.rows() == [("B1", "Tea", description, "Grocery", "Tea")]
    dataset, _ = load(tmp_path / "out")
    assert dataset.users.values.to_list() == ["A1"]
    assert {dataset.event_types[kind] for kind in dataset.events.type_index} == {"review"}
    assert dataset.events.timestamp.tolist() == [seconds]
    assert dataset.events.value.tolist() == [stars]


def test_metadata_of_2014_as_python_literals_is_read_but_never_run(tmp_path: Path):
    marker = tmp_path / "ran"
    metadata = as_lines(
        repr(META_2014), f"__import__('pathlib').Path({str(marker)!r}).touch()", repr({"asin": "B2"})
    )
    report = import_dataset(
        "amazon", folder(tmp_path / "in", as_lines(REVIEW_2014), metadata), tmp_path / "out"
    )
    assert not marker.exists()
    assert report.logs[0].reasons() == {"damaged_json": 1}
    assert pl.read_parquet(tmp_path / "out/items.parquet")["title"].to_list() == ["Tea", None]
    assert report.check.tables["items"].warnings == {"empty_text": 1}


def test_gzip_is_read_and_a_damaged_one_refused(tmp_path: Path):
    source = folder(tmp_path / "in", "", as_lines(META_2014))
    (source / "Grocery.json").unlink()
    packed = gzip.compress(as_lines(*[{**REVIEW_2014, "reviewerID": f"A{n}"} for n in range(500)]).encode())
    (source / "Grocery.jsonl.gz").write_bytes(packed)
    assert import_dataset("amazon", source, tmp_path / "out").check.tables["events"].good == 500
    (source / "Grocery.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RecsysError, match=r"input_invalid.*Grocery\.jsonl\.gz"):
        import_dataset("amazon", source, tmp_path / "out")


BAD_REVIEWS = {
    "damaged_json": ['{"reviewerID": "A1", "asin": ', "[1, 2]", "5", "[" * 100_000],
    "damaged_text": ['{"reviewerID": "\\ud800", "asin": "B1", "unixReviewTime": 1400000000}'],
    "missing_user_id": [{**REVIEW_2014, "reviewerID": None}, {**REVIEW_2014, "reviewerID": ["A"]}],
    "missing_item_id": [{"reviewerID": "A1", "unixReviewTime": SECONDS}],
    "missing_timestamp": [{"reviewerID": "A1", "asin": "B1"}],
    "bad_timestamp": [{**REVIEW_2014, "unixReviewTime": "soon"}, {**REVIEW_2014, "unixReviewTime": 10**400}],
    "bad_value": [
        {**REVIEW_2014, "overall": "five"},
        '{"reviewerID":"A","asin":"B1","overall":NaN,"unixReviewTime":1}',
    ],
    "empty_line": ["", "  "],
}


@pytest.mark.parametrize("reason", BAD_REVIEWS)
def test_bad_lines_are_counted_and_the_good_ones_imported(tmp_path: Path, reason: str):
    good = [{**REVIEW_2014, "unixReviewTime": SECONDS + n} for n in range(5)]
    lines = as_lines(*good[:2], *BAD_REVIEWS[reason], *good[2:])
    report = import_dataset("amazon", folder(tmp_path / "in", lines, as_lines(META_2014)), tmp_path / "out")
    assert report.logs[1].reasons() == {reason: len(BAD_REVIEWS[reason])}
    assert report.logs[1].lines_in == 5 + len(BAD_REVIEWS[reason])
    assert report.check.tables["events"].good == 5
    kept = pl.read_parquet(tmp_path / "out/quarantine/lines.parquet")
    assert kept["line"].to_list() == [3 + n for n in range(len(BAD_REVIEWS[reason]))]
    assert kept["text"].str.len_chars().max() <= 2_000  # type: ignore[operator]


def test_bytes_that_are_not_utf8_cost_their_line_only(tmp_path: Path):
    source = folder(tmp_path / "in", "", as_lines(META_2014))
    (source / "Grocery.json").write_bytes(as_lines(REVIEW_2014).encode() + b'{"reviewerID": "\xff"}\n')
    assert import_dataset("amazon", source, tmp_path / "out").logs[1].reasons() == {"damaged_text": 1}


def test_items_that_come_twice_and_reviews_of_unknown_items_go_to_the_quarantine(tmp_path: Path):
    reviews = as_lines(REVIEW_2014, {**REVIEW_2014, "asin": "B9"})
    report = import_dataset(
        "amazon", folder(tmp_path / "in", reviews, as_lines(META_2014, META_2018)), tmp_path / "out"
    )
    assert report.check.tables["items"].reasons == {"duplicate_item_id": 1}
    assert report.check.tables["events"].reasons == {"unknown_item": 1}
    assert pl.read_parquet(tmp_path / "out/quarantine/events.parquet")["item_id"].to_list() == ["B9"]


def test_a_file_that_is_not_of_the_format_is_refused_and_nothing_written(tmp_path: Path):
    source = folder(tmp_path / "in", "a,b\n1,2\n3,4\n", as_lines(META_2014))
    with pytest.raises(RecsysError, match=r"most of its 3 lines are not `amazon`") as caught:
        import_dataset("amazon", source, tmp_path / "out")
    assert caught.value.exit_code == 65
    assert not (tmp_path / "out").exists()


def test_files_can_be_named(tmp_path: Path):
    source = folder(tmp_path / "in", as_lines(REVIEW_2014), as_lines(META_2014))
    (source / "Grocery.json").rename(source / "reviews_5.json")
    (source / "other.json").write_text("")
    with pytest.raises(RecsysError, match="name it: `reviews`"):
        import_dataset("amazon", source, tmp_path / "out")
    report = import_dataset("amazon", source, tmp_path / "out", reviews="reviews_5.json")
    assert report.check.tables["events"].good == 1
