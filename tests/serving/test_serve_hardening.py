"""What a server's process does and does not do: seen from outside, by the system's and Python's own hooks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import recsys
from tests.serving.running import Running, running, wait_until

ITEMS = [f"i{number:02d}" for number in range(40)]

HOOK = """
import os, sys
_out = os.open(os.environ["AUDIT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_watched = (
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pickle.find_class",
    "pty.spawn", "socket.bind", "socket.connect", "subprocess.Popen",
)
def _hook(event, arguments):
    if event in _watched:
        os.write(_out, f"{os.getpid()} {event} {arguments!r}".replace("\\n", " ")[:500].encode() + b"\\n")
sys.addaudithook(_hook)
"""
"""What Python runs before anything else where it finds it as `sitecustomize`."""

PICKLED = "pickle.find_class"
OWN_PICKLES = re.compile(
    r"\('(builtins|copyreg|numpy|numba\.[\w.]+|features\.(live_cells|slate)"
    r"|recsys\.(leaf_masks|relevance_kernel|tree_effects))', '\w+'\)"
)
"""Of the kernels' machine code, which numba keeps beside our sources as Python keeps byte code."""


def seen(folder: Path, pid: int, *, after: int = 0) -> list[tuple[str, str]]:
    """Events of one process with their arguments, from a line of the file on."""
    lines = [line.split(" ", 2) for line in (folder / "audit").read_text().splitlines()]
    return [(event, rest) for who, event, rest in lines if int(who) == pid][after:]


def use(server: Running) -> None:
    """Everything that clients can ask for."""
    user = {"user_id": "u03"}
    assert server.post("/v1/rank", user | {"candidates": ITEMS, "explain": True}).status == 200
    for few in ([], ITEMS[:1], ["nobody-knows-it"]):
        assert server.post("/v1/rank", {"candidates": few, "explain": True}).status == 200
    assert server.post("/v1/recommend", user | {"k": 5}).status == 200
    assert server.post("/v1/similar", {"item_id": "i01"}).status == 200
    item = {
        "kind": "item",
        "event_id": "n",
        "item_id": "fresh",
        "title": "a red thing",
        "timestamp": time.time(),
    }
    click = {"event_id": "c", "item_id": "fresh", "event_type": "click", "timestamp": time.time()} | user
    assert server.post("/v1/events", [item, click]).json["accepted"] == 2
    wait_until(lambda: server.post("/v1/similar", {"item_id": "fresh"}).json.get("items"))


def test_c38_nothing_is_unpickled_started_or_called_up(bundle_folder, second_folder, tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    path = [str(tmp_path / "hook"), str(Path(recsys.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "AUDIT_FILE": str(tmp_path / "audit")}
    served = Path(shutil.copytree(bundle_folder, tmp_path / "served"))
    with running(
        served, tmp_path, home=tmp_path / "home", environment=environment, deadline_s=10.0
    ) as server:
        pid = server.process.pid
        started = seen(tmp_path, pid)
        use(server)
        used = seen(tmp_path, pid, after=len(started))
        shutil.rmtree(served)
        shutil.copytree(second_folder, served)
        assert server.ask("POST", "/admin/reload", admin=True).status == 200
        changed = seen(tmp_path, pid, after=len(started) + len(used))
        intake = seen(tmp_path, server.intake_pid)
        assert server.stop() == 0
    for pickled in ([rest for event, rest in part if event == PICKLED] for part in (started, used, changed)):
        assert [rest for rest in pickled if not OWN_PICKLES.fullmatch(rest)] == []
    others = [
        [(event, rest) for event, rest in part if event != PICKLED] for part in (started, used, changed)
    ]
    assert [[event for event, _ in part] for part in others] == [
        ["socket.bind", "socket.bind", "subprocess.Popen", "subprocess.Popen"],
        [],
        ["subprocess.Popen"],
    ]
    assert "'-P', '-m', 'serving.http.intake_child'" in others[0][2][1]
    for _, rest in (others[0][3], others[2][0]):
        assert "'-P', '-m', 'serving.lifecycle.trial_child'" in rest
    assert intake == []


@pytest.mark.soak  # compiles every kernel once more
def test_c30_nothing_is_compiled_once_it_is_ready(bundle_folder, tmp_path):
    """On a machine that has never run it: what a request has to wait for is done before there are any."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "kernels")}
    with running(
        bundle_folder, tmp_path, home=tmp_path / "home", environment=environment, deadline_s=30.0
    ) as server:
        before = sorted(path.name for path in (tmp_path / "kernels").rglob("*.nb?"))
        use(server)
        assert sorted(path.name for path in (tmp_path / "kernels").rglob("*.nb?")) == before
    assert before


@contextmanager
def traced(server: Running, calls: str, file: Path) -> Iterator[None]:
    """Write down the system calls of all threads of a server."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    words = [
        "strace",
        "-f",
        "-s",
        "4000",
        "-e",
        f"trace={calls}",
        "-o",
        str(file),
        *("-p", str(server.process.pid)),
        *("-p", str(server.intake_pid)),
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as tracer:
        for _ in range(2):
            if b"attached" not in tracer.stderr.readline():
                pytest.skip("processes cannot be traced here")
        yield
        tracer.send_signal(signal.SIGINT)


def test_c15_an_event_is_on_stable_storage_before_its_answer(hosted, tmp_path):
    event = {"event_id": "mark-of-the-event", "user_id": "u", "item_id": "i", "event_type": "click"}
    with hosted(None, tmp_path) as server:
        with traced(server, "pwrite64,fdatasync,fsync,write,writev,sendto,sendmsg", tmp_path / "calls"):
            assert server.post("/v1/events", event | {"timestamp": time.time()}).json["accepted"] == 1
        assert server.stop() == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    written = next(
        place for place, line in enumerate(calls) if "pwrite64(" in line and "mark-of-the-event" in line
    )
    answered = next(place for place, line in enumerate(calls) if "HTTP/1.1 200" in line)
    synced = re.compile(r"(fdatasync\(\d+\)|fdatasync resumed>\)) += 0")
    assert any(synced.search(line) for line in calls[written:answered]), "\n".join(calls)[-4000:]
