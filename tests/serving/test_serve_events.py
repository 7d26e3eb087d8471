"""Events through a whole server: seen at once, never lost or doubled, counted as the night counts them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import pytest

from recsys.bundle import read_bundle
from recsys.dataset import Dataset
from serving.engine.answering import similar
from serving.engine.live_model import LiveModel
from serving.events.log import Record
from serving.events.sqlite_log import SqliteLog
from serving.messages import SimilarRequest
from tests.serving.expected import are_close, asked, follow, model_of, nightly, ranked, stored
from tests.serving.running import JSON, RECSYS, Running, exchange, wait_until

AS_OF = 30 * 86_400.0
ITEMS = [f"i{number:02d}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(20)]
KINDS = ["click", "purchase", "view", "dismiss"]


def click(event_id: str, **changes: Any) -> dict[str, Any]:
    event = {"event_id": event_id, "user_id": "u03", "item_id": "i05", "event_type": "click"}
    return event | {"timestamp": time.time()} | changes


def accept(server: Running, *events: dict[str, Any]) -> None:
    got = server.post("/v1/events", list(events))
    assert (got.status, got.json["accepted"]) == (200, len(events)), got.body


def test_events_show_in_the_next_ranking_of_their_user(hosted, bundle_folder, tmp_path):
    """Within a second, and with the scores that the engine gives for the same log."""
    model, waited = model_of(bundle_folder), []
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        moment = time.time() + 60.0
        for number in range(9):
            before = asked(server, "u03", ITEMS, moment)
            accept(server, click(f"e{number}", item_id=ITEMS[4 * number], timestamp=moment - 60.0 + number))
            begin = time.monotonic()
            wait_until(lambda before=before: asked(server, "u03", ITEMS, moment) != before)
            waited.append(time.monotonic() - begin)
            follow(model, tmp_path / "events.db")
            assert are_close(asked(server, "u03", ITEMS, moment), ranked(model, "u03", ITEMS, moment))
    assert median(waited) < 1.0, waited


def reason(server: Running, user: str, candidate: str) -> str | None:
    """Why this list is less than it could be."""
    got = server.post("/v1/rank", {"user_id": user, "candidates": [candidate]})
    assert got.status == 200
    return got.json["degraded_reason"]


def test_a_new_item_is_found_by_its_words_and_outlives_swaps_and_restarts(
    hosted, bundle_folder, second_folder, tmp_path
):
    served, log = Path(shutil.copytree(bundle_folder, tmp_path / "served")), tmp_path / "events.db"
    item = {"kind": "item", "event_id": "new", "item_id": "fresh", "title": "a blue thing i07"}
    moment = time.time() + 60.0

    def near(server: Running) -> list[tuple[str, float]]:
        got = server.post("/v1/similar", {"item_id": "fresh", "k": 5})
        return [(each["id"], each["score"]) for each in got.json.get("items", ())]

    def check(server: Running, bundle: Path) -> None:
        """It stands where the engine puts it, by its words and for a user."""
        model = model_of(bundle, log)
        expected = [
            (each.id, each.score) for each in similar(model, SimilarRequest(item_id="fresh", k=5)).items
        ]
        assert [each for each, _ in near(server)] == [each for each, _ in expected]
        assert dict(near(server)) == pytest.approx(dict(expected), abs=1e-6)
        candidates = ["fresh", *ITEMS]
        assert are_close(asked(server, "u03", candidates, moment), ranked(model, "u03", candidates, moment))

    with hosted(served, tmp_path, deadline_s=10.0) as server:
        server.post("/v1/similar", {"item_id": "fresh"}).problem(404, "unknown_item")
        assert reason(server, "u03", "fresh") == "cold_items"
        accept(server, item | {"timestamp": time.time()}, click("c", user_id="newcomer", item_id="fresh"))
        begin = time.monotonic()
        wait_until(lambda: reason(server, "u03", "fresh") is None)
        wait_until(lambda: near(server))
        assert time.monotonic() - begin < 1.0, "stored, read back, ranked, embedded"
        wait_until(lambda: reason(server, "newcomer", "fresh") is None)
        check(server, bundle_folder)
        assert near(server)[0] == ("i07", pytest.approx(1.0)), "it has the same words"
        served.rename(tmp_path / "before")
        shutil.copytree(second_folder, served)
        digest = read_bundle(second_folder).digest
        assert server.ask("POST", "/admin/reload", admin=True).status == 200
        assert near(server), "the new model knew its text before it answered"
        assert server.ask("GET", "/version").json["digest"] == digest
        check(server, second_folder)
        assert server.stop() == 0
    with hosted(served, tmp_path, deadline_s=10.0) as server:
        check(server, second_folder)
        recommended = server.post("/v1/recommend", {"user_id": "u03", "k": 41}).json["items"]
        assert "fresh" in {each["id"] for each in recommended}


def test_scores_are_those_of_the_night(hosted, bundle_folder, served_world, tmp_path):
    """As of the bundle's own moment; and now, with a day of events that the night then has in its log."""
    bundle = read_bundle(bundle_folder)

    def check(server: Running, world: Dataset, users: list[str], moment: float) -> None:
        for user in users:
            candidates = [{"id": each, "source": "als+text"} for each in ITEMS]
            got = server.post("/v1/rank", {"user_id": user, "candidates": candidates, "timestamp": moment})
            found = {each["id"]: each["score"] for each in got.json["items"]}
            assert are_close(found, nightly(bundle, world, user, ITEMS, moment, "als+text"))

    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        check(server, served_world, USERS, AS_OF)
        draws, start = random.Random(7), time.time() - 86_400.0
        log = [
            click(f"e{number}", user_id=draws.choice(USERS), item_id=draws.choice(ITEMS))
            | {"event_type": draws.choice(KINDS), "timestamp": start + number}
            for number in range(300)
        ]
        arrived = draws.sample(log, len(log))
        accept(server, *arrived)
        wait_for(server, model_of(bundle_folder, tmp_path / "events.db"))
        check(server, grown(served_world, log), USERS, start + 1000.0)


