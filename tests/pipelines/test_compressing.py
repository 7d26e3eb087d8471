"""`recsys compress` from the command line: the ladder, the choice, the registry, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from recsys.compression.choice import LIMITS
from recsys.compression.recipe import METHODS
from recsys.errors import RecsysError
from recsys.text.loading import load_encoder
from recsys.tracking import Registry
from recsys.tracking.pyfunc_model import golden_frame

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()"]
ROOT = Path(__file__).parents[2]
LADDER = ["int8", "layers=1,vocabulary=1,int8", "vocabulary=1,static"]
EASY = [
    "--set=compression.limits.quality_min_ratio=0.3",
    "--set=compression.limits.throughput_min_ratio=0",
    "--set=compression.limits.latency_p99_ms=10000",
    "--set=compression.limits.explanation_fidelity_min=0",
    "--set=compression.limits.fairness_gap_max=inf",
]
SETTINGS = [
    "--set=compression.recovery.max_epochs=1",
    "--set=compression.speed_texts=12",
    "--set=compression.speed_rounds=2",
    "--set=compression.parts=['factors=int8', 'trees=0.5']",
    *(f"--recipe={recipe}" for recipe in LADDER),
]


@pytest.fixture(scope="module")
def ladder(job) -> dict[str, Any]:
    return job.json("compress", job.data, *job.settings, *SETTINGS, *EASY)


def rung(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(variant for variant in document["variants"] if variant["name"] == name)


def test_every_rung_has_a_whole_receipt(ladder):
    names = [variant["name"] for variant in ladder["variants"]]
    assert names == ["fp32", *LADDER, "factors=int8", "trees=0.5"]
    for variant in ladder["variants"]:
        assert variant["quality_ratio"]["low"] <= variant["quality_ratio"]["mean"]
        if variant["kind"] != "encoder":
            assert 0 < variant["bytes"] < variant["whole_bytes"]
            continue
        for figure in (
            *("bytes", "parameters", "peak_memory_bytes", "titles_per_second", "long_texts_per_second"),
            *("throughput_ratio", "long_throughput_ratio", "latency_p50_ms", "latency_p99_ms", "cost"),
        ):
            assert variant[figure] > 0, (variant["name"], figure)
        assert variant["latency_p50_ms"] <= variant["latency_p99_ms"]
    whole = rung(ladder, "fp32")
    assert whole["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert whole["explanation_fidelity"]["mean"] == pytest.approx(1.0)
    assert whole["quality_ratio"] == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    assert rung(ladder, "layers=1,vocabulary=1,int8")["bytes"] < rung(ladder, "int8")["bytes"]
    assert rung(ladder, "vocabulary=1,static")["operations"] == 0


def test_the_cheapest_that_meets_the_limits_is_chosen_and_confirmed(ladder):
    choice = ladder["choice"]
    costs = {v["name"]: v["cost"] for v in ladder["variants"] if v.get("feasible")}
    assert choice["chosen"] == min(costs, key=costs.__getitem__)
    assert choice["infeasible"] is None
    assert rung(ladder, choice["chosen"])["frontier"]
    assert ladder["confirmation"]["confirmed"]
    assert ladder["confirmation"]["requests"] > 0


def test_the_list_comes_from_the_registry(ladder, job):
    listed = job.json("compress", "--list")
    assert {variant["name"] for variant in listed["variants"]} >= {"fp32", *LADDER}
    for variant in listed["variants"]:
        assert {"name", "version", "bytes", "throughput_ratio", "quality_ratio", "cosine", "chosen"} <= set(
            variant
        )
        assert {"mean", "low", "high"} == set(variant["quality_ratio"])
    chosen = [variant["name"] for variant in listed["variants"] if variant["chosen"]]
    assert chosen == [ladder["choice"]["chosen"]]
    assert ladder["choice"]["chosen"] in job.run("compress", "--list").stdout
    assert "unknown_model" in job.run("compress", "--list", "--name", "nothing", code=66).stderr


def test_every_encoder_is_a_version_that_loads_alone(ladder, job, tmp_path):
    registry = Registry(job.home)
    for variant in (rung(ladder, name) for name in ("fp32", *LADDER)):
        version = registry.resolve(f"models:/recsys-encoder/{variant['version']}")
        assert version.tags["recipe"] == variant["name"]
        assert (version.tags["parent"] or None) == variant["parent"]
        assert registry.metrics(version)["quality_ratio_mean"] == pytest.approx(
            variant["quality_ratio"]["mean"]
        )
        bundle = registry.load(version, tmp_path / str(version.number))
        found = load_encoder(bundle.files).encode(["red shoes", ""])
        assert np.linalg.norm(found, axis=1) == pytest.approx([1.0, 0.0], abs=1e-5)
        assert job.json("verify", version.uri)["digest"] == bundle.digest
        with loaded_by_mlflow(job.home, version.uri) as model:
            table = model.predict(pd.DataFrame({"text": ["red shoes", ""]}))
        np.testing.assert_allclose(table, found, atol=1e-6)


@contextmanager
def loaded_by_mlflow(home: Path, uri: str) -> Iterator[Any]:
    """A version as MLflow's own tools load it."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow on its own type hints
            yield import_module("mlflow.pyfunc").load_model(uri)
    finally:
        mlflow.set_tracking_uri(before)


