"""What serving/README.md says: its calls are made, its tables are held against the program."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pipelines.cli import app
from recsys import errors
from recsys.cold_start import RUNGS
from recsys.limits import MAX_ID_BYTES
from serving import messages
from serving.commands.serve_settings import Settings, known_fields, read_settings
from serving.events.parsing import Window
from serving.events.sqlite_log import RESERVE_BYTES
from serving.experiments.experiment import load_experiment
from serving.http.decoding import MOST_DEPTH
from serving.http.keys import SCOPES, SHORTEST_KEY, read_keys
from serving.http.routes import ADMIN, PUBLIC, Table
from serving.meters import Meters
from serving.problems import CODES, kind_of
from tests.serving.running import Running
from tests.small_bundles import ITEMS, USERS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```\n(?:\n```json\n(.*?)^```)?", TEXT, re.MULTILINE | re.DOTALL)
CALLS = [(block, answer) for language, block, answer in BLOCKS if language == "sh"]
PATHS = re.compile(r"\"\$(?:SERVER|ADMIN)([^\"?]*)")
CURL = "curl() { command curl -S -w '\\n%{http_code}\\n' \"$@\"; }\n"
"""The status behind each answer, on a line of its own."""
LITERALS = {
    node.value
    for package in ("recsys", "serving", "pipelines")
    for path in (ROOT / package).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


def block(language: str, holding: str = "") -> str:
    """The one block of a language that holds a text."""
    (found,) = [body for name, body, _ in BLOCKS if name == language and holding in body]
    return found


def rows(section: str, heading: str) -> list[list[str]]:
    """The cells of the tables with this first heading."""
    found, is_inside = [], False
    for line in SECTIONS[section].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        is_inside = bool(cells) and (is_inside or cells[0] == heading)
        if is_inside and cells[0] != heading and not set(cells[0]) <= {"-", " "}:
            found.append(cells)
    return found


def names(text: str) -> list[str]:
    """What stands in a text as code, but for blocks of it."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def of_this_world(text: str) -> str:
    """The same call for a user and an item of the bundle that the tests serve."""
    text = re.sub(r"\bu0000(\d{3})\b", lambda found: USERS[int(found[1]) % len(USERS)], text)
    return re.sub(r"\bi0000(\d{3})\b", lambda found: ITEMS[int(found[1]) % len(ITEMS)], text)


