"""A bundle is tried in a child: whatever is wrong with it is that child's end and an error here."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.lifecycle.trial import TrialLimits, environment, try_bundle

PATIENT = TrialLimits(wall_s=120.0)
"""The machine that runs the tests may be busy."""


def refusal(folder: Path, limits: TrialLimits = PATIENT) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        try_bundle(folder, limits)
    return caught.value


def test_a_whole_bundle_passes(bundle_folder: Path):
    from recsys.bundle import read_bundle

    passed = try_bundle(bundle_folder, PATIENT)
    assert passed.digest == read_bundle(bundle_folder).digest
    assert passed.golden_rows == 80
    assert 50e6 < passed.peak_bytes < PATIENT.memory_bytes


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_c01_a_truncated_ranker_names_file_and_digests(bundle_parts, tmp_path: Path, percent: int):
    folder = bundle_parts[0].write(tmp_path / "bundle")
    ranker = folder / "ranker.txt"
    data = ranker.read_bytes()
    ranker.write_bytes(data[: len(data) * percent // 100])
    error = refusal(folder)
    assert (error.code, error.where) == ("digest_mismatch", "ranker.txt")
    assert re.search(r"expected [0-9a-f]{12} .*actual [0-9a-f]{12}", error.what)


def with_scores_moved(parts, row: int, by: float) -> bytes:
    golden = json.loads(parts.files["golden.json"])
    golden["score"][row] += by
    return json.dumps(golden).encode()


def test_c02_wrong_golden_scores_name_row_expected_and_actual(bundle_parts, tmp_path: Path):
    first = bundle_parts[0]
    folder = first.write(tmp_path / "bundle", golden__json=with_scores_moved(first, 7, 1e-3))
    error = refusal(folder)
    assert (error.code, error.where) == ("golden_mismatch", "golden.json")
    expected, actual = map(float, re.fullmatch(r"row 7: expected (\S+), actual (\S+)", error.what).groups())
    assert expected - actual == pytest.approx(1e-3, abs=1e-6)


def test_c02_missing_trees_are_found(bundle_parts, tmp_path: Path):
    from recsys.ranking import Ranker

    first = bundle_parts[0]
    ranker = Ranker.from_files(first.files)
    fewer = ranker.with_trees(ranker.trees - 2).to_files()["ranker.txt"]
    assert refusal(first.write(tmp_path / "bundle", ranker__txt=fewer)).code == "golden_mismatch"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_c02_leaves_that_are_not_finite_are_found(bundle_parts, tmp_path: Path, value: str):
    first = bundle_parts[0]
    text = re.sub(r"leaf_value=\S+", f"leaf_value={value}", first.files["ranker.txt"].decode())
    error = refusal(first.write(tmp_path / "bundle", ranker__txt=text.encode()))
    assert error.code in ("non_finite_scores", "golden_mismatch")


def with_tree_sizes(parts, change) -> bytes:
    text = parts.files["ranker.txt"].decode()
    sizes = re.search(r"tree_sizes=(.*)\n", text)[1]
    return text.replace(sizes, " ".join(str(change(int(size))) for size in sizes.split()), 1).encode()


def test_a_ranker_that_kills_lightgbm_is_refused_and_this_process_lives(bundle_parts, tmp_path: Path):
    text = with_tree_sizes(bundle_parts[0], lambda size: size * 1000)
    error = refusal(bundle_parts[0].write(tmp_path / "bundle", ranker__txt=text))
    assert (error.code, error.where) == ("trial_crashed", "ranker.txt")
    assert re.search(r"SIG(SEGV|ABRT|BUS)", error.what)


def test_c05_a_file_that_could_run_code_is_refused_by_name(bundle_parts, tmp_path: Path):
    folder = bundle_parts[0].write(tmp_path / "bundle")
    (folder / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    error = refusal(folder)
    assert (error.code, error.where) == ("artifact_policy_violation", "model.pkl")


def test_c06_a_manifest_with_a_way_out_is_refused(bundle_parts, tmp_path: Path):
    folder = bundle_parts[0].write(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["../../x.json"] = {"sha256": "0" * 64, "size": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert refusal(folder).code == "manifest_invalid"


def test_a_part_that_cannot_be_parsed_is_a_failed_trial(bundle_parts, tmp_path: Path):
    error = refusal(bundle_parts[0].write(tmp_path / "bundle", live__safetensors=b"\xff" * 64))
    assert error.code == "trial_failed"
    assert len(str(error)) < 400


def test_golden_requests_are_needed(bundle_parts, tmp_path: Path):
    empty = {name: [] for name in ("request", "user_id", "item_id", "source", "timestamp", "score")}
    folder = bundle_parts[0].write(tmp_path / "bundle", golden__json=json.dumps(empty).encode())
    assert refusal(folder).code == "golden_missing"


def test_an_encoder_alone_cannot_rank(tmp_path: Path):
    from recsys.bundle import write_bundle

    metadata = {"name": "recsys-encoder", "as_of": 0.0, "feature_schema": "", "kind": "encoder"}
    write_bundle(tmp_path / "bundle", {"a.json": b"{}"}, metadata)
    assert refusal(tmp_path / "bundle").code == "wrong_kind"


def test_a_trial_that_takes_too_long_is_stopped(bundle_folder: Path):
    started = time.monotonic()
    error = refusal(bundle_folder, TrialLimits(wall_s=0.3))
    assert (error.code, error.exit_code) == ("trial_timeout", EXIT_TEMPORARY)
    assert time.monotonic() - started < 10
    with pytest.raises(ChildProcessError):  # none is left behind
        os.waitpid(-1, os.WNOHANG)


def test_a_small_file_that_grows_in_memory_is_stopped(bundle_parts, tmp_path: Path):
    rows = 40_000_000
    users = pl.DataFrame({"user_id": pl.repeat(7, rows, dtype=pl.Int64, eager=True)})
    users.with_columns(known=True).write_parquet(bomb := io.BytesIO())
    assert len(bomb.getvalue()) < 1e6
    folder = bundle_parts[0].write(tmp_path / "bundle", users__parquet=bomb.getvalue())
    limits = TrialLimits(wall_s=120.0, memory_bytes=1536 * 2**20)
    assert refusal(folder, limits).code == "trial_out_of_memory"


HANGS = """
import sys, time