def test_the_chosen_encoder_is_in_a_bundle_that_scores_like_any_other(ladder, job, tmp_path):
    uri = ladder["bundle"]["model"]
    registry = Registry(job.home)
    version = registry.resolve(uri)
    assert version.tags["encoder"] == ladder["bundle"]["encoder"]
    assert job.json("verify", uri)["golden_rows"] > 0
    for number, model in enumerate((job.trained["model"], uri)):
        night = job.json("score", job.data, "--model", model, "--out", tmp_path / str(number))
        assert night["rows"] > 0
        bundle = registry.load(registry.resolve(model), tmp_path / f"bundle{number}")
        golden = bundle.golden()
        with loaded_by_mlflow(job.home, model) as served:
            scores = served.predict(golden_frame(golden))
        np.testing.assert_allclose(scores, golden.score, atol=1e-6)
    chosen = registry.load(registry.resolve(ladder["bundle"]["encoder"]), tmp_path / "encoder")
    texts = ["a red shoe", "garden tools for children"]
    np.testing.assert_array_equal(
        load_encoder(bundle.files).encode(texts), load_encoder(chosen.files).encode(texts)
    )


def test_training_takes_the_chosen_encoder_by_its_alias(ladder, job):
    encoder = "models:/recsys-encoder@chosen"
    trained = job.json("train", job.data, *job.settings, f"--set=text.encoder={json.dumps(encoder)}")
    assert trained["text"]["encoder"] == ladder["bundle"]["encoder"]
    wrong = job.run("train", job.data, '--set=text.encoder="models:/recsys-encoder@nobody"', code=66)
    assert "unknown_alias" in wrong.stderr


def test_limits_are_chosen_anew_without_measuring_again(ladder, job):
    impossible = "--set=compression.limits.throughput_min_ratio=1e9"
    words = ["compress", job.data, *job.settings, *SETTINGS, *EASY, impossible, "--resume", "--json"]
    done = job.run(*words)
    assert "build" not in done.stderr
    document = json.loads(done.stdout)
    assert document["choice"]["chosen"] is None
    assert document["bundle"] is None
    relaxed = document["choice"]["infeasible"]["relax_to"]
    assert set(relaxed) == {"throughput_min_ratio"}
    speeds = [v["throughput_interval"]["low"] for v in document["variants"] if v["kind"] == "encoder"]
    assert relaxed["throughput_min_ratio"] == pytest.approx(max(speeds))
    assert [v.get("version") for v in document["variants"]] == [v.get("version") for v in ladder["variants"]]


