"""Copies of registered bundles: fetched whole or not at all, kept for when the registry is away."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recsys.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, RecsysError
from recsys.versions import Version
from serving.lifecycle.cached_bundles import NOTES, CachedBundles, KnownGood, open_registry

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

URI = "models:/recsys@champion"


def refusal(call, *arguments) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments)
    return caught.value


@pytest.fixture
def cache(tmp_path: Path) -> CachedBundles:
    return CachedBundles(tmp_path / "home" / "cache" / "serving")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_fetched_version_is_verified_private_and_used_again(cache, shared_versions):
    registry, first, _ = shared_versions
    bundle = cache.fetch(registry, first)
    assert bundle.digest == first.digest
    assert [path.name for path in cache.folder.iterdir()] == [first.digest]
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o77 for path in cache.folder.rglob("*")} == {0}
    gone = open_registry(cache.folder / "nowhere", "http://127.0.0.1:9")
    assert cache.fetch(gone, first).digest == first.digest


def test_a_damaged_copy_is_fetched_anew(cache, shared_versions):
    registry, first, _ = shared_versions
    cache.fetch(registry, first)
    (cache.path(first.digest) / "ranker.txt").write_bytes(b"eert\n")
    assert refusal(cache.open, first.digest).code == "digest_mismatch"
    assert cache.fetch(registry, first).digest == first.digest
    assert cache.open(first.digest).digest == first.digest


def test_a_copy_under_another_name_is_found_out(cache, shared_versions):
    registry, first, second = shared_versions
    cache.fetch(registry, first)
    cache.path(first.digest).rename(cache.path(second.digest))
    assert refusal(cache.open, second.digest).code == "digest_mismatch"


@pytest.mark.parametrize("digest", ["", "../../etc", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_c06_a_version_cannot_choose_where_its_copy_lies(cache, shared_versions, digest: str):
    registry, first, _ = shared_versions
    version = Version(first.name, first.number, first.run_id, {**first.tags, "bundle_digest": digest})
    assert refusal(cache.fetch, registry, version).code == "manifest_invalid"
    assert list(cache.folder.iterdir()) == []


def test_c01_c06_nothing_stays_of_what_was_refused(cache, shared_versions, tmp_path: Path):
    registry, first, second = shared_versions
    swapped = Version(first.name, first.number, first.run_id, {**first.tags, "bundle_digest": second.digest})
    before = tree(tmp_path)
    assert refusal(cache.fetch, registry, swapped).code == "digest_mismatch"
    assert tree(tmp_path) == before
    assert list(cache.folder.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [
        "file:///etc",
        "../../../etc",
        "http://127.0.0.1:{port}/a",
        "http://127.0.0.1:{port}/a/#/../../b",
        "s3://bucket/a",
        "mlflow-artifacts:/a",
        "mlflow-artifacts://127.0.0.1:{port}/a",
        "runs:/abc/model",
    ],
)
def test_c06_a_strange_source_is_refused_and_no_connection_opened(
    cache, shared_versions, tmp_path, source: str
):
    registry, first, _ = shared_versions
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.0)
        place = source.format(port=listener.getsockname()[1])
        made = registry.client.create_model_version(first.name, place, tags=dict(first.tags))
        version = Version(first.name, int(made.version), "", first.tags)
        before = tree(tmp_path)
        assert refusal(cache.fetch, registry, version).code in (
            "manifest_invalid", "artifact_policy_violation", "artifact_unreadable", "registry_unavailable",
            "storage_failed",
        )  # fmt: skip
        with pytest.raises(BlockingIOError):
            listener.accept()
        assert tree(tmp_path) == before


def test_c05_a_version_that_carries_code_is_refused_before_anything_is_fetched(
    cache, registry, bundle_folder
):
    version = registry.log_training("recsys", bundle_folder, {}, {})
    model = next((registry.home / "artifacts").rglob("MLmodel")).parent
    (model / "python_model.pkl").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    error = refusal(cache.fetch, registry, version)
    assert (error.code, error.where) == ("artifact_policy_violation", "python_model.pkl")
    assert list(cache.folder.iterdir()) == []


def test_what_served_well_and_what_was_tried_is_remembered(cache):
    good = KnownGood("ab" * 32, "recsys", 3, "champion")
    assert cache.is_new
    assert cache.known_good(URI) is None
    cache.note_good(URI, good)
    cache.note_passed("ab" * 32)
    again = CachedBundles(cache.folder)
    assert again.known_good(URI) == good
    assert again.known_good("models:/recsys@challenger") is None
    assert again.has_passed("ab" * 32)
    assert not again.has_passed("cd" * 32)
    assert (cache.folder / NOTES).stat().st_mode & 0o777 == 0o600


def test_trials_of_another_program_do_not_count(cache):
    cache.note_good(URI, KnownGood("ab" * 32, "recsys", 3))
    cache.note_passed("ab" * 32)
    notes = cache.folder / NOTES
    notes.write_bytes(notes.read_bytes().replace(b"python 3.", b"python 2."))
    again = CachedBundles(cache.folder)
    assert not again.has_passed("ab" * 32)
    assert again.known_good(URI) is not None


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1", b'{"program": "x", "passed": ["../.."], "good": {}}'])
def test_damaged_notes_are_no_notes(cache, damage: bytes):
    (cache.folder / NOTES).write_bytes(damage)
    again = CachedBundles(cache.folder)
    assert again.known_good(URI) is None
    assert again.is_new


def test_old_copies_go_and_the_needed_ones_stay(cache):
    digests = [f"{number:064x}" for number in range(5)]
    for digest in digests:
        (cache.folder / digest).mkdir()
    leftover = cache.folder / ".incoming-0123"
    leftover.mkdir()
    cache.note_good(URI, KnownGood(digests[0], "recsys", 1))
    cache.prune(digests[1:3])
    assert len(list(cache.folder.iterdir())) == 7, "all are young"
    for path in (cache.folder / digests[3], cache.folder / digests[0], leftover):
        os.utime(path, (time.time() - 7200,) * 2)
    cache.prune(digests[1:3])
    assert {path.name for path in cache.folder.iterdir()} == {NOTES, *digests[:3], digests[4]}
    cache.prune(digests[1:3], young_s=0.0)
    assert {path.name for path in cache.folder.iterdir()} == {NOTES, *digests[:3]}


def test_c06_a_folder_that_others_may_write_to_is_refused(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    error = refusal(CachedBundles, shared)
    assert (error.code, error.exit_code) == ("cache_unsafe", EXIT_CONFIG)
    shared.chmod(0o755)
    assert CachedBundles(shared).folder.stat().st_mode & 0o777 == 0o700
    link = tmp_path / "link"
    link.symlink_to(shared, target_is_directory=True)
    assert refusal(CachedBundles, link).code == "cache_unsafe"


def test_two_fetches_of_one_version_at_once_both_get_it(cache, shared_versions):
    registry, first, _ = shared_versions
    found: list[str] = []
    caches = [cache, CachedBundles(cache.folder)]
    threads = [
        threading.Thread(target=lambda one=one: found.append(one.fetch(registry, first).digest))
        for one in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first.digest] * 2
    assert [path.name for path in cache.folder.iterdir()] == [first.digest]


def test_nothing_stays_where_there_is_no_room(cache, shared_versions):
    registry, first, _ = shared_versions
    code = (
        "import resource, sys, pathlib, warnings; warnings.simplefilter('ignore')\n"
        "from serving.lifecycle.cached_bundles import CachedBundles, open_registry\n"
        "registry = open_registry(pathlib.Path(sys.argv[1]))\n"
        "version = registry.resolve(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "try: CachedBundles(pathlib.Path(sys.argv[3])).fetch(registry, version)\n"
        "except Exception as error: print(getattr(error, 'code', error))\n"
    )
    command = [sys.executable, "-c", code, str(registry.home), first.uri, str(cache.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("storage_full", "registry_unavailable"), done.stderr[-500:]
    assert list(cache.folder.iterdir()) == []


def test_serving_a_folder_needs_no_mlflow():
    code = (
        "import sys; from serving.lifecycle import cached_bundles, shadow, trial, watch; "
        "sys.exit(str(sorted({'torch', 'transformers', 'mlflow', 'pandas'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_a_missing_mlflow_is_named(tmp_path: Path):
    code = (
        "import sys, pathlib; sys.modules['mlflow'] = None\n"
        "from serving.lifecycle.cached_bundles import open_registry\n"
        "try: open_registry(pathlib.Path('.'))\n"
        "except Exception as error: print(error.code, error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["missing_extra", str(EXIT_UNAVAILABLE)]
