"""One version of a recommender over state that moves: ids in, lists out.

It is used by one thread. Nothing here reads the network, the disk or the clock, and nothing waits.
`answering` makes the lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from features.live import LiveState
from recsys.bundle import Bundle
from recsys.events import Float32
from recsys.golden import check_golden
from recsys.model import Model, with_room
from recsys.requests import DAY_S
from recsys.reranking import Reranker, RerankingConfig
from recsys.scorer import Scorer
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.item_text import item_text
from recsys.text.later import LaterEncoder
from recsys.text.runtime import Encoder
from serving.engine.id_rows import IdRows
from serving.messages import Event, ImpressionEvent, InteractionEvent, ItemEvent, ModelName

ROOM = 4096
"""So many items, or an eighth of the catalogue, can come before the tables are laid out anew."""
MOST_ORPHANS = 100_000
"""Events of items that are not known yet, kept until their item comes."""


class Level(IntEnum):
    """How much of the model answers: each level costs less than the one before."""

    FULL = 0
    NO_TEXT = 1
    COLLABORATIVE = 2
    POPULARITY = 3


@dataclass
class NewItem:
    """An item that the bundle did not hold: its text waits for an encoder while `embedding` is zeros."""

    row: int
    text: str
    category: int
    first_seen: float
    embedding: Float32


class LiveModel:
    """A version, the state that events change, and the ids of both.

    Attributes:
        name: for answers. `digest`: of the bundle. `as_of`: nothing later was known in training.
        sequence: the newest event of the log that was taken in.
        users, items: ids and rows.
        recommender: the models, with room for new items.
        state: counters and histories.
        new_items: by row, those that came since.
        orphans: events that wait for their item. `ignored`: events of types without a role.
    """

    def __init__(
        self, model: Model, state: LiveState, encoder: Encoder, bundle: Bundle, name: ModelName
    ) -> None:
        """Take the parts of one bundle, which nobody else changes; the model has room for new items."""
        self.name, self.digest, self.as_of = name, bundle.digest, bundle.manifest.as_of
        self.sequence = 0
        self.users, self.items = IdRows(model.users), IdRows(model.catalogue.ids)
        self.state, self.encoder = state, encoder
        self.new_items: dict[int, NewItem] = {}
        self.orphans: defaultdict[str | int, list[InteractionEvent]] = defaultdict(list)
        self.ignored = 0
        self._catalogue, self._settings = model.catalogue, model.settings
        self._kinds = {kind: place for place, kind in enumerate(model.roles)}
        self._targets = {kind for kind, role in model.roles.items() if role.target and not role.negative}
        self._categories = {each: code for code, each in enumerate(model.catalogue.category_names)}
        self._subcategories = {each: code for code, each in enumerate(model.catalogue.subcategory_names)}
        self._to_embed: dict[int, str] = {}
        self._counted: list[tuple[int, int, float]] = []
        self._day = int(self.as_of // DAY_S)
        self.recommender = model.recommender

    @classmethod
    def load(cls, bundle: Bundle, name: ModelName, *, encoder_later: bool = False) -> LiveModel:
        """Read a verified bundle and hold it against its golden scores.

        Args:
            bundle: what it is; `read_to_load` gives one that is not held beside the model.
            name: for answers.
            encoder_later: leave the text encoder to whoever needs it first; answers do not.

        Raises:
            RecsysError: of `Model.from_files`, `LiveState.from_files`, `load_encoder` and `check_golden`.
        """
        state = LiveState.from_files(bundle.files)
        model = Model.from_files(bundle.files, state.features)
        room = max(ROOM, len(model.catalogue) // 8)
        roomy = with_room(model.recommender, room)
        model = replace(
            model, recommender=roomy, embeddings=ItemEmbeddings.empty()
        )  # the roomy one has its own
        scorer = Scorer(model, state, bundle.manifest.as_of)
        if (golden := bundle.golden()) is not None:
            found = scorer.score(
                golden.request, golden.user_id, golden.item_id, golden.source, golden.timestamp
            )
            check_golden(golden.score, found)
        encoder = LaterEncoder(lambda: _encoder(bundle.files))
        if not encoder_later:
            encoder.get_ready()
        return cls(model, state, encoder, bundle, name)

    def reranker(self, diversity: float | None) -> Reranker:
        """What is done to lists: what the version was made with, or more or less diverse."""
        document = dict(self._settings.get("reranking", {}))
        if diversity is not None:
            document["diversity"] = {**document.get("diversity", {}), "relevance_share": 1.0 - diversity}
        config = RerankingConfig.from_dict(document)
        return Reranker(config, self._catalogue, self.recommender.retriever.embeddings)

    def kind(self, event_type: str) -> int:
        """Index of an event type, -1 where the version has no role for it."""
        return self._kinds.get(event_type, -1)

    def category(self, name: str) -> int:
        """Code of a category, -1 for an unknown one."""
        return self._categories.get(name, -1)

    def apply(self, event: Event, sequence: int) -> None:
        """Take in an accepted event; one that came before this version's `as_of` is in it already."""
        self.sequence = max(self.sequence, sequence)
        if isinstance(event, ItemEvent):
            self._introduce(event)
        elif event.timestamp < self.as_of:
            return
        elif isinstance(event, ImpressionEvent):
            shown = self.items.find_all(event.shown)
            self.state.show(self.users.add(event.user_id), shown[shown >= 0], event.timestamp)
        else:
            self._interact(event)

    def begin_day(self, now: float) -> None:
        """Count the days that have ended: lists of popular and fresh items are those of the last midnight."""
        day = int(now // DAY_S)
        if day <= self._day:
            return
        self._day = day
        if self._counted:
            days, items, weights = zip(*self._counted, strict=True)
            self.recommender.retriever.popularity.add(
                np.array(days, np.int64), np.array(items, np.int32), np.array(weights, np.float64)
            )
            self._counted.clear()

    def texts_to_embed(self) -> dict[int, str]:
        """Texts of new items that have not been embedded yet, by row."""
        return dict(self._to_embed)

    def embedded(self, row: int, text: str, embedding: Float32) -> None:
        """The embedding of a new item's text; of no consequence where the text has changed meanwhile."""
        item = self.new_items[row]
        if item.text == text:
            self._to_embed.pop(row, None)
            item.embedding = embedding
            self._settle(item)

    def _interact(self, event: InteractionEvent) -> None:
        kind, row = self.kind(event.event_type), self.items.find(event.item_id)
        if kind < 0:
            self.ignored += 1
        elif row >= 0:
            self.state.update(self.users.add(event.user_id), row, kind, event.timestamp)
            if event.event_type in self._targets:
                weight = float(self.recommender.retriever.weights[kind])
                self._counted.append((int(event.timestamp // DAY_S), row, weight))
        elif len(self.orphans) < MOST_ORPHANS:
            self.orphans[event.item_id].append(event)
        else:
            self.ignored += 1

    def _introduce(self, event: ItemEvent) -> None:
        """A new item, or other words for one; the bundle's own stay as they are."""
        row = self.items.find(event.item_id)
        if row >= 0 and row not in self.new_items:
            return
        text = item_text(event.title, event.description, max_chars=int(self._settings["max_chars"]))
        nothing = np.zeros(self.recommender.retriever.embeddings.shape[1], np.float32)
        category = _code(self._categories, event.category)
        first_seen = event.timestamp if event.created_at is None else event.created_at
        if row < 0:
            row = self.items.add(event.item_id)
            code = _code(self._subcategories, event.subcategory)
            created = np.array([np.nan if event.created_at is None else event.created_at])
            self.state.add_items(np.array([category], np.int32), np.array([code], np.int32), created)
        elif text == self.new_items[row].text:
            return
        self.new_items[row] = NewItem(row, text, category, first_seen, nothing)
        if text:
            self._to_embed[row] = text
        else:
            self._to_embed.pop(row, None)
        if row >= len(self.recommender.category):
            self.recommender = with_room(self.recommender, len(self.recommender.category) // 4 + ROOM)
        self._settle(self.new_items[row])
        for orphan in self.orphans.pop(event.item_id, ()):
            self._interact(orphan)

    def _settle(self, item: NewItem) -> None:
        self.recommender.settle(item.row, item.embedding, item.category, item.first_seen)


def _encoder(files: Mapping[str, bytes]) -> Encoder:
    from recsys.text.loading import load_encoder  # its libraries are not for those who wait for answers

    return load_encoder(files, threads=1)


def _code(codes: dict[str, int], name: str | None) -> int:
    """The code of a name, a new one where it has none; -1 for no name."""
    return -1 if name is None else codes.setdefault(name, len(codes))