def test_a_search_proposes_combinations_while_time_is_left_and_goes_on_later(ladder, job, tmp_path):
    words = ["compress", job.data, *job.settings, *SETTINGS[:4], *EASY, "--no-bundle", "--resume"]
    words += ["--set=compression.ladder=['int8']", "--minutes=0.4", f"--out={tmp_path}/page.html"]
    first = job.json(*words)
    found = [variant["name"] for variant in first["variants"] if variant["kind"] == "encoder"]
    assert found[:2] == ["fp32", "int8"]
    assert len(found) > 2
    assert first["stopped_by"] in {"time", "end"}
    second = job.json(*words)
    again = [variant["name"] for variant in second["variants"] if variant["kind"] == "encoder"]
    assert again[: len(found)] == found
    assert {rung(second, name)["version"] for name in found} == {
        rung(first, name)["version"] for name in found
    }


def test_the_page_needs_nothing_from_elsewhere(ladder):
    page = Path(ladder["page"]).read_text()
    assert all(variant["name"] in page for variant in ladder["variants"])
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_unknown_methods_and_limits_out_of_range_are_refused_before_anything_runs(job):
    wrong = job.run("compress", job.data, "--recipe", "squeeze=2,int8", code=78).stderr
    assert all(name in wrong for name in ("squeeze=2", *METHODS))
    wrong = job.run("compress", job.data, "--recipe", "layers=0,int8", code=78).stderr
    assert "layers must be a whole number in 1..48" in wrong
    wrong = job.run("compress", job.data, "--set=compression.limits.quality=1", code=78).stderr
    assert all(name in wrong for name in LIMITS)
    wrong = job.run("compress", job.data, "--set=compression.limits.quality_min_ratio=-1", code=78).stderr
    assert "quality_min_ratio must lie in 0..inf" in wrong
    assert "more than 0" in job.run("compress", job.data, "--minutes", "0", code=64).stderr
    assert "--list" in job.run("compress", code=64).stderr


def test_a_damaged_variant_is_refused_by_its_digest(ladder, job, tmp_path):
    version = Registry(job.home).resolve(f"models:/recsys-encoder/{rung(ladder, 'int8')['version']}")
    location = Path(
        Registry(job.home)
        .client.get_model_version_download_uri(version.name, str(version.number))
        .removeprefix("file://")
    )
    victim = location / "data" / "bundle" / "encoder.bin"
    whole = victim.read_bytes()
    try:
        victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        with pytest.raises(RecsysError, match=r"digest_mismatch.*encoder\.bin"):
            Registry(job.home).load(version, tmp_path / "damaged")
    finally:
        victim.write_bytes(whole)


def test_a_search_that_a_signal_stops_goes_on_where_it_was(job, tmp_path):
    words = ["compress", job.data, *job.settings, *SETTINGS[:4], *EASY, "--no-bundle", "--json"]
    words += ["--name=stopped", "--set=compression.ladder=['int8', 'layers=1,int8', 'layers=1,bf16']"]
    words += ["--minutes=30", "--set=compression.search=false"]
    environment = {**os.environ, "RECSYS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, *map(str, words)]
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        deadline = time.monotonic() + 300
        while "fp32: quality" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log.read_text()[-2000:]
    first = json.loads(output)
    assert first["stopped_by"] == "signal"
    measured = [variant["name"] for variant in first["variants"]]
    assert "fp32" in measured
    assert "layers=1,bf16" not in measured
    done = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, env=environment, check=True, timeout=600
    )
    second = json.loads(done.stdout)
    names = [variant["name"] for variant in second["variants"] if variant["kind"] == "encoder"]
    assert names == ["fp32", "int8", "layers=1,int8", "layers=1,bf16"]
    assert all(f"build {name}:" not in done.stderr for name in measured)
    assert "fine-tuning" not in done.stderr
    assert rung(second, "fp32")["version"] == rung(first, "fp32")["version"]
    assert math.isfinite(second["seconds"])
