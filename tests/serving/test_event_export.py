import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from recsys.dataset_folder import load
from recsys.errors import EXIT_NO_INPUT, EXIT_TEMPORARY, EXIT_USAGE, RecsysError
from serving.commands.events import events
from serving.commands.opening import LOG_NAME
from serving.events.export import DAY_S, GRACE_S, export, last_finished_day
from serving.events.log import Record
from serving.events.parsing import check_events, raw_events, record_of
from serving.events.sealed_folder import MANIFEST, seal, verify_sealed
from serving.events.sqlite_log import SqliteLog
from serving.messages import ImpressionEvent, InteractionEvent, ItemEvent

ROOT = Path(__file__).parents[2]
DAY = date(2026, 3, 10)
MIDNIGHT = datetime(2026, 3, 10, tzinfo=UTC).timestamp()
NOON = MIDNIGHT + DAY_S / 2
NEXT_DAY = MIDNIGHT + DAY_S + 3600
TABLES = ("items.parquet", "events.parquet", "impressions.parquet")


def click(event_id: str, item: str | int = "a", moment: float = NOON, **more: Any) -> InteractionEvent:
    fields = {"user_id": "u1", "event_type": "click", **more}
    return InteractionEvent(event_id=event_id, item_id=item, timestamp=moment, **fields)


def shown(event_id: str, items: list[str | int], moment: float = NOON, **more: Any) -> ImpressionEvent:
    return ImpressionEvent(event_id=event_id, shown=items, timestamp=moment, **{"user_id": "u1", **more})


def item(item_id: str | int, title: str = "A lamp", moment: float = NOON, **more: Any) -> ItemEvent:
    name = more.pop("event_id", f"item-{item_id}")
    return ItemEvent(event_id=name, item_id=item_id, title=title, timestamp=moment, **more)


def stored(folder: Path, *batch: Any, ingest_ts: float | None = None) -> SqliteLog:
    """A log with these events, each of which came in when it happened, unless said otherwise."""
    log = SqliteLog(folder / "log.db", durability="os")
    log.append([record_of(event, event.timestamp if ingest_ts is None else ingest_ts) for event in batch])
    return log


def exported(log: SqliteLog, out: Path, now: float = NEXT_DAY, **options: Any) -> dict[str, Any]:
    with closing(log):
        return export(log, out, now=now, **options)


def read(out: Path, table: str) -> pl.DataFrame:
    return pl.read_parquet(out / f"{table}.parquet")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def refusal(call, *arguments, **options) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments, **options)
    return caught.value


def test_export_is_a_dataset_that_loads(tmp_path: Path):
    catalogue = [item(name, f"Title {name}", category="lamps") for name in "abcd"]
    slates = [shown(f"s{n}", ["a", "b", "c"], NOON + n, propensity=[0.5, 0.25, 0.125]) for n in range(10)]
    clicks = [click(f"c{n}", "b", NOON + n + 0.5, impression_id=f"s{n}", position=2) for n in range(5)]
    purchase = click("p", "b", NOON + 99, event_type="purchase", value=12.5, impression_id="s0")

    counts = exported(stored(tmp_path, *catalogue, *slates, *clicks, purchase), tmp_path / "out")
    dataset, report = load(tmp_path / "out", max_bad=0.0)

    assert counts["changed"]
    assert {key: counts[key] for key in ("records", "events", "impressions", "items", "clicks_joined")} == {
        "records": 20,
        "events": 6,
        "impressions": 10,
        "items": 4,
        "clicks_joined": 5,
    }
    assert all(not table.warnings for table in report.tables.values())
    assert len(dataset.catalogue) == 4
    assert len(dataset.events) == 6
    assert dataset.slates is not None
    assert dataset.slates.clicked.sum() == 5
    assert dataset.slates.position.tolist() == [1, 2, 3] * 10
    assert dataset.slates.propensity.tolist() == [0.5, 0.25, 0.125] * 10


