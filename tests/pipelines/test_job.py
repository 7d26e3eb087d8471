"""The main job through the command line: what it prints, keeps, repeats and refuses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable

from recsys.cold_start import RUNGS
from recsys.parquet import write_parquet
from recsys.requests import SOURCES


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_training_reports_the_table_and_registers_a_version(job):
    trained = job.trained
    assert trained["model"] == "models:/recsys/1"
    assert set(trained["models"]) == {
        "full", "random", "popularity", "item_knn", "als", "text_neighbours", "head",
    }  # fmt: skip
    for metric in ("auc", "mrr", "ndcg_at_5", "ndcg_at_10"):
        entry = trained["models"]["full"][metric]
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert trained["models"]["full"]["auc"]["mean"] > trained["models"]["random"]["auc"]["mean"]
    assert trained["text"]["distillation"]["layers"] == 1


def test_a_night_holds_k_ranked_items_for_every_user_and_repeats_to_nothing_new(job):
    first = job.json("score", job.data, "--top-k", "5")
    again = job.json("score", job.data, "--top-k", "5")
    assert first["changed"] in (True, False)
    assert not again["changed"]
    assert again["digest"] == first["digest"]
    assert again["table_version"] == first["table_version"]
    night = pl.from_arrow(DeltaTable(str(job.home / "scores")).to_pyarrow_table())
    assert night.height == first["rows"] == first["users"] * 5
    assert night.columns[:6] == ["user_id", "item_id", "rank", "score", "source", "rung"]
    per_user = night.sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("rank", "score")
    assert all(ranks == [1, 2, 3, 4, 5] for ranks in per_user["rank"].to_list())
    assert all(scores == sorted(scores, reverse=True) for scores in per_user["score"].to_list())
    assert set(night["rung"]) <= set(RUNGS)
    assert {name for text in night["source"].unique() for name in text.split("+")} <= set(SOURCES)
    assert sum(first["rungs"].values()) == first["users"]


def test_nobody_gets_what_they_have_already_clicked(job):
    job.run("score", job.data, "--top-k", "20")
    night = pl.from_arrow(DeltaTable(str(job.home / "scores")).to_pyarrow_table())
    events = pl.read_parquet(job.data / "events.parquet").filter(pl.col("event_type") == "click")
    assert not night.join(events, on=["user_id", "item_id"], how="semi").height


def test_a_new_item_and_a_new_user_are_taken_in_without_training(job, tmp_path):
    world = tmp_path / "tomorrow"
    shutil.copytree(job.data, world)
    items = pl.read_parquet(world / "items.parquet")
    fresh = items.head(1).with_columns(item_id=pl.lit("brand-new"), title=pl.lit("An entirely new thing"))
    write_parquet(world / "items.parquet", pl.concat([items, fresh]))
    events = pl.read_parquet(world / "events.parquet")
    click = events.filter(pl.col("event_type") == "click").tail(1)
    newcomer = click.with_columns(user_id=pl.lit("newcomer"), event_id=pl.lit(10**12, pl.Int64))
    write_parquet(world / "events.parquet", pl.concat([events, newcomer]))
    night = job.json("score", world, "--out", tmp_path / "scores", "--top-k", "3")
    assert night["items_embedded"] == 1
    rows = pl.from_arrow(DeltaTable(str(tmp_path / "scores")).to_pyarrow_table())
    assert set(rows.filter(pl.col("user_id") == "newcomer")["rung"]) == {"folded_in"}


def test_verify_says_what_is_whole_and_names_what_is_damaged(job, tmp_path):
    whole = job.json("verify", "models:/recsys@champion")
    assert whole["golden_rows"] > 0
    bundle = next((job.home / "cache" / "bundles").iterdir())
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    ranker = damaged / "ranker.txt"
    ranker.chmod(0o600)
    ranker.write_bytes(ranker.read_bytes()[:-100])
    failed = job.run("verify", damaged, code=65)
    assert last_line(failed).startswith("error: digest_mismatch:")
    assert "ranker.txt" in last_line(failed)


def test_a_registered_bundle_is_signed_with_the_configured_key(job):
    from recsys.bundle import read_bundle
    from recsys.signing import check_signature, key_id, load_private_key

    public = load_private_key(job.home / "signing.key").public_key()
    folder = next((job.home / "artifacts").rglob("manifest.sig")).parent
    bundle = read_bundle(folder)
    assert bundle.digest == job.trained["bundle_digest"]
    assert check_signature(bundle, {key_id(public): public}) == key_id(public)


def test_a_signing_key_that_others_may_read_is_refused_before_training(job):
    key = job.home / "open.key"
    key.write_text("ab" * 32)
    key.chmod(0o644)
    done = job.run("train", job.data, f"--set=signing.key={json.dumps(str(key))}", code=78)
    assert last_line(done).startswith("error: key_unsafe:")


def test_rollback_needs_a_previous_champion(job):
    assert last_line(job.run("rollback", code=66)).startswith("error: unknown_alias:")


def test_mlflow_gives_the_scores_of_the_night_and_of_training(job, tmp_path):
    """Night, golden rows of training and MLflow's own pyfunc loader, for whole requests."""
    out = tmp_path / "scores"
    night = job.json("score", job.data, "--out", out, "--top-k", "1000")
    rows = pl.from_arrow(DeltaTable(str(out)).to_pyarrow_table()).drop("night")
    users = rows["user_id"].unique().sort().head(20)
    rows = rows.filter(pl.col("user_id").is_in(users.implode()))
    write_parquet(tmp_path / "rows.parquet", rows)
    code = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from pathlib import Path\n"
        "import pandas as pd\n"
        "from recsys.tracking import Registry\n"
        "import mlflow\n"
        "registry = Registry(Path(sys.argv[1])); mlflow.set_tracking_uri(registry.uri)\n"
        "rows = pd.read_parquet(sys.argv[2]); rows['request'] = rows['user_id']\n"
        "frame = rows[['request', 'user_id', 'item_id', 'source']].assign(timestamp=float(sys.argv[3]))\n"
        "scores = mlflow.pyfunc.load_model('models:/recsys@champion').predict(frame)\n"
        "pd.DataFrame({'score': scores}).to_parquet(sys.argv[4])\n"
    )
    words = [str(job.home), str(tmp_path / "rows.parquet"), repr(night["as_of"]), str(tmp_path / "o.parquet")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=tmp_path, env=project_environment())
    served = pl.read_parquet(tmp_path / "o.parquet")["score"].to_numpy()
    np.testing.assert_allclose(served, rows["score"].to_numpy(), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_mlflow_models_serve_answers_with_the_same_scores(job, tmp_path):
    out = tmp_path / "scores"
    night = job.json("score", job.data, "--out", out, "--top-k", "1000")
    rows = pl.from_arrow(DeltaTable(str(out)).to_pyarrow_table())
    rows = rows.filter(pl.col("user_id") == rows["user_id"].min()).sort("rank")
    split = {
        "columns": ["request", "user_id", "item_id", "source", "timestamp"],
        "data": [
            ["q", row["user_id"], row["item_id"], row["source"], night["as_of"]]
            for row in rows.iter_rows(named=True)
        ],
    }
    with free_port() as port:
        pass
    server = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", "models:/recsys@champion",
            "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        ],
        env={**project_environment(), "MLFLOW_TRACKING_URI": f"sqlite:///{job.home}/mlflow.db"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        answer = post(f"http://127.0.0.1:{port}/invocations", {"dataframe_split": split}, seconds=90)
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
    np.testing.assert_allclose(answer["predictions"], rows["score"].to_numpy(), atol=1e-6, rtol=0)


class free_port:  # noqa: N801
    def __enter__(self) -> int:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        return int(self.socket.getsockname()[1])

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


def post(url: str, document: object, *, seconds: float) -> dict:
    """Post JSON, waiting for the server to come up."""
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def project_environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)  # MLflow starts uvicorn by name
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": path}


@pytest.mark.parametrize("protocol", ["time", "last", "slate"])
def test_evaluation_has_every_model_metric_and_slice(job, protocol):
    document = job.json("evaluate", job.data, "--protocol", protocol, *job.settings)
    assert document["protocol"] == protocol
    assert document["peak_memory_mb"] > 0
    metrics = ("auc", "mrr", "ndcg_at_5", "ndcg_at_10")
    if protocol != "slate":
        metrics = tuple(f"{name}_at_{k}" for name in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20))
    for model in ("full", "random", "popularity", "item_knn", "als", "text_neighbours", "head"):
        for metric in metrics:
            entry = document["models"][model][metric]
            assert entry["low"] <= entry["mean"] <= entry["high"]
    assert sum(entry["units"] for entry in document["slices"]["user"].values()) == document["requests"]
    assert sum(entry["units"] for entry in document["slices"]["history"].values()) == document["requests"]


