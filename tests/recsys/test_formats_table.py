from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.formats import FORMATS, import_dataset

COLUMNS = {
    "items": {"item_id": "sku", "title": "name"},
    "events": {"user_id": "customer", "item_id": "sku", "timestamp": "at"},
}
PRODUCTS = pl.DataFrame({"sku": ["p1", "p2"], "name": ["One", "Two"], "price": [1.5, 2.5]})
ORDERS = pl.DataFrame(
    {"customer": ["c1", "c2", "c1"], "sku": ["p1", "p2", "p2"], "at": [1_600_000_000 + n for n in range(3)]}
)


def test_parquet_with_a_column_map(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    PRODUCTS.write_parquet(source / "products.parquet")
    ORDERS.write_parquet(source / "orders.parquet")
    files = {"items": "products.parquet", "events": "orders.parquet"}
    import_dataset("table", source, tmp_path / "out", files=files, columns=COLUMNS, event_type="purchase")
    dataset, report = load(tmp_path / "out")
    assert {dataset.event_types[kind] for kind in dataset.events.type_index} == {"purchase"}
    assert dataset.catalogue.title == ["One", "Two"]
    assert report.tables["events"].good == 3
    assert pl.read_parquet(tmp_path / "out/items.parquet")["price"].to_list() == [1.5, 2.5]


def test_csv_with_another_separator_and_bad_rows(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    PRODUCTS.write_csv(source / "items.tsv", separator="\t")
    (source / "events.csv").write_text(
        "customer;sku;at;event_type\nc1;p1;2020-09-13;view\nc2;p9;2020-09-13;view\nc2;p2;never;view\nc2;p2\n"
    )
    report = import_dataset("table", source, tmp_path / "out", columns=COLUMNS, separator=";")
    counts = report.check.tables["events"]
    assert counts.rows_in == counts.good + counts.quarantined == 4
    assert counts.reasons == {"damaged_id": 1, "unknown_item": 1, "unreadable_timestamp": 1}
    assert json.loads(json.dumps(report.to_dict()))["tables"]["events"]["good"] == 1
    assert pl.read_parquet(tmp_path / "out/quarantine/events.parquet")["timestamp"].to_list()[1] == "never"


def test_a_mapped_column_that_is_missing_is_named_with_its_file(tmp_path: Path):
    PRODUCTS.write_csv(tmp_path / "items.csv")
    ORDERS.drop("at").write_csv(tmp_path / "events.csv")
    with pytest.raises(RecsysError, match=r"`at` is missing; found customer, sku .*events\.csv") as caught:
        import_dataset("table", tmp_path, tmp_path / "out", columns=COLUMNS)
    assert caught.value.exit_code == 65


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("parchment", {}, "formats are mind, movielens, amazon, table"),
        ("mind", {"columns": {}}, "`mind` has no option `columns`"),
        ("table", {"colums": {}}, "`table` has no option `colums`"),
    ],
)
def test_an_unknown_format_or_option_is_a_usage_error(
    tmp_path: Path, format: str, options: dict[str, object], message: str
):
    with pytest.raises(RecsysError, match=message) as caught:
        import_dataset(format, tmp_path, tmp_path / "out", **options)
    assert caught.value.exit_code == 64


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_source_is_no_input_and_writing_over_it_is_refused(tmp_path: Path, format: str):
    with pytest.raises(RecsysError) as caught:
        import_dataset(format, tmp_path / "nowhere", tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == ("no_input", 66)
    with pytest.raises(RecsysError) as caught:
        import_dataset(format, tmp_path, tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("usage", 64)


def test_an_import_without_items_is_refused(tmp_path: Path):
    PRODUCTS.clear().write_parquet(tmp_path / "items.parquet")
    ORDERS.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(RecsysError) as caught:
        import_dataset("table", tmp_path, tmp_path / "out", columns=COLUMNS, event_type="view")
    assert caught.value.code == "empty_catalogue"
    assert not (tmp_path / "out").exists()