def test_columns_are_those_of_the_layout(tmp_path: Path):
    exported(stored(tmp_path, item(1), shown("s", [1], arm="b"), click("c", 1)), tmp_path / "out")

    moment = pl.Datetime("us", "UTC")
    assert dict(read(tmp_path / "out", "items").schema) == {
        "item_id": pl.Int64,
        "title": pl.String,
        "description": pl.String,
        "category": pl.String,
        "subcategory": pl.String,
        "created_at": moment,
    }
    assert dict(read(tmp_path / "out", "events").schema) == {
        "event_id": pl.String,
        "user_id": pl.String,
        "item_id": pl.Int64,
        "event_type": pl.String,
        "timestamp": moment,
        "value": pl.Float64,
        "impression_id": pl.String,
        "position": pl.Int32,
    }
    assert dict(read(tmp_path / "out", "impressions").schema) == {
        "impression_id": pl.String,
        "user_id": pl.String,
        "timestamp": moment,
        "shown": pl.List(pl.Int64),
        "propensity": pl.List(pl.Float64),
        "arm": pl.String,
        "clicked": pl.List(pl.Boolean),
        "position": pl.List(pl.Int64),
    }


def test_pages_carry_checksums_that_find_a_flipped_bit(tmp_path: Path):
    out = tmp_path / "out"
    exported(stored(tmp_path, *(click(f"c{n}", f"item-{n * 7919}") for n in range(3000))), out)
    path = out / "events.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 8
    path.write_bytes(data)

    with pytest.raises(OSError, match="CRC"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        file.read()
    error = refusal(verify_sealed, out)
    assert error.code == "digest_mismatch"
    assert "events.parquet" in error.where


def test_manifest_names_every_file(tmp_path: Path):
    exported(stored(tmp_path, item("a"), click("c")), tmp_path / "out")

    manifest = verify_sealed(tmp_path / "out")

    assert set(manifest["files"]) == set(TABLES)
    for name, described in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert described == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert (manifest["until"], manifest["form"], manifest["format_version"]) == ("2026-03-10", "dataset", 1)


def test_clicks_find_the_place_that_was_clicked(tmp_path: Path):
    batch = [
        shown("s", ["a", "b", "a", "c"]),
        click("named place", "a", impression_id="s", position=3),
        click("no place", "c", impression_id="s"),
        click("wrong place", "b", impression_id="s", position=4),
        click("not shown", "z", impression_id="s", position=1),
        click("no such slate", "a", impression_id="later"),
        click("no slate", "a"),
        click("no click", "a", event_type="view", impression_id="s", position=1),
    ]

    counts = exported(stored(tmp_path, *batch), tmp_path / "out")

    assert read(tmp_path / "out", "impressions")["clicked"].to_list() == [[False, True, True, True]]
    names = ("clicks_joined", "clicks_not_shown", "clicks_unjoined", "clicks_unnamed")
    assert [counts[name] for name in names] == [3, 1, 1, 1]
    assert counts["events"] == 7


def test_click_without_a_place_counts_wherever_its_item_stood(tmp_path: Path):
    exported(
        stored(tmp_path, shown("s", ["a", "b", "a"]), click("c", "a", impression_id="s")), tmp_path / "out"
    )

    assert read(tmp_path / "out", "impressions")["clicked"].to_list() == [[True, False, True]]


def test_late_impression_takes_in_clicks_that_were_exported_before(tmp_path: Path):
    log = stored(tmp_path, click("c", "a", NOON, impression_id="s"))
    first = export(log, tmp_path / "out", now=NEXT_DAY)
    log.append([record_of(shown("s", ["a"], NOON - 1), NOON + DAY_S)])
    second = exported(log, tmp_path / "out", now=NEXT_DAY + DAY_S)

    assert (first["clicks_unjoined"], first["clicks_joined"], first["late"]) == (1, 0, 0)
    assert (second["clicks_unjoined"], second["clicks_joined"], second["late"]) == (0, 1, 1)
    assert read(tmp_path / "out", "impressions")["clicked"].to_list() == [[True]]
    assert read(tmp_path / "out", "events")["event_id"].to_list() == ["c"]


def test_last_words_about_an_item_count(tmp_path: Path):
    batch = [
        item("a", "newest", NOON + 2, event_id="3", description="d"),
        item("a", "first", NOON, event_id="1"),
        item("a", "middle", NOON + 1, event_id="2", category="x", created_at=1e9),
        item("b", "other", NOON, event_id="4", created_at=1e9),
    ]

    counts = exported(stored(tmp_path, *batch), tmp_path / "out")

    items = read(tmp_path / "out", "items")
    assert items.rows()[0] == ("a", "newest", "d", None, None, None)
    assert items["created_at"].to_list()[1] == datetime.fromtimestamp(1e9, UTC)
    assert (counts["items"], counts["older_item_words"], counts["records"]) == (2, 2, 4)


def test_ids_stay_numbers_where_all_are_and_become_text_where_some_are(tmp_path: Path):
    whole = exported(stored(tmp_path, item(7), shown("s", [7, -(2**63)], user_id=2**63 - 1)), tmp_path / "a")
    assert whole["mixed_ids"] == []
    assert read(tmp_path / "a", "impressions")["shown"].to_list() == [[7, -(2**63)]]
    assert read(tmp_path / "a", "impressions")["user_id"].to_list() == [2**63 - 1]

    log = SqliteLog(tmp_path / "log.db")
    log.append([record_of(click("c", "007", user_id=5, impression_id="s"), NOON)])
    mixed = exported(log, tmp_path / "b")
    assert mixed["mixed_ids"] == ["item_id"]
    assert read(tmp_path / "b", "items")["item_id"].to_list() == ["7"]
    assert read(tmp_path / "b", "events")["item_id"].to_list() == ["007"]
    assert read(tmp_path / "b", "events")["user_id"].to_list() == [5]
    load(tmp_path / "b", max_bad=1.0)


def test_awkward_text_and_moments_come_back_exactly(tmp_path: Path):
    names = ["\u202e", "e\u0301", "\u00e9", "\U0010ffff", '"\\\n', " ", "=cmd()", "../x", "x" * 256]
    moments = [NOON + n / 7 for n in range(len(names))]
    batch = [click(f"c{name[:99]}", name, at, user_id=name) for name, at in zip(names, moments, strict=True)]

    exported(stored(tmp_path, *batch), tmp_path / "out")

    rows = read(tmp_path / "out", "events")
    assert rows["item_id"].to_list() == rows["user_id"].to_list() == names
    assert rows["event_id"].to_list() == [f"c{name[:99]}" for name in names]
    assert rows["timestamp"].dt.epoch("us").to_list() == [round(at * 1e6) for at in moments]


def test_empty_log_gives_empty_tables(tmp_path: Path):
    counts = exported(stored(tmp_path), tmp_path / "out")

    assert counts["records"] == 0
    assert [read(tmp_path / "out", name.split(".")[0]).height for name in TABLES] == [0, 0, 0]
    assert refusal(load, tmp_path / "out").code == "empty_catalogue"


def test_only_finished_days_are_sealed(tmp_path: Path):
    log = stored(tmp_path, *(click(f"c{n}", moment=MIDNIGHT + n * DAY_S / 2) for n in range(8)))
    now = MIDNIGHT + 3.5 * DAY_S

    counts = export(log, tmp_path / "a", now=now)
    assert (counts["until"], counts["events"]) == ("2026-03-12", 6)
    assert export(log, tmp_path / "b", until=DAY, now=now)["events"] == 2
    assert export(log, tmp_path / "c", unfinished=True, now=now)["events"] == 8
    error = refusal(export, log, tmp_path / "d", until=date(2026, 3, 13), now=now)
    log.close()

    assert (error.code, error.exit_code) == ("day_not_finished", EXIT_TEMPORARY)
    assert "2026-03-14 00:01 UTC" in error.what
    assert not (tmp_path / "d").exists()


def test_a_day_is_finished_a_minute_after_it_is_over():
    assert last_finished_day(MIDNIGHT + DAY_S + GRACE_S - 1) == date(2026, 3, 9)
    assert last_finished_day(MIDNIGHT + DAY_S + GRACE_S) == DAY


def test_same_days_again_are_the_same_bytes_and_change_nothing(tmp_path: Path):
    log = stored(tmp_path, item("a"), shown("s", ["a"]), click("c", impression_id="s"))
    first = export(log, tmp_path / "out", until=DAY, now=NEXT_DAY)
    before, inode = contents(tmp_path / "out"), (tmp_path / "out" / MANIFEST).stat().st_ino
    log.append([record_of(click("later", moment=NEXT_DAY), NEXT_DAY)])

    second = export(log, tmp_path / "out", until=DAY, now=NEXT_DAY + 30 * DAY_S)
    elsewhere = exported(log, tmp_path / "elsewhere", until=DAY, now=NEXT_DAY + 30 * DAY_S)

    assert (first["changed"], second["changed"], elsewhere["changed"]) == (True, False, True)
    assert contents(tmp_path / "out") == contents(tmp_path / "elsewhere") == before
    assert (tmp_path / "out" / MANIFEST).stat().st_ino == inode


def test_every_event_is_exported_once_over_many_nights(tmp_path: Path):
    log = stored(tmp_path)
    draws = random.Random(0)
    seen: set[str] = set()
    for day in range(4):
        came = [MIDNIGHT + day * DAY_S + draws.uniform(0, DAY_S) for _ in range(50)]
        log.append(
            [
                record_of(click(f"{day}-{n}", moment=at - draws.uniform(0, 5) * DAY_S), at)
                for n, at in enumerate(came)
            ]
        )
        counts = export(log, tmp_path / "out", now=MIDNIGHT + (day + 1) * DAY_S + 3600)
        found = read(tmp_path / "out", "events")["event_id"].to_list()
        assert len(found) == len(set(found)) == counts["records"] == 50 * (day + 1)
        assert seen < set(found)
        seen = set(found)
    log.close()
    assert counts["late"] > 0


def test_damaged_export_is_made_again(tmp_path: Path):
    log = stored(tmp_path, item("a"), click("c"))
    export(log, tmp_path / "out", now=NEXT_DAY)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "events.parquet").write_bytes(b"PAR1")

    counts = exported(log, tmp_path / "out")

    assert counts["changed"]
    assert contents(tmp_path / "out") == before


