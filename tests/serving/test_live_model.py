"""The engine of the server: the night's scores, events that count at once, new items and unknown users."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import read_bundle
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.requests import Requests
from serving.engine.answering import rank, recommend, similar
from serving.engine.live_model import Level, LiveModel
from serving.messages import (
    Candidate,
    ImpressionEvent,
    Interaction,
    InteractionEvent,
    ItemEvent,
    ModelName,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from tests.serving.expected import embed, nightly

DAY_S = 86_400.0
AS_OF = 30 * DAY_S
ITEMS = [f"i{number:02d}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(20)]
NAME = ModelName(name="recsys", version=1, alias="champion")


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return read_bundle(bundle_folder)


@pytest.fixture
def live(bundle):
    return LiveModel.load(bundle, NAME)


def click(number, user, item, timestamp, kind="click"):
    return InteractionEvent(
        event_id=f"e{number}", user_id=user, item_id=item, event_type=kind, timestamp=timestamp
    )


def scores(ranking):
    return {item.id: item.score for item in ranking.items}


def test_scores_are_those_of_the_night(live, bundle, served_world):
    for user in USERS:
        request = RankRequest(
            user_id=user,
            candidates=[Candidate(id=each, source="als+text") for each in ITEMS],
            timestamp=AS_OF,
        )
        expected = nightly(bundle, served_world, user, ITEMS, AS_OF, "als+text")
        assert scores(rank(live, request, AS_OF)) == pytest.approx(expected, abs=1e-6)


events = st.lists(
    st.tuples(
        st.sampled_from([*USERS, "new-user"]),
        st.sampled_from([*ITEMS, "new-item"]),
        st.sampled_from(["click", "purchase", "view", "dismiss"]),
        st.integers(1, 5000),
    ),
    max_size=12,
    unique_by=lambda event: event[3],
)


@settings(max_examples=15)
@given(
    log=events, shown=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4, unique=True), data=st.data()
)
def test_events_in_any_order_leave_what_the_night_would_know(bundle, served_world, log, shown, data):
    live = LiveModel.load(bundle, NAME)
    arrivals = [click(*each) for each in ((n, u, i, AS_OF + t, k) for n, (u, i, k, t) in enumerate(log))]
    arrivals.append(
        ItemEvent(
            event_id="item", item_id="new-item", timestamp=AS_OF + 1, title="old red thing", category="c1"
        )
    )
    slate = ImpressionEvent(event_id="slate", user_id="u01", timestamp=AS_OF + 7, shown=shown)
    for place, event in enumerate(data.draw(st.permutations([*arrivals, slate]))):
        live.apply(event, place + 1)
    embed(live)
    assert live.sequence == len(arrivals) + 1
    assert not live.orphans
    grown = grown_world(served_world, log, shown)
    now = AS_OF + DAY_S
    for user in ("u01", "u19", "new-user"):
        candidates = [Candidate(id=each, source="text") for each in [*ITEMS, "new-item"]]
        found = rank(live, RankRequest(user_id=user, candidates=candidates), now)
        expected = nightly(bundle, grown, user, [*ITEMS, "new-item"], now, "text")
        assert scores(found) == pytest.approx(expected, abs=1e-6)


def grown_world(world: Dataset, log, shown) -> Dataset:
    """The world's tables with the events behind, as an export would give them."""
    catalogue, old = world.catalogue, world.events
    names = [*catalogue.ids.values.to_list(), "new-item"]
    items = pl.DataFrame(
        {
            "item_id": names,
            "title": [*catalogue.title, "old red thing"],
            "category": [*(catalogue.category_names[code] for code in catalogue.category), "c1"],
            "created_at": pl.Series([*catalogue.created_at, None], dtype=pl.Float64),
        }
    )
    newer = sorted(log, key=lambda event: event[3])
    frame = pl.DataFrame(
        {
            "user_id": [*world.users.take(old.user_index), *(each[0] for each in newer)],
            "item_id": [*catalogue.ids.take(old.item_index), *(each[1] for each in newer)],
            "event_type": [*(world.event_types[k] for k in old.type_index), *(each[2] for each in newer)],
            "timestamp": [*old.timestamp, *(AS_OF + each[3] for each in newer)],
        }
    )
    impressions = pl.DataFrame(
        {"impression_id": ["s"], "user_id": ["u01"], "timestamp": [AS_OF + 7.0], "shown": [shown]}
    )
    users = pl.DataFrame({"user_id": [*USERS, "new-user"]})
    return Dataset.from_frames(items, frame, impressions, users)


