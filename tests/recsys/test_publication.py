import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import EXIT_DATA, EXIT_IO, EXIT_NO_INPUT, EXIT_TEMPORARY, RecsysError
from recsys.publication import Publication, publish, read_publication, verify_night
from recsys.published_rows import GROUP_ROWS, RowGroups, as_reader
from recsys.versions import Version

NIGHT, NEXT_NIGHT = date(2026, 3, 1), date(2026, 3, 2)
V1 = Version("recsys", 1, "run", {"bundle_digest": "1" * 64})
V2 = Version("recsys", 2, "run", {"bundle_digest": "2" * 64})


def scores(users: int = 5, k: int = 3, offset: float = 0.0) -> pl.DataFrame:
    """Users in an order of their own, k ranked items each."""
    names = [f"u{(user * 7) % users if users % 7 else user}" for user in range(users)]
    return pl.DataFrame(
        {
            "user_id": [name for name in names for _ in range(k)],
            "item_id": list(range(users * k)),
            "rank": list(range(1, k + 1)) * users,
            "score": [offset + 1.0 / (row + 1) for row in range(users * k)],
            "source": ["als+text", "", "popular"][:k] * users,
            "rung": ["personal"] * (users * k),
        },
        schema_overrides={"rank": pl.Int32, "item_id": pl.Int64, "user_id": pl.String, "score": pl.Float64},
    )


def put(
    folder: Path, frame: pl.DataFrame, night: date = NIGHT, version: Version = V1, **options: bool
) -> Publication:
    return publish(folder, frame, night=night, version=version, as_of=1.75e9, **options)


def refusal(call, *arguments, **options) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments, **options)
    return caught.value


def read(folder: Path, night: date = NIGHT) -> pl.DataFrame:
    return pl.read_delta(str(folder)).filter(pl.col("night") == night).drop("night")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_night_reads_back_as_published(tmp_path: Path):
    publication = put(tmp_path, scores())
    assert read(tmp_path).equals(scores())
    assert (publication.rows, publication.model, publication.changed) == (15, "models:/recsys/1", True)
    assert verify_night(tmp_path, NIGHT) == publication
    manifest = json.loads((tmp_path / "_manifests/2026-03-01.json").read_bytes())
    assert manifest == {
        "format_version": 1,
        "night": "2026-03-01",
        "rows": 15,
        "digest": publication.digest,
        "as_of": 1.75e9,
        "model": "models:/recsys/1",
        "bundle_digest": "1" * 64,
    }


def test_the_same_night_again_changes_nothing(tmp_path: Path):
    first = put(tmp_path, scores())
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path) if ".lock" not in name}
    again = put(tmp_path, scores())
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path) if ".lock" not in name}
    assert before == after
    assert again == first
    assert not again.changed
    assert DeltaTable(tmp_path).version() == first.table_version == again.table_version == 0


def test_a_night_is_replaced_and_the_others_stay(tmp_path: Path):
    put(tmp_path, scores())
    put(tmp_path, scores(offset=1.0), NEXT_NIGHT)
    put(tmp_path, scores(offset=2.0))
    assert read(tmp_path).equals(scores(offset=2.0))
    assert read(tmp_path, NEXT_NIGHT).equals(scores(offset=1.0))
    assert verify_night(tmp_path, NIGHT).changed is False
    old = pl.read_delta(str(tmp_path), version=1).filter(pl.col("night") == NIGHT)
    assert old.drop("night").equals(scores())


def test_another_version_with_the_same_rows_is_another_publication(tmp_path: Path):
    first = put(tmp_path, scores())
    second = put(tmp_path, scores(), version=V2)
    assert (first.digest, second.changed) == (second.digest, True)
    assert put(tmp_path, scores()).changed
    assert verify_night(tmp_path, NIGHT).model == "models:/recsys/1"


def test_a_frame_is_sorted_by_user_in_the_given_order_then_rank(tmp_path: Path):
    shuffled = pl.concat([scores().head(1), scores().sample(fraction=1, shuffle=True, seed=3)]).unique(
        maintain_order=True
    )
    put(tmp_path, shuffled)
    result = read(tmp_path)
    users = shuffled["user_id"].unique(maintain_order=True)
    assert result["user_id"].unique(maintain_order=True).equals(users)
    assert result["rank"].to_list() == [1, 2, 3] * 5
    assert result.sort("item_id").equals(scores().sort("item_id"))


def test_no_rows_are_a_publication(tmp_path: Path):
    publication = put(tmp_path, scores(users=0))
    assert (publication.rows, publication.changed) == (0, True)
    assert not put(tmp_path, scores(users=0)).changed
    assert verify_night(tmp_path, NIGHT) == publication
    assert read(tmp_path).schema == scores().schema
    assert read(tmp_path).height == 0


