"""The comparison of adaptations: what stands in its rows, what it may see, and what it refuses."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from pipelines.adaptation_table import (
    compare_adaptation,
    few_steps,
    history_cosines,
    judged,
    print_adaptation,
)
from pipelines.config import load_config
from pipelines.home import Home
from pipelines.terminal import Terminal
from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.events import lengths_to_offsets
from recsys.protocols import split
from recsys.requests import HistoryBatch, Requests
from recsys.simulation import SimulationConfig, simulate
from recsys.text.settings import MODES, FinetuneConfig

SETTINGS = (
    "distillation.layers=1",
    "distillation.max_epochs=1",
    "finetuning.max_steps=2",
    "finetuning.max_texts=8",
    "finetuning.lora_rank=2",
    "finetuning.prompt_length=3",
    "finetuning.head.epochs=1",
)
DIM, NEURONS = 16, 24
COUNTS = {
    "frozen": 0,
    "full": 4 * (DIM * DIM + DIM) + 2 * DIM * NEURONS + NEURONS + DIM + 4 * DIM,
    "lora": 2 * 2 * DIM * 2,
    "ia3": 2 * DIM + NEURONS,
    "prompt": 3 * DIM,
    "prefix": 2 * 3 * DIM,
}


@pytest.fixture
def terminal():
    """A terminal that gives the standard output back."""
    kept = os.dup(1)
    made = Terminal()
    yield made
    made.out.file.close()
    os.dup2(kept, 1)
    os.close(kept)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptation") / "world"
    simulate(folder, SimulationConfig(users=150, items=90, days=6, seed=3))
    return folder


@pytest.fixture
def compared(world, tiny_teacher_folder, tmp_path, terminal):
    """Compares on a log; every call starts from the same student."""
    config = load_config(None, [*SETTINGS, f"text.teacher={json.dumps(str(tiny_teacher_folder))}"])
    data = load(world, roles=config.roles)[0]
    return data, lambda log, labels: compare_adaptation(log, config, Home(tmp_path), terminal, labels=labels)


@pytest.mark.parametrize("slates", [True, False])
def test_every_mode_stands_in_the_table_with_every_number_of_clicks(slates, compared):
    data, compare = compared
    log = data if slates else data.with_log(data.events, None)
    document = compare(log, (0, 10, 10**6))
    rows = {(row["mode"], row["labels"]): row for row in document["rows"]}
    every = document["clicks"]
    assert 10 < every < 10**6
    zero = [("cosine", 0), ("untrained head", 0)]
    assert list(rows) == [*zero, *((mode, clicks) for clicks in (10, every) for mode in MODES)]
    for (mode, clicks), row in rows.items():
        assert row["trained_parameters"] == (COUNTS[mode] if clicks else 0)
        assert (row["cpu_seconds"] > 0) == (clicks > 0)
        assert 0 <= row["auc"]["low"] <= row["auc"]["mean"] <= row["auc"]["high"] <= 1
        assert 0 < row["log_loss"] < 1
        if clicks:
            gain = row["auc"]["mean"] - rows["frozen", clicks]["auc"]["mean"]
            assert row["over_frozen"]["mean"] == pytest.approx(gain, abs=1e-9)
    assert len({row["log_loss"] for row in document["rows"]}) > len(MODES)  # not all the same model
    assert json.loads(json.dumps(document)) == document
    told = io.StringIO()
    print_adaptation(document, Console(file=told, width=120))
    assert "…" not in told.getvalue()
    first_words = [line.strip("│ ").split(" ")[0] for line in told.getvalue().splitlines()]
    assert [word for word in first_words if word in MODES] == [*MODES, *MODES]


def test_the_test_part_is_never_read(compared):
    data, compare = compared
    train = split(data, "time").train
    cut = train.events.timestamp.max()
    slates = data.slates
    later = np.repeat(slates.timestamp > cut, np.diff(slates.offsets))
    other = replace(slates, clicked=np.where(later, 1 - slates.clicked, slates.clicked))
    assert later.any()
    one, two = (compare(log, (10,))["rows"] for log in (data, data.with_log(data.events, other)))
    assert [row | {"cpu_seconds": 0} for row in one] == [row | {"cpu_seconds": 0} for row in two]


def test_too_few_clicks_are_refused(compared):
    data, compare = compared
    early = data.before(float(data.slates.timestamp[20]))
    with pytest.raises(RecsysError) as refused:
        compare(early, (10,))
    assert refused.value.code == "nothing_to_test"


def test_steps_grow_with_the_requests_between_two_bounds():
    config = FinetuneConfig(max_steps=100, batch_size=16)
    assert [few_steps(count, config) for count in (1, 10, 100, 150, 1000)] == [10, 10, 50, 75, 100]


def test_cosines_to_the_mean_of_the_history():
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)
    offsets = lengths_to_offsets(np.array([3, 2]))
    requests = Requests.of(
        np.arange(2), np.zeros(2), np.zeros(2), (offsets, np.array([0, 2, -1, 0, 1], np.int32))
    )
    items = np.array([0, 1, -1, 3], np.int32)  # the unknown and the wordless do not count
    history = HistoryBatch(np.array([0, 4, 4]), items, np.zeros(4, np.int32), np.zeros(4))
    half = 2**-0.5
    wanted = [half, 1.4 * half, 0, 0, 0]  # the second request has no history
    np.testing.assert_allclose(history_cosines(requests, history, embeddings), wanted, atol=1e-6)


def test_figures_of_a_row_by_hand():
    offsets = lengths_to_offsets(np.array([2, 3]))
    made = Requests.of(np.arange(2), np.zeros(2), np.zeros(2), (offsets, np.arange(5, dtype=np.int32)))
    requests = made.labelled(np.array([1, 0, 1, 0, 0], np.float32))
    good = np.array([1, 0, 2, 3, 1], np.float32)
    row = judged(requests, good, -good)
    assert row["auc"]["mean"] == pytest.approx((1 + 1 / 2) / 2)
    assert row["over_frozen"]["mean"] == pytest.approx((1 + 1 / 2) / 2 - (0 + 1 / 2) / 2)
    assert judged(requests, good)["over_frozen"] is None
    constant = judged(requests, np.zeros(5, np.float32))
    assert constant["log_loss"] == pytest.approx(-(2 * np.log(0.4) + 3 * np.log(0.6)) / 5, abs=0.01)
