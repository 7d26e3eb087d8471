import hashlib
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import MANIFEST, parse_manifest, read_bundle, read_manifest, read_to_load, write_bundle
from recsys.errors import EXIT_IO, RecsysError
from recsys.golden import GOLDEN, Golden, check_golden

METADATA = {"name": "recsys", "as_of": 1_700_000_000.0, "feature_schema": "ab" * 32, "parent": "v3"}


def with_header(text: str) -> bytes:
    """An npy file whose header says this."""
    header = text.encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def small_files() -> dict[str, bytes]:
    golden = Golden(["q", "q"], [7, 7], [1, 2], ["als+text", ""], [1.5, 1.5], [0.25, -0.5])
    return {
        "ranker.txt": b"tree\n" * 100,
        "items/table.npy": npy(np.arange(6.0)),
        "empty.json": b"{}",
        **golden.to_files(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", small_files(), METADATA)
    return tmp_path / "bundle"


def refusal(folder: Path) -> RecsysError:
    """Of both ways to read a bundle, which is the same."""
    with pytest.raises(RecsysError) as caught:
        read_bundle(folder)
    with pytest.raises(RecsysError) as other:
        read_to_load(folder)
    assert str(other.value) == str(caught.value)
    return caught.value


def rewrite(folder: Path, **changes: object) -> None:
    """Edit the manifest in place, as an attacker who cannot be stopped by its digest would."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_what_is_written_is_read(folder: Path):
    bundle = read_bundle(folder)
    assert dict(bundle.files) == small_files()
    assert bundle.manifest.as_of == METADATA["as_of"]
    assert bundle.manifest.metadata == {"parent": "v3"}
    golden = bundle.golden()
    assert golden is not None
    assert golden.user_id == [7, 7]
    assert golden.score == [0.25, -0.5]
    with pytest.raises(TypeError):
        bundle.files["ranker.txt"] = b""  # type: ignore[index]


def test_what_is_read_to_load_is_the_same_bundle(folder: Path):
    bundle, other = read_bundle(folder), read_to_load(folder)
    assert dict(other.files) == small_files()
    assert (other.manifest, other.digest) == (bundle.manifest, bundle.digest) == read_manifest(folder)


def test_a_manifest_is_read_without_the_files(folder: Path):
    (folder / "ranker.txt").write_bytes(b"damaged")
    assert read_manifest(folder)[0].name == METADATA["name"]
    (folder / "extra.json").write_bytes(b"{}")
    with pytest.raises(RecsysError, match="manifest_invalid"):
        read_manifest(folder)


def test_same_content_gives_same_digest(folder: Path, tmp_path: Path):
    write_bundle(tmp_path / "again", dict(reversed(small_files().items())), METADATA)
    assert read_bundle(folder).digest == read_bundle(tmp_path / "again").digest


def test_permissions_are_private(folder: Path):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "items").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.*")} == {0o600}


def test_a_bundle_is_never_overwritten(folder: Path):
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(RecsysError, match="bundle_exists"):
        write_bundle(folder, {"a.json": b"1"}, METADATA)
    assert (folder / MANIFEST).read_bytes() == before


def test_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(RecsysError, match="storage_f") as caught:
        write_bundle(tmp_path / "bundle", {"b.txt/d.json": b"", "b.txt": b""}, METADATA)
    assert caught.value.exit_code == EXIT_IO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("percent", [0, 10, 50, 90])
def test_truncated_file_names_both_digests(folder: Path, percent: int):
    path = folder / "ranker.txt"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    error = refusal(folder)
    assert error.code == "digest_mismatch"
    assert error.where == "ranker.txt"
    assert read_bundle_digest(folder, "ranker.txt") in error.what
    assert "actual" in error.what


def read_bundle_digest(folder: Path, name: str) -> str:
    return json.loads((folder / MANIFEST).read_bytes())["files"][name]["sha256"][:12]


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("flip") / "bundle"
    write_bundle(folder, small_files(), METADATA)
    name = data.draw(st.sampled_from(sorted(small_files())))
    raw = bytearray((folder / name).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(raw)
    assert refusal(folder).code == "digest_mismatch"


def test_longer_file_is_refused_without_reading_it_all(folder: Path):
    with (folder / "empty.json").open("ab") as file:
        file.truncate(2**40)
    error = refusal(folder)
    assert (error.code, error.where) == ("digest_mismatch", "empty.json")


def test_missing_and_extra_files(folder: Path):
    (folder / "extra.json").write_bytes(b"{}")
    assert refusal(folder).where == "extra.json"
    (folder / "extra.json").unlink()
    (folder / "ranker.txt").unlink()
    assert (refusal(folder).code, refusal(folder).where) == ("manifest_invalid", "ranker.txt")


def test_folder_without_manifest(tmp_path: Path):
    assert refusal(tmp_path).code == "manifest_invalid"
    assert refusal(tmp_path / "nowhere").code == "manifest_invalid"


def make_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_folder_link(path: Path) -> None:
    path.symlink_to("/etc")


def make_hard_link(path: Path) -> None:
    path.hardlink_to(path.parent / "empty.json")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [make_symlink, make_folder_link, make_hard_link, make_fifo])
def test_links_and_special_files_are_refused(folder: Path, make):
    make(folder / "trap.json")
    assert refusal(folder).code == "manifest_invalid"


@pytest.mark.parametrize("make", [make_symlink, make_fifo])
def test_manifest_itself_must_be_a_plain_file(folder: Path, make):
    (folder / MANIFEST).unlink()
    make(folder / MANIFEST)
    assert refusal(folder).code == "manifest_invalid"


BAD_NAMES = [
    "../x.json",
    "/etc/x.json",
    "a/../../x.json",
    "a//b.json",
    "./a.json",
    "a\x00.json",
    "a\n.json",
    "a.json\n",
    "%2e%2e/a.json",
    "a" * 300 + ".json",
    "file:///etc/a.json",
    "http://h/a.json#/../b.json",
    "a\\b.json",
    "é.json",
    "",
    "Manifest.json",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused_before_anything_is_touched(folder: Path, tmp_path: Path, name: str):
    entry = {"sha256": "0" * 64, "size": 0}
    rewrite(folder, files={name: entry})
    error = refusal(folder)
    assert error.code == "manifest_invalid"
    assert len(str(error)) < 400
    with pytest.raises(RecsysError, match="manifest_invalid"):
        write_bundle(tmp_path / "new", {name: b""}, METADATA)
    assert not (tmp_path / "new").exists()


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path):
    with pytest.raises(RecsysError, match="manifest_invalid"):
        write_bundle(tmp_path / "new", {"a.json": b"1", "A.json": b"2"}, METADATA)


EXECUTABLE = [
    ("python_model.pkl", b"cos\nsystem\n(S'touch marker'\ntR."),
    ("model.pkl.gz", b""),
    ("code/model.py", b"open('marker', 'w')"),
    ("MLmodel", b"loader_module: evil"),
    ("weights.pt", b""),
    ("weights.joblib", b""),
    ("model.skops", b""),
    ("model.onnx", b""),
    ("modules.json", b'[{"type": "evil.Module"}]'),
    ("encoder/config.json", b'{"auto_map": {"AutoModel": "evil.Model"}}'),
    ("encoder/config.json", b'{"\\u0061uto_map": {}}'),
    ("encoder/config.json", b'{"_attn_implementation_internal": "evil/kernel"}'),
    ("objects.npy", npy(np.array([{}], dtype=object), allow_pickle=True)),
    ("zip.npy", b"PK\x03\x04"),
    ("cut.npy", with_header("{'descr': '<f4', 'fortran_order': False, shape': (2,), } [")),
    ("code.npy", with_header("if 1:\n   a\n  b\n")),
    ("keys.npy", with_header("{'descr': '<f4', 1: False, 'shape': (2,)}")),
    ("RANKER.TXT", b""),
    (".json", b"{}"),
]


@pytest.mark.parametrize(("name", "data"), EXECUTABLE)
def test_what_could_run_code_is_refused(folder: Path, tmp_path: Path, name: str, data: bytes):
    with pytest.raises(RecsysError, match="artifact_policy_violation"):
        write_bundle(tmp_path / "new", {name: data}, METADATA)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    files = json.loads((folder / MANIFEST).read_bytes())["files"]
    files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    rewrite(folder, files=files)
    error = refusal(folder)
    assert (error.code, error.where) == ("artifact_policy_violation", name)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"name": NaN}',
        b'{"name": "a", "name": "b"}',
        b"[" * 100_000,
        b'{"name": 1}',
        b'{"files": {"a.json": {"sha256": "x", "size": -1}}}',
    ],
)
def test_malformed_manifests_are_refused(raw: bytes):
    with pytest.raises(RecsysError, match="manifest_invalid"):
        parse_manifest(raw)


@pytest.mark.parametrize(
    "changes", [{"format_version": 2}, {"as_of": "now"}, {"golden": "x.json"}, {"more": 1}, {"as_of": True}]
)
def test_manifest_fields_are_checked(folder: Path, changes: dict):
    rewrite(folder, **changes)
    assert refusal(folder).code == "manifest_invalid"


@pytest.mark.parametrize("value", [b'"\\ud83d"', b"1e999", b'{"\\udfff": 1}'])
def test_what_could_not_be_written_again_is_no_manifest(folder: Path, value: bytes):
    """Found by fuzzing: half a character came through, to fail wherever the name is told."""
    rewrite(folder, metadata={"note": "here"})
    raw = (folder / MANIFEST).read_bytes()
    assert parse_manifest(raw).metadata == {"note": "here"}
    with pytest.raises(RecsysError, match="not strict JSON"):
        parse_manifest(raw.replace(b'"here"', value))


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_manifest_bytes_crash_the_parser(raw: bytes):
    with pytest.raises(RecsysError):
        parse_manifest(raw)


def test_golden_scores_within_tolerance_pass():
    check_golden([0.5, -1.0], [0.5 + 9e-7, -1.0])
    check_golden([], [])


@pytest.mark.parametrize(
    ("actual", "code", "what"),
    [
        ([0.5, 1.001], "golden_mismatch", "row 1: expected 1, actual 1.001"),
        ([0.5, float("nan")], "non_finite_scores", "row 1: expected 1, actual nan"),
        ([float("-inf"), 1.0], "non_finite_scores", "row 0: expected 0.5, actual -inf"),
        ([0.5], "golden_mismatch", "expected 2 scores"),
    ],
)
def test_wrong_golden_scores_name_the_row(actual: list[float], code: str, what: str):
    with pytest.raises(RecsysError, match=what) as caught:
        check_golden([0.5, 1.0], actual)
    assert caught.value.code == code


@pytest.mark.parametrize("raw", [b"[]", b'{"score": [1]}', b"{"])
def test_malformed_golden_requests_are_refused(raw: bytes):
    with pytest.raises(RecsysError, match="manifest_invalid"):
        Golden.from_files({GOLDEN: raw})


def test_uneven_golden_columns_are_refused():
    columns = {key: [1] for key in ("request", "user_id", "item_id", "source", "timestamp")} | {
        "score": [1, 2]
    }
    with pytest.raises(RecsysError, match="length"):
        Golden.from_files({GOLDEN: json.dumps(columns).encode()})