def hook(event, words):
    if event == "open" and "ranker.txt" in str(words[0]):
        time.sleep(60)

sys.addaudithook(hook)
"""
"""Python runs this before anything else where it is in the path: a file that is not read to its end."""


def test_a_trial_ends_by_itself_when_its_parent_is_gone(bundle_folder: Path, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "serving.lifecycle.trial_child", str(bundle_folder), "0.1", str(2**33)]
    started = time.monotonic()
    child = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False, timeout=55
    )
    ends = {-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL}  # its clock, or its share of the processor
    assert child.returncode in ends
    assert time.monotonic() - started < 30


def test_a_folder_that_is_not_there(tmp_path: Path):
    assert refusal(tmp_path / "nowhere").code == "manifest_invalid"


WAYS_OUT = """
import os, socket, subprocess, sys
from serving.lifecycle.trial_child import refuse_ways_out
sys.addaudithook(refuse_ways_out)
for way in (
    lambda: os.system("true"),
    lambda: subprocess.run(["true"]),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: os.fork(),
    lambda: os.execv("/bin/true", ["true"]),
):
    try:
        way()
    except PermissionError as error:
        print(error)
"""


def test_a_trial_starts_nothing_and_opens_no_connection():
    done = subprocess.run([sys.executable, "-c", WAYS_OUT], capture_output=True, text=True, check=True)
    refused = [line.split()[0] for line in done.stdout.splitlines()]
    assert refused == ["os.system", "subprocess.Popen", "socket.connect", "os.fork", "os.exec"]


def test_a_trial_gets_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("RECSYS_API_KEYS", "secret")
    assert "secret" not in environment().values()