def test_jsonl_holds_the_events_as_they_can_be_sent_again(tmp_path: Path):
    batch = [item("a"), shown("s", ["a", 7], NOON + 1), click("c", 7, NOON - 1, impression_id="s")]
    counts = exported(stored(tmp_path, *batch), tmp_path / "out", jsonl=True)

    data = (tmp_path / "out" / "events.jsonl").read_bytes()
    good, rejected = check_events(raw_events(data, "application/x-ndjson"), NOON)

    assert (counts["lines"], counts["records"]) == (3, 3)
    assert not rejected
    assert [event for _, event, _ in good] == batch
    assert verify_sealed(tmp_path / "out")["form"] == "jsonl"


def test_one_form_replaces_the_other(tmp_path: Path):
    log = stored(tmp_path, item("a"))
    export(log, tmp_path / "out", now=NEXT_DAY)
    exported(log, tmp_path / "out", jsonl=True)

    assert sorted(contents(tmp_path / "out")) == ["events.jsonl", MANIFEST]


def test_files_of_somebody_else_stay(tmp_path: Path):
    log = stored(tmp_path, item("a"), click("c"))
    export(log, tmp_path / "out", now=NEXT_DAY)
    pl.DataFrame({"user_id": ["u1"], "age": [33]}).write_parquet(tmp_path / "out" / "users.parquet")
    log.append([record_of(click("d", moment=NEXT_DAY), NEXT_DAY)])

    exported(log, tmp_path / "out", now=NEXT_DAY + DAY_S)

    dataset, _ = load(tmp_path / "out")
    assert dataset.attributes is not None
    assert len(dataset.events) == 2


