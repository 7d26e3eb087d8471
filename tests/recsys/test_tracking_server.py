import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recsys.bundle import write_bundle
from recsys.errors import RecsysError
from recsys.golden import Golden
from recsys.tracking import Registry

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 on SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` with its database and artifacts in `folder`."""
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rsplit(":")[-1]]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "stored")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            wait_until_healthy(uri, server)
            yield uri
        finally:
            server.terminate()
            server.wait(30)


def wait_until_healthy(uri: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):  # noqa: S310
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the tracking server did not start")


def test_a_real_server_keeps_versions(tmp_path: Path):
    home = tmp_path / "home"
    with tracking_server(tmp_path) as uri:
        registry = Registry(home, uri)
        registry.check()
        versions = []
        for number in (1, 2):
            folder = tmp_path / f"bundle-{number}"
            golden = Golden(["q"], ["u"], ["i"], [""], [1.5], [float(number)])
            files = {"ranker.txt": b"tree\n" * number, "items/table.json": b"[]", **golden.to_files()}
            write_bundle(folder, files, {"name": "recsys", "as_of": 1.7e9, "feature_schema": "ab" * 32})
            table = {"evaluation": [{"model": "full", "auc": 0.7}]}
            versions.append(registry.log_training("recsys", folder, {"seed": 0}, {"auc": 0.7}, table))
        first, second = versions
        registry.promote(first, {"auc_min": 0.6})
        registry.promote(second)
        assert registry.resolve("models:/recsys@champion") == second
        assert registry.rollback("recsys") == first
        assert registry.aliases("recsys") == {"champion": 1, "previous": 2}
        assert registry.list_versions("recsys") == [second, first]
        assert registry.metrics(first) == {"auc": 0.7}
        bundle = registry.load(second, tmp_path / "cache")
        assert bundle.files["ranker.txt"] == b"tree\n" * 2
        for unknown, code in (
            ("models:/nothing@champion", "unknown_model"),
            ("models:/recsys@challenger", "unknown_alias"),
            ("models:/recsys/9", "unknown_version"),
        ):
            with pytest.raises(RecsysError, match=code):
                registry.resolve(unknown)
        for stored in (tmp_path / "stored").rglob("ranker.txt"):
            stored.write_bytes(b"eert\n")
        with pytest.raises(RecsysError, match="digest_mismatch"):
            registry.load(first, tmp_path / "first")
    started = time.monotonic()
    with pytest.raises(RecsysError, match="registry_unavailable"):
        registry.resolve("models:/recsys@champion")
    assert time.monotonic() - started < 10
    assert not home.exists()


def test_two_processes_may_open_a_new_home_together(tmp_path: Path):
    code = "import sys, pathlib, recsys.tracking as t; t.Registry(pathlib.Path(sys.argv[1])).check()"
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert outputs == [(b"", b""), (b"", b"")]
