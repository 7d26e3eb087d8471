"""Swaps of models over one log of events: nothing missed, nothing doubled, nothing kept too long."""

import asyncio
import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from recsys.bundle import read_bundle
from recsys.errors import RecsysError
from serving.engine.answering import rank
from serving.engine.live_model import Level, LiveModel
from serving.events.parsing import record_of
from serving.events.sqlite_log import SqliteLog
from serving.lifecycle.catching_up import catch_up, embed_new_texts
from serving.lifecycle.following import Follower
from serving.lifecycle.health_budget import HealthBudget, HealthCheck, Latencies
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.warm_up import RecentRequests, golden_requests, take_in_events, warm_up
from serving.lifecycle.worker import Worker
from serving.messages import ImpressionEvent, InteractionEvent, ItemEvent, ModelName, RankRequest

DAY_S = 86_400.0
AS_OF = 30 * DAY_S
NAME = ModelName(name="recsys", version=1, alias="champion")


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path):
    return read_bundle(bundle_folder)


@pytest.fixture
def log(tmp_path: Path):
    log = SqliteLog(tmp_path / "events.db", reserve_bytes=0, durability="os")
    yield log
    log.close()


def events_of(count: int, first: int = 0) -> list:
    """Clicks, slates and a new item now and then, in time order."""
    rng = np.random.default_rng(first)
    found = []
    for number in range(first, first + count):
        moment = AS_OF + 10.0 * number
        user, item = f"u{rng.integers(20):02d}", f"i{rng.integers(40):02d}"
        common = {"event_id": f"e{number}", "timestamp": moment}
        if number % 10 == 3:
            found.append(ImpressionEvent(user_id=user, shown=[item, "i01"], **common))
        elif number % 50 == 7:
            found.append(ItemEvent(item_id=f"n{number}", title=f"a blue thing {number}", **common))
        else:
            found.append(InteractionEvent(user_id=user, item_id=item, event_type="click", **common))
    return found


def store(log: SqliteLog, events: list) -> None:
    log.append([record_of(event, event.timestamp) for event in events])


def model_that_saw(bundle, events: list) -> LiveModel:
    """What a model is that heard everything once, one after another."""
    model = LiveModel.load(bundle, NAME)
    for number, event in enumerate(events, 1):
        model.apply(event, number)
    for row, text in model.texts_to_embed().items():
        model.embedded(row, text, model.encoder.encode([text])[0])
    return model


def assert_same(model: LiveModel, expected: LiveModel) -> None:
    assert model.sequence == expected.sequence
    assert model.state.to_files() == expected.state.to_files()
    assert len(model.items) == len(expected.items)
    assert model.new_items.keys() == expected.new_items.keys()
    for row, item in model.new_items.items():
        np.testing.assert_array_equal(item.embedding, expected.new_items[row].embedding)


def test_a_slot_keeps_the_model_before_and_lets_the_one_before_that_go(bundle):
    slot = ModelSlot()
    assert (slot.current, slot.previous) == (None, None)
    with pytest.raises(RecsysError, match="nothing_to_roll_back"):
        slot.to_go_back_to()
    first, second, third = (LiveModel.load(bundle, NAME) for _ in range(3))
    slot.swap(first)
    slot.swap(first, "registry_unavailable")
    assert (slot.current, slot.previous, slot.degraded_reason) == (first, None, "registry_unavailable")
    gone = weakref.ref(first)
    slot.swap(second)
    assert (slot.current, slot.previous, slot.degraded_reason) == (second, first, None)
    slot.swap(third)
    del first
    gc.collect()
    assert gone() is None
    slot.swap(slot.to_go_back_to())
    assert (slot.current, slot.previous) == (second, third)
    slot.drop_previous()
    assert slot.previous is None


def test_an_event_reaches_the_current_model_once(bundle):
    events = events_of(30)
    slot = ModelSlot()
    slot.apply(events[0], 1)
    slot.swap(LiveModel.load(bundle, NAME))
    for number, event in enumerate(events, 1):
        slot.apply(event, number)
        slot.apply(event, number)
    assert_same_state_without_texts(slot.current, events, bundle)


def assert_same_state_without_texts(model, events, bundle):
    expected = LiveModel.load(bundle, NAME)
    for number, event in enumerate(events, 1):
        expected.apply(event, number)
    assert model.state.to_files() == expected.state.to_files()
    assert model.sequence == expected.sequence