def test_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")

    assert refusal(exported, stored(tmp_path, item("a")), tmp_path / "out").code == "not_an_export"
    assert contents(tmp_path / "out") == {"precious.txt": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"log.db", "log.db.lock", "out", ".out.lock"}


def test_failing_export_leaves_the_old_one(tmp_path: Path):
    out = tmp_path / "out"
    exported(stored(tmp_path, item("a")), out)
    before = contents(out)

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "events.parquet").write_bytes(b"half")
        raise RecsysError("storage_full", "no room")

    assert refusal(seal, out, fail).code == "storage_full"
    assert contents(out) == before
    assert not list(tmp_path.glob(".out.staging*"))


def test_file_system_without_exchange_gets_the_export_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS and some container layers cannot exchange two folders; the C library says EINVAL there."""
    import ctypes

    class Library:
        def renameat2(self, *_: object) -> int:
            ctypes.set_errno(22)
            return -1

    out = tmp_path / "out"
    log = stored(tmp_path, item("a"))
    export(log, out, now=NEXT_DAY)
    monkeypatch.setattr("serving.events.sealed_folder.ctypes.CDLL", lambda *_, **__: Library())
    log.append([record_of(item("b", moment=NEXT_DAY), NEXT_DAY)])

    assert exported(log, out, now=NEXT_DAY + DAY_S)["items"] == 2
    assert verify_sealed(out)["items"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"log.db", "log.db.lock", "out", ".out.lock"}


def test_second_export_to_the_same_folder_waits_its_turn(tmp_path: Path):
    def write(folder: Path) -> dict[str, Any]:
        assert refusal(seal, tmp_path / "out", lambda _: {}).code == "lock_held"
        return {}

    assert seal(tmp_path / "out", write)


KILLED = """
import sys
from pathlib import Path
from serving.events.export import export
from serving.events.sqlite_reader import SqliteReader
reader = SqliteReader(Path(sys.argv[1]))
print("ready", flush=True)
for n in range(1000):
    export(reader, Path(sys.argv[2]), jsonl=bool(n % 2), now=float(sys.argv[3]))
