from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.formats import import_dataset


def one_million(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::978300760\n2::11::3::978300761\n1::11::1::978300762\n")
    (folder / "movies.dat").write_bytes(
        "10::Misérables, Les (1995)::Drama|Musical\n11::Toy Story (1995)::Animation\n".encode("latin-1")
    )
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return folder


def test_the_one_million_form(tmp_path: Path):
    report = import_dataset("movielens", one_million(tmp_path / "in"), tmp_path / "out")
    assert [log.refused for log in report.logs] == [0, 0, 0]
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items.row(0) == (10, "Misérables, Les (1995)", "Drama", ["Drama", "Musical"])
    events = pl.read_parquet(tmp_path / "out/events.parquet")
    assert events.select("user_id", "item_id", "event_type", "value").rows() == [
        (1, 10, "rating", 5.0),
        (2, 11, "rating", 3.0),
        (1, 11, "rating", 1.0),
    ]
    assert events["timestamp"].dt.epoch("s").to_list() == [978300760, 978300761, 978300762]
    users = pl.read_parquet(tmp_path / "out/users.parquet")
    assert users.rows() == [(1, "F", "<18", "K-12 student"), (2, "M", "56+", "self-employed")]
    assert load(tmp_path / "out")[0].attributes is not None


def test_bad_lines_of_the_one_million_form(tmp_path: Path):
    source = one_million(tmp_path / "in")
    with (source / "ratings.dat").open("a") as file:
        file.write("1::10::five::978300760\n1::10\n\n3::999::4::978300763\n3::10::4::5\n3::10::4::978300764")
    report = import_dataset("movielens", source, tmp_path / "out")
    assert report.logs[0].reasons() == {"bad_number": 1, "empty_line": 1, "wrong_field_count": 1}
    assert report.logs[0].lines_in == 9
    assert report.check.tables["events"].reasons == {"timestamp_out_of_range": 1, "unknown_item": 1}
    assert report.check.tables["events"].good == 4


def latest(folder: Path, ratings: str) -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,"American President, The (1995)",Comedy|Drama\n'
        "11,Nobody knows (2001),(no genres listed)\n",
        encoding="utf-8",
    )
    return folder


def test_the_latest_form(tmp_path: Path):
    source = latest(tmp_path / "in", "1,10,4.0,964982703\n2,11,0.5,964982704\n")
    import_dataset("movielens", source, tmp_path / "out")
    items = pl.read_parquet(tmp_path / "out/items.parquet")
    assert items.rows() == [
        ("10", "American President, The (1995)", "Comedy", ["Comedy", "Drama"]),
        ("11", "Nobody knows (2001)", None, None),
    ]
    dataset, _ = load(tmp_path / "out")
    assert dataset.events.value.tolist() == [4.0, 0.5]
    assert dataset.events.timestamp.tolist() == [964982703.0, 964982704.0]
    assert dataset.attributes is None


def test_bad_rows_of_the_latest_form(tmp_path: Path):
    source = latest(tmp_path / "in", "1,10,4.0,964982703\n2,11,x,964982704\n2,11,1\n2,11,1,later\n2,11,1,\n")
    counts = import_dataset("movielens", source, tmp_path / "out").check.tables["events"]
    assert counts.reasons == {"damaged_id": 1, "unreadable_timestamp": 2, "value_not_finite": 1}
    assert counts.good == 1


def test_a_folder_without_ratings_and_a_file_without_a_column(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecsysError, match=r"neither ratings\.dat nor ratings\.csv"):
        import_dataset("movielens", tmp_path / "empty", tmp_path / "out")
    source = latest(tmp_path / "in", "")
    (source / "movies.csv").write_text("movieId,name\n1,x\n")
    with pytest.raises(RecsysError, match=r"`title` is missing .*movies\.csv"):
        import_dataset("movielens", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