def test_an_event_moves_the_next_answer_of_its_user(live):
    request = RankRequest(user_id="u03", candidates=list(ITEMS))
    before = rank(live, request, AS_OF + 10)
    live.apply(click(1, "u03", "i05", AS_OF + 5, "purchase"), 1)
    assert scores(rank(live, request, AS_OF + 10)) != scores(before)


def test_an_event_from_before_the_bundle_changes_nothing(live):
    request = RankRequest(user_id="u03", candidates=list(ITEMS))
    before = rank(live, request, AS_OF + 10)
    live.apply(click(1, "u03", "i05", AS_OF - 5, "purchase"), 1)
    assert scores(rank(live, request, AS_OF + 10)) == scores(before)
    assert live.sequence == 1


def test_order_of_candidates_and_duplicates_do_not_matter(live):
    first = rank(live, RankRequest(user_id="u03", candidates=list(ITEMS)), AS_OF)
    other = [*reversed(ITEMS), *ITEMS[:7]]
    assert rank(live, RankRequest(user_id="u03", candidates=other), AS_OF).items == first.items
    assert [item.rank for item in first.items] == list(range(1, len(ITEMS) + 1))
    assert sorted((item.score for item in first.items), reverse=True) == [item.score for item in first.items]


@pytest.mark.parametrize("level", list(Level))
def test_every_level_orders_all_candidates_with_finite_scores(live, level):
    request = RankRequest(user_id="u03", candidates=[*ITEMS, "never-seen", 17])
    found = rank(live, request, AS_OF, level)
    assert {item.id for item in found.items} == {*ITEMS, "never-seen", 17}
    assert np.isfinite([item.score for item in found.items]).all()
    assert found.degraded == (level > Level.FULL)


def test_nobody_known_and_nothing_known_still_get_a_list(live):
    unknown = rank(live, RankRequest(user_id="stranger", candidates=ITEMS[:5]), AS_OF)
    assert (unknown.rung, unknown.degraded_reason) == ("popular", "unknown_user")
    assert rank(live, RankRequest(candidates=[]), AS_OF).items == []
    strange = rank(live, RankRequest(user_id="u03", candidates=["x", "y"]), AS_OF)
    assert (strange.degraded_reason, len(strange.items)) == ("cold_items", 2)


def test_a_session_is_read_and_not_kept(live):
    plain = RankRequest(user_id="stranger", candidates=list(ITEMS))
    before = rank(live, plain, AS_OF + 10)
    session = [Interaction(item_id="i07", timestamp=AS_OF + 1), Interaction(item_id="gone", timestamp=AS_OF)]
    told = rank(live, RankRequest(user_id="stranger", candidates=list(ITEMS), history=session), AS_OF + 10)
    assert scores(told) != scores(before)
    assert told.rung == "folded_in"
    assert scores(rank(live, plain, AS_OF + 10)) == scores(before)


def test_a_session_counts_as_if_it_were_in_the_log(live, bundle):
    item = ITEMS[9]
    told = rank(
        live,
        RankRequest(
            user_id="u19", candidates=list(ITEMS), history=[Interaction(item_id=item, timestamp=AS_OF + 1)]
        ),
        AS_OF + 2,
    )
    models, state = live.recommender, live.state
    live.apply(click(1, "u19", item, AS_OF + 1), 1)
    requests = Requests.of(
        [live.users.find("u19")], [AS_OF + 2], [0], (np.array([0, 1]), live.items.find_all([item]))
    )
    history = state.read(requests).history
    assert models.rungs(requests, history)[0] == ("personal", "folded_in").index(told.rung)


