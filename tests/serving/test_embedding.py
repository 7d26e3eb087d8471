"""Texts of new items while models answer: all are embedded, and an encoder that fails stops nothing."""

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recsys.bundle import read_bundle
from recsys.text.later import LaterEncoder
from serving.engine.answering import rank, similar
from serving.engine.live_model import LiveModel
from serving.lifecycle import embedding
from serving.lifecycle.embedding import MOST_TEXTS, TextEmbedding
from serving.lifecycle.slot import ModelSlot
from serving.messages import ItemEvent, ModelName, RankRequest, SimilarRequest

AS_OF = 30 * 86_400.0
NAME = ModelName(name="recsys", version=1)


class Encoder:
    """A model's encoder that may fail or hang first."""

    def __init__(self, encoder, fail: int = 0) -> None:
        self.encoder, self.fail = encoder, fail
        self.batches: list[int] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(texts))
        assert self.goes_on.wait(60)
        if self.fail:
            self.fail -= 1
            raise RuntimeError("no memory")
        return self.encoder.encode(texts)


@pytest.fixture
def slots(bundle_folder: Path, second_folder: Path) -> list[ModelSlot]:
    """Two models that answer, and a slot without one."""
    found = []
    for folder in (bundle_folder, second_folder):
        model = LiveModel.load(read_bundle(folder), NAME)
        model.encoder = Encoder(model.encoder)
        found.append(ModelSlot())
        found[-1].swap(model)
    return [*found, ModelSlot()]


def introduce(slots: list[ModelSlot], count: int, title: str = "a red thing i07") -> None:
    for slot in slots:
        for number in range(count if slot.current else 0):
            event = ItemEvent(event_id=f"e{number}", item_id=f"n{number}", timestamp=AS_OF + 1.0, title=title)
            slot.current.apply(event, slot.current.sequence + 1)


def waiting(slots: list[ModelSlot]) -> list[int]:
    return [len(slot.current.texts_to_embed()) for slot in slots if slot.current]


def live(texts: TextEmbedding, meanwhile) -> None:
    """Let it run while something else happens."""

    async def both() -> None:
        running = asyncio.create_task(texts.run())
        await asyncio.wait_for(meanwhile(), 60.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(both())


async def until(is_so) -> None:
    while not is_so():
        await asyncio.sleep(0.005)


def near(slot: ModelSlot, item: str, count: int = 60) -> list[str]:
    return [str(each.id) for each in similar(slot.current, SimilarRequest(item_id=item, k=count)).items]


def test_every_model_embeds_every_text_a_few_at_a_time(slots):
    failures: list[str] = []
    introduce(slots, MOST_TEXTS + 5)

    async def scene() -> None:
        await until(lambda: waiting(slots) == [0, 0])
        introduce(slots, 1, "an old thing")  # other words for the first one
        assert waiting(slots) == [1, 1]
        await until(lambda: waiting(slots) == [0, 0])

    live(TextEmbedding(slots, lambda what, error: failures.append(what)), scene)
    assert failures == []
    for slot in slots[:2]:
        assert slot.current.encoder.batches == [MOST_TEXTS, 5, 1]
        assert len(near(slot, "n3", 100)) == 40 + MOST_TEXTS + 4
        assert near(slot, "n3")[0] in {f"n{number}" for number in range(1, MOST_TEXTS + 5)}


def test_an_encoder_that_fails_is_told_of_and_tried_again(slots, monkeypatch):
    monkeypatch.setattr(embedding, "PAUSE_S", 0.02)
    failures: list[tuple[str, str]] = []
    slots[0].current.encoder.fail = 3
    introduce(slots, 2)

    async def scene() -> None:
        await until(lambda: len(failures) == 2)
        found = rank(slots[0].current, RankRequest(user_id="u03", candidates=["n0", "i01"]), AS_OF + 2.0)
        assert np.isfinite([item.score for item in found.items]).all(), "it is ranked without its words"
        await until(lambda: waiting(slots) == [0, 0])

    live(TextEmbedding(slots, lambda what, error: failures.append((what, str(error)))), scene)
    assert failures == [("texts_not_embedded", "no memory")] * 3
    assert near(slots[0], "n0")


def test_an_encoder_that_hangs_holds_up_nobody(slots, monkeypatch):
    monkeypatch.setattr(embedding, "PAUSE_S", 0.02)
    monkeypatch.setattr(embedding, "LIMIT_S", 0.05)
    failures: list[str] = []
    encoder = slots[0].current.encoder
    encoder.goes_on.clear()
    introduce(slots, 2)

    async def scene() -> None:
        await until(lambda: len(failures) >= 4)
        assert len(encoder.batches) == 1, "no second call behind one that hangs"
        assert threading.active_count() <= before + 1
        began = time.monotonic()
        for _ in range(20):
            await asyncio.sleep(0)
        assert time.monotonic() - began < 1.0
        encoder.goes_on.set()
        await until(lambda: waiting(slots) == [0, 0])

    before = threading.active_count()
    live(TextEmbedding(slots, lambda what, error: failures.append(str(error))), scene)
    assert all(text.startswith("encoder_slow") for text in failures)
    assert near(slots[0], "n0")


def test_words_that_change_while_they_are_embedded_are_embedded_anew(slots):
    encoder = slots[0].current.encoder
    encoder.goes_on.clear()
    introduce(slots[:1], 1, "a blue thing i07")

    async def scene() -> None:
        await until(lambda: encoder.batches == [1])
        introduce(slots[:1], 1, "a red thing i24")
        encoder.goes_on.set()
        await until(lambda: waiting(slots[:1]) == [0])

    live(TextEmbedding(slots[:1], lambda what, error: pytest.fail(str(error))), scene)
    assert encoder.batches == [1, 1]
    assert near(slots[0], "n0")[0] == "i24", "a red thing, too"


def test_an_encoder_that_comes_later_is_there_soon_and_new_items_wait_for_it(bundle_folder):
    now, later = (
        LiveModel.load(read_bundle(bundle_folder), NAME, encoder_later=wait) for wait in (False, True)
    )
    assert (now.encoder.is_loaded, later.encoder.is_loaded) == (True, False)
    slots = [ModelSlot(), ModelSlot()]
    for slot, model in zip(slots, (now, later), strict=True):
        slot.swap(model)

    async def scene() -> None:
        await until(lambda: later.encoder.is_loaded)
        assert waiting(slots) == [0, 0], "before there is any text"
        introduce(slots, 3)
        await until(lambda: waiting(slots) == [0, 0])

    live(TextEmbedding(slots, lambda what, error: pytest.fail(str(error))), scene)
    assert near(slots[0], "n0") == near(slots[1], "n0")


def test_an_encoder_that_cannot_be_loaded_is_told_of_at_once(bundle_folder):
    model = LiveModel.load(read_bundle(bundle_folder), NAME, encoder_later=True)
    model.encoder = LaterEncoder(lambda: 1 / 0)
    slot = ModelSlot()
    slot.swap(model)
    failures: list[str] = []

    async def scene() -> None:
        await until(lambda: failures)

    live(TextEmbedding([slot], lambda what, error: failures.append(what)), scene)
    assert failures == ["texts_not_embedded"]