"""


def test_killed_export_leaves_a_whole_one(tmp_path: Path):
    """Each kill meets an export that replaces the other form: what is there is all of one of them."""
    log = stored(tmp_path, *(click(f"c{n}") for n in range(300)))
    log.close()
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
    draws = random.Random(5)
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "log.db"), str(out), str(NEXT_DAY)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            deadline = time.monotonic() + 20
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(draws.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
        manifest = verify_sealed(out)
        assert set(manifest["files"]) == ({"events.jsonl"} if manifest["form"] == "jsonl" else set(TABLES))
        assert manifest["records"] == 300
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        export(log, out, now=NEXT_DAY)
    assert sorted(contents(out)) == sorted([*TABLES, MANIFEST])


def test_damage_in_the_log_is_counted_and_the_rest_exported(tmp_path: Path):
    log = stored(tmp_path, *(click(f"c{n:04d}") for n in range(1500)))
    log.close()
    data = bytearray((tmp_path / "log.db").read_bytes())
    data[data.find(b'"c0007"')] ^= 1
    (tmp_path / "log.db").write_bytes(data)

    counts = exported(SqliteLog(tmp_path / "log.db"), tmp_path / "out")

    assert (counts["events"], counts["rows_lost"]) == (1499, 1)


def test_copies_that_a_broken_index_let_in_are_left_out(tmp_path: Path):
    class Twice:
        """A log that holds one record twice, as one whose index is damaged can."""

        def __init__(self, log: SqliteLog) -> None:
            self.damage = log.damage
            self.last = 2
            self._first = log.read(0, 1)[0]

        def read(self, after: int, limit: int) -> list[Any]:
            return [msgspec.structs.replace(self._first, sequence=n) for n in (1, 2) if n > after][:limit]

        def close(self) -> None: ...

    log = stored(tmp_path, click("c"))
    counts = export(Twice(log), tmp_path / "out", now=NEXT_DAY)
    log.close()

    assert (counts["records"], counts["repeated"], counts["events"]) == (2, 1, 1)


ITEMS = ["a", "b", "c"]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - fsync costs nothing there


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[Any, float]]:
    """Events with the moments at which they came in, up to two nights apart, in any order of arrival."""
    moment = st.integers(0, 3).map(lambda hours: NOON + hours * 3600.0)
    slate = st.sampled_from(["s0", "s1", "s2"])
    batch: list[Any] = [
        shown(name, draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4)), draw(moment))
        for name in draw(st.lists(slate, unique=True))
    ]
    for n in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["click", "click", "purchase"]))
        position = draw(st.none() | st.integers(1, 4))
        more = {"event_type": kind, "impression_id": draw(st.none() | slate), "position": position}
        batch.append(click(f"c{n}", draw(st.sampled_from(ITEMS)), draw(moment), **more))
    for n in range(draw(st.integers(0, 3))):
        batch.append(item(draw(st.sampled_from(ITEMS)), f"title {n}", draw(moment), event_id=f"i{n}"))
    arrivals = [max(event.timestamp, NOON + draw(st.integers(0, 2)) * DAY_S) for event in batch]
    return draw(st.permutations(list(zip(batch, arrivals, strict=True))))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(stories(), st.randoms(use_true_random=False), st.booleans())
def test_order_of_arrival_does_not_matter(
    story: list[tuple[Any, float]], draws: random.Random, nightly: bool
):
    """Through a real log: one batch in one order, or night after night in another, gives the same files."""
    other = [(event, NOON + draws.randrange(3) * DAY_S) for event, _ in draws.sample(story, len(story))]
    end = NOON + 4 * DAY_S
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        results = []
        for name, arrivals in (("one", story), ("two", other)):
            log = stored(folder / name)
            for night in range(3):
                tonight = [
                    record_of(event, at) for event, at in arrivals if at // DAY_S == NOON // DAY_S + night
                ]
                log.append(tonight)
                if nightly and name == "two":
                    export(log, folder / name / "out", now=NOON + (night + 1) * DAY_S)
            counts = exported(log, folder / name / "out", now=end)
            counts.pop("late")
            results.append(
                ({table: (folder / name / "out" / table).read_bytes() for table in TABLES}, counts)
            )
        for files, counts in results:
            counts.pop("changed")
            assert files == results[0][0]
            assert counts == results[0][1]
        check_against_plain_python([event for event, _ in story], folder / "one" / "out")
    finally:
        shutil.rmtree(folder)


def check_against_plain_python(batch: list[Any], out: Path) -> None:
    """The join once more, event by event."""
    interactions = [event for event in batch if isinstance(event, InteractionEvent)]
    slates = {event.event_id: event for event in batch if isinstance(event, ImpressionEvent)}
    flags = {name: [False] * len(slate.shown) for name, slate in slates.items()}
    for event in interactions:
        if event.event_type == "click" and event.impression_id in slates:
            row = slates[event.impression_id].shown
            places = [n for n, name in enumerate(row) if name == event.item_id]
            exact = [n for n in places if n + 1 == event.position]
            for n in exact or places:
                flags[event.impression_id][n] = True
    frame = read(out, "impressions")
    assert dict(zip(frame["impression_id"].to_list(), frame["clicked"].to_list(), strict=True)) == flags
    assert sorted(read(out, "events")["event_id"].to_list()) == sorted(one.event_id for one in interactions)


def run(*words: object) -> tuple[int, str]:
    """Exit number and standard output of the command; RecsysError passes through, as in the program."""
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as out:
        code = get_command(events).main([str(word) for word in words], standalone_mode=False)
    return code or 0, out.getvalue()


def test_command_prints_counts_and_knows_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    log = SqliteLog(home / LOG_NAME)
    log.append(
        [record_of(event, NOON) for event in (item("a"), shown("s", ["a"]), click("c", impression_id="s"))]
    )
    log.close()
    monkeypatch.setenv("RECSYS_HOME", str(home))

    _, printed = run("export", tmp_path / "out", "--json", "--until", "2026-03-10")

    counts = json.loads(printed)
    assert counts["out"] == str(tmp_path / "out")
    assert (counts["until"], counts["events"], counts["impressions"], counts["items"]) == (
        "2026-03-10",
        1,
        1,
        1,
    )
    assert math.isclose(sum(counts[name] for name in ("events", "impressions", "items")), counts["records"])
    _, lines = run("export", tmp_path / "lines", "--home", home, "--jsonl", "--until", "now")
    assert "lines" in lines
    assert (tmp_path / "lines" / "events.jsonl").exists()


def test_command_refuses_what_it_cannot_do(tmp_path: Path):
    missing = refusal(run, "export", tmp_path / "out", "--log", tmp_path / "none.db")
    assert (missing.code, missing.exit_code) == ("no_input", EXIT_NO_INPUT)
    day = refusal(run, "export", tmp_path / "out", "--log", tmp_path / "none.db", "--until", "yesterday")
    assert (day.code, day.exit_code) == ("usage", EXIT_USAGE)
    assert not (tmp_path / "out").exists()


def test_large_log_is_exported_in_reasonable_time(tmp_path: Path):
    """50,000 events here; a million take twenty times as long."""
    log = stored(tmp_path)
    batch: list[Record] = []
    for n in range(10_000):
        slate = shown(f"s{n}", [f"i{(n + m) % 500}" for m in range(20)], NOON + n / 10)
        clicks = [
            click(f"c{n}-{m}", f"i{(n + m) % 500}", NOON + n / 10, impression_id=f"s{n}") for m in range(4)
        ]
        batch += [record_of(event, NOON) for event in (slate, *clicks)]
    log.append(batch)

    started = time.process_time()
    counts = exported(log, tmp_path / "out")
    took = time.process_time() - started

    assert counts["clicks_joined"] == 40_000
    assert took < 6, f"{took:.1f} s of the processor"