def test_recommend_leaves_out_what_was_seen_and_keeps_to_categories(live):
    live.apply(click(1, "u03", "i05", AS_OF + 5), 1)
    found = recommend(live, RecommendRequest(user_id="u03", k=40), AS_OF + 10)
    assert "i05" not in {item.id for item in found.items}
    again = recommend(live, RecommendRequest(user_id="u03", k=40, seen=True), AS_OF + 10)
    assert "i05" in {item.id for item in again.items}
    one = recommend(live, RecommendRequest(user_id="u03", k=40, categories=["c1", "none"]), AS_OF + 10)
    assert one.items
    assert {int(str(item.id)[1:]) % 3 for item in one.items} == {1}
    assert recommend(live, RecommendRequest(user_id="u03", categories=["none"]), AS_OF + 10).items == []


def test_diversity_changes_the_list_and_not_the_scores(live):
    plain = recommend(live, RecommendRequest(user_id="u03", k=10), AS_OF)
    varied = recommend(live, RecommendRequest(user_id="u03", k=10, diversity=0.9), AS_OF)
    assert [item.id for item in varied.items] != [item.id for item in plain.items]
    shared = scores(plain).keys() & scores(varied).keys()
    assert all(scores(plain)[each] == scores(varied)[each] for each in shared)


def test_reasons_add_up_to_what_the_trees_say(live):
    request = RankRequest(user_id="u03", candidates=list(ITEMS), explain=True, k=3)
    found = rank(live, request, AS_OF)
    for item in found.items:
        assert 1 <= len(item.reasons) <= 5
        effects = [abs(reason.effect) for reason in item.reasons]
        assert effects == sorted(effects, reverse=True)


def test_a_new_item_is_found_by_its_words(live):
    live.apply(
        ItemEvent(event_id="x", item_id="fresh", timestamp=AS_OF + 1, title="a red thing", category="c9"), 1
    )
    assert live.texts_to_embed()
    embed(live)
    assert not live.texts_to_embed()
    assert similar(live, SimilarRequest(item_id="fresh", k=3)).items
    found = recommend(live, RecommendRequest(user_id="u03", k=40, categories=["c9"]), AS_OF + 2)
    assert [item.id for item in found.items] == ["fresh"]


def test_more_new_items_than_there_is_room_for(bundle, monkeypatch):
    monkeypatch.setattr("serving.engine.live_model.ROOM", 2)
    live = LiveModel.load(bundle, NAME)
    for number in range(12):
        live.apply(
            ItemEvent(
                event_id=f"x{number}", item_id=f"n{number}", timestamp=AS_OF + 1, title=f"red i{number:02d}"
            ),
            number + 1,
        )
        embed(live)
    near = similar(live, SimilarRequest(item_id="n3", k=60)).items
    assert {f"n{number}" for number in range(12)} - {"n3"} <= {item.id for item in near}


def test_popular_lists_change_at_midnight(live):
    for number in range(60):
        live.apply(click(number, f"s{number}", "i39", AS_OF + 100 + number, "purchase"), number + 1)
    level = Level.POPULARITY
    request = RankRequest(candidates=list(ITEMS))
    today = rank(live, request, AS_OF + 300, level).items[0].id
    tomorrow = rank(live, request, AS_OF + DAY_S + 1, level).items[0].id
    assert (today == "i39", tomorrow) == (False, "i39")


def test_similar_items(live):
    assert "i03" not in {item.id for item in similar(live, SimilarRequest(item_id="i03")).items}
    assert similar(live, SimilarRequest(item_id="i03", by="behaviour")).items
    with pytest.raises(RecsysError, match="unknown_item"):
        similar(live, SimilarRequest(item_id="nothing"))


def test_a_moment_before_the_bundle_or_far_ahead_is_refused(live):
    for moment in (AS_OF - 1, AS_OF + DAY_S):
        with pytest.raises(RecsysError, match="timestamp_out_of_range"):
            rank(live, RankRequest(candidates=["i01"], timestamp=moment), AS_OF)
