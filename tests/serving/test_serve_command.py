"""`recsys serve` as a command: what stops its start, where its settings come from, and how it ends."""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import subprocess
import time
import tomllib
from operator import attrgetter
from pathlib import Path

import pytest

from recsys.errors import RecsysError
from serving.commands.serve_settings import TABLES, known_fields, read_settings
from serving.lifecycle.health_budget import HealthBudget
from tests.serving.running import JSON, RECSYS, refused, running, start

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

CLICK = {"event_id": "e", "user_id": "u03", "item_id": "i05", "event_type": "click"}


# What stops the start


@pytest.mark.parametrize(
    ("model", "options", "code", "exit_code"),
    [
        ("models:/nobody@champion", [], "unknown_model", 66),
        ("models:/recsys@nobody", [], "unknown_alias", 66),
        ("no-such-folder", [], "unknown_model", 66),
        ("models:/recsys", [], "model_uri_invalid", 64),
        ("models:/recsys@champion", ["--set", "server.deadline=1"], "settings_invalid", 78),
        ("models:/recsys@champion", ["--public-key", "no-such-file"], "key_missing", 66),
    ],
)
def test_what_cannot_be_served_stops_the_start(shared_versions, tmp_path, model, options, code, exit_code):
    patient = {"watch__open_s": 120.0, "watch__first_resolve_s": 60.0}
    process = start(model, tmp_path, home=shared_versions[0].home, options=options, **patient)
    found, line = refused(process, tmp_path)
    assert (found, line.split(": ")[:2]) == (exit_code, ["error", code])


@pytest.mark.parametrize("name", ["port", "admin_port"])
def test_a_port_that_is_taken_stops_the_start(server_home, tmp_path, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused(start(None, tmp_path, home=server_home, **{name: port}), tmp_path)
    assert (code, line.split(": ")[:2]) == (69, ["error", "address_unavailable"])
    assert f"127.0.0.1:{port}" in line


def test_a_second_server_on_one_log_is_refused_until_the_first_is_gone(hosted, server_home, tmp_path):
    event = CLICK | {"timestamp": time.time()}
    with hosted(None, tmp_path / "one") as server:
        options = ["--log", str(tmp_path / "one" / "events.db")]
        process = start(None, tmp_path / "two", home=server_home, options=options)
        code, line = refused(process, tmp_path / "two")
        assert (code, line.split(": ")[:2]) == (75, ["error", "lock_held"])
        assert server.post("/v1/events", event).json["accepted"] == 1
        assert server.stop() == 0
    with hosted(None, tmp_path / "two", options=options) as server:
        assert server.post("/v1/events", event).json["duplicate"] == 1


def test_a_database_of_something_else_is_not_taken_for_a_log(server_home, tmp_path):
    other = tmp_path / "events.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE somebody (wrote TEXT)")
        connection.commit()
    before = other.read_bytes()
    code, line = refused(start(None, tmp_path, home=server_home), tmp_path)
    assert (code, line.split(": ")[:2]) == (65, ["error", "not_an_event_log"])
    assert other.read_bytes() == before


def test_a_cache_that_others_may_write_to_stops_the_start(tmp_path):
    cache = tmp_path / "home" / "cache" / "served" / "main"
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    code, line = refused(start(None, tmp_path, home=tmp_path / "home"), tmp_path)
    assert (code, line.split(": ")[:2]) == (78, ["error", "cache_unsafe"])


# What it says, and how it ends


