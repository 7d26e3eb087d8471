"""C03 with a real tracking server: it goes away behind a proxy in several ways, and comes back."""

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recsys.bundle import read_bundle
from recsys.errors import RecsysError
from recsys.tracking import Registry
from serving.lifecycle.cached_bundles import CachedBundles, open_registry
from serving.lifecycle.changes import ModelChanges
from serving.lifecycle.report import ModelReport
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.source import RegistrySource
from serving.lifecycle.supply import ModelSupply
from serving.lifecycle.watch import ModelWatch
from serving.logs import LineLog
from serving.meters import Meters

pytestmark = [
    pytest.mark.slow,
    # MLflow 3.17 on SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

URI = "models:/recsys@champion"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def tracking_server(folder: Path) -> Iterator[int]:
    """A real `mlflow server`, with its database and artifacts in `folder`; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "stored")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            wait_until_healthy(port, server)
            yield port
        finally:
            server.terminate()
            server.wait(60)


def wait_until_healthy(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the tracking server did not start")


class Proxy(ThreadingHTTPServer):
    """Passes requests on, or answers in their place."""

    daemon_threads = True
    upstream = 0
    answer: tuple[int, bytes] | None = None


class Handler(BaseHTTPRequestHandler):
    """One request through the proxy."""

    server: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content = self.server.answer or self.passed_on(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

    def passed_on(self, body: bytes) -> tuple[int, bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        found = response.status, response.read()
        upstream.close()
        return found

    def log_message(self, *arguments: object) -> None:
        pass


def test_c03_an_outage_in_three_ways_and_the_way_back(bundle_folder, second_folder, tmp_path):
    with tracking_server(tmp_path) as port, Proxy(("127.0.0.1", 0), Handler) as proxy:
        proxy.upstream = port
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{proxy.server_port}"
        registry = Registry(tmp_path / "home", uri)
        for folder in (bundle_folder, second_folder):
            registry.log_training("recsys", folder, {}, {})
        registry.set_alias("recsys", "champion", 1)
        asyncio.run(go_through(proxy, registry, uri, tmp_path, (bundle_folder, second_folder)))
        proxy.shutdown()


async def go_through(
    proxy: Proxy, registry: Registry, uri: str, folder: Path, bundles: tuple[Path, Path]
) -> None:
    cache = CachedBundles(folder / "cache")
    for each in bundles:
        cache.note_passed(read_bundle(each).digest)
    meters, descriptor = Meters(), os.open(os.devnull, os.O_WRONLY)
    log = LineLog(descriptor, meters.lines_dropped)

    def served() -> tuple[ModelSlot, ModelWatch]:
        slot, source = ModelSlot(), RegistrySource(URI, lambda: open_registry(folder / "home", uri), cache)
        supply = ModelSupply(source, cache)
        return slot, ModelWatch(ModelChanges(slot, supply, ModelReport(meters, log)), supply)

    slot, watch = served()
    await watch.start()
    await asyncio.sleep(1.0)  # notes the first version as good
    registry.set_alias("recsys", "champion", 2)
    for answer in ((500, b"broken"), (429, b"later"), (200, b"<html>sign in</html>")):
        proxy.answer = answer
        started = time.monotonic()
        with pytest.raises(RecsysError, match="registry_unavailable"):
            await watch.reload()
        assert time.monotonic() - started < 10
        assert (slot.current.name.version, slot.degraded_reason) == (1, None)
        cold, second_watch = served()
        started = time.monotonic()
        await second_watch.start()
        assert time.monotonic() - started < 10
        assert (cold.current.name.version, cold.degraded_reason) == (1, "registry_unavailable")
        proxy.answer = None
        await second_watch.poll()
        assert (cold.current.name.version, cold.degraded_reason) == (2, None)
        await second_watch.close()
    await watch.poll()
    assert slot.current.name.version == 2
    await watch.close()
    log.close()
    os.close(descriptor)
