"""Another version tried on answered requests: its figures by hand, and that nobody waits for it."""

import asyncio
import time
from pathlib import Path

import pytest

from recsys.bundle import read_bundle
from serving.engine.answering import rank
from serving.engine.live_model import LiveModel
from serving.lifecycle.shadow import Shadow, ShadowFigures, ShadowSettings, rank_correlation
from serving.lifecycle.slot import ModelSlot
from serving.messages import ModelName, RankedItem, Ranking, RankRequest

AS_OF = 30 * 86_400.0
NAME = ModelName(name="recsys", version=2, alias="challenger")
ALL = ShadowSettings(share=1.0, longest_s=600.0)
"""The machine that runs the tests may be busy."""


@pytest.fixture(scope="module")
def models(bundle_folder: Path, second_folder: Path) -> list[LiveModel]:
    return [LiveModel.load(read_bundle(folder), NAME) for folder in (bundle_folder, second_folder)]


def slot_with(model: LiveModel | None) -> ModelSlot:
    slot = ModelSlot()
    if model is not None:
        slot.swap(model)
    return slot


def ask(number: int, k: int | None = None) -> RankRequest:
    candidates = [f"i{(number + place) % 40:02d}" for place in range(10)]
    return RankRequest(user_id=f"u{number % 20:02d}", candidates=candidates, k=k)


def run_until(shadow: Shadow, *steps) -> None:
    """Let it work until each condition holds, one after another; a step that is no condition gives None."""

    async def turn() -> None:
        running = asyncio.create_task(shadow.run())
        for step in steps:
            while step() is False:
                await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(turn(), 30.0))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([1, 2, 3], 1.0),
        ([3, 2, 1], -1.0),
        ([1, 3, 2, 4], 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)),
        ([10, 70, 30], 1 - 6 * (0 + 1 + 1) / (3 * 8)),
        ([2, 1], -1.0),
    ],
)
def test_rank_correlation_by_hand(ranks: list[int], expected: float):
    assert rank_correlation(ranks) == pytest.approx(expected, abs=1e-12)


def test_a_version_that_is_the_same_differs_in_nothing(models):
    shadow = Shadow(slot_with(models[0]), lambda: False, ALL)
    for number in range(8):
        shadow.offer(ask(number), rank(models[0], ask(number), AS_OF), AS_OF)
    run_until(shadow, lambda: shadow.figures().requests == 8)
    assert shadow.figures() == ShadowFigures(
        requests=8, dropped=0, errors=0, first_changed=0.0, rank_correlation=1.0, largest_difference=0.0
    )


@pytest.mark.parametrize("k", [None, 3])
def test_another_version_differs_by_what_its_lists_say(models, k):
    shadow = Shadow(slot_with(models[1]), lambda: False, ALL)
    changed, correlations, largest = 0, [], 0.0
    for number in range(8):
        mine, other = rank(models[0], ask(number, k), AS_OF), rank(models[1], ask(number), AS_OF)
        shadow.offer(ask(number, k), mine, AS_OF)
        theirs = {item.id: item for item in other.items}
        changed += mine.items[0].id != other.items[0].id
        correlations.append(rank_correlation([theirs[item.id].rank for item in mine.items]))
        largest = max(largest, *(abs(item.score - theirs[item.id].score) for item in mine.items))
    run_until(shadow, lambda: shadow.figures().requests == 8)
    figures = shadow.figures()
    assert figures.first_changed == changed / 8
    assert figures.rank_correlation == pytest.approx(sum(correlations) / 8)
    assert figures.largest_difference == pytest.approx(largest)
    assert figures.rank_correlation < 1.0
    assert figures.largest_difference > 0.0


def test_a_share_of_the_requests_is_tried(models):
    shadow = Shadow(slot_with(models[0]), lambda: False, ShadowSettings(share=0.25, most_waiting=1000))
    answer = rank(models[0], ask(1), AS_OF)
    for _ in range(400):
        shadow.offer(ask(1), answer, AS_OF)
    assert 70 < shadow._waiting.qsize() < 130


def test_a_busy_loop_is_left_alone_and_the_rest_dropped(models):
    busy = [True]
    shadow = Shadow(
        slot_with(models[0]), lambda: bool(busy), ShadowSettings(share=1.0, most_waiting=5, longest_s=0.05)
    )
    answer = rank(models[0], ask(1), AS_OF)
    for _ in range(7):
        shadow.offer(ask(1), answer, AS_OF)
    assert shadow.figures().dropped == 2
    run_until(
        shadow,
        lambda: shadow.figures().dropped == 7,
        lambda: busy.clear(),
        lambda: shadow.offer(ask(1), answer, AS_OF),
        lambda: shadow.figures().requests + shadow.figures().dropped == 8,
    )


def test_an_offer_takes_no_time(models):
    shadow = Shadow(slot_with(models[0]), lambda: True, ALL)
    answer = rank(models[0], ask(1), AS_OF)
    started = time.process_time()
    for _ in range(10_000):
        shadow.offer(ask(1), answer, AS_OF)
    assert (time.process_time() - started) / 10_000 < 1e-4


def test_a_version_that_fails_is_counted_and_nobody_hears_of_it(models):
    shadow = Shadow(slot_with(models[0]), lambda: False, ALL)
    shadow.offer(
        RankRequest(user_id="u01", candidates=["i01"], timestamp=AS_OF * 9), answer_of(["i01"]), AS_OF
    )
    run_until(shadow, lambda: shadow.figures().errors == 1)
    assert shadow.figures().requests == 0


def answer_of(items: list[str], reason: str | None = None) -> Ranking:
    ranked = [RankedItem(id=item, score=-float(place), rank=place + 1) for place, item in enumerate(items)]
    return Ranking(
        items=ranked, rung="popular", model=NAME, degraded=reason is not None, degraded_reason=reason
    )


def test_answers_of_less_than_the_model_do_not_count(models):
    shadow = Shadow(slot_with(models[0]), lambda: False, ALL)
    for reason in ("overloaded", "model_failing"):
        shadow.offer(ask(1), answer_of(["i01"], reason), AS_OF)
    Shadow(slot_with(None), lambda: False, ALL).offer(ask(1), answer_of(["i01"]), AS_OF)
    assert shadow._waiting.empty()
    shadow.offer(RankRequest(candidates=[]), answer_of([]), AS_OF)
    shadow.offer(RankRequest(candidates=["i01"]), answer_of(["i01"], "unknown_user"), AS_OF)
    run_until(shadow, lambda: shadow.figures().requests == 2)
    assert shadow.figures().rank_correlation is None


def test_figures_begin_anew_with_another_version(models):
    slot = slot_with(models[0])
    shadow = Shadow(slot, lambda: False, ALL)
    shadow.offer(ask(1), rank(models[0], ask(1), AS_OF), AS_OF)
    run_until(
        shadow,
        lambda: shadow.figures().requests == 1,
        lambda: slot.swap(models[1]),
        lambda: shadow.offer(ask(2), rank(models[0], ask(2), AS_OF), AS_OF),
        lambda: (shadow.figures().largest_difference or 0.0) > 0.0,
    )
    assert shadow.figures().requests == 1


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float):
    with pytest.raises(ValueError, match="share"):
        ShadowSettings(share=share)