def damage(job, tmp_path: Path) -> Path:
    world = tmp_path / "world"
    shutil.copytree(job.data, world)
    return world


def test_a_missing_column_is_named(job, tmp_path):
    world = damage(job, tmp_path)
    write_parquet(world / "events.parquet", pl.read_parquet(world / "events.parquet").drop("item_id"))
    line = last_line(job.run("validate", world, code=65))
    assert line.startswith("error: input_invalid:")
    assert "item_id" in line
    assert "events.parquet" in line


def test_a_damaged_file_is_named(job, tmp_path):
    world = damage(job, tmp_path)
    whole = (world / "items.parquet").read_bytes()
    (world / "items.parquet").write_bytes(whole[: len(whole) // 2])
    line = last_line(job.run("train", world, code=65))
    assert line.startswith("error: input_invalid:")
    assert "items.parquet" in line


def test_five_percent_of_poisoned_rows_are_refused_and_more_can_be_allowed(job, tmp_path):
    world = damage(job, tmp_path)
    events = pl.read_parquet(world / "events.parquet")
    bad = pl.int_range(pl.len()) % 19 == 0
    write_parquet(
        world / "events.parquet",
        events.with_columns(item_id=pl.when(bad).then(pl.lit("nowhere")).otherwise("item_id")),
    )
    line = last_line(job.run("validate", world, code=65))
    assert line.startswith("error: too_many_bad_rows:")
    assert "unknown_item" in line
    report = job.json("validate", world, "--max-bad", "0.1")
    counts = report["tables"]["events"]
    assert counts["rows_in"] == counts["good"] + counts["quarantined"] == events.height


def test_an_empty_catalogue_an_unknown_alias_and_a_dead_server_each_have_their_line(job, tmp_path):
    world = damage(job, tmp_path)
    write_parquet(world / "items.parquet", pl.read_parquet(world / "items.parquet").head(0))
    events = pl.read_parquet(world / "events.parquet")
    write_parquet(world / "events.parquet", events.head(0))
    (world / "impressions.parquet").unlink()
    assert last_line(job.run("train", world, code=65)).startswith("error: empty_catalogue:")
    unknown = job.run("score", job.data, "--model", "models:/recsys@nobody", code=66)
    assert last_line(unknown).startswith("error: unknown_alias:")
    with free_port() as port:
        dead = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        line = last_line(job.run("train", job.data, "--tracking-uri", dead, code=69))
    assert line.startswith("error: registry_unavailable:")
    assert time.monotonic() - started < 40


def test_wrong_words_exit_with_the_usage_code(job):
    assert last_line(job.run("evaluate", job.data, "--protocol", "magic", code=64)).startswith("error: ")
    assert last_line(job.run("score", code=64)).startswith("error: usage:")
    line = last_line(job.run("train", job.data, "--set", "ranker.magic=1", code=78))
    assert line.startswith("error: config_invalid:")
    assert "ranker.magic" in line
