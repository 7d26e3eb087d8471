"""Too many clients, slow ones, failing models, and the end of the server: every wait has an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from recsys.errors import RecsysError
from serving.engine.live_model import Level
from serving.events.sqlite_log import SqliteLog
from serving.http.ladder import MOST_FAILURES, Ladder
from serving.http.turns import HUGE_BODY, LULL_S, Turns
from serving.messages import FAILING, OVERLOADED, ModelName, Ranking
from serving.problems import Refusal
from tests.serving.running import JSON, answers, exchange, read_all

ITEMS = [f"i{number:02d}" for number in range(40)]
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
RANK = json.dumps({"user_id": "u01", "candidates": ITEMS}).encode()
WIDE = json.dumps({"user_id": "u01", "candidates": [f"x{number}" for number in range(1000)]}).encode()
NAME = ModelName(name="recsys", version=1)


@pytest.fixture(scope="module", autouse=True)
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def server(bundle_folder, hosted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pressed")
    limits = {"head_s": 1.0, "body_s": 1.0, "write_s": 1.0, "idle_s": 2.0}
    with hosted(bundle_folder, folder, deadline_s=10.0, **limits) as server:
        yield server
        assert server.process.poll() is None


def descriptors(server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def is_back_to(server, before: int, limit_s: float = 4.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if descriptors(server) <= before:
            return True
        time.sleep(0.05)
    return False


def rank(server):
    return server.ask("POST", "/v1/rank", RANK, JSON)


@pytest.mark.parametrize(
    "start",
    [b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ", HEAD + b'content-length: 99\r\n\r\n{"can'],
    ids=["head", "body"],
)
def test_slow_clients_are_told_and_closed(server, start):
    """Hundreds of them at once, and all the while others are answered."""
    before = descriptors(server)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.socket()) for _ in range(500)]
        begin = time.monotonic()
        for client in clients:
            client.sendall(start)
        for _ in range(10):
            assert rank(server).status == 200
        for client in clients:
            [got] = answers(read_all(client))
            got.problem(408, "request_timeout")
        assert time.monotonic() - begin < 8.0
    assert is_back_to(server, before)


def test_a_trickle_does_not_stretch_the_time(server):
    with server.socket() as client:
        begin = time.monotonic()
        client.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < 5 and not select_one(client):
                client.sendall(b" ")
                time.sleep(0.05)
        [got] = answers(read_all(client))
        got.problem(408, "request_timeout")
        assert time.monotonic() - begin < 3.0


def select_one(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.settimeout(15)


def test_who_says_nothing_is_closed_without_a_word(server):
    with server.socket() as client:
        begin = time.monotonic()
        assert client.recv(100) == b""
        assert 0.9 < time.monotonic() - begin < 3.0


def test_idle_connections_are_closed(server):
    with server.socket() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        begin = time.monotonic()
        [got] = answers(read_all(client))
        assert got.status == 200
        assert 1.5 < time.monotonic() - begin < 5.0


def test_who_does_not_read_is_cut_off(server):
    before = descriptors(server)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.settimeout(0.5)
            request = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 60
            with contextlib.suppress(OSError):
                client.sendall(request)
        assert rank(server).status == 200
        assert is_back_to(server, before, 6.0)


def test_one_connection_too_many_is_told_so(hosted, tmp_path):
    with hosted(None, tmp_path, most_connections=20) as server, contextlib.ExitStack() as stack:
        time.sleep(0.2)
        for _ in range(20):
            stack.enter_context(server.socket())
        time.sleep(0.2)
        [got] = server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        got.problem(503, "overloaded")
        stack.close()
        time.sleep(0.2)
        assert server.ask("GET", "/healthz").status == 200


def hammer(server, body: bytes, clients: int, seconds: float) -> list[tuple[int, float, str | None]]:
    """Statuses, seconds and reasons of clients that ask again at once."""
    end = time.monotonic() + seconds
    seen: list[tuple[int, float, str | None]] = []

    def one(_: int) -> None:
        with contextlib.closing(server.connection()) as connection:
            while time.monotonic() < end:
                begin = time.perf_counter()
                got = exchange(connection, "POST", "/v1/rank", body, JSON)
                reason = got.json.get("degraded_reason") if got.status == 200 else got.json["code"]
                seen.append((got.status, time.perf_counter() - begin, reason))
                if got.status == 503:
                    assert got.headers["retry-after"] == "1"

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))
    return seen


def test_too_much_is_degraded_and_then_refused_and_the_rest_goes_on(bundle_folder, hosted, tmp_path):
    with hosted(bundle_folder, tmp_path, deadline_s=0.1) as server:
        rank(server)
        health: list[int] = []
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.05):
                health.append(server.ask("GET", "/healthz").status)

        watcher = threading.Thread(target=look)
        watcher.start()
        seen = hammer(server, WIDE, clients=60, seconds=4.0)
        stop.set()
        watcher.join()
        statuses = Counter(status for status, _, _ in seen)
        assert set(statuses) == {200, 503}
        assert {reason for status, _, reason in seen if status == 503} == {"overloaded"}
        assert any(status == 200 and reason == OVERLOADED for status, _, reason in seen)
        assert health
        assert set(health) == {200}
        time.sleep(1.0)
        assert rank(server).json["degraded_reason"] is None
        text = server.ask("GET", "/metrics").body.decode()
        assert 'recsys_degraded_total{reason="overloaded"}' in text


def test_large_requests_leave_time_for_others(server):
    """Ten clients send a mebibyte of what takes the longest to refuse."""
    body = b'{"candidates":[' + b"1," * 500_000 + b"1]}"
    stop = threading.Event()

    def flood() -> None:
        with contextlib.closing(server.connection()) as connection:
            while not stop.is_set():
                got = exchange(connection, "POST", "/v1/rank", body, JSON)
                assert got.status in (422, 503)

    threads = [threading.Thread(target=flood) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        assert all(rank(server).status == 200 for _ in range(50))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_end_is_orderly(bundle_folder, hosted, tmp_path):
    """What was accepted is answered, what was acknowledged is kept, half-sent bodies hold nobody up."""
    settings = {"deadline_s": 20.0, "drain_s": 6.0, "drain_delay_s": 2.0}
    with hosted(bundle_folder, tmp_path, **settings) as server, contextlib.ExitStack() as stack:
        rank(server)
        half = [stack.enter_context(server.socket()) for _ in range(20)]
        for client in half:
            client.sendall(HEAD + b'content-length: 99\r\n\r\n{"can')
        idle = stack.enter_context(contextlib.closing(server.connection()))
        exchange(idle, "GET", "/healthz")
        flying = [stack.enter_context(server.socket()) for _ in range(50)]
        event = {
            "event_id": "last",
            "user_id": "u",
            "item_id": "i01",
            "event_type": "click",
            "timestamp": time.time(),
        }
        for client in flying:
            client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(WIDE) + WIDE)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        exchange(idle, "GET", "/readyz").problem(503, "draining")
        assert server.ask("GET", "/healthz").status == 200
        late = server.post("/v1/rank", {"candidates": ["i01"]})
        assert (late.status, late.headers["connection"]) == (200, "close")
        assert server.post("/v1/events", event).json["accepted"] == 1
        for client in flying:
            [got] = answers(read_all(client))
            assert got.status == 200
            assert len(got.json["items"]) == 1000
        for client in half:
            [got] = answers(read_all(client))
            got.problem(503, "draining")
        assert server.process.wait(15) == 0
        assert time.monotonic() - begin < 10.0
        with pytest.raises(ConnectionRefusedError):
            server.socket()
    log = SqliteLog(tmp_path / "events.db")
    assert [stored.record.event_id for stored in log.read(0, 10)] == ["last"]
    log.close()
    assert "Traceback" not in server.log


def test_an_end_right_after_the_start_is_orderly_too(bundle_folder, hosted, tmp_path):
    """Libraries that are still at work in a thread must not abort the process."""
    with hosted(bundle_folder, tmp_path) as server:
        assert server.stop() == 0


def test_the_end_is_quick_where_nothing_is_open(hosted, tmp_path):
    with hosted(None, tmp_path) as server:
        begin = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - begin < 4.0


# The ladder: what is asked here is a function, as in the server; the levels are the model's own.


def listed(level: Level) -> Ranking:
    return Ranking(items=[], rung=level.name.lower(), model=NAME)


def ladder(pause_s: float = 5.0, deadline_s: float = 0.1) -> tuple[Ladder, list[BaseException]]:
    failures: list[BaseException] = []
    return Ladder(deadline_s, lambda what, error: failures.append(error), pause_s), failures


@pytest.mark.parametrize(
    ("waited_ms", "level"),
    [(0, "full"), (50, "full"), (51, "no_text"), (64, "no_text"), (79, "collaborative"), (89, "popularity")],
)
def test_who_waited_gets_less(waited_ms, level):
    answer = ladder()[0].answer(listed, waited_ms / 1e3)
    assert answer.rung == level
    assert answer.degraded_reason == (None if level == "full" else OVERLOADED)
    assert answer.degraded == (level != "full")


def test_who_waited_too_long_is_refused():
    with pytest.raises(Refusal, match="overloaded"):
        ladder()[0].answer(listed, 0.0901)


def test_a_failing_level_is_skipped_after_a_while_and_comes_back():
    steps, failures = ladder(pause_s=1.0)
    asked: list[Level] = []
    broken = True

    def ask(level: Level) -> Ranking:
        asked.append(level)
        if level <= Level.NO_TEXT and broken:
            raise RuntimeError("no encoder")
        return listed(level)

    for _ in range(3 * MOST_FAILURES):
        answer = steps.answer(ask, 0.0)
        assert (answer.rung, answer.degraded_reason) == ("collaborative", FAILING)
    assert asked.count(Level.FULL) == asked.count(Level.NO_TEXT) == len(failures) / 2 == MOST_FAILURES
    time.sleep(1.01)
    steps.answer(ask, 0.0)
    assert asked.count(Level.FULL) == MOST_FAILURES + 1
    broken = False
    time.sleep(1.01)
    assert steps.answer(ask, 0.0) == listed(Level.FULL)


def test_a_slow_level_is_skipped_too():
    steps, _ = ladder(deadline_s=0.2)

    def ask(level: Level) -> Ranking:
        time.sleep(0.12 if level == Level.FULL else 0.0)
        return listed(level)

    rungs = [steps.answer(ask, 0.0).rung for _ in range(MOST_FAILURES + 3)]
    assert rungs == ["full"] * MOST_FAILURES + ["no_text"] * 3


def test_where_everything_fails_the_end_is_a_refusal():
    def ask(level: Level) -> Ranking:
        raise ZeroDivisionError

    steps, _ = ladder()
    for _ in range(MOST_FAILURES + 1):
        with pytest.raises(Refusal, match="internal_failure"):
            steps.answer(ask, 0.0)


def test_a_wrong_request_is_not_a_failing_model():
    def ask(level: Level) -> Ranking:
        raise RecsysError("timestamp_out_of_range", "no")

    steps, failures = ladder()
    for _ in range(2 * MOST_FAILURES):
        with pytest.raises(RecsysError):
            steps.answer(ask, 0.0)
    assert steps.answer(listed, 0.0).rung == "full"
    assert not failures


# Turns


def test_turns_come_in_order_and_the_loop_turns_in_between():
    async def scene() -> tuple[list[int], int]:
        turns, done, rounds = Turns(100, 10.0), [], 0

        async def count() -> None:
            nonlocal rounds
            while len(done) < 20:
                rounds += 1
                await asyncio.sleep(0)

        await asyncio.gather(*(turns.run(lambda n=n: done.append(n), 10) for n in range(20)), count())
        assert len(turns) == 0
        return done, rounds

    done, rounds = asyncio.run(scene())
    assert done == list(range(20))
    assert rounds >= 19


def test_what_can_wait_goes_when_nobody_wants_a_turn():
    async def scene() -> list[str]:
        turns, done = Turns(100, 10.0), []

        async def later() -> None:
            await turns.lull()
            done.append("event")

        async def now(number: int) -> None:
            await turns.run(lambda: done.append(f"rank {number}"), 10)

        await asyncio.gather(now(1), later(), now(2), now(3))
        await later()
        return done

    assert asyncio.run(scene()) == ["rank 1", "rank 2", "rank 3", "event", "event"]


def test_without_a_lull_events_go_on_all_the_same():
    async def scene() -> float:
        turns, end = Turns(100, 10.0), time.perf_counter() + 0.5

        async def client() -> None:
            while time.perf_counter() < end:
                await turns.run(lambda: time.sleep(0.001), 10)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await asyncio.sleep(0.01)
        begin = time.perf_counter()
        await turns.lull()
        waited = time.perf_counter() - begin
        await asyncio.gather(*clients)
        return waited

    assert LULL_S <= asyncio.run(scene()) < 0.4


def test_the_line_is_bounded_in_length_and_in_time():
    async def scene(most: int, limit_s: float, nap_s: float) -> Counter[str]:
        turns = Turns(most, limit_s)

        async def one() -> str:
            try:
                return await turns.run(lambda: time.sleep(nap_s) or "done", 10)
            except Refusal as refusal:
                return refusal.code

        first = await asyncio.gather(*(one() for _ in range(12)))
        return Counter(first + await asyncio.gather(*(one() for _ in range(40))))

    assert asyncio.run(scene(10, 10.0, 0.0))["overloaded"] == 1 + 29
    by_pace = asyncio.run(scene(1000, 0.05, 0.01))
    assert 20 < by_pace["overloaded"] < 40


def test_failures_of_the_work_are_its_callers():
    async def scene() -> None:
        turns = Turns(10, 1.0)
        for size in (10, HUGE_BODY):
            with pytest.raises(ZeroDivisionError):
                await turns.run(lambda: 1 / 0, size)
        assert await turns.run(lambda: 5, 10) == 5

    asyncio.run(scene())


def test_huge_work_leaves_most_of_the_time_to_others():
    async def scene() -> float:
        turns = Turns(100, 10.0)
        end = time.perf_counter() + 0.5
        spent = 0.0

        def work() -> None:
            nonlocal spent
            time.sleep(0.01)
            spent += 0.01

        async def client() -> None:
            while time.perf_counter() < end:
                await turns.run(work, HUGE_BODY)

        await asyncio.gather(*(client() for _ in range(5)))
        return spent

    assert asyncio.run(scene()) < 0.3