def wait_for(server: Running, model: LiveModel) -> None:
    """Wait until the server answers for everybody as the engine does."""
    moment = time.time() + 60.0
    for user in [*USERS, "writer"]:
        expected = ranked(model, user, ITEMS, moment)
        wait_until(
            lambda user=user, expected=expected: are_close(asked(server, user, ITEMS, moment), expected)
        )


def grown(world: Dataset, log: list[dict[str, Any]]) -> Dataset:
    """The world's tables with these interactions behind."""
    catalogue, old = world.catalogue, world.events
    items = {
        "item_id": catalogue.ids.values.to_list(),
        "title": list(catalogue.title),
        "category": [catalogue.category_names[code] for code in catalogue.category],
        "created_at": list(catalogue.created_at),
    }
    past = pl.DataFrame(
        {
            "user_id": world.users.take(old.user_index),
            "item_id": catalogue.ids.take(old.item_index),
            "event_type": [world.event_types[kind] for kind in old.type_index],
            "timestamp": old.timestamp,
        }
    )
    events = pl.concat([past, pl.DataFrame(log).select(past.columns)])
    return Dataset.from_frames(pl.DataFrame(items), events, users=pl.DataFrame({"user_id": USERS}))


class Senders:
    """Clients that send batches until the server is gone, and note what was sent and what was answered."""

    def __init__(self, server: Running, life: int, count: int) -> None:
        self.server, self.life = server, life
        self.sent: dict[str, dict[str, Any]] = {}
        self.acknowledged: set[str] = set()
        self.refused: list[int] = []
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        draws, connection = random.Random(1000 * self.life + number), self.server.connection()
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            for batch in itertools.count():
                names = [f"{self.life}-{number}-{batch}-{n}" for n in range(draws.randint(1, 9))]
                body = json.dumps([self._event(name, draws) for name in names]).encode()
                got = exchange(connection, "POST", "/v1/events", body, JSON)
                if got.status != 200:
                    self.refused.append(got.status)
                    return
                assert got.json["accepted"] == len(names), got.body
                self.acknowledged.update(names)

    def _event(self, name: str, draws: random.Random) -> dict[str, Any]:
        event = click(name, user_id=draws.choice([*USERS, "writer"]), item_id=draws.choice(ITEMS))
        self.sent[name] = event | {"event_type": draws.choice(KINDS)}
        return self.sent[name]