def test_integer_users_come_back_as_integers(tmp_path: Path):
    frame = scores().with_columns(user_id=pl.col("user_id").str.slice(1).cast(pl.UInt16))
    put(tmp_path, frame)
    assert read(tmp_path)["user_id"].to_list() == frame["user_id"].to_list()
    error = refusal(put, tmp_path, scores(), NEXT_NIGHT)
    assert (error.code, error.where) == ("scores_invalid", "user_id")
    assert read_publication(tmp_path, NEXT_NIGHT) is None


@settings(max_examples=40)
@given(
    users=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 60), max_size=8),
)
def test_the_digest_does_not_depend_on_the_batches(users: int, sizes: list[int]):
    table = scores(users).to_arrow()
    schema = table.schema
    pieces, start = [], 0
    for size in [*sizes, table.num_rows]:
        pieces += table.slice(start, size).combine_chunks().to_batches()
        start += size
    whole, cut = RowGroups(table.to_reader()), RowGroups(pa.RecordBatchReader.from_batches(schema, pieces))
    rows = sum(group.num_rows for group in whole)
    assert sum(group.num_rows for group in cut) == rows == users * 3
    assert whole.digest == cut.digest


def test_row_groups_are_fixed_however_the_stream_comes():
    frame = scores(users=GROUP_ROWS // 2)
    groups = RowGroups(as_reader(frame))
    assert [group.num_rows for group in groups] == [GROUP_ROWS, GROUP_ROWS // 2]
    small = RowGroups(
        pa.RecordBatchReader.from_batches(frame.to_arrow().schema, frame.to_arrow().to_batches(1000))
    )
    assert [group.num_rows for group in small] == [GROUP_ROWS, GROUP_ROWS // 2]
    assert groups.digest == small.digest


def test_every_column_counts_in_the_digest(tmp_path: Path):
    digests = {put(tmp_path / "0", scores()).digest}
    changed = {
        "user_id": pl.col("user_id") + "x",
        "item_id": pl.col("item_id") + 1,
        "score": pl.col("score") + 1e-12,
        "source": pl.lit("text"),
        "rung": pl.lit("popular"),
    }
    for name, value in changed.items():
        digests.add(put(tmp_path / name, scores().with_columns(value.alias(name))).digest)
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"score": float("nan")}, "non_finite_scores"),
        ({"score": float("-inf")}, "non_finite_scores"),
        ({"item_id": None}, "scores_invalid"),
        ({"source": None}, "scores_invalid"),
        ({"rank": 2}, "scores_invalid"),
        ({"score": "high"}, "scores_invalid"),
    ],
)
def test_bad_rows_publish_nothing(tmp_path: Path, change: dict, code: str):
    put(tmp_path, scores())
    before = files(tmp_path)
    bad = scores(offset=1.0).with_columns(pl.lit(value).alias(name) for name, value in change.items())
    error = refusal(put, tmp_path, bad)
    assert (error.code, error.exit_code) == (code, EXIT_DATA)
    assert read(tmp_path).equals(scores())
    assert files(tmp_path) == before
    assert refusal(put, tmp_path, scores().drop("rung")).code == "scores_invalid"


def test_a_scorer_that_fails_midway_publishes_nothing(tmp_path: Path):
    table = scores().to_arrow()

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches(4)
        raise RecsysError("feature_missing", "no such column")

    reader = pa.RecordBatchReader.from_batches(table.schema, batches())
    assert refusal(put, tmp_path, reader).code == "feature_missing"
    assert read_publication(tmp_path, NIGHT) is None
    assert put(tmp_path, scores()).changed


def test_shrinking_to_less_than_half_is_refused(tmp_path: Path):
    put(tmp_path, scores(users=10))
    error = refusal(put, tmp_path, scores(users=4))
    assert (error.code, error.exit_code) == ("refusing_shrink", EXIT_DATA)
    assert "12 rows in place of 30" in error.what
    assert read(tmp_path).height == 30
    assert refusal(put, tmp_path, scores(users=0)).code == "refusing_shrink"
    assert put(tmp_path, scores(users=5)).rows == 15
    assert put(tmp_path, scores(users=0), allow_shrink=True).rows == 0
    assert put(tmp_path, scores(users=3)).rows == 9


def test_a_missing_night_is_named(tmp_path: Path):
    assert read_publication(tmp_path / "nowhere", NIGHT) is None
    put(tmp_path, scores())
    error = refusal(verify_night, tmp_path, NEXT_NIGHT)
    assert (error.code, error.exit_code) == ("night_missing", EXIT_NO_INPUT)


