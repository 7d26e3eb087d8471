"""Damaged files: each gives exit 65 and the file's name, or is read to rows that are all accounted for."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import parquet
from recsys.dataset_folder import load, write_dataset
from recsys.errors import RecsysError

ITEMS = pl.DataFrame({"item_id": [f"i{n}" for n in range(50)], "title": [f"title {n}" for n in range(50)]})
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 20}" for n in range(400)],
        "item_id": [f"i{n % 50}" for n in range(400)],
        "event_type": ["click"] * 400,
        "timestamp": [1_600_000_000 + n for n in range(400)],
    }
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path, ITEMS, EVENTS)
    return tmp_path


def assert_refused(folder: Path, file: str = "events.parquet") -> None:
    with pytest.raises(RecsysError) as caught:
        load(folder)
    assert (caught.value.code, caught.value.exit_code) == ("input_invalid", 65)
    assert file in caught.value.where
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(folder: Path, share: float):
    path = folder / "events.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert_refused(folder)


@pytest.mark.parametrize("content", [b"", b"\n", b"user_id,item_id\nu,i\n", b"PAR1PAR1", b"\0" * 4096])
def test_a_file_that_is_not_parquet_is_refused(folder: Path, content: bytes):
    (folder / "events.parquet").write_bytes(content)
    assert_refused(folder)


@pytest.mark.parametrize("content", [b"", b"  \n"])
def test_an_empty_csv_file_is_refused(folder: Path, content: bytes):
    (folder / "users.csv").write_bytes(content)
    assert_refused(folder, "users.csv")


def test_a_flipped_bit_in_the_pages_is_always_noticed(folder: Path):
    path = folder / "events.parquet"
    data = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(3)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    size = chunk.total_compressed_size - (chunk.data_page_offset - start)
    start = chunk.data_page_offset
    dice = random.Random(7)
    for _ in range(40):
        at = start + size - 1 - dice.randrange(size // 2)
        damaged = bytearray(data)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(bytes(damaged))
        assert_refused(folder)


def test_no_mutant_brings_anything_but_a_refusal_or_an_account(folder: Path):
    path = folder / "events.parquet"
    data = path.read_bytes()
    dice = random.Random(11)
    for _ in range(200):
        mutant = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        if dice.random() < 0.2:
            del mutant[dice.randrange(len(mutant)) :]
        path.write_bytes(bytes(mutant))
        try:
            _, report = load(folder, max_bad=1.0)
        except RecsysError as error:
            assert error.code in ("input_invalid", "too_many_bad_rows")  # noqa: PT017
        else:
            counts = report.tables["events"]
            assert counts.rows_in == counts.good + counts.quarantined


def test_text_that_is_not_utf8_is_quarantined_row_by_row(folder: Path):
    users = [name.encode() for name in EVENTS["user_id"]]
    users[3], users[5] = b"\xff\xfe", b"\xed\xa0\x80"  # the second is a lone surrogate
    table = EVENTS.to_arrow().set_column(0, "user_id", pa.array(users, pa.binary()).view(pa.string()))
    pq.write_table(table, folder / "events.parquet")
    _, report = load(folder)
    assert report.tables["events"].reasons == {"damaged_id": 2}
    assert report.tables["events"].good == 398


def test_lists_with_text_that_is_not_utf8_are_quarantined(folder: Path):
    shown = pa.array([b"i1", b"i2", b"i\xff"], pa.binary()).view(pa.string())
    table = pa.table(
        {
            "impression_id": [1, 2, 3],
            "user_id": ["u1", "u2", "u3"],
            "timestamp": [1_600_000_000] * 3,
            "shown": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), shown),
        }
    )
    pq.write_table(table, folder / "impressions.parquet")
    _, report = load(folder, max_bad=0.5)
    assert report.tables["impressions"].reasons == {"unknown_shown_item": 1}


def test_an_empty_row_group_and_an_unknown_column_do_no_harm(folder: Path):
    table = EVENTS.with_columns(whatever=pl.lit("x")).to_arrow()
    with pq.ParquetWriter(folder / "events.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)
    assert len(load(folder)[0].events) == 400


def test_a_repeated_column_is_refused(folder: Path):
    table = EVENTS.to_arrow().append_column("user_id", pa.array([1] * 400))
    pq.write_table(table, folder / "events.parquet")
    assert_refused(folder)


def test_a_table_larger_than_memory_allows_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "MAX_TABLE_BYTES", 2**20)
    bomb = EVENTS.with_columns(item_id=pl.lit("x" * 100_000))  # 40 MB that is 100 kB in the file
    bomb.write_parquet(folder / "events.parquet")
    assert (folder / "events.parquet").stat().st_size < 2**17
    assert_refused(folder)
