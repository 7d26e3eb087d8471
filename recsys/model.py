"""A recommender that speaks ids: its models with the item and user tables that name their rows.

This is what a bundle holds beside the encoder, the live state and the golden requests. It can be laid
over another dataset's rows: what that dataset adds is unknown to the models, what it drops is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from recsys.collaborative import Collaborative
from recsys.dataset import Catalogue, Dataset, Ids
from recsys.errors import RecsysError
from recsys.events import Bool, EventRole, Float32, Int32
from recsys.pairs import SparsePairs
from recsys.popularity import Popularity
from recsys.ranking import Ranker
from recsys.recommender import FeatureBuilder, Recommender
from recsys.relevance import RelevanceHead
from recsys.reranking import Reranker, RerankingConfig
from recsys.retrieval import RetrievalConfig, Retriever
from recsys.sequence import SequenceModel
from recsys.storage import json_bytes, parse_json
from recsys.text.embeddings import ItemEmbeddings
from recsys.transitions import Covisitation, transitions_from_files, transitions_to_files

Table = TypeVar("Table", bound=NDArray[Any])

ITEMS_FILE, USERS_FILE, SETTINGS_FILE = "items.parquet", "users.parquet", "settings.json"


@dataclass(frozen=True)
class Model:
    """Fitted models with the names of their rows.

    Attributes:
        recommender: the scoring core over `catalogue` and `users` rows.
        catalogue: the items of training (descriptions are not kept).
        users: the users of training.
        embeddings: item embeddings with the digests of the texts that they were made from.
        roles: event types by name, in type_index order.
        settings: what else must be known at scoring time, plain JSON.
    """

    recommender: Recommender
    catalogue: Catalogue
    users: Ids
    embeddings: ItemEmbeddings
    roles: dict[str, EventRole]
    settings: dict[str, Any]

    def to_files(self) -> dict[str, bytes]:
        """All arrays, tables and settings, each in a format that holds data only."""
        recommender, retriever = self.recommender, self.recommender.retriever
        if recommender.ranker is None:
            raise ValueError("only a recommender with a ranker can be saved")
        settings = {
            "retrieval": asdict(retriever.config),
            "roles": [[name, asdict(role)] for name, role in self.roles.items()],
            "newcomers": recommender.newcomers,
            "settings": self.settings,
        }
        return {
            ITEMS_FILE: _parquet(self._item_table()),
            USERS_FILE: _parquet(
                pl.DataFrame({"user_id": self.users.values, "known": recommender.known_users})
            ),
            SETTINGS_FILE: json_bytes(settings),
            **self.embeddings.to_files(),
            **retriever.collaborative.to_files(),
            **transitions_to_files(retriever.transitions),
            **retriever.covisitation.to_files(),
            **retriever.sequence.to_files(),
            **retriever.popularity.to_files(),
            **recommender.head.to_files(),
            **recommender.ranker.to_files(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], features: FeatureBuilder) -> Model:
        """Read verified bytes.

        Raises:
            RecsysError: `feature_mismatch` when the ranker was fitted on other columns than `features`.
        """
        settings = parse_json(files[SETTINGS_FILE], SETTINGS_FILE)
        roles = {name: EventRole(**role) for name, role in settings["roles"]}
        catalogue = Catalogue.from_frame(pl.read_parquet(io.BytesIO(files[ITEMS_FILE])))
        users = pl.read_parquet(io.BytesIO(files[USERS_FILE]))
        embeddings = ItemEmbeddings.from_files(files)
        retriever = Retriever(
            Collaborative.from_files(files),
            transitions_from_files(files),
            Covisitation.from_files(files),
            SequenceModel.from_files(files, embeddings.matrix),
            embeddings.matrix,
            Popularity.from_files(files),
            np.array([role.weight for role in roles.values()], np.float32),
            RetrievalConfig(**settings["retrieval"]),
        )
        ranker = Ranker.from_files(files)
        if ranker.schema_hash != features.schema.digest:
            raise RecsysError("feature_mismatch", "the ranker was fitted on other features", "ranker.json")
        recommender = Recommender(
            retriever,
            RelevanceHead.from_files(files),
            ranker,
            features,
            users["known"].to_numpy(),
            catalogue.category,
            settings["newcomers"],
        )
        return cls(recommender, catalogue, Ids(users["user_id"]), embeddings, roles, settings["settings"])

    def over(self, data: Dataset, embeddings: ItemEmbeddings, popularity: Popularity) -> Recommender:
        """The recommender over the rows of another dataset.

        Args:
            data: whose items and users name the rows from here on; read with this model's roles, so
                that event types keep their index.
            embeddings: of that dataset's items (`self.embeddings.update`).
            popularity: of that dataset's log.
        """
        items = self.catalogue.ids.index(data.catalogue.ids.values)
        users = self.users.index(data.users.values)
        retriever = _over_items(self.recommender.retriever, items, embeddings.matrix)
        return replace(
            self.recommender,
            retriever=replace(retriever, popularity=popularity, weights=data.weights),
            known_users=_known(self.recommender.known_users, users),
            category=data.catalogue.category,
        )

    def reranker(self, data: Dataset, embeddings: Float32) -> Reranker:
        """What this version does to lists over the items of `data`, with their (items, dim) embeddings.

        Raises:
            RecsysError: `rule_invalid` (exit 78) where a rule names a category that is not there.
        """
        config = RerankingConfig.from_dict(self.settings.get("reranking", {}))
        return Reranker(config, data.catalogue, embeddings)

    def _item_table(self) -> pl.DataFrame:
        names = self.catalogue.category_names, self.catalogue.subcategory_names
        codes = self.catalogue.category, self.catalogue.subcategory
        category, subcategory = (
            [labels[code] if code >= 0 else None for code in rows]
            for labels, rows in zip(names, codes, strict=True)
        )
        return pl.DataFrame(
            {
                "item_id": self.catalogue.ids.values,
                "title": self.catalogue.title,
                "category": pl.Series(category, dtype=pl.String),
                "subcategory": pl.Series(subcategory, dtype=pl.String),
                "created_at": pl.Series(self.catalogue.created_at).fill_nan(None),
            }
        )


def with_room(recommender: Recommender, spare: int) -> Recommender:
    """The recommender with `spare` rows behind its items, of which nothing is known yet.

    All tables by item are fresh arrays, so that `Recommender.settle` can write into them.
    """
    retriever, popularity = recommender.retriever, recommender.retriever.popularity
    collaborative, covisitation = retriever.collaborative, retriever.covisitation
    sequence, embeddings = retriever.sequence, _grown(retriever.embeddings, spare, 0.0)
    average = sequence.bias.mean() if len(sequence) else 0.0
    return replace(
        recommender,
        retriever=replace(
            retriever,
            collaborative=replace(
                collaborative,
                factors=_grown(collaborative.factors, spare, 0.0),
                item_item=_lengthened(collaborative.item_item, spare),
                ease=_lengthened(collaborative.ease, spare),
            ),
            transitions=_lengthened(retriever.transitions, spare),
            covisitation=Covisitation(
                _lengthened(covisitation.to_outcome, spare), _lengthened(covisitation.between_outcomes, spare)
            ),
            sequence=replace(
                sequence,
                learned=_grown(sequence.learned, spare, 0.0),
                bias=_grown(sequence.bias, spare, average),
                embeddings=embeddings,
            ),
            embeddings=embeddings,
            popularity=replace(
                popularity, first_seen=_grown(popularity.first_seen, spare, np.inf), _latest=None
            ),
        ),
        category=_grown(recommender.category, spare, -1),
    )


def _over_items(retriever: Retriever, items: Int32, embeddings: Float32) -> Retriever:
    """The retriever where new item i is old item items[i], -1 for one it has not seen."""
    collaborative = retriever.collaborative
    return replace(
        retriever,
        collaborative=replace(
            collaborative,
            factors=_rows(collaborative.factors, items),
            item_item=_relabelled(collaborative.item_item, items),
            ease=_relabelled(collaborative.ease, items),
        ),
        transitions=_relabelled(retriever.transitions, items),
        covisitation=Covisitation(
            _relabelled(retriever.covisitation.to_outcome, items),
            _relabelled(retriever.covisitation.between_outcomes, items),
        ),
        sequence=retriever.sequence.over(items, embeddings),
        embeddings=embeddings,
    )


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _rows(matrix: Float32, rows: Int32) -> Float32:
    """matrix[rows], with zeros for row -1."""
    out = np.zeros((len(rows), matrix.shape[1]), np.float32)
    out[rows >= 0] = matrix[rows[rows >= 0]]
    return out


def _grown(table: Table, spare: int, value: float) -> Table:
    """A fresh table of the same rows, with `spare` more of `value` behind them."""
    grown = np.empty((len(table) + spare, *table.shape[1:]), table.dtype)
    grown[: len(table)], grown[len(table) :] = table, value
    return cast("Table", grown)


def _lengthened(pairs: SparsePairs, spare: int) -> SparsePairs:
    """The same pairs, with `spare` more items that have none."""
    return replace(pairs, offsets=_grown(pairs.offsets, spare, int(pairs.offsets[-1])))


def _known(known: Bool, rows: Int32) -> Bool:
    out = np.zeros(len(rows), np.bool_)
    out[rows >= 0] = known[rows[rows >= 0]]
    return out


def _relabelled(pairs: SparsePairs, rows: Int32) -> SparsePairs:
    """The same pair scores where new row i is old row rows[i]; -1 has no pairs."""
    old = len(pairs)
    if np.array_equal(rows[:old], np.arange(old)) and (rows[old:] < 0).all():
        return _lengthened(pairs, len(rows) - old)
    new = np.flatnonzero(rows >= 0)
    shape = (len(rows), len(pairs))
    pick = sparse.csr_matrix((np.ones(len(new), np.float32), (new, rows[new])), shape=shape)
    return SparsePairs.from_csr((pick @ pairs.csr @ pick.T).tocsr())