def test_people_are_told_where_it_listens(tmp_path):
    (tmp_path / "manifest.json").touch()
    words = ["serve", "--model", str(tmp_path), "--home", str(tmp_path), "--port", "0", "--admin-port", "0"]
    process = subprocess.Popen([*RECSYS, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        line = process.stdout.readline().decode()
        place = r"http://127\.0\.0\.1:(\d+)"
        found = re.fullmatch(rf"{place} takes requests, {place} reload and rollback\n", line)
        assert found is not None, line
        for port in found.groups():
            socket.create_connection(("127.0.0.1", int(port)), timeout=15).close()
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout.read() == b"", "a line, and nothing else"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (tmp_path / "events.db").exists(), "where the log lies unless told otherwise"


@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_it_can_be_told_to_go_while_the_first_model_is_on_trial(bundle_folder, tmp_path, wait_s):
    with running(bundle_folder, tmp_path, home=tmp_path / "home", ready=False) as server:
        time.sleep(wait_s)
        assert server.stop() == 0
    assert "Traceback" not in server.log


# Settings


EVERY = """
[server]
host = "127.0.0.2"
port = 8002
admin_port = 8003
keys_file = "keys.txt"
longest_body = 2000000
longest_head = 20000
longest_url = 9000
most_connections = 1999
most_waiting = 255
most_batches = 63
most_buffered = 99999999
deadline_s = 0.2
head_s = 11.0
body_s = 12.0
idle_s = 76.0
write_s = 13.0
events_s = 6.0
drain_s = 14.0
drain_delay_s = 2.0
rate = 50.0
burst = 99.0
most_failures = 9

[watch]
poll_s = 11.0
jitter = 0.2
open_s = 31.0
resolve_s = 10.0
first_resolve_s = 5.0

[watch.budget]
requests = 499
error_share = 0.03
slow_factor = 4.0
slow_floor_s = 0.03
slow_share = 0.3

[shadow]
share = 0.2
most_waiting = 65
longest_s = 2.0
seed = 1
"""
"""Each setting once, with another value than its default."""


def test_every_setting_is_read_from_a_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(EVERY)
    found, usual = read_settings(file, {}, []), read_settings(None, {}, [])
    document = tomllib.loads(EVERY)
    budget = document["watch"].pop("budget")
    asked = {f"{table}.{name}": value for table, fields in document.items() for name, value in fields.items()}
    asked |= {f"watch.budget.{name}": value for name, value in budget.items()}
    assert sorted(asked) == known_fields()
    for name, value in asked.items():
        field = attrgetter(name)
        wanted = Path(value) if name == "server.keys_file" else value
        assert (field(found), type(field(found))) == (wanted, type(wanted)) != (field(usual), type(wanted)), (
            name
        )


def test_every_setting_is_documented_where_it_is_declared():
    for full in known_fields():
        table, _, name = full.rpartition(".")
        kind = HealthBudget if table == "watch.budget" else TABLES[table]
        assert re.search(rf"[\s`]{name}[:,`]", kind.__doc__ or ""), full


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\ndeadline = 1", "server.deadline"),
        ("[serve]\nport = 1", "serve"),
        ("port = 1", "port"),
        ("[watch.budget]\nrequest = 1", "watch.budget.request"),
        ("[watch]\nbudget = 1", "watch.budget"),
        ("server = 1", "server"),
        ("[server]\nport = []", "port"),
        ('[server]\nport = "eighty"', "port"),
        ("[server]\nport = 65536", "port"),
        ("[server]\nport = 8001", "admin_port"),
        ("[server]\ndeadline_s = 0", "deadline_s"),
        ("[server]\ndeadline_s = nan", "deadline_s"),
        ("[server]\nbody_s = inf", "body_s"),
        ("[server]\ndrain_delay_s = 10", "drain_delay_s"),
        ("[server]\nmost_waiting = 0", "most_waiting"),
        ("[server]\nrate = 1\nburst = 0", "burst"),
        ("[watch]\npoll_s = 0", "poll_s"),
        ("[watch]\npoll_s = -1", "poll_s"),
        ("[watch]\npoll_s = nan", "poll_s"),
        ("[watch]\njitter = 1.0", "jitter"),
        ("[watch]\nresolve_s = 0", "resolve_s"),
        ("[watch]\nfirst_resolve_s = inf", "first_resolve_s"),
        ("[watch.budget]\nrequests = 0", "requests"),
        ("[watch.budget]\nslow_share = nan", "shares"),
        ("[shadow]\nshare = 1.5", "share"),
        ("[shadow]\nshare = nan", "share"),
        ("[shadow]\nmost_waiting = 0", "most_waiting"),
        ("[shadow]\nlongest_s = nan", "longest_s"),
        ("[server", ""),
        ("\xff", ""),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(tmp_path, text, named):
    file = tmp_path / "serve.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecsysError, match="settings_invalid") as caught:
        read_settings(file, {}, [])
    assert caught.value.exit_code == 78
    assert named in caught.value.what


def test_a_file_of_settings_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecsysError, match=r"settings_invalid.*serve\.toml"):
        read_settings(tmp_path / "serve.toml", {}, [])


@pytest.mark.parametrize(
    "words",
    ["server.port", "port=1", "server.prt=1", "watch.budget=1", "server.port=x", "=", "server.port=1=2"],
)
def test_overrides_that_mean_nothing_are_refused(words):
    with pytest.raises(RecsysError, match="settings_invalid"):
        read_settings(None, {}, [words])


def test_options_win_over_the_file_and_overrides_over_both(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('[server]\nport = 1\nadmin_port = 2\nhost = "127.0.0.9"\nkeys_file = "a"\ndeadline_s = 3')
    given = {"port": 11, "admin_port": 12, "keys_file": Path("b")}
    found = read_settings(file, given, ["server.port=21", "watch.poll_s=22", "server.keys_file=c=d"])
    server = found.server
    assert (server.port, server.admin_port, server.host) == (21, 12, "127.0.0.9")
    assert (server.keys_file, server.deadline_s, found.watch.poll_s) == (Path("c=d"), 3.0, 22.0)


def test_a_server_keeps_to_its_file(hosted, tmp_path):
    """The options that `hosted` gives win over the ports of the file."""
    file = tmp_path / "serve.toml"
    file.write_text("[server]\nport = 1\nadmin_port = 1\nlongest_body = 2000\nrate = 0.001\nburst = 4.0\n")
    with hosted(None, tmp_path, options=["--config", str(file)]) as server:
        server.ask("POST", "/v1/events", b" " * 2001, JSON).problem(413, "body_too_large")
        codes = [server.ask("GET", "/version").status for _ in range(4)]
        assert codes == [200] * 3 + [429]
