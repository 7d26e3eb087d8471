"""Small whole bundles over one world, made without torch in a few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

DAY_S = 86_400.0
AS_OF = 30 * DAY_S
ITEMS = [f"i{number:02d}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(20)]


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is written from; `write` leaves the parts as they are."""

    files: Mapping[str, bytes]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, **changes: bytes) -> Path:
        """Write the bundle with other bytes for some files: `ranker__txt` names `ranker.txt`."""
        from recsys.bundle import write_bundle

        changed = {name.replace("__", "."): content for name, content in changes.items()}
        write_bundle(folder, {**self.files, **changed}, self.metadata)
        return folder


def dataset() -> Any:
    """A log of four hundred events, some items without any, and a user without any."""
    from recsys.dataset import Dataset

    rng = np.random.default_rng(2)
    count = 400
    log = {
        "user_id": rng.choice(USERS[:-1], count),
        "item_id": rng.choice(ITEMS[:-4], count),
        "event_type": rng.choice(["click", "purchase", "view", "dismiss"], count, p=[0.6, 0.2, 0.1, 0.1]),
        "timestamp": np.sort(rng.random(count)) * 29 * DAY_S,
    }
    catalogue = {
        "item_id": ITEMS,
        "title": [
            f"a {('red', 'blue', 'old')[number % 3]} thing {item}" for number, item in enumerate(ITEMS)
        ],
        "category": [f"c{number % 3}" for number in range(len(ITEMS))],
        "created_at": [-DAY_S * (2 + number) for number in range(len(ITEMS))],
    }
    users = pl.DataFrame({"user_id": USERS})
    return Dataset.from_frames(pl.DataFrame(catalogue), pl.DataFrame(log), users=users)


def parts_of(data: Any, seed: int) -> BundleParts:
    """The parts of one version that learned from `dataset()`; another seed learns other things."""
    from features.builder import Features
    from features.live import LiveState
    from features.replay import Replay
    from recsys.events import DEFAULT_ROLES
    from recsys.model import Model
    from recsys.scorer import Scorer
    from recsys.text.embeddings import ItemEmbeddings
    from recsys.text.item_text import catalogue_texts

    features, encoder = Features(), _encoder(seed)
    embeddings = ItemEmbeddings.empty().update(catalogue_texts(data.catalogue), encoder)
    recommender = _recommender(data, embeddings.matrix, features, seed)
    settings = {"max_chars": 400, "top_k": 10}
    model = Model(recommender, data.catalogue, data.users, embeddings, dict(DEFAULT_ROLES), settings)
    golden = _golden(Scorer(model, Replay(data, features), AS_OF))
    files = {
        **model.to_files(),
        **encoder.to_files(),
        **LiveState.at(data, AS_OF, features).to_files(),
        **golden.to_files(),
    }
    metadata = {"name": "recsys", "as_of": AS_OF, "feature_schema": features.schema.digest, "seed": seed}
    return BundleParts(files, metadata)


def _encoder(seed: int) -> Any:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    from recsys.text.static_runtime import StaticEncoder
    from recsys.text.tokenization import Tokenizer, TokenLimits

    words = ["[PAD]", "[UNK]", "a", "red", "blue", "old", "thing", *ITEMS]
    vocabulary = {word: place for place, word in enumerate(words)}
    split = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(split.to_str().encode(), TokenLimits(max_chars=400, max_tokens=32))
    table = np.random.default_rng(seed).normal(size=(len(words), 8)).astype(np.float32)
    return StaticEncoder.of(table, tokenizer)


def _recommender(data: Any, embeddings: Any, features: Any, seed: int) -> Any:
    from features.replay import Replay
    from recsys.collaborative import CollaborativeConfig
    from recsys.collaborative_training import fit_collaborative
    from recsys.popularity import PopularityConfig, fit_popularity
    from recsys.recommender import Recommender
    from recsys.relevance import RelevanceHead
    from recsys.relevance_weights import HeadConfig
    from recsys.retrieval import RetrievalConfig, Retriever
    from recsys.sequence import SequenceConfig, SequenceModel
    from recsys.transitions import CovisitationConfig, TransitionConfig, fit_covisitation, fit_transitions

    retriever = Retriever(
        fit_collaborative(data, CollaborativeConfig(embedding_dim=6, epochs=3), seed=seed),
        fit_transitions(data, TransitionConfig()),
        fit_covisitation(data, CovisitationConfig()),
        SequenceModel.empty(embeddings, SequenceConfig(embedding_dim=8)),
        embeddings,
        fit_popularity(data, PopularityConfig()),
        data.weights,
        RetrievalConfig(),
    )
    head = RelevanceHead.untrained(embeddings, data.weights, HeadConfig(embedding_dim=4, hidden_dim=3))
    known = np.diff(data.histories.offsets) > 0
    unranked = Recommender(retriever, head, None, features, known, data.catalogue.category)
    return unranked.with_ranker(_ranker(unranked, data, Replay(data, features), features, seed))


def _ranker(models: Any, data: Any, state: Any, features: Any, seed: int) -> Any:
    """Fitted on a planted mixture of the thirty columns that differ most."""
    from recsys.ranker_training import fit_ranker
    from recsys.ranking import RankerConfig
    from recsys.requests import Requests

    rng = np.random.default_rng(seed)
    count, rows = 80, 12
    items = np.concatenate([rng.permutation(len(ITEMS))[:rows] for _ in range(count)])
    offsets = np.arange(count + 1, dtype=np.int64) * rows
    moments = np.sort(rng.uniform(5, 29, count)) * DAY_S
    users = rng.integers(0, len(USERS), count)
    source = rng.integers(0, 64, len(items)).astype(np.int32)
    known = data.events.known_at(moments)
    requests = Requests.of(users, moments, known, (offsets, items), source)
    filled = np.nan_to_num(matrix := models.matrix_in_blocks(requests, state))
    varied = filled[:, filled.std(axis=0).argsort()[-30:]]
    score = (varied / varied.std(axis=0)) @ rng.normal(size=30)
    config = RankerConfig(rounds=20, leaves=6, min_data_in_leaf=5, threads=1)
    names, digest = features.schema.names, features.schema.digest
    return fit_ranker(matrix, requests.labelled(score > np.median(score)), names, digest, config)[0]


def _golden(scorer: Any) -> Any:
    from recsys.golden import Golden

    users, candidates = USERS[:4], ITEMS[::2]
    columns = (
        [f"golden-{user}" for user in users for _ in candidates],
        [user for user in users for _ in candidates],
        candidates * len(users),
        ["als+text", ""] * (len(candidates) // 2) * len(users),
        [AS_OF] * (len(candidates) * len(users)),
    )
    return Golden(*columns, scorer.score(*columns).tolist())
