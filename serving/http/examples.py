"""Examples for the OpenAPI document; the tests send those of requests to a real server."""

from __future__ import annotations

MODEL = {"name": "recsys", "version": 7, "alias": "champion"}
ITEMS = [
    {"id": "i42", "score": 1.25, "rank": 1, "source": "als+popular"},
    {"id": "i7", "score": 0.5, "rank": 2, "source": ""},
]
RANKING = {
    "items": ITEMS,
    "rung": "personal",
    "model": MODEL,
    "degraded": False,
    "degraded_reason": None,
    "request_id": "5f1d03a2-1c",
    "arm": None,
}
EVENTS = [
    {
        "event_id": "e-1001",
        "user_id": "u1",
        "item_id": "i42",
        "event_type": "click",
        "timestamp": 1763800000.5,
        "impression_id": "e-1000",
        "position": 1,
    },
    {
        "kind": "impression",
        "event_id": "e-1000",
        "user_id": "u1",
        "timestamp": 1763799990.0,
        "shown": ["i42", "i7"],
    },
    {
        "kind": "item",
        "event_id": "e-1002",
        "item_id": "i900",
        "timestamp": 1763799000.0,
        "title": "A quiet kettle",
        "category": "kitchen",
    },
]
METARANK_EVENT = {
    "event": "interaction",
    "id": "m-1",
    "timestamp": "1763800000000",
    "user": "u1",
    "type": "click",
    "item": "i42",
    "ranking": "m-0",
}
METARANK_REQUEST = {
    "id": "m-0",
    "timestamp": "1763800000000",
    "user": "u1",
    "items": [{"id": "i7", "fields": [{"name": "relevancy", "value": 2.0}]}, {"id": "i42"}],
}
METARANK_ANSWER = {
    "took": 1,
    "items": [{"item": "i42", "score": 1.25}, {"item": "i7", "score": 0.5}],
    "model": MODEL,
    "degraded": False,
    "degraded_reason": None,
}