def test_an_event_that_a_model_trips_over_stops_nothing(bundle, monkeypatch):
    events = events_of(3)
    slot = ModelSlot()
    model = LiveModel.load(bundle, NAME)
    slot.swap(model)
    with monkeypatch.context() as broken:
        broken.setattr(model, "state", None)
        slot.apply(events[0], 1)
    slot.apply(events[1], 2)
    assert (slot.failed, model.sequence) == (1, 2)


def test_a_model_is_caught_up_from_the_log_alone(bundle, log):
    events = events_of(700)
    store(log, events)
    model = LiveModel.load(bundle, NAME)
    asyncio.run(catch_up(model, log, ModelSlot(), Worker("model"), 60.0))
    assert_same(model, model_that_saw(bundle, events))


def test_a_swap_while_events_pour_in_misses_none_and_doubles_none(bundle, log):
    """A writer thread stores all the time, a follower shows the current model, and six models come in."""
    events, slot = events_of(600), ModelSlot()
    models = [LiveModel.load(bundle, NAME) for _ in range(6)]
    stored = [0]

    def write(loop: asyncio.AbstractEventLoop, follower: Follower) -> None:
        for start in range(0, len(events), 5):
            after = log.last
            store(log, events[start : start + 5])
            stored[0] = start + 5
            if start % 4:  # else nobody tells, and the follower looks for itself
                loop.call_soon_threadsafe(follower.hear, after, log.read(after, 5))
            began = time.monotonic()
            while slot.sequence < stored[0]:
                time.sleep(0.001)
            time.sleep(3 * (time.monotonic() - began))  # as much of a load on a slow machine as on a fast one

    async def live() -> list[int]:
        slot.swap(LiveModel.load(bundle, NAME))
        follower, worker, reached = Follower(log, [slot], pytest.fail), Worker("model"), []
        following = asyncio.create_task(follower.run())
        writer = threading.Thread(target=write, args=(asyncio.get_running_loop(), follower), daemon=True)
        writer.start()
        for number, model in enumerate(models, 1):
            while stored[0] < number * len(events) // 8:
                await asyncio.sleep(0.005)
            before = slot.current
            await catch_up(model, log, slot, worker, 60.0)
            assert model.sequence >= before.sequence, "the new model knows what the old one knew"
            slot.swap(model)
            slot.go_on()
            reached.append(model.sequence)
        while slot.current.sequence < len(events):
            await asyncio.sleep(0.01)
        writer.join()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return reached

    reached = asyncio.run(asyncio.wait_for(live(), 100.0))
    assert len({sequence for sequence in reached if 0 < sequence < len(events)}) >= 4
    assert_same_state_without_texts(slot.current, events, bundle)


def test_events_that_are_held_back_reach_whoever_is_current_then(bundle):
    events, slot = events_of(20), ModelSlot()
    first, second = (LiveModel.load(bundle, NAME) for _ in range(2))
    slot.swap(first)
    slot.apply(events[0], 1)
    slot.keep_events()
    slot.apply(events[1], 2)
    slot.hold_events()
    for _ in range(2):
        slot.apply(events[2], 3)
    assert slot.sequence == 3
    assert (first.sequence, slot.kept_after(1)) == (2, [(events[1], 2), (events[2], 3)])
    slot.go_on()
    assert (first.sequence, slot.kept_after(0)) == (3, [])
    second.apply(events[0], 1)
    slot.keep_events()
    slot.hold_events()
    slot.apply(events[3], 4)
    slot.swap(second)
    slot.go_on()
    assert (first.sequence, second.sequence) == (3, 4)


def test_a_follower_shows_each_event_to_every_slot(bundle, second_folder, log):
    events = events_of(300)
    slots = [ModelSlot(), ModelSlot(), ModelSlot()]
    slots[0].swap(LiveModel.load(bundle, NAME))

    async def follow() -> None:
        follower = Follower(log, slots, pytest.fail)
        assert await follower.step() == 0
        store(log, events[:200])
        while await follower.step():
            pass
        late = LiveModel.load(read_bundle(second_folder), NAME)
        slots[1].swap(late)
        store(log, events[200:])
        while await follower.step():
            pass

    asyncio.run(follow())
    for slot, folder in ((slots[0], bundle), (slots[1], read_bundle(second_folder))):
        assert_same_state_without_texts(slot.current, events, folder)
    assert slots[2].current is None


