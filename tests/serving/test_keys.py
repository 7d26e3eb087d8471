"""API keys: which are let in, which stop the start, and that none of them stays anywhere."""

from __future__ import annotations

import hashlib
import pickle

import pytest

from recsys.errors import EXIT_CONFIG, RecsysError
from serving.http.door import ANY, OPEN, Door
from serving.http.keys import Keys, check_bind, is_loopback, read_keys
from serving.http.settings import ServerSettings
from serving.problems import Refusal

KEY, OTHER = "a-key-of-enough-length", "another-key-as-long-as-that"
NOW = 1_800_000_000.0


def read(tmp_path, text: str, mode: int = 0o600) -> Keys:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(mode)
    return read_keys(file, {})


def wrong(code: str, call) -> str:
    with pytest.raises(RecsysError) as caught:
        call()
    assert (caught.value.code, caught.value.exit_code) == (code, EXIT_CONFIG)
    return str(caught.value)


def test_keys_are_found_by_either_header(tmp_path):
    keys = read(tmp_path, f"# keys\n\n{KEY} rank,events\n{OTHER} metrics 2031-01-01\n")
    assert len(keys) == 2
    for headers in ({b"authorization": b"Bearer " + KEY.encode()}, {b"x-api-key": KEY.encode()}):
        assert keys.find(headers, NOW).scopes == {"rank", "events"}
    assert keys.find({b"authorization": b"bearer  " + OTHER.encode() + b" "}, NOW).scopes == {"metrics"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "key_missing"),
        ({b"authorization": b"Bearer "}, "key_missing"),
        ({b"authorization": b"Basic " + KEY.encode()}, "key_missing"),
        ({b"authorization": KEY.encode()}, "key_missing"),
        ({b"x-api-key": b""}, "key_missing"),
        ({b"x-api-key": KEY.encode()[:-1]}, "key_unknown"),
        ({b"x-api-key": KEY.encode() + b"\0"}, "key_unknown"),
        ({b"x-api-key": hashlib.sha256(KEY.encode()).digest()}, "key_unknown"),
        ({b"x-api-key": b"\xff" * 5000}, "key_unknown"),
        ({b"x-api-key": OTHER.encode()}, "key_expired"),
    ],
)
def test_everything_else_is_a_401(tmp_path, headers, code):
    keys = read(tmp_path, f"{KEY} rank\n{OTHER} rank 2027-01-15T08:00:00Z\n")
    with pytest.raises(Refusal) as caught:
        keys.find(headers, NOW)
    assert (caught.value.code, caught.value.status) == (code, 401)
    assert caught.value.headers[0][0] == b"www-authenticate"


def test_a_key_ends_at_its_moment(tmp_path):
    keys = read(tmp_path, f"{KEY} rank 2027-01-15T08:00:00+00:00")
    assert keys.find({b"x-api-key": KEY.encode()}, NOW - 1)
    with pytest.raises(Refusal, match="key_expired"):
        keys.find({b"x-api-key": KEY.encode()}, NOW)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "keys_empty"),
        ("# nothing\n\n", "keys_empty"),
        ("short rank", "key_weak"),
        ("fifteen-letters rank", "key_weak"),
        (KEY, "keys_invalid"),
        (f"{KEY} everything", "keys_invalid"),
        (f"{KEY} rank,", "keys_invalid"),
        (f"{KEY} rank soon", "keys_invalid"),
        (f"{KEY} rank 2031-01-01 more", "keys_invalid"),
        (f"{KEY}\N{SNOWMAN} rank", "keys_invalid"),
        (f"{KEY} rank\n{KEY} events", "keys_invalid"),
        ("k" * 513 + " rank", "keys_invalid"),
    ],
)
def test_bad_files_stop_the_start_and_no_key_is_told(tmp_path, text, code):
    message = wrong(code, lambda: read(tmp_path, text))
    assert KEY not in message
    assert not text.strip() or text.split()[0] not in message


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o620])
def test_a_file_that_others_may_read_stops_the_start(tmp_path, mode):
    wrong("keys_exposed", lambda: read(tmp_path, f"{KEY} rank", mode))


def test_a_file_that_is_not_there_stops_the_start(tmp_path):
    wrong("keys_unreadable", lambda: read_keys(tmp_path / "nothing", {}))
    wrong("keys_unreadable", lambda: read_keys(tmp_path, {}))


def test_the_environment_holds_the_same_lines():
    keys = read_keys(None, {"RECSYS_API_KEYS": f"{KEY} rank; {OTHER} admin"})
    assert keys.find({b"x-api-key": OTHER.encode()}, NOW).scopes == {"admin"}
    wrong("keys_empty", lambda: read_keys(None, {"RECSYS_API_KEYS": ""}))
    wrong("key_weak", lambda: read_keys(None, {"RECSYS_API_KEYS": "x rank"}))
    assert len(read_keys(None, {})) == 0


def test_no_key_is_kept(tmp_path):
    keys = read(tmp_path, f"{KEY} rank")
    assert KEY.encode() not in pickle.dumps(keys)
    assert KEY not in repr(vars(keys))


def test_without_keys_only_this_machine_is_served():
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        check_bind(host, Keys())
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):  # noqa: S104
        assert not is_loopback(host)
        wrong("open_bind", lambda host=host: check_bind(host, Keys()))


def test_with_keys_any_address_is_served(tmp_path):
    check_bind("10.0.0.1", read(tmp_path, f"{KEY} rank"))


def test_wrong_keys_end_in_a_429_and_right_ones_do_not(tmp_path):
    door = Door(read(tmp_path, f"{KEY} rank"), ServerSettings(most_failures=3))
    codes = []
    for _ in range(6):
        with pytest.raises(Refusal) as caught:
            door.enter({b"x-api-key": b"guess"}, "10.0.0.1", "rank")
        codes.append(caught.value.code)
    assert codes == ["key_unknown"] * 3 + ["too_many_failures"] * 3
    assert int(dict(caught.value.headers)[b"retry-after"]) in range(1, 21)
    right = {b"x-api-key": KEY.encode()}
    assert door.enter(right, "10.0.0.1", "rank") == door.enter(right, "10.0.0.2", ANY)
    with pytest.raises(Refusal, match="key_missing"):
        door.enter({}, "10.0.0.2", "rank")
    with pytest.raises(Refusal, match="scope_missing"):
        door.enter(right, "10.0.0.2", "events")
    assert door.enter({}, "10.0.0.1", OPEN) == "10.0.0.1"


def test_clients_are_limited_by_key_and_not_by_address(tmp_path):
    settings = ServerSettings(rate=0.01, burst=2.0)
    door = Door(read(tmp_path, f"{KEY} rank\n{OTHER} rank"), settings)
    for _ in range(2):
        door.enter({b"x-api-key": KEY.encode()}, "10.0.0.1", "rank")
    with pytest.raises(Refusal, match="rate_limited"):
        door.enter({b"x-api-key": KEY.encode()}, "10.0.0.9", "rank")
    door.enter({b"x-api-key": OTHER.encode()}, "10.0.0.1", "rank")