def shape(document: Any) -> Any:
    """The names in a document, of a list those of its first entry; values do not count."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    return [shape(each) for each in document[:1]] if isinstance(document, list) else None


def called(commands: str, server: Running, key: str = "") -> tuple[list[int], str]:
    """Run a block of shell commands: the status of each call, and what they printed."""
    places = {"SERVER": f"http://127.0.0.1:{server.port}", "ADMIN": f"http://127.0.0.1:{server.admin_port}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", CURL + of_this_world(commands)],
        env=os.environ | places | {"KEY": key},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    statuses = re.findall(r"^\d{3}$", done.stdout, re.MULTILINE)
    return [int(status) for status in statuses], re.sub(r"^\d{3}\n", "", done.stdout, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def server(hosted: Any, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with hosted(bundle_folder, tmp_path_factory.mktemp("readme"), deadline_s=10.0) as running:
        yield running


@pytest.mark.parametrize(
    ("commands", "answer"),
    [
        pytest.param(*call, id=f"{number}{''.join(PATHS.findall(call[0]))}")
        for number, call in enumerate(CALLS)
        if "$KEY" not in call[0]
    ],
)
def test_each_call_gives_what_stands_below_it(server: Running, commands: str, answer: str):
    lines = [line for line in commands.splitlines() if line.startswith("curl ")]
    expected = [int((re.findall(r"  # (\d{3})$", line) or ["200"])[0]) for line in lines]
    statuses, printed = called(commands, server)
    assert statuses == expected, printed
    if answer:
        assert shape(json.loads(printed)) == shape(json.loads(answer))


def test_the_calls_with_a_key_need_it(hosted: Any, bundle_folder: Path, server: Running, tmp_path: Path):
    keys = block("keys")
    (commands,) = [commands for commands, _ in CALLS if "$KEY" in commands]
    key = next(line.split()[0] for line in keys.splitlines() if "admin" in line)
    with hosted(bundle_folder, tmp_path, environment={"RECSYS_API_KEYS": keys}, ready=False) as guarded:
        assert called(commands, guarded, key)[0] == [200, 200]
        assert called(commands, guarded, "another-key-0000000")[0] == [401, 401]


def test_every_route_is_called_and_every_call_is_a_route():
    paths = {
        (place, path)
        for commands, _ in CALLS
        for place, path in re.findall(r"\"\$(SERVER|ADMIN)([^\"?]*)", commands)
    }
    found = {
        route.path
        for place, path in paths
        for route in Table(PUBLIC if place == "SERVER" else ADMIN).find(path)[0].values()
    }
    assert found == {route.path for route in (*PUBLIC, *ADMIN)}
    assert all(Table(PUBLIC if place == "SERVER" else ADMIN).find(path)[0] for place, path in paths)


def test_settings_and_their_defaults():
    table = rows("Settings and limits", "setting")
    found = {names(name)[0]: (names(default) or [default])[0] for name, default, _ in table}
    assert sorted(found) == known_fields()
    for name, shown in found.items():
        default = reduce(getattr, name.split("."), Settings())
        assert shown == ("none" if default is None else str(default)), name


def test_the_example_settings_are_taken(tmp_path: Path):
    (tmp_path / "server.toml").write_text(block("toml", "[server]"))
    settings = read_settings(tmp_path / "server.toml", {}, ["server.deadline_s=0.05"])
    assert settings != Settings()
    assert settings.watch == replace(
        Settings().watch, poll_s=30.0, budget=replace(Settings().watch.budget, error_share=0.01)
    )


def test_the_fixed_limits():
    found = dict(rows("Settings and limits", "what"))
    assert found == {
        "candidates of a request": str(messages.MOST_CANDIDATES),
        "`k`, and items that were shown": str(messages.MOST_ITEMS),
        "events of a batch": str(messages.MOST_EVENTS),
        "characters of an id or a name": f"{messages.LONGEST_ID} (and {MAX_ID_BYTES} bytes in UTF-8)",
        "characters of a title or a description": str(messages.LONGEST_TEXT),
        "interactions in `history`": str(messages.LONGEST_HISTORY),
        "depth of JSON": str(MOST_DEPTH),
    }


def test_every_code_with_its_status():
    found = {
        code: int(status)
        for status, codes, _ in rows("Problems, and what a client does", "status")
        for code in names(codes)
    }
    assert {code: status for code, status in found.items() if code in CODES} == {
        code: kind.status for code, kind in CODES.items()
    }
    for code in found.keys() - CODES.keys():
        assert code in LITERALS
        assert found[code] == kind_of(code).status


def exits() -> dict[str, set[int]]:
    """Exit codes by the code of a failure, where the source names both in one place."""
    found: dict[str, set[int]] = defaultdict(set)
    for path in [*(ROOT / "recsys").rglob("*.py"), *(ROOT / "serving").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "RecsysError" and call.args:
                code = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
                given = [each.value for each in call.keywords if each.arg == "exit_code"]
                if code is not None and all(isinstance(each, ast.Name) for each in given):
                    found[code].add(getattr(errors, given[0].id) if given else errors.EXIT_DATA)
    return found


def test_exit_codes():
    known, numbers = exits(), set()
    for number, codes in rows("Exit codes", "exit"):
        numbers.add(int(number))
        for code in names(codes):
            assert code == "serve" or "=" in code or code in LITERALS, code
            assert int(number) in known.get(code, {int(number)}), code
    assert numbers == {0, *(value for name, value in vars(errors).items() if name.startswith("EXIT_"))}


def test_event_fields():
    found: dict[str, set[str]] = defaultdict(set)
    for fields, kinds, _ in rows("Events and what is promised", "field"):
        for kind in messages.KINDS if kinds == "all" else kinds.split(", "):
            found[kind].update(names(fields))
    assert found == {kind: set(form.__struct_fields__) for kind, form in messages.KINDS.items()}
    window = Window()
    section = SECTIONS["Events and what is promised"]
    assert f"at most {window.back_s / 86400:g} days ago and {window.ahead_s:g} s ahead" in section
    assert f"less than {RESERVE_BYTES // 2**20} MiB left" in section


def test_rungs_and_reasons():
    assert [names(rung)[0] for rung, _ in rows("What an answer says", "rung")] == list(RUNGS)
    reasons = [names(reason)[0] for reason, *_ in rows("What an answer says", "reason")]
    assert len(reasons) == 8
    assert set(reasons) <= LITERALS


def test_metrics(server: Running):
    told = {names(name)[0]: set(names(labels)) for name, labels, _ in rows("Metrics and logs", "metric")}
    exposed = re.findall(r"^# HELP (recsys_\w+)", Meters().exposition().decode(), re.MULTILINE)
    assert set(told) == {name for name in exposed if not name.endswith("_created")}
    samples = server.ask("GET", "/metrics").body.decode()
    for name, labels in re.findall(r"^(recsys_\w+?)(?:\{(.*)\})? ", samples, re.MULTILINE):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        if not base.endswith("_created"):
            assert set(re.findall(r"(\w+)=", labels)) - {"le"} == told[base], name


def test_names_in_the_log():
    section = SECTIONS["Metrics and logs"]
    assert set(names(section.split("`event` names the others")[1])) <= LITERALS


def test_keys(tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text(block("keys"))
    keys.chmod(0o600)
    assert len(read_keys(keys, {})) == 4
    section = SECTIONS["API keys"]
    assert set(names(section)) >= SCOPES
    assert f"A key has {SHORTEST_KEY} to" in section


def test_the_example_experiment_is_one(tmp_path: Path):
    (tmp_path / "experiment.toml").write_text(block("toml", "control"))
    assert load_experiment(tmp_path / "experiment.toml").share == 0.5


def options(*words: str) -> set[str]:
    """The options of a command."""
    command = reduce(lambda group, word: group.commands[word], words, get_command(app))
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    "command", ["serve", "events export", "compare", "train", "merge", "promote"], ids=str
)
def test_commands_take_the_options_that_are_named(command: str):
    lines = re.findall(rf"recsys {command}\b((?:[^&\n#`]|\\\n)*)", TEXT)
    assert lines
    known = options(*command.split())
    assert {option for line in lines for option in re.findall(r"--[a-z][a-z-]*", line)} <= known


def test_options_that_are_named_alone_exist():
    known = options("serve") | options("events", "export") | options("compare")
    alone = {word.split()[0] for word in names(TEXT) if word.startswith("--")}
    assert len(alone) >= 10
    assert alone <= known


def unit() -> str:
    return (ROOT / "serving" / "recsys.service").read_text()


def test_the_unit_runs_a_command_that_exists():
    (words,) = re.findall(r"^ExecStart=(.*(?:\\\n.*)*)", unit(), re.MULTILINE)
    program, command, *rest = words.replace("\\\n", " ").split()
    assert (Path(program).name, command) == ("recsys", "serve")
    assert {word for word in rest if word.startswith("--")} <= options("serve")
    assert f"\nRestartPreventExitStatus={errors.EXIT_USAGE} {errors.EXIT_CONFIG}\n" in unit()
    variables = {"RECSYS_MODEL", "RECSYS_TRACKING_URI", "RECSYS_HOST", "RECSYS_API_KEYS"}
    for name in {"server.toml", "/etc/recsys/environment", *variables}:
        assert name in unit()
        assert name in SECTIONS["systemd"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_valid_and_closed(tmp_path: Path):
    checked = tmp_path / "recsys.service"
    checked.write_text(unit().replace("/opt/recsys/bin/recsys", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(checked)], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(checked)],
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout[-200:]


def test_the_image_is_made_of_files_that_exist():
    lines = (ROOT / "serving" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert len(copied) == 5
    assert all((ROOT / name).exists() for each in copied for name in each)