@pytest.mark.parametrize("is_told", [True, False])
def test_a_stored_event_counts_within_a_second(bundle, log, is_told):
    event = events_of(1)[0]
    slot = ModelSlot()
    slot.swap(LiveModel.load(bundle, NAME))

    async def wait() -> float:
        follower = Follower(log, [slot], pytest.fail)
        following = asyncio.create_task(follower.run())
        await asyncio.sleep(0.05)
        store(log, [event])
        if is_told:
            follower.hear(0, log.read(0, 1))
        start = time.perf_counter()
        while slot.current.sequence < 1:
            await asyncio.sleep(0.001)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return time.perf_counter() - start

    assert asyncio.run(asyncio.wait_for(wait(), 10.0)) < 1.0


def test_a_part_that_was_not_told_is_read_from_the_log(bundle, log):
    """Of four parts the first and the third are lost, and the fourth is told twice."""
    events, slot = events_of(40), ModelSlot()
    slot.swap(LiveModel.load(bundle, NAME))
    store(log, events)
    unread: list[int] = []

    class Counted:
        def read(self, after: int, limit: int):
            unread.append(after)
            return log.read(after, 10)

    async def follow() -> None:
        follower = Follower(Counted(), [slot], pytest.fail)
        for after in (10, 30, 30):
            follower.hear(after, log.read(after, 10))
        while await follower.step(look=False):
            pass

    asyncio.run(follow())
    embed_new_texts(slot.current)
    assert unread == [0, 20]
    assert_same(slot.current, model_that_saw(bundle, events))


def test_a_log_that_cannot_be_read_is_told_and_followed_again(bundle, log):
    from serving.events.sqlite_reader import SqliteReader

    slot, told = ModelSlot(), []
    slot.swap(LiveModel.load(bundle, NAME))
    store(log, events_of(5))
    closed, opened = SqliteReader(log.path), SqliteReader(log.path)
    closed.close()

    class Reopened:
        reader = closed

        def read(self, after: int, limit: int):
            return self.reader.read(after, limit)

    async def follow() -> None:
        reopened = Reopened()
        follower = Follower(reopened, [slot], lambda what, error: told.append((what, error.code)))
        following = asyncio.create_task(follower.run())
        while not told:
            await asyncio.sleep(0.01)
        reopened.reader = opened
        while slot.current.sequence < 5:
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(asyncio.wait_for(follow(), 20.0))
    opened.close()
    assert set(told) == {("events_unread", "events_blocked")}