def test_any_damage_is_found_and_repaired_by_the_next_run(tmp_path: Path):
    publication = put(tmp_path, scores(users=50))
    path = tmp_path / publication.path
    whole = path.read_bytes()
    source = random.Random(5)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[source.randrange(len(whole))] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        try:  # a bit that changes no row and no manifest (padding, statistics) may pass
            assert verify_night(tmp_path, NIGHT) == publication
            assert read(tmp_path).equals(scores(users=50))
        except RecsysError as error:
            assert error.code in ("digest_mismatch", "manifest_invalid")  # noqa: PT017
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(verify_night, tmp_path, NIGHT).code == "digest_mismatch"
    put(tmp_path, scores(users=50))
    assert verify_night(tmp_path, NIGHT) == publication


def test_damaged_rows_under_a_good_manifest_are_repaired_in_place(tmp_path: Path):
    publication = put(tmp_path, scores(users=50))
    path = tmp_path / publication.path
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    assert refusal(verify_night, tmp_path, NIGHT).code == "digest_mismatch"
    again = put(tmp_path, scores(users=50))
    assert (again.changed, again.table_version) == (False, 0)
    assert verify_night(tmp_path, NIGHT) == publication


def test_a_file_of_other_hands_is_found(tmp_path: Path):
    publication = put(tmp_path, scores())
    other = put(tmp_path / "other", scores(offset=1.0), version=V2)
    shutil.copy(tmp_path / "other" / other.path, tmp_path / publication.path)
    assert refusal(verify_night, tmp_path, NIGHT).code == "digest_mismatch"
    assert put(tmp_path, scores()).rows == 15


def test_a_lost_copy_of_the_manifest_comes_back(tmp_path: Path):
    put(tmp_path, scores())
    copy = tmp_path / "_manifests/2026-03-01.json"
    content = copy.read_bytes()
    copy.unlink()
    assert not put(tmp_path, scores()).changed
    assert copy.read_bytes() == content


def test_the_second_job_of_a_night_is_turned_away_before_it_scores(tmp_path: Path):
    tmp_path.joinpath(f".lock-{NIGHT}").write_text("process 42 on mars\n")
    asked = []

    def batches() -> Iterator[pa.RecordBatch]:
        asked.append(1)
        yield from scores().to_arrow().to_batches()

    with tmp_path.joinpath(f".lock-{NIGHT}").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        started = time.monotonic()
        reader = pa.RecordBatchReader.from_batches(scores().to_arrow().schema, batches())
        error = refusal(put, tmp_path, reader)
        assert (error.code, error.exit_code, asked) == ("lock_held", EXIT_TEMPORARY, [])
        assert "process 42 on mars" in error.what
        assert time.monotonic() - started < 2
        assert put(tmp_path, scores(), NEXT_NIGHT).changed
    assert put(tmp_path, scores()).changed


def test_too_little_room_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path, scores())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    error = refusal(put, tmp_path, scores(offset=1.0))
    assert (error.code, error.exit_code) == ("storage_full", EXIT_IO)
    assert "have 1000" in error.what
    assert read(tmp_path).equals(scores())