def exported(log: Path, out: Path) -> Counter[str]:
    """Ids in an export of the log, each as often as it stands there."""
    words = ["events", "export", str(out), "--log", str(log), "--jsonl", "--until", "now", "--json"]
    done = subprocess.run([*RECSYS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (out / "events.jsonl").read_text().splitlines()
    assert json.loads(done.stdout)["lines"] == len(lines)
    return Counter(json.loads(line)["event_id"] for line in lines)


def check_kills(hosted, bundle: Path, folder: Path, kills: int) -> None:
    """Kill a server that takes events, again and again; what was acknowledged is there once, and counts."""
    draws, log = random.Random(kills), folder / "events.db"
    sent: dict[str, dict[str, Any]] = {}
    acknowledged: set[str] = set()
    for life in range(kills):
        with hosted(bundle, folder, ready=False) as server:
            senders = Senders(server, life, 8)
            wait_until(lambda senders=senders: senders.acknowledged)
            time.sleep(draws.uniform(0.0, 0.5))
            intake = server.intake_pid
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            if draws.random() < 0.5:  # else it puts on the disk what it has
                with contextlib.suppress(ProcessLookupError):
                    os.kill(intake, signal.SIGKILL)
            senders.join()
        assert not senders.refused
        sent |= senders.sent
        acknowledged |= senders.acknowledged
    with hosted(bundle, folder, deadline_s=10.0) as server:
        found = exported(log, folder / "export")
        assert set(found.values()) == {1}, "doubled"
        assert acknowledged <= found.keys() <= sent.keys()
        ids = list(sent)
        for start in range(0, len(ids), 1000):
            got = server.post("/v1/events", [sent[each] for each in ids[start : start + 1000]]).json
            known = len([each for each in ids[start : start + 1000] if each in found])
            assert (got["duplicate"], got["rejected"]) == (known, [])
        wait_for(server, model_of(bundle, log))
        assert exported(log, folder / "again").keys() == sent.keys()


def test_c14_kills_under_ingest_lose_and_double_nothing(hosted, bundle_folder, tmp_path):
    check_kills(hosted, bundle_folder, tmp_path, 3)


@pytest.mark.soak
def test_c14_a_hundred_kills_under_ingest_lose_and_double_nothing(hosted, bundle_folder, tmp_path):
    check_kills(hosted, bundle_folder, tmp_path, 100)


def test_an_intake_that_is_killed_starts_again_and_nothing_is_lost_or_doubled(
    hosted, bundle_folder, tmp_path
):
    """Ranking does not notice; who sends events is told to send them again."""
    acknowledged, refused = set[str](), Counter[str]()
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        for life in range(4):
            for number in range(10):
                event = click(f"e{life}-{number}")
                if number == 5:
                    os.kill(server.intake_pid, signal.SIGKILL)
                    assert reason(server, "u03", "i05") is None
                while (got := server.post("/v1/events", [event])).status != 200:
                    refused[got.problem(503, "events_blocked")["code"]] += 1
                    assert got.headers["retry-after"]
                    time.sleep(0.05)
                acknowledged.add(event["event_id"])
            assert server.ask("GET", "/readyz").json["events"] == "ok"
        wait_until(lambda: asked(server, "u03", ITEMS, time.time() + 60.0))
        assert server.stop() == 0
        assert server.log.count("intake_ended") == 4
    assert refused
    assert exported(tmp_path / "events.db", tmp_path / "export") == Counter(acknowledged)


def test_an_intake_that_hangs_stops_events_alone(hosted, bundle_folder, tmp_path):
    with hosted(bundle_folder, tmp_path, deadline_s=10.0, events_s=0.5) as server:
        accept(server, click("before"))
        os.kill(server.intake_pid, signal.SIGSTOP)
        begin = time.monotonic()
        server.post("/v1/events", [click("meanwhile")]).problem(503, "events_slow")
        assert time.monotonic() - begin < 5.0
        assert reason(server, "u03", "i05") is None
        os.kill(server.intake_pid, signal.SIGCONT)
        got = server.post("/v1/events", [click("after")])
        assert got.json["accepted"] == 1
        assert server.stop() == 0
    assert exported(tmp_path / "events.db", tmp_path / "export") == Counter(["before", "meanwhile", "after"])


def test_c16_the_same_event_from_everywhere_counts_once(hosted, bundle_folder, tmp_path):
    event = click("again", user_id="writer", event_type="purchase")
    for life in range(2):
        with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
            with ThreadPoolExecutor(50) as pool:
                got = list(pool.map(lambda _: server.post("/v1/events", event), range(100)))
            assert {each.status for each in got} == {200}
            assert sum(each.json["accepted"] for each in got) == (life == 0)
            assert sum(each.json["duplicate"] for each in got) == 100 - (life == 0)
            other = server.post("/v1/events", event | {"item_id": "i06"})
            assert other.problem(422, "all_rejected")["errors"][0]["code"] == "id_conflict"
            wait_for(server, model_of(bundle_folder, tmp_path / "events.db"))
    assert exported(tmp_path / "events.db", tmp_path / "export") == Counter(["again"])


def test_c19_a_full_disk_stops_events_alone_and_room_brings_them_back(hosted, bundle_folder, tmp_path):
    """The limit of the size of its files stands for the disk: a process can be given one from outside."""
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        accept(server, click("before"))
        pid, (_, hard) = server.intake_pid, resource.prlimit(server.intake_pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2**20, hard))
        for number in range(5):
            server.post("/v1/events", click(f"full-{number}")).problem(507, "storage_full")
            assert reason(server, "u03", "i05") is None
        assert server.ask("GET", "/readyz").json["events"] == "blocked"
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        begin = time.monotonic()
        wait_until(lambda: server.ask("GET", "/readyz").json["events"] == "ok")
        accept(server, click("full-0"), click("after"))
        assert time.monotonic() - begin < 5.0
        assert server.stop() == 0
    assert exported(tmp_path / "events.db", tmp_path / "export") == Counter(["before", "full-0", "after"])


def test_the_end_flushes_the_log(hosted, bundle_folder, tmp_path):
    """SIGTERM while clients send: what was acknowledged is in one whole file, and the exit code is 0."""
    with hosted(bundle_folder, tmp_path, drain_delay_s=0.5) as server:
        senders = Senders(server, 0, 8)
        wait_until(lambda: len(senders.acknowledged) > 100)
        assert server.stop() == 0
        senders.join()
        assert "Traceback" not in server.log
    assert not senders.refused
    assert not (tmp_path / "events.db-wal").exists()
    found = Counter(each.record.event_id for each in stored(tmp_path / "events.db"))
    assert set(found.values()) == {1}
    assert senders.acknowledged <= found.keys() <= senders.sent.keys()


def test_c20_what_is_damaged_of_the_log_is_told_and_the_rest_counts(hosted, bundle_folder, tmp_path):
    log = tmp_path / "events.db"
    events = [click(f"e{number:03d}-{'x' * 40}", item_id=ITEMS[number % 40]) for number in range(300)]
    with hosted(bundle_folder, tmp_path) as server:
        accept(server, *events)
        assert server.stop() == 0
    content = bytearray(log.read_bytes())
    content[content.index(events[100]["event_id"].encode()) + 20] ^= 4
    log.write_bytes(bytes(content) + b"half a record")
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        told = wait_until(lambda: [line for line in server.log.splitlines() if "events_damaged" in line])
        assert ["record 101 does not match its checksum: 299 records kept" in line for line in told] == [True]
        whole = {each.record.event_id for each in stored(log)}
        assert whole == {event["event_id"] for event in events} - {events[100]["event_id"]}
        wait_for(server, model_of(bundle_folder, log))
        again = server.post("/v1/events", events[90:110]).json
        assert (again["accepted"], again["duplicate"]) == (1, 19)
        wait_for(server, model_of(bundle_folder, log))


def test_a_record_of_another_program_stops_nothing(hosted, bundle_folder, tmp_path):
    """A later version may write kinds of events that this one does not know, and then be taken back."""
    payload = b'{"what":"nobody here knows"}'
    strange = Record("strange", "visit", hashlib.sha256(payload).digest(), time.time(), time.time(), payload)
    with contextlib.closing(SqliteLog(tmp_path / "events.db")) as log:
        log.append([strange])
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        accept(server, click("after", user_id="newcomer"))
        wait_until(lambda: reason(server, "newcomer", "i05") is None)
        assert server.stop() == 0
        assert "work_ended" not in server.log


def test_c20_a_log_that_may_only_be_read_stops_events_alone(hosted, bundle_folder, tmp_path):
    """A volume that is read-only, as a failing disk becomes."""
    volume = tmp_path / "volume"
    volume.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume], capture_output=True).returncode
    ):
        pytest.skip("no volume can be mounted here")
    options = ["--log", str(volume / "events.db")]
    try:
        with hosted(bundle_folder, tmp_path, options=options) as server:
            accept(server, click("before", user_id="newcomer"))
            assert server.stop() == 0
        subprocess.run(["mount", "-o", "remount,ro", volume], check=True)
        with hosted(bundle_folder, tmp_path, options=options, deadline_s=10.0) as server:
            server.post("/v1/events", click("no")).problem(503, "events_blocked")
            assert server.ask("GET", "/readyz").json["events"] == "blocked"
            assert reason(server, "newcomer", "i05") is None, "what it holds counts"
            assert server.stop() == 0
    finally:
        subprocess.run(["umount", "--lazy", volume], check=True)
