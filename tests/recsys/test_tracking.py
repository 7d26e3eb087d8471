import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from recsys.bundle import read_bundle, write_bundle
from recsys.errors import EXIT_NO_INPUT, EXIT_UNAVAILABLE, RecsysError
from recsys.golden import Golden
from recsys.tracking import Registry
from recsys.versions import Version

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

TABLE = [{"model": "full", "ndcg_at_10": 0.1}, {"model": "popularity", "ndcg_at_10": float("nan")}]
MANY = {f"m{i}": float(i) for i in range(150)}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose database has its tables; making them takes seconds, copying them does not."""
    home = tmp_path_factory.mktemp("migrated")
    Registry(home).check()
    return home / "mlflow.db"


@pytest.fixture
def registry(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(migrated, tmp_path / "home" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Registry(Path("../home"))


def make_bundle(folder: Path, text: str = "tree\n", name: str = "recsys") -> Path:
    golden = Golden(["q", "q"], [7, 7], [1, 2], ["als+text", ""], [1.5, 1.5], [0.25, -0.5])
    files = {"ranker.txt": text.encode(), "items/table.json": b"[]", **golden.to_files()}
    write_bundle(folder, files, {"name": name, "as_of": 1_700_000_000.25, "feature_schema": "ab" * 32})
    return folder


def train(registry: Registry, folder: Path, text: str = "tree\n", **metrics: float) -> Version:
    return registry.log_training("recsys", make_bundle(folder, text), {"seed": 0}, metrics)


def refusal(call, *arguments) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments)
    return caught.value


def test_training_becomes_a_version_with_its_contract(registry: Registry, tmp_path: Path):
    bundle = read_bundle(make_bundle(tmp_path / "bundle"))
    version = registry.log_training(
        "recsys",
        tmp_path / "bundle",
        parameters={"trees": 200, "note": "x" * 10_000} | {f"p{i}": i for i in range(150)},
        metrics={"ndcg_at_10": 0.5, "ece": float("nan"), "auc": float("inf")}
        | {f"m{i}": i for i in range(150)},
        tables={"evaluation": TABLE},
        tags={"quality": "good", "bundle_digest": "forged"},
    )
    assert (version.name, version.number, version.uri) == ("recsys", 1, "models:/recsys/1")
    assert version.digest == bundle.digest
    assert version.as_of == 1_700_000_000.25
    assert version.tags["feature_schema"] == "ab" * 32
    assert version.tags["quality"] == "good"
    assert registry.resolve("models:/recsys/1") == version
    assert registry.metrics(version) == {"ndcg_at_10": 0.5} | MANY
    run = registry.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["trees"] == "200"
    assert len(run.data.params) == 152


def test_the_table_is_kept_as_an_artifact(registry: Registry, tmp_path: Path):
    registry.log_training("recsys", make_bundle(tmp_path / "bundle"), {}, {}, {"evaluation": TABLE})
    table = json.loads(next((tmp_path / "home").rglob("tables/evaluation.json")).read_bytes())
    assert table["columns"] == ["model", "ndcg_at_10"]
    assert table["data"] == [["full", 0.1], ["popularity", None]]


def test_everything_lies_in_the_home(registry: Registry, tmp_path: Path):
    train(registry, tmp_path / "bundle")
    assert list(Path().iterdir()) == []
    models = list((tmp_path / "home/artifacts/models").iterdir())
    assert len(models) == 1
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {
        "mlflow.db",
        "artifacts",
        ".registry.lock",
    }


def test_the_model_names_its_loader_and_carries_no_code(registry: Registry, tmp_path: Path):
    train(registry, tmp_path / "bundle")
    described = next((tmp_path / "home").rglob("MLmodel"))
    flavor = yaml.safe_load(described.read_bytes())["flavors"]["python_function"]
    assert (flavor["loader_module"], flavor["code"], flavor["data"]) == (
        "serving.pyfunc",
        None,
        "data/bundle",
    )
    suffixes = {path.suffix for path in described.parent.rglob("*.*")}
    assert suffixes == {".json", ".txt", ".yaml"}


def test_fetched_bundle_is_the_registered_one(registry: Registry, tmp_path: Path):
    version = train(registry, tmp_path / "bundle")
    bundle = registry.load(version, tmp_path / "cache/one")
    assert dict(bundle.files) == dict(read_bundle(tmp_path / "bundle").files)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"one"}
    assert {path.stat().st_mode & 0o77 for path in (tmp_path / "cache/one").rglob("*")} == {0}
    assert refusal(registry.fetch, version, tmp_path / "cache/one").code == "bundle_exists"


def test_damage_in_the_store_is_found(registry: Registry, tmp_path: Path):
    version = train(registry, tmp_path / "bundle")
    stored = next((tmp_path / "home/artifacts").rglob("ranker.txt"))
    stored.write_bytes(b"eert\n")
    assert refusal(registry.load, version, tmp_path / "cache").code == "digest_mismatch"


def test_another_whole_bundle_in_its_place_is_found(registry: Registry, tmp_path: Path):
    version = train(registry, tmp_path / "bundle")
    stored = next((tmp_path / "home/artifacts").rglob("data/bundle"))
    shutil.rmtree(stored)
    make_bundle(stored, "another\n")
    assert refusal(registry.load, version, tmp_path / "cache").code == "digest_mismatch"


@pytest.mark.parametrize("name", ["code/loader.py", "python_model.pkl", "model.pt"])
def test_a_version_with_code_is_not_fetched(registry: Registry, tmp_path: Path, name: str):
    version = train(registry, tmp_path / "bundle")
    strange = next((tmp_path / "home/artifacts").rglob("MLmodel")).parent / name
    strange.parent.mkdir(exist_ok=True)
    strange.write_bytes(b"")
    error = refusal(registry.fetch, version, tmp_path / "cache")
    assert (error.code, error.where) == ("artifact_policy_violation", name.split("/")[0])
    assert not (tmp_path / "cache").exists()


def test_a_damaged_bundle_is_not_registered(registry: Registry, tmp_path: Path):
    folder = make_bundle(tmp_path / "bundle")
    (folder / "ranker.txt").write_bytes(b"tre")
    assert refusal(registry.log_training, "recsys", folder, {}, {}).code == "digest_mismatch"
    assert registry.list_versions("recsys") == []


def test_failed_training_run_is_marked(registry: Registry, tmp_path: Path):
    folder = make_bundle(tmp_path / "bundle")
    assert (
        refusal(registry.log_training, "recsys", folder, {"bad:\nname": 1}, {}).code == "registry_unavailable"
    )
    runs = registry.client.search_runs(["1"])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert registry.list_versions("recsys") == []


def test_metric_names_with_at_are_refused(registry: Registry, tmp_path: Path):
    with pytest.raises(ValueError, match="NDCG@10"):
        train(registry, tmp_path / "bundle", **{"NDCG@10": 0.5})


def test_promotion_keeps_the_way_back(registry: Registry, tmp_path: Path):
    first, second, third = (train(registry, tmp_path / name, name) for name in ("a", "b", "c"))
    registry.promote(first)
    assert registry.aliases("recsys") == {"champion": 1}
    registry.promote(second)
    registry.promote(second)
    assert registry.aliases("recsys") == {"champion": 2, "previous": 1}
    registry.promote(third)
    assert registry.resolve("models:/recsys@champion") == third
    assert registry.rollback("recsys") == second
    assert registry.aliases("recsys") == {"champion": 2, "previous": 3}
    assert registry.rollback("recsys") == third
    assert [version.number for version in registry.list_versions("recsys")] == [3, 2, 1]


def test_gates_hold_a_weak_version_back(registry: Registry, tmp_path: Path):
    registry.promote(train(registry, tmp_path / "a", auc=0.7), {"auc_min": 0.6})
    weak = train(registry, tmp_path / "b", auc=0.5)
    error = refusal(registry.promote, weak, {"auc_min": 0.6})
    assert error.code == "gates_failed"
    assert "auc 0.5, at least 0.6 asked" in error.what
    assert registry.aliases("recsys") == {"champion": 1}


def test_nothing_to_roll_back_to(registry: Registry, tmp_path: Path):
    registry.promote(train(registry, tmp_path / "a"))
    assert refusal(registry.rollback, "recsys").code == "unknown_alias"
    assert registry.aliases("recsys") == {"champion": 1}


def test_unknown_names_say_what_there_is(registry: Registry, tmp_path: Path):
    for uri in ("models:/nothing@champion", "models:/nothing/1"):
        error = refusal(registry.resolve, uri)
        assert (error.code, error.exit_code) == ("unknown_model", EXIT_NO_INPUT)
    registry.promote(train(registry, tmp_path / "a"))
    error = refusal(registry.resolve, "models:/recsys@challenger")
    assert (error.code, error.exit_code) == ("unknown_alias", EXIT_NO_INPUT)
    assert "champion = 1" in error.what
    assert refusal(registry.resolve, "models:/recsys/9").code == "unknown_version"
    assert registry.list_versions("nothing") == []


def test_two_registries_in_one_process(registry: Registry, tmp_path: Path, migrated: Path):
    (tmp_path / "second").mkdir()
    shutil.copy(migrated, tmp_path / "second/mlflow.db")
    other = Registry(tmp_path / "second")
    train(registry, tmp_path / "a")
    assert other.list_versions("recsys") == []
    train(other, tmp_path / "b")
    assert len(registry.list_versions("recsys")) == 1


def test_a_damaged_database_is_named_at_once(registry: Registry, tmp_path: Path):
    (tmp_path / "home/mlflow.db").write_bytes(b"not a database at all" * 1000)
    started = time.monotonic()
    error = refusal(registry.check)
    assert (error.code, error.exit_code) == ("registry_unavailable", EXIT_UNAVAILABLE)
    assert time.monotonic() - started < 5


WITHOUT = """
import pathlib, sys
for name in ("sqlalchemy", "alembic", "flask", "pandas"):
    sys.modules[name] = None  # what mlflow-skinny does not bring
