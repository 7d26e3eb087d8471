"""`pip install "recsys[serve]"`: a server without the training libraries, in an environment of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.errors import EXIT_UNAVAILABLE
from recsys.tracking import Registry
from tests.serving.running import Running, wait_for_start
from tests.small_bundles import ITEMS, dataset, parts_of
from tests.tracking_server import tracking_server
from tests.wheels import ROOT, build_wheel, run

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 on SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

TRAINING = (
    "torch",
    "transformers",
    "peft",
    "nncf",
    "implicit",
    "sentence_transformers",
    "optuna",
    "deltalake",
)
MLFLOW_SERVER = ("mlflow.server", "flask", "sqlalchemy", "alembic", "pandas", "sklearn", "docker", "gunicorn")
MOST_MIB = 1500
"""1,180 were measured; torch alone would bring 750 more, without CUDA."""


def pip(python: Path, *words: str | Path) -> list[str]:
    """The command of this environment's pip for another environment."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *words]
    return [str(word) for word in command]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with `wheel[serve]`; skips where there is no package index."""
    home = tmp_path_factory.mktemp("slim")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python, pins = home / "venv" / "bin" / "python", ("-c", ROOT / "constraints.txt")
    probe = pip(python, "download", "--quiet", "--no-deps", "--retries", "1", "--dest", home, *pins, "h11")
    found = subprocess.run(probe, capture_output=True, text=True, timeout=300)
    if found.returncode:
        pytest.skip(f"pip cannot download a small package: {found.stderr.strip()[-300:]}")
    wheel = build_wheel(home / "wheel")
    run(*pip(python, "install", "--quiet", *pins, f"{wheel}[serve]"), cwd=home)
    return python


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions as folders."""
    folder, world = tmp_path_factory.mktemp("bundles"), dataset()
    return [parts_of(world, seed).write(folder / str(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for both servers, so that the kernels are compiled and the first bundle is tried once."""
    return tmp_path_factory.mktemp("home")


@contextlib.contextmanager
def serving(python: Path, folder: Path, home: Path, *words: str) -> Iterator[Running]:
    """`recsys serve` of that environment, once it is ready."""
    command = [str(python.with_name("recsys")), "serve", "--home", str(home), "--json", *words]
    command += ["--port", "0", "--admin-port", "0", "--log", str(folder / "events.db")]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=stderr)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield wait_for_start(process, folder, ready=True)
        finally:
            process.kill()
            process.wait()


def check_answers(server: Running, version: int) -> None:
    """A list of each kind, with every candidate in it, from this version."""
    ranked = server.post("/v1/rank", {"user_id": "u03", "candidates": [*ITEMS[:20], "unheard of"]})
    assert (ranked.status, ranked.json["model"]["version"]) == (200, version)
    assert {item["id"] for item in ranked.json["items"]} == {*ITEMS[:20], "unheard of"}
    assert len({item["score"] for item in ranked.json["items"]}) > 10
    found = server.post("/v1/recommend", {"user_id": "u03", "k": 5})
    assert (found.status, len(found.json["items"])) == (200, 5)
    like = server.post("/v1/similar", {"item_id": ITEMS[0], "k": 5})
    assert (like.status, len(like.json["items"])) == (200, 5)


def test_neither_training_libraries_nor_mlflows_server_are_there(python: Path, tmp_path: Path):
    program = (
        "import importlib\n"
        f"for name in {TRAINING + MLFLOW_SERVER}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError:\n"
        "        continue\n"
        "    print(name)\n"
    )
    assert run(python, "-c", program, cwd=tmp_path) == ""
    files = python.parents[1].rglob("*")
    size = sum(path.lstat().st_blocks * 512 for path in files) / 2**20
    assert size < MOST_MIB, f"{size:.0f} MiB"


def test_a_folder_is_served(python: Path, bundles: list[Path], home: Path, tmp_path: Path):
    with serving(python, tmp_path, home, "--model", str(bundles[0])) as server:
        check_answers(server, 0)
        assert server.stop() == 0


def test_an_alias_at_a_tracking_server_is_served_and_followed(
    python: Path, bundles: list[Path], home: Path, tmp_path: Path
):
    with tracking_server(tmp_path) as uri:
        registry = Registry(tmp_path / "training", uri)
        for folder in bundles:
            registry.log_training("shop", folder, {}, {})
        registry.set_alias("shop", "champion", 1)
        words = ("--model", "models:/shop@champion", "--tracking-uri", uri)
        with serving(python, tmp_path, home, *words) as server:
            assert server.ask("GET", "/readyz").json["degraded_reason"] is None
            check_answers(server, 1)
            registry.set_alias("shop", "champion", 2)
            swap = server.ask("POST", "/admin/reload", admin=True)
            assert (swap.status, swap.json["model"]["version"]) == (200, 2), swap.body
            check_answers(server, 2)
            assert server.stop() == 0


def test_a_registry_in_a_home_says_what_it_lacks(python: Path, tmp_path: Path):
    command = [python.with_name("recsys"), "serve", "--home", tmp_path, "--port", "0", "--admin-port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == EXIT_UNAVAILABLE
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: missing_extra: module sqlalchemy is missing: install recsys[train]")
