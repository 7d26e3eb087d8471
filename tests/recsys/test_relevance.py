from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.calibration import Calibration
from recsys.errors import RecsysError
from recsys.relevance import HistorySlots, RelevanceHead
from recsys.relevance_examples import Examples
from recsys.relevance_network import BatchSource, HeadNetwork
from recsys.relevance_weights import HeadConfig, HeadWeights
from recsys.requests import HistoryBatch, Requests

ITEMS, TEXT_DIM, TYPES = 60, 24, 3
CONFIG = HeadConfig(embedding_dim=8, hidden_dim=5, history_limit=6)


def make_embeddings(seed=0, items=ITEMS):
    vectors = np.random.default_rng(seed).normal(size=(items, TEXT_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0.0  # an item without text
    return vectors


def make_head(seed=1):
    """A head whose every weight matters."""
    rng = np.random.default_rng(seed)
    initial = HeadWeights.initial(make_embeddings(), np.array([1.0, 2.0, 0.5]), CONFIG).arrays()
    noisy = {name: a + rng.normal(0, 0.3, a.shape).astype(np.float32) for name, a in initial.items()}
    return RelevanceHead(CONFIG, HeadWeights(**noisy), Calibration(1.3, -0.4, np.zeros(0), np.zeros(0)))


def make_requests(lengths, events, seed=2):
    """Random requests with these numbers of candidates and history events."""
    rng = np.random.default_rng(seed)
    n, rows, past = len(lengths), sum(lengths), sum(events)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(-1, ITEMS, rows).astype(np.int32)
    requests = Requests.of(np.zeros(n), np.arange(n), np.zeros(n), (offsets, items))
    history = HistoryBatch(
        np.concatenate([[0], np.cumsum(events)]).astype(np.int64),
        rng.integers(-1, ITEMS, past).astype(np.int32),
        rng.integers(-1, TYPES + 2, past).astype(np.int32),
        rng.exponential(1e6, past),
    )
    return requests, history


REQUESTS, HISTORY = make_requests([5, 1, 0, 7, 3, 4], [3, 0, 2, 11, 6, 1])


def naive_logit(head, embeddings, item, past):
    """The formulas of the module's docstring, one row at a time in float64."""
    w = {name: array.astype(np.float64) for name, array in head.weights.arrays().items()}
    table = np.vstack([embeddings, np.zeros(TEXT_DIM)]).astype(np.float64)
    past = past[-CONFIG.history_limit :]
    candidate = table[item]
    u = candidate @ w["candidate"]
    similarity, values, logits = [], [], []
    for place, (past_item, kind, age_s) in enumerate(reversed(past), start=1):
        s, v = candidate @ table[past_item] / 0.2, table[past_item] @ w["history"]
        logit = w["attention"][0] * s + w["attention"][1] * (u @ v) / len(u)
        logit += w["age"][min(15, int(np.log2(age_s / 3600 + 1)))] + w["place"][min(6, int(np.log2(place)))]
        logit += w["event_type"][kind] if 0 <= kind < TYPES else 0.0
        similarity.append(s)
        values.append(v)
        logits.append(logit)
    share = np.exp([*logits, w["attention"][2]])
    share /= share.sum()
    pooled = share @ np.array([*values, w["null"]])
    dense = np.zeros(5)
    if past:
        dense[:] = share[:-1] @ similarity, np.mean(similarity), np.max(similarity), similarity[0], 0.0
    dense[4] = np.log1p(len(past))
    hidden = u @ w["hidden_candidate"] + pooled @ w["hidden_pooled"] + (u * pooled) @ w["hidden_product"]
    hidden = np.maximum(hidden + w["hidden_bias"], 0)
    linear = dense @ w["dense"] + u @ w["prior"] + w["bias"][0] + (u * pooled) @ w["bilinear"]
    return linear + hidden @ w["output"]


def test_logits_are_the_documented_formula():
    head, embeddings = make_head(), make_embeddings()
    got = head.logits(REQUESTS, HISTORY, head.project(embeddings))
    want = []
    for row, q in enumerate(REQUESTS.request_of_row()):
        span = slice(HISTORY.offsets[q], HISTORY.offsets[q + 1])
        past = list(zip(HISTORY.item_index[span], HISTORY.type_index[span], HISTORY.age_s[span], strict=True))
        want.append(naive_logit(head, embeddings, REQUESTS.item_index[row], past))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_torch_and_compiled_forward_agree():
    head, embeddings = make_head(), make_embeddings()
    got = head.logits(REQUESTS, HISTORY, head.project(embeddings))
    slots = HistorySlots.of(HISTORY, CONFIG.history_limit, TYPES)
    source = BatchSource(
        Examples(REQUESTS.labelled(np.zeros(REQUESTS.rows)), np.ones(REQUESTS.rows, np.float32)), slots
    )
    batch = source.batch(np.arange(len(source)))
    table = torch.from_numpy(np.vstack([embeddings, np.zeros((1, TEXT_DIM), np.float32)]))
    network = HeadNetwork(head.weights, np.zeros(ITEMS + 1, np.float32)).eval()
    with torch.no_grad():
        logits = network(table[torch.from_numpy(batch.items)], batch).numpy()
    kept = batch.weight.numpy() > 0
    np.testing.assert_allclose(logits[kept], got, atol=1e-5)


def test_score_does_not_depend_on_the_batch():
    head = make_head()
    items = head.project(make_embeddings())
    together = head.score(REQUESTS, HISTORY, items)
    for q in range(len(REQUESTS)):
        alone = head.score(REQUESTS.take(np.array([q])), HISTORY.take(np.array([q])), items)
        assert alone.tolist() == together[REQUESTS.offsets[q] : REQUESTS.offsets[q + 1]].tolist()
    order = np.random.default_rng(0).permutation(len(REQUESTS))
    moved = head.score(REQUESTS.take(order), HISTORY.take(order), items)
    back = REQUESTS.take(order).take(np.argsort(order))
    assert back.item_index.tolist() == REQUESTS.item_index.tolist()
    assert sorted(moved.tolist()) == sorted(together.tolist())


def test_score_does_not_depend_on_the_order_of_candidates_or_on_threads():
    head = make_head()
    items = head.project(make_embeddings())
    requests, history = make_requests([40], [5])
    order = np.random.default_rng(0).permutation(40)
    shuffled = Requests.of(
        np.zeros(1), np.zeros(1), np.zeros(1), (requests.offsets, requests.item_index[order])
    )
    straight = head.score(requests, history, items)
    assert head.score(shuffled, history, items).tolist() == straight[order].tolist()


def test_untrained_head_ranks_by_text_similarity_to_the_history():
    embeddings = make_embeddings()
    head = RelevanceHead.untrained(embeddings, np.ones(TYPES), CONFIG)
    offsets = np.array([0, ITEMS], np.int64)
    requests = Requests.of(np.zeros(1), np.zeros(1), np.zeros(1), (offsets, np.arange(ITEMS, dtype=np.int32)))
    history = HistoryBatch(np.array([0, 1]), np.array([7], np.int32), np.zeros(1, np.int32), np.array([60.0]))
    scores = head.score(requests, history, head.project(embeddings))
    assert np.argsort(-scores).tolist() == np.argsort(-(embeddings @ embeddings[7]), kind="stable").tolist()


def test_empty_history_and_unknown_item_get_finite_probabilities():
    head = make_head()
    requests, history = make_requests([4], [0])
    items = head.project(make_embeddings())
    scores = head.score(requests, history, items)
    assert np.isfinite(scores).all()
    assert ((scores > 0) & (scores < 1)).all()
    unknown = Requests.of(
        np.zeros(1), np.zeros(1), np.zeros(1), (np.array([0, 2]), np.array([-1, 3], np.int32))
    )
    pair = head.score(unknown, make_requests([2], [4])[1], items)
    assert pair[0] == pair[1]  # item 3 has no text, which is all that the head knows of an unknown item


def test_no_requests_give_no_scores():
    requests, history = make_requests([], [])
    head = make_head()
    assert head.score(requests, history, head.project(make_embeddings())).shape == (0,)


def test_only_the_newest_events_count():
    head = make_head()
    items = head.project(make_embeddings())
    requests, history = make_requests([5], [CONFIG.history_limit + 4])
    newest = HistoryBatch(
        np.array([0, CONFIG.history_limit]), history.item_index[4:], history.type_index[4:], history.age_s[4:]
    )
    assert (head.score(requests, history, items) == head.score(requests, newest, items)).all()


@pytest.mark.parametrize("field", ["age_s", "type_index"])
def test_recency_and_event_type_move_the_score(field):
    head = make_head()
    items = head.project(make_embeddings())
    requests, history = make_requests([6], [5])
    changed = {"age_s": history.age_s * 50, "type_index": (history.type_index + 1) % TYPES}[field]
    moved = head.score(requests, replace(history, **{field: changed}), items)
    assert np.abs(moved - head.score(requests, history, items)).max() > 1e-3


def test_files_round_trip_exactly():
    head = make_head()
    again = RelevanceHead.from_files(head.to_files())
    items = head.project(make_embeddings())
    assert again.to_files() == head.to_files()
    assert (again.score(REQUESTS, HISTORY, items) == head.score(REQUESTS, HISTORY, items)).all()


def test_damaged_files_are_refused():
    files = make_head().to_files()
    broken = [
        {**files, "head.safetensors": files["head.safetensors"][:-8]},
        {**files, "head.json": b"{"},
        {**files, "head.json": files["head.json"].replace(b'"embedding_dim": 8', b'"embedding_dim": 9')},
        {"head.json": files["head.json"]},
    ]
    for damaged in broken:
        with pytest.raises(RecsysError, match="head_invalid"):
            RelevanceHead.from_files(damaged)


def test_embeddings_of_another_width_or_with_nan_are_refused():
    head = make_head()
    with pytest.raises(RecsysError, match="embeddings_shape"):
        head.project(np.zeros((4, TEXT_DIM + 1), np.float32))
    with pytest.raises(RecsysError, match="embeddings_not_finite"):
        head.project(np.full((4, TEXT_DIM), np.nan, np.float32))


def test_items_outside_the_table_are_refused():
    head = make_head()
    with pytest.raises(ValueError, match="candidate item_index outside"):
        head.score(REQUESTS, HISTORY, head.project(make_embeddings(items=5)))
