"""Embedding the texts of new items, while the models that they came to go on answering."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from recsys.errors import EXIT_TEMPORARY, RecsysError
from recsys.events import Float32
from recsys.text.later import LaterEncoder
from serving.engine.live_model import LiveModel
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.worker import Worker

PERIOD_S = 0.05
PAUSE_S = 1.0
"""After a failure."""
MOST_TEXTS = 32
"""So many at a time, so that one text does not wait for thousands."""
LIMIT_S = 30.0


class TextEmbedding:
    """Gives the new items of each slot's current model their embeddings, in the order in which they came."""

    def __init__(self, slots: Sequence[ModelSlot], failed: Callable[[str, BaseException], None]) -> None:
        """Take the slots, and whoever hears of an encoder that fails."""
        self._slots, self._failed = slots, failed
        self._worker = Worker("embedding")

    async def run(self) -> None:
        """Look for new texts for ever."""
        while True:
            try:
                while await self.step():
                    pass
            except Exception as error:  # of an encoder; the items are ranked without their text meanwhile
                self._failed("texts_not_embedded", error)
                await asyncio.sleep(PAUSE_S)
            await asyncio.sleep(PERIOD_S)

    def close(self) -> None:
        """End the thread that embeds."""
        self._worker.close()

    async def step(self) -> int:
        """Embed some texts of each model, and say how many there were; load its encoder where nobody has yet.

        Raises:
            RecsysError: `encoder_slow` after half a minute; of `load_encoder`.
            Exception: of an encoder.
        """
        done = 0
        for slot in self._slots:
            if slot.current is not None:
                done += await self._embed(slot.current)
        return done

    async def _embed(self, model: LiveModel) -> int:
        late = RecsysError("encoder_slow", f"no answer in {LIMIT_S:g} s", exit_code=EXIT_TEMPORARY)
        if isinstance(model.encoder, LaterEncoder) and not model.encoder.is_loaded:
            await self._worker.run(model.encoder.get_ready, LIMIT_S, late)
        chosen = list(islice(model.texts_to_embed().items(), MOST_TEXTS))
        if not chosen:
            return 0
        found: Float32 = await self._worker.run(
            lambda: np.asarray(model.encoder.encode([text for _, text in chosen])), LIMIT_S, late
        )
        for (row, text), embedding in zip(chosen, found, strict=True):
            model.embedded(row, text, embedding)
        return len(chosen)