JOB = """
import resource, sys
from datetime import date
from pathlib import Path
import numpy as np, pyarrow as pa
from recsys.errors import RecsysError
from recsys.publication import publish
from recsys.versions import Version

folder, number, users, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
random = np.random.default_rng(number)

def batches():
    for first in range(0, users, 1000):
        count = min(1000, users - first)
        users_here = np.repeat(np.arange(first, first + count), 10)
        rank = np.tile(np.arange(1, 11, dtype=np.int32), count)
        text = pa.array(["als"] * len(rank))
        score = pa.array(random.random(len(rank)))
        ids = pa.array(users_here)
        yield pa.record_batch([ids, ids, rank, score, text, text], names=names)

names = ["user_id", "item_id", "rank", "score", "source", "rung"]
types = [pa.int64(), pa.int64(), pa.int32(), pa.float64(), pa.string(), pa.string()]
schema = pa.schema(list(zip(names, types)))
print("ready", flush=True)
try:
    version = Version("recsys", number, "run", {"bundle_digest": str(number) * 64})
    done = publish(folder, pa.RecordBatchReader.from_batches(schema, batches()), night=date(2026, 3, 1),
                   version=version, as_of=1.0)
    print(done.digest, done.changed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
except RecsysError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


def job(folder: Path, number: int, users: int = 20_000, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(folder), str(number), str(users), str(limit)]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def finish(started: subprocess.Popen[str]) -> tuple[int, str]:
    with started:
        assert started.stdout is not None
        return started.wait(120), started.stdout.read().strip()


def test_a_full_disk_leaves_the_old_night(tmp_path: Path):
    first, _ = finish(job(tmp_path, 1))
    assert first == 0
    before = files(tmp_path)
    code, output = finish(job(tmp_path, 2, limit=200_000))
    assert code == EXIT_IO
    assert output.startswith("storage_full: ")
    assert verify_night(tmp_path, NIGHT).model == "models:/recsys/1"
    assert files(tmp_path) == before
    assert finish(job(tmp_path, 2))[0] == 0


@pytest.mark.slow
def test_killed_at_any_moment_readers_see_a_whole_night(tmp_path: Path):
    """C08: kill -9 at random; every state verifies, and the finished night is that of an unkilled job."""
    whole = {}
    durations = []
    for number in (1, 2):
        started = job(tmp_path / "unkilled", number)
        begun = time.monotonic()
        code, output = finish(started)
        durations.append(time.monotonic() - begun)
        assert code == 0
        whole[f"models:/recsys/{number}"] = output.split()[0]
    assert finish(job(tmp_path / "table", 1))[0] == 0
    source = random.Random(11)
    kills = turn = 0
    while turn < 12 or kills < 6:
        assert turn < 60, "the jobs end before they are killed"
        started = job(tmp_path / "table", 2 - turn % 2)
        turn += 1
        time.sleep(source.uniform(0, min(durations)))
        started.send_signal(signal.SIGKILL)
        kills += finish(started)[0] == -signal.SIGKILL
        seen = verify_night(tmp_path / "table", NIGHT)
        assert whole[seen.model] == seen.digest
        assert read(tmp_path / "table").height == seen.rows
    assert finish(job(tmp_path / "table", 2))[0] == 0
    code, output = finish(job(tmp_path / "table", 2))
    assert code == 0
    assert output.split()[:2] == [whole["models:/recsys/2"], "False"]
    assert len(list((tmp_path / "table/night=2026-03-01").iterdir())) == 2


@pytest.mark.slow
def test_of_jobs_at_once_one_publishes_and_a_killed_one_holds_nobody(tmp_path: Path):
    """C12: the lock is the kernel's, so it is free the moment its holder dies."""
    held = job(tmp_path, 1, users=2_000_000)
    try:
        wait_for(tmp_path / f".lock-{NIGHT}", f"process {held.pid} on ")
        for other in [job(tmp_path, 2, users=10) for _ in range(3)]:
            code, output = finish(other)
            assert code == EXIT_TEMPORARY
            assert output.startswith("lock_held: ")
            assert f"process {held.pid} on " in output
    finally:
        held.kill()
        finish(held)
    assert finish(job(tmp_path, 2, users=10))[0] == 0
    assert verify_night(tmp_path, NIGHT).rows == 100
    assert len(list((tmp_path / "night=2026-03-01").iterdir())) == 1


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_stream(tmp_path: Path):
    peaks = []
    for number, users in ((1, 20_000), (2, 400_000)):
        code, output = finish(job(tmp_path / str(number), number, users=users))
        assert code == 0
        peaks.append(int(output.split()[2]))
    assert peaks[1] - peaks[0] < 64_000  # kB; the larger night is 200 MB as Arrow


def test_a_night_with_propensities_joins_a_table_without_and_the_other_way_round(tmp_path: Path):
    chances = pl.Series("propensity", [0.25, 0.5, 1.0] * 5)
    put(tmp_path, scores())
    explored = put(tmp_path, scores(offset=1.0).with_columns(chances), night=NEXT_NIGHT)
    assert verify_night(tmp_path, NEXT_NIGHT) == explored
    assert read(tmp_path, NEXT_NIGHT)["propensity"].to_list() == chances.to_list()
    assert read(tmp_path)["propensity"].null_count() == 15
    put(tmp_path, scores(offset=2.0))  # exploration is off again
    assert read(tmp_path, NEXT_NIGHT)["propensity"].to_list() == chances.to_list()
    assert read(tmp_path).drop("propensity").equals(scores(offset=2.0))
    assert put(tmp_path, scores(offset=1.0).with_columns(chances), night=NEXT_NIGHT).changed is False


@pytest.mark.parametrize("wrong", [0.0, 1.5, float("nan")])
def test_an_impossible_propensity_is_not_published(tmp_path: Path, wrong: float):
    chances = pl.Series("propensity", [wrong, 0.5, 1.0] * 5)
    error = refusal(put, tmp_path, scores().with_columns(chances))
    assert (error.code, error.where) == ("scores_invalid", "propensity")