class SlowLog:
    """A real log on a slow disk."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log

    def read(self, after: int, limit: int):
        time.sleep(0.2)
        return self.log.read(after, 5)


def test_catching_up_has_an_end_where_the_log_is_slow(bundle, log):
    events = events_of(50)
    store(log, events)
    slot = ModelSlot()
    slot.swap(model_that_saw(bundle, events))
    started = time.monotonic()
    with pytest.raises(RecsysError, match="catch_up_slow"):
        asyncio.run(catch_up(LiveModel.load(bundle, NAME), SlowLog(log), slot, Worker("model"), 0.5))
    assert time.monotonic() - started < 10


def test_a_first_model_does_not_wait_for_all_events_and_gets_the_rest_later(bundle, log, monkeypatch):
    import serving.lifecycle.catching_up

    monkeypatch.setattr(serving.lifecycle.catching_up, "FIRST_S", 0.0)
    events, slot = events_of(600), ModelSlot()
    store(log, events)

    async def start() -> int:
        model = LiveModel.load(bundle, NAME)
        await catch_up(model, log, slot, Worker("model"), 60.0)
        slot.swap(model)
        reached = model.sequence
        follower = Follower(log, [slot], pytest.fail)
        while await follower.step():
            pass
        return reached

    assert asyncio.run(start()) == 256
    assert_same_state_without_texts(slot.current, events, bundle)


def test_a_worker_gives_up_waiting_and_refuses_until_the_call_is_back():
    release = threading.Event()

    async def work() -> str:
        worker = Worker("test")
        assert await worker.run(lambda: 7, 5.0, TimeoutError("late")) == 7
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0, 5.0, TimeoutError("late"))
        for _ in range(2):
            with pytest.raises(TimeoutError, match="late"):
                await worker.run(release.wait, 0.05, TimeoutError("late"))
        release.set()
        while True:
            try:
                return await worker.run(lambda: "back", 5.0, TimeoutError("late"))
            except TimeoutError:
                await asyncio.sleep(0.01)

    assert asyncio.run(asyncio.wait_for(work(), 10.0)) == "back"


def test_a_worker_keeps_its_thread_and_ends_it_when_it_is_closed():
    async def work() -> None:
        worker = Worker("kept")
        threads = {await worker.run(threading.current_thread, 5.0, TimeoutError("late")) for _ in range(5)}
        assert len(threads) == 1
        assert threads.pop().is_alive()
        worker.close()
        assert "kept" not in {thread.name for thread in threading.enumerate()}
        worker.close()

    asyncio.run(work())


def test_a_worker_is_closed_at_once_while_a_call_hangs():
    release = threading.Event()

    async def work() -> None:
        worker = Worker("hanging")
        with pytest.raises(TimeoutError, match="late"):
            await worker.run(release.wait, 0.05, TimeoutError("late"))
        begin = time.monotonic()
        worker.close()
        assert time.monotonic() - begin < 0.5

    asyncio.run(work())
    [hanging] = [thread for thread in threading.enumerate() if thread.name == "hanging"]
    release.set()
    hanging.join(5.0)
    assert not hanging.is_alive()


def note_all(check: HealthCheck, count: int, seconds: float, *, failed: bool = False) -> str:
    verdict = "watching"
    for _ in range(count):
        verdict = check.note(seconds, failed=failed)
        if verdict != "watching":
            return verdict
    return verdict


def test_a_model_that_errs_too_often_is_found_before_its_requests_are_over():
    check = HealthCheck(HealthBudget(requests=100, error_share=0.05))
    assert note_all(check, 5, 0.001, failed=True) == "watching"
    assert check.note(0.001, failed=True) == "too_many_errors"
    assert check.seen == 6


def test_a_model_that_is_much_slower_than_the_one_before_is_found():
    budget = HealthBudget(requests=100, slow_share=0.2, slow_floor_s=0.001)
    check = HealthCheck(budget, before_s=[0.002] * 50 + [9.0])
    assert check.slow_s == pytest.approx(0.006)
    assert note_all(check, 20, 0.007) == "watching"
    assert check.note(0.007, failed=False) == "too_slow"
    assert note_all(HealthCheck(budget, [0.002]), 200, 0.005) == "good"


def test_without_a_model_before_only_the_floor_counts():
    budget = HealthBudget(requests=10, slow_floor_s=0.5)
    assert note_all(HealthCheck(budget), 10, 0.4) == "good"
    assert note_all(HealthCheck(budget), 10, 0.6) == "too_slow"


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"error_share": 1.0}, {"slow_share": 0.0}])
def test_a_budget_that_decides_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="health budget"):
        HealthBudget(**wrong)


def test_latencies_are_taken_once_and_bounded():
    latencies = Latencies()
    for number in range(1000):
        latencies.note(float(number))
    assert latencies.take() == [float(number) for number in range(500, 1000)]
    assert latencies.take() == []


def test_a_model_warms_up_with_golden_and_recent_requests(bundle):
    recent = RecentRequests()
    for number in range(100):
        candidates = [f"i{number % 40:02d}", "i01"]
        recent.note(RankRequest(user_id="u01", candidates=candidates, timestamp=1.0, explain=True))
    requests = recent.list()
    assert len(requests) == 64
    assert {(request.timestamp, request.explain) for request in requests} == {(None, False)}
    golden = golden_requests(bundle)
    assert [len(request.candidates) for request in golden] == [20] * 4
    model = LiveModel.load(bundle, NAME)
    before = model.state.to_files()
    warm_up(model, [*golden, *requests, RankRequest(candidates=[])], AS_OF + 9 * DAY_S)
    assert model.state.to_files() == before


def test_days_that_a_warm_model_reads_from_the_log_count_as_for_a_cold_one(bundle):
    """Its lists of popular items would lack them for a day, had it been asked as of now."""
    now, found = AS_OF + 3 * DAY_S, []
    for requests in ([], golden_requests(bundle)):
        model = LiveModel.load(bundle, NAME)
        warm_up(model, requests, now)
        for number in range(60):
            moment = AS_OF + DAY_S + number
            event = InteractionEvent(
                event_id=f"e{number}", user_id="u01", item_id="i39", event_type="purchase", timestamp=moment
            )
            model.apply(event, number + 1)
        found.append(rank(model, RankRequest(candidates=["i01", "i39"]), now, Level.POPULARITY).items)
    assert found[0] == found[1]
    assert found[0][0].id == "i39"


def test_events_of_every_kind_are_tried_before_a_model_is_served(bundle):
    model = LiveModel.load(bundle, NAME)
    take_in_events(model, golden_requests(bundle))
    assert (model.sequence, len(model.new_items), model.texts_to_embed(), dict(model.orphans)) == (
        4,
        1,
        {},
        {},
    )
