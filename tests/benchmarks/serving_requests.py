"""What is asked: many users with as many sets of candidates, the same for each server in its own words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.serving_load import PLACEHOLDER, http_request, write_requests
from tests.benchmarks.serving_world import World

CANDIDATES = 200
REQUESTS = 3000
BATCH = 100
WHOLE = ('"degraded":false',)
"""An answer of the whole model: on a busy server a lesser one could take its place."""


@dataclass(frozen=True)
class Asked:
    """One rank call."""

    user_id: str
    candidates: list[str]


def rank_calls(world: World, count: int = REQUESTS, seed: int = 0) -> list[Asked]:
    """Calls of users with a history, each with candidates of its own."""
    rng = np.random.default_rng(seed)
    users = rng.choice(len(world.users), count)
    return [
        Asked(
            world.users[user],
            [world.items[item] for item in rng.choice(len(world.items), CANDIDATES, replace=False)],
        )
        for user in users.tolist()
    ]


def our_bodies(calls: Sequence[Asked], *, full: bool = False) -> list[bytes]:
    """For `/v1/rank`; `full` names sources and retrieval scores as well."""
    rng = np.random.default_rng(1)
    bodies = []
    for call in calls:
        candidates: list[object] = list(call.candidates)
        if full:
            scores = np.sort(rng.random(len(candidates)))[::-1]
            candidates = [
                {"id": item, "source": "als+item_item+text", "score": round(score, 6)}
                for item, score in zip(call.candidates, scores.tolist(), strict=True)
            ]
        bodies.append(_json({"user_id": call.user_id, "candidates": candidates}))
    return bodies


def glue_bodies(calls: Sequence[Asked]) -> list[bytes]:
    """For the peer behind FastAPI."""
    return [_json({"user_id": call.user_id, "candidates": call.candidates}) for call in calls]


def mlflow_bodies(calls: Sequence[Asked]) -> list[bytes]:
    """For `mlflow models serve`, which takes tables."""
    columns = ["request", "user_id", "item_id"]
    return [
        _json(
            {
                "dataframe_split": {
                    "columns": columns,
                    "data": [["q", call.user_id, item] for item in call.candidates],
                }
            }
        )
        for call in calls
    ]


def event_bodies(world: World, count: int = 50, seed: int = 0) -> list[bytes]:
    """Batches for `/v1/events`; each sending of one gets ids of its own (see `serving_load`)."""
    rng, now = np.random.default_rng(seed), time.time()
    kinds = ("view", "click", "purchase")
    bodies = []
    for _ in range(count):
        users, items = rng.choice(len(world.users), BATCH), rng.choice(len(world.items), BATCH)
        types = rng.choice(len(kinds), BATCH, p=[0.6, 0.37, 0.03])
        events = [
            {
                "event_id": f"{PLACEHOLDER.decode()}-{place:03d}",
                "user_id": world.users[user],
                "item_id": world.items[item],
                "event_type": kinds[kind],
                "timestamp": now - 1.0,
            }
            for place, (user, item, kind) in enumerate(
                zip(users.tolist(), items.tolist(), types.tolist(), strict=True)
            )
        ]
        bodies.append(_json(events))
    return bodies


def request_file(folder: Path, name: str, path: str, bodies: Sequence[bytes]) -> str:
    """The bodies as whole requests for this path, in a file."""
    return write_requests(folder / f"{name}.requests", [http_request(path, body) for body in bodies])


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