"""


def said(code: str, folder: Path) -> list[str]:
    """What a new process prints, without the parts of MLflow that a slim install lacks."""
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_reading_a_tracking_server_needs_no_database_library(tmp_path: Path):
    code = """
from recsys.tracking.reading import RegistryReader
reader = RegistryReader(pathlib.Path("home"), "http://127.0.0.1:9")
reader.open()
try:
    reader.resolve("models:/recsys@champion")
except Exception as error:
    print(error.code, error.exit_code, pathlib.Path("home").exists())
"""
    assert said(code, tmp_path) == ["registry_unavailable", str(EXIT_UNAVAILABLE), "False"]


def test_a_home_says_that_it_needs_the_rest(tmp_path: Path):
    code = """
from recsys.tracking.reading import RegistryReader
try:
    RegistryReader(pathlib.Path("home"))
except Exception as error:
    print(error.code, error.exit_code, *error.what.split())
"""
    code, exit_code, *words = said(code, tmp_path)
    assert (code, exit_code) == ("missing_extra", str(EXIT_UNAVAILABLE))
    assert "recsys[train]," in words
    assert not (tmp_path / "home").exists()


@contextmanager
def web_server(status: int, body: bytes, **headers: str) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (500, b"broken", {}),
        (429, b"slow down", {"Retry_After": "3600"}),
        (200, b"<html>sign in</html>", {"Content_Type": "text/html"}),
        (404, b"<html>nothing here</html>", {"Content_Type": "text/html"}),
        (401, b"who are you", {}),
    ],
)
def test_a_server_that_is_no_registry(tmp_path: Path, status: int, body: bytes, headers: dict):
    started = time.monotonic()
    with web_server(status, body, **headers) as uri:
        error = refusal(Registry(tmp_path, uri).resolve, "models:/recsys@champion")
    assert (error.code, error.exit_code) == ("registry_unavailable", EXIT_UNAVAILABLE)
    assert time.monotonic() - started < 10
    assert "secret" not in str(error)


def test_a_closed_port(tmp_path: Path):
    started = time.monotonic()
    registry = Registry(tmp_path, "http://127.0.0.1:9")
    for call in (
        registry.check,
        lambda: registry.list_versions("recsys"),
        lambda: registry.rollback("recsys"),
    ):
        assert refusal(call).code == "registry_unavailable"
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_server_that_never_answers(tmp_path: Path):
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = refusal(Registry(tmp_path, uri).resolve, "models:/recsys@champion")
    assert error.code == "registry_unavailable"
    assert time.monotonic() - started < 10.5
